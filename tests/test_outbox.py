"""The outbox: what is queued goes out once, whatever happens on the way."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from frontdesk.database import current, execute
from frontdesk.deliveries import LEASE
from frontdesk.mailjet import TIMEOUT, Mailjet
from frontdesk.outbox import (
    BACKOFF,
    PAUSE,
    KeysRefused,
    NoAnswer,
    Outbox,
    Refused,
    TryLater,
    patience,
)
from frontdesk.settings import Window
from frontdesk.tables import DAY
from mail import Composer, handlers
from models import Delivery, Message, Subscriber
from owner import Daily
from tests.support.desk import NOON, Clock, Desk, Mailbox
from tests.support.mailjet import Answer, Request, StandIn, success

EMAIL = "ada@example.com"
SECONDS = 20  # bounds what only a failing test waits for


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A service whose rate limits are out of the way."""
    wide = (Window(10_000, 60),)
    return make_desk(contact_limit=wide, newsletter_limit=wide)


def write(desk: Desk, text: str = "Hello") -> str:
    """Send a message and return its id."""
    answer = desk.post("/contact", {"email": EMAIL, "message": text})
    assert answer.status_code == 200
    return str(answer.json["id"])


def waiting() -> list[dict[str, Any]]:
    return list(Delivery.select().order_by(Delivery.id).dicts())


def another_outbox(
    desk: Desk, transport: Any = None, **options: Any
) -> tuple[Outbox, Any]:
    """Return a second worker's outbox on the same database."""
    transport = transport or Mailbox()
    service = desk.app.service
    composer = Composer(desk.settings, service.links, service.site.pages)
    hand_over = handlers(desk.settings, composer, transport, composer.test)
    rounds = [Daily(desk.settings, service.limits)]
    outbox = Outbox(service.database, hand_over, rounds, desk.clock, **options)
    return outbox, transport


def failing(desk: Desk, error: Exception | None) -> None:
    desk.mailbox.fail = lambda mail: error


def failed_tries(desk: Desk, error: Exception) -> list[float]:
    """Let each try fail from now on, and return the growing list of their times."""
    tries: list[float] = []
    desk.mailbox.fail = lambda mail: tries.append(desk.clock()) or error
    return tries


# --- queueing --------------------------------------------------------------------


def test_a_message_and_its_mail_are_one_transaction(desk: Desk) -> None:
    execute("ALTER TABLE delivery RENAME TO gone")
    answer = desk.post("/contact", {"email": EMAIL, "message": "Hello"})
    assert answer.status_code == 503
    assert Message.select().count() == 0
    execute("ALTER TABLE gone RENAME TO delivery")
    # The failed one was not remembered as a double submission either.
    write(desk)
    assert len(desk.drain()) == 1


def test_a_sign_up_and_its_mail_are_one_transaction(desk: Desk) -> None:
    execute("ALTER TABLE delivery RENAME TO gone")
    assert desk.post("/newsletter", {"email": EMAIL}).status_code == 503
    assert Subscriber.select().count() == 0
    execute("ALTER TABLE gone RENAME TO delivery")
    desk.post("/newsletter", {"email": EMAIL})
    assert len(desk.drain()) == 1


def test_what_is_delivered_is_gone_from_the_queue(desk: Desk) -> None:
    message_id = write(desk)
    [row] = waiting()
    assert (row["kind"], row["ref"], row["due_at"]) == ("contact", message_id, NOON)
    assert Message.get().mailed_at is None
    assert len(desk.drain()) == 1
    assert waiting() == []
    assert Message.get().mailed_at == NOON
    assert len(desk.drain()) == 1


def test_the_oldest_goes_first(desk: Desk, clock: Clock) -> None:
    for n in range(4):
        write(desk, f"text {n}")
        clock.advance(1)
    texts = [mail["TextPart"] for mail in desk.drain()]
    assert all(f"text {n}" in text for n, text in enumerate(texts))


def test_what_was_erased_meanwhile_is_not_sent(desk: Desk) -> None:
    write(desk)
    Message.delete().execute()
    assert desk.drain() == []
    assert waiting() == []


# --- trouble that passes ---------------------------------------------------------


