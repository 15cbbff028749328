"""Which message a submission became: what is sent twice is stored once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peewee import DoubleField, TextField

from frontdesk.database import execute, transaction
from frontdesk.tables import SKEW, Table


class Receipt(Table):
    """Which message a submission became, while a repeat must find it again."""

    key = TextField(primary_key=True)
    message_id = TextField()
    expires_at = DoubleField()

    @staticmethod
    @transaction
    def claim(key: str, message_id: str, now: float, seconds: int) -> str:
        """Return the message that owns the key, this one if none does yet."""
        sql = (
            "INSERT INTO receipt (key, message_id, expires_at) VALUES (?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET message_id = excluded.message_id, "
            "expires_at = excluded.expires_at "
            "WHERE receipt.expires_at <= ? OR receipt.expires_at > ?"
        )
        span = (now, now + seconds + SKEW)
        # No RETURNING: SQLite makes a table for it, which takes half of the time.
        if execute(sql, key, message_id, now + seconds, *span).rowcount:
            return message_id
        row = execute("SELECT message_id FROM receipt WHERE key = ?", key).fetchone()
        return str(row[0]) if row else message_id

    @classmethod
    @transaction
    def claim_all(cls, keys: Mapping[str, int], message_id: str, now: float) -> str:
        """Return the message that one of the keys belongs to, this one if none does.

        keys: the seconds that each holds. Those that nobody has belong to the message
        that is returned from now on; the others stay as they are.
        """
        owner, claimed = message_id, []
        for key, seconds in keys.items():
            found = cls.claim(key, owner, now, seconds)
            if found == owner:
                claimed.append(key)
            elif owner == message_id:  # the first one that is known
                owner = found
                for mine in claimed:
                    sql = "UPDATE receipt SET message_id = ? WHERE key = ?"
                    execute(sql, owner, mine)
        return owner

    @staticmethod
    @transaction
    def forget(keys: Iterable[str], message_id: str) -> None:
        """Give back what a message had claimed: it is not stored after all."""
        for key in keys:
            sql = "DELETE FROM receipt WHERE key = ? AND message_id = ?"
            execute(sql, key, message_id)
