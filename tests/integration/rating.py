"""What the rater's tests share: counter records made by the real encoder, a list as a source, an oracle of plain arithmetic,
the operator's commands."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from buffer.counters import MERGE_OF, Deltas, MeterDefinition, Tallies, merge, pack
from buffer.journal_records import Through
from buffer.record import RecordEncoder
from rater.source import Positions, Received

PROJECT = Path(__file__).parents[2]
REQUESTS = MeterDefinition("requests", "a" * 16, "count", 0, 3600, ("region", "zone"))
EGRESS = MeterDefinition("egress_bytes", "b" * 16, "sum", 0, 3600, ("region",))
PEAK = MeterDefinition("peak_connections", "c" * 16, "max", 0, 3600, ())
STORAGE = MeterDefinition("storage_gb_hours", "d" * 16, "sum", 6, 86400, ())
MINUTES = MeterDefinition("calls", "e" * 16, "count", 0, 60, ())
METERS = (REQUESTS, EGRESS, PEAK, STORAGE, MINUTES)
NUMBERS = {meter.name: number for number, meter in enumerate(METERS)}
TENANTS = {1: "demo", 2: "other"}
TENANT_NUMBERS = {name: number for number, name in TENANTS.items()}

Count = tuple[MeterDefinition, str, str, int, tuple[str, ...], int, int]  # meter, tenant, subject, window, dimensions, value, events


class Writer:
    """Makes records as a writer's flushes would."""

    def __init__(self, byte: int, partitions: int = 1) -> None:
        self.id = bytes([byte]) * 16
        self.partitions = partitions
        self.next_n: dict[int, int] = {}
        self.meters = dict(enumerate(METERS))

    def flush(self, counts: Iterable[Count], tallies: Mapping[str, Mapping[str, int]] | None = None) -> list[Received]:
        deltas: Deltas = {}
        for meter, tenant, subject, window_start_s, dimensions, value, events in counts:
            key = (NUMBERS[meter.name], TENANT_NUMBERS[tenant], subject, window_start_s, *dimensions)
            merge(deltas, {MERGE_OF[meter.aggregation]: {key: pack(0 if meter.aggregation == "count" else value, events)}})
        by_number: Tallies = {TENANT_NUMBERS[name]: dict(counts) for name, counts in (tallies or {}).items()}
        through = Through(bytes(16), 1)
        encoder = RecordEncoder(self.meters, TENANTS, self.id, self.partitions, through, self.next_n)
        records = [record for piece in encoder.pieces(deltas, by_number) for record in piece]
        self.next_n = encoder.next_n
        return [Received("", 0, dict(record.headers), record.value) for record in records]


class ListSource:
    """A log of one list a stream. Positions are indexes."""

    def __init__(self, identity: str = "log-1") -> None:
        self.identity = identity
        self.streams: dict[str, list[Received]] = {}
        self.rewinds = 0
        self.first: dict[str, int] = {}  # positions before it are deleted
        self._at: dict[str, int] = {}
        self._positions: Positions | None = None

    def add(self, records: Sequence[Received], stream: str = "s0") -> None:
        log = self.streams.setdefault(stream, [])
        for record in records:
            log.append(Received(stream, len(log) + 1, record.headers, record.value))

    async def open(self, positions: Positions) -> None:
        self._positions = positions
        await self._go_to_stored()

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        polled: list[Received] = []
        for stream, log in self.streams.items():
            start = max(self._at.get(stream, 0), self.first.get(stream, 0))
            piece = log[start : start + most - len(polled)]
            self._at[stream] = start + len(piece)
            polled += piece
        if not polled:
            await asyncio.sleep(0.01)
        return polled

    async def rewind(self) -> None:
        await self._go_to_stored()
        self.rewinds += 1

    async def ends(self) -> Mapping[str, int]:
        return {stream: len(log) for stream, log in self.streams.items()}

    async def starts(self) -> Mapping[str, int]:
        return self.first

    async def close(self) -> None:
        return None

    async def _go_to_stored(self) -> None:
        assert self._positions is not None
        self._at = dict(await self._positions(self.streams))


def usage_by_hand(counts: Iterable[Count]) -> dict[tuple[Any, ...], tuple[int, int]]:
    """(tenant, meter, subject, window, dimensions) -> (value, events), by going through them one by one."""
    found: dict[tuple[Any, ...], tuple[int, int]] = {}
    for meter, tenant, subject, window_start_s, dimensions, value, events in counts:
        key = (tenant, meter.name, subject, window_start_s, dimensions)
        if meter.aggregation == "count":
            value = events
        if key in found:
            known, known_events = found[key]
            found[key] = (max(known, value) if meter.aggregation == "max" else known + value, known_events + events)
        else:
            found[key] = (value, events)
    return found


def quantity_by_hand(
    counts: Iterable[Count], meter: MeterDefinition, tenant: str, subject: str, region: str | None, start: int, end: int
) -> Fraction:
    """The quantity of a line priced by region (None: by nothing)."""
    usage = usage_by_hand(counts)
    values = [
        value
        for (of, name, who, window, dimensions), (value, _) in usage.items()
        if (of, name, who) == (tenant, meter.name, subject) and start <= window < end and (region is None or dimensions[0] == region)
    ]
    return Fraction(max(values) if meter.aggregation == "max" else sum(values), 10**meter.scale)


def records_of(flushes: Iterable[Sequence[Received]]) -> list[Received]:
    return list(itertools.chain.from_iterable(flushes))


def parshall(database: str, *words: str) -> tuple[int, str, str]:
    """A command of the operator's on this database: (exit code, standard output, standard error)."""
    done = subprocess.run([sys.executable, "-m", "parshall", *words, "--postgres", database], cwd=PROJECT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr
