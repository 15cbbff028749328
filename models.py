"""The tables as domain nouns with verbs; nothing above this writes SQL.

All times are seconds since the epoch, UTC; all days are ISO dates of TIME_ZONE. What
writes is a transaction of its own, or a part of the one that it is called in.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import BooleanField, DoubleField, IntegerField, TextField, fn

from frontdesk.counter import ALL_PAGES, rotate_salt
from frontdesk.database import current, execute, insert, transaction
from frontdesk.deliveries import Delivery
from frontdesk.lessons import Lesson
from frontdesk.mailboxes import folded
from frontdesk.quotas import MOST_DAYS, spend_mail
from frontdesk.receipts import Receipt
from frontdesk.tables import (
    DAY,
    SKEW,
    UNLIMITED,
    Table,
    Tally,
    day_before,
    day_of,
    hour_of,
    id_at,
    iso,
    keyed_hash,
    midnight,
    new_id,
    to_json,
    trusted,
)

if TYPE_CHECKING:
    from frontdesk.spam import Verdict

# Of all clients together: a flood must fill neither the disk nor the mail quota. One
# network (/24 or /48) gets a tenth of each, so that it leaves room for the others.
HELD_PER_HOUR = 100  # long ones count more
DOUBTFUL_PER_HOUR = 50
SHARE = 10
UNDELIVERED_SECONDS = 30 * DAY  # for which the owner is told
DIGEST_ITEMS = 50
CONFIRM_HOURLY = 3600
CONFIRM_WINDOW = 30 * DAY
CONFIRM_PER_WINDOW = 3
PENDING_SECONDS = 30 * DAY
UNSENT = "-"  # before what a delivery refers to: compose it, and send nothing
CONSENT = "confirmation mail, wording of 2026-11"


# --- messages --------------------------------------------------------------------


class Known(NamedTuple):
    """What is known of a submission at a time, in seconds since the epoch."""

    at: float
    message_id: str | None  # of the message that it repeats
    echoes: int = 0  # other clients that sent a near-identical text within a day
    taught: bool | None = None  # the owner called a near-identical message spam, or not


class Message(Table):
    """What a visitor wrote; held while it looks like spam."""

    id = TextField(primary_key=True)
    received_at = DoubleField()
    name = TextField()
    email = TextField()
    subject = TextField()
    message = TextField()
    fields = TextField()  # JSON object of what has no column
    layout = TextField()  # JSON list: the form's order, see forms.typed()
    page = TextField()
    client = TextField()  # /24 or /48
    spam_score = IntegerField()
    spam_reasons = TextField()  # JSON list, see Language.sentences()
    echo = TextField()  # see spam.Reading
    doubtful = BooleanField()  # delivered with a mark in the subject
    held_at = DoubleField(null=True)
    digested_at = DoubleField(null=True)
    released_at = DoubleField(null=True)  # a held one, delivered after all
    mailed_at = DoubleField(null=True)  # Mailjet took it; what follows are its events
    delivered_at = DoubleField(null=True)
    undelivered_at = DoubleField(null=True)  # wins, whichever event came first
    delivery_reason = TextField(null=True)  # why it is undelivered

    @classmethod
    @transaction
    def receive(
        cls,
        values: Mapping[str, Any],
        verdict: Verdict,
        *,
        keys: Mapping[str, int],
        now: float,
        asked: bool = False,
    ) -> str | None:
        """Store a message and its outgoing mail, once, and return its id.

        keys: what tells that a submission is a repeat, and for how many seconds each
        does (see Receipt). A repeat gets the first message's id and stores nothing.
        A held message gets no mail, and a doubtful one a mark, unless its sender was
        asked. Over the hourly ceilings a doubtful one is held, too, and a held one
        is only counted: None, and a repeat is not known as one.
        """
        message_id = new_id(now)
        owner = Receipt.claim_all(keys, message_id, now)
        if owner != message_id:
            return owner
        doubtful = verdict.doubtful and not asked
        row = {
            **values,
            "id": message_id,
            "received_at": now,
            "fields": to_json(values["fields"]) if values["fields"] else "{}",
            "layout": to_json(values["layout"]),
            "spam_score": verdict.points,
            "spam_reasons": to_json(verdict.reasons) if verdict.reasons else "[]",
            "doubtful": doubtful,
        }
        if not verdict.held and (
            not doubtful or cls._spend_room("doubtful", DOUBTFUL_PER_HOUR, row, now)
        ):
            insert("message", row)
            Delivery.add("contact", message_id, now)
            return message_id
        weight = 1 + (len(row["message"]) + len(row["fields"])) // 4096
        if cls._spend_room("held", HELD_PER_HOUR, row, now, weight):
            insert("message", {**row, "doubtful": False, "held_at": now})
            return message_id
        Receipt.forget(keys, message_id)
        Tally.spend("held, not stored", day_of(now), UNLIMITED)
        return None

    @classmethod
    def known(
        cls, keys: Mapping[str, int], echo: str, client: str, text: str, now: float
    ) -> Known:
        """Return what is known of a submission before it is judged, by one statement.

        keys: see receive(); echo: see spam.Reading.
        """
        longest = max(keys.values()) + SKEW
        times = (now, now + longest, echo, now - DAY, client)
        # Writes notice that the file was replaced, and a repeat writes nothing.
        current().check()
        row = execute(_known_sql(len(keys)), *keys, *times).fetchone()
        message_id, echoes, has_lessons = row
        if message_id is None:
            return Known(now, None, echoes, cls._taught(text) if has_lessons else None)
        if len(keys) > 1:  # from now on the other keys belong to it, too
            message_id = Receipt.claim_all(keys, message_id, now)
        return Known(now, message_id)

    @staticmethod
    def _spend_room(
        name: str, most: int, row: Mapping[str, Any], now: float, weight: int = 1
    ) -> bool:
        """Take room of this hour for a message, unless all or its network's is taken.

        The longest weighs a network's whole share, so that any fits where it is alone.
        """
        share = most // SHARE
        # All first: of networks that find no room, however many, nothing is kept.
        ceilings = {name: most, f"{name} {row['client']}": share}
        return Tally.spend_all(ceilings, hour_of(now), min(weight, share))

    @classmethod
    @transaction
    def deliver(cls, message_id: str, now: float) -> None:
        """Deliver a held message, and hold none like it; again is harmless.

        One that Mailjet refused is tried once more.
        """
        released = execute(
            "UPDATE message SET released_at = ? "
            "WHERE id = ? AND held_at IS NOT NULL AND released_at IS NULL",
            now,
            message_id,
        )
        if released.rowcount:
            Delivery.add("contact", message_id, now)
            cls._teach(message_id, is_spam=False)
        refused = execute(
            "UPDATE message SET undelivered_at = NULL, delivery_reason = NULL "
            "WHERE id = ? AND undelivered_at IS NOT NULL AND mailed_at IS NULL",
            message_id,
        )
        if refused.rowcount:
            execute(
                "DELETE FROM delivery WHERE kind = 'contact' AND ref = ? "
                "AND due_at IS NULL",
                message_id,
            )
            Delivery.add("contact", message_id, now)

    @classmethod
    @transaction
    def mark_spam(cls, message_id: str, now: float) -> None:
        """Hold a delivered message after all, and those like it; again is harmless."""
        marked = execute(
            # It is in no digest: the owner knows it.
            "UPDATE message SET held_at = ?, released_at = NULL, digested_at = ? "
            "WHERE id = ? AND (held_at IS NULL OR released_at IS NOT NULL)",
            now,
            now,
            message_id,
        )
        if marked.rowcount:
            cls._teach(message_id, is_spam=True)

    @classmethod
    def _teach(cls, message_id: str, is_spam: bool) -> None:
        from frontdesk import spam  # with the first message, not at start

        message = cls.get_by_id(message_id)
        Lesson.teach(message_id, spam.fingerprint(message.message), is_spam)

    @staticmethod
    def _taught(text: str) -> bool | None:
        from frontdesk import spam

        return Lesson.recall(spam.fingerprint(text))

    @classmethod
    def newest(cls, most: int, before: str = "") -> list[Message]:
        """Return messages, newest first: all, or those older than one (by its id)."""
        query = cls.select().order_by(cls.id.desc()).limit(most)
        return list(query.where(cls.id < before) if before else query)

    @classmethod
    def between(cls, since: float, until: float) -> dict[str, int]:
        """Count what came from one time to before another, by their state now."""
        received, held, undelivered = execute(
            "SELECT count(*), count(CASE WHEN released_at IS NULL THEN held_at END), "
            "count(undelivered_at) FROM message WHERE id >= ? AND id < ?",
            id_at(since),
            id_at(until),
        ).fetchone()
        return {"messages": received, "held": held, "undelivered": undelivered}

    @classmethod
    @transaction
    def erase(cls, message_id: str) -> None:
        """Delete a message and what waits to be mailed of it; again is harmless."""
        _erase_messages(cls.id == message_id)

    @classmethod
    @transaction
    def was_delivered(cls, message_id: str, now: float) -> None:
        """Note that the owner's mail server took a message; again is harmless."""
        sql = (
            "UPDATE message SET delivered_at = ? WHERE id = ? AND delivered_at IS NULL"
        )
        execute(sql, now, message_id)

    @classmethod
    @transaction
    def was_undelivered(cls, message_id: str, reason: str, now: float) -> None:
        """Note that a message did not arrive, and why; again is harmless."""
        execute(
            "UPDATE message SET undelivered_at = ?, delivery_reason = ? "
            "WHERE id = ? AND undelivered_at IS NULL",
            now,
            reason,
            message_id,
        )

    @classmethod
    def undelivered(cls, now: float) -> tuple[int, str]:
        """Return how many did not arrive in the last 30 days, and the latest reason."""
        sql = (
            "SELECT count(*) OVER (), delivery_reason FROM message "
            "WHERE undelivered_at > ? ORDER BY undelivered_at DESC LIMIT 1"
        )
        row = execute(sql, now - UNDELIVERED_SECONDS).fetchone()
        return (int(row[0]), str(row[1])) if row else (0, "")

    @classmethod
    def held_since(cls, since: float) -> int:
        """Count the messages held since a time."""
        return int(cls.select().where(cls.held_at > since).count())

    @classmethod
    @transaction
    def start_digest(cls, now: float) -> None:
        """Queue the mail about what was held before today, once a day for all.

        It lists DIGEST_ITEMS: of each network (/24 or /48) the oldest first, then of
        each the second, so that a flood from one pushes nobody else's out. What is not
        listed comes first in its network the next day.
        """
        waiting = cls.awaiting_digest(now)
        if not waiting and not cls.dropped_before(now):
            return
        if not Tally.spend("digests", day_of(now), 1):
            return
        sql = (
            "UPDATE message SET digested_at = ? WHERE id IN (SELECT id FROM "  # noqa: S608
            "(SELECT id, row_number() OVER (PARTITION BY client ORDER BY id) AS turn "
            f"FROM message WHERE {_AWAITING}) AS waiting ORDER BY turn, id LIMIT ?)"
        )
        execute(sql, now, midnight(now), DIGEST_ITEMS)
        Delivery.add("digest", repr(now), now)

    @classmethod
    def awaiting_digest(cls, now: float) -> int:
        """Count what was held before today and is in no digest yet."""
        sql = f"SELECT count(*) FROM message WHERE {_AWAITING}"  # noqa: S608
        return int(execute(sql, midnight(now)).fetchone()[0])

    @staticmethod
    def dropped_before(now: float) -> int:
        """Count what was not stored from the last digest's day until yesterday."""
        last = Tally.last("digests", day_of(now))
        return Tally.count("held, not stored", last, day_before(now))

    @classmethod
    def digested(cls, digested_at: float) -> list[Message]:
        """Return a digest's messages."""
        query = cls.select().where(
            cls.digested_at == digested_at, cls.released_at.is_null()
        )
        return list(query.order_by(cls.id))

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
            "held": self.state == "held",
            "mailed_at": iso(self.mailed_at),
            "delivery": self.delivery,
            "delivery_reason": self.delivery_reason,
        }

    @property
    def state(self) -> str:
        """Return held, undelivered, delivered, mailed or waiting."""
        if self.held_at is not None and self.released_at is None:
            return "held"
        return self.delivery or ("waiting" if self.mailed_at is None else "mailed")

    @property
    def is_refused(self) -> bool:
        """Tell whether Mailjet has not taken its mail, and it was given up."""
        return self.state == "undelivered" and self.mailed_at is None

    @property
    def delivery(self) -> str | None:
        """Return delivered or undelivered, None while Mailjet has told nothing.

        A server that took a mail may bounce it later, and events come in any order.
        """
        if self.undelivered_at is not None:
            return "undelivered"
        return None if self.delivered_at is None else "delivered"


