"""What an event, a call and a counter take where they are kept: journal, Kafka, PostgreSQL. `python -m bench.sizes`

Belongs here: writing each store with the shipped code and looking how large it became. `parshall size` reckons with these figures
(parshall/measured.py). Must not know: how capacity is computed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count as numbers
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

import asyncpg
import uvloop

from bench.bodies import Mix, bodies_of
from bench.micro_journal import journal_in
from bench.processes import cpu_us
from bench.rating import InMemory
from bench.services import kafka_and_folder, postgres_and_pid
from bench.settings import demo_settings
from buffer.counter_log import Record
from buffer.counters import Deltas, count, merge
from buffer.journal import Journal
from buffer.journal_records import CallRecord, FlushBegin, FlushCommit, Flushed, FlushPart, Opened, Through
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from buffer.record import RecordEncoder
from dedupe.port import DIGEST_BYTES, FINGERPRINT_BYTES
from ingest.catalogue import read_catalogue
from ingest.decode import Decoder, Limits
from parshall.archive_command import move_old
from parshall.archive_files import lines_of
from parshall.wiring import late_s, make_configured
from rater.archive import ledger_archive
from rater.archive_lines import read_line
from rater.consume import Rater
from rater.migrate import migrate
from rater.postgres import Ledger
from rater.source import Received

NOW = datetime(2026, 11, 15, 12, 30, tzinfo=UTC)  # all hours that are rated lie in one month
FEW, MANY = 20, 6_000  # subjects: some 300 counters, and nearly a counter an event
PARTITIONS = 6
TENANTS = {1: "demo"}
INCARNATION = bytes(16)
DEFINITIONS = dict(enumerate(read_catalogue(demo_settings().meters).definitions, 1))


class Folded(NamedTuple):
    events: int
    deltas: Deltas


def requests(total: int, events: int, subjects: int, now: datetime = NOW) -> Iterator[Folded]:
    """Decoded and folded as the edge does it. Subjects are named by UUIDs, which compress badly, as account numbers do."""
    decoder = Decoder(read_catalogue(demo_settings().meters), {meter.name: number for number, meter in DEFINITIONS.items()}, Limits())
    for body in bodies_of(Mix(total // events, events, subjects), now):
        named = re.sub(rb"customer-\d+", lambda found: str(uuid5(NAMESPACE_OID, found[0].decode())).encode(), body)
        yield Folded(events, decoder.decode_batch(1, named, int(now.timestamp()) * 1_000_000).deltas)


def encoded(live: Deltas, writer: bytes, next_n: dict[int, int], events: int) -> tuple[list[Record], dict[int, int]]:
    encoder = RecordEncoder(DEFINITIONS, TENANTS, writer, PARTITIONS, Through(INCARNATION, 1), next_n)
    records = [one for piece in encoder.pieces(live, {1: {"received": events, "accepted": events}}) for one in piece]
    return records, encoder.next_n


# ---- journal


async def journal_sizes(scale_percent: int) -> None:
    print("journal, one request a call: bytes an event, with so many deltas an event; and of the flush, bytes a counter")
    for events, subjects in ((1, FEW), (10, FEW), (100, FEW), (100, MANY), (1000, FEW), (1000, 3 * FEW), (1000, MANY)):
        total = events * max(1, min(200_000, 2_000 * events) * scale_percent // 100 // events)
        with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder:
            await _journal(folder, total, events, subjects)


async def _journal(folder: str, total: int, events: int, subjects: int) -> None:
    journal = await journal_in(folder)
    for definition in DEFINITIONS.values():
        journal.meter_number(definition)
    journal.append(Opened(INCARNATION, 0))
    live: Deltas = {}
    empty, deltas = await _kept(journal), 0
    for number, request in enumerate(requests(total, events, subjects), 1):
        deltas += count(request.deltas)
        merge(live, request.deltas)
        journal.append(_call(number, request))
        if number % 50 == 0:
            await journal.drain()
    calls = await _kept(journal)
    counters = count(live)
    records, _ = encoded(live, journal.writer, {}, total)
    journal.append(FlushBegin(1, Through(INCARNATION, total // events)))
    for record in records:
        journal.append(FlushPart(1, [record]))
    journal.append(FlushCommit(1))
    journal.append(Flushed(1))
    flush = await _kept(journal)
    print(
        f"  {events:5} events a request: {_tenths(calls - empty, total)} B/event, {_tenths(deltas, total)} deltas/event; "
        f"flush of {counters:,} counters in {len(records)} records: {_tenths(flush - calls, counters)} B/counter",
        flush=True,
    )
    await journal.close()


def _call(number: int, request: Folded) -> CallRecord:
    digests, prints = os.urandom(DIGEST_BYTES * request.events), os.urandom(FINGERPRINT_BYTES * request.events)
    tallies = {1: {"received": request.events, "accepted": request.events}}
    time_us = 1_764_000_000_000_000
    return CallRecord(number, 19_600, number, 0, time_us, [(1, digests, prints)], [request.deltas], tallies, (), os.urandom(16))


async def _kept(journal: Journal) -> int:
    await journal.drain()
    return journal.kept_bytes


# ---- Kafka


async def kafka_sizes(scale_percent: int) -> None:
    print("Kafka: bytes on disk, as compressed by the shipped producer")
    with kafka_and_folder() as (bootstrap, folder):
        log = KafkaLog(KafkaCluster(bootstrap, create_topics=True, accept_unsafe=True))
        await log.open()
        next_n: dict[int, int] = {}
        writer, before = os.urandom(16), 0
        for subjects in (1, FEW, 600, MANY):
            total = max(1000, 30 * subjects * scale_percent // 100)
            live = _live(total, subjects)
            records, next_n = encoded(live, writer, next_n, total)
            await log.produce(records)
            size = sum(file.stat().st_size for file in folder.glob("usage.counters-*/*.log"))
            value = sum(len(record.value) for record in records)
            print(
                f"  a flush of {count(live):,} counters in {len(records)} records: {_tenths(size - before, count(live))} B/counter"
                f" ({_tenths(value, count(live))} before compression)",
                flush=True,
            )
            before = size
        await log.close()


def _live(total: int, subjects: int, now: datetime = NOW) -> Deltas:
    live: Deltas = {}
    for request in requests(total, 1000, subjects, now):
        merge(live, request.deltas)
    return live


# ---- PostgreSQL


async def postgres_sizes(scale_percent: int) -> None:
    """Some hours, each flushed some times: rows that are new, then rows that are updated."""
    hours, flushes = 4, 3
    subjects = max(100, 3_000 * scale_percent // 100)
    with postgres_and_pid() as (dsn, pid):
        await migrate(dsn)
        connection = await asyncpg.connect(dsn)
        ledger = Ledger(dsn)
        log: list[Received] = []
        next_n: dict[int, int] = {}
        writer, rated, stored = os.urandom(16), 0, 0
        print("rater and PostgreSQL, a flush: us of CPU and bytes of write-ahead log a counter")
        for hour in range(hours):
            live = _live(30 * subjects, subjects, NOW + timedelta(hours=hour))
            stored += count(live)
            for flush in range(flushes):
                records, next_n = encoded(live, writer, next_n, 1)
                log += [Received("s", at, dict(one.headers), one.value) for at, one in zip(numbers(len(log) + 1), records, strict=False)]
                await _rate(f"hour {hour + 1}, flush {flush + 1}", log, ledger, connection, pid, count(live))
                rated += count(live)
        await connection.execute("VACUUM ANALYZE")
        print(f"PostgreSQL: bytes, indexes included, after {rated:,} counters")
        for table in ("records", "usage", "series", "charge_lines"):
            size, rows = (
                await connection.fetchval(f"SELECT pg_total_relation_size('{table}')"),
                await connection.fetchval(f"SELECT count(*) FROM {table}"),
            )
            each = f", {_tenths(size, rated)} a rated counter" if table == "records" else ""
            print(f"  {table:12} {size:>12,} B, {rows:>9,} rows: {_tenths(size, rows)} a row{each}")
        await _small_records(ledger, connection, 100 * scale_percent)
        await _archive(dsn, connection)
        await ledger.close()
        await connection.close()


async def _small_records(ledger: Ledger, connection: asyncpg.Connection, records: int) -> None:
    """Of one counter each: what is left of them is the row, its headers and its index entries."""
    live, writer = _live(1000, 1), os.urandom(16)
    next_n: dict[int, int] = {}
    one: Deltas = {kind: dict(list(counters.items())[:1]) for kind, counters in list(live.items())[:1]}
    before = await connection.fetchval("SELECT pg_total_relation_size('records')")
    for start in range(0, records, 500):
        batch = []
        for at in range(start, start + 500):
            (made,), next_n = encoded(one, writer, next_n, 1)
            batch.append(Received("s", at + 1, dict(made.headers), made.value))
        await ledger.apply("log", batch)
    await connection.execute("VACUUM ANALYZE records")
    size = await connection.fetchval("SELECT pg_total_relation_size('records')") - before
    print(f"  small records {size:>10,} B, {records:>9,} rows of one counter: {_tenths(size, records)} a row")


async def _archive(dsn: str, connection: asyncpg.Connection) -> None:
    """All records, so what is left of the table is what archived ones take."""
    await connection.execute("UPDATE records SET rated_at = rated_at - interval '2 days'")
    records, counters = await connection.fetchval("SELECT count(*) FROM records"), 0
    with tempfile.TemporaryDirectory() as folder:
        async with ledger_archive(dsn) as archive:
            assert await move_old(archive, folder, 86_400) == 0
        columns = "log, stream, next_position, rated_at, archive, tallies"  # their rows many times, so that pages are full
        await connection.execute(
            f'INSERT INTO records (writer, "partition", n, hash, {columns}) '
            f'SELECT writer, "partition", n + 1000000 * again, hash, {columns} FROM records, generate_series(1, 200) AS again'
        )
        records *= 201
        await connection.execute("VACUUM FULL records")
        size = await connection.fetchval("SELECT pg_total_relation_size('records')")
        files = sorted(os.listdir(folder))
        for file, sha256 in await connection.fetch("SELECT file, sha256 FROM archives"):
            counters += sum(len(read_line(line).record.counters) for line in lines_of(folder, file, sha256))
        written = sum(os.path.getsize(f"{folder}/{file}") for file in files)
    print(
        f"  archived     {size:>12,} B, {records:>9,} rows: {_tenths(size, records)} a row; {_tenths(written, counters)} a counter in files"
    )


async def _rate(what: str, log: Sequence[Received], ledger: Ledger, connection: asyncpg.Connection, pid: int, counters: int) -> None:
    settings = demo_settings()
    lsn = await connection.fetchval("SELECT pg_current_wal_lsn()")
    theirs_us, ours_ns, wall_ns = cpu_us(pid), time.process_time_ns(), time.perf_counter_ns()
    now_us = int(NOW.timestamp()) * 1_000_000
    rater = Rater(InMemory(log), ledger, clock_us=lambda: now_us, late_s=late_s(settings), configured=make_configured(settings))
    task = asyncio.ensure_future(rater.run())
    while rater.counts.counters < counters:
        assert not task.done() and not rater.counts.parked and not rater.counts.failures, rater.counts
        await asyncio.sleep(0.005)
    wall_ns = time.perf_counter_ns() - wall_ns
    ours_ns, theirs_us = time.process_time_ns() - ours_ns, cpu_us(pid) - theirs_us
    wal = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)::bigint", lsn)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print(
        f"  {what}, {counters:,} counters: rater {_tenths(ours_ns // 1000, counters)}, PostgreSQL {_tenths(theirs_us, counters)} us; "
        f"{counters * 1_000_000_000 // wall_ns:,} counters/s; {_tenths(wal, counters)} B",
        flush=True,
    )


def _tenths(total: int, units: int) -> str:
    value = 10 * total // max(1, units)
    return f"{value // 10}.{value % 10}"


async def bench(scale_percent: int) -> None:
    await journal_sizes(scale_percent)
    await kafka_sizes(scale_percent)
    await postgres_sizes(scale_percent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--percent", type=int, default=100, help="of the usual amount")
    uvloop.run(bench(parser.parse_args().percent))


if __name__ == "__main__":
    main()
