"""The contenders and their work as data; one of them running, asked and measured."""

import base64
import hashlib
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psycopg

from frontdesk.limits import LimitsFile
from tests.support.databases import MEMORY, delete_limits
from tests.support.mailjet import Answer, StandIn, success
from tests.support.ports import free_port

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CONTENDERS = BENCH / "contenders"
# On a disk: /tmp may be memory, where a sync costs nothing.
WORK = BENCH / ".work" / str(os.getpid())
ORIGIN = "https://site.example"
TOKEN = "the-benchmarks-own-admin-token-of-40-letters"
KEY = "Basic " + base64.b64encode(f"owner:{TOKEN}".encode()).decode()
OWNER = {"Authorization": KEY, "Origin": "", "Referer": ""}  # from no site's page
cores = sorted(os.sched_getaffinity(0))
LOAD_CORE, SERVER_CORE = cores[0], cores[-1]
counter = itertools.count()


class Unfit(Exception):
    """A contender does not do the work, or a section cannot be measured here."""


# --- the work --------------------------------------------------------------------

# Of each kind the path and the form; load.lua fills in what stands in braces.
ADA = {"name": "Ada Lovelace", "email": "ada.{nonce}.{n}@example.com"}
TEXT = {"subject": "A question", "message": "Hello, {words 30}."}
ASKS = {
    "contact": ("/contact", ADA | TEXT),
    "signup": ("/newsletter", {"email": "reader.{nonce}.{n}@example.com"}),
    "hit": ("/hits", {"page": "/pages/{mod 30}"}),
    "badge": ("/hits.svg?count=false&page=/pages/{mod 30}", None),
    "read": ("/hits?page=/pages/{mod 30}", None),
}
COMMENT = {"title": "A page", "author": "Ada Lovelace", "email": ADA["email"]}
ISSO_ASKS = {
    "contact": ("/new?uri=/pages/{mod 30}", COMMENT | {"text": TEXT["message"]}),
    "read": ("/count", ["/pages/{mod 30}"]),
}
# The tables that each request adds one to, by what each row counts.
WRITES = {
    "contact": ("message", "receipt", "delivery"),
    "signup": ("subscriber", "delivery"),
    "hit": ("page", "hit"),
}
HEADERS = {
    "Host": "127.0.0.1",
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Language": "en-GB,en;q=0.8",
    "Origin": ORIGIN,
    "Referer": f"{ORIGIN}/pages/contact",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:1{mod 50}.0) Firefox/1{mod 50}.0",
}


def composed(path, form=None, headers=(), method=""):
    """Return a request's method, path, body and headers."""
    named = {name: value for name, value in (HEADERS | dict(headers)).items() if value}
    method = method or ("GET" if form is None else "POST")
    return method, path, "" if form is None else json.dumps(form), named


def written_out(*request):
    """Return a request as load.lua takes it: without its length."""
    method, path, body, headers = composed(*request)
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return "\n".join(lines) + "\n\n" + body


# --- contenders ------------------------------------------------------------------


class Contender(NamedTuple):
    """A service to measure: its command, the packages it needs, and its work."""

    name: str
    command: str  # with {port}; the number of workers is in WEB_CONCURRENCY
    packages: str  # pinned, or a file of them
    asks: dict = ASKS
    writes: dict = WRITES
    health: str = "/health"

    @property
    def ours(self):
        return self.name == "frontdesk"

    @property
    def folder(self):
        """Where its packages are, named after them."""
        text = REQUIREMENTS.read_text() if self.ours else self.packages
        mark = hashlib.sha256(text.encode()).hexdigest()[:12]
        return BENCH / ".venvs" / f"{self.name}-{mark}"

    def install(self):
        """Install its packages, once; raise Unfit if that cannot be."""
        folder, log = self.folder, self.folder / "install.log"
        if (folder / "installed").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = f'"{sys.executable}" -m venv . && bin/pip install --quiet'
        if self.command.startswith("node"):
            command = "npm install --prefix . --no-audit"
        command += f" {self.packages} && touch installed"
        with log.open("wb") as out:
            where = {"cwd": folder, "stdout": out, "stderr": out}
            if subprocess.run(command, shell=True, **where).returncode:
                raise Unfit(f"it cannot be installed, see {log}")