def test_a_failed_try_is_repeated_later_and_later(desk: Desk, clock: Clock) -> None:
    write(desk)
    failing(desk, TryLater("Mailjet answered 500"))
    tries = failed_tries(desk, TryLater("no"))
    for _ in range(4):
        desk.drain()
        desk.drain()  # not before it is due
        clock.now = waiting()[0]["due_at"]
    waits = [later - earlier for earlier, later in pairwise(tries)]
    assert waits == list(BACKOFF[:3])
    assert waiting()[0]["error"] == "no"
    assert desk.health()["outbox"]["waiting"] == 1
    failing(desk, None)
    assert len(desk.drain()) == 1
    assert waiting() == []


def test_the_waits_grow_from_seconds_to_hours_for_three_days() -> None:
    assert BACKOFF[0] <= 10
    assert list(BACKOFF) == sorted(BACKOFF)
    assert 3600 <= BACKOFF[-1] <= DAY
    assert 3 * DAY <= sum(BACKOFF) <= 3.5 * DAY


def test_after_three_days_a_mail_is_dead_and_kept(desk: Desk, clock: Clock) -> None:
    write(desk)
    failing(desk, TryLater("Mailjet answered 500"))
    for _ in range(len(BACKOFF) + 1):
        desk.drain()
        clock.now = waiting()[0]["due_at"] or clock.now
    assert clock() - NOON == sum(BACKOFF)
    [row] = waiting()
    assert row["due_at"] is None
    assert row["error"] == "Mailjet answered 500, for three days"
    outbox = desk.health()["outbox"]
    assert (outbox["waiting"], outbox["oldest_seconds"], outbox["dead"]) == (0, 0, 1)
    failing(desk, None)
    clock.advance(DAY)
    assert desk.drain() == []
    assert desk.messages()[0]["mailed_at"] is None


def test_retry_after_is_waited_for(desk: Desk, clock: Clock) -> None:
    write(desk)
    failing(desk, TryLater("Mailjet answered 429", 120))
    desk.drain()
    assert waiting()[0]["due_at"] == NOON + 120


def test_one_in_trouble_does_not_keep_the_others(desk: Desk) -> None:
    write(desk, "poison")
    write(desk, "fine")
    desk.mailbox.fail = lambda mail: (
        TryLater("no") if "poison" in mail["TextPart"] else None
    )
    assert len(desk.drain()) == 1
    assert len(waiting()) == 1


def test_an_error_nobody_thought_of_is_tried_later(desk: Desk) -> None:
    write(desk)
    failing(desk, ZeroDivisionError("ada@example.com"))
    desk.drain()
    [row] = waiting()
    assert row["due_at"] == NOON + BACKOFF[0]
    assert row["error"] == "ZeroDivisionError"


# --- trouble that stays ----------------------------------------------------------


