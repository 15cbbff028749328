"""The newsletter: who asked, who pressed the button, who left."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import falcon.testing
import pytest

import models
from frontdesk.links import Links
from frontdesk.settings import Window, sqlite_path
from frontdesk.tables import DAY, iso
from models import Delivery, Subscriber
from tests.support.desk import NOON, Clock, Desk

EMAIL = "ada@example.com"
WEEK = 7 * DAY
PURPOSES = ("confirm", "unsubscribe", "not-me")
BROWSER = {"Accept": "text/html"}


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A service whose rate limit is out of the way."""
    return make_desk(newsletter_limit=(Window(1000, 60),))


def sign_up(desk: Desk, email: str = EMAIL, **form: str) -> Any:
    return desk.post("/newsletter", {"email": email, **form})


def link(mail: dict[str, Any], purpose: str) -> str:
    """Return the path of a mail's link."""
    found = re.findall(
        rf"https://desk\.example(/newsletter/{purpose}/\S+)", mail["TextPart"]
    )
    assert len(found) == 1
    return found[0]


def asked(desk: Desk, email: str = EMAIL) -> dict[str, Any]:
    """Sign an address up and return its confirmation mail."""
    sign_up(desk, email)
    mail = desk.drain()[-1]
    assert mail["To"] == [{"Email": email}]
    return mail


def confirmed(desk: Desk, email: str = EMAIL) -> dict[str, Any]:
    """Sign an address up and confirm it; return its confirmation mail."""
    mail = asked(desk, email)
    assert desk.client.simulate_post(link(mail, "confirm")).status_code == 200
    return mail


def statuses(desk: Desk) -> list[str]:
    return [row["status"] for row in desk.subscribers()]


def rows() -> list[dict[str, Any]]:
    return list(Subscriber.select().order_by(Subscriber.id).dicts())


# --- double opt-in ---------------------------------------------------------------


def test_signing_up_writes_a_pending_row_and_one_mail(desk: Desk) -> None:
    answer = sign_up(desk, name="Ada")
    assert answer.status_code == 200
    both = {"ok", "success", "status", "code", "next", "message"}
    assert set(answer.json) == both
    assert answer.json["next"] == "https://desk.example/thanks?newsletter"
    assert statuses(desk) == ["pending"]
    assert [mail["To"] for mail in desk.drain()] == [[{"Email": EMAIL}]]


@pytest.mark.parametrize(
    "path",
    ["/newsletter", "/f/newsletter", "/newsletter/", "/subscribe/post?u=1f&id=2e"],
)
@pytest.mark.parametrize("alias", ["email", "_replyto", "replyto", "Email"])
def test_a_sign_up_works_by_every_name(desk: Desk, path: str, alias: str) -> None:
    assert desk.post(path, {alias: EMAIL}).status_code == 200
    assert [row["email"] for row in desk.subscribers()] == [EMAIL]


def test_a_plain_form_goes_on_to_its_page(desk: Desk) -> None:
    answer = desk.client.simulate_post(
        "/newsletter",
        body=f"email={EMAIL}&_next=/joined.html",
        headers={
            **BROWSER,
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": "https://site.example",
        },
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == "https://site.example/joined.html"
    assert statuses(desk) == ["pending"]


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({}, "EMPTY"),
        ({"name": "Ada"}, "REQUIRED_FIELD_MISSING"),
        ({"email": " "}, "REQUIRED_FIELD_EMPTY"),
        ({"email": "ada"}, "TYPE_EMAIL"),
        ({"email": f"{'a' * 250}@example.com"}, "TOO_LONG"),
        ({"email": EMAIL, "name": "a" * 201}, "TOO_LONG"),
    ],
    ids=["empty", "missing", "blank", "no-address", "long", "long-name"],
)
def test_a_bad_sign_up_is_refused_and_leaves_no_row(
    desk: Desk, form: dict[str, str], code: str
) -> None:
    answer = desk.post("/newsletter", form)
    assert answer.status_code == 422
    assert [error["code"] for error in answer.json["errors"]] == [code]
    assert rows() == []


