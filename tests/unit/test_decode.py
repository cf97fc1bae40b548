"""Decoding and folding, held against an oracle of plain dicts and Decimals that is written here and shares no code with the project."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buffer.counters import Deltas, items, merge, unpack
from dedupe.digest import digest
from ingest.batch import Batch
from ingest.catalogue import read_catalogue
from ingest.checker import EPOCH
from ingest.decode import Decoder, Limits, Unusable, split, without_half_pairs
from tests.good_event import event

NOW = datetime(2026, 11, 24, 10, 0, 30, 500_000, UTC)
NOW_US = int((NOW - EPOCH) / timedelta(microseconds=1))
TENANT = 7
LIMITS = Limits(max_events=50, max_age_s=86_400, max_skew_s=300)

METERS: list[dict[str, Any]] = [
    {
        "name": "requests",
        "event_type": "http.request",
        "aggregation": "count",
        "dimensions": {"region": "data.region", "zone": {"path": "data.zone", "default": "none"}},
    },
    {"name": "egress", "event_type": "http.request", "aggregation": "sum", "value": "data.bytes", "dimensions": {"region": "data.region"}},
    {"name": "largest", "event_type": "http.request", "aggregation": "max", "value": "data.bytes", "window": "1m"},
    {
        "name": "storage",
        "event_type": "storage",
        "aggregation": "sum",
        "value": "data.disk.gb",
        "scale": 6,
        "signed": True,
        "window": "15m",
        "dimensions": {"tier": "data.disk.tier"},
    },
    {
        "name": "peak",
        "event_type": "storage",
        "aggregation": "max",
        "value": "data.disk.gb",
        "scale": 2,
        "signed": True,
        "window": "1d",
        "dimensions": {"pool": {"path": "data.pool.name", "default": "shared"}},
    },
    {"name": "pings", "event_type": "ping", "aggregation": "count", "time": "arrival", "window": "1m"},
    {"name": "beats", "event_type": "beat", "aggregation": "sum", "value": "data.n", "time": "arrival"},
]
NUMBERS = {meter["name"]: number for number, meter in enumerate(METERS, 1)}
WINDOWS = {"1m": 60, "15m": 900, "1h": 3600, "1d": 86_400}


def new_decoder() -> Decoder:
    return Decoder(read_catalogue(METERS), NUMBERS, LIMITS)


DECODER = new_decoder()


def decode(*events: object, decoder: Decoder = DECODER) -> Batch:
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return decoder.decode_batch(TENANT, f"[{','.join(texts)}]".encode("utf-8", "surrogatepass"), NOW_US)


def data(**changes: object) -> dict[str, object]:
    whole = {"bytes": 5, "region": "eu", "zone": "a"}
    return event(data={name: value for name, value in {**whole, **changes}.items() if value is not ...})


def unpacked(deltas: Deltas) -> dict[tuple[object, ...], tuple[int, int]]:
    return {key: unpack(packed) for key, packed in items(deltas)}


# ---- the oracle


class Counted(NamedTuple):
    code: str | None
    increments: list[tuple[tuple[object, ...], int]]  # (counter key, scaled value)
    time: datetime | None


def oracle(text: str) -> Counted:
    """One event by the rules of the documentation, in the order in which faults are named."""
    read = json.loads(text, parse_float=_exact)
    code, time = _oracle_fault(read)
    if code is not None:
        return Counted(code, [], None)
    increments = []
    for meter in METERS:
        if meter["event_type"] == read["type"]:
            window = WINDOWS[meter.get("window", "1h")]
            dimensions = [_dimension(read, path)[1] for path in meter.get("dimensions", {}).values()]
            seconds = int((time - EPOCH).total_seconds() // 1)
            value = 1 if "value" not in meter else _scaled(_at(read, meter["value"]), meter)
            assert isinstance(value, int)
            increments.append(((NUMBERS[meter["name"]], TENANT, read["subject"], seconds - seconds % window, *dimensions), value))
    return Counted(None, increments, time)


def _exact(number: str) -> Decimal:
    try:
        return Decimal(number)
    except InvalidOperation:  # an exponent beyond every bound: a very large number, at any rate
        return Decimal("1E+999999")


def _oracle_fault(read: Any) -> tuple[str | None, Any]:
    if not isinstance(read, dict):
        return "invalid_value", None
    for name in ("specversion", "id", "source", "type", "subject"):
        value = read.get(name)
        if value is None:
            return "missing_field", None
        if not isinstance(value, str) or not value or (name == "specversion" and value != "1.0"):
            if name == "type" and value == "":
                return "unknown_type", None
            return "invalid_value", None
        if name == "type":
            if value not in {meter["event_type"] for meter in METERS}:
                return "unknown_type", None
        elif len(value) > 256:
            return "too_long", None
        elif _unstorable(value):
            return "invalid_value", None
    if read.get("data_base64") is not None:
        return "invalid_value", None
    meters = [meter for meter in METERS if meter["event_type"] == read["type"]]
    code, time = _oracle_time(read, arrival=meters[0].get("time") == "arrival")
    return code or _oracle_data(read, meters), time


def _oracle_time(read: dict[str, Any], *, arrival: bool) -> tuple[str | None, Any]:
    text = read.get("time")
    if text is None:
        return (None, NOW) if arrival else ("missing_field", None)
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) and len(text) >= 20 else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        return "invalid_value", None
    if time < NOW - timedelta(days=1):
        return "too_late", None
    if time > NOW + timedelta(seconds=300):
        return "too_early", None
    return None, time


def _oracle_data(read: dict[str, Any], meters: Sequence[dict[str, Any]]) -> str | None:
    """Faults below data, found in the sorted order of the paths."""
    uses: dict[str, list[dict[str, Any]]] = {}
    for meter in meters:
        if "value" in meter:
            uses.setdefault(meter["value"], []).append(meter)
        for path in meter.get("dimensions", {}).values():
            uses.setdefault(path if isinstance(path, str) else path["path"], []).append({"dimension": path})
    ordered = sorted(uses, key=lambda path: path.split("."))
    for path in ordered:
        for depth in range(1, path.count(".") + 1):
            above = ".".join(path.split(".")[:depth])
            here = _at(read, above)
            below = [other for other in ordered if other.startswith(above + ".")]
            if here is _NOTHING:
                needed = [other for other in below if not _has_default(uses[other])]
                if needed:
                    return "missing_field"
                break
            if not isinstance(here, dict):
                return "invalid_value"
        for use in uses[path]:
            code = _dimension(read, use["dimension"])[0] if "dimension" in use else _value_fault(_at(read, path), use)
            if code is not None:
                return code
    return None


_NOTHING = object()


def _has_default(uses: Sequence[dict[str, Any]]) -> bool:
    return any(isinstance(use.get("dimension"), dict) for use in uses)


def _at(read: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(read, dict) or name not in read:
            return _NOTHING
        read = read[name]
    return read


def _dimension(read: Any, path: Any) -> tuple[str | None, Any]:
    value = _at(read, path if isinstance(path, str) else path["path"])
    if value is _NOTHING:
        return ("missing_field", None) if isinstance(path, str) else (None, path["default"])
    if type(value) is int:
        return (None, value) if -(2**63) <= value < 2**63 else ("invalid_value", None)
    if not isinstance(value, str):
        return "invalid_value", None
    return ("too_long" if len(value) > 256 else "invalid_value" if _unstorable(value) else None), value


def _unstorable(text: str) -> bool:
    return any(character == "\0" or 0xD800 <= ord(character) < 0xE000 for character in text)


def _value_fault(value: Any, meter: dict[str, Any]) -> str | None:
    if value is _NOTHING:
        return "missing_field"
    scaled = _scaled(value, meter)
    if isinstance(scaled, str):
        return scaled
    return "invalid_value" if scaled < 0 and not meter.get("signed") else None


def _scaled(value: Any, meter: dict[str, Any]) -> int | str:
    if isinstance(value, str):
        try:
            json_number = json.loads(value, parse_float=_exact)
        except ValueError:
            return "invalid_value"
        if value != value.strip() or value in ("NaN", "Infinity", "-Infinity"):
            return "invalid_value"
        value = json_number
    if type(value) not in (int, Decimal):
        return "invalid_value"
    sign, digits, exponent = Decimal(value).as_tuple()
    assert isinstance(exponent, int)
    number = int("".join(map(str, digits)))
    exponent += meter.get("scale", 0)
    while number and number % 10 == 0:
        number, exponent = number // 10, exponent + 1
    if number and (exponent < 0 or len(str(number)) + exponent > 38):
        return "too_many_digits"
    return (-1) ** sign * number * 10 ** max(exponent, 0) if number else 0


def expected(counted: Sequence[Counted]) -> dict[tuple[object, ...], tuple[int, int]]:
    largest = {number for name, number in NUMBERS.items() if METERS[number - 1]["aggregation"] == "max"}
    sums: dict[tuple[object, ...], tuple[int, int]] = {}
    for one in counted:
        for key, value in one.increments:
            known, events = sums.get(key, (value if key[0] in largest else 0, 0))
            sums[key] = (max(known, value) if key[0] in largest else known + value, events + 1)
    return sums


# ---- events of all kinds


def spelled(moment_us: int, offset_h: int, form: int) -> str:
    moment = (EPOCH + timedelta(microseconds=moment_us)).astimezone(timezone(timedelta(hours=offset_h)))
    text = moment.isoformat()
    return text.replace("+00:00", "Z") if form == 0 else text


def times() -> st.SearchStrategy[str]:
    inside = st.integers(NOW_US - 86_400_000_000, NOW_US + 300_000_000)
    edges = [edge + step for edge in (NOW_US, NOW_US - 86_400_000_000, NOW_US + 300_000_000, NOW_US - 30_500_000) for step in (-1, 0, 1)]
    return st.builds(spelled, st.one_of(inside, inside, st.sampled_from(edges)), st.integers(-12, 12), st.integers(0, 1))


GOOD_TEXT = st.sampled_from(["a", "b", "eu", "é", "\U0001f600", "x" * 256, '"', "\\", "\\u0000"])
ODD_VALUES = [
    "null",
    "true",
    "false",
    "[]",
    "{}",
    '""',
    '"NaN"',
    '" 1"',
    '"1 "',
    '"1_000"',
    '"+1"',
    '"01"',
    '".5"',
    '"1."',
    '"-"',
    '"1e3"',
    '"1E-2"',
    '"-7.25"',
    '"0.50"',
    "1.0",
    "1.50",
    "-0",
    "-0.0",
    "1e3",
    "1e-3",
    "1E400",
    "1e-400",
    "0e999",
    "1e99999999999999999999",
    "-5",
    "12345678901234567890123456789",
    "0.1234567",
    "9" * 38,
    "9" * 39,
    "-" + "9" * 38,
    "9" * 32 + "." + "9" * 6,
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    '"\\u0000"',
    '"\\ud800"',
    '"\\udc00x"',
    '"\\ud83d\\ude00"',
    '"' + "y" * 257 + '"',
    '{"a":1}',
    '[{"bytes":1}]',
    "3",
]
odd = st.sampled_from(ODD_VALUES)
numbers = st.one_of(st.integers(0, 10**6).map(str), st.sampled_from(["0", "7", "12", "3.5", "0.000001", '"2.25"', '"4"']))


def members(strategies: dict[str, st.SearchStrategy[str]], odds: int) -> st.SearchStrategy[str]:
    """An object as JSON text; one in `odds` members is odd, absent or there twice."""

    @st.composite
    def build(draw: st.DrawFn) -> str:
        parts: list[str] = []
        for name, strategy in strategies.items():
            luck = draw(st.integers(0, odds)) if odds else 1
            if luck == 0:
                luck = -draw(st.integers(1, 3))
            if luck != -1:
                parts.append(f"{json.dumps(name)}:{draw(strategy if luck > 0 else odd)}")
            if luck == -3:
                parts.append(f"{json.dumps(name)}:{draw(strategy)}")
        return "{" + ",".join(draw(st.permutations(parts)) if odds else parts) + "}"

    return build()


def text(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return strategy.map(json.dumps)


def events(odds: int) -> st.SearchStrategy[str]:
    """JSON texts of events; `odds` 0: all good."""
    dimension = st.one_of(text(GOOD_TEXT), st.integers(-9, 9).map(str))
    whole = st.integers(0, 10**6).map(str)
    bodies = {
        "http.request": {
            "bytes": whole if not odds else st.one_of(whole, numbers),
            "region": dimension,
            "zone": dimension,
            "more": odd if odds else whole,
        },
        "storage": {
            "disk": members({"gb": st.integers(-999, 999).map(lambda n: f"{n / 4 if n % 4 else n}"), "tier": dimension}, odds),
            "pool": members({"name": dimension}, odds),
        },
        "ping": {"anything": odd if odds else whole},
        "beat": {"n": whole},
    }
    kinds = []
    for kind, body in bodies.items():
        attributes = {
            "specversion": st.just('"1.0"'),
            "id": text(st.sampled_from(["1", "2", "3", "x" * 256])),
            "source": text(st.sampled_from(["/edge", "/other"])),
            "type": st.just(json.dumps(kind)),
            "subject": text(GOOD_TEXT),
            "time": times().map(json.dumps),
            "data": members(body, odds),
        }
        if odds:
            attributes["data_base64"] = st.sampled_from(["null", "null", "null", '"QQ=="'])
            attributes["extension"] = odd
        kinds.append(members(attributes, odds))
    return st.one_of(*kinds)


batches = st.lists(st.one_of(events(0), events(30), events(8), odd), max_size=8)


# ---- properties


def check_against_oracle(batch: Batch, texts: Sequence[str]) -> None:
    counted = [oracle(one) for one in texts]
    good = [index for index, one in enumerate(counted) if one.code is None]
    assert {rejection.index: rejection.code for rejection in batch.rejections} == {
        i: one.code for i, one in enumerate(counted) if one.code is not None
    }
    assert batch.received == len(texts)
    assert list(batch.indexes) == good
    assert unpacked(batch.deltas) == expected(counted)
    identities = [json.loads(texts[index]) for index in good]
    assert list(batch.digests) == [digest(one["source"], one["id"]) for one in identities]
    assert len(batch.fingerprints) == 4 * len(good)
    moments = [one.time for one in counted if one.time is not None]
    in_us = [(moment - EPOCH) // timedelta(microseconds=1) for moment in moments]
    assert list(batch.times_us()) == in_us
    assert (batch.oldest_us, batch.newest_us) == ((min(in_us), max(in_us)) if in_us else (0, 0))
    assert [rejection.raw.decode() for rejection in batch.rejections] == [
        one for one, c in zip(texts, counted, strict=True) if c.code is not None
    ]


@given(batches)
@example([json.dumps(event()), '{"id":"1","id":"2"}', "3"])
def test_every_batch_agrees_with_the_oracle(texts: list[str]) -> None:
    check_against_oracle(decode(*texts), texts)


@given(st.lists(events(0), min_size=1, max_size=12))
def test_good_batches_take_the_fast_path_and_agree_with_the_oracle(texts: list[str]) -> None:
    batch = decode(*texts)
    check_against_oracle(batch, texts)
    assert isinstance(batch.indexes, range) or batch.rejections or any("\\\\u0000" in one for one in texts)


def _refuse(_body: bytes) -> list[Any]:
    raise msgspec.ValidationError


@given(batches)
def test_all_at_once_and_one_by_one_agree(texts: list[str]) -> None:
    body = f"[{','.join(texts)}]".encode()
    usual = DECODER.decode_batch(TENANT, body, NOW_US)
    one_by_one = new_decoder()
    one_by_one._decode_all = _refuse
    slow = one_by_one.decode_batch(TENANT, body, NOW_US)
    for field in ("received", "digests", "fingerprints", "oldest_us", "newest_us", "deltas"):
        assert getattr(usual, field) == getattr(slow, field), field
    assert list(usual.indexes) == list(slow.indexes)
    assert list(usual.rejections) == list(slow.rejections)


@given(batches)
def test_a_batch_and_its_events_alone_agree(texts: list[str]) -> None:
    """A batch of one goes a way of its own."""
    whole = decode(*texts)
    alone = [decode(one) for one in texts]
    assert list(whole.digests) == [digest for batch in alone for digest in batch.digests]
    assert whole.fingerprints == b"".join([batch.fingerprints for batch in alone])
    assert list(whole.times_us()) == [time_us for batch in alone for time_us in batch.times_us()]
    assert [rejection.code for rejection in whole.rejections] == [rejection.code for batch in alone for rejection in batch.rejections]
    together: Deltas = {}
    for batch in alone:
        assert [batch.oldest_us, batch.newest_us] == [*batch.times_us(), *batch.times_us()] or not batch.digests
        merge(together, batch.deltas)
    assert unpacked(together) == unpacked(whole.deltas)


@given(batches, st.data())
def test_refolding(texts: list[str], choice: st.DataObject) -> None:
    batch = decode(*texts)
    positions = list(range(len(batch.digests)))
    assert batch.refold(positions) == batch.deltas
    chosen = sorted(choice.draw(st.sets(st.sampled_from(positions)))) if positions else []
    alone = decode(*[texts[batch.indexes[position]] for position in chosen])
    assert batch.refold(chosen) == alone.deltas
    rest = batch.refold([position for position in positions if position not in chosen])
    merge(rest, batch.refold(chosen))
    assert unpacked(rest) == unpacked(batch.deltas)
    for position in positions:
        id_, source, raw = batch.describe(position)
        sent = json.loads(texts[batch.indexes[position]])
        assert (id_, source, raw.decode()) == (sent["id"], sent["source"], texts[batch.indexes[position]])


_SIMPLE = st.builds(
    lambda kind, value, region: event(
        type=kind, data={"bytes": value, "region": region, "disk": {"gb": value, "tier": region}} if kind != "ping" else ...
    ),
    st.sampled_from(["http.request", "storage", "ping"]),
    st.integers(0, 3),
    st.sampled_from(["eu", "us"]),
)


_PING, _STORAGE = event(type="ping", data=...), event(type="storage", data={"disk": {"gb": 1, "tier": "eu"}})


@given(st.lists(st.tuples(_SIMPLE, st.booleans() | st.just(True)), max_size=40))
@example([(_PING, True), (_PING, True), (_STORAGE, False)])  # no maximum is left
def test_what_is_left_out_is_taken_away_exactly(sent: list[tuple[dict[str, object], bool]]) -> None:
    """Few counters and few values: the greatest is often left out, and often another one is as great."""
    batch = decode(*[one for one, _ in sent])
    kept = [position for position, (_, keep) in enumerate(sent) if keep]
    assert batch.refold(kept) == decode(*[one for one, keep in sent if keep]).deltas


def test_however_often_it_is_asked_about_a_request_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ten thousand conflicts in one request hold up everybody."""
    taken_apart = 0

    def counted(*given: Any) -> Any:
        nonlocal taken_apart
        taken_apart += 1
        return split(*given)

    batch = decode(*[event(id=str(number)) for number in range(50)])
    monkeypatch.setattr("ingest.decode.split", counted)
    assert [batch.describe(position)[0] for position in range(50)] == [str(number) for number in range(50)]
    assert [batch.refold([position]) for position in range(3)] == [decode(event()).deltas] * 3
    assert batch.times_us() is batch.times_us()
    assert taken_apart == 1


