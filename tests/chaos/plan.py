"""Which fault begins when, on whom, and how long it lasts: decided by a seed, before anything runs.

Belongs here: the kinds of faults, and the plan. Must not know: how a fault is brought about (faults.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

WORKERS = ("ingest-0", "ingest-1")
RATERS = ("rater-0", "rater-1")
# A link is what lies between two parts: a TCP proxy of its own.
SENDERS_LINKS = ("senders to ingest-0", "senders to ingest-1")
REDIS_LINKS = ("ingest-0 to redis", "ingest-1 to redis")
KAFKA_LINK, POSTGRES_LINK = "all to kafka", "all to postgres"
LINKS = (*SENDERS_LINKS, *REDIS_LINKS, KAFKA_LINK, POSTGRES_LINK)


# PostgreSQL and one of the workers have a small disk each, where this machine permits it (tests/small_disk.py); else these do not happen.
ON_SMALL_DISK = WORKERS[1]
SMALL_DISK_FULL, POSTGRES_DISK_FULL = "small disk full", "postgres disk full"


class Kind(NamedTuple):
    """A fault that can be planned."""

    name: str
    targets: tuple[str, ...]  # it hits one of them
    least_s: float
    most_s: float


_WAYS = (("senders", SENDERS_LINKS), ("redis", REDIS_LINKS), ("kafka", (KAFKA_LINK,)), ("postgres", (POSTGRES_LINK,)))
_ON_A_WAY = (("replies lost", 0.2, 1.5), ("delay", 1, 4), ("reset", 0, 0), ("half open", 0, 0), ("cut off", 0.5, 4))

KINDS = (
    Kind("ingest killed", WORKERS, 0.2, 2),
    Kind("ingest told to end", WORKERS, 0.1, 1),
    Kind("ingest stopped", WORKERS, 0.5, 5),
    Kind("ingest killed, its claims not heard of", WORKERS, 0.3, 1),
    Kind("disk full in mid-write", WORKERS, 1, 3),
    Kind("disk without room", WORKERS, 1, 4),
    Kind(SMALL_DISK_FULL, (ON_SMALL_DISK,), 1, 3),
    Kind("rater killed", RATERS, 0.2, 3),
    Kind("rater told to end", RATERS, 0.1, 1),
    Kind("rater stopped", RATERS, 0.5, 12),  # longer than its group waits for it: its partitions go to the other meanwhile
    Kind("redis killed, data lost", ("redis",), 0.1, 1),
    Kind("redis killed, data kept", ("redis",), 0.1, 1),
    Kind("redis stopped", ("redis",), 0.5, 4),
    Kind("redis failover", ("redis",), 0.3, 1),
    Kind("redis failover, the old one alive for one", ("redis",), 0.5, 2),
    Kind("kafka killed", ("kafka",), 0.1, 2),
    Kind("kafka stopped", ("kafka",), 0.5, 4),
    Kind("postgres killed", ("postgres",), 0.1, 2),
    Kind("postgres stopped", ("postgres",), 0.5, 4),
    Kind(POSTGRES_DISK_FULL, ("postgres",), 1, 4),
    *(Kind(f"{fault}, {way}", links, least_s, most_s) for way, links in _WAYS for fault, least_s, most_s in _ON_A_WAY),
)
NAMES = tuple(kind.name for kind in KINDS)


class Fault(NamedTuple):
    """One fault of a plan."""

    at_s: float  # since the load began; later when its target is still busy with another fault
    kind: str
    target: str
    length_s: float


def make_plan(seed: int, length_s: float, every_s: float, only: Sequence[str] = ()) -> list[Fault]:
    """Kinds in rounds, each round in an order of its own: no kind comes twice before every other has come once."""
    pick = random.Random(f"{seed}/plan")
    kinds = [kind for kind in KINDS if not only or kind.name in only]
    faults: list[Fault] = []
    round_: list[Kind] = []
    at_s = every_s
    while at_s < length_s:
        round_ = round_ or pick.sample(kinds, len(kinds))
        kind = round_.pop()
        faults.append(Fault(round(at_s, 3), kind.name, pick.choice(kind.targets), round(pick.uniform(kind.least_s, kind.most_s), 3)))
        at_s += every_s * pick.uniform(0.5, 1.5)
    return faults
