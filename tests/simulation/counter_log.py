"""Kafka of the simulation: one log behind all writers, that can fail before, halfway or after, or land late; and what a rater does.

`Ledger` is what a rater must arrive at: records are applied by (writer, partition, n), known ones skipped, gaps held. It counts events by
the last dimension of the meter `requests`, which every event of a simulation has to itself.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from buffer.counter_log import Announced, LogUnavailable, Record, Registry, Rejected, Retired
from buffer.counters import MeterDefinition
from buffer.registration import add_entry, branches_key, encode_branches
from tests.simulation.steps import Steps
from tests.simulation.topic import Topic

CounterName = tuple[str, str, str, int, tuple[str, ...]]  # meter, tenant, subject, window start, dimensions


class SharedLog:
    """What survives every crash: topics and the registry."""

    def __init__(self, rng: random.Random, partitions: int) -> None:
        self.rng = rng
        self.partitions = partitions
        self.records: list[tuple[bytes, Record]] = []  # (writer, record) in order of arrival
        self.rejected: list[Rejected] = []
        self.registry: dict[bytes, Retired | None] = {}
        self.registry_lost: dict[bytes, Retired | None] = {}  # what is in the backup while the registry is lost
        self.announced: dict[bytes, list[Announced]] = {}  # in order of arrival
        self.announced_lost: dict[bytes, list[Announced]] = {}
        self.meters: dict[str, MeterDefinition] = {}
        self.meters_lost: dict[str, MeterDefinition] = {}
        self.unreachable_until_s = 0.0
        self.unknown_outcomes = 0.0  # chance that a produce ends without a known outcome
        self.ledger = Ledger()
        self.topic: Topic | None = None  # the same records as raters read them, where there are any

    def lose_registry(self) -> None:
        self.registry_lost.update(self.registry)
        self.registry.clear()
        self.announced_lost = _one_after_the_other(self.announced_lost, self.announced)
        self.announced = {}
        self.meters_lost = self.meters | self.meters_lost
        self.meters = {}

    def restore_registry(self) -> None:
        for writer, retired in self.registry_lost.items():
            if self.registry.get(writer) is None:  # who was retired meanwhile stays so
                self.registry[writer] = retired
        self.registry_lost.clear()
        self.announced = _one_after_the_other(self.announced_lost, self.announced)
        self.announced_lost = {}
        self.meters |= self.meters_lost
        self.meters_lost = {}

    def heal(self) -> None:
        self.unreachable_until_s = self.unknown_outcomes = 0.0
        self.restore_registry()

    def add_partition(self) -> None:
        """Writers that open from now on spread subjects anew."""
        self.partitions += 1
        if self.topic is not None:
            self.topic.add_partition()

    def append(self, writer: bytes, record: Record) -> None:
        self.records.append((writer, record))
        self.ledger.apply(writer, record)
        if self.topic is not None:
            self.topic.append(writer, record)


def _one_after_the_other(
    first: Mapping[bytes, Sequence[Announced]], then: Mapping[bytes, Sequence[Announced]]
) -> dict[bytes, list[Announced]]:
    return {writer: [*first.get(writer, ()), *then.get(writer, ())] for writer in {**first, **then}}


class SimulatedLog:
    """`buffer.counter_log.CounterLog` of one writer process."""

    def __init__(self, shared: SharedLog, writer: bytes, steps: Steps) -> None:
        self._shared = shared
        self._writer = writer
        self._steps = steps
        self._partitions = shared.partitions
        self.dead = False  # its process was killed: nothing of it reaches the log any more

    @property
    def identity(self) -> str:
        return "simulated-log"

    @property
    def partitions(self) -> int:
        return self._partitions

    async def open(self) -> None:
        await self._reach()

    async def _reach(self) -> None:
        shared = self._shared
        await asyncio.sleep(shared.rng.uniform(0.0005, 0.01))
        if self.dead or asyncio.get_running_loop().time() < shared.unreachable_until_s:
            raise LogUnavailable("the simulated log cannot be reached")

    async def produce(self, records: Sequence[Record]) -> None:
        self._steps.produced()
        await self._reach()
        shared = self._shared
        if shared.rng.random() >= shared.unknown_outcomes:
            for record in records:
                shared.append(self._writer, record)
            await asyncio.sleep(shared.rng.uniform(0.0005, 0.01))
            return
        arrived = [self._arrives(record) for record in records]
        error = LogUnavailable("the outcome is unknown")
        error.durable = [*arrived, False].index(False)
        raise error

    def _arrives(self, record: Record) -> bool:
        """At once; or else perhaps later than the answer, or never."""
        rng, fate = self._shared.rng, self._shared.rng.random()
        if fate < 0.4:
            self._shared.append(self._writer, record)
        elif fate < 0.7:
            asyncio.get_running_loop().call_later(rng.uniform(0, 5), self._shared.append, self._writer, record)
        return fate < 0.4

    async def produce_rejected(self, rejected: Sequence[Rejected]) -> None:
        await self._reach()
        self._shared.rejected.extend(rejected)

    async def register(self, writer: bytes) -> None:
        await self._enter(lambda: self._shared.registry.setdefault(writer, None))

    async def retire(self, writer: bytes, retired: Retired) -> None:
        def arrive() -> None:
            if self._shared.registry.get(writer) is None:
                self._shared.registry[writer] = retired

        await self._enter(arrive)

    async def announce(self, writer: bytes, announced: Announced) -> None:
        await self._enter(lambda: self._shared.announced.setdefault(writer, []).append(announced))

    async def _enter(self, arrive: Callable[[], object]) -> None:
        """An entry of the registry arrives; with an unknown outcome perhaps never, perhaps long after."""
        await self._reach()
        shared = self._shared
        if not shared.unknown_outcomes or shared.rng.random() >= shared.unknown_outcomes:
            arrive()
            return
        fate = shared.rng.random()
        if fate < 0.4:
            arrive()
        elif fate < 0.7:
            asyncio.get_running_loop().call_later(shared.rng.uniform(0, 15), arrive)
        raise LogUnavailable("the outcome is unknown")

    async def define(self, meters: Sequence[MeterDefinition]) -> Mapping[str, MeterDefinition]:
        """In one step, without a draw: whoever asks has just read the registry."""
        if self.dead:
            raise LogUnavailable("the simulated log cannot be reached")
        for meter in meters:
            self._shared.meters.setdefault(meter.name, meter._replace(hash=""))
        return dict(self._shared.meters)

    async def registry(self) -> Registry:
        await self._reach()
        registry = Registry(dict(self._shared.registry), {}, dict(self._shared.meters))
        for writer, arrived in self._shared.announced.items():
            for announced in arrived:
                add_entry(registry, branches_key(writer), encode_branches(announced))
        return registry

    async def has_data(self) -> bool:
        await self._reach()
        return bool(self._shared.records)

    async def close(self) -> None:
        pass


class Ledger:
    def __init__(self) -> None:
        self.hashes: dict[tuple[bytes, int, int], bytes] = {}
        self.last: Counter[tuple[bytes, int]] = Counter()
        self.held: dict[tuple[bytes, int], dict[int, Record]] = {}
        self.events: Counter[tuple[str, str]] = Counter()  # (tenant, event) -> how often counted
        self.usage: dict[CounterName, tuple[int, int]] = {}  # what all counters of a name add up to: (value, events)
        self.tallies: Counter[tuple[str, str]] = Counter()  # (tenant, verdict)

    def apply(self, writer: bytes, record: Record) -> None:
        chain = (writer, record.partition)
        known = self.hashes.setdefault((*chain, record.n), record.value)
        assert known == record.value, f"a fork: record {record.n} of partition {record.partition} exists with other bytes"
        if record.n <= self.last[chain]:
            return
        held = self.held.setdefault(chain, {})
        held[record.n] = record
        while (following := held.pop(self.last[chain] + 1, None)) is not None:
            self.last[chain] += 1
            self._fold(following)

    def _fold(self, record: Record) -> None:
        value = json.loads(record.value)
        for meter, tenant, subject, start_s, dimensions, number, events in value["counters"]:
            name, _, aggregation, *_ = value["meters"][meter]
            key = (name, tenant, subject, start_s, tuple(dimensions))
            known = self.usage.get(key, (0, 0))
            self.usage[key] = (max(known[0], int(number)) if aggregation == "max" else known[0] + int(number), known[1] + events)
            if name == "requests":
                event = dimensions[-1]
                self.events[tenant, event] += events
                assert self.events[tenant, event] == 1, f"{event} is counted {self.events[tenant, event]} times"
        for tenant, counts in value["tallies"].items():
            for verdict, count in counts.items():
                self.tallies[tenant, verdict] += count

    def gaps(self) -> list[tuple[str, int, list[int]]]:
        return [(writer.hex(), partition, sorted(held)) for (writer, partition), held in self.held.items() if held]
