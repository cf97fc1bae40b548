"""A PostgreSQL that fails under the rater: killed, standing still, in deadlock, out of disk. Every record is rated exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rater.migrate import migrate
from rater.postgres import DatabaseFailed, Ledger, open_pool
from rater.source import Received
from rater.transaction import Applied
from tests import services
from tests.integration.rating import Count, ListSource, Writer
from tests.integration.test_rater import JANUARY, assert_all_rated, at_random, book, rater_of, run_until, some


def a_stream(flushes: int, size: int) -> tuple[ListSource, list[Count]]:
    writers = [Writer(byte, partitions=2) for byte in (1, 2)]
    counts = [at_random(500 + seed, size) for seed in range(flushes)]
    source = ListSource()
    for index, flush in enumerate(counts):
        source.add(writers[index % 2].flush(flush, {"demo": {"accepted": 1}}), f"s{index % 2}")
    return source, [count for flush in counts for count in flush]


async def test_a_server_that_is_killed_and_stands_still_again_and_again() -> None:
    with services.postgres_server() as server:
        dsn = server.create_database("killed")
        await migrate(dsn)
        ledger = Ledger(dsn, command_timeout_s=2)
        source, counts = a_stream(120, 12)
        total = sum(map(len, source.streams.values()))
        rater = rater_of(source, ledger, books=[book()])
        try:
            for round_ in range(6):
                so_far = rater.counts.records
                await run_until(rater, lambda so_far=so_far: rater.counts.records > so_far or rater.counts.records == total)  # type: ignore[misc]
                rating = asyncio.create_task(rater.run())
                if round_ % 2:
                    server.pause()
                    await asyncio.sleep(0.1)
                    server.resume()
                else:
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                rating.cancel()
                await asyncio.gather(rating, return_exceptions=True)
            await run_until(rater, lambda: rater.counts.as_of_us > 0, 60)
            assert rater.counts.failures > 0
            async with await open_pool(dsn) as pool:
                await assert_all_rated(ledger, pool, counts)
                assert await pool.fetchval("SELECT count(*) FROM records") == total
        finally:
            await ledger.close()


async def test_as_of_goes_on_although_records_were_deleted_before_they_were_read(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that is empty since then gets no position any more. That a record is missing shows with the next one of its writer."""
    writer, other = Writer(1), Writer(2)
    source = ListSource()
    source.add(writer.flush(some()), "s0")
    source.add(other.flush(some()), "s1")
    rater = rater_of(source, ledger, books=[book()])
    await run_until(rater, lambda: rater.counts.records == 2)
    source.add(writer.flush(some()), "s0")
    source.first["s0"] = 2
    later = rater_of(source, ledger, now_s=JANUARY + 1, books=[book()])
    await run_until(later, lambda: later.counts.as_of_us == (JANUARY + 1) * 1_000_000)
    assert later.counts.parked == 0
    assert caplog.text.count("s0: counters before 2 were deleted unrated") == 1
    source.add(writer.flush(some()), "s0")
    await run_until(later, lambda: later.counts.parked == 1)


class EndsBadly(Ledger):
    """When it is cancelled within a transaction, the connection has broken too, and rolling back fails: seen on a real one."""

    async def apply(self, log: str, batch: Sequence[Received], refuse: str | None = None) -> Applied:
        try:
            return await asyncio.Future()
        except asyncio.CancelledError as error:
            raise DatabaseFailed("InterfaceError: cannot perform operation: connection is closed") from error


async def test_a_rater_that_is_told_to_end_ends_although_rolling_back_fails(database: str) -> None:
    await migrate(database)
    source, _ = a_stream(1, 1)
    ledger = EndsBadly(database)
    rating = asyncio.create_task(rater_of(source, ledger).run())
    await asyncio.sleep(0.2)
    assert not rating.done()
    rating.cancel()
    done, _ = await asyncio.wait([rating], timeout=5)
    assert done and rating.cancelled()
    await ledger.close()


async def test_a_deadlock_ends_the_transaction_and_it_is_made_again(ledger: Ledger, database: str) -> None:
    """Somebody's own SQL locks rows in the other order; PostgreSQL ends the rater's transaction."""
    writer = Writer(1)
    source = ListSource()
    source.add(writer.flush(some()))
    rater = rater_of(source, ledger, books=[book()])
    await run_until(rater, lambda: rater.counts.records == 1)
    async with await open_pool(database, most=2) as pool, pool.acquire() as other:
        await other.execute("SET deadlock_timeout = '60s'")  # so that it is the rater that notices, and is ended
        async with other.transaction():
            await other.execute("SELECT FROM charge_lines FOR UPDATE")
            source.add(writer.flush(some(0, value=2)))
            running = asyncio.create_task(rater.run())
            try:
                while not await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                    await asyncio.sleep(0.01)
                await other.execute("SELECT FROM usage FOR UPDATE")  # waits for the rater, which waits for us
                while not rater.counts.failures:
                    await asyncio.sleep(0.01)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        assert "DeadlockDetected" in rater.counts.last_failure
        await run_until(rater, lambda: rater.counts.records == 2)
        await assert_all_rated(ledger, pool, some() + some(0, value=2))


async def test_a_full_disk_is_waited_for(ledger: Ledger, database: str) -> None:
    """What the rater sees of one: the error that PostgreSQL gives when it cannot extend a file."""
    source, counts = a_stream(20, 5)
    rater = rater_of(source, ledger, books=[book()])
    async with await open_pool(database) as pool:
        await pool.execute(
            """CREATE SEQUENCE tries;
            CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF nextval('tries') BETWEEN 3 AND 6 THEN
                RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = 'disk_full';
              END IF;
              RETURN NULL;
            END $$;
            CREATE TRIGGER full_disk AFTER INSERT ON records EXECUTE FUNCTION full_disk()"""
        )
        await run_until(rater, lambda: rater.counts.as_of_us > 0, 60)
        assert rater.counts.failures > 0 and "No space left" in rater.counts.last_failure
        await assert_all_rated(ledger, pool, counts)
