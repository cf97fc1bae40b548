"""The segments of a journal on a Disk: opening, the torn tail, writing, reading back, what may go.

Belongs here: everything blocking that a journal does with files, one function call at a time. Must not know: the event loop, the
pipeline, Redis. Which bytes are sound is in journal_codec.py, what they mean in journal_state.py.

A segment file appears whole: its header and its first record, a snapshot, are put in place atomically and durably, after the segment
before it was synced. So only the last segment can have a torn tail, and never in its first frame.

Opening takes the lock, walks every frame of every segment that is kept, cuts the torn tail, and puts a synced copy of what survives of
the last segment in its place: a page that failed write-back reads fine, but is not on the disk. The file in place is at every moment
either the old one or its copy, so opening can be cut short anywhere and begun again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from buffer.counter_log import Record
from buffer.disk import AppendFile, Disk, Lock
from buffer.journal_codec import (
    CALL,
    FLUSH_BEGIN,
    FLUSH_COMMIT,
    FLUSH_PART,
    HEADER_BYTES,
    OPENED,
    SNAPSHOT,
    BadHeader,
    Encoded,
    Frame,
    Scan,
    SegmentHeader,
    UnknownVersion,
    damage_in_tail,
    decode_header,
    decode_outline,
    decode_record,
    encode_header,
    encode_record,
    frame_at,
    seal,
    seed_of,
)
from buffer.journal_records import CallRecord, FlushBegin, FlushCommit, FlushPart, JournalRecord, Opened, Snapshot
from buffer.journal_state import BEFORE_ALL, Details, Position, Replayed, Standing

_SUFFIX = ".journal"
_DIGITS = 20  # of a sequence number: names sort as numbers do
_MOST_SNAPSHOTS_FIT = 64 * 1024


class JournalError(Exception):
    """The journal cannot be opened or read. One sentence for the operator."""

    retry = False


class JournalBusy(JournalError):
    """Another process has the journal open."""

    retry = True

    def __init__(self, directory: str) -> None:
        super().__init__(f"The journal in {directory} is open in another process: stop that one, or give this one a directory of its own.")


class JournalDamaged(JournalError):
    """Bytes that were on disk are missing or changed. Going on could lose counted usage."""

    def __init__(self, path: str, offset: int, why: str) -> None:
        super().__init__(
            f"The journal segment {path} is damaged at byte {offset}: {why}. Restore the file from its disk or a copy before you start."
        )
        self.path = path
        self.offset = offset


class JournalTooNew(JournalError):
    """Written in a format that this version does not know."""

    def __init__(self, path: str, error: UnknownVersion) -> None:
        super().__init__(f"The journal segment {path} cannot be read: {error}")


def segment_name(first: int) -> str:
    return f"{first:0{_DIGITS}d}{_SUFFIX}"


def segment_firsts(names: Sequence[str]) -> list[int]:
    """First sequences of the segments among the names in a directory, in order."""
    stems = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdecimal() and len(stem) == _DIGITS)


class SegmentFacts:
    """What retention needs to know of one segment; grows with each record."""

    def __init__(self, first: int, size: int = 0) -> None:
        self.first = first
        self.size = size  # bytes of whole frames on disk
        self.newest_us = 0  # newest event time claimed in it
        self.last_call: Position = BEFORE_ALL
        self.last_flush = 0

    def note(self, record: JournalRecord, last_call: Position) -> None:
        """Once for each record in it; `last_call` is the standing's after the record."""
        if isinstance(record, CallRecord):
            self.last_call = last_call
            if record.newest_us > self.newest_us:
                self.newest_us = record.newest_us
        elif isinstance(record, FlushBegin | FlushPart):
            self.last_flush = record.flush


def disposable(segments: Sequence[SegmentFacts], standing: Standing) -> list[SegmentFacts]:
    """The oldest segments that nobody needs any more, never the last one; `standing` is about to be journalled in a newer one.

    A segment goes once the horizon of every shard has reached its newest event time (no event in it is ever claimed again), every call in
    it is covered by an acknowledged flush, and so is every flush that has bytes in it. Its digests and flush bytes go with it.
    """
    acknowledged = standing.acknowledged
    underway = standing.next_flush if standing.progress is None else standing.progress.flush
    gone: list[SegmentFacts] = []
    for segment in segments[:-1]:
        if segment.newest_us > standing.least_horizon_us or segment.last_call > acknowledged or segment.last_flush >= underway:
            break
        gone.append(segment)
    return gone


