"""What only files can show: crashes at every step, torn tails, damage, several processes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest

from buffer import local_source
from buffer.counter_log import LogUnavailable, Record, Rejected, UnfitLog
from buffer.counters import MeterDefinition
from buffer.disk import AppendFile, Lock, RealDisk
from buffer.local_frames import COMMIT_BYTES, HEADER_BYTES, record_body, record_frame
from buffer.local_layout import Identity, Layout
from buffer.local_log import LocalLog
from buffer.local_rejected import RejectedRing
from buffer.local_source import LocalSource
from rater.source import Received, SourceUnavailable
from tests.conformance.counter_log_places import ALICE, BOB, PARTITIONS, LocalPlace, Reader, numbers, opened, reading, record, records
from tests.lossy_disk import DropUnsynced, Inline, LossyDisk


@pytest.fixture
def place(tmp_path: Path) -> LocalPlace:
    return LocalPlace(tmp_path)


async def everything(place: LocalPlace, stored: Mapping[str, int] | None = None) -> list[Received]:
    async with reading(place, stored) as reader:
        while received := await reader.source.poll(1000, 0):
            reader.keep(received)
        return reader.kept


# Torn tails.


async def test_an_unfinished_record_is_never_read_and_is_cut_by_the_next_writer(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        await log.produce(records([1, 2]))
    (segment,) = place.segments()
    whole = segment.read_bytes()
    position = len(whole) - HEADER_BYTES
    next_frame = record_frame(record_body(record(3).headers, b"x" * 100), position)
    for size in range(1, len(next_frame)):
        segment.write_bytes(whole + next_frame[:size])
        assert numbers(await everything(place)) == [1, 2]
    async with reading(place) as reader:
        await reader.take(2)
        async with opened(place.log()) as log:
            await log.produce(records([4]))
        assert numbers(await reader.take(1)) == [4]
    assert numbers(await everything(place)) == [1, 2, 4]
    assert segment.read_bytes().startswith(whole)


async def test_what_a_crash_left_unfinished_is_not_waited_for(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        await log.produce(records([1, 2]))
    (segment,) = place.segments()
    segment.write_bytes(segment.read_bytes() + b"torn")
    async with reading(place) as reader:
        await reader.take(2)
        await reader.nothing_more()
        assert await reader.source.ends() == reader.stored


async def test_whole_records_without_a_commit_wait_for_the_writer_and_are_kept(place: LocalPlace) -> None:
    """They may have been acknowledged: a crash of the machine can lose the commit frame, which is not synced, and nothing before it."""
    async with opened(place.log()) as log:
        await log.produce(records([1, 2]))
        await log.produce(records([3, 4]))
    async with reading(place) as ahead:
        await ahead.take(4)  # stores the position behind the commit frame that is about to be lost
    (segment,) = place.segments()
    segment.write_bytes(segment.read_bytes()[:-COMMIT_BYTES])
    assert numbers(await everything(place)) == [1, 2]
    assert await everything(place, ahead.stored) == []
    async with opened(place.log()) as log:
        await log.produce(records([5]))
    assert numbers(await everything(place)) == [1, 2, 3, 4, 5]
    assert numbers(await everything(place, ahead.stored)) == [5]


async def test_every_cut_behind_what_was_acknowledged_keeps_it(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        await log.produce(records([1]))
        await log.produce(records([2, 3]))
        (segment,) = place.segments()
        acknowledged = segment.stat().st_size - COMMIT_BYTES  # the last commit frame may be lost
        await log.produce(records([4, 5]))
    whole = segment.read_bytes()
    for cut in range(acknowledged, len(whole)):
        for each in place.segments():
            each.unlink()
        segment.write_bytes(whole[:cut])
        async with opened(place.log()) as log:
            await log.produce(records([4, 5]))
        found = numbers(await everything(place))
        assert found[:3] == [1, 2, 3]
        assert list(dict.fromkeys(found)) == [1, 2, 3, 4, 5]


async def test_every_flipped_byte_is_refused_or_cut_but_never_misread(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        for n in (1, 2, 3):
            await log.produce(records([n]))
    (segment,) = place.segments()
    whole = segment.read_bytes()
    refused = 0
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 0x10
        segment.write_bytes(changed)
        try:
            async with reading(place) as reader:
                for _ in range(3):  # damage is told when it is seen twice
                    reader.keep(await reader.source.poll(10, 0))
            found = numbers(reader.kept)
        except UnfitLog as error:
            refused += 1
            assert str(segment) in str(error)
            with pytest.raises(UnfitLog):
                async with opened(place.log()) as log:
                    await log.produce(records([4]))
        else:
            assert found == [1, 2], "only the last commit frame can be bad without being damage"
    assert refused == len(whole) - COMMIT_BYTES


async def test_damage_in_an_older_segment_is_told_after_what_is_good_before_it(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path, segment_bytes=300)
    async with opened(place.log()) as log:
        for n in range(1, 21):
            await log.produce(records([n]))
    damaged = place.segments()[2]
    content = bytearray(damaged.read_bytes())
    content[HEADER_BYTES + 20] ^= 1
    damaged.write_bytes(content)
    async with reading(place) as reader:
        with pytest.raises(UnfitLog, match=damaged.name):
            for _ in range(30):
                reader.keep(await reader.source.poll(10, 0))
        assert numbers(reader.kept) == list(range(1, len(reader.kept) + 1))
        assert len(reader.kept) >= 4


async def test_a_disk_that_cannot_be_read_is_not_now_and_costs_the_other_streams_nothing(place: LocalPlace) -> None:
    class Unreadable(RealDisk):
        broken = False

        def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
            if self.broken and "/1/" in path:
                raise OSError(errno.EIO, "input/output error")
            return super().read(path, offset, size)

    disk = Unreadable()
    reader = Reader(LocalSource(str(place.folder), disk=disk, background=Inline(), entropy=os.urandom, partitions=PARTITIONS))
    async with opened(place.log()) as log:
        await log.produce([*records([1, 2]), *records([1, 2], 1)])
        await reader.open()
        disk.broken = True
        reader.keep(await reader.source.poll(10, 0))  # first what is at hand
        assert numbers(reader.kept) == [1, 2]
        with pytest.raises(SourceUnavailable, match="input/output error"):
            await reader.source.poll(10, 0)
        disk.broken = False
        assert numbers(await reader.take(2), 1) == [1, 2]


# Positions.


async def test_a_position_behind_the_end_is_an_older_copy_of_the_log(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        await log.produce(records([1, 2]))
        older = place.segments()[0].read_bytes()
        await log.produce(records([3, 4]))
    async with reading(place) as reader:
        await reader.take(4)
    place.segments()[0].write_bytes(older)
    with pytest.raises(UnfitLog, match="older copy"):
        await everything(place, reader.stored)


async def test_reading_from_any_stored_position_goes_on_exactly_there(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path, segment_bytes=2000)
    async with opened(place.log()) as log:
        for n in range(1, 91, 3):
            await log.produce(records([n, n + 1, n + 2]))
    assert len(place.segments()) > 3
    received = await everything(place)
    assert numbers(received) == list(range(1, 91))
    for one in received:
        rest = await everything(place, {one.stream: one.next_position})
        assert numbers(rest) == list(range(int(one.headers["n"]) + 1, 91))


async def test_segments_roll_and_a_writer_goes_on_in_the_last(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path, segment_bytes=1000)
    for first in range(1, 101, 10):
        async with opened(place.log()) as log:
            for n in range(first, first + 10):
                await log.produce(records([n]))
    segments = place.segments()
    assert len(segments) > 5
    assert all(segment.stat().st_size < 2000 for segment in segments)
    for segment, following in pairwise(segments):
        assert int(following.stem) == int(segment.stem) + segment.stat().st_size - HEADER_BYTES
    assert numbers(await everything(place)) == list(range(1, 101))


async def test_a_batch_larger_than_a_read_is_read(place: LocalPlace) -> None:
    large = [record(n, value=os.urandom(3_000_000)) for n in range(1, 8)]
    large.append(record(8, value=os.urandom(20_000_000)))
    async with opened(place.log()) as log:
        await log.produce(large)
    assert [one.value for one in await everything(place)] == [one.value for one in large]


async def test_no_stream_starves(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_source, "_READ_BYTES", 1000)  # so that no stream is read in one go
    async with opened(place.log()) as log:
        for _ in range(20):
            await log.produce([record(n, partition) for partition in range(PARTITIONS) for n in range(1, 11)])
    async with reading(place) as reader:
        received = await reader.take(100, most=10)
        assert {one.stream[-1] for one in received} == {"0", "1", "2"}


# A disk that fails.


async def test_after_a_failed_sync_nothing_behind_the_last_commit_is_trusted(place: LocalPlace) -> None:
    class FailingFile:
        def __init__(self, file: AppendFile) -> None:
            self.file = file
            self.write = file.write
            self.close = file.close

        def sync(self) -> None:
            if disk.failing:
                raise OSError(errno.EIO, "input/output error")
            self.file.sync()

    class FailingDisk(RealDisk):
        failing = False

        def extend(self, path: str) -> AppendFile:
            return FailingFile(super().extend(path))

    disk = FailingDisk()
    async with opened(place.log(disk)) as log, reading(place) as reader:
        await log.produce(records([1, 2]))
        await reader.take(2)
        disk.failing = True
        for _ in range(3):
            with pytest.raises(LogUnavailable, match="input/output error"):
                await log.produce(records([3, 4]))
            await reader.nothing_more()
        disk.failing = False
        await log.produce(records([3, 4]))
        assert numbers(await reader.take(2)) == [3, 4]
        await log.produce(records([5]))
        assert numbers(await reader.take(1)) == [5]
    assert numbers(await everything(place)) == [1, 2, 3, 4, 5]


class Tree(LossyDisk):
    """LossyDisk knows no directories within directories; the local log has them."""

    def names(self, directory: str) -> list[str]:
        below = {path[len(directory) + 1 :].split("/")[0] for path in self._directories if path.startswith(f"{directory}/")}
        return sorted({*super().names(directory), *below})


class Crashing:
    """A writer that flushes from its journal and a rater that stores what it read; the machine may crash at any step of the disk."""

    FLUSHES = 9

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = Tree()
        self.reader = Reader(self.source())
        self.acknowledged = 0  # flushes
        self.crashes = 0
        self.dies_of_errors = False  # a process that the first error of its disk ends

    def log(self) -> LocalLog:
        return LocalLog("/log", disk=self.disk, background=Inline(), entropy=os.urandom, partitions=2, segment_bytes=700)

    def source(self) -> LocalSource:
        return LocalSource("/log", disk=self.disk, background=Inline(), entropy=os.urandom, partitions=2)

    def flush(self, number: int) -> Sequence[Record]:
        return [record(2 * number - 1 + more, partition, value=b"%d" % number * 60) for partition in (0, 1) for more in (0, 1)]

    async def run(self) -> None:
        while self.acknowledged < self.FLUSHES:
            try:
                await self.live()
            except (LogUnavailable, SourceUnavailable, OSError):
                if self.disk.off:
                    self.crash()

    def crash(self) -> None:
        self.disk.crash(self.random)
        self.crashes += 1
        kept, stored = self.reader.kept, self.reader.stored
        self.reader = Reader(self.source())
        self.reader.kept, self.reader.stored = kept, stored

    async def live(self) -> None:
        log = self.log()
        self.disk.kill()  # no lock of an earlier life
        await log.open()
        await self.reader.open()
        await log.produce(self.flush(max(1, self.acknowledged)))  # the last one again, as when its `flushed` was not journalled
        while self.acknowledged < self.FLUSHES:
            for attempt in range(3):  # the same bytes again, as the flush does
                try:
                    await log.produce(self.flush(self.acknowledged + 1))
                    break
                except LogUnavailable:
                    if self.disk.off or attempt == 2 or self.dies_of_errors:
                        raise
                    await self.read()
            self.acknowledged += 1
            if self.random.random() < 0.7:
                await self.read()

    async def read(self) -> None:
        while received := await self.reader.source.poll(3, 0):
            self.reader.keep(received)

    async def check(self) -> None:
        await self.reader.open()
        await self.read()
        fresh = Reader(self.source())
        await fresh.open()
        while received := await fresh.source.poll(100, 0):
            fresh.keep(received)
        for reader in (self.reader, fresh):
            for partition in (0, 1):
                assert list(dict.fromkeys(numbers(reader.kept, partition))) == list(range(1, 2 * self.FLUSHES + 1))
                for one in reader.kept:
                    assert one.value == b"%d" % ((int(one.headers["n"]) + 1) // 2) * 60


async def test_a_crash_of_the_machine_at_any_step_costs_nothing() -> None:
    undisturbed = Crashing(0)
    await undisturbed.run()
    steps = undisturbed.disk.steps
    assert steps > 100
    await undisturbed.check()
    for step in range(1, steps + 1):
        for seed in range(4):
            crashing = Crashing(step * 10 + seed)
            crashing.disk.cut_at = step
            await crashing.run()
            await crashing.check()
            assert crashing.crashes == 1, f"no crash at step {step}"


@pytest.mark.parametrize("seed", range(3))
async def test_what_a_process_left_half_done_is_made_durable_before_the_next_one_builds_on_it(seed: int) -> None:
    """A name that was put in place, but not synced, is read by the next process, and gone when the machine crashes after that."""
    undisturbed = Crashing(0)
    await undisturbed.run()
    for step in range(1, undisturbed.disk.steps + 1):
        crashing = Crashing(step * 10 + seed)
        crashing.disk.cut_at = step
        with suppress(LogUnavailable, SourceUnavailable, OSError):
            await crashing.live()
        crashing.disk.off, crashing.disk.cut_at = False, 0  # only the process has died: what it wrote is still seen
        crashing.FLUSHES = crashing.acknowledged + 1
        await crashing.live()
        crashing.crash()
        await crashing.live()  # the writer opens again: what is whole but lost its commit frame is kept
        await crashing.check()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["a writer that starts again", "a meter that others count too"])
async def test_an_entry_of_the_registry_that_was_built_on_outlives_a_crash_of_the_machine(kind: str, seed: int) -> None:
    """Whoever wrote it may have died before it was synced: a writer that others no longer know would have its events counted again."""
    meters = [MeterDefinition("hits", "", "count", 0, 60, ())]

    async def opened_on(disk: Tree) -> LocalLog:
        log = LocalLog("/log", disk=disk, background=Inline(), entropy=os.urandom, partitions=2)
        await log.open()
        return log

    async def write(log: LocalLog) -> None:
        if kind == "a writer that starts again":
            await log.register(ALICE)
        else:
            await log.define(meters)

    undisturbed = Tree()
    log = await opened_on(undisturbed)
    before = undisturbed.steps
    await write(log)
    for step in range(1, undisturbed.steps - before + 1):
        disk = Tree()
        log, other = await opened_on(disk), await opened_on(disk)
        disk.cut_at = disk.steps + step
        with suppress(LogUnavailable):
            await write(log)
        disk.off, disk.cut_at = False, 0  # only the process has died
        disk.kill()
        if kind == "a writer that starts again":
            other = await opened_on(disk)
        await write(other)
        known = await other.registry()
        disk.crash(Random(10 * step + seed))
        assert await (await opened_on(disk)).registry() == known
        assert known.writers or known.meters


async def test_a_second_crash_while_recovering_costs_nothing_either() -> None:
    for seed in range(150):
        crashing = Crashing(seed)
        crashing.disk.cut_at = crashing.random.randint(1, 150)
        crash = crashing.disk.crash

        def crash_again_soon(random: Random, crashing: Crashing = crashing, crash: object = crash) -> None:
            crash(random)  # type: ignore[operator]
            if crashing.crashes < 4:
                crashing.disk.cut_at = crashing.disk.steps + random.randint(1, 12)

        crashing.disk.crash = crash_again_soon  # type: ignore[method-assign]
        await crashing.run()
        crashing.disk.cut_at = 0
        await crashing.check()


@pytest.mark.parametrize("dies_of_errors", [False, True])
async def test_an_error_of_the_disk_at_any_step_costs_nothing(dies_of_errors: bool) -> None:
    undisturbed = Crashing(0)
    await undisturbed.run()
    for step in range(1, undisturbed.disk.steps + 1):
        crashing = Crashing(step)
        crashing.disk.fail_at = step
        crashing.dies_of_errors = dies_of_errors
        await crashing.run()
        await crashing.check()
        crashing.crash()  # a page whose write-back failed reads fine until now
        await crashing.live()  # the writer opens again: what is whole but lost its commit frame is kept
        await crashing.check()


# Several processes.

PRODUCER = """
import asyncio, os, sys
from buffer.disk import RealDisk, Thread
from tests.conformance.counter_log_places import LocalPlace, records
from pathlib import Path

