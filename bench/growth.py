"""Does a request cost more when there is more? By HTTP, on databases filled by SQL.

A server makes the schema and one row of each kind; the rows are copied with other keys,
so that columns that this file does not know keep sensible values.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service import (
    ORIGIN,
    OWNER,
    WORK,
    Contender,
    Service,
    Unfit,
    mailjet,
    seen_by,
    serving,
)

if TYPE_CHECKING:
    from run import Run

CAMPAIGN = "we have a fine offer of garden stones for every village in the county"
NETWORK = "10.99.99.9"  # whose limits are copied for other clients

# --- filling ---------------------------------------------------------------------


def copy(con: sqlite3.Connection, table: str, rows: int, **columns: str) -> None:
    """Insert rows like a table's first; columns: SQL of i, from 0, for some of them."""
    con.execute(f"CREATE TEMP TABLE first AS SELECT * FROM {table} LIMIT 1")
    names = [row[1] for row in con.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(columns.get(name, f'first."{name}"') for name in names)
    con.execute(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        f"INSERT OR IGNORE INTO {table} SELECT {values} FROM n, first",
        (rows - 1,),
    )
    con.execute("DROP TABLE first")


def fill_hits(con: sqlite3.Connection, rows: int, pages: int = 0) -> None:
    """Fill up to the 10,000 pages of MAX_PAGES with days."""
    pages = pages or min(10_000, max(10, rows // 100))
    days, page = rows // pages, "'/pages/' || i"
    con.execute("DELETE FROM page WHERE page = '/(other)'")  # not the one to copy
    copy(con, "page", pages, page=page, hits=str(days * 10), visitors=str(days * 7))
    con.execute("INSERT INTO page (page, hits, visitors) VALUES ('/(other)', 0, 0)")
    con.execute("UPDATE tally SET n = ? WHERE name = 'pages'", (pages,))
    copy(
        con,
        "hit",
        pages * days,
        page=f"'/pages/' || (i / {days})",
        day=f"date('now', '-' || (i % {days}) || ' days')",
        hits="10",
        visitors="7",
    )


def fill_messages(
    con: sqlite3.Connection,
    rows: int,
    same_text: bool = False,
    days: int = 30,
    letters: int = 200,
) -> None:
    """Fill messages of the last month; same_text: of one spam campaign, today."""
    now, span = time.time(), 80_000 if same_text else days * 86_400
    at = f"{now - span} + i * {span / rows}"
    columns = {
        "id": f"printf('%012x', ({at}) * 1000) || lower(hex(randomblob(8)))",
        "received_at": at,
        "email": "'ada.' || i || '@example.com'",
        "message": f"hex(randomblob({letters // 2}))",
        "mailed_at": at,
        "echo": "lower(hex(randomblob(8)))",
    }
    if same_text:
        del columns["echo"], columns["message"]
    copy(con, "message", rows, **columns)
    key, until = "lower(hex(randomblob(20)))", str(now + 600)
    copy(con, "receipt", min(rows, 10_000), key=key, expires_at=until)


def fill_same_text(con: sqlite3.Connection, rows: int) -> None:
    fill_messages(con, rows, same_text=True)


def fill_deliveries(con: sqlite3.Connection, rows: int) -> None:
    """Fill a queue that waits, as after a day of trouble at Mailjet."""
    due = f"{time.time() + 3600} + i"
    copy(con, "delivery", rows, id="NULL", due_at=due, attempts="3", ref="''")


def fill_clients(con: sqlite3.Connection, rows: int) -> None:
    """Nothing in the database: know() makes the clients."""


def fill_year(con: sqlite3.Connection, rows: int) -> None:
    """A year of 100 messages, 3 sign-ups and 5,000 hits on 50 pages each day."""
    fill_messages(con, 100 * rows, days=rows, letters=520)
    fill_hits(con, 50 * rows, pages=50)
    name = "'reader' || i || '@example.com'"
    key = "lower(hex(randomblob(20)))"
    copy(con, "subscriber", 3 * rows, id=key, mailbox=key, email=name)
    copy(con, "visitor", 5_000, hash="lower(hex(randomblob(12)))")


def know(service: Service, clients: int) -> None:
    """Make the limits know clients, spread as a flood's would be."""
    post(service, "/hits", {"page": "/known"}, **{"X-Forwarded-For": NETWORK})
    address = "'10.' || (i >> 16) || '.' || (i >> 8 & 255) || '.' || (i & 255)"
    for path in service.limits_files():
        con = sqlite3.connect(path, timeout=10)
        with con:
            con.execute(
                "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n "
                "WHERE i < ?) INSERT OR REPLACE INTO bucket (key, tat) "
                f"SELECT replace(key, '{NETWORK}', {address}), ? FROM n, "
                f"(SELECT key FROM bucket WHERE key LIKE '%{NETWORK}%')",
                (clients - 1, int((time.time() + 50) * 1e6)),
            )
        con.close()


@contextmanager
def filled(contender: Contender, kind: str, rows: int, url: str) -> Iterator[Service]:
    """Run Frontdesk on a database with so many rows of a kind."""
    path = WORK / f"growth-{kind}-{rows}.db"
    with serving(contender, 1, url, str(path)) as service:
        service.wait()
        form = {"email": "ada@example.com", "name": "Ada Lovelace"}
        more = {"subject": "A question", "company": "Example Ltd", "message": CAMPAIGN}
        post(service, "/contact", form | more)
        post(service, "/newsletter", form)
        post(service, "/hits", {"page": "/pages/first"})
    con = sqlite3.connect(path)
    con.execute("PRAGMA synchronous = off")
    con.execute("PRAGMA cache_size = -500000")
    with con:
        globals()[f"fill_{kind}"](con, rows)
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()
    try:
        with serving(contender, 1, url, str(path), TRUSTED_HOPS="1") as service:
            service.wait()
            yield service
    finally:
        for part in path.parent.glob(path.name + "*"):
            part.unlink()


# --- timing ----------------------------------------------------------------------

AS_OWNER = {"Authorization": OWNER, "Accept": "text/html"}
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
BASIC = {"Origin": ORIGIN, "Referer": f"{ORIGIN}/contact", "User-Agent": AGENT}
READS = {
    "badge": "/hits.svg?count=false&page={page}",
    "read": "/hits?page={page}",
    "health": "/health",
    "health-owner": "/health",
    "desk": "/desk",
    "site-read": "/hits?page=*",
    "site-badge": "/hits.svg?count=false&page=*",
    "site-chart": "/hits/chart.svg?page=*",
}
WORDS = [f"{a}{b}" for a in ("gar", "win", "riv", "sto") for b in ("den", "ter")]


class Requests:
    """What each case asks of a server: (method, path, form, headers)."""

    def __init__(self, service: Service, rows: int, url: str) -> None:
        self.rows = rows
        con = sqlite3.connect(service.database, timeout=10)
        self.pages = con.execute("SELECT count(*) FROM page").fetchone()[0] - 2
        ids = con.execute("SELECT id FROM message LIMIT 1000").fetchall()
        self.messages = [row[0] for row in ids]
        con.close()
        service.request("POST", "/doctor", {}, Authorization=OWNER)
        self.events = urlsplit(seen_by(url)["url"] or "/mailjet/unknown").path

    def __call__(self, case: str) -> tuple[str, str, Any, dict[str, str]]:
        if case in READS:
            page = f"/pages/{random.randrange(max(1, self.pages))}"
            more = AS_OWNER if case in ("desk", "health-owner") else {}
            if case == "site-chart":  # few are drawn for one client
                more = {"X-Forwarded-For": f"10.9.{random.getrandbits(8)}.9"}
            return "GET", READS[case].format(page=page), None, more
        if case == "hit":
            page = f"/pages/{random.randrange(max(1, self.pages))}"
            return "POST", "/hits", {"page": page}, {}
        if case == "limit":
            n = random.randrange(self.rows)
            client = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"
            return "POST", "/hits", {"page": "/known"}, {"X-Forwarded-For": client}
        if case == "event":
            event = {"event": "sent", "time": int(time.time())}
            event |= {"CustomID": random.choice(self.messages), "email": "a@b.example"}
            return "POST", self.events, [event], {}
        words = " ".join(random.choices(WORDS, k=30))
        form = {"message": CAMPAIGN if case == "same_text" else words}
        form["email"] = f"ada.{random.random()}@example.com"
        return "POST", "/contact", form, {}


def post(service: Service, path: str, form: Any, **headers: str) -> int:
    return service.request("POST", path, form, **BASIC | headers)[0]


def times(service: Service, case: str, ask: Requests, calls: int) -> list[float]:
    """Return microseconds of calls on one connection; Unfit for an error (or 404)."""
    connection, taken = http.client.HTTPConnection("127.0.0.1", service.port), []
    for n in range(calls + calls // 10):
        method, path, form, more = ask(case)
        named = {"Accept": "application/json"}
        named |= more if "Authorization" in more else BASIC | more
        body = None if form is None else json.dumps(form)
        if body:
            named["Content-Type"] = "application/json"
        started = time.perf_counter_ns()
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        data = answer.read()
        spent = (time.perf_counter_ns() - started) / 1000
        if answer.status != 200:
            raise Unfit(f"{case} is answered {answer.status} {data[:80]!r}")
        if n >= calls // 10:  # the first ones warm up
            taken.append(spent)
    connection.close()
    return taken


PLANS = {
    "hits": (
        (1_000, 100_000, 10_000_000),
        "hit badge read health desk site-read site-badge site-chart",
    ),
    "messages": ((1_000, 1_000_000), "contact health health-owner desk event"),
    "same_text": ((1_000, 100_000), "same_text"),
    "deliveries": ((1_000, 100_000), "contact health health-owner desk"),
    "clients": ((10, 200_000), "limit"),
}


def growth(run: Run) -> None:
    """Time each case on small and large databases, in turn."""
    run.results["growth"] = table = []
    print("\nGrowth, by HTTP: microseconds (median, p99, the server's CPU) and ratios")
    for kind, (sizes, cases) in PLANS.items():
        if run.quick:
            sizes = (sizes[0], 20_000)
        with mailjet(401) as url, ExitStack() as stack:
            servers = {
                rows: stack.enter_context(filled(run.frontdesk(), kind, rows, url))
                for rows in sizes
            }
            asks = {rows: Requests(s, rows, url) for rows, s in servers.items()}
            for case in cases.split():
                table += _case(run, kind, case, servers, asks)


def _case(run: Run, kind: str, case: str, servers: dict, asks: dict) -> list[dict]:
    calls = (30 if run.quick else 300) * (1 if case == "desk" else 10)
    found: dict[int, list[tuple[float, float, float]]] = {rows: [] for rows in servers}
    for _, (rows, service) in itertools.product(range(run.rounds), servers.items()):
        if case == "limit":
            know(service, rows)
        cpu = service.cpu_seconds()
        try:
            taken = sorted(times(service, case, asks[rows], calls))
        except Unfit as reason:
            print(f"{kind:10} {case}: left out, {reason}", flush=True)
            return []
        cpu = (service.cpu_seconds() - cpu) * 1e6 / (calls + calls // 10)
        middle = statistics.median(taken)
        found[rows].append((middle, taken[len(taken) * 99 // 100], cpu))
    table = []
    for rows, rounds in found.items():
        row = {"kind": kind, "case": case, "rows": rows}
        for n, name in enumerate(("median_us", "p99_us", "cpu_us")):
            row[name] = statistics.median(each[n] for each in rounds)
        for name in ("median", "cpu"):
            first = (table or [row])[0][f"{name}_us"]
            row[f"{name}_to_smallest"] = row[f"{name}_us"] / max(1, first)
        table.append(row)
        print(
            f"{kind:10} {rows:>11,} {case:12}{row['median_us']:9.0f}"
            f"{row['median_to_smallest']:6.2f}   p99{row['p99_us']:9.0f}"
            f"   CPU{row['cpu_us']:8.0f}{row['cpu_to_smallest']:6.2f}",
            flush=True,
        )
    return table


def year(run: Run) -> None:
    """How large a year of a busy small site makes the database, and a backup of it."""
    days = 30 if run.quick else 365
    with mailjet(401) as url, filled(run.frontdesk(), "year", days, url) as service:
        size = Path(service.database).stat().st_size / 1e6
        answer = service.request("GET", "/export/backup.sqlite3", Authorization=OWNER)
    run.results["year"] = {"days": days, "mb": size, "backup_mb": len(answer[2]) / 1e6}
    print(f"\n{days} days of a busy small site: {size:.1f} MB", end=", ")
    print(f"a backup {len(answer[2]) / 1e6:.1f} MB (answered {answer[0]})")
