"""Every error in one shape, as JSON for scripts and as a page for people."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from frontdesk.database import execute
from frontdesk.settings import TWO_LINES
from tests.support.desk import Desk

FORM = {"email": "ada@example.com", "message": "Hello"}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
CODES = {
    *("EMPTY", "BLOCKED", "REQUIRED_FIELD_MISSING", "REQUIRED_FIELD_EMPTY"),
    *("TYPE_EMAIL", "TYPE_TEXT", "TOO_LONG", "TOO_MANY_FIELDS", "NO_FILE_UPLOADS"),
    *("RATE_LIMITED", "NOT_STORED", "MALFORMED", "NOT_FOUND"),
    *("METHOD_NOT_ALLOWED", "TOO_LARGE", "UNSUPPORTED_TYPE", "UNAUTHORIZED"),
    "INTERNAL",
}


def assert_is_error(answer: Any, status: int, *codes: str) -> None:
    """Check the one shape of errors, and which ones they are."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json
    assert set(body) == {"ok", "success", "error", "message", "errors"}
    assert body["ok"] is body["success"] is False
    assert body["error"] == body["message"] == body["errors"][0]["message"]
    assert body["errors"] and re.fullmatch(r"\S.*[.!?]", body["error"])
    for error in body["errors"]:
        assert set(error) <= {"code", "field", "message"}
        assert all(isinstance(text, str) for text in error.values())
        assert error["code"] in CODES and error["message"]
    assert [error["code"] for error in body["errors"]] == list(codes)


def post_raw(desk: Desk, kind: str | None, body: bytes, path: str = "/contact") -> Any:
    headers = {"Content-Type": kind} if kind else {}
    return desk.client.simulate_post(path, body=body, headers=headers)


# --- one shape -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "errors"),
    [
        ({}, [("EMPTY", None)]),
        ({"access_key": "x", "_captcha": "false"}, [("EMPTY", None)]),
        ({"email": "", "message": " \n\x00"}, [("EMPTY", None)]),
        ({"_subject": "New!", "_gotcha": "x"}, [("EMPTY", None)]),
        (FORM | {"email": "nobody"}, [("TYPE_EMAIL", "email")]),
        ({"Email": "nobody", "body": "Hi"}, [("TYPE_EMAIL", "Email")]),
        (FORM | {"email": "a@b.example\nBcc: x@y.example"}, [("TYPE_EMAIL", "email")]),
        (FORM | {"email": ["a@b.example", "c@d.example"]}, [("TYPE_EMAIL", "email")]),
        ({"contact": {"email": "nobody"}}, [("TYPE_EMAIL", "contact.email")]),
        ({"Correo": "nobody", "x": "Hi"}, [("TYPE_EMAIL", "Correo")]),
        ({"<email>": "nobody", "x": "Hi"}, [("TYPE_EMAIL", None)]),
        (FORM | {"message": "x" * 10_001}, [("TOO_LONG", "message")]),
        (FORM | {"email": "a" * 243 + "@example.com"}, [("TOO_LONG", "email")]),
        (FORM | {"name": "x" * 201}, [("TOO_LONG", "name")]),
        (FORM | {"first_name": "x" * 201}, [("TOO_LONG", "first_name")]),
        (FORM | {"_subject": "x" * 201}, [("TOO_LONG", "_subject")]),
        (FORM | {"color": "x" * 10_001}, [("TOO_LONG", None)]),
        (FORM | {"c" * 101: "x"}, [("TOO_LONG", None)]),
        (FORM | {f"field{n}": "x" for n in range(41)}, [("TOO_MANY_FIELDS", None)]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_form_that_is_wrong_is_told_what_and_where(
    desk: Desk, form: dict[str, Any], errors: list[tuple[str, str | None]]
) -> None:
    answer = desk.post("/contact", form)
    assert_is_error(answer, 422, *(code for code, _ in errors))
    named = [(error["code"], error.get("field")) for error in answer.json["errors"]]
    assert named == errors
    assert (desk.messages(), desk.drain()) == ([], [])


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("application/json", b"{", 400, "MALFORMED"),
        ("application/json", b"[]", 400, "MALFORMED"),
        ("text/plain", b"hello", 400, "MALFORMED"),
        ("application/x-www-form-urlencoded", b"email=%ff", 400, "MALFORMED"),
        ("multipart/form-data", b"x", 400, "MALFORMED"),
        ("application/json", b" " * (64 * 1024 + 1), 413, "TOO_LARGE"),
        ("application/xml", b"<x/>", 415, "UNSUPPORTED_TYPE"),
        (None, b"x", 415, "UNSUPPORTED_TYPE"),
        (None, b"", 422, "EMPTY"),
    ],
)
@pytest.mark.parametrize("path", ["/contact", "/newsletter"])
def test_a_body_that_cannot_be_read_is_refused(
    desk: Desk, path: str, kind: str | None, body: bytes, status: int, code: str
) -> None:
    assert_is_error(post_raw(desk, kind, body, path), status, code)


