"""The bytes of a journal: segment header, frames, payloads; and what a bad stretch of bytes is, a torn tail or damage.

Pure. Belongs here: everything that docs/FORMATS.md says of the journal. Must not know: files, threads, what a record means on replay.

A frame proves itself: its checksum, seeded by the writer's id, covers all that follows it. It also names its place: its sequence number,
the checksum of the frame before it (the chain), and the first sequence of the group it was written with. What stood before that group
was on disk when the frame was written, and this is how damage is told from a torn tail (`damage_in_tail`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cramjam
import msgspec
from xxhash import xxh3_64_intdigest

from buffer.counter_log import Record, Rejected
from buffer.counters import PACKED_BYTES, CounterKey, Deltas, Tallies
from buffer.journal_records import (
    CallRecord,
    Closed,
    Entering,
    FlushBegin,
    FlushCommit,
    Flushed,
    FlushPart,
    JournalRecord,
    Meters,
    Opened,
    Snapshot,
)

VERSION = 1  # of the segment layout, and of each frame's payload
SHARDED = 2  # of the payload of a record that tells of several shards; without them every record is as in version 1
BRANCHED = 3  # of the payload of a record that tells which branch of a claim store was entered

SEGMENT_MAGIC = b"PARSHJNL"
_HEADER = struct.Struct("<8sB7x16sQQq")  # magic, version, writer, first sequence, chain, made at (us)
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size

# Neither UTF-8 nor base64 holds these bytes, so what tenants send does not look like a frame.
FRAME_MAGIC = b"\xf5\xc1\xfe\x9d"
_PREFIX = struct.Struct("<4sQ")  # magic, checksum of all that follows
# length of the payload as stored, sequence, sequence - first sequence of the group, previous checksum, version, kind,
# length of the head, length of the body before compression (0: stored as it is)
_FRAME = struct.Struct("<IQIQBBHII")
FRAME_BYTES = _PREFIX.size + _FRAME.size

SECTOR_BYTES = 512  # what a disk writes whole or not at all

_WORTH_COMPRESSING = 512


class UnknownVersion(Exception):
    """The bytes were written in a format that this version does not know. One sentence."""

    def __init__(self, what: str, version: int, newest: int = VERSION) -> None:
        super().__init__(
            f"{what} has format version {version}, and this Parshall reads only up to version {newest}: use the one that wrote it."
        )


class BadHeader(Exception):
    """These bytes are not the header of a whole segment."""


# ---- segment header


class SegmentHeader(NamedTuple):
    writer: bytes
    first: int  # sequence of the first frame
    chain: int  # checksum of the last frame before the segment
    made_at_us: int


def seed_of(writer: bytes) -> int:
    """Frames of one journal prove nothing in another."""
    return xxh3_64_intdigest(b"parshall journal\0" + writer)


def encode_header(header: SegmentHeader) -> bytes:
    fields = _HEADER.pack(SEGMENT_MAGIC, VERSION, header.writer, header.first, header.chain, header.made_at_us)
    return fields + _CHECKSUM.pack(xxh3_64_intdigest(fields))


def decode_header(data: memoryview) -> SegmentHeader:
    if len(data) < HEADER_BYTES:
        raise BadHeader("it ends within its header")
    magic, version, writer, first, chain, made_at_us = _HEADER.unpack_from(data)
    if magic != SEGMENT_MAGIC:
        raise BadHeader("it does not begin as a segment does")
    if version != VERSION:
        raise UnknownVersion("the segment", version)
    (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    if checksum != xxh3_64_intdigest(data[: _HEADER.size]):
        raise BadHeader("the checksum of its header is wrong")
    return SegmentHeader(writer, first, chain, made_at_us)


# ---- frames


class Encoded(NamedTuple):
    """A record as bytes, before it has a place. The head holds what a replay needs of every record; the body is compressed later."""

    kind: int
    head: bytes
    body: bytes
    version: int = VERSION


class Frame(NamedTuple):
    """A frame whose checksum is right; whether it stands in its place is for `Scan` to say."""

    kind: int
    sequence: int
    group: int  # first sequence of the group it was written with: all before that was on disk by then
    previous: int
    checksum: int
    end: int  # offset after it
    head: memoryview
    body: memoryview
    body_size: int  # before compression; 0: not compressed


def seal(encoded: Encoded, sequence: int, group: int, previous: int, seed: int) -> tuple[bytes, bytes, int]:
    """(prefix, rest, checksum) of the frame. Compresses: meant for the journal's thread."""
    kind, head, body, version = encoded
    body_size = 0
    if len(body) >= _WORTH_COMPRESSING:
        packed = cramjam.lz4.compress_block(body, store_size=False)
        if len(packed) < len(body):
            body_size, body = len(body), bytes(packed)
    length = len(head) + len(body)
    rest = b"".join((_FRAME.pack(length, sequence, sequence - group, previous, version, kind, 0, len(head), body_size), head, body))
    checksum = xxh3_64_intdigest(rest, seed)
    return _PREFIX.pack(FRAME_MAGIC, checksum), rest, checksum


