"""What every Python contender has to do, apart from its framework and its SQL.

Shared, so that all validate, hash and answer alike; written for speed, since the
floor is among those who use it.
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
LIMIT = {
    "contact": f"{QUOTA}/second;{QUOTA}/minute",
    "newsletter": f"{QUOTA}/second;{QUOTA}/minute",
    "hits": f"{QUOTA}/minute",
}
MAILS_PER_DAY = 1_000_000
DUPLICATE_SECONDS = 600
EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, X-Request-ID"

EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s]+")
CRAWLERS = re.compile(r"bot\b|crawl|spider|slurp|monitor|uptime|lighthouse", re.I)
BADGE = Path(__file__).with_name("badge.svg").read_text().strip()
KEY = hashlib.sha256(DATABASE.encode()).digest()  # the same for all workers


def keyed_hash(*parts, size=20):
    return hashlib.blake2b("\0".join(parts).encode(), key=KEY, digest_size=size)


def new_id(now):
    return f"{int(now * 1000):012x}{secrets.token_hex(8)}"


def truncated(address):
    return address.rpartition(".")[0] + ".0"


def today(now):
    return datetime.fromtimestamp(now, UTC).date()


def contact(values, client, page):
    """Return (message row, key of its receipt), or the list of errors."""
    text = {k: str(values.get(k) or "").strip() for k in FIELDS}
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
        return None, errors
    now = time.time()
    row = {"id": new_id(now), "received_at": now, **text}
    row |= {"page": page.partition("?")[0], "client": truncated(client)}
    return row, keyed_hash("body", client, *text.values()).hexdigest()


FIELDS = {"name": 200, "email": 254, "subject": 200, "message": 10_000}


def signup(values, client, page):
    """Return a subscriber's row, or None for an address that is none."""
    email = str(values.get("email") or "").strip()
    name = str(values.get("name") or "").strip()
    if len(email) > 254 or len(name) > 200 or not EMAIL.fullmatch(email):
        return None
    now = time.time()
    return {
        "id": new_id(now),
        "mailbox": keyed_hash("mailbox", email.casefold()).hexdigest(),
        "email": email,
        "name": name,
        "page": page.partition("?")[0],
        "client": truncated(client),
        "asked_at": now,
    }


def page_of(text):
    """Return a page's path, or None."""
    path = "/" + urlsplit(str(text or "")).path.strip("/")
    return path if text and len(path) <= 200 and path.isprintable() else None


def visitor(page, client, agent, day):
    return keyed_hash(day, page, client, agent, size=12).hexdigest()


def days(rows, last):
    """Return 30 days, gaps as 0, of rows of (day, hits, visitors)."""
    known = {row[0]: row for row in rows}
    names = [(last - timedelta(n)).isoformat() for n in range(29, -1, -1)]
    wanted = [known.get(day, (day, 0, 0)) for day in names]
    return [{"date": d, "hits": h, "visitors": v} for d, h, v in wanted]


def month_ago(last):
    return (last - timedelta(29)).isoformat()


def badge(hits):
    shown = f"{hits:,}"
    right = 10 + 7 * len(shown)
    return BADGE.format(
        hits=shown, width=31 + right, right=right, middle=31 + right / 2
    )


def thanks(**more):
    return {
        "ok": True,
        "success": True,
        "next": ORIGIN + "/thanks",
        "message": "Thank you, your message is on its way.",
        **more,
    }


def sorry(errors):
    text = "Please check the form."
    return {
        "ok": False,
        "success": False,
        "error": text,
        "message": text,
        "errors": errors,
    }


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
        row = con.execute(
            "INSERT INTO bucket VALUES (?, ?) ON CONFLICT (key) DO UPDATE "
            "SET tat = max(tat, ?) + ? WHERE tat <= ? RETURNING tat",
            (
                f"{name} {client} {seconds}",
                now + step,
                now,
                step,
                now + step * (QUOTA - 1),
            ),
        ).fetchone()
        return row is not None
