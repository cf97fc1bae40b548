"""The rater process: takes counter records in and charges them; optionally answers for usage and charges on an address of its own.

Belongs here: the life of the process, from its order to its exit code. Must not know: options, SQL, what a record means.

On SIGTERM it first catches up with what stands in the log at that moment, as far as that goes quickly: it is told last to stop, after
the workers have flushed. A second SIGTERM ends it at once; every transaction is whole, so nothing is lost by that.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

import structlog
import uvloop

from buffer.counter_log import UnfitLog
from buffer.counters import MeterDefinition
from ingest.auth import Keys
from ingest.connection import listen_at
from ingest.eventless_edge import EventlessEdge, add_admin_routes
from ingest.http import Edge, HttpLimits
from ingest.metrics import metrics_routes
from parshall import peers
from parshall.data_folder import DataFolder
from parshall.errors import FAILED, OK, REFUSED
from parshall.logs import configure_logs
from parshall.port import Addresses
from parshall.processes import heed_signals, listen_to_hangup
from parshall.rater_reload import RaterReload, ReloadAlone
from parshall.rating_metrics import RatingCollector
from parshall.read_api import rated_ledger_routes, rated_routes
from parshall.reload import LiveSettings, Origin, Refused, with_kept
from parshall.reload_routes import reload_routes
from parshall.settings import Address, Settings
from parshall.wiring import REAL, World, late_s, make_keys, make_rater
from rater.api import Api
from rater.configured import ConfigurationRefused
from rater.consume import Rater
from rater.postgres import open_pool
from rater.source import Source

log = structlog.get_logger()

_CATCH_UP_S = 10.0


class RaterOrder(NamedTuple):
    settings: Settings
    folder: DataFolder | None  # with the local log in it
    addresses: Addresses | None  # None: the workers of the same tree answer for usage
    origin: Origin | None = None  # None: there is no file to read again


def main() -> None:
    from parshall.processes import read_order

    configure_logs(sys.argv[1])
    order: RaterOrder = read_order()
    sys.exit(run(order))


def run(order: RaterOrder, world: World = REAL) -> int:
    """The exit code."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(order, world))
    except (ConfigurationRefused, UnfitLog) as error:
        log.error("the rater stops", reason=str(error))
        return REFUSED
    except Refused as error:
        log.error("the rater stops", reason=str(error))
        return FAILED
    except Exception as error:
        log.error("the rater failed", exc_info=error)
        return FAILED


async def _run(order: RaterOrder, world: World) -> int:
    stop = _stop_signal(order)
    settings = _with_kept(order, world)
    assert settings.postgres.dsn is not None
    rater, source, ledger = make_rater(settings, order.folder, world)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(ledger.close)
        cleanup.push_async_callback(source.close)
        edge = ReadEdge(make_keys(settings), rater.configured.meters, world, rater)
        reload = RaterReload(rater, edge, settings.postgres.dsn)
        live = LiveSettings(order.origin, settings, world.background("files"), check=reload.check, follow=reload.follow)
        if order.addresses is not None:
            alone = ReloadAlone(live)
            asked = alone.asked if order.origin is not None else None
            listen_to_hangup(asyncio.get_running_loop(), reload=asked, stop=stop.set)
            await _serve(live, alone, order.addresses, edge, rater, source, world, cleanup)
        elif order.folder is not None:
            handle = partial(peers.dispatch, peers.follower_routes(live))
            cleanup.callback((await peers.listen(handle, order.folder.rater_socket)).close)
        rating = asyncio.ensure_future(rater.run())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait([rating, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not rating.done():
            await _catch_up(rater, rating, world.clock_us())
            rating.cancel()
        await asyncio.gather(rating, stopped, return_exceptions=True)
        if not rating.cancelled():
            rating.result()
    return OK


async def _catch_up(rater: Rater, rating: asyncio.Future[None], until_us: int) -> None:
    """Until all that stood in the log at `until_us` is rated; not while the database is away, and not for long."""
    counts = rater.counts
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            # It may not have begun yet, which is no failure.
            while counts.as_of_us < until_us and (counts.ready or not counts.failures) and not rating.done():
                await asyncio.sleep(0.02)
    except TimeoutError:
        log.warning("the rater stops before it has caught up; it goes on from there at the next start")


def _stop_signal(order: RaterOrder) -> asyncio.Event:
    stop = asyncio.Event()

    def signalled() -> None:
        if stop.is_set():
            os._exit(OK)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    if order.addresses is None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # in a tree the workers are told, and they tell us
    heed_signals()
    return stop


def _with_kept(order: RaterOrder, world: World) -> Settings:
    """As the service runs by now, where its configuration was read again since it started. Raises Refused, as that of a worker does."""
    if order.folder is None:
        return order.settings
    return with_kept(order.origin, order.settings, peers.read_kept(order.folder.kept_configuration, world.disk))


# ---- the read API of `parshall rate`


class ReadEdge(EventlessEdge):
    """The HTTP edge of a node that takes no events."""

    def __init__(self, keys: Keys, meters: Sequence[MeterDefinition], world: World, rater: Rater) -> None:
        """`meters`: so that one without usage yet is known too."""
        self.meters = meters
        elsewhere = "This node rates; events go to a node that runs `parshall ingest`."
        super().__init__(keys, HttpLimits(), elsewhere=elsewhere, clock_us=world.clock_us, not_ready=lambda: not_ready(rater))


def not_ready(rater: Rater) -> Sequence[str]:
    """For questions, which PostgreSQL answers: without Kafka they are answered all the same, only not with what is new (`as_of`)."""
    counts = rater.counts
    return [] if counts.books_in_force and not counts.database_fails else [f"The rater is not ready. {counts.last_failure}".rstrip()]


async def _serve(
    live: LiveSettings,
    alone: ReloadAlone,
    addresses: Addresses,
    edge: ReadEdge,
    rater: Rater,
    source: Source,
    world: World,
    cleanup: AsyncExitStack,
) -> None:
    settings = live.settings
    assert settings.postgres.dsn is not None
    pool = await open_pool(settings.postgres.dsn)
    cleanup.callback(pool.terminate)
    api = Api(pool, clock_us=world.clock_us, late_s=late_s(settings), meters=lambda: edge.meters)
    collector = RatingCollector(pool, rater.counts, lambda: source.identity if rater.counts.ends else "")
    of_operators = {**reload_routes(alone.reload), **metrics_routes(collector, refresh=collector.refresh)}
    admin = add_admin_routes(edge, of_operators, apart=addresses.admin is not None)
    edge.routes.update(rated_routes(api))
    edge.routes.update(rated_ledger_routes(api))
    if addresses.admin is not None and admin is not None:
        await _serve_at(addresses.admin, admin, cleanup)
    await _serve_at(addresses.public, edge, cleanup)
    log.info("serving usage and charges", **addresses.named())


async def _serve_at(address: Address, edge: Edge, cleanup: AsyncExitStack) -> None:
    listening = await listen_at(edge, *address)
    cleanup.push_async_callback(listening.http.shutdown, 1.0)
    cleanup.callback(listening.sockets.close)


if __name__ == "__main__":
    main()
