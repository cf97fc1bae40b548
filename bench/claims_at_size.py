"""Claims in Redis as they grow: memory and CPU a claim, in two live generations. `python -m bench.claims_at_size`: in more generations, and
bytes between client and Redis.

Belongs here: filling Redis with claims by the shipped client and scripts, and reading what that took. Must not know: journals, HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import uvloop

from bench.clock import cpu_ns_of
from bench.figures import NONE, Figure, Target, at_most, figure
from bench.micro_claims import Caller, NoHistory, fresh
from bench.processes import cpu_us
from bench.services import real_redis
from dedupe.port import HASHED, PACKED, Identity, State
from dedupe.redis_address import RedisAddress
from dedupe.redis_claims import RedisClaims

SECTION = "claims"
AIMED_AT = 10_000_000
PER_CALL = 8000
MEASURED = 200_000  # claims of which the cost is taken, once so many are there
A_GENERATION = 40_000  # claims, when looks are measured
HOUR_US = 3600 * 1_000_000
GENERATION_US = HOUR_US  # short, so that claims of the one before it stay alive
LIFETIME_US = 86_700 * 1_000_000


class Point(NamedTuple):
    claims: int
    memory: int  # B a claim; in hundredths, as the two below
    redis_us: int
    client_us: int


def figures(sizes: Sequence[int]) -> Iterator[Figure]:
    large = [size for size in sizes if size >= AIMED_AT] or sizes[-1:]  # to fill it packed takes long
    for layout, its_sizes, most_bytes, most_us in ((HASHED, sizes, 80, 150), (PACKED, large, 40, 250)):
        for point in uvloop.run(grow(its_sizes, layout)):
            name = f"{layout}, {point.claims // 1_000_000} million"
            aimed = point.claims == AIMED_AT
            yield figure(SECTION, f"{name}: memory", "B/claim", [point.memory], at_most(most_bytes) if aimed else NONE)
            yield figure(SECTION, f"{name}: Redis", "us/claim", [point.redis_us], Target(most=most_us) if aimed else NONE)
            yield figure(SECTION, f"{name}: client", "us/claim", [point.client_us])


async def grow(sizes: Sequence[int], layout: str = HASHED) -> list[Point]:
    """At each size half of the claims are in the generation before the current one."""
    points = []
    for size in sizes:
        with real_redis() as (url, pid):
            points.append(await _point(url, pid, size, layout))
    return points


async def _point(url: str, pid: int, size: int, layout: str) -> Point:
    empty = used_memory(url)
    await fill(url, size // 2, GENERATION_US, layout=layout)
    await fill(url, size - size // 2, 0, layout=layout)
    held = claims_in(url)
    assert held >= size * 99 // 100, "the generation before is gone"  # calls are of a full size
    memory = 100 * (used_memory(url) - empty) // held
    before = cpu_us(pid)
    client_ns = await fill(url, MEASURED, 0, per_call=1000, layout=layout)
    redis_us = cpu_us(pid) - before
    return Point(size, memory, 100 * redis_us // MEASURED, client_ns // 10 // MEASURED)


async def looks(generations: Sequence[int]) -> list[tuple[int, int]]:
    """(live generations, ns of Redis' CPU a claim): each claim is looked for in all of them."""
    found = []
    for count in generations:
        with real_redis() as (url, pid):
            for back in range(count - 1, -1, -1):
                await fill(url, A_GENERATION, back * GENERATION_US)
            before = cpu_us(pid)
            await fill(url, MEASURED, 0, per_call=1000)
            found.append((count, 1000 * (cpu_us(pid) - before) // MEASURED))
    return found


async def sent(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(claims a call, bytes a call, both ways)"""
    found = []
    for per_call in sizes:
        with real_redis() as (url, _):
            before = _network_bytes(url)
            await fill(url, 1000 * per_call, 0, per_call=per_call)
            found.append((per_call, (_network_bytes(url) - before) // 1000))
    return found


async def fill(url: str, claims: int, ago_us: int, *, per_call: int = PER_CALL, layout: str = HASHED) -> int:
    """Claims so many new digests; returns the CPU of this process, ns. `ago_us`: how far the clock of the claimant is behind."""

    def clock_us() -> int:
        return time.time_ns() // 1000 - ago_us

    logging.getLogger("dedupe").setLevel(logging.ERROR)  # that this clock is wrong is meant
    identity = Identity("bench", GENERATION_US, LIFETIME_US, layout=layout)
    claiming = RedisClaims(RedisAddress.from_url(url), identity=identity, clock_us=clock_us, entropy=os.urandom)
    serving = asyncio.ensure_future(claiming.run(NoHistory()))
    while claiming.state is not State.OPEN:
        assert not serving.done(), serving
        await asyncio.sleep(0.01)
    caller = Caller(claiming, clock_us)
    spent = 0
    left = claims
    while left >= per_call:  # in parts: digests of all at once would need much memory
        calls = fresh(min(left, 400_000), per_call)
        left -= len(calls) * per_call

        async def claim_all(calls: list[tuple[bytes, bytes]] = calls) -> None:
            await caller.run(calls)

        spent += await cpu_ns_of(claim_all)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    return spent


def claims_in(url: str) -> int:
    import redis

    with redis.Redis.from_url(url) as client:
        keys = client.scan_iter(match="*claims:*", count=1000)
        return sum(int(client.hget(key, "claims") or client.hlen(key)) for key in keys)  # packed, or hashed


def used_memory(url: str) -> int:
    import redis

    with redis.Redis.from_url(url) as client:
        used: int = client.info("memory")["used_memory"]
        return used


def _network_bytes(url: str) -> int:
    import redis

    with redis.Redis.from_url(url) as client:
        stats = client.info("stats")
        return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])


def main() -> None:
    for per_call, size in uvloop.run(sent((1, 100, 1000))):
        print(f"{per_call:4} claims a call: {size:,} bytes a call", flush=True)
    for count, ns in uvloop.run(looks((2, 12, 22))):
        print(f"{count:3} live generations: {ns:,} ns of Redis' CPU a claim", flush=True)


if __name__ == "__main__":
    main()
