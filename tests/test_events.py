"""What becomes of mails after Mailjet's yes, and a list that stays true."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from frontdesk.links import Links
from frontdesk.mailjet import EVENT_TYPES, Mailjet
from frontdesk.tables import DAY
from mail import EVENTS_AT_ONCE, MAX_EVENTS
from models import Delivery, Message, Subscriber
from owner import Doctor
from tests.support.desk import TOKEN, Desk
from tests.support.mailjet import StandIn
from tests.support.server import Server, mail_settings

EMAIL = "ada@example.com"
KEY = ("public-key", "private-key")
HERE = "https://desk.example/mailjet/"
SAMPLES = Path(__file__).parents[2] / "shared" / "real" / "mailjet-events.json"


def event(kind: str, **more: Any) -> dict[str, Any]:
    """Return an event as Mailjet sends it."""
    common = {"time": 1430812195, "MessageID": 13792286917004336, "CustomID": ""}
    return {"event": kind, "email": "owner@site.example", **common, **more}


def bounce(**more: Any) -> dict[str, Any]:
    """Return a bounce for good."""
    failed = {"blocked": True, "hard_bounce": True, "error_related_to": "recipient"}
    return event("bounce", **{**failed, "error": "user unknown", **more})


def address(desk: Desk) -> str:
    """Return the path that Mailjet is told."""
    return f"/mailjet/{desk.app.service.links.token('mailjet', 'events')}"


def tell(desk: Desk, *events: Any) -> None:
    """Post events as Mailjet does: one alone, or a list."""
    body = json.dumps(events[0] if len(events) == 1 else events)
    assert desk.client.simulate_post(address(desk), body=body).status_code == 200


def write(desk: Desk, text: str = "Hello") -> str:
    """Send a message that is mailed, and return its id."""
    answer = desk.post("/contact", {"email": EMAIL, "message": text})
    desk.drain()
    return str(answer.json["id"])


def state(desk: Desk) -> list[tuple[str | None, str | None]]:
    return [(m["delivery"], m["delivery_reason"]) for m in desk.messages()]


def subscribe(desk: Desk, email: str = EMAIL, confirm: bool = True) -> str:
    """Sign an address up, and return the subscriber's id."""
    desk.post("/newsletter", {"email": email})
    [row] = Subscriber.select().where(Subscriber.email == email)
    if confirm:
        sync = desk.settings.syncs_list
        assert Subscriber.confirm(row.id, row.cycle, desk.clock(), sync)
    return str(row.id)


def status(desk: Desk) -> list[str]:
    return [subscriber["status"] for subscriber in desk.subscribers()]


# --- who may tell ----------------------------------------------------------------


def test_only_a_token_for_this_purpose_opens(desk: Desk) -> None:
    message_id = write(desk)
    links = desk.app.service.links
    stranger = Links(("f" * 32,), "https://desk.example", desk.clock)
    for token in (
        "x",
        links.token("release", message_id),
        links.token("unsubscribe", "events"),
        stranger.token("mailjet", "events"),
        links.token("mailjet", "events")[:-1],
    ):
        body = event("sent", CustomID=message_id)
        answer = desk.client.simulate_post(f"/mailjet/{token}", json=body)
        assert answer.status_code == 404, token
    assert state(desk) == [(None, None)]


def test_the_token_never_expires_and_no_origin_or_limit_counts(desk: Desk) -> None:
    message_id, path = write(desk), address(desk)
    desk.clock.advance(10 * 365 * DAY)
    for _ in range(150):
        answer = desk.client.simulate_post(
            path,
            json=event("sent", CustomID=message_id),
            headers={"Origin": "https://evil.example"},
        )
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
    assert state(desk) == [("delivered", None)]


def test_get_is_not_how_events_come(desk: Desk) -> None:
    answer = desk.client.simulate_get(address(desk))
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")


# --- delivery --------------------------------------------------------------------


def test_a_message_that_arrived_is_delivered(desk: Desk) -> None:
    message_id = write(desk)
    assert state(desk) == [(None, None)]
    tell(desk, event("sent", CustomID=message_id))
    assert state(desk) == [("delivered", None)]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        pytest.param(bounce(), "user unknown", id="hard bounce"),
        pytest.param(event("blocked", error="preblocked"), "preblocked", id="blocked"),
        pytest.param(event("blocked"), "blocked", id="no reason"),
        pytest.param(event("blocked", error=["x"]), "blocked", id="an odd reason"),
        pytest.param(bounce(error="a\x00b\ud800\n" + "c" * 300), None, id="hostile"),
    ],
)
def test_a_message_that_did_not_arrive_is_undelivered_with_the_reason(
    desk: Desk, told: dict[str, Any], reason: str | None
) -> None:
    tell(desk, told | {"CustomID": write(desk)})
    [(delivery, told_reason)] = state(desk)
    assert delivery == "undelivered"
    assert told_reason and len(told_reason) < 300 and "\x00" not in told_reason
    assert reason in (None, told_reason)


