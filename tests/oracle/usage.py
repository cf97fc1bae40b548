"""What accepted events add up to: a cell for each meter, subject, combination of dimension values and window.

A meter's own window is fixed in UTC and half-open. Hours, days and months are made of those windows, by the window's start, days and
months as the tenant's time zone has them. What is not grouped by is merged away by the meter's own law: sums are added, of maxima the
greatest stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from tests.oracle.config import Config, Meter
from tests.oracle.event import Event


@dataclass(frozen=True)
class Key:
    tenant: str
    meter: str
    subject: str
    dimensions: tuple[tuple[str, str], ...]
    start_s: int  # of the window, seconds since 1970 UTC


@dataclass(frozen=True)
class Cell:
    value: int  # scaled
    events: int


Usage = dict[Key, Cell]


def add_up(accepted: Iterable[tuple[str, Event]], config: Config) -> Usage:
    """Usage in each meter's own windows."""
    usage: Usage = {}
    for tenant, event in accepted:
        for reading in event.readings:
            meter = config.meter(reading.meter)
            second = event.time_us // 1_000_000
            key = Key(tenant, meter.name, event.subject, reading.dimensions, second - second % meter.window_s)
            merge(usage, key, Cell(reading.value, 1), meter)
    return usage


def merge(usage: Usage, key: Key, cell: Cell, meter: Meter) -> None:
    if key not in usage:
        usage[key] = cell
        return
    known = usage[key]
    value = max(known.value, cell.value) if meter.aggregation == "max" else known.value + cell.value
    usage[key] = Cell(value, known.events + cell.events)


def regroup(usage: Usage, meter: Meter, tenant: str, window: str, timezone: str, group_by: tuple[str, ...]) -> Usage:
    """One meter of one tenant in other windows and with fewer dimensions."""
    grouped: Usage = {}
    for key, cell in usage.items():
        if (key.tenant, key.meter) == (tenant, meter.name):
            dimensions = tuple((name, value) for name, value in key.dimensions if name in group_by)
            start_s, _ = window_bounds(key.start_s, window, timezone)
            merge(grouped, Key(tenant, meter.name, key.subject, dimensions, start_s), cell, meter)
    return grouped


def window_bounds(second: int, window: str, timezone: str) -> tuple[int, int]:
    """The hour, day or month that an instant lies in: [start, end) in seconds since 1970 UTC."""
    if window == "hour":
        return second - second % 3600, second - second % 3600 + 3600
    local = datetime.fromtimestamp(second, ZoneInfo(timezone))
    if window == "day":
        day = local.date()
        return _midnight_s(datetime(day.year, day.month, day.day), timezone), _midnight_s(
            datetime(day.year, day.month, day.day) + timedelta(days=1), timezone
        )
    assert window == "month", window
    next_year, next_month = (local.year + 1, 1) if local.month == 12 else (local.year, local.month + 1)
    return _midnight_s(datetime(local.year, local.month, 1), timezone), _midnight_s(datetime(next_year, next_month, 1), timezone)


def _midnight_s(local: datetime, timezone: str) -> int:
    since = local.replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(seconds=1)
