"""Rebuilding claims from a journal: how long until a Redis that lost its data is open again, and what a claim takes in memory.

    python -m bench.micro_rebuild                      a million claims, on Redis and on Valkey
    python -m bench.micro_rebuild --claims 10000000    ten million

Belongs here: one writer whose journal is full of granted digests, entering a real, empty Redis (all of it is claimed again), and then one
that lacks the last percent (the faster way). Wall time, for the operator waits; CPU of both sides beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import redis as redis_py
import uvloop

from bench.claims_at_size import claims_in
from bench.processes import cpu_us
from bench.services import real_redis, real_valkey
from buffer.disk import RealDisk, Thread
from buffer.journal import Journal, JournalLimits, open_journal
from buffer.journal_records import CallRecord, Opened
from dedupe.port import DIGEST_BYTES, FINGERPRINT_BYTES, LAYOUTS, Claimed, Identity, State
from dedupe.redis_address import RedisAddress
from dedupe.redis_claims import RedisClaims

CLAIMS_A_CALL = 8000
LACKING_PERCENT = 1
IDENTITY = Identity(log="bench", generation_us=25 * 3600 * 1_000_000, lifetime_us=24 * 3600 * 1_000_000)


def now_us() -> int:
    return time.time_ns() // 1000


class History:
    """Of a writer that was started again after `before`, whose last call was `last_call`."""

    def __init__(self, journal: Journal, before: bytes, last_call: int) -> None:
        self.writer = journal.writer
        self.incarnation = os.urandom(16)
        self.closed = [(before, last_call)]
        self.mark = 0
        self.horizon_us = 0
        self.lost_horizon_us = 0
        self.branch = b""
        self._journal = journal

    async def enter(self, branch: bytes) -> None:
        self.branch = branch

    async def drain(self) -> None:
        await self._journal.drain()

    def claims(self) -> Iterator[Claimed]:
        for kept in self._journal.claims():
            yield Claimed(*kept)

    async def members(self) -> dict[bytes, bytes]:
        return {self.writer: self.branch}


async def grow(journal: Journal, first_call: int, claims: int) -> int:
    """As if so many events had been granted; returns the last call."""
    number = first_call - 1
    for number in range(first_call, first_call + claims // CLAIMS_A_CALL):
        digests, prints = os.urandom(DIGEST_BYTES * CLAIMS_A_CALL), os.urandom(FINGERPRINT_BYTES * CLAIMS_A_CALL)
        generation = now_us() // IDENTITY.generation_us
        tallies = {1: {"received": CLAIMS_A_CALL, "accepted": CLAIMS_A_CALL}}
        journal.append(CallRecord(number, generation, number, 0, now_us(), [(1, digests, prints)], [], tallies, []))
        if number % 50 == 0:
            await journal.drain()
    await journal.drain()
    return number


async def enter(url: str, pid: int, history: History, layout: str) -> tuple[int, int, int]:
    """Until calls may be sent: wall us, our CPU us, Redis' CPU us."""
    identity = IDENTITY._replace(layout=layout)
    claims = RedisClaims(RedisAddress.from_url(url), identity=identity, clock_us=now_us, entropy=os.urandom)
    wall_ns, theirs_us = time.perf_counter_ns(), cpu_us(pid)
    spent_ns = time.process_time_ns()
    running = asyncio.create_task(claims.run(history))
    while claims.state is not State.OPEN:
        await asyncio.sleep(0.005)
        if running.done():
            running.result()
    figures = ((time.perf_counter_ns() - wall_ns) // 1000, (time.process_time_ns() - spent_ns) // 1000, cpu_us(pid) - theirs_us)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return figures


async def measure(name: str, start: Callable[[], AbstractContextManager[tuple[str, int]]], claims: int, layout: str) -> None:
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder, start() as (url, pid):
        journal = await open_journal(
            folder, disk=RealDisk(), background=Thread("journal"), entropy=os.urandom, clock_us=now_us, limits=JournalLimits()
        )
        incarnation = os.urandom(16)
        journal.append(Opened(incarnation, now_us()))
        last = await grow(journal, 1, claims)
        client = redis_py.Redis.from_url(url)
        before = client.info("memory")["used_memory"]
        history = History(journal, incarnation, last)
        journal.append(Opened(history.incarnation, now_us()))
        figures = await enter(url, pid, history, layout)
        kept = last * CLAIMS_A_CALL
        assert claims_in(url) == kept, f"{kept} were claimed again, there are {claims_in(url)}"
        _tell(f"{name}: all of {kept:,} claims again", kept, *figures)
        held = client.info("memory")["used_memory"] - before
        print(f"    {held // kept} B of memory a claim, {journal.kept_bytes // kept} B of journal")
        history.mark = await grow(journal, 1, max(CLAIMS_A_CALL, claims * LACKING_PERCENT // 100))
        client.replicaof("127.0.0.1", "1")  # and back: the data stays, the replication id is a new one
        client.replicaof("NO", "ONE")
        figures = await enter(url, pid, history, layout)
        lacked = history.mark * CLAIMS_A_CALL
        assert claims_in(url) == kept + lacked, f"{lacked} were claimed beside {kept}, there are {claims_in(url)}"
        _tell(f"{name}: lacking the last {LACKING_PERCENT} %", kept, *figures)
        client.close()
        await journal.close()


def _tell(what: str, claims: int, wall_us: int, ours_us: int, theirs_us: int) -> None:
    speed = f"{claims * 1_000_000 // wall_us:,} claims/s"
    print(f"{what}: {wall_us // 1000:,} ms, {speed}; CPU {ours_us // 1000:,} ms here, {theirs_us // 1000:,} ms there", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, help="taken for the other benches; this one runs once")
    arguments = parser.parse_args()
    for name, start in (("Redis", real_redis), ("Valkey", real_valkey)):
        for layout in LAYOUTS:
            uvloop.run(measure(f"{name}, {layout}", start, arguments.claims, layout))


if __name__ == "__main__":
    main()
