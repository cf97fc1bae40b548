"""The price models there are. A new one is a file beside per_unit.py and an entry here. Pure."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from rater.prices.graduated import Graduated
from rater.prices.per_unit import PerUnit
from rater.prices.price import Price

AnyPrice = Annotated[PerUnit | Graduated, Field(discriminator="model")]


def model_of(price: Price) -> str:
    """The name that a book gives it."""
    (name,) = get_args(type(price).model_fields["model"].annotation)
    return str(name)


MODELS = ("per_unit", "graduated")
PRICE_FIELDS = ", ".join(sorted(PerUnit.model_fields.keys() | Graduated.model_fields.keys()))
