"""The price model `per_unit`: every billable unit costs the same. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from rater.prices.money import Amount
from rater.prices.price import Price, Tier


class PerUnit(Price):
    model: Literal["per_unit"]
    unit_price: Amount

    def tiers_of(self, billable: Decimal) -> tuple[Tier, ...]:
        return (self.tier(None, billable, self.unit_price),)
