"""What the named statements of rater/sql/*.sql do, over the tables of the simulated PostgreSQL.

Belongs here: one function a statement, of the statement's name, and the layout of the tables. Must not know: connections, the rater.

Where a statement waits matters as much as what it answers: candidates of a locking statement are those visible when it begins, in the
order of the key, and each is read again once it is locked; `ON CONFLICT DO NOTHING` waits for a transaction that inserts, changes or
deletes the same key. Numbers of rows may differ from those of a real server (it takes one for an insert that conflicts, too).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal, Inexact
from typing import Any, NamedTuple

from asyncpg.exceptions import UniqueViolationError

from rater.statements import statements
from tests.simulation.postgres import KEY_SHARE, NO_KEY_UPDATE, UPDATE, Key, Row, Statement, Work

TOPICS = ("chains", "usage", "charges")
STATEMENTS: dict[str, Statement] = {}  # name -> function


def statement(function: Statement) -> Statement:
    STATEMENTS[function.__name__] = function
    return function


def by_text() -> dict[str, Statement]:
    """For `SimulatedPostgres`."""
    found: dict[str, Statement] = {"COPY records": copy_records, "COPY folded text": copy_folded}
    for topic in TOPICS:
        found |= {text: STATEMENTS[name] for name, text in statements(topic).items()}
    return found


# ---- tables: name -> {key: row}. Where a number names a row, the key is what is unique besides, and the number is in the row.


class Tenant(NamedTuple):  # (name)
    tenant: int
    book: int | None


class Book(NamedTuple):  # (tenant, hash)
    book: int
    definition: str


class Meter(NamedTuple):  # (name)
    meter: int
    aggregation: str
    scale: int
    window_s: int
    dimensions: tuple[str, ...]


class Chain(NamedTuple):  # (writer, partition)
    last_n: int
    held: str | None


class Record(NamedTuple):  # (writer, partition, n)
    hash: str
    log: str
    stream: str
    next_position: int
    header_names: list[str]
    header_values: list[bytes]
    value: bytes


class Parked(NamedTuple):  # ("place", writer, partition, n, hash) or ("stray", log, stream, next_position): its two unique indexes
    id: int
    writer: bytes | None
    partition: int | None
    n: int | None
    hash: str
    reason: str
    sound: bool
    missing: bool
    log: str
    stream: str
    next_position: int
    header_names: list[str]
    header_values: list[bytes]
    value: bytes


class Series(NamedTuple):  # (series)
    tenant: int
    meter: int
    subject: str
    dimensions: str  # as jsonb prints it


class Usage(NamedTuple):  # (series, window_start_s)
    value: int
    events: int


class Period(NamedTuple):  # (tenant, period)
    start_s: int
    end_s: int
    book: int | None


class Line(NamedTuple):  # (line)
    tenant: int
    period: str
    subject: str
    meter: str
    price: int
    dimensions: str
    quantity: int
    amount: Decimal | None


TABLES = {
    "tenants": Tenant,
    "price_books": Book,
    "meters": Meter,
    "meter_hashes": tuple,  # (meter, hash), nothing besides
    "chains": Chain,
    "records": Record,
    "parked": Parked,
    "series": Series,
    "usage": Usage,
    "periods": Period,
    "charge_lines": Line,
    "tallies": int,  # (tenant, writer, verdict): events
    "positions": int,  # (log, stream): next_position
    "progress": int,  # (log): as_of_us
}


# ---- what the statements are made of


async def _add(work: Work, table: str, key: Key, row: Any) -> bool:
    """INSERT … ON CONFLICT DO NOTHING. Whether it was added."""
    if work.row(table, key) is not None and not work.server.writes_elsewhere(work, table, key):
        return False
    new_lock = await work.lock(table, key, UPDATE)
    if work.row(table, key) is None:
        work.put(table, key, row)
        return True
    if new_lock:
        work.unlock(table, key)
    return False


async def _change(work: Work, table: str, keys: Iterable[Key], changed: Any, *, mode: int = NO_KEY_UPDATE) -> list[Key]:
    """UPDATE or DELETE of those that are there: `changed` makes the new row of the old, or the old one itself when it no longer matches."""
    done: list[Key] = []
    for key, deletions in _seen(work, table, keys):
        old = await _row_locked(work, table, key, deletions, mode)
        if old is not None and (new := changed(key, old)) is not old:
            work.put(table, key, new)
            done.append(key)
    return done


async def _locked(work: Work, table: str, keys: Iterable[Key], mode: int) -> list[tuple[Key, Any]]:
    """SELECT … FOR …, in this order."""
    found: list[tuple[Key, Any]] = []
    for key, deletions in _seen(work, table, keys):
        row = await _row_locked(work, table, key, deletions, mode)
        if row is not None:
            found.append((key, row))
    return found


def _seen(work: Work, table: str, keys: Iterable[Key]) -> list[tuple[Key, int]]:
    """Those that are visible now, and how often a row of the key was deleted before."""
    return [(key, work.server.deletions[table, key]) for key in keys if work.row(table, key) is not None]


async def _row_locked(work: Work, table: str, key: Key, deletions: int, mode: int) -> Any:
    """None: whoever was waited for has deleted it, and then there is nothing to hold, though there may be another of this key."""
    new_lock = await work.lock(table, key, mode)
    row = work.row(table, key) if work.server.deletions[table, key] == deletions else None
    if row is None and new_lock:
        work.unlock(table, key)
    return row


async def _upsert(work: Work, table: str, key: Key, new: Any, merged: Any) -> Any:
    """INSERT … ON CONFLICT DO UPDATE."""
    await work.lock(table, key, UPDATE if work.row(table, key) is None else NO_KEY_UPDATE)
    old = work.row(table, key)
    row = new if old is None else merged(old)
    work.put(table, key, row)
    return row


async def _refer(work: Work, table: str, number: int | None) -> None:
    """A foreign key to a numbered row: it must not go away."""
    for key, row in work.rows(table):
        if number is not None and row[0] == number:
            await work.lock(table, key, KEY_SHARE)


def jsonb(text: str) -> str:
    """As PostgreSQL prints it: keys by their length, then their bytes."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value, key=lambda key: (len(key.encode()), key.encode()))}
        return [ordered(item) for item in value] if isinstance(value, list) else value

    return json.dumps(ordered(json.loads(text, parse_float=Decimal)), ensure_ascii=False)