def test_a_body_of_just_64_kib_is_read(desk: Desk) -> None:
    body = b'{"email": "ada@example.com", "message": "Hello"}'
    answer = post_raw(desk, "application/json", body.ljust(64 * 1024))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("GET", "/contact/nothing/more", 404, "NOT_FOUND"),
        ("POST", "/nothing", 404, "NOT_FOUND"),
        ("POST", "/a@b@c.example", 404, "NOT_FOUND"),
        ("GET", "/owner@site.example", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/f/nothing", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/newsletter/confirm/forged", 404, "NOT_FOUND"),
        ("POST", "/newsletter/unsubscribe/forged", 404, "NOT_FOUND"),
        ("GET", "/contact", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/export/messages.json", 401, "UNAUTHORIZED"),
    ],
)
def test_what_is_not_there_or_not_yours_has_the_same_shape(
    desk: Desk, method: str, path: str, status: int, code: str
) -> None:
    assert_is_error(desk.client.simulate_request(method, path), status, code)


def test_a_foreign_origin_has_the_same_shape(desk: Desk) -> None:
    answer = desk.post("/contact", FORM, Origin="https://evil.example")
    assert_is_error(answer, 403, "BLOCKED")


def test_too_many_requests_have_the_same_shape(desk: Desk) -> None:
    answer = [desk.post("/contact", FORM) for _ in range(6)][-1]
    assert_is_error(answer, 429, "RATE_LIMITED")


@pytest.mark.parametrize("path", ["/contact", "/newsletter"])
def test_what_could_not_be_stored_may_be_sent_again(
    desk: Desk, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for table in ("message", "subscriber"):
        execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    answer = desk.post(path, FORM)
    assert_is_error(answer, 503, "NOT_STORED")
    assert int(answer.headers["Retry-After"]) > 0
    assert "ada@example.com" not in caplog.text
    for table in ("message", "subscriber"):
        execute(f"ALTER TABLE {table}_away RENAME TO {table}")
    assert desk.post(path, FORM).status_code == 200
    assert len(desk.drain()) == 1


ECHO = "<b>ech0"


@pytest.mark.parametrize(
    "form",
    [
        {"email": ECHO, "message": "x"},
        {"email": f"{ECHO}@example.com", "message": "x"},
        FORM | {ECHO: "x" * 10_001},
        FORM | {ECHO: {"a": "x" * 10_001}},
        FORM | {"subject": ECHO * 50},
        FORM | {f"{ECHO}{n}": "x" for n in range(41)},
        {f"email ({ECHO})": ECHO},
    ],
    ids=lambda form: str(form)[:50],
)
def test_json_errors_never_echo_what_was_sent(desk: Desk, form: dict[str, Any]) -> None:
    answer = desk.post(f"/contact?{ECHO}", form, Referer=f"https://site.example/{ECHO}")
    assert answer.status_code == 422
    assert "ech0" not in answer.text


def test_a_success_has_no_error_and_no_errors(desk: Desk) -> None:
    for path in ("/contact", "/newsletter"):
        body = desk.post(path, FORM).json
        more = {"id"} if path == "/contact" else set()
        both = {"ok", "success", "status", "code", "next", "message"}
        assert set(body) == both | more
        assert (body["status"], body["code"]) == ("success", 200)
        assert body["ok"] is body["success"] is True
        assert isinstance(body["next"], str) and body["message"]


# --- JSON or page ----------------------------------------------------------------

FORM_TYPE = "application/x-www-form-urlencoded"
JSON, PAGE = False, True


@pytest.mark.parametrize(
    ("accept", "kind", "more", "page"),
    [
        (None, FORM_TYPE, {}, JSON),
        ("*/*", FORM_TYPE, {}, JSON),
        ("application/json", FORM_TYPE, {}, JSON),
        ("application/json, text/plain, */*", FORM_TYPE, {}, JSON),
        ("text/html;q=0.5, application/json", FORM_TYPE, {}, JSON),
        (BROWSER, FORM_TYPE, {}, PAGE),
        (BROWSER, "application/json", {}, PAGE),
        (BROWSER, FORM_TYPE, {"X-Requested-With": "XMLHttpRequest"}, JSON),
        (BROWSER, FORM_TYPE, {"Sec-Fetch-Mode": "navigate"}, PAGE),
        (BROWSER, FORM_TYPE, {"Sec-Fetch-Mode": "cors"}, JSON),
        (BROWSER, FORM_TYPE, {"Sec-Fetch-Mode": "no-cors"}, JSON),
        ("text/html", FORM_TYPE, {}, PAGE),
        ("text/html", "application/json", {}, PAGE),
        ("text/html, application/json", FORM_TYPE, {}, PAGE),
        ("text/html, application/json", "application/json", {}, JSON),
        ("*/*", "application/json", {}, JSON),
        ("*/*", FORM_TYPE, {"Sec-Fetch-Mode": "navigate"}, JSON),
        ("application/xhtml+xml, text/html;q=0.9", FORM_TYPE, {}, PAGE),
        ("*/*;q=0.1, text/html", FORM_TYPE, {}, PAGE),
        (BROWSER, FORM_TYPE, {"X-Requested-With": "xmlhttprequest"}, JSON),
    ],
)
def test_a_script_gets_json_and_a_browser_a_page(
    desk: Desk, accept: str | None, kind: str, more: dict[str, str], page: bool
) -> None:
    headers = {"Content-Type": kind, **more} | ({"Accept": accept} if accept else {})
    good = b'{"email": "a@b.example", "message": "x"}'
    if kind == FORM_TYPE:
        good = b"email=a%40b.example&message=x"
    answer = desk.client.simulate_post("/contact", body=good, headers=headers)
    assert answer.status_code == (303 if page else 200)
    answer = desk.client.simulate_post("/contact", body=b"", headers=headers)
    assert answer.status_code >= 400
    assert answer.headers["Content-Type"].startswith("text/html") is page


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/contact", 405),
        ("POST", "/nothing", 404),
        ("GET", "/newsletter/confirm/forged", 404),
        ("GET", "/export/messages.json", 401),
    ],
)
def test_a_browser_gets_a_readable_page_for_every_error(
    desk: Desk, method: str, path: str, status: int
) -> None:
    answer = desk.client.simulate_request(method, path, headers={"Accept": BROWSER})
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<h1>" in answer.text and "site.example" in answer.text


