"""The floor: a bare WSGI callable with hand-written SQL.

One connection a thread, one lock around writes (SQLite's own waiting is a sleep).
"""

import json
import sqlite3
import threading
import time
from urllib.parse import parse_qs

import work

local = threading.local()
writing = threading.Lock()
limits = work.Limits()
MAX_BODY = 64 * 1024


def connection():
    con = getattr(local, "con", None)
    if con is None:
        con = local.con = sqlite3.connect(
            work.DATABASE, timeout=10, isolation_level=None
        )
        con.execute("PRAGMA synchronous = full")
    return con


class Transaction:
    def __enter__(self):
        self.con = connection()
        writing.acquire()
        try:
            self.con.execute("BEGIN IMMEDIATE")
        except BaseException:
            writing.release()
            raise
        return self.con.execute

    def __exit__(self, failed, *_):
        try:
            self.con.execute("ROLLBACK" if failed else "COMMIT")
        finally:
            writing.release()


def body(environ):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY:
        return None
    try:
        values = json.loads(environ["wsgi.input"].read(length))
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def contact(environ, client):
    if (values := body(environ)) is None:
        return "400 Bad Request", work.sorry([{"code": "MALFORMED"}])
    row, key = work.contact(values, client, environ.get("HTTP_REFERER", ""))
    if row is None:
        return "422 Unprocessable Entity", work.sorry(key)
    now = row["received_at"]
    with Transaction() as execute:
        claimed = execute(
            "INSERT INTO receipt VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
            "SET message_id = excluded.message_id, expires_at = excluded.expires_at "
            "WHERE expires_at <= ?",
            (key, row["id"], now + work.DUPLICATE_SECONDS, now),
        ).rowcount
        if claimed:
            execute(
                "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                tuple(row.values()),
            )
            execute(
                "INSERT INTO delivery (kind, ref, created_at, due_at) "
                "VALUES ('contact', ?, ?, ?)",
                (row["id"], now, now),
            )
            found = row["id"]
        else:
            sql = "SELECT message_id FROM receipt WHERE key = ?"
            found = execute(sql, (key,)).fetchone()[0]
    return "200 OK", work.thanks(id=found)


def newsletter(environ, client):
    if (values := body(environ)) is None:
        return "400 Bad Request", work.sorry([{"code": "MALFORMED"}])
    row = work.signup(values, client, environ.get("HTTP_REFERER", ""))
    if row is None:
        return "422 Unprocessable Entity", work.sorry([{"code": "TYPE_EMAIL"}])
    now = row["asked_at"]
    with Transaction() as execute:
        new = execute(
            "INSERT INTO subscriber VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (mailbox) DO NOTHING",
            tuple(row.values()),
        ).rowcount
        if new and (
            execute(
                "INSERT INTO tally VALUES ('mails', ?, 1) ON CONFLICT (name, period) "
                "DO UPDATE SET n = n + 1 WHERE n < ?",
                (work.today(now).isoformat(), work.MAILS_PER_DAY),
            ).rowcount
        ):
            execute(
                "INSERT INTO delivery (kind, ref, created_at, due_at) "
                "VALUES ('confirm', ?, ?, ?)",
                (row["id"], now, now),
            )
    return "200 OK", work.thanks()


def hit(environ, client):
    values = body(environ)
    page = None if values is None else work.page_of(values.get("page"))
    if page is None:
        return "422 Unprocessable Entity", work.sorry([{"code": "TYPE_TEXT"}])
    agent = environ.get("HTTP_USER_AGENT", "")
    if work.CRAWLERS.search(agent):
        hits, visitors = totals(page)
        sums = {"page": page, "hits": hits, "visitors": visitors}
        return "200 OK", {**sums, "counted": False, "reason": "crawler"}
    day = work.today(time.time()).isoformat()
    visitor = work.visitor(page, client, agent, day)
    with Transaction() as execute:
        new = execute(
            "INSERT INTO visitor VALUES (?, ?) ON CONFLICT DO NOTHING", (day, visitor)
        ).rowcount
        hits, visitors = execute(
            "INSERT INTO page VALUES (?, 1, ?) ON CONFLICT (page) DO UPDATE "
            "SET hits = hits + 1, visitors = visitors + excluded.visitors "
            "RETURNING hits, visitors",
            (page, new),
        ).fetchone()
        execute(
            "INSERT INTO hit VALUES (?, ?, 1, ?) ON CONFLICT (page, day) DO UPDATE "
            "SET hits = hits + 1, visitors = visitors + excluded.visitors",
            (page, day, new),
        )
    sums = {"page": page, "hits": hits, "visitors": visitors}
    return "200 OK", {**sums, "counted": True}


def totals(page):
    sql = "SELECT hits, visitors FROM page WHERE page = ?"
    return connection().execute(sql, (page,)).fetchone() or (0, 0)


def read(page):
    hits, visitors = totals(page)
    last = work.today(time.time())
    rows = connection().execute(
        "SELECT day, hits, visitors FROM hit WHERE page = ? AND day >= ?",
        (page, work.month_ago(last)),
    )
    sums = {"page": page, "hits": hits, "visitors": visitors}
    return "200 OK", {**sums, "days": work.days(rows, last)}


POSTS = {
    "/contact": ("contact", contact),
    "/newsletter": ("newsletter", newsletter),
    "/hits": ("hits", hit),
}


def answer(environ):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    client = environ["REMOTE_ADDR"]
    if method == "OPTIONS":
        return "204 No Content", {}
    if method == "POST" and path in POSTS:
        if environ.get("HTTP_ORIGIN", work.ORIGIN) != work.ORIGIN:
            return "403 Forbidden", work.sorry([{"code": "BLOCKED"}])
        name, respond = POSTS[path]
        if not limits.allow(name, client):
            return "429 Too Many Requests", work.sorry([{"code": "RATE_LIMITED"}])
        return respond(environ, client)
    if method == "GET" and path in ("/hits", "/hits.svg"):
        page = work.page_of(parse_qs(environ["QUERY_STRING"]).get("page", [""])[0])
        if page is None:
            return "422 Unprocessable Entity", work.sorry([{"code": "TYPE_TEXT"}])
        if path == "/hits":
            return read(page)
        if not limits.allow("hits", client):
            return "429 Too Many Requests", work.sorry([{"code": "RATE_LIMITED"}])
        return "200 OK", work.badge(totals(page)[0])
    if path == "/health":
        return "200 OK", {"status": "ok"}
    return "404 Not Found", work.sorry([{"code": "NOT_FOUND"}])


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
    start_response(status, headers)
    return [data]