@given(st.lists(events(0), min_size=1, max_size=12))
def test_gathered_and_direct_folds_agree(texts: list[str]) -> None:
    decoder = new_decoder()
    direct = decode(*texts, decoder=decoder)
    for kind in decoder._kinds.values():
        kind.repeats = True
    assert decode(*texts, decoder=decoder).deltas == direct.deltas


@pytest.mark.parametrize("gather", [False, True])
def test_a_maximum_over_several_folds(gather: bool) -> None:
    """The type's finest window is 15 minutes, and `peak` has a day: its counter is met once a fold."""
    decoder = new_decoder()
    for kind in decoder._kinds.values():
        kind.repeats = gather
    sent = [("00:00", 7, "a"), ("00:20", 9, "a"), ("00:21", 3, "a"), ("00:40", 8, "b"), ("00:41", 6, "a")]
    batch = decode(
        *[
            event(id=time, type="storage", time=f"2026-11-24T{time}:00Z", data={"disk": {"gb": gb, "tier": tier}})
            for time, gb, tier in sent
        ],
        decoder=decoder,
    )
    assert unpacked({"max": batch.deltas["max"]}) == {(5, TENANT, "customer-1", 1_795_478_400, "shared"): (900, 5)}
    assert len(batch.deltas["sum"]) == 4


