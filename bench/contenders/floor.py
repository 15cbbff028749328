"""The floor: a bare WSGI callable with hand-written SQL, on SQLite or Postgres.

A connection for each thread. On SQLite one lock around writes (SQLite's own waiting is
a sleep). On Postgres the same statements, prepared and pipelined: a contact post takes
three round trips (limit; claim; message, delivery and commit), a hit three.
"""

import functools
import json
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

import work

MAX_BODY = 64 * 1024
TEXT = Path(__file__).with_name("work.sql").read_text()
SQL = dict(part.strip().split(": ", 1) for part in TEXT.split(";"))
LIMIT = (
    "INSERT INTO bucket VALUES {} ON CONFLICT (key) DO UPDATE "
    "SET tat = greatest(bucket.tat, %s) + excluded.tat - %s "
    "WHERE bucket.tat <= %s + (excluded.tat - %s) * %s RETURNING 1"
)


class Store:
    """The work in SQL; ``transaction()`` yields execute(sql, parameters)."""

    def keep(self, row, key):
        found, now = row["id"], row["received_at"]
        with self.transaction() as execute:
            claim = (key, found, now + work.DUPLICATE_SECONDS, now)
            if execute(SQL["claim"], claim).fetchone() is None:
                return execute(SQL["claimed"], (key,)).fetchone()[0]
            execute(SQL["message"], tuple(row.values()))
            execute(SQL["delivery"], ("contact", found, now, now))
        return found

    def ask(self, row, day):
        now = row["asked_at"]
        with self.transaction() as execute:
            if (
                execute(SQL["subscriber"], tuple(row.values())).fetchone()
                and execute(SQL["tally"], (day, work.MAILS_PER_DAY)).fetchone()
            ):
                execute(SQL["delivery"], ("confirm", row["id"], now, now))

    def count(self, page, day, visitor):
        with self.transaction() as execute:
            new = int(execute(SQL["visitor"], (day, visitor)).fetchone() is not None)
            sums = execute(SQL["page"], (page, new))
            execute(SQL["hit"], (page, day, new))
            return sums.fetchall()[0]  # an open statement would hinder the commit

    def totals(self, page):
        return self.query(SQL["totals"], (page,)).fetchone() or (0, 0)

    def days(self, page, since):
        return self.query(SQL["days"], (page, since))


class Sqlite(Store):
    def __init__(self):
        self._local = threading.local()
        self._writing = threading.Lock()
        self.allow = work.Limits().allow

    def _connection(self):
        con = getattr(self._local, "con", None)
        if con is None:
            con = sqlite3.connect(work.DATABASE, timeout=10, isolation_level=None)
            con.execute("PRAGMA synchronous = full")
            self._local.con = con
        return con

    def query(self, sql, params):
        return self._connection().execute(sql, params)

    def transaction(self):
        return Transaction(self._connection(), self._writing)


class Transaction:
    def __init__(self, con, lock):
        self.con, self.lock = con, lock

    def __enter__(self):
        self.lock.acquire()
        try:
            self.con.execute("BEGIN IMMEDIATE")
        except BaseException:
            self.lock.release()
            raise
        return self.con.execute

    def __exit__(self, failed, *_):
        try:
            self.con.execute("ROLLBACK" if failed else "COMMIT")
        finally:
            self.lock.release()


class Postgres(Store):
    def __init__(self):
        import psycopg

        self._connect = functools.partial(
            psycopg.connect, work.DATABASE, autocommit=True, prepare_threshold=0
        )
        self._local = threading.local()

    def _connection(self):
        if not hasattr(self._local, "con"):
            self._local.con = self._connect()
        return self._local.con

    def query(self, sql, params):
        return self._connection().execute(sql.replace("?", "%s"), params)

    @contextmanager
    def transaction(self):
        con = self._connection()
        with con.pipeline(), con.transaction():
            yield self.query

    def allow(self, name, client):
        """Spend of all windows in one statement (a refused one may spend of one)."""
        windows, now = work.WINDOWS[name], int(time.time() * 1_000_000)
        rows = []
        for s in windows:
            rows += f"{name} {client} {s}", now + s * 1_000_000 // work.QUOTA
        sql = LIMIT.format(", ".join(["(%s, %s)"] * len(windows)))
        spent = self.query(sql, (*rows, now, now, now, now, work.QUOTA - 1))
        return len(spent.fetchall()) == len(windows)


store = Postgres() if "://" in work.DATABASE else Sqlite()
POSTS = {
    "/contact": ("contact", work.contact, "HTTP_REFERER"),
    "/newsletter": ("newsletter", work.newsletter, "HTTP_REFERER"),
    "/hits": ("hits", work.hit, "HTTP_USER_AGENT"),
}
LINES = {s.value: f"{s.value} {s.phrase}" for s in HTTPStatus}


def post(environ, client):
    name, respond, header = POSTS[environ["PATH_INFO"]]
    if environ.get("HTTP_ORIGIN", work.ORIGIN) != work.ORIGIN:
        return 403, work.sorry([{"code": "BLOCKED"}])
    if not store.allow(name, client):
        return 429, work.sorry([{"code": "RATE_LIMITED"}])
    length, form = int(environ.get("CONTENT_LENGTH") or 0), None
    if length <= MAX_BODY:
        with suppress(ValueError):
            form = json.loads(environ["wsgi.input"].read(length))
    if not isinstance(form, dict):
        return 400, work.sorry([{"code": "MALFORMED"}])
    return respond(store, form, client, environ.get(header, ""))


def answer(environ):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    client = environ["REMOTE_ADDR"]
    if method == "OPTIONS":
        return 204, {}
    if method == "POST" and path in POSTS:
        return post(environ, client)
    if method == "GET" and path in ("/hits", "/hits.svg"):
        page = parse_qs(environ["QUERY_STRING"]).get("page", [""])[0]
        if path == "/hits":
            return work.read(store, page)
        if not store.allow("hits", client):
            return 429, work.sorry([{"code": "RATE_LIMITED"}])
        return work.badge(store, page)
    if path == "/health":
        return 200, {"status": "ok"}
    return 404, work.sorry([{"code": "NOT_FOUND"}])


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
