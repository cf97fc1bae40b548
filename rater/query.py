"""Reading what is rated: usage, charges, tallies, chains.

Belongs here: running the named queries and giving their rows a shape. Must not know: query strings, HTTP, JSON answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from buffer.counters import MERGE_OF, MeterDefinition
from rater.period import Period, month_labelled
from rater.prices.book import PriceBook
from rater.prices.money import from_scaled
from rater.prices.price import Line, rate
from rater.pricing import UNPRICED, BookInForce
from rater.questions import ChargesQuestion, UsageQuestion
from rater.statements import statements
from rater.turns import in_turns

QUERY = statements("query")


class WrongLine(Exception):
    """A stored charge is not what its price book makes it: somebody changed it, or a defect. One clause that says which."""


class UsageRow(NamedTuple):
    start_s: int
    end_s: int
    subject: str | None
    dimensions: Mapping[str, str]
    value: int  # scaled by the meter's scale
    events: int


class ChargeRow(NamedTuple):
    meter: str
    dimensions: Mapping[str, str]
    quantity: Decimal
    amount: Decimal | None  # None: unpriced
    line: Line | None  # how the amount came about
    price_from: date | None  # the first day of the version of the book that the price stands in


class Charges(NamedTuple):
    book: PriceBook | None
    period: Period
    rows: Mapping[str, Sequence[ChargeRow]]  # by subject, in the order of pages
    more: bool  # whether there are subjects behind these


class Tally(NamedTuple):
    tenant: str
    writer: bytes
    verdict: str  # received, accepted, duplicate, or a rejection code
    events: int


class ChainState(NamedTuple):
    writer: bytes
    partition: int
    last_n: int
    held: str | None
    parked: int


class ParkedRecord(NamedTuple):
    id: int
    writer: bytes | None
    partition: int | None
    n: int | None
    reason: str
    missing: bool
    sound: bool
    log: str
    stream: str
    next_position: int
    bytes: int
    parked_at: datetime


class Held(NamedTuple):
    """A writer in a partition of which something that should be rated is not."""

    writer: bytes
    partition: int
    last_n: int  # the last record that is rated
    held: str | None  # why no record is taken at all; None: one that has to come first is missing, or cannot be rated
    waiting: int  # parked records
    since: datetime | None
    id: int | None  # of the parked record with the lowest number, like the next three
    n: int | None
    sound: bool | None
    reason: str | None
    last_unsound: int | None  # the highest number of a parked record whose bytes must not be rated


class Stray(NamedTuple):
    """A parked record whose headers do not tell its place."""

    id: int
    stream: str
    next_position: int
    reason: str
    parked_at: datetime


class Rating(NamedTuple):
    """How far rating has come, in numbers."""

    as_of_us: int | None
    parked: int  # records, explained ones included
    missing: int  # of them those whose usage is not rated
    held: int  # (writer, partition) pairs that take nothing more until a person decides
    waiting: int  # pairs in which something that should be rated is not


async def meter_named(pool: asyncpg.Pool, name: str) -> tuple[int, MeterDefinition] | None:
    """(number in this database, definition) of a meter with rated usage."""
    row = await pool.fetchrow(QUERY["meter_named"], name)
    if row is None:
        return None
    number, name, aggregation, scale, window_s, dimensions = row
    return number, MeterDefinition(name, "", aggregation, scale, window_s, tuple(dimensions))


async def meter_names(pool: asyncpg.Pool) -> list[str]:
    return [row[0] for row in await pool.fetch(QUERY["meter_names"])]


async def as_of_us(pool: asyncpg.Pool) -> int | None:
    """All that stood in the log at this time is rated; None: that was never so yet."""
    found: int | None = await pool.fetchval(QUERY["as_of"])
    return found


async def usage(pool: asyncpg.Pool, tenant: str, meter_number: int, asked: UsageQuestion, most_rows: int) -> Sequence[asyncpg.Record]:
    """Each as `usage_row` reads it: not all at once, as there may be many."""
    positions = [asked.meter.dimensions.index(name) for name in asked.group_by]
    found: Sequence[asyncpg.Record] = await pool.fetch(
        QUERY["usage_by_window"], tenant, meter_number, asked.subject, asked.bounds, positions, asked.by_subject, most_rows
    )
    return found


def usage_row(asked: UsageQuestion, found: asyncpg.Record) -> UsageRow:
    bucket, subject, dimensions, total, greatest, events = found
    return UsageRow(
        asked.bounds[bucket - 1],
        asked.bounds[bucket],
        subject,
        dict(zip(asked.group_by, dimensions, strict=True)),
        int(greatest if MERGE_OF[asked.meter.aggregation] == "max" else total),
        events,
    )


class TooMany(Exception):
    """Rows."""


async def charges(pool: asyncpg.Pool, tenant: str, asked: ChargesQuestion, most_rows: int) -> Charges:
    """Of one subject, which may have no line, or of a page of all that have some. Raises TooMany."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(QUERY["period_of"], tenant, asked.period)
        if row is None:
            definition = await connection.fetchval(QUERY["book_of_tenant"], tenant)
        else:
            definition = row["definition"]
        subjects = await _subjects(connection, tenant, asked)
        page = subjects[: asked.limit]
        bound = most_rows + 1 if len(page) > 1 else None  # one subject is answered whole, however much it is
        lines = await connection.fetch(QUERY["lines_of_subjects"], tenant, asked.period, page, bound)
    if bound is not None and len(lines) == bound:
        raise TooMany
    book = PriceBook.model_validate_json(definition) if definition else None
    period = (
        month_labelled(asked.period, BookInForce(None, book).zone) if row is None else Period(row["period"], row["start_s"], row["end_s"])
    )
    rows: dict[str, list[ChargeRow]] = {subject: [] for subject in page}
    async for some in in_turns(lines):
        for line in some:
            rows[line["subject"]].append(_charge_row(book, period, line))
    return Charges(book, period, rows, len(subjects) > asked.limit)


