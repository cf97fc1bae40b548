"""What a call tells of events that are asked about a second time or refused by the horizon, and the room that a lane gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dedupe.port import GRANTED, PENDING, Call, Refused, Reply, State, Verdicts
from ingest.calls import Request, plan, refuse, settle
from ingest.fair_shares import Shares
from ingest.lane import Answered
from tests.simulation.loop import SimulatedLoop, run
from tests.unit.test_calls import BASE_US, batch, request
from tests.unit.test_lane import lane_of


def test_the_newest_time_of_what_is_asked_again_goes_to_the_store_and_into_the_journal() -> None:
    """A generation, and a segment of the journal, are kept by it: too low, and the claim is forgotten while its event is still accepted."""
    one = request(batch([1, 9, 5]))
    first = settle(plan(1, [one]), Verdicts(1, 1, 1, 0, bytes([GRANTED, PENDING, PENDING])))
    assert first.newest_us >= BASE_US + 1
    call = plan(2, [one])
    assert (call.oldest_us, call.newest_us) == (BASE_US + 5, BASE_US + 9)
    second = settle(call, Verdicts(2, 1, 2, 0, b""))
    assert second.newest_us >= BASE_US + 9


def test_what_is_refused_by_the_horizon_is_kept_for_usage_rejected() -> None:
    one = request(batch([1, 9]))
    rest, too_late = refuse(plan(1, [one]), BASE_US + 5)
    result = settle(rest, Verdicts(1, 1, 1, 0, b""), too_late)
    assert [rejection.code for _, rejection in result.rejected] == ["too_late"]


class Replies:
    """A store that refuses twice, with a higher horizon each time, then grants."""

    state = State.OPEN
    accepted = True

    def __init__(self, *horizons: int) -> None:
        self._horizons = list(horizons)

    def send(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        reply: Reply = Refused(call.number, self._horizons.pop(0)) if self._horizons else Verdicts(call.number, 1, 1, 0, b"")
        asyncio.get_running_loop().call_soon(on_reply, reply)


def test_a_call_that_is_refused_twice_tells_of_all_that_is_too_late() -> None:
    async def main(loop: SimulatedLoop) -> None:
        answered: list[Answered] = []
        lane = lane_of(Replies(BASE_US + 1, BASE_US + 2), on_answered=lambda _, one: answered.append(one))
        one = Request(batch([1, 2, 3]), 0, loop.create_future())
        lane.push(one)
        await asyncio.sleep(1)
        (only,) = answered
        result = settle(only.call, only.reply, only.too_late)
        assert result.tallies == {1: {"received": 3, "too_late": 2, "accepted": 1}}

    run(main)


def test_the_room_of_a_request_with_rejected_events_is_given_back_whole() -> None:
    async def main(loop: SimulatedLoop) -> None:
        shares = Shares(1000)
        lane = lane_of(Replies(), shares=shares)
        for name in range(3):
            lane.push(Request(batch([name], bad=5), 0, loop.create_future()))
            await asyncio.sleep(1)
        assert shares.total == 0, "every rejected event would take a place for ever, until nobody is served"

    run(main)


class Silent:
    """A store that stands still."""

    state = State.OPEN
    accepted = True

    def send(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        """No reply comes."""


def test_what_nobody_waits_for_any_more_gives_its_room_to_the_other_shards() -> None:
    async def main(loop: SimulatedLoop) -> None:
        shares, waited_for = Shares(1000), [True]
        lane = lane_of(Silent(), shares=shares, is_open=lambda _: waited_for[0])
        for name in range(5):
            lane.push(Request(batch([name]), 0, loop.create_future()))
            await asyncio.sleep(1)
        assert shares.total == 3
        waited_for[0] = False
        lane.drop_late()
        assert shares.total == 0

    run(main)
