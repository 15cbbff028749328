"""The database: tables as domain nouns with verbs; nothing above this writes SQL.

All times are seconds since the epoch, UTC; all days are ISO dates, UTC.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CompositeKey,
    DatabaseError,
    DatabaseProxy,
    DoubleField,
    IntegerField,
    InterfaceError,
    Model,
    OperationalError,
    SqliteDatabase,
    TextField,
    fn,
)

log = logging.getLogger("frontdesk")

# What a database that is full, gone or broken raises; sqlite3's own errors come from
# what goes past peewee (see statements()).
StorageError: tuple[type[Exception], ...] = (
    DatabaseError,
    InterfaceError,
    sqlite3.Error,
)

DAY = 86400
# Of all clients together: a flood must fill neither the disk nor the mail quota.
HELD_PER_HOUR = 100  # long ones count more
DOUBTFUL_PER_HOUR = 50
CONFIRM_HOURLY = 3600
CONFIRM_WINDOW = 30 * DAY
CONFIRM_PER_WINDOW = 3
PENDING_SECONDS = 30 * DAY
UNLIMITED = 2**31 - 1
OTHER_PAGES = "/(other)"
CONSENT = "confirmation mail, wording of 2026-11"

SQLITE_PRAGMAS = {
    "journal_mode": "wal",
    # An acknowledged message survives a power cut: each commit is synced.
    "synchronous": "full",
    # Each thread has a connection: the default of 2 MB each adds up.
    "cache_size": -512,
    "journal_size_limit": 16 * 2**20,
}

database: Any = DatabaseProxy()
limits: RateLimits
_hash_key = b""


# Made once: json.dumps() makes an encoder for each call that is not plain.
to_json = json.JSONEncoder(ensure_ascii=False).encode


def day_of(now: float) -> str:
    """Return the UTC date of a time."""
    return _date(now // DAY)


@lru_cache(maxsize=4)
def _date(day: float) -> str:
    return datetime.fromtimestamp(day * DAY, UTC).date().isoformat()


def hour_of(now: float) -> str:
    """Return the UTC date and hour of a time."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="hours")


def iso(moment: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC, or None."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")[:19] + "Z"


# --- opening ---------------------------------------------------------------------


class SqliteFile(SqliteDatabase):
    """A SQLite file: a connection for each thread, and one that does all writes.

    A connection forgets the pages it knows whenever another one has written. The one
    writer of a process (see GroupCommit) thus knows them still at its next turn.
    """

    def __init__(self, path: Path | str, **more: Any) -> None:
        options: dict[str, Any] = {"pragmas": SQLITE_PRAGMAS, "timeout": 10, **more}
        super().__init__(str(path), lock_type="IMMEDIATE", **options)
        self._writer = SqliteDatabase(
            str(path), thread_safe=False, check_same_thread=False, **options
        )
        self._here = threading.local()

    def connection(self) -> Any:
        """Return this thread's connection; within writing(), the writer."""
        writer = getattr(self._here, "writer", None)
        return writer or super().connection()  # type: ignore[no-untyped-call]

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
        writer.execute("BEGIN IMMEDIATE")
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

    def close_all(self) -> None:
        """Close this thread's connection and the writer."""
        self.close()
        self._writer.close()


def connect(url: str, sqlite_path: Path | None, threads: int) -> Any:
    """Return the unopened database behind a URL (see settings.DATABASE_URL)."""
    if sqlite_path is not None:
        return SqliteFile(sqlite_path)
    from playhouse.pool import PooledPostgresqlDatabase  # psycopg: loaded when needed

    # A connection for each thread, the outbox and one to spare.
    return PooledPostgresqlDatabase(
        url.replace("postgres://", "postgresql://", 1),  # peewee knows only this one
        prefer_psycopg3=True,
        max_connections=threads + 2,
        stale_timeout=300,
        timeout=10,
        connect_timeout=3,
        # A host that vanished is noticed: all threads wait behind who asks it first.
        keepalives_idle=30,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=10_000,  # ms
    )


