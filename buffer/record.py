"""The counter record: how a flush becomes numbered records, and how a record is read back.

Pure. Belongs here: the bytes of schema version 1 (docs/FORMATS.md), chunking, the choice of partition. Must not know: files, Kafka,
the journal, when to flush, what rating does with a record.

The law: what a flush's records decode to adds up to exactly what was flushed. Each counter is in one record, each tenant's tally is in
one record, no record's value is above CHUNK_BYTES (but for a single counter that is larger by itself), and numbers have no gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from buffer.counter_log import Record
from buffer.counters import EVENTS_SHIFT, HALF_AN_EVENT, MERGE_OF, CounterKey, Deltas, MeterDefinition, Tallies, merge_max
from buffer.journal_records import Through

VERSION = 1
CHUNK_BYTES = 256 * 1024
PIECE_COUNTERS = 500  # one step of `pieces` handles about this many counters: about a millisecond

_VERSION_HEADER = b"%d" % VERSION
SHARDS = "shards"  # the header with the last call of each shard; only where there are several
_HEAD, _COUNTERS, _TALLIES, _TAIL = b'{"v":1,"meters":[', b'],"counters":[', b'],"tallies":{', b"}}"
_FRAME_BYTES = len(_HEAD) + len(_COUNTERS) + len(_TALLIES) + len(_TAIL)
_DIMENSIONS_AT = 4  # in a CounterKey

# index of the meter in the chunk, tenant, subject, window start, dimensions, value, events
_Row = tuple[int, str, str, int, tuple[str, ...], str, int]

_encode = msgspec.json.Encoder().encode


def partition_of(tenant: int, subject: str, partitions: int) -> int:
    return xxh3_64_intdigest(f"{tenant}\0{subject}".encode()) % partitions


class UnknownTenant(Exception):
    """A journal holds counters of a tenant that the configuration no longer has. The message is one sentence for the operator."""

    def __init__(self, tenant: int) -> None:
        super().__init__(f"tenant number {tenant} has unflushed usage but is not in the configuration: put it back until it is flushed")
        self.tenant = tenant


class _Chunk:
    """A record in the making: counters of one partition, kept as encoded JSON until they are enough."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.meters: dict[int, int] = {}  # meter number -> index in this chunk
        self.meter_rows: list[bytes] = []
        self.tallies: list[bytes] = []
        self.size = _FRAME_BYTES

    def holds(self, size: int) -> bool:
        return self.size + size <= CHUNK_BYTES or self.size == _FRAME_BYTES

    def value(self) -> bytes:
        join = b",".join
        return b"".join((_HEAD, join(self.meter_rows), _COUNTERS, join(self.rows), _TALLIES, join(self.tallies), _TAIL))


