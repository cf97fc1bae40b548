"""How much goes out before its acknowledgement is waited for, so that a slow link means later, and never "given up".

Belongs here: cutting what is to be produced into portions, by how long earlier ones took. Must not know: Kafka, records, clocks.

A deadline for each portion is one for progress: what takes longer is an outage. So a portion is kept smaller than half of what the link
carries in that time. Where it carries a lot, portions are large, also where each acknowledgement takes its time: waiting costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_LEAST_BYTES = 64 << 10
_FIRST_BYTES = 1 << 20
_MOST_BYTES = 8 << 20


class Portions:
    def __init__(self, deadline_s: float) -> None:
        """`deadline_s`: when a portion is given up."""
        self._deadline_s = deadline_s
        self._bytes = _FIRST_BYTES

    def of(self, wanted: Sequence[T], size_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
        """All of it in its order. A portion is cut when it is asked for; a single one that is larger by itself is a portion."""
        start = size = 0
        for position, one in enumerate(wanted):
            if size and size + size_of(one) > self._bytes:
                yield wanted[start:position]
                start, size = position, 0
            size += size_of(one)
        if start < len(wanted):
            yield wanted[start:]

    def took(self, seconds: float, size: int) -> None:
        """A portion of that size was acknowledged. One that is twice as large takes at most twice as long; of much larger ones it says
        nothing."""
        if seconds > self._deadline_s / 3:
            self._bytes = max(_LEAST_BYTES, self._bytes // 2)
        elif seconds < self._deadline_s / 6 and 2 * size > self._bytes:
            self._bytes = min(_MOST_BYTES, 2 * self._bytes)

    def failed(self) -> None:
        """Perhaps it was too much; if it was an outage, portions have soon grown again."""
        self._bytes = max(_LEAST_BYTES, self._bytes // 4)
