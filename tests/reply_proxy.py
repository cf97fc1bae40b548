"""A TCP proxy that can swallow replies: what is asked is executed, and whoever asked never hears of it.

Belongs here: bytes in both directions, and the one fault. Must not know: which protocol it carries.
"""

from __future__ import annotations

import asyncio
import contextlib


class ReplyProxy:
    """Runs on the test's own loop. `port` is where to connect instead of the server."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.muted = False  # replies are swallowed
        self._server_port = server_port
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, server_writer}
        for source, sink, replies in ((reader, server_writer, False), (server_reader, writer, True)):
            pump = asyncio.create_task(self._pump(source, sink, replies=replies))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if not (replies and self.muted):
                    sink.write(data)
                    await sink.drain()
        sink.close()

    def break_connections(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.break_connections()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=5)
