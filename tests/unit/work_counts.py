"""How much work the pure steps do on fixed input, counted without a clock: the same number on every run and every machine.

Belongs here: the fixed input, the counting, the program that prints what is counted. Must not know: what is allowed (test_work_counts.py).

Four counts for each thousand events (or counters), and one of a whole batch:

bytecodes   instructions that the interpreter executes
c_calls     calls of C functions from Python code
peak_bytes  the most memory held at one time during the step, beyond what was held before: a list or a copy made by C code shows here
kept_bytes  what is still held once the step is over, its result included
passes      how often somebody begins to go through all decoded events, C functions included (only decode_batch has them)

What else C code does between two calls, without taking memory, is not seen: for that there are profiles (docs/PERFORMANCE.md).

    PYTHONHASHSEED=0 python -m tests.unit.work_counts     prints the counts, as JSON, as they stand in work_counts.json
"""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

from buffer.counters import Deltas, MeterDefinition, merge, pack
from buffer.journal_codec import encode_record
from buffer.journal_records import CallRecord, Through
from buffer.record import RecordEncoder
from ingest.catalogue import read_catalogue
from ingest.decode import Decoder, Limits

NOW_US = 1_795_514_400_000_000  # 2026-11-24T10:00:00Z
EVENTS = 400
COUNTERS = 2000
METERS = [
    {
        "name": "requests",
        "event_type": "http.request",
        "aggregation": "count",
        "dimensions": {"region": "data.region", "zone": "data.zone"},
    },
    {"name": "egress", "event_type": "http.request", "aggregation": "sum", "value": "data.bytes", "dimensions": {"region": "data.region"}},
    {"name": "peak", "event_type": "db.sample", "aggregation": "max", "value": "data.connections"},
]
NUMBERS = {"requests": 1, "egress": 2, "peak": 3}
ENCODED = {
    1: MeterDefinition("requests", "0123456789abcdef", "count", 0, 3600, ("region",)),
    3: MeterDefinition("peak", "f" * 16, "max", 0, 3600, ()),
}


class Counts(NamedTuple):
    bytecodes: int
    c_calls: int
    peak_bytes: int
    kept_bytes: int
    passes: int