@pytest.mark.parametrize("hard", [False, None, "yes", 0])
def test_a_soft_bounce_changes_nothing(desk: Desk, hard: object) -> None:
    subscribe(desk)
    soft = bounce(CustomID=write(desk), email=EMAIL, hard_bounce=hard)
    tell(desk, soft)
    assert state(desk) == [(None, None)]
    assert status(desk) == ["confirmed"]


def test_undelivered_wins_in_any_order(desk: Desk) -> None:
    first, second, third = (write(desk, text) for text in ("One", "Two", "Three"))
    tell(desk, event("sent", CustomID=first))
    tell(desk, bounce(CustomID=first))
    tell(desk, bounce(CustomID=second))
    tell(desk, event("sent", CustomID=second))
    both = [bounce(CustomID=third), event("sent", CustomID=third)]
    tell(desk, *both, *both[::-1])
    assert state(desk) == [("undelivered", "user unknown")] * 3


def test_an_event_that_comes_before_the_row_says_mailed_is_kept(desk: Desk) -> None:
    def told_at_once(mail: dict[str, Any]) -> None:
        tell(desk, event("sent", CustomID=mail["CustomID"]))

    desk.mailbox.fail = told_at_once
    write(desk)
    [message] = desk.messages()
    assert message["delivery"] == "delivered" and message["mailed_at"] is not None


def test_repeats_change_nothing(desk: Desk) -> None:
    tell(desk, bounce(CustomID=write(desk)))
    first = Message.get().undelivered_at
    desk.clock.advance(60)
    tell(desk, *[bounce(CustomID=Message.get().id, error="later")] * 3)
    assert Message.get().undelivered_at == first
    assert state(desk) == [("undelivered", "user unknown")]


def test_what_was_erased_stays_erased(desk: Desk) -> None:
    subscribe(desk)
    message_id = write(desk)
    assert desk.owner("DELETE", f"/people/{EMAIL}").status_code == 200
    for kind in ("sent", "blocked", "spam", "unsub"):
        tell(desk, event(kind, CustomID=message_id, email=EMAIL))
    assert desk.messages() == desk.subscribers() == []


def test_a_long_list_is_taken_whole(desk: Desk) -> None:
    ids = [write(desk, f"text {n}") for n in range(3)]
    unknown = [
        event(random.choice(["sent", "blocked"]), CustomID=f"x{n}", email=f"{n}@x.test")
        for n in range(2 * EVENTS_AT_ONCE)
    ]
    tell(desk, *(event("sent", CustomID=i) for i in ids), *unknown)
    assert state(desk) == [("delivered", None)] * 3


# --- hostile bodies --------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="broken"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000, id="deep objects"),
        pytest.param(b'{"time": %s}' % (b"9" * 10_000), id="a huge number"),
        pytest.param(b"null", id="null"),
        pytest.param(b'[null, 1, "x", [], [[]], {}, true]', id="no events"),
        pytest.param(b'[{"event": {}}, {"event": ["sent"]}, {"event": NaN}]', id="odd"),
        pytest.param(
            b'{"event": "sent", "CustomID": {"$ne": 1}, "email": ["a@b.c"]}', id="types"
        ),
        pytest.param(
            b'{"event": "unsub", "email": "\\u0000\\ud800@x", "CustomID": "\\u0000"}',
            id="hostile text",
        ),
        pytest.param(b'{"event": "spam", "email": "%s"}' % (b"@" * 9999), id="at"),
        pytest.param(b"event=sent&CustomID=1", id="a form"),
    ],
)
def test_hostile_bodies_are_taken_and_change_nothing(desk: Desk, body: bytes) -> None:
    subscribe(desk)
    write(desk)
    answer = desk.client.simulate_post(address(desk), body=body)
    assert answer.status_code == 200
    assert state(desk) == [(None, None)] and status(desk) == ["confirmed"]


