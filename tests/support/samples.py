"""Values for each template, as the service gives them: docs/templates.md lists them."""

from __future__ import annotations

from typing import Any

MESSAGE: dict[str, Any] = {
    "id": "1",
    "name": "Ann Example",
    "email": "ann@example.org",
    "subject": "Opening hours",
    "shown": [
        ("Name", "Ann Example"),
        ("Nachricht", "Hello,\n\nare you open on Saturdays?"),
        ("Company", "ACME & Sons"),
    ],
    "referrer": "https://site.example/contact",
    "received": "22 November 2025, 14:20 UTC",
    "client": "203.0.113.0",
    "reasons": ["3 links"],
    "delivered": False,
    "state": "held",
    "why": "",
    "is_refused": False,
}
UNDELIVERED = {**MESSAGE, "state": "undelivered", "why": "full", "is_refused": True}
FORM: dict[str, Any] = {
    "action": "/contact",
    "multipart": False,
    "fields": [
        {"name": "email", "value": "ann@", "label": "Mail", "kind": "email"},
        {"name": "name", "value": 'A "Q"', "label": "Wer", "kind": "text"},
        {"name": "message", "value": "\nHi", "label": "Was", "kind": "textarea"},
        {"name": "_next", "value": "/x", "label": "", "kind": "hidden"},
    ],
}
ERRORS = [{"field": "email", "message": "3 x 3"}, {"message": "4 x 4"}]
HELD: dict[str, Any] = {
    "who": "Ann <ann@example.org>",
    "subject": "Hi",
    "first_line": "Buy now",
    "reasons": ["3 links"],
    "received": "22 November 2025, 14:20 UTC",
    "deliver_url": "https://desk.example/release/1",
}
WEEK = {"hits": 1234, "visitors": 567, "messages": 8, "held": 2} | {
    "undelivered": 1,
    "subscribers": 3,
}
DONE = {"back_url": "https://site.example/"}
ACTION = {**DONE, "action": "/newsletter/x"}
CONFIRM = {
    "confirm_url": "https://desk.example/newsletter/confirm/abc",
    "unsubscribe_url": "https://desk.example/newsletter/unsubscribe/abc",
    "not_me_url": "https://desk.example/newsletter/not-me/abc",
}
PAGES: dict[str, dict[str, Any]] = {
    "welcome.html": {
        "public_url": "https://desk.example",
        "version": "1.0.0",
        "mail_is_on": False,
        "elsewhere": True,
    },
    "thanks.html": DONE,
    "signup-thanks.html": DONE,
    "confirmed.html": {**DONE, "already": False},
    "left.html": DONE,
    "not-me-done.html": DONE,
    "renewed.html": DONE,
    "delivered.html": DONE,
    "not-found.html": DONE,
    "dead-link.html": DONE,
    "confirm.html": ACTION,
    "unsubscribe.html": ACTION,
    "not-me.html": ACTION,
    "expired.html": ACTION,
    "held.html": {
        "action": "/release/x",
        "message": MESSAGE,
        "leave_url": "https://site.example/",
    },
    "desk.html": {
        "attention": ["1 x 1"],
        "messages": [MESSAGE, UNDELIVERED],
        "older": "2",
        "subscribers": {"confirmed": 1234, "pending": 1, "left": 0},
        "newest": [
            {
                "email": "ann@example.org",
                "status": "pending",
                "since": "22 November 2025",
            }
        ],
        "pages": [("/about", 1234, 56)],
        "is_sqlite": True,
    },
    "ask.html": {
        "action": "/contact",
        "too_soon": True,
        "multipart": False,
        "fields": [("token", "x")],
        "shown": [("Was", "Hi")],
    },
    "error.html": {
        **DONE,
        "title": "1 x 1",
        "errors": ERRORS,
        "advice": "2 x 2",
        "form": FORM,
    },
    "doctor.html": {
        "ok": False,
        "checks": [{"name": "x", "ok": ok, "message": "1 x 1"} for ok in (True, False)],
        "client": {"address": "203.0.113.7", "rule": "socket"},
    },
    "doctor-done.html": {"said": ["1 x 1"]},
}
MAILS: dict[str, dict[str, Any]] = {
    "mail-contact.txt": {
        "message": MESSAGE,
        "reply_to_dropped": False,
        "maybe_spam": True,
    },
    "mail-confirm.txt": CONFIRM,
    "mail-digest.txt": {
        "items": [HELD, {**HELD, "subject": ""}],
        "more": 1,
        "dropped": 2,
        "day": "22 November 2025",
        "desk_url": "https://desk.example/desk",
    },
    "mail-letter.txt": {
        "monthly": True,
        "first": "1 November 2025",
        "last": "30 November 2025",
        "this": WEEK,
        "before": WEEK,
        "most_seen": [("/about", 1234)],
        "subscribers": {"confirmed": 56, "pending": 1, "left": 0},
        "complaints": ["1 x 1"],
        "desk_url": "https://desk.example/desk",
    },
    "mail-test.txt": {"public_url": "https://desk.example"},
}
EVERY = {**PAGES, **MAILS, "mail-confirm.html": CONFIRM}
# Those that others are made of, and the chart, which frontdesk/pictures.py fills in.
PARTS = {
    "base.html",
    "action.html",
    "done.html",
    "sent.html",
    "message.html",
    "chart.svg",
}
