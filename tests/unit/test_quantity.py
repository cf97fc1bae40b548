"""Which texts are numbers, and which integer each becomes: against fractions and the grammar of JSON."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.batch import TOO_MANY_DIGITS
from ingest.quantity import LIMIT, Fault, Quantity, Unwritable, decode_decimal, shown

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
@example("-" + "9" * 38, 0, True)
@example("-1" + "0" * 38, 0, True)
@example("+1", 0, False)
@example("1e+3", 0, False)
@example("1\u0661", 0, False)  # a digit of another script behind one of ours
@example("1." + "0" * 100 + "1", 0, False)  # beyond the digits that are computed with
def test_a_text_counts_exactly_or_not_at_all(text: str, scale: int, signed: bool) -> None:
    quantity = Quantity("data.n", "meter", scale, signed)
    expected = exactly(text, scale, signed)
    if expected is None:
        with pytest.raises(Fault):
            quantity.scaled(text)
    else:
        assert quantity.scaled(text) == expected


@pytest.mark.parametrize("scale", [0, 18])
@pytest.mark.parametrize("text", ["1e999999999999999", "-1e999999999999999", "1e-999999999999999", "1e99999999999999999999", "9" * 5000])
def test_a_number_beyond_every_bound_has_too_many_digits_and_is_never_written_out(text: str, scale: int) -> None:
    quantity = Quantity("data.n", "meter", scale, True)
    for value in (text, decode_decimal(text)):
        with pytest.raises(Fault) as caught:
            quantity.scaled(value)
        assert caught.value.code == TOO_MANY_DIGITS


def test_an_integer_of_too_many_digits_is_too_large_and_not_to_be_rounded() -> None:
    for value in ("1" * 39, Decimal("1" * 39), 10**38, -(10**38)):
        with pytest.raises(Fault, match="is too large: a value has at most 38 digits"):
            Quantity("data.n", "meter", 0, True).scaled(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        ("é", '"é"'),
        ("x" * 78, '"' + "x" * 78 + '"'),
        ("x" * 79, '"' + "x" * 79 + "..."),
        ("x" * 5000, '"' + "x" * 79 + "..."),
        (10**200, "a number of very many digits"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1." + "0" * 100), "1." + "0" * 78 + "..."),
        (Unwritable("1e" + "9" * 100), "1e" + "9" * 78 + "..."),
        ({"secret": 1}, "an object"),
        (["secret"], "an array"),
    ],
)
def test_a_sentence_shows_what_was_sent_as_it_was_written_and_no_more_of_it_than_its_beginning(value: object, text: str) -> None:
    assert shown(value) == text
