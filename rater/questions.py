"""What a caller may ask of usage and charges: query strings, checked, and the windows they stand for.

Pure. Belongs here: parameters, their defaults and limits, the messages when they are wrong. Must not know: SQL, HTTP servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from buffer.counters import MeterDefinition
from rater.period import days_between, months_between, parse_label, period_of, zone_named

MOST_WINDOWS = 10_000
HOUR_S = 3600
_WINDOWS = ("hour", "day", "month")
_ARTICLE = {"hour": "an", "day": "a", "month": "a"}
_NAMES_OF_WINDOWS = {60: "1m", 900: "15m", 3600: "1h", 86400: "1d"}
_FIRST_YEAR, _LAST_YEAR = 1970, 9000
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


_OF_PAGES = ("after", "limit")


class BadQuery(Exception):
    """A parameter that cannot be answered. The message names it and what is allowed."""

    def __init__(self, parameter: str, wrong: str, allowed: str) -> None:
        super().__init__(f"{parameter}: {wrong}; allowed: {allowed}")
        self.parameter = parameter


class UsageQuestion(NamedTuple):
    meter: MeterDefinition
    subject: str | None
    bounds: tuple[int, ...]  # starts of the windows asked for, and the end of the last
    zone: ZoneInfo
    group_by: tuple[str, ...]  # dimension names, in the order asked for
    by_subject: bool


class ChargesQuestion(NamedTuple):
    subject: str | None  # None: all that have charges, page by page
    period: str
    after: str | None  # the last subject of the page before
    limit: int  # most subjects of a page


USAGE_PARAMETERS = ("meter", "subject", "from", "to", "window", "group_by", "timezone")
CHARGES_PARAMETERS = ("subject", "period", "after", "limit")
SUBJECTS_A_PAGE, MOST_SUBJECTS_A_PAGE = 100, 1000


def usage_question(query: Mapping[str, str], meter: MeterDefinition, now_s: int) -> UsageQuestion:
    """`meter` is the one that `query` names. Raises BadQuery."""
    only(query, USAGE_PARAMETERS)
    zone = _zone(query)
    window = _window(query, meter)
    start_s, end_s = _range(query, meter, zone, now_s)
    names = _names(query)
    group_by = tuple(name for name in names if name != "subject" or "subject" in meter.dimensions)
    for name in group_by:
        if name not in meter.dimensions:
            allowed = ", ".join((*meter.dimensions, "subject"))
            raise BadQuery("group_by", f"meter {meter.name!r} has no dimension {name!r}", f"{allowed}, several separated by commas")
    subject = _subject(query)
    by_subject = subject is not None or "subject" in names
    return UsageQuestion(meter, subject, _bounds(start_s, end_s, window, zone, meter), zone, group_by, by_subject)


def charges_question(query: Mapping[str, str], now_s: int) -> ChargesQuestion:
    """Raises BadQuery."""
    only(query, CHARGES_PARAMETERS)
    subject, after = _subject(query), query.get("after")
    if after == "":
        raise BadQuery("after", "it is empty", "the `next` of the page before; without the parameter the first page is answered")
    if subject is not None and not query.keys().isdisjoint(_OF_PAGES):
        raise BadQuery(next(name for name in _OF_PAGES if name in query), "one subject has no pages", "to leave out subject, or this")
    period = query.get("period") or f"{datetime.fromtimestamp(now_s, UTC):%Y-%m}"
    try:
        parse_label(period)
    except ValueError as error:
        raise BadQuery("period", f"{period!r} is no month", str(error)) from None
    return ChargesQuestion(subject, period, after, _limit(query))


def _subject(query: Mapping[str, str]) -> str | None:
    """No event has an empty one: nothing would be found, and would look like nothing used."""
    subject = query.get("subject")
    if subject == "":
        raise BadQuery("subject", "it is empty", "a subject; without the parameter all of them are answered")
    return subject


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(SUBJECTS_A_PAGE))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_SUBJECTS_A_PAGE:
        raise BadQuery("limit", f"{text!r} is no number of subjects", f"a whole number from 1 to {MOST_SUBJECTS_A_PAGE}")
    return int(text)


def only(query: Mapping[str, str], allowed: Iterable[str]) -> None:
    for name, value in query.items():
        if name not in allowed:
            raise BadQuery(name, "there is no such parameter", ", ".join(allowed) or "none")
        if "\0" in value:
            raise BadQuery(name, "it holds the character U+0000", "text without it")


def required(query: Mapping[str, str], name: str, meaning: str) -> str:
    value = query.get(name)
    if not value:
        raise BadQuery(name, "is missing", meaning)
    return value


def instant_text(instant_s: int, zone: ZoneInfo) -> str:
    """RFC 3339, in the zone."""
    return datetime.fromtimestamp(instant_s, zone).isoformat().replace("+00:00", "Z")


def _zone(query: Mapping[str, str]) -> ZoneInfo:
    try:
        return zone_named(query.get("timezone") or "UTC")
    except ValueError as error:
        wrong, _, allowed = str(error).partition("; allowed: ")
        raise BadQuery("timezone", wrong, allowed) from None


def _window(query: Mapping[str, str], meter: MeterDefinition) -> str:
    possible = [name for name in _WINDOWS if not (name == "hour" and meter.window_s > HOUR_S)]
    window = query.get("window") or possible[0]
    if window not in _WINDOWS:
        raise BadQuery("window", f"{window!r} is none", ", ".join(possible))
    if window not in possible:
        wrong = (
            f"meter {meter.name!r} is counted in windows of {_NAMES_OF_WINDOWS.get(meter.window_s, meter.window_s)}, an {window} is finer"
        )
        raise BadQuery("window", wrong, ", ".join(possible))
    return window


def _range(query: Mapping[str, str], meter: MeterDefinition, zone: ZoneInfo, now_s: int) -> tuple[int, int]:
    """[from, to). From the start of this month, to the end of the window that is running."""
    start_s = _instant(query, "from", meter)
    end_s = _instant(query, "to", meter)
    if end_s is None:
        end_s = now_s - now_s % meter.window_s + meter.window_s
    if start_s is None:
        start_s = period_of(min(now_s, end_s - 1), zone).start_s
    if start_s >= end_s:
        raise BadQuery("from", f"{instant_text(start_s, zone)} is not before {instant_text(end_s, zone)}", "a time before `to`")
    return start_s, end_s


def _instant(query: Mapping[str, str], name: str, meter: MeterDefinition) -> int | None:
    text = query.get(name)
    if not text:
        return None
    allowed = "a time as in 2026-01-31T00:00:00Z or 2026-01-31T00:00:00+01:00 (in a URL a plus is written %2B)"
    if not _RFC3339.fullmatch(text):
        raise BadQuery(name, f"{text!r} is no RFC 3339 time", allowed)
    try:
        instant = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadQuery(name, f"{text!r} is no RFC 3339 time", allowed) from None
    if not _FIRST_YEAR <= instant.year < _LAST_YEAR:
        raise BadQuery(name, f"{text!r} is too far away", f"the years {_FIRST_YEAR} to {_LAST_YEAR - 1}")
    since = instant - datetime(1970, 1, 1, tzinfo=UTC)
    instant_s = since.days * 86400 + since.seconds
    lower = instant_s - instant_s % meter.window_s
    if instant_s != lower or since.microseconds or re.search(r"\.\d*[1-9]", text):
        size = _NAMES_OF_WINDOWS.get(meter.window_s, f"{meter.window_s} s")
        near = " or ".join(instant_text(start, ZoneInfo("UTC")) for start in (lower, lower + meter.window_s))
        raise BadQuery(name, f"{text!r} lies inside a window of meter {meter.name!r}, which is counted in windows of {size}", near)
    return instant_s


def _bounds(start_s: int, end_s: int, window: str, zone: ZoneInfo, meter: MeterDefinition) -> tuple[int, ...]:
    """Where the windows asked for begin, the first and the last cut at `from` and `to`."""
    bounds = [start_s]
    for start in _starts(start_s, end_s, window, zone):
        if start % meter.window_s:
            size = _NAMES_OF_WINDOWS.get(meter.window_s, f"{meter.window_s} s")
            begins = f"{_ARTICLE[window]} {window} of {zone.key} begins inside a window of meter {meter.name!r}"
            wrong = f"{begins}, which is counted in windows of {size}"
            raise BadQuery("timezone", wrong, "UTC, or a zone whose offset is a multiple of that")
        if start > start_s:
            bounds.append(start)
        if len(bounds) > MOST_WINDOWS:
            raise BadQuery(
                "window", f"more than {MOST_WINDOWS} windows of one {window}", "a shorter time from `from` to `to`, or larger windows"
            )
    return (*bounds, end_s)


def _starts(start_s: int, end_s: int, window: str, zone: ZoneInfo) -> Iterable[int]:
    if window == "month":
        return (month.start_s for month in months_between(start_s, end_s, zone))
    if window == "day":
        return (start for start, _ in days_between(start_s, end_s, zone))
    return _hours(start_s, end_s, zone)


def _hours(start_s: int, end_s: int, zone: ZoneInfo) -> Iterable[int]:
    """Hours of the zone: where its offset is a whole number of hours, those of UTC. Half ones where clocks change by half an hour."""
    start_s -= _into_hour(start_s, zone)
    while start_s < end_s:
        yield start_s
        start_s += HOUR_S - _into_hour(start_s, zone)


def _into_hour(instant_s: int, zone: ZoneInfo) -> int:
    """How many seconds of its hour are over."""
    offset = datetime.fromtimestamp(instant_s, zone).utcoffset()
    assert offset is not None
    return (instant_s + offset.days * 86400 + offset.seconds) % HOUR_S


def _names(query: Mapping[str, str]) -> Sequence[str]:
    names = [name.strip() for name in query.get("group_by", "").split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise BadQuery("group_by", "a name occurs twice", "each once")
    return names
