"""Each mail as its reader reads it, and Mailjet's answers as the outbox takes them."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from frontdesk.links import BadLinkError, Links
from frontdesk.mailjet import LogTransport, Mailjet, RefusedReplyTo
from frontdesk.outbox import MAX_RETRY_AFTER, KeysRefused, NoAnswer, Refused, TryLater
from frontdesk.settings import Address, Settings, Window
from frontdesk.tables import DAY
from models import Delivery, Message
from tests.support.desk import NOON, Clock, Desk
from tests.support.mailjet import Answer, Request, StandIn, success
from tests.support.ports import free_port
from tests.support.server import ROOT

EMAIL = "ada@example.com"
MAIL = {
    "From": {"Email": "site@site.example"},
    "To": [{"Email": "owner@site.example"}],
    "Subject": "Hello",
    "TextPart": "Hello",
}


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A service whose rate limit is out of the way."""
    return make_desk(contact_limit=(Window(1000, 60),))


def mailed(desk: Desk, **form: str) -> dict[str, Any]:
    """Send a message and return the owner's mail."""
    form = {"email": EMAIL, "message": "Hello", **form}
    assert desk.post("/contact", form).status_code == 200
    return desk.drain()[-1]


# --- what the owner reads --------------------------------------------------------


def test_the_owner_reads_the_whole_message(desk: Desk) -> None:
    answer = desk.client.simulate_post(
        "/contact",
        json={
            "email": EMAIL,
            "name": "Ada Lovelace",
            "subject": "An engine",
            "message": "Dear Charles,\n\nit <b>works</b> & {{ hums }}.\nAda",
            "colour": "blue",
            "size": "1\n2",
        },
        headers={"Referer": "https://site.example/write?x=1", "User-Agent": "curl"},
        remote_addr="203.0.113.77",
    )
    [mail] = desk.drain()
    assert mail["From"] == {"Email": "site@site.example", "Name": "Site"}
    assert mail["To"] == [{"Email": "owner@site.example"}]
    assert mail["ReplyTo"] == {"Email": EMAIL, "Name": "Ada Lovelace"}
    assert mail["Subject"] == "[site.example] An engine"
    assert mail["CustomID"] == answer.json["id"]
    assert mail["TrackOpens"] == mail["TrackClicks"] == "disabled"
    assert "HTMLPart" not in mail
    assert mail["TextPart"] == (
        "Email: ada@example.com\n"
        "Name: Ada Lovelace\n"
        "Subject: An engine\n"
        "\n"
        "Message:\n"
        "Dear Charles,\n"
        "\n"
        "it <b>works</b> & {{ hums }}.\n"
        "Ada\n"
        "\n"
        "colour: blue\n"
        "\n"
        "size:\n"
        "1\n"
        "2\n"
        "\n"
        "--\n"
        "Replying to this email answers Ada Lovelace.\n"
        "Page: https://site.example/write\n"
        "Received: 15 January 2027, 12:00 UTC\n"
        "Network: 203.0.113.0\n"
    )


@pytest.mark.parametrize(
    ("form", "subject"),
    [
        ({"subject": "Hi"}, "[site.example] Hi"),
        ({"_subject": "Hi"}, "[site.example] Hi"),
        ({"name": "Ada"}, "[site.example] Message from Ada"),
        ({}, "[site.example] Message from ada@example.com"),
        ({"subject": "a\nBcc: x@y.example"}, "[site.example] a Bcc: x@y.example"),
        ({"subject": "tab\tand\x07bell"}, "[site.example] tab andbell"),
        ({"subject": "Grüße 👋"}, "[site.example] Grüße 👋"),
        ({"subject": "{{ 7 * 7 }}"}, "[site.example] {{ 7 * 7 }}"),
        ({"subject": "a\u2028b"}, "[site.example] a b"),
    ],
    ids=[
        *("subject", "_subject", "name", "address", "newline", "controls", "unicode"),
        *("template", "line-separator"),
    ],
)
def test_the_subject_says_what_it_is_about(
    desk: Desk, form: dict[str, str], subject: str
) -> None:
    assert mailed(desk, **form)["Subject"] == subject


