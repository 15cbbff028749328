"""The database: durable before the answer, exact when shared, forgetful in time."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from peewee import IntegrityError
from playhouse.schema_diff import diff_models

import models
from frontdesk.counter import OTHER_PAGES, Page
from frontdesk.database import (
    GroupCommit,
    SqliteEngine,
    current,
    execute,
    open_database,
)
from frontdesk.limits import RateLimits
from frontdesk.settings import Window
from frontdesk.spam import Verdict
from frontdesk.tables import DAY, Setting, Tally, day_of, hour_of, prepare
from models import Message, Receipt, Subscriber
from tests.support.databases import delete_limits
from tests.support.desk import NOON, Clock, Desk
from tests.support.server import ROOT

SECONDS = 20  # bounds what only a failing test waits for


@pytest.fixture
def opened(database_url: str) -> Iterator[str]:
    """An opened database, and its URL."""
    database = open_database(database_url, threads=8)
    prepare(database)
    yield database_url
    database.close()


@pytest.fixture
def limits(opened: str) -> Iterator[RateLimits]:
    """The rate limits of an opened database."""
    limits = RateLimits(current())
    yield limits
    limits.close()


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Do a work in so many threads that start together; raise what one raised."""
    ready = threading.Barrier(count)
    errors: list[BaseException] = []
    database = current()

    def run(n: int) -> None:
        database.enter()
        try:
            ready.wait(SECONDS)
            work(n)
        except BaseException as error:
            errors.append(error)
        finally:
            current().hang_up()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    if errors:
        raise errors[0]


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process of its own with our modules at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# --- group commit ----------------------------------------------------------------


