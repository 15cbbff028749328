"""What every request passes: CORS, origins, addresses, limits, headers and the log."""

from __future__ import annotations

import io
import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import falcon
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontdesk.resources import Resource
from frontdesk.settings import Settings, Window
from middleware import ClientAddress, client_key, ip_address, truncated
from tests.support.desk import Desk
from tests.support.server import Server, serving

SITE = "https://site.example"
EVIL = "https://evil.example"
FORM = {"email": "ada@example.com", "message": "Hello"}
BAD = {"email": "not an address", "message": "Hello"}

# A request for each kind of answer: method, path, body, status.
EVERY_ANSWER = [
    ("POST", "/contact", FORM, 200),
    ("POST", "/newsletter", {"email": "ada@example.com"}, 200),
    ("POST", "/hits", {"page": "/"}, 200),
    ("GET", "/hits?page=/", None, 200),
    ("GET", "/hits.gif?page=/", None, 200),
    ("GET", "/hits.svg?page=/", None, 200),
    ("GET", "/health", None, 200),
    ("GET", "/", None, 200),
    ("HEAD", "/", None, 200),
    ("OPTIONS", "/contact", None, 200),
    ("POST", "/contact", [], 400),
    ("GET", "/export/messages.json", None, 401),
    ("GET", "/nothing", None, 404),
    ("POST", "/f/any-key", FORM, 200),
    ("DELETE", "/contact", None, 405),
    ("POST", "/contact", {"message": "x" * 70_000}, 413),
    ("POST", "/contact", BAD, 422),
]


def ask(desk: Desk, method: str, path: str, body: Any = None, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return desk.client.simulate_request(method, path, json=body, headers=named)


def stored(desk: Desk) -> int:
    return len(desk.messages())


# --- CORS ------------------------------------------------------------------------


def every_answer(desk: Desk, **headers: str) -> Iterator[Any]:
    for method, path, body, status in EVERY_ANSWER:
        answer = ask(desk, method, path, body, **headers)
        assert answer.status_code == status, (method, path)
        yield answer


def test_every_answer_names_an_allowed_origin_and_varies(desk: Desk) -> None:
    for answer in every_answer(desk, Origin=SITE):
        assert answer.headers["Access-Control-Allow-Origin"] == SITE
        assert "Origin" in answer.headers["Vary"]
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


def test_every_answer_varies_without_an_origin_too(desk: Desk) -> None:
    for answer in every_answer(desk):
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Origin" in answer.headers["Vary"]


def test_a_foreign_origin_gets_no_cors_header(desk: Desk) -> None:
    for method, path, body, _ in EVERY_ANSWER:
        answer = ask(desk, method, path, body, Origin=EVIL)
        assert not [name for name in answer.headers if name.startswith("access-")]
        assert "Origin" in answer.headers["Vary"]


def test_errors_of_the_wrong_type_carry_cors_headers_too(desk: Desk) -> None:
    headers = {"Origin": SITE, "Content-Type": "image/png"}
    answer = desk.client.simulate_post("/contact", body=b"x", headers=headers)
    assert answer.status_code == 415
    assert answer.headers["Access-Control-Allow-Origin"] == SITE
    assert "Origin" in answer.headers["Vary"]


def test_an_internal_error_is_told_in_one_shape_with_cors_headers(desk: Desk) -> None:
    def break_down(req: falcon.Request, resp: falcon.Response) -> None:
        raise RuntimeError("the secret of the house")

    broken = type("Broken", (Resource,), {"on_get": staticmethod(break_down)})
    desk.app.add_route("/broken", broken(desk.app.service))
    answer = ask(desk, "GET", "/broken", Origin=SITE)
    assert answer.status_code == 500
    assert answer.headers["Access-Control-Allow-Origin"] == SITE
    assert answer.headers["Vary"] == "Origin"
    assert [error["code"] for error in answer.json["errors"]] == ["INTERNAL"]
    assert "secret" not in answer.text


def test_a_star_allows_every_origin_but_no_credentials(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(allowed_origins=("*",))
    answer = ask(desk, "POST", "/hits", {"page": "/"}, Origin=EVIL)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "allowed"),
    [
        ("/hits", {"page": "/"}, "true"),
        ("/contact", FORM, None),
        ("/newsletter", {"email": "ada@example.com"}, None),
    ],
)
def test_only_the_counter_takes_credentials(
    desk: Desk, path: str, body: Any, allowed: str | None
) -> None:
    answer = ask(desk, "POST", path, body, Origin=SITE)
    assert answer.headers.get("Access-Control-Allow-Credentials") == allowed