def migrate(url: str, sqlite_path: Path | None) -> None:
    """Create or update the schema; of several who try at once, one does."""
    db = connect(url, sqlite_path, threads=1)
    try:
        if sqlite_path is None:
            if not _is_current(db):
                with db.atomic():
                    db.execute_sql("SELECT pg_advisory_xact_lock(7245114)")
                    _run_migrations(db)
            return
        # The lock also covers the switch to WAL, which the busy timeout does not.
        with sqlite_path.with_name(sqlite_path.name + "-lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_current(db):
                _run_migrations(db)
            with suppress(*StorageError):  # without it, nobody is limited
                LimitsFile(sqlite_path).make()
    finally:
        db.close_all()


MIGRATIONS = Path(__file__).parent / "frontdesk" / "migrations"
NEWEST_APPLIED = "SELECT max(name) FROM schema_migration"


def _is_current(db: Any) -> bool:
    newest = max(path.stem for path in MIGRATIONS.glob("[0-9]*.py"))
    db.connect(reuse_if_open=True)
    try:
        return (statements(db)(NEWEST_APPLIED).fetchone()[0] or "") >= newest
    except StorageError:  # there is no such table yet
        return False


def _run_migrations(db: Any) -> None:
    from playhouse.migrations import Runner  # 12 ms, 2 MB: for a change only

    Runner(db, str(MIGRATIONS)).up()


def open_database(url: str, sqlite_path: Path | None, threads: int) -> None:
    """Bind the models to a migrated database for the rest of the process."""
    db = connect(url, sqlite_path, threads)
    use(db, db if sqlite_path is None else LimitsFile(sqlite_path))


def use(db: Any, limits_db: Any) -> None:
    """Bind the models to a database, and the rate limits to theirs."""
    global execute, write, limits, _hash_key
    database.initialize(db)
    execute = statements(db)
    daily_salt.cache_clear()
    write = GroupCommit(db) if is_sqlite(db) else _write_apart
    limits = RateLimits(limits_db)
    _hash_key = bytes.fromhex(Setting.once("hash_key", secrets.token_hex(32)))


def local_secret() -> str:
    """Return the signing key of a service that was given none, made once."""
    return Setting.once("secret_key", secrets.token_urlsafe(48))


def schema_version() -> str:
    """Return the name of the newest migration that was applied."""
    return str(execute(NEWEST_APPLIED).fetchone()[0])


def release() -> None:
    """Give a pooled connection back; a SQLite thread keeps its own.

    Closing the last connection of a SQLite file checkpoints and deletes the WAL,
    which would cost each request four times its own work.
    """
    if not is_sqlite() and not database.is_closed():
        database.close()


def hang_up() -> None:
    """Close this thread's connection: the thread is about to end."""
    database.close()


def close_database() -> None:
    """Close this thread's connection, and what all threads share."""
    limits.close()
    database.close_all()


def is_sqlite(db: Any = database) -> bool:
    """Tell whether a database, or the models' one, is a SQLite file."""
    return isinstance(getattr(db, "obj", db), SqliteDatabase)


def database_size() -> int:
    """Return how many bytes the database takes."""
    sql = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if is_sqlite()
        else "SELECT pg_database_size(current_database())"
    )
    return int(execute(sql).fetchone()[0])


# --- statements ------------------------------------------------------------------


def statements(db: Any) -> Callable[..., Any]:
    """Return what runs one constant statement, with ``?`` for parameters everywhere.

    On SQLite it goes past peewee, whose cursor costs as much as a short statement.
    """
    if is_sqlite(db):
        return lambda sql, *params: db.connection().execute(sql, params)
    return lambda sql, *params: db.execute_sql(sql.replace("?", db.param), params)


execute: Callable[..., Any]  # on the database that the models are bound to


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

# --- writing ---------------------------------------------------------------------


class _Job:
    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class GroupCommit:
    """Writes to SQLite, one at a time and many to a commit.

    SQLite has one writer and syncs the disk at each commit. The first thread that
    gets its turn commits everything queued by then in one transaction; each caller
    returns only after the commit that holds its own work. When a batch fails, its
    jobs are done again one by one, so that a bad job fails alone: a job may run
    twice and must have no effect but on the database.
    """

    def __init__(self, db: SqliteFile) -> None:
        self._db = db
        self._queue: list[_Job] = []
        self._queued = threading.Lock()
        self._turn = threading.Lock()

    def __call__(self, work: Callable[[], Any]) -> Any:
        job = _Job(work)
        with self._queued:
            self._queue.append(job)
        with self._turn:
            if not job.done:
                self._commit()
        if not job.done:  # the leader died with it
            raise OperationalError("not committed")
        if job.error is not None:
            raise job.error
        return job.result

    def _commit(self) -> None:
        with self._queued:
            batch, self._queue = self._queue, []
        self._run(batch)
        for job in batch:
            job.done = True

    def _run(self, batch: list[_Job]) -> None:
        began = False
        try:
            with self._db.writing():
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


def _write_apart(work: Callable[[], Any]) -> Any:
    """Run one job in a transaction of its own (Postgres has many writers)."""
    with database.atomic():
        return work()


write: Callable[[Callable[[], Any]], Any] = _write_apart


# --- small tables ----------------------------------------------------------------


class Table(Model):
    class Meta:
        database = database


class Setting(Table):
    """What the service remembers about itself: secrets and daily salts."""

    name = TextField(primary_key=True)
    value = TextField()

    @classmethod
    def once(cls, name: str, value: str) -> str:
        """Return a setting's value, storing this one when there is none yet."""

        def job() -> str:
            insert("setting", {"name": name, "value": value}, conflict=IGNORE)
            return str(cls.get_value(name))

        return cls.get_value(name) or str(write(job))

    @classmethod
    def get_value(cls, name: str) -> str | None:
        """Return a setting's value or None."""
        row = execute("SELECT value FROM setting WHERE name = ?", name).fetchone()
        return None if row is None else str(row[0])


class Tally(Table):
    """Counts of what is limited for all clients together: per day, hour or ever."""

    name = TextField()
    period = TextField()
    n = IntegerField()

    class Meta:
        primary_key = CompositeKey("name", "period")

    @staticmethod
    def take(name: str, period: str, ceiling: int, n: int = 1) -> bool:
        """Count n more unless that passes the ceiling; call it within write()."""
        if n > ceiling:
            return False
        sql = (
            "INSERT INTO tally (name, period, n) VALUES (?, ?, ?) "
            "ON CONFLICT (name, period) DO UPDATE SET n = tally.n + excluded.n "
            "WHERE tally.n + excluded.n <= ? RETURNING n"
        )
        return execute(sql, name, period, n, ceiling).fetchone() is not None

    @classmethod
    def count(cls, name: str, first: str, last: str) -> int:
        """Return the sum of all periods from the first to the last."""
        sql = (
            "SELECT coalesce(sum(n), 0) FROM tally "
            "WHERE name = ? AND period BETWEEN ? AND ?"
        )
        return int(execute(sql, name, first, last).fetchone()[0])


