"""What the owner taught: which texts are spam, and which are not.

A lesson is the fingerprint of a message (see spam.fingerprint): a row for each of its
hashes, of which there are up to 16. A later text that shares half of them is
taken for the same one, whatever name, link or greeting it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from peewee import BooleanField, CompositeKey, TextField

from frontdesk.database import execute, insert, transaction
from frontdesk.tables import Table

MOST = 500  # messages that are remembered, the newest


class Lesson(Table):
    """One hash of a message's text that the owner called spam, or not."""

    hash = TextField()
    message_id = TextField()
    is_spam = BooleanField()

    class Meta:
        primary_key = CompositeKey("hash", "message_id")

    @classmethod
    @transaction
    def teach(cls, message_id: str, fingerprint: Sequence[str], is_spam: bool) -> None:
        """Remember a message's text; what was taught of the same text is forgotten."""
        for twin in cls._twins(fingerprint):
            execute("DELETE FROM lesson WHERE message_id = ?", twin)
        for each in fingerprint:
            row = {"hash": each, "message_id": message_id, "is_spam": is_spam}
            insert("lesson", row)
        execute(
            "DELETE FROM lesson WHERE message_id NOT IN (SELECT DISTINCT message_id "
            "FROM lesson ORDER BY message_id DESC LIMIT ?)",
            MOST,
        )

    @classmethod
    def recall(cls, fingerprint: Sequence[str]) -> bool | None:
        """Tell whether the owner called nearly the same text spam, None if neither."""
        return next(iter(cls._twins(fingerprint).values()), None)

    @staticmethod
    def _twins(fingerprint: Sequence[str]) -> dict[str, bool]:
        """Return the lessons that share half of the hashes, the most similar first."""
        if not fingerprint:
            return {}
        marks = ", ".join("?" * len(fingerprint))
        sql = (
            "SELECT message_id, is_spam, count(*) FROM lesson "  # noqa: S608
            f"WHERE hash IN ({marks}) GROUP BY message_id, is_spam "
            "HAVING count(*) * 2 >= ? ORDER BY 3 DESC, 1 DESC"
        )
        rows = execute(sql, *fingerprint, len(fingerprint)).fetchall()
        return {message_id: bool(is_spam) for message_id, is_spam, _ in rows}
