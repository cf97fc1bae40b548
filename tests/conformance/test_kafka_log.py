"""What only a real Kafka can show: outages of the broker, rebalances, retention, a cluster that cannot keep the promise."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError, UnknownMemberIdError
from aiokafka.structs import TopicPartition
from structlog.testing import capture_logs

from buffer import kafka_source
from buffer.counter_log import Announced, CounterLog, LogUnavailable, Record, Rejected, Retired, UnfitLog
from buffer.counters import MeterDefinition
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from buffer.registration import branches_key, encode_branches, encode_member, member_key, registry_of
from parshall import whole_log
from parshall.log_source import LogSource
from parshall.whole_log import WholeLog
from rater import query
from rater.consume import Rater
from rater.migrate import migrate
from rater.postgres import Ledger, open_pool
from rater.source import Received, SourceUnavailable
from tests import services
from tests.conformance.counter_log_places import ALICE, BOB, PARTITIONS, KafkaPlace, Reader, numbers, opened, reading, record, records
from tests.integration.rating import REQUESTS, Writer
from tests.tcp_proxy import TcpProxy

DEADLINE_MS = 1500
PATIENT_MS = 3000  # a first portion over a link of a megabyte a second fits in it three times
OUTAGE_S = 2.5


@pytest.fixture
def broker() -> Iterator[services.Kafka]:
    """One that a test may break."""
    with services.kafka_broker() as broker:
        yield broker


@pytest.fixture
def fragile(broker: services.Kafka) -> KafkaPlace:
    return KafkaPlace(broker.address, "fragile.", DEADLINE_MS)


@pytest.fixture
def place(kafka: services.Kafka, topic_prefix: str) -> KafkaPlace:
    return KafkaPlace(kafka.address, topic_prefix)


async def insist(produce: Callable[[], Awaitable[None]]) -> int:
    """Produce the same again until it is acknowledged, as the flush does. Returns how often it was not."""
    failures = 0
    async with asyncio.timeout(90):
        while True:
            try:
                await produce()
                return failures
            except LogUnavailable:
                failures += 1
                await asyncio.sleep(0.1)


def assert_complete(received: Sequence[Received], last: int, partitions: Sequence[int]) -> None:
    """Every number is there, first in order; some may be there again."""
    for partition in partitions:
        first_seen = list(dict.fromkeys(numbers(received, partition)))
        assert first_seen == list(range(1, last + 1))


async def read_all(place: KafkaPlace) -> list[Received]:
    async with reading(place) as reader:
        async with asyncio.timeout(60):
            while (ends := await ends_of(reader)) != reader.stored:
                reader.keep(await reader.source.poll(1000, 0.5))
        assert ends
        return reader.kept


async def ends_of(reader: Reader) -> dict[str, int]:
    return {stream: end for stream, end in (await reader.source.ends()).items() if end > 0}


async def stay_down(broker: services.Kafka) -> None:
    broker.kill()
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(broker.start)


async def stand_still(broker: services.Kafka) -> None:
    broker.pause()
    await asyncio.sleep(OUTAGE_S)
    broker.resume()


@pytest.mark.parametrize("outage", [stay_down, stand_still])
async def test_an_outage_costs_nothing_that_was_acknowledged(
    broker: services.Kafka, fragile: KafkaPlace, outage: Callable[[services.Kafka], Awaitable[None]]
) -> None:
    with capture_logs() as lines:
        async with opened(fragile.log()) as log:
            failures = 0
            down: asyncio.Task[None] | None = None
            for n in range(1, 61):
                if n == 30:
                    down = asyncio.ensure_future(outage(broker))
                flush = [record(n, partition, value=b"x" * 1000) for partition in range(PARTITIONS)]
                failures += await insist(lambda flush=flush: log.produce(flush))  # type: ignore[misc]
            assert down is not None
            await down
        assert failures > 0, "the outage was not noticed: the test shows nothing"
        assert_complete(await read_all(fragile), 60, range(PARTITIONS))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    complaints = [line for line in lines if "trouble with kafka" in line["event"]]
    # One line an outage. A slow broker that wakes up may answer one request and refuse the next, also to the reader that starts later.
    assert len(complaints) <= 4, complaints
    assert [line for line in lines if "kafka answers again" in line["event"]]


async def test_what_waits_for_another_try_is_given_up_without_a_traceback(broker: services.Kafka, fragile: KafkaPlace) -> None:
    """A broker that dies between two flushes. aiokafka refuses to forget what it has put back; that went to the loop, in each outage."""
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    log = fragile.log()
    await log.open()
    await log.produce(records([1]))
    broker.kill()
    producing = asyncio.ensure_future(log.produce(records([2])))
    assert log._producer is not None
    queue = log._producer._message_accumulator
    while not any(batch.retry_count for batches in queue._batches.values() for batch in batches):
        assert not producing.done(), "nothing was put back: the test shows nothing"
        await asyncio.sleep(0)
    await log.close()
    with pytest.raises(asyncio.CancelledError):
        await producing
    assert told == []


async def test_a_flush_of_many_batches_is_whole_after_an_outage_in_its_middle(broker: services.Kafka, fragile: KafkaPlace) -> None:
    flush = [record(n, partition, value=bytes([n % 251]) * 200_000) for n in range(1, 61) for partition in range(PARTITIONS)]
    async with opened(fragile.log()) as log:
        producing = asyncio.ensure_future(insist(lambda: log.produce(flush)))
        await asyncio.sleep(0.05)
        await stay_down(broker)
        assert await producing > 0
    assert_complete(await read_all(fragile), 60, range(PARTITIONS))


@pytest.fixture
async def link() -> AsyncIterator[TcpProxy]:
    """The way to a broker that no client gets to otherwise: it is reached under the address that the broker itself tells."""
    link = TcpProxy()
    await link.start()
    with services.kafka_broker(advertised__listeners=f"PLAINTEXT://{link.address}") as broker:
        link.server = ("127.0.0.1", broker.port)
        yield link
    await link.stop()


@pytest.fixture
def beyond(link: TcpProxy) -> KafkaPlace:
    return KafkaPlace(link.address, "beyond.", PATIENT_MS)


def incompressible_flush(megabytes: int) -> list[Record]:
    return [
        record(n, partition, value=os.urandom(200_000))
        for n in range(1, 1 + 5 * megabytes // PARTITIONS)
        for partition in range(PARTITIONS)
    ]


async def test_a_flush_that_takes_longer_than_the_deadline_is_late_and_not_given_up(link: TcpProxy, beyond: KafkaPlace) -> None:
    """A slow link, and a flush that no deadline would hold."""
    flush = incompressible_flush(6)
    async with opened(beyond.log()) as log:
        link.bytes_per_s = 1_000_000
        await log.produce(flush)
        link.bytes_per_s = 0
    assert [numbers(await read_all(beyond), partition) for partition in range(PARTITIONS)] == [list(range(1, 11))] * PARTITIONS


async def test_a_link_that_is_slower_than_expected_costs_some_tries_and_no_more(link: TcpProxy, beyond: KafkaPlace) -> None:
    """A first portion does not arrive within the deadline."""
    flush, tries = incompressible_flush(3), 0
    async with opened(beyond.log()) as log:
        link.bytes_per_s = 300_000
        async with asyncio.timeout(120):
            while flush:
                try:
                    tries += 1
                    await log.produce(flush)
                    break
                except LogUnavailable as error:
                    flush = flush[error.durable :]
        link.bytes_per_s = 0
    assert tries > 1, "it was not slow: the test shows nothing"
    assert_complete(await read_all(beyond), 5, range(PARTITIONS))


async def test_what_was_acknowledged_before_an_outage_is_told(link: TcpProxy, beyond: KafkaPlace) -> None:
    """So that it need not go out again; of the other records any may be there."""
    flush = incompressible_flush(12)
    async with opened(beyond.log()) as log:
        link.bytes_per_s = 1_000_000
        producing = asyncio.ensure_future(log.produce(flush))
        await asyncio.sleep(4)
        link.cut_off = True
        with pytest.raises(LogUnavailable, match=rf"did not answer within {PATIENT_MS} ms \(producing counters\)") as told:
            await producing
        link.cut_off, link.bytes_per_s = False, 0
        link.reset()
        durable = told.value.durable
        assert 0 < durable < len(flush)
        await insist(lambda: log.produce(flush[durable:]))
    received = await read_all(beyond)
    assert_complete(received, 20, range(PARTITIONS))
    copies = Counter((one.headers["partition"], one.headers["n"]) for one in received)
    assert all(copies[b"%d" % one.partition, b"%d" % one.n] == 1 for one in flush[:durable])


async def test_a_slow_flush_can_be_cancelled_and_its_log_closed(link: TcpProxy, beyond: KafkaPlace) -> None:
    log = beyond.log()
    await log.open()
    link.bytes_per_s = 1_000_000
    producing = asyncio.ensure_future(log.produce(incompressible_flush(30)))
    await asyncio.sleep(3)
    assert not producing.done()
    producing.cancel()  # the time to stop in order is over
    with pytest.raises(asyncio.CancelledError):
        await producing
    async with asyncio.timeout(15):
        await log.close()


async def test_closing_does_not_wait_for_a_broker_that_is_gone(broker: services.Kafka, fragile: KafkaPlace) -> None:
    log = fragile.log()
    await log.open()
    broker.pause()
    producing = asyncio.ensure_future(log.produce(records([1])))
    await asyncio.sleep(0.2)
    producing.cancel()  # a process that is told to stop while it flushes
    with pytest.raises(asyncio.CancelledError):
        await producing
    async with asyncio.timeout(15):
        await log.close()
    broker.resume()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_of_two_that_wait_for_a_broker_that_stands_still_each_is_told(broker: services.Kafka, fragile: KafkaPlace) -> None:
    """The first to give up ends the producer; the other must not look cancelled by that."""
    async with opened(fragile.log()) as log:
        assert isinstance(log, KafkaLog)
        broker.pause()
        producing = asyncio.ensure_future(log.produce(records([1])))
        await asyncio.sleep(0.3)
        told = await asyncio.gather(producing, log.announce(ALICE, Announced(1, ())), return_exceptions=True)
        assert [type(error) for error in told] == [LogUnavailable] * 2
        assert log._producer is None, "what it still holds could arrive at any time"
        broker.resume()


async def test_nobody_there_is_not_now() -> None:
    cluster = KafkaCluster("127.0.0.1:1", deadline_ms=1000)
    with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1"):
        await KafkaLog(cluster).open()


async def test_reading_goes_on_after_an_outage(broker: services.Kafka, fragile: KafkaPlace) -> None:
    async with opened(fragile.log()) as log, reading(fragile) as reader:
        await log.produce(records(range(1, 11)))
        await reader.take(10)
        await stay_down(broker)
        await insist(lambda: log.produce(records(range(11, 21))))
        async with asyncio.timeout(60):
            while set(numbers(reader.kept)) != set(range(1, 21)):
                reader.keep(await reader.source.poll(100, 0.5))
        assert_complete(reader.kept, 20, [0])


class Sharing(Reader):
    """A rater that shares its store with others."""

    def __init__(self, place: KafkaPlace, stored: dict[str, int], kept: list[Received]) -> None:
        super().__init__(place.source())
        self.stored = stored
        self.kept = kept
        self.streams: set[str] = set()

    async def work(self) -> None:
        while True:
            received = await self.source.poll(7, 0.2)
            self.streams |= {one.stream for one in received}
            self.keep(received)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_partitions_move_between_raters_without_a_gap(place: KafkaPlace) -> None:
    stored: dict[str, int] = {}
    kept: list[Received] = []
    last = 0

    async def produce_more(log: CounterLog) -> None:
        nonlocal last
        for _ in range(20):
            last += 1
            await log.produce([record(last, partition) for partition in range(PARTITIONS)])
            await asyncio.sleep(0.01)

    def everything_read() -> bool:
        return all(set(numbers(kept, partition)) == set(range(1, last + 1)) for partition in range(PARTITIONS))

    one, other = Sharing(place, stored, kept), Sharing(place, stored, kept)
    async with opened(place.log()) as log:
        await one.open()
        work_of_one = asyncio.ensure_future(one.work())
        await produce_more(log)
        await wait_until(everything_read)
        opening, producing = asyncio.ensure_future(other.open()), asyncio.ensure_future(produce_more(log))
        await opening
        work_of_other = asyncio.ensure_future(other.work())
        await producing
        while not other.streams:
            await produce_more(log)
        one.streams.clear()
        other.streams.clear()
        await produce_more(log)
        await wait_until(everything_read)
        assert one.streams and other.streams and not one.streams & other.streams
        work_of_one.cancel()
        await one.close()
        await produce_more(log)
        await wait_until(everything_read)
        assert len(other.streams) == PARTITIONS
        work_of_other.cancel()
        await other.close()
    assert_complete(kept, last, range(PARTITIONS))


async def test_a_rebalance_in_the_middle_of_a_poll_hands_nothing_out_too_early(place: KafkaPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library starts a partition that it is given anew at a position of its own choice, and can give its records at once."""
    source = place.source()
    reader = Reader(source)
    async with opened(place.log()) as log:
        await reader.open()
        await log.produce(records(range(1, 11)))
        await reader.take(5)
        consumer, listener = source._opened, source._rebalances
        getmany = consumer.getmany

        async def interrupted(**arguments: int) -> object:
            monkeypatch.undo()
            listener.on_partitions_revoked(consumer.assignment())
            await consumer.seek_to_beginning()
            listener.on_partitions_assigned(consumer.assignment())
            found = await getmany(**arguments)
            assert found, "nothing was there to be handed out: the test shows nothing"
            return found

        monkeypatch.setattr(consumer, "getmany", interrupted)
        assert numbers(await reader.take(5)) == [6, 7, 8, 9, 10]
        await reader.nothing_more()
        await reader.close()