def frame_at(data: memoryview, offset: int, seed: int) -> Frame | None:
    """The frame that begins at `offset`, or None when no whole and sound frame does."""
    start = offset + _PREFIX.size
    payload = start + _FRAME.size
    if payload > len(data):
        return None
    magic, checksum = _PREFIX.unpack_from(data, offset)
    if magic != FRAME_MAGIC:
        return None
    length, sequence, back, previous, version, kind, _, head_length, body_size = _FRAME.unpack_from(data, start)
    end = payload + length
    if end > len(data) or head_length > length or xxh3_64_intdigest(data[start:end], seed) != checksum:
        return None
    if version not in (VERSION, SHARDED, BRANCHED) or kind not in _DECODERS:
        raise UnknownVersion(f"the journal frame {sequence} (kind {kind})", version, BRANCHED)
    body = payload + head_length
    return Frame(kind, sequence, sequence - back, previous, checksum, end, data[payload:body], data[body:end], body_size)


class Scan:
    """Walks the frames of a segment that stand in their place: next sequence, right chain. Afterwards says where and how it ended."""

    def __init__(self, data: memoryview, offset: int, seed: int, sequence: int, chain: int) -> None:
        self.data = data
        self.offset = offset  # after the last good frame
        self.sequence = sequence  # of the next frame
        self.chain = chain  # checksum of the last good frame
        self._seed = seed

    def __iter__(self) -> Scan:
        return self

    def __next__(self) -> Frame:
        frame = frame_at(self.data, self.offset, self._seed)
        if frame is None or frame.sequence != self.sequence or frame.previous != self.chain:
            raise StopIteration
        self.offset = frame.end
        self.sequence += 1
        self.chain = frame.checksum
        return frame

    @property
    def whole(self) -> bool:
        return self.offset == len(self.data)


def damage_in_tail(data: memoryview, offset: int, sequence: int, seed: int) -> str | None:
    """Why the bytes from `offset` on, where the frame `sequence` should begin, are damage; None when they are a torn tail.

    No sound frame follows: a torn tail, the end of a write that a crash cut short.
    A sound frame follows that was written when `sequence` was already on disk (a later group): damage.
    A sound frame of the same group follows: one write, never synced, of which a crash may have kept the end and lost a sector before
    it; a lost sector reads as zeros, for the file had never been longer. Without such a sector the bytes were changed: damage.
    """
    first_at = last = None
    for at, frame in _sound_frames(data, offset, seed):
        if frame.group > sequence:
            return f"frame {frame.sequence} follows, which was written when frame {sequence} was already on disk"
        if frame.sequence <= sequence:
            return f"frame {frame.sequence} stands there out of its place"
        first_at, last = first_at or at, frame.sequence
    if first_at is None or has_lost_sector(data, offset, first_at):
        return None
    return f"frame {last} follows, and no sector is missing before it"


def _sound_frames(data: memoryview, offset: int, seed: int) -> Iterator[tuple[int, Frame]]:
    """Every frame from `offset` on whose checksum is right, with its offset, wherever it begins."""
    haystack = bytes(data[offset:])  # once per opening, and only where a tail is bad
    at = haystack.find(FRAME_MAGIC)
    while at >= 0:
        frame = frame_at(data, offset + at, seed)
        if frame is not None:
            yield offset + at, frame
        at = haystack.find(FRAME_MAGIC, at + 1 if frame is None else frame.end - offset)


def has_lost_sector(data: memoryview, start: int, end: int) -> bool:
    """Whether a sector that ends before `end` is all zeros from `start` on."""
    boundary = (start // SECTOR_BYTES + 1) * SECTOR_BYTES
    while boundary <= end:
        if not any(data[start:boundary]):
            return True
        start, boundary = boundary, boundary + SECTOR_BYTES
    return False


# ---- payloads: the head is MessagePack of small values, the body MessagePack of what only some replays need

# The kind byte.
OPENED, METERS, CALL, FLUSH_BEGIN, FLUSH_PART, FLUSH_COMMIT, FLUSHED, CLOSED, SNAPSHOT, ENTERING = range(1, 11)


class _CallHead(NamedTuple):
    number: int
    generation: int
    execution: int
    horizon_us: int
    newest_us: int
    claims: list[tuple[int, bytes, bytes]]
    tallies: Tallies
    branch: bytes = b""
    shard: int = 0
    in_shard: int = 0


class _PartHead(NamedTuple):
    flush: int
    numbers: list[tuple[int, int]]  # (partition, n) of each record


class _CallBody(NamedTuple):
    deltas: list[dict[str, tuple[list[CounterKey], bytes]]]  # kind -> keys, packed values of PACKED_BYTES each
    rejected: list[Rejected]


_encode = msgspec.msgpack.Encoder().encode
_decode_call_body = msgspec.msgpack.Decoder(_CallBody).decode
_decode_part_body = msgspec.msgpack.Decoder(list[Record]).decode

_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(head)
    for kind, head in (
        (OPENED, Opened),
        (METERS, Meters),
        (CALL, _CallHead),
        (FLUSH_BEGIN, FlushBegin),
        (FLUSH_PART, _PartHead),
        (FLUSH_COMMIT, FlushCommit),
        (FLUSHED, Flushed),
        (CLOSED, Closed),
        (SNAPSHOT, Snapshot),
        (ENTERING, Entering),
    )
}


