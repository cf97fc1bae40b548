"""usage.rejected gets every rejected event at least once, whatever is between: a crash before the flush, or within it."""

from __future__ import annotations

import asyncio
import random

import pytest

from buffer.counter_log import LogUnavailable, Rejected
from buffer.journal_records import Through
from tests.journal_driver import call, opened
from tests.lossy_disk import LossyDisk
from tests.simulation.counter_log import SharedLog, SimulatedLog
from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.steps import Steps
from tests.simulation.test_flush_lag import begin, flusher_of


class Away(SimulatedLog):
    """Takes counters, and no rejected events yet."""

    away = True

    async def produce_rejected(self, rejected: object) -> None:
        if self.away:
            raise LogUnavailable("it is away")
        await super().produce_rejected(rejected)  # type: ignore[arg-type]


@pytest.mark.parametrize("committed", [False, True])
def test_rejected_events_that_were_journalled_are_produced_after_a_crash(committed: bool) -> None:
    async def main(loop: SimulatedLoop) -> None:
        disk, rng = LossyDisk(), random.Random(1)
        journal = await opened(disk, rng)
        shared = SharedLog(rng, 1)
        log = Away(shared, journal.writer, Steps())
        flusher = flusher_of(journal, log, loop)
        begin(journal)
        rejected = [Rejected("acme", b"{}")]
        record = call(1, 1, rejected=rejected)
        journal.append(record)
        flusher.merge(record.deltas, record.tallies, rejected, Through(b"i" * 16, 1))
        await journal.drain()
        if committed:
            flusher.allowed.set()
            running = asyncio.create_task(flusher.run())
            await asyncio.sleep(3)
            assert flusher.flush_number == 1, "its counters are in the log, the rejected events are not"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await journal.close()

        again = await opened(disk, rng)
        log.away = False
        flusher = flusher_of(again, log, loop)
        assert flusher.rejected_held.total == 2
        flusher.allowed.set()
        running = asyncio.create_task(flusher.run())
        await asyncio.sleep(3)
        if running.done():
            running.result()
        assert shared.rejected == rejected
        assert flusher.rejected_held.total == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main)
