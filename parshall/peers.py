"""The processes of one node among themselves: each has a control socket, and any worker can answer for all.

Belongs here: the control socket's routes, asking the others, and what is done to all workers at once. Must not know: the public API.

The folder of the sockets is private to the user that runs the service, so nothing here asks for a key.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import msgspec
import structlog
from aiohttp import web

from buffer.disk import Background, Disk, Lock
from ingest.flusher import Flusher
from ingest.http import json_response, problem_response
from ingest.sink import Unavailable
from ingest.snapshot import WriterSnapshot
from parshall import known_tenants
from parshall.known_tenants import OtherTenant
from parshall.reload import LiveSettings, Refused, Reloaded, together
from parshall.settings import TenantSettings

log = structlog.get_logger()

ControlRoutes = Mapping[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.Response]]]

RELOAD = "/reload"
CHECK = "/configuration/check"
CONFIGURATION = "/configuration"
SNAPSHOT = "/snapshot"
INTERVAL = "/flush-interval"
FLUSH_NOW = "/flush-now"
READY = "/readyz"

_ANSWER_S = 5.0
# Whoever asks for a flush or a reload over HTTP waits for a minute, as a proxy between may too: what went wrong is to be told before that.
_FLUSH_S = 45.0
_ROUND_S = 25.0  # one of the two rounds of a reload: all are asked, then all are told
_RELOAD_S = 55.0  # both rounds, for a worker that has the leader do them
_STARTING_S = 10.0  # of a round: how long to look for a process that is not there
_TURN_S = 15.0  # how long to wait while other workers set an interval
_LEADER = 0  # every reload goes through one worker, so that two of them cannot cross


class Interval(msgspec.Struct):
    """What is kept in DATA/flush.json, and told to the other workers."""

    interval_ms: int
    v: int = 1


class Sockets(NamedTuple):
    """Where the others listen."""

    workers: Mapping[int, str]
    rater: str | None  # of the same tree


class Kept(NamedTuple):
    """Files for those who start later."""

    flush_file: str
    tenants_file: str
    configuration: str


class Local(NamedTuple):
    """What this worker can do by itself."""

    worker: int
    flusher: Flusher
    snapshot: Callable[[], WriterSnapshot]
    not_ready: Callable[[], Sequence[str]]
    live: LiveSettings


# ---- the control socket


class Control:
    def __init__(self, local: Local, reload: Callable[[], Awaitable[Reloaded]]) -> None:
        """`reload`: of all workers, by way of this one."""
        self._local = local
        self._reload_all = reload
        self._routes: ControlRoutes = {
            ("GET", READY): self._ready,
            ("GET", SNAPSHOT): self._snapshot,
            ("PUT", INTERVAL): self._set_interval,
            ("POST", FLUSH_NOW): self._flush_now,
            ("POST", RELOAD): self._reload,
            **follower_routes(local.live),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The handler of `web.Server`."""
        return await dispatch(self._routes, request)

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

    async def _reload(self, _request: web.BaseRequest) -> web.Response:
        return json_response(msgspec.json.encode(await self._reload_all()))


def follower_routes(live: LiveSettings) -> ControlRoutes:
    """How a process is told of a configuration that was read again: first it is asked, then told."""

    async def check(request: web.BaseRequest) -> web.Response:
        return json_response(msgspec.json.encode(await live.check(await request.content.read())))

    async def follow(request: web.BaseRequest) -> web.Response:
        await live.follow(await request.content.read())
        return json_response(b"{}")

    return {("PUT", CHECK): check, ("PUT", CONFIGURATION): follow}


async def dispatch(routes: ControlRoutes, request: web.BaseRequest) -> web.Response:
    route = routes.get((request.method, request.path))
    if route is None:
        return problem_response(404, "There is no such control.")
    try:
        return await route(request)
    except Refused as refused:
        return problem_response(422, str(refused))
    except Unavailable as error:
        return problem_response(503, error.reason)


async def listen(handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], path: str) -> asyncio.AbstractServer:
    if os.path.exists(path):
        os.unlink(path)  # of a process that was killed: the lock of the data folder says that nobody listens
    return await asyncio.get_running_loop().create_unix_server(web.Server(handle, access_log=None), path)