async def main() -> None:
    log = LocalPlace(Path(sys.argv[1]), segment_bytes=20_000).log()
    await log.open()
    n = int(sys.argv[2])
    while True:
        await log.produce(records([n, n + 1]))
        print(n + 1, flush=True)
        n += 2

asyncio.run(main())
"""


async def test_kill_9_of_the_writer_costs_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    acknowledged = 0
    async with opened(place.log()), reading(place) as reader:
        for _ in range(4):
            command = [sys.executable, "-c", PRODUCER, str(tmp_path), str(acknowledged + 1)]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            for _ in range(20):
                acknowledged = int(await process.stdout.readline())
                reader.keep(await reader.source.poll(7, 0))
            process.send_signal(signal.SIGKILL)
            told, _ = await process.communicate()
            acknowledged = int(told.split()[-1]) if told.split() else acknowledged
        while acknowledged not in numbers(reader.kept):
            reader.keep(await reader.source.poll(100, 1))
    seen = list(dict.fromkeys(numbers(reader.kept)))
    assert seen[:acknowledged] == list(range(1, acknowledged + 1))
    assert len(seen) - acknowledged <= 2, "beyond that only what was being produced"


MAKER = """
import asyncio, sys
from pathlib import Path
from tests.conformance.counter_log_places import LocalPlace