# ---- reading


class Walk:
    """Every frame of the given segments, in order, each proven to follow the one before. Iterate once; then read the attributes.

    Raises JournalDamaged, also where something is missing between two segments; stops at the torn tail of the last segment.
    """

    def __init__(self, disk: Disk, directory: str, firsts: Sequence[int], *, vanishing: bool = False) -> None:
        self.writer = b""
        self.first = 0  # segment of the frame at hand
        self.sequence = 0  # of the next frame
        self.chain = 0
        self.data = memoryview(b"")  # of the segment at hand
        self.offset = 0  # after its last good frame
        self._disk = disk
        self._directory = directory
        self._firsts = firsts
        self._vanishing = vanishing  # the oldest segments may go while we read
        self._begun = False

    def path(self, first: int) -> str:
        return f"{self._directory}/{segment_name(first)}"

    def __iter__(self) -> Iterator[Frame]:
        for first in self._firsts:
            try:
                data = self._disk.read(self.path(first))
            except FileNotFoundError:
                if not self._vanishing:
                    raise
                self._begun = False
                continue
            yield from self._segment(first, memoryview(data), is_last=first == self._firsts[-1])

    def _segment(self, first: int, data: memoryview, *, is_last: bool) -> Iterator[Frame]:
        self.first, self.data, self.offset = first, data, 0
        try:
            self._enter(decode_header(data))
            scan = Scan(data, HEADER_BYTES, seed_of(self.writer), self.sequence, self.chain)
            for frame in scan:
                self.offset, self.sequence, self.chain = scan.offset, scan.sequence, scan.chain
                yield frame
            self._check_end(scan, is_last=is_last)
        except BadHeader as error:
            raise JournalDamaged(self.path(first), 0, str(error)) from None
        except UnknownVersion as error:
            raise JournalTooNew(self.path(first), error) from None

    def _enter(self, header: SegmentHeader) -> None:
        if header.first != self.first:
            raise BadHeader(f"it was named for frame {self.first} but begins with frame {header.first}")
        if self._begun:
            if header.writer != self.writer:
                raise BadHeader("it belongs to another writer")
            if (header.first, header.chain) != (self.sequence, self.chain):
                raise BadHeader(f"it does not go on where the segment before it ends, before frame {self.sequence}")
        self._begun = True
        self.writer, self.sequence, self.chain = header.writer, header.first, header.chain

    def _check_end(self, scan: Scan, *, is_last: bool) -> None:
        if scan.offset == HEADER_BYTES:
            raise JournalDamaged(self.path(self.first), scan.offset, "its first record is not sound")
        if scan.whole:
            return
        if not is_last:
            raise JournalDamaged(self.path(self.first), scan.offset, "a later segment exists, so these bytes were already on disk")
        why = damage_in_tail(self.data, scan.offset, scan.sequence, seed_of(self.writer))
        if why is not None:
            raise JournalDamaged(self.path(self.first), scan.offset, why)


def read_journal(directory: str, disk: Disk) -> Iterator[JournalRecord]:
    """Every record that is kept, without the lock, also while a writer appends; stops at a torn tail. For audit."""
    for frame in Walk(disk, directory, kept_segments(directory, disk), vanishing=True):
        yield decode_record(frame)


def read_outlines(directory: str, disk: Disk) -> Iterator[JournalRecord]:
    """As `read_journal`, but without the bodies of records: calls have their claims and no deltas."""
    for frame in Walk(disk, directory, kept_segments(directory, disk), vanishing=True):
        yield decode_outline(frame)


def kept_segments(directory: str, disk: Disk) -> list[int]:
    """Without the leftovers: segments that were given up, but whose removal was cut short or lost."""
    firsts = segment_firsts(disk.names(directory))
    if not firsts:
        return []
    kept_from = _first_snapshot(disk, directory, firsts[-1]).kept_from
    kept = [first for first in firsts if first >= kept_from]
    if kept[0] != kept_from:
        raise JournalDamaged(f"{directory}/{segment_name(kept_from)}", 0, "the segment is missing")
    return kept


