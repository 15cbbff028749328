"""A success is true: what is answered with one is stored, and no one takes all room."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from frontdesk.database import execute
from frontdesk.settings import Window
from models import DIGEST_ITEMS, HELD_PER_HOUR, SHARE, Message
from tests.support.desk import FULL, Desk
from tests.test_abuse import (
    BLATANT,
    BROWSER,
    DOUBTFUL,
    HONEST,
    SCRIPT,
    Form,
    address,
    next_day,
    post_from,
    urlencoded,
)

HOUR = 3600
LONG = "Cheap pills for everyone. " * 380  # of the longest that is taken


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A service whose rate limits are out of the way."""
    return make_desk(contact_limit=(Window(100_000, 60),))


def spam(desk: Desk, client: str, text: str) -> str:
    """Send spam and return the status."""
    status, _, _ = post_from(desk.app, client, {**BLATANT, "message": text})
    return status[:3]


# --- 2xx implies a row -----------------------------------------------------------


@contextmanager
def failing(table: str) -> Iterator[None]:
    """Let every statement on a table fail."""
    execute(f"ALTER TABLE {table} RENAME TO gone")
    try:
        yield
    finally:
        execute(f"ALTER TABLE gone RENAME TO {table}")


class Walk:
    """Submissions of all kinds, in any order, from few and many clients."""

    def __init__(self, desk: Desk, seed: int) -> None:
        self.desk = desk
        self.pick = random.Random(seed)
        self.sent: list[tuple[dict[str, Any], dict[str, str], str]] = []
        self.statuses: set[int] = set()

    def step(self, n: int) -> None:
        """Submit something, and compare the answer with what is stored."""
        pick = self.pick
        if self.sent and pick.random() < 0.2:
            form, headers, client = pick.choice(self.sent)  # again
        else:
            kind = pick.choice([HONEST, DOUBTFUL, BLATANT, BLATANT])
            text = LONG if pick.random() < 0.2 else kind["message"]
            form = {**kind, "message": f"{text} {n}", "number": str(n)}
            headers = dict(pick.choice([SCRIPT, BROWSER]))
            if pick.random() < 0.2:
                headers["Idempotency-Key"] = str(pick.randrange(5))
            client = pick.choice(["192.0.2.1", "192.0.2.2", address(n % 300)])
            self.sent.append((form, headers, client))
        table = pick.choice(["message", "delivery", "receipt", "tally"])
        with failing(table) if pick.random() < 0.15 else nullcontext():
            answer = self.submit(form, headers, client)
            if answer.status_code == 422:  # asked once: press the button
                self.desk.clock.advance(2)
                page = Form(answer.text)
                answer = self.submit(dict(page.inputs), headers, client)
        self.check(answer, form)

    def submit(self, form: dict[str, Any], headers: dict[str, str], client: str) -> Any:
        body: dict[str, Any] = {"json": form}
        if "Sec-Fetch-Mode" in headers:
            body = urlencoded(form.items())
        return self.desk.client.simulate_post(
            "/contact", **body, headers=headers, remote_addr=client
        )

    def check(self, answer: Any, form: dict[str, Any]) -> None:
        self.statuses.add(answer.status_code)
        holds = Message.fields.contains(f'"{form["number"]}"')
        rows = {row.id: row for row in Message.select().where(holds)}
        if answer.status_code in (200, 303):
            assert rows
            assert answer.status_code == 303 or answer.json["id"] in rows
            for row in rows.values():
                assert row.held_at or row.mailed_at or self.is_queued(row.id)
        else:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
        if answer.status_code == 503 and "Too many messages" in answer.text:
            page = answer.headers["content-type"].startswith("text/html")
            assert not page or form["message"] in answer.text

    @staticmethod
    def is_queued(message_id: str) -> bool:
        sql = "SELECT count(*) FROM delivery WHERE kind = 'contact' AND ref = ?"
        return execute(sql, message_id).fetchone()[0] == 1


@pytest.mark.parametrize("seed", range(20 if FULL else 3))
def test_a_success_means_a_row(desk: Desk, seed: int) -> None:
    walk = Walk(desk, seed)
    for n in range(400):
        walk.step(n)
        if n % 150 == 149:
            desk.drain()
            desk.clock.advance(HOUR)
    assert walk.statuses == {200, 303, 503}


# --- over the ceilings -----------------------------------------------------------