def test_events_of_one_hour_are_told_apart_by_the_minute_where_one_of_its_meters_does() -> None:
    """No other type has a window that is as short."""
    decoder = Decoder(read_catalogue(METERS[:3]), NUMBERS, LIMITS)
    batch = decode(event(time="2026-11-24T09:58:30Z"), event(id="2", time="2026-11-24T09:59:30Z"), decoder=decoder)
    assert {key[3]: unpack(packed) for key, packed in batch.deltas["max"].items()} == {1_795_514_280: (5, 1), 1_795_514_340: (5, 1)}
    assert len(batch.deltas["sum"]) == 2


@pytest.mark.parametrize(
    ("sent", "scaled"),
    [
        ("0", 0),
        ("0e999", 0),
        ("-0.0", 0),
        ("1e3", 1_000_000_000),
        ('"1e3"', 1_000_000_000),
        ("1e-6", 1),
        ("2.5000000000", 2_500_000),
        ('"-7.25"', -7_250_000),
        ("9" * 32 + ".999999", 10**38 - 1),
        ("-" + "9" * 32, -(10**38 - 10**6)),
        ("1." + "0" * 500, 1_000_000),
    ],
)
def test_values_are_scaled_exactly(sent: str, scaled: int) -> None:
    decoder = Decoder(read_catalogue([METERS[NUMBERS["storage"] - 1]]), NUMBERS, LIMITS)
    one = json.dumps(event(type="storage", data={"disk": {"gb": "?", "tier": "a"}})).replace('"?"', sent)
    batch = decode(one, decoder=decoder)
    assert not batch.rejections
    assert [value for value, _ in unpacked({"sum": batch.deltas["sum"]}).values()] == [scaled]


