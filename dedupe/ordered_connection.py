"""One connection to a Redis-like server: commands go out in the order of `send`, replies come back in that order.

Belongs here: bytes out, replies in, the watch over a server that stays silent, and the one way in which a connection ends. Must not know:
claims, scripts, when to connect again.

redis-py never pipelines the commands of concurrent tasks on one connection; this costs a fraction and gives order by construction.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import cast

import hiredis

OnReply = Callable[[object], None]
Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Transport]]  # makes a transport for what the factory makes

_NOTHING_YET = object()


class ConnectionEnded(Exception):
    """The connection is gone; what was sent on it may or may not have been executed. Retry on a new one."""


def pack(arguments: Iterable[bytes]) -> bytes:
    parts = [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


class OrderedConnection(asyncio.Protocol):
    """Handlers given to `send` are called in order, from `data_received`; none is called once the connection has ended."""

    def __init__(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()  # ends with the exception that ended the connection
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING_YET)
        self._handlers: deque[OnReply] = deque()
        self._answered = 0
        self._seen_answered = -1  # by the watch, at its last look; -1: nothing was waiting
        self._watch = loop.call_later(timeout_s / 2, self._look)
        self.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    @classmethod
    async def open(cls, connect: Connect, timeout_s: float) -> OrderedConnection:
        made: list[OrderedConnection] = []

        def factory() -> asyncio.Protocol:
            made.append(cls(timeout_s))
            return made[-1]

        try:
            async with asyncio.timeout(timeout_s):
                await connect(factory)
        except BaseException as error:  # uvloop makes it before it connects, and its watch would keep it for ever
            for unconnected in made:
                unconnected.end(ConnectionEnded("no connection was made"))
            if isinstance(error, TimeoutError):  # it has no words of its own
                raise ConnectionEnded(f"no connection was made within {timeout_s:g} s (TLS included, where the URL asks for it)") from None
            raise
        return made[-1]

    # ---- out

    def send(self, command: bytes, on_reply: OnReply) -> None:
        if self._transport is None:
            raise ConnectionEnded("the connection has ended")
        self._handlers.append(on_reply)
        self._transport.write(command)

    async def ask(self, command: bytes) -> object:
        """Send and wait for the reply. An error reply is raised and ends the connection."""
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def on_reply(reply: object) -> None:
            if not answer.done():
                answer.set_result(reply)

        self.send(command, on_reply)
        try:
            await asyncio.wait((answer, self.ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not answer.done():
                answer.cancel()
        if answer.cancelled():
            raise ConnectionEnded(str(self.ended.exception()))
        reply = answer.result()
        if isinstance(reply, Exception):
            error = ConnectionEnded(f"the server answered: {reply}")
            self.end(error)
            raise error
        return reply

    # ---- the end

    def end(self, error: Exception) -> None:
        """End the connection at once; replies under way are dropped."""
        if not self.ended.done():
            self.ended.set_exception(error)
        self._watch.cancel()
        transport, self._transport = self._transport, None
        self._handlers.clear()
        if transport is not None:
            transport.abort()

    def _look(self) -> None:
        """Nothing answered between two looks although something waited: the server is silent."""
        waiting = self._answered if self._handlers else -1
        if waiting >= 0 and waiting == self._seen_answered:
            self.end(ConnectionEnded(f"the server has not answered for {self._timeout_s / 2:g} s"))
            return
        self._seen_answered = waiting
        self._watch = asyncio.get_running_loop().call_later(self._timeout_s / 2, self._look)

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(ConnectionEnded(f"the connection was lost: {exc}" if exc else "the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            handlers = self._handlers
            while self._transport is not None:
                reply = self._reader.gets()
                if reply is _NOTHING_YET:
                    break
                self._answered += 1
                handlers.popleft()(reply)
        except hiredis.ProtocolError as error:
            self.end(ConnectionEnded(f"the server does not speak this protocol: {error}"))
        except Exception as error:  # a handler's broken invariant: whoever waits for the end must see it
            self.end(error)
