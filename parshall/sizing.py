"""From a workload to what it needs of every part, and which part breaks first.

Pure, in integers; whatever is rounded is rounded up, speeds down. Belongs here: the model. Must not know: options, pages, where the
constants come from (measured.py).

The model

- *Keys* = subjects x meters x values: the counters that can be touched in one window. Every event makes `meters_per_event` hits.
- *Counters a second* drive Kafka, the rater and PostgreSQL. A writer hands each counter over once an interval in which it was hit, and an
  interval lies in 1 + interval / window windows on average; so `writers` writers make at most writers x keys x (1 / interval + 1 / window)
  of events that come in time. A late event may hit any of the max_age / window windows before: those add at most one counter a late
  hit, and at most one a key and window each interval. Never are there more counters than hits. So

      counters/s = min(hits, W x keys x (1/interval + 1/window) + min(late hits, W x keys x late windows / interval))

  with W = writers when any writer may get any subject's events, and 1 when requests are routed so that one writer has all of a subject.
  It is a bound: hits that fall at random make fewer, at worst 1/(1 - 1/e), 1.58 times fewer; skewed ones fewer still.
- *Deltas*: within one request events that share a counter are folded first: at most min(hits of it, keys + late hits of it).
- *Writers*: as many as keep each below the busy share of a core, and as can read their journals in the time a start may take. More
  writers make more counters, which cost CPU: the least number that carries itself is taken.
- *Claims and journal* are kept alike: a claim goes with its generation, once the newest event time in it is older than max_age + max_skew +
  the clocks' margin. The oldest is then generation + max_age + 2 max_skew + margin old. The journal keeps the digests and deltas of
  each call and the bytes of each flush, both for so long.
- *Redis* looks for each claim in every live generation: two with a max_age of a day, thirty with one of a month.
- *A limit* is the highest rate, all else as given, at which one instance of a part that cannot be doubled in this version still suffices.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from parshall.measured import (
    CHUNK_BYTES,
    CLOCK_MARGIN_S,
    FLUSH_COUNTERS,
    GENERATION_S,
    IN_FLIGHT_BYTES,
    IN_PROCESS_CLAIMS,
    JOURNAL_BYTES,
    MIN_FREE_BYTES,
    PARTITIONS,
    PLAIN_COUNTERS,
    PLAIN_DELTAS_TENTHS,
    SEGMENT_BYTES,
    USUAL_GENERATIONS,
    Constants,
)

MONTH_S = 31 * 86_400
_NO_LIMIT = 1 << 50  # events a second
_SECOND_NS = 1_000_000_000
_SPARE_SEGMENTS = 3  # one being written, one across two generations, one waiting to be removed


class Workload(NamedTuple):
    """All counts are totals, not of one tenant or writer. The rate is the highest that lasts: everything is kept as if it always held."""

    events_per_second: int
    subjects: int
    meters: int  # that a subject uses
    max_age_s: int = 86_400
    max_skew_s: int = 300
    meters_per_event: int = 1  # that one event feeds
    values: int = 4  # combinations of dimension values of one subject and meter
    window_s: int = 3_600
    late_percent: int = 1  # of the events belong to a window that is over
    events_per_request: int = 1_000
    event_bytes: int = 220
    tenants: int = 1
    largest_tenant_percent: int = 0  # of all events; 0: all tenants are alike
    flush_interval_ms: int = 10_000
    partitions: int = 0  # 0: as many as are needed
    replication: int = 3
    retention_s: int = 7 * 86_400
    kept_months: int = 13
    archived_s: int = 0  # after which records go to files (`parshall archive`); 0: never
    routed: bool = False  # all requests of a subject reach the same writer
    valkey: bool = False
    packed: bool = False  # redis.layout


class Machines(NamedTuple):
    """What one instance of a part has, and how far it may be used."""

    busy_percent: int = 60  # of a core
    start_s: int = 600  # a writer must have read its journal by then
    redis_bytes: int = 64 << 30  # a primary
    postgres_cores: int = 16
    postgres_bytes: int = 4 << 40


class Counters(NamedTuple):
    keys: int
    hits_per_s: int
    per_s: int  # of all writers together
    per_flush: int  # of one writer
    hits_each_tenths: int  # at least so many hits a counter stands for, in tenths
    deltas_per_request: int


class Writers(NamedTuple):
    needed: int
    by_cpu: int
    by_start: int
    cpu_ns_per_event: int  # flush included
    memory_bytes: int  # each, at most
    start_s: int  # each, to read its journal


class Journal(NamedTuple):
    bytes_per_event_tenths: int  # flushes included
    bytes_per_s: int  # of all
    kept_s: int
    disk_bytes: int  # each writer
    all_bytes: int


class Claims(NamedTuple):
    alive: int
    bytes: int
    primaries: int
    by_cpu: int
    by_memory: int
    by_tenants: int  # a tenant is on one primary; all but the largest are alike
    fit: bool  # the largest tenant on one primary
    bytes_each: int  # a primary, the fullest
    generations: int  # in which a claim is looked for
    cores_hundredths: int  # busy, of all primaries together
    rebuild_s: int  # the fullest primary, when it lost everything
    in_process: bool  # whether `parshall up` could do it without Redis


class Kafka(NamedTuple):
    partitions: int
    records_per_s: int
    bytes_per_s: int  # produced
    written_bytes_per_s: int  # by all brokers
    retained_bytes: int  # on all brokers


class Raters(NamedTuple):
    needed: int
    fit: bool  # a partition has one rater at a time


class Postgres(NamedTuple):
    cores: int
    wal_bytes_per_s: int
    record_rows: int
    record_bytes: int
    archive_bytes: int  # in files, wherever they are kept
    usage_rows: int
    usage_bytes: int
    series_rows: int
    series_bytes: int
    line_rows: int
    line_bytes: int

    @property
    def all_bytes(self) -> int:
        return self.record_bytes + self.usage_bytes + self.series_bytes + self.line_bytes


class Network(NamedTuple):
    """Bytes a second."""

    ingest: int  # requests and answers, uncompressed
    redis: int
    kafka: int  # from writers, between brokers, to raters


class Demand(NamedTuple):
    counters: Counters
    writers: Writers
    journal: Journal
    claims: Claims
    kafka: Kafka
    raters: Raters
    postgres: Postgres
    network: Network


class Limit(NamedTuple):
    events_per_second: int  # still carried; 0: not even one
    part: str
    why: str
    remedy: str

    @property
    def breaks(self) -> bool:
        return self.events_per_second < _NO_LIMIT


class Sizing(NamedTuple):
    workload: Workload
    machines: Machines
    demand: Demand
    limits: list[Limit]  # the lowest first
    settings: list[tuple[str, int, int]]  # (name, least value, as it comes): those that must be raised

    @property
    def bottleneck(self) -> str:
        first, rate = self.limits[0], self.workload.events_per_second
        beyond = f"first, beyond {first.events_per_second:,} events/s: {first.why}."
        if rate <= first.events_per_second:
            return f"Nothing breaks at {rate:,} events/s; {first.part} would be {beyond}"
        return f"{_capital(first.part)} breaks {beyond}"


def size(workload: Workload, machines: Machines = Machines(), constants: Constants = Constants()) -> Sizing:  # noqa: B008 - they do not change
    found = demand(workload, machines, constants)
    return Sizing(workload, machines, found, _limits(workload, machines, constants), _settings(found))


def demand(workload: Workload, machines: Machines, constants: Constants) -> Demand:
    writers = _writers(workload, machines, constants)
    per_s = counters_per_s(workload, writers)
    counters = Counters(
        keys_of(workload),
        _hits_per_s(workload),
        per_s,
        _up(per_s * workload.flush_interval_ms, 1000 * writers),
        10 * _hits_per_s(workload) // per_s,
        _deltas_per_request(workload),
    )
    raters = _up(100 * per_s, constants.rater.planned * machines.busy_percent)
    partitions = workload.partitions or max(PARTITIONS, 2 * raters)
    records = _records_per_s(workload, counters, writers, partitions, constants)
    journal = _journal(workload, counters, writers, records, constants)
    return Demand(
        counters,
        _written(workload, machines, counters, writers, constants),
        journal,
        _claims(workload, machines, constants),
        _kafka(workload, counters, records, partitions, constants),
        Raters(raters, raters <= partitions),
        _postgres(workload, machines, counters, records, constants),
        _network(workload, counters, records, constants),
    )


# ---- counters


def keys_of(workload: Workload) -> int:
    return workload.subjects * workload.meters * workload.values


def counters_per_s(workload: Workload, writers: int) -> int:
    keys = keys_of(workload) * (1 if workload.routed else writers)
    hits = _hits_per_s(workload)
    in_time = _up(1000 * keys, workload.flush_interval_ms) + _up(keys, workload.window_s)
    late_windows = _up(workload.max_age_s, workload.window_s)
    late = min(_up(hits * workload.late_percent, 100), _up(1000 * keys * late_windows, workload.flush_interval_ms))
    return min(hits, in_time + late)


def _hits_per_s(workload: Workload) -> int:
    return workload.events_per_second * workload.meters_per_event


def _deltas_per_request(workload: Workload) -> int:
    hits = workload.events_per_request * workload.meters_per_event
    return min(hits, keys_of(workload) + _up(hits * workload.late_percent, 100))


def alive_s(workload: Workload) -> int:
    """How old a claim, and what the journal keeps, can become."""
    return GENERATION_S + workload.max_age_s + 2 * workload.max_skew_s + CLOCK_MARGIN_S


# ---- writers


def _writers(workload: Workload, machines: Machines, constants: Constants) -> int:
    return max(_writers_by_cpu(workload, machines, constants), _writers_by_start(workload, machines, constants))


def _writers_by_cpu(workload: Workload, machines: Machines, constants: Constants) -> int:
    """The least number that carries itself: what they do grows slower than their number, so all above carry themselves too."""
    core = _SECOND_NS * machines.busy_percent // 100
    requests_ns = _up(workload.events_per_second * writer_ns_per_request(workload, constants), workload.events_per_request)

    def carry(writers: int) -> bool:
        return writers * core >= requests_ns + counters_per_s(workload, writers) * constants.writer_flush.planned

    return _least(carry)


def _writers_by_start(workload: Workload, machines: Machines, constants: Constants) -> int:
    return max(1, _up(_replay_ns(workload, constants), machines.start_s * _SECOND_NS))


def _replay_ns(workload: Workload, constants: Constants) -> int:
    """To read all journals one after the other. Measured were calls of 1000 events; at worst each smaller request is a call."""
    kept = workload.events_per_second * alive_s(workload)
    calls = max(0, _up(kept, workload.events_per_request) - _up(kept, 1000))
    return _up(kept * _SECOND_NS, constants.replay.planned) + calls * constants.replay_call.planned


def writer_ns_per_request(workload: Workload, constants: Constants) -> int:
    """Without the flush. Measured requests meet some 300 counters, and an event 1.6; a counter or a hit beyond those costs by itself."""
    c, events = constants, workload.events_per_request
    points = ((1, c.writer_1), (10, c.writer_10), (100, c.writer_100), (1000, c.writer_1000))
    usual = min(PLAIN_COUNTERS, PLAIN_DELTAS_TENTHS * events // 10)
    more = max(0, _deltas_per_request(workload) - usual)
    hits = max(0, events * workload.meters_per_event - PLAIN_DELTAS_TENTHS * events // 10)
    return _between([(at, at * cost.planned) for at, cost in points], events) + more * c.writer_delta.planned + hits * c.writer_hit.planned


def _between(points: list[tuple[int, int]], x: int) -> int:
    """On the line between the two points around x; beyond the last, in proportion to it."""
    for (x1, y1), (x2, y2) in pairwise(points):
        if x <= x2:
            return y1 + _up((x - x1) * (y2 - y1), x2 - x1)
    last_x, last_y = points[-1]
    return _up(x * last_y, last_x)


def _written(workload: Workload, machines: Machines, counters: Counters, writers: int, constants: Constants) -> Writers:
    c, rate = constants, workload.events_per_second
    flush_ns = counters.per_s * c.writer_flush.planned
    # Those being flushed and those that come meanwhile; the flush is held as records by the journal and by the producer.
    each_counter = 2 * c.counter_memory.planned + 2 * c.counter_json.planned
    return Writers(
        writers,
        _writers_by_cpu(workload, machines, constants),
        _writers_by_start(workload, machines, constants),
        _up(rate * writer_ns_per_request(workload, c), workload.events_per_request * rate) + _up(flush_ns, rate),
        c.writer_memory.planned + IN_FLIGHT_BYTES + counters.per_flush * each_counter,
        _up(_replay_ns(workload, c), writers * _SECOND_NS),
    )


# ---- journal


def _journal(workload: Workload, counters: Counters, writers: int, records: int, constants: Constants) -> Journal:
    c, rate = constants, workload.events_per_second
    request = c.journal_call.planned + workload.events_per_request * c.journal_claim.planned
    request += counters.deltas_per_request * c.journal_delta.planned
    calls = _up(rate * request, workload.events_per_request)
    flushes = counters.per_s * c.journal_counter.planned + records * c.record.planned
    kept_s = alive_s(workload)
    disk = _up((calls + flushes) * kept_s, writers) + _SPARE_SEGMENTS * SEGMENT_BYTES + MIN_FREE_BYTES
    return Journal(_up(10 * (calls + flushes), rate), calls + flushes, kept_s, disk, disk * writers)


# ---- claims


def _claims(workload: Workload, machines: Machines, constants: Constants) -> Claims:
    alive = claims_alive(workload, workload.events_per_second)
    memory = claims_bytes(workload, workload.events_per_second, constants)
    cpu_ns = claims_ns_per_s(workload, workload.events_per_second, constants)
    by_cpu = _up(100 * cpu_ns, _SECOND_NS * machines.busy_percent)
    by_memory = _up(memory, machines.redis_bytes)
    by_tenants = _primaries_by_tenants(workload, primary_per_s(workload, machines, constants))
    primaries = max(by_cpu, by_memory, by_tenants)
    fullest = _fullest_per_s(workload, primaries)
    rebuild = constants.valkey_rebuild if workload.valkey else constants.redis_rebuild
    rebuilt_per_s = rebuild.planned * 100 // _packed_percent(workload, constants)
    return Claims(
        alive,
        memory,
        primaries,
        by_cpu,
        by_memory,
        by_tenants,
        largest_tenant_per_s(workload) <= primary_per_s(workload, machines, constants),
        claims_bytes(workload, fullest, constants),
        generations(workload),
        _up(100 * cpu_ns, _SECOND_NS),
        _up(claims_alive(workload, fullest), rebuilt_per_s),
        alive <= IN_PROCESS_CLAIMS,
    )


def _primaries_by_tenants(workload: Workload, held: int) -> int:
    """A primary holds whole tenants, of so many events a second; of those that do not even fit on one by themselves, each has its own.

    All but the largest tenant are alike: as many of them as fit beside it are with it.
    """
    largest, others = largest_tenant_per_s(workload), workload.tenants - 1
    even = _up(workload.events_per_second, workload.tenants)
    other = even if largest == even else max(1, _up(workload.events_per_second - largest, others))
    beside = max(0, held - largest) // other
    return 1 + _up(max(0, others - beside), max(1, held // other))


def _fullest_per_s(workload: Workload, primaries: int) -> int:
    """Events a second of the fullest primary, where tenants are dealt out as evenly as they can be."""
    largest = largest_tenant_per_s(workload)
    return _least(lambda held: held >= largest and _primaries_by_tenants(workload, held) <= primaries)


def primary_per_s(workload: Workload, machines: Machines, constants: Constants) -> int:
    """Events a second of which one primary can hold the claims."""
    return min(_highest_by_memory(workload, machines, constants), _highest_by_cpu(workload, machines, constants))


def _highest_by_memory(workload: Workload, machines: Machines, constants: Constants) -> int:
    return _highest(lambda rate: claims_bytes(workload, rate, constants) <= machines.redis_bytes)


def _highest_by_cpu(workload: Workload, machines: Machines, constants: Constants) -> int:
    core_ns = _SECOND_NS * machines.busy_percent // 100
    return _highest(lambda rate: claims_ns_per_s(workload, rate, constants) <= core_ns)


def claims_alive(workload: Workload, events_per_second: int) -> int:
    return events_per_second * alive_s(workload)


def claims_bytes(workload: Workload, events_per_second: int, constants: Constants) -> int:
    hashed = constants.valkey_claim if workload.valkey else constants.redis_claim
    each = constants.packed_claim if workload.packed else hashed
    return claims_alive(workload, events_per_second) * each.planned


def claims_ns_per_s(workload: Workload, events_per_second: int, constants: Constants) -> int:
    c = constants
    claim_ns = c.redis_cpu.planned + (generations(workload) - USUAL_GENERATIONS) * c.redis_look.planned
    request = 100 * c.redis_request.planned + workload.events_per_request * claim_ns * _packed_percent(workload, c)
    percent = c.valkey_percent.planned if workload.valkey else 100
    return _up(events_per_second * request * percent, 10_000 * workload.events_per_request)


def _packed_percent(workload: Workload, constants: Constants) -> int:
    return constants.packed_percent.planned if workload.packed else 100


def generations(workload: Workload) -> int:
    """In how many a claim is looked for."""
    return max(USUAL_GENERATIONS, alive_s(workload) // GENERATION_S + 1)


def largest_tenant_per_s(workload: Workload) -> int:
    even = _up(workload.events_per_second, workload.tenants)
    return max(even, _up(workload.events_per_second * workload.largest_tenant_percent, 100))


# ---- Kafka, raters, PostgreSQL


def _records_per_s(workload: Workload, counters: Counters, writers: int, partitions: int, constants: Constants) -> int:
    """A flush has a record for each partition that it has counters for, and one more for each 256 KiB."""
    started = _up(1000 * writers * min(partitions, counters.per_flush), workload.flush_interval_ms)
    return started + _up(counters.per_s * constants.counter_json.planned, CHUNK_BYTES)


def _kafka(workload: Workload, counters: Counters, records: int, partitions: int, constants: Constants) -> Kafka:
    produced = _produced(counters, records, constants)
    written = produced * workload.replication
    return Kafka(partitions, records, produced, written, written * workload.retention_s)


def _produced(counters: Counters, records: int, constants: Constants) -> int:
    return counters.per_s * constants.kafka_counter.planned + records * constants.record.planned


def _postgres(workload: Workload, machines: Machines, counters: Counters, records: int, constants: Constants) -> Postgres:
    c, kept_s = constants, workload.kept_months * MONTH_S
    hits = counters.hits_per_s * kept_s
    usage = min(hits, counters.keys * workload.kept_months * _up(MONTH_S, workload.window_s))
    series = min(hits, counters.keys)
    lines = min(hits, counters.keys * workload.kept_months)
    whole_s = min(kept_s, workload.archived_s or kept_s)
    whole = counters.per_s * c.postgres_record.planned + records * c.postgres_row.planned
    in_files = counters.per_s * c.archive_counter.planned + records * c.record.planned
    return Postgres(
        _up(100 * counters.per_s * c.postgres_counter.planned, _SECOND_NS * machines.busy_percent),
        counters.per_s * c.postgres_wal.planned,
        records * kept_s,
        whole * whole_s + records * c.archived_record.planned * (kept_s - whole_s),
        in_files * (kept_s - whole_s),
        usage,
        usage * c.postgres_usage.planned,
        series,
        series * c.postgres_series.planned,
        lines,
        lines * c.postgres_line.planned,
    )


def _network(workload: Workload, counters: Counters, records: int, constants: Constants) -> Network:
    c, rate = constants, workload.events_per_second
    requests = _up(rate, workload.events_per_request)
    return Network(
        rate * workload.event_bytes + requests * (c.request.planned + c.answer.planned),
        rate * c.claim_sent.planned + requests * c.call_sent.planned,
        _produced(counters, records, c) * (workload.replication + 1),
    )


# ---- what breaks first


def _limits(workload: Workload, machines: Machines, constants: Constants) -> list[Limit]:
    found = [*_claim_limits(workload, machines, constants), *_rating_limits(workload, machines, constants)]
    return sorted(found, key=lambda limit: limit.events_per_second)


def _claim_limits(workload: Workload, machines: Machines, constants: Constants) -> list[Limit]:
    """Shards can be added, but a tenant is on one."""

    def with_tenant(most: int) -> int:
        return _highest(lambda rate: largest_tenant_per_s(workload._replace(events_per_second=rate)) <= most)

    larger = "more memory for it"
    if not (workload.packed or workload.valkey):
        larger += "; Valkey, which takes two thirds"
    if not workload.packed:
        larger += f"; packed claims (redis.layout), which take {'little more than half' if workload.valkey else 'two fifths'}"
    split = "no number of shards helps: such a customer must be several tenants"
    return [
        Limit(
            with_tenant(_highest_by_memory(workload, machines, constants)),
            "the memory of the largest tenant's shard",
            f"a tenant is on one shard, and its claims of {_kept(workload)} fill {machines.redis_bytes >> 30:,} GiB",
            f"{larger}; {split}",
        ),
        Limit(
            with_tenant(_highest_by_cpu(workload, machines, constants)),
            "the core of the largest tenant's shard",
            "a tenant is on one shard, which runs its scripts on one core",
            f"larger requests; {split}",
        ),
    ]


def _rating_limits(workload: Workload, machines: Machines, constants: Constants) -> list[Limit]:
    def at(rate: int) -> Demand:
        return demand(workload._replace(events_per_second=rate), machines, constants)

    fewer = "a longer flush interval, requests routed by subject, fewer dimension values"
    found = [
        Limit(
            _highest(lambda rate: at(rate).postgres.cores <= machines.postgres_cores),
            "the CPU of PostgreSQL",
            f"every counter is folded into one database of {machines.postgres_cores:,} cores",
            f"{fewer}; a larger database",
        ),
        Limit(
            _highest(lambda rate: at(rate).postgres.all_bytes <= machines.postgres_bytes),
            "the disk of PostgreSQL",
            f"{workload.kept_months} months fill {machines.postgres_bytes >> 30:,} GiB",
            f"{fewer if workload.archived_s else f'`parshall archive`, which moves old records to files; {fewer}'}; a larger disk",
        ),
    ]
    if workload.partitions:
        found.append(
            Limit(
                _highest(lambda rate: at(rate).raters.fit),
                "the partitions of Kafka",
                f"a partition has one rater at a time, so {workload.partitions:,} is the most that can work",
                "more partitions, which can be added while everything runs, and a rater for each",
            )
        )
    return found


def _kept(workload: Workload) -> str:
    return f"{_up(alive_s(workload), 3600)} hours"


def _settings(found: Demand) -> list[tuple[str, int, int]]:
    per_flush = found.counters.per_flush
    needed = [
        ("journal.max_bytes", found.journal.disk_bytes - MIN_FREE_BYTES, JOURNAL_BYTES),
        ("flush.max_counters", per_flush + 1, FLUSH_COUNTERS),
        ("ingest.max_live_counters", 4 * (per_flush + 1), 4 * FLUSH_COUNTERS),
    ]
    return [setting for setting in needed if setting[1] > setting[2]]


# ---- arithmetic


def _up(number: int, by: int) -> int:
    """The quotient, rounded up."""
    return -(-number // by)


def _least(holds: Callable[[int], bool]) -> int:
    """The least number from 1 on for which it holds; once it holds it holds for all above."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _highest(holds: Callable[[int], bool]) -> int:
    """The highest number for which it holds; 0: for none."""
    return _NO_LIMIT if holds(_NO_LIMIT) else _least(lambda number: not holds(number)) - 1


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
