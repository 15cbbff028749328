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
from itertools import chain
from typing import Any

import falcon
from falcon import Request, Response

import models
from frontdesk import forms
from frontdesk.answers import succeed
from frontdesk.database import SqliteFile, StorageError
from frontdesk.limits import Limits
from frontdesk.resources import Resource, Service
from frontdesk.settings import VERSION, Settings, sqlite_path
from frontdesk.tables import DAY, check_storage, day_of
from models import Delivery, Message

COLUMNS = {
    "messages": [
        *("id", "received_at", "name", "email", "subject", "message", "fields"),
        *("page", "spam_score", "spam_reasons", "held", "mailed_at"),
    ],
    "subscribers": [
        *("email", "name", "status", "asked_at", "confirmed_at", "left_at", "page")
    ],
    "hits": ["page", "date", "hits", "visitors"],
}
CHUNK = 64 * 1024
PROBE_SECONDS = 5
MAIL_SECONDS = 5  # that Mailjet may take for all that the doctor asks

Check = tuple[str, bool, str]  # name, ok, what is or what to do


class Health(Resource):
    """Is all well? Never cached, never limited, no secrets."""

    _checked = 0.0  # of time.monotonic()

    def on_get(self, req: Request, resp: Response) -> None:
        """Report; 503 when the database does not answer, or takes nothing more."""
        now = self._clock()
        status = {"status": "ok", "version": VERSION, "database": "ok"}
        try:
            self._probe()
            counts = Delivery.summary(now)
            held = Message.held_since(now - DAY)
        except StorageError:
            status |= {"status": "error", "database": "error"}
            counts = {"waiting": 0, "oldest_seconds": 0, "dead": 0}
            held = 0
            resp.status = falcon.HTTP_503
            resp.set_header("Retry-After", "5")
        paused = now < self._outbox.paused_until
        resp.media = {
            **status,
            "outbox": {**counts, "paused": paused},
            "held_last_day": held,
        }

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
        # The first row now: a database in trouble must still become a 503.
        rows = chain([first], rows) if (first := next(rows, None)) else rows
        as_text = _as_json(rows) if kind == "json" else _as_csv(rows, COLUMNS[noun])
        resp.content_type = falcon.MEDIA_JSON if kind == "json" else falcon.MEDIA_CSV
        resp.downloadable_as = f"frontdesk-{name}"
        if req.method == "GET":
            resp.stream = _in_chunks(as_text)


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


# Where a cell begins: also for a spreadsheet that was told another separator.
_FORMULA = re.compile(r"(?:\A|(?<=[;,\t\r\n]))(\s*)(?=[=+\-@＝＋－＠])")


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    if isinstance(value, (dict, list)):
        value = json.dumps(value, ensure_ascii=False)
    return _FORMULA.sub(r"\1'", value) if isinstance(value, str) else value


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
            raise falcon.HTTPNotFound
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
            message = "This is not a valid e-mail address."
            raise forms.wrong("email", "TYPE_EMAIL", message)
        sync = self._settings.syncs_list
        messages, subscribers = models.erase(address, self._clock(), sync)
        self._outbox.nudge()
        erased = f"Erased {messages} messages and {subscribers} subscriptions."
        succeed(resp, "", erased, messages=messages, subscribers=subscribers)


class Doctor(Resource):
    """What is set up well and what to mend."""

    for_owner = True

    def __init__(self, service: Service, mail_seconds: float = MAIL_SECONDS) -> None:
        super().__init__(service)
        self._transport = service.transport
        self._mail_seconds = mail_seconds

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer with a list of checks, each ok or with what to do."""
        checks = [
            {"name": name, "ok": ok, "message": message}
            for name, ok, message in chain(
                self._database(), self._mail(), self._addresses(), self._client(req)
            )
        ]
        resp.media = {
            "ok": all(check["ok"] for check in checks),
            "checks": checks,
            "client": {"address": req.context.client, "rule": req.context.client_rule},
        }

    def on_post(self, req: Request, resp: Response) -> None:
        """Send a test mail to the owner."""
        now = self._clock()
        Delivery.add("test", "", now)
        self._outbox.nudge()
        succeed(resp, "", "A test mail is on its way to MAIL_TO.")

    def _database(self) -> Iterator[Check]:
        path = sqlite_path(self._settings.database_url)
        size = f"{self._service.database.size() / 2**20:,.1f} MB"
        if path is None:
            yield "database", True, f"Postgres, {size}."
        else:
            lasts = not self._settings.ephemeral
            yield (
                "database",
                lasts,
                f"SQLite on a disk that stays, {size}."
                if lasts
                else "SQLite on a disk that may be wiped (ALLOW_EPHEMERAL=1): attach "
                "Postgres or a disk.",
            )
            free = shutil.disk_usage(path.parent).free // 2**20
            yield "disk", free > 100, f"{free:,} MB free."
        yield "schema", True, f"Version {self._service.database.schema_version()}."
        counts = Delivery.summary(self._clock())
        yield (
            "outbox",
            counts["oldest_seconds"] < 3600 and not counts["dead"],
            f"{counts['waiting']} waiting, the oldest for {counts['oldest_seconds']} "
            f"seconds; {counts['dead']} dead.",
        )

    def _mail(self) -> list[Check]:
        """Ask Mailjet, in a thread: no client bounds the whole of several answers."""
        found: list[Check] = []

        def ask() -> None:
            try:
                for check in self._transport.check(self._settings):
                    found.append(check)
            except Exception as error:  # in a thread, nobody else would tell
                trouble = f"Mailjet could not be asked: {type(error).__name__}."
                found.append(("mail", False, trouble))

        asking = threading.Thread(target=ask, name="doctor", daemon=True)
        asking.start()
        asking.join(self._mail_seconds)
        if asking.is_alive():
            seconds = f"{self._mail_seconds:g} seconds"
            return [*found, ("mail", False, f"Mailjet did not answer in {seconds}.")]
        return found

    def _addresses(self) -> Iterator[Check]:
        settings = self._settings
        safe = settings.public_url.startswith("https://")
        yield (
            "public_url",
            safe,
            f"Mailed links lead to {settings.public_url}"
            + ("." if safe else ": set PUBLIC_URL to this service's https address."),
        )
        listed = not settings.origins.any
        yield (
            "allowed_origins",
            listed,
            f"Pages of {', '.join(settings.allowed_origins)} may send forms."
            if listed
            else "Every site may send forms: set ALLOWED_ORIGINS to yours.",
        )

    def _client(self, req: Request) -> Iterator[Check]:
        rule, settings = req.context.client_rule, self._settings
        if rule != "socket":
            message = f"Your address is told by {rule}: compare it with your own."
        elif settings.client_ip_header or settings.trusted_hops:
            message = "The header that should tell your address did not come."
        elif req.get_header("X-Forwarded-For"):
            message = "All visitors seem to have a proxy's address: set TRUSTED_HOPS."
        else:
            yield "client", True, "Your address is the connection's: no proxy in front."
            return
        yield "client", rule != "socket", message


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
        self._limits.sweep()
        self._done_on = today
