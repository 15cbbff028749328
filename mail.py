"""What each mail says, and how each kind of delivery is handed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from frontdesk import pages
from frontdesk.links import Links
from frontdesk.mailjet import RefusedReplyTo, Transport
from frontdesk.outbox import Handler
from frontdesk.settings import Address, Settings
from frontdesk.tables import DAY, Tally, day_of, iso
from models import UNSENT, Message, Subscriber

CONFIRM_SECONDS = 7 * DAY
DIGEST_ITEMS = 50


class Composer:
    """Turns what a delivery refers to into a Mailjet message (Send API v3.1).

    None: there is nothing left to say.
    """

    def __init__(self, settings: Settings, links: Links) -> None:
        self._settings = settings
        self._links = links
        sender = settings.mail_from or Address("", "frontdesk@localhost")
        self._from = Address(sender.name or settings.site_name, sender.email)
        self._to = settings.mail_to or Address("", "owner@localhost")

    def contact(self, ref: str, reply_to: bool = True) -> dict[str, Any] | None:
        """Return a visitor's message for the owner."""
        message = Message.get_or_none(Message.id == ref)
        if message is None:  # erased meanwhile
            return None
        mail = self._mail(
            self._to,
            "mail-contact.txt",
            message=message.as_dict() | {"client": message.client},
            reply_to_dropped=not reply_to,
            maybe_spam=message.doubtful,
        )
        if reply_to:
            mail["ReplyTo"] = _mailjet_address(Address(message.name, message.email))
        return mail | {"CustomID": message.id}

    def contact_without_reply_to(self, ref: str) -> dict[str, Any] | None:
        """Return the same when Mailjet does not take the address to reply to."""
        return self.contact(ref, reply_to=False)

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
            "days": CONFIRM_SECONDS // DAY,
        }
        to = Address("", str(subscriber.email))
        mail = self._mail(to, "mail-confirm.txt", **values)
        site = self._settings.site_name
        mail["HTMLPart"] = pages.render("mail-confirm.html", site_name=site, **values)
        mail["Headers"] = {  # RFC 2369 and RFC 8058
            "List-Unsubscribe": f"<{unsubscribe_url}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        }
        # Composed in any case: its time must not tell what is known of an address.
        return mail if ref == row_id and subscriber.status == "pending" else None

    def digest(self, ref: str) -> dict[str, Any] | None:
        """Return the owner's list of what was held."""
        digested_at = float(ref)
        messages, more = Message.digested(digested_at, DIGEST_ITEMS)
        if not messages:  # erased meanwhile
            return None
        items = [
            {
                "who": f"{m.name} <{m.email}>" if m.name else m.email,
                "subject": m.subject,
                "first_line": m.message.splitlines()[0][:200],
                "reasons": json.loads(m.spam_reasons),
                "received_at": iso(m.received_at),
                "release_url": self._links.url("release", m.id),
            }
            for m in messages
        ]
        # More than one day when the service slept (free dynos do).
        first, last = day_of(messages[0].received_at), day_of(digested_at - DAY)
        return self._mail(
            self._to,
            "mail-digest.txt",
            items=items,
            more=more,
            dropped=Tally.count("held, not stored", first, last),
            day=first if first == last else f"{first} or later",
        )

    def test(self, ref: str) -> dict[str, Any]:
        """Return the mail that /doctor sends."""
        return self._mail(
            self._to, "mail-test.txt", public_url=self._settings.public_url
        )

    def _mail(self, to: Address, template: str, **values: object) -> dict[str, Any]:
        text = pages.render(template, site_name=self._settings.site_name, **values)
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


def _mailjet_address(address: Address) -> dict[str, str]:
    name = {"Name": address.name} if address.name else {}
    return {"Email": address.email, **name}


# --- handing over ----------------------------------------------------------------


def handlers(
    settings: Settings, composer: Composer, transport: Transport
) -> dict[str, Handler]:
    """Return what hands over each kind of delivery, given what it refers to."""

    def mail(compose: Callable[[str], dict[str, Any] | None]) -> Handler:
        def hand_over(ref: str) -> None:
            message = compose(ref)
            if message is not None:
                transport.send(message)

        return hand_over

    def contact(ref: str) -> None:
        try:
            mail(composer.contact)(ref)
        except RefusedReplyTo:
            mail(composer.contact_without_reply_to)(ref)

    def list_change(email: str) -> None:
        if list_id := settings.mailjet_list_id:
            # The address's state now, whatever it was when this was queued.
            transport.sync(list_id, email, Subscriber.standing(email))

    return {
        "contact": contact,
        "confirm": mail(composer.confirm),
        "digest": mail(composer.digest),
        "test": mail(composer.test),
        "list": list_change,
    }