def test_over_the_ceiling_nobody_is_told_a_success(desk: Desk) -> None:
    desk.clock.advance(600)
    for i in range(HELD_PER_HOUR):
        assert spam(desk, address(i), f"Pills {i}") == "200"
    form = {**BLATANT, "message": "Pills for you"}
    for _ in range(2):  # and a repeat is not taken for a stored one
        answer = desk.post("/contact", form, **SCRIPT)
        assert answer.status_code == 503
        assert answer.json["errors"][0]["code"] == "NOT_STORED"
        assert answer.headers["retry-after"] == str(HOUR - 600)
    assert len(desk.messages()) == HELD_PER_HOUR
    desk.clock.advance(HOUR - 600)
    assert desk.post("/contact", form, **SCRIPT).status_code == 200


def test_what_was_typed_is_given_back(desk: Desk) -> None:
    for i in range(HELD_PER_HOUR):
        spam(desk, address(i), f"Pills {i}")
    answer = desk.client.simulate_post(
        "/contact", **urlencoded(BLATANT.items()), headers=BROWSER
    )
    assert answer.status_code == 503
    assert "Cheap pills\nfor everyone" in answer.text.replace("\r\n", "\n")


@pytest.mark.parametrize("network", ["192.0.2.{}", "2001:db8:7:{:x}::1"])
def test_one_network_takes_a_small_part_of_the_room(desk: Desk, network: str) -> None:
    share = HELD_PER_HOUR // SHARE
    taken = [spam(desk, network.format(i), f"Pills {i}") for i in range(2 * share)]
    assert taken == ["200"] * share + ["503"] * share
    others = [
        spam(desk, address(i), f"Others' pills {i}")
        for i in range(HELD_PER_HOUR - share)
    ]
    assert set(others) == {"200"}  # what was refused has taken nothing
    assert spam(desk, "198.51.100.9", "No room at all") == "503"


def test_six_long_ones_of_one_client_cost_nobody_a_message(desk: Desk) -> None:
    for i in range(6):
        spam(desk, "192.0.2.1", f"{LONG} {i}")
    doubtful = {**DOUBTFUL, "message": f"{DOUBTFUL['message']} Really."}
    status, _, _ = post_from(desk.app, "198.51.100.7", doubtful)
    assert status == "200 OK"
    assert spam(desk, "198.51.100.8", LONG) == "200"


def test_the_longest_message_finds_room_where_it_is_alone(desk: Desk) -> None:
    form = {**BLATANT, **{f"field {n}": '"' * 1900 for n in range(15)}}
    assert desk.post("/contact", form).status_code == 200
    assert len(desk.messages()) == 1


def test_networks_that_find_no_room_leave_nothing_behind(desk: Desk) -> None:
    def tallies() -> int:
        return int(execute("SELECT count(*) FROM tally").fetchone()[0])

    for i in range(HELD_PER_HOUR + 1):
        spam(desk, address(i), f"Pills {i}")
    before = tallies()
    for i in range(200, 300):
        assert spam(desk, address(i), f"Pills {i}") == "503"
    assert tallies() == before


# --- the digest forgets nobody ---------------------------------------------------


def listed(mail: dict[str, Any]) -> int:
    return len(re.findall(r"https://desk\.example/release/\S+", mail["TextPart"]))


def test_junk_after_midnight_pushes_nobody_out(desk: Desk) -> None:
    desk.clock.advance(12 * HOUR)  # midnight
    for i in range(6 * DIGEST_ITEMS):
        spam(desk, f"192.0.2.{i % 250}", f"Junk {i}")
        if i % 10 == 9:
            desk.clock.advance(HOUR / 2)
    honest = {**HONEST, "name": "Grace", "_gotcha": "a browser filled this in"}
    assert post_from(desk.app, "198.51.100.7", honest)[0] == "200 OK"
    assert "Grace" in next_day(desk)[0]["TextPart"]


def test_every_held_message_is_listed_some_day(desk: Desk) -> None:
    for i in range(130):
        spam(desk, address(i % 90), f"Junk {i}")
        desk.clock.advance(60)
    assert len(desk.messages()) == 130
    mails = [next_day(desk) for _ in range(4)]
    counts = [[listed(mail) for mail in day] for day in mails]
    assert counts == [[50], [50], [30], []]
    texts = "".join(mail["TextPart"] for day in mails for mail in day)
    assert len(set(re.findall(r"Text: Junk (\d+)", texts))) == 130


def test_a_digest_tells_of_what_was_not_kept_even_where_nothing_is_listed(
    desk: Desk,
) -> None:
    for i in range(HELD_PER_HOUR // SHARE + 3):
        spam(desk, "192.0.2.1", f"Junk {i}")
    for message in Message.select():
        Message.deliver(message.id, desk.clock())
    desk.drain()
    [mail] = next_day(desk)
    assert "3 messages held" in mail["Subject"] and listed(mail) == 0
