"""What only the owner and the platform look at: health, doctor, exports, erasure."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import falcon
from falcon import Request, Response

import models
from frontdesk import forms
from frontdesk.answers import succeed, wants_html
from frontdesk.counter import Page
from frontdesk.database import SqliteFile, StorageError
from frontdesk.deliveries import Delivery
from frontdesk.languages import marked
from frontdesk.limits import Limits
from frontdesk.mailjet import Check, not_asked
from frontdesk.outbox import patience
from frontdesk.resources import Parts, Resource, Service
from frontdesk.settings import VERSION, Settings
from frontdesk.start import without_threads
from frontdesk.tables import DAY, check_storage, day_before, day_of
from models import Message

COLUMNS = {
    "messages": [
        *("id", "received_at", "name", "email", "subject", "message", "fields"),
        *("page", "spam_score", "spam_reasons", "held", "mailed_at"),
        *("delivery", "delivery_reason"),
    ],
    "subscribers": [
        *("email", "name", "status", "asked_at", "confirmed_at", "left_at", "page"),
        "unsubscribe_url",
    ],
    "hits": ["page", "date", "hits", "visitors"],
}
CHUNK = 64 * 1024
PROBE_SECONDS = 5
MAIL_SECONDS = 5  # that Mailjet may take for all that the doctor asks
NO_FILE = marked("On Postgres there is no such file: pg_dump makes a backup.")
TEST_SENT = marked("A test email is on its way to MAIL_TO.")
LATE_SECONDS = 3600  # after which a mail that waits is late


class Health(Resource):
    """Is all well? Never cached, never limited, no secrets; numbers for the owner."""

    more_for_owner = True
    database_seconds = 1.5  # a platform wants to know within 2
    _checked = 0.0  # of time.monotonic()

    def on_get(self, req: Request, resp: Response) -> None:
        """Report; 503 when the database does not answer, or takes nothing more."""
        now, database = self._clock(), self._service.database
        status = {"status": "ok", "version": VERSION, "database": "ok"}
        counts = {"waiting": 0, "oldest_seconds": 0, "dead": 0, "undelivered": 0}
        held, late = 0, False
        try:
            database.check()
            self._probe()
            late = Delivery.is_late(now - LATE_SECONDS - 1)
            if req.context.is_owner:
                counts |= Delivery.summary(now)
                counts["undelivered"], _ = Message.undelivered(now)
                held = Message.held_since(now - DAY)
        except StorageError:
            status |= {"status": "error", "database": "error"}
            resp.status = falcon.HTTP_503
            resp.set_header("Retry-After", "5")
        if req.context.is_owner:
            outbox = {**counts, "paused": self._outbox.is_paused()}
            resp.media = {**status, "outbox": outbox, "held_last_day": held}
        else:
            resp.media = {**status, "outbox": "late" if late else "ok"}

    def _probe(self) -> None:
        # A probe syncs the disk: often enough for a platform, too rare for an attack.
        if time.monotonic() - self._checked > PROBE_SECONDS:
            check_storage()
            self._checked = time.monotonic()


class Export(Resource):
    """The owner's data, streamed."""

    for_owner = True

    def on_get(self, req: Request, resp: Response, name: str) -> None:
        """Answer with messages, subscribers or hits as JSON or CSV."""
        noun, _, kind = name.partition(".")
        if noun not in COLUMNS or kind not in ("json", "csv"):
            raise falcon.HTTPNotFound
        rows = models.export(noun)
        if noun == "subscribers":
            rows = map(self._with_link, rows)
        elif noun == "messages":
            rows = map(self._with_sentences, rows)
        # The first row now: a database in trouble must still become a 503.
        rows = chain([first], rows) if (first := next(rows, None)) else rows
        as_text = _as_json(rows) if kind == "json" else _as_csv(rows, COLUMNS[noun])
        resp.content_type = falcon.MEDIA_JSON if kind == "json" else falcon.MEDIA_CSV
        resp.downloadable_as = f"frontdesk-{name}"
        if req.method == "GET":
            resp.stream = _in_chunks(as_text)

    def _with_sentences(self, row: dict[str, Any]) -> dict[str, Any]:
        reasons = self._site.pages.language.sentences(row["spam_reasons"])
        return row | {"spam_reasons": reasons}

    def _with_link(self, row: dict[str, Any]) -> dict[str, Any]:
        subscriber_id, confirmed = row.pop("id"), row["status"] == "confirmed"
        url = self._links.url("unsubscribe", subscriber_id) if confirmed else None
        return row | {"unsubscribe_url": url}