def _rows(*columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True))


# ---- chains.sql


@statement
async def chains_add(work: Work, writers: Sequence[bytes], partitions: Sequence[int]) -> None:
    for key in sorted(_rows(writers, partitions)):
        await _add(work, "chains", key, Chain(0, None))


@statement
async def chains_lock(work: Work, writers: Sequence[bytes], partitions: Sequence[int]) -> list[Any]:
    keys = sorted(_rows(writers, partitions))
    return [(*key, *row) for key, row in await _locked(work, "chains", keys, UPDATE)]


@statement
async def chains_store(work: Work, writers: Sequence[bytes], partitions: Sequence[int], last: Sequence[int], held: Sequence[Any]) -> None:
    new = {(writer, partition): Chain(n, why) for writer, partition, n, why in _rows(writers, partitions, last, held)}
    await _change(work, "chains", new, lambda key, _: new[key])


@statement
async def records_known(work: Work, writers: Sequence[bytes], partitions: Sequence[int], numbers: Sequence[int]) -> list[Any]:
    asked = _rows(writers, partitions, numbers)
    known = [(*key, record.hash) for key in asked if (record := work.row("records", key)) is not None]
    among = set(asked)
    parked = [row for _, row in work.rows("parked") if row.sound and (row.writer, row.partition, row.n) in among]
    return known + [(row.writer, row.partition, row.n, row.hash) for row in parked]


_PARKED_ROW = Row.named("id", "n", "log", "stream", "next_position", "header_names", "header_values", "value")


@statement
async def parked_next(work: Work, writer: bytes, partition: int, after: int, most: int) -> list[Any]:
    rows = [row for row in _parked(work, writer, partition) if row.n > after and row.sound]
    rows.sort(key=lambda row: (row.n, row.id))
    return [
        _PARKED_ROW((row.id, row.n, row.log, row.stream, row.next_position, row.header_names, row.header_values, row.value))
        for row in rows[:most]
    ]


