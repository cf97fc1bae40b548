"""How evenly the machine runs: the share of time in which it is far slower than usual although nothing runs on it.

A shared machine may run at a tenth of its speed for some tens of milliseconds, again and again. Nobody's 99th percentile is better than
that, so it stands beside ours. Must not know: what is measured afterwards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

SLOWER = 4  # times the median
_STEP = range(10_000)  # some tenths of a millisecond


def slow_share(seconds: int = 5) -> int:
    """Hundredths of a percent of the time. Spins on one core meanwhile."""
    times_ns = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        start_ns = time.perf_counter_ns()
        for _ in _STEP:
            pass
        times_ns.append(time.perf_counter_ns() - start_ns)
    return share(times_ns)


def share(times: Sequence[int]) -> int:
    """Of all the time, the part in steps that took more than SLOWER times the median one; hundredths of a percent."""
    usual = statistics.median_low(times)
    return 10_000 * sum(one for one in times if one > SLOWER * usual) // sum(times)
