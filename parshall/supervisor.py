"""The process tree of `parshall up` and of `parshall ingest` with several workers: what starts after what, and what stops before what.

Belongs here: the order of things, signals, readiness. Must not know: options, what is printed, what the children do inside.

Start: the workers, and beside them PostgreSQL, the schema, the rater. Stop: the workers (they finish their requests and flush), the
rater (it takes in what they flushed), PostgreSQL. A second signal hurries: what is not finished is finished at the next start.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from parshall.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from parshall.errors import FAILED, UNAVAILABLE, Stop
from parshall.processes import Child, Order, ended, in_words, listen_to_hangup

log = structlog.get_logger()

_READY_POLL_S = 0.05
_PATIENCE_TO_SAY_S = 10.0


class Plan(NamedTuple):
    """What runs. Absent parts run elsewhere."""

    workers: Sequence[tuple[Order, str]]  # with the path of each one's control socket
    rater: Order | None = None
    postgres: EmbeddedPostgres | None = None
    reloads: bool = False  # whether there is a configuration to read again
    prepare: Callable[[], Awaitable[None]] | None = None  # once PostgreSQL runs, before anything else: the schema


class Supervisor:
    def __init__(self, plan: Plan, *, inherited: tuple[int, ...], on_ready: Callable[[], None], on_stopping: Callable[[], None]) -> None:
        self._plan = plan
        self._on_ready = on_ready
        self._on_stopping = on_stopping
        self._workers = [(Child(order, inherited), socket) for order, socket in plan.workers]
        self._rater = Child(plan.rater, inherited) if plan.rater is not None else None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._trouble: Stop | None = None
        self._keepers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Return when it was told to stop and everything stopped in order. Raises Stop when it could not start or go on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        leader, _ = self._workers[0]
        listen_to_hangup(loop, reload=partial(leader.tell, signal.SIGHUP) if self._plan.reloads else None, stop=self._signalled)
        try:
            await self._until_stop(self._start())
            if not self._stop.is_set():
                self._on_ready()
                await self._stop.wait()
        finally:
            await self._shut_down()
        if self._trouble is not None:
            raise self._trouble

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        else:
            self._stop.set()
            self._on_stopping()

    async def _until_stop(self, starting: Awaitable[None]) -> None:
        """Start, unless a signal comes first."""
        task = asyncio.ensure_future(starting)
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    # ---- start

    async def _start(self) -> None:
        """Workers need PostgreSQL only to be asked about usage, so they start beside it."""
        for worker, _ in self._workers:
            self._keep(worker.keep())
        if self._plan.postgres is not None:
            await _start_postgres(self._plan.postgres)
            self._keep(self._keep_postgres(self._plan.postgres))
        if self._plan.prepare is not None:
            await self._plan.prepare()
        if self._rater is not None:
            self._keep(self._rater.keep())
            self._rater.was_ready = True  # it has nothing to answer; what it lacks it waits for
        for worker, socket in self._workers:
            await self._wait_ready(worker, socket)

    def _keep(self, keeper: Awaitable[None]) -> None:
        task = asyncio.ensure_future(keeper)
        task.add_done_callback(self._keeper_ended)
        self._keepers.append(task)

    def _keeper_ended(self, task: asyncio.Future[None]) -> None:
        """One part cannot go on: then everything stops in order, and the reason is told at the end."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, Stop):
            self._trouble = self._trouble or Stop(f"The supervisor failed: {error!r}.", FAILED)
            self._stop.set()
            log.error("the supervisor failed", exc_info=error)
            return
        self._trouble = self._trouble or error
        self._stop.set()

    async def _wait_ready(self, worker: Child, socket: str) -> None:
        loop = asyncio.get_running_loop()
        say_s = loop.time() + _PATIENCE_TO_SAY_S
        while (reasons := await why_not_ready(socket)) != "":
            if loop.time() > say_s:
                log.info("still waiting for a worker to be ready", child=worker.order.name, reasons=reasons)
                say_s += 3 * _PATIENCE_TO_SAY_S
            await asyncio.sleep(_READY_POLL_S)
        worker.was_ready = True

    async def _keep_postgres(self, postgres: EmbeddedPostgres) -> None:
        pause_s = 0.2
        while True:
            code = await ended(postgres.process)
            log.warning("PostgreSQL ended and is started again", how=in_words(code))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 15.0)
            await _start_postgres(postgres)

    # ---- stop

    async def _shut_down(self) -> None:
        """Workers first, so that the rater still takes in what they flush last. Whatever fails, the rest is stopped too."""
        self._stop.set()
        await asyncio.gather(*(worker.stop(self._hurry) for worker, _ in self._workers))
        if self._rater is not None:
            await self._rater.stop(self._hurry)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._plan.postgres is not None:
            await self._plan.postgres.stop(hurry=self._hurry.is_set())


async def _start_postgres(postgres: EmbeddedPostgres) -> None:
    try:
        await postgres.start()
    except EmbeddedPostgresError as error:
        raise Stop(str(error), UNAVAILABLE) from error


async def why_not_ready(socket: str) -> str:
    """What the worker behind a control socket says to /readyz; nothing when it is."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return "It does not answer yet."
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return "" if b" 200 " in head.partition(b"\r\n")[0] else _detail(body)
    except OSError:
        return "It does not answer yet."
    finally:
        writer.close()


def _detail(body: bytes) -> str:
    try:
        said = str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        said = ""
    return said or "It does not say why."