class Receipt(Table):
    """Which message a submission became, while a repeat must find it again."""

    key = TextField(primary_key=True)
    message_id = TextField()
    expires_at = DoubleField()

    class Meta:
        without_rowid = True

    @staticmethod
    def claim(key: str, message_id: str, now: float, seconds: int) -> str:
        """Return the message that owns the key, this one if none does yet."""
        sql = (
            "INSERT INTO receipt (key, message_id, expires_at) VALUES (?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET "
            "message_id = CASE WHEN receipt.expires_at <= ? "
            "THEN excluded.message_id ELSE receipt.message_id END, "
            "expires_at = CASE WHEN receipt.expires_at <= ? "
            "THEN excluded.expires_at ELSE receipt.expires_at END "
            "RETURNING message_id"
        )
        row = execute(sql, key, message_id, now + seconds, now, now).fetchone()
        return str(row[0])

    @classmethod
    def claim_all(cls, keys: Mapping[str, int], message_id: str, now: float) -> str:
        """Return the message that one of the keys belongs to, this one if none does.

        keys: the seconds that each holds. Those before the one that was known belong
        to its message from now on; those after it stay as they are.
        """
        claimed: list[str] = []
        for key, seconds in keys.items():
            owner = cls.claim(key, message_id, now, seconds)
            if owner != message_id:
                for mine in claimed:
                    sql = "UPDATE receipt SET message_id = ? WHERE key = ?"
                    execute(sql, owner, mine)
                return owner
            claimed.append(key)
        return message_id


# --- messages --------------------------------------------------------------------


class Judgement(NamedTuple):
    """How much a message looks like spam, and what follows."""

    points: int = 0
    reasons: Sequence[str] = ()
    doubtful: bool = False
    held: bool = False


class Message(Table):
    """What a visitor wrote; held while it looks like spam."""

    id = TextField(primary_key=True)
    received_at = DoubleField()
    name = TextField()
    email = TextField()
    subject = TextField()
    message = TextField()
    fields = TextField()  # JSON object, in the order of the form
    page = TextField()
    client = TextField()  # /24 or /48
    spam_score = IntegerField()
    spam_reasons = TextField()  # JSON list
    echo = TextField()  # fingerprint of the text, see spam.py
    doubtful = BooleanField()  # delivered with a mark in the subject
    held_at = DoubleField(null=True)
    digested_at = DoubleField(null=True)
    released_at = DoubleField(null=True)
    mailed_at = DoubleField(null=True)

    @classmethod
    def receive(
        cls,
        values: Mapping[str, Any],
        judge: Callable[[int], Judgement | None],
        *,
        keys: Mapping[str, int],
        now: float,
    ) -> str | None:
        """Store a message and its outgoing mail, once, and return its id.

        judge is told how many other clients sent a near-identical text (see echoes());
        where it returns None, nothing is stored, and None returned.

        A submission with one of the same keys (see Receipt.claim_all) finds the first
        message again. A held one gets no mail; over the hourly ceilings a
        doubtful one is held too, and a held one only counted.
        """
        message_id = new_id(now)

        def job() -> str | None:
            # Asked here, since the writer knows its pages: elsewhere 25 us more.
            verdict = judge(cls.echoes(values["echo"], values["client"], now))
            if verdict is None:
                return None
            owner = Receipt.claim_all(keys, message_id, now)
            if owner != message_id:
                return owner
            row = {
                **values,
                "id": message_id,
                "received_at": now,
                "fields": to_json(values["fields"]) if values["fields"] else "{}",
                "spam_score": verdict.points,
                "spam_reasons": to_json(verdict.reasons) if verdict.reasons else "[]",
                "doubtful": verdict.doubtful,
            }
            if verdict.held or (verdict.doubtful and not cls._may_deliver(now)):
                cls._hold(row, now)
            else:
                insert("message", row)
                Delivery.add("contact", message_id, now)
            return message_id

        return write(job)  # type: ignore[no-any-return]

    @staticmethod
    def _may_deliver(now: float) -> bool:
        return Tally.take("doubtful", hour_of(now), DOUBTFUL_PER_HOUR)

    @staticmethod
    def _hold(row: Mapping[str, Any], now: float) -> None:
        weight = 1 + (len(row["message"]) + len(row["fields"])) // 4096
        if Tally.take("held", hour_of(now), HELD_PER_HOUR, weight):
            insert("message", {**row, "doubtful": False, "held_at": now})
        else:
            Tally.take("held, not stored", day_of(now), UNLIMITED)

    @classmethod
    def echoes(cls, echo: str, client: str, now: float) -> int:
        """Count the other clients that sent a near-identical text in the last day.

        Of a flood only the newest 20 are looked at: counting all would take longer
        with each. The partial index wants its condition said again.
        """
        if not echo:
            return 0
        sql = (
            "SELECT client FROM message WHERE echo = ? AND echo <> '' "
            "AND received_at > ? ORDER BY received_at DESC LIMIT 20"
        )
        rows = execute(sql, echo, now - DAY).fetchall()
        return len({row[0] for row in rows} - {client})

    @classmethod
    def release(cls, message_id: str, now: float) -> None:
        """Deliver a held message; again is harmless."""

        def job() -> None:
            released = execute(
                "UPDATE message SET released_at = ? "
                "WHERE id = ? AND held_at IS NOT NULL AND released_at IS NULL",
                now,
                message_id,
            )
            if released.rowcount:
                Delivery.add("contact", message_id, now)

        write(job)

    @classmethod
    def held_since(cls, since: float) -> int:
        """Count the messages held since a time."""
        sql = "SELECT count(*) FROM message WHERE held_at > ?"
        return int(execute(sql, since).fetchone()[0])

    @classmethod
    def start_digest(cls, now: float) -> None:
        """Queue the mail about what was held before today, once a day for all."""
        midnight = now - now % DAY

        def job() -> None:
            waiting = (
                cls.held_at < midnight,
                cls.digested_at.is_null(),
                cls.released_at.is_null(),
            )
            if not cls.select().where(*waiting).exists():
                return
            if Tally.take("digests", day_of(now), 1):
                cls.update(digested_at=now).where(*waiting).execute()
                Delivery.add("digest", repr(now), now)

        write(job)

    @classmethod
    def digested(cls, digested_at: float, most: int) -> tuple[list[Message], int]:
        """Return a digest's messages, and how many more there are."""
        held = cls.select().where(cls.digested_at == digested_at).order_by(cls.id)
        return list(held.limit(most)), max(0, held.count() - most)

    def as_dict(self) -> dict[str, Any]:
        """Return the message as it is exported."""
        return {
            "id": self.id,
            "received_at": iso(self.received_at),
            "name": self.name,
            "email": self.email,
            "subject": self.subject,
            "message": self.message,
            "fields": json.loads(self.fields),
            "page": self.page,
            "spam_score": self.spam_score,
            "spam_reasons": json.loads(self.spam_reasons),
            "held": self.held_at is not None and self.released_at is None,
            "mailed_at": iso(self.mailed_at),
        }


