"""What each mail says, how it is handed over, and what becomes of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from operator import itemgetter
from typing import Any

import falcon
from falcon import Request, Response

from frontdesk import fields, forms
from frontdesk.answers import label, succeed
from frontdesk.database import transaction
from frontdesk.languages import Language, marked
from frontdesk.links import Links
from frontdesk.mailjet import RefusedReplyTo, Transport
from frontdesk.outbox import Handler
from frontdesk.pages import Pages
from frontdesk.resources import Resource
from frontdesk.settings import Address, Settings
from frontdesk.tables import DAY, day_before, day_of
from models import UNSENT, Message, Subscriber, mailbox_key

CONFIRM_SECONDS = 7 * DAY
MAX_EVENTS = 2**20  # bytes of one request of Mailjet's
# What the first mail imports: Jinja and Mailjet's client, in parts of 5 to 25 ms.
MODULES = ("jinja2", "urllib3", "charset_normalizer", "requests", "mailjet_rest")
EVENTS_AT_ONCE = 200  # in one transaction: visitors' writes wait for it


class Composer:
    """Turns what a delivery refers to into a Mailjet message (Send API v3.1).

    None: there is nothing left to say.
    """

    def __init__(self, settings: Settings, links: Links, pages: Pages) -> None:
        self._settings = settings
        self._pages = pages
        self.language = pages.language
        self._links = links
        sender = settings.mail_from or Address("", "frontdesk@localhost")
        self._from = Address(sender.name or settings.site_name, sender.email)
        self._to = settings.mail_to or Address("", "owner@localhost")

    def contact(self, ref: str, reply_to: bool = True) -> dict[str, Any] | None:
        """Return a visitor's message for the owner.

        reply_to: False where Mailjet does not take the visitor's address.
        """
        message = Message.get_or_none(Message.id == ref)
        if message is None:  # erased meanwhile
            return None
        mail = self.to_owner(
            "mail-contact.txt",
            message=told(message, self._pages),
            reply_to_dropped=not reply_to,
            maybe_spam=message.doubtful,
        )
        if reply_to and message.email:
            mail["ReplyTo"] = _mailjet_address(Address(message.name, message.email))
        return mail | {"CustomID": message.id}

    def confirm(self, ref: str) -> dict[str, Any] | None:
        """Return the confirmation mail; nothing in it was typed by a visitor."""
        row_id = ref.removeprefix(UNSENT)
        subscriber = Subscriber.get_or_none(Subscriber.id == row_id)
        if subscriber is None:
            return None
        cycle = [subscriber.id, subscriber.cycle]
        unsubscribe_url = self._links.url("unsubscribe", subscriber.id)
        values = {
            "confirm_url": self._links.url("confirm", cycle),
            "unsubscribe_url": unsubscribe_url,
            "not_me_url": self._links.url("not-me", subscriber.id),
        }
        to = Address("", str(subscriber.email))
        mail = self._mail(to, "mail-confirm.txt", **values)
        mail["HTMLPart"] = self._pages.render("mail-confirm.html", **values)
        mail["Headers"] = {  # RFC 2369 and RFC 8058
            "List-Unsubscribe": f"<{unsubscribe_url}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        }
        # Composed in any case: its time must not tell what is known of an address.
        return mail if ref == row_id and subscriber.status == "pending" else None

    def digest(self, ref: str) -> dict[str, Any] | None:
        """Return the owner's list of what was held."""
        now = float(ref)
        messages, dropped = Message.digested(now), Message.dropped_before(now)
        if not messages and not dropped:  # erased meanwhile
            return None
        sentences = self._pages.language.sentences
        items = [
            {
                "who": f"{m.name} <{m.email}>" if m.name else m.email,
                "subject": m.subject,
                "first_line": m.message.partition("\n")[0][:200],
                "reasons": sentences(json.loads(m.spam_reasons)),
                "received": self._pages.moment(m.received_at),
                "deliver_url": self._links.url("release", m.id),
            }
            for m in messages
        ]
        # More than one day when the service slept, or all did not fit into one mail.
        last = day_before(now)
        first = min([last, *(day_of(m.received_at) for m in messages)])
        written = self._pages.language.full_date
        days = [written(date.fromisoformat(day)) for day in (first, last)]
        return self.to_owner(
            "mail-digest.txt",
            items=items,
            more=Message.awaiting_digest(now),
            dropped=dropped,
            day=" – ".join(dict.fromkeys(days)),
            desk_url=f"{self._settings.public_url}/desk",
        )

    def test(self, ref: str) -> dict[str, Any]:
        """Return the mail that /doctor sends."""
        return self.to_owner("mail-test.txt", public_url=self._settings.public_url)

    def to_owner(self, template: str, **values: object) -> dict[str, Any]:
        """Return a mail to the owner."""
        return self._mail(self._to, template, **values)

    def _mail(self, to: Address, template: str, **values: object) -> dict[str, Any]:
        text = self._pages.render(template, **values)
        head, _, body = text.partition("\n")
        subject = " ".join(head.removeprefix("Subject:").split())
        return {
            "From": _mailjet_address(self._from),
            "To": [_mailjet_address(to)],
            "Subject": subject[:255],  # as Mailjet allows
            "TextPart": body.strip() + "\n",
            "TrackOpens": "disabled",
            "TrackClicks": "disabled",
        }