def test_a_batch_with_repeating_counters_is_gathered_next_time() -> None:
    decoder = new_decoder()
    many = [event(id=str(number)) for number in range(20)]
    first = decode(*many, decoder=decoder)
    assert next(iter(decoder._kinds.values())).repeats
    assert decode(*many, decoder=decoder).deltas == first.deltas


# ---- each code and its sentence


@pytest.mark.parametrize(
    ("bad", "code", "detail"),
    [
        (
            event(time="2026-11-23T10:00:30.499999Z"),
            "too_late",
            "time is 2026-11-23T10:00:30.499999+00:00, but events before 2026-11-23T10:00:30.500000+00:00 ",
        ),
        (
            event(time="2026-11-24T11:05:30.500001+01:00"),
            "too_early",
            "but events after 2026-11-24T10:05:30.500000+00:00 are ahead of us: check the sender's clock",
        ),
        (event(time="2026-11-23T10:00:30.500000Z", data=None), "invalid_value", "data is null"),  # both ends of the time are included
        (event(time="2026-11-24T10:05:30.500000Z", data=None), "invalid_value", "data is null"),
        (
            event(time="2026-11-24 10:00"),
            "invalid_value",
            'time is "2026-11-24 10:00"; send RFC 3339 with an offset, such as "2026-11-24T10:15:00Z".',
        ),
        (event(time="2026-11-24T10:00:00"), "invalid_value", "send RFC 3339 with an offset"),
        (event(time=1795514400), "invalid_value", "time is 1795514400; send RFC 3339"),
        (event(time=...), "missing_field", "time is missing; every event needs it."),
        (event(time=None), "missing_field", "time is missing"),
        (event(type="beat", time=..., data={"n": -1}), "invalid_value", "data.n is negative"),  # it may come without a time
        (event(type="beat", time=None, data={"n": -1}), "invalid_value", "data.n is negative"),
        (
            event(type="http.reqeust"),
            "unknown_type",
            'type is "http.reqeust", which no meter reads; the catalogue has: beat, http.request, ping, storage.',
        ),
        (event(type=...), "missing_field", "type is missing"),
        (event(type=5), "invalid_value", "type is 5; send a string."),
        (event(specversion=...), "missing_field", "specversion is missing"),
        (event(specversion="0.3"), "invalid_value", 'specversion is "0.3"; send "1.0", the only version of CloudEvents that is read.'),
        (event(specversion=1.0), "invalid_value", 'specversion is 1.0; send "1.0"'),
        (event(id=...), "missing_field", "id is missing"),
        (event(id=""), "invalid_value", "id is empty; send a string of 1 to 256 characters."),
        (event(id="", source=5), "invalid_value", "id is empty"),
        (event(type="nope", subject=""), "unknown_type", 'type is "nope"'),
        (event(id="a\0"), "invalid_value", "id holds NUL"),
        (event(source="a\0"), "invalid_value", "source holds NUL"),
        (event(id="x" * 257), "too_long", "id has 257 characters; send at most 256."),
        (event(source="x" * 257), "too_long", "source has 257 characters"),
        (event(subject="x" * 257), "too_long", "subject has 257 characters"),
        (event(subject=...), "missing_field", "subject is missing"),
        (event(subject="a\0"), "invalid_value", "subject holds NUL or half of a surrogate pair"),
        (event(subject="a\ud800"), "invalid_value", "subject holds NUL or half of a surrogate pair"),
        (event(data=..., data_base64="QQ=="), "invalid_value", "data_base64 is not read: send the data as a JSON object in `data`."),
        (event(type="ping", data_base64="QQ=="), "invalid_value", "data_base64 is not read"),
        (event(data=...), "missing_field", "data.bytes is missing; the meters egress, largest cannot count without it."),
        (event(data=None), "invalid_value", "data is null; send a JSON object."),
        (event(data="text"), "invalid_value", 'data is "text"; send a JSON object.'),
        (event(type="storage", data={"disk": 5}), "invalid_value", "data.disk is 5; send a JSON object."),
        (
            event(type="storage", data={"disk": {"gb": 1}}),
            "missing_field",
            "data.disk.tier is missing; the meter storage cannot count without it.",
        ),
        (data(region=...), "missing_field", "data.region is missing; the meters requests, egress cannot count without it."),
        (data(region=True), "invalid_value", "data.region is true; a dimension is a string or an integer."),
        (data(region=1.5), "invalid_value", "data.region is 1.5; a dimension is a string or an integer."),
        (data(zone=None), "invalid_value", "data.zone is null; a dimension is a string or an integer."),
        (data(zone=-(2**63) - 1), "invalid_value", "data.zone is an integer of more than 64 bits"),
        (data(zone=2**63), "invalid_value", "data.zone is an integer of more than 64 bits: send it as a string."),
        (data(region=-(2**63), zone=None), "invalid_value", "data.zone is null"),
        (data(region={"secret": 1}), "invalid_value", "data.region is an object; a dimension"),
        (data(region=["secret"]), "invalid_value", "data.region is an array; a dimension"),
        (data(zone="x" * 257), "too_long", "data.zone has 257 characters; send at most 256."),
        (data(zone="\0"), "invalid_value", "data.zone holds NUL"),
        (data(bytes=...), "missing_field", "data.bytes is missing"),
        (
            data(bytes=None),
            "invalid_value",
            'data.bytes is null; send a number such as 12 or 12.5, or the same in a string such as "12.5".',
        ),
        (data(bytes=True), "invalid_value", "data.bytes is true; send a number"),
        (data(bytes="NaN"), "invalid_value", 'data.bytes is "NaN"; send a number'),
        (data(bytes="Infinity"), "invalid_value", "send a number"),
        (data(bytes="1_000"), "invalid_value", 'data.bytes is "1_000"; send a number'),
        (data(bytes=" 1"), "invalid_value", 'data.bytes is " 1"; send a number'),
        (data(bytes="\u0661"), "invalid_value", "send a number"),  # a digit of another script
        (
            data(bytes=-1),
            "invalid_value",
            "data.bytes is negative; the meter egress takes no negative values (signed = true in the catalogue would).",
        ),
        (data(bytes=1.5), "too_many_digits", "data.bytes is 1.5, but the meter egress counts in whole numbers: round it before sending."),
        (data(bytes=10**38), "too_many_digits", "data.bytes is too large: a value has at most 38 digits."),
        (data(bytes=int("9" * 4000)), "too_many_digits", "data.bytes is too large"),
        (
            event(type="storage", data={"disk": {"gb": "0.1234567", "tier": 1}}),
            "too_many_digits",
            "counts in 6 decimal places: round it before sending.",
        ),
        (event(type="storage", data={"disk": {"gb": 0.125, "tier": 1}}), "too_many_digits", "the meter peak counts in 2 decimal places"),
        (
            event(type="storage", data={"disk": {"gb": 10**32, "tier": 1}}),
            "too_many_digits",
            "at most 38 digits, 6 of them decimal places.",
        ),
        (
            json.dumps(data(bytes="?")).replace('"?"', "9" * 5000),
            "too_many_digits",
            "data.bytes has more digits than any number that is counted.",
        ),
        (
            json.dumps(data(bytes="?")).replace('"?"', "1e99999999999999999999"),
            "too_many_digits",
            "data.bytes is 1e99999999999999999999, but the meter egress",
        ),
        ("3", "invalid_value", "The event is not a JSON object: send one object for each event."),
        ("[]", "invalid_value", "The event is not a JSON object"),
    ],
)
def test_each_fault_has_its_code_and_its_sentence(bad: dict[str, object] | str, code: str, detail: str) -> None:
    batch = decode(event(id="before"), bad, event(id="after"))
    (rejection,) = batch.rejections
    assert (rejection.index, rejection.code) == (1, code)
    assert detail in rejection.detail
    assert list(batch.indexes) == [0, 2]
    assert batch.deltas == decode(event(id="before"), event(id="after")).deltas


