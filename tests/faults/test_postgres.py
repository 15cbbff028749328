"""Two machines share one Postgres, and it may drop connections at any time."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from frontdesk.tables import DAY
from tests.faults.conftest import (
    NO_LIMITS,
    Load,
    call,
    contact,
    eventually,
    hit,
    is_drained,
    signup,
    size,
)
from tests.support.desk import TOKEN, Desk
from tests.support.mailjet import StandIn
from tests.support.server import Server, mail_settings

pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def machines(
    database_url: str, serve: Callable[..., Server], mailjet: StandIn
) -> Callable[..., list[Server]]:
    """Start two servers on two ports, on one database."""

    def start(**settings: str) -> list[Server]:
        environ = {
            "DATABASE_URL": database_url,
            "TRUSTED_HOPS": "1",
            "SECRET_KEY": "k" * 32,
            "ADMIN_TOKEN": TOKEN,
            "WEB_CONCURRENCY": "1",
            "WEB_THREADS": "8",
            **mail_settings(mailjet),
            **settings,
        }
        return [serve(**environ) for _ in range(2)]

    return start


def test_limits_are_exact_across_machines(
    machines: Callable[..., list[Server]],
) -> None:
    servers = machines(CONTACT_LIMIT="5/hour")

    def post(n: int) -> int:
        client = f"192.0.2.{n % 10}"
        return call(servers[n % 3 % 2], "POST", *contact(), X_Forwarded_For=client)[0]

    with ThreadPoolExecutor(16) as pool:
        assert Counter(pool.map(post, range(200))) == {200: 50, 429: 150}


def test_a_repeated_submission_is_one_message_across_machines(
    machines: Callable[..., list[Server]], mailjet: StandIn, database_url: str
) -> None:
    servers = machines(**NO_LIMITS)

    def post(n: int) -> str:
        form = {"email": "ada@example.com", "message": f"Letter {n // 8}"}
        return json.loads(call(servers[n % 2], "POST", "/contact", form)[2])["id"]

    with ThreadPoolExecutor(16) as pool:
        ids = Counter(pool.map(post, range(80)))
    assert sorted(ids.values()) == [8] * 10
    mailjet.wait(10)
    eventually(lambda: is_drained(servers[0]))
    assert Counter(mail["CustomID"] for mail in mailjet.mails) == Counter([*ids])
    with connected(database_url) as connection:
        stored = connection.execute("SELECT id FROM message").fetchall()
    assert {row[0] for row in stored} == set(ids)


def test_one_digest_is_mailed_across_machines(
    desk: Desk, machines: Callable[..., list[Server]], mailjet: StandIn
) -> None:
    desk.clock.now = time.time() - DAY
    for _ in range(3):
        path, form = contact()
        desk.post(path, {**form, "_gotcha": "x"})
    servers = machines(WEB_CONCURRENCY="2")
    mailjet.wait(1)
    for server in servers:
        assert call(server, "POST", *contact())[0] == 200
    mailjet.wait(3)
    eventually(lambda: is_drained(servers[0]))
    digests = [m for m in mailjet.mails if "/release/" in m["TextPart"]]
    assert len(digests) == 1
    assert digests[0]["TextPart"].count("/release/") == 3


def test_mixed_writes_across_machines_have_equal_sums(
    machines: Callable[..., list[Server]], database_url: str
) -> None:
    first, second = machines(**NO_LIMITS)
    kinds = (contact, hit, signup)
    with Load(first, kinds, pause=0) as one, Load(second, kinds, pause=0) as two:
        eventually(lambda: len(one.ids) + len(two.ids) > size(100, 10_000), 3600)
    assert one.failures == two.failures == {}
    assert one.unanswered == two.unanswered == []
    hits = one.acknowledged("/hits") + two.acknowledged("/hits")
    with connected(database_url) as connection:
        sums = connection.execute(
            "SELECT (SELECT count(*) FROM message), (SELECT sum(hits) FROM page), "
            "(SELECT sum(hits) FROM hit WHERE page <> '*'), "
            "(SELECT sum(hits) FROM hit WHERE page = '*'), "
            "(SELECT count(*) FROM subscriber)"
        ).fetchone()
    people = one.acknowledged("/newsletter") + two.acknowledged("/newsletter")
    assert sums == (len(one.ids) + len(two.ids), hits, hits, hits, people)


def test_after_killed_backends_no_request_fails(
    machines: Callable[..., list[Server]], mailjet: StandIn, database_url: str
) -> None:
    server, other = machines(**NO_LIMITS)
    killed = rounds = 0
    ids = []
    while killed < size(20, 50) or rounds < 3:
        rounds += 1
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda _: call(server, "POST", *contact()), range(16))
            for status, _, body in answers:
                assert status == 200
                ids.append(json.loads(body)["id"])
        eventually(lambda: is_drained(other))
        with connected(database_url) as connection:
            rows = connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchall()
        killed += len(rows)
    assert call(server, "GET", "/health")[0] == 200
    with connected(database_url) as connection:
        stored = {row[0] for row in connection.execute("SELECT id FROM message")}
    assert set(ids) == stored
    assert set(ids) == {mail["CustomID"] for mail in mailjet.mails}
    print(f"{killed} backends killed, {len(ids)} requests")