# ---- all workers


class AllWorkers:
    """This worker and its peers."""

    def __init__(self, local: Local, sockets: Sockets, kept: Kept, disk: Disk, background: Background) -> None:
        self._local = local
        self._sockets = sockets.workers
        self._followers = [*sockets.workers.values(), *([sockets.rater] if sockets.rater else [])]
        self._kept = kept
        self._disk = disk
        self._background = background
        self._reloading = asyncio.Lock()

    # FlushControl of ingest/admin.py

    @property
    def flush_interval_ms(self) -> int:
        return self._local.flusher.interval_ms

    async def set_flush_interval(self, interval_ms: int) -> None:
        """In all workers, and for later starts; one after the other, whichever worker is asked, so that two cannot cross. No leader: where
        that one is away, the others need their interval all the more. Raises Unavailable."""
        turn = await self._turn(asyncio.get_running_loop().time() + _TURN_S)
        try:
            await self._set_everywhere(interval_ms, msgspec.json.encode(Interval(interval_ms)))
        finally:
            turn.release()

    async def _turn(self, until_s: float) -> Lock:
        """Among all who ask, in this process and the others of this node: it ends with the process that has it. Raises Unavailable."""
        while True:
            try:
                return await self._background.run(self._disk.lock, f"{self._kept.flush_file}.lock")
            except BlockingIOError:
                if asyncio.get_running_loop().time() > until_s:
                    raise Unavailable("Another worker is setting a flush interval; nothing is changed: ask once more.", 5) from None
                await asyncio.sleep(0.02)
            except OSError as error:
                raise _not_written(error) from error

    async def _set_everywhere(self, interval_ms: int, content: bytes) -> None:
        """Kept first, so that a worker which is not there learns it when it starts. Raises Unavailable when one that is there is silent."""
        await self._background.run(self._replace, self._kept.flush_file, content)
        self._local.flusher.set_interval(interval_ms)
        told = await asyncio.gather(*(_tell_interval(worker, socket, content) for worker, socket in self._sockets.items()))
        if silent := [str(worker) for worker, heard in zip(self._sockets, told, strict=True) if not heard]:
            raise Unavailable(
                f"Worker {', '.join(silent)} does not answer and may keep its old interval until it restarts: ask once more.", 5
            )

    def _replace(self, path: str, content: bytes) -> None:
        """In the background. Raises Unavailable."""
        try:
            self._disk.replace(path, content)
        except OSError as error:
            raise _not_written(error) from error

    async def flush_now(self) -> None:
        until_s = asyncio.get_running_loop().time() + _FLUSH_S
        mine = asyncio.ensure_future(self._local.flusher.now())
        try:
            answers = await self._ask_all("POST", FLUSH_NOW, _FLUSH_S)
            async with asyncio.timeout_at(until_s):
                await mine
        except TimeoutError:
            raise Unavailable("The counter log does not take the flush now.", 5) from None
        finally:
            mine.cancel()
        if silent := [str(worker) for worker, answer in answers.items() if answer is None]:
            raise Unavailable(f"Worker {', '.join(silent)} did not flush.", 5)

    # for parshall/reload_routes.py

    async def reload(self) -> Reloaded:
        """All of them read the configuration again, or none. Raises Refused or Unavailable."""
        if self._local.worker != _LEADER:
            answer = await _ask(self._sockets[_LEADER], "POST", RELOAD, _RELOAD_S, None)
            return msgspec.json.decode(_good(f"worker-{_LEADER}", answer, "ask once more"), type=Reloaded)
        async with self._reloading:
            return await self._lead()

    async def _lead(self) -> Reloaded:
        live = self._local.live
        content = await live.content()
        outcomes = [await live.check(content)]
        await self._background.run(self._check_tenants, live.tenants(content))
        answers = await self._tell_followers(CHECK, content, "nothing is changed")
        outcomes += [msgspec.json.decode(answer, type=Reloaded) for answer in answers]
        await live.settle(content)  # no sooner: what was settled stays so, though the rest of it be refused
        await self._background.run(self._keep, content, live.tenants(content))  # for who starts from now on
        await live.follow(content)
        await self._tell_followers(CONFIGURATION, content, "it may still have the old configuration: ask once more")
        return together(outcomes)

    def _check_tenants(self, tenants: Sequence[TenantSettings]) -> None:
        """In the background. Raises Refused."""
        try:
            known_tenants.check(self._kept.tenants_file, self._disk, tenants)
        except OtherTenant as error:
            raise Refused(str(error)) from None

    def _keep(self, content: bytes, tenants: Sequence[TenantSettings]) -> None:
        """In the background. Raises Unavailable."""
        try:
            known_tenants.remember(self._kept.tenants_file, self._disk, tenants)
            self._disk.replace(self._kept.configuration, content)
        except OSError as error:
            raise _not_written(error) from error

    async def _tell_followers(self, path: str, content: bytes, otherwise: str) -> list[bytes]:
        """What they answered. Raises Refused or Unavailable."""
        answers = await asyncio.gather(*(_ask_until_there(socket, "PUT", path, content) for socket in self._followers))
        return [
            _good(os.path.basename(socket).removesuffix(".sock"), answer, otherwise)
            for socket, answer in zip(self._followers, answers, strict=True)
        ]

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
        return {
            worker: answer.content if answer is not None and answer.status == 200 else None
            for worker, answer in zip(self._sockets, answers, strict=True)
        }