async def test_a_rebalance_while_positions_are_asked_for_places_anew(place: KafkaPlace) -> None:
    """Another rater may have stored more meanwhile."""
    source = place.source()

    class Overtaken(Reader):
        async def positions(self, streams: Iterable[str]) -> Mapping[str, int]:
            found = await super().positions(streams)
            if not self.stored:
                self.stored[f"{place.cluster.counters}/0"] = 8
                source._rebalances.on_partitions_revoked(())
                source._rebalances.on_partitions_assigned(())
            return found

    reader = Overtaken(source)
    async with opened(place.log()) as log:
        await log.produce(records(range(1, 11)))
        await reader.open()
        assert numbers(await reader.take(2)) == [9, 10]
        await reader.nothing_more()
        await reader.close()


async def test_a_consumer_that_failed_is_replaced(place: KafkaPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place.source()
    reader = Reader(source)
    async with opened(place.log()) as log:
        await reader.open()
        await log.produce(records(range(1, 11)))
        await reader.take(5)

        async def failed(**_: int) -> object:
            raise UnknownMemberIdError

        monkeypatch.setattr(source._opened, "getmany", failed)
        with pytest.raises(SourceUnavailable, match="UnknownMemberId"):
            await reader.source.poll(10, 1)
        assert numbers(await reader.take(5)) == [6, 7, 8, 9, 10]
        await reader.close()


async def test_a_consumer_is_closed_while_fetches_wait_to_be_made_again(place: KafkaPlace) -> None:
    """As when its broker is away. aiokafka's own `stop` ends in the middle then, with a cancellation that nobody asked for."""
    source = place.source()
    reader = Reader(source)
    async with opened(place.log()):
        await reader.open()
        consumer = source._opened
        waiting = [asyncio.create_task(asyncio.sleep(60)) for _ in range(2)]
        consumer._fetcher._pending_tasks.update(waiting)
        await source.close()
    assert all(fetch.cancelled() for fetch in waiting)
    assert not any(connection.connected() for connection in consumer._client._conns.values())


async def test_a_reading_of_the_registry_that_fails_while_a_fetch_waits_to_be_made_again_is_not_now(
    place: KafkaPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not look as if whoever reads it was cancelled."""
    consumers: list[AIOKafkaConsumer] = []

    async def failed(consumer: AIOKafkaConsumer, _: object) -> None:
        consumers.append(consumer)
        await asyncio.sleep(0.1)
        consumer._fetcher._pending_tasks.add(asyncio.create_task(asyncio.sleep(60)))
        raise KafkaConnectionError

    async with opened(place.log()) as log:
        monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", failed)
        with pytest.raises(LogUnavailable):
            await log.registry()
    assert not any(connection.connected() for connection in consumers[0]._client._conns.values())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_positions_of_the_store_win_over_those_of_kafka(place: KafkaPlace) -> None:
    async with opened(place.log()) as log:
        await log.produce(records(range(1, 11)))
        async with reading(place) as reader:
            await reader.take(10)
        for position, expected in ((4, [5, 6, 7, 8, 9, 10]), (0, list(range(1, 11)))):
            async with reading(place, {f"{place.cluster.counters}/0": position}) as reader:
                assert numbers(await reader.take(len(expected))) == expected
                await reader.nothing_more()


async def test_counters_that_kafka_deleted_are_told_of(place: KafkaPlace, kafka: services.Kafka) -> None:
    async with opened(place.log()) as log:
        await log.produce(records(range(1, 11)))
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
        await admin.start()
        await admin.delete_records({TopicPartition(place.cluster.counters, 0): RecordsToDelete(before_offset=6)})
        await admin.close()
        with capture_logs() as lines:
            async with reading(place, {f"{place.cluster.counters}/0": 3}) as reader:
                assert numbers(await reader.take(4)) == [7, 8, 9, 10]
                starts = await reader.source.starts()
                assert starts.pop(f"{place.cluster.counters}/0") == 6 and set(starts.values()) == {0}
            async with reading(place) as reader:  # whoever has rated nothing yet misses nothing
                assert numbers(await reader.take(4)) == [7, 8, 9, 10]
    assert [(line["stored"], line["first"]) for line in lines if "deleted counters" in line["event"]] == [(3, 6)]


async def test_the_whole_log_begins_where_retention_ended_also_where_it_left_nothing(
    place: KafkaPlace, kafka: services.Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_log, "_QUIET_S", 1.0)
    monkeypatch.setattr(whole_log, "_POLL_S", 0.2)
    streams = [f"{place.cluster.counters}/{partition}" for partition in range(PARTITIONS)]
    async with opened(place.log()) as log:
        await log.produce([*records(range(1, 6)), *records(range(1, 4), 1), *records(range(1, 3), 2)])
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
        await admin.start()
        gone = {TopicPartition(place.cluster.counters, partition): RecordsToDelete(before) for partition, before in ((0, 2), (1, 3))}
        await admin.delete_records(gone)
        await admin.close()
        async with reading(place) as reader:
            whole = WholeLog(LogSource(reader.source), retention=True)
            found = [one async for one in whole]
    assert [numbers(found, partition) for partition in range(PARTITIONS)] == [[3, 4, 5], [], [1, 2]]
    assert whole.starts == {streams[0]: 2, streams[1]: 3, streams[2]: 0}


async def add_partitions(place: KafkaPlace, to: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=place.cluster.bootstrap)
    await admin.start()
    await admin.create_partitions({place.cluster.counters: NewPartitions(to)})
    await admin.close()


async def test_partitions_that_are_added_have_ends_at_once_and_are_taken_on(place: KafkaPlace) -> None:
    """By a reader that is open since before, in the group's first member and in another one."""
    stored: dict[str, int] = {}
    kept: list[Received] = []
    one, other = Sharing(place, stored, kept), Sharing(place, stored, kept)
    async with opened(place.log()) as log:
        await one.open()
        await other.open()
        working = [asyncio.ensure_future(reader.work()) for reader in (one, other)]
        await log.produce([record(1, partition) for partition in range(PARTITIONS)])
        await wait_until(lambda: len(kept) == PARTITIONS)
        await add_partitions(place, PARTITIONS + 2)
        async with opened(place.log()) as newer:
            assert newer.partitions == PARTITIONS + 2
            await newer.produce([record(1, PARTITIONS), record(1, PARTITIONS + 1), record(2, PARTITIONS + 1)])
        for reader in (other, one):
            ends = await reader.source.ends()
            assert [ends.get(f"{place.cluster.counters}/{number}") for number in range(PARTITIONS + 2)] == [1] * (PARTITIONS + 1) + [2]
            assert set((await reader.source.starts()).values()) == {0}
        await wait_until(lambda: len(kept) == PARTITIONS + 3)
        assert numbers(kept, PARTITIONS) == [1] and numbers(kept, PARTITIONS + 1) == [1, 2]
        for task in working:
            task.cancel()
        await one.close()
        await other.close()


async def test_partitions_that_are_added_are_taken_on_although_nobody_asks(place: KafkaPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_source, "_METADATA_MAX_AGE_MS", 500)
    async with opened(place.log()), reading(place) as reader:
        await reader.nothing_more()
        await add_partitions(place, PARTITIONS + 1)
        async with opened(place.log()) as newer:
            await newer.produce([record(1, PARTITIONS)])
        assert numbers(await reader.take(1), PARTITIONS) == [1]


async def test_a_partition_that_no_broker_knows_is_not_now(place: KafkaPlace) -> None:
    """Of a topic that was made anew with fewer; or a broker has not heard yet of those that were added."""
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce(records([1]))
        with pytest.raises(LogUnavailable, match=rf"{place.cluster.counters} has no partition {PARTITIONS}"):
            await log.produce([*records([2]), *records([1], PARTITIONS)])
        await add_partitions(place, PARTITIONS + 1)
        await insist(lambda: log.produce(records([1], PARTITIONS)))
        assert (await reader.source.ends())[f"{place.cluster.counters}/{PARTITIONS}"] == 1


async def test_as_of_does_not_pass_counters_in_a_partition_that_nobody_reads_yet(place: KafkaPlace, database: str) -> None:
    """The rater began before the partition was added; its consumer is kept from taking the partition on, as by a slow rebalance."""
    await migrate(database)
    ledger, source = Ledger(database), place.source()
    rater = Rater(LogSource(source), ledger, clock_us=lambda: time.time_ns() // 1000, late_s=86_400)
    async with opened(place.log()):
        running = asyncio.ensure_future(rater.run())
        await wait_until(lambda: rater.counts.as_of_us > 0)
        taken_on = asyncio.Event()
        place_ = source._place

        async def slow() -> None:
            if taken_on.is_set():
                await place_()

        source._place = slow  # type: ignore[method-assign]
        await add_partitions(place, PARTITIONS + 1)
        usage = Writer(1).flush([(REQUESTS, "demo", "acme", 1_767_225_600, ("eu", "a"), 0, 7)])
        async with opened(place.log()) as newer:
            await newer.produce([Record(PARTITIONS, 1, tuple(one.headers.items()), one.value) for one in usage])
        there_us = time.time_ns() // 1000
        await asyncio.sleep(3)
        assert rater.counts.counters == 0 and rater.counts.as_of_us < there_us
        taken_on.set()
        await wait_until(lambda: rater.counts.as_of_us > there_us)
        assert rater.counts.counters == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await source.close()
        await ledger.close()


async def test_a_cluster_that_can_lose_usage_is_refused(place: KafkaPlace) -> None:
    place.cluster = replace(place.cluster, retention_ms=30 * 86_400_000)  # longer than Kafka's own
    async with opened(place.log()):
        pass  # makes the topics, on a single broker
    strict = KafkaCluster(place.cluster.bootstrap, place.cluster.prefix, retention_ms=place.cluster.retention_ms)
    with pytest.raises(UnfitLog) as refused:
        await KafkaLog(strict).open()
    each = f"each of the topics {', '.join(strict.topics)}"
    assert str(refused.value) == (
        f"{each} keeps a single copy of each record: give it a replication factor of 3 (at least 2); "
        f"{each} acknowledges records that only one broker has: set its min.insync.replicas to 2; "
        "or accept that usage can get lost, with kafka.accept_weak = true"
    )


async def test_a_compacted_topic_takes_no_counters_whatever_is_accepted(place: KafkaPlace) -> None:
    async with opened(place.log()):
        pass
    admin = AIOKafkaAdminClient(bootstrap_servers=place.cluster.bootstrap)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, place.cluster.counters, {"cleanup.policy": "compact"})])
        counters = ConfigResource(ConfigResourceType.TOPIC, place.cluster.counters, {"cleanup.policy": ""})
        while "'compact'" not in str(await admin.describe_configs([counters])):  # the broker takes it over a moment later
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    with pytest.raises(UnfitLog) as refused:
        await place.log().open()
    told = f"topic {place.cluster.counters} is compacted, and takes no record without a key: set its cleanup.policy to delete"
    assert str(refused.value) == told