class RecordEncoder:
    """Encodes one flush. `next_n` is its own copy: when the pieces are exhausted it says how the numbers go on."""

    def __init__(
        self,
        meters: Mapping[int, MeterDefinition],
        tenants: Mapping[int, str],
        writer: bytes,
        partitions: int,
        through: Through,
        next_n: Mapping[int, int],
        shard_calls: Sequence[int] = (),
    ) -> None:
        """`shard_calls`: what `through` comes to in each shard, where there are several."""
        self.next_n = dict(next_n)
        self._meters = meters
        self._tenants = tenants
        self._partitions = partitions
        self._writer = writer.hex().encode()
        self._through = b"%s:%d" % (through.incarnation.hex().encode(), through.call)
        self._more_headers = ((SHARDS, b",".join([b"%d" % call for call in shard_calls])),) if shard_calls else ()
        self._chunks: dict[int, _Chunk] = {}
        self._meter_rows = {number: _meter_row(meter) for number, meter in meters.items()}
        self._counting = {number for number, meter in meters.items() if meter.aggregation == "count"}
        self._names: dict[int, str] = {}
        self._row_bytes = 0  # of a row, lately: decides speed, never a result

    def pieces(self, deltas: Deltas, tallies: Tallies) -> Iterator[list[Record]]:
        """Each step is bounded work and gives the records that it completed, perhaps none. The deltas must not change meanwhile."""
        yield from self._tally_pieces(self._first_partition(deltas), tallies)
        for kind, counters in deltas.items():
            yield from self._counter_pieces(kind, counters)
        for partition in list(self._chunks):
            yield [self._finish(partition)]

    def _first_partition(self, deltas: Deltas) -> int:
        """Where the tallies go: with the first counter, so that a flush of one counter is one record."""
        for counters in deltas.values():
            for key in counters:
                return partition_of(int(key[1]), str(key[2]), self._partitions)
        return 0

    def _tally_pieces(self, partition: int, tallies: Tallies) -> Iterator[list[Record]]:
        done: list[Record] = []
        for position, (tenant, counts) in enumerate(tallies.items(), 1):
            item = b"%s:%s" % (_encode(self._tenant(tenant)), _encode(counts))
            chunk = self._chunk(partition)
            if not chunk.holds(len(item) + 1):
                done.append(self._finish(partition))
                chunk = self._chunk(partition)
            chunk.tallies.append(item)
            chunk.size += len(item) + 1
            if position % PIECE_COUNTERS == 0:
                yield done
                done = []
        yield done

    def _counter_pieces(self, kind: str, counters: Mapping[CounterKey, int]) -> Iterator[list[Record]]:
        numeric: dict[CounterKey, int] = {}  # counters with a dimension value like 1, under the key with "1"
        for step in _steps(counters):
            for key, packed in step:
                if _has_number(key):
                    _merge_one(kind, numeric, _as_text(key), packed)
            yield []
        for step in _steps(counters):
            if numeric:
                step = [(key, _with_twin(kind, numeric, key, packed)) for key, packed in step if not _has_number(key)]
            yield self._add(step)
        for step in _steps(numeric):
            yield self._add(step)

    def _add(self, counters: Sequence[tuple[CounterKey, int]]) -> list[Record]:
        done: list[Record] = []
        for partition, mine in self._by_partition(counters).items():
            taken = self._fill(self._chunk(partition), mine)
            while taken < len(mine):
                done.append(self._finish(partition))
                taken += self._fill(self._chunk(partition), mine[taken:])
        return done

    def _by_partition(self, counters: Sequence[tuple[CounterKey, int]]) -> dict[int, list[tuple[CounterKey, int]]]:
        parts: dict[int, list[tuple[CounterKey, int]]] = {}
        partitions = self._partitions
        last_tenant = last_subject = None
        for counter in counters:
            key = counter[0]
            tenant, subject = key[1], key[2]
            # The counters of one event stand beside each other and share the very object. Equal ones that are apart are hashed again.
            if subject is not last_subject or tenant != last_tenant:
                last_tenant, last_subject = tenant, subject
                partition = xxh3_64_intdigest(f"{tenant}\0{subject}".encode()) % partitions  # partition_of, without the call
                part = parts.get(partition)
                if part is None:
                    part = parts[partition] = []
                append = part.append
            append(counter)
        return parts

    def _fill(self, chunk: _Chunk, counters: Sequence[tuple[CounterKey, int]]) -> int:
        """As many of them as there is room for, in their order; at least one where the chunk is empty. Returns how many.

        One call for all rows is cheaper than one for each, so that comes first where they may fit, by the size of rows before.
        """
        indexes = dict(chunk.meters)
        rows = self._rows(counters, indexes)
        if chunk.size + len(rows) * self._row_bytes <= CHUNK_BYTES:
            encoded = _encode(rows)[1:-1]
            self._row_bytes = len(encoded) // len(rows)
            new = [self._meter_rows[number] for number in islice(indexes, len(chunk.meters), None)]
            size = chunk.size + len(encoded) + 1 + sum(map(len, new)) + len(new)
            if size <= CHUNK_BYTES:
                chunk.meters = indexes
                chunk.meter_rows += new
                chunk.rows.append(encoded)
                chunk.size = size
                return len(rows)
        return self._fill_one_by_one(chunk, counters, rows)

    def _fill_one_by_one(self, chunk: _Chunk, counters: Sequence[tuple[CounterKey, int]], rows: Sequence[_Row]) -> int:
        for taken, (row, (key, _)) in enumerate(zip(rows, counters, strict=True)):
            encoded = _encode(row)
            new = [self._meter_rows[int(key[0])]] if row[0] == len(chunk.meters) else []
            size = len(encoded) + 1 + sum(map(len, new)) + len(new)
            if not chunk.holds(size):
                return taken
            if new:
                chunk.meters[int(key[0])] = row[0]
                chunk.meter_rows += new
            chunk.rows.append(encoded)
            chunk.size += size
        return len(rows)

    def _rows(self, counters: Sequence[tuple[Any, int]], indexes: dict[int, int]) -> list[_Row]:
        """`indexes`: meter number to its place in the chunk; new ones are put into it."""
        rows = []
        counting, names = self._counting, self._names
        for key, packed in counters:
            number, tenant, subject, window_start_s = key[:_DIMENSIONS_AT]
            events = (packed + HALF_AN_EVENT) >> EVENTS_SHIFT  # `unpack`; calling it would be a tenth of what a counter costs here
            value = events if number in counting else packed - (events << EVENTS_SHIFT)
            index = indexes.setdefault(number, len(indexes))
            name = names.get(tenant) or self._tenant(tenant)
            rows.append((index, name, subject, window_start_s, key[_DIMENSIONS_AT:], str(value), events))
        return rows

    def _chunk(self, partition: int) -> _Chunk:
        return self._chunks.setdefault(partition, _Chunk())

    def _finish(self, partition: int) -> Record:
        value = self._chunks.pop(partition).value()
        n = self.next_n.get(partition, 1)
        self.next_n[partition] = n + 1
        headers = (
            ("v", _VERSION_HEADER),
            ("writer", self._writer),
            ("partition", b"%d" % partition),
            ("n", b"%d" % n),
            ("hash", xxh3_128_hexdigest(value).encode()),
            ("through", self._through),
            *self._more_headers,
        )
        return Record(partition, n, headers, value)

    def _tenant(self, number: int) -> str:
        name = self._tenants.get(number)
        if name is None:
            raise UnknownTenant(number)
        self._names[number] = name
        return name


