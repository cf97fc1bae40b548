"""An asyncio event loop whose time is simulated: hours pass in a moment, and one seed decides everything.

When nothing is ready, the clock jumps to the next timer. Callbacks run in the order asyncio gives them, so a run with the same seed is
the same run. There is no real IO: a test that waits for a socket or a thread would deadlock, and is told so.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

TURN_US = 20  # a turn of the loop with work to do takes time too: what is done in pieces lets others in between


class Deadlock(AssertionError):
    """Every task waits for something that no timer will bring."""


class _NoSelector(selectors.BaseSelector):
    """Stands where asyncio waits for sockets: instead of waiting it moves the clock."""

    def __init__(self, advance: Callable[[float | None], None]) -> None:
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[Any]:
        self._advance(timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise AssertionError("real IO in a simulation")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise AssertionError("real IO in a simulation")

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return {}


class SimulatedLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now_us = 0
        self._clock_resolution = 1e-6
        self._selector = _NoSelector(self._advance)
        self.turn_us = TURN_US
        self.on_exception: Callable[[BaseException], None] = _ignored
        self.set_exception_handler(lambda _, context: self.on_exception(context.get("exception") or AssertionError(context["message"])))

    def time(self) -> float:
        return self._now_us / 1_000_000

    def time_us(self) -> int:
        return self._now_us

    def _advance(self, timeout: float | None) -> None:
        if timeout is None:
            raise Deadlock("nothing is scheduled and nothing is ready")
        self._now_us += self.turn_us if timeout <= 0 else max(1, round(timeout * 1_000_000))

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Nothing sleeps here that another thread would have to wake."""


def _ignored(_: BaseException) -> None:
    """Nobody listens yet."""


def run(main: Callable[[SimulatedLoop], Any]) -> Any:
    """Run `main(loop)` on a fresh simulated loop; every task left over is cancelled."""
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        while left := asyncio.all_tasks(loop):  # a timer that rings meanwhile may start more
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
