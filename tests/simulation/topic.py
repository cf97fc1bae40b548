"""The topic of counter records as raters read it: partitions with positions that can lose their start or end, and the consumer group.

Belongs here: what stands in the topic, what of it may have been lost, who reads which partition, and a rater's source over it. Must not
know: what a record means, the rater, PostgreSQL.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from buffer.counter_log import Record
from rater.source import Positions, Received, SourceUnavailable

IDENTITY = "simulated-log"


class Entry(NamedTuple):
    writer: bytes
    n: int
    received: Received
    at_us: int  # when it came
    passed_over: bool  # it may lie below a position that was read already, when the end of the partition was lost before


class Partition:
    def __init__(self, number: int) -> None:
        self.number = number
        self.stream = f"usage.counters/{number}"
        self.first = 0
        self.entries: list[Entry] = []
        self.read_to = 0  # the highest position that any rater was ever at
        self.forged = False  # somebody else wrote records under a writer's name
        self.cut = False  # some were lost

    def append(self, writer: bytes, record: Record, at_us: int) -> None:
        position = len(self.entries)
        received = Received(self.stream, position + 1, dict(record.headers), record.value)
        self.entries.append(Entry(writer, record.n, received, at_us, position < self.read_to))

    def lose_start(self, to: int) -> None:
        self.first = max(self.first, to)
        self.cut = True

    def lose_end(self, from_: int) -> None:
        del self.entries[max(from_, self.first) :]
        self.cut = True

    def readable(self) -> list[Entry]:
        """What a rater that does its work has read, or will."""
        return [entry for entry in self.entries[self.first :] if not entry.passed_over]


class Topic:
    def __init__(self, partitions: int, clock_us: Callable[[], int]) -> None:
        self.partitions = [Partition(number) for number in range(partitions)]
        self.unreachable_until_s = 0.0
        self.after_append: Callable[[Partition], None] | None = None  # a fault that waits for the next record
        self._clock_us = clock_us
        self._waiting: dict[asyncio.Future[None], None] = {}  # in the order in which they came

    def add_partition(self) -> None:
        self.partitions.append(Partition(len(self.partitions)))

    def append(self, writer: bytes, record: Record) -> None:
        partition = self.partitions[record.partition]
        partition.append(writer, record, self._clock_us())
        self.tell()
        if self.after_append is not None:
            fault, self.after_append = self.after_append, None
            fault(partition)

    def of(self, stream: str) -> Partition:
        return self.partitions[int(stream.rpartition("/")[2])]

    def tell(self) -> None:
        """There is something new to look at."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def news(self, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting[waiting] = None
        timer = loop.call_later(within_s, lambda: waiting.done() or waiting.set_result(None))
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.pop(waiting, None)


class Group:
    """Kafka's coordinator: partitions are dealt out to the members; one that is to lose some may learn of it late."""

    def __init__(self, topic: Topic, rng: random.Random) -> None:
        self.topic = topic
        self.members: list[SimulatedSource] = []
        self._rng = rng
        self._underway = 0

    def join(self, member: SimulatedSource) -> None:
        self.members.append(member)
        self.deal()

    def leave(self, member: SimulatedSource) -> None:
        if member in self.members:
            self.members.remove(member)
            self.deal()

    def deal(self, *, late_s: float = 0.0) -> None:
        """`late_s`: how long those that lose a partition still believe to have it."""
        if not self.members:
            return
        start = self._rng.randrange(len(self.members))
        owners = {partition.number: self.members[(start + partition.number) % len(self.members)] for partition in self.topic.partitions}
        for member in self.members:
            mine = {number for number, owner in owners.items() if owner is member}
            if late_s and not mine >= member.owned:
                self._underway += 1
                asyncio.get_running_loop().call_later(late_s, self._take_away, member)
                mine |= member.owned
            member.assign(mine)
        self._owners = owners
        self.topic.tell()

    def _take_away(self, member: SimulatedSource) -> None:
        self._underway -= 1
        member.assign({number for number, owner in self._owners.items() if owner is member})
        self.topic.tell()

    @property
    def settled(self) -> bool:
        return not self._underway


class SimulatedSource:
    """`rater.source.Source` of one rater process, as buffer/kafka_source.py goes about it."""

    identity = IDENTITY

    def __init__(self, group: Group, rng: random.Random, step: Callable[[str], None]) -> None:
        self.owned: set[int] = set()
        self._waits = False  # for something new; whatever it handed out before is stored
        self.behind_until_s = 0.0
        self._group = group
        self._topic = group.topic
        self._rng = rng
        self._step = step
        self._seen = 0  # rebalances
        self._at: dict[int, int] = {}  # partitions that stand at their stored position or beyond
        self._positions: Positions | None = None

    def assign(self, partitions: set[int]) -> None:
        if partitions != self.owned:
            self.owned = partitions
            self._seen += 1
            self._at.clear()

    def deliver_again(self, back: int) -> None:
        for number, at in self._at.items():
            self._at[number] = max(self._topic.partitions[number].first, at - back)
        self._topic.tell()

    async def open(self, positions: Positions) -> None:
        await self._reach()
        self._positions = positions
        if self not in self._group.members:
            self._group.join(self)

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await self._reach()
        try:
            while True:
                await self._place()
                found = self._fetch(most)
                left_s = deadline_s - loop.time()
                if found:
                    self._step("polled")
                if found or left_s <= 0:
                    return found
                self._waits = True
                await self._topic.news(left_s)
        finally:
            self._waits = False

    @property
    def idle(self) -> bool:
        """Whether it stands at the end of all that it owns, and all that was read is stored."""
        ends = all(self._at.get(number) == len(self._topic.partitions[number].entries) for number in self.owned)
        return self._waits and ends

    def _fetch(self, most: int) -> list[Received]:
        found: list[Received] = []
        for number, at in self._at.items():
            partition = self._topic.partitions[number]
            if not partition.first <= at <= len(partition.entries):  # out of range: from the earliest on
                at = partition.first
            entries = partition.entries[at : at + most - len(found)]
            found += [entry.received for entry in entries]
            self._at[number] = at + len(entries)
            partition.read_to = max(partition.read_to, at + len(entries))
        return found

    async def _place(self) -> None:
        new = [number for number in sorted(self.owned) if number not in self._at]
        if not new:
            return
        assert self._positions is not None
        seen = self._seen
        stored = await self._positions([self._topic.partitions[number].stream for number in new])
        if self._seen == seen:
            for number in new:
                partition = self._topic.partitions[number]
                self._at[number] = max(partition.first, stored.get(partition.stream, partition.first))
                partition.read_to = max(partition.read_to, self._at[number])
            self._step("placed")

    async def rewind(self) -> None:
        self._step("rewinding")
        self._at.clear()

    async def ends(self) -> Mapping[str, int]:
        await self._reach()
        return {partition.stream: len(partition.entries) for partition in self._topic.partitions}

    async def starts(self) -> Mapping[str, int]:
        await self._reach()
        return {partition.stream: partition.first for partition in self._topic.partitions}

    async def close(self) -> None:
        self._group.leave(self)

    async def _reach(self) -> None:
        await asyncio.sleep(self._rng.choice((0.0, 0.0005, 0.005)))
        if asyncio.get_running_loop().time() < self._topic.unreachable_until_s:
            raise SourceUnavailable("the simulated topic cannot be read")