def new_id(now: float) -> str:
    """Return a random id that sorts by time."""
    return f"{int(now * 1000):012x}{secrets.token_hex(8)}"


# --- subscribers -----------------------------------------------------------------


class Subscriber(Table):
    """One mailbox on the sign-up list.

    Pending until confirmed_at, and gone from the list at left_at; from then on only
    the keyed hash of the mailbox remains. refused_at: "this was not me".
    """

    id = TextField(primary_key=True)
    mailbox = TextField(unique=True)  # keyed hash, see mailbox_key()
    cycle = TextField()  # a confirmation link of an earlier sign-up is void
    email = TextField(null=True)
    name = TextField(null=True)
    page = TextField()
    client = TextField()
    wording = TextField()
    asked_at = DoubleField()
    mailed = TextField()  # JSON list: when confirmation mails went out
    confirmed_at = DoubleField(null=True)
    left_at = DoubleField(null=True)
    gone_at = DoubleField(null=True)  # the left_at before this sign-up
    refused_at = DoubleField(null=True)

    @property
    def status(self) -> str:
        """Return pending, confirmed or left."""
        if self.left_at is not None:
            return "left"
        return "pending" if self.confirmed_at is None else "confirmed"

    @classmethod
    def ask(
        cls,
        email: str,
        name: str,
        *,
        page: str,
        client: str,
        now: float,
        mails_per_day: int,
    ) -> None:
        """Sign an address up: write a confirmation mail unless it had its share.

        What else was typed is kept with a mail only: without one nothing can follow.

        A confirmed address stays as it is. The time of the answer does not tell what
        is known of an address: the same statements run, but for one that a mail costs,
        and all sync the disk once.
        """
        mailbox = mailbox_key(email)
        subscriber_id, cycle = new_id(now), secrets.token_hex(4)

        def job() -> None:
            if not is_sqlite():  # there is no row yet that could be locked
                execute("SELECT pg_advisory_xact_lock(hashtext(?))", mailbox)
            row = cls._locked("mailbox", mailbox) or cls(
                id=subscriber_id,
                mailbox=mailbox,
                cycle=cycle,
                email=email,
                page="",
                client=client,
                wording=CONSENT,
                asked_at=now,
                mailed="[]",
            )
            may_ask = row.status != "confirmed" and row.refused_at is None
            if may_ask and row._mail_again(now, mails_per_day):
                # A link confirms the very address that it was mailed to.
                if row.status == "left" or row.email != email:
                    row.cycle = cycle
                row.email, row.name = email, name
                row.page, row.client = page, client
                row.wording, row.asked_at = CONSENT, now
                row.gone_at = row.left_at or row.gone_at
                row.left_at = row.confirmed_at = None
            else:  # SQLite would write nothing where a row stays as it is
                Tally.take("sign-ups without a mail", day_of(now), UNLIMITED)
            row._store()

        write(job)

    @classmethod
    def ask_again(cls, subscriber_id: str, now: float, mails_per_day: int) -> None:
        """Write a new confirmation mail to a pending address, within its share."""

        def job() -> None:
            row = cls._locked("id", subscriber_id)
            if row is not None and row.status == "pending":
                row.asked_at = now
                row._mail_again(now, mails_per_day)
                row._store()

        write(job)

    @classmethod
    def confirm(cls, subscriber_id: str, cycle: str, now: float, sync: bool) -> bool:
        """Confirm a pending address; return whether it is confirmed now."""

        def job() -> bool:
            row = cls._locked("id", subscriber_id)
            if row is None or row.cycle != cycle or row.status == "left":
                return False
            if row.status == "pending":
                row.confirmed_at = now
                row._store()
                if sync:
                    Delivery.add("list", row.email, now)
            return True

        return bool(write(job))

    @classmethod
    def leave(
        cls, subscriber_id: str, now: float, sync: bool, refuse: bool = False
    ) -> bool:
        """Unsubscribe and forget the address; return whether there was such a row.

        With refuse the address also gets no more confirmation mails, ever.
        """

        def job() -> bool:
            row = cls._locked("id", subscriber_id)
            if row is None:
                return False
            if refuse and row.refused_at is None:
                row.refused_at = now
            if row.status != "left":
                if sync and row.status == "confirmed":
                    Delivery.add("list", row.email, now)
                row.left_at = now
                row.email = row.name = None
            row._store()
            return True

        return bool(write(job))

    @classmethod
    def standing(cls, email: str) -> str:
        """Return what an address is at this moment, in this spelling.

        That is erased, left (or not confirmed), confirmed, or returned: confirmed
        again after it had left.
        """
        row = cls.get_or_none(cls.mailbox == mailbox_key(email))
        if row is None:
            return "erased"
        if row.status != "confirmed" or row.email != email:
            return "left"
        return "confirmed" if row.gone_at is None else "returned"

    @classmethod
    def _locked(cls, column: str, value: str) -> Any:
        # SQLite's only writer is alone anyway.
        lock = "" if is_sqlite() else " FOR UPDATE"
        names = cls._meta.sorted_field_names
        sql = f"SELECT {', '.join(names)} FROM subscriber WHERE {column} = ?{lock}"  # noqa: S608
        row = execute(sql, value).fetchone()
        return row and cls(**dict(zip(names, row, strict=True)))

    def _store(self) -> None:
        """Write the row, new or not; save() takes 118 us to build the statement."""
        insert("subscriber", self.__data__, conflict=_store_again())

    def _mail_again(self, now: float, mails_per_day: int) -> bool:
        mailed = [t for t in json.loads(self.mailed) if t > now - CONFIRM_WINDOW]
        if len(mailed) >= CONFIRM_PER_WINDOW:
            return False
        if mailed and mailed[-1] > now - CONFIRM_HOURLY:
            return False
        if not Tally.take("confirmation mails", day_of(now), mails_per_day):
            return False
        self.mailed = json.dumps([*mailed, now])
        Delivery.add("confirm", self.id, now)
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return the subscriber as it is exported."""
        return {
            "email": self.email,
            "name": self.name,
            "status": self.status,
            "asked_at": iso(self.asked_at),
            "confirmed_at": iso(self.confirmed_at),
            "left_at": iso(self.left_at),
            "page": self.page,
        }


@cache
def _store_again() -> str:
    # Without the keys, whose indexes would be written too.
    columns = Subscriber._meta.sorted_field_names
    names = [name for name in columns if name not in ("id", "mailbox")]
    values = ", ".join(f"{name} = excluded.{name}" for name in names)
    return f"ON CONFLICT (id) DO UPDATE SET {values}"


def count_trapped(now: float) -> None:
    """Count a trapped sign-up: as slow as any other, and nothing else is stored."""
    write(lambda: Tally.take("sign-ups trapped", day_of(now), UNLIMITED))


def mailbox_key(email: str) -> str:
    """Return the keyed hash that spellings of one mailbox share.

    Case is folded, a ``+tag`` and Gmail's dots are dropped.
    """
    local, _, domain = email.casefold().rpartition("@")
    local = local.partition("+")[0] or local
    if domain in ("gmail.com", "googlemail.com"):
        local, domain = local.replace(".", ""), "gmail.com"
    return keyed_hash("mailbox", f"{local}@{domain}")


def keyed_hash(*parts: str) -> str:
    """Return a hash that only this database can compute.

    Its key is kept in the database: it outlives a change of SECRET_KEY, as the memory
    of who left the list must.
    """
    text = "\0".join(parts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, key=_hash_key, digest_size=20).hexdigest()


# --- outbox ----------------------------------------------------------------------


class Delivery(Table):
    """One thing that Mailjet is to be told; the row is gone once it has been.

    due_at doubles as the lease: claiming a row moves it into the future, and whoever
    dies with it leaves it to the others then. NULL: dead, kept for the owner.
    """

    id = BigAutoField()
    kind = TextField()  # contact, confirm, digest, list or test
    ref = TextField()  # message id, subscriber id, time of digest or address
    created_at = DoubleField()
    due_at = DoubleField(null=True)
    attempts = IntegerField(default=0)
    lease = TextField(null=True)
    error = TextField(null=True)

    @staticmethod
    def add(kind: str, ref: str, now: float) -> None:
        """Queue a delivery; call it in the write() of what causes it."""
        row = {"kind": kind, "ref": ref, "created_at": now, "due_at": now}
        insert("delivery", {**row, "attempts": 0})

    @classmethod
    def claim(cls, now: float, seconds: float) -> Delivery | None:
        """Lease the delivery that is due for longest, or return None.

        The outer condition repeats the inner one: on Postgres two claimants may pick
        the same row, and the second finds it no longer due.
        """

        def job() -> Delivery | None:
            lease = secrets.token_hex(8)
            row = execute(
                "UPDATE delivery SET due_at = ?, attempts = attempts + 1, lease = ? "
                "WHERE id = (SELECT id FROM delivery WHERE due_at <= ? "
                "ORDER BY due_at, created_at LIMIT 1) AND due_at <= ? "
                "RETURNING id, kind, ref, created_at, attempts",
                now + seconds,
                lease,
                now,
                now,
            ).fetchone()
            if row is None:
                return None
            columns = ("id", "kind", "ref", "created_at", "attempts")
            return cls(lease=lease, **dict(zip(columns, row, strict=True)))

        return write(job)  # type: ignore[no-any-return]

    @classmethod
    def next_due(cls) -> float | None:
        """Return when the next delivery is due, None when there is none."""
        row = execute("SELECT min(due_at) FROM delivery").fetchone()
        return None if row[0] is None else float(row[0])

    def done(self, now: float) -> None:
        """Forget a delivery that was accepted."""

        def job() -> None:
            deleted = execute(
                "DELETE FROM delivery WHERE id = ? AND lease = ?", self.id, self.lease
            )
            if deleted.rowcount and self.kind == "contact":
                execute("UPDATE message SET mailed_at = ? WHERE id = ?", now, self.ref)

        write(job)

    def put_back(self, due_at: float | None, error: str, attempts: int) -> None:
        """Try again at a time, or never (None); the lease is over."""

        def job() -> None:
            execute(
                "UPDATE delivery SET due_at = ?, error = ?, attempts = ?, lease = NULL "
                "WHERE id = ? AND lease = ?",
                due_at,
                error,
                attempts,
                self.id,
                self.lease,
            )

        write(job)

    @classmethod
    def summary(cls, now: float) -> dict[str, int]:
        """Return how many wait, for how long the oldest, and how many are dead."""
        waiting, oldest, dead = execute(
            "SELECT count(due_at), min(CASE WHEN due_at IS NOT NULL THEN created_at "
            "END), count(*) - count(due_at) FROM delivery"
        ).fetchone()
        age = 0 if oldest is None else max(0, int(now - oldest))
        return {"waiting": waiting, "oldest_seconds": age, "dead": dead}


# --- hits ------------------------------------------------------------------------


class Page(Table):
    """A page's hits and visitors of all days."""

    page = TextField(primary_key=True)
    hits = BigIntegerField()
    visitors = BigIntegerField()

    class Meta:
        without_rowid = True

    @classmethod
    def totals(cls, page: str) -> tuple[int, int]:
        """Return (hits, visitors), both 0 for a page that was never counted."""
        row = execute("SELECT hits, visitors FROM page WHERE page = ?", page).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    @classmethod
    def admit(cls, page: str, may_add: Callable[[], bool], max_pages: int) -> str:
        """Add a page; return the one that counts, /(other) where there is no room."""

        def job() -> bool:
            row = {"page": page, "hits": 0, "visitors": 0}
            if not insert("page", row, conflict=IGNORE):  # somebody was faster
                return True
            if Tally.take("pages", "", max_pages):
                return True
            execute("DELETE FROM page WHERE page = ?", page)
            return False

        return page if may_add() and write(job) else OTHER_PAGES


