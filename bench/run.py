"""Frontdesk beside the floor and its peers, in one run. See README.md.

python -m bench.run [--quick] [--only NAMES] [--rounds N] [--seconds N]
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
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
    Unfit,
    cores,
    load,
    mailjet,
    postgres,
    serving,
    written_out,
)
from tests.support.ports import free_port

CONNECTIONS = (16, 1)


@dataclass
class Run:
    """The choices of this run, and what it has found."""

    only: list
    items: list
    rounds: int
    seconds: float
    quick: bool
    results: dict = field(default_factory=dict)
    samples: dict = field(default_factory=dict)
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

    def show(self, section, title, rows):
        """Print a table: rows by name, of columns by name."""
        self.results.setdefault(section, {})[title] = rows
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        print(f"\n{title}\n{'':20}" + "".join(f"{name:>15}" for name in columns))
        for name, row in rows.items():
            cells = [row.get(column, "") for column in columns]
            cells = [c if isinstance(c, str) else f"{c:,.2f}" for c in cells]
            print(f"{name:20}" + "".join(f"{c:>15}" for c in cells), flush=True)

    def keep(self, place, item, name, found):
        of_item = self.samples.setdefault(place, {}).setdefault(item, {})
        of_item.setdefault(name, []).append(found)

    def compare(self, section, base, keys=("rps", "p99_us")):
        """Print base's own figures of what was kept, and its ratio to each other's.

        It is the median of each round's ratio, not the ratio of medians.
        """
        samples, self.samples = self.samples, {}
        for place, items in samples.items():
            names = list(
                dict.fromkeys(name for found in items.values() for name in found)
            )
            first, table = base if base in names else names[0], {}
            for item, found in items.items():
                kept = self.results.setdefault(f"{section}, medians", {})
                kept[f"{place}, {item}"] = {n: medians(f) for n, f in found.items()}
                if own := found.pop(first, None):
                    others = {n: ratios(own, each, keys) for n, each in found.items()}
                    table[item] = medians(own) | others
            what = f"{place}: {first}, and its ratio to each ({', '.join(keys)})"
            self.show(section, what, table)


def medians(found):
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def ratios(own, others, keys):
    pairs = [(a, b) for a, b in zip(own, others, strict=False) if all(map(b.get, keys))]
    each = [statistics.median(a[k] / b[k] for a, b in pairs) for k in keys if pairs]
    return " ".join(f"{ratio:.2f}" for ratio in each)


# --- side by side ----------------------------------------------------------------


def side_by_side(run, section, place, contenders, items, start):
    """Load contenders in turn, so that neighbours were measured seconds apart.

    start(contender, number) returns the services of one, to be entered.
    """
    for number, workers in product(range(run.rounds), (1, 2)):
        with ExitStack() as stack:
            up = []
            for contender in run.each(contenders):
                services = [stack.enter_context(s) for s in start(contender, workers)]
                with run.trying(contender.name):
                    for service in services:
                        service.wait()
                    check(services[0])
                    for item in contender.asks:
                        load(services, item, 16, min(1, run.seconds))  # warm up
                    up.append(services)
            middle = number % len(up) if up else 0
            up = up[middle:] + up[:middle]
            for item, many, services in product(items, CONNECTIONS, up):
                contender = services[0].contender
                if item in contender.asks and contender.name not in run.left_out:
                    with run.trying(contender.name):
                        found = load(services, item, many, run.seconds)
                        where = f"{workers} {place}, {many} connections"
                        run.keep(where, item, contender.name, found)
    run.compare(section, "frontdesk")


def throughput(run):
    """Each kind of work, with 1 and 2 workers, 16 connections and 1."""
    with mailjet(401) as stand_in:  # the outbox rests: its rows are written, not sent
        side_by_side(
            *(run, "throughput", "workers", ALL, run.items),
            lambda contender, workers: [serving(contender, workers, stand_in.url)],
        )


def on_postgres(run):
    """Writes with 1 and 2 servers on one Postgres, beside a floor with psycopg."""
    items = [i for i in run.items if i in ("contact", "signup", "hit")]
    with mailjet(401) as stand_in, postgres() as cluster:

        def start(contender, servers):
            one = partial(serving, contender, 1, stand_in.url, cluster.blank_url())
            return [one() for _ in range(servers)]

        side_by_side(run, "postgres", "servers", ON_POSTGRES, items, start)


def outbox(run):
    """What delivering adds to contact posts: paused, sending, and with no answer."""
    sending = replace(FRONTDESK, writes={"contact": ("message", "receipt")})
    for _, mode in product(range(run.rounds), ("paused", "sending", "unreachable")):
        with mailjet(401 if mode == "paused" else 200) as stand_in:
            contender = sending if mode == "sending" else FRONTDESK
            nobody = f"http://localhost:{free_port()}/"
            given = nobody if mode == "unreachable" else stand_in.url
            with serving(contender, 1, given) as service:
                service.wait()
                load([service], "contact", 16, 1)
                for number in CONNECTIONS:
                    sent = len(stand_in.mails)
                    found = load([service], "contact", number, run.seconds)
                    found["mails"] = len(stand_in.mails) - sent
                    if mode == "sending" and not found["mails"]:
                        raise Unfit(f"no mail came, see {service.log}")
                    run.keep(f"{number} connections", "contact", mode, found)
    run.compare("outbox", "paused")


# --- one by one ------------------------------------------------------------------


def size(run):
    """What is installed: packages and megabytes, without pip."""
    table = {}
    for contender in run.each():
        site = next(contender.folder.glob("lib/python*/site-packages"), None)
        if site:
            parts = [p for p in site.iterdir() if not p.name.startswith("pip")]
            count = sum(p.suffix == ".dist-info" for p in parts)
        else:
            parts = [contender.folder / "node_modules"]
            found = [parts[0].glob(f"{p}/package.json") for p in ("[!.@]*", "@*/*")]
            count = sum(len(list(f)) for f in found)
        files = [f for p in parts for f in (p.rglob("*") if p.is_dir() else [p])]
        files = [f for f in files if f.is_file() and "__pycache__" not in f.parts]
        mb = sum(f.stat().st_size for f in files) / 1e6
        table[contender.name] = {"packages": count, "MB": mb}
    run.show("size", "Installed", table)


def start(run):
    """From spawn to the first 200, on an existing database and on none."""
    samples = {}
    old = str(WORK / "existing.db")
    with mailjet(401) as stand_in:
        url = stand_in.url
        for _ in range(3 if run.quick else 10):
            for contender in run.each((BARE, *ALL)):
                with serving(contender, 1, url) as service:
                    samples.setdefault(contender.name, []).append(service.wait())
                if contender.ours:
                    with serving(contender, 1, url, old) as service:
                        samples.setdefault("existing", []).append(service.wait())
    ms = {name: statistics.median(found) for name, found in samples.items()}
    table = {n: {"ms": v, "to bare Falcon": v / ms[BARE.name]} for n, v in ms.items()}
    run.show("start", "Cold start: spawn to first 200 (existing: frontdesk's)", table)


def memory(run):
    """PSS of all processes: idle, after mails and pages, after many varied requests."""
    table, bare = {}, 0
    total, seconds = (1_000, 1) if run.quick else (200_000, 5)
    with mailjet(200) as stand_in:
        for contender in run.each((BARE, *ALL)):
            with serving(contender, 1, stand_in.url, TRUSTED_HOPS="1") as service:
                service.wait()
                time.sleep(1)
                idle = used = loaded = service.pss_mb()
                bare, made = bare or idle, 0
                if contender.ours:
                    used = mails_and_pages(service, stand_in)
                while contender.asks and made < total:
                    found = load([service], "", 16, seconds, varied(contender))
                    made += int(found["rps"] * seconds) + 1
                if made:
                    time.sleep(1)
                    loaded = service.pss_mb()
            row = {"idle": idle, "to bare Falcon": idle / bare, "mails, pages": used}
            row |= {"to bare": used / bare, "requests": made, "after them": loaded}
            table[contender.name] = row | {"growth": loaded / used}
    run.show("memory", "PSS with 1 worker, MB", table)


def varied(contender):
    """Return requests with all different that a server might keep: some are refused."""
    number, found = "{under 1000000}", []
    for ask, alike in product(contender.asks.values(), (True, True, True, False)):
        headers = {
            "X-Forwarded-For": "{client 16000000}",
            "User-Agent": f"Mozilla/5.0 (X11; rv:{number}.0) Firefox/{number}.0",
            "Accept-Language": "{words 1}-{under 1000},en;q=0.{under 10}",
            "Referer": "https://site.example/{words 1}/{words 1}" + number,
        }
        if not alike:
            headers["Origin"] = "https://{words 1}" + number
            headers["Accept"] = "text/html,*/*;q=0." + number
        text = written_out(*ask, headers).replace(
            "/pages/{mod 30}", "/varied/" + number
        )
        found.append(text.replace("svg?", "svg?label={words 1}{under 10000}&"))
    return found


def mails_and_pages(service, stand_in):
    """Let Frontdesk send mails and show pages; return what it takes then."""
    service.request(
        "/contact", {"email": "a@example.com", "message": "Hello from here"}
    )
    service.request("/newsletter", {"email": "a@example.com"})
    service.request("/hits", {"page": "/about"})
    for path in ("/thanks", "/", "/nothing", "/hits.svg?page=/about&count=false"):
        service.request(path, Accept="text/html")
    stand_in.wait_for_mails(2)
    time.sleep(0.5)
    return service.pss_mb()


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
NEED_FRONTDESK = ("growth", "year", "outbox")

# --- the whole -------------------------------------------------------------------


def machine():
    """Describe where this ran, and what a sync costs here."""
    taken = []
    with (WORK / "sync").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - started) * 1e6)
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    found = {"cpu": model and model[1], "cores": len(cores), "python": sys.version}
    load_before = os.getloadavg()[0]
    return found | {"sync_us": statistics.median(taken), "load_before": load_before}


def main():
    contenders = [contender.name for contender in ALL]
    names = [*SECTIONS, *contenders, *ASKS]
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
        only=[name for name in contenders if name in only] or contenders,
        items=[item for item in ASKS if item in only] or list(ASKS),
        rounds=chosen.rounds or (1 if chosen.quick else 5),
        seconds=chosen.seconds or (1 if chosen.quick else 4),
        quick=chosen.quick,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers end with us
    WORK.mkdir(parents=True)
    list(run.each())  # installs
    run.results["machine"] = machine()
    print(json.dumps(run.results["machine"]))
    for name in [name for name in SECTIONS if name in only] or SECTIONS:
        run.samples = {}
        with run.trying(name):
            if name in NEED_FRONTDESK and FRONTDESK not in run.each():
                raise Unfit("Frontdesk does not take part")
            SECTIONS[name](run)
        run.results["left_out"] = run.left_out
        chosen.output.write_text(json.dumps(run.results, indent=1) + "\n")
    if not run.left_out:
        shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
