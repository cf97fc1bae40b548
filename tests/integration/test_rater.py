"""The rater on a real PostgreSQL: each record once, in order, whatever arrives and whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from xxhash import xxh3_128_hexdigest

from buffer.counters import MeterDefinition
from parshall.rater_process import not_ready
from rater import api as api_module
from rater import query
from rater.api import Api
from rater.configured import ConfigurationRefused, Configured
from rater.consume import Rater, RaterLimits
from rater.migrate import SchemaTooNew, migrate
from rater.postgres import DatabaseFailed, Ledger
from rater.prices import book as book_module
from rater.prices.book import PriceBook, read_books
from rater.recount import recount
from rater.source import Positions, Received, SourceUnavailable
from rater.turns import ITEMS_A_TURN
from tests.integration.rating import (
    EGRESS,
    METERS,
    MINUTES,
    PEAK,
    PROJECT,
    REQUESTS,
    STORAGE,
    Count,
    ListSource,
    Writer,
    quantity_by_hand,
    records_of,
    usage_by_hand,
)

LOG = "log-1"
LATE_S = 86400
JANUARY = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
FEBRUARY = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp())
HOUR = 3600

BOOK = {
    "tenant": "demo",
    "currency": "USD",
    "versions": [
        {
            "effective_from": "2026-01-01",
            "prices": [
                {
                    "meter": "requests",
                    "model": "graduated",
                    "dimensions": ["region"],
                    "free": 10,
                    "per": 10,
                    "tiers": [{"up_to": 100, "unit_price": "0.425"}, {"unit_price": "0.3"}],
                },
                {"meter": "egress_bytes", "model": "per_unit", "where": {"region": "eu"}, "per": 1000, "unit_price": "0.09"},
                {"meter": "egress_bytes", "model": "per_unit", "dimensions": ["region"], "per": 1000, "unit_price": "0.05"},
                {"meter": "peak_connections", "model": "per_unit", "unit_price": "0.5"},
                {"meter": "storage_gb_hours", "model": "per_unit", "unit_price": "0.000123"},
            ],
        }
    ],
}


def book(**changes: object) -> PriceBook:
    return read_books([{**BOOK, **changes}], METERS)[0]


def api_at(pool: asyncpg.Pool, now_s: int = JANUARY + 20 * 86400) -> Api:
    return Api(pool, clock_us=lambda: now_s * 1_000_000, late_s=LATE_S, meters=lambda: METERS)


async def ask(answer: Awaitable[Any]) -> Any:
    found = await answer
    assert found.status == 200, found.body
    return json.loads(found.body)


async def refused(answer: Awaitable[Any]) -> str:
    found = await answer
    assert found.status == 400
    assert found.content_type == "application/problem+json"
    detail: str = json.loads(found.body)["detail"]
    return detail


async def stored_usage(pool: asyncpg.Pool) -> dict[tuple[Any, ...], tuple[int, int]]:
    rows = await pool.fetch(
        """SELECT t.name AS tenant, m.name AS meter, s.subject, u.window_start_s, s.dimensions::text, u.value::text, u.events
        FROM usage AS u JOIN series AS s USING (series) JOIN tenants AS t USING (tenant) JOIN meters AS m USING (meter)"""
    )
    return {(*row[:4], tuple(json.loads(row[4]))): (int(row[5]), row[6]) for row in rows}


async def charge_lines(pool: asyncpg.Pool) -> list[tuple[Any, ...]]:
    rows = await pool.fetch(
        "SELECT tenant, period, subject, meter, price, dimensions::text, quantity::text, amount::text FROM charge_lines"
    )
    return sorted(tuple(row) for row in rows)


def at(records: Sequence[Received], stream: str = "s0", start: int = 0) -> list[Received]:
    """As they lie in a stream."""
    return [Received(stream, start + index + 1, record.headers, record.value) for index, record in enumerate(records)]


def altered(record: Received, *, value: bytes | None = None, **headers: bytes) -> Received:
    """The same record with other bytes and, unless given, the hash of those."""
    new = record.value if value is None else value
    fresh = {} if value is None else {"hash": xxh3_128_hexdigest(new).encode()}
    return Received(record.stream, record.next_position, {**record.headers, **fresh, **headers}, new)


def some(hour: int = 0, value: int = 1, subject: str = "acme") -> list[Count]:
    window = JANUARY + hour * HOUR
    return [
        (REQUESTS, "demo", subject, window, ("eu", "a"), 0, value),
        (EGRESS, "demo", subject, window, ("us",), 1000 * value, 1),
        (PEAK, "demo", subject, window, (), value, 1),
    ]


def at_random(seed: int, size: int) -> list[Count]:
    """All meters, two tenants, several subjects, windows on both sides of the month's end, negative and very large values."""
    dice = random.Random(seed)
    counts: list[Count] = []
    for _ in range(size):
        meter = dice.choice(METERS)
        window = FEBRUARY + dice.randrange(-40 * 86400, 10 * 86400)
        values = {"sum": dice.choice([dice.randrange(-500, 5000), 10**37]), "max": dice.randrange(-100, 100), "count": 0}
        dimensions = (dice.choice(["eu", "us", "ü"]), dice.choice("ab"))[: len(meter.dimensions)]
        tenant, subject = dice.choice(["demo", "demo", "other"]), dice.choice(["acme", "other", "a\tb\\n"])
        counts.append(
            (meter, tenant, subject, window - window % meter.window_s, dimensions, values[meter.aggregation], dice.randrange(1, 30))
        )
    return counts


async def run_until(rater: Rater, condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 30) -> None:
    task = asyncio.create_task(rater.run())
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            if task.done():
                task.result()
            assert time.monotonic() < deadline, f"the rater did not get there: {rater.counts}"
            await asyncio.sleep(0.01)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def rater_of(
    source: ListSource, ledger: Ledger, *, now_s: int = JANUARY, books: Sequence[PriceBook] = (), meters: Sequence[MeterDefinition] = ()
) -> Rater:
    limits = RaterLimits(
        poll_records=7,
        poll_timeout_s=0.01,
        progress_every_s=0.01,
        ends_every_s=0.01,
        due_every_s=0.01,
        first_backoff_s=0.01,
        last_backoff_s=0.05,
    )
    return Rater(source, ledger, clock_us=lambda: now_s * 1_000_000, late_s=LATE_S, configured=Configured(meters, books), limits=limits)


# Readiness.


class AwaySource(ListSource):
    away = True

    async def open(self, positions: Positions) -> None:
        if self.away:
            raise SourceUnavailable("Kafka at 127.0.0.1:9 did not answer")
        await super().open(positions)


