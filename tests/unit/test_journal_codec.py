"""The journal's bytes: every record round-trips, and no cut and no flipped bit of a journal is ever misread."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from buffer.counter_log import Record, Rejected
from buffer.counters import MeterDefinition, pack
from buffer.journal import JournalDamaged, JournalError, JournalLimits, JournalTooNew, read_journal
from buffer.journal_codec import (
    FRAME_BYTES,
    HEADER_BYTES,
    SECTOR_BYTES,
    Scan,
    SegmentHeader,
    damage_in_tail,
    decode_header,
    decode_outline,
    decode_record,
    encode_header,
    encode_record,
    frame_at,
    has_lost_sector,
    seal,
    seed_of,
)
from buffer.journal_records import (
    CallRecord,
    Closed,
    Entering,
    FlushBegin,
    FlushCommit,
    Flushed,
    FlushPart,
    FlushProgress,
    JournalRecord,
    Meters,
    Opened,
    Snapshot,
    Through,
)
from buffer.journal_segments import open_segments, segment_firsts, segment_name
from tests.journal_driver import DIRECTORY, call, clock_us, flush_records, opened
from tests.lossy_disk import LossyDisk

WRITER = bytes(range(16))
SEED = seed_of(WRITER)

# ---- round trips

numbers = st.integers(0, 2**31)
times = st.integers(0, 2**53)
ids = st.binary(min_size=16, max_size=16)
values = st.integers(-(10**38), 10**38)
counters = st.dictionaries(
    st.tuples(numbers, numbers, st.text(max_size=8), times, st.text(max_size=4) | st.integers(-(2**63), 2**64 - 1)),
    st.builds(pack, values, st.integers(1, 2**31 - 1)),
    max_size=40,
)
deltas = st.lists(st.dictionaries(st.sampled_from(["sum", "max"]), counters), max_size=3)
tallies = st.dictionaries(numbers, st.dictionaries(st.text(max_size=8), numbers, max_size=3), max_size=3)
rejected = st.builds(Rejected, st.text(max_size=8), st.binary(max_size=900))
headers = st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=3).map(tuple)
records = st.builds(Record, numbers, numbers, headers, st.binary(max_size=900))
claims = st.lists(st.tuples(numbers, st.binary(max_size=60), st.binary(max_size=20)), max_size=3)
plain_calls = st.builds(
    CallRecord,
    numbers,
    numbers,
    numbers,
    times,
    times,
    claims,
    deltas,
    tallies,
    st.lists(rejected, max_size=3),
    ids,
    st.just(0),
    st.just(0),
)
calls = plain_calls | st.builds(lambda call, shard, n: call._replace(shard=shard, in_shard=n), plain_calls, numbers, st.integers(1, 2**31))
throughs = st.builds(Through, ids | st.just(b""), numbers)
names = st.lists(st.text(), max_size=3).map(tuple)
definitions = st.builds(MeterDefinition, st.text(), st.text(), st.sampled_from(["sum", "max"]), st.integers(0, 18), numbers, names)
meters = st.dictionaries(numbers, definitions, max_size=3)
per_number = st.dictionaries(numbers, numbers, max_size=3)
progress = st.builds(FlushProgress, numbers, throughs, per_number, st.booleans(), per_number)
plain_snapshots = st.builds(
    Snapshot,
    ids,
    st.lists(st.tuples(ids, numbers), max_size=3),
    meters,
    per_number,
    numbers,
    times,
    tallies,
    per_number,
    throughs,
    st.none() | progress,
    numbers,
    st.just(()),
    st.just(()),
    st.just(()),
)
sharded_snapshots = st.builds(
    lambda snapshot, calls, horizons: snapshot._replace(shard_calls=calls, shard_horizons_us=horizons),
    plain_snapshots,
    st.lists(st.lists(numbers, max_size=3), max_size=3),
    st.lists(times, min_size=1, max_size=3),
)
branched_snapshots = st.builds(
    lambda snapshot, branches: snapshot._replace(
        branches=branches, shard_calls=list(snapshot.shard_calls), shard_horizons_us=list(snapshot.shard_horizons_us)
    ),
    plain_snapshots | sharded_snapshots,
    st.lists(ids, min_size=1, max_size=3),
)
snapshots = plain_snapshots | sharded_snapshots | branched_snapshots
any_record = st.one_of(
    calls,
    st.builds(Opened, ids, times, st.integers(1, 3)),
    st.builds(Meters, meters),
    st.builds(FlushBegin, numbers, throughs),
    st.builds(FlushPart, numbers, st.lists(records, max_size=3)),
    st.builds(FlushCommit, numbers),
    st.builds(Flushed, numbers, st.none() | per_number),
    st.builds(Closed, numbers),
    st.builds(Entering, st.binary(min_size=16, max_size=16), st.integers(0, 9)),
    snapshots,
)


def framed(record: JournalRecord, sequence: int = 7, group: int = 5, previous: int = 99) -> bytes:
    prefix, rest, _ = seal(encode_record(record), sequence, group, previous, SEED)
    return prefix + rest


@settings(max_examples=400)
@given(any_record)
def test_every_record_round_trips(record: JournalRecord) -> None:
    frame = frame_at(memoryview(framed(record)), 0, SEED)
    assert frame is not None
    assert (frame.sequence, frame.group, frame.previous) == (7, 5, 99)
    assert decode_record(frame) == record
    assert type(decode_record(frame)) is type(record)


@settings(max_examples=100)
@given(calls)
def test_the_outline_of_a_call_lacks_only_what_is_in_its_body(record: CallRecord) -> None:
    frame = frame_at(memoryview(framed(record)), 0, SEED)
    assert frame is not None
    assert decode_outline(frame) == record._replace(deltas=[], rejected=[])


def test_the_outline_of_a_flush_part_has_the_numbers_of_its_records() -> None:
    frame = frame_at(memoryview(framed(FlushPart(1, [Record(2, 9, (("v", b"1"),), b"{}")]))), 0, SEED)
    assert frame is not None
    assert decode_outline(frame) == FlushPart(1, [Record(2, 9, (), b"")])


def test_a_large_body_is_compressed_and_a_small_one_is_not() -> None:
    large = framed(FlushPart(1, [Record(0, 1, (), b"the same again " * 200)]))
    assert len(large) < 300
    frame = frame_at(memoryview(framed(call(1, 1))), 0, SEED)
    assert frame is not None
    assert frame.body_size == 0


def test_frames_of_one_journal_prove_nothing_in_another() -> None:
    assert frame_at(memoryview(framed(Closed(1))), 0, seed_of(bytes(16))) is None


def test_an_unknown_version_of_a_sound_frame_is_refused() -> None:
    data = bytearray(framed(Closed(1)))
    data[12 + 24] = 4  # the version byte
    data[4:12] = xxh3_64_intdigest(bytes(data[12:]), SEED).to_bytes(8, "little")
    with pytest.raises(Exception, match="format version 4"):
        frame_at(memoryview(bytes(data)), 0, SEED)


def test_the_segment_header_round_trips() -> None:
    header = SegmentHeader(WRITER, 12, 2**64 - 1, clock_us())
    assert len(encode_header(header)) == HEADER_BYTES
    assert decode_header(memoryview(encode_header(header))) == header


# ---- torn tail or damage: one group after another, at any place in a sector


def frames(groups: list[list[JournalRecord]], start: int) -> tuple[bytes, list[int]]:
    """The bytes of groups of frames from an offset on, sequence 1 the first, and the offset of each frame."""
    data, offsets, chain, sequence = bytearray(start), [], 0, 1
    for group in groups:
        first = sequence
        for record in group:
            prefix, rest, chain = seal(encode_record(record), sequence, first, chain, SEED)
            offsets.append(len(data))
            data += prefix + rest
            sequence += 1
    return bytes(data), offsets


def judged(data: bytes, start: int) -> tuple[int, str | None]:
    scan = Scan(memoryview(data), start, SEED, 1, 0)
    good = sum(1 for _ in scan)
    return good, None if scan.whole else damage_in_tail(memoryview(data), scan.offset, scan.sequence, SEED)


@pytest.mark.parametrize("start", [0, 64, 500, 511])
def test_a_sector_lost_inside_the_last_group_is_a_torn_tail(start: int) -> None:
    group: list[JournalRecord] = [call(number, 30) for number in range(1, 8)]
    data, offsets = frames([[Opened(WRITER, 1)], group], start)
    for sector in range(offsets[1] // SECTOR_BYTES + 1, len(data) // SECTOR_BYTES):
        torn = bytearray(data)
        torn[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = bytes(SECTOR_BYTES)
        good, damage = judged(bytes(torn), start)
        assert damage is None, f"sector {sector}: {damage}"
        assert offsets[good] < (sector + 1) * SECTOR_BYTES, "only whole frames before the hole are good"
        assert good == len(offsets) - 1 or offsets[good + 1] > sector * SECTOR_BYTES


@pytest.mark.parametrize("start", [0, 64, 500, 511])
def test_a_sector_lost_inside_an_earlier_group_is_damage(start: int) -> None:
    group: list[JournalRecord] = [call(number, 30) for number in range(1, 8)]
    data, offsets = frames([[Opened(WRITER, 1)], group, [Closed(7)]], start)
    for sector in range(offsets[1] // SECTOR_BYTES + 1, offsets[-1] // SECTOR_BYTES):
        torn = bytearray(data)
        torn[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = bytes(SECTOR_BYTES)
        assert "already on disk" in (judged(bytes(torn), start)[1] or "")


def test_a_changed_byte_inside_the_last_group_is_damage_when_a_good_frame_follows() -> None:
    data, offsets = frames([[Opened(WRITER, 1)], [call(1, 30), call(2, 30)]], 64)
    for at in range(offsets[1], offsets[2]):
        changed = bytearray(data)
        changed[at] ^= 0x10
        assert "no sector is missing" in (judged(bytes(changed), 64)[1] or "")


def test_a_frame_twice_is_damage() -> None:
    data, offsets = frames([[Opened(WRITER, 1)], [Closed(0)]], 64)
    assert "out of its place" in (judged(data + data[offsets[1] :], 64)[1] or "")


def test_what_counts_as_a_lost_sector() -> None:
    data = memoryview(b"x" * 512 + bytes(512) + b"x" * 512)
    assert has_lost_sector(data, 500, 1200)
    assert not has_lost_sector(data, 500, 1023), "the sector does not end before the good frame"
    assert has_lost_sector(data, 600, 1024), "a part of a sector, from the end of what was written before"
    assert not has_lost_sector(data, 0, 512)


# ---- a small journal of several segments: every cut, every bit


def small_journal() -> tuple[LossyDisk, list[JournalRecord]]:
    """Three segments; the last one holds groups of one and of several frames."""

    async def write() -> LossyDisk:
        disk = LossyDisk()
        journal = await opened(disk, Random(1), JournalLimits(segment_bytes=700, max_bytes=1 << 30, min_free_bytes=0))
        incarnation = bytes(range(16))
        groups: list[list[JournalRecord]] = [
            [Opened(incarnation, 5)],
            [call(1, 3), call(2, 1)],
            [call(3, 0), call(4, 2)],
            flush_records(1, Through(incarnation, 3), [Record(0, 1, (("v", b"1"),), b'{"v":1}')]),
            [Flushed(1), call(5, 1)],
            [call(6, 1), call(7, 0)],
            [call(8, 1)],
        ]
        for group in groups:
            for record in group:
                journal.append(record)
            await journal.drain()
        await journal.close()
        return disk

    disk = asyncio.run(write())
    return disk, list(read_journal(DIRECTORY, disk))


def reopened(disk: LossyDisk) -> list[JournalRecord]:
    """Opening, then what the journal holds."""
    opening = open_segments(DIRECTORY, disk, Random(2).randbytes, clock_us)
    opening.lock.release()
    return list(read_journal(DIRECTORY, disk))


@pytest.fixture(scope="module")
def journal() -> tuple[LossyDisk, list[JournalRecord]]:
    return small_journal()


def segments(disk: LossyDisk) -> list[str]:
    return [f"{DIRECTORY}/{segment_name(first)}" for first in segment_firsts(disk.names(DIRECTORY))]


def frame_ends(data: bytes) -> list[int]:
    header = decode_header(memoryview(data))
    scan = Scan(memoryview(data), HEADER_BYTES, seed_of(header.writer), header.first, header.chain)
    return [frame.end for frame in scan]


def test_the_small_journal_is_what_the_tests_below_need(journal: tuple[LossyDisk, list[JournalRecord]]) -> None:
    disk, records = journal
    paths = segments(disk)
    assert len(paths) >= 3
    assert len(frame_ends(disk.read(paths[-1]))) >= 3
    assert reopened(disk.copy()) == records


def test_any_cut_is_a_torn_tail_or_refused(journal: tuple[LossyDisk, list[JournalRecord]]) -> None:
    disk, records = journal
    paths = segments(disk)
    for path in paths:
        content = disk.read(path)
        ends = frame_ends(content)
        for size in range(len(content)):
            cut = disk.copy()
            cut.put(path, content[:size])
            if path != paths[-1] or size < ends[0]:
                with pytest.raises(JournalDamaged) as damaged:
                    reopened(cut)
                whole = [0] if size < HEADER_BYTES else [end for end in (HEADER_BYTES, *ends) if end <= size]
                if size not in ends:  # else nothing is wrong with the file itself: the next one does not go on where it ends
                    assert (damaged.value.path, damaged.value.offset) == (path, whole[-1])
            else:
                lost = sum(1 for end in ends if end > size)
                assert reopened(cut) == records[: len(records) - lost]


def test_any_flipped_bit_is_a_torn_tail_or_refused(journal: tuple[LossyDisk, list[JournalRecord]]) -> None:
    disk, records = journal
    paths = segments(disk)
    for path in paths:
        content = disk.read(path)
        last_frame = frame_ends(content)[-2] if path == paths[-1] else len(content)
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            other = disk.copy()
            other.put(path, bytes(flipped))
            if bit // 8 >= last_frame:
                assert reopened(other) == records[:-1]
            else:
                with pytest.raises(JournalError) as refused:
                    reopened(other)
                assert path in str(refused.value)


def test_a_missing_segment_is_refused_unless_it_is_the_last(journal: tuple[LossyDisk, list[JournalRecord]]) -> None:
    """That the last one is missing is for the claim store to find: it knows a higher mark."""
    disk, _ = journal
    for path in segments(disk)[:-1]:
        other = disk.copy()
        other.delete(path)
        with pytest.raises(JournalDamaged):
            reopened(other)


def test_a_segment_of_a_forked_copy_is_refused() -> None:
    """Same writer, same sequence numbers, sound frames: only the chain tells that this is another history."""

    async def fork(name: str) -> LossyDisk:
        disk = LossyDisk()
        limits = JournalLimits(segment_bytes=400, max_bytes=1 << 30, min_free_bytes=0)
        journal = await opened(disk, Random(1), limits)
        journal.append(Opened(bytes(16), 1))
        await journal.drain()
        for number in range(1, 8):
            journal.append(call(number, 2, random=Random(f"{name} {number}")))
            await journal.drain()
        await journal.close()
        return disk

    one, other = asyncio.run(fork("one")), asyncio.run(fork("other"))
    assert segments(one) == segments(other)
    assert len(segments(one)) > 2
    for path in segments(one)[1:]:
        mixed = one.copy()
        mixed.put(path, other.read(path))
        with pytest.raises(JournalDamaged) as damaged:
            reopened(mixed)
        assert (damaged.value.path, damaged.value.offset) == (path, 0)


def test_a_last_segment_whose_frames_belong_to_a_fork_is_refused() -> None:
    """The tail of a fork behind a common beginning: sound frames, next number, wrong chain."""
    data, offsets = frames([[Opened(WRITER, 1)], [call(1, 1)], [call(2, 1)]], 64)
    fork, fork_offsets = frames([[Opened(WRITER, 1)], [call(1, 1, newest_us=5)], [call(2, 1)]], 64)
    good, damage = judged(data[: offsets[2]] + fork[fork_offsets[2] :], 64)
    assert good == 2
    assert damage is not None


def test_what_an_earlier_opening_left_behind_is_swept(journal: tuple[LossyDisk, list[JournalRecord]]) -> None:
    disk = journal[0].copy()
    disk.put(f"{DIRECTORY}/{segment_name(99)}.new", b"half a seg")
    assert reopened(disk) == journal[1]
    assert not any(name.endswith(".new") for name in disk.names(DIRECTORY))


def test_an_unknown_version_of_a_segment_is_refused_in_one_sentence(journal: tuple[LossyDisk, list[JournalRecord]]) -> None:
    disk = journal[0].copy()
    path = segments(disk)[-1]
    content = bytearray(disk.read(path))
    content[8] = 9
    disk.put(path, bytes(content))
    with pytest.raises(JournalTooNew, match="format version 9") as refused:
        reopened(disk)
    assert str(refused.value).count(". ") == 0


def test_frame_size_is_what_the_format_says() -> None:
    encoded: Any = encode_record(Closed(1))
    assert len(framed(Closed(1))) == FRAME_BYTES + len(encoded.head)
