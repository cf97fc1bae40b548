"""A value as it was sent, made an exact scaled integer, or the reason why it cannot be.

Pure. Belongs here: which numbers count (JSON numbers and strings that are written as one) and their bounds. Must not know: events, meters.

No float: `decode_decimal` is what a JSON decoder is given for numbers with a fraction or an exponent.
"""

from __future__ import annotations

import json
import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation
from typing import Any, NamedTuple

from ingest.batch import INVALID_VALUE, TOO_MANY_DIGITS

MOST_DIGITS = 38
LIMIT = 10**MOST_DIGITS  # scaled values lie strictly between -LIMIT and LIMIT

# As JSON writes a number, so that " 1", "1_000", "+1", "0x10", "NaN" and digits of other scripts are no numbers.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

# Precise enough for everything that fits, and loud about everything that does not.
_EXACT = Context(prec=2 * MOST_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact, InvalidOperation])


class Fault(Exception):
    """Why an event is rejected: one of the codes in batch.py, and one sentence that names the field and the remedy."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Unwritable(NamedTuple):
    """Stands for a number whose exponent or length no exact arithmetic takes."""

    text: str


class Quantity(NamedTuple):
    """What a meter wants of a value."""

    field: str  # "data.bytes"
    meter: str
    scale: int
    signed: bool

    def scaled(self, value: Any) -> int:
        """The value times 10**scale, exactly. Raises Fault."""
        if value.__class__ is int:
            number = value * 10**self.scale
        else:
            plain = self._of_plain_text(value) if value.__class__ is str else None
            number = self._of_decimal(self._decimal(value)) if plain is None else plain
        if not -LIMIT < number < LIMIT:
            raise self._too_large()
        if number < 0 and not self.signed:
            raise Fault(
                INVALID_VALUE,
                f"{self.field} is negative; the meter {self.meter} takes no negative values (signed = true in the catalogue would).",
            )
        return number  # type: ignore[no-any-return]

    def _of_plain_text(self, text: str) -> int | None:
        """Of what most senders write, such as "12.5"; a third of what a Decimal costs. None: it must be looked at more closely."""
        whole, point, fraction = text.partition(".")
        digits = whole + fraction
        if len(text) > MOST_DIGITS or len(fraction) > self.scale or not (digits.isascii() and digits.isdigit()):
            return None
        if not whole or (point and not fraction) or (whole[0] == "0" and whole != "0"):
            return None
        number: int = int(digits) * 10 ** (self.scale - len(fraction))
        return number

    def _decimal(self, value: object) -> Decimal:
        if isinstance(value, Decimal):
            return value
        if isinstance(value, Unwritable):
            raise self._too_many(value)
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            read = decode_decimal(value)
            if isinstance(read, Decimal):
                return read
            raise self._too_many(value)
        raise Fault(
            INVALID_VALUE, f'{self.field} is {shown(value)}; send a number such as 12 or 12.5, or the same in a string such as "12.5".'
        )

    def _of_decimal(self, value: Decimal) -> int:
        if not value:
            return 0  # also 0E+400
        try:
            scaled = value.scaleb(self.scale, _EXACT)
        except (Inexact, InvalidOperation):
            raise self._too_many(value) from None
        if scaled.adjusted() >= MOST_DIGITS:
            raise self._too_large()
        number = int(scaled)
        if number != scaled:
            raise self._too_many(value)
        return number

    def _too_many(self, value: object) -> Fault:
        places = f"{self.scale} decimal places" if self.scale else "whole numbers"
        return Fault(
            TOO_MANY_DIGITS, f"{self.field} is {shown(value)}, but the meter {self.meter} counts in {places}: round it before sending."
        )

    def _too_large(self) -> Fault:
        most = f"{MOST_DIGITS} digits" + (f", {self.scale} of them decimal places" if self.scale else "")
        return Fault(TOO_MANY_DIGITS, f"{self.field} is too large: a value has at most {most}.")


def decode_decimal(text: str) -> Decimal | Unwritable:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond every bound
        return Unwritable(text)


_MOST_SHOWN = 80


def shown(value: object) -> str:
    """A value in a sentence, cut."""
    match value:
        case None:
            text = "null"
        case True:
            text = "true"
        case False:
            text = "false"
        case str():
            text = json.dumps(value[:_MOST_SHOWN], ensure_ascii=False)
        case int() if value.bit_length() > 8 * _MOST_SHOWN:
            text = "a number of very many digits"
        case dict():
            text = "an object"
        case list():
            text = "an array"
        case Unwritable():
            text = value.text
        case _:
            text = str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