def _first_snapshot(disk: Disk, directory: str, first: int) -> Snapshot:
    path = f"{directory}/{segment_name(first)}"
    data = memoryview(disk.read(path, 0, _MOST_SNAPSHOTS_FIT))
    try:
        header = decode_header(data)
        frame = frame_at(data, HEADER_BYTES, seed_of(header.writer))
        if frame is None:
            data = memoryview(disk.read(path))
            frame = frame_at(data, HEADER_BYTES, seed_of(header.writer))
    except BadHeader as error:
        raise JournalDamaged(path, 0, str(error)) from None
    except UnknownVersion as error:
        raise JournalTooNew(path, error) from None
    if frame is None or frame.kind != SNAPSHOT:
        raise JournalDamaged(path, HEADER_BYTES, "its first record is not sound")
    snapshot = decode_record(frame)
    assert isinstance(snapshot, Snapshot)
    return snapshot


# ---- writing


class Queued(NamedTuple):
    """A record with its place, for the thread that writes."""

    sequence: int
    encoded: Encoded
    starts_segment: bool  # it is the snapshot of a new one


class Tail:
    """Writes groups of frames to the end of the journal."""

    def __init__(self, disk: Disk, directory: str, writer: bytes, chain: int, clock_us: Callable[[], int]) -> None:
        self._disk = disk
        self._directory = directory
        self._writer = writer
        self._seed = seed_of(writer)
        self._chain = chain
        self._clock_us = clock_us
        self._file: AppendFile | None = None
        self._first = 0

    def extend(self, first: int) -> None:
        self._first = first
        self._file = self._disk.extend(f"{self._directory}/{segment_name(first)}")

    def write(self, batch: Sequence[Queued]) -> dict[int, int]:
        """All of it is on disk when this returns: first sequence of a segment -> bytes it grew by. After an OSError write no more."""
        sizes: dict[int, int] = {}
        parts: list[bytes] = []
        group = batch[0].sequence
        for sequence, encoded, starts_segment in batch:
            if starts_segment:
                self._put(parts, sizes)
                parts = []
                self._start_segment(sequence, encoded, sizes)
                group = sequence + 1
                continue
            prefix, rest, self._chain = seal(encoded, sequence, group, self._chain, self._seed)
            parts += (prefix, rest)
        self._put(parts, sizes)
        return sizes

    def _put(self, parts: list[bytes], sizes: dict[int, int]) -> None:
        if not parts:
            return
        assert self._file is not None
        self._file.write(parts)
        self._file.sync()
        sizes[self._first] = sizes.get(self._first, 0) + sum(map(len, parts))

    def _start_segment(self, first: int, snapshot: Encoded, sizes: dict[int, int]) -> None:
        """What is in the segment before is synced by now, so whoever sees this one knows that."""
        content = self.start_of_segment(first, snapshot)
        self.close()
        self._disk.replace(f"{self._directory}/{segment_name(first)}", content)
        self.extend(first)
        sizes[first] = len(content)

    def start_of_segment(self, first: int, snapshot: Encoded) -> bytes:
        header = encode_header(SegmentHeader(self._writer, first, self._chain, self._clock_us()))
        prefix, rest, self._chain = seal(snapshot, first, first, self._chain, self._seed)
        return header + prefix + rest

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def remove_segments(disk: Disk, directory: str, firsts: Sequence[int]) -> None:
    """Oldest first. A segment newer than these says already that they are not kept, so a removal that gets lost is made again."""
    for first in firsts:
        with contextlib.suppress(FileNotFoundError):
            disk.remove(f"{directory}/{segment_name(first)}")


# ---- opening


class OpenedJournal(NamedTuple):
    lock: Lock
    standing: Standing
    segments: list[SegmentFacts]
    next_sequence: int
    tail: Tail
    replayed: Replayed


def open_segments(directory: str, disk: Disk, entropy: Callable[[int], bytes], clock_us: Callable[[], int]) -> OpenedJournal:
    disk.make_directory(directory)
    try:
        lock = disk.lock(f"{directory}/lock")
    except BlockingIOError:
        raise JournalBusy(directory) from None
    try:
        return _open_locked(directory, disk, lock, entropy, clock_us)
    except BaseException:
        lock.release()
        raise


