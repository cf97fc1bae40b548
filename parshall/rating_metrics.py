"""How rating stands, for Prometheus: what PostgreSQL says of it, and in the rater's own process what it has done since its start.

Belongs here: names, kinds, what each one means. Must not know: SQL, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import asyncpg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rater import query
from rater.consume import RaterCounts
from rater.postgres import FAILURES

_COUNTED = {
    "records": "Counter records applied.",
    "counters": "Counters in them.",
    "skipped": "Counter records that were rated already.",
    "parked": "Counter records parked: out of order, unreadable, or contradicting another.",
    "unparked": "Parked records applied after all.",
    "forks": "Records that came twice under one number with different bytes.",
    "lines": "Charge lines computed.",
    "failures": "Batches given up because of PostgreSQL or the log; each is read again.",
}


class RatingCollector(Collector):
    """`refresh` before it is read."""

    def __init__(self, pool: asyncpg.Pool, counts: RaterCounts | None = None, log: Callable[[], str] = str) -> None:
        """`counts` and `log`, the identity of its source: of the rater in this process, if one runs here."""
        self._pool = pool
        self._counts = counts
        self._log = log
        self._rating: query.Rating | None = None  # None: PostgreSQL does not answer
        self._positions: Mapping[str, int] = {}

    async def refresh(self) -> None:
        try:
            self._rating = await query.rating(self._pool)
            if self._counts is not None:
                self._positions = await query.positions(self._pool, self._log())
        except FAILURES:
            self._rating = None

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("parshall_postgres_up", "1 while PostgreSQL answers.", int(self._rating is not None))
        if self._rating is not None:
            yield from _stored(self._rating)
        if self._counts is not None:
            yield from self._own(self._counts)

    def _own(self, counts: RaterCounts) -> Iterator[Metric]:
        yield GaugeMetricFamily("parshall_rater_ready", "1 while the rater takes records in.", int(counts.ready))
        for name, meaning in _COUNTED.items():
            yield CounterMetricFamily(f"parshall_rater_{name}_total", f"{meaning} Since the start.", getattr(counts, name))
        behind = GaugeMetricFamily(
            "parshall_rater_behind",
            "What a stream of the log has and is not rated: records in Kafka, bytes in the local log.",
            labels=["stream"],
        )
        for stream, end in sorted(counts.ends.items()):
            behind.add_metric([stream], max(0, end - self._positions.get(stream, 0)))
        yield behind


def _stored(rating: query.Rating) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "parshall_rated_as_of_timestamp_seconds",
        "All that stood in the log at this time is rated, in seconds since 1970; it stands still while anything is held. 0: not yet.",
        (rating.as_of_us or 0) / 1_000_000,
    )
    yield GaugeMetricFamily("parshall_parked_records", "Counter records whose usage is not rated.", rating.missing)
    yield GaugeMetricFamily("parshall_parked_explained", "Parked records that a person has explained.", rating.parked - rating.missing)
    yield GaugeMetricFamily(
        "parshall_held_chains", "Writers, by partition, of which something is not rated: `parshall held list`.", rating.waiting
    )
    yield GaugeMetricFamily("parshall_forked_chains", "Of these, those that take nothing until a person decides.", rating.held)