def test_the_mail_holds_nothing_that_was_typed(desk: Desk) -> None:
    sign_up(desk, name="Buy now", message="cheap pills", subject="win", extra="hoax")
    mail = desk.drain()[0]
    for typed in ("Buy now", "cheap pills", "win a", "hoax", EMAIL):
        assert typed not in mail["TextPart"] + mail["HTMLPart"] + mail["Subject"]
    assert mail["To"] == [{"Email": EMAIL}]
    assert "ReplyTo" not in mail


def test_a_post_of_the_link_confirms(desk: Desk, clock: Clock) -> None:
    mail = asked(desk)
    clock.advance(3600)
    answer = desk.client.simulate_post(link(mail, "confirm"))
    assert answer.status_code == 200
    [row] = desk.subscribers()
    assert row["status"] == "confirmed"
    assert row["confirmed_at"] == iso(NOON + 3600)


def test_confirming_again_is_harmless(desk: Desk, clock: Clock) -> None:
    path = link(confirmed(desk), "confirm")
    before = rows()
    clock.advance(60)
    assert desk.client.simulate_post(path).status_code == 200
    assert rows() == before


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("state", ["pending", "confirmed"])
def test_only_post_ever_changes_anything(
    desk: Desk, method: str, purpose: str, state: str
) -> None:
    mail = asked(desk) if state == "pending" else confirmed(desk)
    before = rows()
    for _ in range(2):
        answer = desk.client.simulate_request(
            method, link(mail, purpose), headers=BROWSER
        )
        assert answer.status_code == 200
    assert rows() == before
    assert Delivery.select().count() == 0


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_page_of_a_link_is_one_form_without_script(
    desk: Desk, purpose: str
) -> None:
    path = link(asked(desk), purpose)
    page = desk.client.simulate_get(path, headers=BROWSER)
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count("<form") == page.text.count("<button") == 1
    assert f'<form method="post" action="{path}">' in page.text
    assert "<script" not in page.text
    assert "script-src" not in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "same-origin"
    assert page.headers["cache-control"] == "no-store"
    assert EMAIL not in page.text


# --- how long a link works -------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "works"),
    [(0, True), (WEEK, True), (WEEK + 1, False), (-90, True)],
    ids=["fresh", "seven-days", "a-second-more", "a-machine-whose-clock-is-behind"],
)
def test_a_confirm_link_works_for_seven_days_to_the_second(
    desk: Desk, clock: Clock, age: int, works: bool
) -> None:
    mail = asked(desk)
    clock.advance(age)
    answer = desk.client.simulate_post(link(mail, "confirm"), headers=BROWSER)
    assert answer.status_code == (200 if works else 410)
    assert statuses(desk) == ["confirmed" if works else "pending"]


def test_the_seven_days_begin_when_the_mail_is_written(
    desk: Desk, clock: Clock
) -> None:
    sign_up(desk)
    clock.advance(2 * DAY)  # Mailjet was down
    mail = desk.drain()[0]
    clock.advance(WEEK)
    assert desk.client.simulate_post(link(mail, "confirm")).status_code == 200


