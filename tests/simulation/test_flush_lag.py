"""How old what is not in the counter log yet is, as the metrics show it: also while a flush is under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from buffer.counter_log import LogUnavailable, Record, Rejected
from buffer.flush_tuner import FlushTuner
from buffer.journal import Journal, read_journal
from buffer.journal_records import FlushBegin, FlushCommit, Opened, Through
from ingest.flusher import Flusher
from tests.journal_driver import DIRECTORY, METER, call, opened
from tests.lossy_disk import LossyDisk
from tests.simulation.counter_log import SharedLog, SimulatedLog
from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.steps import Steps


class AwayLog(SimulatedLog):
    away = True

    async def produce(self, records: Sequence[Record]) -> None:
        if self.away:
            raise LogUnavailable("Kafka is away")


def test_what_is_on_its_way_ages_until_it_is_there() -> None:
    async def main(loop: SimulatedLoop) -> None:
        disk, rng = LossyDisk(), random.Random(1)
        journal = await opened(disk, rng)
        log = AwayLog(SharedLog(rng, 1), journal.writer, Steps())
        flusher = flusher_of(journal, log, loop)
        assert begin(journal) == 1 and flusher.unflushed_since_us == 0

        async with asyncio.TaskGroup() as tasks:
            flusher.allowed.set()
            running = tasks.create_task(flusher.run())
            await asyncio.sleep(7)
            merge(journal, flusher, 1)
            counted_us = micros(loop)
            assert flusher.unflushed_since_us == counted_us
            await asyncio.sleep(60)
            assert flusher.failures > 3 and flusher.live_counters == 0
            merge(journal, flusher, 2)
            await asyncio.sleep(60)
            assert flusher.unflushed_since_us == counted_us, "the flush that is under way is older than what came since"
            log.away = False
            await flusher.now()
            assert flusher.unflushed_since_us == 0
            running.cancel()

    run(main)


def test_an_empty_call_leaves_nothing_that_ages() -> None:
    """An idle writer makes one a minute."""

    async def main(loop: SimulatedLoop) -> None:
        journal = await opened(LossyDisk(), random.Random(1))
        flusher = flusher_of(journal, AwayLog(SharedLog(random.Random(1), 1), journal.writer, Steps()), loop)
        begin(journal)
        flusher.merge([], {}, [], Through(b"i" * 16, 1))
        assert flusher.unflushed_since_us == 0
        await asyncio.sleep(60)
        merge(journal, flusher, 1)
        assert flusher.unflushed_since_us == micros(loop)

    run(main)


@pytest.mark.timeout(30)
def test_what_requests_have_reserved_for_rejected_events_is_nothing_to_flush() -> None:
    """However much it is: else the flusher would turn for ever, and nobody else would get a turn."""

    async def main(loop: SimulatedLoop) -> None:
        journal = await opened(LossyDisk(), random.Random(1))
        flusher = flusher_of(journal, SimulatedLog(SharedLog(random.Random(1), 1), journal.writer, Steps()), loop)
        begin(journal)
        flusher.allowed.set()
        flusher.rejected_held.take("acme", flusher.rejected_held.limit)
        running = asyncio.create_task(flusher.run())
        await asyncio.sleep(60)
        assert flusher.flush_number == 0 and not running.done()
        journal.append(call(1, 3))
        flusher.merge([], {}, [Rejected("acme", b"{}")], Through(b"i" * 16, 1))
        await asyncio.sleep(0.5)
        assert flusher.flush_number == 1, "what is there goes at once then"
        running.cancel()

    run(main)


def test_a_flush_counts_once_a_crash_cannot_take_it_back() -> None:
    async def main(loop: SimulatedLoop) -> None:
        disk = LossyDisk()
        journal = await opened(disk, random.Random(1))
        flusher = flusher_of(journal, AwayLog(SharedLog(random.Random(1), 1), journal.writer, Steps()), loop)
        begin(journal)
        merge(journal, flusher, 1)
        flushing = asyncio.create_task(flusher.flush())
        kinds: list[set[type]] = []
        while not flusher.flush_number:
            kinds.append({type(record) for record in read_journal(DIRECTORY, disk)})
            await asyncio.sleep(0)
        assert any(FlushBegin in some and FlushCommit not in some for some in kinds)
        assert FlushCommit in {type(record) for record in read_journal(DIRECTORY, disk)}
        flushing.cancel()

    run(main)


def test_what_a_journal_brought_is_as_old_as_its_opening() -> None:
    async def main(loop: SimulatedLoop) -> None:
        disk, rng = LossyDisk(), random.Random(1)
        journal = await opened(disk, rng)
        begin(journal)
        journal.append(call(1, 3))
        await journal.close()
        await asyncio.sleep(100)
        again = await opened(disk, rng)
        assert flusher_of(again, AwayLog(SharedLog(rng, 1), again.writer, Steps()), loop).unflushed_since_us == micros(loop)

    run(main)


def flusher_of(journal: Journal, log: SimulatedLog, loop: SimulatedLoop) -> Flusher:
    return Flusher(
        journal, log, FlushTuner(1000, 1000), meters={1: METER}, tenants={1: "acme"}, clock_us=lambda: micros(loop), rejected_bytes=1000
    )


def begin(journal: Journal) -> int:
    journal.append(Opened(b"i" * 16, 0, 1))
    return journal.meter_number(METER)


def merge(journal: Journal, flusher: Flusher, number: int) -> None:
    record = call(number, 3)
    journal.append(record)
    flusher.merge(record.deltas, record.tallies, [], Through(b"i" * 16, number))


def micros(loop: SimulatedLoop) -> int:
    return 1_000_000_000 + round(loop.time() * 1_000_000)