def test_a_subject_has_at_most_255_characters(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(site_name="s" * 100)
    mail = mailed(desk, subject="x" * 200)
    assert mail["Subject"] == f"[{'s' * 100}] {'x' * 152}"
    assert "x" * 200 in mail["TextPart"]  # nothing is lost


def test_no_address_that_a_visitor_chose_is_a_sender_or_reader(desk: Desk) -> None:
    mail = mailed(
        desk,
        **{
            name: "evil@example.com"
            for name in ("to", "cc", "bcc", "_cc", "ccemail", "from", "_autoresponse")
        },
    )
    assert set(mail) == {
        *("From", "To", "ReplyTo", "Subject", "TextPart", "CustomID"),
        *("TrackOpens", "TrackClicks"),
    }
    assert "evil" not in str([mail["From"], mail["To"], mail["ReplyTo"]])


def test_doubtful_json_is_marked(desk: Desk) -> None:
    mailed(desk)
    Message.update(doubtful=True, spam_reasons='["much too kind"]').execute()
    Delivery.add("contact", Message.get().id, NOON)
    mail = desk.drain()[-1]
    assert mail["Subject"].startswith("[site.example] [maybe spam] Message from")
    assert "much too kind" in mail["TextPart"]


def test_the_confirmation_mail_says_who_why_and_what_next(desk: Desk) -> None:
    desk.post("/newsletter", {"email": EMAIL})
    [mail] = desk.drain()
    assert mail["Subject"] == "Please confirm your subscription to site.example"
    for part in (mail["TextPart"], mail["HTMLPart"]):
        assert "site.example" in part
        assert "7 days" in part
        assert "not you?" in part
        for purpose in ("confirm", "unsubscribe", "not-me"):
            assert part.count(f"https://desk.example/newsletter/{purpose}/") >= 1
    assert "<script" not in mail["HTMLPart"]
    assert "<img" not in mail["HTMLPart"]
    assert mail["TrackOpens"] == mail["TrackClicks"] == "disabled"


def test_the_digest_lists_what_was_held_with_links_that_deliver(
    desk: Desk, clock: Clock
) -> None:
    desk.post(
        "/contact",
        {"email": EMAIL, "name": "Bob", "message": "Buy\nnow", "_gotcha": "x"},
    )
    assert desk.drain() == []
    clock.advance(DAY)
    desk.app.outbox.go_round()
    [digest] = desk.drain()
    assert digest["To"] == [{"Email": "owner@site.example"}]
    assert digest["Subject"] == "[site.example] 1 message held as spam"
    assert "Bob <ada@example.com>" in digest["TextPart"]
    assert "Text: Buy" in digest["TextPart"]
    path = next(
        line.rpartition("https://desk.example")[2]
        for line in digest["TextPart"].splitlines()
        if "/release/" in line
    )
    assert "Buy\nnow" in desk.client.simulate_get(path).text
    assert len(desk.drain()) == 1
    for _ in range(2):
        assert desk.client.simulate_post(path).status_code == 200
    delivered = desk.drain()
    assert len(delivered) == 2
    assert "Buy\nnow" in delivered[1]["TextPart"]
    assert desk.messages()[0]["held"] is False


def test_without_keys_a_mail_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    LogTransport().send({**MAIL, "ReplyTo": {"Email": EMAIL}, "TextPart": "one\ntwo\n"})
    LogTransport().sync("77", EMAIL, "confirmed")
    assert capsys.readouterr().out == (
        "mail not sent, no Mailjet keys:\n"
        "  | To: owner@site.example\n"
        f"  | Reply-To: {EMAIL}\n"
        "  | Subject: Hello\n"
        "  | \n"
        "  | one\n"
        "  | two\n"
    )


def test_links_are_read_only_for_their_purpose() -> None:
    clock = Clock()
    links = Links(("k" * 32,), "https://desk.example", clock)
    token = links.token("confirm", ["id", "cycle"])
    clock.advance(90)
    assert links.read("confirm", token) == (["id", "cycle"], 90)
    for purpose in ("unsubscribe", "not-me", "release", "ask"):
        with pytest.raises(BadLinkError):
            links.read(purpose, token)
    with pytest.raises(BadLinkError):
        Links(("x" * 32,), "https://desk.example", clock).read("confirm", token)
    assert links.url("release", "id").startswith("https://desk.example/release/")


# --- Mailjet over http and https -------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_bundle(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(params=["http", "https"])
def stand_in(
    request: pytest.FixtureRequest,
    authority: trustme.CA,
    ca_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StandIn]:
    """Mailjet by both schemes: the client behaves differently by each."""
    tls = None
    if request.param == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(tls)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_bundle))
    with StandIn(tls) as stand_in:
        yield stand_in