def test_an_expired_page_offers_a_new_mail_and_sends_it(
    desk: Desk, clock: Clock
) -> None:
    path = link(asked(desk), "confirm")
    clock.advance(WEEK + 1)
    page = desk.client.simulate_get(path, headers=BROWSER)
    assert page.status_code == 410
    assert '<input type="hidden" name="again" value="1">' in page.text
    assert f'action="{path}"' in page.text
    assert len(desk.drain()) == 1  # the page alone sends none

    answer = desk.client.simulate_post(
        path,
        body="again=1",
        headers={**BROWSER, "Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 200
    renewed = desk.drain()
    assert len(renewed) == 2
    assert statuses(desk) == ["pending"]
    desk.client.simulate_post(link(renewed[1], "confirm"))
    assert statuses(desk) == ["confirmed"]


def test_asking_for_a_new_mail_has_its_share_too(desk: Desk, clock: Clock) -> None:
    path = link(asked(desk), "confirm")
    clock.advance(WEEK + 1)
    for _ in range(5):
        assert desk.post(path, {"again": "1"}).status_code == 200
    assert len(desk.drain()) == 2


def test_a_fresh_link_does_not_mind_being_asked_again(desk: Desk) -> None:
    path = link(asked(desk), "confirm")
    assert desk.post(path, {"again": "1"}).status_code == 200
    assert statuses(desk) == ["confirmed"]


# --- leaving ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://mail.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Referer": "https://evil.example/x"},
        BROWSER,
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "multipart/form-data"},
    ],
    ids=[
        "nothing",
        "other-origin",
        "null-origin",
        "referer",
        "browser",
        "form",
        "octets",
        "multipart-without-boundary",
    ],
)
def test_one_post_from_anywhere_unsubscribes(
    desk: Desk, headers: dict[str, str]
) -> None:
    path = link(confirmed(desk), "unsubscribe")
    answer = desk.client.simulate_post(path, headers=headers)
    assert answer.status_code == 200
    assert "location" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert statuses(desk) == ["left"]


