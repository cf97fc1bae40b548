"""What an attempt to reach Redis leaves behind when it fails: nothing, also on uvloop, which makes its object before it connects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from dedupe.ordered_connection import ConnectionEnded, OrderedConnection
from dedupe.redis_address import RedisAddress

TIMEOUT_S = 0.2
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections, and never says a word: a handshake of TLS does not end there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def attempt(url: str) -> None:
    await OrderedConnection.open(RedisAddress.from_url(url).connect, TIMEOUT_S)


async def cancelled_attempt(url: str) -> None:
    opening = asyncio.ensure_future(OrderedConnection.open(RedisAddress.from_url(url).connect, 60))
    await asyncio.sleep(0.1)
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await opening
    raise TimeoutError


def alive() -> int:
    gc.collect()
    return sum(isinstance(one, OrderedConnection) for one in gc.get_objects())


async def left_behind(url: str, attempt: Callable[[str], Awaitable[None]]) -> int:
    before = alive()
    for _ in range(3):
        with pytest.raises((OSError, TimeoutError, ConnectionEnded)):
            await attempt(url)
    await asyncio.sleep(2 * TIMEOUT_S)  # a watch that goes on has looked by now, and is armed again
    return alive() - before


@pytest.mark.parametrize("loop", LOOPS)
def test_a_port_where_nobody_listens(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(left_behind("redis://127.0.0.1:1", attempt)) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_a_socket_that_is_not_there(loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(left_behind(f"unix://{tmp_path}/redis.sock", attempt)) == 0


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("attempt", [attempt, cancelled_attempt])
def test_an_attempt_that_takes_too_long(
    loop: Callable[[], asyncio.AbstractEventLoop], attempt: Callable[[str], Awaitable[None]], silent: int
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(left_behind(f"rediss://127.0.0.1:{silent}", attempt)) == 0


async def test_an_attempt_that_takes_too_long_is_told_in_words(silent: int) -> None:
    """They are in the log, and what /readyz says."""
    with pytest.raises(ConnectionEnded, match=r"no connection was made within 0\.2 s"):
        await attempt(f"rediss://127.0.0.1:{silent}")