def _as_json(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    separator = "["
    for row in rows:
        yield separator + json.dumps(row, ensure_ascii=False)
        separator = ",\n"
    yield "[]" if separator == "[" else "]"


def _as_csv(rows: Iterable[dict[str, Any]], columns: list[str]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    for row in rows:
        writer.writerow(_cell(row[column]) for column in columns)
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    yield line.getvalue()


# Where a cell begins: also for a spreadsheet that was told another separator, which
# takes our quotes for its own: ;""=1 is a formula then.
# Each run of separators and spaces is passed once: its repeats do not add up.
_CELL_BEGINS = re.compile(r"((?:\A|[;,\t\r\n])[\s\"]*+)([=+\-@＝＋－＠])?")


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    if isinstance(value, (dict, list)):
        value = json.dumps(value, ensure_ascii=False)
    return _CELL_BEGINS.sub(_defused, value) if isinstance(value, str) else value


def _defused(begin: re.Match[str]) -> str:
    return f"{begin[1]}'{begin[2]}" if begin[2] else begin[0]


def _in_chunks(texts: Iterable[str]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    for text in texts:
        buffer.write(text.encode())
        if buffer.tell() >= CHUNK:
            yield buffer.getvalue()
            buffer = io.BytesIO()
    yield buffer.getvalue()


class Backup(Resource):
    """A copy of the whole database."""

    for_owner = True

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer with a consistent SQLite file; there is none on Postgres."""
        database = self._service.database
        if not isinstance(database, SqliteFile):
            raise forms.error(falcon.HTTP_404, "NOT_FOUND", NO_FILE)
        resp.content_type = "application/vnd.sqlite3"
        resp.downloadable_as = "frontdesk.sqlite3"
        if req.method == "GET":
            with database.backup() as copy:
                # Unlinked when the context ends; the open file lives until it is sent.
                resp.set_stream(copy.open("rb"), copy.stat().st_size)


class People(Resource):
    """What is kept of a person."""

    for_owner = True

    def on_delete(self, req: Request, resp: Response, email: str) -> None:
        """Erase messages and subscription."""
        address = forms.valid_email(email)
        if address is None:
            message = marked("This is not a valid email address.")
            raise forms.wrong("email", "TYPE_EMAIL", message)
        sync = self._settings.syncs_list
        messages, subscribers = models.erase(address, self._clock(), sync)
        self._outbox.nudge()
        erased = f"Erased {messages} messages and {subscribers} subscriptions."
        succeed(resp, "", erased, messages=messages, subscribers=subscribers)


@dataclass(frozen=True)
class Checkup:
    """What is set up well and what to mend, for the doctor, the desk and the letter."""

    parts: Parts
    mail_seconds: float = MAIL_SECONDS

    def here(self) -> list[Check]:
        """Check what needs nobody else."""
        return [
            *(self._storage(), *self._disk(), self._schema(), self._waiting()),
            *(*self._undelivered(), self._public_url(), self._origins()),
        ]

    def mailjet(self) -> list[Check]:
        """Ask Mailjet about keys, sender, list and events; it may take seconds."""
        parts = self.parts
        return self._ask(parts.transport.check(parts.settings, parts.links))

    def register(self) -> list[Check]:
        """Have Mailjet tell us of its events."""
        return self._ask(self.parts.transport.register(self.parts.links))

    def complaints(self, by_mailjet: list[Check]) -> list[str]:
        """Return a sentence for all that is not well; by_mailjet: see mailjet()."""
        checks = [*self.here(), *by_mailjet]
        return [self.told(check) for check in checks if not check.ok]

    def told(self, check: Check) -> str:
        """Return what a check says, in the site's language."""
        return self.parts.site.pages.language.text(check.message, **check.values)

    def _ask(self, checks: Iterator[Check]) -> list[Check]:
        """Ask Mailjet, in a thread: no client bounds the whole of several answers."""
        found: list[Check] = []

        def ask() -> None:
            try:
                for check in checks:
                    found.append(check)
            except Exception as error:  # in a thread, nobody else would tell
                found.append(not_asked("mail", type(error).__name__))

        if without_threads(self.parts.settings):  # then each request is bounded
            with patience.within(self.mail_seconds):
                ask()
            return found
        asking = threading.Thread(target=ask, name="doctor", daemon=True)
        asking.start()
        asking.join(self.mail_seconds)
        if not asking.is_alive():
            return found
        late = marked("Mailjet did not answer in %(seconds)s seconds.")
        values = {"seconds": f"{self.mail_seconds:g}"}
        return [*found, Check("mail", False, late, values)]

    def _storage(self) -> Check:
        if self.parts.database.is_sqlite:
            well = marked("SQLite on a disk that stays, %(size)s MB.")
        else:
            well = marked("Postgres, %(size)s MB.")
        wiped = marked(
            "SQLite on a disk that may be wiped (ALLOW_EPHEMERAL=1): attach Postgres "
            "or a disk."
        )
        stays = not (self.parts.database.is_sqlite and self.parts.settings.ephemeral)
        size = {"size": -(-self.parts.database.size() // 2**20)}  # MB, rounded up
        return Check.of("database", stays, well, wiped, size)

    def _disk(self) -> Iterator[Check]:
        path = self.parts.database.path
        if path is not None:
            free = shutil.disk_usage(path.parent).free // 2**20
            message = marked("%(free)s MB free.")
            yield Check("disk", free > 100, message, {"free": free})

    def _schema(self) -> Check:
        version = self.parts.database.schema_version()
        return Check("schema", True, marked("Version %(name)s."), {"name": version})

    def _waiting(self) -> Check:
        counts = Delivery.summary(self.parts.clock())
        well = counts["oldest_seconds"] < LATE_SECONDS and not counts["dead"]
        message = marked(
            "%(waiting)s waiting, the oldest for %(oldest_seconds)s seconds; "
            "%(dead)s dead."
        )
        return Check("outbox", well, message, counts)

    def _undelivered(self) -> Iterator[Check]:
        count, reason = Message.undelivered(self.parts.clock())
        if count:
            to = self.parts.settings.mail_to
            known = to.email.partition("@")[0] if to else ""
            message = self.parts.site.pages.language.plural(
                "%(n)s mail did not arrive at %(to)s: %(reason)s. Your message is "
                "safe: read it on /desk, then mend MAIL_TO.",
                "%(n)s mails did not arrive at %(to)s: %(reason)s. Your messages are "
                "safe: read them on /desk, then mend MAIL_TO.",
                count,
                to=f"{known}@…",
                reason=reason,
            )
            yield Check("undelivered", False, message)

    def _public_url(self) -> Check:
        url = self.parts.settings.public_url
        well = marked("Links in emails lead to %(url)s.")
        mend = marked(
            "Links in emails lead to %(url)s: set PUBLIC_URL to this service's https "
            "address."
        )
        is_https = url.startswith("https://")
        return Check.of("public_url", is_https, well, mend, {"url": url})

    def _origins(self) -> Check:
        well = marked(
            "Pages of %(origins)s may send forms. A script on another page only sees "
            "“Failed to fetch”: the log names the origin to add."
        )
        mend = marked("Every site may send forms: set ALLOWED_ORIGINS to yours.")
        listed = {"origins": ", ".join(self.parts.settings.allowed_origins)}
        named = not self.parts.settings.origins.any
        return Check.of("allowed_origins", named, well, mend, listed)


class Doctor(Resource):
    """What is set up well and what to mend."""

    for_owner = True

    def __init__(self, service: Service, mail_seconds: float = MAIL_SECONDS) -> None:
        super().__init__(service)
        self._checkup = Checkup(service, mail_seconds)

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer with a list of checks, each ok or with what to do; or a page."""
        found = [*self._checkup.here(), *self._checkup.mailjet(), self._client(req)]
        checks = self._listed(found)
        well = all(check.ok for check in found)
        client = {"address": req.context.client, "rule": req.context.client_rule}
        if wants_html(req):
            self._site.show(resp, "doctor.html", ok=well, checks=checks, client=client)
        else:
            resp.media = {"ok": well, "checks": checks, "client": client}

    def on_post(self, req: Request, resp: Response) -> None:
        """Send a test mail to the owner, and have Mailjet tell us of its events."""
        Delivery.add("test", "", self._clock())
        self._outbox.nudge()
        checks = self._listed(self._checkup.register())
        sent = self._site.pages.language.text(TEST_SENT)
        said = [sent, *(check["message"] for check in checks)]
        if wants_html(req):
            self._site.show(resp, "doctor-done.html", said=said)
        else:
            succeed(resp, "", " ".join(said), checks=checks)

    def _listed(self, checks: Iterable[Check]) -> list[dict[str, Any]]:
        told = self._checkup.told
        return [{"name": c.name, "ok": c.ok, "message": told(c)} for c in checks]

    def _client(self, req: Request) -> Check:
        rule, settings = req.context.client_rule, self._settings
        ok = True
        message = marked("Your address is the connection's: no proxy in front.")
        if rule != "socket":
            message = marked(
                "Your address is told by %(rule)s: compare it with your own."
            )
        elif settings.client_ip_header or settings.trusted_hops:
            ok = False
            message = marked("The header that should tell your address did not come.")
        elif req.get_header("X-Forwarded-For"):
            ok = False
            message = marked(
                "All visitors seem to have a proxy's address: set TRUSTED_HOPS."
            )
        return Check("client", ok, message, {"rule": rule})


class Daily:
    """Once a day in each process: the digest of what was held, and the clean-up."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings = settings
        self._limits = limits
        self._done_on = ""

    def __call__(self, now: float) -> None:
        """Do today's round unless this process has done it."""
        today = day_of(now)
        if self._done_on == today:
            return
        Message.start_digest(now)
        models.clean_up(now, self._settings.retention_days)
        Page.make_room(day_before(now), self._settings.max_pages)
        self._limits.sweep()
        self._done_on = today
