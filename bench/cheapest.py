"""The cheapest plan: a tenth of a core and 256 MB, as a control group enforces them."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from service import WORK, Contender, Service, Unfit, mailjet, serving

if TYPE_CHECKING:
    from run import Run

PERIOD_US, QUOTA_US, BYTES = 100_000, 10_000, 256 * 2**20
ROOT = Path("/sys/fs/cgroup")
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Firefox/128.0"}
# What to write into a group's files, by the version of control groups.
V1 = {
    "cpu": {"cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": QUOTA_US},
    "memory": {"memory.limit_in_bytes": BYTES},
}
V2 = {"cpu.max": f"{QUOTA_US} {PERIOD_US}", "memory.max": BYTES, "memory.swap.max": 0}


class Group:
    """A control group of our own, within the one that we run in."""

    def __init__(self, name: str) -> None:
        self.folders: list[Path] = []
        self.v2 = (ROOT / "cgroup.controllers").exists()
        own = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= {c: path.strip("/") for c in controllers.split(",")}
        try:
            if self.v2:
                self._make(ROOT / own.get("", ""), ROOT, name, V2)
            else:
                for controller, files in V1.items():
                    root = ROOT / controller
                    self._make(root / own.get(controller, ""), root, name, files)
        except OSError as error:
            self.close()
            raise Unfit(f"no control group may be made here: {error}") from error

    def _make(self, here: Path, root: Path, name: str, files: dict) -> None:
        """Make a group below ours, or the nearest parent below which it has limits."""
        while True:
            folder = here / name
            if here.is_dir():
                folder.mkdir()
                if all((folder / f).exists() for f in files if "swap" not in f):
                    break
                folder.rmdir()
            if here == root:
                raise OSError(f"{root} hands out no {' or '.join(files)}")
            here = here.parent
        self.folders.append(folder)
        for file, value in files.items():
            if (folder / file).exists():
                (folder / file).write_text(str(value))

    @property
    def command(self) -> tuple[str, ...]:
        """The beginning of a command that runs in the group."""
        joins = "".join(f"echo $$ > {f}/cgroup.procs && " for f in self.folders)
        return ("sh", "-c", joins + 'exec "$@"', "sh")

    def throttled(self) -> tuple[float, int, int]:
        """Return the seconds it had to wait; its periods, and those it waited in."""
        text = (self.folders[0] / "cpu.stat").read_text()
        stat = dict(line.split() for line in text.splitlines())
        waited = float(stat.get("throttled_usec") or int(stat["throttled_time"]) / 1e3)
        return waited / 1e6, int(stat["nr_periods"]), int(stat["nr_throttled"])

    def close(self) -> None:
        for folder in self.folders:
            for _ in range(100):  # until the system has taken the dead out
                with suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.02)


def _contact(service: Service, n: int) -> float:
    """Post the n-th message; return the milliseconds."""
    words = f"bread river window lantern {n} garden {n * 7919 % 1000} paper".split()
    text = " ".join(words[(i * (n + 3)) % len(words)] for i in range(30))
    form = {"email": f"ada.{n}@example.com", "message": f"Hello, {text}."}
    return _timed(service, "POST", service.contender.items["contact"], form, n)


def _hit(service: Service, n: int) -> float:
    item = service.contender.items.get("hit") or service.contender.items["read"]
    form = {"page": f"/pages/{n % 20}"} if item == "hit" else ["/pages/1"]
    return _timed(service, "POST", item, form, n)


PATHS = {"contact": "/contact", "hit": "/hits", "isso-count": "/count"}


def _timed(service: Service, method: str, item: str, form: object, n: int) -> float:
    path = PATHS.get(item, f"/new?uri=/pages/{n % 20}")
    if item == "isso-post":
        form = {"title": "A page", "author": "Ada", "text": form["message"]}
    started = time.perf_counter()
    status, _, body = service.request(method, path, form, **BROWSER)
    if status not in (200, 201):
        raise Unfit(f"{path} answers {status} {body[:200]!r}")
    return (time.perf_counter() - started) * 1e3


def _quiet_hour(service: Service, made: Group, seconds: float) -> dict[str, float]:
    """Hit every 100 ms and post every 300 ms, whether or not the last was answered."""
    posts, hits, row, longest, last = [], [], 0, 0, made.throttled()
    started = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        for n in range(int(seconds * 10)):
            time.sleep(max(0, started + n / 10 - time.monotonic()))
            hits.append(pool.submit(_hit, service, n))
            if n % 3 == 0:
                posts.append(pool.submit(_contact, service, n + 2))
                # How many periods in a row did it have to wait in?
                now = made.throttled()
                periods, waited = now[1] - last[1], now[2] - last[2]
                row, last = row + waited if 0 < periods <= waited else 0, now
                longest = max(longest, row)
    found = {"longest_throttled_s": longest * PERIOD_US / 1e6}
    for name, futures in (("post", posts), ("hit", hits)):
        ms = sorted(f.result() for f in futures)
        for q in (50, 95, 99):
            found[f"{name}_p{q}_ms"] = ms[min(len(ms) - 1, len(ms) * q // 100)]
    return found


def _one(contender: Contender, url: str, seconds: float) -> dict[str, float]:
    with ExitStack() as stack:
        made = stack.enter_context(closing(Group(f"bench-{WORK.name}")))
        started = serving(contender, 1, url, before=made.command)
        service = stack.enter_context(started)
        row = {"cold_start_ms": service.wait() * 1e3}
        row["first_message_ms"] = _contact(service, 1)
        before = made.throttled()[0]
        row |= _quiet_hour(service, made, seconds)
        row["throttled_s"] = made.throttled()[0] - before
        row["resident_mb"] = service.pss_mb()
    return row


def cheapest(run: Run) -> None:
    """Cold start, first message and a quiet hour in little, under a tenth of a core."""
    Group(f"bench-{WORK.name}").close()  # Unfit where none may be made
    seconds = 15 * run.seconds
    samples: dict[str, list[dict[str, float]]] = {}
    with mailjet(200) as url:  # mails are sent meanwhile, as they would be
        for _ in range(run.rounds):
            for contender in list(run.contenders):
                try:
                    found = _one(contender, url, seconds)
                except (Unfit, OSError) as reason:
                    run.skip(contender.name, reason)
                    continue
                samples.setdefault(contender.name, []).append(found)
    run.results["cheapest"] = table = {
        name: {k: statistics.median(f[k] for f in found) for k in found[0]}
        for name, found in samples.items()
    }
    print(
        f"\n0.1 core, 256 MB, {seconds:.0f} s of a post each 300 ms, a hit each 100 ms"
    )
    print(" " * 20 + "".join(f"{name:>15}" for name in table))
    for key in next(iter(table.values()), {}):
        print(f"{key:20}" + "".join(f"{row[key]:15.1f}" for row in table.values()))
