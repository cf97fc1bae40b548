"""Archived records: one line of JSON each, with all that the ledger had of them.

Pure. Belongs here: the line of format version 1 (docs/FORMATS.md), and what a line is read back as. Must not know: files, PostgreSQL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from xxhash import xxh3_128_hexdigest

from buffer.record import CounterRecord, NoPlace, Undecodable, decode, read_place

RecordRow = tuple[bytes, int, int]  # writer, partition, n


class LedgerRow(NamedTuple):
    """A row of the table `records` that has its bytes."""

    writer: bytes
    partition: int
    n: int
    hash: str  # 32 hexadecimal digits
    log: str
    stream: str
    next_position: int
    rated_at: str  # ISO 8601, UTC
    header_names: Sequence[str]
    header_values: Sequence[bytes]
    value: bytes

    @property
    def key(self) -> RecordRow:
        return self.writer, self.partition, self.n


class Archived(NamedTuple):
    """A record as its line has it."""

    key: RecordRow
    hash: str
    record: CounterRecord

    @property
    def tallies(self) -> str | None:
        """JSON; None: it has none."""
        return json.dumps(self.record.tallies) if self.record.tallies else None

    @property
    def last_window_s(self) -> int | None:
        return max((counter.window_start_s for counter in self.record.counters), default=None)


class BadLine(Exception):
    """It is no archived record, or not as it was. The message says why, in a clause."""


class ArchiveFailed(Exception):
    """A file of such lines cannot be written, or is not to be had as it was written. The message is a clause that names it."""


# Name and SHA-256 of a file -> its lines, of a file that has these bytes. Raises ArchiveFailed, perhaps after some lines.
ReadArchive = Callable[[str, str], Iterator[bytes]]


_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    v: Literal[1]
    writer: str
    partition: _Natural
    n: _Natural
    hash: str
    log: str
    stream: str
    next_position: _Natural
    rated_at: str
    headers: list[tuple[str, str]]
    value: msgspec.Raw  # as it is: its bytes are what the hash is of


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


def line_of(row: LedgerRow) -> tuple[bytes, Archived] | None:
    """The line with its end, and what it is read back as. None where that is not what the row has: damaged, or not text on one line."""
    try:
        headers = [(name, value.decode()) for name, value in zip(row.header_names, row.header_values, strict=True)]
    except ValueError:  # not text, or not as many names as values
        return None
    if b"\n" in row.value:
        return None
    writer, place = row.writer.hex(), (row.log, row.stream, row.next_position, row.rated_at)
    line = _encode(_Line(1, writer, row.partition, row.n, row.hash, *place, headers, msgspec.Raw(row.value)))
    try:
        archived = read_line(line)
    except BadLine:
        return None
    if archived.hash != xxh3_128_hexdigest(row.value):  # white space around it is no part of JSON, but of what is hashed
        return None
    return line + b"\n", archived


def read_line(line: bytes) -> Archived:
    """Raises BadLine."""
    try:
        read = _decode(line)
        headers: Mapping[str, bytes] = {name: value.encode() for name, value in read.headers}
        place = read_place(headers)
        record = decode(headers, bytes(read.value))
    except (msgspec.MsgspecError, UnicodeError, RecursionError, NoPlace, Undecodable) as error:
        raise BadLine(str(error)) from error
    said = (read.writer, read.partition, read.n, read.hash)
    if (place.writer.hex(), place.partition, place.n, place.hash) != said:
        raise BadLine(f"it says that it is record {read.n} of partition {read.partition} of writer {read.writer}, and its headers differ")
    return Archived((place.writer, place.partition, place.n), place.hash, record)
