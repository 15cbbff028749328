"""One database of an application: connections, the one writer, migrations.

A thread works for one application at a time and enters() its database; the tables and
the functions execute(), insert() and @transaction speak to the one that the calling
thread has entered, so that several applications may live in one process.
"""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, ParamSpec, TypeVar

from peewee import DatabaseError, InterfaceError, OperationalError, SqliteDatabase

from frontdesk import without_psycopg
from frontdesk.settings import sqlite_path
from frontdesk.times import Calendar

log = logging.getLogger("frontdesk")

P = ParamSpec("P")
T = TypeVar("T")

# What a database that is full, gone or broken raises; sqlite3's own errors come from
# statements that go past peewee (see SqliteFile.execute).
StorageError: tuple[type[Exception], ...] = (
    DatabaseError,
    InterfaceError,
    sqlite3.Error,
)

SQLITE_PRAGMAS = {
    "journal_mode": "wal",
    # An acknowledged message survives a power cut: each commit is synced.
    "synchronous": "full",
    # Each thread has a connection: the default of 2 MB each adds up.
    "cache_size": -512,
    "journal_size_limit": 16 * 2**20,
}
TURN_SECONDS = 5  # that a write waits at most for the writes of other threads
BUSY_SECONDS = 2.5  # that it then waits for another process that writes
BRIEF_SECONDS = 0.1  # likewise, right after somebody has waited in vain
MIGRATION_SECONDS = 3600  # that Postgres may take for one
POSTGRES_LOCK = 7245114  # any number, the same in every version: who migrates holds it

MIGRATIONS = Path(__file__).with_name("migrations")
NEWEST_APPLIED = "SELECT max(name) FROM schema_migration"

_entered: ContextVar[Database] = ContextVar("database")


def current() -> Database:
    """Return the database that this thread has entered."""
    return _entered.get()


def execute(sql: str, *params: object) -> Any:
    """Run one statement, with ``?`` for parameters, and return its cursor."""
    return _entered.get().execute(sql, *params)


def insert(table: str, row: Mapping[str, object], conflict: str = "") -> bool:
    """Insert one row without the query builder's cost; tell whether one was written."""
    sql = _insert_sql(table, tuple(row), conflict)
    return bool(execute(sql, *row.values()).rowcount)


@cache
def _insert_sql(table: str, columns: tuple[str, ...], conflict: str) -> str:
    marks = ", ".join("?" * len(columns))
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) VALUES ({marks}) {conflict}"  # noqa: S608


IGNORE = "ON CONFLICT DO NOTHING"


def transaction(work: Callable[P, T]) -> Callable[P, T]:
    """Run a function in one transaction; within another one, as a part of that.

    It returns after the commit. It may run twice, because a group of transactions
    that fails is done again one by one: it must have no effect but on the database.
    """

    @wraps(work)
    def in_transaction(*args: P.args, **kwargs: P.kwargs) -> T:
        database = _entered.get()
        if database.in_transaction():
            return work(*args, **kwargs)
        return database.write(partial(work, *args, **kwargs))

    return in_transaction