def _parked(work: Work, writer: bytes, partition: int) -> list[Parked]:
    return [row for _, row in work.rows("parked") if (row.writer, row.partition) == (writer, partition)]


@statement
async def parked_add(work: Work, writer: bytes, partition: int, n: int, hash_hex: str, *rest: Any) -> None:
    row = Parked(work.server.next_number("parked"), writer, partition, n, hash_hex, *rest)
    key = _place(row)
    await work.lock("parked", key, UPDATE if work.row("parked", key) is None else NO_KEY_UPDATE)
    old = work.row("parked", key)
    if old is None:
        work.put("parked", key, row)
    elif row.sound and not old.sound and old.missing:
        work.put("parked", key, row._replace(id=old.id))


@statement
async def stray_add(work: Work, hash_hex: str, *rest: Any) -> None:
    row = Parked(work.server.next_number("parked"), None, None, None, hash_hex, *rest)
    await _add(work, "parked", _place(row), row)


@statement
async def stray_accept(work: Work, number: int) -> str:
    keys = [key for key, row in work.rows("parked") if row.writer is None and row.id == number]
    return f"UPDATE {len(await _change(work, 'parked', keys, lambda _, row: row._replace(missing=False)))}"


def _place(row: Parked) -> Key:
    if row.writer is None:
        return ("stray", row.log, row.stream, row.next_position)
    return ("place", row.writer, row.partition, row.n, row.hash)


@statement
async def parked_applied(work: Work, numbers: Sequence[int]) -> None:
    keys = [key for key, row in work.rows("parked") if row.id in numbers]
    await _change(work, "parked", keys, lambda *_: None, mode=UPDATE)


@statement
async def parked_settle(work: Work, writer: bytes, partition: int, last_n: int) -> None:
    def settled(_: Key, row: Parked) -> Parked:
        return row._replace(missing=False) if row.n is not None and row.n <= last_n and row.missing and not row.sound else row

    await _change(work, "parked", [_place(row) for row in _parked(work, writer, partition) if settled((), row) is not row], settled)


@statement
async def chains_due(work: Work) -> list[Any]:
    due = {(row.writer, row.partition, row.n) for _, row in work.rows("parked") if row.sound}
    return sorted(key for key, chain in work.rows("chains") if chain.held is None and (*key, chain.last_n + 1) in due)


@statement
async def chain_release(work: Work, writer: bytes, partition: int) -> str:
    def released(_: Key, chain: Chain) -> Chain:
        return chain if chain.held is None else chain._replace(held=None)

    held = [key for key in [(writer, partition)] if (chain := work.row("chains", key)) is not None and chain.held is not None]
    return f"UPDATE {len(await _change(work, 'chains', held, released))}"


@statement
async def parked_accept(work: Work, writer: bytes, partition: int) -> None:
    chain = work.row("chains", (writer, partition))
    last_n = -1 if chain is None else chain.last_n

    def accepted(_: Key, row: Parked) -> Parked:
        return row._replace(missing=False) if row.n is not None and row.n <= last_n and row.missing else row

    await _change(work, "parked", [_place(row) for row in _parked(work, writer, partition) if accepted((), row) is not row], accepted)


_RIVAL = Row.named("id", "n")


@statement
async def parked_rivals(work: Work, writer: bytes, partition: int) -> list[Any]:
    chain = work.row("chains", (writer, partition))
    if chain is None:
        return []
    sound = [row for row in _parked(work, writer, partition) if row.sound and row.n > chain.last_n]
    times = Counter(row.n for row in sound)
    return [_RIVAL((row.id, row.n)) for row in sorted(sound, key=lambda row: (row.n, row.id)) if times[row.n] > 1]


@statement
async def parked_reject(work: Work, numbers: Sequence[int]) -> None:
    keys = [key for key, row in work.rows("parked") if row.id in numbers]
    await _change(work, "parked", keys, lambda _, row: row._replace(sound=False, missing=False))


@statement
async def parked_choose(work: Work, numbers: Sequence[int], reason: str) -> None:
    keys = [key for key, row in work.rows("parked") if row.id in numbers]
    await _change(work, "parked", keys, lambda _, row: row._replace(reason=reason))


