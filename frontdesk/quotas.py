"""How many confirmation mails may go out, and when those that are too many do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

from frontdesk.database import current, execute
from frontdesk.tables import UNLIMITED, Tally, day_of

MOST_DAYS = 30  # that a mail waits; by then who has not confirmed is forgotten


def spend_mail(
    client: str, now: float, mails_per_day: int, wanted: bool = True
) -> float | None:
    """Spend one confirmation mail of the first day that has room; return when it is.

    One network gets a tenth of a day's mails at most: a flood must not take
    everybody's. What is over is mailed the next day. None: so many wait already that
    there is no room for a month.

    A sign-up that is to get no mail (wanted=False) does the same work: which days are
    full is asked in one statement, since trying each of them took time that told.
    """
    total, network = _tallies("confirmation mails", client)
    ceilings = {network: max(1, mails_per_day // 10), total: mails_per_day}
    today = day_of(now)
    full = _full_days(ceilings, today)
    for later in range(MOST_DAYS if wanted and mails_per_day else 0):
        day = (date.fromisoformat(today) + timedelta(later)).isoformat()
        if day not in full and Tally.spend_all(ceilings, day):
            return max(now, current().calendar.midnight(day))
    names = _tallies("sign-ups without a mail", client)
    Tally.spend_all(dict.fromkeys(names, UNLIMITED), today)
    return None


def _full_days(ceilings: Mapping[str, int], today: str) -> set[str]:
    """Return the days from today on that have no room under one of the ceilings."""
    each = " OR ".join(["(name = ? AND period >= ? AND n >= ?)"] * len(ceilings))
    params = [part for name, most in ceilings.items() for part in (name, today, most)]
    rows = execute(f"SELECT period FROM tally WHERE {each}", *params)  # noqa: S608
    return {row[0] for row in rows.fetchall()}


def _tallies(what: str, client: str) -> tuple[str, str]:
    """Return what a sign-up counts towards: all, and its network's."""
    return what, f"{what} {client}"