class Database:
    """What SQLite and Postgres have in common."""

    engine: Any  # peewee's database
    path: Path | None = None  # of a SQLite file
    row_lock = ""  # what a SELECT says to lock the row that it finds

    def __init__(self) -> None:
        self.calendar = Calendar()  # the days by which the application counts
        # Known to all workers through the database; see tables.py and counter.py.
        self.hash_key = b""
        self.salt: tuple[str, bytes] = ("", b"")

    def enter(self, seconds: float | None = None) -> None:
        """Make this the database of the calling thread.

        seconds: what a server may take for everything until the thread enters again;
        after that its statements raise OperationalError. None: a few seconds for each.
        """
        _entered.set(self)

    @property
    def is_sqlite(self) -> bool:
        """Tell whether this is a SQLite file."""
        return self.path is not None

    def execute(self, sql: str, *params: object) -> Any:
        """Run one statement, with ``?`` for parameters, and return its cursor."""
        raise NotImplementedError

    def in_transaction(self) -> bool:
        """Tell whether the calling thread is within write()."""
        raise NotImplementedError

    def write(self, work: Callable[[], T]) -> T:
        """Run a function in a transaction of its own (see transaction())."""
        raise NotImplementedError

    def migrate(self) -> None:
        """Create or update the schema; of several who try at once, one does."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise OperationalError where the file that was opened is gone."""

    def lock_name(self, name: str) -> None:
        """Within a transaction: keep others out who lock the same name."""

    def release(self) -> None:
        """Give this thread's connection back, where there is a pool."""

    def hang_up(self) -> None:
        """Close this thread's connection: the thread is about to end."""
        self.engine.close()

    def close(self) -> None:
        """Close this thread's connection, and SQLite's writer or Postgres' pool.

        The next statement opens them again. Other threads keep theirs to a SQLite
        file: a request must not close the last one, since that checkpoints and deletes
        the WAL, four times a request's own work.
        """
        self.engine.close_all()

    def size(self) -> int:
        """Return how many bytes the database takes."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Do what is good for the database's speed once a day."""

    def schema_version(self) -> str:
        """Return the name of the newest migration that was applied."""
        return str(self.execute(NEWEST_APPLIED).fetchone()[0])

    def _is_current(self) -> bool:
        newest = max(path.stem for path in MIGRATIONS.glob("[0-9]*.py"))
        try:
            return self.schema_version() >= newest
        except StorageError:  # there is no such table yet
            return False

    def _run_migrations(self) -> None:
        with without_psycopg():
            from playhouse.migrations import Runner  # 12 ms, 2 MB: for a change only

        Runner(self.engine, str(MIGRATIONS)).up()


def open_database(url: str, threads: int = 1) -> Database:
    """Return the database behind a DATABASE_URL; nothing is connected yet."""
    path = sqlite_path(url)
    return SqliteFile(path) if path is not None else PostgresServer(url, threads)


# --- SQLite ----------------------------------------------------------------------


class SqliteEngine(SqliteDatabase):
    """A SQLite file: a connection for each thread, and one that does all writes.

    SQLite drops a connection's page cache when another connection has written. One
    connection for all writes of a process thus still knows its pages at its next turn.
    """

    def __init__(self, path: Path | str, **more: Any) -> None:
        options: dict[str, Any] = {
            "pragmas": SQLITE_PRAGMAS,
            "timeout": BUSY_SECONDS,
            **more,
        }
        super().__init__(str(path), lock_type="IMMEDIATE", **options)
        self._writer = SqliteDatabase(
            str(path), thread_safe=False, check_same_thread=False, **options
        )
        self._here = threading.local()
        self._in_vain = False  # has the last write waited for another process?

    def connection(self) -> Any:
        """Return this thread's connection; within writing(), the writer."""
        return self.writer() or super().connection()  # type: ignore[no-untyped-call]

    def writer(self) -> Any:
        """Return the writer's connection within writing(), else None."""
        return getattr(self._here, "writer", None)

    def cursor(self, named_cursor: Any = None) -> Any:
        """Return a cursor of connection()."""
        return self.connection().cursor()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Do what this thread does meanwhile in one transaction of the writer.

        One thread at a time. The lock is taken at once: a transaction that has read
        before it writes cannot wait for it (SQLITE_BUSY_SNAPSHOT).
        """
        writer: Any = self._writer.connection()  # type: ignore[no-untyped-call]
        self._begin(writer)
        self._here.writer = writer
        try:
            yield
            writer.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                if writer.in_transaction:  # a full disk has rolled it back already
                    writer.execute("ROLLBACK")
            if writer.in_transaction:  # of no use any more
                self._writer.close()
            raise
        finally:
            self._here.writer = None

    def _begin(self, writer: Any) -> None:
        # Who comes after a wait in vain waits briefly: else all threads would stand
        # here, one after the other, and nobody would serve the pages.
        try:
            writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            self._wait_for_others(writer, BRIEF_SECONDS)
            raise
        if self._in_vain:
            self._wait_for_others(writer, BUSY_SECONDS)

    def _wait_for_others(self, writer: Any, seconds: float) -> None:
        self._in_vain = seconds == BRIEF_SECONDS
        with suppress(sqlite3.Error):
            writer.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def close_all(self) -> None:
        """Close this thread's connection and the writer."""
        self.close()
        self._writer.close()


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    leads: bool = False  # its thread commits what is queued
    done: bool = False
    result: Any = None
    error: BaseException | None = None
    # Held until its thread may go on: to lead, or since the job is done.
    waits: threading.Lock = field(default_factory=threading.Lock)


