"""Days, weeks and months as the owner's time zone has them; and deadlines."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, tzinfo


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo  # 2 ms, for who does not live by UTC

    return ZoneInfo(name)


class Calendar:
    """The calendar of a time zone.

    Times are seconds since the epoch; days are ISO dates of the zone. A day lasts from
    the first midnight of its date to that of the next: 23 to 25 hours where the clocks
    change.
    """

    def __init__(self, zone: str = "UTC") -> None:
        """Raise ValueError for what is no IANA name such as Europe/Berlin."""
        try:
            # UTC is known without a database of time zones.
            self.zone: tzinfo = UTC if zone == "UTC" else _zone(zone)
        except (LookupError, OSError, ValueError) as error:
            message = "must be the IANA name of a time zone such as Europe/Berlin"
            raise ValueError(message) from error
        self._today = (0.0, 0.0, "")  # the day last asked for: most ask for the same

    def local(self, moment: float) -> datetime:
        """Return a time as the zone's clocks show it."""
        return datetime.fromtimestamp(moment, self.zone)

    def day_of(self, now: float) -> str:
        """Return the date of a time."""
        began, ends, day = self._today
        if not began <= now < ends:
            today = self.local(now).date()
            if now >= self.midnight(today + timedelta(1)):
                # Clocks that were set back over midnight: that day has begun.
                today += timedelta(1)
            day = today.isoformat()
            tomorrow = self.midnight(today + timedelta(1))
            self._today = self.midnight(today), tomorrow, day
        return day

    def midnight(self, day: date | str) -> float:
        """Return when a day begins; where clocks skip midnight, when they do."""
        day = date.fromisoformat(day) if isinstance(day, str) else day
        start = datetime(day.year, day.month, day.day, tzinfo=self.zone)
        return start.timestamp()

    def week_of(self, now: float) -> str:
        """Return the Monday of a time's week."""
        today = date.fromisoformat(self.day_of(now))
        return (today - timedelta(today.weekday())).isoformat()

    def month_of(self, now: float) -> str:
        """Return the first day of a time's month."""
        return self.day_of(now)[:8] + "01"


class Deadline(threading.local):
    """How long the calling thread may still wait for somebody else."""

    until: float | None = None  # of time.monotonic(); None: no matter

    def left(self, most: float = math.inf) -> float:
        """Return the seconds left, at most so many where no deadline was set."""
        if self.until is None:
            return most
        return max(0.0, self.until - time.monotonic())

    def set(self, seconds: float | None) -> None:
        """Set the deadline; None: there is none."""
        self.until = None if seconds is None else time.monotonic() + seconds

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Set a deadline for what is done meanwhile."""
        before = self.until
        self.set(seconds)
        try:
            yield
        finally:
            self.until = before
