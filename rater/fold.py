"""From counter records to what they add to usage and tallies.

Pure. Belongs here: merging the counters of a batch, and the digest that names a series. Must not know: PostgreSQL, prices, chains.

A series is (tenant, meter, subject, dimension values): everything of a usage row's key but its window. Its key in the database is a
digest of those names, so rows can be written without asking for an id first. blake2b: nobody can construct two with one digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from buffer.counters import MERGE_OF, MeterDefinition
from buffer.record import CounterRecord

LARGEST = (1 << 63) - 1  # events and windows are kept in 8 bytes
LAST_WINDOW_S = 221_845_392_000  # the year 9000: the calendar has an end
KEPT_SERIES = 200_000  # some 150 MB

_encode = msgspec.json.Encoder().encode


def name_digest(*names: object) -> str:
    """32 hex digits that stand for those names and no others."""
    return blake2b(_encode(names), digest_size=16).hexdigest()


class Series:
    """Compared by identity: a SeriesTable has one object for each."""

    __slots__ = ("dimensions", "key", "meter", "subject", "tenant")

    def __init__(self, tenant: str, meter: MeterDefinition, subject: str, dimensions: tuple[str, ...]) -> None:
        self.tenant = tenant
        self.meter = meter
        self.subject = subject
        self.dimensions = dimensions
        self.key = name_digest(tenant, meter.name, subject, dimensions)


SeriesName = tuple[str, str, str, tuple[str, ...]]  # tenant, meter name, subject, dimension values
UsageKey = tuple[Series, int]  # series, window start in seconds


class SeriesTable:
    """The series met lately."""

    def __init__(self) -> None:
        self.by_name: dict[SeriesName, Series] = {}

    def trim(self) -> bool:
        """Only between batches: within one, each series must stay one object. Whether anything was forgotten."""
        if len(self.by_name) <= KEPT_SERIES:
            return False
        self.by_name = {}
        return True


class Fold:
    """What a batch of records adds up to."""

    def __init__(self, table: SeriesTable) -> None:
        self.sums: dict[UsageKey, list[int]] = {}  # [value, events]
        self.maxima: dict[UsageKey, list[int]] = {}
        self.tallies: dict[tuple[str, bytes, str], int] = {}  # (tenant, writer, verdict) -> events
        self.counters = 0
        self._table = table

    def add(self, writer: bytes, record: CounterRecord) -> None:
        self.counters += len(record.counters)
        self._add_counters(record)
        for tenant, counts in record.tallies.items():
            for verdict, events in counts.items():
                key = (tenant, writer, verdict)
                self.tallies[key] = self.tallies.get(key, 0) + events

    def _add_counters(self, record: CounterRecord) -> None:
        meters = [(meter, meter.name, self.sums if MERGE_OF[meter.aggregation] == "sum" else self.maxima) for meter in record.meters]
        sums = self.sums
        by_name = self._table.by_name
        for index, tenant, subject, window_start_s, dimensions, value, events in record.counters:
            meter, name, into = meters[index]
            series_name = (tenant, name, subject, dimensions)
            series = by_name.get(series_name)
            if series is None:
                series = by_name[series_name] = Series(tenant, meter, subject, dimensions)
            key = (series, window_start_s)
            cell = into.get(key)
            if cell is None:
                into[key] = [value, events]
                continue
            cell[1] += events
            if into is sums:
                cell[0] += value
            elif value > cell[0]:
                cell[0] = value

    def usage(self) -> Iterable[UsageKey]:
        yield from self.sums
        yield from self.maxima

    def tenants(self) -> set[str]:
        return {series.tenant for series, _ in self.usage()} | {tenant for tenant, _, _ in self.tallies}


def unstorable(record: CounterRecord, value: bytes) -> str | None:
    """Why PostgreSQL could not keep a record that is well formed, or None. Such a record is parked rather than tried for ever."""
    if b"\\u0000" in value and _holds_nul(record):
        return "a name in it holds the character U+0000, which PostgreSQL cannot store"
    for counter in record.counters:
        if not 0 <= counter.window_start_s <= LAST_WINDOW_S:
            return f"a window starts at {counter.window_start_s} s, outside the years 1970 to 9000"
        if counter.events > LARGEST >> 16:
            return f"a counter has {counter.events} events: more than can be"
    for counts in record.tallies.values():
        if any(events > LARGEST >> 16 for events in counts.values()):
            return "a tally has more events than can be"
    return None


def _holds_nul(record: CounterRecord) -> bool:
    names = [name for meter in record.meters for name in (meter.name, meter.hash, *meter.dimensions)]
    names += [name for counter in record.counters for name in (counter.tenant, counter.subject, *counter.dimensions)]
    names += [name for tenant, counts in record.tallies.items() for name in (tenant, *counts)]
    return any("\0" in name for name in names)
