"""The rater's source over Kafka: one member of a consumer group on `usage.counters`.

Belongs here: reading, rebalances, positions. Must not know: what a record's value means, rating, databases.

Structurally it is `Source` of the rater's port, which this package must not import. Kafka's own committed offsets are never used: whenever
partitions are taken on, the stored positions are asked for, and nothing is handed out from a partition before it stands there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from buffer import kafka_outages
from buffer.counter_log import LogUnavailable
from buffer.kafka_cluster import KafkaCluster, Prepared, prepare
from buffer.kafka_consumers import end

_METADATA_MAX_AGE_MS = 30_000  # how late partitions that are added are taken on, where nobody asks for `ends` meanwhile

Positions = Callable[[Iterable[str]], Awaitable[Mapping[str, int]]]

log = structlog.get_logger()


class Received(NamedTuple):
    stream: str  # TOPIC/PARTITION
    next_position: int
    headers: Mapping[str, bytes]
    value: bytes


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """Tells when the partitions that were placed are not ours any more, or are ours anew."""

    def __init__(self) -> None:
        self.settled = False
        self.seen = 0
        self.placed: set[TopicPartition] = set()  # partitions that stand at their stored position

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._changed(settled=False)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._changed(settled=True)

    def _changed(self, *, settled: bool) -> None:
        self.settled = settled
        self.seen += 1
        self.placed.clear()


class KafkaSource:
    def __init__(self, cluster: KafkaCluster, group: str = "parshall-rater", session_timeout_ms: int = 10_000) -> None:
        self._cluster = cluster
        self._group = group
        self._session_timeout_ms = session_timeout_ms
        self._prepared: Prepared | None = None
        self._positions: Positions | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._rebalances = _Rebalances()

    @property
    def identity(self) -> str:
        assert self._prepared is not None, "open first"
        return self._prepared.identity

    async def open(self, positions: Positions) -> None:
        """Raises LogUnavailable (try again) or UnfitLog (do not)."""
        await self.close()
        self._positions = positions
        self._prepared = await prepare(self._cluster, self._prepared)
        self._consumer = AIOKafkaConsumer(
            **self._cluster.options(),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # when the stored position is gone; see _place
            session_timeout_ms=self._session_timeout_ms,
            heartbeat_interval_ms=self._session_timeout_ms // 4,
            metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        )
        self._rebalances = _Rebalances()
        self._consumer.subscribe([self._cluster.counters], listener=self._rebalances)
        try:
            await self._cluster.within_deadline("joining the consumer group", self._consumer.start())
        except BaseException:
            await self.close()
            raise

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        """Raises LogUnavailable (try again; a failed consumer is replaced), and whatever `positions` raises; nothing is lost by that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if self._consumer is None:
            assert self._positions is not None, "open first"
            await self.open(self._positions)
        while True:
            await self._place()
            found = await self._fetch(most, max(0.0, deadline - loop.time()))
            received = [
                _received(partition, record)
                for partition, records in found.items()
                if partition in self._rebalances.placed  # else read before it was placed: read again once it is
                for record in records
            ]
            if received:
                kafka_outages.answered()
            if received or loop.time() >= deadline:
                return received

    async def _fetch(self, most: int, timeout_s: float) -> dict[TopicPartition, list[ConsumerRecord]]:
        try:
            return await self._opened.getmany(timeout_ms=int(timeout_s * 1000), max_records=most)  # type: ignore[no-any-return]
        except KafkaError as error:
            await self.close()
            raise self._cluster.failed("reading counters", error) from error

    async def _place(self) -> None:
        """Move every partition that was newly taken on to its stored position."""
        rebalances = self._rebalances
        if not rebalances.settled:
            return
        new = self._opened.assignment() - rebalances.placed
        if not new:
            return
        seen = rebalances.seen
        assert self._positions is not None
        stored = await self._positions([_stream(partition) for partition in new])
        first = await self._cluster.within_deadline("asking for first offsets", self._opened.beginning_offsets(list(new)))
        if rebalances.seen != seen:
            return  # another rebalance came meanwhile; the next poll places anew
        for partition in new:
            position = stored.get(_stream(partition), first[partition])
            if position < first[partition]:
                log.error(
                    "kafka deleted counters before they were rated: send them again with `parshall resend`",
                    stream=_stream(partition),
                    stored=position,
                    first=first[partition],
                )
                position = first[partition]
            self._opened.seek(partition, position)
            rebalances.placed.add(partition)

    async def rewind(self) -> None:
        self._rebalances.placed.clear()

    async def ends(self) -> Mapping[str, int]:
        return await self._cluster.within_deadline("asking for last offsets", self._offsets(self._opened.end_offsets))

    async def starts(self) -> Mapping[str, int]:
        return await self._cluster.within_deadline("asking for first offsets", self._offsets(self._opened.beginning_offsets))

    async def _offsets(self, ask: Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]]) -> Mapping[str, int]:
        offsets = await ask(await self._partitions())
        return {_stream(partition): offset for partition, offset in offsets.items()}

    async def _partitions(self) -> list[TopicPartition]:
        """As many as the topic has now: writers that started since they were added put counters there, though nobody reads them yet."""
        await self._refresh()
        known = self._opened.partitions_for_topic(self._cluster.counters) or ()
        assert self._prepared is not None, "open first"
        count = max(self._prepared.partitions, len(known))  # partitions never go: a broker that knows fewer is behind
        self._prepared = self._prepared._replace(partitions=count)
        return [TopicPartition(self._cluster.counters, number) for number in range(count)]

    async def _refresh(self) -> None:
        """Ask the cluster what the topic is like. The consumer takes note: where there are more partitions, its group deals them out."""
        client = self._opened._client  # the library has no public way to this
        for _ in range(2):  # the first may be an answer that was under way already, to a question from before
            if not await client.force_metadata_update():
                raise KafkaError("no broker says what the topics are like")

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await end(consumer)

    @property
    def _opened(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise LogUnavailable(f"not connected to Kafka at {self._cluster.bootstrap}")
        return self._consumer


def _received(partition: TopicPartition, record: ConsumerRecord) -> Received:
    """Kafka allows null for a value (a tombstone) and for the value of a header. No writer makes either: to the rater both are empty."""
    headers = {name: content or b"" for name, content in record.headers}
    return Received(_stream(partition), record.offset + 1, headers, record.value or b"")


def _stream(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