@cache
def _known_sql(keys: int) -> str:
    """Ask for the message of a key, for near-identical texts, and for any lesson.

    Of a flood only the newest 20 are looked at: counting all would take longer with
    each. The partial index wants its condition said again.
    """
    marks = ", ".join("?" * keys)
    return (
        f"SELECT (SELECT message_id FROM receipt WHERE key IN ({marks}) "  # noqa: S608
        "AND expires_at > ? AND expires_at <= ? LIMIT 1), "
        "(SELECT count(DISTINCT client) FROM (SELECT client FROM message "
        "WHERE echo = ? AND echo <> '' AND received_at > ? "
        "ORDER BY received_at DESC LIMIT 20) AS near WHERE client <> ?), "
        "EXISTS (SELECT 1 FROM lesson)"
    )


_AWAITING = "held_at < ? AND digested_at IS NULL AND released_at IS NULL"


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
    @transaction
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
        """Sign an address up: queue a confirmation mail unless it had its share.

        client: the network (/24 or /48) that asks. What else was typed is kept with a
        mail only: without one nothing can follow. A confirmed address stays as it is.

        Neither rows nor time tell what is known of an address. The same statements
        run: where nothing is to be mailed, a delivery is queued that is composed and
        not sent, and tallies are counted that SQLite writes and syncs even where the
        row stays as it was.
        """
        mailbox = mailbox_key(email)
        current().lock_name(mailbox)
        row = cls._locked("mailbox", mailbox) or cls(
            id=new_id(now),
            mailbox=mailbox,
            cycle=secrets.token_hex(4),
            email=email,
            page="",
            client=client,
            wording=CONSENT,
            asked_at=now,
            mailed="[]",
        )
        may_ask = row.status != "confirmed" and row.refused_at is None
        if row._queue_mail(client, now, mails_per_day, may_ask):
            # A link confirms the very address that it was mailed to.
            if row.status == "left" or row.email != email:
                row.cycle = secrets.token_hex(4)
            row.email, row.name = email, name
            row.page, row.client = page, client
            row.wording, row.asked_at = CONSENT, now
            row.gone_at = row.left_at or row.gone_at
            row.left_at = row.confirmed_at = None
        else:
            Delivery.add("confirm", f"{UNSENT}{row.id}", now)
        row._store()

    @classmethod
    @transaction
    def ask_again(cls, subscriber_id: str, now: float, mails_per_day: int) -> None:
        """Queue a new confirmation mail to a pending address, within its share."""
        row = cls._locked("id", subscriber_id)
        if row is not None and row.status == "pending":
            row.asked_at = now
            row._queue_mail(row.client, now, mails_per_day)
            row._store()

    @classmethod
    @transaction
    def confirm(cls, subscriber_id: str, cycle: str, now: float, sync: bool) -> bool:
        """Confirm a pending address; return whether it is confirmed now."""

        row = cls._locked("id", subscriber_id)
        if row is None or row.cycle != cycle or row.status == "left":
            return False
        if row.status == "pending":
            row.confirmed_at = now
            row._store()
            if sync:
                Delivery.add("list", row.email, now)
        return True

    @classmethod
    @transaction
    def leave(
        cls, subscriber_id: str, now: float, sync: bool, refuse: bool = False
    ) -> None:
        """Unsubscribe and forget the address; again is harmless.

        With refuse the address also gets no more confirmation mails, ever.
        """
        cls._leave(cls._locked("id", subscriber_id), now, sync, refuse)

    @classmethod
    @transaction
    def leave_by_address(cls, email: str, now: float, sync: bool, refuse: bool) -> None:
        """Do the same for whoever has this address, if anybody has."""
        cls._leave(cls._locked("mailbox", mailbox_key(email)), now, sync, refuse)

    @staticmethod
    def _leave(row: Any, now: float, sync: bool, refuse: bool) -> None:
        if row is None:
            return
        if refuse and row.refused_at is None:
            row.refused_at = now
        if row.status != "left":
            if sync and row.status == "confirmed":
                Delivery.add("list", row.email, now)
            row.left_at = now
            row.email = row.name = None
        row._store()

    @classmethod
    def totals(cls) -> dict[str, int]:
        """Return how many are confirmed, pending and left."""
        left, confirmed, all_rows = execute(
            "SELECT count(left_at), count(CASE WHEN left_at IS NULL THEN confirmed_at "
            "END), count(*) FROM subscriber"
        ).fetchone()
        pending = all_rows - left - confirmed
        return {"confirmed": confirmed, "pending": pending, "left": left}

    @classmethod
    def newest(cls, most: int) -> list[Subscriber]:
        """Return who signed up last, newest first."""
        return list(cls.select().order_by(cls.id.desc()).limit(most))

    @classmethod
    def confirmed_between(cls, since: float, until: float) -> int:
        """Count who confirmed from one time to before another."""
        confirmed = (cls.confirmed_at >= since) & (cls.confirmed_at < until)
        return int(cls.select().where(confirmed, cls.left_at.is_null()).count())

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
        lock = current().row_lock
        names = cls._meta.sorted_field_names
        sql = f"SELECT {', '.join(names)} FROM subscriber WHERE {column} = ?{lock}"  # noqa: S608
        row = execute(sql, value).fetchone()
        return row and cls(**dict(zip(names, row, strict=True)))

    def _store(self) -> None:
        """Write the row, new or not; save() takes 118 us to build the statement."""
        insert("subscriber", self.__data__, conflict=_store_again())

    def _queue_mail(
        self, client: str, now: float, mails_per_day: int, may_ask: bool = True
    ) -> bool:
        """Queue a confirmation mail, and tell whether there was one left to spend."""
        # One that waits for a later day's ceiling counts already.
        earliest, latest = now - CONFIRM_WINDOW, now + MOST_DAYS * DAY + SKEW
        mailed = [t for t in json.loads(self.mailed) if earliest < t <= latest]
        rested = not mailed or mailed[-1] <= now - CONFIRM_HOURLY
        wanted = may_ask and rested and len(mailed) < CONFIRM_PER_WINDOW
        due_at = spend_mail(client, now, mails_per_day, wanted)
        if due_at is None:
            return False
        self.mailed = json.dumps([*mailed, due_at])
        Delivery.add("confirm", self.id, now, due_at)
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return the subscriber as it is exported."""
        return {
            "id": self.id,
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
    Tally.spend("sign-ups trapped", day_of(now), UNLIMITED)


def mailbox_key(email: str) -> str:
    """Return the keyed hash that spellings of one mailbox share."""
    return keyed_hash("mailbox", folded(email))


# --- the owner's view and the daily round ----------------------------------------

EXPORT_CHUNK = 500


def export(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of messages, subscribers or hits, a chunk in memory at a time."""
    model: Any = {"messages": Message, "subscribers": Subscriber}.get(name)
    database, last = current(), None
    try:
        while True:
            # The answer is streamed: the thread may have been elsewhere meanwhile.
            database.enter()
            rows = _hits_after(last) if model is None else _rows_after(model, last)
            for _, row in rows:
                yield row
            if len(rows) < EXPORT_CHUNK:
                return
            last = rows[-1][0]
    finally:
        database.release()


