"""CPU of processes, as the kernel counts it: user and system time of every thread, of a process and all its children.

Belongs here: reading /proc. Must not know: what the processes do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


def cpu_us(pid: int) -> int:
    """User and system time of the process and its living descendants; threads that have ended are included."""
    return sum(_own_cpu_us(member) for member in tree(pid))


def tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from tree(int(child))


def _own_cpu_us(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_US
