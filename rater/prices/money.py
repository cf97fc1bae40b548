"""Decimal arithmetic for quantities and money: exact everywhere, rounded in one declared place.

Pure. Belongs here: the two contexts, reading numbers, printing them. Must not know: price models, usage.

Python's default context rounds every sum at 28 digits without a word; this one raises `Inexact` instead. Floats are refused on sight.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Clamped, Context, Decimal, DivisionByZero, FloatOperation, Inexact, InvalidOperation, Overflow
from functools import cache
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

# A quantity has at most some 60 digits (38 a counter, added up), and 38 decimal places once `free` is taken off; a price at most
# PRICE_DIGITS; `per` adds up to 59 decimal places. Tiers of both extremes, added up, take 218.
DIGITS = 250
PRICE_DIGITS = 40

# Every operation is exact or raises.
EXACT = Context(prec=DIGITS, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow, FloatOperation, Clamped])

# The one place where money is rounded: `round_money`.
_ROUNDING = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow, FloatOperation])

_PLAIN_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)

ZERO = Decimal(0)


def round_money(exact: Decimal, decimal_places: int) -> Decimal:
    """Half to even: the declared rounding of a charge line."""
    return exact.quantize(_unit(decimal_places), context=_ROUNDING)


@cache
def _unit(decimal_places: int) -> Decimal:
    return EXACT.scaleb(Decimal(1), -decimal_places)


def from_scaled(scaled: int, scale: int) -> Decimal:
    """12345 with scale 2 -> 123.45, exactly."""
    return EXACT.scaleb(EXACT.create_decimal(scaled), -scale)


def plain(number: Decimal) -> str:
    """Without an exponent and without trailing zeros behind the point."""
    return format(EXACT.normalize(number), "f")


def scaled_text(scaled: int, scale: int) -> str:
    """12345 with scale 2 -> "123.45": all places of the scale are shown."""
    return format(from_scaled(scaled, scale), "f")


def _read_amount(given: object) -> Decimal:
    if isinstance(given, bool) or not isinstance(given, str | int | Decimal):
        raise ValueError('a number of at least 0, as text ("0.09"), a whole number or a decimal; never a float')
    text = format(given, "f") if isinstance(given, Decimal) and given.is_finite() else str(given)
    if not _PLAIN_NUMBER.fullmatch(text):
        raise ValueError('a number of at least 0 in plain digits, as in "0.09" or 1000000')
    if len(text) > PRICE_DIGITS:
        raise ValueError(f"a number of at most {PRICE_DIGITS} characters")
    return Decimal(text)


# A price, an allowance or a bound in a configuration: text, int or Decimal; never a float; not negative.
# As JSON (the definition that is stored) it is plain digits too: Python would write 0.0000004 as 4E-7.
Amount = Annotated[Decimal, BeforeValidator(_read_amount), PlainSerializer(lambda amount: format(amount, "f"), str, when_used="json")]
