"""The owner's page: what needs attention, messages, subscribers, hits, exports."""

from __future__ import annotations

import falcon
from falcon import Request, Response

from frontdesk import forms, pictures
from frontdesk.counter import ALL_PAGES, Hit, Page
from frontdesk.languages import marked
from frontdesk.resources import Resource
from frontdesk.tables import day_of
from models import Message, Subscriber

MESSAGES = 25  # a page
SUBSCRIBERS = 20  # the newest
PAGES = 20  # the most seen
CHART_DAYS = 30


class DeskPage(Resource):
    """All that the owner wants to know, on one page without script."""

    for_owner = True

    def on_get(self, req: Request, resp: Response) -> None:
        """Show it; before=id shows the messages that are older than that one."""
        now = self._clock()
        messages = Message.newest(MESSAGES + 1, req.get_param("before") or "")
        self._site.show(
            resp,
            "desk.html",
            attention=self._attention(now),
            messages=[message.as_dict() for message in messages[:MESSAGES]],
            older=messages[MESSAGES - 1].id if len(messages) > MESSAGES else None,
            subscribers=Subscriber.totals(),
            newest=[row.as_dict() for row in Subscriber.newest(SUBSCRIBERS)],
            chart=self._chart(now),
            pages=Page.most_seen(PAGES),
            is_sqlite=self._service.database.is_sqlite,
        )

    def _attention(self, now: float) -> list[str]:
        """Return what the owner has to look after, a sentence each."""
        return []

    def _chart(self, now: float) -> str:
        days = Hit.days(ALL_PAGES, CHART_DAYS, day_of(now))
        return pictures.chart(self._site.pages, ALL_PAGES, days)


class DeskMessage(Resource):
    """One message on that page, and what can be done with it."""

    for_owner = True

    def on_post(self, req: Request, resp: Response, message_id: str) -> None:
        """Deliver it, learn that it was spam, or delete it; again is harmless."""
        action, now = forms.read(req).get("action"), self._clock()
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
