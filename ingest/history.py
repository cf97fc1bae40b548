"""What the claims may ask of a writer's past: the journal and the registry of writers, seen through dedupe's History port.

Must not know: Redis, HTTP, calls under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import structlog

from buffer.counter_log import Announced, CounterLog, LogUnavailable, Retired
from buffer.journal import Journal
from buffer.journal_records import Entering
from dedupe.port import Claimed, shard_of

log = structlog.get_logger()

_RETRY_S = 1.0


class JournalHistory:
    """`dedupe.port.History` over a journal, for one of its shards. The writer raises `mark` as calls reach the disk."""

    def __init__(
        self,
        journal: Journal,
        log: CounterLog,
        incarnation: bytes,
        registry: Mapping[bytes, Retired | None],
        *,
        shard: int = 0,
        shards: int = 1,
        announcing: asyncio.Lock | None = None,
    ) -> None:
        """`registry`: as it was read when this writer joined it. `announcing`: what the shards of a writer share."""
        self._journal = journal
        self._log = log
        self._incarnation = incarnation
        self._shard = shard
        self._shards = shards
        self._closed = journal.state.closed_in(shard, shards)
        self._registered: set[bytes] = {journal.writer}  # seen in the registry, which never forgets
        self._announcing = announcing or asyncio.Lock()
        self._announced = b""  # the branch that this opening has told the registry
        self.mark = 0
        self.horizon_us = journal.state.horizon_in(shard, shards)
        self.lost_horizon_us = 0
        self._learn(registry)

    @property
    def writer(self) -> bytes:
        return self._journal.writer

    @property
    def incarnation(self) -> bytes:
        return self._incarnation

    @property
    def closed(self) -> Sequence[tuple[bytes, int]]:
        return self._closed

    @property
    def branch(self) -> bytes:
        return self._journal.branch(self._shard)

    async def enter(self, branch: bytes) -> None:
        while branch != self._announced:  # an opening before may have died between the journal and the registry
            self._announced = b""
            try:
                async with self._announcing:
                    await self._announce(branch)
                self._announced = branch
            except LogUnavailable as error:
                log.warning("waiting for the registry of writers", error=str(error))
                await asyncio.sleep(_RETRY_S)

    async def _announce(self, branch: bytes) -> None:
        """One entry tells of all shards, so they come one by one: what is announced is on disk then, and has the journal's order."""
        if branch != self.branch:
            self._journal.append(Entering(branch, self._shard))
        await self._journal.drain()
        branches = tuple(self._journal.branch(shard) for shard in range(self._shards))
        await self._log.announce(self.writer, Announced(self._journal.synced, branches))

    async def drain(self) -> None:
        await self._journal.drain()

    def claims(self) -> Iterator[Claimed]:
        """By the tenant alone: in another set of shards its calls may have gone elsewhere."""
        for kept in self._journal.claims():
            if shard_of(kept[0], self._shards) == self._shard:
                yield Claimed(*kept)

    async def members(self) -> Mapping[bytes, bytes]:
        """Waits for the registry: to open claims without a member would count its events twice.

        Who was registered once stays in it, retired or not; a registry without one of them has lost entries, others too perhaps.
        """
        while True:
            try:
                registry = await self._log.registry()
            except LogUnavailable as error:
                log.warning("waiting for the registry of writers", error=str(error))
            else:
                missing = self._registered - registry.writers.keys()
                if not missing:
                    self._learn(registry.writers)
                    members = [writer for writer, retired in registry.writers.items() if retired is None]
                    return {writer: self._of_this_shard(registry.announced.get(writer)) for writer in members}
                names = sorted(writer.hex() for writer in missing)
                log.error("the registry of writers (usage.writers) has lost entries: restore the topic", missing=names)
            await asyncio.sleep(_RETRY_S)

    def _of_this_shard(self, announced: Announced | None) -> bytes:
        """In another set of shards everybody enters anew, and what was entered before says nothing of this one."""
        return announced.branches[self._shard] if announced is not None and len(announced.branches) == self._shards else b""

    def _learn(self, registry: Mapping[bytes, Retired | None]) -> None:
        """A writer may have been retired since; what it counted up to its horizon is known to nobody else."""
        self._registered.update(registry)
        for retired in registry.values():
            if retired is not None and retired.lost is None:
                self.horizon_us = max(self.horizon_us, retired.horizon_us)
            elif retired is not None:
                self.lost_horizon_us = max(self.lost_horizon_us, retired.horizon_us)
