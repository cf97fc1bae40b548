"""The bytes of a local log's segment: frames of records, and the commit frames that say what is on disk (docs/FORMATS.md).

Pure. Belongs here: framing, checksums, telling a torn tail from damage. Must not know: files, who writes, who reads.

The law: a commit frame is written only after everything before it was synced. So what a commit frame follows is durable, and only that
may be handed to a reader; what follows the last commit frame is doubtful (perhaps on disk, perhaps not) or torn. Frames carry a checksum
seeded with their position, so no frame is taken for another one, and a bad frame with a commit frame anywhere behind it is damage.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import cramjam
import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

SEGMENT_HEADER = b"parshall.log" + (1).to_bytes(4, "little")  # the format's version is the last part
HEADER_BYTES = len(SEGMENT_HEADER)

RECORD, COMMIT = b"RC"
_FRAME = struct.Struct("<BI")  # kind, length of the body
_CHECKSUM = struct.Struct("<Q")  # of kind, length and body, seeded with the position
FRAME_BYTES = _FRAME.size + _CHECKSUM.size
COMMIT_BYTES = FRAME_BYTES
_COMMIT_FRAME = _FRAME.pack(COMMIT, 0)

_PLAIN, _ZSTD = 0, 1
_WORTH_COMPRESSING = 512

Headers = tuple[tuple[str, bytes], ...]


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    codec: int
    headers: Headers
    value: bytes


_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(_Body).decode


def record_body(headers: Headers, value: bytes) -> bytes:
    if len(value) < _WORTH_COMPRESSING:
        return _encode_body(_Body(_PLAIN, headers, value))
    return _encode_body(_Body(_ZSTD, headers, bytes(cramjam.zstd.compress(value, level=1))))


def read_body(body: bytes | memoryview) -> tuple[Headers, bytes]:
    decoded = _decode_body(body)
    if decoded.codec == _PLAIN:
        return decoded.headers, decoded.value
    assert decoded.codec == _ZSTD, f"no codec {decoded.codec} in format 1"
    return decoded.headers, bytes(cramjam.zstd.decompress(decoded.value))


def record_frame(body: bytes, position: int) -> bytes:
    start = _FRAME.pack(RECORD, len(body))
    checksum = xxh3_64(start, seed=position)
    checksum.update(body)
    return b"".join((start, _CHECKSUM.pack(checksum.intdigest()), body))


def commit_frame(position: int) -> bytes:
    return _COMMIT_FRAME + _CHECKSUM.pack(xxh3_64_intdigest(_COMMIT_FRAME, seed=position))


class Scan(NamedTuple):
    """What some bytes of a segment hold."""

    committed: Sequence[tuple[int, memoryview]]  # (position after the record, body); a commit frame belongs to the record before it
    committed_to: int  # position after the last commit frame
    doubtful: Sequence[tuple[int, memoryview]]  # records that are whole, but behind the last commit frame
    good_to: int  # position after the last good frame
    damaged: bool  # a commit frame follows a bad frame


def scan(data: bytes, position: int) -> Scan:
    """Read the frames of `data`, which begins at `position` of its stream and may end anywhere."""
    view = memoryview(data)
    committed: list[tuple[int, memoryview]] = []
    doubtful: list[tuple[int, memoryview]] = []
    start, offset, committed_to = position, 0, position
    while offset + FRAME_BYTES <= len(view):
        kind, length = _FRAME.unpack_from(view, offset)
        end = offset + FRAME_BYTES + length
        if end > len(view) or not _checks(view, offset, end, start + offset):
            break
        if kind == COMMIT:
            if doubtful:
                doubtful[-1] = (start + end, doubtful[-1][1])
            committed += doubtful
            doubtful = []
            committed_to = start + end
        else:
            assert kind == RECORD, f"no frame kind {kind} in format 1"
            doubtful.append((start + end, view[offset + FRAME_BYTES : end]))
        offset = end
    return Scan(committed, committed_to, doubtful, start + offset, _commit_follows(data, offset, start))


def _checks(view: memoryview, offset: int, end: int, position: int) -> bool:
    checksum = xxh3_64(view[offset : offset + _FRAME.size], seed=position)
    checksum.update(view[offset + FRAME_BYTES : end])
    return bool(_CHECKSUM.unpack_from(view, offset + _FRAME.size)[0] == checksum.intdigest())


def _commit_follows(data: bytes, offset: int, start: int) -> bool:
    found = data.find(_COMMIT_FRAME, offset)
    while found >= 0:
        if data[found : found + COMMIT_BYTES] == commit_frame(start + found):
            return True
        found = data.find(_COMMIT_FRAME, found + 1)
    return False
