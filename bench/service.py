"""The contenders: installed, started, asked, put under load and measured."""

from __future__ import annotations

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
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CONTENDERS = BENCH / "contenders"
# On a disk: /tmp may be memory, where a sync costs nothing.
WORK = BENCH / ".work" / str(os.getpid())
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
ORIGIN = "https://site.example"
TOKEN = "the-benchmarks-own-admin-token-of-40-letters"
OWNER = "Basic " + base64.b64encode(f"owner:{TOKEN}".encode()).decode()
THREADS = 8
PLENTY = "999999/second;999999/minute"
TICK = os.sysconf("SC_CLK_TCK")
ITEMS = {item: item for item in ("contact", "signup", "hit", "badge", "read")}
cores = sorted(os.sched_getaffinity(0))
LOAD_CORE, SERVER_CORE = cores[0], cores[-1]
counter = itertools.count()


class Unfit(Exception):
    """A contender does not do the work, or a section cannot be measured here."""


# --- contenders ------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A service to measure: its command and the packages that it needs."""

    name: str
    command: str  # with {port} and {workers}
    packages: str  # pinned; or the requirements.txt that pins them
    items: dict[str, str] = field(default_factory=lambda: ITEMS)  # ours: its own work
    health: str = "/health"

    @property
    def node(self) -> bool:
        return self.command.startswith("node")

    @property
    def folder(self) -> Path:
        """Where its packages are, named after them."""
        text = self.packages
        if text.endswith(".txt"):
            text = (ROOT / text).read_text()
        mark = hashlib.sha256(text.encode()).hexdigest()[:12]
        return BENCH / ".venvs" / f"{self.name}-{mark}"

    def install(self) -> None:
        """Install its packages, once; raise Unfit if that cannot be."""
        if (self.folder / "installed").exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        pip, log = str(self.folder / "bin" / "pip"), self.folder / "install.log"
        wanted = self.packages.split()
        if self.packages.endswith(".txt"):
            wanted = ["-r", str(ROOT / self.packages)]
        commands = [
            [sys.executable, "-m", "venv", str(self.folder)],
            [pip, "install", "--quiet", *wanted],
        ]
        if self.node:
            flags = ["--prefix", str(self.folder), "--no-audit", "--no-fund"]
            commands = [["npm", "install", *flags, *wanted]]
        with log.open("wb") as out:
            for command in commands:
                try:
                    subprocess.run(command, stdout=out, stderr=out, check=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    why = f"'{command[0]}' cannot install it, see {log}"
                    raise Unfit(why) from error
        (self.folder / "installed").touch()


SERVER = "gunicorn==27.0.1"
GUNICORN = (
    f"gunicorn --worker-class gthread --threads {THREADS} --keep-alive 100 "
    f"--no-control-socket --worker-tmp-dir {MEMORY} --bind 127.0.0.1:{{port}} "
    "--workers {workers} "
)
UVICORN = (
    "uvicorn fastapi_stack:app --port {port} --workers {workers} --no-access-log "
    "--log-level warning --timeout-keep-alive 100"
)
FALCON = f"falcon==4.4.0 peewee==4.5.3 {SERVER}"
ALL = (
    Contender(
        "frontdesk",
        (ROOT / "Procfile").read_text().partition("web:")[2].strip(),
        "requirements.txt",
    ),
    Contender("floor", GUNICORN + "floor:app", SERVER),
    Contender("falcon-peewee", GUNICORN + "falcon_peewee:app", FALCON),
    Contender(
        "flask",
        GUNICORN + "flask_stack:app",
        "Flask==3.1.3 flask-cors==6.0.5 Flask-Limiter==4.1.1 Flask-SQLAlchemy==3.1.1 "
        f"SQLAlchemy==2.1.9 {SERVER}",
    ),
    Contender(
        "fastapi",
        UVICORN,
        "fastapi==0.165.0 slowapi==0.1.10 SQLAlchemy==2.1.9 uvicorn[standard]==0.54.0",
    ),
    Contender(
        "express",
        "node express.js",
        "express@5.3.0 better-sqlite3@12.11.1 cors@2.8.6 express-rate-limit@8.7.4",
    ),
    Contender(
        "fastify",
        "node fastify.js",
        "fastify@5.12.8 better-sqlite3@12.11.1 @fastify/cors@11.4.3 "
        "@fastify/rate-limit@11.2.0",
    ),
    Contender(
        "isso",
        GUNICORN + "isso.run --preload",
        f"isso==0.14.0 {SERVER}",
        {"contact": "isso-post", "read": "isso-count"},
        "/info",
    ),
)
BARE = Contender("bare-falcon", GUNICORN + "bare_falcon:app", FALCON, {})
ON_POSTGRES = (
    ALL[0],
    Contender("floor", GUNICORN + "floor:app", f"psycopg[binary]==3.3.9 {SERVER}"),
)

# --- a running service -----------------------------------------------------------

# The tables that each request adds one to, by what each row counts.
WRITES = {
    "contact": ("message", "receipt", "delivery"),
    "signup": ("subscriber", "delivery"),
    "hit": ("page", "hit"),
    "isso-post": ("comments",),
}
# Of hits each table's sum, without that of the whole site.
HITS = "SELECT sum(hits) FROM {} WHERE page <> '*'"
COUNT = {"page": HITS, "hit": HITS}


@dataclass
class Service:
    """A started contender, with its database and its processes."""

    contender: Contender
    port: int
    process: subprocess.Popen[bytes]
    database: str  # a file, or the URL of a Postgres database
    log: Path
    delivers: bool = False  # its outbox is emptied meanwhile

    def request(
        self, method: str, path: str, form: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one request on its own connection; return (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {"Accept": "application/json", **headers}
        if "Authorization" not in headers:  # the owner comes from no site's page
            named["Origin"] = ORIGIN
        body = None
        if form is not None:
            body, named["Content-Type"] = json.dumps(form), "application/json"
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        found = (answer.status, {k.lower(): v for k, v in answer.getheaders()})
        data = answer.read()
        connection.close()
        return *found, data

    def wait(self, seconds: float = 60) -> float:
        """Return the seconds until the first 200."""
        started = time.perf_counter()
        while True:
            with suppress(OSError, http.client.HTTPException):
                if self.request("GET", self.contender.health)[0] == 200:
                    return time.perf_counter() - started
            late = time.perf_counter() > started + seconds
            if late or self.process.poll() is not None:
                last = self.log.read_text(errors="replace").strip().splitlines()[-6:]
                raise Unfit("does not start: " + " / ".join(last))
            time.sleep(0.002)

    def processes(self) -> list[int]:
        """Return the process ids of the whole tree."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                rest = entry.read_text().rpartition(")")[2].split()
                parents.setdefault(int(rest[1]), []).append(int(entry.parent.name))
        tree = [self.process.pid]
        for pid in tree:
            tree.extend(parents.get(pid, ()))
        return tree

    def cpu_seconds(self) -> float:
        """Return the processor time that the tree has used."""
        ticks = 0
        for pid in self.processes():
            with suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(stat[11]) + int(stat[12])
        return ticks / TICK

    def pss_mb(self) -> float:
        """Return the resident memory of the tree, shared pages by their share."""
        total = 0
        for pid in self.processes():
            with suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
        return total / 1024

    def rows(self, *tables: str) -> dict[str, int]:
        """Count rows as another process sees them, thus what was committed."""
        return {
            t: int(
                query(self.database, COUNT.get(t, "SELECT count(*) FROM {}").format(t))
            )
            for t in tables
        }

    def limits_files(self) -> set[Path]:
        """Return the files in memory that the tree has open."""
        found = set()
        for pid in self.processes():
            with suppress(OSError):
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    name = str(link.readlink())
                    if name.startswith(f"{MEMORY}/") and ".limits" in name:
                        found.add(Path(name.partition(".limits")[0] + ".limits"))
        return found


def query(database: str, sql: str) -> str:
    """Return the one value of a statement, "0" for none."""
    if "://" in database:
        command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, database]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        return out.stdout.strip() or "0"
    con = sqlite3.connect(database, timeout=10)
    try:
        return str(con.execute(sql).fetchone()[0] or 0)
    finally:
        con.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pinned(core: int, *command: str) -> tuple[str, ...]:
    return ("taskset", "-c", str(core), *command) if len(cores) > 1 else command


@contextmanager
def serving(
    contender: Contender,
    workers: int = 1,
    mailjet: str = "",
    database: str = "",
    before: tuple[str, ...] = (),
    **settings: str,
) -> Iterator[Service]:
    """Run a contender, by default with an empty database; not yet waited for.

    before: the beginning of its command; settings: of its environment.
    """
    folder = WORK / f"{contender.name}-{next(counter)}"
    folder.mkdir(parents=True)
    database = database or str(folder / "data.db")
    port, log, ours = free_port(), folder / "log", contender.name == "frontdesk"
    if contender.name == "isso":
        (folder / "isso.cfg").write_text(ISSO.format(database=database, folder=folder))
    elif not ours and not Path(database).exists():
        make_schema(database)
    environ = {
        "PATH": f"{contender.folder / 'bin'}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "PORT": str(port),
        # Frontdesk's
        "DATABASE_URL": database if "://" in database else f"sqlite:///{database}",
        "ALLOWED_ORIGINS": ORIGIN,
        "ADMIN_TOKEN": TOKEN,
        "CONTACT_LIMIT": PLENTY,
        "NEWSLETTER_LIMIT": PLENTY,
        "HITS_LIMIT": PLENTY.rpartition(";")[2],
        "CONFIRM_MAILS_PER_DAY": "1000000",
        "WEB_CONCURRENCY": str(workers),
        "WEB_THREADS": str(THREADS),
        "MJ_APIKEY_PUBLIC": "public",
        "MJ_APIKEY_PRIVATE": "private",
        "MAILJET_API_URL": mailjet,
        "MAIL_FROM": "Site <site@site.example>",
        "MAIL_TO": "owner@site.example",
        # the others'
        "DATABASE": database,
        "LIMITS": f"{MEMORY}/bench-{folder.parent.name}-{folder.name}.limits",
        "ORIGIN": ORIGIN,
        "WORKERS": str(workers),
        "NODE_ENV": "production",
        "NODE_PATH": str(contender.folder / "node_modules"),
        "ISSO_SETTINGS": str(folder / "isso.cfg"),
    }
    command = contender.command.format(port=port, workers=workers).split()
    with log.open("wb") as out:
        process = subprocess.Popen(
            (*before, *pinned(SERVER_CORE, *command)),
            cwd=ROOT if ours else CONTENDERS,
            env=environ | settings,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(contender, port, process, database, log)
    try:
        yield service
    finally:
        left = service.limits_files()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for file in left:
            for part in file.parent.glob(file.name + "*"):
                part.unlink()
        for part in folder.iterdir():
            if part != log:  # which tells why somebody was left out
                part.unlink()


# Its guard counts a client's comments of the last minute one by one: off.
ISSO = (
    f"[general]\ndbpath = {{database}}\nhost = {ORIGIN}\n"
    "log-file = {folder}/isso.log\n[guard]\nenabled = false\n"
)


def make_schema(database: str) -> None:
    """Make the contenders' tables, unless a first server has them already."""
    text = (CONTENDERS / "schema.sql").read_text()
    if "://" not in database:
        con = sqlite3.connect(database)
        con.executescript(text)
        con.close()
    elif query(database, "SELECT to_regclass('message')") == "0":
        text = text.replace("INTEGER PRIMARY", "BIGSERIAL PRIMARY")
        text = re.sub(r"PRAGMA.*;| WITHOUT ROWID", "", text)
        query(database, text)


# --- load and what surrounds it --------------------------------------------------


def load(
    services: list[Service], item: str, connections: int, seconds: float
) -> dict[str, float]:
    """Run wrk on one contender's servers at once, and return what came out.

    Servers of one database share the connections. Raise Unfit for lost rows.
    """
    first = services[0]
    item = first.contender.items.get(item, item)
    tables = [t for t in WRITES.get(item, ()) if t != "delivery" or not first.delivers]
    before, cpu = first.rows(*tables), sum(s.cpu_seconds() for s in services)
    each = max(1, connections // len(services))
    running = []
    for service in services:
        command = pinned(
            LOAD_CORE,
            *("wrk", "--threads", "1", "--connections", str(each)),
            *("--duration", f"{max(1, round(seconds))}s", "--timeout", "20s"),
            *("--script", str(BENCH / "load.lua"), f"http://127.0.0.1:{service.port}"),
            *("--", item, str(random.randrange(2**31))),
        )
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    found = [json.loads(p.communicate()[0].partition("RESULT ")[2]) for p in running]
    cpu = sum(s.cpu_seconds() for s in services) - cpu
    time.sleep(0.05)  # for what wrk has left unanswered
    after, made = first.rows(*tables), sum(f["requests"] for f in found)
    good = made - sum(f["refused"] for f in found)
    for table in tables:
        lost = good - (after[table] - before[table])
        if lost > 0:
            raise Unfit(f"{lost} of {good} {table} rows are missing after {item}")
    return {
        "rps": sum(f["requests"] / f["seconds"] for f in found),
        "p50_us": max(f["p50"] for f in found),
        "p99_us": max(f["p99"] for f in found),
        "cpu_us": cpu * 1e6 / max(1, made),
        "errors": sum(f["refused"] + f["broken"] for f in found),
    }


@contextmanager
def mailjet(status: int) -> Iterator[str]:
    """Run the stand-in for Mailjet on the load's core; yield its URL."""
    port = free_port()
    command = (sys.executable, str(BENCH / "mailjet.py"), str(port), str(status))
    process = subprocess.Popen(pinned(LOAD_CORE, *command))
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        yield f"http://localhost:{port}/"
    finally:
        process.kill()
        process.wait()


def seen_by(mailjet_url: str) -> dict[str, Any]:
    """Return what the stand-in has seen: {"mails": number, "url": events' address}."""
    host = mailjet_url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", "/seen")
    seen = json.loads(connection.getresponse().read())
    connection.close()
    return seen


@contextmanager
def postgres() -> Iterator[str]:
    """Run a Postgres cluster of our own, synced; yield its URL without a database."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(debian[-1]) if debian else shutil.which("initdb")
    if not initdb or not shutil.which("psql"):
        raise Unfit("Postgres is not installed")
    folder, port = WORK / "postgres", free_port()
    folder.mkdir()
    user = {}
    if os.getuid() == 0:  # it refuses to run as root
        user = {"user": "postgres"}
        shutil.chown(folder, "postgres")

    def run(*command: str) -> None:
        log = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        try:
            subprocess.run(command, check=True, cwd="/", **log, **user)
        except subprocess.CalledProcessError as error:
            raise Unfit(f"Postgres does not start in {folder}: {error}") from error

    data, ctl = str(folder / "data"), str(Path(initdb).with_name("pg_ctl"))
    run(initdb, "-D", data, "-U", "desk", "-A", "trust", "-E", "UTF8", "--locale", "C")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=on"
    run(ctl, "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgres://desk@127.0.0.1:{port}/"
    finally:
        run(ctl, "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
