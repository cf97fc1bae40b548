"""A worker's numbers, gathered from its parts for the ledger and the metrics.

Must not know: who asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping

from buffer.journal import Journal
from ingest.snapshot import TenantLedger, WriterSnapshot
from ingest.writer import Writer

_NOT_REJECTED = ("received", "accepted", "duplicate")


def take_snapshot(worker: int, writer: Writer, tenants: Mapping[int, str], answers: Mapping[int, int]) -> WriterSnapshot:
    flusher = writer.flusher
    return WriterSnapshot(
        writer=writer.journal.writer.hex(),
        worker=worker,
        incarnation=writer.incarnation.hex(),
        ready=writer.ready,
        claims_state=writer.claims.state.value,
        tenants=_ledgers(writer.journal, writer.unanswered, tenants),
        live_counters=flusher.live_counters,
        journal_synced=writer.journal.synced,
        flush_interval_ms=flusher.interval_ms,
        flush_number=flusher.flush_number,
        flush_failures=flusher.failures,
        last_flush_us=flusher.last_flush_us,
        last_flush_duration_us=flusher.last_duration_us,
        answers=dict(answers),
    )


def _ledgers(journal: Journal, unanswered: Mapping[int, int], tenants: Mapping[int, str]) -> dict[str, TenantLedger]:
    return {
        name: _ledger(journal.totals.get(number, {}), journal.flushed.get(number, 0), unanswered.get(number, 0))
        for number, name in tenants.items()
    }


def _ledger(totals: Mapping[str, int], flushed: int, unanswered: int) -> TenantLedger:
    accepted = totals.get("accepted", 0)
    return TenantLedger(
        received=totals.get("received", 0),
        accepted=accepted,
        duplicate=totals.get("duplicate", 0),
        rejected={code: events for code, events in totals.items() if code not in _NOT_REJECTED},
        unanswered=unanswered,
        flushed=flushed,
        buffered=accepted - flushed,
    )