@statement
async def parked_leave_out(work: Work, writer: bytes, partition: int, last_n: int, reason: str, chosen: str) -> list[Any]:
    def left_out(_: Key, row: Parked) -> Parked:
        fits = row.n is not None and row.n > last_n and row.sound and row.reason != chosen
        return row._replace(sound=False, missing=True, reason=reason) if fits else row

    rows = [_place(row) for row in _parked(work, writer, partition) if left_out((), row) is not row]
    return [(n,) for _, _, _, n, _ in await _change(work, "parked", rows, left_out)]


@statement
async def parked_take_up(work: Work, writer: bytes, partition: int, behind: str, number: int | None, chosen: str) -> str:
    keys = [_place(row) for row in _left_out(work, writer, partition, behind) if number in (None, row.id)]
    return f"UPDATE {len(await _change(work, 'parked', keys, lambda _, row: row._replace(sound=True, reason=chosen)))}"


@statement
async def parked_give_up(work: Work, writer: bytes, partition: int, behind: str) -> str:
    keys = [_place(row) for row in _left_out(work, writer, partition, behind)]
    return f"UPDATE {len(await _change(work, 'parked', keys, lambda _, row: row._replace(missing=False)))}"


def _left_out(work: Work, writer: bytes, partition: int, behind: str) -> list[Parked]:
    return [row for row in _parked(work, writer, partition) if row.reason == behind and row.missing and not row.sound]


@statement
async def positions_of(work: Work, log: str, streams: Sequence[str]) -> list[Any]:
    return [(stream, at) for stream in streams if (at := work.row("positions", (log, stream))) is not None]


@statement
async def positions_store(work: Work, log: str, streams: Sequence[str], positions: Sequence[int]) -> None:
    for stream, position in sorted(_rows(streams, positions)):
        await _upsert(work, "positions", (log, stream), position, lambda old, new=position: max(old, new))


@statement
async def progress_store(work: Work, log: str, as_of_us: int, streams: Sequence[str], ends: Sequence[int]) -> list[Any]:
    if any(row.missing for _, row in work.rows("parked")):
        return []
    if any(end > (work.row("positions", (log, stream)) or 0) for stream, end in _rows(streams, ends)):
        return []
    return [(await _upsert(work, "progress", (log,), as_of_us, lambda old: max(old, as_of_us)),)]


