"""What /metrics says of rating: each number beside what was done to a real PostgreSQL. (While it hangs: test_rating_metrics.py.)"""

from __future__ import annotations

import asyncpg
from prometheus_client import CollectorRegistry

from parshall.rating_metrics import RatingCollector
from rater.consume import RaterCounts
from rater.postgres import Ledger
from rater.source import Received
from tests.integration.rating import Writer
from tests.integration.test_rater import LOG, at, some


async def numbers(pool: asyncpg.Pool, counts: RaterCounts | None) -> dict[str, str]:
    """Plain digits, so that no float is compared."""
    collector = RatingCollector(pool, counts, lambda: LOG)
    await collector.refresh()
    registry = CollectorRegistry()
    registry.register(collector)
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return {" ".join((sample.name.removeprefix("parshall_"), *sample.labels.values())): f"{sample.value:f}" for sample in samples}


def whole(**values: int) -> dict[str, str]:
    return {name: f"{value}.000000" for name, value in values.items()}


async def test_each_number_is_what_it_says(ledger: Ledger, pool: asyncpg.Pool) -> None:
    good, gap, forked, twin = Writer(1), Writer(2), Writer(3), Writer(3)
    await ledger.apply("another log", at(good.flush(some()), "s1", 2))
    assert await numbers(pool, None) == whole(
        postgres_up=1,
        rated_as_of_timestamp_seconds=0,
        parked_records=0,
        parked_explained=0,
        held_chains=0,
        forked_chains=0,
    )
    assert await ledger.note_progress(LOG, 1_767_000_000_250_000, {}) is not None
    gap.flush(some())
    await ledger.apply(LOG, at([*gap.flush(some(1)), *gap.flush(some(2)), *forked.flush(some())]))
    await ledger.apply(LOG, at([*twin.flush(some(9)), *forked.flush(some(1))], start=3))
    found = await numbers(pool, None)
    assert (found["held_chains"], found["forked_chains"], found["parked_records"]) == ("2.000000", "1.000000", "4.000000")
    await ledger.apply(LOG, [Received("s7", 72, {"who": b"knows"}, b"what"), Received("s7", 73, {"who": b"else"}, b"what")])
    assert await ledger.leave_out_stray(await pool.fetchval("SELECT id FROM parked WHERE next_position = 72"))
    counts = RaterCounts(records=3, skipped=1, parked=6, forks=1, ready=True, ends={"s0": 9, "s1": 4, "s7": 70})
    found = await numbers(pool, counts)
    assert found.pop("rated_as_of_timestamp_seconds") == "1767000000.250000"
    assert {name: found[name] for name in ("parked_records", "parked_explained", "held_chains", "forked_chains")} == whole(
        parked_records=5, parked_explained=1, held_chains=2, forked_chains=1
    ), "a record without a place holds no writer"
    assert [found[f"rater_behind {stream}"] for stream in ("s0", "s1", "s7")] == ["4.000000", "4.000000", "0.000000"]
    assert [found[f"rater_{name}_total"] for name in ("records", "skipped", "parked", "forks", "unparked")] == [
        "3.000000",
        "1.000000",
        "6.000000",
        "1.000000",
        "0.000000",
    ]
    assert found["rater_ready"] == "1.000000"
