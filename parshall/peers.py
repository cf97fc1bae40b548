"""The workers of one node among themselves: each has a control socket, and any of them can answer for all.

Belongs here: the control socket's routes, asking the others, and what is done to all workers at once. Must not know: the public API.

The folder of the sockets is private to the user that runs the service, so nothing here asks for a key.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import aiohttp
import msgspec
import structlog
from aiohttp import web

from buffer.disk import Background, Disk
from ingest.flusher import Flusher
from ingest.http import json_response, problem_response
from ingest.sink import Unavailable
from ingest.snapshot import WriterSnapshot

log = structlog.get_logger()

SNAPSHOT = "/snapshot"
INTERVAL = "/flush-interval"
FLUSH_NOW = "/flush-now"
READY = "/readyz"

_ANSWER_S = 5.0
_FLUSH_S = 60.0


class Interval(msgspec.Struct):
    """What is kept in DATA/flush.json, and told to the other workers."""

    interval_ms: int
    v: int = 1


class Local(NamedTuple):
    """What this worker can do by itself."""

    worker: int
    flusher: Flusher
    snapshot: Callable[[], WriterSnapshot]
    not_ready: Callable[[], Sequence[str]]


# ---- the control socket


class Control:
    def __init__(self, local: Local) -> None:
        self._local = local
        self._routes: Mapping[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.Response]]] = {
            ("GET", READY): self._ready,
            ("GET", SNAPSHOT): self._snapshot,
            ("PUT", INTERVAL): self._set_interval,
            ("POST", FLUSH_NOW): self._flush_now,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The handler of `web.Server`."""
        route = self._routes.get((request.method, request.path))
        if route is None:
            return problem_response(404, "There is no such control.")
        return await route(request)

    async def _ready(self, _request: web.BaseRequest) -> web.Response:
        reasons = self._local.not_ready()
        return problem_response(503, " ".join(reasons)) if reasons else json_response(b'{"status":"ready"}')

    async def _snapshot(self, _request: web.BaseRequest) -> web.Response:
        return json_response(msgspec.json.encode(self._local.snapshot()))

    async def _set_interval(self, request: web.BaseRequest) -> web.Response:
        self._local.flusher.set_interval(msgspec.json.decode(await request.read(), type=Interval).interval_ms)
        return json_response(b"{}")

    async def _flush_now(self, _request: web.BaseRequest) -> web.Response:
        await self._local.flusher.now()
        return json_response(b"{}")


async def listen(control: Control, path: str) -> asyncio.AbstractServer:
    if os.path.exists(path):
        os.unlink(path)  # of a worker that was killed: the lock of the data folder says that nobody listens
    return await asyncio.get_running_loop().create_unix_server(web.Server(control.handle, access_log=None), path)


# ---- all workers


class AllWorkers:
    """This worker and its peers. `sockets`: worker -> control socket, of the others."""

    def __init__(self, local: Local, sockets: Mapping[int, str], flush_file: str, disk: Disk, background: Background) -> None:
        self._local = local
        self._sockets = sockets
        self._flush_file = flush_file
        self._disk = disk
        self._background = background

    # FlushControl of ingest/admin.py

    @property
    def flush_interval_ms(self) -> int:
        return self._local.flusher.interval_ms

    async def set_flush_interval(self, interval_ms: int) -> None:
        """Kept first, so that a worker which cannot be reached learns it when it starts."""
        content = msgspec.json.encode(Interval(interval_ms))
        await self._background.run(self._disk.replace, self._flush_file, content)
        self._local.flusher.set_interval(interval_ms)
        for worker, answer in (await self._ask_all("PUT", INTERVAL, _ANSWER_S, content)).items():
            if answer is None:
                log.warning("a worker was not told the new flush interval; it will read it when it starts", worker=worker)

    async def flush_now(self) -> None:
        mine = asyncio.ensure_future(self._local.flusher.now())
        try:
            answers = await self._ask_all("POST", FLUSH_NOW, _FLUSH_S)
            async with asyncio.timeout(_FLUSH_S):
                await mine
        except TimeoutError:
            raise Unavailable("The counter log does not take the flush now.", 5) from None
        finally:
            mine.cancel()
        if silent := [str(worker) for worker, answer in answers.items() if answer is None]:
            raise Unavailable(f"Worker {', '.join(silent)} did not flush.", 5)

    # for the ledger and the metrics

    async def snapshots(self) -> dict[int, WriterSnapshot | None]:
        """Of all workers; None: it does not answer, so its numbers are unknown."""
        answers = await self._ask_all("GET", SNAPSHOT, _ANSWER_S)
        others = {
            worker: None if answer is None else msgspec.json.decode(answer, type=WriterSnapshot) for worker, answer in answers.items()
        }
        return {self._local.worker: self._local.snapshot(), **others}

    async def _ask_all(self, method: str, path: str, patience_s: float, body: bytes | None = None) -> dict[int, bytes | None]:
        answers = await asyncio.gather(*(_ask(socket, method, path, patience_s, body) for socket in self._sockets.values()))
        return dict(zip(self._sockets, answers, strict=True))


async def _ask(socket: str, method: str, path: str, patience_s: float, body: bytes | None) -> bytes | None:
    """None: no good answer in time."""
    timeout = aiohttp.ClientTimeout(total=patience_s)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket), timeout=timeout) as session,
            session.request(method, f"http://worker{path}", data=body) as answer,
        ):
            content = await answer.read()
            return content if answer.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def read_interval(flush_file: str, disk: Disk) -> int | None:
    """What `parshall flush set` left behind."""
    try:
        return msgspec.json.decode(disk.read(flush_file), type=Interval).interval_ms
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        log.warning("the kept flush interval cannot be read; the configured one is used", file=flush_file, error=str(error))
        return None
