"""Prometheus metrics: a closed set of names, made from snapshots at the moment of a scrape.

Belongs here: names, kinds, what each one means. Must not know: where the numbers come from. Nothing of Prometheus runs on the hot path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ingest.auth import Principal
from ingest.http import SERVER, Route
from ingest.snapshot import LATENCY_BOUNDS_US, Latency, WriterSnapshot

_STATES = ("disconnected", "rebuilding", "open", "full")

Sample = tuple[tuple[str, ...], int | float]  # label values, value
LatencySample = tuple[tuple[str, ...], Latency]


class Spec(NamedTuple):
    """One metric. `samples` reads the numbers of one worker; the label `worker` is put before the others."""

    name: str
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    help: str
    labels: tuple[str, ...]
    samples: Callable[[WriterSnapshot, int], Iterable[Sample]]  # (snapshot, now in us)


class LatencySpec(NamedTuple):
    name: str
    help: str
    read: Callable[[WriterSnapshot], Latency]


def _one(read: Callable[[WriterSnapshot], int | float]) -> Callable[[WriterSnapshot, int], Iterable[Sample]]:
    return lambda snapshot, _now_us: [((), read(snapshot))]


def _info(snapshot: WriterSnapshot, _now_us: int) -> Iterator[Sample]:
    yield (snapshot.writer, snapshot.version), 1


def _verdicts(snapshot: WriterSnapshot, _now_us: int) -> Iterator[Sample]:
    for tenant, ledger in snapshot.tenants.items():
        yield (tenant, "accepted"), ledger.accepted
        yield (tenant, "duplicate"), ledger.duplicate
        for code, events in ledger.rejected.items():
            yield (tenant, code), events


def _by_tenant(field: str) -> Callable[[WriterSnapshot, int], Iterable[Sample]]:
    return lambda snapshot, _now_us: [((tenant,), getattr(ledger, field)) for tenant, ledger in snapshot.tenants.items()]


def _lag(snapshot: WriterSnapshot, now_us: int) -> Iterator[Sample]:
    yield (), max(0, now_us - snapshot.unflushed_since_us) / 1_000_000 if snapshot.unflushed_since_us else 0


SPECS: Sequence[Spec] = (
    Spec("parshall_writer_info", GaugeMetricFamily, "1: which writer a worker is, and its version.", ("writer", "version"), _info),
    Spec(
        "parshall_events_total",
        CounterMetricFamily,
        "Verdicts on events, by tenant: accepted, duplicate, or a rejection code.",
        ("tenant", "verdict"),
        _verdicts,
    ),
    Spec(
        "parshall_events_received_total",
        CounterMetricFamily,
        "Events received, by tenant; the sum of its verdicts.",
        ("tenant",),
        _by_tenant("received"),
    ),
    Spec(
        "parshall_events_unanswered_total",
        CounterMetricFamily,
        "Events of requests that were refused, or ran out of time, after they were decoded.",
        ("tenant",),
        _by_tenant("unanswered"),
    ),
    Spec(
        "parshall_events_flushed_total",
        CounterMetricFamily,
        "Accepted events whose counters are in the counter log.",
        ("tenant",),
        _by_tenant("flushed"),
    ),
    Spec(
        "parshall_events_buffered",
        GaugeMetricFamily,
        "Accepted events whose counters are not in the counter log yet.",
        ("tenant",),
        _by_tenant("buffered"),
    ),
    Spec(
        "parshall_http_answers_total",
        CounterMetricFamily,
        "HTTP answers, by status.",
        ("status",),
        lambda snapshot, _now_us: [((str(status),), answers) for status, answers in snapshot.answers.items()],
    ),
    Spec(
        "parshall_requests_refused_total",
        CounterMetricFamily,
        "Requests answered 429 or 503, by tenant and reason.",
        ("tenant", "reason"),
        lambda snapshot, _now_us: [
            ((tenant, reason), requests) for tenant, reasons in snapshot.refused.items() for reason, requests in reasons.items()
        ],
    ),
    Spec(
        "parshall_connections",
        GaugeMetricFamily,
        "Open connections.",
        (),
        _one(lambda snapshot: snapshot.connections),
    ),
    Spec(
        "parshall_connections_refused_total",
        CounterMetricFamily,
        "Connections closed because too many were open, of all or of their tenant.",
        (),
        _one(lambda snapshot: snapshot.connections_refused),
    ),
    Spec(
        "parshall_connections_displaced_total",
        CounterMetricFamily,
        "Connections closed to make room for new ones: no valid key had come over them.",
        (),
        _one(lambda snapshot: snapshot.connections_displaced),
    ),
    Spec(
        "parshall_in_flight_bytes",
        GaugeMetricFamily,
        "Bodies of requests that are not answered, unpacked.",
        (),
        _one(lambda snapshot: snapshot.in_flight_bytes),
    ),
    Spec(
        "parshall_bound",
        GaugeMetricFamily,
        "The most that there may be of what another metric shows, by its name: connections, live_counters, and so on.",
        ("of",),
        lambda snapshot, _now_us: [((of,), most) for of, most in snapshot.bounds.items()],
    ),
    Spec(
        "parshall_ready",
        GaugeMetricFamily,
        "1 while requests can be served, of the tenants of some shard at least, and the journal has room.",
        (),
        _one(lambda snapshot: int(snapshot.ready)),
    ),
    Spec(
        "parshall_claims_state",
        GaugeMetricFamily,
        "1 for the state that the claims of a shard are in: disconnected, rebuilding, open, full.",
        ("shard", "state"),
        lambda snapshot, _now_us: [
            ((str(shard), state), int(state == found)) for shard, found in enumerate(snapshot.claims_states) for state in _STATES
        ],
    ),
    Spec(
        "parshall_clock_off_seconds",
        GaugeMetricFamily,
        "By how much this machine's clock is ahead of that of the shard's Redis; less than 0: behind.",
        ("shard",),
        lambda snapshot, _now_us: [
            ((str(shard),), off_us / 1_000_000) for shard, off_us in enumerate(snapshot.clocks_off_us) if off_us is not None
        ],
    ),
    Spec(
        "parshall_live_counters",
        GaugeMetricFamily,
        "Counters in memory, waiting for the next flush.",
        (),
        _one(lambda snapshot: snapshot.live_counters),
    ),
    Spec(
        "parshall_rejected_bytes",
        GaugeMetricFamily,
        "Rejected events in memory, waiting for the next flush.",
        (),
        _one(lambda snapshot: snapshot.rejected_bytes),
    ),
    Spec(
        "parshall_calls_in_flight",
        GaugeMetricFamily,
        "Claim calls sent and not answered yet.",
        (),
        _one(lambda snapshot: snapshot.calls_in_flight),
    ),
    Spec(
        "parshall_waiting_requests",
        GaugeMetricFamily,
        "Requests that wait for a claim call.",
        (),
        _one(lambda snapshot: snapshot.waiting_requests),
    ),
    Spec(
        "parshall_waiting_events",
        GaugeMetricFamily,
        "Events of the requests that wait for a claim call.",
        (),
        _one(lambda snapshot: snapshot.waiting_events),
    ),
    Spec(
        "parshall_pending_events",
        GaugeMetricFamily,
        "Events that another call was granted, whose record is not on its disk yet.",
        (),
        _one(lambda snapshot: snapshot.pending_events),
    ),
    Spec("parshall_journal_bytes", GaugeMetricFamily, "Bytes of the journal on disk.", (), _one(lambda snapshot: snapshot.journal_bytes)),
    Spec(
        "parshall_journal_free_bytes",
        GaugeMetricFamily,
        "Bytes that the journal's disk has free, as far as known.",
        (),
        _one(lambda snapshot: snapshot.journal_free_bytes),
    ),
    Spec(
        "parshall_journal_least_free_bytes",
        GaugeMetricFamily,
        "Bytes that the journal keeps free on its disk: with fewer, requests are refused.",
        (),
        _one(lambda snapshot: snapshot.journal_least_free_bytes),
    ),
    Spec(
        "parshall_journal_synced_sequence",
        GaugeMetricFamily,
        "The last journal record on disk.",
        (),
        _one(lambda snapshot: snapshot.journal_synced),
    ),
    Spec(
        "parshall_flush_interval_seconds",
        GaugeMetricFamily,
        "How often counters are flushed.",
        (),
        _one(lambda snapshot: snapshot.flush_interval_ms / 1000),
    ),
    Spec(
        "parshall_flushes_total",
        CounterMetricFamily,
        "Flushes since the journal was made.",
        (),
        _one(lambda snapshot: snapshot.flush_number),
    ),
    Spec(
        "parshall_flush_failures_total",
        CounterMetricFamily,
        "Attempts to produce a flush that ended without a known outcome; they are made again.",
        (),
        _one(lambda snapshot: snapshot.flush_failures),
    ),
    Spec(
        "parshall_last_flush_timestamp_seconds",
        GaugeMetricFamily,
        "When the last flush ended, in seconds since 1970; 0 if none has.",
        (),
        _one(lambda snapshot: snapshot.last_flush_us / 1_000_000),
    ),
    Spec("parshall_flush_lag_seconds", GaugeMetricFamily, "Age of the oldest counter that is not in the counter log.", (), _lag),
)

LATENCIES: Sequence[LatencySpec] = (
    LatencySpec("parshall_claim_call_seconds", "From sending a claim call to its reply.", lambda snapshot: snapshot.claim_call),
    LatencySpec("parshall_journal_sync_seconds", "One write and sync of the journal.", lambda snapshot: snapshot.journal_sync),
    LatencySpec("parshall_flush_seconds", "One flush, from the swap of the counters to the counter log.", lambda snapshot: snapshot.flush),
)


class SnapshotCollector(Collector):
    """Reads the snapshots of all workers once a scrape."""

    def __init__(self, snapshots: Callable[[], Iterable[WriterSnapshot]], clock_us: Callable[[], int]) -> None:
        self._snapshots = snapshots
        self._clock_us = clock_us

    def describe(self) -> list[Metric]:
        return []  # the names are known without asking the workers

    def collect(self) -> Iterator[Metric]:
        snapshots = list(self._snapshots())
        now_us = self._clock_us()
        for spec in SPECS:
            family = spec.kind(spec.name, spec.help, labels=("worker", *spec.labels))
            for snapshot in snapshots:
                for labels, value in spec.samples(snapshot, now_us):
                    family.add_metric((str(snapshot.worker), *labels), value)
            yield family
        for latency in LATENCIES:
            histogram = HistogramMetricFamily(latency.name, latency.help, labels=("worker",))
            for snapshot in snapshots:
                read = latency.read(snapshot)
                histogram.add_metric((str(snapshot.worker),), buckets=_buckets(read), sum_value=read.total_us / 1_000_000)
            yield histogram


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound_us, observed in zip((*LATENCY_BOUNDS_US, None), latency.counts, strict=True):
        below += observed
        buckets.append(("+Inf" if bound_us is None else str(bound_us / 1_000_000), below))
    return buckets


def metrics_routes(*collectors: Collector, refresh: Callable[[], Awaitable[None]] | None = None) -> Mapping[tuple[str, str], Route]:
    """To add to `Edge.routes`. Open: what scrapes has no key. `refresh` comes before each reading."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)

    async def show(request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        if refresh is not None:
            await refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type, "Server": SERVER})

    return {("GET", "/metrics"): Route(show, None)}