class Hit(Table):
    """A page's hits and visitors of one day."""

    page = TextField()
    day = TextField()
    hits = BigIntegerField()
    visitors = BigIntegerField()

    class Meta:
        primary_key = CompositeKey("page", "day")
        without_rowid = True

    @classmethod
    def count(
        cls, page: str, visitor: str | None, now: float
    ) -> tuple[int, int] | None:
        """Count one hit and return the page's (hits, visitors).

        visitor is the daily keyed hash of a browser (see Visitor), or None when an
        image proxy hides it. None comes back, and nothing is counted, for a page that
        was never admitted.
        """
        day = day_of(now)

        def job() -> tuple[int, int] | None:
            new = 0
            if visitor is not None:
                sql = (
                    "INSERT INTO visitor (day, hash) SELECT ?, ? WHERE EXISTS "
                    "(SELECT 1 FROM page WHERE page = ?) ON CONFLICT DO NOTHING"
                )
                new = execute(sql, day, visitor, page).rowcount
            totals = execute(
                "UPDATE page SET hits = hits + 1, visitors = visitors + ? "
                "WHERE page = ? RETURNING hits, visitors",
                new,
                page,
            ).fetchone()
            if totals is None:
                return None
            execute(
                "INSERT INTO hit (page, day, hits, visitors) VALUES (?, ?, 1, ?) "
                "ON CONFLICT (page, day) DO UPDATE SET hits = hit.hits + 1, "
                "visitors = hit.visitors + excluded.visitors",
                page,
                day,
                new,
            )
            return totals[0], totals[1]

        return write(job)  # type: ignore[no-any-return]

    @classmethod
    def days(cls, page: str, days: int, now: float) -> list[tuple[str, int, int]]:
        """Return (day, hits, visitors) for the last days, oldest first, gaps as 0."""
        wanted = _days_until(day_of(now), days)
        rows = execute(
            "SELECT day, hits, visitors FROM hit WHERE page = ? AND day >= ?",
            page,
            wanted[0],
        ).fetchall()
        counted = {row[0]: (row[1], row[2]) for row in rows}
        return [(day, *counted.get(day, (0, 0))) for day in wanted]


