"""The rater's source over a local log: reads the streams of all writers, of this machine's processes, by polling their files.

Belongs here: finding streams, reading what is committed, positions. Must not know: what a record's value means, rating, databases.

Structurally it is `Source` of the rater's port, which this package must not import. A position is the place in a stream where it goes on;
it is only ever a place behind a commit, or behind a record before one, so it stays right whatever a crash cuts off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from buffer.counter_log import LogUnavailable, UnfitLog
from buffer.disk import Background, Disk
from buffer.local_frames import COMMIT_BYTES, HEADER_BYTES, SEGMENT_HEADER, Scan, read_body, scan
from buffer.local_layout import Identity, Layout
from buffer.local_log import open_identity

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.05  # between two looks at the files while there is nothing new
_READ_BYTES = 8 * 1024 * 1024  # more when one batch is larger

Positions = Callable[[Iterable[str]], Awaitable[Mapping[str, int]]]


class Received(NamedTuple):
    stream: str  # WRITER/PARTITION
    next_position: int
    headers: Mapping[str, bytes]
    value: bytes


class LocalSource:
    def __init__(self, directory: str, *, disk: Disk, background: Background, entropy: Callable[[int], bytes], partitions: int = 4) -> None:
        """`partitions` as for LocalLog: whichever of the two comes first makes the log."""
        self._layout = Layout(directory, disk)
        self._disk = disk
        self._background = background
        self._entropy = entropy
        self._partitions_when_made = partitions
        self._identity: Identity | None = None
        self._positions: Positions | None = None
        self._streams: dict[str, _Stream] = {}
        self._ready: deque[Received] = deque()

    @property
    def identity(self) -> str:
        assert self._identity is not None, "open first"
        return self._identity.id

    async def open(self, positions: Positions) -> None:
        self._positions = positions
        self._identity = await open_identity(self._layout, self._background, self._partitions_when_made, self._entropy)

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        """Raises LogUnavailable (try again), UnfitLog (damage), and whatever `positions` raises; nothing is lost by that."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while not self._ready:
            await self._take_on(await self._in_background(self._layout.streams))
            self._ready.extend(await self._in_background(self._read, most))
            left_s = deadline - loop.time()
            if self._ready or left_s <= 0:
                break
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    async def _take_on(self, found: Iterable[str]) -> None:
        new = [stream for stream in found if stream not in self._streams]
        if new:
            assert self._positions is not None, "open first"
            stored = await self._positions(new)
            for name in new:
                self._streams[name] = _Stream(self._layout, self._disk, name, stored.get(name, 0))

    def _read(self, most: int) -> list[Received]:
        """From each stream in turn; whoever was read waits until all others were."""
        received: list[Received] = []
        for name in list(self._streams):
            stream = self._streams.pop(name)
            self._streams[name] = stream
            try:
                received += stream.read()
            except (OSError, UnfitLog):
                if not received:
                    raise
                break  # first what is at hand: it will fail again
            if len(received) >= most:
                break
        return received

    async def rewind(self) -> None:
        self._ready.clear()
        self._streams.clear()  # taken on again, at their stored positions, by the next poll

    async def ends(self) -> Mapping[str, int]:
        return await self._in_background(self._ends)

    async def starts(self) -> Mapping[str, int]:
        return {}  # nothing is deleted here

    def _ends(self) -> dict[str, int]:
        names = self._layout.streams()
        return {name: (self._streams.get(name) or _Stream(self._layout, self._disk, name, 0)).end() for name in names}

    async def _in_background(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._background.run(function, *arguments)
        except OSError as error:
            raise LogUnavailable(f"the local log in {self._layout.directory}: {error}") from error

    async def close(self) -> None:
        self._ready.clear()
        self._streams.clear()


class _Stream:
    """The reading end of one stream. Blocks: runs in the background."""

    def __init__(self, layout: Layout, disk: Disk, name: str, position: int) -> None:
        self._layout = layout
        self._disk = disk
        self._name = name
        self._position = position
        self._nothing_new_in: tuple[int, int] | None = None  # a segment and the size it had when nothing more in it was committed
        self._suspected: int | None = None  # where something looked damaged a moment ago

    def read(self) -> list[Received]:
        """Some records that are committed and were not read yet, as many as one read gives."""
        while True:
            base, following = self._segment()
            size = self._size(base)
            if (base, size) == self._nothing_new_in:
                return []
            end = base + size - HEADER_BYTES if following is None else following
            if self._position >= end:
                self._check_end(end)
                return []
            found, whole = self._scan(base, end)
            before = self._position
            records = list(found.committed)
            self._position = found.committed_to
            if following is not None and whole:  # a segment is followed only once all of it was committed
                records += found.doubtful
                if found.good_to in (following, following - COMMIT_BYTES):
                    self._position = following
                elif records:
                    self._position = found.good_to
                else:
                    raise self._damage(base, found.good_to)
            elif found.damaged:
                self._suspect(base, found.good_to)
            if records:
                return [self._received(position, body) for position, body in records]
            if self._position == before:
                self._nothing_new_in = None if found.damaged else (base, size)
                return []

    def end(self) -> int:
        """The position behind the last commit, as far as is known without reading what is ahead."""
        bases = self._layout.bases(self._name)
        if not bases:
            return 0
        size = self._size(bases[-1])
        return self._position if (bases[-1], size) == self._nothing_new_in else bases[-1] + size - HEADER_BYTES

    def _segment(self) -> tuple[int, int | None]:
        """The base of the segment that holds the position, and of the one that follows it."""
        bases = self._layout.bases(self._name)
        here = [base for base in bases if base <= self._position]
        return (here[-1] if here else 0), (bases[len(here)] if len(here) < len(bases) else None)

    def _size(self, base: int) -> int:
        try:
            return self._disk.size(self._layout.segment(self._name, base))
        except FileNotFoundError:  # the stream's folder is made before its first segment
            return HEADER_BYTES

    def _scan(self, base: int, end: int) -> tuple[Scan, bool]:
        """What lies between the position and `end`, a large enough part of it at least; and whether that is all."""
        path = self._layout.segment(self._name, base)
        if self._position == base and self._disk.read(path, 0, HEADER_BYTES) != SEGMENT_HEADER:
            raise UnfitLog(f"{path} is not a segment of format 1: restore it")
        size = _READ_BYTES
        while True:
            data = self._disk.read(path, HEADER_BYTES + self._position - base, min(size, end - self._position))
            found = scan(data, self._position)
            if size >= end - self._position or found.committed_to > self._position:
                return found, size >= end - self._position
            size *= 2

    def _check_end(self, end: int) -> None:
        if self._position > end + COMMIT_BYTES:  # a crash may cost the last commit frame, and no more
            raise UnfitLog(
                f"the stored position {self._position} of {self._name} lies behind its end {end}: "
                f"{self._layout.directory} is an older copy of the log, restore the newer one"
            )

    def _suspect(self, base: int, position: int) -> None:
        """Once can be a look at a file that its writer was just cutting; twice is damage."""
        if self._suspected == position:
            raise self._damage(base, position)
        self._suspected = position

    def _damage(self, base: int, position: int) -> UnfitLog:
        path = self._layout.segment(self._name, base)
        return UnfitLog(f"{path} is damaged behind byte {HEADER_BYTES + position - base}: restore it from a backup")

    def _received(self, position: int, body: memoryview) -> Received:
        headers, value = read_body(body)
        return Received(self._name, position, dict(headers), value)
