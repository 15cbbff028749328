"""Frontdesk beside the floor and its peers, in one run. See README.md.

python bench/run.py [--quick] [--only NAMES] [--rounds N] [--seconds N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import signal
import sqlite3
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cheapest
import growth
from checks import check
from service import (
    ALL,
    BARE,
    BENCH,
    ITEMS,
    ON_POSTGRES,
    WORK,
    Contender,
    Service,
    Unfit,
    cores,
    free_port,
    load,
    mailjet,
    postgres,
    query,
    seen_by,
    serving,
)

CONNECTIONS = (16, 1)
WORKERS = (1, 2)
WRITING = ("contact", "signup", "hit")
Samples = dict[tuple[str, str, str], list[dict[str, float]]]  # of place, item, name


@dataclass
class Run:
    """The choices of this run, and what it has found."""

    contenders: list[Contender]
    items: list[str]
    rounds: int
    seconds: float
    quick: bool
    results: dict[str, Any] = field(default_factory=dict)

    def frontdesk(self) -> Contender:
        """Return Frontdesk; raise Unfit when it does not take part."""
        if ALL[0] not in self.contenders:
            raise Unfit("Frontdesk does not take part")
        return ALL[0]

    def skip(self, name: str, reason: object) -> None:
        print(f"{name} is left out: {reason}", flush=True)
        self.results.setdefault("left_out", {})[name] = str(reason)
        self.contenders = [c for c in self.contenders if c.name != name]

    def ready(self, contenders: list[Contender] | None = None) -> list[Contender]:
        """Install contenders; return those that could be."""
        for contender in list(self.contenders if contenders is None else contenders):
            try:
                contender.install()
            except Unfit as reason:
                self.skip(contender.name, reason)
                if contenders is not None:
                    contenders.remove(contender)
        return self.contenders if contenders is None else contenders


# --- side by side ----------------------------------------------------------------


def measure(
    run: Run,
    samples: Samples,
    place: str,
    up: list[list[Service]],
    items: list[str],
    connections: tuple[int, ...] = CONNECTIONS,
) -> None:
    """Load each contender in turn, so that neighbours were measured seconds apart."""
    for item, number in itertools.product(items, connections):
        for services in [s for s in up if item in s[0].contender.items]:
            name = services[0].contender.name
            try:
                found = load(services, item, number, run.seconds)
            except Unfit as reason:
                run.skip(name, reason)
                up.remove(services)
                continue
            key = (f"{place}, {number} connections", item, name)
            samples.setdefault(key, []).append(found)


def _ratio(mine: list, others: list, name: str) -> float:
    pairs = zip(mine, others, strict=False)
    return statistics.median(m[name] / o[name] for m, o in pairs)


def compare(run: Run, section: str, samples: Samples, base: str) -> None:
    """Print the ratios of base to each other: requests a second, p99.

    They are the median of each round's ratio, not the ratio of medians.
    """
    names = list(dict.fromkeys(name for _, _, name in samples))
    if not names:
        raise Unfit("nobody is left to compare")
    base, table = base if base in names else names[0], []
    for (place, item, name), found in samples.items():
        row = {k: statistics.median(f[k] for f in found) for k in found[0]}
        row |= {"place": place, "item": item, "contender": name}
        if mine := samples.get((place, item, base)):
            row |= {f"{k}_ratio": _ratio(mine, found, k) for k in ("rps", "p99_us")}
        table.append(row)
    run.results[section] = table
    cell = {(r["place"], r["item"], r["contender"]): r for r in table}
    for place in dict.fromkeys(r["place"] for r in table):
        print(f"\n{place}: {base}, and its ratio to each (requests a second, p99)")
        others = [n for n in names if n != base]
        print(f"{'':10}{'req/s':>7}{'p99 ms':>8}{'CPU us':>8}{'errors':>8}", end="")
        print("".join(f"{n:>15}" for n in others))
        for item in dict.fromkeys(r["item"] for r in table if r["place"] == place):
            if not (own := cell.get((place, item, base))):
                continue
            ratios = ""
            for name in others:
                row = cell.get((place, item, name))
                text = (
                    f"{row['rps_ratio']:.2f} {row['p99_us_ratio']:.2f}" if row else ""
                )
                ratios += f"{text:>15}"
            print(
                f"{item:10}{own['rps']:7.0f}{own['p99_us'] / 1e3:8.2f}"
                f"{own['cpu_us']:8.0f}{own['errors']:8.0f}{ratios}"
            )


# --- sections --------------------------------------------------------------------


def size(run: Run) -> None:
    """What is installed: packages and megabytes, without pip."""
    run.results["size"] = table = {}
    print("\nInstalled")
    for contender in run.contenders:
        roots = [*contender.folder.glob("lib/python*/site-packages")]
        parts = [p for r in roots for p in r.iterdir() if not p.name.startswith("pip")]
        count = sum(p.suffix == ".dist-info" for p in parts)
        if contender.node:
            parts = [contender.folder / "node_modules"]
            found = [parts[0].glob(f"{p}/package.json") for p in ("[!.@]*", "@*/*")]
            count = sum(len(list(f)) for f in found)
        files = [f for p in parts for f in (p.rglob("*") if p.is_dir() else [p])]
        files = [f for f in files if f.is_file() and "__pycache__" not in f.parts]
        row = {"packages": count, "mb": sum(f.stat().st_size for f in files) / 1e6}
        table[contender.name] = row
        print(f"{contender.name:16}{count:4} packages{row['mb']:8.1f} MB")


def start(run: Run) -> None:
    """From spawn to the first 200, on an existing database and on none."""
    samples: dict[str, list[float]] = {}
    bare = run.ready([BARE])
    with mailjet(401) as url, ExitStack() as stack:
        old = WORK / "existing.db"
        stack.callback(old.unlink, missing_ok=True)
        for _ in range(3 if run.quick else 10):
            for contender in [*run.contenders, *bare]:
                databases = {contender.name: ""}
                if contender.name == "frontdesk":
                    databases["frontdesk-existing"] = str(old)
                for name, database in databases.items():
                    with serving(contender, 1, url, database) as service:
                        samples.setdefault(name, []).append(service.wait() * 1e3)
    ms = {name: statistics.median(found) for name, found in samples.items()}
    run.results["start"] = ms
    print("\nCold start: spawn to first 200")
    for name, found in ms.items():
        print(f"{name:22}{found:8.0f} ms{found / ms[BARE.name]:8.2f} to bare Falcon")


def memory(run: Run) -> None:
    """PSS of the tree: idle, after mails and pages, after many varied requests."""
    run.results["memory"] = table = {}
    total, seconds = (1_000, 1) if run.quick else (200_000, 5)
    print("\nPSS of the process tree, 1 worker, MB (ratio to bare Falcon, idle)")
    with mailjet(200) as url:
        for contender in [*run.ready([BARE]), *run.contenders]:
            with serving(contender, 1, url, TRUSTED_HOPS="1") as service:
                service.wait()
                time.sleep(1)
                row = {"idle": service.pss_mb()}
                if contender.name == "frontdesk":
                    service.delivers = True
                    row["used"] = _mails_and_pages(service, url)
                if contender.items:
                    used, row["requests"] = row.get("used", row["idle"]), 0
                    item = "contact" if contender.name == "isso" else "varied"
                    while row["requests"] < total:
                        rps = load([service], item, 16, seconds)["rps"]
                        row["requests"] += int(rps * seconds) + 1
                    time.sleep(1)
                    row["loaded"] = service.pss_mb()
                    row["growth"] = row["loaded"] / used - 1
            table[contender.name] = row
            bare = table.get(BARE.name, row)["idle"]
            print(f"{contender.name:16}idle {row['idle']:6.1f}", end="")
            print(f" ({row['idle'] / bare:.2f})", end="")
            if "used" in row:
                print(f"  mails, pages {row['used']:6.1f}", end="")
                print(f" ({row['used'] / bare:.2f})", end="")
            if "loaded" in row:
                print(f"  {row['requests']:,} requests {row['loaded']:6.1f}", end="")
                print(f" ({row['growth']:+.0%})", end="")
            print(flush=True)


def _mails_and_pages(service: Service, url: str) -> float:
    form = {"email": "a@example.com", "message": "Hello from the benchmark"}
    service.request("POST", "/contact", form)
    service.request("POST", "/newsletter", {"email": "a@example.com"})
    service.request("POST", "/hits", {"page": "/about"})
    for path in ("/thanks", "/", "/nothing", "/hits.svg?page=/about&count=false"):
        service.request("GET", path, Accept="text/html")
    deadline = time.monotonic() + 20
    while seen_by(url)["mails"] < 2:
        if time.monotonic() > deadline:
            raise Unfit(f"the mails do not come, see {service.log}")
        time.sleep(0.02)
    time.sleep(0.5)
    return service.pss_mb()


def outbox(run: Run) -> None:
    """What delivering adds to contact posts: paused, sending, and with no answer."""
    samples: Samples = {}
    for _ in range(run.rounds):
        for mode in ("paused", "sending", "unreachable"):
            with mailjet(401 if mode == "paused" else 200) as url:
                given = url
                if mode == "unreachable":
                    given = f"http://localhost:{free_port()}/"
                with serving(run.frontdesk(), 1, given) as service:
                    service.wait()
                    service.delivers = mode == "sending"
                    load([service], "contact", 16, 1)
                    for number in CONNECTIONS:
                        sent = seen_by(url)["mails"]
                        found = load([service], "contact", number, run.seconds)
                        sent = seen_by(url)["mails"] - sent
                        if mode == "sending" and not sent:
                            raise Unfit(f"no mail came, see {service.log}")
                        found["mails_per_second"] = sent / run.seconds
                        key = (f"Outbox, {number} connections", "contact", mode)
                        samples.setdefault(key, []).append(found)
    compare(run, "outbox", samples, "paused")


def throughput(run: Run) -> None:
    """Each kind of work, with 1 and 2 workers, 16 connections and 1."""
    samples: Samples = {}
    with mailjet(401) as paused:  # the outbox rests: its rows are written, not sent
        for number, workers in itertools.product(range(run.rounds), WORKERS):
            with ExitStack() as stack:
                up = []
                for contender in list(run.contenders):
                    service = stack.enter_context(serving(contender, workers, paused))
                    try:
                        service.wait()
                        check(service)
                        for item in contender.items:
                            load([service], item, 16, min(1, run.seconds))  # warm up
                    except Unfit as reason:
                        run.skip(contender.name, reason)
                        continue
                    up.append([service])
                up = up[number % len(up) :] + up[: number % len(up)] if up else up
                measure(run, samples, f"{workers} workers", up, run.items)
    compare(run, "throughput", samples, "frontdesk")


def on_postgres(run: Run) -> None:
    """Writes with 1 and 2 servers on one Postgres, beside a floor with psycopg."""
    samples: Samples = {}
    items = [i for i in run.items if i in WRITING]
    contenders = run.ready(list(ON_POSTGRES))
    with mailjet(401) as paused, postgres() as cluster:
        for number, servers in itertools.product(range(run.rounds), (1, 2)):
            with ExitStack() as stack:
                up = []
                for contender in contenders:
                    name = f"{contender.name}_{number}_{servers}"
                    query(cluster + "postgres", f"CREATE DATABASE {name}")
                    services = [
                        stack.enter_context(
                            serving(contender, 1, paused, cluster + name)
                        )
                        for _ in range(servers)
                    ]
                    for service in services:
                        service.wait()
                    check(services[0])
                    for item in items:
                        load(services, item, 16, min(1, run.seconds))
                    up.append(services)
                measure(run, samples, f"Postgres, {servers} servers", up, items)
    compare(run, "postgres", samples, "frontdesk")


SECTIONS = {
    "size": size,
    "start": start,
    "memory": memory,
    "growth": growth.growth,
    "year": growth.year,
    "outbox": outbox,
    "throughput": throughput,
    "postgres": on_postgres,
    "cheapest": cheapest.cheapest,
}

# --- the whole -------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Describe where this ran, and what a sync costs here."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    path, taken = WORK / "sync", []
    with path.open("wb", buffering=0) as file:
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


def main() -> int:
    names = [*SECTIONS, *(c.name for c in ALL), *ITEMS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, in minutes")
    parser.add_argument("--only", default="", help="some of: " + ", ".join(names))
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--seconds", type=float, help="default 4, with --quick 1")
    parser.add_argument("--output", type=Path, default=BENCH / "results.json")
    chosen = parser.parse_args()
    only = {name for name in chosen.only.split(",") if name}
    if unknown := only - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is missing")
    run = Run(
        contenders=[c for c in ALL if c.name in only] or list(ALL),
        items=[i for i in ITEMS if i in only] or list(ITEMS),
        rounds=chosen.rounds or (1 if chosen.quick else 5),
        seconds=chosen.seconds or (1 if chosen.quick else 4),
        quick=chosen.quick,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers end with us
    WORK.mkdir(parents=True)
    run.ready()
    run.results["machine"] = machine()
    print(json.dumps(run.results["machine"]))
    for name, section in SECTIONS.items():
        if name in only or not only & set(SECTIONS):
            try:
                section(run)
            except Unfit as reason:
                print(f"{name} is cut short: {reason}", flush=True)
                run.results.setdefault("left_out", {})[name] = str(reason)
            chosen.output.write_text(json.dumps(run.results, indent=1) + "\n")
    if not run.results.get("left_out"):
        shutil.rmtree(WORK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
