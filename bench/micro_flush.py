"""The flush: CPU per counter of encoding records, of producing them to Kafka, and of merging deltas. `python -m bench.micro_flush`"""

from __future__ import annotations

import argparse
import os
import random
from functools import partial

import uvloop

from bench.clock import cpu_ns, cpu_ns_of, per_unit
from bench.services import real_kafka
from buffer.counter_log import Record
from buffer.counters import Deltas, MeterDefinition, merge, pack
from buffer.journal_records import Through
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from buffer.record import RecordEncoder

COUNTERS = 200_000
PARTITIONS = 6
METERS = {
    1: MeterDefinition("requests", "0123456789abcdef", "count", 0, 3600, ("region", "zone")),
    2: MeterDefinition("peak_connections", "fedcba9876543210", "max", 0, 3600, ()),
}
TENANTS = {1: "demo"}


def deltas(counters: int, seed: int) -> Deltas:
    pick = random.Random(seed)
    window = 1_764_000_000
    return {
        "sum": {
            (1, 1, f"customer-{number:06d}", window, pick.choice(["eu", "us"]), "a"): pack(pick.randrange(10**6), pick.randrange(1, 10**4))
            for number in range(counters * 9 // 10)
        },
        "max": {(2, 1, f"customer-{number:06d}", window): pack(pick.randrange(10**6), 1) for number in range(counters // 10)},
    }


def encode(live: Deltas, writer: bytes, next_n: dict[int, int]) -> tuple[list[Record], dict[int, int]]:
    encoder = RecordEncoder(METERS, TENANTS, writer, PARTITIONS, Through(os.urandom(16), 1), next_n)
    records = [record for piece in encoder.pieces(live, {1: {"received": 1, "accepted": 1}}) for record in piece]
    return records, encoder.next_n


async def bench(runs: int) -> None:
    print("us of CPU per counter")
    live = deltas(COUNTERS, 1)
    writer = os.urandom(16)
    print(f"  merging deltas into live counters: {per_unit([_merging(live) for _ in range(runs)], COUNTERS)}")
    print(f"  encoding records:                  {per_unit([cpu_ns(lambda: encode(live, writer, {})) for _ in range(runs)], COUNTERS)}")
    with real_kafka() as (bootstrap, _):
        log = KafkaLog(KafkaCluster(bootstrap, create_topics=True, accept_unsafe=True))
        await log.open()
        spent: list[int] = []
        next_n: dict[int, int] = {}
        size = 0
        for _ in range(runs):
            records, next_n = encode(live, writer, next_n)
            size = sum(len(record.value) for record in records)
            spent.append(await cpu_ns_of(partial(log.produce, records)))
        print(f"  producing {len(records)} records to Kafka:    {per_unit(spent, COUNTERS)}")
        print(f"  ({size // COUNTERS} bytes a counter, before compression)")
        await log.close()


def _merging(live: Deltas) -> int:
    more = deltas(COUNTERS, 1)
    return cpu_ns(lambda: merge(live, more))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    uvloop.run(bench(parser.parse_args().runs))


if __name__ == "__main__":
    main()
