"""How many confirmation mails may go out, and when those that are too many do."""

from __future__ import annotations

from frontdesk.mailboxes import is_large
from frontdesk.tables import DAY, UNLIMITED, Tally, day_of, keyed_hash, midnight

MOST_DAYS = 30  # that a mail waits; by then who has not confirmed is forgotten


def spend_mail(email: str, client: str, now: float, mails_per_day: int) -> float | None:
    """Spend one confirmation mail of the first day that has room; return when it is.

    One network, and one domain that is no large provider's, gets a tenth of a day's
    mails at most: a flood must not take everybody's. What is over is mailed the next
    day. None: so many wait already that there is no room for a month.
    """
    total, *shared = _tallies("confirmation mails", email, client)
    share = max(1, mails_per_day // 10)
    ceilings = {**dict.fromkeys(shared, share), total: mails_per_day}
    for later in range(0, MOST_DAYS * DAY, DAY):
        if Tally.spend_all(ceilings, day_of(now + later)):
            return max(now, midnight(now + later))
    return None


def count_unmailed(email: str, client: str, now: float) -> None:
    """Do the same work for a sign-up that gets no mail: time must not tell."""
    names = _tallies("sign-ups without a mail", email, client)
    Tally.spend_all(dict.fromkeys(names, UNLIMITED), day_of(now))


def _tallies(what: str, email: str, client: str) -> list[str]:
    """Return what a sign-up counts towards: all, its network's, a small domain's."""
    names = [what, f"{what} {client}"]
    if not is_large(email):
        domain = keyed_hash("domain", email.rpartition("@")[2])[:12]
        names.append(f"{what} {domain}")
    return names