async def copy_records(work: Work, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    assert list(columns) == ["writer", "partition", "n", *Record._fields]
    for writer, partition, n, *rest in rows:
        if not await _add(work, "records", (writer, partition, n), Record(*rest)):
            raise UniqueViolationError('duplicate key value violates unique constraint "records_pkey"')


# ---- usage.sql


@statement
async def meters_turn(work: Work) -> list[Any]:
    await work.lock("advisory", ("parshall new meters",), UPDATE)
    return [(None,)]


@statement
async def meters_add(work: Work, name: str, aggregation: str, scale: int, window_s: int, dimensions: Sequence[str]) -> None:
    row = Meter(work.server.next_number("meters"), aggregation, scale, window_s, tuple(dimensions))
    await _add(work, "meters", (name,), row)


@statement
async def meter_named(work: Work, name: str) -> list[Any]:
    row = work.row("meters", (name,))
    return [] if row is None else [(row.meter, name, row.aggregation, row.scale, row.window_s, list(row.dimensions))]


@statement
async def meters_known(work: Work) -> list[Any]:
    rows = sorted((row.meter, name, row) for (name,), row in work.rows("meters"))
    return [(name, row.aggregation, row.scale, row.window_s, list(row.dimensions)) for _, name, row in rows]


@statement
async def meter_hashes_add(work: Work, meter: int, hash_hex: str) -> None:
    if await _add(work, "meter_hashes", (meter, hash_hex), ()):
        await _refer(work, "meters", meter)


@statement
async def tenants_add(work: Work, names: Sequence[str]) -> None:
    for name in sorted(names):
        await _add(work, "tenants", (name,), Tenant(work.server.next_number("tenants"), None))


@statement
async def tenants_lock(work: Work, names: Sequence[str]) -> list[Any]:
    found = await _locked(work, "tenants", [(name,) for name in sorted(names)], KEY_SHARE)
    return [(row.tenant, name, row.book) for (name,), row in found]


@statement
async def series_add(work: Work, *columns: Sequence[Any]) -> None:
    for series, tenant, meter, subject, dimensions in sorted(_rows(*columns)):
        await _add(work, "series", (series,), Series(tenant, meter, subject, jsonb(dimensions)))


@statement
async def folded_make(work: Work) -> None:
    assert not work.folded


async def copy_folded(work: Work, content: bytes) -> None:
    for line in content.decode().splitlines():
        maximum, series, start, value, events = line.split("\t")
        work.folded.append((maximum == "t", series, int(start), int(value), int(events)))


@statement
async def usage_add(work: Work) -> None:
    await _fold(work, maximum=False, merged=lambda old, value: old + value)


@statement
async def usage_raise(work: Work) -> None:
    await _fold(work, maximum=True, merged=max)


async def _fold(work: Work, *, maximum: bool, merged: Any) -> None:
    for kind, series, start, value, events in sorted(work.folded):
        if kind == maximum:
            new = Usage(value, events)
            key = (series, start)
            await _upsert(work, "usage", key, new, lambda old, new=new: Usage(merged(old.value, new.value), old.events + new.events))


@statement
async def tallies_add(work: Work, *columns: Sequence[Any]) -> None:
    for tenant, writer, verdict, events in sorted(_rows(*columns)):
        await _upsert(work, "tallies", (tenant, writer, verdict), events, lambda old, more=events: old + more)


# ---- charges.sql


@statement
async def book_numbered(work: Work, number: int) -> list[Any]:
    return [(row.definition,) for _, row in work.rows("price_books") if row.book == number]


@statement
async def periods_of(work: Work, tenants: Sequence[int], periods: Sequence[str]) -> list[Any]:
    return [(*key, row.book) for key in _rows(tenants, periods) if (row := work.row("periods", key)) is not None]


@statement
async def periods_add(work: Work, *columns: Sequence[Any]) -> None:
    for tenant, period, start_s, end_s, book in sorted(_rows(*columns), key=lambda row: row[:2]):
        if await _add(work, "periods", (tenant, period), Period(start_s, end_s, book)):
            await _refer(work, "tenants", tenant)
            await _refer(work, "price_books", book)


@statement
async def lines_add(work: Work, *columns: Sequence[Any]) -> list[Any]:
    added = []
    for line, tenant, period, subject, meter, price, dimensions, quantity, amount in sorted(_rows(*columns), key=lambda row: row[0]):
        row = Line(tenant, period, subject, meter, price, jsonb(dimensions), int(quantity), None if amount is None else Decimal(amount))
        if await _add(work, "charge_lines", (line,), row):
            added.append((line,))
    return added


@statement
async def lines_lock(work: Work, lines: Sequence[str]) -> list[Any]:
    found = await _locked(work, "charge_lines", [(line,) for line in sorted(lines)], UPDATE)
    return [(line, str(row.quantity)) for (line,), row in found]


@statement
async def lines_store(work: Work, lines: Sequence[str], quantities: Sequence[str], amounts: Sequence[str | None]) -> None:
    new = {
        (line,): (int(quantity), None if amount is None else Decimal(amount))
        for line, quantity, amount in _rows(lines, quantities, amounts)
    }
    await _change(work, "charge_lines", new, lambda key, old: old._replace(quantity=new[key][0], amount=new[key][1]))


_TENANT_ROW = Row.named("tenant", "book")


@statement
async def tenant_lock_alone(work: Work, name: str) -> list[Any]:
    return [_TENANT_ROW((row.tenant, row.book)) for _, row in await _locked(work, "tenants", [(name,)], UPDATE)]


@statement
async def book_find(work: Work, tenant: int, hash_hex: str) -> list[Any]:
    row = work.row("price_books", (tenant, hash_hex))
    return [] if row is None else [(row.book,)]


@statement
async def book_add(work: Work, tenant: int, hash_hex: str, definition: str) -> list[Any]:
    row = Book(work.server.next_number("price_books"), jsonb(definition))
    if not await _add(work, "price_books", (tenant, hash_hex), row):
        raise UniqueViolationError('duplicate key value violates unique constraint "price_books_tenant_hash_key"')
    await _refer(work, "tenants", tenant)
    return [(row.book,)]


@statement
async def tenant_set_book(work: Work, tenant: int, book: int) -> None:
    keys = [key for key, row in work.rows("tenants") if row.tenant == tenant]
    await _change(work, "tenants", keys, lambda _, row: row._replace(book=book))
    await _refer(work, "price_books", book)


@statement
async def periods_of_tenant(work: Work, tenant: int) -> list[Any]:
    return sorted((period, *row) for (of, period), row in work.rows("periods") if of == tenant)


@statement
async def period_set_book(work: Work, tenant: int, period: str, book: int) -> None:
    if await _change(work, "periods", [(tenant, period)], lambda _, row: row._replace(book=book)):
        await _refer(work, "price_books", book)


@statement
async def period_set_bounds(work: Work, tenant: int, period: str, start_s: int, end_s: int) -> None:
    await _change(work, "periods", [(tenant, period)], lambda _, row: row._replace(start_s=start_s, end_s=end_s))


@statement
async def periods_remove(work: Work, tenant: int) -> None:
    keys = [key for key, _ in work.rows("periods") if key[0] == tenant]
    await _change(work, "periods", keys, lambda *_: None, mode=UPDATE)


@statement
async def lines_remove(work: Work, tenant: int, period: str | None) -> None:
    keys = [key for key, row in work.rows("charge_lines") if row.tenant == tenant and period in (None, row.period)]
    await _change(work, "charge_lines", keys, lambda *_: None, mode=UPDATE)


@statement
async def usage_bounds(work: Work, tenant: int) -> list[Any]:
    mine = {key for (key,), series in work.rows("series") if series.tenant == tenant}
    starts = [start for (key, start), _ in work.rows("usage") if key in mine]
    return [(min(starts), max(starts)) if starts else (None, None)]


_TOTAL_ROW = Row.named("name", "aggregation", "scale", "window_s", "names", "subject", "dimensions", "quantity")


@statement
async def usage_of_period(work: Work, tenant: int, start_s: int, end_s: int) -> list[Any]:
    meters = {row.meter: (name, row) for (name,), row in work.rows("meters")}
    totals: dict[str, int] = {}
    for (key, start), cell in work.rows("usage"):
        series = work.row("series", (key,))
        if series is not None and series.tenant == tenant and series.meter in meters and start_s <= start < end_s:
            maximum = meters[series.meter][1].aggregation == "max"
            totals[key] = cell.value if key not in totals else max(totals[key], cell.value) if maximum else totals[key] + cell.value
    found = []
    for key in sorted(totals):
        series = work.row("series", (key,))
        name, meter = meters[series.meter]
        names = list(meter.dimensions)
        row = (name, meter.aggregation, meter.scale, meter.window_s, names, series.subject, series.dimensions, str(totals[key]))
        found.append(_TOTAL_ROW(row))
    return found


_SUBJECT_ROW = Row.named("subject", "total", "unpriced")
_EXACT = Context(prec=1000, traps=[Inexact])


@statement
async def totals_of_period(work: Work, tenant: int, period: str) -> list[Any]:
    totals: dict[str, tuple[Decimal | None, bool]] = {}
    for _, row in work.rows("charge_lines"):
        if (row.tenant, row.period) == (tenant, period):
            total, unpriced = totals.get(row.subject, (None, False))
            if row.amount is not None:
                total = row.amount if total is None else _EXACT.add(total, row.amount)
            totals[row.subject] = (total, unpriced or row.amount is None)
    return [
        _SUBJECT_ROW((subject, "0" if total is None else format(total, "f"), unpriced))
        for subject, (total, unpriced) in sorted(totals.items())
    ]


_LINE_ROW = Row.named("line", "quantity", "amount")


@statement
async def lines_of_period(work: Work, tenant: int, period: str) -> list[Any]:
    return [
        _LINE_ROW((line, str(row.quantity), None if row.amount is None else format(row.amount, "f")))
        for (line,), row in work.rows("charge_lines")
        if (row.tenant, row.period) == (tenant, period)
    ]
