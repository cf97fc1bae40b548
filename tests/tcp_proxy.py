"""A TCP proxy that does to connections what networks do: loses replies, delays, throttles, resets, leaves half of one open, cuts off.

Belongs here: bytes in both directions, and the faults. Must not know: which protocol it carries, when a fault is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from pathlib import Path

Server = tuple[str, int] | Path  # host and port, or a unix socket
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class TcpProxy:
    """Runs on the test's own loop. `address` is where to connect instead of the server; `server` may change at any time.

    Every fault lasts as long as its attribute is set, for the connections there are and for new ones. A stream that has lost bytes is of
    no more use, so ending `replies_lost` or `cut_off` is for `reset`.
    """

    def __init__(self, server: Server | None = None) -> None:
        self.server = server  # None: new connections are reset
        self.port = 0
        self.replies_lost = False  # what the server sends is thrown away
        self.cut_off = False  # nothing arrives on either side, and nobody is told
        self.delay_s = 0.0  # of every piece, either way; order stays
        self.bytes_per_s = 0  # of each connection, towards the server; 0: as many as there are
        self._listening: asyncio.Server | None = None
        self._links: set[_Link] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._listening is not None
        self._listening.close()
        self.reset()
        await asyncio.gather(*(link.over() for link in list(self._links)))

    @property
    def connections(self) -> int:
        """Those that still reach the server."""
        return sum(not link.half_open for link in self._links)

    def reset(self) -> None:
        """Both sides of every connection get RST."""
        for link in list(self._links):
            link.reset()

    def leave_half_open(self) -> None:
        """The server sees every connection end, the client sees nothing, for ever: whatever it sends on it is lost."""
        for link in self._links:
            link.leave_half_open()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert self.server is not None
            if isinstance(self.server, Path):
                server_reader, server_writer = await asyncio.open_unix_connection(str(self.server))
            else:
                server_reader, server_writer = await asyncio.open_connection(*self.server)
        except (OSError, AssertionError):
            _reset(writer)
            return
        link = _Link(self, (reader, writer), (server_reader, server_writer), self._links.discard)
        self._links.add(link)


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: TcpProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        on_over: Callable[[_Link], None],
    ) -> None:
        self.half_open = False
        self._proxy = proxy
        self._client = client[1]
        self._server = server[1]
        self._pumps = [
            asyncio.create_task(self._pump(client[0], self._server, replies=False)),
            asyncio.create_task(self._pump(server[0], self._client, replies=True)),
        ]
        self._over = asyncio.gather(*self._pumps)
        self._over.add_done_callback(lambda _: self._end(on_over))

    def _end(self, on_over: Callable[[_Link], None]) -> None:
        """Both sides have ended, so a half that was left open is of no more use either."""
        self._client.close()
        self._server.close()
        on_over(self)

    async def over(self) -> None:
        await asyncio.wait(self._pumps)

    def reset(self) -> None:
        for writer in (self._client, self._server):
            _reset(writer)

    def leave_half_open(self) -> None:
        self.half_open = True
        self._server.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool) -> None:
        proxy = self._proxy
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if proxy.delay_s:
                    await asyncio.sleep(proxy.delay_s)
                if proxy.bytes_per_s and not replies:
                    await asyncio.sleep(len(data) / proxy.bytes_per_s)
                if self.half_open or proxy.cut_off or (replies and proxy.replies_lost):
                    continue
                sink.write(data)
                await sink.drain()
        if not (replies and self.half_open):
            sink.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family != socket.AF_UNIX and not writer.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
