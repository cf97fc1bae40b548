"""Request bodies for the benchmarks: fresh event ids every time, the mix of the demo catalogue, about 220 bytes an event.

Belongs here: making bytes. Must not know: sockets, servers, the project's packages.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

SUBJECTS = [f"customer-{number:04d}" for number in range(60)]
REGIONS = ["eu-west", "us-east", "ap-south"]
ZONES = ["a", "b"]
MODELS = ["small", "large"]
DIRECTIONS = ["input", "output"]
SOURCES = ["/edge/worker-1", "/edge/worker-2", "/edge/worker-3", "/edge/worker-4"]
SPREAD_S = 4 * 3600  # event times reach this far back: a handful of windows are live


def bodies(requests: int, events_per_request: int, *, now: datetime | None = None) -> Iterator[bytes]:
    """JSON arrays; no event id occurs twice, in this process or in any other."""
    run = os.urandom(6).hex()
    pick = random.Random(run)
    times = _times(now or datetime.now(UTC), pick)
    number = 0
    for _ in range(requests):
        events = []
        for _ in range(events_per_request):
            number += 1
            events.append(_event(f"{run}-{number:012d}", pick, times))
        yield ("[" + ",".join(events) + "]").encode()


def _times(now: datetime, pick: random.Random) -> list[str]:
    """Stamps with milliseconds, so that hardly any is seen twice by one request."""
    start = now - timedelta(seconds=SPREAD_S)
    return [
        (start + timedelta(milliseconds=pick.randrange(SPREAD_S * 1000))).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" for _ in range(50_000)
    ]


def _event(event_id: str, pick: random.Random, times: list[str]) -> str:
    roll = pick.random()
    event_type, data = _http_request(pick) if roll < 0.6 else _completion(pick) if roll < 0.8 else _sample(pick, roll)
    return (
        f'{{"specversion":"1.0","id":"{event_id}","source":"{pick.choice(SOURCES)}","type":"{event_type}",'
        f'"subject":"{pick.choice(SUBJECTS)}","time":"{pick.choice(times)}","data":{data}}}'
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
