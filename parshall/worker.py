"""The ingest worker process: one journal, one writer, one HTTP server; from its order to its exit code.

Belongs here: the life of the process. Must not know: options, which other processes there are (it is told the sockets of its peers).

It drains on SIGTERM: no new connections, requests and calls finish, one last flush, `closed` in the journal. A second SIGTERM ends it
at once; what it had not finished is finished when its journal is opened the next time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
import structlog
import uvloop
from prometheus_client.registry import Collector

from buffer.counter_log import UnfitLog
from buffer.disk import Background
from buffer.journal import JournalBusy, JournalError, JournalStopped
from dedupe.port import ClaimsError, Zombie
from ingest.admin import admin_routes
from ingest.agreed_meters import CannotStart
from ingest.connection import listen_at
from ingest.eventless_edge import add_admin_routes
from ingest.flusher import Flusher
from ingest.http import Edge, HttpLimits, Route
from ingest.metrics import SnapshotCollector, metrics_routes
from ingest.snapshot import WriterSnapshot
from ingest.writer import Writer
from parshall import peers
from parshall.data_folder import DataFolder
from parshall.errors import FAILED, OK, REFUSED, UNAVAILABLE
from parshall.logs import configure_logs
from parshall.port import Addresses
from parshall.processes import heed_signals, listen_to_hangup
from parshall.rating_metrics import RatingCollector
from parshall.read_api import ledger_routes, rated_routes
from parshall.reload import LiveSettings, Origin, Refused, with_kept
from parshall.reload_routes import reload_routes, tell_outcome
from parshall.settings import Settings
from parshall.wiring import REAL, WorkerParts, World, late_s, make_decoder, make_keys, meter_numbers, open_worker
from parshall.worker_reload import WorkerReload
from parshall.worker_snapshot import take_snapshot
from rater.api import Api
from rater.postgres import open_pool

log = structlog.get_logger()

_DEFAULT_INTERVAL_MS = 10_000
_OWN_DESCRIPTORS = 200  # for files, Redis, Kafka, PostgreSQL
_LAST_ANSWERS_S = 1.0  # how long answers that are ready may take to leave


class WorkerOrder(NamedTuple):
    settings: Settings
    folder: DataFolder
    worker: int
    workers: int
    addresses: Addresses
    origin: Origin | None = None  # None: there is no file to read again
    with_rater: bool = False  # in the same tree


def main() -> None:
    from parshall.processes import read_order

    configure_logs(sys.argv[1])
    order: WorkerOrder = read_order()
    sys.exit(run(order))


def spare_the_collector() -> None:
    """What is here by now stays for ever, and the hot path makes no cycles: look for garbage rarely, and only among what is new."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def http_limits(settings: Settings) -> HttpLimits:
    """A connection needs a descriptor: as many are asked of the system as it gives, and those that files need are left over."""
    ingest = settings.ingest
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ingest.max_connections + _OWN_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    connections = ingest.max_connections if soft == resource.RLIM_INFINITY else min(ingest.max_connections, max(1, soft - _OWN_DESCRIPTORS))
    return HttpLimits(
        max_body_bytes=ingest.max_body_bytes,
        deadline_ms=ingest.deadline_ms,
        connections=connections,
        in_flight_bytes=ingest.max_in_flight_bytes,
    )


def run(order: WorkerOrder, world: World = REAL, on_ready: Callable[[], None] | None = None) -> int:
    """The exit code."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Worker(order, world, on_ready or (lambda: None)).run())
    except Exception as error:
        return why_stopped(error)


def why_stopped(error: BaseException) -> int:
    """Says it, and decides whether starting again can help."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case JournalBusy():
            code = UNAVAILABLE
        case Zombie():
            code = FAILED  # a new opening of the journal is what helps
        case ClaimsError() | JournalError() | CannotStart() | UnfitLog():
            code = REFUSED
        case OSError() | JournalStopped() | Refused():
            log.error("the worker stops", error=str(error))
            return FAILED
        case _:
            log.error("the worker failed", exc_info=error)
            return FAILED
    log.error("the worker stops", reason=str(error))
    return code