async def _subjects(connection: PoolConnectionProxy, tenant: str, asked: ChargesQuestion) -> list[str]:
    """One more than a page has, where there are more."""
    if asked.subject is not None:
        return [asked.subject]
    found = await connection.fetch(QUERY["subjects_of_period"], tenant, asked.period, asked.after, asked.limit + 1)
    return [row["subject"] for row in found]


def _charge_row(book: PriceBook | None, period: Period, row: asyncpg.Record) -> ChargeRow:
    quantity = from_scaled(int(row["quantity"]), row["scale"])
    amount = None if row["amount"] is None else Decimal(row["amount"])
    line, price_from = _explained(book, period, row, quantity)
    made = line.amount if line else None
    if made != amount or (line is None and row["price"] != UNPRICED):
        place = f"meter {row['meter']!r} of subject {row['subject']!r} in {period.label}"
        raise WrongLine(f"the stored charge of {place} is {_told(amount)} for {quantity}, and by the price book {_told(made)}")
    return ChargeRow(row["meter"], json.loads(row["dimensions"]), quantity, amount, line, price_from)


def _explained(book: PriceBook | None, period: Period, row: asyncpg.Record, quantity: Decimal) -> tuple[Line | None, date | None]:
    """What a stored line costs by the price that it names, if there is one for its meter, and since when."""
    version = book.version_for(period) if book else None
    if book is None or version is None or not 0 <= row["price"] < len(version.prices):
        return None, None
    price = version.prices[row["price"]]
    return (rate(quantity, price, book.decimal_places), version.effective_from) if price.meter == row["meter"] else (None, None)


def _told(amount: Decimal | None) -> str:
    return "none" if amount is None else format(amount, "f")


async def tallies(pool: asyncpg.Pool, tenant: str | None = None) -> list[Tally]:
    """Rated events by tenant, writer and verdict. The rated part of a tenant's ledger is the sum over writers; `accepted` is `rated`."""
    return [Tally(*row) for row in await pool.fetch(QUERY["tallies_of"], tenant)]


async def chains(pool: asyncpg.Pool) -> list[ChainState]:
    """How far each writer is rated in each partition: compare with what the writers' journals say they flushed."""
    return [ChainState(*row) for row in await pool.fetch(QUERY["chains"])]


async def held(pool: asyncpg.Pool) -> list[Held]:
    return [Held(*row) for row in await pool.fetch(QUERY["held"])]


async def strays(pool: asyncpg.Pool, most: int = 1000) -> list[Stray]:
    return [Stray(*row) for row in await pool.fetch(QUERY["strays"], most)]


async def parked_record(pool: asyncpg.Pool, number: int) -> tuple[dict[str, bytes], bytes] | None:
    """Headers and value of a parked record."""
    row = await pool.fetchrow(QUERY["parked_numbered"], number)
    return None if row is None else (dict(zip(row[0], row[1], strict=True)), row[2])


async def rating(connection: PoolConnectionProxy) -> Rating:
    row = await connection.fetchrow(QUERY["rating"])
    assert row is not None, "a query of aggregates has one row"
    return Rating(*row)


async def positions(connection: PoolConnectionProxy, log: str) -> dict[str, int]:
    return {row["stream"]: row["next_position"] for row in await connection.fetch(QUERY["positions"], log)}


async def parked(pool: asyncpg.Pool, most: int = 1000) -> list[ParkedRecord]:
    return [ParkedRecord(*row) for row in await pool.fetch(QUERY["parked"], most)]
