"""The counter log in files: what stands in Kafka's place when Parshall runs on one machine.

Belongs here: appending to streams, the registry of writers, both durable. Must not know: what a record's value means, who reads it.

A stream is one writer's partition: a chain of segments, appended to by the one process that holds the writer's lock. Records are written,
synced, and only then followed by a commit frame (local_frames.py), which tells readers in other processes how far they may read. After a
failed write or sync the stream goes on in a fresh segment behind its last commit: a page that failed write-back reads fine, so nothing
behind that commit is trusted again. Nothing is ever removed: a stream is the audit trail of what was produced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from buffer.counter_log import Announced, LogUnavailable, Record, Registry, Rejected, Retired, UnfitLog
from buffer.counters import MeterDefinition
from buffer.disk import AppendFile, Background, Disk, Lock
from buffer.local_frames import COMMIT_BYTES, HEADER_BYTES, SEGMENT_HEADER, commit_frame, record_body, record_frame, scan
from buffer.local_layout import Identity, Layout
from buffer.local_rejected import RejectedRing
from buffer.registration import add_entry, branches_key, encode_branches, encode_member, encode_meter, member_key, meter_key

T = TypeVar("T")

SEGMENT_BYTES = 64 * 1024 * 1024
_COMMIT_EVERY_BYTES = 4 * 1024 * 1024  # a reader holds this much until it sees the commit
_ENTRY = ".json"  # of the registry
_TURNS, _TURN_S = 500, 0.01  # how often and how long to wait for another process that opens the log, or adds meters


class LocalLog:
    def __init__(
        self,
        directory: str,
        *,
        disk: Disk,
        background: Background,
        entropy: Callable[[int], bytes],
        partitions: int = 4,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """`partitions` counts only when the log is made; later the log itself knows."""
        self._layout = Layout(directory, disk)
        self._disk = disk
        self._background = background
        self._entropy = entropy
        self._partitions_when_made = partitions
        self._segment_bytes = segment_bytes
        self._identity: Identity | None = None
        self._streams: dict[str, _Stream] = {}
        self._locks: dict[str, Lock] = {}
        self._writer: str | None = None  # whose rejected events `produce_rejected` is given
        self._rings: dict[str, RejectedRing] = {}

    @property
    def identity(self) -> str:
        return self._opened.id

    @property
    def partitions(self) -> int:
        return self._opened.partitions

    @property
    def _opened(self) -> Identity:
        assert self._identity is not None, "open first"
        return self._identity

    async def open(self) -> None:
        self._identity = await open_identity(self._layout, self._background, self._partitions_when_made, self._entropy)

    async def produce(self, records: Sequence[Record]) -> None:
        streams: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            writer = dict(record.headers)["writer"].decode()
            streams.setdefault((writer, record.partition), []).append(record)
        await self._durably(self._append, streams)

    async def produce_rejected(self, rejected: Sequence[Rejected]) -> None:
        if rejected:
            await self._durably(self._append_rejected, rejected)

    async def register(self, writer: bytes) -> None:
        await self._durably(self._register, writer)

    async def retire(self, writer: bytes, retired: Retired) -> None:
        await self._durably(self._retire, writer, retired)

    async def announce(self, writer: bytes, announced: Announced) -> None:
        await self._durably(self._announce, writer, announced)

    async def define(self, meters: Sequence[MeterDefinition]) -> Mapping[str, MeterDefinition]:
        return await _in_turn(self._layout, self._background, self._define, meters)

    async def registry(self) -> Registry:
        return await self._durably(self._read_registry)

    async def has_data(self) -> bool:
        return await self._durably(self._has_data)

    async def close(self) -> None:
        await self._background.run(self._close)

    async def _durably(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._background.run(function, *arguments)
        except OSError as error:
            raise LogUnavailable(f"the local log in {self._layout.directory}: {error}") from error

    # In the background from here on.

    def _append(self, streams: dict[tuple[str, int], list[Record]]) -> None:
        for (writer, partition), records in streams.items():
            self._lock(writer)
            name = f"{writer}/{partition}"
            stream = self._streams.get(name)
            if stream is None:
                stream = self._streams[name] = _Stream(self._layout, self._disk, name, self._segment_bytes)
            stream.append(records)

    def _lock(self, writer: str) -> None:
        self._writer = writer
        if writer not in self._locks:
            folder = f"{self._layout.counters}/{writer}"
            self._layout.make_directory(folder)
            try:
                self._locks[writer] = self._disk.lock(f"{folder}/lock")
            except BlockingIOError as error:
                raise LogUnavailable(f"another process appends counter records of writer {writer}") from error

    def _append_rejected(self, rejected: Sequence[Rejected]) -> None:
        assert self._writer is not None, "rejected events come after records, or after register: who rejected them?"
        ring = self._rings.get(self._writer)
        if ring is None:
            directory = f"{self._layout.rejected}/{self._writer}"
            self._layout.make_directory(directory)
            ring = self._rings[self._writer] = RejectedRing(directory, self._disk)
        ring.append(rejected)

    def _register(self, writer: bytes) -> None:
        self._writer = writer.hex()
        if writer not in self._read_registry().writers:
            self._write_entry(member_key(writer), encode_member(None))

    def _retire(self, writer: bytes, retired: Retired) -> None:
        if self._read_registry().writers.get(writer) is None:
            self._write_entry(member_key(writer), encode_member(retired))

    def _announce(self, writer: bytes, announced: Announced) -> None:
        known = self._read_registry().announced.get(writer)
        if known is None or announced.at >= known.at:
            self._write_entry(branches_key(writer), encode_branches(announced))

    def _define(self, meters: Sequence[MeterDefinition]) -> Mapping[str, MeterDefinition]:
        """One process at a time, so the first one's entry is there for the next."""
        lock = self._layout.lock()
        try:
            self._layout.make_names_durable(self._layout.registry)
            known = self._read_registry().meters
            for meter in meters:
                if meter.name not in known:
                    self._write_entry(meter_key(meter.name), encode_meter(meter))
            return self._read_registry().meters
        finally:
            lock.release()

    def _write_entry(self, key: str, value: bytes) -> None:
        self._disk.replace(f"{self._layout.registry}/{key}{_ENTRY}", value)

    def _read_registry(self) -> Registry:
        registry = Registry({}, {}, {})
        for name in self._disk.names(self._layout.registry):
            if not name.endswith(_ENTRY):
                continue  # a file that was about to be put in place
            path = f"{self._layout.registry}/{name}"
            try:
                add_entry(registry, name.removesuffix(_ENTRY), self._disk.read(path))
            except ValueError as error:
                raise UnfitLog(f"{path} is no registration ({error}): restore it") from error
        return registry

    def _has_data(self) -> bool:
        layout = self._layout
        return any(
            self._disk.size(layout.segment(stream, base)) > HEADER_BYTES for stream in layout.streams() for base in layout.bases(stream)
        )

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        for ring in self._rings.values():
            ring.close()
        for lock in self._locks.values():
            lock.release()
        self._streams, self._rings, self._locks = {}, {}, {}


