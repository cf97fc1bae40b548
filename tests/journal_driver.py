"""Small journal records, and a way to open journals, for the tests of the journal.

Must not know: what the journal should answer; that is each test's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from buffer.counter_log import Record, Rejected
from buffer.counters import Deltas, MeterDefinition, Tallies, pack
from buffer.disk import Background, Disk
from buffer.journal import Journal, JournalLimits, open_journal
from buffer.journal_records import CallRecord, FlushBegin, FlushCommit, FlushPart, JournalRecord, Through
from tests.lossy_disk import Inline

DIRECTORY = "/data/writers/0"
METER = MeterDefinition("requests", "0123456789abcdef", "count", 0, 3600, ("region",))

SMALL = JournalLimits(segment_bytes=700, max_bytes=1 << 30, min_free_bytes=0, free_check_bytes=1 << 20)


def clock_us() -> int:
    return 1_700_000_000_000_000


def seeded_entropy(random: Random) -> Any:
    return random.randbytes


async def opened(
    disk: Disk, random: Random, limits: JournalLimits = SMALL, directory: str = DIRECTORY, background: Background | None = None
) -> Journal:
    return await open_journal(
        directory, disk=disk, background=background or Inline(), entropy=seeded_entropy(random), clock_us=clock_us, limits=limits
    )


def call(
    number: int,
    accepted: int,
    *,
    newest_us: int = 0,
    horizon_us: int = 0,
    tenant: int = 1,
    random: Random | None = None,
    rejected: Sequence[Rejected] = (),
) -> CallRecord:
    """A call that granted `accepted` events, each with a digest; their counters depend on the number only."""
    random = random or Random(number)
    deltas: list[Deltas] = []
    if accepted:
        deltas = [{"sum": {(1, tenant, f"subject {number % 3}", 3600 * (number % 2), "eu"): pack(10 * accepted, accepted)}}]
    tallies: Tallies = {tenant: {"received": accepted + 1, "accepted": accepted, "duplicate": 1}}
    claims = [(tenant, random.randbytes(12 * accepted), random.randbytes(4 * accepted))] if accepted else []
    return CallRecord(number, 3, number + 1, horizon_us, newest_us, claims, deltas, tallies, list(rejected))


def flush_records(flush: int, through: Through, records: Sequence[Record], parts: int = 1) -> list[JournalRecord]:
    size = -(-len(records) // parts)
    pieces = [FlushPart(flush, list(records[at : at + size])) for at in range(0, len(records), size)] if records else []
    return [FlushBegin(flush, through), *pieces, FlushCommit(flush)]
