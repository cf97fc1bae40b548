"""The rater: counters a second into a real PostgreSQL, and how long a question about usage takes over many rows.

Belongs here: a log of records in memory, the shipped loop over it, and rows made in the database for the question. Must not know: Kafka.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from bench.figures import NONE, Figure, at_least, at_most, figure
from bench.services import real_postgres
from bench.settings import demo_settings
from buffer.counters import CounterKey, Deltas, MeterDefinition, count, pack, unpack
from buffer.journal_records import Through
from buffer.record import RecordEncoder
from ingest.catalogue import read_catalogue
from parshall.wiring import clock_us, late_s, make_configured
from rater.api import Api
from rater.consume import Rater
from rater.migrate import migrate
from rater.postgres import Ledger, open_pool
from rater.source import Positions, Received

SECTION = "rater"
AIMED_AT_ROWS = 10_000_000
SUBJECTS_OF_A_FLUSH = 8_000
QUESTIONS = 300


class InMemory:
    """A log of one stream, which grows. Positions are indexes."""

    identity = "bench"

    def __init__(self, records: Sequence[Received] = ()) -> None:
        self._records = list(records)
        self._at = 0

    def append(self, headers: Mapping[str, bytes], value: bytes) -> None:
        self._records.append(Received("s", len(self._records) + 1, headers, value))

    async def open(self, positions: Positions) -> None:
        self._at = (await positions(["s"])).get("s", 0)

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        found = self._records[self._at : self._at + most]
        self._at += len(found)
        if not found:
            await asyncio.sleep(timeout_s)
        return found

    async def rewind(self) -> None:
        raise AssertionError("the database failed")

    async def ends(self) -> Mapping[str, int]:
        return {"s": len(self._records)}

    async def starts(self) -> Mapping[str, int]:
        return {}

    async def close(self) -> None:
        return None


def figures(flushes: int, rows: int) -> Iterator[Figure]:
    with real_postgres() as dsn:
        yield from asyncio.run(_figures(dsn, flushes, rows))


async def _figures(dsn: str, flushes: int, rows: int) -> list[Figure]:
    await migrate(dsn)
    new, again = await _rate(dsn, flushes)
    times = await _ask(dsn, rows)
    target = at_most(50) if rows >= AIMED_AT_ROWS else NONE
    note = "" if rows >= AIMED_AT_ROWS else f"the target, 50 ms, is for {AIMED_AT_ROWS:,} rows"
    return [
        figure(SECTION, "counters that are new in usage", "counters/s", [new], at_least(20_000)),
        figure(SECTION, "counters that are in usage", "counters/s", again, at_least(20_000)),
        figure(SECTION, f"usage of a subject and month, p99, {rows:,} rows", "ms", [times], target, note),
    ]


async def _rate(dsn: str, flushes: int) -> tuple[int, list[int]]:
    """Hundredths of counters a second: of the first flush, and of each after it, which meets the same counters."""
    settings = demo_settings()
    definitions = read_catalogue(settings.meters).definitions
    live = _live(definitions)
    writer = os.urandom(16)
    next_n: dict[int, int] = {}
    log, ledger = InMemory(), Ledger(dsn)
    rater = Rater(log, ledger, clock_us=clock_us, late_s=late_s(settings), configured=make_configured(settings))
    task = asyncio.ensure_future(rater.run())
    speeds = []
    for number in range(1, 2 + flushes):
        encoder = RecordEncoder(dict(enumerate(definitions, 1)), {1: "demo"}, writer, 6, Through(bytes(16), number), next_n)
        records = [record for piece in encoder.pieces(live, {1: {"received": count(live), "accepted": count(live)}}) for record in piece]
        next_n = encoder.next_n
        start = time.perf_counter_ns()
        for record in records:
            log.append(dict(record.headers), record.value)
        while rater.counts.counters < number * count(live):
            assert not task.done() and not rater.counts.parked and not rater.counts.failures, rater.counts
            await asyncio.sleep(0.005)
        speeds.append(count(live) * 100_000_000_000 // (time.perf_counter_ns() - start))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await ledger.close()
    await _must_hold(dsn, live, len(speeds))
    return speeds[0], speeds[1:]


async def _must_hold(dsn: str, live: Deltas, flushes: int) -> None:
    """Usage has a row for each counter, with the events of all flushes."""
    connection = await asyncpg.connect(dsn)
    (row,) = await connection.fetch("SELECT count(*), sum(events)::bigint FROM usage")
    await connection.close()
    stored = row[0], row[1]
    rated = count(live), flushes * sum(unpack(delta)[1] for counters in live.values() for delta in counters.values())
    assert stored == rated, f"rated were (counters, events) {rated}, in usage are {stored}"


def _live(definitions: Sequence[MeterDefinition]) -> Deltas:
    numbers = {definition.name: number for number, definition in enumerate(definitions, 1)}
    window = int(time.time()) // 3600 * 3600
    sums: dict[CounterKey, int] = {}
    for subject in range(SUBJECTS_OF_A_FLUSH):
        for region in ("eu-west", "us-east"):
            name = f"customer-{subject:06d}"
            sums[(numbers["requests"], 1, name, window, region, "a")] = pack(7, 7)
            sums[(numbers["egress_bytes"], 1, name, window, region)] = pack(123_456 + subject, 7)
    maxima: dict[CounterKey, int] = {
        (numbers["peak_connections"], 1, f"customer-{subject:06d}", window): pack(subject, 3) for subject in range(SUBJECTS_OF_A_FLUSH)
    }
    return {"sum": sums, "max": maxima}


async def _ask(dsn: str, rows: int) -> int:
    """p99 in hundredths of a millisecond. The rows belong to subjects of their own; each question is about another one of them.

    Each series has a window in every hour of the month.
    """
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    next_month = month.replace(year=month.year + 1, month=1) if month.month == 12 else month.replace(month=month.month + 1)
    hours = (next_month - month) // timedelta(hours=1)
    series = -(-rows // hours)
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        """INSERT INTO series SELECT md5('bench ' || s)::uuid, t.tenant, m.meter, 'asked-' || s / 2, jsonb_build_array('region-' || s % 2)
           FROM generate_series(0, $1::integer - 1) AS s, tenants AS t, meters AS m WHERE t.name = 'demo' AND m.name = 'egress_bytes'""",
        series,
    )
    await connection.execute(
        """INSERT INTO usage SELECT id, $2::bigint + 3600 * h, 1000 * s + h, 1
           FROM (SELECT md5('bench ' || s)::uuid AS id, s FROM generate_series(0, $1::integer - 1) AS s ORDER BY id) AS sorted,
                generate_series(0, $3::integer - 1) AS h""",  # sorted, so that the index grows at its end
        series,
        int(month.timestamp()),
        hours,
        timeout=600,
    )
    await connection.execute("ANALYZE series, usage")
    await connection.close()
    pool = await open_pool(dsn)
    api = Api(pool, clock_us=clock_us, late_s=0)
    times = []
    for number in range(QUESTIONS):
        subject = number * 7919 % (series // 2)
        query = {
            "meter": "egress_bytes",
            "subject": f"asked-{subject}",
            "from": month.isoformat(),
            "to": next_month.isoformat(),
            "group_by": "region",
        }
        query["window"] = "month"
        start = time.perf_counter_ns()
        answer = await api.usage("demo", query)
        times.append(time.perf_counter_ns() - start)
        total = sum(1000 * one * hours + hours * (hours - 1) // 2 for one in (2 * subject, 2 * subject + 1))
        found = [line.split(b'"')[0] for line in answer.body.split(b'"value":"')[1:]]
        assert answer.status == 200 and sum(map(int, found)) == total, answer
    await pool.close()
    return sorted(times)[len(times) * 99 // 100] // 10_000
