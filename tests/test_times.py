"""The owner's calendar: days of 23 to 25 hours, and days that never were."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontdesk.tables import DAY, day_before, day_of
from frontdesk.times import Calendar
from tests.support.desk import Clock, Desk


def at(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


@pytest.mark.parametrize(
    ("zone", "day", "began", "hours"),
    [
        ("UTC", "2026-11-24", "2026-11-24T00:00Z", 24),
        ("Asia/Kathmandu", "2026-11-24", "2026-11-23T18:15Z", 24),
        ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00Z", 23),
        ("Europe/Berlin", "2026-10-25", "2026-10-24T22:00Z", 25),
        ("America/New_York", "2026-11-01", "2026-11-01T04:00Z", 25),
        ("Australia/Lord_Howe", "2026-10-04", "2026-10-03T13:30Z", 23.5),
        ("America/Havana", "2026-11-01", "2026-11-01T04:00Z", 25),  # 0:00 came twice
        ("Africa/Cairo", "2024-10-31", "2024-10-30T21:00Z", 25),  # 23:00 came twice
        ("Asia/Beirut", "2024-03-31", "2024-03-30T22:00Z", 23),  # without 0:00
        ("Pacific/Apia", "2011-12-29", "2011-12-29T10:00Z", 24),
        ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00Z", 24),  # after the 29th
    ],
)
def test_a_day_is_as_long_as_the_zone_makes_it(
    zone: str, day: str, began: str, hours: float
) -> None:
    calendar, start = Calendar(zone), at(began)
    end = start + hours * 3600
    assert calendar.midnight(day) == start
    for moment in (start, start + 1, (start + end) / 2, end - 1):
        assert calendar.day_of(moment) == day
        assert Calendar(zone).day_of(moment) == day  # whatever was asked before
    assert calendar.day_of(start - 1) < day < calendar.day_of(end)


@given(
    st.sampled_from(sorted(available_timezones())),
    st.integers(at("1990-01-01T00:00Z"), at("2037-01-01T00:00Z")),
    st.integers(0, 2 * 86400),
)
def test_days_never_go_back(zone: str, now: int, seconds: int) -> None:
    try:
        calendar = Calendar(zone)
    except ValueError:  # a name of the system's that is no zone
        return
    day, later = calendar.day_of(now), calendar.day_of(now + seconds)
    assert day <= later
    assert calendar.midnight(day) <= now
    assert calendar.day_of(calendar.midnight(day)) == day
    assert abs(calendar.local(now) - datetime.fromisoformat(f"{day}T12:00Z")) < (
        timedelta(days=2)
    )


def test_weeks_begin_on_monday_and_months_on_the_first() -> None:
    calendar = Calendar("America/New_York")
    for moment, monday in (
        ("2026-11-23T04:59Z", "2026-11-16"),
        ("2026-11-23T05:00Z", "2026-11-23"),
        ("2026-11-30T04:59Z", "2026-11-23"),
        ("2027-01-01T12:00Z", "2026-12-28"),
    ):
        assert calendar.week_of(at(moment)) == monday
    assert calendar.month_of(at("2026-12-01T04:59Z")) == "2026-11-01"
    assert calendar.month_of(at("2026-12-01T05:00Z")) == "2026-12-01"


def test_a_time_is_shown_as_the_zones_clocks_do() -> None:
    shown = Calendar("Asia/Tokyo").local(at("2026-11-24T15:30Z"))
    assert shown.isoformat() == "2026-11-25T00:30:00+09:00"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Tokyo"])
def test_what_is_counted_by_the_day_is_by_the_owners(
    make_desk: Callable[..., Desk], clock: Clock, zone: str
) -> None:
    desk = make_desk(time_zone=zone, confirm_mails_per_day=1)
    for name in ("ada", "ben"):
        desk.post("/newsletter", {"email": f"{name}@gmail.com"})
    midnight = desk.settings.calendar.midnight(day_of(clock() + DAY))
    clock.now = midnight - 1
    assert len(desk.drain()) == 1
    clock.now = midnight
    assert len(desk.drain()) == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_yesterday_is_the_day_before_midnight(make_desk: Callable[..., Desk]) -> None:
    make_desk(time_zone="Europe/Berlin")
    # 24 hours before half past midnight is Saturday: Sunday had 23.
    assert day_before(at("2026-03-29T22:30Z")) == "2026-03-29"
    assert day_before(at("2026-10-25T22:30Z")) == "2026-10-24"
    assert day_before(at("2026-10-25T23:30Z")) == "2026-10-25"


@pytest.mark.parametrize(
    "zone", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "\0", "CEST"]
)
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Calendar(zone)
