"""CPU time of a piece of work, in this process and all its threads.

Belongs here: measuring and printing. Must not know: what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence


def cpu_ns(work: Callable[[], object]) -> int:
    start = time.process_time_ns()
    work()
    return time.process_time_ns() - start


async def cpu_ns_of(work: Callable[[], Awaitable[object]]) -> int:
    start = time.process_time_ns()
    await work()
    return time.process_time_ns() - start


def per_unit(total_ns: Sequence[int], units: int) -> str:
    """The median of some runs, in us for each unit; in brackets the least and the greatest."""
    median, least, greatest = (_us(value // units) for value in (statistics.median_low(total_ns), min(total_ns), max(total_ns)))
    return f"{median:>9} [{least} - {greatest}]"


def _us(nanoseconds: int) -> str:
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"