def test_one_click_of_a_mail_reader_unsubscribes(desk: Desk) -> None:
    mail = confirmed(desk)
    url = mail["Headers"]["List-Unsubscribe"].strip("<>")
    body = mail["Headers"]["List-Unsubscribe-Post"]
    answer = desk.client.simulate_post(
        url.removeprefix("https://desk.example"),
        body=body,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 200
    assert statuses(desk) == ["left"]


def test_an_unsubscribe_link_works_after_five_years(desk: Desk, clock: Clock) -> None:
    path = link(confirmed(desk), "unsubscribe")
    clock.advance(5 * 365 * DAY)
    assert desk.client.simulate_get(path).status_code == 200
    assert desk.client.simulate_post(path).status_code == 200
    assert statuses(desk) == ["left"]


def test_unsubscribing_is_never_limited(desk: Desk) -> None:
    path = link(confirmed(desk), "unsubscribe")
    codes = {desk.client.simulate_post(path).status_code for _ in range(60)}
    assert codes == {200}


def test_leaving_again_keeps_the_first_time(desk: Desk, clock: Clock) -> None:
    path = link(confirmed(desk), "unsubscribe")
    desk.client.simulate_post(path)
    before = rows()
    clock.advance(DAY)
    assert desk.client.simulate_post(path).status_code == 200
    assert rows() == before


def test_after_leaving_only_the_hash_of_the_address_remains(desk: Desk) -> None:
    mail = asked(desk, "Ada.Lovelace@example.com")
    desk.client.simulate_post(link(mail, "confirm"))
    desk.client.simulate_post(link(mail, "unsubscribe"))
    [row] = rows()
    assert row["email"] is None
    assert row["name"] is None
    assert "lovelace" not in repr(row).lower()
    assert row["mailbox"] == models.mailbox_key("ada.lovelace@example.com")
    [exported] = desk.subscribers()
    assert exported["email"] is None
    assert exported["left_at"] == iso(NOON)


def test_a_pending_address_can_leave_too(desk: Desk) -> None:
    mail = asked(desk)
    assert desk.client.simulate_post(link(mail, "unsubscribe")).status_code == 200
    assert statuses(desk) == ["left"]
    # The confirmation link of the same mail is void by then.
    assert desk.client.simulate_post(link(mail, "confirm")).status_code == 404
    assert statuses(desk) == ["left"]


def test_an_erased_subscription_can_still_be_left(desk: Desk) -> None:
    path = link(confirmed(desk), "unsubscribe")
    desk.owner("DELETE", f"/people/{EMAIL}")
    assert desk.client.simulate_post(path).status_code == 200
    assert rows() == []


def test_coming_back_needs_a_new_mail(desk: Desk, clock: Clock) -> None:
    first = confirmed(desk)
    desk.client.simulate_post(link(first, "unsubscribe"))
    clock.advance(DAY)
    second = asked(desk)
    assert statuses(desk) == ["pending"]
    # The old link was for another consent.
    assert desk.client.simulate_post(link(first, "confirm")).status_code == 404
    assert statuses(desk) == ["pending"]
    assert desk.client.simulate_post(link(second, "confirm")).status_code == 200
    assert statuses(desk) == ["confirmed"]


def test_the_first_unsubscribe_link_works_for_who_came_back(
    desk: Desk, clock: Clock
) -> None:
    first = confirmed(desk)
    desk.client.simulate_post(link(first, "unsubscribe"))
    clock.advance(DAY)
    confirmed(desk)
    desk.client.simulate_post(link(first, "unsubscribe"))
    assert statuses(desk) == ["left"]


def test_who_left_and_gets_no_mail_stays_forgotten(desk: Desk) -> None:
    desk.client.simulate_post(link(confirmed(desk), "unsubscribe"))
    sign_up(desk)  # within the hour of the first mail
    assert len(desk.drain()) == 1
    assert statuses(desk) == ["left"]
    assert rows()[0]["email"] is None


def test_a_link_confirms_only_the_address_it_was_mailed_to(
    desk: Desk, clock: Clock
) -> None:
    first = asked(desk, "ada@example.com")
    # One mailbox by our folding, but at some hosts another person's.
    sign_up(desk, "ada+mallory@example.com")
    assert rows()[0]["email"] == "ada@example.com"
    clock.advance(3600)
    second = asked(desk, "ada+mallory@example.com")
    assert desk.client.simulate_post(link(first, "confirm")).status_code == 404
    desk.client.simulate_post(link(second, "confirm"))
    assert [row["email"] for row in desk.subscribers()] == ["ada+mallory@example.com"]


def test_the_consent_is_of_the_sign_up_that_was_mailed(
    desk: Desk, clock: Clock
) -> None:
    asked(desk)
    before = rows()
    clock.advance(60)
    sign_up(desk, name="Mallory")
    assert rows() == before


# --- "it was not me" -------------------------------------------------------------


def test_not_me_ends_all_confirmation_mails(desk: Desk, clock: Clock) -> None:
    mail = asked(desk)
    assert desk.client.simulate_post(link(mail, "not-me")).status_code == 200
    for _ in range(3):
        clock.advance(40 * DAY)
        assert sign_up(desk).status_code == 200
        models.clean_up(clock(), 0)
    assert len(desk.drain()) == 1
    [row] = rows()
    assert row["email"] is None
    assert row["refused_at"] == NOON


def test_not_me_drops_a_mail_that_is_still_waiting(desk: Desk, clock: Clock) -> None:
    mail = asked(desk)
    clock.advance(3601)
    sign_up(desk)
    desk.client.simulate_post(link(mail, "not-me"))
    assert len(desk.drain()) == 1
    assert Delivery.select().count() == 0


# --- tokens ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-9] + ("A" if token[-9] != "A" else "B") + token[-8:],
        lambda token: "x" + token,
        lambda token: token.swapcase(),
        lambda token: token.rpartition(".")[0],
        lambda token: "a",
        lambda token: "%F0%9F%92%8C",
        lambda token: "%ED%A0%80",
        lambda token: "%00",
        lambda token: "." * 300,
        lambda token: "..",
    ],
    ids=[
        *("one-letter", "prefix", "case", "no-signature", "short", "emoji"),
        *("surrogate", "nul", "dots", "two-dots"),
    ],
)
def test_a_tampered_token_changes_nothing(
    desk: Desk, spoil: Callable[[str], str]
) -> None:
    mail = asked(desk)
    before = rows()
    for purpose in PURPOSES:
        folder, _, token = link(mail, purpose).rpartition("/")
        for method in ("GET", "POST"):
            answer = desk.client.simulate_request(method, f"{folder}/{spoil(token)}")
            assert answer.status_code == 404
            assert answer.json["errors"][0]["code"] == "NOT_FOUND"
    assert rows() == before