@pytest.fixture
def transport(stand_in: StandIn) -> Iterator[Mailjet]:
    transport = Mailjet(("public", "private"), stand_in.url)
    yield transport
    for version in ("v3", "v3.1"):
        transport.client(version).close()


def test_a_mail_is_one_post_of_the_send_api(
    stand_in: StandIn, transport: Mailjet
) -> None:
    transport.send(MAIL)
    [request] = stand_in.requests
    assert (request.method, request.path) == ("POST", "/v3.1/send")
    assert request.key == "public:private"
    assert request.body == {"Messages": [MAIL]}


@pytest.mark.parametrize(
    ("standing", "action"),
    [
        ("confirmed", "addnoforce"),
        ("returned", "addforce"),
        ("left", "unsub"),
        ("erased", "remove"),
    ],
)
def test_a_list_change_is_one_post(
    stand_in: StandIn, transport: Mailjet, standing: str, action: str
) -> None:
    transport.sync("77", EMAIL, standing)
    [request] = stand_in.requests
    assert request.method == "POST"
    assert request.path == "/v3/REST/contactslist/77/managecontact"
    assert request.body == {"Email": EMAIL, "Action": action}


def in_message(status: int, code: str = "mj-0001", **more: Any) -> dict[str, Any]:
    error = {"StatusCode": status, "ErrorCode": code, "ErrorMessage": EMAIL, **more}
    return {"Messages": [{"Status": "error", "Errors": [error]}]}


OUTCOMES: dict[str, tuple[Answer, type[Exception]]] = {
    "401": (Answer(401, {"ErrorMessage": "no"}), KeysRefused),
    "403": (Answer(403, {}), KeysRefused),
    "400": (Answer(400, in_message(400)), Refused),
    "404": (Answer(404, {}), Refused),
    "413": (Answer(413, {}), Refused),
    "422": (Answer(422, {}), Refused),
    "reply-to": (Answer(400, in_message(400, "mj-0013")), RefusedReplyTo),
    "reply-to-named": (
        Answer(400, in_message(400, ErrorRelatedTo=["ReplyTo"])),
        RefusedReplyTo,
    ),
    "own-address": (
        Answer(400, in_message(400, "mj-0013", ErrorRelatedTo=["To[0].Email"])),
        Refused,
    ),
    "408": (Answer(408, {}), TryLater),
    "429": (Answer(429, {}), TryLater),
    "500": (Answer(500, b"<h1>oops</h1>"), TryLater),
    "502": (Answer(502, b""), TryLater),
    "503": (Answer(503, {}, {"Retry-After": "1"}), TryLater),
    "302": (Answer(302, {}, {"Location": "/elsewhere"}), TryLater),
    "307": (Answer(307, {}, {"Location": "/elsewhere"}), TryLater),
    "200-error": (Answer(200, in_message(400)), Refused),
    "200-reply-to": (Answer(200, in_message(400, "mj-0013")), RefusedReplyTo),
    "200-sender-refused": (Answer(200, in_message(403, "send-0008")), KeysRefused),
    "200-busy": (Answer(200, in_message(500)), TryLater),
    "200-html": (Answer(200, b"<html>login</html>"), TryLater),
    "200-empty": (Answer(200, b""), TryLater),
    "200-no-messages": (Answer(200, {"Messages": []}), TryLater),
    "200-list": (Answer(200, [1]), TryLater),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_mailjet_answers_and_what_follows(
    stand_in: StandIn, transport: Mailjet, name: str
) -> None:
    answer, outcome = OUTCOMES[name]
    stand_in.answer = lambda request: answer
    with pytest.raises((Refused, KeysRefused, TryLater)) as caught:
        transport.send(MAIL)
    assert type(caught.value) is outcome
    assert EMAIL not in str(caught.value)
    assert len(stand_in.requests) == 1  # the outbox retries, nobody else


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("99999999", MAX_RETRY_AFTER),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
        ("-1", 0),
    ],
)
def test_retry_after_is_obeyed_up_to_a_bound(
    stand_in: StandIn, transport: Mailjet, header: str, seconds: int
) -> None:
    stand_in.answer = lambda request: Answer(429, {}, {"Retry-After": header})
    with pytest.raises(TryLater) as caught:
        transport.send(MAIL)
    assert caught.value.retry_after == seconds
    assert len(stand_in.requests) == 1


