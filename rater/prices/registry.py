"""The price models there are. A new one is a file beside per_unit.py and an entry here. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rater.prices.graduated import Graduated
from rater.prices.per_unit import PerUnit

AnyPrice = Annotated[PerUnit | Graduated, Field(discriminator="model")]

MODELS = ("per_unit", "graduated")
PRICE_FIELDS = ", ".join(sorted(PerUnit.model_fields.keys() | Graduated.model_fields.keys()))