def test_a_permanent_refusal_is_dead_at_once_and_kept(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    write(desk)
    failing(desk, Refused("Mailjet answered 413"))
    desk.drain()
    [row] = waiting()
    assert (row["due_at"], row["error"]) == (None, "Mailjet answered 413")
    assert desk.health()["outbox"]["dead"] == 1
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "is dead, Mailjet answered 413" in record.getMessage()
    assert len(desk.messages()) == 1


def test_refused_keys_pause_the_queue_and_lose_nothing(
    desk: Desk, clock: Clock
) -> None:
    for n in range(3):
        write(desk, f"text {n}")
    tries = failed_tries(desk, KeysRefused("401"))
    for _ in range(3):
        desk.drain()
        desk.drain()
    assert tries == [NOON]  # one try found out
    assert desk.health()["outbox"]["waiting"] == 3
    for _ in range(200):  # for days
        clock.advance(PAUSE + DAY / 20)
        desk.drain()
    assert len(tries) == 201
    failing(desk, None)
    clock.advance(PAUSE)
    assert len(desk.drain()) == 3
    assert waiting() == []


def test_where_nobody_answers_one_try_finds_out(desk: Desk, clock: Clock) -> None:
    for n in range(3):
        write(desk, f"text {n}")
    tries = failed_tries(desk, NoAnswer("refused"))
    for _ in range(3):
        desk.drain()
        write(desk, f"one more at {clock()}")
        desk.drain()
        clock.advance(BACKOFF[0])
    assert tries == [NOON, NOON + BACKOFF[0], NOON + 2 * BACKOFF[0]]
    failing(desk, None)
    assert len(desk.drain()) > 3
    clock.advance(sum(BACKOFF[:3]))
    assert len(desk.drain()) == 6
    assert waiting() == []


def test_a_backlog_leaves_the_processor_to_visitors(desk: Desk) -> None:
    for n in range(4):
        write(desk, f"text {n}")

    def work(mail: dict[str, Any]) -> None:
        started = time.thread_time()
        while time.thread_time() < started + 0.005:
            pass

    desk.mailbox.fail = work
    desk.app.outbox.visitor_came()
    wall, busy = time.monotonic(), time.thread_time()
    assert len(desk.drain()) == 4
    wall, busy = time.monotonic() - wall, time.thread_time() - busy
    assert wall > 4 * busy


def test_a_backlog_goes_out_without_a_rest_where_nobody_visits(desk: Desk) -> None:
    rests: list[float] = []
    outbox, mailbox = another_outbox(desk, sleep=rests.append)
    for n in range(4):
        write(desk, f"text {n}")
    outbox.drain()
    assert (len(mailbox.mails), rests) == (4, [])
    outbox.visitor_came()
    for n in range(4):
        write(desk, f"more {n}")
    outbox.drain()
    assert (len(mailbox.mails), len(rests)) == (8, 4)


def test_the_first_delivery_imports_bit_by_bit_where_the_processor_is_shared(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bit_one", "bit_two"):  # kept waiting, as a share of a core is
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(0.05)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    bits, rests = ("bit_one", "bit_two"), []

    def rest(seconds: float) -> None:
        rests.append((seconds, [name for name in bits if name in sys.modules]))

    outbox, mailbox = another_outbox(desk, sleep=rest, modules=bits)
    outbox.drain()
    assert rests == []  # nothing is due
    write(desk)
    outbox.drain()
    write(desk, "Another")
    outbox.drain()
    assert [loaded for _, loaded in rests] == [["bit_one"], ["bit_one", "bit_two"]]
    assert all(seconds > 0.04 for seconds, _ in rests)
    assert len(mailbox.mails) == 2


def test_mailjets_events_and_the_platform_are_no_visitors(desk: Desk) -> None:
    outbox = desk.app.outbox
    before = outbox._visitor_at
    token = desk.app.service.links.token("mailjet", "events")
    desk.client.simulate_post(f"/mailjet/{token}", json=[])
    desk.client.simulate_get("/health")
    assert outbox._visitor_at == before
    desk.client.simulate_get("/hits.gif?page=/")
    assert outbox._visitor_at > before


# --- sharing ---------------------------------------------------------------------


def test_a_claimed_delivery_is_nobody_elses(desk: Desk, clock: Clock) -> None:
    write(desk)
    first = Delivery.claim(clock())
    assert first is not None
    assert Delivery.claim(clock()) is None
    clock.advance(LEASE - 1)
    assert Delivery.claim(clock()) is None


def test_who_dies_with_a_delivery_leaves_it_to_the_others(
    desk: Desk, clock: Clock
) -> None:
    write(desk)
    Delivery.claim(clock())  # and never comes back
    assert desk.drain() == []
    clock.advance(LEASE)
    assert len(desk.drain()) == 1
    assert waiting() == []


def test_who_comes_back_after_the_lease_changes_nothing(
    desk: Desk, clock: Clock
) -> None:
    write(desk)
    slow = Delivery.claim(clock())
    assert slow is not None
    clock.advance(LEASE)
    quick = Delivery.claim(clock())
    assert quick is not None
    before = waiting()
    slow.put_back(None, "too late", 1)
    slow.done(clock())
    assert waiting() == before
    assert Message.get().mailed_at is None
    quick.done(clock())
    assert waiting() == []
    assert Message.get().mailed_at == clock()


def test_a_lease_is_longer_than_the_worst_attempt() -> None:
    assert 2 * sum(TIMEOUT) < LEASE


def test_many_outboxes_send_everything_once(desk: Desk) -> None:
    for n in range(40):
        write(desk, f"text {n:02}")
    pairs = [another_outbox(desk) for _ in range(4)]
    ready = threading.Barrier(len(pairs))

    def work(outbox: Outbox) -> None:
        ready.wait(SECONDS)
        outbox.drain()
        current().hang_up()

    threads = [threading.Thread(target=work, args=(outbox,)) for outbox, _ in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    sent = [mail["CustomID"] for _, mailbox in pairs for mail in mailbox.mails]
    assert len(sent) == len(set(sent)) == 40
    assert waiting() == []


# --- the thread ------------------------------------------------------------------


class Gate:
    """A transport that says when it was asked, and answers when it may."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.may = threading.Event()
        self.mails: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.asked.release()
        assert self.may.wait(SECONDS)
        self.mails.append(message)


def closing(outbox: Outbox) -> None:
    """End an outbox's thread, and its connection with it."""
    outbox.stop(SECONDS)
    assert outbox._thread is not None
    outbox._thread.join(SECONDS)
    assert not outbox._thread.is_alive()


@pytest.fixture
def ticking(desk: Desk) -> Callable[[Any], Outbox]:
    """Start an outbox in a thread of its own."""

    def start(transport: Any) -> Outbox:
        outbox, _ = another_outbox(desk, transport)
        outbox.start()
        return outbox

    return start


def test_what_waited_goes_out_at_start_and_what_comes_at_a_nudge(
    desk: Desk, ticking: Callable[[Any], Outbox]
) -> None:
    write(desk, "before")
    gate = Gate()
    gate.may.set()
    outbox = ticking(gate)
    assert gate.asked.acquire(timeout=SECONDS)
    write(desk, "after")
    outbox.nudge()
    assert gate.asked.acquire(timeout=SECONDS)
    closing(outbox)
    before, after = (mail["TextPart"] for mail in gate.mails)
    assert "before" in before
    assert "after" in after
    assert waiting() == []


def test_stopping_hands_back_what_hangs(
    desk: Desk, ticking: Callable[[Any], Outbox]
) -> None:
    write(desk)
    gate = Gate()
    outbox = ticking(gate)
    assert gate.asked.acquire(timeout=SECONDS)
    outbox.stop(0.05)
    [row] = waiting()
    assert (row["due_at"], row["attempts"], row["lease"]) == (NOON, 0, None)
    # Somebody else delivers it at once.
    assert len(desk.drain()) == 1
    gate.may.set()
    closing(outbox)
    assert waiting() == []


def test_stopping_lets_a_delivery_finish(
    desk: Desk, ticking: Callable[[Any], Outbox]
) -> None:
    write(desk)
    write(desk, "another")
    gate = Gate()
    outbox = ticking(gate)
    assert gate.asked.acquire(timeout=SECONDS)
    stopper = threading.Thread(target=outbox.stop, args=(SECONDS,))
    stopper.start()
    gate.may.set()
    stopper.join(SECONDS)
    closing(outbox)
    assert len(gate.mails) <= 2
    assert len(waiting()) == 2 - len(gate.mails)
    assert all(row["lease"] is None for row in waiting())


def test_an_outbox_survives_a_database_in_trouble(
    desk: Desk, ticking: Callable[[Any], Outbox], caplog: pytest.LogCaptureFixture
) -> None:
    execute("ALTER TABLE delivery RENAME TO gone")
    outbox = ticking(Gate())
    outbox.nudge()
    closing(outbox)
    execute("ALTER TABLE gone RENAME TO delivery")


def test_what_is_due_later_waits_for_no_pause_of_the_visits(
    desk: Desk, clock: Clock
) -> None:
    write(desk)
    row = Delivery.get()
    row.due_at = clock() + 0.1
    row.save()
    outbox, mailbox = another_outbox(desk, loads=[lambda: None])
    outbox.visitor_came()
    outbox.start()
    give_up_at = time.monotonic() + SECONDS
    while not mailbox.mails and time.monotonic() < give_up_at:
        outbox.visitor_came()
        clock.advance(0.01)
        time.sleep(0.01)  # between visits
    outbox.stop(SECONDS)
    assert len(mailbox.mails) == 1


def test_a_daily_round_that_fails_keeps_no_mail_waiting(
    desk: Desk, ticking: Callable[[Any], Outbox]
) -> None:
    execute("ALTER TABLE visitor RENAME TO gone")
    gate = Gate()
    gate.may.set()
    outbox = ticking(gate)
    for n in range(2):  # before the daily round, and after it has failed
        write(desk, str(n))
        outbox.nudge()
        assert gate.asked.acquire(timeout=SECONDS)
    closing(outbox)
    execute("ALTER TABLE gone RENAME TO visitor")


# --- the contact list ------------------------------------------------------------


def test_the_list_gets_the_state_of_now_not_of_then(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(mailjet_list_id="77")
    desk.post("/newsletter", {"email": EMAIL})
    desk.drain()
    row = Subscriber.get()
    Subscriber.confirm(row.id, row.cycle, clock(), sync=True)
    Subscriber.leave(row.id, clock(), sync=True)
    assert [r["kind"] for r in waiting()] == ["list", "list"]
    desk.drain()
    assert desk.mailbox.synced == [("77", EMAIL, "left")] * 2
    assert waiting() == []


def test_leaving_takes_the_old_spelling_off_the_list(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(mailjet_list_id="77")
    other = "ada+x@example.com"
    for email in (other, EMAIL):  # of one mailbox: left while Mailjet was away
        desk.post("/newsletter", {"email": email})
        desk.drain()
        row = Subscriber.get()
        Subscriber.confirm(row.id, row.cycle, clock(), sync=True)
        if email == other:
            desk.drain()
            Subscriber.leave(row.id, clock(), sync=True)
            Delivery.update(due_at=clock() + 2 * DAY).execute()
            clock.advance(DAY)
    clock.advance(DAY)
    desk.drain()
    assert desk.mailbox.synced == [
        ("77", other, "confirmed"),
        ("77", EMAIL, "returned"),
        ("77", other, "left"),
    ]


def test_a_list_change_is_dropped_when_there_is_no_list_any_more(desk: Desk) -> None:
    Delivery.add("list", EMAIL, NOON)
    desk.drain()
    assert desk.mailbox.synced == []
    assert waiting() == []


# --- the daily round -------------------------------------------------------------


def hold(desk: Desk, text: str) -> None:
    answer = desk.post("/contact", {"email": EMAIL, "message": text, "_gotcha": "x"})
    assert answer.status_code == 200


def test_the_digest_comes_once_a_day_for_all_workers(desk: Desk, clock: Clock) -> None:
    hold(desk, "one")
    hold(desk, "two")
    other, _ = another_outbox(desk)
    desk.app.outbox.go_round()
    assert desk.drain() == []  # today is not over
    clock.advance(DAY)
    for _ in range(2):
        desk.app.outbox.go_round()
        other.go_round()
    [digest] = desk.drain()
    assert "2 messages held" in digest["Subject"]
    clock.advance(DAY)
    desk.app.outbox.go_round()
    assert len(desk.drain()) == 1  # nothing new was held


def test_a_restart_brings_no_second_digest(desk: Desk, clock: Clock) -> None:
    hold(desk, "one")
    clock.advance(DAY)
    desk.app.outbox.go_round()
    hold(desk, "later")
    restarted, _ = another_outbox(desk)
    restarted.go_round()
    assert len(desk.drain()) == 1


def test_the_daily_round_deletes_old_messages(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(retention_days=10)
    write(desk, "old")
    desk.drain()
    clock.advance(10 * DAY - 60)
    write(desk, "new")
    desk.app.outbox.go_round()
    assert len(desk.messages()) == 2
    clock.advance(DAY)
    desk.app.outbox.go_round()
    assert [row["message"] for row in desk.messages()] == ["new"]


# --- through Mailjet's client ----------------------------------------------------


@pytest.fixture
def through_mailjet(
    make_desk: Callable[..., Desk], mailjet: StandIn
) -> Iterator[tuple[Desk, Outbox]]:
    desk = make_desk(mailjet_list_id="77")
    transport = Mailjet(("public", "private"), mailjet.url)
    outbox, _ = another_outbox(desk, transport)
    yield desk, outbox
    for version in ("v3", "v3.1"):
        transport.client(version).close()


def test_one_try_is_one_post(
    through_mailjet: tuple[Desk, Outbox], mailjet: StandIn, clock: Clock
) -> None:
    desk, outbox = through_mailjet
    write(desk)
    mailjet.answer = lambda request: Answer(500, b"")
    for count in (1, 2, 3):
        outbox.drain()
        outbox.drain()
        assert len(mailjet.requests) == count
        clock.now = waiting()[0]["due_at"]
    mailjet.answer = success
    outbox.drain()
    assert len(mailjet.mails) == 4
    assert waiting() == []


def test_a_reply_to_that_mailjet_refuses_costs_two_posts(
    through_mailjet: tuple[Desk, Outbox], mailjet: StandIn
) -> None:
    desk, outbox = through_mailjet

    def answer(request: Request) -> Answer:
        if "ReplyTo" not in request.message:
            return success(request)
        error = {"ErrorCode": "mj-0013", "StatusCode": 400, "ErrorRelatedTo": ["x"]}
        return Answer(400, {"Messages": [{"Status": "error", "Errors": [error]}]})

    mailjet.answer = answer
    write(desk)
    outbox.drain()
    assert ["ReplyTo" in mail for mail in mailjet.mails] == [True, False]
    assert EMAIL in mailjet.mails[1]["TextPart"]
    assert waiting() == []
    assert Message.get().mailed_at == NOON


@pytest.mark.parametrize(
    ("status", "paused", "dead"),
    [(401, True, False), (403, True, False), (400, False, True), (422, False, True)],
)
def test_refusals_pause_or_bury(
    through_mailjet: tuple[Desk, Outbox],
    mailjet: StandIn,
    status: int,
    paused: bool,
    dead: bool,
) -> None:
    desk, outbox = through_mailjet
    write(desk)
    write(desk, "another")
    mailjet.answer = lambda request: Answer(status, {})
    outbox.drain()
    assert len(mailjet.requests) == (1 if paused else 2)
    assert [row["due_at"] is None for row in waiting()] == [dead, dead]


def test_a_message_that_mailjet_refused_did_not_arrive_and_can_be_sent_again(
    desk: Desk, clock: Clock
) -> None:
    message_id = write(desk)
    failing(desk, Refused("Mailjet answered 400"))
    desk.drain()
    message = Message.get_by_id(message_id)
    assert (message.state, message.delivery_reason) == (
        "undelivered",
        "Mailjet answered 400",
    )
    assert Message.between(clock() - DAY, clock() + DAY)["undelivered"] == 1
    failing(desk, None)
    for _ in range(2):  # again is harmless
        Message.deliver(message_id, clock())
    [mail] = desk.drain()
    assert mail["CustomID"] == message_id
    assert Message.get_by_id(message_id).state == "mailed"
    assert waiting() == []


# --- the log ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        TryLater("Mailjet answered 500"),
        Refused("Mailjet answered 400"),
        KeysRefused("Mailjet answered 401"),
        ValueError("ada@example.com wrote: the secret text"),
    ],
    ids=["later", "refused", "keys", "unexpected"],
)
def test_the_log_holds_nothing_personal(
    desk: Desk, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    caplog.set_level(logging.DEBUG)
    desk.post(
        "/contact", {"email": EMAIL, "name": "Lovelace", "message": "the secret text"}
    )
    desk.post("/newsletter", {"email": EMAIL})
    failing(desk, error)
    desk.drain()
    desk.client.simulate_get("/newsletter/confirm/a-token-of-somebody?page=/private")
    formatter = logging.Formatter("%(message)s")
    log = "\n".join(
        formatter.format(record)
        for record in caplog.records
        if record.name.startswith("frontdesk")
    )
    assert "outbox" in log
    for private in ("ada@", "Lovelace", "secret", "a-token", "/private", "127.0"):
        assert private not in log


def test_a_request_delivers_what_others_stored_while_it_was_busy(
    desk: Desk, clock: Clock
) -> None:
    sent: list[str] = []
    came: list[Outbox] = []

    def round_of_the_first(now: float) -> None:
        while came:  # another request, that stores a message and does not wait
            write(desk)
            other = came.pop()
            other.nudge()
            other.deliver_now()

    outbox = Outbox(
        desk.app.service.database,
        {"contact": sent.append},
        [round_of_the_first],
        clock,
        in_requests=True,
    )
    came.append(outbox)
    outbox.deliver_now()
    assert len(sent) == 1


def test_a_request_whose_time_is_over_makes_no_round(desk: Desk) -> None:
    made: list[float] = []
    database = desk.app.service.database
    outbox = Outbox(database, {}, [made.append], in_requests=True)
    with patience.within(0):
        outbox.go_round()
    assert made == []
    outbox.go_round()
    assert len(made) == 1
