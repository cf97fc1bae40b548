"""Counting again: what PostgreSQL shows beside what the bytes of its own ledger make it.

Belongs here: reading every record in one snapshot of the database, and comparing usage, tallies and charges with it. Must not know: the
log, journals, how a difference is told to a person.

A record that is missing or damaged here may be lent by another store (`Recount.lend`): what it explains is then no difference any more.
It holds one entry a usage row in memory (some 300 bytes), but for those that only archives explain which were not given.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple

import asyncpg

from buffer.counters import MERGE_OF
from buffer.record import CounterRecord, NoPlace, Undecodable, decode, read_place
from rater.archive_lines import ReadArchive, RecordRow
from rater.period import Period, period_of
from rater.postgres import FAILURES, DatabaseFailed, told
from rater.pricing import UNPRICED, BookInForce
from rater.recount_archives import CountedArchives, Finding, count_archives, known_archives, reach_of
from rater.rerate import TIMEOUT_S, lines_from_usage
from rater.statements import statements
from rater.transaction import CHARGES, book_in_force

AUDIT = statements("audit")
_ROWS_A_FETCH = 1000

UsageName = tuple[str, str, str, tuple[str, ...], int]  # tenant, meter, subject, dimension values, window start
TallyName = tuple[str, bytes, str]  # tenant, writer, verdict
Total = tuple[int, int]  # value (scaled integer), events


class Applied(NamedTuple):
    """A record that was rated, as the ledger has it."""

    row: RecordRow
    hash: str
    tallies: Mapping[str, Mapping[str, int]]
    record: CounterRecord | None  # None: its bytes are in an archive
    log: str
    stream: str
    next_position: int


class WrongLine(NamedTuple):
    """A charge line that is not what usage and price book make it."""

    tenant: str
    period: Period
    subject: str
    meter: str
    what: str


@dataclass
class Recount:
    missing: list[RecordRow] = field(default_factory=list)  # rated, as the chains say, but not in the ledger
    fallen_back: dict[tuple[bytes, int], tuple[int | None, int]] = field(default_factory=dict)  # (what a chain says, what the ledger has)
    unsound: dict[RecordRow, str] = field(default_factory=dict)  # in the ledger, but not as they were rated
    parked: dict[RecordRow, str] = field(default_factory=dict)  # reason
    strays: dict[tuple[str, int], str] = field(default_factory=dict)  # parked without a place: (stream, position after it) -> reason
    explained: set[tuple[str, int]] = field(default_factory=set)  # strays that a person left out
    held: dict[tuple[bytes, int], str] = field(default_factory=dict)  # (writer, partition) -> reason
    usage: dict[UsageName, tuple[Total | None, Total | None]] = field(default_factory=dict)  # where (stored, what records make it) differ
    tallies: dict[TallyName, tuple[int, int]] = field(default_factory=dict)
    lines: list[WrongLine] = field(default_factory=list)
    archives: CountedArchives = field(default_factory=CountedArchives)

    def lend(self, row: RecordRow, record: CounterRecord) -> None:
        """A missing or unsound record, from another store. Once for each."""
        for name, value, events, maximum in _counters(record):
            if name in self.usage:
                stored, made = self.usage.pop(name)
                made = _merged(made, (value, events), maximum=maximum)
                if stored != made:
                    self.usage[name] = (stored, made)
        for tenant, counts in record.tallies.items():
            for verdict, events in counts.items():
                self._lend_tally((tenant, row[0], verdict), events)

    def _lend_tally(self, name: TallyName, events: int) -> None:
        if name in self.tallies:
            stored, made = self.tallies.pop(name)
            if stored != made + events:
                self.tallies[name] = (stored, made + events)

    def findings(self) -> Iterator[Finding]:
        """What is wrong with chains and totals. A charge line that follows from a usage row named here is left out."""
        for (writer, partition), (said, last_n) in sorted(self.fallen_back.items()):
            says = "has no row of" if said is None else f"says {said} of"
            what = f"`chains` in PostgreSQL {says} partition {partition} of writer {writer.hex()}, whose records up to {last_n} are rated"
            mend = "put that row back with" if said is None else "set that row to"
            yield Finding(what, f"stop the raters and {mend} last_n = {last_n}: else nothing more of that writer is rated there")
        yield from self.archives.findings
        then = "`records` is what was rated: set the row to what they make it, then audit again (charge lines of that month follow from it)"
        for name, (stored, made) in sorted(self.usage.items(), key=lambda item: item[0]):
            yield Finding(_told_usage(name, stored, made), then)
        then = "set the row to what the records make it; no charge depends on it"
        for (tenant, writer, verdict), (events, counted) in sorted(self.tallies.items()):
            what = f"tally of {verdict} events of tenant {tenant} by writer {writer.hex()} is {events}, but its records make it {counted}"
            yield Finding(what, then)
        wrong_windows: dict[tuple[str, str, str], list[int]] = {}
        for tenant, meter, subject, _, window_start_s in self.usage:
            wrong_windows.setdefault((tenant, meter, subject), []).append(window_start_s)
        then = "do not invoice this subject's month; usage is right: set the line to what it makes it, then audit again"
        for line in self.lines:
            windows = wrong_windows.get((line.tenant, line.meter, line.subject), ())
            if not any(line.period.start_s <= window < line.period.end_s for window in windows):
                yield Finding(line.what, then)


async def recount(dsn: str, on_record: Callable[[Applied], None], read_archive: ReadArchive | None = None) -> Recount:
    """Hands every applied record that is sound to `on_record`. Without archives usage is not counted again as far as they reach.

    Raises DatabaseFailed."""
    try:
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "parshall audit"})
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                found = await _recount(connection, on_record, read_archive)
            # Charges are checked against usage as it is by now, under the lock that rating takes: a tenant at a time, so that others go on.
            for row in await connection.fetch(AUDIT["tenants"]):
                async with connection.transaction():
                    found.lines += await _wrong_lines(connection, row["name"])
            return found
        finally:
            await connection.close(timeout=5)
    except FAILURES as error:
        raise DatabaseFailed(told(error)) from error


async def hashes_of(dsn: str, rows: Iterable[RecordRow]) -> dict[RecordRow, str]:
    """What was rated under these numbers. Raises DatabaseFailed."""
    try:
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "parshall audit"})
        try:
            found: dict[RecordRow, str] = {}
            asked = iter(rows)
            while some := list(islice(asked, _ROWS_A_FETCH)):
                for writer, partition, n, digest in await connection.fetch(AUDIT["hashes"], *map(list, zip(*some, strict=True))):
                    found[writer, partition, n] = digest
            return found
        finally:
            await connection.close(timeout=5)
    except FAILURES as error:
        raise DatabaseFailed(told(error)) from error


async def _recount(connection: asyncpg.Connection, on_record: Callable[[Applied], None], read_archive: ReadArchive | None) -> Recount:
    found = Recount()
    await connection.execute(AUDIT["newest_column"])
    known = await known_archives(connection)
    made = _Made(after_s=-1 if read_archive else reach_of(known))
    archived: Counter[int] = Counter()  # archive -> rows
    last: dict[tuple[bytes, int], int] = {}
    async for row in connection.cursor(AUDIT["records"], prefetch=_ROWS_A_FETCH):
        writer, partition, n = key = (row["writer"], row["partition"], row["n"])
        found.missing += [(writer, partition, gap) for gap in range(last.get((writer, partition), 0) + 1, n)]
        last[writer, partition] = n
        try:
            applied = _applied(dict(row))
        except (NoPlace, Undecodable, _OutOfPlace) as error:
            found.unsound[key] = str(error)
        else:
            made.add(applied)
            if applied.record is None:
                archived[row["archive"]] += 1
            on_record(applied)
    chains: dict[tuple[bytes, int], int] = {}
    for writer, partition, last_n, held in await connection.fetch(AUDIT["chains"]):
        chains[writer, partition] = last_n
        found.missing += [(writer, partition, gap) for gap in range(last.get((writer, partition), 0) + 1, last_n + 1)]
        if held is not None:
            found.held[writer, partition] = held
    found.fallen_back = {chain: (chains.get(chain), n) for chain, n in last.items() if chains.get(chain, 0) < n}
    found.archives = await count_archives(connection, known, archived, read_archive, made.add_usage, made.add_tallies)
    async for row in connection.cursor(AUDIT["usage"], prefetch=_ROWS_A_FETCH):
        if row["window_start_s"] <= found.archives.unread_to_s:
            continue
        name = (row["tenant"], row["meter"], row["subject"], tuple(json.loads(row["dimensions"])), row["window_start_s"])
        stored = (int(row["value"]), row["events"])
        if (expected := made.usage.pop(name, None)) != stored:
            found.usage[name] = (stored, expected)
    # What is left once every row was seen.
    found.usage |= {name: (None, expected) for name, expected in made.usage.items() if name[-1] > found.archives.unread_to_s}
    tallies = {(row["tenant"], row["writer"], row["verdict"]): row["events"] for row in await connection.fetch(AUDIT["tallies"])}
    for tally in tallies.keys() | made.tallies.keys():
        if tallies.get(tally, 0) != made.tallies[tally]:
            found.tallies[tally] = (tallies.get(tally, 0), made.tallies[tally])
    for writer, partition, n, stream, position, reason, missing in await connection.fetch(AUDIT["parked"]):
        if not missing:
            found.explained.add((stream, position))
        elif writer is None:
            found.strays.setdefault((stream, position), reason)
        else:
            found.parked.setdefault((writer, partition, n), reason)
    return found


class _OutOfPlace(Exception):
    """A row is not what its record says."""


def _applied(row: Mapping[str, Any]) -> Applied:
    """Raises NoPlace, Undecodable, _OutOfPlace."""
    key = (row["writer"], row["partition"], row["n"])
    where = (row["log"], row["stream"], row["next_position"])
    if row["archive"] is not None:
        return Applied(key, row["hash"], json.loads(row["tallies"] or "{}"), None, *where)
    headers = dict(zip(row["header_names"], row["header_values"], strict=True))
    place = read_place(headers)
    if (place.writer, place.partition, place.n) != key:
        raise _OutOfPlace(f"its headers say record {place.n} of partition {place.partition} of writer {place.writer.hex()}")
    if place.hash != row["hash"]:
        raise _OutOfPlace(f"its headers say the hash {place.hash}, its row {row['hash']}")
    record = decode(headers, row["value"])
    return Applied(key, place.hash, record.tallies, record, *where)


class _Made:
    """What the records add up to."""

    def __init__(self, after_s: int) -> None:
        """Usage of windows that start after it; others will not be compared, and need not be remembered."""
        self._after_s = after_s
        self.usage: dict[UsageName, Total] = {}
        self.tallies: Counter[TallyName] = Counter()

    def add(self, applied: Applied) -> None:
        if applied.record is not None:
            self.add_usage(applied.record)
        self._add_tallies(applied.row[0], applied.tallies)

    def add_usage(self, record: CounterRecord) -> None:
        for name, value, events, maximum in _counters(record):
            if name[-1] <= self._after_s:
                continue
            self.usage[name] = _merged(self.usage.get(name), (value, events), maximum=maximum)

    def add_tallies(self, writer: bytes, record: CounterRecord) -> None:
        self._add_tallies(writer, record.tallies)

    def _add_tallies(self, writer: bytes, tallies: Mapping[str, Mapping[str, int]]) -> None:
        for tenant, counts in tallies.items():
            for verdict, events in counts.items():
                self.tallies[tenant, writer, verdict] += events


def _counters(record: CounterRecord) -> Iterator[tuple[UsageName, int, int, bool]]:
    maxima = [MERGE_OF[meter.aggregation] == "max" for meter in record.meters]
    for index, tenant, subject, window_start_s, dimensions, value, events in record.counters:
        yield (tenant, record.meters[index].name, subject, dimensions, window_start_s), value, events, maxima[index]


def _merged(known: Total | None, more: Total, *, maximum: bool) -> Total:
    if known is None:
        return more
    return (max(known[0], more[0]) if maximum else known[0] + more[0], known[1] + more[1])


# ---- charges


async def _wrong_lines(connection: asyncpg.Connection, tenant_name: str) -> list[WrongLine]:
    """Every charge line of a tenant against what usage makes it, within the caller's transaction."""
    row = await connection.fetchrow(CHARGES["tenant_lock_alone"], tenant_name)
    assert row is not None, "tenants stay"
    tenant: int = row["tenant"]
    wrong: list[WrongLine] = []
    books: dict[int | None, BookInForce] = {None: BookInForce(None, None)}
    for label, start_s, end_s, number in await connection.fetch(CHARGES["periods_of_tenant"], tenant):
        book = await book_in_force(connection, books, number)
        wrong += await _wrong_lines_of_period(connection, tenant, tenant_name, Period(label, start_s, end_s), book)
    for label, subject, meter in await connection.fetch(AUDIT["lines_astray"], tenant):
        what = f"a charge line of tenant {tenant_name}, subject {subject!r}, meter {meter} in {label}, a month that is not in `periods`"
        wrong.append(WrongLine(tenant_name, Period(label, 0, 0), subject, meter, what))
    zone = (await book_in_force(connection, books, row["book"])).zone
    for subject, meter, first_s in await connection.fetch(AUDIT["usage_astray"], tenant, timeout=TIMEOUT_S):
        period = period_of(first_s, zone)
        what = (
            f"usage of tenant {tenant_name}, subject {subject!r}, meter {meter} in {period.label}, a month that is not in `periods`: it is "
        )
        wrong.append(WrongLine(tenant_name, period, subject, meter, f"{what}not charged"))
    return wrong


