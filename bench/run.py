"""Frontdesk beside the floor and its peers, in one run. See README.md.

python -m bench.run [--quick] [--only NAMES] [--rounds N] [--seconds N]
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import sys
import time
import timeit
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from bench import cheapest, growth
from bench.checks import check
from bench.service import (
    ALL,
    ASKS,
    BARE,
    BENCH,
    FRONTDESK,
    ON_POSTGRES,
    WORK,
    WRITES,
    Unfit,
    cores,
    load,
    mailjet,
    serving,
    written_out,
)
from tests.support.databases import running_postgres
from tests.support.ports import free_port

CONNECTIONS = (16, 1)


@dataclass
class Run:
    """The choices of this run, and what it has found."""

    only: set
    items: list
    rounds: int
    seconds: float
    quick: bool
    samples: dict = field(default_factory=dict)  # by table, row and column
    left_out: dict = field(default_factory=dict)

    @contextmanager
    def trying(self, name):
        """Leave somebody or something out that fails: the rest is worth having."""
        try:
            yield
        except (Exception, pytest.skip.Exception) as reason:
            self.left_out[name] = f"{type(reason).__name__}: {reason}"
            print(f"{name} is left out: {self.left_out[name]}", flush=True)

    def each(self, contenders=ALL):
        """Yield those that take part, installed."""
        for contender in contenders:
            name = contender.name
            if name in self.left_out or (contender in ALL and name not in self.only):
                continue
            with self.trying(name):
                contender.install()
            if name not in self.left_out:
                yield contender

    def keep(self, title, name, found, item=""):
        """Keep somebody's figures, by name, in a row each of a table."""
        table = self.samples.setdefault(title, {})
        for figure, value in found.items():
            row = table.setdefault(f"{item} {figure}".strip(), {})
            row.setdefault(name, []).append(value)

    def report(self):
        """Print what was kept, and return it by table, row and column.

        Cells are medians, with the ratio of Frontdesk (or else of the last column) to
        this one in brackets: the median of each round's, not the ratio of medians.
        """
        tables, self.samples = self.samples, {}
        for title, table in tables.items():
            names = list(dict.fromkeys(name for row in table.values() for name in row))
            base = "frontdesk" if "frontdesk" in names else names[-1]
            print(f"\n{title}\n{'':22}" + "".join(f"{name:>19}" for name in names))
            for figure, row in table.items():
                cells = []
                for name in names:
                    values, text = row.get(name, []), ""
                    pairs = zip(row.get(base, []), values, strict=False)
                    ratios = [own / value for own, value in pairs if value]
                    if values:
                        text = f"{statistics.median(values):,.2f}"
                    if ratios and name != base:
                        text += f" ({statistics.median(ratios):.2f})"
                    cells.append(f"{text:>19}")
                print(f"{figure:22}" + "".join(cells), flush=True)
        return tables


# --- side by side ----------------------------------------------------------------


def side_by_side(run, place, contenders, items, start):
    """Load contenders in turn, so that neighbours were measured seconds apart.

    start(contender, number) returns the services of one, to be entered.
    """
    for _, number in product(range(run.rounds), (1, 2)):
        with ExitStack() as stack:
            up = []
            for contender in run.each(contenders):
                with run.trying(contender.name):
                    started = start(contender, number)
                    services = [stack.enter_context(service) for service in started]
                    for service in services:
                        service.wait()
                    check(services[0])
                    for item in contender.asks:
                        load(services, item, 16, 1)  # warm up
                    up.append(services)
            random.shuffle(up)
            for item, many, services in product(items, CONNECTIONS, up):
                contender = services[0].contender
                if item in contender.asks and contender.name not in run.left_out:
                    with run.trying(contender.name):
                        found = load(services, item, many, run.seconds)
                        title = f"{number} {place}, {many} connections"
                        run.keep(title, contender.name, found, item)


def throughput(run):
    """Each kind of work, with 1 and 2 workers, 16 connections and 1."""
    with mailjet(401) as stand_in:  # the outbox rests: its rows are written, not sent

        def start(contender, workers):
            return [serving(contender, workers, stand_in.url)]

        side_by_side(run, "workers", ALL, run.items, start)


def on_postgres(run):
    """Writes with 1 and 2 servers on one Postgres, beside a floor with psycopg."""
    folder = WORK / "postgres"
    folder.mkdir()
    with mailjet(401) as stand_in, running_postgres(folder, fsync="on") as cluster:

        def start(contender, servers):
            one = partial(serving, contender, 1, stand_in.url, cluster.blank_url())
            return [one() for _ in range(servers)]

        items = [item for item in run.items if item in WRITES]
        side_by_side(run, "servers", ON_POSTGRES, items, start)


def outbox(run):
    """What delivering adds to contact posts: with no answer, sending, and paused."""
    for _, mode in product(range(run.rounds), ("unreachable", "sending", "paused")):
        with mailjet(401 if mode == "paused" else 200) as stand_in:
            contender, url = FRONTDESK, stand_in.url
            if mode == "unreachable":
                url = f"http://localhost:{free_port()}/"
            if mode == "sending":  # a delivery's row goes when its mail has gone
                writes = {"contact": ("message", "receipt")}
                contender = FRONTDESK._replace(writes=writes)
            with serving(contender, 1, url) as service:
                service.wait()
                load([service], "contact", 16, 1)
                for number in CONNECTIONS:
                    sent = len(stand_in.mails)
                    found = load([service], "contact", number, run.seconds)
                    found["mails"] = len(stand_in.mails) - sent
                    if mode == "sending" and not found["mails"]:
                        raise Unfit(f"no mail came, see {service.log}")
                    run.keep(f"Contact, {number} connections", mode, found)