@pytest.mark.parametrize("used_for", PURPOSES)
def test_a_token_opens_only_its_own_door(desk: Desk, used_for: str) -> None:
    asked(desk)
    [row] = rows()
    links = Links(desk.settings.secret_keys, "https://desk.example", desk.clock)
    for made_for in {*PURPOSES, "release", "ask"} - {used_for}:
        for payload in (row["id"], [row["id"], row["cycle"]]):
            token = links.token(made_for, payload)
            answer = desk.client.simulate_post(f"/newsletter/{used_for}/{token}")
            assert answer.status_code == 404
    assert rows() == [row]


def test_a_token_holds_no_address(desk: Desk) -> None:
    mail = asked(desk)
    for purpose in PURPOSES:
        payload = link(mail, purpose).rpartition("/")[2].partition(".")[0]
        plain = base64.urlsafe_b64decode(payload + "==")
        assert b"ada@" not in plain
        assert b"example" not in plain


def test_links_outlive_a_new_key_and_end_with_their_own(
    make_desk: Callable[..., Desk],
) -> None:
    old, new = "o" * 32, "n" * 32
    mail = asked(make_desk(secret_keys=(old,)))
    rotated = make_desk(secret_keys=(new, old))
    assert rotated.client.simulate_get(link(mail, "confirm")).status_code == 200
    later = asked(rotated, "bob@example.com")
    retired = make_desk(secret_keys=(new,))
    assert retired.client.simulate_post(link(mail, "confirm")).status_code == 404
    # The new key came first: it signed.
    assert retired.client.simulate_post(link(later, "confirm")).status_code == 200


