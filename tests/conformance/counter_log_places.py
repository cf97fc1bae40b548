"""The places that keep counter records, each behind the same few functions, for the suites of this folder.

Belongs here: how a test makes logs and sources over one place, as several processes would. Must not know: what is tested.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from buffer.counter_log import CounterLog, Record
from buffer.disk import Disk, RealDisk, Thread
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from buffer.kafka_source import KafkaSource
from buffer.local_log import LocalLog
from buffer.local_source import LocalSource
from parshall.log_source import BufferSource, LogSource
from rater.source import Received

PARTITIONS = 3
ALICE, BOB = bytes(range(16)), bytes(range(16, 32))


def record(n: int, partition: int = 0, writer: bytes = ALICE, value: bytes | None = None) -> Record:
    headers = (("v", b"1"), ("writer", writer.hex().encode()), ("partition", b"%d" % partition), ("n", b"%d" % n))
    return Record(partition, n, headers, b"value %d" % n if value is None else value)


def records(numbers: Iterable[int], partition: int = 0, writer: bytes = ALICE) -> list[Record]:
    return [record(n, partition, writer) for n in numbers]


class Place(Protocol):
    def log(self) -> CounterLog:
        """A log of its own, as a new process would have it."""

    def source(self) -> BufferSource: ...


class LocalPlace:
    def __init__(self, folder: Path, segment_bytes: int = 64 * 1024 * 1024) -> None:
        self.folder = folder / "log"
        self.segment_bytes = segment_bytes

    def log(self, disk: Disk | None = None) -> LocalLog:
        return LocalLog(
            str(self.folder),
            disk=disk or RealDisk(),
            background=Thread("log"),
            entropy=os.urandom,
            partitions=PARTITIONS,
            segment_bytes=self.segment_bytes,
        )

    def source(self) -> LocalSource:
        return LocalSource(str(self.folder), disk=RealDisk(), background=Thread("source"), entropy=os.urandom, partitions=PARTITIONS)

    def segments(self, partition: int = 0, writer: bytes = ALICE) -> list[Path]:
        return sorted((self.folder / "counters" / writer.hex() / str(partition)).glob("*.log"))


class KafkaPlace:
    def __init__(self, address: str, prefix: str, deadline_ms: int = 15_000) -> None:
        self.cluster = KafkaCluster(
            bootstrap=address, prefix=prefix, create_topics=True, partitions=PARTITIONS, accept_unsafe=True, deadline_ms=deadline_ms
        )

    def log(self) -> KafkaLog:
        return KafkaLog(self.cluster)

    def source(self) -> KafkaSource:
        return KafkaSource(self.cluster, group=f"{self.cluster.prefix}rater", session_timeout_ms=6000)


@asynccontextmanager
async def opened(log: CounterLog) -> AsyncIterator[CounterLog]:
    await log.open()
    try:
        yield log
    finally:
        await log.close()


class Reader:
    """What a rater does: reads, stores positions with what it read, and knows nothing else."""

    def __init__(self, source: BufferSource) -> None:
        self.source = LogSource(source)
        self.stored: dict[str, int] = {}
        self.kept: list[Received] = []
        self.asked: list[str] = []

    async def positions(self, streams: Iterable[str]) -> Mapping[str, int]:
        wanted = list(streams)
        self.asked += wanted
        return {stream: self.stored[stream] for stream in wanted if stream in self.stored}

    async def open(self) -> None:
        await self.source.open(self.positions)

    def keep(self, received: Sequence[Received]) -> None:
        for one in received:
            self.stored[one.stream] = one.next_position
        self.kept += received

    async def take(self, count: int, most: int = 1000) -> list[Received]:
        """Read and store until so many more have come."""
        wanted = len(self.kept) + count
        async with asyncio.timeout(60):
            while len(self.kept) < wanted:
                self.keep(await self.source.poll(min(most, wanted - len(self.kept)), 0.5))
        return self.kept[wanted - count :]

    async def nothing_more(self) -> None:
        assert list(await self.source.poll(10, 0.3)) == []

    async def close(self) -> None:
        await self.source.close()


def numbers(received: Iterable[Received], partition: int = 0, writer: bytes = ALICE) -> list[int]:
    """The n of what came from one writer in one partition, in order."""
    return [
        int(one.headers["n"])
        for one in received
        if one.headers["partition"] == b"%d" % partition and one.headers["writer"] == writer.hex().encode()
    ]


@asynccontextmanager
async def reading(place: Place, stored: Mapping[str, int] | None = None) -> AsyncIterator[Reader]:
    reader = Reader(place.source())
    reader.stored |= stored or {}
    await reader.open()
    try:
        yield reader
    finally:
        await reader.close()