@lru_cache(maxsize=16)
def _days_until(last: str, days: int) -> list[str]:
    end = date.fromisoformat(last)
    return [(end - timedelta(n)).isoformat() for n in range(days - 1, -1, -1)]


class Visitor(Table):
    """Who was on a page today, as a hash that nobody can undo tomorrow."""

    day = TextField()
    hash = TextField()

    class Meta:
        primary_key = CompositeKey("day", "hash")
        without_rowid = True

    @staticmethod
    def key(page: str, address: str, user_agent: str, now: float) -> str:
        """Return the keyed hash of a browser on a page, of this UTC day."""
        digest = hashlib.blake2b(key=daily_salt(day_of(now)), digest_size=12)
        digest.update("\0".join((page, address, user_agent)).encode())
        return digest.hexdigest()


@lru_cache(maxsize=1)
def daily_salt(day: str) -> bytes:
    """Return the salt of today; delete those of earlier days, and their hashes."""
    salt = bytes.fromhex(Setting.once(f"salt {day}", secrets.token_hex(32)))

    def job() -> None:
        execute(
            # No LIKE: psycopg takes a percent sign for a parameter.
            "DELETE FROM setting WHERE substr(name, 1, 5) = 'salt ' AND name < ?",
            f"salt {day}",
        )
        execute("DELETE FROM visitor WHERE day < ?", day)

    write(job)
    return salt


