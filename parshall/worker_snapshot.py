"""A worker's numbers, gathered from its parts for the ledger and the metrics.

Must not know: who asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ingest.http import Edge
from ingest.snapshot import TenantLedger, WriterSnapshot
from ingest.writer import Writer
from parshall.version import version

_NOT_REJECTED = ("received", "accepted", "duplicate")


def take_snapshot(worker: int, writer: Writer, edge: Edge) -> WriterSnapshot:
    flusher = writer.flusher
    return WriterSnapshot(
        writer=writer.journal.writer.hex(),
        worker=worker,
        version=version(),
        incarnation=writer.incarnation.hex(),
        ready=writer.serves and writer.journal_full() is None,
        claims_states=[lane.claims.state.value for lane in writer.lanes],
        clocks_off_us=[lane.claims.clock_off_us for lane in writer.lanes],
        tenants=_ledgers(writer, writer.tenants),
        live_counters=flusher.live_counters,
        rejected_bytes=flusher.rejected_held.total,
        calls_in_flight=writer.calls_in_flight,
        waiting_requests=writer.waiting_requests,
        waiting_events=writer.waiting_events,
        pending_events=writer.pending_events,
        journal_bytes=writer.journal.kept_bytes,
        journal_free_bytes=writer.journal.free_bytes,
        journal_least_free_bytes=writer.journal.least_free_bytes,
        journal_synced=writer.journal.synced,
        flush_interval_ms=flusher.interval_ms,
        flush_number=flusher.flush_number,
        flush_failures=flusher.failures,
        last_flush_us=flusher.last_flush_us,
        last_flush_duration_us=flusher.last_duration_us,
        unflushed_since_us=flusher.unflushed_since_us,
        answers=dict(edge.statuses),
        refused=_refused(writer, edge, writer.tenants),
        connections=edge.connections,
        connections_refused=edge.refused_connections,
        connections_displaced=edge.displaced_connections,
        in_flight_bytes=edge.in_flight.total,
        bounds={
            "connections": edge.limits.connections,
            "in_flight_bytes": edge.in_flight.limit,
            "waiting_events": writer.limits.waiting_events,
            "live_counters": writer.limits.live_counters,
            "rejected_bytes": writer.limits.rejected_bytes,
            "journal_bytes": writer.journal.most_bytes,
        },
        claim_call=writer.claim_call,
        journal_sync=writer.journal_sync,
        flush=flusher.duration,
    )


def _refused(writer: Writer, edge: Edge, tenants: Mapping[int, str]) -> dict[str, dict[str, int]]:
    """Tenant -> reason -> requests."""
    refused: dict[str, dict[str, int]] = {}
    for (tenant, why), requests in [*writer.refused.items(), *(((tenant, "in_flight"), n) for tenant, n in edge.refused.items())]:
        refused.setdefault(tenants.get(tenant, str(tenant)), {})[why] = requests
    return refused


def _ledgers(writer: Writer, tenants: Mapping[int, str]) -> dict[str, TenantLedger]:
    journal = writer.journal
    return {
        name: _ledger(
            journal.totals.get(number, {}),
            journal.flushed.get(number, 0),
            writer.flusher.buffered(number),
            writer.unanswered.get(number, 0),
        )
        for number, name in tenants.items()
    }


def _ledger(totals: Mapping[str, int], flushed: int, buffered: int, unanswered: int) -> TenantLedger:
    """Accepted comes from the calls, flushed from acknowledged flushes, buffered from what is in memory: three sources, one equation."""
    return TenantLedger(
        received=totals.get("received", 0),
        accepted=totals.get("accepted", 0),
        duplicate=totals.get("duplicate", 0),
        rejected={code: events for code, events in totals.items() if code not in _NOT_REJECTED},
        unanswered=unanswered,
        flushed=flushed,
        buffered=buffered,
    )
