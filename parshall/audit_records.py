"""Counter records and flushes as the audit adds them up, and the line that it tells a person.

Pure. Belongs here: the values that its parts share. Must not know: journals, stores, what agrees with what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from buffer.counters import MERGE_OF, MeterDefinition
from buffer.journal_records import Through
from buffer.record import CounterRecord, Place

RecordKey = tuple[str, int, int]  # writer (32 hex digits), partition, n
CounterName = tuple[str, str, str, int, tuple[str, ...]]  # meter, tenant, subject, window start, dimension values
CallPlace = tuple[int, int]  # (number of the incarnation in order of opening, call)

BEFORE_ALL: CallPlace = (-1, 0)


class Difference(NamedTuple):
    """One line for the operator."""

    what: str  # what disagrees, and where
    then: str  # what to do about it


class Stored(NamedTuple):
    """A counter record as some store has it."""

    hash: str
    tallies: Mapping[str, Mapping[str, int]]  # tenant -> verdict -> events

    @property
    def accepted(self) -> dict[str, int]:
        return {tenant: counts["accepted"] for tenant, counts in self.tallies.items() if counts.get("accepted")}


def key_of(place: Place) -> RecordKey:
    return place.writer.hex(), place.partition, place.n


def named(key: RecordKey) -> str:
    writer, partition, n = key
    return f"record {n} of partition {partition} of writer {writer}"


@dataclass
class Flush:
    """A flush as its records add up."""

    number: int
    through: Through
    place: CallPlace
    whole: bool  # its begin and all its parts are kept
    sound: bool = True  # nothing in it was named
    through_unknown: bool = False  # its begin is missing or wrong: its records say it
    committed: bool = False
    told: Mapping[int, int] | None = None  # accepted events it covers, by tenant number, as a snapshot says
    next_n: dict[int, int] = field(default_factory=dict)
    records: dict[RecordKey, Stored] = field(default_factory=dict)
    tallies: Counter[tuple[str, str]] = field(default_factory=Counter)  # (tenant, verdict)
    counters: dict[CounterName, tuple[int, int]] = field(default_factory=dict)  # value, events

    @property
    def accepted(self) -> Counter[str]:
        return Counter({tenant: n for (tenant, verdict), n in self.tallies.items() if verdict == "accepted" and n})

    def take(self, key: RecordKey, place: Place, record: CounterRecord) -> None:
        self.records[key] = Stored(place.hash, record.tallies)
        self.tallies.update({(tenant, verdict): n for tenant, counts in record.tallies.items() for verdict, n in counts.items()})
        for index, tenant, subject, window_start_s, dimensions, value, events in record.counters:
            meter = record.meters[index]
            add_counter(self.counters, (meter.name, tenant, subject, window_start_s, dimensions), meter, value, events)


def add_counter(into: dict[CounterName, tuple[int, int]], name: CounterName, meter: MeterDefinition, value: int, events: int) -> None:
    known = into.get(name)
    if known is None:
        into[name] = (value, events)
    else:
        merged = max(known[0], value) if MERGE_OF[meter.aggregation] == "max" else known[0] + value
        into[name] = (merged, known[1] + events)


def told_counter(counter: tuple[int, int] | None) -> str:
    return "nothing" if counter is None else f"{counter[0]} ({counter[1]} events)"
