"""A writer as numbers: what the ledger and the metrics show of one worker at one moment.

Belongs here: the values alone, plain and serialisable, so that a supervisor can ask its workers for them. Must not know: who fills them in,
Prometheus, HTTP.
"""

from __future__ import annotations

from bisect import bisect_left

from msgspec import Struct, field

# Upper bounds of a latency's buckets; one more bucket takes the rest.
LATENCY_BOUNDS_US = (100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000)


class Latency(Struct):
    """A histogram that costs a fraction of a microsecond to feed."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_US) + 1))
    total_us: int = 0

    def observe(self, us: int) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS_US, us)] += 1
        self.total_us += us


class TenantLedger(Struct):
    """received = accepted + duplicate + all of rejected; accepted = flushed + buffered."""

    received: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: dict[str, int] = field(default_factory=dict)  # by code
    unanswered: int = 0  # events of requests that were refused or ran out of time after they were decoded
    flushed: int = 0
    buffered: int = 0


class WriterSnapshot(Struct, kw_only=True):
    writer: str  # 32 hexadecimal digits
    worker: int
    version: str = ""
    incarnation: str = ""
    ready: bool = False
    claims_states: list[str] = field(default_factory=list)  # of each shard: disconnected, rebuilding, open
    clocks_off_us: list[int | None] = field(default_factory=list)  # by how much ours is ahead of each shard's; None: not known
    tenants: dict[str, TenantLedger] = field(default_factory=dict)
    live_counters: int = 0
    rejected_bytes: int = 0
    calls_in_flight: int = 0
    waiting_requests: int = 0
    waiting_events: int = 0
    pending_events: int = 0  # granted to another call whose record is not on its disk yet
    journal_bytes: int = 0
    journal_free_bytes: int = 0  # of its disk, as far as known
    journal_least_free_bytes: int = 0  # below it requests are refused
    journal_synced: int = 0  # the last sequence number on disk
    flush_interval_ms: int = 0
    flush_number: int = 0
    flush_failures: int = 0  # attempts that ended without a known outcome; they are made again
    last_flush_us: int = 0  # when the last one ended, 0: none yet
    last_flush_duration_us: int = 0
    unflushed_since_us: int = 0  # when the oldest counter that is not handed over was counted, 0: there is none
    answers: dict[int, int] = field(default_factory=dict)  # HTTP answers by status
    refused: dict[str, dict[str, int]] = field(default_factory=dict)  # requests answered 429 or 503, by tenant and reason
    connections: int = 0
    connections_refused: int = 0
    connections_displaced: int = 0
    in_flight_bytes: int = 0  # bodies of requests that are not answered
    bounds: dict[str, int] = field(default_factory=dict)  # of what is bounded: name of the field above -> most
    claim_call: Latency = field(default_factory=Latency)  # from sending a call to its reply
    journal_sync: Latency = field(default_factory=Latency)
    flush: Latency = field(default_factory=Latency)
