"""Billing periods: calendar months in the time zone of a price book, and whether a meter's windows can serve that zone.

Pure. Belongs here: months, their bounds, when they close. Must not know: usage, prices, clocks.

A window is counted in UTC and is the smallest thing that can be moved from one month to another. Where a month begins inside a window
(1h windows in Asia/Kolkata: +05:30) the month cannot be told from the counters, so the zone is refused for that meter.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_OF_THIS_MACHINE = ("localtime", "posixrules")  # files beside those of IANA: another zone on another machine
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_YEAR, LAST_YEAR = 1970, 9000  # of months; the first one of some zones is December 1969 in others
YEARS_AHEAD = 20  # how far into the future a zone's rules are checked


class Period(NamedTuple):
    label: str  # "2026-01"
    start_s: int  # seconds since 1970 UTC, inclusive
    end_s: int  # exclusive

    @property
    def first_day(self) -> date:
        year, month = parse_label(self.label)
        return date(year, month, 1)

    def begins_and_ends_with(self, window_s: int) -> bool:
        """Whether each of those windows lies in it whole, or not at all."""
        return self.start_s % window_s == self.end_s % window_s == 0


def zone_named(name: str) -> ZoneInfo:
    """Raises ValueError with what is allowed."""
    try:
        if name in _OF_THIS_MACHINE:
            raise ValueError
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone; allowed: an IANA name, as in UTC, Europe/Berlin or America/New_York") from None


def parse_label(label: str) -> tuple[int, int]:
    """ "2026-01" -> (2026, 1). Raises ValueError with what is allowed."""
    year, dash, month = label.partition("-")
    good = dash and len(year) == 4 and len(month) == 2 and (year + month).isascii() and (year + month).isdigit()
    if not good or not FIRST_YEAR - 1 <= int(year) <= LAST_YEAR or not 1 <= int(month) <= 12:
        raise ValueError("a month as YYYY-MM, from 1969-12 on")
    return int(year), int(month)


def month(year: int, number: int, zone: ZoneInfo) -> Period:
    return Period(f"{year:04}-{number:02}", _start_s(year, number, zone), _start_s(*_following(year, number), zone))


def month_labelled(label: str, zone: ZoneInfo) -> Period:
    return month(*parse_label(label), zone)


def period_of(instant_s: int, zone: ZoneInfo) -> Period:
    """The month that an instant (or a window, by its start) belongs to."""
    local = datetime.fromtimestamp(instant_s, zone)
    return month(local.year, local.month, zone)


def is_closed(end_s: int, now_s: int, late_s: int) -> bool:
    """Whether no event of a period can be new any more: events are accepted until `late_s` after their time."""
    return now_s >= end_s + late_s


@lru_cache(4096)
def misfit(zone: ZoneInfo, window_s: int, first_year: int, last_year: int) -> Period | None:
    """The first month in those years that begins inside a window, or None: the window serves the zone."""
    for year in range(first_year, last_year + 1):
        for number in range(1, 13):
            if _start_s(year, number, zone) % window_s:
                return month(year, number, zone)
    return None


def months_between(start_s: int, end_s: int, zone: ZoneInfo) -> Iterator[Period]:
    """All months that [start, end) touches."""
    while start_s < end_s:
        period = period_of(start_s, zone)
        yield period
        start_s = period.end_s


def days_between(start_s: int, end_s: int, zone: ZoneInfo) -> Iterator[tuple[int, int]]:
    """(start, end) of all days of the zone that [start, end) touches: 23 or 25 hours where the clocks change."""
    while start_s < end_s:
        day = datetime.fromtimestamp(start_s, zone).date()
        next_s = _midnight_s(day + timedelta(days=1), zone)
        yield _midnight_s(day, zone), next_s
        start_s = next_s


def _start_s(year: int, number: int, zone: ZoneInfo) -> int:
    return _midnight_s(date(year, number, 1), zone)


def _midnight_s(day: date, zone: ZoneInfo) -> int:
    since = datetime(day.year, day.month, day.day, tzinfo=zone) - _EPOCH
    return since.days * 86400 + since.seconds


def _following(year: int, number: int) -> tuple[int, int]:
    return (year + 1, 1) if number == 12 else (year, number + 1)