def _meter_row(meter: MeterDefinition) -> bytes:
    return _encode((meter.name, meter.hash, meter.aggregation, meter.scale, meter.window_s, meter.dimensions))


def _steps(counters: Mapping[CounterKey, int]) -> Iterator[list[tuple[CounterKey, int]]]:
    step: list[tuple[CounterKey, int]] = []
    for item in counters.items():
        step.append(item)
        if len(step) == PIECE_COUNTERS:
            yield step
            step = []
    if step:
        yield step


def _has_number(key: CounterKey) -> bool:
    for value in key[_DIMENSIONS_AT:]:  # noqa: SIM110 - any() over a generator takes three times as long
        if type(value) is not str:
            return True
    return False


def _as_text(key: CounterKey) -> CounterKey:
    return (*key[:_DIMENSIONS_AT], *(str(value) for value in key[_DIMENSIONS_AT:]))


def _with_twin(kind: str, numeric: dict[CounterKey, int], key: CounterKey, packed: int) -> int:
    """The counter merged with the one whose key differs only in that a dimension value is 1 and not "1"."""
    twin = numeric.pop(key, None)
    if twin is None:
        return packed
    return merge_max(packed, twin) if kind == "max" else packed + twin


def _merge_one(kind: str, into: dict[CounterKey, int], key: CounterKey, packed: int) -> None:
    known = into.get(key)
    if known is None:
        into[key] = packed
    else:
        into[key] = merge_max(known, packed) if kind == "max" else known + packed


# Reading.


class Place(NamedTuple):
    """Where a record belongs and what it covers, from its headers: known even when its value cannot be decoded."""

    writer: bytes  # 16 bytes
    partition: int
    n: int
    hash: str  # 32 hex digits
    through: Through
    shard_calls: tuple[int, ...] = ()  # the call of that incarnation in each shard, where it had several


class Counter(NamedTuple):
    meter: int  # index in CounterRecord.meters
    tenant: str
    subject: str
    window_start_s: int
    dimensions: tuple[str, ...]  # in the order of the meter's dimension names
    value: int  # scaled by the meter's scale
    events: int


class CounterRecord(NamedTuple):
    meters: tuple[MeterDefinition, ...]
    counters: list[Counter]
    tallies: dict[str, dict[str, int]]  # tenant name -> counts of events


class NoPlace(Exception):
    """The headers are not those of a counter record. The message names the header and what is wrong with it."""


class Undecodable(Exception):
    """The value is not what its headers promise. The message names the field and what is wrong with it."""


_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _MeterRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    hash: str
    aggregation: str
    scale: Annotated[int, msgspec.Meta(ge=0, le=18)]
    window_s: Annotated[int, msgspec.Meta(ge=1)]
    dimensions: tuple[str, ...]


class _CounterRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    meter: _Natural
    tenant: str
    subject: str
    window_start_s: int
    dimensions: tuple[str, ...]
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=48)]
    events: _Natural