@pytest.mark.parametrize(
    ("listed", "origin"),
    [(SITE, "https://www.site.example"), ("https://www.site.example", SITE)],
)
def test_www_and_apex_are_one_site(
    make_desk: Callable[..., Desk], listed: str, origin: str
) -> None:
    desk = make_desk(allowed_origins=(listed,))
    answer = ask(desk, "POST", "/contact", FORM, Origin=origin)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin


# --- preflights ------------------------------------------------------------------

WANTED = "content-type, formspree-client, formspree-session-data, idempotency-key"


def preflight(desk: Desk, path: str = "/contact", origin: str = SITE) -> Any:
    return ask(
        desk,
        "OPTIONS",
        path,
        Origin=origin,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers=WANTED,
    )


@pytest.mark.parametrize(
    "path", ["/contact", "/f/contact", "/p/1/f/contact", "/newsletter", "/hits"]
)
def test_a_preflight_allows_what_clients_send_for_a_day(desk: Desk, path: str) -> None:
    answer = preflight(desk, path)
    assert answer.status_code in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == SITE
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == WANTED
    assert answer.headers["Access-Control-Max-Age"] == "86400"
    assert "Origin" in answer.headers["Vary"]


def test_a_preflight_of_a_foreign_origin_allows_nothing(desk: Desk) -> None:
    answer = preflight(desk, origin=EVIL)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_preflights_consume_no_limit(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(contact_limit=(Window(1, 60),))
    for _ in range(5):
        assert preflight(desk).status_code in (200, 204)
    assert desk.post("/contact", FORM).status_code == 200
    assert desk.post("/contact", FORM).status_code == 429


@pytest.mark.parametrize("wanted", ["x\x00y", "a:b", "{}", "x" * 1001])
def test_a_preflight_does_not_echo_nonsense(desk: Desk, wanted: str) -> None:
    answer = ask(
        desk,
        "OPTIONS",
        "/contact",
        Origin=SITE,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers=wanted,
    )
    assert "Access-Control-Allow-Headers" not in answer.headers


# --- the origin rule -------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": EVIL, "Referer": f"{SITE}/page"},
        {"Referer": f"{EVIL}/page"},
        {"Origin": "http://site.example"},
        {"Origin": "https://site.example.evil.example"},
        {"Origin": "https://site.example@evil.example"},
        {"Origin": "nonsense"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/contact", "/f/contact", "/newsletter", "/hits"])
def test_a_post_from_a_foreign_page_is_refused_and_does_nothing(
    desk: Desk, path: str, headers: dict[str, str]
) -> None:
    answer = ask(desk, "POST", path, FORM | {"page": "/"}, **headers)
    assert answer.status_code == 403
    assert [error["code"] for error in answer.json["errors"]] == ["BLOCKED"]
    assert (stored(desk), desk.subscribers(), desk.drain()) == (0, [], [])
    assert ask(desk, "GET", "/hits?page=/").json["hits"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": SITE},
        {"Origin": SITE, "Referer": f"{EVIL}/page"},
        {"Referer": f"{SITE}/page?x=1"},
        {"Origin": "https://desk.example"},
    ],
    ids=str,
)
def test_a_post_of_the_owners_pages_or_of_no_page_is_taken(
    desk: Desk, headers: dict[str, str]
) -> None:
    assert ask(desk, "POST", "/contact", FORM, **headers).status_code == 200
    assert stored(desk) == 1


def test_a_refusal_names_the_host_and_the_setting(desk: Desk) -> None:
    answer = ask(desk, "POST", "/contact", FORM, Origin="https://evil.example:8443")
    assert "evil.example:8443" in answer.json["error"]
    assert "ALLOWED_ORIGINS" in answer.json["error"]


def test_the_log_names_a_refused_origin_and_the_setting(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    preflight(desk, origin=EVIL)  # all that comes of a script's JSON
    ask(desk, "POST", "/contact", FORM, Referer=f"{EVIL}/page?name=ada")
    line = f"{EVIL} is refused: ALLOWED_ORIGINS does not list it"
    assert caplog.messages == [line, line]
    caplog.clear()
    preflight(desk)
    ask(desk, "POST", "/contact", FORM, Origin=SITE)
    ask(desk, "GET", "/hits?page=/", Origin=SITE)
    assert caplog.messages == []


def test_an_unreadable_origin_is_not_repeated_in_the_log(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    ask(desk, "POST", "/contact", FORM, Origin="https://ada@example.com secret")
    (line,) = caplog.messages
    assert line.startswith("An origin that cannot be read is refused")


@pytest.mark.parametrize("purpose", ["confirm", "unsubscribe", "not-me"])
def test_a_mailed_link_works_from_any_page(desk: Desk, purpose: str) -> None:
    desk.post("/newsletter", {"email": "ada@example.com"})
    text = desk.drain()[0]["TextPart"]
    path = re.search(rf"https://desk\.example(/newsletter/{purpose}/\S+)", text)
    assert path is not None
    answer = ask(desk, "POST", path[1], Origin=EVIL)
    assert answer.status_code == 200
    status = "confirmed" if purpose == "confirm" else "left"
    assert [row["status"] for row in desk.subscribers()] == [status]


# --- headers ---------------------------------------------------------------------


def test_every_answer_is_safe_private_and_numbered(desk: Desk) -> None:
    kept = []
    for answer in every_answer(desk):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-ID"])
        if answer.headers["Cache-Control"] != "no-store":
            kept.append(answer)
    assert [answer.json["days"] != [] for answer in kept] == [True]  # GET /hits


@pytest.mark.parametrize("path", ["/", "/thanks", "/nothing", "/contact"])
def test_pages_carry_a_strict_policy(desk: Desk, path: str) -> None:
    answer = ask(desk, "GET", path, Accept="text/html")
    assert answer.headers["Content-Type"].startswith("text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("given_id", "kept"),
    [
        ("abc-123_x.y", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("two words", False),
        ("<script>", False),
        ("ünï", False),
    ],
)
def test_only_a_sane_request_id_is_kept(desk: Desk, given_id: str, kept: bool) -> None:
    answer = ask(desk, "GET", "/health", X_Request_ID=given_id)
    assert (answer.headers["X-Request-ID"] == given_id) is kept


# --- methods and paths -----------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/thanks",
            "/openapi.json",
            "/health",
            "/hits?page=/",
            "/hits.gif?page=/",
        ),
        *("/hits.svg?page=/", "/hits/chart.svg?page=/", "/hits/shield?page=/"),
        *("/export/messages.json", "/export/messages.csv", "/doctor"),
    ],
)
def test_head_answers_like_get_without_a_body_and_counts_nothing(
    desk: Desk, path: str
) -> None:
    head, got = desk.owner("HEAD", path), desk.owner("GET", path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/hits.gif?page=/", "/hits.svg?page=/"])
def test_head_never_counts(desk: Desk, path: str) -> None:
    ask(desk, "HEAD", path)
    assert ask(desk, "GET", "/hits?page=/").json["hits"] == 0


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/contact", {"POST", "OPTIONS"}),
        ("HEAD", "/contact", {"POST", "OPTIONS"}),
        ("PUT", "/newsletter", {"POST", "OPTIONS"}),
        ("GET", "/f/nothing", {"POST", "OPTIONS"}),
        ("DELETE", "/hits", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("POST", "/hits.gif", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/", {"GET", "HEAD", "OPTIONS"}),
        ("PATCH", "/health", {"GET", "HEAD", "OPTIONS"}),
        ("TRACE", "/thanks", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/newsletter/confirm/x", {"GET", "HEAD", "POST", "OPTIONS"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    desk: Desk, method: str, path: str, allow: set[str]
) -> None:
    answer = ask(desk, method, path)
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == allow
    if method != "HEAD" and path != "/hits.gif":
        assert answer.json["errors"][0]["code"] == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/contact/", FORM),
        ("POST", "/f/contact/", FORM),
        ("POST", "/newsletter/", {"email": "ada@example.com"}),
        ("POST", "/hits/", {"page": "/"}),
        ("GET", "/hits.gif/?page=/", None),
        ("GET", "/health/", None),
        ("GET", "/thanks/", None),
    ],
)
def test_a_trailing_slash_is_accepted(
    desk: Desk, method: str, path: str, body: Any
) -> None:
    assert ask(desk, method, path, body).status_code == 200


# --- the log ---------------------------------------------------------------------


def test_a_request_is_one_line_without_what_was_sent(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.client.simulate_post(
        "/contact?token=s3cret",
        json=FORM,
        headers={"X-Request-ID": "my-id", "X-Forwarded-For": "203.0.113.9"},
        remote_addr="203.0.113.8",
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"POST /contact 200 \d+\.\dms my-id", line)


def test_a_log_that_nobody_reads_any_more_costs_no_answer(desk: Desk) -> None:
    closed = io.StringIO()
    closed.close()
    with redirect_stdout(closed):
        assert desk.post("/contact", FORM).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "template"),
    [
        ("GET", "/newsletter/confirm/t0ken", "/newsletter/confirm/{token}"),
        ("GET", "/release/t0ken?x=ada@example.com", "/release/{token}"),
        ("DELETE", "/people/ada@example.com", "/people/{email:path}"),
        ("GET", "/ada@example.com", "/{address:address}"),
    ],
)
def test_the_log_names_the_template_and_not_the_path(
    desk: Desk,
    capsys: pytest.CaptureFixture[str],
    method: str,
    path: str,
    template: str,
) -> None:
    ask(desk, method, path, X_Request_ID="1")  # a made one may spell anything
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{method} {template} 40")
    assert "t0ken" not in line and "ada" not in line


def test_what_breaks_is_logged_with_its_place_and_not_its_text(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(req: falcon.Request, resp: falcon.Response) -> None:
        raise RuntimeError("ada@example.com")

    broken = type("Broken", (Resource,), {"on_get": staticmethod(break_down)})
    desk.app.add_route("/broken", broken(desk.app.service))
    ask(desk, "GET", "/broken")
    logged = "\n".join(caplog.messages)
    assert re.search(r"RuntimeError at .*test_middleware.py:\d+ break_down", logged)
    assert "ada@" not in caplog.text


# --- the client's address --------------------------------------------------------


def found(headers: dict[str, str], peer: str = "192.0.2.1", **changes: Any) -> str:
    environ = falcon.testing.create_environ(headers=headers, remote_addr=peer)
    finder = ClientAddress(Settings(**changes))
    return finder.find(falcon.Request(environ))[0]


@pytest.mark.parametrize(
    ("hops", "forwarded", "address"),
    [
        (0, "203.0.113.1", "192.0.2.1"),
        (1, "203.0.113.1", "203.0.113.1"),
        (1, "6.6.6.6, 203.0.113.1", "203.0.113.1"),
        (1, "6.6.6.6,203.0.113.1 ", "203.0.113.1"),
        (2, "6.6.6.6, 203.0.113.1, 10.0.0.1", "203.0.113.1"),
        (3, "203.0.113.1, 10.0.0.1", "192.0.2.1"),
        (1, "6.6.6.6, unknown", "192.0.2.1"),
        (1, "", "192.0.2.1"),
        (1, "::ffff:203.0.113.1", "203.0.113.1"),
        (1, "2001:DB8:0::1", "2001:db8::1"),
        (1, "fe80::1%eth0", "fe80::1"),
        (1, "203.0.113.1\x00", "192.0.2.1"),
        (1, "203.0.113.1:5678", "203.0.113.1"),
        (1, "[2001:db8::1]:5678", "2001:db8::1"),
        (1, "203.0.113.1:5678:9", "192.0.2.1"),
    ],
)
def test_the_address_is_so_many_hops_from_the_right(
    hops: int, forwarded: str, address: str
) -> None:
    assert found({"X-Forwarded-For": forwarded}, trusted_hops=hops) == address


def test_forwarded_is_never_read() -> None:
    headers = {"Forwarded": "for=6.6.6.6", "X-Real-IP": "6.6.6.6"}
    assert found(headers, trusted_hops=1) == "192.0.2.1"


def test_the_platforms_header_wins_over_hops() -> None:
    headers = {"CF-Connecting-IP": "203.0.113.1", "X-Forwarded-For": "6.6.6.6"}
    changes = {"client_ip_header": "CF-Connecting-IP", "trusted_hops": 1}
    assert found(headers, **changes) == "203.0.113.1"
    headers["CF-Connecting-IP"] = "nonsense"
    assert found(headers, **changes) == "6.6.6.6"


def test_a_peer_without_an_address_is_still_a_client() -> None:
    assert found({}, peer="") == "0.0.0.0"


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="latin-1"), max_size=60), st.integers(0, 3))
def test_whatever_is_forwarded_an_address_is_found(forwarded: str, hops: int) -> None:
    environ = falcon.testing.create_environ(remote_addr="192.0.2.1")
    environ["HTTP_X_FORWARDED_FOR"] = forwarded
    finder = ClientAddress(Settings(trusted_hops=hops))
    address = finder.find(falcon.Request(environ))[0]
    assert ip_address(address) == address
    if hops == 0:
        assert address == "192.0.2.1"


