"""Locust: edge workers as they behave, every verdict checked against what was sent. `make load`, against a running Parshall.

    LOAD_SHAPE=burst python -m locust -f bench/locustfile.py --host http://127.0.0.1:8080 --headless -u 20 -r 20 -t 60s
    python -m locust -f bench/locustfile.py --host http://127.0.0.1:8080                 # the web UI, on http://127.0.0.1:8089
    python -m locust -f bench/locustfile.py --master …; … --worker --master-host HOST    # several machines: each sends events of its own

Belongs here: what an edge worker does, and when. Must not know: what a server costs (load.py is the generator that costs little itself).

LOAD_SHAPE    steady        (default) as many workers as -u says, from beginning to end
              diurnal       their number rises and falls like a day's traffic, a day in LOAD_DAY_S (default 60) seconds
              burst         quiet; then an outage is over and each sends at once what it kept, again and again
              retry-storm   every batch is given up after LOAD_TIMEOUT_MS (default 250) and sent again, as with too short a timeout
LOAD_EVENTS   events in a batch: a number (default 100), or "mixed" for 1 to 1000
LOAD_GZIP     1: bodies are compressed
LOAD_BATCHES  stop after so many batches (of all workers of this process together); default: when -t says
LOAD_RUN, LOAD_NOW_US   with LOAD_BATCHES: send the very batches that load.py sends for --run, --now-us, --requests and --bad
PARSHALL_KEY  default: demo-key

One batch in twenty is sent twice, the second time all its events are duplicates; one event in a hundred is bad. An answer of 429 or 503 is
obeyed: the same bytes go again after Retry-After. At the end the verdicts of all answers must be those of what was sent: if not, the exit
code is 1. (With several processes each says its own totals, and the master ends with 1 if any of them met a wrong answer.) What was under
way when the time was over has no answer, and is said apart. Of a batch that was sent again after a lost answer it is not known how many of
its events had been counted: accepted and duplicate together must be all of them.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple, cast

import gevent
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.runners import MasterRunner

from bench.bodies import BAD_AT, Mix, bodies_of

SHAPE = os.environ.get("LOAD_SHAPE", "steady")
EVENTS = os.environ.get("LOAD_EVENTS", "100")
GZIP = os.environ.get("LOAD_GZIP") == "1"
BATCHES = int(os.environ.get("LOAD_BATCHES", "0"))
RUN = os.environ.get("LOAD_RUN", "")
NOW_US = int(os.environ.get("LOAD_NOW_US", "0"))
DAY_S = int(os.environ.get("LOAD_DAY_S", "60"))
HEADERS = {"Authorization": f"Bearer {os.environ.get('PARSHALL_KEY', 'demo-key')}", "Content-Type": "application/json"}
if GZIP:
    HEADERS["Content-Encoding"] = "gzip"
MADE_AT_ONCE = 20
MIXED = (1, 10, 100, 1000)
AGAIN_EVERY = 20
KEPT = 20  # batches that a worker kept during an outage
OUTAGE_S = 5.0
GIVEN_UP_S = int(os.environ.get("LOAD_TIMEOUT_MS", "250")) / 1000
VERDICTS = ("received", "accepted", "duplicate", "rejected")
SHAPES = ("steady", "diurnal", "burst", "retry-storm")

if SHAPE not in SHAPES:
    sys.exit(f"LOAD_SHAPE is {SHAPE!r}: set it to one of {', '.join(SHAPES)}.")


class Batch(NamedTuple):
    body: bytes
    events: int
    bad: int


class Totals:
    """Of this process: what the answers must add up to, and what they did."""

    sent: ClassVar[Counter[str]] = Counter()
    answered: ClassVar[Counter[str]] = Counter()
    begun = 0
    done = 0
    retries = 0


def batches(mix: Mix, now: datetime) -> Iterator[Batch]:
    for number, body in enumerate(bodies_of(mix, now)):
        ids = range(number * mix.events, (number + 1) * mix.events)
        yield Batch(gzip.compress(body, 1) if GZIP else body, mix.events, sum(event % 100 == BAD_AT for event in ids))


def endless() -> Iterator[Batch]:
    while True:
        size = random.choice(MIXED) if EVENTS == "mixed" else int(EVENTS)
        yield from batches(Mix(MADE_AT_ONCE, size, bad=True), datetime.now(UTC))


def given() -> Iterator[Batch]:
    now = datetime.fromtimestamp(NOW_US // 1_000_000, UTC) if NOW_US else datetime.now(UTC)
    return batches(Mix(BATCHES, int(EVENTS), bad=True, run=RUN), now)


GIVEN = given() if RUN else None
STARTED_S = time.monotonic()


class EdgeWorker(FastHttpUser):
    wait_time = constant(0)
    network_timeout = GIVEN_UP_S if SHAPE == "retry-storm" else 60.0
    connection_timeout = 60.0

    def on_start(self) -> None:
        self._batches = GIVEN or endless()
        self._sent = 0

    @task
    def work(self) -> None:
        if SHAPE == "burst":
            kept = [batch for batch in (self._next() for _ in range(KEPT)) if batch is not None]
            gevent.sleep(OUTAGE_S - time.time() % OUTAGE_S)  # it ends for all workers at the same time
            for batch in kept:
                self._send(batch)
        else:
            one = self._next()
            if one is None:
                gevent.sleep(0.05)  # others are still at theirs
            else:
                self._send(one)

    def _next(self) -> Batch | None:
        if BATCHES and Totals.begun >= BATCHES:
            return None
        Totals.begun += 1
        return next(self._batches, None)

    def _send(self, batch: Batch) -> None:
        self._sent += 1
        self._until_counted(batch, "/v1/events", accepted=batch.events - batch.bad)
        if self._sent % AGAIN_EVERY == 0 and not RUN:
            self._until_counted(batch, "/v1/events (again)", accepted=0)
        Totals.done += 1

    def _until_counted(self, batch: Batch, name: str, *, accepted: int) -> None:
        """The same bytes, until they are answered."""
        Totals.sent.update(received=batch.events, rejected=batch.bad, accepted=accepted, duplicate=batch.events - batch.bad - accepted)
        retried = bool(RUN)  # then somebody may have sent the batch before, and its events may be duplicates
        while (pause_s := self._post(batch, name, accepted, retried)) is not None:
            retried = True
            Totals.retries += 1
            gevent.sleep(pause_s)

    def _post(self, batch: Batch, name: str, accepted: int, retried: bool) -> float | None:
        """None: it is answered. Else after how long to send it again."""
        with self.client.post("/v1/events", data=cast(str, batch.body), headers=HEADERS, name=name, catch_response=True) as answer:
            if answer.status_code in (429, 503) or (answer.status_code == 0 and SHAPE == "retry-storm"):
                answer.success()
                return float(answer.headers.get("Retry-After", 1)) if answer.status_code else 0.0
            found = _verdicts(answer)
            wrong = _wrong(found, batch, accepted, retried)
            if wrong:
                answer.failure(f"status {answer.status_code}: {wrong}")
            else:
                answer.success()
            Totals.answered.update(found)
            if retried and not RUN:  # which of the two a retried event was is not known: what was granted before the answer was lost is
                moved = found.get("duplicate", 0) - (batch.events - batch.bad - accepted)
                Totals.sent.update(accepted=-moved, duplicate=moved)
            return None


def _verdicts(answer: Any) -> dict[str, int]:
    if answer.status_code not in (200, 207, 422):
        return {}
    body = json.loads(answer.text)
    return {name: body[name] for name in VERDICTS}


def _wrong(found: dict[str, int], batch: Batch, accepted: int, retried: bool) -> str | None:
    expected = {"received": batch.events, "accepted": accepted, "duplicate": batch.events - batch.bad - accepted, "rejected": batch.bad}
    if retried and found and accepted:  # its events were accepted now, or were accepted before; those sent again were before
        expected |= {"accepted": found["accepted"], "duplicate": batch.events - batch.bad - found["accepted"]}
    return None if found == expected else f"expected {expected}, answered {found or 'no verdicts'}"


if SHAPE == "diurnal":

    class Day(LoadTestShape):
        """From a twentieth of the workers at night to all of them at noon."""

        def tick(self) -> tuple[int, float] | None:
            assert self.runner is not None and self.runner.environment.parsed_options is not None
            options = self.runner.environment.parsed_options
            seconds = time.monotonic() - STARTED_S
            most, run_time = options.num_users or 20, options.run_time
            if run_time and seconds > run_time:
                return None
            light = (1 - math.cos(2 * math.pi * seconds / DAY_S)) / 2
            return max(1, round(most * (0.05 + 0.95 * light))), float(most)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _quit_when_done(environment: Any, **_: object) -> None:
    """Not from within a worker: it would wait for itself."""

    def watch() -> None:
        while Totals.done < BATCHES:
            gevent.sleep(0.05)
        environment.runner.quit()

    if BATCHES:
        gevent.spawn(watch)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _say_totals(environment: Any, **_: object) -> None:
    if isinstance(environment.runner, MasterRunner):  # it has sent nothing itself, and its statistics are those of all
        environment.process_exit_code = 1 if environment.stats.total.num_failures else None
        return
    sent, answered = ({name: counts[name] for name in VERDICTS} for counts in (Totals.sent, Totals.answered))
    print(json.dumps({"sent": sent, "answered": answered, "retries": Totals.retries}), flush=True)
    if environment.stats.total.num_failures:
        environment.process_exit_code = 1
    elif sent["received"] and not answered["received"]:  # refused to the end: nothing was checked
        print("WRONG: nothing was answered with verdicts", flush=True)
        environment.process_exit_code = 1
    elif not RUN and sent != answered:  # a batch under way when the time was over has no answer
        unanswered = sent["received"] - answered["received"]
        print(f"{unanswered} events were under way at the end" if unanswered > 0 else "WRONG: more was answered than sent", flush=True)
        if unanswered <= 0:
            environment.process_exit_code = 1
