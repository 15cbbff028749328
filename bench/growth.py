"""Times requests inside one process, on a database of a chosen size.

python growth.py fill KIND ROWS DATABASE makes it; python growth.py time CASE CALLS
DATABASE prints microseconds. No server and no network: what remains is what grows.
"""

import io
import json
import logging
import random
import sqlite3
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.modules["psycopg"] = None  # as in gunicorn.conf.py

import models  # noqa: E402
from api import create_app  # noqa: E402
from frontdesk import spam  # noqa: E402
from frontdesk.settings import Settings, Window  # noqa: E402

PLENTY = (Window(999_999, 1), Window(999_999, 60))
CAMPAIGN = "we have a fine offer of garden stones for every village in the county"
SERIES = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "


# --- filling ---------------------------------------------------------------------


def fill_hits(con, rows):
    """Fill a number of pages, up to the 10,000 of MAX_PAGES, with days."""
    pages = min(10_000, max(10, rows // 100))
    days = rows // pages
    con.execute(
        SERIES + "INSERT INTO page SELECT '/pages/' || i, ?, ? FROM n",
        (pages - 1, days * 10, days * 7),
    )
    con.execute("INSERT INTO tally VALUES ('pages', '', ?)", (pages,))
    con.execute(
        "WITH RECURSIVE d(j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM d WHERE j < ?) "
        "INSERT INTO hit SELECT p.page, date('now', '-' || (? - j) || ' days'), 10, 7 "
        "FROM (SELECT page FROM page WHERE page LIKE '/pages/%' ORDER BY page) p, d",
        (days - 1, days - 1),
    )


def fill_messages(con, rows, same_text=False):
    """Fill messages of the last month; same_text: of one spam campaign, today."""
    now = time.time()
    campaign = f"'{spam.fingerprint(CAMPAIGN)[:8]}'"
    echo = campaign if same_text else "lower(hex(randomblob(8)))"
    span = 80_000 if same_text else 30 * 86_400
    con.execute(
        SERIES + "INSERT INTO message (id, received_at, name, email, subject, message, "
        "fields, page, client, spam_score, spam_reasons, echo, doubtful) "
        "SELECT printf('%012x', (? + i * ?) * 1000) || lower(hex(randomblob(8))), "
        "? + i * ?, 'Ada Lovelace', 'ada.' || i || '@example.com', 'A question', "
        "hex(randomblob(100)), '{}', 'https://site.example/contact', "
        f"'10.' || (i % 250) || '.' || (i % 7) || '.0', 0, '[]', {echo}, 0 FROM n",
        (rows - 1, *(now - span, span / rows) * 2),
    )
    con.execute(
        SERIES + "INSERT INTO receipt SELECT lower(hex(randomblob(20))), '', ? FROM n",
        (min(rows, 10_000) - 1, now + 600),
    )


def fill_same_text(con, rows):
    fill_messages(con, rows, same_text=True)


def fill_deliveries(con, rows):
    """Fill a queue that waits, as after a day of trouble at Mailjet."""
    con.execute(
        SERIES + "INSERT INTO delivery (kind, ref, created_at, due_at, attempts) "
        "SELECT 'contact', '', ?, ? + i, 3 FROM n",
        (rows - 1, time.time(), time.time() + 3600),
    )


def fill_clients(con, rows):
    """Nothing in the database: time_limit makes the clients itself."""


def fill(kind, rows, path):
    models.migrate(f"sqlite:///{path}", path)
    con = sqlite3.connect(path)
    con.execute("PRAGMA synchronous = off")
    con.execute("PRAGMA cache_size = -500000")
    with con:
        globals()[f"fill_{kind}"](con, rows)
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()


# --- timing ----------------------------------------------------------------------


class Nowhere:
    """Takes every mail; never called, since the outbox is not started."""

    def send(self, message):
        pass

    def sync(self, list_id, email, standing):
        pass


class Caller:
    """Calls the application as a server would."""

    def __init__(self, path):
        settings = Settings(
            database_url=f"sqlite:///{path}",
            allowed_origins=("https://site.example",),
            contact_limit=PLENTY,
            newsletter_limit=PLENTY,
            hits_limit=PLENTY[1:],
        )
        self.app = create_app(settings, transport=Nowhere())
        self.status = ""

    def __call__(self, method, path, query="", form=None):
        body = b"" if form is None else json.dumps(form).encode()
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_HOST": "localhost",
            "HTTP_ACCEPT": "application/json",
            "HTTP_ACCEPT_LANGUAGE": "en",
            "HTTP_ORIGIN": "https://site.example",
            "HTTP_REFERER": "https://site.example/contact",
            "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64)",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
        }
        started = time.perf_counter_ns()
        parts = self.app(environ, self._start_response)
        taken = time.perf_counter_ns() - started
        assert self.status.startswith("200"), (self.status, b"".join(parts))
        return taken / 1000

    def _start_response(self, status, headers, exc_info=None):
        self.status = status


def known_pages():
    rows = models.execute("SELECT page FROM page WHERE page LIKE '/pages/%'").fetchall()
    return [row[0] for row in rows]


def time_hit(call, calls):
    pages = known_pages()
    return [
        call("POST", "/hits", form={"page": random.choice(pages)}) for _ in range(calls)
    ]


def time_badge(call, calls):
    pages = known_pages()
    return [
        call("GET", "/hits.svg", f"count=false&page={random.choice(pages)}")
        for _ in range(calls)
    ]


def time_contact(call, calls):
    words = [f"{a}{b}" for a in ("gar", "win", "riv", "sto") for b in ("den", "ter")]
    return [
        call(
            "POST",
            "/contact",
            form={
                "email": f"ada.{random.random()}@example.com",
                "message": " ".join(random.choices(words, k=30)),
            },
        )
        for _ in range(calls)
    ]


def time_same_text(call, calls):
    return [
        call(
            "POST",
            "/contact",
            form={"email": f"ada.{random.random()}@example.com", "message": CAMPAIGN},
        )
        for _ in range(calls)
    ]


def time_health(call, calls):
    return [call("GET", "/health") for _ in range(calls)]


def time_limit(call, calls, clients=0):
    """Check limits with so many clients known; clients spread like a flood's."""

    def client(n):
        return f"hits 10.{n >> 16}.{n >> 8 & 255}.{n & 255}"

    windows, now = PLENTY[1:], time.time()
    table = models.limits._db
    with table.atomic():
        for n in range(clients):
            table.execute_sql(
                "INSERT OR REPLACE INTO bucket VALUES (?, ?)",
                (f"{client(n)} 60", int((now + 10) * 1e6)),
            )
    taken = []
    for _ in range(calls):
        n = random.randrange(clients)
        key = client(n)
        started = time.perf_counter_ns()
        assert models.limits.take(key, windows, now).allowed
        taken.append((time.perf_counter_ns() - started) / 1000)
    return taken


def main(verb, case, number, database, clients="0"):
    path = Path(database)
    if verb == "fill":
        fill(case, int(number), path)
        return
    logging.basicConfig(stream=io.StringIO(), level=logging.INFO, format="%(message)s")
    call, more = Caller(path), {"clients": int(clients)} if case == "limit" else {}
    timer, calls = globals()[f"time_{case}"], int(number)
    taken = sorted(timer(call, calls, **more)[calls // 10 :])  # the first ones warm up
    print(
        json.dumps(
            {
                "median_us": round(statistics.median(taken), 1),
                "p99_us": round(taken[int(len(taken) * 0.99)], 1),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