async def main() -> None:
    log = LocalPlace(Path(sys.argv[1])).log()
    sys.stdin.readline()
    await log.open()
    print(log.identity)

asyncio.run(main())
"""


async def test_processes_that_start_together_make_one_log(tmp_path: Path) -> None:
    makers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", MAKER, str(tmp_path / "deep" / "er"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    told = await asyncio.gather(*(maker.communicate(b"\n") for maker in makers))
    assert len({out for out, _ in told}) == 1
    assert len(told[0][0].strip()) == 32


async def test_who_finds_the_log_being_made_waits_for_it(place: LocalPlace) -> None:
    place.folder.mkdir()
    lock = RealDisk().lock(f"{place.folder}/opening.lock")
    opening = asyncio.ensure_future(place.log().open())
    await asyncio.sleep(0.1)
    assert not opening.done()
    lock.release()
    await opening


async def test_a_log_that_was_made_in_the_last_moment_is_not_made_again(place: LocalPlace) -> None:
    class Late(RealDisk):
        """Before it has the lock somebody else makes the log."""

        def lock(self, path: str) -> Lock:
            if path.endswith("opening.lock"):
                made.append(Layout(str(place.folder), RealDisk()).open_or_make(PARTITIONS, os.urandom))
            return super().lock(path)

    made: list[Identity] = []
    async with opened(place.log(Late())) as log:
        assert [log.identity] == [identity.id for identity in made]


async def test_one_process_appends_for_a_writer(place: LocalPlace) -> None:
    async with opened(place.log()) as one, opened(place.log()) as other:
        await one.produce(records([1]))
        with pytest.raises(LogUnavailable, match="another process appends"):
            await other.produce(records([2]))
        await other.produce(records([1], 0, BOB))
        await one.close()
        await other.produce(records([2]))
    assert numbers(await everything(place)) == [1, 2]


# Formats.


async def test_counters_without_an_identity_are_no_new_log(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        await log.produce(records([1]))
    (place.folder / "log.json").unlink()
    with pytest.raises(UnfitLog, match="missing beside counter records"):
        await place.log().open()


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "damaged"), (b'{"format":2,"id":"x","partitions":1}', "format 2"), (b'{"format":1,"id":7,"partitions":1}', "damaged")],
)
async def test_an_unknown_identity_is_refused(place: LocalPlace, content: bytes, named: str) -> None:
    place.folder.mkdir()
    (place.folder / "log.json").write_bytes(content)
    with pytest.raises(UnfitLog, match=named):
        await place.log().open()


async def test_a_damaged_registration_is_refused(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        await log.register(ALICE)
        (place.folder / "writers" / f"{ALICE.hex()}.json").write_bytes(b"{}")
        with pytest.raises(UnfitLog, match="registration"):
            await log.registry()


async def test_meters_are_added_by_one_process_at_a_time(place: LocalPlace) -> None:
    """Whoever comes meanwhile waits, and is told what came first."""
    peak = MeterDefinition("peak", "", "max", 0, 60, ())
    async with opened(place.log()) as log, opened(place.log()) as other:
        lock = RealDisk().lock(str(place.folder / "opening.lock"))
        waiting = asyncio.create_task(log.define([peak]))
        await asyncio.sleep(0.1)
        assert not waiting.done() and not list((place.folder / "writers").glob("meter:*"))
        lock.release()
        assert await waiting == {"peak": peak} == await other.define([peak._replace(scale=3)])
    assert [file.name for file in (place.folder / "writers").glob("meter:*")] == ["meter:peak.json"]


# Rejected events.


def lines(folder: Path) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for file in sorted(folder.glob("*.ndjson")) for line in file.read_bytes().splitlines()]


async def test_rejected_events_can_be_read_line_by_line(place: LocalPlace) -> None:
    async with opened(place.log()) as log:
        await log.register(ALICE)
        await log.produce_rejected([Rejected("demo", b'{"code":\n"too_late"}'), Rejected("other", b'{"code":"conflict"}')])
    async with opened(place.log()) as log:
        await log.produce(records([1]))
        await log.produce_rejected([Rejected("demo", b'{"code":"too_long"}')])
    assert lines(place.folder / "rejected" / ALICE.hex()) == [
        {"v": 1, "tenant": "demo", "event": {"code": "too_late"}},
        {"v": 1, "tenant": "other", "event": {"code": "conflict"}},
        {"v": 1, "tenant": "demo", "event": {"code": "too_long"}},
    ]


def test_rejected_events_are_on_the_disk_once_they_are_taken(tmp_path: Path) -> None:
    """The journal lets go of them then."""
    ring = RejectedRing(str(tmp_path), DropUnsynced())
    for number in range(2):
        ring.append([Rejected("demo", b'{"number":%d}' % number)])
        assert [line["event"]["number"] for line in lines(tmp_path)] == [*range(number + 1)]
    ring.close()


def test_the_ring_keeps_the_newest_and_is_bounded(tmp_path: Path) -> None:
    def rejected(number: int) -> Rejected:
        return Rejected("demo", b'{"number":%d}' % number)

    for start in range(0, 2000, 200):
        ring = RejectedRing(str(tmp_path), RealDisk(), file_bytes=4000, most_bytes=16_000)
        for number in range(start, start + 200, 5):
            ring.append([rejected(number + more) for more in range(5)])
            assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 16_500
        ring.close()
    kept = [line["event"] for line in lines(tmp_path)]
    assert kept == [{"number": number} for number in range(2000 - len(kept), 2000)]
    assert len(kept) > 150