def _rows_after(model: Any, last: str | None) -> list[tuple[Any, dict[str, Any]]]:
    query = model.select().order_by(model.id).limit(EXPORT_CHUNK)
    if last is not None:
        query = query.where(model.id > last)
    return [(row.id, row.as_dict()) for row in query]


def _hits_after(last: tuple[str, str] | None) -> list[tuple[Any, dict[str, Any]]]:
    rows = execute(
        "SELECT page, day, hits, visitors FROM hit WHERE (page, day) > (?, ?) "
        "AND page <> ? ORDER BY page, day LIMIT ?",
        *(last or ("", "")),
        *(ALL_PAGES, EXPORT_CHUNK),
    ).fetchall()
    columns = ("page", "date", "hits", "visitors")
    return [((r[0], r[1]), dict(zip(columns, r, strict=True))) for r in rows]


def _erase_messages(condition: Any) -> int:
    ids = Message.select(Message.id).where(condition)
    waiting = Delivery.kind == "contact", Delivery.ref.in_(ids)
    Delivery.delete().where(*waiting).execute()
    Receipt.delete().where(Receipt.message_id.in_(ids)).execute()
    Lesson.delete().where(Lesson.message_id.in_(ids)).execute()
    return int(Message.delete().where(condition).execute())


@transaction
def erase(email: str, now: float, sync: bool) -> tuple[int, int]:
    """Delete what is kept of a person; return how many (messages, subscribers)."""
    # By one lower(): SQLite's and Python's differ beyond ASCII.
    messages = _erase_messages(fn.lower(Message.email) == fn.lower(email))
    Delivery.delete().where(  # a list change that Mailjet never took
        Delivery.kind == "list",
        Delivery.due_at.is_null(),
        fn.lower(Delivery.ref) == fn.lower(email),
    ).execute()
    row = Subscriber.get_or_none(Subscriber.mailbox == mailbox_key(email))
    if row is not None:
        Delivery.delete().where(
            Delivery.kind == "confirm", Delivery.ref.in_([row.id, f"{UNSENT}{row.id}"])
        ).execute()
        if sync and row.status == "confirmed":
            Delivery.add("list", str(row.email), now)
        row.delete_instance()
    return messages, int(row is not None)


def clean_up(now: float, retention_days: int) -> None:
    """Delete what nobody needs any more; once a day is enough."""
    rotate_salt(day_of(now))
    _forget(now, retention_days)
    current().tidy()


@transaction
def _forget(now: float, retention_days: int) -> None:
    over = (Receipt.expires_at <= now) | (Receipt.expires_at > now + DAY + SKEW)
    Receipt.delete().where(over).execute()
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
        oldest = id_at(trusted("message", now) - retention_days * DAY)
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


TABLES: list[Any] = Table.__subclasses__()  # here and in what is imported above
