"""What one event, claim or counter costs, as measured: the figures that `parshall size` reckons with, and how to measure them again.

Belongs here: the constants, each with its command and its margin; docs/PERFORMANCE.md shows them all, "What capacity is reckoned with".
Must not know: how capacity is computed (sizing.py).

All were taken on two shared virtual cores (the report: AMD EPYC, Debian's Python 3.11; the others: Intel Xeon). Where the published report
(bench/report/published) has a figure, it is that one. The margin is added on top, for what the measurement cannot know: your data, your
machine, the next version.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """The less the better."""

    value: int
    unit: str
    margin_percent: int
    measured_by: str
    what: str

    @property
    def planned(self) -> int:
        return -(-self.value * (100 + self.margin_percent) // 100)


class Speed(NamedTuple):
    """The more the better."""

    value: int
    unit: str
    margin_percent: int
    measured_by: str
    what: str

    @property
    def planned(self) -> int:
        return self.value * 100 // (100 + self.margin_percent)


WHOLE = 'make bench ARGS="--only whole"'
GROWTH = "make bench ARGS=growth"
MEMORY = 'make bench ARGS="--only memory"'
RESTART = 'make bench ARGS="--only restart"'
RATING = 'make bench ARGS="--only rating"'
CLAIMS = 'make bench ARGS="--only claims"'
LOOKS = "python -m bench.claims_at_size"
REBUILD = "python -m bench.micro_rebuild --claims 10000000"
SERVERS = "python -m bench.claim_servers --claims 10000000"
FLUSH = "python -m bench.micro_flush"
EDGE = "python -m bench.micro_edge"
JOURNAL = "python -m bench.micro_journal"
SIZES = "python -m bench.sizes"
PS = "ps -o rss"
CURL = "curl -w '%{size_request} %{size_header} %{size_download}'"


class Constants(NamedTuple):
    # The writer: CPU of the whole process, HTTP, claims, journal and flush included, 300 live counters.
    writer_1: Cost = Cost(52_730, "ns/event", 25, WHOLE, "writer, 1 event a request")
    writer_10: Cost = Cost(9_500, "ns/event", 25, GROWTH, "writer, 10 events a request")
    writer_100: Cost = Cost(3_100, "ns/event", 25, WHOLE, "writer, 100 events a request")
    writer_1000: Cost = Cost(2_080, "ns/event", 25, WHOLE, "writer, 1000 events a request and more")
    # 4.9 us where nearly every event is its own counter, 2.1 where 1000 events meet 300: 2.8 us for 1.3 more counters an event.
    writer_delta: Cost = Cost(2_200, "ns/delta", 25, WHOLE, "writer, a counter of a request that no other event of it shares")
    # Twenty meters of one event type beside two, few counters: 2.1 us instead of 1.3.
    writer_hit: Cost = Cost(46, "ns/hit", 25, EDGE, "writer, a meter that an event feeds beyond 1.6, where its counter is shared")
    writer_flush: Cost = Cost(1_400, "ns/counter", 25, FLUSH, "writer, a counter merged, encoded and produced")
    counter_memory: Cost = Cost(313, "B/counter", 25, MEMORY, "writer, memory of a live counter")
    counter_json: Cost = Cost(85, "B/counter", 25, SIZES, "a counter in a record, before compression")
    writer_memory: Cost = Cost(68_100_000, "B", 50, PS, "writer, memory without counters and requests: an idle worker of `parshall up`")
    # The least of the rounds.
    replay: Speed = Speed(2_980_000, "events/s", 25, RESTART, "writer, opening its journal")
    replay_call: Cost = Cost(4_900, "ns/request", 25, JOURNAL, "writer, opening its journal, a request beyond one in 1000 events")
    # Claims. A primary runs scripts on one core. A round with 20 million of them took 4.85 us.
    redis_cpu: Cost = Cost(2_860, "ns/claim", 50, CLAIMS, "Redis 7, CPU a claim, 10 million there, two generations")
    # 7.0 us where an event is a request, 1.7 where 1000 share one.
    redis_request: Cost = Cost(5_300, "ns/request", 25, WHOLE, "Redis 7, CPU a request without its claims")
    redis_look: Cost = Cost(490, "ns/claim", 50, LOOKS, "Redis 7, CPU a claim, each generation beyond two")
    # A Valkey with jemalloc, as its own image and Debian have it: 50 to 90 %, by how many claims and in which layout; the dearest is taken.
    valkey_percent: Cost = Cost(90, "% of Redis 7", 0, SERVERS, "Valkey 9, CPU")
    redis_claim: Cost = Cost(85, "B/claim", 15, REBUILD, "Redis 7, memory")
    valkey_claim: Cost = Cost(56, "B/claim", 15, SERVERS, "Valkey 9, memory")
    packed_claim: Cost = Cost(31, "B/claim", 15, REBUILD, "Redis 7 or Valkey 9, memory, packed")
    # 10.24 and 2.86 us, 10 million there.
    packed_percent: Cost = Cost(359, "% of hashed", 0, CLAIMS, "Redis 7, CPU a claim, packed")
    redis_rebuild: Speed = Speed(280_000, "claims/s", 25, REBUILD, "Redis 7, claiming everything again")
    # REDIS_SERVER=/path/to/valkey-server; as fast as Redis where both were measured in turn, so its figure.
    valkey_rebuild: Speed = Speed(280_000, "claims/s", 25, REBUILD, "Valkey 9, claiming everything again")
    # The journal, subjects named by UUIDs.
    journal_call: Cost = Cost(200, "B/request", 15, SIZES, "journal, a call record without its events")
    journal_claim: Cost = Cost(16, "B/event", 0, SIZES, "journal, digest and fingerprint")
    journal_delta: Cost = Cost(34, "B/delta", 50, SIZES, "journal, a counter of a call")
    journal_counter: Cost = Cost(35, "B/counter", 50, SIZES, "journal, a counter of a flush")
    # Kafka.
    kafka_counter: Cost = Cost(16, "B/counter", 50, SIZES, "Kafka, a counter, compressed by zstd")
    record: Cost = Cost(450, "B/record", 15, SIZES, "Kafka and journal, a record without its counters")
    # The rater and PostgreSQL.
    rater: Speed = Speed(20_300, "counters/s", 25, RATING, "a rater process, fed from memory, waiting for PostgreSQL included")
    postgres_counter: Cost = Cost(18_300, "ns/counter", 25, SIZES, "PostgreSQL, CPU")
    postgres_wal: Cost = Cost(940, "B/counter", 25, SIZES, "PostgreSQL, write-ahead log")
    postgres_record: Cost = Cost(40, "B/counter", 50, SIZES, "PostgreSQL, a counter in the table of records")
    # A row of one counter, less 40 for it.
    postgres_row: Cost = Cost(715, "B/record", 15, SIZES, "PostgreSQL, a record without its counters, indexes included")
    archived_record: Cost = Cost(257, "B/record", 15, SIZES, "PostgreSQL, an archived record, index included")
    archive_counter: Cost = Cost(16, "B/counter", 50, SIZES, "archives, a counter, compressed by gzip")
    postgres_usage: Cost = Cost(276, "B/row", 15, SIZES, "PostgreSQL, usage of a series in a window, index included")
    postgres_series: Cost = Cost(180, "B/row", 15, SIZES, "PostgreSQL, a series, indexes included")
    postgres_line: Cost = Cost(780, "B/row", 15, SIZES, "PostgreSQL, a charge line, indexes included, much updated")
    # The network, headers of HTTP included, those of TCP not.
    request: Cost = Cost(220, "B/request", 15, CURL, "network, a request without its events")
    answer: Cost = Cost(220, "B/request", 15, CURL, "network, an answer")
    claim_sent: Cost = Cost(16, "B/claim", 15, LOOKS, "network, a claim to Redis")
    call_sent: Cost = Cost(405, "B/request", 15, LOOKS, "network, a call to Redis and its reply without the claims")


# Measured with the plain mix of the benchmark, whose requests of 1000 events meet 300 counters, 1.6 for an event that is alone.
PLAIN_COUNTERS = 300
PLAIN_DELTAS_TENTHS = 16

# What the build fixes; tests/unit/test_measured.py holds them against the code.
GENERATION_S = 25 * 3600
USUAL_GENERATIONS = 2  # alive when claims were measured
CLOCK_MARGIN_S = 300
SEGMENT_BYTES = 64 << 20
CHUNK_BYTES = 256 << 10
MIN_FREE_BYTES = 256 << 20
IN_FLIGHT_BYTES = 512 << 20
JOURNAL_BYTES = 8 << 30  # journal.max_bytes as it comes
FLUSH_COUNTERS = 1_000_000  # flush.max_counters as it comes
IN_PROCESS_CLAIMS = 5_000_000
PARTITIONS = 6
