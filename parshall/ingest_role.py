"""`parshall ingest`: the HTTP edge alone, for production.

One worker runs in this very process, so that whoever started it sees how it ends; several run below a supervisor.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from parshall.errors import EXIT_CODES
from parshall.roles import demand, options, run_tree, settings_given, take_data_folder, worker_orders
from parshall.streams import announce

if TYPE_CHECKING:
    from parshall.data_folder import DataFolder
    from parshall.port import Addresses
    from parshall.reload import Origin
    from parshall.settings import Settings

HELP = f"""Run the HTTP edge: events in, counters out to Kafka. Claims are kept in Redis.

It drains on SIGTERM: requests finish, counters are flushed, then it exits with 0. The data folder holds the journal; it must be on a disk
of its own that stays, and is used by one `parshall ingest` at a time.

\b
Examples:
  parshall ingest --config parshall.toml
  parshall ingest --config parshall.toml --listen 0.0.0.0:8080 --workers 2

{EXIT_CODES}"""


@click.command(help=HELP)
@options("--config", "--listen", "--admin-listen", "--data", "--workers", "--redis", "--kafka", "--postgres")
def ingest(config: str | None, **given: object) -> None:
    from parshall.check import read_settings
    from parshall.logs import configure_logs
    from parshall.port import reserved
    from parshall.reload import OF_INGEST, origin_of

    settings = read_settings(config, settings_given(given))
    demand(
        settings,
        "ingest",
        {
            "Redis": (settings.redis.url, "--redis"),
            "Kafka": (settings.kafka.bootstrap, "--kafka"),
            "a meter": (settings.meters, "[[meters]] in --config"),
            "a tenant": (settings.tenants, "[[tenants]] in --config"),
            "a key": (settings.keys, "[[keys]] in --config; `parshall key` makes one"),
        },
    )
    configure_logs("ingest")
    folder, lock = take_data_folder(settings)
    origin = origin_of(config, settings_given(given), {}, OF_INGEST, settings)
    with reserved(settings) as addresses:
        if settings.ingest.workers == 1:
            sys.exit(_run_here(settings, folder, addresses, origin))
        _run_several(settings, folder, addresses, origin, lock)


def _run_here(settings: Settings, folder: DataFolder, addresses: Addresses, origin: Origin | None) -> int:
    from parshall.worker import WorkerOrder, run

    return run(WorkerOrder(settings, folder, 0, 1, addresses, origin), on_ready=lambda: _say_ready(addresses))


def _run_several(settings: Settings, folder: DataFolder, addresses: Addresses, origin: Origin | None, lock: int) -> None:
    from parshall.supervisor import Plan

    plan = Plan(worker_orders(settings, folder, addresses, origin), reloads=origin is not None)
    run_tree(plan, inherited=(lock,), on_ready=lambda: _say_ready(addresses))


def _say_ready(addresses: Addresses) -> None:
    announce(f"Parshall is ready at {addresses.public.url}")