class GroupCommit:
    """Writes to SQLite, one at a time and many to a commit.

    SQLite has one writer and syncs the disk at each commit. One thread leads: it
    commits everything queued by then in one transaction, wakes those whose work that
    was, and lets the first one that came meanwhile lead. Each caller returns only
    after the commit that holds its own work. When a batch fails, its jobs are done
    again one by one, so that a bad job fails alone.
    """

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # around the next two
        self._queue: list[_Job] = []
        self._is_led = False

    def __call__(self, work: Callable[[], T]) -> T:
        """Run a job and return its result; raises what it raised, after a rollback.

        Raises OperationalError when its turn does not come in time: it has not run.
        """
        job = _Job(work)
        job.waits.acquire()
        with self._lock:
            self._queue.append(job)
            job.leads, self._is_led = not self._is_led, True
        if not job.leads:
            self._wait(job)
        if job.leads:
            self._lead()
        if not job.done:  # the leader died with it
            raise OperationalError("not committed")
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return]

    def _wait(self, job: _Job) -> None:
        """Wait until a job leads or is done; raises OperationalError after a long wait.

        One that is being done by then is waited for.
        """
        if job.waits.acquire(timeout=TURN_SECONDS):
            return
        with self._lock:
            if job in self._queue and not job.leads:
                self._queue.remove(job)
                raise OperationalError("no turn")
        job.waits.acquire()

    def _lead(self) -> None:
        """Commit what is queued, and let the next one lead."""
        with self._lock:
            batch, self._queue = self._queue, []
        try:
            self._run(batch)
            for job in batch:
                job.done = True
        finally:
            with self._lock:
                following = self._queue[:1]
                for job in following:
                    job.leads = True
                self._is_led = bool(following)
            for job in (*following, *batch):
                job.waits.release()

    def _run(self, batch: list[_Job]) -> None:
        began = False
        try:
            with self._engine.writing():
                began = True
                for job in batch:
                    job.result = job.work()
        except BaseException as error:  # of the caller whose job it is, no other
            for job in batch:
                # Where nothing could begin, waiting once has been enough for all.
                if began and len(batch) > 1:
                    self._run([job])
                else:
                    job.error = error


