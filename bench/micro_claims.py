"""Claims: CPU per call and per event of the client and of Redis, and of the claims in process. `python -m bench.micro_claims`

Fresh digests each time, everything granted; so many calls are in flight as a writer has.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import uvloop

from bench.clock import cpu_ns_of, per_unit
from bench.processes import cpu_us
from bench.services import real_redis
from dedupe.in_process import InProcessClaims
from dedupe.port import DIGEST_BYTES, FINGERPRINT_BYTES, Call, Claimed, Claims, Identity, Reply, Section, State
from dedupe.redis_address import RedisAddress
from dedupe.redis_claims import RedisClaims

IN_FLIGHT = 2
TENANT = 1
EVENTS = {1: 3_000, 100: 100_000, 1000: 300_000, 8000: 400_000}  # events a call -> events a run


class NoHistory:
    """A journal that was made a moment ago."""

    def __init__(self) -> None:
        self.writer = os.urandom(16)
        self.incarnation = os.urandom(16)
        self.closed: list[tuple[bytes, int]] = []
        self.mark = 0
        self.horizon_us = 0
        self.lost_horizon_us = 0
        self.branch = b""

    async def enter(self, branch: bytes) -> None:
        self.branch = branch

    async def drain(self) -> None:
        return

    def claims(self) -> Iterator[Claimed]:
        return iter(())

    async def members(self) -> dict[bytes, bytes]:
        return {self.writer: b""}


class Caller:
    """Keeps calls in flight, as a writer does."""

    def __init__(self, claims: Claims, clock_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._claims = claims
        self._clock_us = clock_us
        self._number = 0
        self._left: list[tuple[bytes, bytes]] = []
        self._in_flight = 0

    async def run(self, calls: list[tuple[bytes, bytes]]) -> None:
        self._left, self._over = calls, asyncio.get_running_loop().create_future()
        for _ in range(IN_FLIGHT):
            self._send()
        await self._over

    def _send(self) -> None:
        if not self._left:
            if not self._in_flight and not self._over.done():
                self._over.set_result(None)
            return
        digests, fingerprints = self._left.pop()
        self._number += 1
        self._in_flight += 1
        now_us = self._clock_us()
        self._claims.raise_mark(self._number - IN_FLIGHT)
        self._claims.send(Call(self._number, (Section(TENANT, digests, fingerprints),), now_us, now_us), self._on_reply)

    def _on_reply(self, reply: Reply) -> None:
        self._in_flight -= 1
        if getattr(reply, "codes", b"?"):  # raised here it would end the claims, and `run` would wait for ever
            self._left = []
            if not self._over.done():
                self._over.set_exception(AssertionError(f"not everything was granted: {reply}"))
            return
        self._send()


def fresh(events: int, per_call: int) -> list[tuple[bytes, bytes]]:
    return [(os.urandom(DIGEST_BYTES * per_call), os.urandom(FINGERPRINT_BYTES * per_call)) for _ in range(events // per_call)]


async def measure(name: str, claims: Claims, runs: int, store_pid: int | None) -> None:
    serving = asyncio.ensure_future(claims.run(NoHistory()))
    while claims.state is not State.OPEN:
        assert not serving.done(), serving
        await asyncio.sleep(0.01)
    caller = Caller(claims)
    print(f"{name}: us of CPU per event")
    for per_call, events in EVENTS.items():
        client, store = [], []
        for _ in range(runs):
            calls = fresh(events, per_call)
            store_before = cpu_us(store_pid) if store_pid else 0
            client.append(await cpu_ns_of(partial(caller.run, calls)))
            store.append((cpu_us(store_pid) - store_before) * 1000 if store_pid else 0)
        server = f"   redis {per_unit(store, events)}" if store_pid else ""
        print(f"  {per_call:5} events a call: client {per_unit(client, events)}{server}", flush=True)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


def clock_us() -> int:
    return time.time_ns() // 1000


async def bench(runs: int) -> None:
    identity = Identity("bench", 3600 * 1_000_000, 86_700 * 1_000_000)
    with real_redis() as (url, pid):
        await measure("Redis", RedisClaims(RedisAddress.from_url(url), identity=identity, clock_us=clock_us, entropy=os.urandom), runs, pid)
    await measure("in process", InProcessClaims(identity=identity, clock_us=clock_us, entropy=os.urandom), runs, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    uvloop.run(bench(parser.parse_args().runs))


if __name__ == "__main__":
    main()
