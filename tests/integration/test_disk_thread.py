"""The thread that file operations run on: in order, one at a time, whoever waits or has gone, and no longer than its owner."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from buffer.disk import Thread


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def test_one_at_a_time_in_the_order_of_submission_off_the_loop() -> None:
    thread, seen = Thread("in-order"), []

    def step(number: int, waits_ms: int) -> int:
        seen.append((number, threading.current_thread().name))
        time.sleep(waits_ms / 1000)
        seen.append((number, "done"))
        return number * number

    found = await asyncio.gather(*(thread.run(step, number, 20 - 10 * number) for number in range(3)))
    assert found == [0, 1, 4]
    assert seen == [event for number in range(3) for event in ((number, "in-order"), (number, "done"))]


async def test_an_error_reaches_whoever_waits_and_nobody_else() -> None:
    thread = Thread("errors")

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await thread.run(fail)
    assert await thread.run(int, "7") == 7


async def test_what_was_begun_is_finished_when_whoever_waited_has_gone() -> None:
    thread, may_end, ended = Thread("gone"), threading.Event(), threading.Event()

    def slow(fails: bool) -> None:
        may_end.wait()
        ended.set()
        assert not fails

    heard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    for fails in (False, True):
        waiting = asyncio.ensure_future(thread.run(slow, fails))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not ended.is_set()
        may_end.set()
        assert await thread.run(int, "7") == 7  # after it
        assert ended.is_set()
        may_end.clear()
        ended.clear()
    assert heard == []


def test_a_loop_that_has_closed_is_no_error() -> None:
    thread, may_end = Thread("closed loop"), threading.Event()

    async def leave() -> None:
        waiting = asyncio.ensure_future(thread.run(may_end.wait))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(leave())
    may_end.set()
    assert asyncio.run(asyncio.wait_for(thread.run(int, "7"), 10)) == 7


@pytest.mark.parametrize("used", [False, True])
def test_it_ends_with_its_owner(used: bool) -> None:
    thread = Thread("short")
    if used:
        assert asyncio.run(asyncio.wait_for(thread.run(int, "7"), 10)) == 7
    assert len(threads("short")) == 1
    del thread
    gc.collect()
    until(lambda: not threads("short"))


def test_nothing_is_kept_of_what_was_done() -> None:
    class Batch:
        pass

    thread, batch = Thread("keeps nothing"), Batch()
    there = weakref.ref(batch)
    asyncio.run(thread.run(id, batch))
    del batch
    until(lambda: gc.collect() is not None and there() is None)


def until(condition: Callable[[], bool], seconds: int = 10) -> None:
    for _ in range(100 * seconds):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")
