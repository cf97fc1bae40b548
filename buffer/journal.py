"""The journal: one writer's record of what it granted and handed over. What is synced here has happened; nothing else has.

Belongs here: the asyncio front. The loop numbers records, encodes them and decides about segments; one function at a time runs in the
background, takes everything queued, writes it with one write and one sync, and only then does the loop hear of it. Must not know: what
segments look like (journal_segments.py), Redis, HTTP, how flushes are made.

A failed write or sync ends the journal: `failed` gets the error, nothing is reported synced any more, and the process must stop, since
what is on the disk is unknown until the journal is opened anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple

from buffer.counter_log import Record
from buffer.counters import MeterDefinition, Tallies
from buffer.disk import Background, Disk
from buffer.journal_codec import FRAME_BYTES, encode_record
from buffer.journal_records import Flushed, JournalRecord, Meters
from buffer.journal_segments import (
    JournalBusy,
    JournalDamaged,
    JournalError,
    JournalTooNew,
    KeptClaims,
    OpenedJournal,
    Queued,
    SegmentFacts,
    disposable,
    open_segments,
    read_claims,
    read_flushed,
    read_journal,
    remove_segments,
)
from buffer.journal_state import OutstandingFlush, Replayed

__all__ = [
    "Journal",
    "JournalBusy",
    "JournalDamaged",
    "JournalError",
    "JournalLimits",
    "JournalStopped",
    "JournalTooNew",
    "OutstandingFlush",
    "Replayed",
    "open_journal",
    "read_journal",
]

_RELIEF_S = 1.0  # how often a journal without room looks whether there is room again


class JournalLimits(NamedTuple):
    """All in bytes."""

    segment_bytes: int = 64 * 1024 * 1024  # a segment is followed by a new one once it holds so much
    max_bytes: int = 64 * 1024 * 1024 * 1024  # what `has_room` lets the journal grow to
    min_free_bytes: int = 512 * 1024 * 1024  # what `has_room` leaves free on the disk: flushes, and the copy at opening, need it
    free_check_bytes: int = 8 * 1024 * 1024  # free space is asked for once so much was written


class JournalStopped(Exception):
    """The journal has failed or is closed: nothing can be appended. The process must stop."""


async def open_journal(
    directory: str,
    *,
    disk: Disk,
    background: Background,
    entropy: Callable[[int], bytes],
    clock_us: Callable[[], int],
    limits: JournalLimits,
) -> Journal:
    """Raises JournalBusy (another process has it), JournalDamaged, JournalTooNew, or OSError; can always be called again."""
    opened = await background.run(open_segments, directory, disk, entropy, clock_us)
    free_bytes = await background.run(disk.free_bytes, directory)
    return Journal(directory, opened, disk, background, limits, free_bytes)


class Journal:
    """All methods belong to the event loop. Only `claims` and `records` read files, from wherever they are iterated."""

    def __init__(
        self, directory: str, opened: OpenedJournal, disk: Disk, background: Background, limits: JournalLimits, free_bytes: int
    ) -> None:
        self.state: Replayed = opened.replayed
        self.writer: bytes = opened.standing.writer
        self.synced: int = opened.next_sequence - 1
        self.on_synced: Callable[[int], None] = _nobody
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._directory = directory
        self._disk = disk
        self._background = background
        self._limits = limits
        self._lock = opened.lock
        self._tail = opened.tail
        self._standing = opened.standing
        self._segments = opened.segments
        self._meter_numbers = {definition: number for number, definition in opened.standing.meters.items()}
        self._last = self.synced  # highest sequence given out
        self._queue: list[Queued] = []
        self._queued_bytes = 0  # before compression, those being written included
        self._segment_queued_bytes = 0  # the part of them that goes into the last segment
        self._on_disk = {segment.first: segment for segment in opened.segments}  # all that are not removed yet
        self._kept_bytes = sum(segment.size for segment in opened.segments)
        self._leaving: list[SegmentFacts] = []  # given up in a snapshot that is not synced yet
        self._free_bytes = free_bytes
        self._unchecked_bytes = 0  # written since the free space was asked for
        self._check_free = False
        self._relief_due_s = 0.0
        self._writing: asyncio.Task[None] | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._closed = False

    # ---- appending

    def append(self, record: JournalRecord) -> int:
        """The record's sequence number. Encodes and enqueues; never waits. Raises JournalStopped."""
        if self._closed or self.failed.done():
            raise JournalStopped("The journal is closed." if self._closed else self._why_failed())
        if self._segments[-1].size + self._segment_queued_bytes >= self._limits.segment_bytes:
            self._roll()
        if type(record) is Flushed and self._standing.progress is not None:
            record = Flushed(record.flush, self._standing.progress.accepted)
        return self._enqueue(record, starts_segment=False)

    def meter_number(self, definition: MeterDefinition) -> int:
        """The number that keys use for this meter; appends a Meters record when it has none yet."""
        number = self._meter_numbers.get(definition)
        if number is None:
            number = max(self._standing.meters, default=0) + 1
            self.append(Meters({number: definition}))
            self._meter_numbers[definition] = number
        return number

    def branch(self, shard: int) -> bytes:
        """Of the shard's claim store, the one entered last; nothing before the first."""
        branches = self._standing.branches
        return branches[shard] if shard < len(branches) else b""

    def _enqueue(self, record: JournalRecord, *, starts_segment: bool) -> int:
        encoded = encode_record(record)
        self._standing.apply(record)
        segment = self._segments[-1]
        segment.note(record, self._standing.last_call)
        self._last = sequence = self._last + 1
        self._queue.append(Queued(sequence, encoded, starts_segment))
        size = FRAME_BYTES + len(encoded.head) + len(encoded.body)
        self._queued_bytes += size
        self._segment_queued_bytes += size
        self._wake()
        return sequence

    def _roll(self) -> None:
        """The next record starts a new segment, with a snapshot that lets old ones go."""
        first = self._last + 1
        self._segments.append(SegmentFacts(first))
        self._on_disk[first] = self._segments[-1]
        self._segment_queued_bytes = 0
        gone = disposable(self._segments, self._standing)
        self._segments = self._segments[len(gone) :]
        self._leaving += gone
        self._enqueue(self._standing.snapshot(kept_from=self._segments[0].first), starts_segment=True)

    # ---- writing

    def _wake(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="journal")

    async def _write(self) -> None:
        """Until nothing is queued: take all of it, write it, tell."""
        try:
            while self._queue or self._check_free:
                batch, self._queue = self._queue, []
                if batch:
                    await self._write_group(batch)
                if self._check_free or self._unchecked_bytes >= self._limits.free_check_bytes:
                    self._check_free = False
                    self._free_bytes = await self._background.run(self._disk.free_bytes, self._directory)
                    self._unchecked_bytes = 0
            self._writing = None
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    async def _write_group(self, batch: list[Queued]) -> None:
        in_group, in_segment, leaving = self._queued_bytes, self._segment_queued_bytes, self._leaving
        segment, self._leaving = self._segments[-1], []
        grown = await self._background.run(self._tail.write, batch)
        self._queued_bytes -= in_group
        if segment is self._segments[-1]:
            self._segment_queued_bytes -= in_segment
        for first, size in grown.items():
            self._on_disk[first].size += size
            self._kept_bytes += size
            self._unchecked_bytes += size
        self.synced = batch[-1].sequence
        self.on_synced(self.synced)
        self._release_waiters()
        if leaving:
            await self._remove(leaving)

    async def _remove(self, leaving: list[SegmentFacts]) -> None:
        """The snapshot that gives them up is synced."""
        await self._background.run(remove_segments, self._disk, self._directory, [segment.first for segment in leaving])
        for segment in leaving:
            del self._on_disk[segment.first]
            self._kept_bytes -= segment.size

    def _release_waiters(self) -> None:
        waiting, self._waiters = self._waiters, []
        for sequence, waiter in waiting:
            if sequence > self.synced:
                self._waiters.append((sequence, waiter))
            elif not waiter.done():
                waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error if isinstance(error, Exception) else JournalStopped("The journal's task was cancelled."))
            self.failed.exception()  # whoever waits still gets it; nobody is told that it was never retrieved
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(JournalStopped(self._why_failed()))
        self._waiters = []

    def _why_failed(self) -> str:
        return f"The journal has failed: {self.failed.exception()}"

    # ---- room

    @property
    def kept_bytes(self) -> int:
        """On disk."""
        return self._kept_bytes

    @property
    def most_bytes(self) -> int:
        """What it may grow to."""
        return self._limits.max_bytes

    @property
    def free_bytes(self) -> int:
        """Of its disk, as it was seen last, without what was written since."""
        return max(0, self._free_bytes - self._unchecked_bytes)

    @property
    def least_free_bytes(self) -> int:
        """What it leaves free."""
        return self._limits.min_free_bytes

    @property
    def newest_us(self) -> int:
        """The newest event time among the claims that are kept; 0: none is."""
        return max(segment.newest_us for segment in self._segments)

    @property
    def totals(self) -> Tallies:
        """Of everything appended since the journal was made. To look at, not to change."""
        return self._standing.totals

    @property
    def flushed(self) -> dict[int, int]:
        """Accepted events by tenant that acknowledged flushes carried. To look at, not to change."""
        return self._standing.flushed

    def shortage(self, size: int) -> str | None:
        """Why `size` more bytes find no room below the journal's bound or on the free disk, as far as that is known; None: they do."""
        pending = self._queued_bytes + size
        if self._kept_bytes + pending > self._limits.max_bytes:
            return f"it holds {self._kept_bytes} of the {self._limits.max_bytes} bytes that it may (journal.max_bytes)"
        if self._free_bytes - self._unchecked_bytes - pending < self._limits.min_free_bytes:
            return f"its disk has {self.free_bytes} bytes free, and {self._limits.min_free_bytes} are kept free (journal.min_free_bytes)"
        return None

    def has_room(self, size: int) -> bool:
        """Whether there is no shortage; where there is one, it is looked for room. No system call."""
        if self.shortage(size) is None:
            return True
        self._relieve()
        return False

    def _relieve(self) -> None:
        """Nothing is appended while there is no room, so nothing would ever make room: look for it here, now and then."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._relief_due_s or self._closed or self.failed.done():
            return
        self._relief_due_s = now_s + _RELIEF_S
        if disposable(self._segments, self._standing):
            self._roll()
        self.look_at_disk()

    def look_at_disk(self) -> None:
        """Soon it is known how much is free: others may fill it."""
        if not self._closed and not self.failed.done():
            self._check_free = True
            self._wake()

    # ---- waiting and reading

    async def drain(self) -> None:
        """Everything appended so far is synced. Raises JournalStopped when it never will be."""
        if self.failed.done():
            raise JournalStopped(self._why_failed())
        if self.synced < self._last:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((self._last, waiter))
            await waiter

    def claims(self) -> Iterator[KeptClaims]:
        """Of all synced calls that are kept. `drain` first."""
        return read_claims(self._disk, self._directory, self._firsts(), self.synced)

    def records(self) -> Iterator[Record]:
        """Every record of an acknowledged flush that is kept, in order. For audit and resend."""
        progress = self._standing.progress
        last_flush = self._standing.next_flush - 1 if progress is None or not progress.committed else progress.flush - 1
        return read_flushed(self._disk, self._directory, self._firsts(), self.synced, last_flush)

    def _firsts(self) -> list[int]:
        """Segments whose start is on disk."""
        return [segment.first for segment in self._segments if segment.first <= self.synced]

    async def close(self) -> None:
        """Sync what was appended, then unlock. Leaves the thread to whoever made it. Raises JournalStopped if the journal has failed."""
        if self._closed:
            return
        try:
            await self.drain()
        finally:
            self._closed = True
            if self._writing is not None and not self.failed.done():
                await self._writing
            await self._background.run(self._tail.close)
            await self._background.run(self._lock.release)


def _nobody(_: int) -> None:
    """Nobody listens yet."""
