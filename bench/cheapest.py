"""The cheapest plan: a tenth of a core and 256 MB, as a control group enforces them."""

import json
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
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


class Group:
    """A control group of our own."""

    def __init__(self):
        limits = V2 if (ROOT / "cgroup.controllers").exists() else V1
        self.folders = [ROOT / name / f"bench-{WORK.name}" for name in limits]
        try:
            for folder, files in zip(self.folders, limits.values(), strict=True):
                folder.mkdir()
                for file, value in files.items():
                    (folder / file).write_text(str(value))
        except OSError as error:
            self.close()
            raise Unfit(f"no control group may be made here: {error}") from error

    @property
    def command(self):
        """The beginning of a command that runs in the group."""
        joins = "".join(f"echo $$ > {f}/cgroup.procs && " for f in self.folders)
        return ("sh", "-c", joins + 'exec "$@"', "sh")

    def throttled(self):
        """Return the seconds it had to wait; its periods, and those it waited in."""
        text = (self.folders[0] / "cpu.stat").read_text()
        stat = dict(line.split() for line in text.splitlines())
        waited = float(stat.get("throttled_usec") or int(stat["throttled_time"]) / 1e3)
        return waited / 1e6, int(stat["nr_periods"]), int(stat["nr_throttled"])

    def close(self):
        for folder in self.folders:
            while folder.exists():  # until the system has taken the dead out
                with suppress(OSError):
                    folder.rmdir()
                time.sleep(0.02)


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


def quiet_hour(service, made, seconds):
    """Hit every 100 ms and post every 300 ms, whether or not the last was answered."""
    asked, row, longest, last = {"post": [], "hit": []}, 0, 0, made.throttled()
    hit = "hit" if "hit" in service.contender.asks else "read"
    started = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        for n in range(int(seconds * 10)):
            time.sleep(max(0, started + n / 10 - time.monotonic()))
            asked["hit"].append(pool.submit(ask, service, hit, n))
            if n % 3 == 0:
                asked["post"].append(pool.submit(ask, service, "contact", n + 2))
                # How many periods in a row did it have to wait in?
                now = made.throttled()
                periods, waited = now[1] - last[1], now[2] - last[2]
                row, last = row + waited if 0 < periods <= waited else 0, now
                longest = max(longest, row)
    found = {"longest_throttled_s": longest * PERIOD_US / 1e6}
    for name, futures in asked.items():
        ms = sorted(future.result() for future in futures)
        for q in (50, 95, 99):
            found[f"{name}_p{q}_ms"] = ms[min(len(ms) - 1, len(ms) * q // 100)]
    return found


def one(contender, url, seconds):
    with (
        closing(Group()) as made,
        serving(contender, 1, url, "", made.command) as service,
    ):
        row = {"cold_start_ms": service.wait()}
        row["first_message_ms"] = ask(service, "contact", 1)
        before = made.throttled()[0]
        row |= quiet_hour(service, made, seconds)
        row["throttled_s"] = made.throttled()[0] - before
        row["resident_mb"] = service.pss_mb()
    return row


def cheapest(run):
    """Cold start, first message and a quiet hour in little, under a tenth of a core."""
    Group().close()  # Unfit where none may be made
    seconds, samples = 15 * run.seconds, {}
    with mailjet(200) as stand_in:  # mails are sent meanwhile, as they would be
        for _ in range(run.rounds):
            for contender in run.each():
                with run.trying(contender.name):
                    for name, value in one(contender, stand_in.url, seconds).items():
                        found = samples.setdefault(name, {})
                        found.setdefault(contender.name, []).append(value)
    table = {
        name: {who: statistics.median(values) for who, values in found.items()}
        for name, found in samples.items()
    }
    title = f"0.1 core, 256 MB, {seconds:.0f} s: a post each 300 ms, a hit each 100 ms"
    run.show("cheapest", title, table)
