"""Micro-benchmark of the edge: CPU per event of each step from bytes to a folded batch. `python -m bench.micro_edge`

Every measurement is on freshly decoded events: strings that were hashed before, as in a loop over the same objects, look twice as fast as
they are. Figures are the median of several runs over many different bodies, process CPU time.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dedupe.digest import digests
from ingest.catalogue import read_catalogue
from ingest.checker import TimeBounds
from ingest.decode import Decoder, Limits, may_hold_nul, range_us

NOW_US = 1_795_514_400_000_000  # 2026-11-24T10:00:00Z
EVENTS_A_RUN = 20_000

# One event type that feeds two meters, as in the demo, or twenty; and eight types with a meter each, as a mixed sender has.
HTTP_REQUESTS = [
    {
        "name": "requests",
        "event_type": "http.request",
        "aggregation": "count",
        "dimensions": {"region": "data.region", "zone": "data.zone"},
    },
    {"name": "egress", "event_type": "http.request", "aggregation": "sum", "value": "data.bytes", "dimensions": {"region": "data.region"}},
]
TWENTY_METERS = [{**HTTP_REQUESTS[1], "name": f"egress_{number}"} for number in range(20)]
EIGHT_TYPES = [
    {
        "name": f"meter_{number}",
        "event_type": f"type{number}.request",
        "aggregation": "sum",
        "value": "data.bytes",
        "dimensions": {"region": "data.region", "zone": "data.zone"},
    }
    for number in range(8)
]


class Load(NamedTuple):
    name: str
    meters: list[dict[str, Any]]
    subjects: int  # few: a counter for every three events; many: almost every event has its own
    faulty_per_mille: int = 0


LOADS = [
    Load("one type, two meters, few counters", HTTP_REQUESTS, 32),
    Load("one type, two meters, many counters", HTTP_REQUESTS, 100_000),
    Load("one type, twenty meters, few counters", TWENTY_METERS, 4),
    Load("eight types, few counters", EIGHT_TYPES, 4),
    Load("eight types, many counters", EIGHT_TYPES, 100_000),
    Load("one type, few counters, 1% faulty", HTTP_REQUESTS, 32, 10),
    Load("one type, few counters, all faulty", HTTP_REQUESTS, 32, 1000),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,100,1", help="events in a batch, joined by commas")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    gc.disable()
    for size in (int(text) for text in arguments.sizes.split(",")):
        print(f"\n{size} events a batch, us of CPU per event")
        for load in LOADS:
            print(f"  {load.name:38}", "  ".join(f"{name} {value}" for name, value in measure(load, size, arguments.runs)))


def measure(load: Load, size: int, runs: int) -> Iterator[tuple[str, str]]:
    decoder = Decoder(read_catalogue(load.meters), {meter["name"]: number for number, meter in enumerate(load.meters, 1)}, Limits())
    bodies = [body(load, size, seed) for seed in range(max(1, min(1000, EVENTS_A_RUN // size)))]
    bounds = TimeBounds(NOW_US - 86_400_000_000, NOW_US + 300_000_000)

    def fold(events: list[Any]) -> object:
        times = decoder._times(events, NOW_US)
        return decoder._fold(1, events, times, *range_us(times), [])

    def fresh(sent: bytes) -> list[Any]:
        return decoder._decode_all(sent)

    def cost(step: Callable[[Any], object], prepare: Callable[[bytes], Any] | None = None) -> str:
        return f"{statistics.median(per_event(step, prepare, bodies, size) for _ in range(runs)):.2f}"

    if not load.faulty_per_mille:
        yield "decode", cost(lambda sent: may_hold_nul(sent) or decoder._decode_all(sent))
        yield "digest", cost(digests, fresh)
        yield "fingerprint", cost(decoder._fingerprints, fresh)
        yield "fold", cost(fold, fresh)
        yield "all but decode", cost(lambda events: decoder._count(1, events, NOW_US, bounds), fresh)
    yield "whole batch", cost(lambda sent: decoder.decode_batch(1, sent, NOW_US))


def per_event(step: Callable[[Any], object], prepare: Callable[[bytes], Any] | None, bodies: list[bytes], size: int) -> float:
    spent_ns = 0
    for sent in bodies:
        given = sent if prepare is None else prepare(sent)
        start = time.process_time_ns()
        result = step(given)
        spent_ns += time.process_time_ns() - start
        del result, given
    return spent_ns / 1000 / len(bodies) / size


def body(load: Load, size: int, seed: int) -> bytes:
    chance = random.Random(seed)
    return json.dumps([event(load, chance) for _ in range(size)], separators=(",", ":")).encode()


def event(load: Load, chance: random.Random) -> dict[str, Any]:
    faulty = chance.randrange(1000) < load.faulty_per_mille
    moment = f"2026-11-24T09:{chance.randrange(60):02d}:{chance.randrange(60):02d}.{chance.randrange(1000):03d}Z"
    return {
        "specversion": "1.0",
        "id": f"{chance.getrandbits(128):032x}",
        "source": f"/edge/fra-{chance.randrange(4)}",
        "type": chance.choice(load.meters)["event_type"],
        "subject": f"customer-{chance.randrange(load.subjects)}",
        "time": moment,
        "data": {
            "bytes": True if faulty else chance.randrange(100_000),
            "region": chance.choice(("eu-west", "us-east", "ap-south")),
            "zone": chance.choice("abc"),
        },
    }


if __name__ == "__main__":
    main()