class Gone(list[Any]):
    """Decoded events that notice when somebody goes through them."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return super().__iter__()


class Step(NamedTuple):
    """`prepare` makes fresh input for each counting: a step must not profit from the one before it."""

    units: int
    prepare: Callable[[], Any]
    run: Callable[[Any], object]
    passes: Callable[[], int] = lambda: 0


def count(step: Step) -> Counts:
    step.run(step.prepare())  # whatever is made once a process is made by now
    bytecodes = _bytecodes(step)
    c_calls = _c_calls(step)
    peak, kept = _memory(step)
    return Counts(*(1000 * found // step.units for found in (bytecodes, c_calls, peak, kept)), step.passes())


def _bytecodes(step: Step) -> int:
    executed = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal executed
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        executed += event == "opcode"
        return trace

    given = step.prepare()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step.run(given)
    finally:
        sys.settrace(before)
    return executed


def _c_calls(step: Step) -> int:
    calls = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "c_call"

    given = step.prepare()
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        step.run(given)
    finally:
        sys.setprofile(before)
    return calls


def _memory(step: Step) -> tuple[int, int]:
    """(peak, kept)"""
    given = step.prepare()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        at_first = tracemalloc.get_traced_memory()[0]
        result = step.run(given)
        now, peak = tracemalloc.get_traced_memory()
        del result
        return peak - at_first, now - at_first
    finally:
        tracemalloc.stop()
        gc.enable()


# ---- the steps


def steps() -> dict[str, Step]:
    few, alone, faulty = (_body(subjects, bad) for subjects, bad in ((4, 0), (10 * EVENTS, 0), (4, EVENTS // 100)))
    return {
        "decode_batch, counters repeat": _decoding(few),
        "decode_batch, counters alone": _decoding(alone),
        "decode_batch, one event in a hundred bad": _decoding(faulty),
        "decode_batch, a single event": _decoding(_body(4, 0, events=1), events=1),
        "fold again, one event in ten left out": _folding_again(few),
        "merge, all counters new": Step(COUNTERS, lambda: ({}, _deltas()), lambda given: merge(*given)),
        "merge, all counters live": Step(COUNTERS, lambda: (_deltas(), _deltas()), lambda given: merge(*given)),
        "encode a call for the journal": Step(EVENTS, _call, encode_record),
        "encode counter records": Step(COUNTERS, _deltas, _encode),
    }


def _decoding(body: bytes, events: int = EVENTS) -> Step:
    decoder = _decoder()
    return Step(events, lambda: bytes(bytearray(body)), lambda sent: decoder.decode_batch(1, sent, NOW_US), lambda: _passes(body))


def _folding_again(body: bytes) -> Step:
    batch = _decoder().decode_batch(1, body, NOW_US)
    kept = [position for position in range(EVENTS) if position % 10]
    return Step(EVENTS, lambda: kept, batch.refold)


def _decoder() -> Decoder:
    return Decoder(read_catalogue(METERS), NUMBERS, Limits())


def _passes(body: bytes) -> int:
    decoder = _decoder()
    decode, decoded = decoder._decode_all, []

    def decode_and_watch(sent: bytes) -> list[Any]:
        decoded.append(Gone(decode(sent)))
        return decoded[-1]

    decoder._decode_all = decode_and_watch
    decoder.decode_batch(1, body, NOW_US)
    return sum(events.passes for events in decoded)


def _body(subjects: int, bad: int, events: int = EVENTS) -> bytes:
    return json.dumps([_event(number, subjects, number < bad) for number in range(events)], separators=(",", ":")).encode()


def _event(number: int, subjects: int, bad: bool) -> dict[str, Any]:
    request = number % 4 != 3
    data = {"region": ("eu", "us")[number // 4 % 2], "zone": "ab"[number // 8 % 2], "bytes": 1000 + number}
    return {
        "specversion": "1.0",
        "id": f"event-{number:09d}",
        "source": f"/edge/{number % 3}",
        "type": "http.request" if request else "db.sample",
        "subject": f"customer-{number % subjects:06d}",
        "time": f"2026-11-24T09:{number % 60:02d}:{number % 59:02d}.{number:03d}Z",
        "data": ({"bytes": True} | {"region": 1} if bad else data) if request else {"connections": "x" if bad else number},
    }


def _deltas() -> Deltas:
    window = 1_795_510_800
    sums = {
        (1, 1, f"customer-{number:06d}", window, ("eu", "us")[number % 2]): pack(number, 1 + number % 7) for number in range(COUNTERS // 2)
    }
    maxima = {(3, 1, f"customer-{number:06d}", window): pack(number * 31 % 997, 1) for number in range(COUNTERS // 2)}
    return {"sum": dict(sums), "max": dict(maxima)}  # type: ignore[dict-item]


def _call() -> CallRecord:
    deltas = {kind: dict(list(counters.items())[: EVENTS // 4]) for kind, counters in _deltas().items()}
    digests = b"".join(number.to_bytes(12, "big") for number in range(EVENTS))
    return CallRecord(
        number=7,
        generation=490_000,
        execution=7,
        horizon_us=0,
        newest_us=NOW_US,
        claims=[(1, digests, bytes(4 * EVENTS))],
        deltas=[deltas],
        tallies={1: {"received": EVENTS, "accepted": EVENTS}},
        rejected=(),
    )


def _encode(live: Deltas) -> object:
    encoder = RecordEncoder(ENCODED, {1: "demo"}, bytes(16), 6, Through(bytes(16), 1), {})
    return [record for piece in encoder.pieces(live, {1: {"received": EVENTS, "accepted": EVENTS}}) for record in piece]


if __name__ == "__main__":
    print(json.dumps({name: count(step)._asdict() for name, step in steps().items()}, indent=1))
