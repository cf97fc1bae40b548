"""The rater's loop: poll, apply, and after a failure go back to what is stored.

Belongs here: the order of polling and committing, backing off, when to say how far rating has come. Must not know: SQL, Kafka, files.

The law: nothing is polled between a failure and a successful `rewind`, so no record can be passed over; whether the failed transaction was
committed after all does not matter, for positions are stored in it and records are known by their place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from buffer.counters import MeterDefinition
from rater.configured import ConfigurationRefused, Configured
from rater.postgres import DatabaseFailed, Ledger, Unstorable
from rater.prices.book import PriceBook
from rater.prices.money import plain
from rater.source import Received, Source, SourceUnavailable
from rater.transaction import Applied

log = logging.getLogger(__name__)


class RaterLimits(NamedTuple):
    poll_records: int = 200  # most records of one poll
    batch_bytes: int = 4 << 20  # of record values in one transaction, about: the last record may go beyond
    poll_timeout_s: float = 0.5
    progress_every_s: float = 0.5
    ends_every_s: float = 5.0  # how old the ends of all streams may be that the metrics show
    due_every_s: float = 5.0  # how soon it is noticed that an operator has released something
    first_backoff_s: float = 0.1
    last_backoff_s: float = 5.0


@dataclass
class RaterCounts:
    """Since the start; read by metrics and the ledger."""

    records: int = 0
    counters: int = 0
    skipped: int = 0
    parked: int = 0
    unparked: int = 0
    forks: int = 0
    lines: int = 0
    failures: int = 0
    as_of_us: int = 0  # 0: not known yet
    last_failure: str = ""
    ends: Mapping[str, int] = field(default_factory=dict)  # of every stream, as they were seen last
    ready: bool = False  # connected, books in force, nothing failing
    books_in_force: bool = False  # they were put once since the start
    database_fails: bool = False

    def add(self, applied: Applied) -> None:
        for name, number in applied._asdict().items():
            setattr(self, name, getattr(self, name) + number)


class Rater:
    def __init__(
        self,
        source: Source,
        ledger: Ledger,
        *,
        clock_us: Callable[[], int],
        late_s: int,
        configured: Configured = Configured(),  # noqa: B008 - a NamedTuple does not change
        limits: RaterLimits = RaterLimits(),  # noqa: B008 - a NamedTuple does not change
    ) -> None:
        """`late_s`: how long after its time an event may still be accepted and arrive; until then its month is open."""
        self.counts = RaterCounts()
        self._source = source
        self._ledger = ledger
        self._clock_us = clock_us
        self._late_s = late_s
        self._configured = configured
        self._limits = limits
        self._opened = False
        self._started = False  # with this configuration
        self._put: Sequence[PriceBook] | None = None  # these books are in force since the start
        self._contradicting: dict[str, MeterDefinition] = {}  # meters that came, and were not stored because of the configuration
        self._must_rewind = False
        self._goal: tuple[int, Mapping[str, int]] | None = None  # a time, and the ends of all streams at that time
        self._told_deleted: dict[str, int] = {}
        self._goal_looked_at_s = 0.0
        self._ends_looked_at_s = 0.0
        self._due_looked_at_s = 0.0

    async def run(self) -> None:
        """Until cancelled. Raises ConfigurationRefused at the start, or whatever is no passing failure of the database or the log."""
        try:
            await self._run()
        finally:
            self._must_rewind = True  # what was polled last may not be committed; to be run again is safe

    async def _run(self) -> None:
        backoff_s = self._limits.first_backoff_s
        self._started, self._put = False, None
        while True:
            _end_if_told()
            try:
                if not self._started:
                    await self._start()
                await self._step()
                if not self.counts.ready and self.counts.failures:
                    log.info("rating goes on")
                self.counts.ready = True
                self.counts.database_fails = False
                backoff_s = self._limits.first_backoff_s
            except ConfigurationRefused as error:  # it was fine when it was read
                if not self._opened:
                    raise
                self.counts.database_fails = False
                self._contradicting |= {meter.name: meter for meter in error.counted}
                await self._back_off(f"{error}. Let the rater read its configuration again (`parshall reload`) once it is right", backoff_s)
                backoff_s = min(2 * backoff_s, self._limits.last_backoff_s)
            except (DatabaseFailed, SourceUnavailable) as error:
                self.counts.database_fails = isinstance(error, DatabaseFailed)
                await self._back_off(f"PostgreSQL: {error}" if self.counts.database_fails else str(error), backoff_s)
                backoff_s = min(2 * backoff_s, self._limits.last_backoff_s)

    async def _back_off(self, failure: str, seconds: float) -> None:
        self.counts.ready = False
        self.counts.failures += 1
        self.counts.last_failure = failure
        self._must_rewind = True
        log.warning("rating goes back to what is stored, in %s s: %s", seconds, failure)
        await asyncio.sleep(seconds)

    @property
    def configured(self) -> Configured:
        """In force, or about to be."""
        return self._configured

    async def check(self, configured: Configured, ledger: Ledger) -> None:
        """Raises ConfigurationRefused for what cannot follow on what is in force, or DatabaseFailed.

        `ledger`: one of the caller's own. That of the rater would hide from it that its connection had ended.
        """
        configured.check(self._contradicting.values())
        if configured == self._configured:
            return
        await ledger.check(configured)
        await _check_books(ledger, (book for book in configured.books if book not in self._configured.books))

    def use(self, configured: Configured) -> None:
        """From the next step on, which charges again what its price books change. Check it before."""
        if configured != self._configured:
            self._configured = configured
            self._started = False

    async def _start(self) -> None:
        configured = self._configured
        await self._ledger.expect(configured)
        if not self._opened:
            await _check_books(self._ledger, configured.books)  # all of them first: one that is refused leaves every tenant as it was
        if self._put != configured.books:
            for book in configured.books:
                await self._put_book(book)
            self._put = configured.books
        self.counts.books_in_force = True
        if not self._opened:
            await self._source.open(self._positions)
            self._opened = True
        await self._apply_parked()
        self._started = configured is self._configured  # another may have come meanwhile

    async def _put_book(self, book: PriceBook) -> None:
        try:
            put = await self._ledger.put_book(book, now_s=self._clock_us() // 1_000_000, late_s=self._late_s)
        except ConfigurationRefused as error:
            if not self._opened:
                raise
            log.error("a price book is not used, and the one before stays in force: %s", error)  # it was fine when it was checked
            return
        for tenant, period, lines, before, after in put.charged_again:
            told = "by the price book of %s, %s is charged again, %s lines; their amounts came to %s before and come to %s now"
            log.info(told, tenant, period, lines, plain(before), plain(after))
        for period in put.closed:
            told = "the new price book of %s changes the prices of %s, which is final and stays as it was charged"
            log.warning(f"{told}; `parshall recharge` charges it again", book.tenant, period)

    async def _positions(self, streams: Iterable[str]) -> Mapping[str, int]:
        return await self._ledger.positions(self._source.identity, streams)

    async def _step(self) -> None:
        if self._must_rewind:
            await self._source.rewind()
            self._must_rewind = False
        await self._set_goal()
        polled = await self._source.poll(self._limits.poll_records, self._limits.poll_timeout_s)
        for batch in _slices(polled, self._limits.batch_bytes):
            await self._apply(batch)
        await self._note_progress(idle=not polled)
        await self._look_for_due()

    async def _apply(self, batch: Sequence[Received]) -> None:
        try:
            applied = await self._ledger.apply(self._source.identity, batch)
        except Unstorable as error:
            log.error("PostgreSQL refuses a batch, its records are tried one by one: %s", error)
            await self._apply_singly(batch)
            return
        self.counts.add(applied)
        if applied.unparked:
            await self._apply_parked()

    async def _apply_singly(self, batch: Sequence[Received]) -> None:
        for received in batch:
            try:
                applied = await self._ledger.apply(self._source.identity, [received])
            except Unstorable as error:
                applied = await self._ledger.apply(self._source.identity, [received], refuse=f"PostgreSQL refuses it: {error}")
            self.counts.add(applied)

    async def _apply_parked(self) -> None:
        """At the start (a newer version may understand what an older one parked), and when a gap was closed."""
        for chain in await self._ledger.due_chains():
            try:
                while (applied := await self._ledger.apply_parked(self._source.identity, chain)).unparked:
                    self.counts.add(applied)
            except Unstorable as error:
                log.error("PostgreSQL refuses a parked record of writer %s in partition %s: %s", chain[0].hex(), chain[1], error)

    async def _look_for_due(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._due_looked_at_s >= self._limits.due_every_s:
            self._due_looked_at_s = now_s
            await self._apply_parked()

    async def _set_goal(self) -> None:
        if self._goal is None:
            now_us = self._clock_us()
            await self._look_at_ends()
            self._goal = (now_us, self.counts.ends)  # the time first: what comes in between is in the ends
        elif asyncio.get_running_loop().time() - self._ends_looked_at_s >= self._limits.ends_every_s:
            await self._look_at_ends()  # a goal may be far away, or out of reach while something is held: the log grows meanwhile

    async def _look_at_ends(self) -> None:
        self._ends_looked_at_s = asyncio.get_running_loop().time()
        self.counts.ends = dict(await self._source.ends())

    async def _note_progress(self, *, idle: bool) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._goal is None or not (idle or now_s - self._goal_looked_at_s >= self._limits.progress_every_s):
            return
        self._goal_looked_at_s = now_s
        as_of_us = await self._ledger.note_progress(self._source.identity, *self._goal)
        if as_of_us is not None:
            self.counts.as_of_us = as_of_us
            self._goal = None
        elif idle:
            self._goal = await self._what_can_be_reached(*self._goal)

    async def _what_can_be_reached(self, at_us: int, ends: Mapping[str, int]) -> tuple[int, Mapping[str, int]]:
        """Without the streams of which the log has deleted all that was not read yet: nothing there moves a position any more. Where more
        follows, it is the same: reading goes on behind the deleted records, and the next record of their writer shows the gap."""
        starts, positions = await self._source.starts(), await self._positions(ends)
        gone = {stream: starts[stream] for stream, end in ends.items() if positions.get(stream, 0) < end <= starts.get(stream, 0)}
        for stream, start in gone.items():
            if self._told_deleted.get(stream) != start:
                log.error("%s: counters before %s were deleted unrated: send them again with `parshall resend`", stream, start)
        self._told_deleted |= gone
        return at_us, {stream: end for stream, end in ends.items() if stream not in gone}


async def _check_books(ledger: Ledger, books: Iterable[PriceBook]) -> None:
    for book in books:
        await ledger.check_book(book)


def _end_if_told() -> None:
    """A cancellation is lost when what it interrupts fails while it cleans up, as a rollback on a broken connection does."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _slices(polled: Sequence[Received], most_bytes: int) -> Iterator[Sequence[Received]]:
    batch: list[Received] = []
    size = 0
    for received in polled:
        batch.append(received)
        size += len(received.value)
        if size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
