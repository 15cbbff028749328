"""What the owner sees of it all: the page /desk, and the weekly or monthly letter."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import falcon
from falcon import Request, Response

from frontdesk import forms
from frontdesk.counter import Hit, Page
from frontdesk.deliveries import Delivery
from frontdesk.languages import marked
from frontdesk.mailjet import Check
from frontdesk.resources import Resource, Service
from frontdesk.settings import Settings
from frontdesk.tables import DAY
from mail import Composer, told
from models import Message, Subscriber
from owner import Checkup

MESSAGES = 25  # a page
SUBSCRIBERS = 20  # the newest
PAGES = 20  # the most seen
ASKED_SECONDS = 60  # for which the page tells what Mailjet said
MAIL_SECONDS = 2  # that Mailjet may keep the owner waiting for the page
LETTER_PAGES = 5


class DeskPage(Resource):
    """All that the owner wants to know, on one page without script."""

    for_owner = True

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._checkup = Checkup(service, MAIL_SECONDS)
        self._asked_at, self._by_mailjet = 0.0, list[Check]()

    def on_get(self, req: Request, resp: Response) -> None:
        """Show it; before=id shows the messages that are older than that one."""
        messages = Message.newest(
            MESSAGES + 1, forms.clean(req.get_param("before") or "")
        )
        site = self._site.pages
        self._site.show(
            resp,
            "desk.html",
            attention=self._attention(),
            messages=[told(message, site) for message in messages[:MESSAGES]],
            older=messages[MESSAGES - 1].id if len(messages) > MESSAGES else None,
            subscribers=Subscriber.totals(),
            newest=[self._row(row) for row in Subscriber.newest(SUBSCRIBERS)],
            pages=Page.most_seen(PAGES),
            is_sqlite=self._service.database.is_sqlite,
        )

    def _attention(self) -> list[str]:
        """Return what the doctor complains of.

        Mailjet is asked once a minute: each button leads back to this page.
        """
        now = self._clock()
        if not 0 <= now - self._asked_at < ASKED_SECONDS:
            self._asked_at, self._by_mailjet = now, self._checkup.mailjet()
        return self._checkup.complaints(self._by_mailjet)

    def _row(self, row: Subscriber) -> dict[str, Any]:
        since = row.left_at or row.confirmed_at or row.asked_at
        written = self._site.pages.language.full_date(
            self._settings.calendar.local(since)
        )
        return {"email": row.email, "status": row.status, "since": written}


class DeskMessage(Resource):
    """One message on that page, and what can be done with it."""

    for_owner = True

    def on_post(self, req: Request, resp: Response, message_id: str) -> None:
        """Deliver it, learn that it was spam, or delete it; again is harmless."""
        action, now = forms.read(req).get("action"), self._clock()
        message_id = forms.clean(message_id)  # Postgres takes no NUL
        if action == "deliver":
            Message.deliver(message_id, now)
        elif action == "spam":
            Message.mark_spam(message_id, now)
        elif action == "delete":
            Message.erase(message_id)
        else:
            message = marked("There is no such action.")
            raise forms.wrong("action", "TYPE_TEXT", message)
        self._outbox.nudge()
        raise falcon.HTTPSeeOther(f"{self._settings.root}/desk")


class Letter:
    """Tells the owner how the last week or month went.

    It is also the sign that all is well: a letter that does not come means that
    something is wrong.
    """

    def __init__(
        self, settings: Settings, composer: Composer, checkup: Checkup
    ) -> None:
        self._settings = settings
        self._calendar = settings.calendar
        self._composer = composer
        self._checkup = checkup

    def start(self, now: float) -> None:
        """Queue the letter with the first sign of life of a week or month."""
        if self._settings.letter != "off":
            Delivery.add_letter(self._period_of(now), now)

    def compose(self, ends: str) -> dict[str, Any]:
        """Return the letter about the period that ended when a day began (ISO date)."""
        begins = self._period_of(self._calendar.midnight(ends) - DAY / 2)
        before = self._period_of(self._calendar.midnight(begins) - DAY / 2)
        this, last = self._numbers(begins, ends), self._numbers(before, begins)
        written = self._composer.language.full_date
        return self._composer.to_owner(
            "mail-letter.txt",
            monthly=self._settings.letter == "monthly",
            first=written(date.fromisoformat(begins)),
            last=written(date.fromisoformat(ends) - timedelta(1)),
            this=this,
            before=last,
            most_seen=Hit.most_seen(begins, ends, LETTER_PAGES),
            subscribers=Subscriber.totals(),
            complaints=self._checkup.complaints(self._checkup.mailjet()),
            desk_url=f"{self._settings.public_url}/desk",
        )

    def _period_of(self, moment: float) -> str:
        weekly = self._settings.letter == "weekly"
        calendar = self._calendar
        return calendar.week_of(moment) if weekly else calendar.month_of(moment)

    def _numbers(self, begins: str, ends: str) -> dict[str, int]:
        """Return what was counted from one day to the day before another."""
        hits, visitors = Hit.between(begins, ends)
        since, until = map(self._calendar.midnight, (begins, ends))
        return {
            "hits": hits,
            "visitors": visitors,
            **Message.between(since, until),
            "subscribers": Subscriber.confirmed_between(since, until),
        }
