"""Charges from scratch: when a price book changes, and to prove that the running charges are right.

Belongs here: computing a month's charge lines from usage alone, and replacing those that are stored. Must not know: records, sources.
Everything happens under the exclusive lock of the tenant's row, which no rater shares meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from buffer.counters import MeterDefinition
from rater.configured import ConfigurationRefused
from rater.fold import Series, name_digest
from rater.period import Period, is_closed, month_labelled, months_between, period_of
from rater.prices.book import PriceBook
from rater.prices.money import EXACT, ZERO
from rater.pricing import BookInForce, ChargeLine, PricedPeriod, add_to_line
from rater.transaction import CHARGES, USAGE, Connection, book_in_force, line_columns

TIMEOUT_S = 3600  # a month of a large tenant takes longer than other statements may


class ReRated(NamedTuple):
    """A month that was charged again, with its total over all subjects before and after."""

    tenant: str
    period: str
    lines: int
    before: Decimal
    after: Decimal


class Put(NamedTuple):
    """What came of a price book."""

    charged_again: list[ReRated]
    closed: list[str]  # months that a new book prices otherwise, but that are closed: they stay as they were charged


async def put_book(connection: Connection, book: PriceBook, *, now_s: int, late_s: int) -> Put:
    """Make a book the one in force, within the caller's transaction. Open months that it prices differently are charged again, and so are
    those that the rules of its time zone bound otherwise by now.

    A month that is closed keeps the book it was charged with; a month that was charged without any book gets this one. Raises
    ConfigurationRefused.
    """
    await connection.execute(USAGE["tenants_add"], [book.tenant])
    tenant, before = await connection.fetchrow(CHARGES["tenant_lock_alone"], book.tenant)
    definition = book.model_dump_json()
    digest = name_digest(definition)
    number = await connection.fetchval(CHARGES["book_find"], tenant, digest)
    if number is None:
        number = await connection.fetchval(CHARGES["book_add"], tenant, digest, definition)
    new = BookInForce(number, book)
    if number != before:
        await connection.execute(CHARGES["tenant_set_book"], tenant, number)
    if before is None:
        return Put(await _charge_all_again(connection, tenant, new, book.tenant), [])
    put = await _charge_open_again(connection, tenant, new, now_s, late_s)  # also where it is not new: a month may be open again by now
    return put if number != before else Put(put.charged_again, [])


async def _charge_all_again(connection: Connection, tenant: int, new: BookInForce, name: str) -> list[ReRated]:
    """The tenant had no book, so its months were those of UTC: made anew from all its usage."""
    await connection.execute(CHARGES["lines_remove"], tenant, None, timeout=TIMEOUT_S)
    await connection.execute(CHARGES["periods_remove"], tenant)
    first_s, last_s = await connection.fetchrow(CHARGES["usage_bounds"], tenant, timeout=TIMEOUT_S)
    if first_s is None:
        return []
    periods = list(months_between(first_s, last_s + 1, new.zone))
    done = []
    for period in periods:
        await connection.execute(CHARGES["periods_add"], [tenant], [period.label], [period.start_s], [period.end_s], [new.number])
        done.append(await _charge_again(connection, tenant, name, period, new))
    return done


async def check_book(connection: Connection, book: PriceBook) -> None:
    """Raises ConfigurationRefused where `put_book` would."""
    row = await connection.fetchrow(CHARGES["tenant_lock_alone"], book.tenant)
    if row is None or row["book"] is None:
        return
    books: dict[int | None, BookInForce] = {}
    for *_, number in await connection.fetch(CHARGES["periods_of_tenant"], row["tenant"]):
        _same_months(await book_in_force(connection, books, number), book)


def _same_months(old: BookInForce, book: PriceBook) -> None:
    """Raises ConfigurationRefused."""
    assert old.book is not None, "months without a book are made anew when the first book comes"
    if old.book.timezone != book.timezone:
        raise ConfigurationRefused(
            f"price_books: tenant {book.tenant!r} has charges by months of {old.book.timezone}: the time zone of its price book cannot "
            f"become {book.timezone}; allowed: timezone = {old.book.timezone!r}"
        )


async def _charge_open_again(connection: Connection, tenant: int, new: BookInForce, now_s: int, late_s: int) -> Put:
    assert new.book is not None
    done, closed = [], []
    books: dict[int | None, BookInForce] = {}
    moved = await _follow_zone(connection, tenant, new, now_s, late_s)
    for label, start_s, end_s, number in await connection.fetch(CHARGES["periods_of_tenant"], tenant):
        if number == new.number and label not in moved:
            continue
        old = await book_in_force(connection, books, number)
        _same_months(old, new.book)
        period = Period(label, start_s, end_s)
        differs = label in moved or old.governs(period) != new.governs(period)
        if is_closed(end_s, now_s, late_s):
            closed += [label] if differs else []
            continue
        await connection.execute(CHARGES["period_set_book"], tenant, label, new.number)
        if differs:
            done.append(await _charge_again(connection, tenant, new.book.tenant, period, new))
    return Put(done, closed)


async def _follow_zone(connection: Connection, tenant: int, new: BookInForce, now_s: int, late_s: int) -> set[str]:
    """The rules of a time zone change: the bounds of months that are not final follow them. Which months that changed."""
    moved: set[str] = set()
    for label, *bounds, _ in await connection.fetch(CHARGES["periods_of_tenant"], tenant):
        if is_closed(bounds[1], now_s, late_s):
            continue
        by_rules = month_labelled(label, new.zone)[1:]
        start_s, end_s = (bound if is_closed(bound, now_s, late_s) else rule for bound, rule in zip(bounds, by_rules, strict=True))
        if [start_s, end_s] == bounds:
            continue
        await connection.execute(CHARGES["period_set_bounds"], tenant, label, start_s, end_s)
        beside = [period_of(start_s - 1, new.zone)] if start_s > bounds[0] else []
        beside += [period_of(end_s, new.zone)] if end_s < bounds[1] else []
        for period in beside:  # what goes there may be its first usage
            await connection.execute(CHARGES["periods_add"], [tenant], [period.label], [period.start_s], [period.end_s], [new.number])
        moved |= {label, *(period.label for period in beside)}
    return moved


async def _charge_again(connection: Connection, tenant: int, name: str, period: Period, book: BookInForce) -> ReRated:
    lines, quantities = await lines_from_usage(connection, tenant, name, period, book)
    stored = _stored(await connection.fetch(CHARGES["lines_of_period"], tenant, period.label, timeout=TIMEOUT_S))
    await replace_lines(connection, tenant, period, lines, quantities)
    before = total_of(amount for _, amount in stored.values())
    return ReRated(name, period.label, len(lines), before, total_of(line.amount(quantities[line.key]) for line in lines.values()))


async def replace_lines(
    connection: Connection, tenant: int, period: Period, lines: Mapping[str, ChargeLine], quantities: Mapping[str, int]
) -> None:
    """Put these in the place of the month's charge lines."""
    await connection.execute(CHARGES["lines_remove"], tenant, period.label, timeout=TIMEOUT_S)
    ordered = [lines[key] for key in sorted(lines)]
    numbers = {line.tenant: tenant for line in ordered}
    await connection.execute(CHARGES["lines_add"], *line_columns(ordered, numbers, quantities), timeout=TIMEOUT_S)


