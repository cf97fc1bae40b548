"""Which charge line a counter belongs to, and what a line costs.

Pure. Belongs here: from (series, window) to (period, line), from a line's quantity to its amount. Must not know: PostgreSQL, records.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple
from zoneinfo import ZoneInfo

from buffer.counters import MERGE_OF
from rater.fold import Series, name_digest
from rater.period import Period, month_labelled, period_of
from rater.prices.book import PriceBook, PriceVersion, price_for
from rater.prices.money import from_scaled
from rater.prices.price import Price, rate

UNPRICED = -1
_KEPT_WINDOWS = 100_000
_UTC = ZoneInfo("UTC")


class BookInForce:
    """A tenant's book as the database numbers it; `book` None: the tenant has none, its months are UTC's and unpriced."""

    def __init__(self, number: int | None, book: PriceBook | None) -> None:
        self.number = number
        self.book = book
        self.zone = book.zone if book else _UTC
        self._periods: dict[int, Period] = {}

    def period_of(self, window_start_s: int) -> Period:
        period = self._periods.get(window_start_s)
        if period is None:
            if len(self._periods) >= _KEPT_WINDOWS:
                self._periods.clear()
            period = self._periods[window_start_s] = period_of(window_start_s, self.zone)
        return period

    def governs(self, period: Period) -> tuple[object, ...]:
        """All that a charge of that month depends on: equal for two books when the month costs the same in both."""
        if self.book is None:
            return (None,)
        return (self.book.currency, self.book.decimal_places, self.book.timezone, self.book.version_for(period))


class ChargeLine(NamedTuple):
    """One line of a subject's charges in a month."""

    key: str  # in the database
    tenant: str
    period: str
    subject: str
    meter: str
    scale: int
    maximum: bool  # whether quantities merge by their maximum
    position: int  # of the price in its version; UNPRICED
    price: Price | None
    decimal_places: int
    dimensions: Mapping[str, str]  # the priced ones

    def amount(self, quantity: int) -> Decimal | None:
        """The charge for a quantity, given as scaled integer; None: unpriced."""
        if self.price is None:
            return None
        return rate(from_scaled(quantity, self.scale), self.price, self.decimal_places).amount


class PricedPeriod:
    """A month of one tenant under one book."""

    def __init__(self, tenant: str, label: str, book: BookInForce) -> None:
        self.tenant = tenant
        self.label = label
        self.book = book
        self.decimal_places = book.book.decimal_places if book.book else 0
        self._period = month_labelled(label, book.zone)
        self.version: PriceVersion | None = book.book.version_for(self._period) if book.book else None
        self._lines: dict[Series, ChargeLine] = {}

    def __len__(self) -> int:
        """How many lines are kept."""
        return len(self._lines)

    def line(self, series: Series) -> ChargeLine:
        line = self._lines.get(series)
        if line is None:
            line = self._lines[series] = self._line(series)
        return line

    def _line(self, series: Series) -> ChargeLine:
        meter = series.meter
        found = price_for(self.version, meter, series.dimensions)
        # Of a window with the beginning of a month inside it cannot be told what belongs to which: without a price that shows.
        position, price = found if found and self._period.begins_and_ends_with(meter.window_s) else (UNPRICED, None)
        values = dict(zip(meter.dimensions, series.dimensions, strict=True))
        dimensions = {name: values[name] for name in (price.dimensions if price else ()) if name in values}
        key = name_digest(self.tenant, self.label, series.subject, meter.name, position, sorted(dimensions.items()))
        maximum = MERGE_OF[meter.aggregation] == "max"
        return ChargeLine(
            key, self.tenant, self.label, series.subject, meter.name, meter.scale, maximum, position, price, self.decimal_places, dimensions
        )


def add_to_line(into: dict[str, int], line: ChargeLine, quantity: int) -> None:
    """Merge a quantity into the line's, by the meter's law."""
    known = into.get(line.key)
    if known is None:
        into[line.key] = quantity
    elif line.maximum:
        into[line.key] = max(known, quantity)
    else:
        into[line.key] = known + quantity
