"""What every Python contender does, apart from its framework and its SQL.

Shared, so that all validate, hash and answer alike; written for speed, since the floor
uses it too. A contender passes its store: ``keep``, ``ask``, ``count``, ``totals`` and
``days``. Each request's function returns (status, what to answer).
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

DATABASE = os.environ["DATABASE"]
LIMITS = os.environ["LIMITS"]  # a file on /dev/shm
ORIGIN = os.environ["ORIGIN"]
WINDOWS = {"contact": (1, 60), "newsletter": (1, 60), "hits": (60,)}  # seconds
QUOTA = 999_999
UNITS = {1: "second", 60: "minute"}
LIMIT = {k: ";".join(f"{QUOTA}/{UNITS[s]}" for s in v) for k, v in WINDOWS.items()}
MAILS_PER_DAY = 1_000_000
DUPLICATE_SECONDS = 600
EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, X-Request-ID"
FIELDS = {"name": 200, "email": 254, "subject": 200, "message": 10_000}
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s]+")
CRAWLERS = re.compile(r"bot\b|crawl|spider|slurp|monitor|uptime|lighthouse", re.I)
BADGE = Path(__file__).with_name("badge.svg").read_text().strip()
# What the models of Peewee and SQLAlchemy are made of: keys, then other columns.
TABLES = {
    "Message": ("id", "received_at:f name email subject message page client"),
    "Receipt": ("key", "message_id expires_at:f"),
    "Delivery": ("id:a", "kind ref created_at:f due_at:f"),
    "Subscriber": ("id", "mailbox email name page client asked_at:f"),
    "Tally": ("name period", "n:i"),
    "Page": ("page", "hits:i visitors:i"),
    "Hit": ("page day", "hits:i visitors:i"),
    "Visitor": ("day hash", ""),
}
KEY = hashlib.sha256(DATABASE.encode()).digest()  # the same for all workers


def keyed_hash(*parts, size=20):
    text = "\0".join(parts).encode()
    return hashlib.blake2b(text, key=KEY, digest_size=size).hexdigest()


def today(now):
    return datetime.fromtimestamp(now, UTC).date()


def _origin_of_row(client, referer, now):
    row_id = f"{int(now * 1000):012x}{secrets.token_hex(8)}"
    return row_id, referer.partition("?")[0], client.rpartition(".")[0] + ".0"


def contact(store, form, client, referer):
    text = {k: str(form.get(k) or "").strip() for k in FIELDS}
    errors = [
        {"code": "TOO_LONG", "field": k, "message": "Too long."}
        for k, most in FIELDS.items()
        if len(text[k]) > most
    ]
    if not text["message"]:
        errors.append({"code": "REQUIRED_FIELD_MISSING", "field": "message"})
    if not EMAIL.fullmatch(text["email"]):
        errors.append({"code": "TYPE_EMAIL", "field": "email"})
    if errors:
        return 422, sorry(errors)
    now = time.time()
    row_id, page, network = _origin_of_row(client, referer, now)
    row = {"id": row_id, "received_at": now, **text, "page": page, "client": network}
    return 200, thanks(id=store.keep(row, keyed_hash("body", client, *text.values())))


def newsletter(store, form, client, referer):
    email = str(form.get("email") or "").strip()
    name = str(form.get("name") or "").strip()
    if len(email) > 254 or len(name) > 200 or not EMAIL.fullmatch(email):
        return 422, sorry([{"code": "TYPE_EMAIL"}])
    now = time.time()
    row_id, page, network = _origin_of_row(client, referer, now)
    row = {"id": row_id, "mailbox": keyed_hash("mailbox", email.casefold())}
    row |= {"email": email, "name": name, "page": page, "client": network}
    store.ask(row | {"asked_at": now}, today(now).isoformat())
    return 200, thanks()


def hit(store, form, client, agent):
    if (page := page_of(form.get("page"))) is None:
        return 422, sorry([{"code": "TYPE_TEXT"}])
    if CRAWLERS.search(agent):
        hits, visitors = store.totals(page)
        why = {"counted": False, "reason": "crawler"}
        return 200, {"page": page, "hits": hits, "visitors": visitors, **why}
    day = today(time.time()).isoformat()
    seen = keyed_hash(day, page, client, agent, size=12)
    hits, visitors = store.count(page, day, seen)
    return 200, {"page": page, "hits": hits, "visitors": visitors, "counted": True}


def read(store, page):
    if (page := page_of(page)) is None:
        return 422, sorry([{"code": "TYPE_TEXT"}])
    hits, visitors = store.totals(page)
    last = today(time.time())
    known = {r[0]: r for r in store.days(page, (last - timedelta(29)).isoformat())}
    names = [(last - timedelta(n)).isoformat() for n in range(29, -1, -1)]
    wanted = [known.get(day, (day, 0, 0)) for day in names]
    days = [{"date": d, "hits": h, "visitors": v} for d, h, v in wanted]
    return 200, {"page": page, "hits": hits, "visitors": visitors, "days": days}


def badge(store, page):
    """Return a str for the badge, a dict for an error."""
    if (page := page_of(page)) is None:
        return 422, sorry([{"code": "TYPE_TEXT"}])
    hits = f"{store.totals(page)[0]:,}"
    right = 10 + 7 * len(hits)
    return 200, BADGE.format(
        hits=hits, width=31 + right, right=right, middle=31 + right / 2
    )


def page_of(text):
    path = "/" + urlsplit(str(text or "")).path.strip("/")
    return path if text and len(path) <= 200 and path.isprintable() else None


def thanks(**more):
    text = "Thank you, your message is on its way."
    says = {"ok": True, "success": True, "next": ORIGIN + "/thanks", "message": text}
    return says | more


def sorry(errors):
    text = "Please check the form."
    says = {"ok": False, "success": False, "error": text, "message": text}
    return says | {"errors": errors}


class Limits:
    """The generic cell rate algorithm, exact across workers, in shared memory."""

    def __init__(self):
        self._local = threading.local()

    def _connection(self):
        con = getattr(self._local, "con", None)
        if con is None:
            con = sqlite3.connect(LIMITS, timeout=10, isolation_level=None)
            con.execute("PRAGMA journal_mode = wal")
            con.execute("PRAGMA synchronous = off")
            con.execute(
                "CREATE TABLE IF NOT EXISTS bucket "
                "(key TEXT PRIMARY KEY, tat INTEGER NOT NULL) WITHOUT ROWID"
            )
            self._local.con = con
        return con

    def allow(self, name, client):
        con = self._connection()
        windows, now = WINDOWS[name], int(time.time() * 1_000_000)
        if len(windows) == 1:
            return self._spend(con, name, client, windows[0], now)
        con.execute("BEGIN IMMEDIATE")
        allowed = all(self._spend(con, name, client, w, now) for w in windows)
        con.execute("COMMIT" if allowed else "ROLLBACK")
        return allowed

    @staticmethod
    def _spend(con, name, client, seconds, now):
        step = seconds * 1_000_000 // QUOTA
        most = now + step * (QUOTA - 1)
        row = con.execute(
            "INSERT INTO bucket VALUES (?, ?) ON CONFLICT (key) DO UPDATE "
            "SET tat = max(tat, ?) + ? WHERE tat <= ? RETURNING tat",
            (f"{name} {client} {seconds}", now + step, now, step, most),
        ).fetchone()
        return row is not None