def total_of(amounts: Iterable[Decimal | None]) -> Decimal:
    total = ZERO
    for amount in amounts:
        total = EXACT.add(total, amount or ZERO)
    return total


async def lines_from_usage(
    connection: Connection, tenant: int, name: str, period: Period, book: BookInForce
) -> tuple[dict[str, ChargeLine], dict[str, int]]:
    """A month's charge lines and their quantities, from usage and the book alone."""
    priced = PricedPeriod(name, period.label, book)
    lines: dict[str, ChargeLine] = {}
    quantities: dict[str, int] = {}
    for row in await connection.fetch(CHARGES["usage_of_period"], tenant, period.start_s, period.end_s, timeout=TIMEOUT_S):
        meter = MeterDefinition(row["name"], "", row["aggregation"], row["scale"], row["window_s"], tuple(row["names"]))
        line = priced.line(Series(name, meter, row["subject"], tuple(json.loads(row["dimensions"]))))
        lines[line.key] = line
        add_to_line(quantities, line, int(row["quantity"]))
    return lines, quantities


class Difference(NamedTuple):
    """A charge line that is not what usage and price book make it."""

    tenant: str
    period: str
    line: str
    computed: tuple[int, Decimal | None] | None  # quantity (scaled integer), amount
    stored: tuple[int, Decimal | None] | None


async def check_charges(connection: Connection, tenant_name: str) -> list[Difference]:
    """Every charge line of a tenant against what usage makes it, within the caller's transaction. Empty: all agree."""
    row = await connection.fetchrow(CHARGES["tenant_lock_alone"], tenant_name)
    differences: list[Difference] = []
    books: dict[int | None, BookInForce] = {None: BookInForce(None, None)}
    for label, start_s, end_s, number in await connection.fetch(CHARGES["periods_of_tenant"], row["tenant"]) if row else ():
        book = await book_in_force(connection, books, number)
        lines, quantities = await lines_from_usage(connection, row["tenant"], tenant_name, Period(label, start_s, end_s), book)
        computed = {key: (quantities[key], line.amount(quantities[key])) for key, line in lines.items()}
        stored = _stored(await connection.fetch(CHARGES["lines_of_period"], row["tenant"], label, timeout=TIMEOUT_S))
        differences += [
            Difference(tenant_name, label, key, computed.get(key), stored.get(key))
            for key in sorted(computed.keys() | stored.keys())
            if computed.get(key) != stored.get(key)
        ]
    return differences


def _stored(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, Decimal | None]]:
    return {row["line"]: (int(row["quantity"]), None if row["amount"] is None else Decimal(row["amount"])) for row in rows}
