"""Which records are sent again, and what is taken for the last call that a lost writer's flushes covered."""

from __future__ import annotations

import pytest

from parshall.resend import InLog, Wanted, _ranges

CHAIN = ("ab" * 16, 2)


def test_what_the_log_lacks() -> None:
    log = InLog()
    for n in (3, 4, 6):
        log.add(CHAIN, n)
    assert [n for n in range(1, 9) if log.lacks(CHAIN, n)] == [1, 2, 5, 7, 8]
    assert log.lacks(("cd" * 16, 2), 1), "it has nothing of that writer"


@pytest.mark.parametrize(
    ("wanted", "fitting"),
    [
        (Wanted(None, None, None, None), [1, 2, 3]),
        (Wanted(CHAIN[0], 2, 2, None), [2, 3]),
        (Wanted(None, None, None, 2), [1, 2]),
        (Wanted(None, 1, None, None), []),
        (Wanted("cd" * 16, None, None, None), []),
    ],
)
def test_what_is_named(wanted: Wanted, fitting: list[int]) -> None:
    assert [n for n in (1, 2, 3) if wanted.fits(CHAIN, n)] == fitting


@pytest.mark.parametrize(("numbers", "told"), [([], ""), ([7], "7"), ([1, 2, 3, 5, 8, 9], "1 to 3, 5, 8 to 9")])
def test_numbers_are_told_in_ranges(numbers: list[int], told: str) -> None:
    assert _ranges(numbers) == told
