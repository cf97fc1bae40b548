"""The price model `graduated`: units fill one tier after the other, each at the tier's own price. Pure.

`up_to` is cumulative and inclusive, in billable units (after the free allowance): with up_to = 10 the tenth unit is still in the tier.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from rater.prices.money import EXACT, ZERO, Amount
from rater.prices.price import Price, Tier


class PricedTier(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    up_to: Amount | None = None
    unit_price: Amount


def _rising(tiers: tuple[PricedTier, ...]) -> tuple[PricedTier, ...]:
    if not tiers:
        raise ValueError("at least one tier")
    if tiers[-1].up_to is not None:
        raise ValueError("the last tier has no up_to: it takes all that is left")
    bounds = [tier.up_to for tier in tiers[:-1]]
    if None in bounds:
        raise ValueError("every tier but the last has an up_to")
    known = [ZERO, *(bound for bound in bounds if bound is not None)]
    for lower, upper in pairwise(known):
        if upper <= lower:
            raise ValueError(f"each up_to is above the one before (up_to {upper} follows {lower}): they count from the first billable unit")
    return tiers


class Graduated(Price):
    model: Literal["graduated"]
    tiers: Annotated[tuple[PricedTier, ...], AfterValidator(_rising)]

    def tiers_of(self, billable: Decimal) -> tuple[Tier, ...]:
        reached = []
        start = ZERO
        for tier in self.tiers:
            if billable <= start:
                break
            end = billable if tier.up_to is None else min(billable, tier.up_to)
            reached.append(self.tier(tier.up_to, EXACT.subtract(end, start), tier.unit_price))
            start = end
        return tuple(reached)