class SqliteFile(Database):
    """A SQLite file, and the one writer of this process."""

    path: Path

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._name = str(path)  # looked at before each write
        self._file: tuple[int, int] | None = None  # the one that was opened
        self._is_lost = False
        self.use(SqliteEngine(path))

    def use(self, engine: SqliteEngine) -> None:
        """Open the file by this engine from now on."""
        self.engine = engine
        self._commit = GroupCommit(engine)

    def execute(self, sql: str, *params: object) -> Any:
        """Run one statement past peewee, whose cursor costs as much as a short one."""
        return self.engine.connection().execute(sql, params)

    def in_transaction(self) -> bool:
        """Tell whether the calling thread is within write()."""
        return self.engine.writer() is not None

    def write(self, work: Callable[[], T]) -> T:
        """Run a function in a transaction that it may share with other threads'."""
        self.check()
        return self._commit(work)

    def check(self) -> None:
        """Raise OperationalError where the path leads to no file, or to another one.

        What would be written to the old one is gone with the process.
        """
        if self._file in (None, _identity(self._name)):
            return
        if not self._is_lost:
            self._is_lost = True
            log.error("%s was deleted or replaced: restart the service", self.path)
        raise OperationalError("not the file that was opened")

    def migrate(self) -> None:
        """Create or update the schema under a file lock.

        The lock also covers the switch to WAL, which the busy timeout does not.
        """
        with file_lock(self._beside("-lock")):
            self._delete_left_overs()
            self.engine.connect(reuse_if_open=True)
            if not self._is_current():
                self._run_migrations()
            for part in (self.path, self._beside("-wal"), self._beside("-shm")):
                with suppress(OSError):  # not there, or somebody else's
                    part.chmod(0o600)
            self._file = _identity(self.path)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _delete_left_overs(self) -> None:
        """Delete the copies of processes that were killed; who lives holds a lock."""
        for copy in self.path.parent.glob(f"{glob.escape(self.path.name)}-backup-*"):
            with suppress(OSError), copy.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                copy.unlink()

    def size(self) -> int:
        """Return how many bytes the file takes when all is checkpointed."""
        sql = "SELECT page_count * page_size FROM pragma_page_count(), "
        return int(self.execute(f"{sql} pragma_page_size()").fetchone()[0])

    def tidy(self) -> None:
        """Bring the query planner's statistics up to date, and the WAL to the file."""
        # It reads, then writes: only the writer can (SQLITE_BUSY_SNAPSHOT).
        self.write(lambda: self.execute("PRAGMA optimize"))
        # Not TRUNCATE: while somebody reads (a backup), it keeps all writers waiting.
        self.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextmanager
    def backup(self) -> Iterator[Path]:
        """Yield a consistent copy of the file, made beside it.

        VACUUM INTO reads one snapshot and keeps no writer waiting.
        """
        prefix = f"{self.path.name}-backup-"
        with NamedTemporaryFile(prefix=prefix, dir=self.path.parent) as copy:
            fcntl.flock(copy, fcntl.LOCK_EX)  # see _delete_left_overs()
            self.execute("VACUUM INTO ?", copy.name)
            yield Path(copy.name)


def _identity(path: Path | str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 # at each write: Path.stat() costs more
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Keep out every other process that locks the same file; a link is refused."""
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# --- Postgres --------------------------------------------------------------------


class PostgresServer(Database):
    """A Postgres database, with a pool of connections."""

    row_lock = " FOR UPDATE"

    def __init__(self, url: str, threads: int) -> None:
        super().__init__()
        # psycopg takes 150 ms and 12 MB: it is loaded for Postgres only.
        from frontdesk.postgres import Pool, patience

        self.engine = Pool(url, threads)
        self._patience = patience

    def enter(self, seconds: float | None = None) -> None:
        """Make this the database of the calling thread, with a deadline."""
        super().enter()
        self._patience.set(seconds)

    def execute(self, sql: str, *params: object) -> Any:
        """Run one statement; psycopg's own mark for a parameter is %s."""
        return self.engine.execute_sql(sql.replace("?", "%s"), params)

    def in_transaction(self) -> bool:
        """Tell whether the calling thread is within write()."""
        return bool(self.engine.transaction_depth())

    def write(self, work: Callable[[], T]) -> T:
        """Run a function in a transaction of its own: Postgres has many writers."""
        with self.engine.atomic():
            return work()

    def migrate(self) -> None:
        """Create or update the schema under an advisory lock."""
        self.engine.connect(reuse_if_open=True)
        if self._is_current():
            return
        with self._patience.within(MIGRATION_SECONDS), self.engine.atomic():
            self.execute("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
            self.execute("SELECT pg_advisory_xact_lock(?)", POSTGRES_LOCK)
            self._run_migrations()

    def lock_name(self, name: str) -> None:
        """Within a transaction: keep others out who lock the same name.

        A row that does not exist yet cannot be locked itself.
        """
        self.execute("SELECT pg_advisory_xact_lock(hashtext(?))", name)

    def release(self) -> None:
        """Give this thread's connection back to the pool; the deadline is over, too."""
        self._patience.set(None)
        if not self.engine.is_closed():
            self.engine.close()

    def size(self) -> int:
        """Return how many bytes the database takes on the server's disk."""
        sql = "SELECT pg_database_size(current_database())"
        return int(self.execute(sql).fetchone()[0])
