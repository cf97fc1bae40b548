"""The model of `parshall size`: beside an oracle, by hand, and by what must hold for every workload.

Must not know: the command line, what is printed.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parshall.measured import Constants, Cost, Speed
from parshall.sizing import Claims, Machines, Workload, demand, primary_per_s, size
from tests.oracle import capacity as oracle

CONSTANTS = Constants()
COSTS = {name: cost.planned for name, cost in CONSTANTS._asdict().items()}
MACHINES = Machines()

counts = st.integers(1, 10**6)
workloads = st.builds(
    Workload,
    events_per_second=st.integers(1, 10**8),
    subjects=counts,
    meters=st.integers(5, 20),
    max_age_s=st.integers(60, 30 * 86_400),
    max_skew_s=st.integers(0, 86_400),
    meters_per_event=st.integers(1, 5),
    values=st.integers(1, 100),
    window_s=st.sampled_from([60, 900, 3_600, 86_400]),
    late_percent=st.integers(0, 100),
    events_per_request=st.sampled_from([1, 10, 100, 1_000]),
    event_bytes=st.integers(1, 10_000),
    tenants=st.integers(1, 1_000),
    largest_tenant_percent=st.just(0),
    flush_interval_ms=st.integers(10, 3_600_000),
    partitions=st.sampled_from([0, 0, 1, 6, 100]),
    replication=st.integers(1, 5),
    retention_s=st.integers(3_600, 30 * 86_400),
    kept_months=st.integers(1, 60),
    archived_s=st.sampled_from([0, 86_400, 90 * 86_400, 3_000 * 86_400]),
    routed=st.booleans(),
    valkey=st.booleans(),
    packed=st.booleans(),
)


def asked(workload: Workload) -> oracle.Asked:
    given_ = workload._asdict()
    return oracle.Asked(**{name: given_[name] for name in oracle.Asked.__dataclass_fields__})


def rounded_up(value: int, exact: Fraction | int, roundings: int = 1) -> bool:
    return exact <= value < exact + roundings


# ---- beside the oracle


@given(workloads)
def test_counters_and_records_are_those_of_the_oracle(workload: Workload) -> None:
    found = demand(workload, MACHINES, CONSTANTS)
    counters, writers = found.counters, found.writers.needed
    assert rounded_up(counters.per_s, oracle.counters_per_s(asked(workload), writers), 4)
    assert rounded_up(counters.deltas_per_request, oracle.deltas_per_request(asked(workload)))
    exact = oracle.records_per_s(asked(workload), counters.per_s, writers, found.kafka.partitions, COSTS)
    assert rounded_up(found.kafka.records_per_s, exact, 2)


@given(workloads)
def test_writers_carry_the_rate_and_one_fewer_would_not(workload: Workload) -> None:
    found = demand(workload, MACHINES, CONSTANTS).writers
    replay_s = oracle.replay_s(asked(workload), COSTS)

    def carry(writers: int, more: Fraction = Fraction(0)) -> bool:
        by_cpu = oracle.writer_cores(asked(workload), writers, COSTS) + more <= writers * Fraction(MACHINES.busy_percent, 100)
        return by_cpu and replay_s <= writers * MACHINES.start_s

    requests_s = Fraction(workload.events_per_second, workload.events_per_request)
    rounded = (4 * COSTS["writer_flush"] + requests_s * COSTS["writer_delta"] + 1) / 10**9  # counters and deltas are whole
    assert carry(found.needed)
    assert found.needed == 1 or not carry(found.needed - 1, rounded)
    assert found.start_s <= MACHINES.start_s
    assert found.needed == max(found.by_cpu, found.by_start)


@given(workloads)
def test_the_journal_is_that_of_the_oracle(workload: Workload) -> None:
    found = demand(workload, MACHINES, CONSTANTS)
    exact = oracle.journal_bytes_per_s(asked(workload), found.counters.per_s, found.kafka.records_per_s, COSTS)
    late = Fraction(COSTS["journal_delta"] * workload.events_per_second, workload.events_per_request)  # a delta of a request, rounded up
    assert exact <= found.journal.bytes_per_s < exact + late + 1
    assert found.journal.kept_s == asked(workload).kept_s
    assert found.journal.all_bytes >= found.journal.bytes_per_s * found.journal.kept_s


@given(workloads)
def test_claims_are_those_of_the_oracle(workload: Workload) -> None:
    found = demand(workload, MACHINES, CONSTANTS).claims
    each = COSTS["packed_claim" if workload.packed else "valkey_claim" if workload.valkey else "redis_claim"]
    percent = COSTS["valkey_percent"] if workload.valkey else 100
    times = COSTS["packed_percent"] if workload.packed else 100
    costs = {**COSTS, **{name: Fraction(COSTS[name] * times, 100) for name in ("redis_cpu", "redis_look")}}
    cores = oracle.redis_cores(asked(workload), costs) * percent / 100
    assert found.alive == workload.events_per_second * asked(workload).kept_s
    assert found.bytes == found.alive * each
    assert rounded_up(found.cores_hundredths, cores * 100, 2)
    assert found.by_memory == -(-found.bytes // MACHINES.redis_bytes)
    assert rounded_up(found.by_cpu, cores / Fraction(MACHINES.busy_percent, 100), 2)


@given(workloads)
def test_what_is_stored_is_that_of_the_oracle(workload: Workload) -> None:
    found = demand(workload, MACHINES, CONSTANTS)
    counters, records, postgres = found.counters.per_s, found.kafka.records_per_s, found.postgres
    assert found.kafka.retained_bytes == oracle.kafka_disk(asked(workload), counters, records, COSTS)
    assert (postgres.usage_rows, postgres.series_rows, postgres.line_rows) == oracle.postgres_rows(asked(workload))
    assert postgres.all_bytes == oracle.postgres_disk(asked(workload), counters, records, COSTS)
    assert rounded_up(postgres.cores, Fraction(counters * COSTS["postgres_counter"], 10**7 * MACHINES.busy_percent))


# ---- by hand

PLAIN = Workload(1_000, 10, 2, max_age_s=3_600, max_skew_s=0, values=1, late_percent=0)
SIMPLE = Constants(
    writer_1000=Cost(2_000, "", 0, "", ""),
    writer_flush=Cost(1_000, "", 0, "", ""),
    writer_memory=Cost(1_000_000, "", 0, "", ""),
    counter_memory=Cost(300, "", 0, "", ""),
    counter_json=Cost(100, "", 0, "", ""),
    replay=Speed(1_000_000, "", 0, "", ""),
    redis_cpu=Cost(2_000, "", 0, "", ""),
    redis_request=Cost(10_000, "", 0, "", ""),
    redis_claim=Cost(100, "", 0, "", ""),
    redis_rebuild=Speed(100_000, "", 0, "", ""),
    journal_call=Cost(200, "", 0, "", ""),
    journal_claim=Cost(16, "", 0, "", ""),
    journal_delta=Cost(30, "", 0, "", ""),
    journal_counter=Cost(40, "", 0, "", ""),
    record=Cost(500, "", 0, "", ""),
    kafka_counter=Cost(20, "", 0, "", ""),
    rater=Speed(10_000, "", 0, "", ""),
    postgres_record=Cost(50, "", 0, "", ""),
    postgres_row=Cost(600, "", 0, "", ""),
    archived_record=Cost(100, "", 0, "", ""),
    archive_counter=Cost(20, "", 0, "", ""),
    postgres_usage=Cost(200, "", 0, "", ""),
    postgres_series=Cost(100, "", 0, "", ""),
    postgres_line=Cost(1_000, "", 0, "", ""),
)


def test_a_thousand_events_a_second_by_hand() -> None:
    found = demand(PLAIN, MACHINES, SIMPLE)
    # 20 keys, each once in 10 s, and once more in an hour where a window ends within an interval: 2 a second and a bit.
    assert (found.counters.keys, found.counters.per_s, found.counters.deltas_per_request) == (20, 3, 20)
    # A request of 1000 takes 2 ms, three counters 3 us: 0.2 % of a core. 93,900 s of events are 93.9 million, read in 94 s.
    assert found.journal.kept_s == 25 * 3_600 + 3_600 + 300 == 93_900
    assert (found.writers.needed, found.writers.cpu_ns_per_event, found.writers.start_s) == (1, 2_000 + 3, 94)
    # 30 counters a flush, each twice 300 B and twice 100 B; 512 MiB of requests.
    assert found.writers.memory_bytes == 1_000_000 + 536_870_912 + 30 * 800
    # A record in each of 6 partitions every 10 s, 0.6 a second; and the beginning of another: 2.
    assert found.kafka.records_per_s == 2
    # A call a second: 200 + 1000 * 16 + 20 * 30 = 16,800; 3 counters of 40, 2 records of 500.
    assert found.journal.bytes_per_s == 16_800 + 120 + 1_000
    assert found.journal.disk_bytes == 17_920 * 93_900 + 3 * 67_108_864 + 268_435_456
    assert (found.claims.alive, found.claims.bytes, found.claims.primaries, found.claims.rebuild_s) == (93_900_000, 9_390_000_000, 1, 939)
    # 10 us and 1000 times 2 us a second: 0.201 % of a core.
    assert found.claims.cores_hundredths == 1
    # 3 * 20 + 2 * 500, three copies, a week.
    assert (found.kafka.bytes_per_s, found.kafka.retained_bytes) == (1_060, 1_060 * 3 * 604_800)
    # 13 months of 31 days: 9,672 hours, 34,819,200 s.
    assert (found.postgres.usage_rows, found.postgres.series_rows, found.postgres.line_rows) == (193_440, 20, 260)
    assert found.postgres.record_bytes == (3 * 50 + 2 * 600) * 34_819_200
    assert found.postgres.all_bytes == 1_350 * 34_819_200 + 193_440 * 200 + 20 * 100 + 260 * 1_000
    assert found.postgres.archive_bytes == 0
    # Ten days whole, then 2 rows of 100 B; in files 3 counters of 20 B and 2 records of 500.
    archived = demand(PLAIN._replace(archived_s=864_000), MACHINES, SIMPLE).postgres
    assert archived.record_bytes == 1_350 * 864_000 + 2 * 100 * (34_819_200 - 864_000)
    assert archived.archive_bytes == (3 * 20 + 2 * 500) * (34_819_200 - 864_000)


def test_what_breaks_first_by_hand() -> None:
    # 64 GiB hold 687,194,767 claims of 100 B: 7,318 a second for 93,900 s. 0.6 s of CPU a second are 298,507 times 2.01 us.
    limits = {limit.part: limit.events_per_second for limit in size(PLAIN, MACHINES, SIMPLE).limits}
    assert limits["the memory of the largest tenant's shard"] == 7_318
    assert limits["the core of the largest tenant's shard"] == 298_507
    shard = "he memory of the largest tenant's shard"
    assert size(PLAIN, MACHINES, SIMPLE).bottleneck.startswith(f"Nothing breaks at 1,000 events/s; t{shard} would be first, ")
    more = size(PLAIN._replace(events_per_second=7_319), MACHINES, SIMPLE)
    assert more.bottleneck.startswith(f"T{shard} breaks first, beyond 7,318 events/s: a tenant is on one shard, ")


@pytest.mark.parametrize(
    ("rate", "tenants", "primaries", "fit"),
    [
        (7_318, 1, 1, True),
        (7_319, 1, 2, False),  # memory for two, and a tenant that fits on neither
        (14_000, 2, 2, True),
        (22_000, 4, 4, True),  # three have the memory, but a tenant of 5,500 is on one
        (22_000, 10, 4, True),  # three tenants of 2,200 each
        (21_000, 10, 4, True),  # three of 2,100: four are needed, although three would have the memory
        (20_000, 100, 3, True),
    ],
)
def test_a_shard_holds_whole_tenants(rate: int, tenants: int, primaries: int, fit: bool) -> None:
    found = demand(PLAIN._replace(events_per_second=rate, tenants=tenants), MACHINES, SIMPLE).claims
    assert (found.primaries, found.fit) == (primaries, fit)


@pytest.mark.parametrize(
    ("rate", "tenants", "percent", "primaries"),
    [
        (14_600, 4, 30, 3),  # 4,380 and three of 3,407: two of those on one, and none beside the largest
        (14_600, 4, 25, 2),
        (14_600, 8, 50, 2),  # 7,300, and seven of 1,043
        (14_600, 12, 34, 3),  # two of 876 beside 4,964, eight on the next, and one is left
        (14_000, 14, 40, 2),  # two of 647 beside 5,600, eleven on the other
        (7_000, 2, 100, 1),
    ],
)
def test_the_largest_tenant_takes_its_place(rate: int, tenants: int, percent: int, primaries: int) -> None:
    workload = PLAIN._replace(events_per_second=rate, tenants=tenants, largest_tenant_percent=percent)
    found = demand(workload, MACHINES, SIMPLE).claims
    assert (found.primaries, found.fit) == (primaries, True)


@pytest.mark.parametrize(
    ("rate", "tenants", "percent", "fullest"),
    [
        (22_000, 10, 0, 6_600),  # four shards: three, three, two and two tenants of 2,200
        (14_600, 4, 30, 6_814),  # three shards: 4,380, and three of 3,407, of which two are together
        (14_600, 8, 50, 7_301),
        (30_000, 2, 80, 24_000),  # does not fit on any
    ],
)
def test_the_fullest_shard_is_filled_longest(rate: int, tenants: int, percent: int, fullest: int) -> None:
    workload = PLAIN._replace(events_per_second=rate, tenants=tenants, largest_tenant_percent=percent)
    found = demand(workload, MACHINES, SIMPLE).claims
    assert found.bytes_each == fullest * 93_900 * 100
    assert found.rebuild_s == -(-fullest * 93_900 // 100_000)


def test_small_requests_are_many_records_to_read() -> None:
    # 93.9 million requests of an event, each a record of 4,900 ns beside 1000 ns for its event; but one in 1000 is in that of the event.
    found = demand(PLAIN._replace(events_per_request=1), MACHINES, SIMPLE._replace(replay_call=Cost(4_900, "", 0, "", ""))).writers
    assert (found.by_start, found.start_s) == (1, -(-(93_900 + 93_900 * 49 * 999 // 10_000) // 1000))


def test_a_meter_that_an_event_feeds_costs() -> None:
    # 1000 events, five hits each: 3,400 hits beyond 1.6. Four counters in two windows: no more deltas than usual.
    fed = demand(PLAIN._replace(meters=5, meters_per_event=5), MACHINES, SIMPLE._replace(writer_hit=Cost(100, "", 0, "", ""))).writers
    assert fed.cpu_ns_per_event - demand(PLAIN._replace(meters=5), MACHINES, SIMPLE).writers.cpu_ns_per_event == 340


def test_the_largest_tenant_limits_what_shards_can_do() -> None:
    found = size(PLAIN._replace(tenants=100, largest_tenant_percent=50), MACHINES, SIMPLE)
    limits = {limit.part: limit.events_per_second for limit in found.limits}
    assert limits["the memory of the largest tenant's shard"] == 2 * 7_318


def test_a_month_of_max_age_is_thirty_generations() -> None:
    # 2,592,000 + 90,000 + 300 s of 90,000 each: 29 that are over and the one that is filled.
    found = demand(PLAIN._replace(max_age_s=30 * 86_400), MACHINES, SIMPLE).claims
    assert found.generations == 30
    assert found.cores_hundredths == -(-(10_000 + 1_000 * (2_000 + 28 * SIMPLE.redis_look.planned)) // 10**7)


def test_there_are_never_more_rows_than_hits() -> None:
    # One event a second for a month of 2,678,400 s, and ten million keys.
    found = demand(PLAIN._replace(events_per_second=1, subjects=5_000_000, kept_months=1), MACHINES, SIMPLE).postgres
    assert (found.usage_rows, found.series_rows, found.line_rows) == (2_678_400, 2_678_400, 2_678_400)


def test_margins_are_for_the_worse() -> None:
    assert Cost(101, "B", 25, "", "").planned == 127  # 126.25
    assert Speed(100, "events/s", 25, "", "").planned == 80


# ---- for every workload


def least_rates(workload: Workload) -> Workload:
    return workload._replace(events_per_second=max(2, workload.events_per_second))


@given(workloads.map(least_rates))
def test_a_higher_rate_never_needs_less(workload: Workload) -> None:
    low = demand(workload._replace(events_per_second=workload.events_per_second // 2), MACHINES, CONSTANTS)
    high = demand(workload, MACHINES, CONSTANTS)
    for part in ("writers.needed", "journal.bytes_per_s", "claims.bytes", "claims.by_cpu", "claims.by_memory", "counters.per_s"):
        assert figure(low, part) <= figure(high, part), part
    for part in ("raters.needed", "postgres.cores", "postgres.usage_rows", "postgres.line_bytes", "network.ingest"):
        assert figure(low, part) <= figure(high, part), part


def figure(found: object, path: str) -> int:
    for name in path.split("."):
        found = getattr(found, name)
    assert type(found) is int, path  # neither a bool nor a float
    return found


@given(workloads)
def test_what_helps_helps(workload: Workload) -> None:
    plain = workload._replace(valkey=False, packed=False, routed=False)
    found = demand(plain, MACHINES, CONSTANTS)
    valkey = demand(plain._replace(valkey=True), MACHINES, CONSTANTS)
    packed = demand(plain._replace(packed=True), MACHINES, CONSTANTS)
    assert packed.claims.bytes < valkey.claims.bytes and packed.claims.cores_hundredths >= valkey.claims.cores_hundredths
    assert valkey.claims.bytes < found.claims.bytes and valkey.claims.cores_hundredths <= found.claims.cores_hundredths
    assert demand(plain._replace(routed=True), MACHINES, CONSTANTS).counters.per_s <= found.counters.per_s
    longer = plain._replace(flush_interval_ms=min(3_600_000, 2 * plain.flush_interval_ms))
    assert demand(longer, MACHINES, CONSTANTS).counters.per_s <= found.counters.per_s
    younger = plain._replace(max_age_s=plain.max_age_s // 2)
    assert demand(younger, MACHINES, CONSTANTS).claims.bytes < found.claims.bytes


@settings(max_examples=40, deadline=None)
@given(workloads)
def test_a_limit_holds_at_its_rate_and_not_beyond(workload: Workload) -> None:
    found = size(workload, MACHINES, CONSTANTS)
    assert [limit.events_per_second for limit in found.limits] == sorted(limit.events_per_second for limit in found.limits)
    for limit in found.limits:
        if limit.breaks:
            assert not holds(limit.part, workload, limit.events_per_second + 1)
            assert limit.events_per_second == 0 or holds(limit.part, workload, limit.events_per_second)
    assert found.limits[0].part.lower() in found.bottleneck.lower()
    assert ("breaks first" in found.bottleneck) == (workload.events_per_second > found.limits[0].events_per_second)


def holds(part: str, workload: Workload, rate: int) -> bool:
    found = demand(workload._replace(events_per_second=rate), MACHINES, CONSTANTS)
    return {
        "the memory of the largest tenant's shard": largest(workload, rate).by_memory <= 1,
        "the core of the largest tenant's shard": largest(workload, rate).by_cpu <= 1,
        "the CPU of PostgreSQL": found.postgres.cores <= MACHINES.postgres_cores,
        "the disk of PostgreSQL": found.postgres.all_bytes <= MACHINES.postgres_bytes,
        "the partitions of Kafka": found.raters.needed <= found.kafka.partitions,
    }[part]


def largest(workload: Workload, rate: int) -> Claims:
    alone = max(1, -(-rate // workload.tenants))
    return demand(workload._replace(events_per_second=alone, tenants=1), MACHINES, CONSTANTS).claims


@given(workloads)
def test_each_shard_is_within_its_machine_when_tenants_fit(workload: Workload) -> None:
    found = demand(workload, MACHINES, CONSTANTS).claims
    tenants_each = -(-workload.tenants // found.primaries)
    if found.fit:
        assert tenants_each * -(-workload.events_per_second // workload.tenants) <= primary_per_s(workload, MACHINES, CONSTANTS)
    assert found.bytes_each * found.primaries >= found.bytes
    if found.fit:
        assert found.bytes_each <= MACHINES.redis_bytes


@pytest.mark.parametrize(
    ("plain", "other", "told", "percent"),
    [
        (PLAIN, PLAIN._replace(valkey=True), "Valkey, which takes two thirds;", 67),
        (PLAIN, PLAIN._replace(packed=True), "packed claims (redis.layout), which take two fifths;", 40),
        (PLAIN._replace(valkey=True), PLAIN._replace(packed=True), "packed claims (redis.layout), which take little more than half;", 55),
    ],
)
def test_what_helps_takes_what_is_said(plain: Workload, other: Workload, told: str, percent: int) -> None:
    (memory,) = [limit for limit in size(plain, MACHINES, CONSTANTS).limits if limit.part.startswith("the memory")]
    assert told in memory.remedy
    found = 100 * demand(other, MACHINES, CONSTANTS).claims.bytes // demand(plain, MACHINES, CONSTANTS).claims.bytes
    assert abs(found - percent) <= 4


@pytest.mark.parametrize("name", Constants._fields)
def test_no_constant_is_idle(name: str) -> None:
    """Ten times as much of any of them changes what some workload needs."""
    cost = getattr(CONSTANTS, name)
    changed = CONSTANTS._replace(**{name: cost._replace(value=10 * cost.value)})
    tried = [
        Workload(
            10**6,
            10**5,
            10,
            events_per_request=events,
            max_age_s=7 * 86_400,
            valkey=valkey,
            packed=packed,
            meters_per_event=meters,
            archived_s=7 * 86_400,
        )
        for meters in (1, 10)
        for events in (1, 10, 100, 1_000)
        for valkey in (False, True)
        for packed in (False, True)
    ]
    assert [demand(w, MACHINES, CONSTANTS) for w in tried] != [demand(w, MACHINES, changed) for w in tried]


def test_settings_that_do_not_suffice_are_named() -> None:
    # An hour's flush of 500,000 keys has each once, and as many for the window that ends within it: 278 a second, 1,000,800 of one writer.
    found = size(PLAIN._replace(subjects=250_000, flush_interval_ms=3_600_000), MACHINES, SIMPLE)
    assert (found.demand.writers.needed, found.demand.counters.per_flush) == (1, 1_000_800)
    assert found.settings == [("flush.max_counters", 1_000_801, 1_000_000), ("ingest.max_live_counters", 4_003_204, 4_000_000)]
    fewer = size(PLAIN._replace(subjects=245_000, flush_interval_ms=3_600_000), MACHINES, SIMPLE)
    assert fewer.settings == []
    assert [name for name, _, _ in size(PLAIN._replace(events_per_second=6_000), MACHINES, SIMPLE).settings] == ["journal.max_bytes"]
