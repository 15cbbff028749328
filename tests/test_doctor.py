"""What the doctor finds, tells, and keeps to itself."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from frontdesk.database import current
from frontdesk.links import Links
from frontdesk.mailjet import Check, LogTransport, Mailjet
from frontdesk.settings import Address, Settings
from owner import Doctor
from tests.support.desk import TOKEN, Desk
from tests.support.mailjet import Answer, Request, StandIn

KEY = ("public-key", "private-key")
SENDER = "site@site.example"


def checks(answer: Any) -> dict[str, tuple[bool, str]]:
    """Return the answer's checks as {name: (ok, message)}."""
    return {c["name"]: (c["ok"], c["message"]) for c in answer.json["checks"]}


def examine(desk: Desk, transport: Any = None, seconds: float = 30) -> Any:
    """Ask a doctor of this desk, with another transport."""
    transport = transport or desk.mailbox
    doctor = Doctor(replace(desk.app.service, transport=transport), seconds)
    desk.app.add_route("/examined", doctor)
    return desk.owner("GET", "/examined")


def mailjet_says(
    senders: list[dict[str, str]], list_status: int = 200
) -> Callable[[Request], Answer]:
    def answer(request: Request) -> Answer:
        if "contactslist" in request.path:
            return Answer(list_status, {"Count": 1, "Data": [{"ID": 7}], "Total": 1})
        return Answer(200, {"Count": len(senders), "Data": senders, "Total": 1})

    return answer


ACTIVE = mailjet_says([{"Email": SENDER, "Status": "Active"}])


# --- who may ask -----------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_doctor_sees_the_owner_only(desk: Desk, method: str) -> None:
    answer = desk.client.simulate_request(method, "/doctor")
    assert answer.status_code == 401
    assert "checks" not in answer.json
    assert desk.drain() == []


