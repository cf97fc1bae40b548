"""Request bodies for the benchmarks: fresh event ids every time, the mix of the demo catalogue, about 220 bytes an event.

Belongs here: making bytes. Must not know: sockets, servers, the project's packages.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

SUBJECTS = 20  # customers whose events meet in one server; each has some fifteen counters a window
REGIONS = ["eu-west", "us-east", "ap-south"]
ZONES = ["a", "b"]
MODELS = ["small", "large"]
DIRECTIONS = ["input", "output"]
SOURCES = ["/edge/worker-1", "/edge/worker-2", "/edge/worker-3", "/edge/worker-4"]
SPREAD_S = 120  # event times reach this far back: edge workers send what has just happened


def bodies(requests: int, events_per_request: int, *, subjects: int = SUBJECTS) -> Iterator[bytes]:
    """JSON arrays; no event id occurs twice, in this process or in any other."""
    run = os.urandom(6).hex()
    pick = random.Random(run)
    times = _times(datetime.now(UTC), pick)
    names = [f"customer-{number:06d}" for number in range(subjects)]
    number = 0
    for _ in range(requests):
        events = []
        for _ in range(events_per_request):
            number += 1
            events.append(_event(f"{run}-{number:012d}", pick.choice(names), pick, times))
        yield ("[" + ",".join(events) + "]").encode()


def _times(now: datetime, pick: random.Random) -> list[str]:
    """Stamps with milliseconds, so that hardly any is seen twice by one request."""
    start = now - timedelta(seconds=SPREAD_S)
    return [
        (start + timedelta(milliseconds=pick.randrange(SPREAD_S * 1000))).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" for _ in range(50_000)
    ]


def _event(event_id: str, subject: str, pick: random.Random, times: list[str]) -> str:
    roll = pick.random()
    event_type, data = _http_request(pick) if roll < 0.6 else _completion(pick) if roll < 0.8 else _sample(pick, roll)
    return (
        f'{{"specversion":"1.0","id":"{event_id}","source":"{pick.choice(SOURCES)}","type":"{event_type}",'
        f'"subject":"{subject}","time":"{pick.choice(times)}","data":{data}}}'
    )


def _http_request(pick: random.Random) -> tuple[str, str]:
    return "http.request", f'{{"region":"{pick.choice(REGIONS)}","zone":"{pick.choice(ZONES)}","bytes":{pick.randrange(1_000_000)}}}'


def _completion(pick: random.Random) -> tuple[str, str]:
    data = f'{{"model":"{pick.choice(MODELS)}","direction":"{pick.choice(DIRECTIONS)}","tokens":{pick.randrange(100_000)}}}'
    return "llm.completion", data


def _sample(pick: random.Random, roll: float) -> tuple[str, str]:
    if roll < 0.9:
        return "db.sample", f'{{"connections":{pick.randrange(5_000)}}}'
    return "storage.sample", f'{{"gb_hours":"{pick.randrange(1_000)}.{pick.randrange(1_000_000):06d}"}}'
