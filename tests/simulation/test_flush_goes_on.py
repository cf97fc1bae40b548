"""A flush that the counter log took a part of: what is in there does not go out again, and nothing is left out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from buffer.counter_log import LogUnavailable, Record, Rejected
from buffer.flush_tuner import FlushTuner
from buffer.journal import Journal, read_journal
from buffer.journal_records import FlushPart, Through
from ingest.flusher import Flusher
from tests.journal_driver import DIRECTORY, METER, call, opened
from tests.lossy_disk import LossyDisk
from tests.simulation.counter_log import SharedLog, SimulatedLog
from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.steps import Steps
from tests.simulation.test_flush_lag import begin, micros

PARTITIONS = 6


class PartlyLog(SimulatedLog):
    """Takes so many records and so many rejected events, and fails; then the next ones."""

    def __init__(self, writer: bytes, takes: int, takes_rejected: int) -> None:
        super().__init__(SharedLog(random.Random(1), PARTITIONS), writer, Steps())
        self.takes = takes
        self.takes_rejected = takes_rejected
        self.records: list[Record] = []
        self.rejected: list[Rejected] = []
        self.slow_s = 0.0

    async def produce(self, records: Sequence[Record]) -> None:
        await asyncio.sleep(self.slow_s)
        self.records += records[: self.takes]
        fail_unless(len(records) <= self.takes, self.takes)

    async def produce_rejected(self, rejected: Sequence[Rejected]) -> None:
        self.rejected += rejected[: self.takes_rejected]
        fail_unless(len(rejected) <= self.takes_rejected, self.takes_rejected)


def fail_unless(all_of_them: bool, durable: int) -> None:
    if not all_of_them:
        error = LogUnavailable("the link broke")
        error.durable = durable
        raise error


def test_each_record_and_each_rejected_event_goes_out_once() -> None:
    async def main(loop: SimulatedLoop) -> None:
        disk = LossyDisk()
        journal = await opened(disk, random.Random(1))
        log = PartlyLog(journal.writer, 2, 3)
        flusher = flusher_of(journal, log, loop)
        rejected = [Rejected("acme", b"%d" % number) for number in range(10)]
        merge(journal, flusher, rejected)
        running = asyncio.create_task(flusher.run())
        async with asyncio.timeout(3600):
            await flusher.now()
        numbered = [(record.partition, record.n) for record in log.records]
        assert len(numbered) > 4 and len(set(numbered)) == len(numbered), "too few to show anything, or some twice"
        assert log.records == journalled(disk)
        assert log.rejected == rejected
        assert flusher.failures == (len(numbered) - 1) // 2 + 3 and flusher.unflushed_since_us == 0
        running.cancel()

    run(main)


def test_rejected_events_that_the_log_does_not_take_send_no_counters_again() -> None:
    """As with an ACL that permits one topic and not the other: for days."""

    async def main(loop: SimulatedLoop) -> None:
        journal = await opened(LossyDisk(), random.Random(1))
        log = PartlyLog(journal.writer, 1000, 0)
        flusher = flusher_of(journal, log, loop)
        merge(journal, flusher, [Rejected("acme", b"{}")])
        running = asyncio.create_task(flusher.run())
        await asyncio.sleep(60)
        assert flusher.failures > 5 and log.rejected == []
        log.takes_rejected = 1
        await flusher.now()
        assert len({(record.partition, record.n) for record in log.records}) == len(log.records) > 4
        assert log.rejected == [Rejected("acme", b"{}")]
        running.cancel()

    run(main)


def test_a_flush_that_goes_on_slowly_is_no_failure_and_ages() -> None:
    """Its lag says that it takes long, and no failure that it is slow and not stuck."""

    async def main(loop: SimulatedLoop) -> None:
        journal = await opened(LossyDisk(), random.Random(1))
        log = PartlyLog(journal.writer, 1000, 1000)
        log.slow_s = 300
        flusher = flusher_of(journal, log, loop)
        merge(journal, flusher, [])
        counted_us = micros(loop)
        running = asyncio.create_task(flusher.run())
        await asyncio.sleep(200)
        assert flusher.failures == 0 and flusher.unflushed_since_us == counted_us
        await flusher.now()
        assert flusher.failures == 0 and flusher.unflushed_since_us == 0 and flusher.last_duration_us >= 300_000_000
        running.cancel()

    run(main)


def flusher_of(journal: Journal, log: SimulatedLog, loop: SimulatedLoop) -> Flusher:
    begin(journal)
    flusher = Flusher(
        journal, log, FlushTuner(1000, 1000), meters={1: METER}, tenants={1: "acme"}, clock_us=lambda: micros(loop), rejected_bytes=1000
    )
    flusher.allowed.set()
    return flusher


def merge(journal: Journal, flusher: Flusher, rejected: Sequence[Rejected]) -> None:
    """Counters for several partitions."""
    for number in range(1, 31):
        record = call(number, 3, rejected=rejected if number == 1 else ())
        journal.append(record)
        deltas = [{"sum": {(1, 1, f"subject {number}", 3600, "eu"): packed}} for packed in record.deltas[0]["sum"].values()]
        flusher.merge(deltas, record.tallies, record.rejected, Through(b"i" * 16, number))


def journalled(disk: LossyDisk) -> list[Record]:
    return [one for record in read_journal(DIRECTORY, disk) if isinstance(record, FlushPart) for one in record.records]
