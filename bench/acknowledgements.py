"""How long an answer takes at 60 % of capacity, beside what it cannot do without: one sync and one claim round trip, each measured alone.

Belongs here: finding the capacity, sending at a fixed rate, the two round trips alone. Must not know: how a writer works.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop

from bench import bare_loop
from bench.bodies import Mix
from bench.claims_at_size import GENERATION_US, LIFETIME_US
from bench.contestants import start_parshall
from bench.figures import Figure, Target, figure
from bench.micro_claims import Caller, NoHistory, fresh
from bench.sending import Sending
from bench.services import real_redis, real_services
from dedupe.port import Identity, State
from dedupe.redis_address import RedisAddress
from dedupe.redis_claims import RedisClaims

SECTION = "acknowledgement"
EVENTS = 100  # a request
TIMES = 3
SYNC_BYTES = 8192  # what a call of a few requests leaves in the journal
ALONE = 300


def figures(rounds: int, seconds: int) -> Iterator[Figure]:
    """The call alone goes to a Redis of its own: the other one belongs to the service's log."""
    syncs, claims, bare, medians, answers = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as name, real_services() as services, real_redis() as (alone, _):
        server = start_parshall(Path(name), services)
        try:
            Sending(server, Mix(200, EVENTS)).send()
            capacity = max(_requests_a_second(Sending(server, Mix(1000, EVENTS)).send()) for _ in range(2))
            rate = max(1, capacity * 60 // 100)
            for _ in range(rounds):
                syncs.append(_p99(_sync_alone(Path(name))))
                claims.append(_p99(uvloop.run(_claim_alone(alone))))
                bare.append(bare_loop.p99(rate, 60, seconds))
                answer = Sending(server, Mix(rate * seconds, EVENTS), rate=rate).send()
                answers.append(answer["p99_us"] // 10)
                medians.append(answer["p50_us"] // 10)
        finally:
            server.stop()
    bounds = [TIMES * (sync + claim) for sync, claim in zip(syncs, claims, strict=True)]
    yield figure(SECTION, "one sync alone, p99", "ms", syncs, note=f"{SYNC_BYTES} bytes appended, fdatasync")
    yield figure(SECTION, f"one claim call of {EVENTS} alone, p99", "ms", claims)
    yield figure(SECTION, "a bare loop alone, p99, at that rate, 60 % busy", "ms", bare, note="what the machine makes of any p99")
    yield figure(SECTION, "answer, median, at 60 % of capacity", "ms", medians)
    target = Target(most=sorted(bounds)[len(bounds) // 2])
    yield figure(
        SECTION, "answer, p99, at 60 % of capacity", "ms", answers, target, f"{rate} of {capacity} requests/s, {EVENTS} events each"
    )


def _requests_a_second(answer: dict[str, int]) -> int:
    return answer["requests"] * 1_000_000 // answer["wall_us"]


def _p99(times_ns: Sequence[int]) -> int:
    """Hundredths of a millisecond."""
    return sorted(times_ns)[len(times_ns) * 99 // 100] // 10_000


def _sync_alone(folder: Path) -> list[int]:
    times = []
    with open(folder / "sync", "ab", buffering=0) as file:
        for _ in range(ALONE):
            start = time.perf_counter_ns()
            file.write(bytes(SYNC_BYTES))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter_ns() - start)
            time.sleep(0.002)
    return times


async def _claim_alone(url: str) -> list[int]:
    identity = Identity("alone", GENERATION_US, LIFETIME_US)
    store = RedisClaims(RedisAddress.from_url(url), identity=identity, clock_us=lambda: time.time_ns() // 1000, entropy=os.urandom)
    serving = asyncio.ensure_future(store.run(NoHistory()))
    while store.state is not State.OPEN:
        assert not serving.done(), serving
        await asyncio.sleep(0.01)
    caller = Caller(store)
    times = []
    for _ in range(ALONE):
        calls = fresh(EVENTS, EVENTS)
        start = time.perf_counter_ns()
        await caller.run(calls)
        times.append(time.perf_counter_ns() - start)
        await asyncio.sleep(0.002)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    return times
