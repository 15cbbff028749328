"""Rate limits, exact over all processes (and, on Postgres, all machines).

The generic cell rate algorithm (GCRA, ITU-T I.371): a client's whole state under one
window is its "theoretical arrival time" (tat), the time at which all its requests so
far would have come at an even pace. A request passes while the tat lies no further
ahead than a burst allows.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from peewee import SqliteDatabase

from frontdesk.database import Database, StorageError, file_lock
from frontdesk.settings import Window

log = logging.getLogger("frontdesk")

MICROS = 1_000_000  # tats are whole microseconds
# A tat that lies further ahead than its window, and this much for clocks that differ,
# comes from a clock that was wrong: it counts as over.
SKEW = 10 * MICROS
LONGEST = 86400 * MICROS  # of all windows
MEMORY = Path("/dev/shm")  # noqa: S108 # storage in memory that processes share


class Allowance(NamedTuple):
    """May the request pass, and what is left of each window: (requests, seconds)."""

    allowed: bool
    retry_after: int  # seconds, 0 when allowed
    left: list[tuple[int, int]]


class RateLimits:
    """Spends requests from named windows; its table is "bucket", one row a key.

    On SQLite that is a file in memory (LimitsFile), because the main database's synced
    commits would cost ten times as much; on Postgres it is the database itself, so
    that limits hold across machines.
    """

    MAX_KEYS = 200_000
    SWEEP_SECONDS = 60

    def __init__(self, database: Database) -> None:
        self._file = LimitsFile(database.path) if database.path else None
        self.execute: Callable[..., Any] = (self._file or database).execute
        # All threads share the file's connection, so that it keeps its page cache.
        self._alone: AbstractContextManager[Any] = (
            threading.RLock() if self._file else nullcontext()
        )
        self._swept_at = 0.0

    def close(self) -> None:
        """Close the file; the next request opens it again."""
        if self._file:
            with self._alone:
                self._file.close()

    def take(self, key: str, windows: Sequence[Window], now: float) -> Allowance:
        """Spend one request of a key; now: seconds since the epoch.

        Raises a StorageError.
        """
        micros = int(now * MICROS)
        keys = {f"{key} {window.seconds}": window for window in windows}
        with self._alone:
            if not 0 <= now - self._swept_at <= self.SWEEP_SECONDS:
                self._swept_at = now
                self.sweep(now)
            tats = self._spend(keys, micros)
            if len(tats) == len(keys):
                left = [_left(keys[k], tats[k], micros) for k in keys]
                return Allowance(True, 0, left)
            # Nobody is refused wrongly meanwhile: the window that had nothing left
            # refuses them too.
            self.give_back(key, [keys[spent] for spent in tats])
            return self._refusal(keys, micros)

    def _spend(self, keys: Mapping[str, Window], micros: int) -> dict[str, int]:
        """Spend one request of each window that has some left, in one statement."""
        rows: list[object] = []
        most: list[object] = []
        over: list[object] = []
        for key, window in keys.items():
            rows += key, micros + window.step
            most += key, micros + window.tolerance
            over += key, micros + window.seconds * MICROS + SKEW
        sql = _spend_sql(len(keys))
        spent = self.execute(sql, *rows, micros, *most, micros, *most, *over)
        return dict(spent.fetchall())

    def give_back(self, key: str, windows: Sequence[Window]) -> None:
        """Undo what take() has spent."""
        sql = "UPDATE bucket SET tat = tat - ? WHERE key = ?"
        with self._alone:
            for window in windows:
                self.execute(sql, window.step, f"{key} {window.seconds}")

    def _refusal(self, keys: Mapping[str, Window], micros: int) -> Allowance:
        left, wait = [], 0
        for key, window in keys.items():
            sql = "SELECT tat FROM bucket WHERE key = ?"
            row = self.execute(sql, key).fetchone()
            tat = max(int(row[0]) if row else 0, micros)
            if tat > micros + window.seconds * MICROS + SKEW:
                tat = micros
            wait = max(wait, tat - window.tolerance - micros)
            left.append(_left(window, tat, micros))
        # A second at least: what was refused stays so, even if it would pass by now.
        return Allowance(False, max(math.ceil(wait / MICROS), 1), left)

    def sweep(self, now: float) -> None:
        """Forget whoever is not limited any more, and the soonest of too many."""
        with self._alone:
            micros = int(now * MICROS)
            sql = "DELETE FROM bucket WHERE tat < ? OR tat > ?"
            self.execute(sql, micros, micros + LONGEST + SKEW)
            count = self.execute("SELECT count(*) FROM bucket").fetchone()[0]
            if count > self.MAX_KEYS:
                self.execute(
                    "DELETE FROM bucket WHERE key IN "
                    "(SELECT key FROM bucket ORDER BY tat LIMIT ?)",
                    count - self.MAX_KEYS // 2,
                )


class Limits:
    """Named policies for clients: which windows, whether one may go on, what to say.

    policies: for each name its windows, of which every one must have room.
    """

    def __init__(
        self,
        store: RateLimits,
        policies: Mapping[str, Sequence[Window]],
        clock: Callable[[], float],
    ) -> None:
        self.store = store
        self._policies = policies
        self._clock = clock

    def take(self, policy: str, client: str) -> Allowance | None:
        """Spend one request of a client; None if it cannot be told what is left.

        A limiter in trouble must not cost a message: everybody may pass.
        """
        windows = self._policies[policy]
        try:
            return self.store.take(f"{policy} {client}", windows, self._clock())
        except StorageError as error:
            log.error("rate limits do not work (%s)", type(error).__name__)
            return None

    def spend(self, policy: str, client: str) -> bool:
        """Spend one request, and tell whether the client may go on."""
        allowance = self.take(policy, client)
        return allowance is None or allowance.allowed

    def give_back(self, policy: str, client: str) -> None:
        """Undo what take() has spent of a client's allowance."""
        with suppress(*StorageError):
            self.store.give_back(f"{policy} {client}", self._policies[policy])

    def headers(self, policy: str, allowance: Allowance) -> dict[str, str]:
        """Return RateLimit and RateLimit-Policy, as an IETF draft has them.

        draft-ietf-httpapi-ratelimit-headers
        """
        names, described = _described(policy, tuple(self._policies[policy]))
        left = zip(names, allowance.left, strict=True)
        return {
            "RateLimit-Policy": described,
            "RateLimit": ", ".join(f'"{name}";r={r};t={t}' for name, (r, t) in left),
        }

    def sweep(self) -> None:
        """Forget whoever is not limited any more."""
        with suppress(*StorageError):
            self.store.sweep(self._clock())