# --- rate limits -----------------------------------------------------------------


class Verdict(NamedTuple):
    """May the request pass, and what is left of each window: (requests, reset)."""

    allowed: bool
    retry_after: int  # seconds, 0 when allowed
    left: list[tuple[int, int]]


class RateLimits:
    """The generic cell rate algorithm on a table that all workers share.

    On SQLite that is a LimitsFile, because the main database's commits would cost ten
    times as much; on Postgres the database itself, so that limits hold across machines.

    A row of the table "bucket" is a client's state under one window of one limit: its
    "theoretical arrival time" (tat), in microseconds.
    """

    MAX_KEYS = 200_000
    SWEEP_SECONDS = 60

    def __init__(self, db: Any) -> None:
        self._db = db
        self._execute = statements(db)
        # A connection for all threads knows its pages better than one for each.
        self._alone: Any = threading.RLock() if is_sqlite(db) else nullcontext()
        self._swept_at = 0.0

    def close(self) -> None:
        """Close the file; the next request opens it again."""
        with self._alone:
            self._db.close()

    def take(
        self, key: str, windows: Sequence[Any], now: float, spend: bool = True
    ) -> Verdict:
        """Spend one request of a key, or with spend=False only look."""
        micros = int(now * 1_000_000)
        keys = {f"{key} {window.seconds}": window for window in windows}
        with self._alone:
            if now - self._swept_at > self.SWEEP_SECONDS:
                self._swept_at = now
                self.sweep(now)
            tats = self._spend(keys, micros) if spend and keys else {}
            if spend and len(tats) == len(keys):
                left = [_left(keys[k], tats[k], micros) for k in keys]
                return Verdict(True, 0, left)
            self._give_back(keys, tats)
            return self._verdict(keys, micros, refused=spend)

    def _spend(self, keys: Mapping[str, Any], micros: int) -> dict[str, int]:
        """Spend one request of each window that has some left, in one statement."""
        rows: list[object] = []
        most: list[object] = []
        for key, window in keys.items():
            rows += key, micros + window.step
            most += key, micros + window.tolerance
        sql = _spend_sql(len(keys))
        return dict(self._execute(sql, *rows, micros, micros, *most).fetchall())

    def _give_back(self, keys: Mapping[str, Any], spent: Iterable[str]) -> None:
        """Undo what was spent of some windows where another had nothing left.

        Nobody is refused wrongly meanwhile: that other window refuses them too.
        """
        for key in spent:
            sql = "UPDATE bucket SET tat = tat - ? WHERE key = ?"
            self._execute(sql, keys[key].step, key)

    def _verdict(self, keys: Mapping[str, Any], micros: int, refused: bool) -> Verdict:
        left, wait = [], 0
        for key, window in keys.items():
            sql = "SELECT tat FROM bucket WHERE key = ?"
            row = self._execute(sql, key).fetchone()
            tat = max(int(row[0]) if row else 0, micros)
            wait = max(wait, tat - window.tolerance - micros)
            left.append(_left(window, tat, micros))
        # A refusal stays one, even if it would pass by now.
        seconds = max(math.ceil(wait / 1_000_000), int(refused))
        return Verdict(not seconds, seconds, left)

    def sweep(self, now: float) -> None:
        """Forget whoever is not limited any more, and the soonest of too many."""
        with self._alone:
            micros = int(now * 1_000_000)
            self._execute("DELETE FROM bucket WHERE tat < ?", micros)
            count = self._execute("SELECT count(*) FROM bucket").fetchone()[0]
            if count > self.MAX_KEYS:  # the soonest to expire go first
                self._execute(
                    "DELETE FROM bucket WHERE key IN "
                    "(SELECT key FROM bucket ORDER BY tat LIMIT ?)",
                    count - self.MAX_KEYS // 2,
                )


class LimitsFile(SqliteDatabase):
    """The file of RateLimits: one connection, in memory-backed storage, never synced.

    It is named after the database, so that all workers share it, and after the user:
    who may not write to another's file could limit nobody.
    """

    def __init__(self, sqlite_path: Path) -> None:
        memory = Path("/dev/shm")  # noqa: S108 # shared on purpose
        folder = memory if memory.is_dir() else Path(tempfile.gettempdir())
        whose = f"{os.getuid()} {sqlite_path}"
        name = hashlib.blake2b(whose.encode(), digest_size=8).hexdigest()
        super().__init__(
            str(folder / f"frontdesk-{name}.limits"),
            pragmas={"journal_mode": "wal", "synchronous": "off"},
            timeout=0.5,  # all threads wait one after the other
            thread_safe=False,
            check_same_thread=False,
        )

    def make(self) -> None:
        """Make the file; again is harmless."""
        self.connect()
        self.close()

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Open the file, and make it anew if somebody has tidied it away."""
        opened = bool(super().connect(reuse_if_open))
        try:
            statements(self)(
                "CREATE TABLE IF NOT EXISTS bucket "
                "(key TEXT PRIMARY KEY, tat INTEGER NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error:
            self.close()
            raise
        return opened


@cache
def _spend_sql(windows: int) -> str:
    rows = ", ".join(["(?, ?)"] * windows)
    most = " ".join(["WHEN ? THEN ?"] * windows)
    return (
        f"INSERT INTO bucket (key, tat) VALUES {rows} ON CONFLICT (key) DO UPDATE "  # noqa: S608
        "SET tat = CASE WHEN bucket.tat > ? THEN bucket.tat + excluded.tat - ? "
        f"ELSE excluded.tat END WHERE bucket.tat <= CASE bucket.key {most} END "
        "RETURNING key, tat"
    )


def _left(window: Any, tat: int, micros: int) -> tuple[int, int]:
    """Return how many requests are left, and in how many seconds all will be."""
    left = window.quota - math.ceil((tat - micros) / window.step)
    return max(0, left), math.ceil((tat - micros) / 1_000_000)


# --- the owner's view and the daily round ----------------------------------------

EXPORT_CHUNK = 500


def export(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of messages, subscribers or hits, a chunk in memory at a time."""
    model: Any = {"messages": Message, "subscribers": Subscriber}.get(name)
    last: Any = None
    try:
        while True:
            rows = _hits_after(last) if model is None else _rows_after(model, last)
            for _, row in rows:
                yield row
            if len(rows) < EXPORT_CHUNK:
                return
            last = rows[-1][0]
    finally:
        release()