def test_an_integer_of_64_bits_is_a_dimension() -> None:
    for zone in (-(2**63), 2**63 - 1):
        assert (1, TENANT, "customer-1", 1_795_510_800, "eu", zone) in decode(data(zone=zone)).deltas["sum"]


@pytest.mark.parametrize(
    ("sent", "counted"),
    [
        (event(), '"bytes":true,"bytes": 5'),
        (event(type="storage", data={"disk": {"gb": 1, "tier": "a"}}), '"tier":true,"tier": "a"'),
        (event(type="storage", data={"disk": {"gb": 1, "tier": "a"}}), '"disk":{"gb":7},"disk": {'),
    ],
)
def test_of_a_member_below_data_that_occurs_twice_the_last_counts(sent: dict[str, object], counted: str) -> None:
    once = counted.rpartition(",")[2]
    text = json.dumps(sent)
    assert text.count(once) == 1
    batch = decode(text.replace(once, counted))
    assert not batch.rejections and batch.deltas == decode(sent).deltas
    again = decode(event(id="2", subject=""), text.replace(once, counted))
    assert [one.index for one in again.rejections] == [0] and again.deltas == batch.deltas


DEEP = {
    "name": "deep",
    "event_type": "deep",
    "aggregation": "sum",
    "value": "data.deep.er.n",
    "dimensions": {
        "at": {"path": "data.at.place", "default": "nowhere"},
        "by": {"path": "data.by", "default": "nobody"},
        "x": "data.deep.er.x",
        "y": "data.deep.y",
    },
}


