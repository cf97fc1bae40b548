"""The journal on a real disk with a real thread: group commit, reopening, the lock, retention, room, and kill -9 of a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from buffer.counter_log import Record, Rejected
from buffer.counters import Deltas, MeterDefinition, merge
from buffer.disk import RealDisk, Thread
from buffer.journal import Journal, JournalBusy, JournalLimits, JournalStopped, open_journal, read_journal
from buffer.journal_records import CallRecord, FlushBegin, Flushed, FlushPart, Opened, Through
from tests.journal_driver import METER, call, clock_us, flush_records
from tests.lossy_disk import DropUnsynced

LIMITS = JournalLimits(segment_bytes=1 << 20, max_bytes=1 << 30, min_free_bytes=0, free_check_bytes=1 << 20)
INCARNATION = bytes(range(16))


class CountingDisk(RealDisk):
    """Counts writes, syncs and questions for free space; can fail a sync, and hold writes back until told."""

    def __init__(self) -> None:
        self.writes = 0
        self.syncs = 0
        self.free_questions = 0
        self.free: int | None = None
        self.fail_sync = False

    def extend(self, path: str) -> Any:
        return CountingFile(self, super().extend(path))

    def free_bytes(self, directory: str) -> int:
        self.free_questions += 1
        return super().free_bytes(directory) if self.free is None else self.free


class CountingFile:
    def __init__(self, disk: CountingDisk, file: Any) -> None:
        self._disk = disk
        self._file = file

    def write(self, parts: Any) -> None:
        self._disk.writes += 1
        self._file.write(parts)

    def sync(self) -> None:
        if self._disk.fail_sync:
            raise OSError(5, "Input/output error")
        self._disk.syncs += 1
        self._file.sync()

    def close(self) -> None:
        self._file.close()


async def open_at(path: Path, disk: Any = None, limits: JournalLimits = LIMITS) -> Journal:
    return await open_journal(
        str(path / "journal"), disk=disk or RealDisk(), background=Thread("journal"), entropy=os.urandom, clock_us=clock_us, limits=limits
    )


async def test_what_was_appended_together_is_synced_together(tmp_path: Path) -> None:
    disk = CountingDisk()
    journal = await open_at(tmp_path, disk)
    reports: list[int] = []
    journal.on_synced = reports.append
    journal.append(Opened(INCARNATION, 1))
    for number in range(1, 501):
        journal.append(call(number, 1))
    assert journal.synced == 1, "append never waits"
    await journal.drain()
    assert (disk.writes, disk.syncs) == (1, 1)
    assert reports == [502]
    await journal.close()


async def test_while_one_group_is_written_the_next_one_gathers(tmp_path: Path) -> None:
    disk = CountingDisk()
    journal = await open_at(tmp_path, disk)
    journal.append(Opened(INCARNATION, 1))
    for number in range(1, 301):
        last = journal.append(call(number, 1))
        if number % 3 == 0:
            await asyncio.sleep(0)
    await journal.drain()
    assert journal.synced == last
    assert disk.syncs < 100
    await journal.close()


async def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = await open_at(tmp_path)
    assert journal.state.fresh
    assert journal.state.incarnations == []
    number = journal.meter_number(METER)
    assert journal.meter_number(METER) == number
    journal.append(Opened(INCARNATION, 1))
    calls = [call(1, 5, newest_us=7, horizon_us=3), call(2, 0), call(3, 4, rejected=[Rejected("demo", b"{}")])]
    for record in calls:
        journal.append(record)
    records = [Record(0, 1, (("v", b"1"),), b"zero"), Record(2, 1, (("v", b"1"),), b"two")]
    for one in flush_records(1, Through(INCARNATION, 2), records):
        journal.append(one)
    writer = journal.writer
    await journal.close()

    again = await open_at(tmp_path)
    state = again.state
    assert again.writer == state.writer == writer
    assert not state.fresh
    assert state.incarnations == [(INCARNATION, 3)]
    assert state.meters == {number: METER}
    assert again.meter_number(METER) == number
    deltas: Deltas = {}
    merge(deltas, calls[2].deltas[0])
    assert (state.deltas, state.tallies, state.rejected) == (deltas, calls[2].tallies, list(calls[2].rejected))
    assert state.flush is not None
    assert (state.flush.flush, state.flush.through, state.flush.records) == (1, Through(INCARNATION, 2), records)
    assert state.flush.tallies == {1: {"received": 7, "accepted": 5, "duplicate": 2}}
    assert (state.next_n, state.next_flush, state.horizon_us) == ({0: 2, 2: 2}, 2, 3)
    assert (state.totals[1]["accepted"], state.flushed) == (9, {})
    assert list(again.records()) == [], "committed, but not known to be in the log"
    again.append(Flushed(1))
    await again.drain()
    assert list(again.records()) == records
    await again.close()

    third = await open_at(tmp_path)
    assert third.state.flush is None
    assert third.state.flushed == {1: 5}
    told = [record for record in read_journal(str(tmp_path / "journal"), RealDisk()) if isinstance(record, Flushed)]
    assert told == [Flushed(1, {1: 5})], "it says itself what it carried: the calls go before it does"
    assert third.state.deltas == deltas
    await third.close()


async def test_a_new_meter_gets_a_new_number_after_reopening(tmp_path: Path) -> None:
    journal = await open_at(tmp_path)
    first = journal.meter_number(METER)
    await journal.close()
    again = await open_at(tmp_path)
    other = MeterDefinition("egress", "00", "sum", 0, 60, ())
    assert again.meter_number(other) != first
    await again.close()


async def test_the_claims_are_read_back_with_what_they_need(tmp_path: Path) -> None:
    journal = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=2000))
    journal.append(Opened(INCARNATION, 1))
    calls = [call(number, number % 4, newest_us=number, tenant=number % 2 + 1) for number in range(1, 60)]
    for record in calls:
        journal.append(record)
    await journal.drain()
    expected = [
        (tenant, one.generation, one.newest_us, digests, prints, INCARNATION, one.number, one.execution, one.branch)
        for one in calls
        for tenant, digests, prints in one.claims
    ]
    assert list(journal.claims()) == expected
    await journal.close()


async def test_claims_are_of_the_incarnation_that_made_them_though_the_segment_with_its_opening_has_gone(tmp_path: Path) -> None:
    """By the incarnation and its executions it is told which of them a Redis that lost its end still has: those of another one are not."""
    first = await open_at(tmp_path)
    for record in (Opened(INCARNATION, 1), call(1, 3)):
        first.append(record)
    await first.close()
    journal, later = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=2000)), bytes(16)
    journal.append(Opened(later, 2))
    for number in range(1, 60):
        journal.append(call(number, 3, newest_us=number))
    for one in [*flush_records(1, Through(later, 30), []), Flushed(1)]:
        journal.append(one)
    for number in range(60, 120):
        journal.append(call(number, 3, newest_us=number, horizon_us=30))
    await journal.drain()
    kept = list(journal.claims())
    assert 1 < kept[0][6] <= 31 and [one[6] for one in kept] == list(range(kept[0][6], 120)), "older ones have gone"
    assert {one[5] for one in kept} == {later}
    await journal.close()


async def test_what_a_crash_left_of_a_flush_is_none_of_the_records_of_the_log(tmp_path: Path) -> None:
    """Its bytes never went out, and others have their numbers since: to send both again would be a fork."""
    journal = await open_at(tmp_path)
    for record in (Opened(INCARNATION, 1), call(1, 1), FlushBegin(1, Through(INCARNATION, 1)), FlushPart(1, [Record(0, 1, (), b"never")])):
        journal.append(record)
    await journal.close()
    again = await open_at(tmp_path)
    assert again.state.flush is None
    sent = [Record(0, 1, (), b"sent"), Record(3, 1, (), b"sent too")]
    for record in [Opened(bytes(16), 2), *flush_records(1, Through(INCARNATION, 1), sent, parts=2), Flushed(1)]:
        again.append(record)
    await again.drain()
    assert list(again.records()) == sent
    await again.close()


async def test_a_journal_of_very_many_meters_is_opened_again(tmp_path: Path) -> None:
    """What each segment begins with is longer then than what is read of it at first."""
    journal = await open_at(tmp_path)
    meters = [METER._replace(name=f"meter_{number}", dimensions=("a_long_name_of_a_dimension",) * 4) for number in range(1000)]
    numbers = [journal.meter_number(meter) for meter in meters]
    await journal.close()
    again = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=2000))
    again.append(Opened(INCARNATION, 1))
    await again.close()
    (newest,) = (tmp_path / "journal").glob("*.journal")
    assert newest.name > "00000000000000001" and newest.stat().st_size > 64 * 1024
    third = await open_at(tmp_path)
    assert [third.meter_number(meter) for meter in meters] == numbers
    await third.close()


async def test_the_newest_event_of_all_that_is_kept_is_known_wherever_it_stands(tmp_path: Path) -> None:
    """A drained journal is retired, and may be deleted, once the horizon has reached it."""
    journal = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=2000))
    assert journal.newest_us == 0
    journal.append(Opened(INCARNATION, 1))
    for number in range(1, 60):
        journal.append(call(number, 3, newest_us=9000 if number == 5 else number))
        await journal.drain()
    assert len(list((tmp_path / "journal").glob("*.journal"))) > 3
    assert journal.newest_us == 9000
    await journal.close()
    again = await open_at(tmp_path)
    assert again.newest_us == 9000
    await again.close()


async def test_only_one_process_has_it_open(tmp_path: Path) -> None:
    journal = await open_at(tmp_path)
    with pytest.raises(JournalBusy, match="open in another process") as busy:
        await open_at(tmp_path)
    assert busy.value.retry
    await journal.close()
    await (await open_at(tmp_path)).close()


async def test_a_failed_sync_ends_it(tmp_path: Path) -> None:
    disk = CountingDisk()
    journal = await open_at(tmp_path, disk)
    journal.append(Opened(INCARNATION, 1))
    await journal.drain()
    reports: list[int] = []
    journal.on_synced = reports.append
    disk.fail_sync = True
    journal.append(call(1, 1))
    with pytest.raises(JournalStopped):
        await journal.drain()
    assert isinstance(journal.failed.exception(), OSError)
    disk.fail_sync = False
    with pytest.raises(JournalStopped):
        journal.append(call(2, 1))
    with pytest.raises(JournalStopped):
        await journal.close()
    assert reports == []
    await (await open_at(tmp_path)).close()  # unlocked all the same


async def test_segments_go_once_the_horizon_has_reached_them(tmp_path: Path) -> None:
    journal = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=2000))
    directory = tmp_path / "journal"
    journal.append(Opened(INCARNATION, 1))

    async def fill(first: int, horizon_us: int) -> int:
        for number in range(first, first + 30):
            journal.append(call(number, 5, newest_us=1000 + number, horizon_us=horizon_us))
        await journal.drain()
        return first + 30

    following = await fill(1, horizon_us=0)
    for one in [*flush_records(1, Through(INCARNATION, following - 1), [Record(0, 1, (), b"x")]), Flushed(1)]:
        journal.append(one)
    following = await fill(following, horizon_us=0)
    held = list(directory.glob("*.journal"))
    assert len(held) > 4, "nothing goes while the horizon lies below"
    following = await fill(following, horizon_us=1010)
    following = await fill(following, horizon_us=5000)
    left = sorted(directory.glob("*.journal"))
    assert min(held) not in left
    tallies = journal.state.totals
    assert tallies == {}, "the state is what opening found"
    await journal.close()

    kept = [record for record in read_journal(str(directory), RealDisk()) if isinstance(record, CallRecord)]
    assert {record.number for record in kept} >= set(range(31, following)), "what no flush carried stays"
    again = await open_at(tmp_path)
    assert again.state.totals[1]["accepted"] == 5 * (following - 1)
    assert again.state.flushed == {1: 150}
    assert again.state.tallies[1]["accepted"] == 5 * (following - 1) - 150
    await again.close()


async def test_a_segment_that_comes_back_after_it_went_is_removed_again(tmp_path: Path) -> None:
    journal = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=500))
    directory = tmp_path / "journal"
    first = directory / "00000000000000000001.journal"
    journal.append(Opened(INCARNATION, 1))
    await journal.drain()
    copy = first.read_bytes()
    for number in range(1, 20):
        journal.append(call(number, 0))
        await journal.drain()
        for one in [*flush_records(number, Through(INCARNATION, number), []), Flushed(number)]:
            journal.append(one)
    await journal.close()
    assert not first.exists()
    first.write_bytes(copy)
    await (await open_at(tmp_path)).close()
    assert not first.exists()


async def test_it_is_read_while_it_is_written(tmp_path: Path) -> None:
    journal = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=3000))
    journal.append(Opened(INCARNATION, 1))
    seen = 0
    for number in range(1, 60):
        journal.append(call(number, 3))
        await journal.drain()
        calls = [record.number for record in read_journal(str(tmp_path / "journal"), RealDisk()) if isinstance(record, CallRecord)]
        assert calls == list(range(1, number + 1))
        seen += 1
    assert seen == 59
    await journal.close()


async def test_room_is_known_without_a_system_call(tmp_path: Path) -> None:
    disk = CountingDisk()
    disk.free = 10_000_000
    journal = await open_at(tmp_path, disk, LIMITS._replace(max_bytes=100_000, min_free_bytes=1_000_000))
    asked = disk.free_questions
    assert all(journal.has_room(1000) for _ in range(1000))
    assert not journal.has_room(100_001), "more than the journal may hold"
    await asyncio.sleep(0)
    await journal.drain()
    assert disk.free_questions <= asked + 1
    journal.append(Opened(INCARNATION, 1))
    number = 0
    while journal.has_room(1000):
        number += 1
        journal.append(call(number, 100))
    assert 90_000 < sum(len(one.claims[0][1]) + len(one.claims[0][2]) for one in [call(1, 100)]) * number < 100_000
    await journal.close()


async def test_what_was_written_and_has_gone_takes_no_room(tmp_path: Path) -> None:
    """Many times what fits: a count that only grew would end in refusals for ever."""
    disk = CountingDisk()
    disk.free = 1_000_000
    limits = JournalLimits(segment_bytes=2_000, max_bytes=20_000, min_free_bytes=950_000, free_check_bytes=5_000)
    journal = await open_at(tmp_path, disk, limits)
    journal.append(Opened(INCARNATION, 1))
    for number in range(1, 200):
        assert journal.has_room(2_000), journal.shortage(2_000)
        journal.append(call(number, 50, newest_us=number, horizon_us=number))
        for one in [*flush_records(number, Through(INCARNATION, number), []), Flushed(number)]:
            journal.append(one)
        await journal.drain()

    def on_disk() -> int:
        return sum(file.stat().st_size for file in (tmp_path / "journal").glob("*.journal"))

    async with asyncio.timeout(10):
        while journal.kept_bytes != on_disk():  # the last ones go
            await asyncio.sleep(0.01)
    assert journal.kept_bytes < 20_000 and journal.synced > 800
    assert journal.shortage(20_000 - journal.kept_bytes) is None, "nothing is under way"
    await journal.close()


async def test_a_full_journal_makes_room_by_itself_once_it_may(tmp_path: Path) -> None:
    """Nothing is appended to it while it is full, so no append can be what lets a segment go."""
    journal = await open_at(tmp_path, limits=LIMITS._replace(segment_bytes=2_000, max_bytes=20_000))
    journal.append(Opened(INCARNATION, 1))
    number = 0
    while journal.has_room(1_000):
        number += 1
        journal.append(call(number, 50, newest_us=number))
        await journal.drain()
    journal.append(call(number + 1, 0, horizon_us=number))  # an empty call needs no room
    for one in [*flush_records(1, Through(INCARNATION, number + 1), []), Flushed(1)]:
        journal.append(one)
    await journal.drain()
    async with asyncio.timeout(10):
        while not journal.has_room(10_000):
            await asyncio.sleep(0.05)
    await journal.close()


async def test_a_full_disk_is_noticed_and_so_is_room_that_comes_back(tmp_path: Path) -> None:
    disk = CountingDisk()
    disk.free = 1_000
    journal = await open_at(tmp_path, disk, LIMITS._replace(min_free_bytes=5_000))
    disk.free = 1_000_000
    assert not journal.has_room(10), "not known yet, but asked for"
    for record in (Opened(INCARNATION, 1), call(1, 1)):  # the second is written after the question was answered
        journal.append(record)
        await journal.drain()
    assert journal.has_room(10)
    await journal.close()


# ---- kill -9

CHILD = """
import asyncio, os, sys
from random import Random
sys.path.insert(0, os.getcwd())
from buffer.disk import RealDisk, Thread
from buffer.journal import open_journal
from buffer.journal_records import Flushed, Opened, Through
from buffer.counter_log import Record
from tests.integration.test_journal import LIMITS, call, clock_us, flush_records
from tests.lossy_disk import DropUnsynced

