"""A journal whose tenants are spread over several claim stores: what it says of each, and that one store leaves no trace."""

from __future__ import annotations

from random import Random

import pytest

from buffer.journal_codec import Encoded, decode_record, encode_record, frame_at, seal
from buffer.journal_records import CallRecord, FlushBegin, FlushCommit, Flushed, JournalRecord, Opened, Snapshot, Through
from buffer.journal_segments import SegmentFacts, disposable
from buffer.journal_state import Replayed, Standing, replay
from tests.journal_driver import call

WRITER = bytes(range(16))
ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16


def in_shard(number: int, shard: int, its: int, *, accepted: int = 1, newest_us: int = 0, horizon_us: int = 0) -> CallRecord:
    return call(number, accepted, newest_us=newest_us, horizon_us=horizon_us)._replace(shard=shard, in_shard=its)


def standing(*records: JournalRecord) -> Standing:
    found = Standing(WRITER)
    for record in records:
        found.apply(record)
    return found


def replayed(*records: JournalRecord) -> Replayed:
    return replay([Standing(WRITER).snapshot(kept_from=1), *records])


def stored(record: JournalRecord) -> Encoded:
    return encode_record(record)


def read_back(record: JournalRecord) -> JournalRecord:
    frame = frame_at(memoryview(b"".join(seal(encode_record(record), 1, 1, 0, 0)[:2])), 0, 0)
    assert frame is not None
    return decode_record(frame)


def test_one_shard_is_stored_as_it_was_before_there_were_shards() -> None:
    first = standing(Opened(ONE, 5), call(1, 2), call(2, 0))
    assert {stored(record).version for record in (Opened(ONE, 5), call(1, 2), first.snapshot(1))} == {1}
    assert stored(Opened(ONE, 5)).head == b"\x92\xc4\x10" + ONE + b"\x05"
    assert stored(call(1, 2)).head[0] == 0x98  # an array of eight
    assert stored(first.snapshot(1)).head[0] == 0x9B  # of eleven


def test_what_tells_of_shards_says_so_and_reads_back() -> None:
    first = standing(Opened(ONE, 5, 3), in_shard(1, 2, 1, horizon_us=4))
    for record in (Opened(ONE, 5, 3), in_shard(1, 2, 1), first.snapshot(1)):
        assert stored(record).version == 2
        assert stored(read_back(record)) == stored(record)
    again = read_back(first.snapshot(1))
    assert isinstance(again, Snapshot) and (again.shard_calls, again.shard_horizons_us) == ([[0, 0, 1]], [0, 0, 4])


def test_each_shard_knows_its_own_calls() -> None:
    found = replayed(Opened(ONE, 1, 2), in_shard(1, 1, 1), in_shard(2, 0, 1), in_shard(3, 1, 2), Opened(TWO, 2, 2), in_shard(1, 0, 1))
    assert found.closed_in(0, 2) == [(ONE, 1), (TWO, 1)]
    assert found.closed_in(1, 2) == [(ONE, 2), (TWO, 0)]


def test_in_a_new_set_of_shards_all_calls_of_the_old_one_are_on_disk() -> None:
    found = replayed(Opened(ONE, 1), call(1, 1), call(2, 1), Opened(TWO, 2, 2), in_shard(1, 1, 1), in_shard(2, 0, 1), in_shard(3, 1, 2))
    assert found.closed_in(0, 2) == [(ONE, 2), (TWO, 1)]
    assert found.closed_in(2, 3) == [(ONE, 2), (TWO, 3)]
    assert found.closed_in(0, 1) == [(ONE, 2), (TWO, 3)]


@pytest.mark.parametrize(
    "wrong",
    [
        (in_shard(1, 0, 2),),
        (in_shard(1, 0, 1), in_shard(2, 0, 1)),
        (in_shard(1, 2, 1),),
        (call(1, 1),),
    ],
)
def test_a_call_out_of_its_shards_order_is_no_journal(wrong: tuple[CallRecord, ...]) -> None:
    with pytest.raises(AssertionError, match="each shard's calls"):
        standing(Opened(ONE, 1, 2), *wrong)


def test_a_shard_has_its_own_horizon_and_a_new_set_the_highest() -> None:
    calls = [in_shard(1, 0, 1, horizon_us=50), in_shard(2, 1, 1, horizon_us=20)]
    found = replayed(Opened(ONE, 1, 2), *calls)
    assert [found.horizon_in(shard, 2) for shard in range(2)] == [50, 20]
    assert [found.horizon_in(shard, 3) for shard in range(3)] == [50, 50, 50]
    assert found.horizon_in(0, 1) == 50
    assert replayed(Opened(ONE, 1, 2), *calls, Opened(TWO, 2, 3)).shard_horizons_us == [50, 50, 50]
    assert replayed(Opened(ONE, 1, 2), *calls, Opened(TWO, 2), Opened(THREE, 3, 2)).shard_horizons_us == [50, 50]


def test_a_segment_waits_for_the_horizon_of_the_last_shard() -> None:
    """Its claims may be of any shard, and one that has not forgotten them still needs the digests should it lose its data."""
    segments = [SegmentFacts(1), SegmentFacts(9)]
    found = standing()
    for record in (
        Opened(ONE, 1, 2),
        in_shard(1, 0, 1, newest_us=30),
        FlushBegin(1, Through(ONE, 1)),
        FlushCommit(1),
        Flushed(1),
        in_shard(2, 0, 2, accepted=0, horizon_us=100),
    ):
        found.apply(record)
        segments[0].note(record, found.last_call)
    segments[0].last_call = found.acknowledged
    assert not disposable(segments, found)
    found.apply(in_shard(3, 1, 1, accepted=0, horizon_us=29))
    assert not disposable(segments, found)
    found.apply(in_shard(4, 1, 2, accepted=0, horizon_us=30))
    assert disposable(segments, found) == segments[:1]


@pytest.mark.parametrize("seed", range(50))
def test_a_snapshot_says_of_shards_what_all_before_it_said(seed: int) -> None:
    random = Random(seed)
    records: list[JournalRecord] = []
    for opening in range(4):
        shards = random.randint(1, 3)
        records.append(Opened(bytes([opening]) * 16, 0, shards))
        its = [0] * shards
        for number in range(1, random.randrange(1, 9)):
            shard, horizon_us = random.randrange(shards), random.randrange(100)
            its[shard] += 1
            one = call(number, 1, horizon_us=horizon_us) if shards == 1 else in_shard(number, shard, its[shard], horizon_us=horizon_us)
            records.append(one)
    whole = standing(*records)
    cut = random.randrange(len(records) + 1)
    snapshot = read_back(standing(*records[:cut]).snapshot(1))
    later = standing(snapshot, *records[cut:])
    assert later.shard_calls == whole.shard_calls
    assert later.shard_horizons_us == whole.shard_horizons_us
    assert stored(later.snapshot(1)) == stored(whole.snapshot(1))
