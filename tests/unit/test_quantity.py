"""Which texts are numbers, and which integer each becomes: against fractions and the grammar of JSON."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.quantity import LIMIT, Fault, Quantity

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

plain = st.from_regex(r"[0-9]{1,40}(\.[0-9]{0,20})?", fullmatch=True)
odd = st.text("0123456789.-+eE_ x\u0661\u00b2\n", max_size=12)


def exactly(text: str, scale: int, signed: bool) -> int | None:
    """None: it does not count."""
    if not _JSON_NUMBER.fullmatch(text):
        return None
    value = Fraction(text) * 10**scale
    counts = value.denominator == 1 and abs(value) < LIMIT and (signed or value >= 0)
    return value.numerator if counts else None


@given(plain | odd, st.integers(0, 18), st.booleans())
@example("0.5", 1, False)
@example("00.5", 1, False)
@example("01", 0, False)
@example("0", 0, False)
@example("5.", 0, False)
@example(".5", 1, False)
@example("", 0, False)
@example("\u0661", 0, False)
@example("\u00b2", 0, False)
@example("9" * 38, 0, False)
@example("9" * 38, 1, False)
@example("1" + "0" * 38, 0, False)
@example("0." + "0" * 18 + "1", 18, False)
def test_a_text_counts_exactly_or_not_at_all(text: str, scale: int, signed: bool) -> None:
    quantity = Quantity("data.n", "meter", scale, signed)
    expected = exactly(text, scale, signed)
    if expected is None:
        with pytest.raises(Fault):
            quantity.scaled(text)
    else:
        assert quantity.scaled(text) == expected
