"""Many at once: nothing is locked out, lost, or counted twice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from playhouse.migrations import Runner

from frontdesk.database import open_database
from frontdesk.limits import LimitsFile
from tests.faults.conftest import (
    NO_LIMITS,
    Load,
    call,
    contact,
    eventually,
    hit,
    rows,
    signup,
    size,
)
from tests.support.databases import MEMORY
from tests.support.desk import Desk
from tests.support.mailjet import StandIn
from tests.support.server import ROOT, Server, mail_settings


def test_mixed_writes_are_all_stored_and_none_is_locked_out(
    serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    server = serve(
        WEB_CONCURRENCY="2", WEB_THREADS="8", **NO_LIMITS, **mail_settings(mailjet)
    )
    kinds = (contact, hit, signup)
    with Load(server, kinds, clients=16, pause=0) as load:
        eventually(lambda: load.answers.total() >= 500)
        load.go_on(size(0, 600))
    assert load.failures == {}
    assert load.unanswered == []
    assert "database:" not in server.log
    sums = (
        "SELECT (SELECT count(*) FROM message), (SELECT count(*) FROM subscriber), "
        "(SELECT sum(hits) FROM page), "
        "(SELECT sum(hits) FROM hit WHERE page <> '*'), "
        "(SELECT sum(hits) FROM hit WHERE page = '*')"
    )
    hits = load.acknowledged("/hits")
    expected = (len(load.ids), load.acknowledged("/newsletter"), hits, hits, hits)
    assert rows(tmp_path, sums) == [expected]
    print(
        f"{load.answers.total() / load.seconds:.0f} posts/s, "
        f"slowest {load.slowest * 1000:.0f} ms"
    )


# --- starting --------------------------------------------------------------------

# Forked when all is imported, so that they really meet.
STARTING = """
import os, sys, playhouse.migrations, psycopg
from frontdesk.database import open_database
url = sys.argv[1]
children = []
for _ in range(8):
    child = os.fork()
    if not child:
        open_database(url).migrate()
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
MIGRATIONS = sorted(
    path.stem for path in (ROOT / "frontdesk" / "migrations").glob("0*.py")
)


@pytest.mark.parametrize("older", [None, *MIGRATIONS[:-1]])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_processes_that_start_at_once_make_the_schema_once(
    kind: str, older: str | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    for number in range(size(2, 40)):
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path}/{number}.db"
        else:
            url = request.getfixturevalue("postgres").blank_url()
        if older is not None:
            with opened(url) as db:
                Runner(db, str(ROOT / "frontdesk" / "migrations")).up(older)
        command = [sys.executable, "-c", STARTING, url]
        subprocess.run(command, cwd=ROOT, check=True, timeout=60)
        with opened(url) as db:
            sql = "SELECT name FROM schema_migration ORDER BY name"
            assert [row[0] for row in db.execute_sql(sql).fetchall()] == MIGRATIONS


@contextmanager
def opened(url: str) -> Iterator[Any]:
    database = open_database(url)
    try:
        yield database.engine
    finally:
        database.close()


def test_servers_that_start_at_once_on_one_file_all_serve(
    serve: Callable[..., Server],
) -> None:
    servers = [serve(wait=False, **NO_LIMITS) for _ in range(size(4, 8))]
    for server in servers:
        eventually(lambda server=server: is_healthy(server))
        assert call(server, "POST", *contact())[0] == 200


def is_healthy(server: Server) -> bool:
    with suppress(ConnectionError):
        return call(server, "GET", "/health")[0] == 200
    return False


# --- rate limits -----------------------------------------------------------------


def forwarded(server: Server, client: str) -> int:
    """Post a message through one proxy and return the status."""
    return call(server, "POST", *contact(), X_Forwarded_For=client)[0]


@pytest.fixture
def limited(serve: Callable[..., Server]) -> Server:
    """A server of two workers, with five messages an hour for each client."""
    return serve(
        WEB_CONCURRENCY="2", WEB_THREADS="8", TRUSTED_HOPS="1", CONTACT_LIMIT="5/hour"
    )


def statuses(server: Server, clients: list[str]) -> Counter[int]:
    with ThreadPoolExecutor(16) as pool:
        return Counter(pool.map(lambda client: forwarded(server, client), clients))


def test_a_limit_is_exact_across_workers_and_threads(limited: Server) -> None:
    clients = [f"192.0.2.{n % 10}" for n in range(200)]
    assert statuses(limited, clients) == {200: 50, 429: 150}


def test_all_addresses_of_a_64_are_one_client(limited: Server) -> None:
    clients = [f"2001:db8::{n:x}:1" for n in range(size(100, 1000))]
    assert statuses(limited, clients) == {200: 5, 429: len(clients) - 5}
    assert forwarded(limited, "2001:db8:0:1::1") == 200


def test_forged_prefixes_of_x_forwarded_for_do_not_help(limited: Server) -> None:
    clients = [
        f"203.0.113.{n % 256}, 10.0.{n // 256}.1, 192.0.2.1"
        for n in range(size(100, 1000))
    ]
    assert statuses(limited, clients) == {200: 5, 429: len(clients) - 5}


def test_after_retry_after_the_next_request_passes_and_not_earlier(desk: Desk) -> None:
    def post() -> object:
        path, form = contact()
        return desk.post(path, form)

    answers = [post() for _ in range(6)]
    assert [a.status_code for a in answers] == [200] * 5 + [429]
    seconds = int(answers[-1].headers["Retry-After"])
    desk.clock.advance(seconds - 1)
    assert post().status_code == 429
    desk.clock.advance(1)
    assert post().status_code == 200


@pytest.fixture
def limits_path(tmp_path: Path) -> Iterator[Path]:
    """Where the limits of this test's SQLite file are kept; gone afterwards."""
    path = LimitsFile(tmp_path / "frontdesk.db").path
    yield path
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


def test_without_a_limiter_requests_are_still_answered(
    serve: Callable[..., Server], limits_path: Path
) -> None:
    limits_path.mkdir()
    server = serve(CONTACT_LIMIT="1/hour")
    assert [call(server, "POST", *contact())[0] for _ in range(3)] == [200] * 3
    assert "rate limits do not work" in server.log


def test_a_spoiled_limiter_holds_up_nobody(
    serve: Callable[..., Server], limits_path: Path
) -> None:
    server = serve(CONTACT_LIMIT="1/hour")
    assert call(server, "POST", *contact())[0] == 200
    limits_path.write_bytes(b"spoiled" * 1000)
    assert call(server, "POST", *contact())[0] in (200, 429)
    assert server.stop() == 0
    limits_path.write_bytes(b"spoiled" * 1000)
    server = serve(CONTACT_LIMIT="1/hour")
    assert [call(server, "POST", *contact())[0] for _ in range(3)] == [200] * 3


def test_limits_live_in_shared_memory_where_there_is_some(limits_path: Path) -> None:
    if MEMORY is None:
        pytest.skip("there is no /dev/shm")
    assert limits_path.parent.parent == Path(MEMORY)
    assert limits_path.parent.stat().st_mode & 0o777 == 0o700