async def test_topics_are_made_only_when_asked(place: KafkaPlace) -> None:
    cluster = KafkaCluster(place.cluster.bootstrap, place.cluster.prefix, accept_unsafe=True)
    with pytest.raises(UnfitLog, match=rf"no topic {place.cluster.counters} and no topic {place.cluster.rejected}"):
        await KafkaLog(cluster).open()


async def test_many_may_make_the_topics_at_once(place: KafkaPlace) -> None:
    logs = [place.log() for _ in range(4)]
    await asyncio.gather(*(log.open() for log in logs))
    assert {log.partitions for log in logs} == {PARTITIONS}
    for log in logs:
        await log.close()


async def test_a_record_above_a_batch_has_a_batch_of_its_own(place: KafkaPlace) -> None:
    large: list[Record] = [record(n, value=bytes([n]) * 700_000) for n in range(1, 4)]
    async with opened(place.log()) as log, reading(place) as reader:
        await log.produce(large)
        assert [one.value for one in await reader.take(3)] == [one.value for one in large]


async def test_a_link_that_is_quick_gets_larger_portions(place: KafkaPlace) -> None:
    async with opened(place.log()) as log:
        assert isinstance(log, KafkaLog)
        first = log._portions._bytes
        await log.produce(incompressible_flush(6))
        assert log._portions._bytes > first


