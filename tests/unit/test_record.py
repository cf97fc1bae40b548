"""The counter record: what a flush's records decode to is what was flushed; what is not a record is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

import buffer.record as subject
from buffer.counter_log import Record
from buffer.counters import CounterKey, Deltas, MeterDefinition, Tallies, merge, pack, unpack
from buffer.journal_records import Through
from buffer.record import CHUNK_BYTES, CounterRecord, NoPlace, RecordEncoder, Undecodable, UnknownTenant, decode, partition_of, read_place

WRITER = bytes(range(16))
THROUGH = Through(bytes(range(100, 116)), 77)
METERS = {
    1: MeterDefinition("requests", "a" * 16, "count", 0, 3600, ("region", "zone")),
    2: MeterDefinition("egress_bytes", "b" * 16, "sum", 6, 60, ("region",)),
    3: MeterDefinition("peak", "c" * 16, "max", 0, 86400, ()),
    4: MeterDefinition("peak_there", "d" * 16, "max", 0, 60, ("region", "zone")),
}
TENANTS = {1: "demo", 2: 'other "tenant"', 300: "ünïcode"}
KINDS = {1: "sum", 2: "sum", 3: "max", 4: "max"}
PARTITIONS = 3
LARGEST = 10**38 - 1

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
dimension_values = st.integers(-3, 3) | st.sampled_from(["1", "2", "-3", "eu", ""]) | texts


def _keys(number: int) -> st.SearchStrategy[CounterKey]:
    meter = METERS[number]
    return st.tuples(
        st.just(number),
        st.sampled_from(sorted(TENANTS)),
        st.sampled_from(["a", "b"]) | texts,
        st.integers(0, 3).map(lambda window: window * meter.window_s),
        *([dimension_values] * len(meter.dimensions)),
    )


def _counters(kind: str) -> st.SearchStrategy[dict[CounterKey, int]]:
    keys = st.one_of(*(_keys(number) for number in METERS if KINDS[number] == kind))
    packed = st.builds(pack, st.integers(-LARGEST, LARGEST), st.integers(1, 2**30))
    return st.dictionaries(keys, packed, max_size=8)


all_deltas: st.SearchStrategy[Deltas] = st.fixed_dictionaries({"sum": _counters("sum"), "max": _counters("max")})
all_tallies: st.SearchStrategy[Tallies] = st.dictionaries(
    st.sampled_from(sorted(TENANTS)),
    st.dictionaries(st.sampled_from(["received", "accepted", "duplicate", "too_late"]), st.integers(0, 2**40)),
)


def encoder(next_n: Mapping[int, int] | None = None, tenants: Mapping[int, str] = TENANTS) -> RecordEncoder:
    return RecordEncoder(METERS, tenants, WRITER, PARTITIONS, THROUGH, next_n or {})


def encoded(deltas: Deltas, tallies: Tallies, next_n: Mapping[int, int] | None = None) -> list[Record]:
    return [record for piece in encoder(next_n).pieces(deltas, tallies) for record in piece]


def decoded(records: list[Record]) -> list[CounterRecord]:
    return [decode(dict(record.headers), record.value) for record in records]


Identity = tuple[str, str, str, int, tuple[str, ...]]


def add(into: dict[Identity, tuple[int, int]], identity: Identity, aggregation: str, value: int, events: int) -> None:
    """The oracle: one counter added to another of the same identity."""
    if identity in into:
        before, before_events = into[identity]
        into[identity] = (max(before, value) if aggregation == "max" else before + value, before_events + events)
    else:
        into[identity] = (value, events)


def sum_of_deltas(*all_of_them: Deltas) -> dict[Identity, tuple[int, int]]:
    result: dict[Identity, tuple[int, int]] = {}
    for deltas in all_of_them:
        for counters in deltas.values():
            for (number, tenant, name, window, *dimensions), packed in counters.items():
                meter = METERS[int(number)]
                value, events = unpack(packed)
                value = events if meter.aggregation == "count" else value
                identity = (meter.name, TENANTS[int(tenant)], str(name), int(window), tuple(map(str, dimensions)))
                add(result, identity, meter.aggregation, value, events)
    return result


def sum_of_records(records: list[Record]) -> dict[Identity, tuple[int, int]]:
    result: dict[Identity, tuple[int, int]] = {}
    for content in decoded(records):
        for row in content.counters:
            meter = content.meters[row.meter]
            add(result, (meter.name, row.tenant, row.subject, row.window_start_s, row.dimensions), meter.aggregation, row.value, row.events)
    return result


@given(all_deltas, all_tallies)
def test_records_add_up_to_what_was_flushed(deltas: Deltas, tallies: Tallies) -> None:
    records = encoded(deltas, tallies)
    assert sum_of_records(records) == sum_of_deltas(deltas)
    told: dict[str, dict[str, int]] = {}
    for content in decoded(records):
        assert not told.keys() & content.tallies.keys(), "a tenant's tally is in one record"
        told |= content.tallies
    assert told == {TENANTS[tenant]: counts for tenant, counts in tallies.items()}
    assert sum(bool(content.tallies) for content in decoded(records)) == bool(tallies)


@given(st.lists(st.tuples(all_deltas, all_deltas), min_size=1, max_size=4))
def test_a_series_of_deltas_encodes_to_their_sum_however_it_is_cut(series: list[tuple[Deltas, Deltas]]) -> None:
    next_n: dict[int, int] = {}
    records: list[Record] = []
    everything: list[Deltas] = []
    for one, other in series:  # each a flush of two merged calls
        everything += [one, other]
        live: Deltas = {}
        merge(live, one)
        merge(live, other)
        flush = encoder(next_n)
        records += [record for piece in flush.pieces(live, {}) for record in piece]
        next_n = flush.next_n
    assert sum_of_records(records) == sum_of_deltas(*everything)
    for partition in range(PARTITIONS):
        numbers = [record.n for record in records if record.partition == partition]
        assert numbers == list(range(1, len(numbers) + 1))
        assert next_n.get(partition, 1) == len(numbers) + 1


@given(all_deltas)
def test_one_counter_is_one_row_and_in_the_partition_of_its_subject(deltas: Deltas) -> None:
    numbers = {name: number for number, name in TENANTS.items()}
    seen = []
    for record in encoded(deltas, {}):
        content = decode(dict(record.headers), record.value)
        for row in content.counters:
            assert record.partition == partition_of(numbers[row.tenant], row.subject, PARTITIONS)
            seen.append((content.meters[row.meter].name, *row[1:5]))
        assert {row.meter for row in content.counters} == set(range(len(content.meters))), "only definitions that are used"
    assert len(seen) == len(set(seen))


@given(all_deltas, all_tallies)
def test_headers_name_the_place(deltas: Deltas, tallies: Tallies) -> None:
    for record in encoded(deltas, tallies, {0: 10, 1: 20, 2: 30}):
        place = read_place(dict(record.headers))
        assert (place.writer, place.through) == (WRITER, THROUGH)
        assert (place.partition, place.n) == (record.partition, record.n)
        assert place.hash == xxh3_128_hexdigest(record.value)


def test_the_bytes_of_version_1() -> None:
    """Stored records must stay readable: if this fails, the schema version has to rise."""
    deltas: Deltas = {"sum": {(2, 1, "customer-7", 120, "eu"): pack(-5000001, 3)}}
    (record,) = encoded(deltas, {1: {"received": 3, "accepted": 3}}, {0: 9, 1: 9, 2: 9})
    assert record.value == (
        b'{"v":1,"meters":[["egress_bytes","bbbbbbbbbbbbbbbb","sum",6,60,["region"]]],'
        b'"counters":[[0,"demo","customer-7",120,["eu"],"-5000001",3]],"tallies":{"demo":{"received":3,"accepted":3}}}'
    )
    assert record.headers == (
        ("v", b"1"),
        ("writer", b"000102030405060708090a0b0c0d0e0f"),
        ("partition", b"%d" % record.partition),
        ("n", b"9"),
        ("hash", b"7872698a2dd6f7a676e50f964cdb0e13"),
        ("through", b"6465666768696a6b6c6d6e6f70717273:77"),
    )


def test_tallies_without_counters_make_one_record_in_partition_0() -> None:
    (record,) = encoded({}, {1: {"received": 2, "duplicate": 2}})
    assert record.partition == 0
    assert decoded([record])[0] == CounterRecord((), [], {"demo": {"received": 2, "duplicate": 2}})


def test_nothing_makes_no_record() -> None:
    assert encoded({"sum": {}}, {}) == []


def test_1_and_its_text_are_the_same_dimension_value() -> None:
    deltas: Deltas = {"sum": {(2, 1, "a", 0, "1"): pack(5, 1), (2, 1, "a", 0, 1): pack(7, 2)}}
    (content,) = decoded(encoded(deltas, {}))
    assert [(row.dimensions, row.value, row.events) for row in content.counters] == [(("1",), 12, 3)]


def test_a_maximum_over_1_and_its_text_is_one_maximum() -> None:
    keys: list[CounterKey] = [(4, 1, "a", 0, 1, "2"), (4, 1, "a", 0, "1", 2), (4, 1, "a", 0, "1", "2")]
    (content,) = decoded(encoded({"max": dict(zip(keys, (pack(5, 1), pack(7, 1), pack(6, 1)), strict=True))}, {}))
    assert [(row.dimensions, row.value, row.events) for row in content.counters] == [(("1", "2"), 7, 3)]


def many(counters: int) -> Deltas:
    return {
        "sum": {(1 + i % 2, 1, f"subject-{i}", 0, "eu", "a")[: 6 - i % 2]: pack(i, 1) for i in range(counters)},
        "max": {(3, 1, f"subject-{i}", 0): pack(-i, 1) for i in range(counters)},
    }


def test_chunks_are_bounded_full_and_complete() -> None:
    deltas, tallies = many(20_000), {1: {"received": 40_000, "accepted": 40_000}}
    records = encoded(deltas, tallies)
    assert max(len(record.value) for record in records) <= CHUNK_BYTES
    for partition in range(PARTITIONS):
        sizes = [len(record.value) for record in records if record.partition == partition]
        assert all(size > CHUNK_BYTES - 1000 for size in sizes[:-1])
    assert sum_of_records(records) == sum_of_deltas(deltas)
    assert sum(bool(content.tallies) for content in decoded(records)) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(300, 1500), st.lists(st.integers(0, 700), min_size=20, max_size=60))
def test_no_chunk_is_above_the_bound_whatever_the_sizes(bound: int, lengths: list[int]) -> None:
    deltas: Deltas = {"sum": {(2, 1, "é" * (length // 2) + str(i), 0, "x"): pack(i, 1) for i, length in enumerate(lengths)}}
    before, subject.CHUNK_BYTES = subject.CHUNK_BYTES, bound
    try:
        records = encoded(deltas, {1: {"accepted": 1}})
    finally:
        subject.CHUNK_BYTES = before
    for content, record in zip(decoded(records), records, strict=True):
        assert len(record.value) <= bound or len(content.counters) == 1
        assert content.counters or content.tallies
    assert sum_of_records(records) == sum_of_deltas(deltas)


def test_tallies_of_very_many_tenants_are_bounded_too() -> None:
    tenants = {number: f"tenant-{number:020d}" for number in range(1, 6001)}
    tallies = {number: {"received": 10**12, "accepted": 10**12} for number in tenants}
    pieces = list(encoder(tenants=tenants).pieces({}, tallies))
    records = [record for piece in pieces for record in piece]
    assert len(pieces) > 6000 // subject.PIECE_COUNTERS and len(records) > 1
    assert max(len(record.value) for record in records) <= CHUNK_BYTES
    told = [name for content in decoded(records) for name in content.tallies]
    assert sorted(told) == sorted(tenants.values())


def test_each_piece_is_bounded_work() -> None:
    pieces = list(encoder().pieces(many(20_000), {}))
    assert len(pieces) > 2 * 40_000 // subject.PIECE_COUNTERS  # each counter is looked at twice
    assert max(len(piece) for piece in pieces) <= 2  # 500 counters of some 60 bytes complete no more


def test_an_aborted_encoding_advances_nothing() -> None:
    next_n = {0: 5}
    pieces = encoder(next_n).pieces(many(20_000), {})
    assert any(pieces), "no record was completed: the test shows nothing"
    assert next_n == {0: 5}


def test_a_tenant_that_the_configuration_lost_is_named() -> None:
    with pytest.raises(UnknownTenant, match="tenant number 9"):
        encoded({"sum": {(2, 9, "a", 0, "eu"): pack(1, 1)}}, {})
    with pytest.raises(UnknownTenant, match="tenant number 9"):
        encoded({}, {9: {"received": 1}})


# Refusals.

GOOD = '{"v":1,"meters":[["m","h","sum",0,60,["d"]]],"counters":[[0,"t","s",120,["x"],"12",1]],"tallies":{}}'


def read(value: str | bytes, **changed: bytes) -> CounterRecord:
    content = value.encode() if isinstance(value, str) else value
    return decode({"v": b"1", "hash": xxh3_128_hexdigest(content).encode()} | changed, content)


def test_the_good_record_is_good() -> None:
    assert read(GOOD).counters[0].value == 12


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"v":1', '"v":2', "version 2"),
        ('"v":1', '"w":1', "`v`"),
        ('"12"', "12", "`str`"),
        ('"12"', "12.5", "`str`"),
        ('"12"', '""', "length"),
        ('"12"', '"1.5"', "not an integer"),
        ('"12"', '"1_2"', "not an integer"),
        ('"12"', '" 12"', "not an integer"),
        ('"12"', '"--12"', "not an integer"),
        ('"12"', '"-"', "not an integer"),
        ('"12"', '"\u0661"', "not an integer"),
        ('"12"', '"' + "1" * 60 + '"', "length"),
        ('"12",1', '"12",-1', ">= 0"),
        ('"12",1', '"12",1.0', "`int`"),
        ('"12",1', '"12"', "length"),
        ('"12",1', '"12",1,1', "length"),
        ('[0,"t"', '[1,"t"', "names meter 1"),
        ('[0,"t"', '[-1,"t"', ">= 0"),
        ('["x"]', "[]", "dimension values"),
        ('["x"]', '["x","y"]', "dimension values"),
        ('["x"]', "[1]", "`str`"),
        ("120", "121", "no multiple of 60"),
        ('"sum"', '"mean"', "unknown aggregation 'mean'"),
        ('"sum"', '"count"', "counts 12"),
        ('"sum",0', '"sum",19', "<= 18"),
        ('"sum",0,60', '"sum",0,0', ">= 1"),
        ('["d"]]', '["d"],1]', "length"),
        ('"tallies":{}', '"tallies":{"t":{"accepted":-1}}', ">= 0"),
        ('"tallies":{}', '"tallies":{},"extra":1', "extra"),
        (',"tallies":{}', "", "tallies"),
        ('"tallies":{}}', '"tallies":{', "truncated"),
    ],
)
def test_a_wrong_value_is_named(old: str, new: str, named: str) -> None:
    assert old in GOOD
    with pytest.raises(Undecodable) as refused:
        read(GOOD.replace(old, new))
    assert named in str(refused.value)


def test_changed_bytes_are_noticed() -> None:
    (record,) = encoded({"sum": {(2, 1, "a", 0, "eu"): pack(1, 1)}}, {})
    for position in range(len(record.value)):
        changed = bytearray(record.value)
        changed[position] ^= 1
        with pytest.raises(Undecodable, match="hashes to"):
            decode(dict(record.headers), bytes(changed))


def test_another_version_in_the_header_is_refused() -> None:
    with pytest.raises(Undecodable, match="version"):
        read(GOOD, v=b"2")


@pytest.mark.parametrize("value", [GOOD.encode().replace(b'"t"', b'"\xff"'), b'{"w":' + b"[" * 100_000])
def test_text_that_is_none_and_nesting_without_end_are_refused(value: bytes) -> None:
    with pytest.raises(Undecodable):
        read(value)


@given(st.binary(max_size=60))
def test_garbage_is_refused_and_nothing_else_happens(value: bytes) -> None:
    with pytest.raises(Undecodable):
        read(value)


@pytest.mark.parametrize(
    ("header", "content", "named"),
    [
        ("writer", None, "writer is missing"),
        ("writer", b"00", "writer"),
        ("writer", b"Z" * 32, "writer"),
        ("writer", b"AB" * 16, "lower-case"),
        ("partition", b"-1", "partition"),
        ("partition", b"", "partition"),
        ("n", b"0", "from 1"),
        ("n", b"1x", "n is"),
        ("n", b"9" * 30, "n is"),
        ("hash", b"123", "hash"),
        ("through", b"no colon", "through"),
        ("through", b"00" * 16 + b":", "through"),
        ("through", b"00" * 15 + b":1", "through"),
        ("shards", b"", "shards"),
        ("shards", b"1,-1", "shards"),
    ],
)
def test_a_wrong_header_is_named(header: str, content: bytes | None, named: str) -> None:
    (record,) = encoded({}, {1: {"received": 1}})
    headers = dict(record.headers)
    if content is None:
        del headers[header]
    else:
        headers[header] = content
    with pytest.raises(NoPlace) as refused:
        read_place(headers)
    assert named in str(refused.value)


def test_the_last_call_of_each_shard_has_a_place() -> None:
    flush = RecordEncoder(METERS, TENANTS, WRITER, 1, THROUGH, {}, shard_calls=(77, 0, 5))
    ((record,),) = [piece for piece in flush.pieces({}, {1: {"received": 1}}) if piece]
    assert read_place(dict(record.headers)).shard_calls == (77, 0, 5)


def test_a_flush_before_the_first_incarnation_has_a_place() -> None:
    flush = RecordEncoder(METERS, TENANTS, WRITER, 1, Through(b"", 0), {})
    ((record,),) = [piece for piece in flush.pieces({}, {1: {"received": 1}}) if piece]
    assert read_place(dict(record.headers)).through == Through(b"", 0)
    assert json.loads(record.value)["v"] == 1