def test_a_body_has_at_most_a_mebibyte(desk: Desk) -> None:
    told = json.dumps(event("sent", CustomID=write(desk)))
    path = address(desk)
    whole = desk.client.simulate_post(path, body=told.ljust(MAX_EVENTS))
    assert whole.status_code == 200
    over = desk.client.simulate_post(path, body=told.ljust(MAX_EVENTS + 1))
    assert over.status_code == 413
    assert state(desk) == [("delivered", None)]


@pytest.mark.skipif(not SAMPLES.exists(), reason="Mailjet's samples are elsewhere")
def test_mailjets_own_samples_are_taken(desk: Desk) -> None:
    subscribe(desk, "subscriber@example.com")
    message_id = write(desk)
    samples = json.loads(SAMPLES.read_text("utf-8"))
    for sample in samples:
        tell(desk, sample)
    assert state(desk) == [(None, None)]  # they name no message
    assert status(desk) == ["left"]
    tell(desk, *(sample | {"CustomID": message_id} for sample in samples))
    assert state(desk) == [("undelivered", "user unknown")]


# --- the list stays true ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["unsub", "spam", "bounce", "blocked"])
@pytest.mark.parametrize("confirm", [True, False])
def test_who_left_complained_or_is_gone_is_off_the_list(
    make_desk: Callable[..., Desk], kind: str, confirm: bool
) -> None:
    desk = make_desk(mailjet_list_id="7")
    subscribe(desk, EMAIL, confirm)
    subscribe(desk, "ben@example.com")
    desk.drain()
    tell(desk, bounce(email="Ada+news@EXAMPLE.com") | {"event": kind})
    rows = {s["email"]: s["status"] for s in desk.subscribers()}
    assert rows == {None: "left", "ben@example.com": "confirmed"}
    desk.drain()
    off = [("7", EMAIL, "left")] if confirm else []
    assert desk.mailbox.synced[-1:] == (off or [("7", "ben@example.com", "confirmed")])
    tell(desk, bounce(email=EMAIL) | {"event": kind})
    assert Delivery.select().where(Delivery.kind == "list").count() == 0


@pytest.mark.parametrize(("kind", "mails"), [("unsub", 1), ("spam", 0), ("bounce", 1)])
def test_who_complained_is_never_asked_again(desk: Desk, kind: str, mails: int) -> None:
    subscribe(desk)
    before = len(desk.drain())
    tell(desk, bounce(email=EMAIL) | {"event": kind})
    desk.clock.advance(2 * DAY)
    desk.post("/newsletter", {"email": EMAIL})
    assert len(desk.drain()) - before == mails


def test_one_list_may_say_several_things_of_one_address(desk: Desk) -> None:
    subscribe(desk)
    tell(desk, event("spam", email=EMAIL), event("unsub", email=EMAIL))
    assert Subscriber.get().refused_at is not None


@pytest.mark.parametrize(
    ("related", "error"),
    [
        ("spam", "content blocked"),
        ("spam", "sender blocked"),
        ("system", "connection issue"),
        ("mailjet", "duplicate in campaign"),
    ],
)
def test_a_blocked_newsletter_does_not_empty_the_list(
    desk: Desk, related: str, error: str
) -> None:
    subscribe(desk)
    blocked = event("blocked", email=EMAIL, error_related_to=related, error=error)
    tell(desk, blocked | {"CustomID": write(desk)})
    assert status(desk) == ["confirmed"]
    assert state(desk) == [("undelivered", error)]  # the owner is told all the same


def test_the_export_has_each_confirmed_subscribers_own_way_out(desk: Desk) -> None:
    subscribe(desk, "pending@example.com", confirm=False)
    subscribe(desk, "ben@example.com")
    subscribe(desk)
    exported = {s["email"]: s["unsubscribe_url"] for s in desk.subscribers()}
    assert exported["pending@example.com"] is None
    answer = desk.owner("GET", "/export/subscribers.csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert "id" not in rows[0]
    links = {row["email"]: row["unsubscribe_url"] for row in rows}
    assert links["pending@example.com"] == ""
    for url in (exported[EMAIL], links["ben@example.com"]):
        path = url.removeprefix("https://desk.example")
        one_click = {"body": "List-Unsubscribe=One-Click"}
        assert desk.client.simulate_post(path, **one_click).status_code == 200
    rows = [(s["status"], s["unsubscribe_url"]) for s in desk.subscribers()]
    assert sorted(rows) == [("left", None), ("left", None), ("pending", None)]


# --- the owner is told -----------------------------------------------------------


def test_health_tells_the_owner_what_did_not_arrive(desk: Desk) -> None:
    for text in ("One", "Two"):
        tell(desk, bounce(CustomID=write(desk, text)))
    assert desk.health()["outbox"]["undelivered"] == 2
    desk.clock.advance(30 * DAY + 1)
    assert desk.health()["outbox"]["undelivered"] == 0


def test_health_tells_everybody_else_no_numbers(desk: Desk) -> None:
    plain = {"status", "version", "database", "outbox"}
    desk.post("/contact", {"email": EMAIL, "message": "Hello"})
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic x"},
    ):
        answer = desk.client.simulate_get("/health", headers=headers)
        assert (answer.status_code, set(answer.json)) == (200, plain)
        assert answer.json["outbox"] == "ok"
    full = desk.health()
    assert set(full) == {*plain, "held_last_day"}
    names = {"waiting", "oldest_seconds", "dead", "undelivered", "paused"}
    assert set(full["outbox"]) == names
    desk.clock.advance(3601)
    assert desk.client.simulate_get("/health").json["outbox"] == "late"


