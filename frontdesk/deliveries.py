"""The outbox's rows: what Mailjet is still to be told."""

from __future__ import annotations

import secrets

from peewee import BigAutoField, DoubleField, IntegerField, TextField

from frontdesk.database import execute, insert, transaction
from frontdesk.quotas import MOST_DAYS
from frontdesk.tables import DAY, SKEW, Table, Tally

LEASE = 60  # seconds, longer than the worst attempt: two requests
LONGEST_WAIT = 3 * DAY  # of a delivery: its last try


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
    @transaction
    def add(kind: str, ref: str, now: float, due_at: float | None = None) -> None:
        """Queue a delivery, in the transaction of what causes it."""
        # One that is for tomorrow is no backlog: its time counts from then.
        due_at = now if due_at is None else due_at
        row = {"kind": kind, "ref": ref, "created_at": due_at, "due_at": due_at}
        insert("delivery", {**row, "attempts": 0})

    @classmethod
    @transaction
    def add_letter(cls, period: str, now: float) -> None:
        """Queue the owner's letter with the first sign of life of a period.

        A service that has just been set up has nothing to tell: its first period only
        is remembered.
        """
        is_first = Tally.last("letters", period) == ""
        if Tally.spend("letters", period, 1) and not is_first:
            cls.add("letter", period, now)

    @classmethod
    @transaction
    def claim(cls, now: float) -> Delivery | None:
        """Lease the delivery that is due for longest, or return None.

        The outer condition repeats the inner one: on Postgres two claimants may pick
        the same row, and the second finds it no longer due.
        """
        lease = secrets.token_hex(8)
        row = execute(
            "UPDATE delivery SET due_at = ?, attempts = attempts + 1, lease = ? "
            "WHERE id = (SELECT id FROM delivery WHERE due_at <= ? "
            "ORDER BY due_at, created_at LIMIT 1) AND due_at <= ? "
            "RETURNING id, kind, ref, created_at, attempts",
            now + LEASE,
            lease,
            now,
            now,
        ).fetchone()
        if row is None:
            return None
        columns = ("id", "kind", "ref", "created_at", "attempts")
        return cls(lease=lease, **dict(zip(columns, row, strict=True)))

    @staticmethod
    def bring_forward(now: float) -> None:
        """Make due what lies further ahead than any delivery is put off.

        A clock that was ahead has put it there.
        """
        far = (
            "due_at > ? AND (lease IS NOT NULL "
            "OR due_at > CASE kind WHEN 'confirm' THEN ? ELSE ? END)"
        )
        # Confirmation mails wait for a day that has room for them.
        waits = (LEASE, MOST_DAYS * DAY, LONGEST_WAIT)
        span = tuple(now + wait + SKEW for wait in waits)
        if execute(f"SELECT 1 FROM delivery WHERE {far} LIMIT 1", *span).fetchone():  # noqa: S608
            sql = f"UPDATE delivery SET due_at = ?, lease = NULL WHERE {far}"  # noqa: S608
            transaction(execute)(sql, now, *span)

    @classmethod
    def next_due(cls) -> float | None:
        """Return when the next delivery is due, None when there is none."""
        row = execute("SELECT min(due_at) FROM delivery").fetchone()
        return None if row[0] is None else float(row[0])

    @transaction
    def done(self, now: float) -> None:
        """Forget a delivery that was accepted."""
        deleted = execute(
            "DELETE FROM delivery WHERE id = ? AND lease = ?", self.id, self.lease
        )
        if deleted.rowcount and self.kind == "contact":
            execute("UPDATE message SET mailed_at = ? WHERE id = ?", now, self.ref)

    @transaction
    def put_back(self, due_at: float | None, error: str, attempts: int) -> bool:
        """Try again at a time, or never (None); return whether the lease was ours."""
        put = execute(
            "UPDATE delivery SET due_at = ?, error = ?, attempts = ?, lease = NULL "
            "WHERE id = ? AND lease = ?",
            due_at,
            error,
            attempts,
            self.id,
            self.lease,
        )
        return bool(put.rowcount)

    @transaction
    def bury(self, now: float, error: str) -> None:
        """Never try again; a message's mail then did not arrive."""
        if self.put_back(None, error, self.attempts) and self.kind == "contact":
            execute(
                "UPDATE message SET undelivered_at = ?, delivery_reason = ? "
                "WHERE id = ? AND undelivered_at IS NULL",
                now,
                error,
                self.ref,
            )

    @classmethod
    def is_late(cls, before: float) -> bool:
        """Tell whether a delivery has waited since before a time.

        Two look-ups, however many wait: it is still due when it was at first, or it
        was put off, for which there is an index.
        """
        sql = (
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM delivery WHERE due_at <= ? "
            "AND created_at <= ?) OR EXISTS (SELECT 1 FROM delivery "
            "WHERE due_at > created_at AND created_at <= ?)"
        )
        return execute(sql, before, before, before).fetchone() is not None

    @classmethod
    def summary(cls, now: float) -> dict[str, int]:
        """Return how many wait, for how long the oldest, and how many are dead.

        The oldest takes two look-ups, however many wait. One that was put off has its
        created_at in an index; any other is due when it was created.
        """
        everything, dead, put_off, due = execute(
            "SELECT (SELECT count(*) FROM delivery), "
            "(SELECT count(*) FROM delivery WHERE due_at IS NULL), "
            "(SELECT min(created_at) FROM delivery WHERE due_at > created_at), "
            "(SELECT min(due_at) FROM delivery)"
        ).fetchone()
        oldest = min([now, *(each for each in (put_off, due) if each is not None)])
        waiting = {"waiting": everything - dead, "oldest_seconds": int(now - oldest)}
        return {**waiting, "dead": dead}
