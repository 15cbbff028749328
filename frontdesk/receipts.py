"""Which message a submission became: what is sent twice is stored once."""

from __future__ import annotations

from collections.abc import Mapping

from peewee import DoubleField, TextField

from frontdesk.database import execute, transaction
from frontdesk.tables import SKEW, Table


class Receipt(Table):
    """Which message a submission became, while a repeat must find it again."""

    key = TextField(primary_key=True)
    message_id = TextField()
    expires_at = DoubleField()

    class Meta:
        without_rowid = True

    @staticmethod
    @transaction
    def claim(key: str, message_id: str, now: float, seconds: int) -> str:
        """Return the message that owns the key, this one if none does yet."""
        over = "receipt.expires_at <= ? OR receipt.expires_at > ?"
        sql = (
            "INSERT INTO receipt (key, message_id, expires_at) VALUES (?, ?, ?) "  # noqa: S608
            "ON CONFLICT (key) DO UPDATE SET "
            f"message_id = CASE WHEN {over} "
            "THEN excluded.message_id ELSE receipt.message_id END, "
            f"expires_at = CASE WHEN {over} "
            "THEN excluded.expires_at ELSE receipt.expires_at END "
            "RETURNING message_id"
        )
        span = (now, now + seconds + SKEW)
        row = execute(sql, key, message_id, now + seconds, *span, *span).fetchone()
        return str(row[0])

    @classmethod
    def recall(cls, keys: Mapping[str, int], now: float) -> str | None:
        """Return the message that one of the keys belongs to, None if none does.

        The other keys belong to it, too, from then on.
        """
        marks = ", ".join("?" * len(keys))
        sql = (
            f"SELECT key, message_id FROM receipt WHERE key IN ({marks}) "  # noqa: S608
            "AND expires_at > ? AND expires_at <= ?"
        )
        longest = max(keys.values(), default=0) + SKEW
        known = dict(execute(sql, *keys, now, now + longest).fetchall())
        owner = next((known[key] for key in keys if key in known), None)
        if owner is not None and len(known) < len(keys):
            cls.claim_all(keys, owner, now)
        return owner

    @classmethod
    @transaction
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

    @staticmethod
    @transaction
    def forget(message_id: str) -> None:
        """Give back what a message had claimed: it is not stored after all."""
        execute("DELETE FROM receipt WHERE message_id = ?", message_id)