def told(message: Message, pages: Pages) -> dict[str, Any]:
    """Return what templates show of a message."""
    return {
        "id": message.id,
        "name": message.name,
        "email": message.email,
        "subject": message.subject,
        "shown": _shown(message, pages.language),
        "referrer": message.page,
        "received": pages.moment(message.received_at),
        "client": message.client,
        "reasons": pages.language.sentences(json.loads(message.spam_reasons)),
        "delivered": message.released_at is not None,
        "state": message.state,
        "is_refused": message.is_refused,
        "why": message.delivery_reason or "",
    }


def _shown(message: Message, language: Language) -> list[tuple[str, str]]:
    """Return (label, text) of all that was typed, as the form had it."""
    columns = {
        "name": message.name,
        "email": message.email,
        "subject": message.subject,
        "message": message.message,
    }
    extra = json.loads(message.fields)
    if layout := json.loads(message.layout):
        typed = forms.typed(layout, columns, extra)
        return [(_called(name, language), text) for name, text in typed if text]
    # A message of version 1: what it was called and where it stood was not kept.
    titles = dict(zip(columns, map(language.text, COLUMNS), strict=True))
    known = [(titles[name], text) for name, text in columns.items() if text]
    return [*known, *extra.items()]


def _called(name: str, language: Language) -> str:
    """Return a field's name as its site wrote it, or in words if we know them."""
    return language.text(label(name)) if fields.meaning(name) else name


COLUMNS = (marked("Name"), marked("Email"), marked("Subject"), marked("Message"))


def _mailjet_address(address: Address) -> dict[str, str]:
    name = {"Name": address.name} if address.name else {}
    return {"Email": address.email, **name}


# --- handing over ----------------------------------------------------------------


def handlers(
    settings: Settings,
    composer: Composer,
    transport: Transport,
    letter: Callable[[str], dict[str, Any]],
) -> dict[str, Handler]:
    """Return what hands over each kind of delivery, given what it refers to."""

    def send(compose: Callable[[str], dict[str, Any] | None], ref: str) -> None:
        message = compose(ref)
        if message is not None:
            transport.send(message)

    def contact(ref: str) -> None:
        try:
            send(composer.contact, ref)
        except RefusedReplyTo:
            send(partial(composer.contact, reply_to=False), ref)

    def list_change(email: str) -> None:
        if list_id := settings.mailjet_list_id:
            # The address's state now, whatever it was when this was queued.
            transport.sync(list_id, email, Subscriber.standing(email))

    return {
        "contact": contact,
        "confirm": partial(send, composer.confirm),
        "digest": partial(send, composer.digest),
        "test": partial(send, composer.test),
        "letter": partial(send, letter),
        "list": list_change,
    }


# --- after Mailjet's yes ---------------------------------------------------------


class Events(Resource):
    """Where Mailjet tells what became of mails, and who left its list.

    Event API, https://dev.mailjet.com/email/guides/webhooks/: single events and lists
    of them. Mailjet sends them again until it gets 200.
    """

    by_token = True

    def on_post(self, req: Request, resp: Response, token: str) -> None:
        """Take events; raises Rejected (400, 413), and 404 for any other token."""
        if not self._links.signed("mailjet", token):
            raise falcon.HTTPNotFound
        events = _events(forms.read_bytes(req, MAX_EVENTS))
        work = outcomes(events, self._clock(), self._settings.syncs_list)
        for start in range(0, len(work), EVENTS_AT_ONCE):
            _do_all(work[start : start + EVENTS_AT_ONCE])
        self._outbox.nudge()
        succeed(resp, "", "Thank you.")


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the events of a body; one that cannot be read would never be better."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return
    for event in found if isinstance(found, list) else [found]:
        if isinstance(event, dict):
            yield event


def outcomes(
    events: Iterator[dict[str, Any]], now: float, sync: bool
) -> list[Callable[[], None]]:
    """Return what is to be noted of events; one that is not understood says nothing.

    What is unknown or erased is passed over, and again is harmless. In order, because
    two workers that lock the same rows of Postgres in different orders would wait for
    each other.
    """
    steps: list[tuple[str, str, Callable[[], None]]] = []
    for event in events:
        kind = event.get("event")
        failed = kind == "blocked" or (
            kind == "bounce" and event.get("hard_bounce") is True
        )
        message_id, email = _text(event, "CustomID"), _text(event, "email")
        if message_id and kind == "sent":
            note = partial(Message.was_delivered, message_id, now)
            steps.append(("message", message_id, note))
        elif message_id and failed:
            reason = _text(event, "error") or str(kind)
            note = partial(Message.was_undelivered, message_id, reason, now)
            steps.append(("message", message_id, note))
        if email and (kind in ("unsub", "spam") or (failed and not _is_ours(event))):
            refuse = kind == "spam"  # who complained refuses all mails
            leave = partial(Subscriber.leave_by_address, email, now, sync, refuse)
            steps.append(("subscriber", mailbox_key(email), leave))
    return [step for *_, step in sorted(steps, key=itemgetter(0, 1))]


@transaction
def _do_all(work: Sequence[Callable[[], None]]) -> None:
    for step in work:
        step()


def _is_ours(event: dict[str, Any]) -> bool:
    """Tell whether a mail failed for its sender or content, or at Mailjet itself.

    A blocked newsletter must not end the subscriptions of all who should have got it.
    """
    related, error = event.get("error_related_to"), event.get("error")
    return related in ("spam", "content", "system") or error == "duplicate in campaign"


def _text(event: dict[str, Any], name: str) -> str:
    value = event.get(name)
    return forms.clean(value)[:254] if isinstance(value, str) else ""