async def open_identity(layout: Layout, background: Background, partitions: int, entropy: Callable[[int], bytes]) -> Identity:
    """Open the log in a directory, or make one; whoever comes first. Raises LogUnavailable or UnfitLog."""
    return await _in_turn(layout, background, layout.open_or_make, partitions, entropy)


async def _in_turn(layout: Layout, background: Background, function: Callable[..., T], *arguments: object) -> T:
    """Run what takes the log's lock, once no other process has it."""
    for _ in range(_TURNS):
        try:
            return await background.run(function, *arguments)
        except BlockingIOError:
            await asyncio.sleep(_TURN_S)
        except OSError as error:
            raise LogUnavailable(f"the local log in {layout.directory}: {error}") from error
    raise LogUnavailable(f"another process does not let go of the lock of the local log in {layout.directory}")


class _Stream:
    """The appending end of one stream."""

    def __init__(self, layout: Layout, disk: Disk, name: str, segment_bytes: int) -> None:
        self._layout = layout
        self._disk = disk
        self._name = name
        self._segment_bytes = segment_bytes
        self._base = 0
        self._committed_to: int | None = None  # None: what the files hold has not been looked at
        self._file: AppendFile | None = None  # None: the next append begins a segment behind the last commit

    def append(self, records: Sequence[Record]) -> None:
        if self._committed_to is None:
            self._committed_to = self._recover()
        for bodies in _batches(records):
            if self._file is None or self._committed_to - self._base >= self._segment_bytes:
                self._begin_segment(self._committed_to, b"")
            self._committed_to = self._append_batch(self._committed_to, bodies)

    def _append_batch(self, position: int, bodies: Sequence[bytes]) -> int:
        """Returns the position after the commit."""
        file = self._file
        assert file is not None
        frames, end = _frames(position, bodies)
        self._file = None  # unless all goes well
        try:
            file.write(frames)
            file.sync()
            file.write([commit_frame(end)])  # tells readers; needs no sync of its own, for a lost one is found again by _recover
        except OSError:
            file.close()
            raise
        self._file = file
        return end + COMMIT_BYTES

    def _recover(self) -> int:
        """Cut what is torn, keep what may have been acknowledged. Returns the position after the last commit."""
        self._layout.make_directory(f"{self._layout.counters}/{self._name}")
        bases = self._layout.bases(self._name)
        if not bases:
            return 0
        self._layout.make_names_durable(f"{self._layout.counters}/{self._name}")
        self._base = bases[-1]
        path = self._layout.segment(self._name, self._base)
        content = self._disk.read(path)
        if content[:HEADER_BYTES] != SEGMENT_HEADER:
            raise UnfitLog(f"{path} is not a segment of format 1: restore it")
        found = scan(content[HEADER_BYTES:], self._base)
        if found.damaged:
            raise UnfitLog(f"{path} is damaged behind byte {HEADER_BYTES + found.good_to - self._base}: restore it from a backup")
        if found.doubtful:
            return self._keep(found.committed_to, [bytes(body) for _, body in found.doubtful])
        committed_bytes = HEADER_BYTES + found.committed_to - self._base
        if len(content) > committed_bytes:
            self._disk.truncate(path, committed_bytes)
        self._file = self._disk.extend(path)
        return found.committed_to

    def _keep(self, position: int, bodies: Sequence[bytes]) -> int:
        """Whole records without a commit: write them once more, in a segment that takes its place in one step."""
        frames, end = _frames(position, bodies)
        self._begin_segment(position, b"".join([*frames, commit_frame(end)]))
        return end + COMMIT_BYTES

    def _begin_segment(self, base: int, content: bytes) -> None:
        self.close()
        path = self._layout.segment(self._name, base)
        self._disk.replace(path, SEGMENT_HEADER + content)
        self._file = self._disk.extend(path)
        self._base = base

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _frames(position: int, bodies: Sequence[bytes]) -> tuple[list[bytes], int]:
    """The frames of some records from a position on, and the position after them."""
    frames = []
    for body in bodies:
        frame = record_frame(body, position)
        frames.append(frame)
        position += len(frame)
    return frames, position


def _batches(records: Sequence[Record]) -> Iterator[list[bytes]]:
    bodies: list[bytes] = []
    size = 0
    for record in records:
        body = record_body(record.headers, record.value)
        bodies.append(body)
        size += len(body)
        if size >= _COMMIT_EVERY_BYTES:
            yield bodies
            bodies, size = [], 0
    if bodies:
        yield bodies
