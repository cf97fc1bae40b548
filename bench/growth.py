"""What an event costs as the work grows: one thing at a time, everything else as in the plain case of the whole writer.

Belongs here: which things grow, how far, and the points. Must not know: plots.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop

from bench import claims_at_size
from bench.bodies import SUBJECTS, Mix
from bench.contestants import start_parshall
from bench.counted import Topic, accepted_in_counter_records
from bench.processes import cpu_us
from bench.sending import CONNECTIONS, Sending
from bench.services import Services, real_services

HOUR_MS = 3_600_000
LARGE, MIDDLE = 1000, 100  # events a request
EVENTS = {1: 10_000, 10: 60_000}  # measured at a point, where it is not 120,000
OF_A_POINT = 120_000
ROUNDS = 3  # the least of them is shown: what else the machine does only adds


class Point(NamedTuple):
    x: int
    cost: int  # hundredths of us/event of server CPU
    more: int = 0  # hundredths; what it is says the sweep


class Sweep(NamedTuple):
    name: str
    x: str
    points: tuple[Point, ...]
    more: str = ""


Say = Callable[[str], None]


def measure(say: Say, *, full: bool) -> Iterator[Sweep]:
    sweeps: tuple[Callable[[bool, Say], Sweep], ...] = (_batches, _connections, _counters, _tenants, _meters, _workers, _intervals, _claims)
    for sweep in sweeps:
        found = sweep(full, say)
        yield found


class Served:
    """A service of its own, and what it says that it counted."""

    def __init__(self, folder: Path, services: Services, **how: object) -> None:
        self.folder = folder
        self.server = start_parshall(folder, services, **how)  # type: ignore[arg-type]
        self._topic = Topic(services.kafka, self.server.topic)
        self._accepted = 0  # since Kafka was looked at

    def least_cost(self, mix: Mix, *, connections: int = CONNECTIONS, keys: Path | None = None, flushed: bool = True) -> int:
        return min(self.cost(mix, connections=connections, keys=keys, flushed=flushed) for _ in range(ROUNDS))

    def cost(self, mix: Mix, *, connections: int = CONNECTIONS, rate: int = 0, keys: Path | None = None, flushed: bool = True) -> int:
        sending = Sending(self.server, mix, connections=connections, rate=rate, keys=keys)
        before = cpu_us(self.server.process.pid)
        self._accepted += sending.send()["accepted"]
        if flushed:
            self.server.hand_over()
        return 100 * (cpu_us(self.server.process.pid) - before) // mix.total

    def counters(self) -> int:
        """In Kafka since the last look, beside which every accepted event must stand there."""
        self.server.hand_over()
        accepted, counters = accepted_in_counter_records(asyncio.run(self._topic.new_values()))
        assert accepted == self._accepted, f"answered was for {self._accepted} events, in Kafka are {accepted}"
        self._accepted = 0
        return counters


@contextmanager
def _serving(**how: object) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as name, real_services() as services:
        served = Served(Path(name), services, **how)
        try:
            yield served
            served.counters()
        finally:
            served.server.stop()


def _mix(events: int, **how: int) -> Mix:
    return Mix(max(2, EVENTS.get(events, OF_A_POINT) // events), events, **how)  # type: ignore[arg-type]


def _sweep(name: str, x: str, points: Iterator[Point], say: Say, more: str = "") -> Sweep:
    found = []
    for point in points:
        say(f"{name}: {point.x:>10,}  {point.cost / 100:8.2f} us/event" + (f"  {more} {point.more / 100:.2f}" if more else ""))
        found.append(point)
    return Sweep(name, x, tuple(found), more)


def _batches(_full: bool, say: Say) -> Sweep:
    def points() -> Iterator[Point]:
        with _serving() as served:
            served.cost(_mix(MIDDLE))
            for events in (1, 10, 100, 1000, 10_000):
                yield Point(events, served.least_cost(_mix(events)))

    return _sweep("batch", "events a request", points(), say)


def _connections(_full: bool, say: Say) -> Sweep:
    def points() -> Iterator[Point]:
        with _serving() as served:
            served.cost(_mix(MIDDLE))
            for connections in (1, 8, 32, 250, 1000, 2000):
                mix = Mix(max(1200, 2 * connections), MIDDLE)
                yield Point(connections, served.least_cost(mix, connections=connections))

    return _sweep("connections", "connections, 100 events a request", points(), say)


def _counters(full: bool, say: Say) -> Sweep:
    """Without the flush: what it costs to meet a counter among so many."""

    def points() -> Iterator[Point]:
        for counters in (1_000, 10_000, 100_000, 900_000 if full else 300_000):
            with _serving() as served:
                served.server.set_interval(HOUR_MS)
                served.cost(_mix(MIDDLE))
                subjects = max(1, counters // 15)  # each has some fifteen counters
                filling = Mix(max(20, 2 * counters // LARGE), LARGE, subjects)
                served.cost(filling, flushed=False)
                yield Point(counters, served.least_cost(_mix(LARGE, subjects=subjects), flushed=False))

    return _sweep("live counters", "live counters, 1000 events a request", points(), say)


def _tenants(full: bool, say: Say) -> Sweep:
    def points() -> Iterator[Point]:
        for tenants in (1, 10, 100, 1000, *((10_000,) if full else ())):
            with _serving(tenants=tenants) as served:
                keys = served.folder / "keys"
                keys.write_text("\n".join(served.server.keys))
                served.cost(_mix(MIDDLE))
                requests = max(OF_A_POINT // MIDDLE, tenants)
                yield Point(tenants, served.least_cost(Mix(requests, MIDDLE), keys=keys))

    return _sweep("tenants", "tenants, in turn, 100 events a request", points(), say)


def _meters(_full: bool, say: Say) -> Sweep:
    def points() -> Iterator[Point]:
        for meters in (1, 10, 100, 500):
            with _serving(catalogue=_catalogue(meters)) as served:
                served.cost(_mix(MIDDLE, types=meters))
                yield Point(meters, served.least_cost(_mix(LARGE, types=meters)))

    return _sweep("meters", "meters, an event type each, 1000 events a request", points(), say)


def _catalogue(meters: int) -> str:
    head = '[[tenants]]\nname = "demo"\nnumber = 1\n'
    return head + "".join(
        f'\n[[meters]]\nname = "meter_{number}"\nevent_type = "type{number}"\naggregation = "sum"\nvalue = "data.bytes"\n'
        'dimensions = { region = "data.region" }\n'
        for number in range(meters)
    )


def _workers(_full: bool, say: Say) -> Sweep:
    def points() -> Iterator[Point]:
        for workers in (1, 2):
            with _serving(more=f"\n[ingest]\nworkers = {workers}\n") as served:
                served.cost(_mix(MIDDLE))
                yield Point(workers, served.least_cost(_mix(LARGE)))

    return _sweep("workers", "workers, 1000 events a request", points(), say)


def _intervals(full: bool, say: Say) -> Sweep:
    """A hundred requests of 100 events a second; `more` is how many events a counter in Kafka stands for."""

    def points() -> Iterator[Point]:
        for interval_ms in (100, 1000, 10_000, *((60_000,) if full else ())):
            with _serving() as served:
                served.cost(_mix(MIDDLE))
                served.counters()
                served.server.set_interval(interval_ms)
                mix = Mix(max(600, interval_ms // 8), MIDDLE, 10 * SUBJECTS)
                cost = served.cost(mix, rate=100)
                yield Point(interval_ms, cost, 100 * mix.total // served.counters())

    return _sweep("flush interval", "ms between flushes, 10,000 events/s", points(), say, "events a counter")


def _claims(full: bool, say: Say) -> Sweep:
    def points() -> Iterator[Point]:
        for size in (1, 2, 5, 10, *((20,) if full else ())):
            (point,) = uvloop.run(claims_at_size.grow([size * 1_000_000]))
            yield Point(size * 1_000_000, point.redis_us, point.memory)

    return _sweep("claims", "live claims in two generations: CPU of Redis", points(), say, "bytes a claim")
