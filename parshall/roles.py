"""What the commands that run a service share: options, the data folder and its lock, the supervisor.

Belongs here: from settings to a running tree, and its end. Must not know: which role wants what.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from parshall.errors import REFUSED, USAGE, Stop
from parshall.streams import say

if TYPE_CHECKING:
    from parshall.data_folder import DataFolder
    from parshall.port import Addresses
    from parshall.processes import Order
    from parshall.reload import Origin
    from parshall.settings import Settings
    from parshall.supervisor import Plan

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {  # option -> (setting, how it is declared)
    "--config": ("", {"type": click.Path(), "metavar": "FILE", "help": "The configuration; `parshall check` tells what is wrong with it."}),
    "--listen": ("listen", {"metavar": "HOST:PORT", "help": "Where to serve HTTP. [default: 127.0.0.1:8080]"}),
    "--admin-listen": (
        "admin_listen",
        {"metavar": "HOST:PORT", "help": "Where to serve /metrics and /v1/admin/. [default: with the rest, at --listen]"},
    ),
    "--data": ("data", {"metavar": "DIR", "help": "The data folder. [default: parshall-data]"}),
    "--workers": ("ingest.workers", {"type": int, "metavar": "N", "help": "Worker processes; more than one needs --redis. [default: 1]"}),
    "--redis": ("redis.url", {"metavar": "URL", "help": "Keep claims there, as in redis://127.0.0.1:6379/0."}),
    "--kafka": ("kafka.bootstrap", {"metavar": "HOST:PORT,…", "help": "Send counters there."}),
    "--postgres": ("postgres.dsn", {"metavar": "DSN", "help": "Keep usage and charges there, as in postgresql://user@host/database."}),
}

_LEAST_OPEN_FILES = 256  # of a process, connections not counted; with fewer one part or another fails at some later moment
WORKER_SLACK_S = 10  # beyond its own patience


def options(*names: str) -> Callable[[F], F]:
    def add(command: F) -> F:
        for name in reversed(names):
            command = click.option(name, **OPTIONS[name][1])(command)
        return command

    return add


def settings_given(given: Mapping[str, object]) -> dict[str, object]:
    """From click's parameters to settings and their values."""
    return {OPTIONS["--" + name.replace("_", "-")][0]: value for name, value in given.items() if value is not None and name != "config"}


def demand(settings: Settings, role: str, wanted: Mapping[str, tuple[object, str]]) -> None:
    """Everything a role cannot do without, missed at once. `wanted`: what it is -> (its value, how it is given)."""
    missing = [f"{what} ({how})" for what, (value, how) in wanted.items() if not value]
    if missing:
        raise Stop(f"`parshall {role}` needs {', '.join(missing)}.", USAGE)
    _demand_open_files(role)


def _demand_open_files(role: str) -> None:
    """As many as no connection needs; ingest asks for those when it knows how many connections it may have (worker.py)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _LEAST_OPEN_FILES:
        raise Stop(
            f"This process may have {hard} files open, and `parshall {role}` needs {_LEAST_OPEN_FILES}: raise the limit (`ulimit -n`).",
            USAGE,
        )
    if soft != resource.RLIM_INFINITY and soft < _LEAST_OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_LEAST_OPEN_FILES, hard))


def refuse_fewer_workers(folder: DataFolder, workers: int) -> None:
    """The journal of a worker that is not started would be waited for, for ever."""
    try:
        made = [int(name) for name in os.listdir(f"{folder.path}/writers") if name.isdecimal()]
    except FileNotFoundError:
        return
    if made and max(made) >= workers:
        before = max(made) + 1
        raise Stop(f"{folder.path} holds the journals of {before} workers, which may hold usage: start with --workers {before}.", REFUSED)


def take_data_folder(settings: Settings) -> tuple[DataFolder, int]:
    """The data folder and the descriptor of its lock; found to be that of these workers and tenants. A start reads the configuration
    itself, so what an earlier run had read again is forgotten."""
    from parshall.data_folder import DataFolder

    folder = DataFolder(settings.data).make()
    lock = folder.lock(f"listening on {settings.listen}", say)
    refuse_fewer_workers(folder, settings.ingest.workers)
    refuse_other_tenants(folder, settings)
    folder.forget_kept_configuration()
    return folder, lock


def refuse_other_tenants(folder: DataFolder, settings: Settings) -> None:
    from buffer.disk import RealDisk
    from parshall.known_tenants import OtherTenant, remember

    try:
        remember(folder.tenants_file, RealDisk(), settings.tenants)
    except OtherTenant as error:
        raise Stop(str(error), REFUSED) from None


def worker_orders(
    settings: Settings, folder: DataFolder, addresses: Addresses, origin: Origin | None, *, with_rater: bool = False
) -> list[tuple[Order, str]]:
    from parshall.processes import Order
    from parshall.worker import WorkerOrder

    count = settings.ingest.workers
    patience_s = settings.ingest.drain_s + WORKER_SLACK_S
    return [
        (
            Order(
                f"worker-{number}",
                "parshall.worker",
                WorkerOrder(settings, folder, number, count, addresses, origin, with_rater),
                patience_s,
            ),
            folder.control_socket(number),
        )
        for number in range(count)
    ]


def run_tree(plan: Plan, *, inherited: tuple[int, ...], on_ready: Callable[[], None]) -> None:
    import asyncio

    from parshall.supervisor import Supervisor

    async def run() -> None:
        supervisor = Supervisor(plan, inherited=inherited, on_ready=on_ready, on_stopping=lambda: say("Stopping … (once more to hurry)"))
        await supervisor.run()

    asyncio.run(run())
