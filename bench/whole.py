"""The shipped server beside the control, in one run: CPU per event of each server process, of Redis and of Kafka.

Belongs here: the order of rounds, reading the clocks of processes, checking that everything sent was counted. The load is made by a process
of its own (load.py); both servers get the same kind of bodies, the same number of connections, and rounds in turn.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.bodies import SUBJECTS
from bench.contestants import Contestant, start_control, start_parshall
from bench.counted import Topic, accepted_in_counter_records, make_topic
from bench.processes import cpu_us
from bench.services import Services, real_services

CONNECTIONS = 32


class Case(NamedTuple):
    events_per_request: int
    subjects: int  # more subjects are more counters: less is folded together

    @property
    def name(self) -> str:
        return f"{self.events_per_request} events" + (f", {self.subjects} subjects" if self.subjects != SUBJECTS else "")


# 20 subjects have about 300 live counters; 60 have 900, of which a request of 1000 events meets 600; with 6000 nearly every event is alone.
CASES = (Case(1000, SUBJECTS), Case(100, SUBJECTS), Case(1, SUBJECTS), Case(1000, 3 * SUBJECTS), Case(1000, 300 * SUBJECTS))

# Events a round: enough for a second of CPU, so that the 10 ms ticks of /proc do not matter.
EVENTS = {"parshall": {1000: 300_000, 100: 200_000, 1: 20_000}, "control": {1000: 40_000, 100: 40_000, 1: 8_000}}


class Round(NamedTuple):
    contestant: str
    case: str
    events: int
    server_us: int
    redis_us: int
    kafka_us: int
    wall_us: int
    p50_us: int
    p99_us: int

    def per_event(self, us: int) -> int:
        """In hundredths of a microsecond: no floats."""
        return 100 * us // self.events


def measure(rounds: int, share_percent: int, say: Callable[[str], None]) -> list[Round]:
    """`share_percent`: of the usual number of events a round."""
    results = []
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as name, real_services() as services:
        asyncio.run(make_topic(services.kafka, "baseline.events"))
        with contestants(Path(name), services) as both:
            topics = {contestant.name: Topic(services.kafka, contestant.topic) for contestant in both}
            for contestant in both:
                _round(
                    contestant, Case(100, SUBJECTS), 5_000, services, topics[contestant.name]
                )  # connections, code and caches are warm from here on
            for number in range(rounds):
                for case in CASES:
                    for contestant in both if number % 2 == 0 else reversed(both):
                        usual = EVENTS[contestant.name][case.events_per_request]
                        events = max(case.events_per_request * CONNECTIONS, usual * share_percent // 100)
                        found = _round(contestant, case, events, services, topics[contestant.name])
                        cost = hundredths(found.per_event(found.server_us))
                        say(f"round {number + 1}: {contestant.name:8} {case.name:26} a request: {cost:>7} us/event")
                        results.append(found)
    return results


@contextmanager
def contestants(folder: Path, services: Services) -> Iterator[list[Contestant]]:
    started: list[Contestant] = []
    try:
        started.append(start_parshall(folder, services))
        started.append(start_control(folder, services))
        yield started
    finally:
        for contestant in started:
            contestant.stop()


def _round(contestant: Contestant, case: Case, events: int, services: Services, topic: Topic) -> Round:
    size = case.events_per_request
    requests = events // size
    before = _clocks(contestant, services)
    command = [sys.executable, "-m", "bench.load", "--port", str(contestant.port), "--key", contestant.key]
    command += ["--requests", str(requests), "--events", str(size), "--connections", str(CONNECTIONS)]
    command += ["--subjects", str(case.subjects)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300, cwd=Path(__file__).parents[1])
    contestant.hand_over()  # what a flush costs belongs to the events it carries
    after = _clocks(contestant, services)
    answer: dict[str, Any] = json.loads(done.stdout)
    _check(contestant, requests, requests * size, answer, topic)
    server, redis, kafka = (late - early for late, early in zip(after, before, strict=True))
    return Round(contestant.name, case.name, requests * size, server, redis, kafka, answer["wall_us"], answer["p50_us"], answer["p99_us"])


def _clocks(contestant: Contestant, services: Services) -> tuple[int, int, int]:
    return cpu_us(contestant.process.pid), cpu_us(services.redis_pid), cpu_us(services.kafka_pid)


def _check(contestant: Contestant, requests: int, events: int, answer: dict[str, Any], topic: Topic) -> None:
    """By the answers, and by what is in Kafka."""
    assert answer["statuses"] == {"200": requests}, f"{contestant.name}: {answer}"
    assert answer["received"] == answer["accepted"] == events, f"{contestant.name}: {answer}"
    values = asyncio.run(topic.new_values())
    counted = len(values) if contestant.name == "control" else accepted_in_counter_records(values)[0]
    assert counted == events, f"{contestant.name} answered for {events} events, in Kafka are {counted}"


# ---- the report


def table(results: list[Round]) -> Iterator[str]:
    yield "CPU in us per event, median of the rounds; in brackets the least and the greatest"
    yield (f"{'a request':>26}  {'parshall ingest':>24}  {'control':>26}  {'ratio':>7}  {'redis':>13}  {'kafka':>13}   events/s, p99 in ms")
    for case in CASES:
        ours, control = of_case(results, case)
        ratio = 100 * median(control, "server_us") // max(1, median(ours, "server_us"))
        redis, kafka = (f"{hundredths(median(ours, what))} / {hundredths(median(control, what))}" for what in ("redis_us", "kafka_us"))
        speed = " / ".join(map(_speed, (ours, control)))
        yield f"{case.name:>26}  {_spread(ours):>24}  {_spread(control):>26}  {hundredths(ratio):>6}x  {redis:>13}  {kafka:>13}   {speed}"
    yield "redis, kafka, events/s: parshall / control. Load generator, Redis and Kafka share the machine: events/s is a floor, no capacity."


def of_case(results: list[Round], case: Case) -> tuple[list[Round], list[Round]]:
    """(ours, the control's)"""
    mine = [row for row in results if row.case == case.name]
    return [row for row in mine if row.contestant == "parshall"], [row for row in mine if row.contestant == "control"]


def median(rows: list[Round], what: str) -> int:
    return statistics.median_low(row.per_event(getattr(row, what)) for row in rows)


def _spread(rows: list[Round]) -> str:
    values = sorted(row.per_event(row.server_us) for row in rows)
    return f"{hundredths(median(rows, 'server_us'))} [{hundredths(values[0])} - {hundredths(values[-1])}]"


def _speed(rows: list[Round]) -> str:
    best = max(rows, key=lambda row: row.events * 1_000_000 // row.wall_us)
    return f"{best.events * 1_000_000 // best.wall_us:,} ({hundredths(best.p99_us // 10)})"


def hundredths(value: int) -> str:
    return f"{value // 100}.{value % 100:02d}"