SERVER = "gunicorn==27.0.1"
FALCON = f"falcon==4.4.0 peewee==4.5.3 {SERVER}"
FLASK = "Flask==3.1.3 flask-cors==6.0.5 Flask-Limiter==4.1.1 Flask-SQLAlchemy==3.1.1"
ORM = "SQLAlchemy==2.1.9"
ON_SQLITE = "better-sqlite3@12.11.1"
EXPRESS = f"express@5.3.0 {ON_SQLITE} cors@2.8.6 express-rate-limit@8.7.4"
FASTIFY = f"fastify@5.12.8 {ON_SQLITE} @fastify/cors@11.4.3 @fastify/rate-limit@11.2.0"
FASTAPI = f"fastapi==0.165.0 slowapi==0.1.10 {ORM} uvicorn[standard]==0.54.0"
GUNICORN = (
    "gunicorn --worker-class gthread --threads 8 --keep-alive 100 "
    f"--no-control-socket --worker-tmp-dir {MEMORY or '/tmp'} "
    "--bind 127.0.0.1:{port} "
)
UVICORN = (
    "uvicorn fastapi_stack:app --port {port} --no-access-log --log-level warning "
    "--timeout-keep-alive 100"
)
PROCFILE = (ROOT / "Procfile").read_text().partition("web:")[2].strip()
ISSO = (ISSO_ASKS, {"contact": ("comments",)}, "/info")
REQUIREMENTS = ROOT / "requirements.txt"
FRONTDESK = Contender("frontdesk", PROCFILE, f'-r "{REQUIREMENTS}"')
ALL = (
    FRONTDESK,
    Contender("floor", GUNICORN + "floor:app", SERVER),
    Contender("falcon-peewee", GUNICORN + "falcon_peewee:app", FALCON),
    Contender("flask", GUNICORN + "flask_stack:app", f"{FLASK} {ORM} {SERVER}"),
    Contender("fastapi", UVICORN, FASTAPI),
    Contender("express", "node express.js", EXPRESS),
    Contender("fastify", "node fastify.js", FASTIFY),
    Contender("isso", GUNICORN + "isso.run --preload", f"isso==0.14.0 {SERVER}", *ISSO),
)
BARE = Contender("bare-falcon", GUNICORN + "bare_falcon:app", FALCON, {}, {})
PSYCOPG = f"psycopg[binary]==3.3.9 {SERVER}"
ON_POSTGRES = (FRONTDESK, Contender("floor-postgres", GUNICORN + "floor:app", PSYCOPG))

# --- a running service -----------------------------------------------------------


@dataclass
class Service:
    """A started contender, with its database (a file, or a URL) and its processes."""

    contender: Contender
    port: int
    process: subprocess.Popen
    database: str
    log: Path

    def request(self, path, form=None, method="", **headers):
        """Make one request on its own connection; return (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with closing(connection):
            connection.request(*composed(path, form, headers, method))
            answer = connection.getresponse()
            found = {k.lower(): v for k, v in answer.getheaders()}
            return answer.status, found, answer.read()

    def wait(self, seconds=60):
        """Return the milliseconds until the first 200."""
        started = time.perf_counter()
        while True:
            with suppress(OSError, http.client.HTTPException):
                if self.request(self.contender.health)[0] == 200:
                    return (time.perf_counter() - started) * 1e3
            late = time.perf_counter() > started + seconds
            if late or self.process.poll() is not None:
                last = self.log.read_text(errors="replace").strip().splitlines()[-6:]
                raise Unfit("does not start: " + " / ".join(last))
            time.sleep(0.002)

    def processes(self):
        """Yield the process ids of its group, and what /proc says of each."""
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                stat = entry.read_text().rpartition(")")[2].split()
                if int(stat[2]) == self.process.pid:
                    yield entry.parent, stat

    def cpu_seconds(self):
        ticks = sum(int(stat[11]) + int(stat[12]) for _, stat in self.processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def pss_mb(self):
        """Return the resident memory of all processes, shared pages by their share."""
        texts = [(path / "smaps_rollup").read_text() for path, _ in self.processes()]
        return sum(int(re.search(r"\nPss:\s+(\d+)", t)[1]) for t in texts) / 1024

    def rows(self, tables):
        """Count rows as another process sees them, thus what was committed."""
        # Of hits each table's sum, without that of the whole site. Not Frontdesk's
        # deliveries that send nothing (a second sign-up's): its first try removes them.
        hits = "SELECT coalesce(sum(hits), 0) FROM {} WHERE page <> '*'"
        mails = "SELECT count(*) FROM {} WHERE ref NOT LIKE '-%'"
        sql = {"page": hits, "hit": hits, "delivery": mails}
        texts = [sql.get(t, "SELECT count(*) FROM {}").format(t) for t in tables]
        with connected(self.database) as con:
            return [int(con.execute(text).fetchone()[0]) for text in texts]


def connected(database):
    """Return a connection to a file or a URL, to be closed."""
    if "://" in database:
        return closing(psycopg.connect(database, autocommit=True))
    return closing(sqlite3.connect(database, timeout=10, isolation_level=None))


SETTINGS = {
    "ALLOWED_ORIGINS": ORIGIN,
    "ADMIN_TOKEN": TOKEN,
    "CONTACT_LIMIT": "999999/second;999999/minute",
    "NEWSLETTER_LIMIT": "999999/second;999999/minute",
    "HITS_LIMIT": "999999/minute",
    "CONFIRM_MAILS_PER_DAY": "1000000",
    "WEB_THREADS": "8",
    "MJ_APIKEY_PUBLIC": "public",
    "MJ_APIKEY_PRIVATE": "private",
    "MAIL_FROM": "Site <site@site.example>",
    "MAIL_TO": "owner@site.example",
    "NODE_ENV": "production",
}
# Isso's guard counts a client's comments of the last minute one by one: off.
ISSO_CONFIG = (
    "[general]\ndbpath = {0}/data.db\nhost = https://site.example\n"
    "log-file = {0}/isso.log\n[guard]\nenabled = false\n"
)


@contextmanager
def serving(contender, workers=1, mailjet="", database="", before=(), **settings):
    """Run a contender, by default with an empty database; not yet waited for.

    before: the beginning of its command; settings: of its environment.
    """
    folder = WORK / f"{contender.name}-{next(counter)}"
    folder.mkdir(parents=True)
    database = database or str(folder / "data.db")
    port, log = free_port(), folder / "log"
    if contender.name == "isso":
        (folder / "isso.cfg").write_text(ISSO_CONFIG.format(folder))
    elif not contender.ours:
        make_schema(database)
    settings |= SETTINGS | {
        "PATH": f"{contender.folder / 'bin'}:{os.environ['PATH']}",
        "PORT": str(port),
        "DATABASE_URL": database if "://" in database else f"sqlite:///{database}",
        "MAILJET_API_URL": mailjet,
        "WEB_CONCURRENCY": str(workers),
        "LIMITS": str(LimitsFile(Path(database)).path),
        "NODE_PATH": str(contender.folder / "node_modules"),
        "ISSO_SETTINGS": str(folder / "isso.cfg"),
    }
    command = contender.command.format(port=port).split()
    with log.open("wb") as out:
        process = subprocess.Popen(
            (*before, "taskset", "-c", str(SERVER_CORE), *command),
            cwd=ROOT if contender.ours else CONTENDERS,
            env=settings,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Service(contender, port, process, database, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        delete_limits(Path(database))
        for part in folder.iterdir():
            if part != log:  # which tells why somebody was left out
                part.unlink()


def make_schema(database):
    """Make the contenders' tables, unless a first server has them already."""
    text = (CONTENDERS / "schema.sql").read_text()
    with connected(database) as con:
        if "://" not in database:
            con.executescript(text)
        elif con.execute("SELECT to_regclass('message')").fetchone() == (None,):
            text = text.replace("INTEGER PRIMARY", "BIGSERIAL PRIMARY")
            con.execute(re.sub(r"PRAGMA.*;| WITHOUT ROWID", "", text))


