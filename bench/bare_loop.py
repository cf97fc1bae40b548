"""What the machine itself does to a 99th percentile: a bare loop, busy for as much of the time as a server would be, at the same rate.

Its "requests" come at a fixed rate and each is the same number of turns of a loop; there is no IO, no other thread, no collector. Where its
99th percentile is far above what its turns take, the machine did not run, or ran slowly, and a server's on it says little. Must not know:
what it is compared with.
"""

from __future__ import annotations

import statistics
import time

_CALIBRATIONS = 200
_TURNS = 10_000


def p99(rate: int, busy_percent: int, seconds: int) -> int:
    """Hundredths of a millisecond from when a request was due to when it was done. `rate`: requests a second."""
    turns = range(_turns_in(busy_percent * 10_000_000 // rate))
    latencies = []
    start_ns = time.perf_counter_ns()
    for number in range(rate * seconds):
        due_ns = start_ns + number * 1_000_000_000 // rate
        while time.perf_counter_ns() < due_ns:
            time.sleep(0)
        for _ in turns:
            pass
        latencies.append(time.perf_counter_ns() - due_ns)
    return sorted(latencies)[len(latencies) * 99 // 100] // 10_000


def _turns_in(work_ns: int) -> int:
    """Turns of the loop that usually take so long."""
    times_ns = []
    for _ in range(_CALIBRATIONS):
        start_ns = time.perf_counter_ns()
        for _ in range(_TURNS):
            pass
        times_ns.append(time.perf_counter_ns() - start_ns)
    return _TURNS * work_ns // statistics.median_low(times_ns)