def test_the_token_cannot_be_guessed_at_health(desk: Desk) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    for _ in range(20):
        answer = desk.client.simulate_get("/health", headers=wrong)
        assert answer.status_code == 200  # a platform that looks is never refused
    assert desk.health()["outbox"] == "ok"  # nothing is compared any more
    desk.clock.advance(60)
    assert desk.health()["outbox"]["waiting"] == 0


def test_the_doctor_tells_what_did_not_arrive(desk: Desk) -> None:
    names = {check["name"] for check in desk.owner("GET", "/doctor").json["checks"]}
    assert "undelivered" not in names
    tell(desk, bounce(CustomID=write(desk, "One"), error="quota exceeded"))
    desk.clock.advance(1)
    for text in ("Two", "Three"):
        tell(desk, bounce(CustomID=write(desk, text)))
    answer = desk.owner("GET", "/doctor").json
    [check] = [c for c in answer["checks"] if c["name"] == "undelivered"]
    assert check["message"] == (
        "3 mails did not arrive at owner@…: user unknown. Your messages are safe: read "
        "them on /desk, then mend MAIL_TO."
    )
    assert answer["ok"] is check["ok"] is False


# --- registered at Mailjet, through its own client -------------------------------


@pytest.fixture
def real(desk: Desk, mailjet: StandIn) -> Desk:
    """A service whose doctor speaks to the stand-in."""
    service = replace(desk.app.service, transport=Mailjet(KEY, mailjet.url))
    desk.app.add_route("/examined", Doctor(service, 30))
    return desk


def told(desk: Desk, method: str) -> tuple[bool, str]:
    """Return what the doctor says of the events."""
    checks = desk.owner(method, "/examined").json["checks"]
    [check] = [c for c in checks if c["name"] == "events"]
    return check["ok"], check["message"]


def test_the_doctor_registers_our_address(real: Desk, mailjet: StandIn) -> None:
    ok, message = told(real, "GET")
    assert not ok and all(kind in message for kind in EVENT_TYPES)
    assert mailjet.callbacks.rows == []
    ok, message = told(real, "POST")
    assert ok, message
    assert [r["EventType"] for r in mailjet.callbacks.rows] == list(EVENT_TYPES)
    for row in mailjet.callbacks.rows:
        assert (row["Version"], row["Status"]) == (2, "alive")
        assert row["Url"].startswith(HERE)
        path = row["Url"].removeprefix("https://desk.example")
        assert real.client.simulate_post(path, json=[]).status_code == 200
    assert told(real, "GET")[0]
    [mail] = real.drain()  # the test mail goes out as ever
    assert mail["To"] == [{"Email": "owner@site.example"}]


def test_registering_again_changes_no_number_of_rows(
    real: Desk, mailjet: StandIn
) -> None:
    for _ in range(3):
        assert told(real, "POST")[0]
    assert len(mailjet.callbacks.rows) == len(EVENT_TYPES)
    methods = [r.method for r in mailjet.requests]
    assert methods.count("POST") == len(EVENT_TYPES)
    assert methods.count("PUT") == 2 * len(EVENT_TYPES)


def test_an_older_address_of_ours_is_replaced(real: Desk, mailjet: StandIn) -> None:
    token = real.app.service.links.token("mailjet", "events")
    ours = [f"https://old.example/mailjet/{token}", f"{HERE}signed-by-a-lost-key"]
    for kind, url in zip(EVENT_TYPES, [*ours, ours[0]], strict=False):
        mailjet.callbacks.add(kind, url)
    assert not told(real, "GET")[0]
    assert told(real, "POST")[0]
    assert all(row["Url"].startswith(HERE) for row in mailjet.callbacks.rows)
    assert len(mailjet.callbacks.rows) == len(EVENT_TYPES)


