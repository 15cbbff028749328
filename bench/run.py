"""Frontdesk beside the floor and its peers, in one run. See README.md.

python bench/run.py [--quick] [--only NAMES] [--rounds N] [--seconds N]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.client
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CONTENDERS = BENCH / "contenders"
VENVS = BENCH / ".venvs"
# On a disk: /tmp may be memory, where a sync costs nothing.
WORK = BENCH / ".work" / str(os.getpid())
ORIGIN = "https://site.example"
THREADS = 8
PLENTY = "999999/second;999999/minute"
ITEMS = ("contact", "signup", "hit", "badge", "read")
CONNECTIONS = (16, 1)
WORKERS = (1, 2)
TICK = os.sysconf("SC_CLK_TCK")

cores = sorted(os.sched_getaffinity(0))
LOAD_CORE, SERVER_CORE = cores[0], cores[-1]

# --- contenders ------------------------------------------------------------------

GUNICORN = (
    *("gunicorn", "--worker-class", "gthread", "--threads", str(THREADS)),
    *("--keep-alive", "100", "--no-control-socket"),
    *("--worker-tmp-dir", "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"),
)


@dataclass(frozen=True)
class Contender:
    """A service to measure: its command, and what it needs to be installed."""

    name: str
    label: str
    command: Callable[[int, int], tuple[str, ...]]  # of port and workers
    requirements: Path
    items: tuple[str, ...] = ITEMS
    health: str = "/health"

    @property
    def folder(self) -> Path:
        shared = self.requirements.parent == CONTENDERS
        return VENVS / (self.requirements.stem if shared else self.name)

    @property
    def node(self) -> bool:
        return self.requirements.suffix == ".json"


def _gunicorn(app: str) -> Callable[[int, int], tuple[str, ...]]:
    return lambda port, workers: (
        *GUNICORN,
        *("--bind", f"127.0.0.1:{port}", "--workers", str(workers), app),
    )


def _uvicorn(port: int, workers: int) -> tuple[str, ...]:
    return (
        *("uvicorn", "fastapi_stack:app", "--port", str(port), "--no-access-log"),
        *("--log-level", "warning", "--workers", str(workers)),
        *("--timeout-keep-alive", "100"),
    )


def _procfile(port: int, workers: int) -> tuple[str, ...]:
    command = (ROOT / "Procfile").read_text("utf-8").partition("web:")[2]
    return tuple(command.split())


ALL = (
    Contender("frontdesk", "Frontdesk", _procfile, ROOT / "requirements.txt"),
    Contender("floor", "floor", _gunicorn("floor:app"), CONTENDERS / "floor.txt"),
    Contender(
        "falcon-peewee",
        "Falcon + Peewee as documented",
        _gunicorn("falcon_peewee:app"),
        CONTENDERS / "falcon_peewee.txt",
    ),
    Contender(
        "flask",
        "Flask stack",
        _gunicorn("flask_stack:app"),
        CONTENDERS / "flask_stack.txt",
    ),
    Contender("fastapi", "FastAPI stack", _uvicorn, CONTENDERS / "fastapi_stack.txt"),
    Contender(
        "express",
        "Express stack",
        lambda port, workers: ("node", str(CONTENDERS / "express.js")),
        CONTENDERS / "express.json",
    ),
    Contender(
        "isso",
        "Isso (its own comments)",
        lambda port, workers: (*_gunicorn("isso.run")(port, workers), "--preload"),
        CONTENDERS / "isso.txt",
        ("isso-post", "isso-count"),
        "/info",
    ),
)
BARE = Contender(
    "bare-falcon",
    "bare Falcon app",
    _gunicorn("bare_falcon:app"),
    CONTENDERS / "falcon_peewee.txt",
)
# Which of our own kinds of work an Isso request is set against.
ISSO_PEER = {"isso-post": "contact", "isso-count": "read"}


def install(contender: Contender) -> str | None:
    """Install what a contender needs, once; return why it cannot be."""
    mark = contender.folder / f"installed-{_digest(contender.requirements)}"
    if mark.exists():
        return None
    shutil.rmtree(contender.folder, ignore_errors=True)
    contender.folder.mkdir(parents=True)
    log = contender.folder / "install.log"
    with log.open("wb") as out:
        for command in _install_commands(contender):
            done = None
            with suppress(OSError):
                done = subprocess.run(
                    command, cwd=contender.folder, stdout=out, stderr=out, check=False
                )
            if done is None or done.returncode:
                return f"'{command[0]}' cannot install it, see {log.relative_to(ROOT)}"
    mark.touch()
    return None


def _install_commands(contender: Contender) -> list[list[str]]:
    if contender.node:
        shutil.copy(contender.requirements, contender.folder / "package.json")
        return [["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]]
    pip = str(contender.folder / "bin" / "pip")
    return [
        [sys.executable, "-m", "venv", str(contender.folder)],
        [pip, "install", "--quiet", "-r", str(contender.requirements)],
    ]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


# --- a running service -----------------------------------------------------------


@dataclass
class Service:
    """A started contender, with its database and its processes."""

    contender: Contender
    port: int
    process: subprocess.Popen[bytes]
    database: Path
    log: Path
    delivers: bool = False  # its outbox is emptied meanwhile

    def request(
        self, method: str, path: str, form: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one request and return (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {"Origin": ORIGIN, "Accept": "application/json", **headers}
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
            if (
                self.process.poll() is not None
                or time.perf_counter() > started + seconds
            ):
                raise Unfit(f"does not start, see {self.log}")
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
        """Return the memory of the tree, shared pages by their share."""
        total = 0
        for pid in self.processes():
            with suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
        return total / 1024

    def rows(self, *tables: str) -> dict[str, int]:
        """Count rows as another process sees them, thus what was committed."""
        with sqlite3.connect(self.database, timeout=10) as con:
            found = {
                t: con.execute(f"SELECT {ROWS.get(t, 'count(*)')} FROM {t}").fetchone()
                for t in tables
            }
        con.close()
        return {table: int(row[0] or 0) for table, row in found.items()}


ROWS = {"page": "sum(hits)", "hit": "sum(hits)", "tally": "sum(n)"}
# The tables that each request adds one to.
WRITES = {
    "contact": ("message", "receipt", "delivery"),
    "signup": ("subscriber", "delivery"),
    "hit": ("page", "hit"),
    "isso-post": ("comments",),
}


class Unfit(Exception):
    """A contender that does not do the work."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pinned(core: int, *command: str) -> tuple[str, ...]:
    return ("taskset", "-c", str(core), *command) if len(cores) > 1 else command


