"""The flush: live counters are swapped out, numbered, journalled with their bytes, and only then produced.

Belongs here: the live counters and the order of a flush's steps. Must not know: claims, requests, HTTP, which log it is.

One flush at a time; it covers exactly the calls up to `through`, the last one merged when the counters were swapped out. After a crash
or an unknown outcome the same bytes go out again under the same numbers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import structlog

from buffer.counter_log import CounterLog, LogUnavailable, Record, Rejected
from buffer.counters import Deltas, MeterDefinition, Tallies, add_tallies, count, merge
from buffer.flush_tuner import FlushTuner
from buffer.journal import Journal
from buffer.journal_records import FlushBegin, FlushCommit, Flushed, FlushPart, Through
from buffer.record import RecordEncoder
from ingest.fair_shares import Shares
from ingest.snapshot import Latency

log = structlog.get_logger()

T = TypeVar("T")

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
_FREED_A_STEP = 5_000
_PIECE_BYTES = 1 << 20  # of rejected events


class Flusher:
    def __init__(
        self,
        journal: Journal,
        counter_log: CounterLog,
        tuner: FlushTuner,
        *,
        meters: Mapping[int, MeterDefinition],
        tenants: Mapping[int, str],
        clock_us: Callable[[], int],
        rejected_bytes: int,
    ) -> None:
        """`meters` and `tenants` are live views: number to definition, number to name. `rejected_bytes`: most of them to hold."""
        state = journal.state
        self._journal = journal
        self._log = counter_log
        self._tuner = tuner
        self._meters = meters
        self._tenants = tenants
        self._clock_us = clock_us
        self.live: Deltas = state.deltas
        self.live_counters = count(self.live)
        self.tallies: Tallies = state.tallies
        self.merged_deltas: Counter[int] = Counter()  # by tenant, since the last flush: tells who fills the live counters
        self._rejected: list[Rejected] = list(state.rejected)
        self.rejected_held = Shares(rejected_bytes)  # by the tenant's name: of their bodies, until the log has them, and what is reserved
        self.through = Through(*state.incarnations[-1]) if state.incarnations else Through(b"", 0)
        self._shard_calls: Sequence[int] = state.shard_calls[-1] if state.shard_calls else ()  # what `through` comes to in each shard
        self._outstanding = state.flush
        self._hold([*self._rejected, *(() if state.flush is None else state.flush.rejected)])
        self.outstanding_tallies: Tallies = {} if state.flush is None else state.flush.tallies
        self._next_n = dict(state.next_n)
        self._next_flush = state.next_flush
        self._committed = state.next_flush - 1
        self._wake = asyncio.Event()
        # Set once the claim store has accepted the journal: an old copy of it, which nobody has found out yet, would number other bytes
        # anew. A flush that it holds as committed waits too: the disk that it was copied from may have lost it with its power, and has
        # flushed other bytes under these numbers since.
        self.allowed = asyncio.Event()
        self._wanted: list[asyncio.Future[None]] = []  # callers of `now`
        self.last_flush_us = 0
        self.last_duration_us = 0
        # When the oldest counter was counted that is live, and that is on its way; 0: there is none. The journal's count as new.
        self._live_since_us = clock_us() if self.live_counters or self.tallies else 0
        self._on_the_way_since_us = 0 if state.flush is None else clock_us()
        self.duration = Latency()
        self.failures = 0  # produce attempts that ended without a known outcome

    # ---- what the writer calls with each call record

    def merge(
        self,
        deltas: Sequence[Deltas],
        tallies: Tallies,
        rejected: Sequence[Rejected],
        through: Through,
        shard_calls: Sequence[int] = (),
    ) -> None:
        """`shard_calls`: the last call merged of each shard, where there are several."""
        for more in deltas:
            merge(self.live, more)
        self.live_counters = count(self.live)
        add_tallies(self.tallies, tallies)
        if rejected:
            self._rejected.extend(rejected)
            self._hold(rejected)
        if not self._live_since_us and (self.live_counters or self.tallies or self._rejected):  # an empty call leaves nothing to flush
            self._live_since_us = self._clock_us()
        self.through = through
        self._shard_calls = shard_calls
        if self._tuner.full(self.live_counters) or self._many_rejected:
            self._wake.set()

    def _hold(self, rejected: Iterable[Rejected]) -> None:
        for one in rejected:
            self.rejected_held.take(one.tenant, len(one.body))

    @property
    def _many_rejected(self) -> bool:
        """Room that requests under way have reserved is nothing to flush: without the first half, `run` would turn without a pause."""
        return bool(self._rejected) and 2 * self.rejected_held.total >= self.rejected_held.limit

    @property
    def unflushed_since_us(self) -> int:
        """When the oldest counter was counted that the counter log does not have yet; 0: there is none."""
        return self._on_the_way_since_us or self._live_since_us

    def buffered(self, tenant: int) -> int:
        """Accepted events that no acknowledged flush carried."""
        return sum(tallies.get(tenant, {}).get("accepted", 0) for tallies in (self.tallies, self.outstanding_tallies))

    @property
    def flush_number(self) -> int:
        """The last one that is committed: a crash takes back no other."""
        return self._committed

    # ---- operators

    @property
    def interval_ms(self) -> int:
        return self._tuner.interval_ms

    def set_interval(self, interval_ms: int) -> None:
        self._tuner.set_interval(interval_ms)
        self._wake.set()

    async def now(self) -> None:
        """Return when everything merged before this call is in the counter log."""
        wanted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append(wanted)
        self._wake.set()
        await wanted

    # ---- the loop

    async def run(self) -> None:
        """Flush for ever; cancelled between flushes or while producing, never needing more than the journal to go on."""
        await self.allowed.wait()
        if self._outstanding is not None:
            await self._finish(self._outstanding.flush, self._outstanding.records, self._outstanding.rejected)
            self._outstanding = None
        while True:
            await self._until_due()
            wanted, self._wanted = self._wanted, []
            await self.flush()
            for waiter in wanted:
                if not waiter.done():
                    waiter.set_result(None)

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            wait_s = 0.0 if self._wanted or self._many_rejected else self._tuner.wait_s(loop.time(), self.live_counters)
            if wait_s <= 0:
                return
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def flush(self) -> None:
        self._tuner.flushed(asyncio.get_running_loop().time())
        if not self.live_counters and not self.tallies and not self._rejected:
            return
        started_us = self._clock_us()
        flush, through, shard_calls = self._next_flush, self.through, self._shard_calls
        deltas, tallies, rejected = self.live, self.tallies, self._rejected
        self._on_the_way_since_us, self._live_since_us = self._live_since_us, 0
        self.live, self.live_counters, self.tallies, self._rejected = {}, 0, {}, []
        self.outstanding_tallies = tallies
        self.merged_deltas.clear()
        self._next_flush += 1
        self._journal.append(FlushBegin(flush, through))
        records = await self._encode(flush, through, shard_calls, deltas, tallies)
        self._journal.append(FlushCommit(flush))
        await self._journal.drain()  # only a committed flush on disk may be produced
        self._committed = flush
        await self._finish(flush, records, rejected)
        self.last_flush_us = self._clock_us()
        self.last_duration_us = max(0, self.last_flush_us - started_us)  # the clock may have been set back
        self.duration.observe(self.last_duration_us)

    async def _encode(self, flush: int, through: Through, shard_calls: Sequence[int], deltas: Deltas, tallies: Tallies) -> list[Record]:
        encoder = RecordEncoder(
            meters=self._meters,
            tenants=self._tenants,
            writer=self._journal.writer,
            partitions=self._log.partitions,
            through=through,
            next_n=self._next_n,
            shard_calls=shard_calls,
        )
        records: list[Record] = []
        for piece in encoder.pieces(deltas, tallies):
            if piece:
                self._journal.append(FlushPart(flush, piece))
                records += piece
            await asyncio.sleep(0)  # requests get their turn between pieces
        self._next_n = encoder.next_n
        await _free(deltas)
        return records

    async def _finish(self, flush: int, records: Sequence[Record], rejected: Sequence[Rejected]) -> None:
        await self._insist(flush, self._log.produce, records)
        for piece in _pieces(rejected):
            await self._insist(flush, self._log.produce_rejected, piece)
        self._journal.append(Flushed(flush))
        for one in rejected:
            self.rejected_held.give(one.tenant, len(one.body))
        self.outstanding_tallies = {}
        self._on_the_way_since_us = 0

    async def _insist(self, flush: int, produce: Callable[[Sequence[T]], Awaitable[None]], wanted: Sequence[T]) -> None:
        """Until all of it is in the log. What this process knows to be there does not go out again: after a crash it does."""
        wait_s = _FIRST_RETRY_S
        while wanted:
            try:
                await produce(wanted)
                return
            except LogUnavailable as error:
                self.failures += 1
                if error.durable:  # it went on for a while
                    wanted, wait_s = wanted[error.durable :], _FIRST_RETRY_S
                log.warning(
                    "the counter log is unavailable; the same flush is produced again", flush=flush, error=str(error), wait_s=wait_s
                )
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _LONGEST_RETRY_S)


def _pieces(rejected: Sequence[Rejected]) -> Iterator[Sequence[Rejected]]:
    """Of a bounded size each, whatever came together while the counter log was away."""
    piece: list[Rejected] = []
    size = 0
    for one in rejected:
        piece.append(one)
        size += len(one.body)
        if size >= _PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


async def _free(deltas: Deltas) -> None:
    """Let go of encoded counters in steps: a million of them at once would hold up the event loop for a tenth of a second."""
    for counters in deltas.values():
        while counters:
            for _ in range(min(_FREED_A_STEP, len(counters))):
                counters.popitem()
            await asyncio.sleep(0)
