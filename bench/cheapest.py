"""The cheapest plan: a tenth of a core and 256 MB, as a control group enforces them."""

import json
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.service import WORK, Unfit, mailjet, serving

PERIOD_US, QUOTA_US, BYTES = 100_000, 10_000, 256 * 2**20
ROOT = Path("/sys/fs/cgroup")
# What to write into a group's files: of version 1 by controller, of version 2.
V1 = {
    "cpu": {"cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": QUOTA_US},
    "memory": {"memory.limit_in_bytes": BYTES},
}
V2 = {"": {"cpu.max": f"{QUOTA_US} {PERIOD_US}", "memory.max": BYTES}}


@contextmanager
def group():
    """Make a control group of our own; yield its folders."""
    limits = V2 if (ROOT / "cgroup.controllers").exists() else V1
    folders = {ROOT / name / f"bench-{WORK.name}": limits[name] for name in limits}
    try:
        for folder, files in folders.items():
            folder.mkdir()
            for file, value in files.items():
                (folder / file).write_text(str(value))
        yield list(folders)
    finally:
        for folder in folders:
            while folder.exists():  # until the system has taken the dead out
                with suppress(OSError):
                    folder.rmdir()
                time.sleep(0.02)


def throttled(folder):
    """Return the seconds it had to wait; its periods, and those it waited in."""
    text = (folder / "cpu.stat").read_text()
    stat = dict(line.split() for line in text.splitlines())
    waited = float(stat.get("throttled_usec") or int(stat["throttled_time"]) / 1e3)
    return waited / 1e6, int(stat["nr_periods"]), int(stat["nr_throttled"])


def ask(service, item, n):
    """Make the n-th request of a kind; return the milliseconds."""
    words = f"bread river window lantern {n} garden {n * 7919 % 1000} paper".split()
    text = " ".join(words[(i * (n + 3)) % len(words)] for i in range(30))
    said = {"n": n, "nonce": "a", "mod": n % 20, "words": text}
    asked = json.dumps(service.contender.asks[item])
    asked = re.sub(r"{(\w+)[^}\"]*}", lambda found: str(said[found[1]]), asked)
    path, form = json.loads(asked)
    started = time.perf_counter()
    status, _, body = service.request(path, form)
    if status not in (200, 201):
        raise Unfit(f"{path} answers {status} {body[:200]!r}")
    return (time.perf_counter() - started) * 1e3


def quiet_hour(service, folder, seconds):
    """Hit every 100 ms and post every 300 ms, whether or not the last was answered."""
    asked, row, longest, last = {"post": [], "hit": []}, 0, 0, throttled(folder)
    hit = "hit" if "hit" in service.contender.asks else "read"
    first, started = last, time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        for n in range(int(seconds * 10)):
            time.sleep(max(0, started + n / 10 - time.monotonic()))
            asked["hit"].append(pool.submit(ask, service, hit, n))
            if n % 3 == 0:
                asked["post"].append(pool.submit(ask, service, "contact", n + 2))
                # How many periods in a row did it have to wait in?
                now = throttled(folder)
                periods, waited = now[1] - last[1], now[2] - last[2]
                row, last = row + waited if 0 < periods <= waited else 0, now
                longest = max(longest, row)
    found = {"longest_throttled_s": longest * PERIOD_US / 1e6}
    for name, futures in asked.items():
        cuts = statistics.quantiles((future.result() for future in futures), n=100)
        found |= {f"{name}_p{q}_ms": cuts[q - 1] for q in (50, 95, 99)}
    return found | {"throttled_s": throttled(folder)[0] - first[0]}


def cheapest(run):
    """Cold start, first message and a quiet hour in little, under a tenth of a core."""
    with group():  # or none may be made here
        pass
    seconds = 15 * run.seconds
    title = f"0.1 core, 256 MB, {seconds:.0f} s: a post each 300 ms, a hit each 100 ms"
    with mailjet(200) as stand_in:  # mails are sent meanwhile, as they would be
        for _ in range(run.rounds):
            for contender in run.each():
                with run.trying(contender.name), group() as folders:
                    joins = [f"echo $$ > {folder}/cgroup.procs" for folder in folders]
                    join = ("sh", "-c", " && ".join([*joins, 'exec "$@"']), "sh")
                    with serving(contender, 1, stand_in.url, "", join) as service:
                        found = {"cold_start_ms": service.wait()}
                        found["first_message_ms"] = ask(service, "contact", 1)
                        found |= quiet_hour(service, folders[0], seconds)
                        found["resident_mb"] = service.pss_mb()
                    run.keep(title, contender.name, found)
