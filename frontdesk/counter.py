"""The hit counter's tables: pages, their hits of each day, and today's visitors.

Days are ISO dates of the application's time zone. Those that were counted stay what
they were when TIME_ZONE changes.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import date, timedelta
from functools import lru_cache

from peewee import BigIntegerField, CompositeKey, TextField

from frontdesk.database import IGNORE, current, execute, insert, transaction
from frontdesk.tables import Setting, Table, Tally

OTHER_PAGES = "/(other)"
ALL_PAGES = "*"  # no page: a page's path begins with a slash
EVICTED_AT_ONCE = 500  # pages, so that no visitor waits long for the database

DayHits = tuple[str, int, int]  # day, hits, visitors


class Page(Table):
    """A page's hits and visitors of all days."""

    page = TextField(primary_key=True)
    hits = BigIntegerField()
    visitors = BigIntegerField()

    @classmethod
    def totals(cls, page: str) -> tuple[int, int]:
        """Return (hits, visitors), both 0 for a page that was never counted."""
        if page == ALL_PAGES:
            return Hit.between("", "9999-12-31")
        sql = "SELECT hits, visitors FROM page WHERE page = ?"
        row = execute(sql, page).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    @classmethod
    def most_seen(cls, most: int) -> list[tuple[str, int, int]]:
        """Return (page, hits, visitors) of the pages with the most hits."""
        sql = (
            "SELECT page, hits, visitors FROM page WHERE hits > 0 "
            "ORDER BY hits DESC, page LIMIT ?"
        )
        return [tuple(row) for row in execute(sql, most).fetchall()]

    @staticmethod
    @transaction
    def add(page: str, max_pages: int) -> bool:
        """Have a page counted apart from now on; False where there is no room."""
        row = {"page": page, "hits": 0, "visitors": 0}
        if not insert("page", row, conflict=IGNORE):  # somebody was faster
            return True
        if Tally.spend("pages", "", max_pages):
            return True
        execute("DELETE FROM page WHERE page = ?", page)
        return False

    @classmethod
    def make_room(cls, since: str, max_pages: int) -> None:
        """Count pages that were seen once, before a day, as /(other) from now on.

        Only where half of max_pages are taken: whoever makes up pages would otherwise
        leave no room for the owner's own for good.
        """
        while Tally.count("pages", "", "") * 2 > max_pages:
            if cls._evict(since) < EVICTED_AT_ONCE:
                break

    @staticmethod
    @transaction
    def _evict(since: str) -> int:
        gone = execute(
            "DELETE FROM page WHERE hits = 1 AND page IN (SELECT page FROM page "
            "WHERE hits = 1 AND page <> ? AND NOT EXISTS (SELECT 1 FROM hit "
            "WHERE hit.page = page.page AND day >= ?) LIMIT ?) "
            "RETURNING page, visitors",
            OTHER_PAGES,
            since,
            EVICTED_AT_ONCE,
        ).fetchall()
        if not gone:
            return 0
        pages = [page for page, _ in gone]
        among = f"page IN ({', '.join('?' * len(gone))})"
        sums = "SELECT ?, day, sum(hits), sum(visitors) FROM hit"
        moved = f"{_HIT} {sums} WHERE {among} GROUP BY day ORDER BY day {_ADD}"
        execute(moved, OTHER_PAGES, *pages)
        execute(f"DELETE FROM hit WHERE {among}", *pages)  # noqa: S608
        execute(
            "UPDATE page SET hits = hits + ?, visitors = visitors + ? WHERE page = ?",
            len(gone),
            sum(visitors for _, visitors in gone),
            OTHER_PAGES,
        )
        Tally.give_back("pages", "", len(gone))
        return len(gone)


_HIT = "INSERT INTO hit (page, day, hits, visitors)"
_ADD = (
    "ON CONFLICT (page, day) DO UPDATE SET hits = hit.hits + excluded.hits, "
    "visitors = hit.visitors + excluded.visitors"
)
_COUNT = f"{_HIT} VALUES (?, ?, 1, ?), (?, ?, 1, ?) {_ADD}"


class Hit(Table):
    """A page's hits and visitors of one day; those of ALL_PAGES are everybody's sums.

    Every hit adds to two rows in one statement, because adding up 10,000 pages when
    somebody asks takes 100 times as long as one row more.
    """

    page = TextField()
    day = TextField()
    hits = BigIntegerField()
    visitors = BigIntegerField()

    class Meta:
        primary_key = CompositeKey("page", "day")

    @staticmethod
    @transaction
    def count(page: str, visitor: str | None, day: str) -> tuple[int, int] | None:
        """Count one hit and return the page's (hits, visitors).

        visitor is the daily keyed hash of a browser (see Visitor), or None when an
        image proxy hides it. None comes back, and nothing is counted, for a page that
        was never admitted.
        """
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
        # The row that all hits share comes last: on Postgres its lock is held from
        # here to the commit, and no two wait for each other.
        execute(_COUNT, page, day, new, ALL_PAGES, day, new)
        return totals[0], totals[1]

    @staticmethod
    def between(first: str, end: str) -> tuple[int, int]:
        """Return the whole site's (hits, visitors) from a day to before another."""
        sql = (
            "SELECT coalesce(sum(hits), 0), coalesce(sum(visitors), 0) FROM hit "
            "WHERE page = ? AND day >= ? AND day < ?"
        )
        hits, visitors = execute(sql, ALL_PAGES, first, end).fetchone()
        return int(hits), int(visitors)

    @staticmethod
    def most_seen(first: str, end: str, most: int) -> list[tuple[str, int]]:
        """Return (page, hits) of the pages with the most hits in some days."""
        sql = (
            "SELECT page, sum(hits) FROM hit WHERE day >= ? AND day < ? AND page <> ? "
            "GROUP BY page ORDER BY 2 DESC, 1 LIMIT ?"
        )
        rows = execute(sql, first, end, ALL_PAGES, most).fetchall()
        return [(page, int(hits)) for page, hits in rows]

    @classmethod
    def days(cls, page: str, days: int, today: str) -> tuple[DayHits, ...]:
        """Return the days until today, oldest first, gaps as 0."""
        wanted = _days_until(today, days)
        rows = execute(
            "SELECT day, hits, visitors FROM hit WHERE page = ? AND day >= ?",
            page,
            wanted[0],
        ).fetchall()
        counted = {row[0]: (row[1], row[2]) for row in rows}
        return tuple((day, *counted.get(day, (0, 0))) for day in wanted)


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

    @staticmethod
    def key(page: str, address: str, user_agent: str, day: str) -> str:
        """Return the keyed hash of a browser on a page, of this day."""
        known, salt = current().salt
        if known != day:
            salt = rotate_salt(day)
        digest = hashlib.blake2b(key=salt, digest_size=12)
        digest.update("\0".join((page, address, user_agent)).encode())
        return digest.hexdigest()


def rotate_salt(day: str) -> bytes:
    """Return the salt of a day; delete those of earlier days, and their hashes."""
    salt = bytes.fromhex(Setting.once(f"salt {day}", secrets.token_hex(32)))
    _forget_visitors_before(day)
    current().salt = (day, salt)
    return salt


@transaction
def _forget_visitors_before(day: str) -> None:
    execute(
        # No LIKE: psycopg takes a percent sign for a parameter.
        "DELETE FROM setting WHERE substr(name, 1, 5) = 'salt ' AND name < ?",
        f"salt {day}",
    )
    execute("DELETE FROM visitor WHERE day < ?", day)
