"""A disk that is full, gone or spoiled: told in time, and nothing half written."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from peewee import OperationalError

from frontdesk.database import SqliteEngine, SqliteFile, current, execute
from frontdesk.postgres import Pool
from frontdesk.tables import DAY
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
from tests.support.databases import limit_pages
from tests.support.desk import TOKEN, Desk
from tests.support.server import Server, serving

BIG = "Long letter. " * 700
NOT_STORED = "This could not be stored, please try again in a moment."


def assert_not_stored(status: int, headers: Any, body: Any) -> None:
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    assert body["errors"] == [{"code": "NOT_STORED", "message": NOT_STORED}]


def snapshot() -> dict[str, Any]:
    """Return what the visitors' tables hold."""
    counts = {
        name: execute(f"SELECT count(*) FROM {name}").fetchone()[0]
        for name in ("message", "delivery", "receipt", "subscriber", "visitor")
    }
    for name in ("page", "hit"):
        sql = f"SELECT sum(hits), sum(visitors) FROM {name}"
        counts[name] = tuple(n or 0 for n in execute(sql).fetchone())
    state = "SELECT id, mailed_at, released_at, held_at FROM message ORDER BY id"
    counts["messages"] = execute(state).fetchall()
    state = "SELECT id, cycle, email, confirmed_at, left_at, mailed FROM subscriber"
    counts["subscribers"] = execute(f"{state} ORDER BY id").fetchall()
    current().release()
    return counts