@settings(max_examples=100, deadline=None)
@given(
    st.ip_addresses(),
    st.lists(st.text("0123456789abcdef.:, x%", max_size=40)).map(",".join),
)
def test_what_a_client_puts_before_its_address_changes_nothing(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, forged: str
) -> None:
    headers = {"X-Forwarded-For": f"{forged}, {address}"}
    assert found(headers, trusted_hops=1) == ip_address(str(address))


@settings(max_examples=100, deadline=None)
@given(st.ip_addresses())
def test_what_is_kept_of_an_address_does_not_tell_whose_it_is(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    text = ip_address(str(address))
    kept = ipaddress.ip_address(truncated(text))
    unknown = 8 if kept.version == 4 else 80
    assert int(kept) % 2**unknown == 0
    assert int(kept) >> unknown == int(ipaddress.ip_address(text)) >> unknown
    assert truncated(truncated(text)) == truncated(client_key(text)) == truncated(text)


# --- rate limits -----------------------------------------------------------------


@pytest.fixture
def limited(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk(contact_limit=(Window(3, 60),))


def test_a_limit_is_exact_by_the_clock(limited: Desk) -> None:
    def passes() -> bool:
        return limited.post("/contact", FORM).status_code == 200

    assert [passes() for _ in range(5)] == [True, True, True, False, False]
    limited.clock.advance(19.999)
    assert not passes()
    limited.clock.advance(0.001)  # a third of the minute: one more
    assert [passes(), passes()] == [True, False]
    limited.clock.advance(60)
    assert [passes() for _ in range(4)] == [True, True, True, False]


def test_a_refusal_tells_the_seconds_to_wait(limited: Desk) -> None:
    for _ in range(3):
        limited.post("/contact", FORM)
    limited.clock.advance(0.5)
    answer = limited.post("/contact", FORM)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "20"  # 19.5, rounded up
    assert answer.json["errors"][0]["code"] == "RATE_LIMITED"
    limited.clock.advance(int(answer.headers["Retry-After"]))
    assert limited.post("/contact", FORM).status_code == 200


def test_the_headers_tell_what_is_left(limited: Desk) -> None:
    told = [limited.post("/contact", FORM).headers for _ in range(4)]
    assert {headers["RateLimit-Policy"] for headers in told} == {'"contact";q=3;w=60'}
    assert [headers["RateLimit"] for headers in told] == [
        '"contact";r=2;t=20',
        '"contact";r=1;t=40',
        *['"contact";r=0;t=60'] * 2,
    ]


def test_the_strictest_of_two_windows_decides(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(contact_limit=(Window(2, 60), Window(3, 3600)))
    seen = [desk.post("/contact", FORM).status_code for _ in range(3)]
    assert seen == [200, 200, 429]
    desk.clock.advance(60)
    answer = desk.post("/contact", FORM)
    assert answer.status_code == 200
    assert answer.headers["RateLimit-Policy"] == (
        '"contact-60s";q=2;w=60, "contact-3600s";q=3;w=3600'
    )
    answer = desk.post("/contact", FORM)
    # Refused by the hour, which leaves the minute's share untouched.
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1140"
    assert answer.headers["RateLimit"].startswith('"contact-60s";r=1;')


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_a_limit_is_per_address_or_ipv6_network(
    limited: Desk, one: str, other: str, shared: bool
) -> None:
    def status(peer: str) -> int:
        return limited.client.simulate_post(
            "/contact", json=FORM, remote_addr=peer
        ).status_code

    assert [status(one) for _ in range(4)] == [200, 200, 200, 429]
    assert status(other) == (429 if shared else 200)


def test_each_policy_has_a_limit_of_its_own(limited: Desk) -> None:
    for _ in range(4):
        limited.post("/contact", FORM)
    signup = limited.post("/newsletter", {"email": "ada@example.com"})
    assert signup.status_code == 200
    assert limited.post("/f/contact", FORM).status_code == 429
    assert limited.post("/p/1/f/contact", FORM).status_code == 429


def test_a_request_over_the_limit_is_refused_unread_and_does_nothing(
    limited: Desk,
) -> None:
    for _ in range(3):
        limited.post("/contact", FORM)
    before = stored(limited)
    answer = limited.client.simulate_post(
        "/contact", body=b"{", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 429
    assert limited.post("/contact", FORM | {"message": "New"}).status_code == 429
    assert stored(limited) == before


def test_what_was_refused_spends_nothing_of_other_paths_or_404s(limited: Desk) -> None:
    for _ in range(5):
        assert limited.client.simulate_get("/nothing").status_code == 404
        assert limited.client.simulate_get("/contact").status_code == 405
    assert limited.post("/contact", FORM).headers["RateLimit"] == '"contact";r=2;t=20'


def test_a_broken_limiter_lets_everybody_pass(
    limited: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    limited.app.service.limits.store.execute("DROP TABLE bucket")
    seen = [limited.post("/contact", FORM).status_code for _ in range(5)]
    assert seen == [200] * 5
    assert stored(limited) == 1
    assert "rate limits do not work" in caplog.text


def test_expired_keys_are_swept(limited: Desk) -> None:
    for n in range(10):
        limited.client.simulate_post("/contact", json=FORM, remote_addr=f"192.0.2.{n}")
    limited.clock.advance(3600)
    limited.post("/contact", FORM)
    (count,) = limited.app.service.limits.store.execute(
        "SELECT count(*) FROM bucket"
    ).fetchone()
    assert count == 1


# --- through the real server -----------------------------------------------------


@pytest.fixture(scope="module")
def behind_a_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("router")
    with serving(
        folder,
        TRUSTED_HOPS="1",
        CONTACT_LIMIT="1/hour",
        FORWARDED_ALLOW_IPS="*",
        ALLOWED_ORIGINS=SITE,
    ) as server:
        yield server


def send(server: Server, head: str, body: str = "") -> str:
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(f"{head}\r\n\r\n{body}".encode("latin-1"))
        received = b""
        while data := sock.recv(65536):
            received += data
    return received.decode()


def head_of(path: str, *headers: str, method: str = "POST", length: int = 0) -> str:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close"]
    return "\r\n".join([*lines, f"Content-Length: {length}", *headers])


def test_two_forwarded_lines_are_refused(behind_a_router: Server) -> None:
    answer = send(
        behind_a_router,
        head_of(
            "/health",
            "X-Forwarded-For: 203.0.113.1",
            "x-forwarded-for: 203.0.113.2",
            method="GET",
        ),
    )
    assert answer.startswith("HTTP/1.1 400 ")
    assert '"MALFORMED"' in answer and "203.0.113" not in answer


def test_forged_addresses_share_the_limit_of_their_sender(
    behind_a_router: Server,
) -> None:
    body = "email=ada%40example.com&message=Hello"
    form = "Content-Type: application/x-www-form-urlencoded"
    statuses = [
        send(
            behind_a_router,
            head_of("/contact", form, f"X-Forwarded-For: {forged}", length=len(body)),
            body,
        ).split(" ", 2)[1]
        for forged in (
            "203.0.113.1",
            "6.6.6.6, 203.0.113.1",
            "7.7.7.7,8.8.8.8,203.0.113.1",
        )
    ]
    assert statuses == ["200", "429", "429"]


@pytest.mark.parametrize("header", ["SCRIPT_NAME", "Script-Name", "PATH_INFO"])
def test_no_header_moves_the_path(behind_a_router: Server, header: str) -> None:
    head = head_of("/health", f"{header}: /health", method="GET")
    assert '"database"' in send(behind_a_router, head)


def test_the_servers_log_holds_no_address_query_or_token(
    behind_a_router: Server,
) -> None:
    head = head_of(
        "/newsletter/confirm/t0ken?q=eve@example.com",
        "X-Forwarded-For: 203.0.113.77",
        "X-Request-ID: the-one-i-look-for",
        "User-Agent: agent-007",
        method="GET",
    )
    send(behind_a_router, head)
    behind_a_router.wait_for_log("the-one-i-look-for")
    log = behind_a_router.log
    assert "GET /newsletter/confirm/{token} 404" in log
    for secret in ("t0ken", "eve@", "203.0.113.77", "agent-007", "127.0.0.1"):
        assert secret not in log