def _rows_after(model: Any, last: str | None) -> list[tuple[Any, dict[str, Any]]]:
    query = model.select().order_by(model.id).limit(EXPORT_CHUNK)
    if last is not None:
        query = query.where(model.id > last)
    return [(row.id, row.as_dict()) for row in query]


def _hits_after(last: tuple[str, str] | None) -> list[tuple[Any, dict[str, Any]]]:
    rows = execute(
        "SELECT page, day, hits, visitors FROM hit WHERE (page, day) > (?, ?) "
        "ORDER BY page, day LIMIT ?",
        *(last or ("", "")),
        EXPORT_CHUNK,
    ).fetchall()
    columns = ("page", "date", "hits", "visitors")
    return [((r[0], r[1]), dict(zip(columns, r, strict=True))) for r in rows]


def erase(email: str, now: float, sync: bool) -> tuple[int, int]:
    """Delete what is kept of a person; return how many (messages, subscribers)."""
    mailbox = mailbox_key(email)

    def job() -> tuple[int, int]:
        # By one lower(): SQLite's and Python's differ beyond ASCII.
        theirs = fn.lower(Message.email) == fn.lower(email)
        ids = Message.select(Message.id).where(theirs)
        Delivery.delete().where(
            Delivery.kind == "contact", Delivery.ref.in_(ids)
        ).execute()
        Receipt.delete().where(Receipt.message_id.in_(ids)).execute()
        messages = Message.delete().where(theirs).execute()
        Delivery.delete().where(  # a list change that Mailjet never took
            Delivery.kind == "list",
            Delivery.due_at.is_null(),
            fn.lower(Delivery.ref) == fn.lower(email),
        ).execute()
        row = Subscriber.get_or_none(Subscriber.mailbox == mailbox)
        if row is not None:
            Delivery.delete().where(
                Delivery.kind == "confirm", Delivery.ref == row.id
            ).execute()
            if sync and row.status == "confirmed":
                Delivery.add("list", str(row.email), now)
            row.delete_instance()
        return messages, int(row is not None)

    return write(job)  # type: ignore[no-any-return]


@contextmanager
def backup() -> Iterator[Path]:
    """Yield a consistent copy of the SQLite file.

    VACUUM INTO reads one snapshot and keeps no writer waiting.
    """
    with tempfile.TemporaryDirectory(prefix="frontdesk-") as folder:
        copy = Path(folder) / "backup.sqlite3"
        execute("VACUUM INTO ?", str(copy))
        yield copy


def check_storage() -> None:
    """Write and delete a few pages durably; raise a StorageError if that fails.

    A full disk still reads well, so that a SELECT would not notice.
    """

    def job() -> None:
        execute("DELETE FROM setting WHERE name = 'probe'")
        execute("INSERT INTO setting (name, value) VALUES ('probe', ?)", "0" * 16384)
        execute("DELETE FROM setting WHERE name = 'probe'")

    write(job)


def clean_up(now: float, retention_days: int) -> None:
    """Delete what nobody needs any more; once a day is enough."""
    today = day_of(now)
    daily_salt(today)

    def job() -> None:
        Receipt.delete().where(Receipt.expires_at <= now).execute()
        unconfirmed = (
            Subscriber.asked_at < now - PENDING_SECONDS,
            Subscriber.confirmed_at.is_null(),
            Subscriber.left_at.is_null(),
        )
        # Who had left before is still known to have, by the hash alone.
        gone = {"left_at": Subscriber.gone_at, "email": None, "name": None}
        had_left = (*unconfirmed, Subscriber.gone_at.is_null(False))
        Subscriber.update(gone).where(*had_left).execute()
        Subscriber.delete().where(*unconfirmed).execute()
        month_ago = day_of(now - PENDING_SECONDS)
        Tally.delete().where(Tally.period != "", Tally.period < month_ago).execute()
        if retention_days:
            oldest = f"{int((now - retention_days * DAY) * 1000):012x}"
            # What still waits to be mailed is kept until it has been.
            waiting = Delivery.select(Delivery.ref).where(
                Delivery.kind == "contact", Delivery.due_at.is_null(False)
            )
            old = (Message.id < oldest) & Message.id.not_in(waiting)
            Message.delete().where(old).execute()
        # A dead one was shown for a month; of a list change it would keep the address
        # of somebody who left.
        Delivery.delete().where(
            Delivery.due_at.is_null(), Delivery.created_at < now - PENDING_SECONDS
        ).execute()

    write(job)
    with suppress(*StorageError):
        limits.sweep(now)
    if is_sqlite():
        # It reads, then writes: outside of a write, another writer makes it fail.
        write(lambda: execute("PRAGMA optimize"))
        # Not TRUNCATE: while somebody reads (a backup), it keeps all writers waiting.
        execute("PRAGMA wal_checkpoint(PASSIVE)")