counter = itertools.count()


@contextmanager
def serving(
    contender: Contender,
    workers: int = 1,
    mailjet: str = "",
    database: Path | None = None,
) -> Iterator[Service]:
    """Run a contender with an empty database of its own; not yet waited for."""
    folder = WORK / f"{contender.name}-{next(counter)}"
    folder.mkdir(parents=True)
    database = database or folder / "data.db"
    limits = _limits_file(contender, database)
    port, log = free_port(), folder / "log"
    command = contender.command(port, workers)
    _prepare(contender, database, folder)
    with log.open("wb") as out:
        process = subprocess.Popen(
            pinned(SERVER_CORE, *command),
            cwd=ROOT if contender.name == "frontdesk" else CONTENDERS,
            env=_environment(contender, port, workers, database, limits, mailjet),
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
        for path in limits.parent.glob(limits.name + "*"):
            path.unlink()
        if "KEEP" not in os.environ:
            shutil.rmtree(folder)


def _limits_file(contender: Contender, database: Path) -> Path:
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else WORK
    name = hashlib.blake2b(str(database).encode(), digest_size=8).hexdigest()
    kind = "frontdesk" if contender.name == "frontdesk" else "bench"
    return memory / f"{kind}-{name}.limits"


def _prepare(contender: Contender, database: Path, folder: Path) -> None:
    if contender.name == "isso":
        (folder / "isso.cfg").write_text(
            f"[general]\ndbpath = {database}\nhost = {ORIGIN}\n"
            f"log-file = {folder / 'isso.log'}\n"
            # Its guard counts a client's comments of the last minute one by one.
            "[guard]\nenabled = false\n"
        )
    elif contender.name != "frontdesk":
        with sqlite3.connect(database) as con:
            con.executescript((CONTENDERS / "schema.sql").read_text())
        con.close()


def _environment(
    contender: Contender,
    port: int,
    workers: int,
    database: Path,
    limits: Path,
    mailjet: str,
) -> dict[str, str]:
    path = f"{contender.folder / 'bin'}:{os.environ['PATH']}"
    common = {"PATH": path, "PORT": str(port), "HOME": os.environ.get("HOME", "/")}
    if contender.name == "frontdesk":
        return common | {
            "DATABASE_URL": f"sqlite:///{database}",
            "ALLOWED_ORIGINS": ORIGIN,
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
        }
    return common | {
        "DATABASE": str(database),
        "LIMITS": str(limits),
        "ORIGIN": ORIGIN,
        "WORKERS": str(workers),
        "NODE_ENV": "production",
        "NODE_PATH": str(contender.folder / "node_modules"),
        "PYTHONPATH": str(CONTENDERS),
        "ISSO_SETTINGS": str(database.with_name("isso.cfg")),
    }


@contextmanager
def mailjet(status: int) -> Iterator[str]:
    """Run the stand-in on the load's core; yield its URL."""
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


def mails_taken(url: str) -> int:
    host = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", "/count")
    count = int(connection.getresponse().read())
    connection.close()
    return count


# --- is the work done? -----------------------------------------------------------


def check(service: Service) -> None:
    """Try each kind of work; raise Unfit unless the rows are there."""
    try:
        if service.contender.name == "isso":
            _check_isso(service)
        else:
            _check_contact(service)
            _check_signup(service)
            _check_hits(service)
            _check_preflight(service)
    except (AssertionError, KeyError, ValueError, sqlite3.Error) as error:
        raise Unfit(f"{type(error).__name__}: {error}, see {service.log}") from error


def _expect(ok: bool, what: str, *seen: object) -> None:
    if not ok:
        raise AssertionError(f"{what} {seen}")


def _added(service: Service, tables: tuple[str, ...], act: Callable[[], Any]) -> tuple:
    before = service.rows(*tables)
    result = act()
    after = service.rows(*tables)
    return result, {table: after[table] - before[table] for table in tables}


def _check_contact(service: Service) -> None:
    form = {"name": "A", "email": "a@example.com", "message": f"Hi {service.port}"}
    tables = WRITES["contact"]
    post = functools.partial(service.request, "POST", "/contact")
    (status, headers, body), added = _added(service, tables, lambda: post(form))
    _expect(status == 200, "contact", status, body)
    _expect(added == dict.fromkeys(tables, 1), "contact rows", added)
    _expect(headers["access-control-allow-origin"] == ORIGIN, "CORS", headers)
    _expect("origin" in headers["vary"].lower(), "Vary", headers)
    (_, _, again), added = _added(service, tables, lambda: post(form))
    _expect(added == dict.fromkeys(tables, 0), "second time", added)
    _expect(json.loads(again)["id"] == json.loads(body)["id"], "same id")
    for wrong in ({"email": "nobody"}, {"message": ""}, {"message": "x" * 10_001}):
        (status, _, _), added = _added(
            service, tables, lambda wrong=wrong: post({**form, **wrong})
        )
        _expect(status == 422 and not any(added.values()), "invalid", status, added)


def _check_signup(service: Service) -> None:
    tables = WRITES["signup"]
    post = functools.partial(service.request, "POST", "/newsletter")
    form = {"email": "reader@example.com"}
    (status, _, body), added = _added(service, tables, lambda: post(form))
    _expect(status == 200, "signup", status, body)
    _expect(added == dict.fromkeys(tables, 1), "signup rows", added)
    _, added = _added(service, tables, lambda: post(form))
    _expect(not any(added.values()), "second signup", added)
    _expect(post({"email": "nobody"})[0] == 422, "invalid signup")


def _check_hits(service: Service) -> None:
    tables = WRITES["hit"]
    post = functools.partial(service.request, "POST", "/hits", {"page": "/about"})
    for hits in (1, 2):
        (status, _, body), added = _added(service, tables, post)
        sums = {"page": "/about", "hits": hits, "visitors": 1, "counted": True}
        _expect(status == 200 and json.loads(body) == sums, "hit", status, body)
        _expect(added == dict.fromkeys(tables, 1), "hit rows", added)
    crawler = post(**{"User-Agent": "Googlebot/2.1"})[2]
    _expect(json.loads(crawler)["counted"] is False, "crawler", crawler)
    read = json.loads(service.request("GET", "/hits?page=/about")[2])
    _expect(read["hits"] == 2 and len(read["days"]) == 30, "read", read)
    _expect(read["days"][-1]["hits"] == 2, "read", read)
    path = "/hits.svg?count=false&page=/about"
    status, headers, svg = service.request("GET", path)
    _expect(status == 200 and "svg" in headers["content-type"], "badge", headers)
    _expect(b">2</text>" in svg, "badge", svg)


def _check_preflight(service: Service) -> None:
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    status, headers, _ = service.request("OPTIONS", "/contact", **asks)
    _expect(status in (200, 204), "preflight", status)
    _expect("POST" in headers["access-control-allow-methods"], "preflight", headers)


def _check_isso(service: Service) -> None:
    form = {"title": "A page", "author": "A", "text": "Hello there"}
    post = functools.partial(service.request, "POST", "/new?uri=/about", form)
    (status, _, body), added = _added(service, ("comments",), post)
    _expect(status == 201 and added == {"comments": 1}, "comment", status, body)
    count = service.request("POST", "/count", ["/about"])[2]
    _expect(json.loads(count) == [1], "count", count)


# --- load ------------------------------------------------------------------------


def load(service: Service, item: str, connections: int, seconds: float) -> dict:
    """Run wrk for some seconds and return what came out; raise Unfit for lost rows."""
    tables = [
        table
        for table in WRITES.get(item, ())
        if table != "delivery" or not service.delivers
    ]
    before, cpu = service.rows(*tables), service.cpu_seconds()
    command = pinned(
        LOAD_CORE,
        *("wrk", "--threads", "1", "--connections", str(connections)),
        *("--duration", f"{seconds:g}s", "--timeout", "20s"),
        *("--script", str(BENCH / "load.lua"), f"http://127.0.0.1:{service.port}"),
        *("--", item, str(random.randrange(2**31))),
    )
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu = service.cpu_seconds() - cpu
    result = json.loads(out.partition("RESULT ")[2])
    time.sleep(0.05)  # for what wrk has left unanswered
    after = service.rows(*tables)
    good = result["requests"] - result["refused"]
    for table in tables:
        lost = good - (after[table] - before[table])
        if lost > 0:
            raise Unfit(f"{lost} of {good} {table} rows are missing after {item}")
    return {
        "rps": result["requests"] / result["seconds"],
        "p50_us": result["p50"],
        "p99_us": result["p99"],
        "cpu_us": cpu * 1e6 / max(1, result["requests"]),
        "errors": result["refused"] + result["broken"],
    }


def medians(samples: list[dict]) -> dict:
    return {k: statistics.median(s[k] for s in samples) for k in samples[0]}


# --- sections --------------------------------------------------------------------


@dataclass
class Run:
    """The choices of this run, and what it has found."""

    contenders: list[Contender]
    items: tuple[str, ...]
    rounds: int
    seconds: float
    quick: bool
    results: dict[str, Any] = field(default_factory=dict)

    def contender(self, name: str) -> Contender | None:
        return next((c for c in self.contenders if c.name == name), None)


def throughput(run: Run) -> None:
    """Requests a second, latencies and processor time of each kind of work."""
    samples: dict[tuple, list[dict]] = {}
    with mailjet(401) as paused:  # the outbox rests: its rows are written, not sent
        for number, workers in itertools.product(range(run.rounds), WORKERS):
            with ExitStack() as stack:
                up = _start_all(run, stack, workers, paused)
                up = up[number % len(up) :] + up[: number % len(up)]
                _one_round(run, up, workers, samples)
    table = [
        {"workers": w, "item": i, "connections": c, "contender": n, **medians(s)}
        for (w, i, c, n), s in samples.items()
    ]
    _add_ratios(table, samples)
    run.results["throughput"] = table
    _print_throughput(table)


def _start_all(run: Run, stack: ExitStack, workers: int, url: str) -> list[Service]:
    services = []
    for contender in list(run.contenders):
        service = stack.enter_context(serving(contender, workers, url))
        try:
            service.wait()
            check(service)
        except Unfit as reason:
            _skip(run, contender, str(reason))
            continue
        services.append(service)
    return services


def _skip(run: Run, contender: Contender, reason: str) -> None:
    print(f"{contender.label} is left out: {reason}", flush=True)
    run.results.setdefault("left_out", {})[contender.name] = reason
    run.contenders.remove(contender)


def _one_round(
    run: Run, up: list[Service], workers: int, samples: dict[tuple, list[dict]]
) -> None:
    for service in up:
        for item in service.contender.items:
            load(service, item, 16, min(1, run.seconds))  # warm up
    kinds = [*run.items, *ISSO_PEER]
    for item, connections in itertools.product(kinds, CONNECTIONS):
        for service in up:
            if item not in service.contender.items:
                continue
            found = load(service, item, connections, run.seconds)
            key = (workers, item, connections, service.contender.name)
            samples.setdefault(key, []).append(found)


def _add_ratios(table: list[dict], samples: dict[tuple, list[dict]]) -> None:
    """Add the median over rounds of each round's ratio to the floor."""
    for row in table:
        base = (row["workers"], row["item"], row["connections"])
        mine, floor = samples[(*base, row["contender"])], samples.get((*base, "floor"))
        for name in ("rps", "p99_us") if floor else ():
            pairs = zip(mine, floor, strict=True)
            row[f"{name}_to_floor"] = statistics.median(
                m[name] / f[name] for m, f in pairs
            )


def _print_throughput(table: list[dict]) -> None:
    for workers, connections in itertools.product(WORKERS, CONNECTIONS):
        print(f"\n{connections} connections, {workers} workers")
        print(
            f"{'':12}{'':16}{'req/s':>8}{'to floor':>10}{'p50 ms':>9}{'p99 ms':>9}"
            f"{'to floor':>10}{'CPU us':>8}{'errors':>8}"
        )
        for row in table:
            if (row["workers"], row["connections"]) != (workers, connections):
                continue
            print(
                f"{row['item']:12}{row['contender']:16}{row['rps']:8.0f}"
                f"{_ratio(row.get('rps_to_floor')):>10}{row['p50_us'] / 1e3:9.2f}"
                f"{row['p99_us'] / 1e3:9.2f}{_ratio(row.get('p99_us_to_floor')):>10}"
                f"{row['cpu_us']:8.0f}{row['errors']:8.0f}"
            )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def outbox(run: Run) -> None:
    """What delivering adds to contact posts: paused, sending, and with no answer."""
    contender = run.contender("frontdesk")
    if contender is None:
        return
    samples: dict[tuple, list[dict]] = {}
    for _ in range(run.rounds):
        for mode, connections in itertools.product(
            ("paused", "sending", "unreachable"), CONNECTIONS
        ):
            found = _deliver(contender, mode, connections, run.seconds)
            samples.setdefault((mode, connections), []).append(found)
    table = []
    for (mode, connections), found in samples.items():
        row = {"mode": mode, "connections": connections, **medians(found)}
        pairs = zip(found, samples["paused", connections], strict=True)
        row["p99_to_paused"] = statistics.median(
            f["p99_us"] / p["p99_us"] for f, p in pairs
        )
        table.append(row)
    run.results["outbox"] = table
    print("\nContact posts while the outbox works, 1 worker")
    for row in table:
        print(
            f"{row['mode']:12}{row['connections']:3} connections{row['rps']:8.0f} req/s"
            f"  p99 {row['p99_us'] / 1e3:7.2f} ms {row['p99_to_paused']:5.2f} to paused"
            f"  {row['mails_per_second']:6.0f} mails/s"
        )


def _deliver(
    contender: Contender, mode: str, connections: int, seconds: float
) -> dict[str, float]:
    with mailjet(401 if mode == "paused" else 200) as url:
        given = f"http://localhost:{free_port()}/" if mode == "unreachable" else url
        with serving(contender, 1, given) as service:
            service.wait()
            service.delivers = mode == "sending"
            load(service, "contact", connections, 1)
            before = mails_taken(url)
            found = load(service, "contact", connections, seconds)
            found["mails_per_second"] = (mails_taken(url) - before) / seconds
            if mode == "sending" and not found["mails_per_second"]:
                raise Unfit(f"no mail came, see {service.log}")
    return found


def start(run: Run) -> None:
    """From spawn to the first 200, on an existing database and on none."""
    samples: dict[str, list[float]] = {}
    times = 3 if run.quick else 10
    if reason := install(BARE):
        raise Unfit(reason)
    with mailjet(401) as url, ExitStack() as stack:
        old = WORK / "existing.db"
        stack.callback(old.unlink, missing_ok=True)
        for _ in range(times):
            for contender in [*run.contenders, BARE]:
                with serving(contender, 1, url) as service:
                    samples.setdefault(contender.name, []).append(service.wait())
            if contender := run.contender("frontdesk"):
                with serving(contender, 1, url, old) as service:
                    found = service.wait()
                    samples.setdefault("frontdesk-existing", []).append(found)
    base = statistics.median(samples[BARE.name])
    table = {
        name: {"ms": statistics.median(s) * 1e3, "to_bare": statistics.median(s) / base}
        for name, s in samples.items()
    }
    run.results["start"] = table
    print("\nCold start: spawn to first 200")
    for name, row in table.items():
        print(f"{name:22}{row['ms']:8.0f} ms{row['to_bare']:8.2f} to bare Falcon")


def memory(run: Run) -> None:
    """The process tree's memory: idle, after the first mail and page, after load."""
    table = {}
    total = 3_000 if run.quick else 100_000
    with mailjet(200) as url:
        for contender in run.contenders:
            with serving(contender, 1, url) as service:
                service.wait()
                time.sleep(1)
                row = {"idle_mb": service.pss_mb()}
                if contender.name == "frontdesk":
                    service.delivers = True
                    row["after_mail_and_page_mb"] = _mail_and_page(service, url)
                row["requests"] = _load_until(service, total)
                time.sleep(1)
                row["after_load_mb"] = service.pss_mb()
                first = row.get("after_mail_and_page_mb", row["idle_mb"])
                row["growth"] = row["after_load_mb"] / first - 1
                table[contender.name] = row
    run.results["memory"] = table
    print("\nPSS of the process tree, 1 worker, MB")
    for name, row in table.items():
        used = row.get("after_mail_and_page_mb")
        print(
            f"{name:16}idle {row['idle_mb']:6.1f}"
            f"   first mail and page {'' if used is None else f'{used:.1f}':>6}"
            f"   after {row['requests']:,} requests {row['after_load_mb']:6.1f}"
            f" ({row['growth']:+.0%})"
        )


def _mail_and_page(service: Service, url: str) -> float:
    form = {"email": "a@example.com", "message": "Hello from the benchmark"}
    service.request("POST", "/contact", form)
    status, headers, _ = service.request("GET", "/thanks", Accept="text/html")
    _expect(status == 200 and "html" in headers["content-type"], "page", status)
    deadline = time.monotonic() + 20
    while not mails_taken(url):
        if time.monotonic() > deadline:
            raise Unfit(f"the mail does not come, see {service.log}")
        time.sleep(0.02)
    time.sleep(0.5)
    return service.pss_mb()


def _load_until(service: Service, total: int) -> int:
    done = 0
    for item in itertools.cycle(service.contender.items):
        if done >= total:
            return done
        seconds = 1 if total < 10_000 else 5
        found = load(service, item, 16, seconds)
        done += int(found["rps"] * seconds)
    raise AssertionError


def imports(run: Run) -> None:
    """Milliseconds of importing, by module."""
    contender = run.contender("frontdesk")
    if contender is None:
        return
    # What the server and its worker import, with psycopg out of the way as there.
    code = (
        "import sys; sys.modules['psycopg'] = None; "
        "import gunicorn.app.wsgiapp, gunicorn.workers.gthread, api"
    )
    python = str(contender.folder / "bin" / "python")
    found: dict[str, list[float]] = {}
    for _ in range(3 if run.quick else 9):
        done = subprocess.run(
            [python, "-X", "importtime", "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        own: dict[str, float] = {}
        for line in done.stderr.splitlines():
            parts = line.removeprefix("import time:").split("|")
            if len(parts) == 3 and parts[0].strip().isdigit():
                package = parts[2].strip().partition(".")[0]
                own[package] = own.get(package, 0) + int(parts[0]) / 1000
        for package, ms in own.items():
            found.setdefault(package, []).append(ms)
    table = {package: statistics.median(ms) for package, ms in found.items()}
    top = dict(sorted(table.items(), key=lambda item: -item[1])[:25])
    total = sum(table.values())
    run.results["imports"] = {"total_ms": total, "by_package_ms": top}
    print(f"\nImports: {total:.0f} ms in all, each package's own modules:")
    print(", ".join(f"{name} {ms:.1f}" for name, ms in top.items()))


def size(run: Run) -> None:
    """What is installed: packages and megabytes, without pip."""
    table = {}
    for contender in run.contenders:
        if contender.node:
            modules = contender.folder / "node_modules"
            packages = len(list(modules.glob("[!.@]*/package.json"))) + len(
                list(modules.glob("@*/*/package.json"))
            )
            places = [modules]
        else:
            site = next(contender.folder.glob("lib/python*/site-packages"))
            places = [p for p in site.iterdir() if not p.name.startswith("pip")]
            packages = sum(p.suffix == ".dist-info" for p in places)
        table[contender.name] = {
            "packages": packages,
            "mb": sum(map(_bytes, places)) / 1e6,
        }
    run.results["size"] = table
    print("\nInstalled")
    for name, row in table.items():
        print(f"{name:16}{row['packages']:4} packages{row['mb']:8.1f} MB")


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(
        f.stat().st_size for f in files if f.is_file() and "__pycache__" not in f.parts
    )


def growth(run: Run) -> None:
    """Does a request cost more when there is more? In one process, without HTTP."""
    contender = run.contender("frontdesk")
    if contender is None:
        return
    small = run.quick
    hits = (1_000, 10_000, 100_000) if small else (1_000, 100_000, 10_000_000)
    messages = (1_000, 20_000) if small else (1_000, 1_000_000)
    plans = (
        ("hits", hits, ("hit", "badge", "health")),
        ("messages", messages, ("contact", "health")),
        ("same_text", (1_000, 20_000) if small else (1_000, 100_000), ("same_text",)),
        ("deliveries", (1_000, 20_000) if small else (1_000, 100_000), ("health",)),
        ("clients", (10, 20_000) if small else (10, 200_000), ("limit",)),
    )
    table = []
    for kind, sizes, cases in plans:
        table += _grow(run, contender, kind, sizes, cases)
    run.results["growth"] = table
    print("\nGrowth: one process, no network; microseconds (median), to the smallest")
    for row in table:
        print(
            f"{row['case']:10} {row['rows']:>11,} {row['kind']:12}"
            f"{row['median_us']:9.1f}{row['to_smallest']:7.2f}"
        )


def _grow(
    run: Run,
    contender: Contender,
    kind: str,
    sizes: tuple[int, ...],
    cases: tuple[str, ...],
) -> list[dict]:
    folder = WORK / f"growth-{kind}"
    folder.mkdir(parents=True)
    python = str(contender.folder / "bin" / "python")
    script = str(BENCH / "growth.py")
    calls = "300" if run.quick else "3000"
    samples: dict[tuple, list[float]] = {}
    try:
        for rows in sizes:
            path = str(folder / f"{rows}.db")
            subprocess.run([python, script, "fill", kind, str(rows), path], check=True)
        for _, case, rows in itertools.product(range(max(3, run.rounds)), cases, sizes):
            path = str(folder / f"{rows}.db")
            done = subprocess.run(
                pinned(
                    SERVER_CORE, python, script, "time", case, calls, path, str(rows)
                ),
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])["median_us"]
            samples.setdefault((case, rows), []).append(found)
    finally:
        for rows in sizes:
            limits = _limits_file(contender, folder / f"{rows}.db")
            for path in limits.parent.glob(limits.name + "*"):
                path.unlink()
        shutil.rmtree(folder)
    return [
        {
            "kind": kind,
            "case": case,
            "rows": rows,
            "median_us": statistics.median(found),
            "to_smallest": statistics.median(found)
            / statistics.median(samples[case, sizes[0]]),
        }
        for (case, rows), found in samples.items()
    ]


SECTIONS = {
    f.__name__: f for f in (size, imports, start, memory, growth, outbox, throughput)
}

# --- the whole -------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Describe where this ran, and what a sync costs here."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    path = WORK / "sync"
    with path.open("wb", buffering=0) as file:
        taken = []
        for _ in range(200):
            file.write(b"x" * 4096)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    path.unlink()
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(cores),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sync_us": round(statistics.median(taken) * 1e6),
        "load_before": os.getloadavg()[0],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, in minutes")
    parser.add_argument(
        "--only",
        default="",
        help="comma separated sections, contenders and kinds of work: "
        + ", ".join([*SECTIONS, *(c.name for c in ALL), *ITEMS]),
    )
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--seconds", type=float, help="default 4, with --quick 1")
    parser.add_argument("--output", type=Path, default=BENCH / "results.json")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    only = {name for name in arguments.only.split(",") if name}
    known = {*SECTIONS, *(c.name for c in ALL), *ITEMS}
    if only - known:
        print(f"unknown: {', '.join(sorted(only - known))}", file=sys.stderr)
        return 2
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            print(f"{tool} is missing", file=sys.stderr)
            return 2
    run = Run(
        contenders=[c for c in ALL if c.name in only] or list(ALL),
        items=tuple(i for i in ITEMS if i in only) or ITEMS,
        rounds=arguments.rounds or (1 if arguments.quick else 5),
        seconds=arguments.seconds or (1 if arguments.quick else 4),
        quick=arguments.quick,
    )
    WORK.mkdir(parents=True)
    for contender in list(run.contenders):
        if reason := install(contender):
            _skip(run, contender, reason)
    run.results["machine"] = machine()
    print(json.dumps(run.results["machine"]))
    for name, section in SECTIONS.items():
        if name in only or not only & set(SECTIONS):
            try:
                section(run)
            except Unfit as reason:
                print(f"{name} is cut short: {reason}", flush=True)
                run.results.setdefault("left_out", {})[name] = str(reason)
            arguments.output.write_text(json.dumps(run.results, indent=1) + "\n")
    shutil.rmtree(WORK, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