class Committing:
    """A SQLite file with one table, a GroupCommit on it, and a view from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = SqliteEngine(path)
        self.db.execute_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)")
        self.write = GroupCommit(self.db)

    def add(self, n: int) -> Callable[[], int]:
        def job() -> int:
            self.db.execute_sql("INSERT INTO t (n) VALUES (?)", (n,))
            return n

        return job

    def seen(self) -> list[int]:
        """Return what another process would see."""
        with closing(sqlite3.connect(self.path)) as other:
            return [n for (n,) in other.execute("SELECT n FROM t ORDER BY rowid")]


@pytest.fixture
def committing(tmp_path: Path) -> Iterator[Committing]:
    committing = Committing(tmp_path / "t.db")
    yield committing
    committing.db.close_all()


def threads_of(committing: Committing, jobs: list[Callable[[], Any]]) -> list[Any]:
    """Queue jobs, in this order, behind one that runs; return results or errors."""
    running, go_on = threading.Event(), threading.Event()
    results: list[Any] = [None] * len(jobs)

    def first() -> None:
        running.set()
        assert go_on.wait(SECONDS)

    def call(job: Callable[[], Any], n: int) -> None:
        try:
            results[n] = committing.write(job)
        except BaseException as error:
            results[n] = error
        finally:
            committing.db.close()

    leader = threading.Thread(
        target=lambda: (committing.write(first), committing.db.close())
    )
    leader.start()
    assert running.wait(SECONDS)
    threads = []
    for n, job in enumerate(jobs):
        threads.append(threading.Thread(target=call, args=(job, n)))
        threads[-1].start()
        while len(committing.write._queue) <= n:  # until it waits in line
            threading.Event().wait(0.001)
    go_on.set()
    for thread in (leader, *threads):
        thread.join(SECONDS)
    return results


def test_a_write_is_durable_before_it_returns(committing: Committing) -> None:
    assert committing.write(committing.add(1)) == 1
    assert committing.seen() == [1]
    (mode,) = committing.db.execute_sql("PRAGMA synchronous").fetchone()
    assert mode == 2  # FULL
    (journal,) = committing.db.execute_sql("PRAGMA journal_mode").fetchone()
    assert journal == "wal"


def test_each_job_of_a_batch_is_durable_before_its_caller_goes_on(
    committing: Committing,
) -> None:
    missing = []
    lock = threading.Lock()

    def work(n: int) -> None:
        for k in range(20):
            number = n * 100 + k
            assert committing.write(committing.add(number)) == number
            with lock:
                if number not in committing.seen():
                    missing.append(number)
        committing.db.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert missing == []
    assert len(committing.seen()) == 160


def test_jobs_are_done_in_the_order_they_came(committing: Committing) -> None:
    done: list[int] = []
    jobs = [lambda n=n: done.append(n) for n in range(10)]
    threads_of(committing, jobs)
    assert done == list(range(10))


def test_what_waits_is_one_commit(committing: Committing) -> None:
    commits: list[str] = []
    jobs: list[Callable[[], Any]] = [committing.add(n) for n in range(10)]
    depth = [lambda: commits.append(str(committing.seen()))]
    threads_of(committing, [*jobs, *depth])
    assert commits == ["[]"]  # the ten before it were not committed yet
    assert committing.seen() == list(range(10))


def test_a_poisoned_job_fails_alone(committing: Committing) -> None:
    committing.write(committing.add(3))

    def broken() -> None:
        committing.db.execute_sql("INSERT INTO t (n) VALUES (99)")
        raise ZeroDivisionError

    results = threads_of(
        committing, [committing.add(1), broken, committing.add(3), committing.add(4)]
    )
    assert results[0] == 1
    assert isinstance(results[1], ZeroDivisionError)
    assert isinstance(results[2], IntegrityError)
    assert results[3] == 4
    assert sorted(committing.seen()) == [1, 3, 4]  # nothing of the broken one
    assert committing.write(committing.add(5)) == 5


def test_a_job_that_ends_its_thread_ends_no_other(committing: Committing) -> None:
    def dying() -> None:
        raise SystemExit

    results = threads_of(
        committing, [dying, committing.add(1), committing.add(2), committing.add(3)]
    )
    assert isinstance(results[0], SystemExit)
    assert results[1:] == [1, 2, 3]
    assert sorted(committing.seen()) == [1, 2, 3]


def test_an_error_of_a_lone_job_is_its_callers(committing: Committing) -> None:
    committing.write(committing.add(1))
    with pytest.raises(IntegrityError):
        committing.write(committing.add(1))
    assert committing.write(committing.add(2)) == 2


# --- small tables ----------------------------------------------------------------


def test_many_threads_agree_on_a_setting(opened: str) -> None:
    values: list[str] = []
    in_threads(8, lambda n: values.append(Setting.once("secret", str(n))))
    assert len(values) == 8
    assert set(values) == {Setting.get_value("secret")}


def test_a_tally_stops_at_its_ceiling(opened: str) -> None:
    def take(name: str = "a", period: str = "p", ceiling: int = 2) -> bool:
        return Tally.spend(name, period, ceiling)

    assert [take(), take(), take()] == [True, True, False]
    assert take(period="q")
    assert take(name="b")
    assert take(ceiling=3)
    assert not take(name="c", ceiling=0)


def test_a_tally_is_exact_in_many_threads(opened: str) -> None:
    taken: list[bool] = []

    def work(n: int) -> None:
        for _ in range(5):
            taken.append(Tally.spend("a", "p", 17))

    in_threads(8, work)
    assert sum(taken) == 17


def test_a_receipt_belongs_to_the_first_until_it_expires(opened: str) -> None:
    def claim(message_id: str, now: float, key: str = "k") -> str:
        return Receipt.claim(key, message_id, now, 600)

    assert claim("first", NOON) == "first"
    assert claim("second", NOON + 599) == "first"
    assert claim("other", NOON, key="another") == "other"
    assert claim("third", NOON + 600) == "third"
    assert claim("fourth", NOON + 601) == "third"


def test_of_many_equal_submissions_one_is_stored(desk: Desk) -> None:
    values = {
        **dict.fromkeys(("name", "subject", "page", "client", "echo"), ""),
        "email": "ada@example.com",
        "message": "Hello",
        "fields": {},
        "layout": [],
    }
    ids: list[str | None] = []

    def work(n: int) -> None:
        ids.append(
            Message.receive(values, Verdict(0, []), keys={"same": 600}, now=NOON)
        )

    in_threads(8, work)
    assert len(ids) == 8
    assert len(set(ids)) == Message.select().count() == 1
    assert len(desk.drain()) == 1


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("ada@example.com", "Ada@EXAMPLE.com", True),
        ("ada@example.com", "ada+tag@example.com", True),
        ("a.da@gmail.com", "ada+x@googlemail.com", True),
        ("a.da@example.com", "ada@example.com", False),
        ("+x@example.com", "+y@example.com", False),
    ],
)
def test_a_mailbox_has_one_key(
    opened: str, first: str, second: str, same: bool
) -> None:
    assert (models.mailbox_key(first) == models.mailbox_key(second)) is same
    assert "ada@" not in models.mailbox_key(first)


# --- rate limits -----------------------------------------------------------------

BURST = (Window(5, 60), Window(8, 3600))


def test_a_burst_then_one_at_a_time(limits: RateLimits) -> None:
    take = limits.take
    verdicts = [take("k", BURST[:1], NOON) for _ in range(6)]
    assert [v.allowed for v in verdicts] == [True] * 5 + [False]
    assert [v.left[0][0] for v in verdicts] == [4, 3, 2, 1, 0, 0]
    assert verdicts[5].retry_after == 12
    assert not take("k", BURST[:1], NOON + 11.9).allowed
    assert take("k", BURST[:1], NOON + 12).allowed
    assert not take("k", BURST[:1], NOON + 12).allowed
    assert take("other", BURST[:1], NOON).allowed


def test_a_refused_request_spends_of_no_window(limits: RateLimits) -> None:
    for _ in range(5):
        assert limits.take("k", BURST, NOON).allowed
    for _ in range(50):
        assert not limits.take("k", BURST, NOON).allowed
    # Three of the hour's eight are left, whatever was refused meanwhile.
    allowed = [limits.take("k", BURST, NOON + 60).allowed for _ in range(5)]
    assert allowed == [True, True, True, False, False]


SPENDS = """
import sys, threading
from frontdesk.database import open_database
from frontdesk.limits import RateLimits
from frontdesk.settings import Window
limits = RateLimits(open_database(sys.argv[1], threads=4))
print("ready", flush=True)
sys.stdin.readline()
allowed = []
def work():
    for i in range(60):
        if limits.take(f"key {i % 10}", (Window(5, 60),), 1.8e9).allowed:
            allowed.append(i)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(allowed), flush=True)