async def test_without_the_log_it_answers_all_the_same(ledger: Ledger, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    source = AwaySource()
    rater = rater_of(source, ledger, books=[book()])
    assert not_ready(rater) == ["The rater is not ready."], "the books come first"
    await run_until(rater, lambda: rater.counts.failures > 2)
    assert (rater.counts.ready, not_ready(rater)) == (False, [])
    assert rater.counts.last_failure == "Kafka at 127.0.0.1:9 did not answer"
    source.away = False
    await run_until(rater, lambda: rater.counts.ready)
    assert not_ready(rater) == []
    assert [record.getMessage() for record in caplog.records if record.name == "rater.consume"][-1] == "rating goes on"


async def test_without_postgresql_it_does_not_and_names_it() -> None:
    ledger = Ledger("postgresql://parshall@/nothing?host=/nowhere")
    rater = rater_of(ListSource(), ledger, books=[book()])
    await run_until(rater, lambda: rater.counts.failures > 1)
    (reason,) = not_ready(rater)
    assert reason.startswith("The rater is not ready. PostgreSQL: FileNotFoundError")
    await ledger.close()


# Records.


async def test_a_record_counts_once_however_often_it_comes(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    records = Writer(1).flush(some(), {"demo": {"received": 5, "accepted": 3, "duplicate": 1, "too_late": 1}})
    assert (await ledger.apply(LOG, at(records + records))).skipped == 1
    before = await stored_usage(pool), await charge_lines(pool), await query.tallies(pool)
    again = await ledger.apply(LOG, at(records, "s1"))
    assert (again.records, again.skipped, again.parked) == (0, 1, 0)
    assert before == (await stored_usage(pool), await charge_lines(pool), await query.tallies(pool))
    assert before[0] == usage_by_hand(some())
    assert await pool.fetchval("SELECT value FROM records") == records[0].value


async def test_what_was_known_is_found_known_by_another_process(ledger: Ledger, dsn: str, pool: asyncpg.Pool) -> None:
    records = Writer(1).flush(some())
    await ledger.apply(LOG, at(records))
    other = Ledger(dsn)
    assert (await other.apply(LOG, at(records))).skipped == 1
    await other.close()
    assert await stored_usage(pool) == usage_by_hand(some())


async def test_a_gap_parks_and_its_filling_applies_what_was_parked(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1)
    flushes = [writer.flush(some(hour)) for hour in range(4)]
    late = await ledger.apply(LOG, at(records_of([flushes[3], flushes[1], flushes[1], flushes[2]])))
    assert (late.records, late.parked, late.skipped) == (0, 3, 1)
    assert await stored_usage(pool) == {}
    assert next((row.n, row.missing, row.reason) for row in await query.parked(pool)) == (2, True, "record 1 has to come first")
    assert (await ledger.apply(LOG, at(flushes[2]))).skipped == 1
    filled = await ledger.apply(LOG, at(flushes[0]))
    assert (filled.records, filled.unparked) == (4, 3)
    assert await query.parked(pool) == []
    assert await stored_usage(pool) == usage_by_hand(some(0) + some(1) + some(2) + some(3))
    assert [(chain.last_n, chain.held, chain.parked) for chain in await query.chains(pool)] == [(4, None, 0)]


async def test_many_parked_records_apply_in_several_transactions(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1)
    flushes = [writer.flush(some(hour)) for hour in range(200)]
    source = ListSource()
    source.add(records_of(flushes[1:]))
    source.add(flushes[0])
    rater = rater_of(source, ledger)
    await run_until(rater, lambda: rater.counts.records == 200)
    assert await query.parked(pool) == []
    assert await stored_usage(pool) == usage_by_hand(count for hour in range(200) for count in some(hour))


async def test_records_out_of_order_in_one_batch_need_no_parking(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1)
    flushes = [writer.flush(some(hour)) for hour in range(5)]
    random.Random(4).shuffle(flushes)
    done = await ledger.apply(LOG, at(records_of(flushes)))
    assert (done.records, done.parked) == (5, 0)


async def test_a_held_writer_holds_no_other(ledger: Ledger, pool: asyncpg.Pool) -> None:
    held, free = Writer(1), Writer(2)
    held.flush(some())
    gap = held.flush(some(1))
    await ledger.apply(LOG, at(gap + free.flush(some(2)) + gap))
    assert await stored_usage(pool) == usage_by_hand(some(2))
    assert {chain.writer: (chain.last_n, chain.parked) for chain in await query.chains(pool)} == {held.id: (0, 1), free.id: (1, 0)}


async def test_a_fork_is_parked_and_holds_its_writer_in_that_partition(
    ledger: Ledger, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    writer, twin = Writer(1), Writer(1)
    first = writer.flush(some())
    await ledger.apply(LOG, at(first))
    second = writer.flush(some(1))
    forked = await ledger.apply(LOG, at(twin.flush(some(9)) + second))
    assert (forked.records, forked.parked, forked.forks) == (0, 2, 1)
    assert "fork: record 1" in caplog.text
    assert await stored_usage(pool) == usage_by_hand(some())
    (chain,) = await query.chains(pool)
    assert chain.last_n == 1
    assert chain.held is not None
    assert [row.n for row in await query.parked(pool)] == [1, 2]
    assert (await ledger.apply(LOG, at(first))).skipped == 1

    released = await ledger.release(writer.id, 0)
    assert released.done and released.again == (2, 2)
    assert await ledger.due_chains() == []
    assert [(row.n, row.sound, row.missing) for row in await query.parked(pool)] == [(1, True, False), (2, False, True)]
    assert (await ledger.apply(LOG, at(second, start=3))).records == 1
    assert await stored_usage(pool) == usage_by_hand(some() + some(1))
    assert [(row.n, row.missing) for row in await query.parked(pool)] == [(1, False), (2, False)]


async def test_what_came_behind_a_fork_may_come_again_before_it_is_due(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer, twin = Writer(1), Writer(1)
    first, second, third = (writer.flush(some(number)) for number in range(3))
    await ledger.apply(LOG, at(first))
    await ledger.apply(LOG, at(twin.flush(some(9)) + second + third, start=1))
    assert (await ledger.release(writer.id, 0)).again == (2, 3)
    for _ in range(2):
        await ledger.apply(LOG, at(third, "s1", 6))
    (parked,) = [row for row in await query.parked(pool) if row.n == 3]
    assert (parked.sound, parked.missing, parked.reason) == (True, True, "record 2 has to come first")
    assert (parked.stream, parked.next_position) == ("s1", 7)
    assert (await ledger.apply(LOG, at(second, "s1", 7))).records == 2
    assert await stored_usage(pool) == usage_by_hand(some() + some(1) + some(2))
    assert [(row.n, row.missing) for row in await query.parked(pool)] == [(1, False), (2, False)]


async def test_what_a_person_chose_is_rated_and_what_never_came_is_asked_for(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """Two numbers are forked behind one that is missing; a damaged copy of a third looks much like a record that was rejected."""
    writer, twin = Writer(1), Writer(1)
    lost, second, third, fourth = (writer.flush(some(number)) for number in range(4))
    twin.flush(some())
    damaged = [record._replace(value=record.value + b" ") for record in fourth]
    await ledger.apply(LOG, at(second + third + fourth + damaged))
    await ledger.apply(LOG, at(twin.flush(some(8)) + twin.flush(some(9)), start=4))
    rivals = (await ledger.release(writer.id, 0)).choices
    assert len(rivals) == 4
    right = await pool.fetch("SELECT id FROM parked WHERE value = ANY ($1) ORDER BY n", [second[0].value, third[0].value])
    assert not (await ledger.release(writer.id, 0, right[0]["id"])).done
    released = await ledger.release(writer.id, 0, right[1]["id"])
    assert released.done and released.again == (1, 4)
    assert (await ledger.apply(LOG, at(lost, start=6))).records == 3
    assert await stored_usage(pool) == usage_by_hand(some() + some(1) + some(2))
    await ledger.apply(LOG, at(fourth, start=7))
    assert await stored_usage(pool) == usage_by_hand(some() + some(1) + some(2) + some(3))
    assert not [row for row in await query.parked(pool) if row.missing]


async def test_what_a_person_rejected_stays_rejected_when_it_comes_again(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """The writer is held anew, since a copy may run again; but there is nothing to choose from any more."""
    writer, twin = Writer(1), Writer(1)
    right, wrong = writer.flush(some()), twin.flush(some(9))
    await ledger.apply(LOG, at(right + wrong))
    chosen = await pool.fetchval("SELECT id FROM parked WHERE value = $1", right[0].value)
    assert (await ledger.release(writer.id, 0, chosen)).done
    await ledger.apply(LOG, at(wrong, start=2))
    (again,) = [row for row in await query.parked(pool) if row.id != chosen]
    assert (again.sound, again.missing) == (False, False)
    assert (await ledger.release(writer.id, 0)).done
    await ledger.apply_parked(LOG, (writer.id, 0))
    assert await stored_usage(pool) == usage_by_hand(some())


async def test_of_two_that_are_parked_under_one_number_a_person_chooses_however_they_came_there(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """One was left out behind a fork and taken up again, when the other one had come."""
    writer, twin = Writer(1), Writer(1)
    first, second, third = (writer.flush(some(number)) for number in range(3))
    await ledger.apply(LOG, at(first))
    forked = twin.flush(some(9))
    twin.flush(some(8))
    await ledger.apply(LOG, at(forked + third, start=1))
    assert (await ledger.release(writer.id, 0)).again == (2, 3)
    await ledger.apply(LOG, at(twin.flush(some(7)), start=3))
    assert await ledger.take_up(writer.id, 0, None) == 1
    assert (await ledger.apply(LOG, at(second, start=4))).records == 1
    assert await stored_usage(pool) == usage_by_hand(some() + some(1))
    (chain,) = await query.chains(pool)
    assert (chain.last_n, chain.held) == (2, "fork: record 3 is parked with several hashes")
    assert len((await ledger.release(writer.id, 0)).choices) == 2
    right = await pool.fetchval("SELECT id FROM parked WHERE value = $1", third[0].value)
    assert (await ledger.release(writer.id, 0, right)).done
    await ledger.apply_parked(LOG, (writer.id, 0))
    assert await stored_usage(pool) == usage_by_hand(some() + some(1) + some(2))


async def test_a_gap_alone_is_not_released(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """What waits behind it is sound, and nobody doubts whose it is."""
    writer = Writer(1)
    first, second = writer.flush(some()), writer.flush(some(1))
    await ledger.apply(LOG, at(second))
    assert not (await ledger.release(writer.id, 0)).done
    assert (await ledger.apply(LOG, at(first, start=1))).records == 2
    assert await stored_usage(pool) == usage_by_hand(some() + some(1))


async def test_a_sound_record_takes_the_place_of_one_whose_headers_were_damaged(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """Also while it is not due yet."""
    writer = Writer(1)
    first, (second,) = writer.flush(some()), writer.flush(some(1))
    await ledger.apply(LOG, at([altered(second, hash=b"0" * 32)]))
    assert [(row.sound, row.missing) for row in await query.parked(pool)] == [(False, True)]
    await ledger.apply(LOG, at([second], start=1))
    assert (await ledger.apply(LOG, at(first, start=2))).records == 2
    assert await stored_usage(pool) == usage_by_hand(some() + some(1))


async def test_a_fork_among_parked_records_is_found(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer, twin = Writer(1), Writer(1)
    first, second = writer.flush(some()), writer.flush(some(1))
    twin.flush(some())
    await ledger.apply(LOG, at(second))
    assert (await ledger.apply(LOG, at(twin.flush(some(2))))).forks == 1
    await ledger.apply(LOG, at(first))
    assert await stored_usage(pool) == {}, "a held writer must stay held"
    assert len(await query.parked(pool)) == 3


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda record: altered(record, value=b'{"v":1,'), "undecodable"),
        (lambda record: altered(record, value=record.value.replace(b'"v":1', b'"v":2')), "undecodable"),
        (lambda record: altered(record, v=b"2"), "undecodable"),
        (lambda record: altered(record, value=record.value.replace(b"acme", b"a\\u0000e")), "U+0000"),
        (lambda record: altered(record, value=record.value.replace(b"%d" % JANUARY, b"%d" % (HOUR << 60))), "outside the years"),
    ],
)
async def test_what_cannot_be_decoded_is_parked_and_holds_only_its_writer(
    ledger: Ledger, pool: asyncpg.Pool, break_it: Callable[[Received], Received], reason: str
) -> None:
    writer, other = Writer(1), Writer(2)
    (good,), next_one = writer.flush(some()), writer.flush(some(1))
    bad = break_it(good)
    done = await ledger.apply(LOG, at([bad, *next_one, *other.flush(some(2))]))
    assert (done.records, done.parked) == (1, 2)
    assert await stored_usage(pool) == usage_by_hand(some(2))
    parked = await query.parked(pool)
    assert reason in parked[0].reason
    assert parked[1].reason == "record 1 has to come first"
    assert await pool.fetchval("SELECT value FROM parked WHERE n = 1") == bad.value
    assert await ledger.due_chains() == [(writer.id, 0)]
    assert (await ledger.apply_parked(LOG, (writer.id, 0))).records == 0, "it is no better the second time"


async def test_a_damaged_copy_holds_nothing_once_a_whole_one_is_there(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1)
    (good,) = writer.flush(some())
    damaged = Received(good.stream, good.next_position, good.headers, good.value.replace(b"acme", b"acmf"))
    await ledger.apply(LOG, at([damaged]))
    assert [row.missing for row in await query.parked(pool)] == [True]
    done = await ledger.apply(LOG, at([good, damaged]))
    assert (done.records, done.forks) == (1, 0)
    assert await stored_usage(pool) == usage_by_hand(some())
    assert [row.missing for row in await query.parked(pool)] == [False]


async def test_a_damaged_copy_of_what_is_rated_is_not_missed(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """Also where the hash in its header is damaged, so that it looks like nothing that is known."""
    (good,) = Writer(1).flush(some())
    await ledger.apply(LOG, at([good]))
    await ledger.apply(LOG, at([altered(good, hash=b"0" * 32)], start=1))
    assert [(row.n, row.missing) for row in await query.parked(pool)] == [(1, False)]
    assert await ledger.note_progress(LOG, 5, {"s0": 2}) == 5


async def test_a_record_without_a_place_is_parked(ledger: Ledger, pool: asyncpg.Pool) -> None:
    (good,) = Writer(1).flush(some())
    stray = altered(good, n=b"first")
    done = await ledger.apply(LOG, [*at([stray], "s7"), *at([good])])
    await ledger.apply(LOG, at([stray], "s7"))
    assert done.records == 1
    assert [(row.writer, row.stream, row.missing) for row in await query.parked(pool)] == [(None, "s7", True)]


async def test_a_record_whose_header_has_a_name_that_postgresql_cannot_store_is_parked(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.apply(LOG, [Received("s7", 1, {"who\0": b"kno\0ws"}, b"wh\0at")])
    (row,) = await query.parked(pool)
    assert await query.parked_record(pool, row.id) == ({"who\\0": b"kno\0ws"}, b"wh\0at")


async def test_what_postgresql_refuses_is_parked_in_the_end(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """A reason that nobody thought of: here a table that takes no values above a limit."""
    await pool.execute("ALTER TABLE usage ALTER COLUMN events TYPE smallint")
    bad, good = Writer(1), Writer(2)
    source = ListSource()
    source.add(bad.flush(some(0, 40000)) + good.flush(some(1)))
    rater = rater_of(source, ledger)
    await run_until(rater, lambda: rater.counts.records == 1 and rater.counts.parked == 1)
    assert await stored_usage(pool) == usage_by_hand(some(1))
    assert (await query.parked(pool))[0].reason.startswith("PostgreSQL refuses it")


@pytest.mark.parametrize("change", [{"aggregation": "max"}, {"scale": 3}, {"window_s": 60}, {"dimensions": ("zone",)}])
async def test_a_meter_never_changes_under_its_name(ledger: Ledger, pool: asyncpg.Pool, dsn: str, change: dict[str, Any]) -> None:
    first, other = Writer(1), Writer(2)
    await ledger.apply(LOG, at(first.flush(some())))
    other.meters[1] = EGRESS._replace(hash="f" * 16, **change)
    contrary = other.flush([(EGRESS, "demo", "acme", JANUARY, ("us",), 7, 7)])
    fresh = Ledger(dsn)
    for with_ledger in (ledger, fresh):
        assert (await with_ledger.apply(LOG, at(contrary))).records == 0
    await fresh.close()
    assert await stored_usage(pool) == usage_by_hand(some())
    assert "'egress_bytes' has " + next(iter(change)) in (await query.parked(pool))[0].reason


async def test_a_meter_may_have_several_hashes(ledger: Ledger, pool: asyncpg.Pool) -> None:
    first, other = Writer(1), Writer(2)
    other.meters[1] = EGRESS._replace(hash="f" * 16)
    await ledger.apply(LOG, at(first.flush(some()) + other.flush(some())))
    assert await stored_usage(pool) == usage_by_hand(some() + some())
    assert await pool.fetchval("SELECT count(*) FROM meter_hashes") == 4


# Failures.


async def test_a_transaction_that_breaks_leaves_nothing_and_the_rater_goes_on(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writers = [Writer(byte, partitions=2) for byte in (1, 2, 3)]
    counts = [at_random(seed, 12) for seed in range(60)]
    source = ListSource()
    for index, flush in enumerate(counts):
        source.add(writers[index % 3].flush(flush, {"demo": {"received": 3, "accepted": 2, "duplicate": 1}}), f"s{index % 2}")
    total = sum(map(len, source.streams.values()))
    rater = rater_of(source, ledger, books=[book()])
    killed = 0

    async def killing() -> bool:
        nonlocal killed
        if killed < 25 and ledger.backend_pid is not None:
            killed += await pool.fetchval("SELECT pg_terminate_backend($1)::int", ledger.backend_pid)
        return killed >= 25 and await pool.fetchval("SELECT count(*) FROM records") == total and rater.counts.as_of_us > 0

    await run_until(rater, killing, 60)
    assert rater.counts.failures > 0
    assert source.rewinds > 0
    await assert_all_rated(ledger, pool, [count for flush in counts for count in flush])
    assert sum(tally.events for tally in await query.tallies(pool) if tally.verdict == "accepted") == 2 * len(counts)


async def test_a_failed_batch_is_read_again(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """Deterministic: the first three transactions end in the middle."""
    source = ListSource()
    writer = Writer(1)
    for hour in range(30):
        source.add(writer.flush(some(hour)))
    rater = rater_of(source, ledger)
    await pool.execute(
        """CREATE SEQUENCE tries;
        CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN IF nextval('tries') <= 3 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL; END $$;
        CREATE TRIGGER break AFTER INSERT ON usage EXECUTE FUNCTION break()"""
    )
    await run_until(rater, lambda: rater.counts.records == 30)
    assert rater.counts.failures == 3
    assert source.rewinds == 3
    assert await stored_usage(pool) == usage_by_hand(count for hour in range(30) for count in some(hour))


async def test_two_raters_racing_over_the_same_records(dsn: str, pool: asyncpg.Pool) -> None:
    writers = [Writer(byte, partitions=3) for byte in (1, 2)]
    counts = [at_random(100 + seed, 15) for seed in range(80)]
    sources = [ListSource(), ListSource()]
    records = [writers[index % 2].flush(flush, {"demo": {"accepted": 1}}) for index, flush in enumerate(counts)]
    for index, flush in enumerate(records):
        sources[0].add(flush, f"s{index % 2}")
    for stream, log in reversed(sources[0].streams.items()):
        sources[1].streams[stream] = log
    ledgers = [Ledger(dsn), Ledger(dsn)]
    raters = [rater_of(source, ledger, books=[book()]) for source, ledger in zip(sources, ledgers, strict=True)]
    total = sum(map(len, sources[0].streams.values()))
    await asyncio.gather(*(run_until(rater, lambda rater=rater: rater.counts.as_of_us > 0) for rater in raters))
    assert sum(rater.counts.records for rater in raters) == total
    assert all(rater.counts.records for rater in raters), "one rater did all of it: there was no race"
    await assert_all_rated(ledgers[0], pool, [count for flush in counts for count in flush])
    for ledger in ledgers:
        await ledger.close()


async def assert_all_rated(ledger: Ledger, pool: asyncpg.Pool, counts: Sequence[Count]) -> None:
    assert await stored_usage(pool) == usage_by_hand(counts)
    for tenant in ("demo", "other"):
        assert await ledger.check_charges(tenant) == []
    assert await query.parked(pool) == []


async def test_a_database_that_is_away_is_waited_for(database: str, pool: asyncpg.Pool) -> None:
    missing = Ledger(database.replace("/test", "/absent"))
    with pytest.raises(DatabaseFailed):
        await missing.positions(LOG, ["s0"])
    source = ListSource()
    source.add(Writer(1).flush(some()))
    rater = rater_of(source, missing)
    await run_until(rater, lambda: rater.counts.failures >= 3)
    assert not rater.counts.ready
    assert "absent" in rater.counts.last_failure


async def test_a_database_set_back_under_a_running_rater_is_filled_again(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """After any error nothing is believed to be stored: here somebody put an older backup (an empty one) in place."""
    records = at(Writer(1).flush(some(), {"demo": {"accepted": 3}}))
    await ledger.apply(LOG, records)
    tables = "tenants, price_books, meters, meter_hashes, chains, records, series, usage, periods, charge_lines, tallies, positions"
    await pool.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
    await pool.fetchval("SELECT pg_terminate_backend($1)", ledger.backend_pid)
    applied = 0
    with contextlib.suppress(DatabaseFailed):  # unless the end of the connection was noticed already
        applied = (await ledger.apply(LOG, records)).records
    applied += (await ledger.apply(LOG, records)).records
    assert applied == 1
    await assert_all_rated(ledger, pool, some())
    assert [tally.events for tally in await query.tallies(pool)] == [3]


async def test_a_connection_that_ended_between_transactions_is_told(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """Behind the next one may be an older database, so the rater must go back to what is stored: once, then all is well again."""
    records = at(Writer(1).flush(some()))
    await ledger.apply(LOG, records)
    await pool.fetchval("SELECT pg_terminate_backend($1)", ledger.backend_pid)
    while ledger.backend_pid is not None:
        await asyncio.sleep(0.001)
    with pytest.raises(DatabaseFailed, match="the connection to PostgreSQL has ended"):
        await ledger.apply(LOG, records)
    assert (await ledger.apply(LOG, records)).skipped == 1


async def test_positions_never_go_backwards(ledger: Ledger) -> None:
    writer = Writer(1)
    records = at(records_of(writer.flush(some(hour)) for hour in range(3)))
    await ledger.apply(LOG, records)
    await ledger.apply(LOG, records[:1])
    assert await ledger.positions(LOG, ["s0", "s1"]) == {"s0": 3}
    assert await ledger.positions("another log", ["s0"]) == {}


async def test_progress_says_what_is_rated_and_stands_still_while_something_is_parked(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1)
    flushes = [writer.flush(some(hour)) for hour in range(3)]
    assert await query.as_of_us(pool) is None
    await ledger.apply(LOG, at(flushes[0]))
    assert await ledger.note_progress(LOG, 10, {"s0": 2}) is None
    assert await ledger.note_progress(LOG, 11, {"s0": 1}) == 11
    assert await ledger.note_progress(LOG, 9, {"s0": 1}) == 11
    await ledger.apply(LOG, at(flushes[2], start=1))
    assert await ledger.note_progress(LOG, 12, {"s0": 2}) is None
    await ledger.apply(LOG, at(flushes[1], start=2))
    assert await ledger.note_progress(LOG, 13, {"s0": 3}) == 13
    assert await query.as_of_us(pool) == 13


async def test_how_far_another_log_is_rated_says_nothing_of_this_one(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """A topic that was made anew has the same streams."""
    await ledger.apply("log-0", at(Writer(1).flush(some())))
    assert await ledger.note_progress(LOG, 10, {"s0": 1}) is None
    assert await query.as_of_us(pool) is None
    await ledger.apply(LOG, at(Writer(2).flush(some())))
    assert await ledger.note_progress(LOG, 11, {"s0": 1}) == 11


class Growing(ListSource):
    """A log that gets a record whenever somebody reads, as during a long catch-up."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        self.add(self._writer.flush(some(subject="late")))
        await asyncio.sleep(0.02)
        return await super().poll(most, timeout_s)


async def test_the_ends_of_the_log_are_looked_at_during_catch_up(ledger: Ledger) -> None:
    writer = Writer(1)
    source = Growing(writer)
    source.add(records_of(writer.flush(some()) for _ in range(70)))
    rater = rater_of(source, ledger)
    await run_until(rater, lambda: rater.counts.ends.get("s0", 0) > 71)
    assert rater.counts.as_of_us == 0, "it is known before the end that was there first is reached"


async def test_the_ends_of_the_log_are_looked_at_while_a_record_is_held(ledger: Ledger) -> None:
    writer, source = Writer(1), ListSource()
    lost = writer.flush(some())
    source.add(writer.flush(some()))
    rater = rater_of(source, ledger)
    await run_until(rater, lambda: rater.counts.parked == 1)
    for number in range(2, 5):
        source.add(Writer(number).flush(some()), f"s{number}")
        await run_until(rater, lambda number=number: rater.counts.ends.get(f"s{number}") == 1)  # type: ignore[misc]
    assert rater.counts.as_of_us == 0
    source.add(lost)
    await run_until(rater, lambda: rater.counts.as_of_us > 0)


# Migrations.


async def test_migrations_run_once_when_several_processes_start(database: str) -> None:
    await asyncio.gather(*(migrate(database) for _ in range(5)))
    await migrate(database)
    connection = await asyncpg.connect(database)
    assert [row[0] for row in await connection.fetch("SELECT version_num FROM schema_steps")] == ["0002"]
    await connection.execute("UPDATE schema_steps SET version_num = '9999'")
    await connection.close()
    with pytest.raises(SchemaTooNew, match="use a newer version"):
        await migrate(database)
    with pytest.raises(DatabaseFailed):
        await migrate(database.replace("/test", "/absent"))


async def of_the_first_version(database: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(database)
    await connection.execute((PROJECT / "rater/migrations/0001_ledger.sql").read_text())
    await connection.execute("CREATE TABLE schema_steps (version_num varchar(32) PRIMARY KEY); INSERT INTO schema_steps VALUES ('0001')")
    return connection


async def test_raters_go_on_while_a_step_waits_for_a_long_reader(database: str, caplog: pytest.LogCaptureFixture) -> None:
    reader, ledger = await of_the_first_version(database), Ledger(database, command_timeout_s=20)
    async with reader.transaction():
        await reader.fetch("SELECT FROM records")
        migrating = asyncio.create_task(migrate(database))
        while "once its tables are not in use" not in caplog.text:
            assert (await ledger.apply(LOG, at(Writer(1).flush(some())))).forks == 0
        assert not migrating.done()
    await migrating
    assert await reader.fetchval("SELECT version_num FROM schema_steps") == "0002"
    await reader.close()
    await ledger.close()


async def test_a_database_of_the_first_version(database: str) -> None:
    """What was rated stays, is known when it comes again, and explains its usage."""
    connection = await of_the_first_version(database)
    ledger, writer = Ledger(database), Writer(1)
    first = writer.flush(some())
    assert (await ledger.apply(LOG, at(first))).records == 1
    await migrate(database)
    assert await ledger.apply(LOG, at(first)) == (0, 0, 1, 0, 0, 0, 0)
    assert (await ledger.apply(LOG, at(writer.flush(some())))).records == 1
    await ledger.close()
    whole = await recount(database, lambda _: None)
    assert not (list(whole.findings()) or whole.missing or whole.unsound)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("UPDATE records SET value = NULL WHERE n = 2")
    await connection.close()


# Charges.


async def test_charges_equal_brute_force(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    counts = at_random(7, 300)
    writer = Writer(1, partitions=4)
    for start in range(0, 300, 20):
        await ledger.apply(LOG, at(writer.flush(counts[start : start + 20])))
    for subject in ("acme", "other", "a\tb\\n"):
        for period, start, end in (("2026-01", JANUARY, FEBRUARY), ("2026-02", FEBRUARY, FEBRUARY + 28 * 86400)):
            answer = await ask(api_at(pool).charges("demo", {"subject": subject, "period": period}))
            expected = lines_by_hand(counts, subject, start, end)
            found = {(line["meter"], line["dimensions"].get("region")): line for line in answer["lines"]}
            assert {key: (Fraction(line["quantity"]), line["amount"]) for key, line in found.items()} == expected
            assert Fraction(answer["total"]) == sum(Fraction(amount) for _, amount in expected.values() if amount)
            assert found[("calls", None)]["unpriced"] is True
            for line in answer["lines"]:
                assert line["amount"] is None or cents(sum(Fraction(tier["amount"]) for tier in line["tiers"])) == line["amount"]
    assert await ledger.check_charges("demo") == await ledger.check_charges("other") == []


def cents(exact: Fraction | int) -> str:
    """round() of a Fraction is half to even; Decimal's default context would round to 28 digits on the way."""
    rounded = round(Fraction(exact) * 100)
    return f"{rounded // 100}.{rounded % 100:02}"


def lines_by_hand(counts: Sequence[Count], subject: str, start: int, end: int) -> dict[tuple[str, str | None], tuple[Fraction, str | None]]:
    """The price book above, written out again as arithmetic."""
    lines: dict[tuple[str, str | None], tuple[Fraction, str | None]] = {}
    here = {(meter.name, (*dimensions, None)[0]) for meter, tenant, who, window, dimensions, _, _ in counts
            if tenant == "demo" and who == subject and start <= window < end}  # fmt: skip
    for name, region in here:
        meter = next(meter for meter in METERS if meter.name == name)
        quantity = quantity_by_hand(counts, meter, "demo", subject, region, start, end)
        amount: Fraction | None = None
        if name == "requests":
            billable = max(quantity - 10, Fraction(0))
            amount = min(billable, Fraction(100)) * Fraction("0.0425") + max(billable - 100, Fraction(0)) * Fraction("0.03")
        elif name == "egress_bytes":
            amount = max(quantity, Fraction(0)) * Fraction("0.00009" if region == "eu" else "0.00005")
            region = None if region == "eu" else region  # the price for "eu" sums its dimensions away
        elif name == "peak_connections":
            amount = max(quantity, Fraction(0)) * Fraction("0.5")
        elif name == "storage_gb_hours":
            amount = max(quantity, Fraction(0)) * Fraction("0.000123")
        lines[name, region] = (quantity, None if amount is None else cents(amount))
    return lines


async def test_a_month_ends_in_the_time_zone_of_the_book(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.put_book(book(timezone="America/New_York", versions=[{"effective_from": "2025-01-01"}]), now_s=JANUARY, late_s=LATE_S)
    counts: list[Count] = [(REQUESTS, "demo", "acme", FEBRUARY + hour * HOUR, ("eu", "a"), 0, 10**hour) for hour in (4, 5)]
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    for period, quantity in (("2026-01", "10000"), ("2026-02", "100000")):
        answer = await ask(api_at(pool).charges("demo", {"subject": "acme", "period": period}))
        assert [line["quantity"] for line in answer["lines"]] == [quantity]


async def test_a_line_of_a_max_meter_is_the_maximum_of_its_windows(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    writer = Writer(1)
    for value, hour in ((5, 0), (9, 1), (7, 1), (3, 2)):
        await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", JANUARY + hour * HOUR, (), value, 1)])))
    (line,) = (await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"})))["lines"]
    assert (line["quantity"], line["amount"]) == ("9", "4.50")
    answer = await ask(api_at(pool).usage("demo", {"meter": "peak_connections", "window": "hour"}))
    assert [(row["value"], row["events"]) for row in answer["data"]] == [("5", 1), ("9", 2), ("3", 1)]


async def test_two_prices_of_one_meter_have_a_line_each(ledger: Ledger, pool: asyncpg.Pool) -> None:
    prices = [
        {"meter": "requests", "model": "per_unit", "where": {"region": "eu"}, "unit_price": "2"},
        {"meter": "requests", "model": "per_unit", "unit_price": "1"},
    ]
    await ledger.put_book(book(versions=[{"effective_from": "2026-01-01", "prices": prices}]), now_s=JANUARY, late_s=LATE_S)
    counts: list[Count] = [(REQUESTS, "demo", "acme", JANUARY, (region, "a"), 0, events) for region, events in (("eu", 3), ("us", 5))]
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    answer = await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"}))
    found = [(line["where"], line["quantity"], line["amount"]) for line in answer["lines"]]
    assert found == [({"region": "eu"}, "3", "6.00"), ({}, "5", "5.00")], "which usage it is, where the dimensions do not tell"
    assert answer["total"] == "11.00"


async def test_usage_without_a_price_is_kept_and_blocks_nothing(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    answer = await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"}))
    assert (answer["currency"], answer["unpriced"]) == (None, True)
    assert [(line["amount"], line["unpriced"]) for line in answer["lines"]] == [(None, True)] * 3
    again = await ledger.put_book(book(), now_s=FEBRUARY + 10 * 86400, late_s=LATE_S)
    assert [(name, period) for name, period, *_ in again.charged_again] == [("demo", "2026-01")], (
        "a month that had no book gets one even when it is closed"
    )
    answer = await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"}))
    assert (answer["currency"], answer["total"], answer["unpriced"]) == ("USD", "0.55", False)
    assert (answer["period_start"], answer["period_end"]) == ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    explained = {line["meter"]: (line["price_from"], line["model"], line["per"]) for line in answer["lines"]}
    assert explained == {
        "requests": ("2026-01-01", "graduated", "10"),
        "egress_bytes": ("2026-01-01", "per_unit", "1000"),
        "peak_connections": ("2026-01-01", "per_unit", "1"),
    }
    assert await ledger.check_charges("demo") == []


async def test_a_changed_price_charges_open_months_again(ledger: Ledger, pool: asyncpg.Pool, dsn: str) -> None:
    writer = Writer(1)
    counts: list[Count] = [(PEAK, "demo", "acme", start, (), 8, 1) for start in (JANUARY, FEBRUARY)]
    now_s = FEBRUARY + 10 * 86400
    await ledger.put_book(book(), now_s=now_s, late_s=LATE_S)
    await ledger.apply(LOG, at(writer.flush(counts)))
    dear = {"effective_from": "2026-02-01", "prices": [{"meter": "peak_connections", "model": "per_unit", "unit_price": "2"}]}
    changed = book(versions=[*BOOK["versions"], dear])  # type: ignore[misc]
    other = Ledger(dsn)
    assert await other.put_book(changed, now_s=now_s, late_s=LATE_S) == ([("demo", "2026-02", 1, Decimal("4.00"), Decimal("16.00"))], [])
    assert await other.put_book(changed, now_s=now_s, late_s=LATE_S) == ([], [])
    await other.close()
    assert [await total(pool, period) for period in ("2026-01", "2026-02")] == ["4.00", "16.00"]

    # The first rater still has the old book in memory and the lines that were taken away.
    await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", FEBRUARY, (), 9, 1), (PEAK, "demo", "acme", JANUARY, (), 9, 1)])))
    assert [await total(pool, period) for period in ("2026-01", "2026-02")] == ["4.50", "18.00"]
    assert await ledger.check_charges("demo") == []


async def test_two_raters_add_to_one_line_from_different_windows(ledger: Ledger, dsn: str, pool: asyncpg.Pool) -> None:
    """Different writers, different usage rows: only the lock of the line keeps one from overwriting the other's total."""
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    writers, other = [Writer(1), Writer(2)], Ledger(dsn)
    await ledger.apply(LOG, at(writers[0].flush(some(0))))
    await other.apply(LOG, at(writers[1].flush(some(1))))
    await slow_down_charging(pool)
    await asyncio.gather(ledger.apply(LOG, at(writers[0].flush(some(2)))), other.apply(LOG, at(writers[1].flush(some(3)))))
    await other.close()
    assert await ledger.check_charges("demo") == []


async def slow_down_charging(pool: asyncpg.Pool) -> None:
    await pool.execute(
        """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
        CREATE TRIGGER slow BEFORE UPDATE ON charge_lines EXECUTE FUNCTION slow()"""
    )


async def test_a_price_change_waits_for_the_batch_that_is_being_charged(ledger: Ledger, dsn: str, pool: asyncpg.Pool) -> None:
    writer, other = Writer(1), Ledger(dsn)
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(writer.flush(some(0))))
    await slow_down_charging(pool)
    batch = asyncio.create_task(ledger.apply(LOG, at(writer.flush(some(1)))))
    while not await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"):
        await asyncio.sleep(0.01)
    await other.put_book(book(decimal_places=4), now_s=JANUARY, late_s=LATE_S)
    await batch
    await other.close()
    await assert_all_rated(ledger, pool, some(0) + some(1))


async def test_charges_stay_right_while_the_price_changes_under_running_raters(dsn: str, pool: asyncpg.Pool) -> None:
    sources, ledgers = [ListSource(), ListSource()], [Ledger(dsn), Ledger(dsn), Ledger(dsn)]
    counts = [at_random(200 + seed, 10) for seed in range(100)]
    for index, source in enumerate(sources):
        writer = Writer(index + 1)
        for flush in counts[index::2]:
            source.add(writer.flush(flush), f"s{index}")
    raters = [rater_of(source, ledger) for source, ledger in zip(sources, ledgers, strict=False)]

    async def change_prices() -> None:
        for cents in range(12):
            price = {"meter": "requests", "model": "per_unit", "dimensions": ["zone"][: cents % 2], "unit_price": f"0.{cents}"}
            changed = book(versions=[{"effective_from": "2025-01-01", "prices": [price, *BOOK["versions"][0]["prices"][1:]]}])  # type: ignore[index]
            await ledgers[2].put_book(changed, now_s=JANUARY, late_s=LATE_S)
            await asyncio.sleep(0.02)

    def done() -> bool:
        return sum(rater.counts.records for rater in raters) == sum(len(log) for source in sources for log in source.streams.values())

    await asyncio.gather(change_prices(), *(run_until(rater, done) for rater in raters))
    await assert_all_rated(ledgers[2], pool, [count for flush in counts for count in flush])
    for ledger in ledgers:
        await ledger.close()


async def test_a_closed_month_keeps_its_price(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1)
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", JANUARY, (), 8, 1)])))
    dear = book(
        versions=[{"effective_from": "2026-01-01", "prices": [{"meter": "peak_connections", "model": "per_unit", "unit_price": "2"}]}]
    )
    assert await ledger.put_book(dear, now_s=FEBRUARY + LATE_S, late_s=LATE_S) == ([], ["2026-01"]), "who changes its price is told"
    assert await ledger.put_book(dear, now_s=FEBRUARY + LATE_S, late_s=LATE_S) == ([], []), "once"
    assert await total(pool, "2026-01") == "4.00"
    await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", JANUARY, (), 9, 1)])))
    assert await total(pool, "2026-01") == "4.50", "what comes after all is charged as the month was"
    assert await ledger.check_charges("demo") == []
    put = await ledger.put_book(dear, now_s=FEBRUARY, late_s=LATE_S)  # events may be older by now: the month is open again
    assert put == ([("demo", "2026-01", 1, Decimal("4.50"), Decimal("18.00"))], [])
    assert await total(pool, "2026-01") == "18.00"
    assert await ledger.check_charges("demo") == []


def peak_at(price: str, **changes: Any) -> PriceBook:
    prices = [{"meter": "peak_connections", "model": "per_unit", "unit_price": price}]
    return book(versions=[{"effective_from": "2025-01-01", "prices": prices}], **changes)


async def test_the_old_book_put_back_is_in_force_again(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1)
    for price in ("0.5", "2", "0.5"):
        await ledger.put_book(peak_at(price), now_s=JANUARY, late_s=LATE_S)
        await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", JANUARY, (), 8, 1)])))
    await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", FEBRUARY, (), 8, 1)])))
    assert [await total(pool, period) for period in ("2026-01", "2026-02")] == ["4.00", "4.00"]
    assert await ledger.check_charges("demo") == []


@pytest.mark.parametrize(
    ("zone", "before", "after"),
    [
        ("Europe/Berlin", {-2: 3, -1: 9}, ("3.00", "9.00")),  # by the hours around the beginning of February in UTC
        ("Europe/Berlin", {-2: 3, -1: 9, 0: 5}, ("3.00", "9.00")),
        ("America/New_York", {4: 9, 5: 3}, ("9.00", "3.00")),
    ],
)
async def test_months_that_are_not_final_follow_the_rules_of_their_time_zone(
    ledger: Ledger, dsn: str, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch, zone: str, before: dict[int, int], after: tuple[str, str]
) -> None:
    """An update of these moves usage into another month, which has some already or not. The end of December is final."""
    counts: list[Count] = [(PEAK, "demo", "acme", FEBRUARY + hour * HOUR, (), value, 1) for hour, value in before.items()]
    with monkeypatch.context() as earlier:
        earlier.setattr(book_module, "zone_named", lambda _: ZoneInfo("UTC"))
        await ledger.put_book(peak_at("1", timezone=zone), now_s=JANUARY, late_s=LATE_S)
        await ledger.apply(LOG, at(Writer(1).flush([*counts, (PEAK, "demo", "acme", JANUARY - HOUR, (), 7, 1)])))
        assert [await total(pool, month) for month in ("2025-12", "2026-01", "2026-02")] != ["7.00", *after]
    started = Ledger(dsn)
    put = await started.put_book(peak_at("1", timezone=zone), now_s=FEBRUARY, late_s=LATE_S)
    assert ([month.period for month in put.charged_again if month.lines], put.closed) == (["2026-01", "2026-02"], [])
    assert [await total(pool, month) for month in ("2025-12", "2026-01", "2026-02")] == ["7.00", *after]
    december, january = [await ask(api_at(pool).charges("demo", {"period": period})) for period in ("2025-12", "2026-01")]
    assert datetime.fromisoformat(december["period_end"]) == datetime.fromtimestamp(JANUARY, UTC)
    assert january["period_end"].startswith("2026-02-01T00:00:00"), january
    assert await started.check_charges("demo") == []
    assert await started.put_book(peak_at("1", timezone=zone), now_s=FEBRUARY, late_s=LATE_S) == ([], [])
    await started.close()


async def test_what_a_new_book_changes_is_told_in_the_log(ledger: Ledger, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture) -> None:
    """An open month with its total before and after, a final one as it stays."""
    caplog.set_level("INFO")
    await ledger.put_book(peak_at("0.5"), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush([(PEAK, "demo", "acme", JANUARY, (), 8, 1)])))

    async def told(changed: PriceBook, now_s: int) -> list[str]:
        caplog.clear()
        rater = rater_of(ListSource(), ledger, now_s=now_s, books=[changed])
        await run_until(rater, lambda: rater.counts.ready)
        return [record.getMessage() for record in caplog.records if "price book of demo" in record.getMessage()]

    again = "by the price book of demo, 2026-01 is charged again, 1 lines; their amounts came to {} before and come to {} now"
    final = "the new price book of demo changes the prices of 2026-01, which is final and stays as it was charged; `parshall recharge`"
    end_s = FEBRUARY + LATE_S
    assert await told(peak_at("2"), end_s - 1) == [again.format(4, 16)]
    assert await told(peak_at("2", currency="EUR"), end_s - 1) == [again.format(16, 16)]
    for changed in (peak_at("3", currency="EUR"), peak_at("2")):
        (line,) = await told(changed, end_s)
        assert line.startswith(final)
        assert await total(pool, "2026-01") == "16.00"


async def test_a_configuration_that_comes_while_another_is_put_in_force_follows_it(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.put_book(peak_at("1"), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush([(PEAK, "demo", "acme", JANUARY, (), 8, 1)])))
    rater = rater_of(ListSource(), ledger, books=[peak_at("2")])

    async def in_force() -> bool:
        return await total(pool, "2026-01") == "24.00"

    async with pool.acquire() as other:
        lock = other.transaction()
        await lock.start()
        await other.execute("SELECT FROM tenants FOR UPDATE")
        rating = asyncio.create_task(run_until(rater, in_force))
        await until_it_waits(pool)
        rater.use(Configured((), [peak_at("3")]))
        await lock.rollback()
    await rating


async def until_it_waits(pool: asyncpg.Pool) -> None:
    """For a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not await pool.fetchval(waiting):
        await asyncio.sleep(0.005)


async def test_one_book_that_is_refused_leaves_every_tenant_as_it_was(ledger: Ledger, pool: asyncpg.Pool, dsn: str) -> None:
    other = {**BOOK, "tenant": "other", "timezone": "America/Chicago"}
    for good in (book(), PriceBook.model_validate(other)):
        await ledger.put_book(good, now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush([(PEAK, name, "acme", JANUARY + 86400, (), 8, 1) for name in ("demo", "other")])))
    dear = [{"effective_from": "2025-01-01", "prices": [{"meter": "peak_connections", "model": "per_unit", "unit_price": "2"}]}]
    books = [book(versions=dear), PriceBook.model_validate({**other, "timezone": "America/New_York"})]
    second = Ledger(dsn)
    with pytest.raises(ConfigurationRefused, match="'other' has charges by months of America/Chicago"):
        await Rater(ListSource(), second, clock_us=lambda: JANUARY * 1_000_000, late_s=LATE_S, configured=Configured((), books)).run()
    await second.close()
    assert await total(pool, "2026-01") == "4.00"


async def test_a_book_cannot_move_to_another_time_zone(ledger: Ledger) -> None:
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    with pytest.raises(ConfigurationRefused, match="cannot become Europe/Berlin; allowed: timezone = 'UTC'"):
        await ledger.put_book(book(timezone="Europe/Berlin", versions=[{"effective_from": "2026-01-01"}]), now_s=JANUARY, late_s=LATE_S)
    assert await ledger.put_book(book(decimal_places=3), now_s=JANUARY, late_s=LATE_S) == (
        [("demo", "2026-01", 3, Decimal("0.55"), Decimal("0.55"))],
        [],
    )


# What is configured, held against what is counted.

OTHER = [
    (EGRESS._replace(window_s=900), "has window_s 900 in the catalogue and 3600 in the counters of that name"),
    (EGRESS._replace(aggregation="max"), "has aggregation 'max' in the catalogue and 'sum' in the counters of that name"),
    (EGRESS._replace(scale=2), "has scale 2 in the catalogue and 0 in the counters of that name"),
    (
        EGRESS._replace(dimensions=("region", "zone")),
        r"has dimensions \('region', 'zone'\) in the catalogue and \('region',\) in the counters",
    ),
]
QUARTERS = EGRESS._replace(window_s=900)


def priced(meter: str, **more: object) -> PriceBook:
    """By the months of India, which begin half an hour after an hour does."""
    version = {"effective_from": "2025-01-01", "prices": [{"meter": meter, "model": "per_unit", "unit_price": "2", **more}]}
    return read_books([{**BOOK, "timezone": "Asia/Kolkata", "versions": [version]}])[0]


@pytest.mark.parametrize(("other", "told"), OTHER, ids=[told.split()[1] for _, told in OTHER])
async def test_a_catalogue_that_contradicts_what_is_counted_is_refused(ledger: Ledger, dsn: str, other: MeterDefinition, told: str) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    rater = rater_of(ListSource(), ledger, meters=METERS)
    await rater.check(Configured(METERS), ledger)
    await rater.check(Configured((EGRESS._replace(hash="f" * 16),)), ledger)  # another type of events, or another path to the value
    await rater.check(Configured((other._replace(name="egress_2"),)), ledger)
    with pytest.raises(ConfigurationRefused, match="meters: the meter 'egress_bytes' " + told):
        await rater.check(Configured((other,)), ledger)
    second = Ledger(dsn)
    with pytest.raises(ConfigurationRefused, match=told):
        await asyncio.wait_for(rater_of(ListSource(), second, meters=[other]).run(), 30)
    await second.close()


async def test_a_book_is_held_against_the_meters_that_are_counted(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    misfits = {
        r"prices\[0\].meter: months in Asia/Kolkata begin inside the 3600 s windows": priced("egress_bytes"),
        r"prices\[0\].dimensions: meter 'peak_connections' has no dimension 'zone'": priced("peak_connections", dimensions=["zone"]),
    }
    for told, misfit in misfits.items():
        with pytest.raises(ConfigurationRefused, match=r"price_books\[0\].versions\[0\]." + told):
            await asyncio.wait_for(rater_of(ListSource(), ledger, books=[misfit]).run(), 30)  # without a catalogue
    assert await pool.fetchval("SELECT count(*) FROM price_books") == 0


async def test_a_meter_that_comes_later_and_is_another_one_waits_for_the_right_configuration(ledger: Ledger, pool: asyncpg.Pool) -> None:
    source = ListSource()
    rater = rater_of(source, ledger, books=[priced("egress_bytes")], meters=[QUARTERS])
    await run_until(rater, lambda: rater.counts.ready)
    source.add(Writer(1).flush(counts := some()))
    await run_until(rater, lambda: rater.counts.failures > 2)
    assert "the meter 'egress_bytes' has window_s 900 in the catalogue and 3600 in" in rater.counts.last_failure
    assert "Asia/Kolkata begin inside the 3600 s windows of meter 'egress_bytes'" in rater.counts.last_failure, "everything at once"
    assert await stored_usage(pool) == {}
    for wrong in (rater.configured, Configured([EGRESS._replace(window_s=60)]), Configured([], [priced("egress_bytes")])):
        with pytest.raises(ConfigurationRefused, match="egress_bytes"):  # nothing of the meter is stored, and yet it is known what came
            await rater.check(wrong, ledger)
    right = Configured(METERS, [priced("calls")])
    await rater.check(right, ledger)
    rater.use(right)
    await run_until(rater, lambda: rater.counts.records == 1)
    assert await stored_usage(pool) == usage_by_hand(counts)
    assert await ledger.check_charges("demo") == []


async def test_a_window_with_the_beginning_of_a_month_in_it_is_not_priced(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """A book that no rater is configured with any more is held against nothing, and a meter may come that it does not fit."""
    await ledger.put_book(priced("egress_bytes"), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    answer = await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"}))
    assert (answer["total"], answer["unpriced"]) == ("0.00", True)
    assert await ledger.check_charges("demo") == []


async def total(pool: asyncpg.Pool, period: str) -> str:
    answer = await ask(api_at(pool).charges("demo", {"subject": "acme", "period": period}))
    found: str = answer["total"]
    return found


async def test_a_wrong_line_is_named_by_the_check(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    await pool.execute("UPDATE charge_lines SET quantity = quantity + 1 WHERE meter = 'requests'")
    (difference,) = await ledger.check_charges("demo")
    assert difference.computed is not None
    assert difference.stored is not None
    assert (difference.period, difference.computed[0], difference.stored[0]) == ("2026-01", 1, 2)


@pytest.mark.parametrize("limit", [1, 3, 7, 40, 1000])
async def test_a_month_of_all_subjects_page_by_page(ledger: Ledger, pool: asyncpg.Pool, limit: int) -> None:
    """Each subject once, with just what is answered for it alone; those of other months and tenants not."""
    subjects = [f"customer {number}" for number in range(38)] + ["ä", "Z", "\U0001f600", " "]
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    counts: list[Count] = [(PEAK, "demo", subject, JANUARY, (), 8 + at, 1) for at, subject in enumerate(subjects)]
    counts += [(EGRESS, "demo", subject, JANUARY, ("eu",), 10**6, 1) for subject in subjects[::2]]
    counts += [(PEAK, "demo", "of February", FEBRUARY, (), 1, 1), (PEAK, "other", "of another", JANUARY, (), 1, 1)]
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    found: dict[str, Any] = {}
    pages, after = 0, {}
    while True:
        page = await ask(api_at(pool).charges("demo", {"period": "2026-01", "limit": f"{limit}", **after}))
        assert 0 < len(page["subjects"]) <= limit
        head = {name: value for name, value in page.items() if name not in ("subjects", "next")}
        found |= {charges["subject"]: head | charges for charges in page["subjects"]}
        pages += 1
        if page["next"] is None:
            break
        assert page["next"] == page["subjects"][-1]["subject"]
        after = {"after": page["next"]}
    assert found.keys() == set(subjects) and pages == -(-len(subjects) // limit)
    for subject in subjects:
        assert found[subject] == await ask(api_at(pool).charges("demo", {"subject": subject, "period": "2026-01"}))
    nobody = await ask(api_at(pool).charges("demo", {"period": "2025-12"}))
    assert (nobody["subjects"], nobody["next"]) == ([], None)


async def test_one_subject_is_answered_whole_however_large(ledger: Ledger, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MOST_ROWS", 3)
    counts: list[Count] = [(EGRESS, "demo", "large", JANUARY, (f"r{n}",), 10**6, 1) for n in range(9)]
    counts.append((EGRESS, "demo", "small", JANUARY, ("eu",), 10**6, 1))
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    whole = await ask(api_at(pool).charges("demo", {"subject": "large", "period": "2026-01"}))
    assert len(whole["lines"]) == 9
    pages = [
        await ask(api_at(pool).charges("demo", {"period": "2026-01", "limit": "1", **after}))
        for after in ({}, {"after": "large"}, {"after": "small"})
    ]
    assert sorted(len(charges["lines"]) for page in pages for charges in page["subjects"])[-1] == 9
    assert "limit: the answer has more than 3 lines" in await refused(api_at(pool).charges("demo", {"period": "2026-01"}))


@pytest.mark.parametrize(
    ("meter", "change"),
    [
        ("peak_connections", "amount = amount + 1"),
        ("peak_connections", "amount = NULL"),
        ("peak_connections", "price = price - 1"),
        ("peak_connections", "price = 99"),
        ("peak_connections", "price = -1"),
        ("calls", "amount = 1"),
        ("calls", "price = 99"),
    ],
)
async def test_a_stored_charge_that_somebody_changed_is_not_shown(ledger: Ledger, pool: asyncpg.Pool, meter: str, change: str) -> None:
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush([*some(), (MINUTES, "demo", "acme", JANUARY, (), 0, 3)])))
    await pool.execute(f"UPDATE charge_lines SET {change} WHERE meter = $1", meter)
    answer = await api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"})
    assert answer.status == 500 and answer.content_type == "application/problem+json"
    assert f"the stored charge of meter '{meter}' of subject 'acme' in 2026-01 is" in json.loads(answer.body)["detail"], answer.body
    assert "`parshall audit` says more" in json.loads(answer.body)["detail"]


async def test_a_month_is_final_when_nothing_can_come_any_more(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    for as_of_s, status in ((FEBRUARY + LATE_S - 1, "open"), (FEBRUARY + LATE_S, "final")):
        await ledger.note_progress(LOG, as_of_s * 1_000_000, {"s0": 1})
        assert (await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"})))["status"] == status
    assert (await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-02"})))["status"] == "open"


async def test_a_month_without_usage_is_that_of_the_book_all_the_same(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """It is final when that month is."""
    for name, zone in (("other", "UTC"), ("demo", "America/New_York")):
        priced = peak_at("1", tenant=name, timezone=zone, currency={"demo": "CAD", "other": "USD"}[name])
        await ledger.put_book(priced, now_s=JANUARY, late_s=LATE_S)
    asked = {"subject": "acme", "period": "2026-01"}
    for as_of_s, status in ((FEBRUARY + LATE_S, "open"), (FEBRUARY + LATE_S + 5 * HOUR, "final")):
        await ledger.note_progress(LOG, as_of_s * 1_000_000, {})
        answer = await ask(api_at(pool).charges("demo", asked))
        assert (answer["status"], answer["currency"], answer["total"], answer["lines"]) == (status, "CAD", "0.00", [])
    assert (answer["period_start"], answer["period_end"]) == ("2026-01-01T00:00:00-05:00", "2026-02-01T00:00:00-05:00")
    assert (await ask(api_at(pool).charges("nobody", asked)))["currency"] is None


@pytest.mark.parametrize("name", ["usage", "charges", "ledger"])
async def test_what_as_of_claims_is_in_the_numbers_also_when_they_change_meanwhile(ledger: Ledger, pool: asyncpg.Pool, name: str) -> None:
    """More is rated, and `as_of` goes on, while the question waits for that very number."""
    writer = Writer(1)
    await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", JANUARY, (), 8, 1)], {"demo": {"accepted": 1}})))
    await ledger.note_progress(LOG, 1_000_000, {"s0": 1})
    asked = {"usage": {"meter": "peak_connections"}, "charges": {"subject": "acme", "period": "2026-01"}, "ledger": {}}[name]
    async with pool.acquire() as other:
        lock = other.transaction()
        await lock.start()
        await other.execute("LOCK TABLE progress")
        answering = asyncio.create_task(ask(getattr(api_at(pool), name)("demo", asked)))
        await until_it_waits(pool)
        await ledger.apply(LOG, at(writer.flush([(PEAK, "demo", "acme", JANUARY, (), 9, 1)], {"demo": {"accepted": 1}}), start=1))
        await other.execute("UPDATE progress SET as_of_us = 2000000")
        await lock.commit()
    answer = await answering
    assert answer["as_of"] == "1970-01-01T00:00:02.000000Z"
    new = {
        "usage": lambda: answer["data"][0]["value"] == "9",
        "charges": lambda: answer["lines"][0]["quantity"] == "9",
        "ledger": lambda: answer["tenants"]["demo"]["rated"] == 2,
    }
    assert new[name](), answer


# Usage.


async def test_usage_of_too_many_rows_is_refused_and_never_cut(ledger: Ledger, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MOST_ROWS", 3)
    await ledger.apply(LOG, at(Writer(1).flush(count for hour in range(4) for count in some(hour))))
    asked = {"meter": "requests", "from": rfc(JANUARY)}
    assert len((await ask(api_at(pool).usage("demo", {**asked, "to": rfc(JANUARY + 3 * HOUR)})))["data"]) == 3
    assert "from: the answer has more than 3 rows" in await refused(api_at(pool).usage("demo", {**asked, "to": rfc(JANUARY + 4 * HOUR)}))


async def test_a_long_answer_leaves_the_loop_to_others_on_the_way(
    ledger: Ledger, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop that answers may take events, too."""
    counts: list[Count] = [(EGRESS, "demo", "acme", JANUARY, (f"r{n}",), 10**6, 1) for n in range(250)]
    counts += [(EGRESS, "demo", f"s{n}", JANUARY, (f"r{n}",), 10**6, 1) for n in range(250)]
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    turns = 0
    made: dict[str, list[int]] = {}

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def told(module: Any, name: str) -> None:
        make = getattr(module, name)

        def note(*given: Any) -> Any:
            made.setdefault(name, []).append(turns)
            return make(*given)

        monkeypatch.setattr(module, name, note)

    for module, name in ((api_module, "_of_window"), (api_module, "_line"), (query, "_charge_row")):
        told(module, name)
    running = asyncio.ensure_future(others())
    asked = {"meter": EGRESS.name, "from": rfc(JANUARY), "to": rfc(JANUARY + HOUR), "group_by": "region"}
    assert len((await ask(api_at(pool).usage("demo", asked)))["data"]) == 250
    assert len((await ask(api_at(pool).charges("demo", {"subject": "acme", "period": "2026-01"})))["lines"]) == 250
    assert len((await ask(api_at(pool).charges("demo", {"limit": "1000", "period": "2026-01"})))["subjects"]) == 251
    running.cancel()
    assert {name: len(when) for name, when in made.items()} == {"_of_window": 250, "_line": 750, "_charge_row": 750}
    for name, when in made.items():
        assert max(Counter(when).values()) == ITEMS_A_TURN, name


async def test_usage_in_all_windows_and_groups(ledger: Ledger, pool: asyncpg.Pool) -> None:
    counts = at_random(11, 400)
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    start, end = FEBRUARY - 5 * 86400, FEBRUARY + 3 * 86400
    for meter in METERS:
        for window, length in (("hour", HOUR), ("day", 86400), ("month", None)):
            if meter is STORAGE and window == "hour":
                continue
            for group_by in ((), ("subject",), meter.dimensions, (*meter.dimensions, "subject")):
                for subject in (None, "acme"):
                    asked = {"meter": meter.name, "from": rfc(start), "to": rfc(end), "window": window, "group_by": ",".join(group_by)}
                    answer = await ask(api_at(pool).usage("demo", {**asked, **({"subject": subject} if subject else {})}))
                    found = {
                        (row["window_start"], row["subject"], *row["dimensions"].items()): (Fraction(row["value"]), row["events"])
                        for row in answer["data"]
                    }
                    assert len(found) == len(answer["data"])
                    assert found == windows_by_hand(counts, meter, start, end, length, group_by, subject)


def rfc(instant_s: int) -> str:
    return datetime.fromtimestamp(instant_s, UTC).isoformat().replace("+00:00", "Z")


def windows_by_hand(
    counts: Sequence[Count], meter: Any, start: int, end: int, length: int | None, group_by: Sequence[str], only: str | None
) -> dict[tuple[Any, ...], tuple[Fraction, int]]:
    groups: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for (tenant, name, subject, window, dimensions), cell in usage_by_hand(counts).items():
        if (tenant, name) != ("demo", meter.name) or not start <= window < end or only not in (None, subject):
            continue
        first = window - window % length if length else (FEBRUARY if window >= FEBRUARY else start)
        named = dict(zip(meter.dimensions, dimensions, strict=True))
        shown = subject if only or "subject" in group_by else None
        key = (rfc(first), shown, *((dimension, named[dimension]) for dimension in group_by if dimension != "subject"))
        groups.setdefault(key, []).append(cell)
    merged = max if meter.aggregation == "max" else sum
    return {
        key: (Fraction(merged(value for value, _ in cells), 10**meter.scale), sum(events for _, events in cells))
        for key, cells in groups.items()
    }


async def test_days_of_a_time_zone(ledger: Ledger, pool: asyncpg.Pool) -> None:
    counts: list[Count] = [(REQUESTS, "demo", "acme", FEBRUARY + hour * HOUR, ("eu", "a"), 0, 10 ** (hour + 3)) for hour in (-2, -1, 0)]
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    asked = {
        "meter": "requests",
        "from": rfc(FEBRUARY - 2 * HOUR),
        "to": rfc(FEBRUARY + HOUR),
        "window": "day",
        "timezone": "Europe/Berlin",
    }
    answer = await ask(api_at(pool).usage("demo", asked))
    assert [(row["window_start"], row["window_end"], row["value"]) for row in answer["data"]] == [
        ("2026-01-31T23:00:00+01:00", "2026-02-01T00:00:00+01:00", "10"),
        ("2026-02-01T00:00:00+01:00", "2026-02-01T02:00:00+01:00", "1100"),
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"meter": None}, "meter: is missing; allowed: the name of a meter"),
        ({"meter": "reqests"}, "meter: no meter is called 'reqests'; allowed: calls, egress_bytes, "),
        ({"window": "week"}, "window: 'week' is none; allowed: hour, day, month"),
        ({"meter": "storage_gb_hours", "window": "hour"}, "counted in windows of 1d, an hour is finer; allowed: day, month"),
        ({"from": "yesterday"}, "from: 'yesterday' is no RFC 3339 time"),
        ({"from": "2026-01-01T00:30:00Z"}, "counted in windows of 1h; allowed: 2026-01-01T00:00:00Z or 2026-01-01T01:00:00Z"),
        ({"from": "2026-01-01T00:00:00.000000001Z"}, "from: "),
        ({"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from: 2026-02-01T00:00:00Z is not before 2026-01-01T00:00:00Z"),
        ({"from": "2026-13-01T00:00:00Z"}, "is no RFC 3339 time"),
        ({"from": "0001-01-01T00:00:00+23:00"}, "from: "),
        ({"from": "1980-01-01T00:00:00Z"}, "window: more than 10000 windows of one hour"),
        ({"group_by": "region,planet"}, "group_by: meter 'requests' has no dimension 'planet'; allowed: region, zone, subject"),
        ({"group_by": "zone,zone"}, "group_by: a name occurs twice"),
        ({"timezone": "Asia/Kolkata", "window": "day"}, "timezone: a day of Asia/Kolkata begins inside a window of meter 'requests'"),
        ({"timezone": "Mars"}, "timezone: 'Mars' is no time zone"),
        ({"region": "eu"}, "region: there is no such parameter; allowed: meter, subject, from, to, window, group_by, timezone"),
        ({"subject": "a\0b"}, "subject: it holds the character U+0000"),
    ],
)
async def test_a_bad_usage_query_is_told_what_is_allowed(pool: asyncpg.Pool, asked: dict[str, str | None], said: str) -> None:
    query_strings = {"meter": "requests", **asked}
    given = {name: value for name, value in query_strings.items() if value is not None}
    assert said in await refused(api_at(pool).usage("demo", given))


async def test_a_bad_charges_query_is_told_what_is_allowed(pool: asyncpg.Pool) -> None:
    assert "subject: it is empty" in await refused(api_at(pool).charges("demo", {"subject": ""}))
    assert "period: '2026-1' is no month; allowed: a month as YYYY-MM" in await refused(
        api_at(pool).charges("demo", {"subject": "a", "period": "2026-1"})
    )
    assert "currency: there is no such parameter; allowed: subject, period" in await refused(
        api_at(pool).charges("demo", {"subject": "a", "currency": "USD"})
    )


async def test_what_nobody_used_is_empty(pool: asyncpg.Pool) -> None:
    assert await ask(api_at(pool).usage("nobody", {"meter": "requests"})) == {"as_of": None, "data": []}
    answer = await ask(api_at(pool).charges("nobody", {"subject": "x", "period": "2026-01"}))
    assert (answer["total"], answer["lines"], answer["status"]) == ("0", [], "open")


async def test_a_tenant_sees_its_own_only(ledger: Ledger, pool: asyncpg.Pool) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(some(), {"demo": {"accepted": 3}})))
    assert (await ask(api_at(pool).usage("other", {"meter": "requests"})))["data"] == []
    assert (await ask(api_at(pool).charges("other", {"subject": "acme", "period": "2026-01"})))["lines"] == []
    assert (await ask(api_at(pool).ledger("other", {})))["tenants"]["other"]["rated"] == 0


async def test_the_rated_part_of_the_ledger(ledger: Ledger, pool: asyncpg.Pool) -> None:
    one, two = Writer(1), Writer(2)
    await ledger.apply(LOG, at(one.flush(some(), {"demo": {"received": 9, "accepted": 5, "duplicate": 1, "too_late": 2, "conflict": 1}})))
    await ledger.apply(LOG, at(two.flush([], {"demo": {"received": 2, "accepted": 2}, "other": {"received": 1, "accepted": 1}})))
    mine = (await ask(api_at(pool).ledger("demo", {})))["tenants"]
    assert list(mine) == ["demo"]
    writers = mine["demo"].pop("writers")
    assert mine["demo"] == {
        "received": 11, "accepted": 7, "duplicate": 1, "rejected": 3, "rated": 7, "rejections": {"too_late": 2, "conflict": 1}
    }  # fmt: skip
    assert {writer: counts["accepted"] for writer, counts in writers.items()} == {one.id.hex(): 5, two.id.hex(): 2}
    every = await ask(api_at(pool).ledger(None, {}))
    assert {name: counts["rated"] for name, counts in every["tenants"].items()} == {"demo": 7, "other": 1}
    assert [(chain["writer"], chain["last_n"]) for chain in every["chains"]] == [(one.id.hex(), 1), (two.id.hex(), 1)]


async def test_a_database_that_cannot_be_asked_is_503(pool: asyncpg.Pool) -> None:
    await pool.close()
    assert (await api_at(pool).usage("demo", {"meter": "requests"})).status == 503


async def test_minutes_add_up_to_hours(ledger: Ledger, pool: asyncpg.Pool) -> None:
    counts: list[Count] = [(MINUTES, "demo", "acme", JANUARY + minute * 60, (), 0, 1) for minute in range(0, 180, 7)]
    await ledger.apply(LOG, at(Writer(1).flush(counts)))
    answer = await ask(api_at(pool).usage("demo", {"meter": "calls", "from": rfc(JANUARY), "to": rfc(JANUARY + 3 * HOUR)}))
    assert [row["value"] for row in answer["data"]] == ["9", "9", "8"]
