"""Starting again: how fast a journal is read back, and how soon a service that was killed at full load serves.

Belongs here: killing and waiting. Must not know: what is in a journal (micro_journal.py makes one).
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import uvloop

from bench.bodies import Mix, bodies
from bench.contestants import Contestant, start_again, start_parshall
from bench.figures import Figure, at_least, at_most, figure
from bench.micro_journal import METER, TENANT, append_all, journal_in, records
from bench.processes import cpu_us, tree
from bench.sending import Sending
from bench.services import real_services
from buffer.journal_records import Opened

SECTION = "restart"
PER_CALL = 1000
COUNTERS_A_CALL = 400
FULL_LOAD_CPU_US = 1_000_000  # of load before the kill


def figures(rounds: int, events: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder:
        uvloop.run(_write(folder, events))
        speeds = [events * 100_000_000_000 // uvloop.run(_open(folder, events)) for _ in range(rounds)]
    yield figure(SECTION, f"replay of {events:,} events", "events/s", speeds, at_least(1_000_000), f"calls of {PER_CALL}")
    crashes = [_crash() for _ in range(rounds)]
    yield figure(
        SECTION, "killed at full load, started at once: an event is counted", "s", crashes, at_most(2), "the start of Python included"
    )


async def _write(folder: str, events: int) -> None:
    journal = await journal_in(folder)
    journal.append(Opened(os.urandom(16), time.time_ns() // 1000))
    meter, first = journal.meter_number(METER), 1
    while first <= events // PER_CALL:
        calls = records(first, min(200, events // PER_CALL - first + 1) * PER_CALL, PER_CALL, meter, COUNTERS_A_CALL)
        await append_all(journal, calls)
        first += len(calls)
    await journal.close()


async def _open(folder: str, events: int) -> int:
    """Nanoseconds."""
    start = time.perf_counter_ns()
    journal = await journal_in(folder)
    spent = time.perf_counter_ns() - start
    assert journal.state.tallies[TENANT]["accepted"] == events, journal.state.tallies
    await journal.close()
    return spent


def _crash() -> int:
    """Hundredths of a second, from the kill on."""
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as name, real_services() as services:
        folder = Path(name)
        server = start_parshall(folder, services)
        try:
            Sending(server, Mix(200, 1000)).send()
            killed = _load_and_kill(server, list(tree(server.process.pid)))
            server.process.wait()
            server = start_again(server, folder)
            _answered(server)
            return (time.perf_counter_ns() - killed) // 10_000_000
        finally:
            server.stop()


def _load_and_kill(server: Contestant, pids: list[int]) -> int:
    """When that was, by perf_counter_ns."""
    load = Sending(server, Mix(1500, 1000)).start()
    idle_us = cpu_us(server.process.pid)
    while cpu_us(server.process.pid) < idle_us + FULL_LOAD_CPU_US:  # bodies are made before the first is sent
        assert load.poll() is None, "the load was over before the server could be killed"
        time.sleep(0.01)
    start = time.perf_counter_ns()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    load.kill()
    load.wait()
    return start


def _answered(server: Contestant) -> None:
    """Send one event until it is counted, as an edge worker would, only without a pause."""
    (body,) = bodies(1, 1)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(Request(f"{server.url}/v1/events", body, headers), timeout=15):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{server.name} does not serve again: {error}") from None
            time.sleep(0.005)
