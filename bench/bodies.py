"""Request bodies for the benchmarks: fresh event ids every time, the mix of the demo catalogue, about 220 bytes an event.

Belongs here: making bytes. Must not know: sockets, servers, the project's packages.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

SUBJECTS = 20  # customers whose events meet in one server; each has some fifteen counters a window
REGIONS = ["eu-west", "us-east", "ap-south"]
ZONES = ["a", "b"]
MODELS = ["small", "large"]
DIRECTIONS = ["input", "output"]
SOURCES = ["/edge/worker-1", "/edge/worker-2", "/edge/worker-3", "/edge/worker-4"]
SPREAD_S = 120  # event times reach this far back: edge workers send what has just happened


DUPLICATE_AT, BAD_AT = 5, 50  # which of ten events was sent before, which of a hundred is bad


class Mix(NamedTuple):
    """What the events of some requests are. Everything about them follows from it but what `now` is, so it can be made again."""

    requests: int
    events: int  # a request
    subjects: int = SUBJECTS
    duplicates: bool = False  # one event in ten was sent before, in the requests of `earlier`
    bad: bool = False  # one event in a hundred has a value that is none
    types: int = 0  # so many event types, "type0" and on, which the demo catalogue does not have; 0: the demo's
    run: str = ""  # in every event id; "": one that nobody has had before

    @property
    def total(self) -> int:
        return self.requests * self.events

    @property
    def earlier(self) -> Mix:
        """What must have been sent, and answered, before: the events that are sent again."""
        return Mix(-(-self.total // (10 * self.events)), self.events, self.subjects, run=f"{self.run}e")

    def expected(self) -> dict[str, int]:
        """The verdicts."""
        duplicate = (self.total + 9 - DUPLICATE_AT) // 10 if self.duplicates else 0
        rejected = (self.total + 99 - BAD_AT) // 100 if self.bad else 0
        accepted = self.total - duplicate - rejected
        return {"received": self.total, "accepted": accepted, "duplicate": duplicate, "rejected": rejected}

    def named(self) -> Mix:
        return self if self.run else self._replace(run=os.urandom(6).hex())


def bodies(requests: int, events_per_request: int, *, subjects: int = SUBJECTS) -> Iterator[bytes]:
    """JSON arrays; no event id occurs twice, in this process or in any other."""
    return bodies_of(Mix(requests, events_per_request, subjects), datetime.now(UTC))


def bodies_of(mix: Mix, now: datetime) -> Iterator[bytes]:
    """Event times lie a little before `now`. Those that were sent before are the same bytes if `now` is the same."""
    mix = mix.named()
    events = _events(mix, now)
    for _ in range(mix.requests):
        yield ("[" + ",".join(islice(events, mix.events)) + "]").encode()


def _events(mix: Mix, now: datetime) -> Iterator[str]:
    pick = random.Random(mix.run)
    times = _times(now, pick, min(50_000, 100 + 10 * mix.total))
    names = [f"customer-{number:06d}" for number in range(mix.subjects)]
    again = _events(mix.earlier, now) if mix.duplicates else iter(())
    for number in range(mix.total):
        if mix.duplicates and number % 10 == DUPLICATE_AT:
            yield next(again)
        elif mix.bad and number % 100 == BAD_AT:
            yield _bad(f"{mix.run}-{number:012d}", pick.choice(names), pick, times)
        else:
            yield _event(f"{mix.run}-{number:012d}", pick.choice(names), pick, times, mix.types)


def _times(now: datetime, pick: random.Random, stamps: int) -> list[str]:
    """Stamps with milliseconds, so that hardly any is seen twice by one request."""
    start = now - timedelta(seconds=SPREAD_S)
    return [
        (start + timedelta(milliseconds=pick.randrange(SPREAD_S * 1000))).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" for _ in range(stamps)
    ]


def _event(event_id: str, subject: str, pick: random.Random, times: list[str], types: int) -> str:
    roll = pick.random()
    event_type, data = _http_request(pick) if roll < 0.6 else _completion(pick) if roll < 0.8 else _sample(pick, roll)
    if types:
        event_type, data = f"type{pick.randrange(types)}", _http_request(pick)[1]
    return (
        f'{{"specversion":"1.0","id":"{event_id}","source":"{pick.choice(SOURCES)}","type":"{event_type}",'
        f'"subject":"{subject}","time":"{pick.choice(times)}","data":{data}}}'
    )


def _bad(event_id: str, subject: str, pick: random.Random, times: list[str]) -> str:
    return (
        f'{{"specversion":"1.0","id":"{event_id}","source":"{pick.choice(SOURCES)}","type":"db.sample",'
        f'"subject":"{subject}","time":"{pick.choice(times)}","data":{{"connections":"many"}}}}'
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