def _not_written(error: OSError) -> Unavailable:
    where = error.filename or "the data folder"
    return Unavailable(f"{where} cannot be written ({error.strerror}); nothing is in force yet: ask once more.", 5)


class _Answer(NamedTuple):
    status: int
    content: bytes


def _good(who: str, answer: _Answer | None, otherwise: str) -> bytes:
    """What it answered. Raises Refused, or Unavailable with what follows from that."""
    if answer is not None and answer.status == 200:
        return answer.content
    if answer is not None and answer.status == 422:
        raise Refused(_detail(answer))
    said = "does not answer" if answer is None else f"answered: {_detail(answer)}"
    raise Unavailable(f"{who} {said.rstrip('.')}; {otherwise}.", 2)


def _detail(answer: _Answer) -> str:
    try:
        return str(msgspec.json.decode(answer.content, type=dict[str, Any])["detail"])
    except (msgspec.MsgspecError, KeyError):
        return f"{answer.status} without a reason, which is in its log"


async def _ask_until_there(socket: str, method: str, path: str, body: bytes) -> _Answer | None:
    """A process that starts, or starts again, is there in a moment."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while True:
        answer = await _ask(socket, method, path, began_s + _ROUND_S - loop.time(), body)
        if answer is not None or loop.time() > began_s + _STARTING_S:
            return answer
        await asyncio.sleep(0.1)


async def _tell_interval(worker: int, socket: str, content: bytes) -> bool:
    """Whether it follows: now, or because it is yet to start."""
    try:
        answer = await _ask_listener(socket, "PUT", INTERVAL, _ANSWER_S, content)
    except _NobodyListens:
        log.warning("a worker was not told the new flush interval; it will read it when it starts", worker=worker)
        return True
    return answer is not None and answer.status == 200


async def _ask(socket: str, method: str, path: str, patience_s: float, body: bytes | None) -> _Answer | None:
    """None: none in time."""
    try:
        return await _ask_listener(socket, method, path, patience_s, body)
    except _NobodyListens:
        return None


class _NobodyListens(Exception):
    """The process starts, or is away; its socket may have been left behind."""


async def _ask_listener(socket: str, method: str, path: str, patience_s: float, body: bytes | None) -> _Answer | None:
    """None: none in time. Raises _NobodyListens."""
    timeout = aiohttp.ClientTimeout(total=patience_s)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket), timeout=timeout) as session,
            session.request(method, f"http://worker{path}", data=body) as answer,
        ):
            return _Answer(answer.status, await answer.read())
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, FileNotFoundError | ConnectionRefusedError):
            raise _NobodyListens from error
        return None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def read_kept(file: str, disk: Disk) -> bytes | None:
    """The configuration as it was last read again since the service started."""
    try:
        return disk.read(file)
    except FileNotFoundError:
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