@pytest.mark.parametrize("path", ["/hits.gif", "/hits.svg", "/hits/chart.svg"])
def test_a_picture_that_is_refused_is_a_picture(desk: Desk, path: str) -> None:
    headers = {"X-Forwarded-For": TWO_LINES}  # as the server marks them
    answer = desk.client.simulate_get(f"{path}?page=/", headers=headers)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"].startswith("image/")


def test_behind_a_path_forms_lead_to_that_path(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(public_url="https://site.example/desk")
    form = {"Content-Type": FORM_TYPE, "Accept": BROWSER}
    wrong = desk.client.simulate_post("/contact", body="email=x", headers=form)
    assert 'action="/desk/contact"' in wrong.text
    welcome = desk.client.simulate_get("/", headers={"Accept": BROWSER})
    assert 'action="/desk/newsletter"' in welcome.text
    desk.post("/newsletter", {"email": "ada@example.com"})
    [url] = [w for w in desk.drain()[0]["TextPart"].split() if "/confirm/" in w]
    path = url.removeprefix("https://site.example")
    page = desk.client.simulate_get(path.removeprefix("/desk"))
    assert f'action="{path}"' in page.text


def test_a_hits_error_shows_no_form(desk: Desk) -> None:
    answer = desk.client.simulate_post(
        "/hits",
        body=b'--x\r\nContent-Disposition: form-data; name="page"; filename="f"\r\n'
        b"\r\nfile\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x", "Accept": BROWSER},
    )
    assert answer.status_code == 422
    assert "Files are not accepted" in answer.text and "<form" not in answer.text


# --- typed text is given back ----------------------------------------------------


def fields_of(page: str) -> dict[str, str]:
    """Return the fields of a page's form as a browser would send them."""
    found: dict[str, str] = {}
    for tag in re.findall(r"<input[^>]*>|<textarea[^>]*>\n.*?</textarea>", page, re.S):
        name = re.search(r'name="([^"]*)"', tag)
        value = re.search(r'value="([^"]*)"', tag) or re.search(r">\n(.*)<", tag, re.S)
        assert name is not None
        found[html.unescape(name[1])] = html.unescape(value[1]) if value else ""
    return found