def test_nobody_elses_address_is_touched(real: Desk, mailjet: StandIn) -> None:
    theirs = [
        "https://crm.example/hook",
        "https://other.example/mailjet/not-our-token",
        f"https://other.example/x/{real.app.service.links.token('release', 'x')}",
    ]
    mailjet.callbacks.add("bounce", theirs[0])
    mailjet.callbacks.add("spam", theirs[1])
    mailjet.callbacks.add("open", theirs[2])
    mailjet.callbacks.add("sent", theirs[0], IsBackup=True)
    before = [dict(row) for row in mailjet.callbacks.rows]
    ok, message = told(real, "POST")
    assert not ok
    assert "left alone: bounce, spam." in message
    assert mailjet.callbacks.rows[:4] == before
    assert {r["EventType"] for r in mailjet.callbacks.rows[4:]} == {
        *("sent", "blocked", "unsub")
    }
    assert told(real, "GET") == (ok, message)


def test_an_address_that_mailjet_gave_up_is_told(real: Desk, mailjet: StandIn) -> None:
    told(real, "POST")
    mailjet.callbacks.rows[1]["Status"] = "dead"
    ok, message = told(real, "GET")
    assert not ok and "bounce" in message and "unsub" not in message
    assert told(real, "POST")[0]


def test_many_rows_are_all_looked_at(real: Desk, mailjet: StandIn) -> None:
    for n in range(12):  # without a limit Mailjet would tell of ten
        mailjet.callbacks.add(f"other{n}", "https://crm.example/hook")
    assert told(real, "POST")[0]
    assert told(real, "POST")[0]


def test_two_keys_of_a_rotation_are_both_ours(
    make_desk: Callable[..., Desk], mailjet: StandIn
) -> None:
    old = Links(("o" * 32,), "https://desk.example", lambda: 1_700_000_000)
    for kind in EVENT_TYPES:
        mailjet.callbacks.add(kind, old.url("mailjet", "events"))
    desk = make_desk(secret_keys=("n" * 32, "o" * 32))
    service = replace(desk.app.service, transport=Mailjet(KEY, mailjet.url))
    desk.app.add_route("/examined", Doctor(service, 30))
    assert told(desk, "GET")[0]
    assert told(desk, "POST")[0]  # signed by the new key from now on
    new = Links(("n" * 32,), "", desk.clock)
    assert all(new.signed("mailjet", row["Url"]) for row in mailjet.callbacks.rows)


def test_the_doctor_shows_nobody_the_token(real: Desk, mailjet: StandIn) -> None:
    answer = real.owner("POST", "/examined")
    token = mailjet.callbacks.url("sent").removeprefix(HERE)
    assert token not in answer.text
    assert token not in real.owner("GET", "/examined").text


# --- two workers -----------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_a_message_goes_all_the_way_over_two_workers(
    serve: Callable[..., Server], mailjet: StandIn, database_url: str
) -> None:
    server = serve(
        **mail_settings(mailjet),
        DATABASE_URL=database_url,
        WEB_CONCURRENCY="2",
        ADMIN_TOKEN=TOKEN,
        SECRET_KEY="s" * 40,
    )
    owner = {"Authorization": f"Bearer {TOKEN}"}
    sent = {"email": EMAIL, "message": "All the way"}
    message_id = requests.post(f"{server.url}/contact", json=sent).json()["id"]
    registered = requests.post(f"{server.url}/doctor", headers=owner).json()
    assert registered["checks"][0]["ok"], registered
    mailjet.wait(2 + 1 + len(EVENT_TYPES))
    url = mailjet.callbacks.url("bounce")
    assert url.startswith(f"http://localhost:{server.port}/mailjet/")
    url = url.replace("localhost", "127.0.0.1")
    told = [bounce(CustomID=message_id)] * 2 + [event("sent", CustomID=message_id)]
    for _ in range(8):  # each time a new connection, and either worker
        assert requests.post(url, json=told).status_code == 200
    [row] = requests.get(f"{server.url}/export/messages.json", headers=owner).json()
    assert (row["delivery"], row["delivery_reason"]) == ("undelivered", "user unknown")
    health = requests.get(f"{server.url}/health", headers=owner).json()
    assert health["outbox"]["undelivered"] == 1
    assert url.rpartition("/")[2] not in server.log