"""


def test_limits_are_exact_over_processes_and_threads(database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDS, database_url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        outs.append(int(out))
    assert sum(outs) == 50


def test_the_limits_of_a_file_survive_a_restart(database_url: str) -> None:
    os.umask(0o077)  # as ready_database() does
    for expected in ([True] * 5, [False]):
        database = open_database(database_url, threads=2)
        limits = RateLimits(database)
        took = [limits.take("k", BURST[:1], NOON).allowed for _ in expected]
        assert took == expected
        limits.close()
        database.close()


def test_who_is_refused_spends_nothing(limits: RateLimits) -> None:
    windows = (Window(5, 60), Window(1, 3600))
    take = limits.take
    assert take("k", windows, NOON).allowed
    for _ in range(9):
        assert take("k", windows, NOON).retry_after == 3600
    assert take("k", windows, NOON).left == [(4, 12), (0, 3600)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_limits_file_that_is_tidied_away_is_made_anew(limits: RateLimits) -> None:
    path = current().path
    assert path is not None
    assert limits.take("k", (Window(1, 60),), NOON).allowed
    limits.close()
    delete_limits(path)
    verdicts = [limits.take("k", (Window(1, 60),), NOON) for _ in range(2)]
    assert [verdict.allowed for verdict in verdicts] == [True, False]


def test_what_is_not_limited_any_more_is_forgotten(limits: RateLimits) -> None:
    for n in range(20):
        limits.take(f"k{n}", BURST[:1], NOON)
    limits.sweep(NOON + 5)
    count = "SELECT count(*) FROM bucket"
    assert limits.execute(count).fetchone()[0] == 20
    limits.sweep(NOON + 13)
    assert limits.execute(count).fetchone()[0] == 0


# --- migrations ------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def no_schema(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new.db"

        delete_limits(tmp_path / "new.db")
        return
    import psycopg

    cluster = request.getfixturevalue("postgres")
    cluster.fresh_url()
    name = f"new_{cluster.made}"
    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield cluster.url(name)


MIGRATES = """
import sys
from frontdesk.database import open_database
open_database(sys.argv[1]).migrate()
"""


def test_eight_processes_make_one_schema(no_schema: str) -> None:
    processes = [python(MIGRATES, no_schema) for _ in range(8)]
    outs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outs
    database = open_database(no_schema, threads=2)
    database.enter()
    try:
        applied = execute("SELECT name FROM schema_migration").fetchall()
        names = sorted(
            path.stem for path in (ROOT / "frontdesk" / "migrations").glob("0*.py")
        )
        assert sorted(name for (name,) in applied) == names
        assert database.schema_version() == names[-1]
        assert Page.totals(OTHER_PAGES) == (0, 0)
    finally:
        database.close()


def test_migrating_again_keeps_everything(opened: str) -> None:
    Setting.once("kept", "value")
    for _ in range(2):
        current().migrate()
    assert Setting.get_value("kept") == "value"


def test_the_schema_is_what_the_models_say(opened: str) -> None:
    diff = diff_models(current().engine, models.TABLES)
    # Partial indexes are the migration's own.
    by_hand = {index.name for index in diff.drop_indexes}
    assert by_hand == {
        *("delivery_due", "message_held", "message_echo", "message_undelivered"),
        *("lesson_message", "delivery_put_off"),
    }
    assert not diff._replace(drop_indexes=[]), str(diff)


# --- forgetting ------------------------------------------------------------------


def test_expired_receipts_and_old_tallies_are_deleted(opened: str) -> None:
    Receipt.claim("old", "m", NOON, 600)
    Receipt.claim("new", "m", NOON + 40 * DAY, 600)
    Tally.spend("digests", day_of(NOON), 1)
    Tally.spend("held", hour_of(NOON), 1)
    Tally.spend("held", hour_of(NOON + 40 * DAY), 1)
    Tally.spend("pages", "", 1)
    models.clean_up(NOON + 40 * DAY, 0)
    assert [row.key for row in Receipt.select()] == ["new"]
    assert sorted((row.name, row.period) for row in Tally.select()) == [
        ("held", hour_of(NOON + 40 * DAY)),
        ("pages", ""),
    ]


@pytest.mark.parametrize(("days", "left"), [(0, 2), (30, 1), (100, 2)])
def test_messages_are_kept_as_long_as_was_said(
    desk: Desk, clock: Clock, days: int, left: int
) -> None:
    desk.post("/contact", {"email": "ada@example.com", "message": "old"})
    desk.drain()
    clock.advance(31 * DAY)
    desk.post("/contact", {"email": "ada@example.com", "message": "new"})
    models.clean_up(clock(), days)
    assert Message.select().count() == left
    assert desk.messages()[-1]["message"] == "new"


def test_a_message_that_still_waits_to_be_mailed_is_kept(
    desk: Desk, clock: Clock
) -> None:
    desk.post("/contact", {"email": "ada@example.com", "message": "old"})
    clock.advance(31 * DAY)
    models.clean_up(clock(), 30)
    assert len(desk.drain()) == 1
    clock.advance(DAY)  # after the long sleep: see trusted()
    models.clean_up(clock(), 30)
    assert Message.select().count() == 0


def test_a_clean_up_keeps_who_is_confirmed(desk: Desk, clock: Clock) -> None:
    desk.post("/newsletter", {"email": "ada@example.com"})
    row = Subscriber.get()
    Subscriber.confirm(row.id, row.cycle, clock(), sync=False)
    models.clean_up(NOON + 1000 * DAY, 30)
    assert [r["status"] for r in desk.subscribers()] == ["confirmed"]
