"""What every table is made of, and the two that all others use: settings and tallies.

All times are seconds since the epoch, UTC; all days are ISO dates of TIME_ZONE.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from peewee import CompositeKey, IntegerField, Model, TextField

from frontdesk.database import IGNORE, Database, current, execute, insert, transaction

DAY = 86400
UNLIMITED = 2**31 - 1
# What lies further ahead than its longest span, and this much for clocks of machines
# that differ, was written under a wrong clock: it counts as over.
SKEW = 60
START_SECONDS = 4  # for the database to say that it is there

# Made once: json.dumps() makes an encoder for each call that is not plain.
to_json = json.JSONEncoder(ensure_ascii=False).encode


def day_of(now: float) -> str:
    """Return the date of a time in the application's time zone."""
    return current().calendar.day_of(now)


def midnight(now: float) -> float:
    """Return when the day of a time began."""
    return current().calendar.midnight(day_of(now))


def day_before(now: float) -> str:
    """Return the date of yesterday: a day has 23 to 25 hours."""
    return day_of(midnight(now) - 1)


def hour_of(now: float) -> str:
    """Return the UTC date and hour of a time."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="hours")


def iso(moment: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC, or None."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")[:19] + "Z"


def new_id(now: float) -> str:
    """Return a random id that sorts by time (milliseconds)."""
    return f"{id_at(now)}{secrets.token_hex(8)}"


def id_at(now: float) -> str:
    """Return what the ids of a time begin with: milliseconds, hexadecimal."""
    return f"{max(0, int(now * 1000)):012x}"


def keyed_hash(*parts: str) -> str:
    """Return a hash that only this database can compute.

    Its key is kept in the database: it outlives a change of SECRET_KEY, as the memory
    of who left the list must.
    """
    text = "\0".join(parts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, key=current().hash_key, digest_size=20).hexdigest()


class _CurrentEngine:
    """Stands in each table for the engine of the database that a thread has entered."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current().engine, name)


class Table(Model):
    """The base of all tables."""

    class Meta:
        database = _CurrentEngine()


class Setting(Table):
    """What the service remembers about itself: secrets and daily salts."""

    name = TextField(primary_key=True)
    value = TextField()

    @classmethod
    def once(cls, name: str, value: str) -> str:
        """Return a setting's value, storing this one when there is none yet."""
        return cls.get_value(name) or cls._store(name, value)

    @classmethod
    def get_value(cls, name: str) -> str | None:
        """Return a setting's value or None."""
        row = execute("SELECT value FROM setting WHERE name = ?", name).fetchone()
        return None if row is None else str(row[0])

    @classmethod
    @transaction
    def _store(cls, name: str, value: str) -> str:
        insert("setting", {"name": name, "value": value}, conflict=IGNORE)
        return str(cls.get_value(name))


def trusted(table: str, now: float) -> float:
    """Return the time, or two days after the newest sign of life if that is sooner.

    A clock that is a year ahead for a moment must not delete what is kept. The last
    round is a sign of life once it is half a day old: a worker whose clock is wrong may
    have made it seconds ago. So after a long sleep, a round of the next day deletes
    what the first one has left.

    table: whose ids tell when its newest row was made.
    """
    sql = f"SELECT max(id) FROM {table} WHERE id < ?"  # noqa: S608
    newest = execute(sql, id_at(now + SKEW)).fetchone()[0] or "0"
    seen = [int(newest[:12], 16) / 1000]
    last = float(Setting.get_value("last round") or 0)
    if not now - DAY / 2 < last <= now + SKEW:
        seen.append(last)
        row = {"name": "last round", "value": repr(now)}
        insert(
            "setting", row, "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        )
    return min(now, max((t for t in seen if t <= now + SKEW), default=now) + 2 * DAY)


class Tally(Table):
    """Counts of what is limited for all clients together: per day, hour or ever."""

    name = TextField()
    period = TextField()
    n = IntegerField()

    class Meta:
        primary_key = CompositeKey("name", "period")

    @staticmethod
    @transaction
    def spend(name: str, period: str, ceiling: int, n: int = 1) -> bool:
        """Count n more and return True, unless that passes the ceiling."""
        if n > ceiling:
            return False
        sql = (
            "INSERT INTO tally (name, period, n) VALUES (?, ?, ?) "
            "ON CONFLICT (name, period) DO UPDATE SET n = tally.n + excluded.n "
            "WHERE tally.n + excluded.n <= ?"
        )
        return bool(execute(sql, name, period, n, ceiling).rowcount)

    @staticmethod
    def last(name: str, before: str) -> str:
        """Return the last period before one in which something was counted, or ""."""
        sql = "SELECT max(period) FROM tally WHERE name = ? AND period < ?"
        return execute(sql, name, before).fetchone()[0] or ""

    @classmethod
    @transaction
    def spend_all(cls, ceilings: Mapping[str, int], period: str, n: int = 1) -> bool:
        """Count n more of each name, or, where one has no room, of none."""
        spent: list[str] = []
        for name, ceiling in ceilings.items():
            if not cls.spend(name, period, ceiling, n):
                for other in spent:
                    cls.give_back(other, period, n)
                return False
            spent.append(name)
        return True

    @staticmethod
    def give_back(name: str, period: str, n: int) -> None:
        """Count n less, in the transaction of what does without them."""
        sql = "UPDATE tally SET n = n - ? WHERE name = ? AND period = ?"
        execute(sql, n, name, period)

    @classmethod
    def count(cls, name: str, first: str, last: str) -> int:
        """Return the sum of all periods from the first to the last."""
        sql = (
            "SELECT coalesce(sum(n), 0) FROM tally "
            "WHERE name = ? AND period BETWEEN ? AND ?"
        )
        return int(execute(sql, name, first, last).fetchone()[0])


@transaction
def check_storage() -> None:
    """Write and delete a few pages durably; raise a StorageError if that fails.

    A full disk still reads well, so that a SELECT would not notice.
    """
    execute("DELETE FROM setting WHERE name = 'probe'")
    execute("INSERT INTO setting (name, value) VALUES ('probe', ?)", "0" * 16384)
    execute("DELETE FROM setting WHERE name = 'probe'")


def prepare(database: Database) -> None:
    """Make or update a database's schema, and enter it."""
    database.enter(START_SECONDS)
    database.migrate()
    key = Setting.once("hash_key", secrets.token_hex(32))
    database.hash_key = bytes.fromhex(key)
    database.enter()


def local_secret() -> str:
    """Return the signing key of a service that was given none, made once."""
    return Setting.once("secret_key", secrets.token_urlsafe(48))
