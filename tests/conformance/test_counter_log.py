"""What every counter log and its source promise, on files and on a real Kafka broker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from buffer.counter_log import Announced, CounterLog, Rejected, Retired
from buffer.counters import MeterDefinition
from tests.conformance.counter_log_places import (
    ALICE,
    BOB,
    PARTITIONS,
    KafkaPlace,
    LocalPlace,
    Place,
    Reader,
    numbers,
    opened,
    reading,
    record,
    records,
)


@pytest.fixture(params=["local", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return LocalPlace(tmp_path)
    return KafkaPlace(request.getfixturevalue("kafka").address, request.getfixturevalue("topic_prefix"))


async def test_all_who_open_it_agree_which_log_it_is(place: Place) -> None:
    async with opened(place.log()) as one, opened(place.log()) as other, reading(place) as reader:
        assert one.identity == other.identity == reader.source.identity != ""
        assert one.partitions == other.partitions == PARTITIONS
        before = one.identity
    async with opened(place.log()) as again:
        assert again.identity == before


async def test_order_within_a_partition(place: Place) -> None:
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce([record(n, partition) for n in range(1, 101) for partition in (0, 2)])
        await log.produce(records(range(101, 151), 2))
        await log.produce(records(range(1, 11), 0, BOB))
        received = await reader.take(260)
        assert numbers(received, 0) == list(range(1, 101))
        assert numbers(received, 2) == list(range(1, 151))
        assert numbers(received, 0, BOB) == list(range(1, 11))
        await reader.nothing_more()


async def test_records_come_back_byte_for_byte(place: Place) -> None:
    values = [b"", b"\0", os.urandom(256 * 1024), b"C\0\0\0\0" * 1000, b"x" * 256 * 1024, '{"é":"☃"}'.encode()]
    sent = [record(n, 1, value=value) for n, value in enumerate(values, 1)]
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce(sent)
        received = await reader.take(len(sent))
    assert [one.value for one in received] == values
    assert [dict(one.headers) for one in received] == [dict(one.headers) for one in sent]


async def test_what_was_produced_outlives_who_produced_it(place: Place) -> None:
    async with opened(place.log()) as log:
        await log.produce(records(range(1, 6)))
    async with opened(place.log()) as log:
        await log.produce(records(range(6, 11)))
    abandoned = place.log()
    await abandoned.open()
    await abandoned.produce(records(range(1, 6), 1))  # and it is never told to close
    async with reading(place) as reader:
        received = await reader.take(15)
    assert numbers(received, 0) == list(range(1, 11))
    assert numbers(received, 1) == list(range(1, 6))
    await abandoned.close()


async def test_produced_again_it_is_there_again(place: Place) -> None:
    """A log knows nothing of what it holds: the rater knows a record by its number."""
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce(records([1, 2]))
        await log.produce(records([1, 2]))
        received = await reader.take(4)
        assert numbers(received) == [1, 2, 1, 2]
        assert len({one.next_position for one in received}) == 4


async def test_nothing_is_produced_when_there_is_nothing(place: Place) -> None:
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce([])
        await log.produce_rejected([])
        assert not await log.has_data()
        await reader.nothing_more()


async def test_a_waiting_reader_gets_what_comes(place: Place) -> None:
    async with opened(place.log()) as log, reading(place) as reader:
        waiting = asyncio.create_task(reader.take(3))
        await asyncio.sleep(0.2)
        for n in (1, 2, 3):
            await log.produce([record(n)])
        assert numbers(await waiting) == [1, 2, 3]


async def test_a_poll_gives_no_more_than_asked(place: Place) -> None:
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce([record(n, partition) for partition in range(PARTITIONS) for n in range(1, 21)])
        while len(reader.kept) < 60:
            received = await reader.source.poll(7, 5)
            assert 0 < len(received) <= 7
            reader.keep(received)
        assert all(numbers(reader.kept, partition) == list(range(1, 21)) for partition in range(PARTITIONS))


async def test_reading_goes_on_at_the_stored_positions(place: Place) -> None:
    async with opened(place.log()) as log:
        await log.produce([record(n, partition) for partition in (0, 1) for n in range(1, 31)])
        async with reading(place) as reader:
            await reader.take(37, most=5)
            stored, before = dict(reader.stored), list(reader.kept)
            await reader.source.poll(5, 1)  # read, but never stored
        await log.produce([record(31, 0), record(31, 1), record(1, 2)])
        async with reading(place, stored) as reader:
            after = await reader.take(60 - 37 + 3)
            assert set(reader.asked) >= stored.keys()
            await reader.nothing_more()
    for partition in (0, 1):
        assert numbers([*before, *after], partition) == list(range(1, 32))
    assert numbers(after, 2) == [1]


async def test_a_rewind_gives_again_what_was_not_stored(place: Place) -> None:
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce([record(n, partition) for partition in range(PARTITIONS) for n in range(1, 21)])
        await reader.take(17, most=4)
        for _ in range(3):
            lost = [await reader.source.poll(9, 5), await reader.source.poll(9, 5)]
            assert all(lost)
            await reader.source.rewind()
        await reader.take(43)
        assert all(numbers(reader.kept, partition) == list(range(1, 21)) for partition in range(PARTITIONS))
        await reader.nothing_more()


async def test_a_store_that_does_not_answer_stops_reading_and_loses_nothing(place: Place) -> None:
    class StoreDown(Exception):
        pass

    class Moody(Reader):
        down = True

        async def positions(self, streams: Iterable[str]) -> Mapping[str, int]:
            if self.down:
                raise StoreDown
            return await super().positions(streams)

    async with opened(place.log()) as log:
        await log.produce(records(range(1, 11)))
        async with reading(place) as first:
            await first.take(4)
        reader = Moody(place.source())
        reader.stored = dict(first.stored)
        await reader.open()
        with pytest.raises(StoreDown):
            for _ in range(50):
                assert list(await reader.source.poll(10, 0.2)) == []
        reader.down = False
        assert numbers(await reader.take(6)) == [5, 6, 7, 8, 9, 10]
        await reader.close()


async def test_ends_are_where_reading_ends(place: Place) -> None:
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce([record(n, partition) for partition in (0, 1) for n in range(1, 8)])
        await reader.take(5)
        ends = await reader.source.ends()
        assert any(ends[stream] > position for stream, position in reader.stored.items())
        await reader.take(9)
        ends = await reader.source.ends()
        assert {stream: ends[stream] for stream in reader.stored} == reader.stored
        await log.produce([record(8)])
        assert sum((await reader.source.ends()).values()) > sum(ends.values())


async def test_the_registry_keeps_members_and_retired(place: Place) -> None:
    async with opened(place.log()) as log:
        assert (await log.registry()).writers == {}
        await log.register(ALICE)
        await log.register(ALICE)
        assert (await log.registry()).writers == {ALICE: None}
        async with opened(place.log()) as other:
            await other.register(BOB)
            assert (await other.registry()).writers == {ALICE: None, BOB: None}
        await log.retire(ALICE, Retired(1_700_000_000_000_000))
        await log.retire(ALICE, Retired(9, "too late"))  # who was retired stays retired
        await log.retire(BOB, Retired(7, "its disk is gone"))
        assert not await log.has_data()
    async with opened(place.log()) as log:
        await log.register(ALICE)
        assert (await log.registry()).writers == {ALICE: Retired(1_700_000_000_000_000), BOB: Retired(7, "its disk is gone")}


IN_A = Announced(5, (b"a" * 16,))


async def test_the_registry_keeps_what_writers_announce(place: Place) -> None:
    """Apart from whether they are members: whoever announces does not undo that he was retired."""
    async with opened(place.log()) as log:
        assert (await log.registry()).announced == {}
        await log.register(ALICE)
        await log.announce(ALICE, IN_A)
        async with opened(place.log()) as other:
            await other.register(BOB)
            await other.announce(BOB, Announced(7, (b"", b"b" * 16)))
            assert (await other.registry()).announced == {ALICE: IN_A, BOB: (7, (b"", b"b" * 16))}
            await other.retire(ALICE, Retired(9))
        await log.announce(ALICE, Announced(6, (b"c" * 16,)))
    async with opened(place.log()) as log:
        assert (await log.registry()).announced == {ALICE: (6, (b"c" * 16,)), BOB: (7, (b"", b"b" * 16))}
        assert (await log.registry()).writers == {ALICE: Retired(9), BOB: None}


async def test_what_was_announced_before_and_arrives_later_undoes_nothing(place: Place) -> None:
    """As does a copy of it that a broker kept while it stood still."""
    async with opened(place.log()) as log:
        for announced in (IN_A, IN_A._replace(at=12, branches=(b"b" * 16,)), IN_A):
            await log.announce(ALICE, announced)
        assert (await log.registry()).announced == {ALICE: (12, (b"b" * 16,))}


EGRESS = MeterDefinition("egress_bytes", "0" * 16, "sum", 6, 3600, ("region", "zone"))
PEAK = MeterDefinition("peak", "1" * 16, "max", 0, 60, ())


async def test_the_registry_keeps_what_may_never_change_of_meters(place: Place) -> None:
    """By name, whoever counts them and with whichever hash; who came first stays."""
    kept = {"egress_bytes": EGRESS._replace(hash=""), "peak": PEAK._replace(hash="")}
    async with opened(place.log()) as log:
        assert (await log.registry()).meters == {}
        assert await log.define([EGRESS]) == {"egress_bytes": kept["egress_bytes"]}
        async with opened(place.log()) as other:
            assert await other.define([EGRESS._replace(scale=0), PEAK]) == kept
        assert await log.define([PEAK._replace(hash="2" * 16)]) == kept
        await log.register(ALICE)
        await log.announce(ALICE, IN_A)
        assert not await log.has_data()
    async with opened(place.log()) as log:
        assert await log.registry() == ({ALICE: None}, {ALICE: IN_A}, kept)


async def test_of_meters_that_are_defined_at_once_one_counts_and_all_are_told_which(place: Place) -> None:
    definitions = [EGRESS._replace(scale=scale) for scale in range(4)]

    async def define(log: CounterLog, definition: MeterDefinition) -> list[MeterDefinition]:
        return [(await log.define([definition._replace(name=f"meter_{number}")]))[f"meter_{number}"] for number in range(5)]

    async with opened(place.log()) as one, opened(place.log()) as two, opened(place.log()) as three, opened(place.log()) as four:
        told = await asyncio.gather(*map(define, (one, two, three, four), definitions))
        meters = (await one.registry()).meters
        assert told == [[meters[f"meter_{number}"] for number in range(5)]] * 4
        assert all(meter.scale in range(4) for meter in meters.values())


async def test_it_knows_whether_it_ever_held_counters(place: Place) -> None:
    async with opened(place.log()) as log:
        await log.register(ALICE)
        await log.produce_rejected([Rejected("demo", b"{}")])
        assert not await log.has_data()
        await log.produce([record(1)])
        assert await log.has_data()
    async with opened(place.log()) as log:
        assert await log.has_data()


async def test_two_writers_at_once(place: Place) -> None:
    async with opened(place.log()) as one, opened(place.log()) as other, reading(place) as reader:

        async def write(log: object, writer: bytes) -> None:
            for n in range(1, 31):
                await log.produce([record(n, partition, writer) for partition in range(PARTITIONS)])  # type: ignore[attr-defined]

        await asyncio.gather(write(one, ALICE), write(other, BOB))
        received = await reader.take(2 * 30 * PARTITIONS)
        for writer in (ALICE, BOB):
            for partition in range(PARTITIONS):
                assert numbers(received, partition, writer) == list(range(1, 31))