@lru_cache(maxsize=64)
def _described(policy: str, windows: tuple[Window, ...]) -> tuple[list[str], str]:
    alone = len(windows) == 1
    names = [policy if alone else f"{policy}-{w.seconds}s" for w in windows]
    described = [
        f'"{name}";q={w.quota};w={w.seconds}'
        for name, w in zip(names, windows, strict=True)
    ]
    return names, ", ".join(described)


@cache
def _spend_sql(windows: int) -> str:
    rows = ", ".join(["(?, ?)"] * windows)
    bound = f"CASE bucket.key {' '.join(['WHEN ? THEN ?'] * windows)} END"
    return (
        f"INSERT INTO bucket (key, tat) VALUES {rows} ON CONFLICT (key) DO UPDATE "  # noqa: S608
        f"SET tat = CASE WHEN bucket.tat > ? AND bucket.tat <= {bound} "
        "THEN bucket.tat + excluded.tat - ? ELSE excluded.tat END "
        f"WHERE bucket.tat <= {bound} OR bucket.tat > {bound} RETURNING key, tat"
    )


def _left(window: Window, tat: int, micros: int) -> tuple[int, int]:
    """Return how many requests are left, and in how many seconds all will be."""
    left = window.quota - math.ceil((tat - micros) / window.step)
    return max(0, left), math.ceil((tat - micros) / MICROS)


class LimitsFile:
    """A SQLite file with one connection, in memory-backed storage, never synced.

    All workers of a database share it: it is named after that database's path. It
    lies in a folder that only this user can read or write.
    """

    def __init__(self, database_path: Path) -> None:
        digest = hashlib.blake2b(str(database_path).encode(), digest_size=8)
        folder = private_folder(MEMORY / f"frontdesk-{os.getuid()}")
        self.path = (folder or database_path.parent) / f"{digest.hexdigest()}.limits"
        self._engine = SqliteDatabase(
            str(self.path),
            pragmas={"journal_mode": "wal", "synchronous": "off"},
            timeout=0.5,  # all threads wait one after the other
            thread_safe=False,
            check_same_thread=False,
        )

    def execute(self, sql: str, *params: object) -> Any:
        """Run one statement, on a file that is made where there is none."""
        if self._engine.is_closed():
            self._open()
        connection: Any = self._engine.connection()  # type: ignore[no-untyped-call]
        return connection.execute(sql, params)

    def _open(self) -> None:
        try:
            # Where several processes switch a file to WAL at once, some find it locked.
            with file_lock(self.path.with_suffix(".lock")):
                for part in ("", "-wal", "-shm"):
                    _refuse_a_trap(self.path.with_name(self.path.name + part))
                self._engine.connect()
                self.execute(
                    "CREATE TABLE IF NOT EXISTS bucket "
                    "(key TEXT PRIMARY KEY, tat INTEGER NOT NULL) WITHOUT ROWID"
                )
        except OSError as error:
            raise sqlite3.OperationalError(type(error).__name__) from error
        except sqlite3.Error:
            self._engine.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._engine.close()


def _refuse_a_trap(path: Path) -> None:
    """Raise OSError for a link, or a file that others have made or may change."""
    with suppress(FileNotFoundError):
        if not _is_private(path, stat.S_ISREG):
            raise PermissionError(f"{path} is not this user's own")


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Tell whether only this user may use a file or folder; raises OSError."""
    found = path.lstat()
    ours = found.st_uid == os.getuid() and not found.st_mode & 0o077
    return ours and is_kind(found.st_mode)


def private_folder(path: Path) -> Path | None:
    """Make a folder of mode 0700; None where another user has laid something there."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        return path if _is_private(path, stat.S_ISDIR) else None
    except OSError:
        return None
