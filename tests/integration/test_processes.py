"""A child process between two of its runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from parshall.processes import Child, Order


class Counted:
    """A child that notes its starts and what it was told."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.touch()
        self.child = Child(Order("counter", "tests.integration.hangup_counter", str(file), 10), ())
        self.child.was_ready = True

    @property
    def noted(self) -> list[str]:
        return self._file.read_text().split()


@pytest.fixture
async def counted(tmp_path: Path) -> AsyncIterator[Counted]:
    made = Counted(tmp_path / "noted")
    keeping = asyncio.ensure_future(made.child.keep())
    yield made
    hurry = asyncio.Event()
    hurry.set()
    await made.child.stop(hurry)
    await keeping


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not there():
            await asyncio.sleep(0.01)


async def test_a_signal_between_two_runs_reaches_the_next_one_once(counted: Counted) -> None:
    await until(lambda: counted.noted == ["started"])
    counted.child.tell(signal.SIGUSR1)
    await until(lambda: not counted.child.running)
    for _ in range(2):
        counted.child.tell(signal.SIGHUP)
    await until(lambda: counted.noted == ["started", "started", "told"])
    counted.child.tell(signal.SIGUSR1)
    await until(lambda: counted.noted.count("started") == 3)
    counted.child.tell(signal.SIGHUP)
    await until(lambda: counted.noted[3:] == ["started", "told"])


async def test_a_signal_before_the_first_run_waits_for_it(tmp_path: Path) -> None:
    made = Counted(tmp_path / "noted")
    made.child.tell(signal.SIGHUP)
    keeping = asyncio.ensure_future(made.child.keep())
    await until(lambda: made.noted == ["started", "told"])
    hurry = asyncio.Event()
    hurry.set()
    await made.child.stop(hurry)
    await keeping
