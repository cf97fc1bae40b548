"""An HTTP edge whose sink is a dict, for tests of what is between a socket and that sink."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ingest.auth import Keys, Principal, hash_key
from ingest.batch import CONFLICT, Batch, Rejection
from ingest.catalogue import read_catalogue
from ingest.decode import Decoder, Limits
from ingest.http import Edge, HttpLimits
from ingest.sink import Outcome, Unavailable

NOW_US = 1_795_514_400_000_000  # 2026-11-24T10:00:00Z
METERS = [
    {"name": "egress", "event_type": "http.request", "aggregation": "sum", "value": "data.bytes", "dimensions": {"region": "data.region"}},
    {"name": "pings", "event_type": "ping", "aggregation": "count", "time": "arrival"},
]


class MemorySink:
    """Takes what is new, as a writer does; or answers what a test wants."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, bytes], bytes] = {}
        self.batches: list[Batch] = []
        self.fails: Exception | None = None
        self.refuses: Unavailable | None = None
        self.wait = asyncio.Event()
        self.wait.set()
        self.deadline_in_s = 0

    def check(self, tenant: int) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def submit(self, batch: Batch, deadline_s: float) -> Outcome:
        self.deadline_in_s = round(deadline_s - asyncio.get_running_loop().time())
        await self.wait.wait()
        if self.fails is not None:
            raise self.fails
        self.batches.append(batch)
        accepted = duplicate = 0
        rejections = list(batch.rejections)
        for position, digest in enumerate(batch.digests):
            fingerprint = batch.fingerprints[4 * position : 4 * position + 4]
            known = self.seen.setdefault((batch.tenant, digest), fingerprint)
            if known is fingerprint:
                accepted += 1
            elif known == fingerprint:
                duplicate += 1
            else:
                id_, source, raw = batch.describe(position)
                rejections.append(Rejection(batch.indexes[position], id_, source, CONFLICT, "It was sent before with other content.", raw))
        return Outcome(batch.received, accepted, duplicate, sorted(rejections))


def make_edge(sink: MemorySink, limits: HttpLimits, reasons: Sequence[str] = ()) -> Edge:
    """`reasons`: why it is not ready; a live view."""
    decoder = Decoder(read_catalogue(METERS), {"egress": 1, "pings": 2}, Limits(max_events=100))
    keys = Keys(
        [
            (hash_key("demo-key"), Principal(1, "demo", frozenset({"ingest", "read", "admin"}))),
            (hash_key("reader"), Principal(2, "other", frozenset({"read"}))),
            (hash_key("third-key"), Principal(3, "third", frozenset({"ingest"}))),
        ]
    )
    return Edge(sink, decoder, keys, limits, clock_us=lambda: NOW_US, not_ready=lambda: reasons)
