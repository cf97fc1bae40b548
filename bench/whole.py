"""The shipped server beside the control, in one run: CPU per event of each server process, of Redis and of Kafka.

Belongs here: the order of rounds, reading the clocks of processes, checking that everything sent was counted. The load is made by a process
of its own (load.py); both servers get the same kind of bodies, the same number of connections, and rounds in turn.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.bodies import SUBJECTS, Mix
from bench.contestants import Contestant, start_control, start_parshall
from bench.counted import Topic, accepted_in_counter_records, make_topic
from bench.figures import NONE, Figure, Target, at_least, at_most, figure
from bench.processes import cpu_us
from bench.sending import CONNECTIONS, Sending
from bench.services import Services, real_services

SECTION = "whole writer"


class Case(NamedTuple):
    name: str
    events: int  # a request
    ratio: Target = NONE  # of the control's cost to ours; without one the control does not run
    cost: Target = NONE
    subjects: int = SUBJECTS  # more subjects are more counters: less is folded together
    duplicates: bool = False
    bad: bool = False

    @property
    def compared(self) -> bool:
        return self.ratio != NONE


# 20 subjects have about 300 live counters; 60 have 900, of which a request of 1000 events meets 600; with 6000 nearly every event is alone.
PLAIN = Case("1000 a request", 1000, at_least(20), at_most(2))
BY_THE_HUNDRED = Case("100 a request", 100, at_least(10), Target(most=350))
ALONE = Case("1 a request", 1, at_least(4), at_most(50))
VARIANTS = (
    Case("1000 a request, 10 % duplicates", 1000, duplicates=True),
    Case("1000 a request, 1 % bad", 1000, bad=True),
    Case("1000 a request, 900 counters", 1000, subjects=3 * SUBJECTS),
    Case("1000 a request, a counter an event", 1000, subjects=300 * SUBJECTS),
)
CASES = (PLAIN, BY_THE_HUNDRED, ALONE, *VARIANTS)
MOST_OF_PLAIN = Target(most=180)
LEAST_END_TO_END = at_least(12)

# Events a round: about a second of CPU.
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

    @property
    def together_us(self) -> int:
        return self.server_us + self.redis_us + self.kafka_us


def measure(rounds: int, share_percent: int, say: Callable[[str], None]) -> list[Round]:
    """`share_percent`: of the usual number of events a round."""
    results = []
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as name, real_services() as services:
        asyncio.run(make_topic(services.kafka, "baseline.events"))
        with contestants(Path(name), services) as both:
            topics = {contestant.name: Topic(services.kafka, contestant.topic) for contestant in both}
            for contestant in both:  # connections, code and caches are warm from here on
                measure_round(contestant, Case("warm", 100), 5_000, services, topics[contestant.name])
            for number in range(rounds):
                for case in CASES:
                    for contestant in both if number % 2 == 0 else reversed(both):
                        if contestant.name == "control" and not case.compared:
                            continue
                        usual = EVENTS[contestant.name][case.events]
                        events = max(case.events * CONNECTIONS, usual * share_percent // 100)
                        found = measure_round(contestant, case, events, services, topics[contestant.name])
                        cost = hundredths(found.per_event(found.server_us))
                        say(f"round {number + 1}: {contestant.name:8} {case.name:36} {cost:>7} us/event")
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


def measure_round(contestant: Contestant, case: Case, events: int, services: Services, topic: Topic) -> Round:
    mix = Mix(events // case.events, case.events, case.subjects, case.duplicates, case.bad)
    sending = Sending(contestant, mix)
    earlier = sending.earlier()
    if earlier:
        contestant.hand_over()
    before = clocks(contestant, services)
    answer = sending.send()
    contestant.hand_over()  # what a flush costs belongs to the events it carries
    after = clocks(contestant, services)
    expected = earlier + answer["accepted"]
    values = asyncio.run(topic.new_values())
    counted = len(values) if contestant.name == "control" else accepted_in_counter_records(values)[0]
    assert counted == expected, f"{contestant.name} answered for {expected} events, in Kafka are {counted}"
    server, redis, kafka = (late - early for late, early in zip(after, before, strict=True))
    return Round(contestant.name, case.name, mix.total, server, redis, kafka, answer["wall_us"], answer["p50_us"], answer["p99_us"])


def clocks(contestant: Contestant, services: Services) -> tuple[int, int, int]:
    return cpu_us(contestant.process.pid), cpu_us(services.redis_pid), cpu_us(services.kafka_pid)


# ---- the report


def figures(results: list[Round]) -> Iterator[Figure]:
    for case in CASES:
        ours, control = of_case(results, case)
        yield figure(SECTION, case.name, "us/event", costs(ours), case.cost, _speed(ours))
        if case.compared:
            yield figure(SECTION, f"{case.name}: control", "us/event", costs(control), NONE, _speed(control))
            yield figure(SECTION, f"{case.name}: control / Parshall", "x", ratios(control, ours), case.ratio)
        else:
            plain = of_case(results, PLAIN)[0]
            target = NONE if case.subjects == 3 * SUBJECTS else MOST_OF_PLAIN
            yield figure(SECTION, f"{case.name}: of plain", "x", ratios(ours, plain), target)
    ours, control = of_case(results, PLAIN)
    for who, rows in (("Parshall", ours), ("control", control)):
        yield figure("end to end", f"{who}: writer, Redis and Kafka, 1000 a request", "us/event", costs(rows, "together_us"))
    together = ratios(control, ours, "together_us")
    yield figure("end to end", "writer, Redis and Kafka, 1000 a request: control / Parshall", "x", together, LEAST_END_TO_END)


def of_case(results: list[Round], case: Case) -> tuple[list[Round], list[Round]]:
    """(ours, the control's)"""
    mine = [row for row in results if row.case == case.name]
    return [row for row in mine if row.contestant == "parshall"], [row for row in mine if row.contestant == "control"]


def costs(rows: Sequence[Round], what: str = "server_us") -> list[int]:
    return [row.per_event(getattr(row, what)) for row in rows]


def ratios(more: Sequence[Round], less: Sequence[Round], what: str = "server_us") -> list[int]:
    """Round by round: what slows the machine for a while slows both."""
    return [100 * one // max(1, other) for one, other in zip(costs(more, what), costs(less, what), strict=True)]


def median(rows: Sequence[Round], what: str) -> int:
    return statistics.median_low(row.per_event(getattr(row, what)) for row in rows)


def _speed(rows: Sequence[Round]) -> str:
    best = max(rows, key=lambda row: row.events * 1_000_000 // row.wall_us)
    redis, kafka = (hundredths(median(rows, what)) for what in ("redis_us", "kafka_us"))
    return f"Redis {redis}, Kafka {kafka} us/event; at best {best.events * 1_000_000 // best.wall_us:,} events/s"


def hundredths(value: int) -> str:
    return f"{value // 100}.{value % 100:02d}"
