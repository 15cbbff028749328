"""What every Python contender does, apart from its framework and its SQL.

Shared, so that all validate, hash and answer alike; written for speed, since the floor
uses it too. A contender passes its store: ``keep``, ``ask``, ``count``, ``totals`` and
``days``. Each request's function returns (status, what to answer): a badge is a str.
"""

import hashlib
import os
import re
import secrets
import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

DATABASE = os.environ["DATABASE_URL"].removeprefix("sqlite:///")
ORIGIN = os.environ["ALLOWED_ORIGINS"]
QUOTA = 999_999
MAILS_PER_DAY = 1_000_000
DUPLICATE_SECONDS = 600
EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, X-Request-ID"
FIELDS = {"name": 200, "email": 254, "subject": 200, "message": 10_000}
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s]+")
CRAWLERS = re.compile(r"bot\b|crawl|spider|slurp|monitor|uptime|lighthouse", re.I)
BADGE = Path(__file__).with_name("badge.svg").read_text().strip()
KEY = hashlib.sha256(DATABASE.encode()).digest()  # the same for all workers


def contact(store, form, client, referer):
    text = {name: str(form.get(name) or "").strip() for name in FIELDS}
    if any(len(text[name]) > most for name, most in FIELDS.items()):
        return sorry("TOO_LONG")
    if not text["message"]:
        return sorry("REQUIRED_FIELD_MISSING")
    if not EMAIL.fullmatch(text["email"]):
        return sorry("TYPE_EMAIL")
    key = keyed_hash("body", client, *text.values())
    return thanks(id=store.keep(new_row(client, referer) | text, key))


def newsletter(store, form, client, referer):
    email = str(form.get("email") or "").strip()
    name = str(form.get("name") or "").strip()
    if len(email) > 254 or len(name) > 200 or not EMAIL.fullmatch(email):
        return sorry("TYPE_EMAIL")
    who = {"mailbox": keyed_hash("mailbox", email.casefold())}
    row = new_row(client, referer) | who | {"email": email, "name": name}
    store.ask(row, day(row["created_at"]))
    return thanks()


def hit(store, form, client, agent):
    if (page := page_of(form.get("page"))) is None:
        return sorry("TYPE_TEXT")
    if CRAWLERS.search(agent):
        return 200, sums(page, store.totals(page), counted=False, reason="crawler")
    today = day(time.time())
    visitor = keyed_hash(today, page, client, agent, size=12)
    return 200, sums(page, store.count(page, today, visitor), counted=True)


def read(store, page):
    if (page := page_of(page)) is None:
        return sorry("TYPE_TEXT")
    last = datetime.now(UTC).date()
    names = [(last - timedelta(n)).isoformat() for n in range(29, -1, -1)]
    known = {row[0]: row for row in store.days(page, names[0])}
    rows = [known.get(name, (name, 0, 0)) for name in names]
    days = [{"date": d, "hits": h, "visitors": v} for d, h, v in rows]
    return 200, sums(page, store.totals(page), days=days)


def badge(store, page):
    if (page := page_of(page)) is None:
        return sorry("TYPE_TEXT")
    hits = f"{store.totals(page)[0]:,}"
    right = 10 + 7 * len(hits)
    sizes = {"width": 31 + right, "right": right, "middle": 31 + right / 2}
    return 200, BADGE.format(hits=hits, **sizes)


# What is posted and what else it depends on; how often a client may, in seconds.
POSTS = {
    "/contact": (contact, "Referer"),
    "/newsletter": (newsletter, "Referer"),
    "/hits": (hit, "User-Agent"),
}
WINDOWS = {"/contact": (1, 60), "/newsletter": (1, 60)}
WINDOWS |= {"/hits": (60,), "/hits.svg": (60,)}
SPELLED = {(1, 60): f"{QUOTA}/second;{QUOTA}/minute", (60,): f"{QUOTA}/minute"}
LIMIT = {path: SPELLED[windows] for path, windows in WINDOWS.items()}


def keyed_hash(*parts, size=20):
    text = "\0".join(parts).encode()
    return hashlib.blake2b(text, key=KEY, digest_size=size).hexdigest()


def day(now):
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def new_row(client, referer):
    now = time.time()
    row_id = f"{int(now * 1000):012x}{secrets.token_hex(8)}"
    page, network = referer.partition("?")[0], client.rpartition(".")[0] + ".0"
    return {"id": row_id, "created_at": now, "page": page, "client": network}


def page_of(text):
    path = "/" + urlsplit(str(text or "")).path.strip("/")
    return path if text and len(path) <= 200 and path.isprintable() else None


def sums(page, totals, **more):
    return {"page": page, "hits": totals[0], "visitors": totals[1], **more}