async def _wrong_lines_of_period(
    connection: asyncpg.Connection, tenant: int, tenant_name: str, period: Period, book: BookInForce
) -> list[WrongLine]:
    lines, quantities = await lines_from_usage(connection, tenant, tenant_name, period, book)
    made: dict[str, _Line] = {}
    for key, line in lines.items():
        made[key] = _Line(line.subject, line.meter, line.position, dict(line.dimensions), quantities[key], line.amount(quantities[key]))
    stored: dict[str, _Line] = {}
    for row in await connection.fetch(AUDIT["lines"], tenant, period.label, timeout=TIMEOUT_S):
        dimensions, amount = json.loads(row["dimensions"]), None if row["amount"] is None else Decimal(row["amount"])
        stored[row["line"]] = _Line(row["subject"], row["meter"], row["price"], dimensions, int(row["quantity"]), amount)
    wrong = []
    for key in sorted(made.keys() | stored.keys()):
        have, expected = stored.get(key), made.get(key)
        if have != expected:
            one = expected or have
            assert one is not None
            what = f"charge line of tenant {tenant_name}, {one.named()} in {period.label} is {_told_line(have)}"
            what += f", but usage makes it {_told_line(expected)}"
            wrong.append(WrongLine(tenant_name, period, one.subject, one.meter, what))
    return wrong