def encode_record(record: JournalRecord) -> Encoded:
    encode = _ENCODERS.get(type(record))
    if encode is not None:
        return encode(record)
    return Encoded(_PLAIN_KINDS[type(record)], _encode(record), b"")


def _encode_call(record: CallRecord) -> Encoded:
    number, generation, execution, horizon_us, newest_us, claims, deltas, tallies, rejected, branch, shard, in_shard = record
    head = (number, generation, execution, horizon_us, newest_us, claims, tallies, branch)
    body = _encode(([_columns(one) for one in deltas], rejected)) if deltas or rejected else b""
    if in_shard:
        return Encoded(CALL, _encode((*head, shard, in_shard)), body, SHARDED)
    return Encoded(CALL, _encode(head), body)


def _encode_opened(record: Opened) -> Encoded:
    return Encoded(OPENED, _encode(record), b"", SHARDED) if record.shards > 1 else Encoded(OPENED, _encode(record[:2]), b"")


def _encode_entering(record: Entering) -> Encoded:
    return Encoded(ENTERING, _encode(record), b"", BRANCHED)


def _encode_snapshot(record: Snapshot) -> Encoded:
    if record.branches:
        return Encoded(SNAPSHOT, _encode(record), b"", BRANCHED)
    if any(record.shard_calls) or record.shard_horizons_us:
        return Encoded(SNAPSHOT, _encode(record[:-1]), b"", SHARDED)
    return Encoded(SNAPSHOT, _encode(record[:-3]), b"")


def _columns(deltas: Deltas) -> dict[str, tuple[list[CounterKey], bytes]]:
    return {
        kind: (list(counters), b"".join([packed.to_bytes(PACKED_BYTES, "big", signed=True) for packed in counters.values()]))
        for kind, counters in deltas.items()
    }


def _encode_part(record: FlushPart) -> Encoded:
    numbers = [(one.partition, one.n) for one in record.records]
    return Encoded(FLUSH_PART, _encode((record.flush, numbers)), _encode(record.records))


_ENCODERS: dict[type, Callable[[Any], Encoded]] = {
    CallRecord: _encode_call,
    FlushPart: _encode_part,
    Opened: _encode_opened,
    Entering: _encode_entering,
    Snapshot: _encode_snapshot,
}
_PLAIN_KINDS: dict[type, int] = {
    Meters: METERS,
    FlushBegin: FLUSH_BEGIN,
    FlushCommit: FLUSH_COMMIT,
    Flushed: FLUSHED,
    Closed: CLOSED,
}


def decode_record(frame: Frame) -> JournalRecord:
    """The whole record."""
    head = _DECODERS[frame.kind].decode(frame.head)
    if frame.kind == CALL:
        deltas, rejected = _decode_call_body(_body(frame)) if frame.body else ([], [])
        return _call(head, [_from_columns(one) for one in deltas], rejected)
    if frame.kind == FLUSH_PART:
        return FlushPart(head.flush, _decode_part_body(_body(frame)))
    record: JournalRecord = head
    return record


def decode_outline(frame: Frame) -> JournalRecord:
    """The record without its body: a call without deltas and rejected events, a flush part whose records have only their numbers."""
    head = _DECODERS[frame.kind].decode(frame.head)
    if frame.kind == CALL:
        return _call(head, [], [])
    if frame.kind == FLUSH_PART:
        return FlushPart(head.flush, [Record(partition, n, (), b"") for partition, n in head.numbers])
    record: JournalRecord = head
    return record


def _call(head: _CallHead, deltas: list[Deltas], rejected: list[Rejected]) -> CallRecord:
    number, generation, execution, horizon_us, newest_us, claims, tallies, branch, shard, in_shard = head
    return CallRecord(number, generation, execution, horizon_us, newest_us, claims, deltas, tallies, rejected, branch, shard, in_shard)


def _body(frame: Frame) -> bytes | memoryview:
    if not frame.body_size:
        return frame.body
    return bytes(cramjam.lz4.decompress_block(frame.body, output_len=frame.body_size))


def _from_columns(columns: dict[str, tuple[list[CounterKey], bytes]]) -> Deltas:
    return {
        kind: {
            key: int.from_bytes(packed[at : at + PACKED_BYTES], "big", signed=True)
            for key, at in zip(keys, range(0, len(packed), PACKED_BYTES), strict=True)
        }
        for kind, (keys, packed) in columns.items()
    }
