"""When a lane sends a call: at once while requests come singly, a little later while calls carry many. By a simulated clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dedupe.port import GRANTED, Call, Reply, State, Verdicts
from ingest.calls import Request
from ingest.fair_shares import Shares
from ingest.lane import Answered, Lane
from tests.simulation.loop import SimulatedLoop, run
from tests.unit.test_calls import batch

_ANSWER_S = 0.0005


class Claims:
    """Grants everything, half a millisecond later."""

    state = State.OPEN
    accepted = True

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.sent: list[tuple[int, int]] = []  # (when in us, digests)

    async def run(self, history: object) -> None:
        raise AssertionError

    def send(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        asked = sum(len(section.digests) for section in call.sections) // 12
        self.sent.append((self._loop.time_us(), asked))
        self._loop.call_later(_ANSWER_S, on_reply, Verdicts(call.number, bytes([GRANTED]) * asked, 0, 0, 1, b""))

    def raise_mark(self, mark: int) -> None:
        raise AssertionError

    async def close(self, last_call: int) -> None:
        raise AssertionError


def _ignore(_lane: Lane, _answered: Answered) -> None:
    """What becomes of a call is not looked at here."""


def lane_of(
    claims: Any,
    *,
    on_answered: Callable[[Lane, Answered], None] = _ignore,
    events_per_call: int = 8192,
    shares: Shares | None = None,
    is_open: Callable[[Request], bool] = lambda _: True,
) -> Lane:
    return Lane(
        0,
        claims,
        calls_in_flight=2,
        events_per_call=events_per_call,
        waiting_events=shares or Shares(1_000_000),
        is_open=is_open,
        on_answered=on_answered,
    )


def sent_of(requests: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """`requests`: (when in us, events). What was sent: (when, events)."""

    async def main(loop: SimulatedLoop) -> list[tuple[int, int]]:
        loop.turn_us = 1
        claims = Claims(loop)
        lane = lane_of(claims)
        name = 0
        for at_us, events in requests:
            if at_us > loop.time_us():
                await asyncio.sleep((at_us - loop.time_us()) / 1_000_000)
            lane.push(Request(batch(range(name, name + events)), 0, loop.create_future()))
            name += events
        await asyncio.sleep(0.1)
        return claims.sent

    sent: list[tuple[int, int]] = run(main)
    assert sum(events for _, events in sent) == sum(events for _, events in requests), "nothing is forgotten"
    return sent


def at_once(start_us: int, requests: int, events: int = 1) -> list[tuple[int, int]]:
    return [(start_us, events)] * requests


def test_single_requests_go_at_once() -> None:
    sent = sent_of([(at_us, 1) for at_us in range(1000, 20_000, 1000)])
    assert [(round(at_us, -2), events) for at_us, events in sent] == [(at_us, 1) for at_us in range(1000, 20_000, 1000)]


def test_what_comes_in_one_turn_shares_a_call() -> None:
    (sent,) = sent_of(at_once(1000, 3))
    assert sent[1] == 3


def test_after_a_call_of_many_the_next_waits_for_more() -> None:
    """Whatever is answered meanwhile; and it does not wait for ever."""
    many, gathered, alone = sent_of([*at_once(1000, 8), (1100, 1), (1300, 1), (1900, 1), (9000, 1)])
    assert many[1] == 8
    assert 3000 <= gathered[0] <= 3200
    assert gathered[1] == 3
    assert 9000 <= alone[0] <= 9100, "the last call carried few"


@pytest.mark.parametrize(("events", "waits"), [(999, True), (1000, False)])
def test_what_is_large_anyway_does_not_wait(events: int, waits: bool) -> None:
    _, (sent_us, _) = sent_of([*at_once(1000, 8), (1100, events)])
    assert (sent_us >= 3000) == waits


def test_waiting_ends_when_there_is_enough() -> None:
    _, (sent_us, events) = sent_of([*at_once(1000, 8), (1100, 500), (1500, 500)])
    assert 1500 <= sent_us <= 1600
    assert events == 1000


def test_who_is_asked_about_again_and_again_leaves_a_turn_to_others() -> None:
    """Each of the large ones fills a call, and is pending again at once."""

    async def main(loop: SimulatedLoop) -> list[int]:
        claims = Claims(loop)
        lane = lane_of(claims, on_answered=_ask_the_large_again, events_per_call=100)
        for number in range(4):
            lane.again.push(1, Request(batch(range(number * 1000, number * 1000 + 500)), 0, loop.create_future()))
        lane.send_calls()
        for name in range(10):
            lane.push(Request(batch([100_000 + name]), 0, loop.create_future()))
            await asyncio.sleep(0.01)
        return [asked for _, asked in claims.sent]

    def _ask_the_large_again(lane: Lane, answered: Answered) -> None:
        for part in answered.call.parts:
            if len(part.digests) > 100:
                lane.again.push(1, part.request)

    asked = run(main)
    assert asked.count(1) == 10, "each of the others was asked about"
    last = max(number for number, events in enumerate(asked) if events == 1)
    assert all(1 in asked[number : number + 60] for number in range(0, last, 60)), "and none waited for long"
    assert asked.count(500) > 100, "the large ones went on meanwhile"
