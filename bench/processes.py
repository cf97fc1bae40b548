"""CPU of processes, as the kernel counts it: user and system time of every thread, of a process and all its children.

Belongs here: reading the kernel's clocks. Must not know: what the processes do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_CPUCLOCK_SCHED = 2
_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


def cpu_us(pid: int) -> int:
    """User and system time of the process and its descendants; threads and children that have ended are included."""
    return sum(_own_cpu_us(member) + _ended_cpu_us(member) for member in tree(pid))


def tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from tree(int(child))


def _own_cpu_us(pid: int) -> int:
    """By the clock that clock_getcpuclockid(3) names. /proc/PID/stat cuts user and system time to ticks of 10 ms, each for itself."""
    return time.clock_gettime_ns(~pid << 3 | _CPUCLOCK_SCHED) // 1000


def _ended_cpu_us(pid: int) -> int:
    """Of children that have ended and were waited for, as a PostgreSQL has them all the time, and of theirs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) * _TICK_US