class Worker:
    def __init__(self, order: WorkerOrder, world: World, on_ready: Callable[[], None]) -> None:
        self._order = order
        self._settings = order.settings  # as they are at the start
        self._folder = order.folder
        self._world = world
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._reload_asked = asyncio.Event()

    async def run(self) -> int:
        self._listen_to_signals()
        self._settings = self._with_kept()
        kept_ms = peers.read_interval(self._folder.flush_file, self._world.disk)
        interval_ms = kept_ms or self._settings.flush.interval_ms or _DEFAULT_INTERVAL_MS
        parts = await self._unless_stopped(open_worker(self._settings, self._folder, self._order.worker, interval_ms, self._world))
        if parts is None:
            return OK
        spare_the_collector()
        pool = await open_pool(self._settings.postgres.dsn) if self._settings.postgres.dsn else None
        try:
            await self._serve(parts, pool)
        finally:
            if pool is not None:
                pool.terminate()  # a query under way is of no more use
            await parts.counter_log.close()
        await parts.journal.close()  # not after a failure: then only opening it again tells what is on the disk
        return OK

    def _with_kept(self) -> Settings:
        """As the service runs by now, where its configuration was read again since it started. Raises Refused: it was in force before, but
        a certificate that it names may be away just now. Another try is better than what is outdated."""
        return with_kept(self._order.origin, self._order.settings, peers.read_kept(self._folder.kept_configuration, self._world.disk))

    async def _unless_stopped(self, opening: Coroutine[Any, Any, WorkerParts]) -> WorkerParts | None:
        """A counter log that is away is waited for; a signal must end that. Nothing was claimed yet."""
        task = asyncio.ensure_future(opening)
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None
        return await task

    def _api(self, pool: asyncpg.Pool, reload: WorkerReload) -> Api:
        return Api(pool, clock_us=self._world.clock_us, late_s=late_s(self._settings), meters=lambda: reload.meters)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        listen_to_hangup(loop, reload=self._reload_asked.set, stop=self._signalled)
        heed_signals()

    def _signalled(self) -> None:
        if self._stop.is_set():
            os._exit(OK)  # somebody cannot wait; the journal has everything that was answered
        self._stop.set()

    # ---- serving

    async def _serve(self, parts: WorkerParts, pool: asyncpg.Pool | None) -> None:
        writer = parts.writer

        def reasons() -> Sequence[str]:
            return not_ready(writer, draining=self._stop.is_set())

        edge = Edge(
            writer,
            make_decoder(self._settings, parts.catalogue, meter_numbers(parts.catalogue, writer)),
            make_keys(self._settings),
            http_limits(self._settings),
            clock_us=self._world.clock_us,
            not_ready=reasons,
        )
        files = self._world.background("files")
        reload = WorkerReload(writer, edge, parts.catalogue.definitions, files)
        local = peers.Local(
            self._order.worker,
            writer.flusher,
            lambda: take_snapshot(self._order.worker, writer, edge),
            reasons,
            LiveSettings(self._order.origin, self._settings, files, check=reload.check, follow=reload.follow, settle=reload.settle),
        )
        workers = self._all_workers(local, files)
        admin = self._add_routes(edge, pool, reload, workers)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(writer.run())
            reloading = tasks.create_task(self._reload_when_asked(workers))
            tasks.create_task(self._until_stopped(parts, edge, admin, peers.Control(local, workers.reload), [running, reloading]))

    def _all_workers(self, local: peers.Local, files: Background) -> peers.AllWorkers:
        others = {worker: self._folder.control_socket(worker) for worker in range(self._order.workers) if worker != self._order.worker}
        sockets = peers.Sockets(others, self._folder.rater_socket if self._order.with_rater else None)
        kept = peers.Kept(self._folder.flush_file, self._folder.tenants_file, self._folder.kept_configuration)
        return peers.AllWorkers(local, sockets, kept, self._world.disk, files)

    async def _reload_when_asked(self, workers: peers.AllWorkers) -> None:
        """By SIGHUP."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await tell_outcome(workers.reload)

    def _add_routes(self, edge: Edge, pool: asyncpg.Pool | None, reload: WorkerReload, workers: peers.AllWorkers) -> Edge | None:
        """Returns the edge of the admin address, if there is one."""
        api = None if pool is None else self._api(pool, reload)
        edge.routes.update(rated_routes(api))
        edge.routes.update(ledger_routes(api, workers.snapshots))
        of_operators = {
            **admin_routes(workers),
            **reload_routes(workers.reload),
            **metrics_of_all(workers, pool, self._world.clock_us),
        }
        return add_admin_routes(edge, of_operators, apart=self._order.addresses.admin is not None)

    async def _until_stopped(
        self, parts: WorkerParts, edge: Edge, admin: Edge | None, control: peers.Control, running: Sequence[asyncio.Task[None]]
    ) -> None:
        controlled = await peers.listen(control.handle, self._folder.control_socket(self._order.worker))
        self._follow_kept_interval(parts.writer.flusher)
        addresses = self._order.addresses
        operators = await listen_at(admin, *addresses.admin) if addresses.admin is not None and admin is not None else None
        public = await listen_at(edge, *addresses.public)
        log.info("serving", **addresses.named(), writer=parts.journal.writer.hex())
        ready = asyncio.ensure_future(self._tell_ready(parts))
        try:
            await self._stop.wait()
        finally:
            ready.cancel()
        edge.closing = True
        public.sockets.close()
        try:
            await parts.writer.drain(self._settings.ingest.drain_s)
        except TimeoutError:
            log.warning("not everything was flushed in time; it is safe in the journal and goes out at the next start")
        await public.http.shutdown(_LAST_ANSWERS_S)
        if operators is not None:  # what the drain comes to can be looked at
            operators.sockets.close()
            await operators.http.shutdown(_LAST_ANSWERS_S)
        controlled.close()
        for task in running:
            task.cancel()

    def _follow_kept_interval(self, flusher: Flusher) -> None:
        """Opening the journal took a while, in which nobody could tell this process of another interval; from now on everybody can."""
        kept_ms = peers.read_interval(self._folder.flush_file, self._world.disk)
        if kept_ms is not None and kept_ms != flusher.interval_ms:
            flusher.set_interval(kept_ms)

    async def _tell_ready(self, parts: WorkerParts) -> None:
        while not parts.writer.serves:
            await asyncio.sleep(0.02)
        self._on_ready()


def not_ready(writer: Writer, *, draining: bool) -> Sequence[str]:
    if draining:
        return ["This node is shutting down."]
    if writer.serves:
        writer.look_for_room()
        return [full] if (full := writer.journal_full()) else []
    lanes = writer.lanes
    if len(lanes) == 1:
        return [f"The claims are not ready ({lanes[0].reason})."]
    return [f"The claims of shard {lane.shard} are not ready ({lane.reason})." for lane in lanes]


def metrics_of_all(workers: peers.AllWorkers, pool: asyncpg.Pool | None, clock_us: Callable[[], int]) -> Mapping[tuple[str, str], Route]:
    """A scrape reaches one worker, which answers for all, and for PostgreSQL where it has one to ask."""
    latest: list[WriterSnapshot] = []
    collectors: list[Collector] = [SnapshotCollector(lambda: latest, clock_us)]
    rating = None if pool is None else RatingCollector(pool)
    if rating is not None:
        collectors.append(rating)

    async def refresh() -> None:
        found = await workers.snapshots()
        latest[:] = [snapshot for snapshot in found.values() if snapshot is not None]
        if rating is not None:
            await rating.refresh()

    return metrics_routes(*collectors, refresh=refresh)


if __name__ == "__main__":
    main()
