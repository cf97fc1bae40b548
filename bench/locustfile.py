"""Locust: edge workers that send batches of fresh events and check every answer. `make load`, against a running Parshall.

    python -m locust -f bench/locustfile.py --host http://127.0.0.1:8080 --headless -u 20 -r 20 -t 30s

The key is PARSHALL_KEY (default: demo-key), the events in a batch LOAD_EVENTS (default: 100). One in a hundred batches is sent twice, as
after a lost answer: the second time every event must be a duplicate.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from locust import FastHttpUser, constant, events, task

from bench.bodies import bodies

KEY = os.environ.get("PARSHALL_KEY", "demo-key")
EVENTS = int(os.environ.get("LOAD_EVENTS", "100"))
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
BODIES_MADE_AT_ONCE = 50


class Totals:
    """Of this process."""

    received = 0
    accepted = 0


class EdgeWorker(FastHttpUser):
    wait_time = constant(0)

    def on_start(self) -> None:
        self._bodies: Iterator[bytes] = iter(())
        self._sent = 0

    @task
    def send_batch(self) -> None:
        body = next(self._bodies, None)
        if body is None:
            self._bodies = bodies(BODIES_MADE_AT_ONCE, EVENTS)
            body = next(self._bodies)
        self._sent += 1
        self._post(body, accepted=EVENTS)
        if self._sent % 100 == 0:
            self._post(body, accepted=0)

    def _post(self, body: bytes, *, accepted: int) -> None:
        name = "/v1/events" if accepted else "/v1/events (again)"
        with self.client.post("/v1/events", data=body.decode(), headers=HEADERS, name=name, catch_response=True) as answer:
            if answer.status_code in (429, 503):
                answer.failure(f"not now: {answer.status_code}")
                return
            wrong = _wrong(answer.status_code, answer.json() if answer.status_code == 200 else {}, accepted)
            if wrong:
                answer.failure(wrong)
            else:
                Totals.received += EVENTS
                Totals.accepted += accepted
                answer.success()


def _wrong(status: int, body: dict[str, Any], accepted: int) -> str | None:
    if status != 200:
        return f"status {status}"
    expected = {"received": EVENTS, "accepted": accepted, "duplicate": EVENTS - accepted, "rejected": 0}
    found = {name: body.get(name) for name in expected}
    return None if found == expected else f"expected {expected}, answered {found}"


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _say_totals(environment: Any, **_: object) -> None:
    print(f"events answered: {Totals.received}, of which new: {Totals.accepted}")
    if environment.stats.total.num_failures:
        environment.process_exit_code = 1
