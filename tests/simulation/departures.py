"""Writers that never come back: with their disk, which `parshall writer drain` finishes, and without it, which `parshall writer lost` ends.

Belongs here: what operators then do, with the product's own functions, and what may be lost with a disk. Must not know: why a writer left.

With its disk nothing is lost. Without it exactly that may be lost which its journal held and the log did not; the operator was told so much
at most. Everything that anybody else answered is counted as ever.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from buffer.counter_log import LogUnavailable
from buffer.journal import read_journal
from buffer.journal_records import CallRecord, Opened, Snapshot
from buffer.record import Place, read_place
from dedupe.claim_table import _TAG, ClaimTable
from dedupe.digest import digest
from dedupe.port import Identity
from dedupe.redis_writers import Buried, Claimed, Standing
from dedupe.scripts import context_of
from parshall.writer_loss import Loss, end_lost_writer
from tests.simulation.counter_log import SimulatedLog
from tests.simulation.node import TENANTS, Node, WatchedDisk
from tests.simulation.steps import Steps

if TYPE_CHECKING:
    from tests.simulation.world import Sent, World

SOURCE = "/simulated"
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_LOOK_S = (2.0, 10.0)
# Nobody declares a disk lost within seconds: what the dead process has sent has arrived by then, or never will.
_DECIDE_S = (12.0, 20.0)


async def drain_for_ever(world: World, node: Node) -> None:
    """An operator: until it is retired, again whenever the others wait for what it holds."""
    while "retired" not in node.drained:
        await asyncio.sleep(world.rng.uniform(*_LOOK_S))
        if not node.drained or not claims_are_complete(world):
            node.restart()


def claims_are_complete(world: World) -> bool:
    return all(redis.table._open.replication_id == redis.table.replication_id for redis in world.shards)


def journalled(node: Node, disk: WatchedDisk) -> Iterator[tuple[int, bytes]]:
    """(tenant, digest) of all that the disk holds."""
    for record in read_journal(node.directory, disk):
        if isinstance(record, CallRecord):
            for tenant, digests, _ in record.claims:
                for at in range(0, len(digests), 12):
                    yield tenant, digests[at : at + 12]


class LostDisk:
    """What is known of it, by the operator and by those who judge."""

    def __init__(self, world: World, node: Node) -> None:
        self._world = world
        disk = node.disk.copy()
        held = set(journalled(node, disk))
        self._held = [sent for sent in world.sent.values() if (sent.tenant, digest(SOURCE, sent.name)) in held]
        self.writer, self._incarnations = b"", set[bytes]()
        for record in read_journal(node.directory, disk):
            match record:
                case Snapshot():
                    self.writer = self.writer or record.writer
                    self._incarnations.update(incarnation for incarnation, _ in record.incarnations)
                case Opened():
                    self._incarnations.add(record.incarnation)
                case _:
                    pass
        self.node = node
        self.held_events = len(self._held)
        self.told: Loss | None = None
        self.complete = False  # whether Redis held the claims of all writers when it was asked
        self.horizon_us = 0  # claims of events up to this were gone

    @property
    def lost(self) -> list[Sent]:
        """What was in its journal and is not counted."""
        counted = self._world.log.ledger.events
        return [sent for sent in self._held if not counted[TENANTS[sent.tenant], sent.name]]

    def counts_again(self, sent: Sent) -> None:
        """A writer accepted it: from now on it must be counted like any other."""
        self._held = [other for other in self._held if other is not sent]

    async def declare(self) -> None:
        """`parshall writer lost ID --i-accept-loss`, until the log can be reached."""
        world = self._world
        await asyncio.sleep(world.rng.uniform(*_DECIDE_S))
        log = SimulatedLog(world.log, bytes(16), Steps())
        while True:
            try:
                registry = (await log.registry()).writers
                if world.log.registry_lost:  # it is told that there is no such writer, and comes again
                    await asyncio.sleep(1)
                    continue
                if self.writer not in registry or registry[self.writer] is not None:
                    return
                habits = world.habits
                horizon_us = world.clock_us() + (habits.max_skew_s + habits.margin_s) * 1_000_000
                tables = [redis.table for redis in world.shards]
                stores = [
                    SimulatedWriterStore(table, world.surroundings.identity(shard), self._incarnations)
                    for shard, table in enumerate(tables)
                ]
                self.complete = claims_are_complete(world) and all(self.writer in table._writers for table in tables)
                self.horizon_us = max(table._horizon for table in tables)
                self.told, lines = await end_lost_writer(
                    log, stores, self.writer, self._places(), names=TENANTS, horizon_us=horizon_us, accept=True
                )
                for line in lines:
                    world.note(line)
                return
            except LogUnavailable:
                await asyncio.sleep(1)

    def _places(self) -> list[Place]:
        return [read_place(dict(record.headers)) for writer, record in self._world.log.records if writer == self.writer]

    def check_told(self) -> None:
        """Whoever was promised something and lost it is in the numbers that the operator was told."""
        if self.told is None or not self.complete:
            return
        told = Counter[int]()
        for kind in self.told:
            told.update(kind)
        missing = [sent for sent in self.lost if sent.promised and (sent.time - _EPOCH) // _MICROSECOND > self.horizon_us]
        for tenant, events in Counter(sent.tenant for sent in missing).items():
            names = ", ".join(sent.name for sent in missing if sent.tenant == tenant)
            assert events <= told[tenant], f"{events} events of tenant {tenant} are lost ({names}), and {told[tenant]} were told"


class SimulatedWriterStore:
    """What dedupe.redis_writers.RedisWriters does, over the simulated server."""

    def __init__(self, table: ClaimTable, identity: Identity, mine: Set[bytes]) -> None:
        """`mine`: the incarnations of the writer that is asked about."""
        self._table = table
        self._identity = identity
        self._mine = mine

    async def standings(self, writers: Sequence[bytes]) -> Mapping[bytes, Standing]:
        return {writer: self._standing(writer) for writer in writers}

    def _standing(self, writer: bytes) -> Standing:
        incarnation = self._table._writers.get(writer, b"")
        known = self._table._w.get(incarnation)
        return Standing(incarnation, 0 if known is None else known.mark, None if known is None else known.closed, False)

    async def bury(self, writer: bytes, through: tuple[bytes, int], *, for_good: bool) -> Buried:
        context = context_of(self._identity, writer, bytes(16), 0)
        status, named, mark, closed, last = self._table.bury(context, for_good, *through)
        assert status == b"buried" and isinstance(named, bytes)
        assert isinstance(mark, int) and isinstance(closed, int) and isinstance(last, int)
        return Buried(bytes.fromhex(named.decode()), mark, None if closed < 0 else closed, last)

    async def claimed_after(self, writer: bytes, before: tuple[bytes, int], through: tuple[bytes, int]) -> Claimed:
        mine = {number: incarnation for number, incarnation in sorted(self._table._interned.items()) if incarnation in self._mine}
        least = next((number for number, incarnation in mine.items() if incarnation == before[0]), 0)
        mine = {number: incarnation for number, incarnation in mine.items() if number >= least}
        events: dict[tuple[bytes, int], Counter[int]] = {}
        for tenants in self._table._claims.values():
            for tenant, claims in tenants.items():
                for value in claims.values():
                    number, call = _TAG.unpack_from(value)
                    if number in mine and self._may_count(writer, mine[number], call, before, through):
                        events.setdefault((mine[number], call), Counter())[tenant] += 1
        return Claimed(tuple(mine.values()), events)

    def _may_count(self, writer: bytes, incarnation: bytes, call: int, before: tuple[bytes, int], through: tuple[bytes, int]) -> bool:
        known = self._table._w[incarnation]
        if call == 0:
            return known.base > (through[1] if through[0] == incarnation else -1)
        after = before[1] if before[0] == incarnation else 0
        last = incarnation == self._table._writers.get(writer)  # closed by `bury`, if at all
        return call > after and (last or known.closed is None or call <= known.closed)
