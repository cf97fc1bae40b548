"""Which records are sent again, and what is taken for the last call that a lost writer's flushes covered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from buffer.counter_log import LogUnavailable
from parshall.resend import InLog, Wanted, _produce, _ranges

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


class SlowLog:
    """Takes so many records of each try, and fails unless those were all."""

    def __init__(self, *takes: int) -> None:
        self._takes = list(takes)
        self.taken: list[Any] = []

    async def produce(self, records: Sequence[Any]) -> None:
        durable = min(self._takes.pop(0), len(records))
        self.taken += records[:durable]
        if durable < len(records):
            error = LogUnavailable("it took too long")
            error.durable = durable
            raise error


def test_what_a_slow_log_has_taken_is_not_sent_again() -> None:
    log: Any = SlowLog(0, 0, 2, 0, 0, 3, 9)
    asyncio.run(_produce(log, range(7)))
    assert log.taken == list(range(7))


def test_after_some_tries_in_vain_it_is_an_outage() -> None:
    log: Any = SlowLog(3, 0, 0, 0, 9)
    with pytest.raises(LogUnavailable):
        asyncio.run(_produce(log, range(7)))
    assert log.taken == [0, 1, 2]
