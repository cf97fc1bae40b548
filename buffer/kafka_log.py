"""The counter log in Kafka.

Belongs here: producing to `usage.counters` and `usage.rejected`, the registry of writers in `usage.writers`. Must not know: what a
record's value means, when to flush, who reads.

Idempotent producer, acks=all, every future awaited. One request to produce at a time. Whatever goes wrong, a deadline included, ends the
producer and is LogUnavailable: the outcome is unknown then, and the same records produced again by a new producer are duplicates that the
rater knows by their numbers. What is much goes in portions, the next one once all of the last is acknowledged: each has the deadline to
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import UnknownTopicOrPartitionError

from buffer.counter_log import Announced, LogUnavailable, Record, Registry, Rejected, Retired, UnfitLog
from buffer.counters import MeterDefinition
from buffer.kafka_cluster import KafkaCluster, Prepared, prepare
from buffer.kafka_consumers import end
from buffer.portions import Portions
from buffer.registration import branches_key, encode_branches, encode_member, encode_meter, member_key, meter_key, overtaken, registry_of

T = TypeVar("T")

# A batch is compressed in one go on the event loop: small enough not to hold it up. A larger record has a batch of its own.
_BATCH_BYTES = 300_000
_COMPRESSION = "zstd"  # the library's lz4 works at its highest level: ten times as long for a worse result
_CLOSING_S = 5


class _Message(NamedTuple):
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


class KafkaLog:
    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self._prepared: Prepared | None = None
        self._producer: AIOKafkaProducer | None = None
        self._portions = Portions(cluster.deadline_ms / 1000)
        self._one_at_a_time = asyncio.Lock()

    @property
    def identity(self) -> str:
        return self._opened.identity

    @property
    def partitions(self) -> int:
        return self._opened.partitions

    @property
    def _opened(self) -> Prepared:
        assert self._prepared is not None, "open first"
        return self._prepared

    async def open(self) -> None:
        self._prepared = await prepare(self._cluster, self._prepared)
        await self._send("connecting a producer", self._cluster.counters, {})

    async def produce(self, records: Sequence[Record]) -> None:
        await self._in_portions(records, lambda record: len(record.value), self._produce)

    async def produce_rejected(self, rejected: Sequence[Rejected]) -> None:
        await self._in_portions(rejected, lambda one: len(one.body), self._produce_rejected)

    async def register(self, writer: bytes) -> None:
        if writer not in (await self.registry()).writers:  # who was retired stays retired
            await self._write_entries({member_key(writer): encode_member(None)})

    async def retire(self, writer: bytes, retired: Retired) -> None:
        if (await self.registry()).writers.get(writer) is None:
            await self._write_entries({member_key(writer): encode_member(retired)})

    async def announce(self, writer: bytes, announced: Announced) -> None:
        await self._write_entries({branches_key(writer): encode_branches(announced)})
        await self._put_right()

    async def define(self, meters: Sequence[MeterDefinition]) -> Mapping[str, MeterDefinition]:
        """Of those who write at once the first one counts: each reads after its own entry, so all see the same first one.

        Should it be compacted away before it is put right, the later one counts: writers that count as the first one said do not start
        again, and before they do, the rater still holds records that contradict those before them.
        """
        await self._write_entries({meter_key(meter.name): encode_meter(meter) for meter in meters})
        return (await self._put_right()).meters

    async def _put_right(self) -> Registry:
        """Compaction keeps the last entry of a key, and that is not always the one that counts: one that arrived late, a meter's second.

        So whoever writes to the registry writes what counts once more behind such a one, whosever it is. What arrives after that waits for
        the next who writes; a segment of the topic that ends in between is compacted meanwhile.
        """
        entries = await self._entries()
        registry = self._registry_of(entries)
        if again := overtaken(entries):
            await self._write_entries(again)
        return registry

    async def _write_entries(self, entries: Mapping[str, bytes]) -> None:
        messages = [_Message(key.encode(), value, []) for key, value in entries.items()]
        await self._send("writing to the registry", self._cluster.writers, {0: messages})

    async def registry(self) -> Registry:
        return self._registry_of(await self._entries())

    async def _entries(self) -> list[tuple[str, bytes]]:
        """Oldest first."""
        found = await self._cluster.within_deadline("reading the registry", self._read_registry())
        return [(key.decode(errors="backslashreplace"), value) for key, value in found]

    def _registry_of(self, entries: Iterable[tuple[str, bytes]]) -> Registry:
        try:
            return registry_of(entries)
        except ValueError as error:
            raise UnfitLog(f"topic {self._cluster.writers} has a record that registers nothing ({error})") from error

    async def has_data(self) -> bool:
        return await self._cluster.within_deadline("looking for counters", self._any_counter())

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _end(producer)

    # Producing.

    async def _in_portions(
        self, wanted: Sequence[T], size_of: Callable[[T], int], produce: Callable[[Sequence[T]], Awaitable[None]]
    ) -> None:
        clock_s, durable = asyncio.get_running_loop().time, 0
        for portion in self._portions.of(wanted, size_of):
            started_s = clock_s()
            try:
                await produce(portion)
            except LogUnavailable as error:
                self._portions.failed()
                error.durable = durable
                raise
            self._portions.took(clock_s() - started_s, sum(map(size_of, portion)))
            durable += len(portion)

    async def _produce(self, records: Sequence[Record]) -> None:
        messages: dict[int, list[_Message]] = {}
        for record in records:
            messages.setdefault(record.partition, []).append(_Message(None, record.value, list(record.headers)))
        await self._send("producing counters", self._cluster.counters, messages)

    async def _produce_rejected(self, rejected: Sequence[Rejected]) -> None:
        messages = [_Message(one.tenant.encode(), one.body, [("v", b"1")]) for one in rejected]
        await self._send("producing rejected events", self._cluster.rejected, {0: messages})

    async def _send(self, what: str, topic: str, messages: Mapping[int, Sequence[_Message]]) -> None:
        async with self._one_at_a_time:
            try:
                await self._cluster.within_deadline(what, self._send_all(topic, messages))
            except LogUnavailable:
                await self.close()
                raise

    async def _send_all(self, topic: str, messages: Mapping[int, Sequence[_Message]]) -> None:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                **self._cluster.options(), acks="all", enable_idempotence=True, compression_type=_COMPRESSION, max_batch_size=_BATCH_BYTES
            )
            await self._producer.start()
        producer = self._producer
        known = await producer.partitions_for(topic) if messages else ()
        if strangers := messages.keys() - known:  # aiokafka takes that for a mistake of ours
            raise UnknownTopicOrPartitionError(f"{topic} has no partition {min(strangers)}")
        await asyncio.gather(*(_send_in_order(producer, topic, partition, some) for partition, some in messages.items()))

    # Reading.

    async def _read_registry(self) -> list[tuple[bytes, bytes]]:
        """Every registration, from the topic's beginning to what is its end now."""
        found = []
        async with self._reading(self._cluster.writers, self._opened.writers_partitions) as (consumer, partitions):
            ends = await consumer.end_offsets(partitions)
            for partition in partitions:
                while await consumer.position(partition) < ends[partition]:
                    for records in (await consumer.getmany(partition, timeout_ms=100)).values():
                        found += [(record.key or b"", record.value or b"") for record in records]  # Kafka allows null for either
        return found

    async def _any_counter(self) -> bool:
        async with self._reading(self._cluster.counters, self._opened.partitions) as (consumer, partitions):
            ends = await consumer.end_offsets(partitions)
            return any(end > 0 for end in ends.values())

    @asynccontextmanager
    async def _reading(self, topic: str, count: int) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
        consumer = AIOKafkaConsumer(**self._cluster.options(), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest")
        partitions = [TopicPartition(topic, number) for number in range(count)]
        consumer.assign(partitions)
        try:
            await consumer.start()
            yield consumer, partitions
        finally:
            await end(consumer)


async def _send_in_order(producer: AIOKafkaProducer, topic: str, partition: int, messages: Sequence[_Message]) -> None:
    """Return when all of them are acknowledged."""
    acknowledged = []
    batch = producer.create_batch()
    for message in messages:
        added = batch.append(timestamp=None, key=message.key, value=message.value, headers=message.headers)
        if added is None:
            acknowledged.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            added = batch.append(timestamp=None, key=message.key, value=message.value, headers=message.headers)
            assert added is not None, "the first record of a batch always fits"
    acknowledged.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*acknowledged)


class _Forgiving(set[object]):
    def remove(self, batch: object) -> None:
        self.discard(batch)


async def _end(producer: AIOKafkaProducer) -> None:
    """Give up what is queued, then stop: `stop` alone would wait for a broker that does not answer for ever.

    aiokafka has no public way to give up, so this reaches into it; the tests of outages notice when it moves.
    """
    sender, queue = producer._sender.sender_task, producer._message_accumulator
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSING_S):
            while sender is not None and not sender.done():
                sender.cancel()  # again and again: it first waits for the requests it has sent, each of which is to be cancelled too
                await asyncio.wait([sender], timeout=0.05)
            # aiokafka removes a batch from these when its future ends, and one that it had put back for another try is not among them.
            queue._pending_batches = _Forgiving(queue._pending_batches)
            for batch in [*queue._pending_batches, *(batch for batches in queue._batches.values() for batch in batches)]:
                batch.future.cancel()
            await producer.stop()