def test_without_a_token_there_is_no_doctor(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(admin_token=None)
    assert desk.owner("GET", "/doctor").status_code == 404


def test_a_browser_may_ask_with_the_token_as_password(desk: Desk) -> None:
    basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    answer = desk.client.simulate_get(
        "/doctor", headers={"Authorization": f"Basic {basic}"}
    )
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"


def test_head_examines_without_a_body(desk: Desk) -> None:
    answer = desk.owner("HEAD", "/doctor")
    assert (answer.status_code, answer.content) == (200, b"")


# --- the database ----------------------------------------------------------------


def test_all_is_well_at_a_service_set_up_well(desk: Desk) -> None:
    answer = desk.owner("GET", "/doctor")
    found = checks(answer)
    assert answer.json["ok"] is True, found
    assert {"database", "schema", "outbox", "public_url", "allowed_origins"} < set(
        found
    )


def test_the_database_and_its_size_are_named(desk: Desk) -> None:
    ok, message = checks(desk.owner("GET", "/doctor"))["database"]
    sqlite = desk.settings.database_url.startswith("sqlite")
    assert ok
    assert message.startswith("SQLite" if sqlite else "Postgres")
    assert f"{-(-current().size() // 2**20):,} MB" in message


def test_the_free_space_of_the_disk_is_told(desk: Desk) -> None:
    found = checks(desk.owner("GET", "/doctor"))
    if desk.settings.database_url.startswith("sqlite"):
        assert found["disk"][1].endswith("MB free.")
    else:
        assert "disk" not in found  # it is somebody else's machine


def test_a_disk_that_is_wiped_is_not_well(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(ephemeral=True)
    ok, message = checks(desk.owner("GET", "/doctor"))["database"]
    if desk.settings.database_url.startswith("sqlite"):
        assert not ok
        assert "attach" in message
    else:
        assert ok  # the setting means nothing to Postgres


def test_the_schema_version_is_the_newest_migration(desk: Desk) -> None:
    assert (
        current().schema_version() in checks(desk.owner("GET", "/doctor"))["schema"][1]
    )


# --- the outbox ------------------------------------------------------------------


def test_mail_that_waits_for_an_hour_is_not_well(desk: Desk) -> None:
    desk.post("/contact", {"email": "ada@example.com", "message": "Hello there"})
    assert checks(desk.owner("GET", "/doctor"))["outbox"][0]
    desk.clock.advance(3600)
    ok, message = checks(desk.owner("GET", "/doctor"))["outbox"]
    assert not ok
    assert "1 waiting, the oldest for 3,600 seconds" in message


def test_the_test_mail_goes_to_the_owner(desk: Desk) -> None:
    answer = desk.owner("POST", "/doctor")
    assert answer.status_code == 200
    (mail,) = desk.drain()
    assert mail["To"] == [{"Email": "owner@site.example"}]
    assert mail["From"] == {"Email": SENDER, "Name": "Site"}
    assert "https://desk.example" in mail["TextPart"]


def test_looking_sends_nothing(desk: Desk) -> None:
    desk.owner("GET", "/doctor")
    desk.owner("HEAD", "/doctor")
    assert desk.drain() == []


# --- Mailjet ---------------------------------------------------------------------


def test_without_keys_it_says_which_settings_are_missing(desk: Desk) -> None:
    ok, message = checks(examine(desk, LogTransport()))["mail"]
    assert not ok
    assert "MJ_APIKEY_PUBLIC" in message


def test_mailjet_is_asked_with_the_keys(desk: Desk, mailjet: StandIn) -> None:
    mailjet.answer = ACTIVE
    found = checks(examine(desk, Mailjet(KEY, mailjet.url)))
    assert found["mailjet"][0]
    assert found["sender"][0]
    assert "list" not in found
    assert {request.key for request in mailjet.requests} == {"public-key:private-key"}
    assert {request.method for request in mailjet.requests} == {"GET"}


@pytest.mark.parametrize("status", [401, 403])
def test_refused_keys_are_told(desk: Desk, mailjet: StandIn, status: int) -> None:
    mailjet.answer = lambda request: Answer(status, {})
    ok, message = checks(examine(desk, Mailjet(KEY, mailjet.url)))["mailjet"]
    assert not ok
    assert "refuses the keys" in message


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        pytest.param([{"Email": SENDER, "Status": "Active"}], True, id="active"),
        pytest.param([{"Email": SENDER.upper(), "Status": "Active"}], True, id="case"),
        pytest.param(
            [{"Email": "*@site.example", "Status": "Active"}], True, id="domain"
        ),
        pytest.param([{"Email": SENDER, "Status": "Inactive"}], False, id="inactive"),
        pytest.param([{"Email": "x@b.example", "Status": "Active"}], False, id="other"),
        pytest.param([], False, id="none"),
    ],
)
def test_the_sender_must_be_validated(
    desk: Desk, mailjet: StandIn, rows: list[dict[str, str]], good: bool
) -> None:
    mailjet.answer = mailjet_says(rows)
    ok, message = checks(examine(desk, Mailjet(KEY, mailjet.url)))["sender"]
    assert ok is good
    assert "MAIL_FROM" in message


@pytest.mark.parametrize(
    ("status", "good"), [(200, True), (404, False), (403, False), (500, False)]
)
def test_the_list_must_be_reachable(
    make_desk: Callable[..., Desk], mailjet: StandIn, status: int, good: bool
) -> None:
    desk = make_desk(mailjet_list_id="7")
    mailjet.answer = mailjet_says([{"Email": SENDER, "Status": "Active"}], status)
    answer = examine(desk, Mailjet(KEY, mailjet.url))
    assert answer.status_code == 200
    assert checks(answer)["list"][0] is good
    assert any(r.path.split("?")[0].endswith("/7") for r in mailjet.requests)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(500, {}), id="500"),
        pytest.param(Answer(429, {}, {"Retry-After": "21600"}), id="429 for hours"),
        pytest.param(Answer(200, b"<html>"), id="html"),
        pytest.param(Answer(200, []), id="a list"),
        pytest.param(Answer(200, {"Data": [None]}), id="odd rows"),
        pytest.param(Answer(302, {}, {"Location": "http://localhost:1/"}), id="302"),
    ],
)
def test_trouble_at_mailjet_is_told_not_raised(
    desk: Desk, mailjet: StandIn, answer: Answer
) -> None:
    mailjet.answer = lambda request: answer
    found = checks(examine(desk, Mailjet(KEY, mailjet.url)))
    assert not found["mailjet"][0]
    assert found["schema"][0]  # the rest is there


