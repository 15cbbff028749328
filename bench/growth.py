"""Does a request cost more when there is more? By HTTP, on databases filled by SQL.

A server makes the schema and one row of each kind; the rows are copied with other keys,
so that columns that this file does not know keep sensible values.
"""

import time
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

from bench.service import (
    ADA,
    ASKS,
    FRONTDESK,
    OWNER,
    WORK,
    Unfit,
    connected,
    load,
    mailjet,
    serving,
    written_out,
)
from frontdesk.limits import LimitsFile

CAMPAIGN = "we have a fine offer of garden stones for every village in the county"
NETWORK = "10.99.99.9"  # whose limits are copied for other clients
RANDOM = "lower(hex(randomblob(20)))"
COUNT = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "

# --- filling ---------------------------------------------------------------------


def copy(con, table, rows, **columns):
    """Insert rows like a table's first; columns: SQL of i, from 0, for some of them."""
    con.execute(f"CREATE TEMP TABLE first AS SELECT * FROM {table} LIMIT 1")
    names = [row[1] for row in con.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(str(columns.get(name, f'first."{name}"')) for name in names)
    insert = f"INSERT OR IGNORE INTO {table} SELECT {values} FROM n, first"
    con.execute(COUNT + insert, (rows - 1,))
    con.execute("DROP TABLE first")


def pages_of(rows):
    """Return among how many pages hits are spread: up to the 10,000 of MAX_PAGES."""
    return min(10_000, max(10, rows // 100))


def fill_hits(con, rows, pages=0):
    pages = pages or pages_of(rows)
    days = rows // pages
    con.execute("DELETE FROM page WHERE page = '/(other)'")  # not the one to copy
    sums = {"hits": days * 10, "visitors": days * 7}
    copy(con, "page", pages, page="'/pages/' || i", **sums)
    con.execute("INSERT INTO page (page, hits, visitors) VALUES ('/(other)', 0, 0)")
    con.execute("UPDATE tally SET n = ? WHERE name = 'pages'", (pages,))
    page = f"'/pages/' || (i / {days})"
    day = f"date('now', '-' || (i % {days}) || ' days')"
    copy(con, "hit", pages * days, page=page, day=day, hits=10, visitors=7)


def fill_messages(con, rows, span=30 * 86_400, letters=200):
    """Fill messages of the last month; without letters: of one spam campaign."""
    now = time.time()
    at = f"{now - span} + i * {span / rows}"
    columns = {
        "id": f"printf('%012x', ({at}) * 1000) || lower(hex(randomblob(8)))",
        "received_at": at,
        "email": "'ada.' || i || '@example.com'",
        "mailed_at": at,
    }
    if letters:
        columns["message"] = f"hex(randomblob({letters // 2}))"
        columns["echo"] = "lower(hex(randomblob(8)))"
    copy(con, "message", rows, **columns)
    copy(con, "receipt", min(rows, 10_000), key=RANDOM, expires_at=now + 600)


def fill_deliveries(con, rows):
    """Fill a queue that waits, as after a day of trouble at Mailjet."""
    due = f"{time.time() + 3600} + i"
    copy(con, "delivery", rows, id="NULL", due_at=due, attempts=3, ref="''")


def fill_year(con, days):
    """A year of 100 messages, 3 sign-ups and 5,000 hits on 50 pages each day."""
    fill_messages(con, 100 * days, span=days * 86_400, letters=520)
    fill_hits(con, 50 * days, pages=50)
    name = "'reader' || i || '@example.com'"
    copy(con, "subscriber", 3 * days, id=RANDOM, mailbox=RANDOM, email=name)
    copy(con, "visitor", 5_000, hash="lower(hex(randomblob(12)))")


def know(service, clients):
    """Make the limits know clients, spread as a flood's would be."""
    service.request("/hits", {"page": "/known"}, **{"X-Forwarded-For": NETWORK})
    address = "'10.' || (i >> 16) || '.' || (i >> 8 & 255) || '.' || (i & 255)"
    insert = (
        f"INSERT OR REPLACE INTO bucket SELECT replace(key, '{NETWORK}', {address}), ? "
        f"FROM bucket CROSS JOIN n WHERE key LIKE '% {NETWORK} %'"
    )
    until = int((time.time() + 50) * 1e6)
    with connected(str(LimitsFile(Path(service.database)).path)) as con:
        con.execute(COUNT + insert, (clients - 1, until))


@contextmanager
def filled(fill, rows, stand_in):
    """Run Frontdesk on a database with so many rows of a kind."""
    path = WORK / f"growth-{rows}.db"
    serve = partial(serving, FRONTDESK, 1, stand_in.url, str(path))
    with serve() as service:
        service.wait()
        form = {"email": "ada@example.com", "name": "Ada Lovelace"}
        more = {"subject": "A question", "company": "Example Ltd", "message": CAMPAIGN}
        service.request("/contact", form | more)
        service.request("/newsletter", form)
        service.request("/hits", {"page": "/pages/first"})
    with connected(str(path)) as con:
        con.execute("PRAGMA synchronous = off")
        con.execute("PRAGMA cache_size = -500000")
        con.execute("BEGIN")
        fill(con, rows)
        con.execute("COMMIT")
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    try:
        with serve(TRUSTED_HOPS="1") as service:
            service.wait()
            yield service
    finally:
        for part in path.parent.glob(path.name + "*"):
            part.unlink()


# --- asking ----------------------------------------------------------------------

AS_OWNER = OWNER | {"Accept": "text/html"}
ANYBODY = {"X-Forwarded-For": "{client 16000000}"}  # few charts are drawn for one
CASES = ASKS | {
    "health": ("/health",),
    "health-owner": ("/health", None, AS_OWNER),
    "desk": ("/desk", None, AS_OWNER),
    "sum": ("/hits?page=*",),
    "sum-badge": ("/hits.svg?count=false&page=*",),
    "chart": ("/hits/chart.svg?page=*", None, ANYBODY),
    "same_text": ("/contact", ADA | {"message": CAMPAIGN}),
    "limit": ("/hits", {"page": "/known"}, {"X-Forwarded-For": "{client ROWS}"}),
}
# Of what there is more: how it is filled in, how many rows, and what is asked then.
PLANS = {
    "hits": (fill_hits, 10_000_000, "hit badge read sum sum-badge chart health desk"),
    "messages": (fill_messages, 1_000_000, "contact health health-owner desk event"),
    "same_text": (partial(fill_messages, span=80_000, letters=0), 100_000, "same_text"),
    "deliveries": (fill_deliveries, 100_000, "contact health health-owner desk"),
    "clients": (lambda con, rows: None, 200_000, "limit"),  # know() makes them
}


def requests(service, case, rows, stand_in):
    """Return what a case asks for: one of these each time, filled in by load.lua."""
    if case != "event":
        text = written_out(*CASES[case]).replace("ROWS", str(rows))
        return [text.replace("{mod 30}", f"{{under {pages_of(rows)}}}")]
    stand_in.callbacks.rows.clear()  # another service's address would be left alone
    service.request("/doctor", {}, **OWNER)  # registers the address for events
    path = urlsplit(stand_in.callbacks.url("sent")).path
    with connected(service.database) as con:
        ids = con.execute("SELECT id FROM message ORDER BY random() LIMIT 200")
        about = {"event": "sent", "time": int(time.time()), "email": "a@b.example"}
        return [written_out(path, [about | {"CustomID": i}]) for (i,) in ids]


def time_case(run, title, case, servers, stand_in):
    """Time a case on each server in turn; Unfit when one answers with an error."""
    for number, (rows, service) in product(range(-1, run.rounds), servers.items()):
        if case == "limit":
            know(service, rows)
        asked = requests(service, case, rows, stand_in)
        seconds = 1 if number < 0 else run.seconds  # at first to warm up
        found = load([service], case, 1, seconds, asked)
        # Of one spam campaign only some are taken each hour, the others are refused.
        if found["errors"] and case != "same_text":
            raise Unfit(f"{found['errors']} errors with {rows:,} rows")
        if number >= 0:
            run.keep(title, f"{rows:,}", found, case)


def growth(run):
    """Time each case on small and large databases, on one connection."""
    for kind, (fill, most, cases) in PLANS.items():
        with mailjet(401) as stand_in, ExitStack() as stack:
            servers = {}
            for rows in (1_000, 20_000 if run.quick else most):
                servers[rows] = stack.enter_context(filled(fill, rows, stand_in))
            for case in cases.split():
                with run.trying(f"{kind}, {case}"):
                    time_case(run, f"Growth of {kind}", case, servers, stand_in)


def year(run):
    """How large a year of a busy small site makes the database, and a backup of it."""
    days = 30 if run.quick else 365
    with mailjet(401) as stand_in, filled(fill_year, days, stand_in) as service:
        size = Path(service.database).stat().st_size / 1e6
        status, _, backup = service.request("/export/backup.sqlite3", **OWNER)
    row = {"MB": size, "backup, MB": len(backup) / 1e6, "answered": status}
    run.keep("A busy small site", f"{days} days", row)