def thanks(**more):
    text = "Thank you, your message is on its way."
    says = {"ok": True, "success": True, "next": ORIGIN + "/thanks", "message": text}
    return 200, says | more


def sorry(code, status=422):
    text = "Please check the form."
    says = {"ok": False, "success": False, "error": text, "message": text}
    return status, says | {"errors": [{"code": code}]}


class Sqlite(threading.local):
    """A connection for each thread, made when it first asks."""

    def __init__(self, path, synchronous, first="SELECT 1"):
        self.con = sqlite3.connect(path, timeout=10, isolation_level=None)
        self.con.execute("PRAGMA journal_mode = wal")
        self.con.execute(f"PRAGMA synchronous = {synchronous}")
        self.con.execute(first)

    def execute(self, sql, values):
        return self.con.execute(sql, values)


BUCKETS = (
    "CREATE TABLE IF NOT EXISTS bucket "
    "(key TEXT PRIMARY KEY, tat INTEGER NOT NULL) WITHOUT ROWID"
)
SPEND = (
    "INSERT INTO bucket VALUES {} ON CONFLICT (key) DO UPDATE "
    "SET tat = CASE WHEN bucket.tat > ? THEN bucket.tat ELSE ? END + excluded.tat - ? "
    "WHERE bucket.tat <= ? + (excluded.tat - ?) * ? RETURNING 1"
)


class Limits:
    """The generic cell rate algorithm in a table: exact, whichever worker asks.

    One statement spends of all windows: a refused request may have spent of one.
    """

    def __init__(self, execute=None):
        self.execute = execute or Sqlite(os.environ["LIMITS"], "off", BUCKETS).execute

    def allow(self, path, client):
        windows, now = WINDOWS[path], int(time.time() * 1_000_000)
        rows = []
        for seconds in windows:
            rows += f"{path} {client} {seconds}", now + seconds * 1_000_000 // QUOTA
        sql = SPEND.format(", ".join(["(?, ?)"] * len(windows)))
        spent = self.execute(sql, (*rows, now, now, now, now, now, QUOTA - 1))
        return len(spent.fetchall()) == len(windows)


# What the models of Peewee and SQLAlchemy are made of: keys, then other columns.
TABLES = {
    "Message": ("id", "created_at:f page client name email subject message"),
    "Receipt": ("key", "message_id expires_at:f"),
    "Delivery": ("id:a", "kind ref created_at:f due_at:f"),
    "Subscriber": ("id", "created_at:f page client mailbox email name"),
    "Tally": ("name period", "n:i"),
    "Page": ("page", "hits:i visitors:i"),
    "Hit": ("page day", "hits:i visitors:i"),
    "Visitor": ("day hash", ""),
}


class OrmStore:
    """The work by models: Peewee's and SQLAlchemy's expressions are alike.

    What is not: ``transaction``, ``get``, ``add``, ``put`` and ``days``. put inserts,
    or changes what has the same keys, and returns whether it did or what is asked for.
    """

    def __getattr__(self, name):
        return self.models[name]

    def keep(self, row, key):
        found, now = row["id"], row["created_at"]
        new = {"message_id": found, "expires_at": now + DUPLICATE_SECONDS}
        expired = self.Receipt.expires_at <= now
        with self.transaction():
            if not self.put(self.Receipt, {"key": key}, new, new, expired):
                return self.get(self.Receipt, key).message_id
            self.add(self.Message, **row)
            self.deliver("contact", found, now)
        return found

    def deliver(self, kind, ref, now):
        self.add(self.Delivery, kind=kind, ref=ref, created_at=now, due_at=now)

    def ask(self, row, day):
        tally, keys = self.Tally, {"name": "mails", "period": day}
        more, left = {"n": tally.n + 1}, tally.n < MAILS_PER_DAY
        with self.transaction():
            if not self.put(self.Subscriber, row):
                return
            if self.put(tally, keys, {"n": 1}, more, left):
                self.deliver("confirm", row["id"], row["created_at"])

    def count(self, page, day, visitor):
        with self.transaction():
            new = self.put(self.Visitor, {"day": day, "hash": visitor})
            found = self.add_hit(self.Page, {"page": page}, new, ("hits", "visitors"))
            self.add_hit(self.Hit, {"page": page, "day": day}, new)
        return found

    def add_hit(self, table, keys, new, returning=()):
        more = {"hits": table.hits + 1, "visitors": table.visitors + new}
        first = {"hits": 1, "visitors": new}
        return self.put(table, keys, first, more, returning=returning)

    def totals(self, page):
        row = self.get(self.Page, page)
        return (row.hits, row.visitors) if row else (0, 0)
