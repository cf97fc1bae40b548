"""The power fails at every disk operation of a journal's life, and write-backs fail: nothing reported synced is lost, nothing is misread.

One life: opening, calls in groups, flushes, rolls that let old segments go. The disk is in memory, loses any seeded part of what was not
synced, and is cut off at step n, for every n; then the journal is opened again, and that opening is cut off too. The model is the list of
records that were appended.
"""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import pytest

from buffer.counter_log import Record, Rejected
from buffer.journal import Journal, JournalLimits, JournalStopped, read_journal
from buffer.journal_records import Closed, Flushed, JournalRecord, Opened, Through
from buffer.journal_segments import open_segments
from buffer.journal_state import replay
from tests.journal_driver import DIRECTORY, call, clock_us, flush_records, opened
from tests.lossy_disk import LossyDisk

LIMITS = JournalLimits(segment_bytes=2500, max_bytes=1 << 30, min_free_bytes=0, free_check_bytes=1 << 30)


class Life:
    """What was appended to one journal over all its openings, and what of it was reported synced."""

    def __init__(self, disk: LossyDisk, random: Random) -> None:
        self.disk = disk
        self.random = random
        self.appended: dict[int, JournalRecord] = {}  # by sequence, snapshots not included
        self.synced = 0
        self.acknowledged_us = 0

    async def live(self, rounds: int) -> None:
        """Open, work, close; ends early, without an error, when the disk fails."""
        try:
            journal = await opened(self.disk, self.random, LIMITS)
        except OSError:
            return
        self.check(journal)
        journal.on_synced = self.note_synced
        try:
            await self.work(journal, rounds)
        except JournalStopped:
            assert isinstance(journal.failed.exception(), OSError)
            synced = self.synced
            await asyncio.sleep(0)
            assert self.synced == synced, "nothing is reported synced after a failure"

    def check(self, journal: Journal) -> None:
        """The journal holds what was appended, as far as some point at or after what was reported synced."""
        records = list(read_journal(DIRECTORY, self.disk))
        found = journal.synced
        assert found >= self.synced, f"synced up to {self.synced}, found up to {found}"
        first = found - len(records) + 1
        for sequence, record in enumerate(records, start=first):
            if sequence in self.appended:
                assert record == self.appended[sequence], f"record {sequence} is misread"
        self.appended = {sequence: record for sequence, record in self.appended.items() if sequence <= found}
        self.synced = found
        assert replay(records) == journal.state

    def note_synced(self, synced: int) -> None:
        self.synced = synced

    def append(self, journal: Journal, record: JournalRecord) -> None:
        sequence = journal.append(record)
        if isinstance(record, Flushed):
            record = Flushed(record.flush, {tenant: n for tenant, n in self.flushing.items() if n})
        self.appended[sequence] = record

    async def work(self, journal: Journal, rounds: int) -> None:
        random, state = self.random, journal.state
        self.flushing = {}
        if state.flush is not None:
            self.flushing = {tenant: counts["accepted"] for tenant, counts in state.flush.tallies.items()}
            self.append(journal, Flushed(state.flush.flush))
        buffered = {tenant: counts["accepted"] for tenant, counts in state.tallies.items()}
        next_n, next_flush = dict(state.next_n), state.next_flush
        incarnation = random.randbytes(16)
        through = Through(*state.incarnations[-1]) if state.incarnations else Through(b"", 0)
        self.append(journal, Opened(incarnation, clock_us()))
        await journal.drain()
        horizon_us, number = state.horizon_us, 0
        for turn in range(rounds):
            for _ in range(random.randint(1, 3)):
                number += 1
                horizon_us += 1
                accepted = random.choice([0, 2, 40])
                rejected = [Rejected("t", random.randbytes(random.choice([5, 600])))] if random.random() < 0.3 else []
                record = call(number, accepted, newest_us=horizon_us + 6, horizon_us=horizon_us, random=random, rejected=rejected)
                self.append(journal, record)
                buffered[1] = buffered.get(1, 0) + accepted
                through = Through(incarnation, number)
            if random.random() < 0.7:
                await journal.drain()
            if turn % 3 == 2:
                self.flushing, buffered = buffered, {}
                records = []
                for partition in (0, 1):
                    n = next_n.get(partition, 1)
                    next_n[partition] = n + 1
                    records.append(Record(partition, n, (("v", b"1"),), random.randbytes(random.choice([10, 700]))))
                for one in flush_records(next_flush, through, records, parts=2):
                    self.append(journal, one)
                await journal.drain()
                self.append(journal, Flushed(next_flush))
                next_flush += 1
        self.append(journal, Closed(number))
        await journal.close()


