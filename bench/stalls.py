"""How long the event loop cannot turn to anything else, while the three large pieces of work are done beside it.

Belongs here: a ticker that notices, and the real flusher, claims and journal under it, set up as the worker sets up its process. Must not
know: HTTP, what a request costs.

A stall is the longest time between two turns of the loop. The first row is the ticker with nothing to do: what the machine adds by itself.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvloop

from bench.figures import Figure, at_most, figure
from bench.micro_claims import Caller, NoHistory, fresh
from bench.micro_flush import METERS, TENANTS, deltas
from bench.micro_journal import METER, TENANT, journal_in, records
from bench.services import real_kafka, real_redis
from buffer.flush_tuner import FlushTuner
from buffer.journal_records import Opened, Through
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from dedupe.in_process import InProcessClaims
from dedupe.port import Claims, Identity, State
from dedupe.redis_address import RedisAddress
from dedupe.redis_claims import RedisClaims
from ingest.flusher import Flusher
from parshall.worker import spare_the_collector

SECTION = "event loop stall"
TARGET = at_most(20)
TICK_S = 0.001
SECOND_US = 1_000_000


class Ticker:
    longest_ns = 0

    async def run(self) -> None:
        before = time.perf_counter_ns()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.perf_counter_ns()
            self.longest_ns = max(self.longest_ns, now - before)
            before = now

    @property
    def longest(self) -> int:
        """Hundredths of a millisecond."""
        return self.longest_ns // 10_000


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticker]:
    ticker = Ticker()
    task = asyncio.ensure_future(ticker.run())
    await asyncio.sleep(0.05)
    ticker.longest_ns = 0
    try:
        yield ticker
        await asyncio.sleep(0.05)  # a stall that is under way is seen when it ends
    finally:
        task.cancel()


def figures(rounds: int, counters: int, claims: int) -> Iterator[Figure]:
    spare_the_collector()
    yield figure(SECTION, "nothing to do", "ms", [uvloop.run(_idle()) for _ in range(rounds)])
    with real_kafka() as (bootstrap, _):
        cluster = KafkaCluster(bootstrap, create_topics=True, accept_unsafe=True)
        flushes = [uvloop.run(flush(counters, cluster)) for _ in range(rounds)]
    yield figure(SECTION, f"a flush of {counters:,} live counters", "ms", flushes, TARGET)
    name = f"a generation of {claims:,} claims is dropped"
    yield figure(SECTION, f"{name}, in process", "ms", [uvloop.run(drop_in_process(claims)) for _ in range(rounds)], TARGET)
    in_redis = [uvloop.run(_drop_in_redis(claims)) for _ in range(rounds)]
    yield figure(SECTION, f"{name}, in Redis", "ms", [loop for loop, _ in in_redis], TARGET)
    yield figure(SECTION, f"{name}, in Redis: longest claim call", "ms", [call for _, call in in_redis])
    rolls = [uvloop.run(_roll()) for _ in range(rounds)]
    yield figure(SECTION, "a journal segment rolls", "ms", rolls, TARGET)


async def _idle() -> int:
    async with ticking() as ticker:
        await asyncio.sleep(1)
    return ticker.longest


async def flush(counters: int, cluster: KafkaCluster) -> int:
    """Hundredths of a millisecond, as of the others."""
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder:
        log = KafkaLog(cluster)
        await log.open()
        journal = await journal_in(folder)
        incarnation = os.urandom(16)
        journal.append(Opened(incarnation, time.time_ns() // 1000))
        tuner = FlushTuner(3_600_000, 100_000_000)
        flusher = Flusher(
            journal, log, tuner, meters=METERS, tenants=TENANTS, clock_us=lambda: time.time_ns() // 1000, rejected_bytes=1 << 20
        )
        flusher.merge([deltas(counters, 1)], {}, [], Through(incarnation, 0))
        async with ticking() as ticker:
            await flusher.flush()
        assert flusher.live_counters == 0 and flusher.flush_number == 1
        await journal.close()
        await log.close()
        return ticker.longest


class MovedClock:
    ahead_us = 0

    def __call__(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us


async def drop_in_process(claims: int) -> int:
    """The clock is put forward until the generation is too old, and calls go on."""
    clock = MovedClock()
    identity = Identity("bench", 3600 * SECOND_US, 3600 * SECOND_US)
    table = InProcessClaims(identity=identity, clock_us=clock, entropy=os.urandom, most_claims=4 * claims)
    async with _serving(table):
        caller = Caller(table, clock)
        await caller.run(fresh(claims, 8000))
        full = table.table.size
        async with ticking() as ticker:
            clock.ahead_us = 3 * 3600 * SECOND_US
            for _ in range(claims // 2000):  # each call frees a bounded number
                await caller.run(fresh(1000, 1000))
                await asyncio.sleep(0)
        assert table.table.size < full, "nothing was dropped"
        return ticker.longest


async def _drop_in_redis(claims: int) -> tuple[int, int]:
    """(the loop's stall, the longest call) in hundredths of a millisecond. Generations are short, and pass by themselves."""
    generation_s = 6
    identity = Identity("bench", generation_s * SECOND_US, generation_s * SECOND_US)
    with real_redis() as (url, _):
        store = RedisClaims(RedisAddress.from_url(url), identity=identity, clock_us=lambda: time.time_ns() // 1000, entropy=os.urandom)
        async with _serving(store):
            caller = Caller(store)
            for _ in range(claims // 80_000):
                await caller.run(fresh(80_000, 8000))
            held = _memory(url)
            longest_call = 0
            deadline = time.monotonic() + 10 * generation_s
            async with ticking() as ticker:
                while _memory(url) > held // 2:
                    assert time.monotonic() < deadline, "no generation was dropped"
                    for _ in range(50):
                        start = time.perf_counter_ns()
                        await caller.run(fresh(1, 1))
                        longest_call = max(longest_call, time.perf_counter_ns() - start)
                        await asyncio.sleep(0.01)
            return ticker.longest, longest_call // 10_000


def _memory(url: str) -> int:
    import redis

    with redis.Redis.from_url(url) as client:
        used: int = client.info("memory")["used_memory"]
        return used


@asynccontextmanager
async def _serving(claims: Claims) -> AsyncIterator[None]:
    task = asyncio.ensure_future(claims.run(NoHistory()))
    while claims.state is not State.OPEN:
        assert not task.done(), task
        await asyncio.sleep(0.01)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _roll() -> int:
    """Calls of full size until the journal has a second segment, and a few more."""
    per_call, counters = 8000, 4000
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder:
        journal = await journal_in(folder)
        journal.append(Opened(os.urandom(16), time.time_ns() // 1000))
        meter = journal.meter_number(METER)
        rows = records(1, 40 * per_call, per_call, meter, counters)
        segments = 0
        number = 0
        async with ticking() as ticker:
            while segments < 2:
                for row in rows:
                    number += 1
                    journal.append(row._replace(number=number, execution=number))
                    await asyncio.sleep(0)
                await journal.drain()
                segments = len([name for name in os.listdir(f"{folder}/journal") if name.endswith(".journal")])
        await journal.close()
    assert TENANT == 1
    return ticker.longest
