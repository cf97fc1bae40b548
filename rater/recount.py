"""Counting again: what PostgreSQL shows beside what the bytes of its own ledger make it.

Belongs here: reading every record in one snapshot of the database, and comparing usage, tallies and charges with it. Must not know: the
log, journals, how a difference is told to a person.

It holds one entry a usage row in memory (some 300 bytes).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import asyncpg

from buffer.counters import MERGE_OF
from buffer.record import NoPlace, Undecodable, decode, read_place
from rater.postgres import FAILURES, DatabaseFailed, told
from rater.rerate import Difference, check_charges
from rater.statements import statements

AUDIT = statements("audit")
_ROWS_A_FETCH = 1000

UsageName = tuple[str, str, str, tuple[str, ...], int]  # tenant, meter, subject, dimension values, window start


class LedgerRecord(NamedTuple):
    """One applied record, as stored."""

    headers: Mapping[str, bytes]
    value: bytes


class Recount(NamedTuple):
    parked: dict[tuple[bytes, int, int], str]  # (writer, partition, n) -> reason
    differences: list[str]  # each names one row


async def recount(dsn: str, on_record: Callable[[LedgerRecord], None]) -> Recount:
    """Hands every applied record to `on_record`. Raises DatabaseFailed."""
    try:
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "parshall audit"})
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                found = await _recount(connection, on_record)
            async with connection.transaction():  # charges are checked against usage as it is by now, under the lock that rating takes
                for row in await connection.fetch(AUDIT["tenants"]):
                    found.differences.extend(map(_told_charge, await check_charges(connection, row["name"])))
            return found
        finally:
            await connection.close(timeout=5)
    except FAILURES as error:
        raise DatabaseFailed(told(error)) from error


async def _recount(connection: asyncpg.Connection, on_record: Callable[[LedgerRecord], None]) -> Recount:
    made = _Made()
    differences: list[str] = []
    async for row in connection.cursor(AUDIT["records"], prefetch=_ROWS_A_FETCH):
        record = LedgerRecord(dict(zip(row["header_names"], row["header_values"], strict=True)), row["value"])
        place = f"record {row['n']} of partition {row['partition']} of writer {row['writer'].hex()}"
        try:
            made.add(record, (row["writer"], row["partition"], row["n"]))
        except (NoPlace, Undecodable, _OutOfPlace) as error:
            differences.append(f"{place} is rated, but its stored bytes are not sound: {error}")
        else:
            on_record(record)
    differences += made.gaps()
    async for row in connection.cursor(AUDIT["usage"], prefetch=_ROWS_A_FETCH):
        name = (row["tenant"], row["meter"], row["subject"], tuple(json.loads(row["dimensions"])), row["window_start_s"])
        differences += made.usage_row(name, int(row["value"]), row["events"])
    differences += made.missing_usage()
    stored = Counter({(row["tenant"], row["writer"], row["verdict"]): row["events"] for row in await connection.fetch(AUDIT["tallies"])})
    differences += made.tallies_beside(stored)
    parked = {(row["writer"], row["partition"], row["n"]): row["reason"] for row in await connection.fetch(AUDIT["parked"])}
    return Recount(parked, differences)


class _OutOfPlace(Exception):
    """A record stands in the row of another."""


class _Made:
    """What the records add up to."""

    def __init__(self) -> None:
        self._usage: dict[UsageName, tuple[int, int]] = {}
        self._tallies: Counter[tuple[str, bytes, str]] = Counter()
        self._last: dict[tuple[bytes, int], int] = {}
        self._gaps: list[str] = []

    def add(self, record: LedgerRecord, row: tuple[bytes, int, int]) -> None:
        place = read_place(record.headers)
        if (place.writer, place.partition, place.n) != row:
            raise _OutOfPlace(f"its headers say record {place.n} of partition {place.partition} of writer {place.writer.hex()}")
        decoded = decode(record.headers, record.value)
        last = self._last.get(row[:2], 0)
        if row[2] != last + 1:
            self._gaps.append(f"record {last + 1} of partition {row[1]} of writer {row[0].hex()} is missing from the ledger in PostgreSQL")
        self._last[row[:2]] = row[2]
        for index, tenant, subject, window_start_s, dimensions, value, events in decoded.counters:
            meter = decoded.meters[index]
            name = (tenant, meter.name, subject, dimensions, window_start_s)
            known = self._usage.get(name)
            if known is None:
                self._usage[name] = (value, events)
            else:
                merged = max(known[0], value) if MERGE_OF[meter.aggregation] == "max" else known[0] + value
                self._usage[name] = (merged, known[1] + events)
        for tenant, counts in decoded.tallies.items():
            for verdict, events in counts.items():
                self._tallies[tenant, row[0], verdict] += events

    def gaps(self) -> list[str]:
        return self._gaps

    def usage_row(self, name: UsageName, value: int, events: int) -> Iterator[str]:
        expected = self._usage.pop(name, None)
        if expected is None:
            yield f"usage of {_told(name)} is {value} ({events} events), but no record explains it"
        elif expected != (value, events):
            yield f"usage of {_told(name)} is {value} ({events} events), but its records make it {expected[0]} ({expected[1]} events)"

    def missing_usage(self) -> Iterator[str]:
        """What is left once every row was seen."""
        for name, (value, events) in self._usage.items():
            yield f"usage of {_told(name)} is missing; its records make it {value} ({events} events)"

    def tallies_beside(self, stored: Counter[tuple[str, bytes, str]]) -> Iterator[str]:
        for tenant, writer, verdict in sorted((+stored).keys() | (+self._tallies).keys()):
            have, expected = stored[tenant, writer, verdict], self._tallies[tenant, writer, verdict]
            if have != expected:
                yield f"tally of {verdict} events of tenant {tenant} by writer {writer.hex()} is {have}, but its records make it {expected}"


def _told(name: UsageName) -> str:
    tenant, meter, subject, dimensions, window_start_s = name
    return f"tenant {tenant}, meter {meter}, subject {subject!r}, dimensions {list(dimensions)}, window {window_start_s}"


def _told_charge(difference: Difference) -> str:
    stored, computed = (
        "none" if line is None else f"quantity {line[0]}, amount {line[1]}" for line in (difference.stored, difference.computed)
    )
    return f"charge line {difference.line} of tenant {difference.tenant} in {difference.period} is {stored}, but usage makes it {computed}"