def decode_deep(*sent: object) -> Batch:
    return decode(*sent, decoder=Decoder(read_catalogue([DEEP]), {"deep": 1}, LIMITS))


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (..., "data.deep.er.n is missing"),
        ({}, "data.deep.er.n is missing"),
        ({"deep": {"y": 1}}, "data.deep.er.n is missing"),
        ({"deep": {"er": {"n": 5}, "y": 1}}, "data.deep.er.x is missing"),
        ({"deep": {"er": {"n": 5, "x": 1}}}, "data.deep.y is missing"),
        ({"deep": {"er": 5, "y": 1}}, "data.deep.er is 5; send a JSON object."),
        ({"deep": {"er": {"n": 5, "x": True}, "y": 1}}, "data.deep.er.x is true"),
        ({"deep": {"er": {"n": -5, "x": 1}, "y": 1}}, "data.deep.er.n is negative"),
        ({"at": {"place": True}}, "data.at.place is true"),
        ({"at": []}, "data.at is an array; send a JSON object."),
    ],
)
def test_a_fault_is_found_however_deep_it_is_and_behind_what_may_be_absent(bad: object, detail: str) -> None:
    (rejection,) = decode_deep(event(type="deep", data=bad)).rejections
    assert rejection.detail.startswith(detail)


def test_of_members_that_occur_twice_the_last_counts_at_every_depth() -> None:
    sent = event(type="deep", data={"deep": {"er": {"n": 5, "x": "a"}, "y": "b"}, "by": "c"})
    once = json.dumps(sent)
    for member, first in (('"n": 5', '"n": true, '), ('"er": {', '"er": [], '), ('"by": "c"', '"by": [], '), ('"y": "b"', '"y": null, ')):
        batch = decode_deep(once.replace(member, first + member))
        assert unpacked(batch.deltas) == {(1, TENANT, "customer-1", 1_795_510_800, "nowhere", "c", "a", "b"): (5, 1)}


def test_a_number_beyond_every_bound_that_is_replaced_by_a_later_member_disturbs_nothing() -> None:
    batch = decode(json.dumps(event()).replace('"bytes": 5', '"bytes": 1e99999999999999999999, "bytes": 5'), event(id="2"))
    assert not batch.rejections and batch.deltas == decode(event(), event(id="2")).deltas
    assert len(batch.times_us()) == 2
    assert batch.refold([0, 1]) == batch.deltas


def test_of_a_member_that_occurs_twice_the_last_counts_beside_data_that_nobody_reads() -> None:
    batch = decode(json.dumps(event(type="ping", data="text")).replace('"id": "1"', '"id": 5, "id": "1"'))
    assert not batch.rejections and batch.deltas == decode(event(type="ping", data=...)).deltas


def test_of_an_id_or_a_source_that_is_too_long_the_beginning_is_told() -> None:
    (rejection,) = decode(event(id="i" * 300, source="s" * 300)).rejections
    assert (rejection.id, rejection.source) == ("i" * 256, "s" * 256)


@pytest.mark.parametrize("id_", [b"5", b"[]", b'"\xff"', b"9" * 5000])
def test_of_an_id_that_is_no_text_nothing_is_told(id_: bytes) -> None:
    (rejection,) = DECODER.decode_batch(TENANT, json.dumps(event(id="?")).encode().replace(b'"?"', id_), NOW_US).rejections
    assert (rejection.id, rejection.source) == ("", "/edge")
    assert rejection.detail.startswith("id ")


@pytest.mark.parametrize(("types", "end"), [(10, "t8, t9."), (11, "t8, ….")])
def test_so_many_types_are_named(types: int, end: str) -> None:
    meters = [{"name": f"m{n}", "event_type": f"t{n}", "aggregation": "count"} for n in range(types)]
    numbers = {f"m{n}": n for n in range(types)}
    (rejection,) = decode(event(), decoder=Decoder(read_catalogue(meters), numbers, LIMITS)).rejections
    assert rejection.detail.endswith(end)


def test_nul_is_found_beside_an_event_that_the_types_refuse() -> None:
    batch = decode(event(id=""), event(id="2", subject="a\0"), event(id="3"))
    assert [(one.index, one.code) for one in batch.rejections] == [(0, "invalid_value"), (1, "invalid_value")]
    assert list(batch.indexes) == [2]


def test_a_batch_in_which_no_value_counts_is_answered() -> None:
    batch = decode(data(bytes=1.5), event(id="2", data={"bytes": -1, "region": "eu"}))
    assert [one.code for one in batch.rejections] == ["too_many_digits", "invalid_value"]
    assert (list(batch.indexes), batch.deltas) == ([], {})