# --- load and what surrounds it --------------------------------------------------


def load(services, item, connections, seconds, requests=()):
    """Run wrk on one contender's servers at once, and return what came out.

    Servers of one database share the connections. Raise Unfit for lost rows. requests:
    each is one of these instead, and no rows are counted.
    """
    contender, tables = services[0].contender, ()
    if not requests:
        requests = [written_out(*contender.asks[item])]
        tables = contender.writes.get(item, ())
    before, cpu = services[0].rows(tables), sum(s.cpu_seconds() for s in services)
    running = []
    for service in services:
        command = [
            *("taskset", "-c", str(LOAD_CORE), "wrk", "--threads", "1"),
            *("--connections", str(max(1, connections // len(services)))),
            *("--duration", f"{max(1, round(seconds))}s", "--timeout", "20s"),
            *("--script", BENCH / "load.lua", f"http://127.0.0.1:{service.port}"),
            *("--", str(random.randrange(2**31)), *requests),
        ]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    found = [json.loads(p.communicate()[0].partition("RESULT ")[2]) for p in running]
    cpu = sum(s.cpu_seconds() for s in services) - cpu
    time.sleep(0.05)  # for what wrk has left unanswered
    made, refused = (sum(f[name] for f in found) for name in ("requests", "refused"))
    after = services[0].rows(tables)
    for table, had, has in zip(tables, before, after, strict=True):
        if (lost := made - refused - (has - had)) > 0:
            raise Unfit(f"{lost} of {made} {table} rows are missing after {item}")
    return {
        "rps": sum(f["requests"] / f["seconds"] for f in found),
        "p50_us": max(f["p50"] for f in found),
        "p99_us": max(f["p99"] for f in found),
        "cpu_us": cpu * 1e6 / max(1, made),
        "errors": refused + sum(f["broken"] for f in found),
    }


@contextmanager
def mailjet(status):
    """Run the tests' stand-in for Mailjet, its threads on the load's core.

    status: of its answers to mails. 401 refuses the keys, and the outbox rests.
    """
    stand_in = StandIn()
    if status != 200:
        stand_in.answer = lambda request: (
            Answer(status) if request.path.endswith("/send") else success(request)
        )
    os.sched_setaffinity(0, {LOAD_CORE})  # which new threads inherit
    with stand_in:
        os.sched_setaffinity(0, cores)
        yield stand_in