@pytest.mark.slow
def test_a_mailjet_that_hangs_is_asked_once(
    stand_in: StandIn, transport: Mailjet
) -> None:
    transport.client("v3.1").config.timeout = (1, 0.2)
    over = threading.Event()
    stand_in.answer = lambda request: Answer(hang=over)
    with pytest.raises(NoAnswer):
        transport.send(MAIL)
    over.set()
    assert len(stand_in.requests) == 1


def test_a_refused_connection_is_tried_later() -> None:
    transport = Mailjet(("public", "private"), f"http://localhost:{free_port()}/")
    with pytest.raises(NoAnswer):
        transport.send(MAIL)
    transport.client("v3.1").close()


def test_a_certificate_of_a_stranger_is_never_accepted(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with StandIn(tls) as stand_in:
        transport = Mailjet(("public", "private"), stand_in.url)
        with pytest.raises(TryLater):
            transport.send(MAIL)
        assert stand_in.requests == []
        transport.client("v3.1").close()


SENDS = """
import sys
from frontdesk.mailjet import Mailjet
from frontdesk.outbox import TryLater
try:
    Mailjet(("public", "private"), sys.argv[1]).send({"Subject": "Hello"})
except TryLater:
    print("later")
"""


@pytest.mark.parametrize("stand_in", ["https"], indirect=True)
def test_a_process_of_its_own_sends_over_https(
    stand_in: StandIn, ca_bundle: Path
) -> None:
    env = {"PATH": os.environ["PATH"], "REQUESTS_CA_BUNDLE": str(ca_bundle)}
    command = [sys.executable, "-c", SENDS, stand_in.url]
    stand_in.answer = lambda request: Answer(503, {})
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    assert out.stdout == b"later\n"
    assert len(stand_in.requests) == 1
    stand_in.answer = success
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    assert out.stdout == b""
    assert len(stand_in.requests) == 2


# --- the doctor asks Mailjet -----------------------------------------------------


def asked(transport: Mailjet, **changes: Any) -> dict[str, bool]:
    settings = Settings(mail_from=Address("", "site@site.example"), **changes)
    links = Links(("k" * 32,), "https://desk.example", lambda: NOON)
    return {check.name: check.ok for check in transport.check(settings, links)}


@pytest.mark.parametrize(
    ("senders", "good"),
    [
        ([{"Email": "site@site.example", "Status": "Active"}], True),
        ([{"Email": "*@site.example", "Status": "Active"}], True),
        ([{"Email": "SITE@site.example", "Status": "Active"}], True),
        ([{"Email": "site@site.example", "Status": "Inactive"}], False),
        ([{"Email": "other@site.example", "Status": "Active"}], False),
        ([], False),
    ],
    ids=["exact", "domain", "case", "inactive", "other", "none"],
)
def test_the_doctor_looks_for_the_sender(
    stand_in: StandIn, transport: Mailjet, senders: list[Any], good: bool
) -> None:
    stand_in.answer = lambda request: Answer(body={"Data": senders})
    found = {"mailjet": True, "sender": good, "events": False}
    assert asked(transport) == found


@pytest.mark.parametrize(
    "answer",
    [Answer(401, {}), Answer(500, b""), Answer(200, b"<html>"), Answer(404, {})],
)
def test_the_doctor_survives_what_mailjet_answers(
    stand_in: StandIn, transport: Mailjet, answer: Answer
) -> None:
    stand_in.answer = lambda request: answer
    assert asked(transport, mailjet_list_id="77") == {"mailjet": False}


@pytest.mark.parametrize("there", [True, False])
def test_the_doctor_looks_for_the_list(
    stand_in: StandIn, transport: Mailjet, there: bool
) -> None:
    def answer(request: Request) -> Answer:
        if "/contactslist" in request.path and not there:
            return Answer(404, {})
        return Answer(body={"Data": []})

    stand_in.answer = answer
    assert asked(transport, mailjet_list_id="77")["list"] is there


# --- a Reply-To that Mailjet does not take ---------------------------------------


def test_a_refused_reply_to_is_dropped_and_the_mail_sent_again(desk: Desk) -> None:
    desk.mailbox.fail = lambda mail: (
        RefusedReplyTo("Mailjet answered 400") if "ReplyTo" in mail else None
    )
    mail = mailed(desk, name="Ada")
    assert "ReplyTo" not in mail
    assert f"refused {EMAIL} as the address to reply to" in mail["TextPart"]
    assert "Replying to this mail" not in mail["TextPart"]
    assert Delivery.select().count() == 0
    assert desk.messages()[0]["mailed_at"] is not None