def test_nobody_at_mailjet_is_told(desk: Desk) -> None:
    with StandIn() as gone:
        url = gone.url
    assert not checks(examine(desk, Mailjet(KEY, url)))["mailjet"][0]


def test_a_hanging_mailjet_does_not_keep_the_owner_waiting(desk: Desk) -> None:
    release = threading.Event()
    started = threading.Event()

    class Hanging(LogTransport):
        def check(self, settings: Settings, links: Links) -> Iterator[Check]:
            yield Check("mailjet", True, "The keys are fine.")
            started.set()
            release.wait(20)
            yield Check("sender", True, "Too late.")

    try:
        found = checks(examine(desk, Hanging(), seconds=0.5))
        assert started.is_set()
        assert not release.is_set()  # it answered while Mailjet still hung
    finally:
        release.set()
    assert found["mailjet"] == (True, "The keys are fine.")
    assert found["mail"] == (False, "Mailjet did not answer in 0.5 seconds.")
    assert "sender" not in found
    assert found["allowed_origins"][0]


# --- addresses -------------------------------------------------------------------


def test_every_origin_allowed_is_not_well(make_desk: Callable[..., Desk]) -> None:
    ok, message = checks(make_desk(allowed_origins=("*",)).owner("GET", "/doctor"))[
        "allowed_origins"
    ]
    assert not ok
    assert "ALLOWED_ORIGINS" in message


def test_links_without_https_are_not_well(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(public_url="http://localhost:8000")
    ok, message = checks(desk.owner("GET", "/doctor"))["public_url"]
    assert not ok
    assert "PUBLIC_URL" in message


FORWARDED = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7"}


@pytest.mark.parametrize(
    ("changes", "headers", "address", "rule", "ok"),
    [
        pytest.param({}, {}, "198.51.100.9", "socket", True, id="no proxy"),
        pytest.param(
            {}, FORWARDED, "198.51.100.9", "socket", False, id="hops forgotten"
        ),
        pytest.param(
            {"trusted_hops": 1},
            FORWARDED,
            "203.0.113.7",
            "X-Forwarded-For, TRUSTED_HOPS=1",
            True,
            id="one hop",
        ),
        pytest.param(
            {"trusted_hops": 3},
            FORWARDED,
            "198.51.100.9",
            "socket",
            False,
            id="too many",
        ),
        pytest.param(
            {"client_ip_header": "CF-Connecting-IP"},
            {"CF-Connecting-IP": "2001:db8::7", **FORWARDED},
            "2001:db8::7",
            "CF-Connecting-IP",
            True,
            id="the platform's header",
        ),
        pytest.param(
            {"client_ip_header": "CF-Connecting-IP"},
            {},
            "198.51.100.9",
            "socket",
            False,
            id="the header did not come",
        ),
    ],
)
def test_the_client_address_is_shown_with_its_rule(
    make_desk: Callable[..., Desk],
    changes: dict[str, Any],
    headers: dict[str, str],
    address: str,
    rule: str,
    ok: bool,
) -> None:
    desk = make_desk(**changes)
    answer = desk.client.simulate_get(
        "/doctor",
        headers={"Authorization": f"Bearer {TOKEN}", **headers},
        remote_addr="198.51.100.9",
    )
    assert answer.json["client"] == {"address": address, "rule": rule}
    assert checks(answer)["client"][0] is ok


# --- nothing secret --------------------------------------------------------------


def test_nothing_secret_is_told(
    make_desk: Callable[..., Desk], mailjet: StandIn
) -> None:
    desk = make_desk(
        mail_to=Address("", "hidden-inbox@site.example"),
        secret_keys=("s" * 40,),
        mailjet_list_id="7",
    )
    mailjet.answer = lambda request: Answer(400, {"ErrorMessage": "private-key"})
    text = examine(desk, Mailjet(KEY, mailjet.url)).text
    secrets = (TOKEN, "s" * 40, *KEY, "hidden-inbox", desk.settings.database_url)
    assert [secret for secret in secrets if secret in text] == []