def test_both_ends_of_the_time_count_beside_events_outside_of_it() -> None:
    ends = [event(id="1", time="2026-11-23T10:00:30.500000Z"), event(id="2", time="2026-11-24T10:05:30.500000Z")]
    outside = [event(id="3", time="2026-11-23T10:00:30.499999Z"), event(id="4", time="2026-11-24T10:05:30.500001Z")]
    for one in outside:
        assert [rejection.id for rejection in decode(*ends, one).rejections] == [one["id"]]


def test_invalid_utf8_costs_only_its_event() -> None:
    bad = json.dumps(event()).encode().replace(b"customer-1", b"customer-\xff")
    batch = DECODER.decode_batch(TENANT, b"[" + bad + b"," + json.dumps(event(id="2")).encode() + b"]", NOW_US)
    assert [(one.index, one.code, one.detail) for one in batch.rejections] == [
        (0, "invalid_value", "subject is not valid UTF-8: encode it as UTF-8 before sending.")
    ]
    assert batch.rejections[0].raw == bad


def test_half_a_pair_in_what_nobody_reads_is_no_fault() -> None:
    batch = decode(json.dumps(event(extension="\ud800")), json.dumps(event(id="2", subject="\U0001f600")))
    assert not batch.rejections
    assert batch.describe(0)[2] == json.dumps(event(extension="\ud800")).encode()
    assert (2, TENANT, "\U0001f600", 1_795_510_800, "eu") in batch.deltas["sum"]


def test_an_event_alone_may_hold_half_a_pair_where_nobody_reads_it() -> None:
    sent = json.dumps(event(extension="\ud800")).encode()
    batch = DECODER.decode_batch(TENANT, sent, NOW_US)
    assert (list(batch.indexes), batch.describe(0)[2]) == ([0], sent)


def test_events_that_differ_in_half_a_pair_alone_are_each_kept_as_they_were_sent() -> None:
    sent = [json.dumps(event(subject=f"a{half}")) for half in ("\ud800", "\udfff", "\udbff")]
    assert [rejection.raw.decode() for rejection in decode(*sent).rejections] == sent


_PIECES = (
    *(rf"\u{half}" for half in ("d800", "D9AB", "dAff", "DBFF", "dc00", "DDcd", "deAD", "DFFF")),
    *(r"\\", r"\"", r"\u0041", r"\ue000", r"\ud7ff", "ud800", "d800", "é"),
)


@given(st.lists(st.sampled_from(_PIECES), max_size=8))
@example([r"\\", "ud800", r"\ud800"])  # a backslash that is one, and then no escape
@example([r"\ud83d", r"\\", "ude00"])
def test_nul_takes_the_place_of_each_half_of_a_pair_and_of_nothing_else(pieces: list[str]) -> None:
    text = f'"{"".join(pieces)}"'
    whole = without_half_pairs(text.encode())
    assert json.loads(whole) == re.sub("[\ud800-\udfff]", "\0", json.loads(text))
    assert len(whole) == len(text.encode())


def test_arrival_time() -> None:
    batch = decode(
        event(type="ping", time=..., data=...),
        event(type="ping", time=None, id="2"),
        event(type="ping", time="2026-11-24T09:00:00Z", id="3"),
    )
    assert list(batch.times_us()) == [NOW_US, NOW_US, NOW_US - 3_630_500_000]
    assert unpacked(batch.deltas) == {
        (6, TENANT, "customer-1", 1_795_514_400): (2, 2),
        (6, TENANT, "customer-1", 1_795_510_800): (1, 1),
    }
    later = DECODER.decode_batch(TENANT, json.dumps(event(type="ping", time=..., data=...)).encode(), NOW_US + 60_000_000)
    assert later.fingerprints == batch.fingerprints[:4]  # the arrival is not in it
    assert later.deltas != batch.deltas


# ---- fingerprints


def fingerprint(one: dict[str, object] | str, decoder: Decoder = DECODER) -> bytes:
    return bytes(decode(one, decoder=decoder).fingerprints)


def test_a_fingerprint_covers_time_subject_and_what_is_read_of_data() -> None:
    original = fingerprint(event())
    assert fingerprint(event(id="2", source="/other", extension=1)) == original
    assert fingerprint(data(unread=5)) == original
    assert fingerprint(event(time="2026-11-24T10:59:30.000+01:00")) == original  # the same moment
    others = [
        fingerprint(event(time="2026-11-24T09:59:30.000001Z")),
        fingerprint(event(subject="customer-2")),
        fingerprint(data(bytes=6)),
        fingerprint(data(zone=...)),
    ]
    assert len({original, *others}) == 5
    assert {other[:1] for other in others} == {original[:1]}  # one shape


def test_the_shape_follows_what_is_read() -> None:
    def first_byte(*meters: dict[str, Any]) -> bytes:
        decoder = Decoder(read_catalogue(meters), {meter["name"]: 1 for meter in meters}, LIMITS)
        return fingerprint(event(), decoder)[:1]

    requests, egress = METERS[0], METERS[1]
    assert first_byte(requests, egress) == first_byte(egress, requests)
    assert first_byte(requests, egress) != first_byte(requests)
    (region,) = egress["dimensions"]
    assert first_byte(egress) != first_byte({**egress, "dimensions": {region: {"path": "data.region", "default": "eu"}}})
    assert first_byte(egress) != first_byte({**egress, "time": "arrival"})
    sizes = {**requests, "dimensions": {"bytes": "data.bytes", "region": "data.region"}}
    assert first_byte(egress) != first_byte(sizes)  # the same paths, one of them read otherwise
    assert first_byte(egress) == first_byte({**egress, "name": "renamed", "scale": 3, "window": "1d"})  # the same fields are read


def test_integers_beyond_64_bits_have_fingerprints() -> None:
    one = fingerprint(data(bytes=2**70))
    changed = (data(bytes=2**70 + 1), {**data(bytes=2**70), "subject": "other"}, {**data(bytes=2**70), "time": "2026-11-24T09:59:31Z"})
    assert len({one, *map(fingerprint, changed)}) == 4
    batch = decode(data(bytes=2**70), event(id="2"))
    assert batch.fingerprints == one + fingerprint(event(id="2"))


