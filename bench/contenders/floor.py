"""The floor: a bare WSGI callable with hand-written SQL, on SQLite or Postgres.

A connection for each thread. On SQLite one lock around writes (SQLite's own waiting is
a sleep). On Postgres the same statements, prepared and pipelined: a contact post takes
three round trips (limit; claim; message, delivery and commit), a hit three.
"""

import json
import threading
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

import work

TEXT = Path(__file__).with_name("work.sql").read_text()
SQL = dict(part.strip().split(": ", 1) for part in TEXT.split(";"))
LINES = {s.value: f"{s.value} {s.phrase}" for s in HTTPStatus}
GETS = {"/hits": work.read, "/hits.svg": work.badge}


class Store:
    """The work in SQL; in ``transaction()``, ``execute`` is part of it."""

    def keep(self, row, key):
        found, now = row["id"], row["created_at"]
        with self.transaction():
            claim = (key, found, now + work.DUPLICATE_SECONDS, now)
            if self.execute(SQL["claim"], claim).fetchone() is None:
                return self.execute(SQL["claimed"], (key,)).fetchone()[0]
            self.execute(SQL["message"], tuple(row.values()))
            self.execute(SQL["delivery"], ("contact", found, now, now))
        return found

    def ask(self, row, day):
        now = row["created_at"]
        with self.transaction():
            if (
                self.execute(SQL["subscriber"], tuple(row.values())).fetchone()
                and self.execute(SQL["tally"], (day, work.MAILS_PER_DAY)).fetchone()
            ):
                self.execute(SQL["delivery"], ("confirm", row["id"], now, now))

    def count(self, page, day, visitor):
        with self.transaction():
            seen = self.execute(SQL["visitor"], (day, visitor)).fetchone()
            new = int(seen is not None)
            sums = self.execute(SQL["page"], (page, new))
            self.execute(SQL["hit"], (page, day, new))
            return sums.fetchall()[0]  # an open statement would hinder the commit

    def totals(self, page):
        return self.execute(SQL["totals"], (page,)).fetchone() or (0, 0)

    def days(self, page, since):
        return self.execute(SQL["days"], (page, since))


class OnSqlite(Store):
    def __init__(self):
        self.execute = work.Sqlite(work.DATABASE, "full").execute
        self.writing = threading.Lock()
        self.limits = work.Limits()

    @contextmanager
    def transaction(self):
        with self.writing:
            self.execute("BEGIN IMMEDIATE", ())
            try:
                yield
            except BaseException:
                self.execute("ROLLBACK", ())
                raise
            self.execute("COMMIT", ())


class OnPostgres(Store):
    def __init__(self):
        self.local = threading.local()
        self.limits = work.Limits(self.execute)

    def connection(self):
        if not hasattr(self.local, "con"):
            import psycopg  # installed for this one only

            con = psycopg.connect(work.DATABASE, autocommit=True, prepare_threshold=0)
            self.local.con = con
        return self.local.con

    def execute(self, sql, values):
        return self.connection().execute(sql.replace("?", "%s"), values)

    @contextmanager
    def transaction(self):
        con = self.connection()
        with con.pipeline(), con.transaction():
            yield


store = OnPostgres() if "://" in work.DATABASE else OnSqlite()


def answer(environ):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    client = environ["REMOTE_ADDR"]
    if method == "OPTIONS":
        return 204, {}
    if path == "/health":
        return 200, {"status": "ok"}
    if path not in (work.POSTS if method == "POST" else GETS):
        return work.sorry("NOT_FOUND", 404)
    if method == "POST" and environ.get("HTTP_ORIGIN", work.ORIGIN) != work.ORIGIN:
        return work.sorry("BLOCKED", 403)
    if (method, path) != ("GET", "/hits") and not store.limits.allow(path, client):
        return work.sorry("RATE_LIMITED", 429)
    if method == "GET":
        page = parse_qs(environ["QUERY_STRING"]).get("page", [""])[0]
        return GETS[path](store, page)
    length, form = int(environ.get("CONTENT_LENGTH") or 0), None
    if length <= 64 * 1024:
        with suppress(ValueError):
            form = json.loads(environ["wsgi.input"].read(length))
    if not isinstance(form, dict):
        return work.sorry("MALFORMED", 400)
    respond, header = work.POSTS[path]
    name = "HTTP_REFERER" if header == "Referer" else "HTTP_USER_AGENT"
    return respond(store, form, client, environ.get(name, ""))


def app(environ, start_response):
    status, value = answer(environ)
    svg = isinstance(value, str)
    data = (value if svg else json.dumps(value)).encode()
    headers = [
        ("Content-Type", "image/svg+xml" if svg else "application/json"),
        ("Content-Length", str(len(data))),
        ("Cache-Control", "no-store"),
        ("Vary", "Origin"),
    ]
    if environ.get("HTTP_ORIGIN") == work.ORIGIN:
        headers += [
            ("Access-Control-Allow-Origin", work.ORIGIN),
            ("Access-Control-Expose-Headers", work.EXPOSED),
        ]
    if environ["REQUEST_METHOD"] == "OPTIONS":
        headers += [
            ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
            ("Access-Control-Allow-Headers", "Content-Type"),
            ("Access-Control-Max-Age", "86400"),
        ]
    start_response(LINES[status], headers)
    return [data]
