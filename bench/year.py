"""A year of a busy small site: how large the database grows. Run from the top folder.

100 messages and 3 sign-ups a day, 5,000 hits a day on 50 pages, through the models'
own verbs. Each day is one transaction here, so that it takes minutes and not hours.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import models
from frontdesk.spam import fingerprint
from models import DAY, Delivery, Hit, Message, Page, Subscriber, Visitor

DAYS, PAGES, VISITORS = 365, 50, 1500
START = 1_800_000_000 - 1_800_000_000 % DAY
TEXT = "hello we saw your work and would like to ask whether next month is free"
WORDS = TEXT.split()


def message(rng: random.Random, now: float) -> None:
    text = " ".join(rng.choices(WORDS, k=rng.randint(20, 200)))
    sender = f"visitor{rng.randrange(10**6)}"
    Message.receive(
        {
            "name": sender.title(),
            "email": f"{sender}@example.com",
            "subject": " ".join(rng.choices(WORDS, k=5)),
            "message": text,
            "fields": {"company": "Example Ltd", "phone": "+49 30 1234567"},
            "page": "https://www.example.com/contact/",
            "client": "203.0.113.0",
            "echo": fingerprint(text)[:8],
        },
        lambda echoes: models.Judgement(),
        keys={models.keyed_hash("body", text, sender, repr(now)): 600},
        now=now,
    )


def sign_up(rng: random.Random, now: float) -> None:
    email = f"reader{rng.randrange(10**9)}@example.com"
    page = "https://www.example.com/"
    known = {"page": page, "client": "203.0.113.0", "now": now}
    Subscriber.ask(email, "", mails_per_day=100, **known)
    row = Subscriber.get(Subscriber.email == email)
    if rng.random() < 0.8:
        Subscriber.confirm(row.id, row.cycle, now, False)


def hit(rng: random.Random, now: float) -> None:
    page = Page.admit(f"/articles/{rng.randrange(PAGES)}", lambda: True, 10_000)
    visitor = f"198.51.{rng.randrange(VISITORS)}"
    Hit.count(page, Visitor.key(page, visitor, "a browser", now), now)


A_DAY = ((message, 100), (sign_up, 3), (hit, 5000))


def deliver(now: float) -> None:
    while (delivery := Delivery.claim(now, 120)) is not None:
        delivery.done(now)


def main() -> None:
    rng = random.Random(1)  # the same year each time
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frontdesk.db"
        models.migrate(f"sqlite:///{path}", path)
        models.open_database(f"sqlite:///{path}", path, 1)
        started, busiest = time.monotonic(), 0
        for day in range(DAYS):
            now = float(START + day * DAY)
            with models.database.atomic():
                for work, times in A_DAY:
                    for n in range(times):
                        work(rng, now + n * DAY / times)
                deliver(now + DAY - 1)
            models.clean_up(now + DAY, 0)
            busiest = max(busiest, Path(f"{path}-wal").stat().st_size)
            if day % 73 == 72:
                print(f"day {day + 1}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
        for table in ("message", "subscriber", "hit", "visitor", "receipt", "delivery"):
            rows = models.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            print(f"{rows:>9,} {table}")
        with models.backup() as copy:
            print(f"backup {copy.stat().st_size / 1e6:.1f} MB", end=", ")
        print(f"WAL at most {busiest / 1e6:.1f} MB", end=", ")
        print(f"simulated in {time.monotonic() - started:.0f} s")
        models.close_database()


if __name__ == "__main__":
    main()