# ---- the request as a whole


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "The body is empty: send a JSON array of events, or one event."),
        (b" \n", "The body is empty"),
        (b"5", "The body is neither a JSON array of events nor one event: it must start with [ or {."),
        (b"[", "The JSON ends too early, after 1 bytes"),
        (b'[{"id":1}', "The JSON ends too early, after 9 bytes"),
        (b'[{"v":NaN}]', "The JSON is broken at byte 6: invalid character, near '[{\"v\":NaN}]'."),
        (b'[{"v":01}]', "The JSON is broken at byte 7"),
        (b'{"a":1}x', "The JSON is broken at byte 7: trailing characters"),
        (b'{"a":1},{"a":2}', "The JSON is broken at byte 7: trailing characters"),
        (b'{"a":"\\ud800"', "The JSON ends too early"),
        (b"[" + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]", "The JSON is nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "The JSON is nested too deeply"),
    ],
)
def test_an_unusable_body_is_refused_with_the_place(body: bytes, detail: str) -> None:
    with pytest.raises(Unusable) as caught:
        DECODER.decode_batch(TENANT, body, NOW_US)
    assert caught.value.status == 400
    assert caught.value.detail.startswith(detail)


def nested(levels: int, opening: bytes, closing: bytes) -> bytes:
    return json.dumps([event(unread="?"), event(id="2")]).encode().replace(b'"?"', opening * levels + b"1" + closing * levels)


def is_taken(body: bytes) -> bool:
    try:
        return DECODER.decode_batch(TENANT, body, NOW_US).received == 2
    except Unusable:
        return False


def called_from_further_down(calls: int, function: Callable[[], Any]) -> Any:
    return next(map(called_from_further_down, (calls - 1,), (function,))) if calls else function()


FURTHER_DOWN = 40 if sys.version_info < (3, 12) else 8  # what lies between two places of a writer; from 3.12 on only calls out of C count


@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]"), (b'[{"":', b"}]")])
def test_what_is_taken_can_be_read_again_from_another_place_in_the_stack(opening: bytes, closing: bytes) -> None:
    """A writer asks about conflicts and copies while it counts: what it could not read there would end it, and each time anew."""
    most = bisect_left(range(20_000), True, key=lambda levels: not is_taken(nested(levels, opening, closing))) - 1
    assert most > 300
    for levels in range(most - 20, most + 1):
        batch = DECODER.decode_batch(TENANT, nested(levels, opening, closing), NOW_US)
        alone = decode(event()).deltas
        assert called_from_further_down(FURTHER_DOWN, lambda batch=batch: batch.refold([0])) == alone
        assert called_from_further_down(FURTHER_DOWN, lambda batch=batch: batch.describe(0))[:2] == ("1", "/edge")
        assert len(called_from_further_down(FURTHER_DOWN, batch.times_us)) == 2


@pytest.mark.parametrize("other", [3, event(id=5), event(id="3", extension="\ud800")])
def test_what_is_taken_can_be_read_again_however_many_commas_are_in_it(other: object) -> None:
    batch = decode(event(unread=[0] * 1000), event(id="2"), other)
    assert batch.describe(1)[:2] == ("2", "/edge")
    assert batch.refold([0]) == decode(event()).deltas
    assert len(batch.times_us()) == len(batch.indexes)


def test_half_a_pair_costs_no_neighbour_beside_many_commas() -> None:
    batch = decode(event(unread=[0] * 5000, extension="\ud800"), event(id="2", subject="\ud800"), event(id="3"))
    assert (list(batch.indexes), [rejection.index for rejection in batch.rejections]) == ([0, 2], [1])


MANY = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b'[{"unread":"' + b"\\n" * MANY,
        b'[{"unread":"\\ud800' + b"\\n" * MANY + b'"}]',
        b'{"unread":"' + b"\\ud800" * MANY + b'"}',
        b'[{"unread":"\\ud800' + b"\\ud83d\\ude00" * MANY + b'"}]',
        json.dumps([event(time=[{}] * MANY)]).encode(),
        json.dumps([event(type=[[[]] * 100] * (MANY // 100))]).encode(),
        json.dumps([event(type={str(number): 0 for number in range(MANY)})]).encode(),
        json.dumps([event(data=...) | {str(number): 0 for number in range(MANY)}]).encode(),
        json.dumps([data(bytes=...) | {"data": {str(number): 0 for number in range(MANY)}}]).encode(),
    ],
)
def test_what_is_wrong_with_a_body_is_found_in_little_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        DECODER.decode_batch(TENANT, body, NOW_US)
    except Unusable:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 6 * len(body)


@pytest.mark.parametrize("element", [b"{}", b"1", b'{"a":1}'])
@pytest.mark.parametrize("number", [51, 100_000])
def test_too_many_events(element: bytes, number: int) -> None:
    with pytest.raises(Unusable) as caught:
        DECODER.decode_batch(TENANT, b"[" + b",".join([element] * number) + b"]", NOW_US)
    assert caught.value.status == (400 if element == b"1" and number > 51 else 413)
    assert f"{number} events; send at most 50" in caught.value.detail or caught.value.status == 400


def test_too_many_events_with_and_without_a_fault() -> None:
    many = [event(id=str(number)) for number in range(50)]
    for one_more in (event(id="more"), event(id="")):
        with pytest.raises(Unusable, match="51 events; send at most 50") as caught:
            decode(*many, one_more)
        assert caught.value.status == 413


def test_as_many_events_as_are_allowed() -> None:
    assert decode(*[event(id=str(number)) for number in range(50)]).received == 50
    many_commas = [event(id=str(number), unread=[0] * 100) for number in range(49)]
    batch = decode(*many_commas, event(id=""))
    assert (len(batch.indexes), len(batch.rejections)) == (49, 1)


def test_one_event_is_a_batch_of_one() -> None:
    alone = DECODER.decode_batch(TENANT, b" " + json.dumps(event()).encode(), NOW_US)
    assert (alone.received, alone.deltas) == (1, decode(event()).deltas)
    assert alone.describe(0)[2] == json.dumps(event()).encode()


def test_no_event_is_no_fault() -> None:
    batch = decode()
    assert (batch.received, list(batch.digests), batch.deltas, batch.refold([])) == (0, [], {}, {})