def _open_locked(directory: str, disk: Disk, lock: Lock, entropy: Callable[[int], bytes], clock_us: Callable[[], int]) -> OpenedJournal:
    names = disk.names(directory)
    for name in names:
        if name.endswith(f"{_SUFFIX}.new"):
            disk.remove(f"{directory}/{name}")  # what `Disk.replace` leaves where it is cut short
    if not segment_firsts(names):
        _make_first_segment(directory, disk, entropy(16), clock_us)
    firsts = kept_segments(directory, disk)
    remove_segments(disk, directory, [first for first in segment_firsts(names) if first < firsts[0]])

    walk = Walk(disk, directory, firsts)
    standing, segments = _first_pass(walk)
    disk.replace(walk.path(walk.first), bytes(walk.data[: walk.offset]))
    standing.reopened()
    replayed = _second_pass(disk, directory, segments, standing)

    tail = Tail(disk, directory, walk.writer, walk.chain, clock_us)
    tail.extend(walk.first)
    return OpenedJournal(lock, standing, segments, walk.sequence, tail, replayed)


def _make_first_segment(directory: str, disk: Disk, writer: bytes, clock_us: Callable[[], int]) -> None:
    """Mints the writer: its id is in the journal or there is no journal."""
    snapshot = encode_record(Standing(writer).snapshot(kept_from=1))
    disk.replace(f"{directory}/{segment_name(1)}", Tail(disk, directory, writer, 0, clock_us).start_of_segment(1, snapshot))


def _first_pass(walk: Walk) -> tuple[Standing, list[SegmentFacts]]:
    standing: Standing | None = None
    segments: list[SegmentFacts] = []
    for frame in walk:
        if standing is None:
            standing = Standing(walk.writer)
        if not segments or segments[-1].first != walk.first:
            segments.append(SegmentFacts(walk.first))
        record = decode_outline(frame)
        standing.apply(record)
        segments[-1].note(record, standing.last_call)
        segments[-1].size = walk.offset
    assert standing is not None, "every segment begins with a snapshot"
    return standing, segments


def _second_pass(disk: Disk, directory: str, segments: Sequence[SegmentFacts], standing: Standing) -> Replayed:
    """Reads again only from the first segment on that holds something not acknowledged."""
    acknowledged = standing.acknowledged
    underway = standing.next_flush if standing.progress is None else standing.progress.flush
    needed = [one.first for one in segments if one.last_call > acknowledged or one.last_flush >= underway]
    firsts = [one.first for one in segments if needed and one.first >= needed[0]]
    details = Details(standing)
    for frame in Walk(disk, directory, firsts):
        outline = decode_outline(frame)
        details.apply(decode_record(frame) if details.wants(outline) else outline)
    return details.replayed()


# ---- what is kept, for others


# (tenant, generation, newest event time, digests, fingerprints, incarnation, call in its shard, execution, branch)
KeptClaims = tuple[int, int, int, bytes, bytes, bytes, int, int, bytes]


def read_claims(disk: Disk, directory: str, firsts: Sequence[int], last: int) -> Iterator[KeptClaims]:
    """Of each call up to the sequence `last`."""
    incarnation = b""
    for frame in Walk(disk, directory, firsts, vanishing=True):
        if frame.sequence > last:
            return
        if frame.kind not in (CALL, OPENED, SNAPSHOT):
            continue
        record = decode_outline(frame)
        if isinstance(record, Opened):
            incarnation = record.incarnation
        elif isinstance(record, Snapshot) and record.incarnations:
            incarnation = record.incarnations[-1][0]
        elif isinstance(record, CallRecord):
            of_call = (incarnation, record.in_shard or record.number, record.execution, record.branch)
            for tenant, digests, fingerprints in record.claims:
                yield tenant, record.generation, record.newest_us, digests, fingerprints, *of_call


def read_flushed(disk: Disk, directory: str, firsts: Sequence[int], last: int, last_flush: int) -> Iterator[Record]:
    """The records of every flush up to `last_flush`, whose commit stands at or before the sequence `last`."""
    parts: list[Frame] = []  # of the flush that is being read, still compressed
    for frame in Walk(disk, directory, firsts, vanishing=True):
        if frame.sequence > last:
            return
        if frame.kind == FLUSH_PART:
            parts.append(frame)
        elif frame.kind == FLUSH_BEGIN:
            parts = []  # an earlier begin without a commit never was
        elif frame.kind == FLUSH_COMMIT:
            commit = decode_outline(frame)
            assert isinstance(commit, FlushCommit)
            if commit.flush > last_flush:
                return
            for part in parts:
                record = decode_record(part)
                assert isinstance(record, FlushPart)
                yield from record.records
            parts = []
