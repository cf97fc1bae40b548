"""What a subject's usage costs in a month of its tenant's time zone.

A version of the prices governs a whole month: the one whose effective_from is the latest not after the month's first day. Each counter
goes to the first price of the list that is for its meter and whose `where` matches. A line is (price, values of its priced dimensions);
its quantity is the sum (max: the maximum) over the month. Amount: the free units are taken off, the rest fills the tiers, in exact
arithmetic; then it is rounded once, half to even. The total is the sum of the rounded lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation
from zoneinfo import ZoneInfo

from tests.oracle.config import Config, Price, PriceBook, PriceVersion
from tests.oracle.usage import Key, Usage

EXACT = Context(prec=1000, traps=[Inexact, InvalidOperation])
ROUNDED = Context(prec=1000, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])


@dataclass(frozen=True)
class LineKey:
    tenant: str
    period: str  # "2026-11"
    subject: str
    meter: str
    price: int  # position in the list; -1: no price matches
    dimensions: tuple[tuple[str, str], ...]  # the priced ones


@dataclass(frozen=True)
class TierShare:
    up_to: Decimal | None
    quantity: Decimal
    unit_price: Decimal
    amount: Decimal  # not rounded


@dataclass(frozen=True)
class Line:
    quantity: Decimal
    amount: Decimal | None  # None: unpriced
    tiers: tuple[TierShare, ...]


Charges = dict[LineKey, Line]


def charge(usage: Usage, config: Config) -> Charges:
    quantities: dict[LineKey, int] = {}
    for key, cell in usage.items():
        line = _line_of(key, config)
        if line not in quantities:
            quantities[line] = cell.value
        elif config.meter(key.meter).aggregation == "max":
            quantities[line] = max(quantities[line], cell.value)
        else:
            quantities[line] += cell.value
    return {line: _priced(line, scaled, config) for line, scaled in quantities.items()}


def total(charges: Charges, tenant: str, subject: str, period: str) -> Decimal:
    amounts = [
        line.amount
        for key, line in charges.items()
        if (key.tenant, key.subject, key.period) == (tenant, subject, period) and line.amount is not None
    ]
    result = Decimal(0)
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


def _line_of(key: Key, config: Config) -> LineKey:
    book = config.books.get(key.tenant)
    local = datetime.fromtimestamp(key.start_s, ZoneInfo(book.timezone if book else "UTC"))
    period = f"{local.year:04}-{local.month:02}"
    prices = _version(book, local.date().replace(day=1)).prices if book else ()
    values = dict(key.dimensions)
    for position, price in enumerate(prices):
        if price.meter == key.meter and all(values.get(name) == wanted for name, wanted in price.where.items()):
            dimensions = tuple((name, values[name]) for name in price.dimensions)
            return LineKey(key.tenant, period, key.subject, key.meter, position, dimensions)
    return LineKey(key.tenant, period, key.subject, key.meter, -1, ())


def _version(book: PriceBook, first_day: date) -> PriceVersion:
    governing = PriceVersion(date.min, ())
    for version in book.versions:
        if governing.effective_from <= version.effective_from <= first_day:
            governing = version
    return governing


def _priced(line: LineKey, scaled: int, config: Config) -> Line:
    quantity = EXACT.scaleb(Decimal(scaled), -config.meter(line.meter).scale)
    if line.price < 0:
        return Line(quantity, None, ())
    book = config.books[line.tenant]
    year, month = map(int, line.period.split("-"))
    tiers = shares(quantity, _version(book, date(year, month, 1)).prices[line.price])
    exact = Decimal(0)
    for tier in tiers:
        exact = EXACT.add(exact, tier.amount)
    return Line(quantity, ROUNDED.quantize(exact, EXACT.scaleb(Decimal(1), -book.decimal_places)), tiers)


def shares(quantity: Decimal, price: Price) -> tuple[TierShare, ...]:
    """How a quantity falls into the tiers, one unit price each."""
    left = EXACT.subtract(quantity, price.free)
    filled = Decimal(0)
    result = []
    for tier in price.tiers:
        if left <= 0:
            break
        takes = left if tier.up_to is None else min(left, EXACT.subtract(tier.up_to, filled))
        amount = EXACT.divide(EXACT.multiply(takes, tier.unit_price), price.per)
        result.append(TierShare(tier.up_to, takes, tier.unit_price, amount))
        left = EXACT.subtract(left, takes)
        filled = EXACT.add(filled, takes)
    return tuple(result)