# --- one by one ------------------------------------------------------------------

NOT_COUNTED = re.compile(r"/site-packages/pip|/__pycache__/")
PACKAGE = re.compile(
    r"\.dist-info/METADATA$|/node_modules/(@[^/]+/)?[^/]+/package.json$"
)


def size(run):
    """What is installed: packages and megabytes, without pip."""
    for contender in run.each():
        python = contender.folder.glob("lib/python*/site-packages")
        folder = next(python, contender.folder / "node_modules")
        files = [f for f in folder.rglob("*") if f.is_file()]
        files = [f for f in files if not NOT_COUNTED.search(str(f))]
        packages = sum(bool(PACKAGE.search(str(f))) for f in files)
        mb = sum(f.stat().st_size for f in files) / 1e6
        run.keep("Installed", contender.name, {"packages": packages, "MB": mb})


def start(run):
    """From spawn to the first 200, on no database and on an existing one."""
    starts = [(contender.name, contender, "") for contender in run.each((BARE, *ALL))]
    starts.append(("existing", FRONTDESK, str(WORK / "existing.db")))
    title = "Cold start: spawn to first 200 (existing: Frontdesk's database)"
    with mailjet(401) as stand_in:
        for _, start in product(range(3 if run.quick else 10), starts):
            name, contender, database = start
            with serving(contender, 1, stand_in.url, database) as service:
                run.keep(title, name, {"ms": service.wait()})


def memory(run):
    """PSS of all processes: idle, after mails and pages, after many varied requests."""
    total, seconds = (1_000, 1) if run.quick else (200_000, 5)
    with mailjet(200) as stand_in:
        for contender in run.each((BARE, *ALL)):
            with serving(contender, 1, stand_in.url, TRUSTED_HOPS="1") as service:
                service.wait()
                time.sleep(1)
                found, made = {"idle": service.pss_mb()}, 0
                if contender.asks:
                    check(service)
                if contender.ours:  # which sends mails and has pages
                    for path in ("/thanks", "/", "/nothing", "/hits.svg?page=/about"):
                        service.request(path, Accept="text/html")
                    stand_in.wait_for_mails(2)
                time.sleep(1)
                found["after mails, pages"] = service.pss_mb()
                while contender.asks and made < total:
                    answered = load([service], "", 16, seconds, varied(contender))
                    made += int(answered["rps"] * seconds) + 1
                time.sleep(1)
                found |= {"after requests": service.pss_mb(), "requests": made}
            run.keep("PSS with 1 worker, MB", contender.name, found)


NUMBER = "{under 1000000}"
ANYBODY = {
    "X-Forwarded-For": "{client 16000000}",
    "User-Agent": f"Mozilla/5.0 (X11; rv:{NUMBER}.0) Firefox/{NUMBER}.0",
    "Accept-Language": "{words 1}-{under 1000},en;q=0.{under 10}",
    "Referer": "https://site.example/{words 1}/{words 1}" + NUMBER,
}
STRANGER = ANYBODY | {
    "Origin": "https://{words 1}" + NUMBER,
    "Accept": "text/html,*/*;q=0." + NUMBER,
}


def varied(contender):
    """Return requests with all different that a server might keep: some are refused."""
    found = []
    for ask, headers in product(contender.asks.values(), [ANYBODY] * 3 + [STRANGER]):
        text = written_out(*ask, headers)
        text = text.replace("/pages/{mod 30}", "/varied/" + NUMBER)
        found.append(text.replace("svg?", "svg?label={words 1}{under 10000}&"))
    return found


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


def machine():
    """Describe where this ran, and what a sync costs here."""
    with (WORK / "sync").open("wb", buffering=0) as file:

        def write():
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())

        sync_us = statistics.median(timeit.repeat(write, number=1, repeat=200)) * 1e6
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    found = {"cpu": model and model[1], "cores": len(cores), "python": sys.version}
    return found | {"sync_us": sync_us, "load_before": os.getloadavg()[0]}


def main():
    contenders = {contender.name for contender in ALL}
    names = [*SECTIONS, *sorted(contenders), *ASKS]
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
        only=(only & contenders or contenders) | {"frontdesk"},
        items=[item for item in ASKS if item in only] or list(ASKS),
        rounds=chosen.rounds or (1 if chosen.quick else 5),
        seconds=chosen.seconds or (1 if chosen.quick else 4),
        quick=chosen.quick,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers end with us
    WORK.mkdir(parents=True)
    list(run.each())  # installs
    results = {"machine": machine(), "left_out": run.left_out}
    print(json.dumps(results["machine"]))
    for name in [name for name in SECTIONS if name in only] or SECTIONS:
        with run.trying(name):
            SECTIONS[name](run)
        results[name] = run.report()
        chosen.output.write_text(json.dumps(results, indent=1) + "\n")
    if not run.left_out:
        shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
