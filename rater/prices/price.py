"""What all price models have in common, and the pure function from a quantity to a charge line.

Pure. Belongs here: the fields every price has, the free allowance, the one rounding. Must not know: which models exist, books, periods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rater.prices.money import EXACT, ZERO, Amount, round_money

_MOST_PER = 10**18  # unless it is a power of ten
_PER_RULE = "a whole number from 1 to 10^18 made of twos and fives, as in 1000, 1024 or 1073741824: dividing by others is not exact"


class Tier(NamedTuple):
    """What one tier contributed to a line. Exact: nothing is rounded yet."""

    up_to: Decimal | None  # the tier's bound in billable units, those after the free allowance; None: no bound
    quantity: Decimal
    unit_price: Decimal
    amount: Decimal


class Line(NamedTuple):
    """What one charge line costs, and why."""

    price: Price
    amount: Decimal  # rounded once, half to even
    free: Decimal  # how much of the quantity was covered by the allowance
    tiers: tuple[Tier, ...]  # those that were reached


def _divides_exactly(number: Decimal) -> Decimal:
    """Twos and fives alone, so that every amount has finitely many decimal places, and few enough to be exact (money.py)."""
    if number >= 1 and number.normalize(EXACT).as_tuple().digits == (1,):
        return number
    if number < 1 or number > _MOST_PER or number != number.to_integral_value():
        raise ValueError(_PER_RULE)
    rest = int(number)
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    if rest != 1:
        raise ValueError(_PER_RULE)
    return number


def _texts(given: object) -> object:
    """Dimension values are text wherever usage is kept; a whole number in a book means the same."""
    if isinstance(given, Mapping):
        return {key: str(value) if isinstance(value, int) and not isinstance(value, bool) else value for key, value in given.items()}
    return given


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("text without NUL, which PostgreSQL cannot store")
    return text


_Text = Annotated[str, AfterValidator(_storable)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("each dimension once")
    return names


class Price(BaseModel):
    """One entry of a price version. Models add their own fields and say how billable units fall into tiers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    meter: _Text = Field(min_length=1)
    dimensions: Annotated[
        tuple[_Text, ...], AfterValidator(_distinct)
    ] = ()  # priced dimensions: a line for each combination of their values
    where: Annotated[dict[_Text, _Text], BeforeValidator(_texts)] = {}  # only counters with these dimension values
    free: Amount = ZERO  # units of each line that cost nothing, before the tiers
    per: Annotated[Amount, AfterValidator(_divides_exactly)] = Decimal(1)  # unit prices are for so many units

    @abstractmethod
    def tiers_of(self, billable: Decimal) -> tuple[Tier, ...]:
        """How a positive number of billable units falls into tiers."""

    def tier(self, up_to: Decimal | None, quantity: Decimal, unit_price: Decimal) -> Tier:
        return Tier(up_to, quantity, unit_price, EXACT.divide(EXACT.multiply(quantity, unit_price), self.per))

    def matches(self, dimensions: Mapping[str, str]) -> bool:
        return all(dimensions.get(name) == value for name, value in self.where.items())


def rate(quantity: Decimal, price: Price, decimal_places: int) -> Line:
    """The charge for all of a line's quantity in a period. What is not above the allowance (a negative total too) costs nothing."""
    if quantity <= price.free:
        return Line(price, round_money(ZERO, decimal_places), max(quantity, ZERO), ())
    tiers = price.tiers_of(EXACT.subtract(quantity, price.free))
    exact = ZERO
    for tier in tiers:
        exact = EXACT.add(exact, tier.amount)
    return Line(price, round_money(exact, decimal_places), price.free, tiers)