class _Line(NamedTuple):
    subject: str
    meter: str
    price: int  # position in the version's list
    dimensions: Mapping[str, str]
    quantity: int
    amount: Decimal | None

    def named(self) -> str:
        price = "unpriced" if self.price == UNPRICED else f"price {self.price + 1}"
        return f"subject {self.subject!r}, meter {self.meter}, {price}, dimensions {json.dumps(self.dimensions, ensure_ascii=False)}"


# ---- telling


def _told_line(line: _Line | None) -> str:
    return "missing" if line is None else f"quantity {line.quantity}, amount {'none' if line.amount is None else format(line.amount, 'f')}"


def _told_usage(name: UsageName, stored: Total | None, made: Total | None) -> str:
    tenant, meter, subject, dimensions, window_start_s = name
    row = f"tenant {tenant}, meter {meter}, subject {subject!r}, dimensions {list(dimensions)}, window {_told_window(window_start_s)}"
    return f"usage of {row} is {_told_total(stored)}, but its records make it {_told_total(made)}"


def _told_total(total: Total | None) -> str:
    return "missing" if total is None else f"{total[0]} ({total[1]} events)"


def _told_window(start_s: int) -> str:
    return f"{start_s} ({datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=start_s):%Y-%m-%dT%H:%M}Z)"
