"""Which server to keep claims in: CPU and memory a claim of several programs, which take turns.

    python -m bench.claim_servers                                          this machine's Redis, and the Valkey that the tests start
    python -m bench.claim_servers /usr/bin/redis-server /opt/valkey/bin/valkey-server --claims 10000000 --layout packed

Belongs here: the same claims for each program, a round of each in turn, so that a noisy machine disturbs all alike. Must not know: how
claims are made (claims_at_size.py).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import redis
import uvloop

from bench.claims_at_size import GENERATION_US, MEASURED, PER_CALL, fill, used_memory
from bench.processes import cpu_us
from bench.services import real_redis, real_valkey, redis_of
from dedupe.port import HASHED, LAYOUTS

A_CALL = 1000
STEPS = 25
LEAST_CLAIMS = 2 * STEPS * PER_CALL


class Server(NamedTuple):
    name: str
    url: str
    pid: int
    bytes_each: int
    most_bytes_each: int  # on the way there


def name_of(url: str) -> str:
    """Which program, and its allocator: it decides as much as the program."""
    with redis.Redis.from_url(url) as client:
        about = client.info()
    program = f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {about['redis_version']}"
    return f"{program}, {about['mem_allocator']}"


def filled(url: str, pid: int, claims: int, layout: str) -> Server:
    """Half of the claims are in the generation before the current one, which fills in steps: a table that has just grown is half empty."""
    empty, half, step = used_memory(url), claims // 2, claims // 2 // STEPS  # whole calls: see `main`
    uvloop.run(fill(url, half, GENERATION_US, layout=layout))
    each = []
    for done in range(1, 1 + STEPS):
        uvloop.run(fill(url, step, 0, layout=layout))
        each.append((used_memory(url) - empty) // (half + done * step))
    return Server(name_of(url), url, pid, each[-1], max(each))


def round_of(server: Server, layout: str) -> int:
    """ns of the server's CPU a claim."""
    before = cpu_us(server.pid)
    uvloop.run(fill(server.url, MEASURED // 2, 0, per_call=A_CALL, layout=layout))
    return 1000 * (cpu_us(server.pid) - before) // (MEASURED // 2)


def compare(programs: Sequence[Path], claims: int, rounds: int, layout: str) -> None:
    with ExitStack() as stack:
        starting = [redis_of(program) for program in programs] or [real_redis(), real_valkey()]
        servers = [filled(*stack.enter_context(one), claims, layout) for one in starting]
        costs: list[list[int]] = [[] for _ in servers]
        for _ in range(rounds):
            for server, cost in zip(servers, costs, strict=True):
                cost.append(round_of(server, layout))
    print(f"{claims:,} claims, {layout}, half of them in the generation before; {rounds} rounds in turn, {A_CALL} claims a call")
    for server, cost in zip(servers, costs, strict=True):
        percent = statistics.median_low([100 * mine // first for mine, first in zip(cost, costs[0], strict=True)])
        us = f"{_us(min(cost))} - {_us(statistics.median_low(cost))} us a claim (least, median)"
        print(f"{server.name:30} {us}, {percent:3} % of the first; {server.bytes_each} B a claim, at most {server.most_bytes_each}")


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns // 10 % 100:02}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", type=Path, help="paths of servers; the first one is what the others are compared with")
    parser.add_argument("--claims", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default=HASHED)
    arguments = parser.parse_args()
    claims = arguments.claims // LEAST_CLAIMS * LEAST_CLAIMS
    if not claims:
        parser.error(f"--claims: at least {LEAST_CLAIMS:,}")
    compare(arguments.programs, claims, arguments.rounds, arguments.layout)


if __name__ == "__main__":
    main()