def test_who_left_is_remembered_under_a_new_key(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(secret_keys=("o" * 32,))
    desk.client.simulate_post(link(asked(desk), "not-me"))
    clock.advance(40 * DAY)
    rotated = make_desk(secret_keys=("n" * 32,))
    sign_up(rotated)
    assert rotated.drain() == []
    assert len(rows()) == 1


# --- the same answer for everybody -----------------------------------------------


def everything(answer: falcon.testing.Result) -> tuple[Any, ...]:
    headers = {k: v for k, v in answer.headers.items() if k != "x-request-id"}
    return answer.status_code, answer.text, headers


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_the_answer_does_not_tell_what_is_known_of_an_address(
    make_desk: Callable[..., Desk], clock: Clock, accept: str
) -> None:
    desk = make_desk()
    clients = iter(f"203.0.113.{n}" for n in range(1, 255))  # each with its own limit

    def ask(email: str, **form: str) -> falcon.testing.Result:
        return desk.client.simulate_post(
            "/newsletter",
            json={"email": email, **form},
            headers={"Accept": accept, "Origin": "https://site.example"},
            remote_addr=next(clients),
        )

    for name in ("pending", "confirmed", "left", "refused"):
        ask(f"{name}@example.com")
    mails = {mail["To"][0]["Email"].partition("@")[0]: mail for mail in desk.drain()}
    desk.client.simulate_post(link(mails["confirmed"], "confirm"))
    desk.client.simulate_post(link(mails["left"], "confirm"))
    desk.client.simulate_post(link(mails["left"], "unsubscribe"))
    desk.client.simulate_post(link(mails["refused"], "not-me"))

    names = ("new", "pending", "confirmed", "left", "refused")
    now = {str(everything(ask(f"{name}@example.com"))) for name in names}
    clock.advance(DAY)
    later = {str(everything(ask(f"{name}@example.com"))) for name in names}
    trapped = str(everything(ask("bot@example.com", _gotcha="x")))
    assert len(now) == 1
    assert now == later == {trapped}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_sign_up_syncs_the_disk_once(desk: Desk, database_url: str) -> None:
    """Else a stopwatch tells who is on the list: a sync takes longer than the rest."""
    confirmed(desk, "confirmed@example.com")
    asked(desk, "pending@example.com")
    desk.client.simulate_post(link(asked(desk, "left@example.com"), "unsubscribe"))
    desk.client.simulate_post(link(asked(desk, "refused@example.com"), "not-me"))
    path = sqlite_path(database_url)
    assert path is not None
    wal = path.with_name(path.name + "-wal")
    for name in ("new", "pending", "confirmed", "left", "refused"):
        before = wal.stat().st_size
        sign_up(desk, f"{name}@example.com")
        assert wal.stat().st_size > before, name


# --- shares ----------------------------------------------------------------------


def test_an_address_gets_one_mail_an_hour(desk: Desk, clock: Clock) -> None:
    sign_up(desk)
    clock.advance(3599)
    sign_up(desk)
    assert len(desk.drain()) == 1
    clock.advance(1)
    sign_up(desk)
    assert len(desk.drain()) == 2


def test_an_address_gets_three_mails_in_thirty_days(desk: Desk, clock: Clock) -> None:
    for _ in range(6):
        sign_up(desk)
        clock.advance(DAY)
    assert len(desk.drain()) == 3
    clock.advance(24 * DAY)  # the first was 30 days ago
    sign_up(desk)
    sign_up(desk, "other@example.com")
    assert [mail["To"][0]["Email"] for mail in desk.drain()[3:]] == [
        EMAIL,
        "other@example.com",
    ]


def test_leaving_does_not_renew_the_share(desk: Desk, clock: Clock) -> None:
    for _ in range(6):
        sign_up(desk)
        for mail in desk.drain()[-1:]:
            desk.client.simulate_post(link(mail, "unsubscribe"))
        clock.advance(DAY)
    assert len(desk.mailbox.mails) == 3


def sign_up_from(desk: Desk, n: int) -> None:
    """Sign an address up from a network of its own."""
    answer = desk.client.simulate_post(
        "/newsletter", json={"email": f"a@{n}.example"}, remote_addr=f"10.0.{n}.1"
    )
    assert answer.status_code == 200


def to(mails: list[dict[str, Any]]) -> list[str]:
    return [mail["To"][0]["Email"] for mail in mails]


def test_all_confirmation_mails_have_a_daily_ceiling(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(confirm_mails_per_day=2)
    for n in range(4):
        sign_up_from(desk, n)
    assert to(desk.drain()) == ["a@0.example", "a@1.example"]
    # Contact messages do not suffer from it.
    desk.post("/contact", {"email": EMAIL, "message": "Hello"})
    assert to(desk.drain())[2:] == ["owner@site.example"]
    # What was over the ceiling is mailed the next day, before what comes then.
    clock.advance(DAY)
    sign_up_from(desk, 5)
    assert to(desk.drain())[3:] == ["a@2.example", "a@3.example"]
    clock.advance(DAY)
    assert to(desk.drain())[5:] == ["a@5.example"]


def test_an_address_whose_mail_waits_for_another_day_gets_no_second_one(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    wide = (Window(1000, 60),)
    desk = make_desk(confirm_mails_per_day=10, newsletter_limit=wide)
    for email in ("a@gmail.com", *[EMAIL] * 8):  # one network may send one a day
        sign_up(desk, email)
    for _ in range(10):
        desk.drain()
        clock.advance(DAY)
    assert to(desk.mailbox.mails) == ["a@gmail.com", EMAIL]


def test_mails_that_wait_for_weeks_wait_all_the_time(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    wide = (Window(1000, 60),)
    desk = make_desk(confirm_mails_per_day=10, newsletter_limit=wide)
    for n in range(12):
        sign_up(desk, f"a{n}@gmail.com")
    for day in range(12):
        assert len(desk.drain()) == 1 + day
        clock.advance(DAY)


def test_one_network_gets_a_tenth_of_the_mails(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    wide = (Window(1000, 60),)
    desk = make_desk(confirm_mails_per_day=30, newsletter_limit=wide)
    for n in range(8):
        desk.client.simulate_post(
            "/newsletter", json={"email": f"a@{n}.example"}, remote_addr=f"10.0.0.{n}"
        )
    assert len(desk.drain()) == 3
    sign_up_from(desk, 99)
    assert to(desk.drain())[3:] == ["a@99.example"]
    clock.advance(DAY)
    assert len(desk.drain()) == 7
    clock.advance(DAY)
    assert len(desk.drain()) == 9  # none of them was dropped


def test_one_domain_gets_all_of_the_mails(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(confirm_mails_per_day=10)
    for n in range(12):
        desk.client.simulate_post(
            "/newsletter",
            json={"email": f"person{n}@example.com"},
            remote_addr=f"10.0.{n}.1",
        )
    assert len(desk.drain()) == 10


def test_no_confirmation_mails_at_all_with_a_ceiling_of_0(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(confirm_mails_per_day=0)
    assert sign_up(desk).status_code == 200
    assert desk.drain() == []


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("ada@example.com", "ADA@Example.COM", True),
        ("ada@example.com", "ada+news@example.com", True),
        ("ada@gmail.com", "a.d.a+x@gmail.com", True),
        ("ada@gmail.com", "a.da@googlemail.com", True),
        ("ada.l@example.com", "adal@example.com", False),
        ("ada@example.com", "ada@example.org", False),
        ("ada@example.com", "bob@example.com", False),
    ],
    ids=["case", "tag", "dots", "googlemail", "dots-elsewhere", "domain", "name"],
)
def test_one_mailbox_by_all_its_spellings(
    desk: Desk, first: str, second: str, same: bool
) -> None:
    sign_up(desk, first)
    sign_up(desk, second)
    assert len(desk.drain()) == len(rows()) == (1 if same else 2)


@pytest.mark.parametrize("again", [EMAIL, "ADA+x@example.com"])
def test_a_confirmed_address_is_never_downgraded(
    desk: Desk, clock: Clock, again: str
) -> None:
    confirmed(desk)
    before = rows()
    for _ in range(3):
        clock.advance(2 * DAY)
        sign_up(desk, again, name="Mallory")
    assert rows() == before
    assert len(desk.drain()) == 1


# --- the consent record ----------------------------------------------------------


def test_the_consent_is_recorded(desk: Desk, clock: Clock) -> None:
    desk.client.simulate_post(
        "/newsletter",
        json={"email": EMAIL, "name": "Ada"},
        headers={"Referer": "https://site.example/blog/?utm=1#end"},
        remote_addr="203.0.113.77",
    )
    clock.advance(60)
    mail = desk.drain()[0]
    desk.client.simulate_post(link(mail, "confirm"))
    clock.advance(60)
    [row] = rows()
    assert row["page"] == "https://site.example/blog/"
    assert row["client"] == "203.0.113.0"
    assert row["wording"] == models.CONSENT
    assert (row["asked_at"], row["confirmed_at"]) == (NOON, NOON + 60)
    desk.client.simulate_post(link(mail, "unsubscribe"))
    [row] = rows()
    assert row["left_at"] == NOON + 120
    assert (row["asked_at"], row["confirmed_at"]) == (NOON, NOON + 60)
    assert desk.subscribers() == [
        {
            "email": None,
            "name": None,
            "status": "left",
            "asked_at": iso(NOON),
            "confirmed_at": iso(NOON + 60),
            "left_at": iso(NOON + 120),
            "page": "https://site.example/blog/",
            "unsubscribe_url": None,
        }
    ]


def test_an_ipv6_address_is_truncated_to_its_48(desk: Desk) -> None:
    desk.client.simulate_post(
        "/newsletter", json={"email": EMAIL}, remote_addr="2001:db8:1:2:3:4:5:6"
    )
    assert rows()[0]["client"] == "2001:db8:1::"


def test_pending_rows_are_purged_after_thirty_days(desk: Desk, clock: Clock) -> None:
    confirmed(desk, "confirmed@example.com")
    desk.client.simulate_post(link(confirmed(desk, "left@example.com"), "unsubscribe"))
    desk.client.simulate_post(link(asked(desk, "refused@example.com"), "not-me"))
    asked(desk, "pending@example.com")
    clock.advance(30 * DAY)
    models.clean_up(clock(), 0)
    assert len(rows()) == 4
    clock.advance(1)
    models.clean_up(clock(), 0)
    assert sorted(statuses(desk)) == ["confirmed", "left", "left"]


def test_the_daily_round_purges_pending_rows(desk: Desk, clock: Clock) -> None:
    asked(desk)
    clock.advance(31 * DAY)
    desk.app.outbox.go_round()
    assert rows() == []


# --- the contact list at Mailjet -------------------------------------------------


def test_confirming_and_leaving_reach_the_list(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(mailjet_list_id="77")
    mail = asked(desk)
    assert desk.mailbox.synced == []
    desk.client.simulate_post(link(mail, "confirm"))
    desk.client.simulate_post(link(mail, "confirm"))
    desk.drain()
    assert desk.mailbox.synced == [("77", EMAIL, "confirmed")]
    desk.client.simulate_post(link(mail, "unsubscribe"))
    desk.client.simulate_post(link(mail, "unsubscribe"))
    desk.drain()
    clock.advance(DAY)
    desk.client.simulate_post(link(asked(desk), "confirm"))
    desk.drain()
    standings = ["confirmed", "left", "returned"]
    assert desk.mailbox.synced == [("77", EMAIL, standing) for standing in standings]
    assert Delivery.select().count() == 0


def test_a_pending_address_never_touches_the_list(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(mailjet_list_id="77")
    desk.client.simulate_post(link(asked(desk), "unsubscribe"))
    desk.drain()
    assert desk.mailbox.synced == []


def test_without_a_list_nothing_is_queued_for_it(desk: Desk) -> None:
    desk.client.simulate_post(link(confirmed(desk), "unsubscribe"))
    assert Delivery.select().count() == 0


# --- hostile senders -------------------------------------------------------------


@pytest.mark.parametrize("field", ["_gotcha", "_honey", "botcheck", "bot-field"])
def test_a_filled_honeypot_mails_nobody_and_looks_like_a_success(
    desk: Desk, field: str
) -> None:
    answer = desk.post("/newsletter", {"email": EMAIL, field: "http://spam.example"})
    assert answer.status_code == 200
    assert answer.json == sign_up(desk, "bob@example.com").json
    assert [mail["To"] for mail in desk.drain()] == [[{"Email": "bob@example.com"}]]


def test_a_form_of_another_site_is_refused(desk: Desk) -> None:
    answer = desk.post("/newsletter", {"email": EMAIL}, Origin="https://evil.example")
    assert answer.status_code == 403
    assert answer.json["errors"][0]["code"] == "BLOCKED"
    assert rows() == []


def test_the_confirmation_mail_can_be_left_by_its_headers(desk: Desk) -> None:
    mail = asked(desk)
    url = f"https://desk.example{link(mail, 'unsubscribe')}"
    assert mail["Headers"] == {
        "List-Unsubscribe": f"<{url}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }


def test_a_link_never_follows_the_host_header(desk: Desk) -> None:
    desk.post("/newsletter", {"email": EMAIL}, Host="evil.example")
    mail = desk.drain()[0]
    assert "evil.example" not in mail["TextPart"] + mail["HTMLPart"]


def test_over_its_limit_a_client_is_told_when_to_come_back(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk()
    answers = [sign_up(desk, f"a{n}@example.com") for n in range(6)]
    assert [answer.status_code for answer in answers] == [*[200] * 5, 429]
    assert int(answers[-1].headers["retry-after"]) == 12
    assert len(rows()) == 5