# --- full ------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_file_refuses_whole_requests_and_recovers(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(contact_limit=(), newsletter_limit=(), hits_limit=())
    get_health = desk.client.simulate_get
    for cycle in range(size(10, 100)):
        limit_pages(execute("PRAGMA page_count").fetchone()[0])
        answer = desk.post(*contact(BIG + str(cycle)))
        while answer.status_code == 200:
            answer = desk.post(*contact(BIG))
        before = snapshot()
        answer = desk.post(*contact(BIG))
        assert_not_stored(answer.status_code, answer.headers, answer.json)
        assert snapshot() == before
        if cycle == 0:  # afterwards it is looked at every few seconds only
            health = get_health("/health")
            assert health.status_code == 503
            assert health.json["database"] == "error"
        limit_pages(2**30)
        assert desk.post(*contact(BIG)).status_code == 200
        assert get_health("/health").status_code == 200
    assert execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(desk.drain()) == len(desk.messages())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB: with less, the messages of 100 cycles fill it too."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "frontdesk", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_and_recovers_without_a_restart(
    serve: Callable[..., Server], small_disk: Path
) -> None:
    url = f"sqlite:///{small_disk}/frontdesk.db"
    server = serve(WEB_CONCURRENCY="2", DATABASE_URL=url, **NO_LIMITS)
    acknowledged = 0
    for _ in range(size(3, 100)):
        with (small_disk / "filler").open("wb", buffering=0) as filler:
            while fill(filler):
                pass
        status = 200
        while status == 200:  # some room is left within the file
            status, headers, body = call(server, "POST", *contact(BIG))
            acknowledged += status == 200
        assert_not_stored(status, headers, json.loads(body))
        eventually(lambda: call(server, "GET", "/health")[0] == 503)
        (small_disk / "filler").unlink()
        assert call(server, "POST", *contact())[0] == 200
        acknowledged += 1
        assert call(server, "POST", *signup())[0] == 200
        assert call(server, "POST", *hit())[0] == 200
        with closing(sqlite3.connect(small_disk / "frontdesk.db")) as connection:
            connection.execute("DELETE FROM message")
            connection.commit()
            connection.execute("VACUUM")
    eventually(lambda: call(server, "GET", "/health")[0] == 200)
    with closing(sqlite3.connect(small_disk / "frontdesk.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def fill(file: Any) -> int:
    try:
        return int(file.write(b"\0" * 4096))
    except OSError:
        return 0


# --- spoiled ---------------------------------------------------------------------


def _header(path: Path) -> None:
    path.write_bytes(b"This was a database once." + path.read_bytes()[25:])


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_header, _truncated, _directory])
def test_a_spoiled_file_is_named_at_start(
    empty_sqlite: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "frontdesk.db"
    path.write_bytes(empty_sqlite.read_bytes())
    spoil(path)
    assert_refuses_to_start(tmp_path, path)


@pytest.mark.parametrize(
    "path",
    ["/proc/frontdesk.db", "/no/such/directory/frontdesk.db"],  # the first: also root's
    ids=["read-only directory", "missing directory"],
)
def test_a_directory_that_cannot_be_used_is_named_at_start(
    tmp_path: Path, path: str
) -> None:
    assert_refuses_to_start(tmp_path, Path(path))


def assert_refuses_to_start(folder: Path, path: Path) -> None:
    url = f"sqlite:///{path}"
    with serving(folder, wait=False, DATABASE_URL=url) as server:
        assert server.process.wait(20) != 0
    [line] = [line for line in server.log.splitlines() if str(path) in line]
    assert line.startswith("DATABASE_URL: ")
    assert "Traceback" not in server.log


# --- backup ----------------------------------------------------------------------


def test_a_backup_under_writes_is_consistent_and_delays_nobody(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(ADMIN_TOKEN=TOKEN, WEB_CONCURRENCY="2", **NO_LIMITS)
    with closing(sqlite3.connect(tmp_path / "frontdesk.db")) as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            "WHERE i < ?) INSERT INTO message (id, received_at, name, email, subject, "
            "message, fields, page, client, spam_score, spam_reasons, echo, doubtful, "
            "mailed_at) SELECT printf('%012x', i), 0, '', 'old@example.com', '', "
            "hex(randomblob(5000)), '{}', '', '', 0, '[]', '', 0, 0 FROM n",
            (size(1000, 5000),),
        )
        connection.commit()
        # Not the file's size: whoever reads at this moment delays the checkpoint.
        [(pages,)] = connection.execute("PRAGMA page_count")
    assert pages * 4096 > size(5, 50) * 10**6
    with Load(server) as load:
        eventually(lambda: len(load.ids) > 20)
        known = set(load.ids)
        status, _, body = call(
            server, "GET", "/export/backup.sqlite3", Authorization=f"Bearer {TOKEN}"
        )
    assert status == 200
    assert load.failures == {}
    backup = tmp_path / "backup"
    backup.mkdir()
    (backup / "frontdesk.db").write_bytes(body)
    assert rows(backup, "PRAGMA integrity_check") == [("ok",)]
    ids = {row[0] for row in rows(backup, "SELECT id FROM message")}
    assert known <= ids
    half = (
        "SELECT count(*) FROM message WHERE mailed_at IS NULL AND id NOT IN "
        "(SELECT ref FROM delivery)"
    )
    assert rows(backup, half) == [(0,)]
    for pages in ("page <> '*'", "page = '*'"):  # each page's, and the whole site's
        sums = (
            "SELECT (SELECT sum(hits) FROM page) = "
            f"(SELECT sum(hits) FROM hit WHERE {pages})"
        )
        assert rows(backup, sums) == [(1,)]
    print(
        f"{len(body) / 1e6:.0f} MB at {load.answers.total() / load.seconds:.0f} "
        f"writes/s, slowest {load.slowest * 1000:.0f} ms"
    )
    # A machine that is busy with other tests says nothing about the figure.
    assert load.slowest < size(5, 0.25)


# --- the n-th statement ----------------------------------------------------------


class Failing:
    """Makes the n-th statement fail, BEGIN and COMMIT among them."""

    left = 0  # statements until one fails; 0: none does

    @classmethod
    @contextmanager
    def at(cls, n: int) -> Iterator[None]:
        cls.left = n
        try:
            yield
        finally:
            cls.left = 0

    @classmethod
    def step(cls) -> None:
        if cls.left:
            cls.left -= 1
            if not cls.left:
                raise OperationalError("made to fail")


class FailingCursor(sqlite3.Cursor):
    def execute(self, sql: str, *args: Any) -> Any:
        if not sql.startswith("ROLLBACK"):
            Failing.step()
        return super().execute(sql, *args)


class FailingConnection(sqlite3.Connection):
    def cursor(self, *args: Any) -> Any:
        return super().cursor(FailingCursor)

    def execute(self, sql: str, *args: Any) -> Any:
        return self.cursor().execute(sql, *args)


class FailingPostgres(Pool):
    def execute_sql(self, sql: str, *args: Any) -> Any:
        if "bucket" not in sql:  # without rate limits, everybody may pass
            Failing.step()
        return super().execute_sql(sql, *args)

    def begin(self, *args: Any) -> Any:
        Failing.step()
        return super().begin(*args)

    def commit(self) -> Any:
        Failing.step()
        return super().commit()


@pytest.fixture
def failing_desk(make_desk: Callable[..., Desk], database_url: str) -> Iterator[Desk]:
    """A desk on such a database; its rate limits work."""
    desk = make_desk(
        contact_limit=(), newsletter_limit=(), hits_limit=(), mailjet_list_id="7"
    )
    database = desk.app.service.database
    database.close()
    if isinstance(database, SqliteFile):
        database.use(SqliteEngine(database.path, factory=FailingConnection))
    else:
        database.engine = FailingPostgres(database_url, threads=6)
    yield desk


def mailed(desk: Desk, purpose: str) -> str:
    desk.post(*signup())
    words = desk.drain()[-1]["TextPart"].split()
    [url] = [word for word in words if f"/newsletter/{purpose}/" in word]
    return str(url.removeprefix("https://desk.example"))


def held(desk: Desk, purpose: str) -> str:
    desk.post("/contact", {**contact()[1], "_gotcha": "x"})
    desk.clock.advance(DAY)
    desk.app.outbox.go_round()
    [url] = [w for w in desk.drain()[-1]["TextPart"].split() if f"/{purpose}/" in w]
    return str(url.removeprefix("https://desk.example"))


REQUESTS: dict[str, Callable[[Desk], Any]] = {
    "contact": lambda desk: desk.post(*contact()),
    "contact, with a key": lambda desk: desk.post(*contact(), Idempotency_Key="key"),
    "contact, held": lambda desk: desk.post(
        "/contact", {**contact()[1], "_gotcha": "x"}
    ),
    "newsletter": lambda desk: desk.post(*signup()),
    "hits": lambda desk: desk.post("/hits", {"page": "/failing"}),
    "pixel": lambda desk: desk.client.simulate_get("/hits.gif?page=/failing"),
    "badge": lambda desk: desk.client.simulate_get("/hits.svg?page=/failing"),
    "read hits": lambda desk: desk.client.simulate_get("/hits?page=/"),
    "health": lambda desk: desk.client.simulate_get("/health"),
    "test mail": lambda desk: desk.owner("POST", "/doctor"),
    "export": lambda desk: desk.owner("GET", "/export/messages.json"),
    "erase": lambda desk: desk.owner("DELETE", "/people/zoe@example.com"),
}
LINKS = {"confirm": mailed, "unsubscribe": mailed, "not-me": mailed, "release": held}


@pytest.mark.parametrize("kind", [*REQUESTS, *LINKS])
def test_whichever_statement_fails_nothing_is_half_written(
    failing_desk: Desk, kind: str
) -> None:
    if kind in LINKS:
        url = LINKS[kind](failing_desk, kind)
    for n in range(1, 60):
        before = snapshot()
        with Failing.at(n):
            if kind in LINKS:
                answer = failing_desk.post(url, {})
            else:
                answer = REQUESTS[kind](failing_desk)
            reached = Failing.left == 0
        if not reached:
            break
        assert answer.status_code == 503, f"statement {n}"
        assert snapshot() == before, f"statement {n}"
    else:
        pytest.fail("the request never got through")
    assert answer.status_code == 200
    assert n > 1