def submit(desk: Desk, form: dict[str, str], **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return desk.client.simulate_post(
        "/contact",
        body=urlencode(form).encode(),
        headers={"Accept": BROWSER, "Content-Type": FORM_TYPE} | named,
    )


TYPED = {
    "email": "ada@example",
    "name": 'Ada "the first" <Lovelace>',
    "message": "\n  Dear </textarea><script>alert(1)</script>\nyours & mine",
    "Favourite colour": "'green'",
    "_next": "/danke?a=1&b=2",
}


def test_an_error_page_gives_back_what_was_typed_and_sends_it_again(desk: Desk) -> None:
    answer = submit(desk, TYPED, Referer="https://site.example/about?x=1")
    assert answer.status_code == 422
    assert "<script>" not in answer.text
    fields = fields_of(answer.text)
    assert fields.pop("_gotcha") == ""
    own = {name for name in fields if name.startswith("_frontdesk")}
    typed = {name: fields[name] for name in fields.keys() - own}
    assert typed == TYPED | {"message": TYPED["message"].strip()}
    assert 'action="/contact"' in answer.text
    again = submit(
        desk, fields | {"email": "ada@example.com"}, Origin="https://desk.example"
    )
    assert again.status_code == 303
    assert again.headers["Location"] == "https://site.example/danke?a=1&b=2"
    (message,) = desk.messages()
    assert message["message"] == TYPED["message"].strip()
    assert message["fields"] == {"Favourite colour": "'green'"}
    assert message["page"] == "https://site.example/about"


@pytest.mark.parametrize("form", [{"_next": "/x"}, {}], ids=["incomplete", "empty"])
def test_an_error_page_offers_what_was_missing(
    desk: Desk, form: dict[str, str]
) -> None:
    fields = fields_of(submit(desk, form).text)
    assert fields.keys() >= {"email", "message", *form}


def test_an_error_page_does_not_fill_the_trap(desk: Desk) -> None:
    answer = submit(desk, {"email": "x", "_gotcha": "spam", "_honey": "spam"})
    fields = fields_of(answer.text)
    assert fields["_gotcha"] == "" and "_honey" not in fields


def test_an_error_page_lets_its_form_land_where_it_wants(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(thanks_url="https://thanks.example/ok")
    policy = submit(desk, {"email": "x"}).headers["Content-Security-Policy"]
    assert "form-action 'self' https://thanks.example" in policy
    wish = {"email": "x", "_next": "https://www.site.example/x"}
    policy = submit(desk, wish).headers["Content-Security-Policy"]
    assert "https://www.site.example https://site.example" in policy


SHOWN = {
    "Ihr Name": "Ada",
    "E-Mail": "ada@example.com",
    "Nachricht": "Guten Tag,\nbitte um Rückruf.",
    "Telefon": "+49 30 123",
    "datenschutz": "on",
}
HIDDEN = {"_next": "/danke", "access_key": "x", "_subject": "Neu!", "_replyto": "@"}


def assert_gives_back(page: str, action: str = "/contact") -> None:
    assert list(fields_of(page))[: len(SHOWN)] == list(SHOWN)
    assert fields_of(page).items() >= (SHOWN | HIDDEN).items()
    assert f'action="{action}"' in page
    for name in SHOWN:
        assert f">{name[0].upper()}{name[1:].replace('-', ' ')}</label>" in page
    for name in HIDDEN:
        assert f'<input type="hidden" name="{name}"' in page
    assert re.search(r'<input[^>]* type="email" name="E-Mail"', page)
    assert re.search(r'<input[^>]* type="tel" name="Telefon"', page)
    assert '<textarea id="field-3" name="Nachricht"' in page


def test_over_the_limit_nothing_typed_is_lost(desk: Desk) -> None:
    for _ in range(5):
        desk.post("/contact", {"message": "Hello"})
    answer = submit(desk, SHOWN | HIDDEN, Referer="https://site.example/kontakt")
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] in answer.text
    assert_gives_back(answer.text)
    desk.clock.advance(60)
    own = {"Origin": "https://desk.example", "Sec-Fetch-Site": "same-origin"}
    again = submit(desk, fields_of(answer.text), **own)
    assert again.headers["Location"] == "https://site.example/danke"
    assert desk.messages()[-1]["page"] == "https://site.example/kontakt"


def test_of_very_many_fields_only_what_was_filled_in_is_given_back(desk: Desk) -> None:
    form = {f"box{n}": "" for n in range(500)} | {f"f{n}": "x" for n in range(250)}
    answer = desk.client.simulate_post(
        "/contact",
        body=urlencode(form),
        headers={
            "Accept": BROWSER,
            "Content-Type": "application/x-www-form-urlencoded",
        },
    )
    assert answer.status_code == 422
    names = re.findall(r'<input id="[^"]+" type="text" name="([^"]+)"', answer.text)
    assert names == [f"f{n}" for n in range(200)]


@pytest.mark.parametrize("header", ["Origin", "Referer"])
def test_a_page_that_is_not_allowed_gets_it_back_but_not_in(
    desk: Desk, header: str
) -> None:
    answer = submit(desk, SHOWN | HIDDEN, **{header: "https://new.example"})
    assert answer.status_code == 403
    assert "new.example" in answer.text and "ALLOWED_ORIGINS" in answer.text
    assert_gives_back(answer.text)
    own = {"Origin": "https://desk.example", "Sec-Fetch-Site": "same-origin"}
    again = submit(desk, fields_of(answer.text), **own)
    assert again.status_code == 403
    assert_gives_back(again.text)
    assert desk.messages() == []


def test_our_own_page_is_no_foreign_one_under_another_name(desk: Desk) -> None:
    own = {"Origin": "https://other.example", "Sec-Fetch-Site": "same-origin"}
    own["Referer"] = "https://other.example/contact"
    wrong = submit(desk, {"email": "ada@", "message": "Hi"}, **own)
    assert wrong.status_code == 422
    right = fields_of(wrong.text) | {"email": "ada@example.com"}
    assert submit(desk, right, **own).status_code == 303


def test_what_could_not_be_stored_is_given_back(desk: Desk) -> None:
    execute("ALTER TABLE message RENAME TO message_away")
    answer = submit(desk, SHOWN | HIDDEN)
    execute("ALTER TABLE message_away RENAME TO message")
    assert answer.status_code == 503
    assert_gives_back(answer.text)
    own = {"Origin": "https://desk.example", "Sec-Fetch-Site": "same-origin"}
    assert submit(desk, fields_of(answer.text), **own).status_code == 303


@pytest.mark.parametrize(
    ("kind", "body", "length"),
    [
        (FORM_TYPE, b"message=%ff", None),
        (FORM_TYPE, b"message=" + b"x" * 70_000, None),
        ("application/json", b"[" * 50_000, None),
        ("application/xml", b"<x/>", None),
        (FORM_TYPE, b"message=x", "99"),
        (FORM_TYPE, b"", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_refused_form_that_cannot_be_read_is_refused_all_the_same(
    desk: Desk, kind: str, body: bytes, length: str | None
) -> None:
    headers = {
        "Accept": BROWSER,
        "Content-Type": kind,
        "Origin": "https://evil.example",
        **({"Content-Length": length} if length else {}),
    }
    answer = desk.client.simulate_post("/contact", body=body, headers=headers)
    assert answer.status_code == 403
    assert "ALLOWED_ORIGINS" in answer.text


def test_what_the_site_had_hidden_is_not_shown(desk: Desk) -> None:
    form = {
        "email": "ada@example.com",
        "name": "x" * 201,
        "_replyto": "owner@site.example",
        "_cc": "x@site.example",
        "utm_source": "ad",
        "Referral-Page": "/x",
        "to": "sales@site.example",
    }
    page = submit(desk, form).text
    for name in form.keys() - {"email", "name"}:
        assert f'<input type="hidden" name="{name}"' in page


def test_a_field_with_an_error_is_shown_whatever_it_is(desk: Desk) -> None:
    page = submit(desk, {"message": "Hi", "_subject": "x" * 201}).text
    assert re.search(
        r'<(input|textarea) id="[^"]*"[^>]* name="_subject" aria-inv', page
    )
    assert "At most 200 characters" in page


def test_a_sign_up_over_its_limit_gets_its_address_back(desk: Desk) -> None:
    for _ in range(5):
        desk.post("/newsletter", {"email": "ada@example.com"})
    answer = desk.client.simulate_post(
        "/s/newsletter",
        body="EMAIL=eve%40example.com",
        headers={"Accept": BROWSER, "Content-Type": FORM_TYPE},
    )
    assert answer.status_code == 429
    assert fields_of(answer.text)["EMAIL"] == "eve@example.com"
    assert 'action="/newsletter"' in answer.text and "Your email" in answer.text
