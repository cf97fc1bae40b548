"""What a workload needs, reckoned in fractions straight from the words of the model, one stage after the other.

Each stage takes what the one before came to, so that roundings do not pile up. Costs are given by name, margins included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

HOUR_S = 3600
MONTH_S = 31 * 24 * HOUR_S
GENERATION_S = 25 * HOUR_S
CLOCKS_S = 300

Costs = Mapping[str, int]


@dataclass(frozen=True)
class Asked:
    events_per_second: int
    subjects: int
    meters: int
    values: int
    meters_per_event: int
    window_s: int
    max_age_s: int
    max_skew_s: int
    late_percent: int
    events_per_request: int
    flush_interval_ms: int
    replication: int
    retention_s: int
    kept_months: int
    archived_s: int
    routed: bool

    @property
    def keys(self) -> int:
        return self.subjects * self.meters * self.values

    @property
    def hits(self) -> int:
        return self.events_per_second * self.meters_per_event

    @property
    def interval_s(self) -> Fraction:
        return Fraction(self.flush_interval_ms, 1000)

    @property
    def kept_s(self) -> int:
        """The oldest claim: it came first in a generation whose last event lay ahead of the clock as far as it may."""
        return GENERATION_S + self.max_skew_s + (self.max_age_s + self.max_skew_s + CLOCKS_S)


def counters_per_s(asked: Asked, writers: int) -> Fraction:
    meeting = asked.keys * (1 if asked.routed else writers)
    late_windows = -(-asked.max_age_s // asked.window_s)
    late_hits = Fraction(asked.hits * asked.late_percent, 100)
    in_time = meeting / asked.interval_s + Fraction(meeting, asked.window_s)
    return min(Fraction(asked.hits), in_time + min(late_hits, meeting * late_windows / asked.interval_s))


def deltas_per_request(asked: Asked) -> Fraction:
    hits = asked.events_per_request * asked.meters_per_event
    return min(Fraction(hits), asked.keys + Fraction(hits * asked.late_percent, 100))


def writer_cores(asked: Asked, writers: int, costs: Costs) -> Fraction:
    """Of all of them together; requests of 1, 10, 100 or 1000 events."""
    events = asked.events_per_request
    counters_met = min(300, Fraction(16 * events, 10))
    request = events * costs[f"writer_{events}"] + max(Fraction(0), deltas_per_request(asked) - counters_met) * costs["writer_delta"]
    hits = events * asked.meters_per_event
    request += max(0, hits - 16 * events // 10) * costs["writer_hit"]
    requests_s = Fraction(asked.events_per_second, events)
    return (requests_s * request + counters_per_s(asked, writers) * costs["writer_flush"]) / 10**9


def replay_s(asked: Asked, costs: Costs) -> Fraction:
    """Every event and, but for one in a thousand events, every request that is in all journals together."""
    events = asked.events_per_second * asked.kept_s
    requests = -(-events // asked.events_per_request) + (-events // 1000)
    return Fraction(events, costs["replay"]) + Fraction(requests * costs["replay_call"], 10**9)


def journal_bytes_per_s(asked: Asked, counters: int, records: int, costs: Costs) -> Fraction:
    calls_s = Fraction(asked.events_per_second, asked.events_per_request)
    of_calls = calls_s * (costs["journal_call"] + deltas_per_request(asked) * costs["journal_delta"])
    return of_calls + asked.events_per_second * costs["journal_claim"] + counters * costs["journal_counter"] + records * costs["record"]


def redis_cores(asked: Asked, costs: Costs) -> Fraction:
    older = max(0, asked.kept_s // GENERATION_S - 1)
    a_claim = costs["redis_cpu"] + older * costs["redis_look"]
    requests_s = Fraction(asked.events_per_second, asked.events_per_request)
    return (requests_s * costs["redis_request"] + asked.events_per_second * a_claim) / 10**9


def records_per_s(asked: Asked, counters: int, writers: int, partitions: int, costs: Costs) -> Fraction:
    """Every flush of a writer begins one in each partition that it has a counter for; a full one makes one more."""
    flushes_s = writers / asked.interval_s
    in_a_flush = -(-(counters * asked.interval_s) // writers)
    return flushes_s * min(partitions, in_a_flush) + Fraction(counters * costs["counter_json"], 256 * 1024)


def kafka_disk(asked: Asked, counters: int, records: int, costs: Costs) -> int:
    return (counters * costs["kafka_counter"] + records * costs["record"]) * asked.replication * asked.retention_s


def postgres_rows(asked: Asked) -> tuple[int, int, int]:
    """Usage, series, charge lines: never more than there were hits."""
    all_hits = asked.hits * asked.kept_months * MONTH_S
    windows = asked.kept_months * -(-MONTH_S // asked.window_s)
    return min(all_hits, asked.keys * windows), min(all_hits, asked.keys), min(all_hits, asked.keys * asked.kept_months)


def postgres_disk(asked: Asked, counters: int, records: int, costs: Costs) -> int:
    usage, series, lines = postgres_rows(asked)
    a_second = counters * costs["postgres_record"] + records * costs["postgres_row"]
    kept_s = asked.kept_months * MONTH_S
    here_s = min(asked.archived_s, kept_s) if asked.archived_s else kept_s
    of_records = a_second * here_s + records * costs["archived_record"] * (kept_s - here_s)
    return of_records + usage * costs["postgres_usage"] + series * costs["postgres_series"] + lines * costs["postgres_line"]