class _Value(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    meters: list[_MeterRow]
    counters: list[_CounterRow]
    tallies: dict[str, dict[str, _Natural]]


class _Version(msgspec.Struct):
    v: int


_decode_value = msgspec.json.Decoder(_Value).decode
_decode_version = msgspec.json.Decoder(_Version).decode


def read_place(headers: Mapping[str, bytes]) -> Place:
    """Raises NoPlace."""
    writer = _hexadecimal(headers, "writer", _header(headers, "writer"), 16)
    hash_hex = _header(headers, "hash")
    _hexadecimal(headers, "hash", hash_hex, 16)
    incarnation, colon, call = _header(headers, "through").partition(b":")
    if not colon:
        raise NoPlace(f"header through is {headers['through']!r}, not <incarnation>:<call>")
    through = Through(_hexadecimal(headers, "through", incarnation, 16) if incarnation else b"", _decimal(headers, "through", call))
    n = _decimal(headers, "n", _header(headers, "n"))
    if n < 1:
        raise NoPlace("header n is 0: records are numbered from 1")
    calls = tuple(_decimal(headers, SHARDS, call) for call in headers[SHARDS].split(b",")) if SHARDS in headers else ()
    return Place(writer, _decimal(headers, "partition", _header(headers, "partition")), n, hash_hex.decode(), through, calls)


def decode(headers: Mapping[str, bytes], value: bytes) -> CounterRecord:
    """Strictly: nothing is guessed, nothing is ignored. Raises Undecodable; the headers must have passed `read_place`."""
    if headers.get("v") != _VERSION_HEADER:
        raise Undecodable(f"schema version {headers.get('v')!r} is not {VERSION}")
    digest = xxh3_128_hexdigest(value).encode()
    if digest != headers.get("hash"):
        raise Undecodable(f"the value hashes to {digest.decode()}, its header says {headers.get('hash')!r}")
    try:
        version = _decode_version(value).v
        if version != VERSION:
            raise Undecodable(f"schema version {version} in the value is not {VERSION}")
        raw = _decode_value(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(str(error)) from error
    meters = tuple(_meter(row) for row in raw.meters)
    return CounterRecord(meters, [_counter(position, row, meters) for position, row in enumerate(raw.counters)], raw.tallies)


def _meter(row: _MeterRow) -> MeterDefinition:
    if row.aggregation not in MERGE_OF:
        raise Undecodable(f"meter {row.name!r} has the unknown aggregation {row.aggregation!r}")
    return MeterDefinition(row.name, row.hash, row.aggregation, row.scale, row.window_s, row.dimensions)


def _counter(position: int, row: _CounterRow, meters: tuple[MeterDefinition, ...]) -> Counter:
    if row.meter >= len(meters):
        raise Undecodable(f"counters[{position}] names meter {row.meter}, of {len(meters)}")
    meter = meters[row.meter]
    if len(row.dimensions) != len(meter.dimensions):
        raise Undecodable(f"counters[{position}] has {len(row.dimensions)} dimension values, {meter.name!r} has {len(meter.dimensions)}")
    if row.window_start_s % meter.window_s:
        raise Undecodable(f"counters[{position}] starts at {row.window_start_s}, no multiple of {meter.window_s} s")
    digits = row.value[1:] if row.value[0] == "-" else row.value
    if not (digits.isascii() and digits.isdigit()):
        raise Undecodable(f"counters[{position}] has the value {row.value!r}, not an integer")
    value = int(row.value)
    if meter.aggregation == "count" and value != row.events:
        raise Undecodable(f"counters[{position}] counts {value} but has {row.events} events")
    return Counter(row.meter, row.tenant, row.subject, row.window_start_s, row.dimensions, value, row.events)


def _header(headers: Mapping[str, bytes], name: str) -> bytes:
    content = headers.get(name)
    if content is None:
        raise NoPlace(f"header {name} is missing")
    return content


def _decimal(headers: Mapping[str, bytes], name: str, digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise NoPlace(f"header {name} is {headers[name]!r}, not a decimal number")
    return int(digits)


def _hexadecimal(headers: Mapping[str, bytes], name: str, digits: bytes, size: int) -> bytes:
    try:
        content = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        content = b""
    if len(content) != size or content.hex().encode() != digits:
        raise NoPlace(f"header {name} is {headers[name]!r}: {2 * size} lower-case hexadecimal digits are needed")
    return content