async def main():
    journal = await open_journal(sys.argv[1], disk=DropUnsynced(), background=Thread("journal"), entropy=os.urandom,
                                 clock_us=clock_us, limits=LIMITS._replace(segment_bytes=20_000))
    print("opened", journal.synced, flush=True)
    state, incarnation = journal.state, os.urandom(16)
    journal.on_synced = lambda synced: print(synced, flush=True)
    if state.flush is not None:
        journal.append(Flushed(state.flush.flush))
    journal.append(Opened(incarnation, 1))
    flush, n = state.next_flush, state.next_n.get(0, 1)
    number = 0
    while True:
        for _ in range(5):
            number += 1
            journal.append(call(number, number % 7, newest_us=number, horizon_us=number - 50))
        await asyncio.sleep(0)
        if number % 50 == 0:
            for one in flush_records(flush, Through(incarnation, number), [Record(0, n, (), bytes(200))]):
                journal.append(one)
            await journal.drain()
            journal.append(Flushed(flush))
            flush, n = flush + 1, n + 1

asyncio.run(main())
"""


def test_kill_9_in_a_row_loses_nothing_that_was_reported_synced(tmp_path: Path) -> None:
    """Unsynced writes die with the process. Killed while working, and while opening."""
    random = Random(5)
    directory = str(tmp_path / "journal")
    reported = accepted = 0
    for turn in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, directory], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = 0 if turn % 3 == 1 else random.randint(2, 60)  # 0: killed as soon as it has opened, or before
        for _ in range(lines):
            word = child.stdout.readline().split()[-1]
            reported = max(reported, int(word))
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines():
            reported = max(reported, int(line.split()[-1]))
        child.wait()
        child.stdout.close()
        state, synced = asyncio.run(reopen(directory))
        assert synced >= reported
        total = state.totals.get(1, {}).get("accepted", 0)
        assert total >= accepted
        accepted = total
    assert reported > 100


async def reopen(directory: str) -> tuple[Any, int]:
    journal = await open_journal(
        directory, disk=RealDisk(), background=Thread("journal"), entropy=os.urandom, clock_us=clock_us, limits=LIMITS
    )
    await journal.close()
    return journal.state, journal.synced


def test_the_disk_that_drops_unsynced_writes_does(tmp_path: Path) -> None:
    disk, path = DropUnsynced(), str(tmp_path / "file")
    file = disk.create(path)
    file.write([b"abc", memoryview(b"def")])
    assert disk.read(path, 2, 3) == b"cde"
    assert disk.size(path) == 6
    assert RealDisk().size(path) == 0
    file.sync()
    assert RealDisk().read(path) == b"abcdef"
    file.write([b"ghi"])
    assert (disk.read(path, 5), RealDisk().read(path)) == (b"fghi", b"abcdef")
    disk.truncate(path, 7)
    assert disk.read(path) == b"abcdefg"
    file.close()


def test_a_sync_that_does_nothing_loses_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    disk, path = DropUnsynced(), str(tmp_path / "file")
    file = disk.create(path)
    file.write([b"abc"])
    file.sync()
    file.close()
    assert RealDisk().read(path) == b""
