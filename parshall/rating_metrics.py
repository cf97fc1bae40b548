"""How rating stands, for Prometheus: what PostgreSQL says of it, and in the rater's own process what it has done since its start.

Belongs here: names, kinds, what each one means. Must not know: SQL, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import asyncpg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rater import query
from rater.consume import RaterCounts
from rater.postgres import COMMAND_TIMEOUT_S, FAILURES

PATIENCE_S = 2.0  # Prometheus gives a scrape ten seconds, and all else that a scrape brings must not wait for PostgreSQL

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


class _Answer(NamedTuple):
    rating: query.Rating
    positions: Mapping[str, int]


class RatingCollector(Collector):
    """`refresh` before it is read."""

    def __init__(self, pool: asyncpg.Pool, counts: RaterCounts | None = None, log: Callable[[], str] = str) -> None:
        """`counts` and `log`, the identity of its source: of the rater in this process, if one runs here."""
        self._pool = pool
        self._counts = counts
        self._log = log
        self._rating: query.Rating | None = None  # None: PostgreSQL does not answer
        self._positions: Mapping[str, int] = {}
        self._asking: asyncio.Task[_Answer | None] | None = None

    async def refresh(self) -> None:
        """What does not answer in time goes on being asked, by that one question: a new one at each scrape would pile up there."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        asking = self._asking
        done, _ = await asyncio.wait([asking], timeout=PATIENCE_S)
        answer = asking.result() if done else None
        self._rating = None if answer is None else answer.rating
        if answer is not None:
            self._positions = answer.positions

    async def _ask(self) -> _Answer | None:
        """None: it cannot be asked."""
        try:
            async with self._pool.acquire(timeout=COMMAND_TIMEOUT_S) as connection:
                rating = await query.rating(connection)
                positions = {} if self._counts is None else await query.positions(connection, self._log())
        except FAILURES:
            return None
        return _Answer(rating, positions)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "parshall_postgres_up", "1 while PostgreSQL answers, and within two seconds.", int(self._rating is not None)
        )
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