async def test_rejected_events_are_there_by_tenant(place: KafkaPlace) -> None:
    bodies = [b'{"code":"too_late","n":%d}' % n for n in range(3)]
    async with opened(place.log()) as log:
        await log.produce_rejected([Rejected(tenant, body) for tenant, body in zip(("demo", "other", "demo"), bodies, strict=True)])
    consumer = AIOKafkaConsumer(place.cluster.rejected, bootstrap_servers=place.cluster.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found = [await asyncio.wait_for(consumer.getone(), 60) for _ in bodies]
    await consumer.stop()
    assert [(one.key, one.value, one.headers) for one in found] == [
        (tenant, body, (("v", b"1"),)) for tenant, body in zip((b"demo", b"other", b"demo"), bodies, strict=True)
    ]


# The registry.


async def test_who_registers_after_he_was_retired_is_not_what_compaction_keeps(place: KafkaPlace) -> None:
    async with opened(place.log()) as log:
        assert isinstance(log, KafkaLog)
        await log.register(ALICE)
        await log.retire(ALICE, Retired(3))
        await log.register(ALICE)
        await log.retire(ALICE, Retired(9))
        assert registry_of(dict(await log._entries()).items()).writers == {ALICE: Retired(3)}


async def test_whoever_defines_a_meter_second_leaves_the_first_entry_as_the_last(place: KafkaPlace) -> None:
    """What compaction keeps. The first one counts meanwhile, for both."""
    first = MeterDefinition("peak", "", "max", 0, 60, ())
    async with opened(place.log()) as log, opened(place.log()) as other:
        assert isinstance(log, KafkaLog)
        await log.define([first])
        assert await other.define([first._replace(aggregation="sum"), first._replace(name="more")]) == {
            "peak": first,
            "more": first._replace(name="more"),
        }
        values = [value for key, value in await log._read_registry() if key == b"meter:peak"]
        assert [b'"max"' in value for value in values] == [True, False, True]


async def test_what_arrived_late_is_not_what_compaction_keeps_once_somebody_announces(place: KafkaPlace) -> None:
    """Copies that a broker kept while it stood still: of an announcement, and of a registration after the writer was retired."""
    old, new, others = (Announced(at, (bytes([at]) * 16,)) for at in (5, 9, 7))
    async with opened(place.log()) as log, opened(place.log()) as other:
        assert isinstance(log, KafkaLog)
        await log.register(ALICE)
        await log.announce(ALICE, new)
        await log.retire(ALICE, Retired(3))
        await log._write_entries({member_key(ALICE): encode_member(None), branches_key(ALICE): encode_branches(old)})
        await other.announce(BOB, others)
        kept = registry_of(dict(await log._entries()).items())
        assert kept == await log.registry() == ({ALICE: Retired(3)}, {ALICE: new, BOB: others}, {})
        entries = await log._entries()
        await other.announce(BOB, others)
        assert len(await log._entries()) == len(entries) + 1  # nothing else was to be put right


@pytest.mark.parametrize(("key", "value"), [(ALICE.hex().encode(), None), (b"\xff", b"{}")])
async def test_an_entry_that_registers_nothing_is_refused_by_name(place: KafkaPlace, key: bytes, value: bytes | None) -> None:
    """Without a value it deletes what its key held: whoever went on without a writer's entry would count its events twice."""
    async with opened(place.log()) as log:
        await log.register(ALICE)
        producer = AIOKafkaProducer(bootstrap_servers=place.cluster.bootstrap)
        await producer.start()
        await producer.send_and_wait(place.cluster.writers, value, key=key, partition=0)
        await producer.stop()
        told = f"topic {place.cluster.writers} has a record that registers nothing ({key.decode(errors='backslashreplace')!r}, "
        with pytest.raises(UnfitLog, match=re.escape(told)):
            await log.registry()


async def test_a_record_without_a_value_stops_no_rater(place: KafkaPlace, database: str) -> None:
    """Some tools write one, to delete a key. It is parked like any other that no writer made."""
    await migrate(database)
    ledger, source = Ledger(database), place.source()
    rater = Rater(LogSource(source), ledger, clock_us=lambda: time.time_ns() // 1000, late_s=86_400)
    usage = Writer(1).flush([(REQUESTS, "demo", "acme", 1_767_225_600, ("eu", "a"), 0, 7)])
    async with opened(place.log()) as log:
        producer = AIOKafkaProducer(bootstrap_servers=place.cluster.bootstrap)
        await producer.start()
        await producer.send_and_wait(place.cluster.counters, None, key=b"whose", partition=0)
        await producer.send_and_wait(place.cluster.counters, None, key=b"", partition=0, headers=[("writer", None), ("shards", None)])
        await producer.stop()
        await log.produce([Record(0, 1, tuple(one.headers.items()), one.value) for one in usage])
        running = asyncio.ensure_future(rater.run())
        await wait_until(lambda: running.done() or rater.counts.counters == 1)
        running.cancel()
        (result,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError), result
    await source.close()
    await ledger.close()
    async with await open_pool(database) as pool:
        strays = await query.strays(pool)
        assert [(stray.stream, stray.next_position) for stray in strays] == [(f"{place.cluster.counters}/0", number) for number in (1, 2)]
        assert [await query.parked_record(pool, stray.id) for stray in strays] == [({}, b""), ({"writer": b"", "shards": b""}, b"")]