def seeded_life(seed: str) -> Life:
    return Life(LossyDisk(), Random(seed))


async def steps_of(seed: str, rounds: int) -> int:
    life = seeded_life(seed)
    await life.live(rounds)
    return life.disk.steps


@pytest.mark.parametrize("seed", range(8))
async def test_power_cut_at_every_step_of_a_life(seed: int) -> None:
    steps = await steps_of(f"life {seed}", 9)
    assert steps > 50
    for cut_at in range(1, steps + 1):
        life = seeded_life(f"life {seed}")
        life.disk.cut_at = cut_at
        await life.live(9)
        assert life.disk.off
        life.disk.crash(Random(f"{seed} {cut_at}"))
        await life.live(4)
        await life.live(1)


@pytest.mark.parametrize("seed", range(8))
async def test_power_cut_at_every_step_of_opening_after_a_power_cut(seed: int) -> None:
    """Torn tails of many shapes; each opening is cut at each of its steps, more than once in a row, and ends with the same contents."""
    steps = await steps_of(f"torn {seed}", 7)
    for torn_at in range(steps // 3 + seed, steps, 5):
        for cut_at in range(1, 20):
            random = Random(f"{seed} {torn_at} {cut_at}")
            life = seeded_life(f"torn {seed}")
            life.disk.cut_at = torn_at
            await life.live(7)
            life.disk.crash(random)
            contents: list[JournalRecord] | None = None
            for again in range(3):
                life.disk.cut_at = life.disk.steps + cut_at if again < 2 else 0
                with contextlib.suppress(OSError):
                    open_segments(DIRECTORY, life.disk, random.randbytes, clock_us)
                life.disk.off = False
                if random.random() < 0.3:
                    life.disk.kill()
                else:
                    life.disk.crash(random)
                found = list(read_journal(DIRECTORY, life.disk))
                assert contents is None or found == contents
                contents = found or None  # without any segment no writer was minted yet
            await life.live(2)
            await life.live(1)


@pytest.mark.parametrize("seed", range(8))
async def test_a_failed_write_or_sync_ends_the_journal_and_loses_nothing(seed: int) -> None:
    """The failing process dies; the next one reads pages that never reached the disk; then the power fails."""
    steps = await steps_of(f"fail {seed}", 9)
    for fail_at in range(1, steps + 1):
        life = seeded_life(f"fail {seed}")
        life.disk.fail_at = fail_at
        await life.live(9)
        life.disk.kill()
        life.disk.fail_at = 0
        await life.live(3)
        life.disk.crash(Random(f"{seed} {fail_at}"))
        await life.live(1)


async def test_the_lives_reach_what_they_are_for() -> None:
    """Rolls, segments that go, an outstanding flush at an opening."""
    rolls = removals = outstanding = 0
    for seed in range(3):
        life = seeded_life(f"life {seed}")
        await life.live(9)
        rolls += sum(step.startswith("rename") for step in life.disk.log) - 2
        removals += sum(step.startswith("remove") for step in life.disk.log)
    for cut_at in range(1, 80):
        life = seeded_life("life 0")
        life.disk.cut_at = cut_at
        await life.live(9)
        life.disk.crash(Random(cut_at))
        opening = open_segments(DIRECTORY, life.disk, Random(0).randbytes, clock_us)
        outstanding += opening.replayed.flush is not None
    assert rolls > 5
    assert removals > 3
    assert outstanding > 3
