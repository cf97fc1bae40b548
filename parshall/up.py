"""`parshall up`: everything in one process tree, each part ours or a real service.

Belongs here: the options, what is checked before anything starts, the demo tenant. Must not know: how processes are kept (supervisor.py).
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from parshall.errors import EXIT_CODES, UNAVAILABLE, USAGE, Stop
from parshall.roles import demand, options, run_tree, settings_given, take_data_folder, worker_orders
from parshall.streams import announce

if TYPE_CHECKING:
    from parshall.data_folder import DataFolder
    from parshall.embedded_postgres import EmbeddedPostgres
    from parshall.settings import Settings

DEMO_TENANT = "demo"
DEMO_KEY = "demo-key"
INTERVAL_MS = 1000
_RECOVERY_S = 60.0  # how long a PostgreSQL may need after a crash

HELP = f"""Run all of Parshall in one process tree, with nothing else installed.

Without --config there is a tenant "demo" with the key "demo-key", on this machine only. --redis, --kafka and --postgres put real
services in the place of what `up` brings along, alone or together.

\b
Examples:
  parshall up
  parshall up --listen 127.0.0.1:9000 --data /var/lib/parshall
  parshall up --config parshall.toml --redis redis://127.0.0.1:6379 --workers 2

Ctrl-C finishes what is under way and stops; the next start goes on from there, also after a crash.

{EXIT_CODES}"""


@click.command(help=HELP)
@options("--listen", "--admin-listen", "--data", "--workers", "--config", "--redis", "--kafka", "--postgres")
def up(config: str | None, **given: object) -> None:
    from parshall.check import read_settings
    from parshall.logs import configure_logs
    from parshall.port import reserved
    from parshall.reload import OF_ALL, origin_of
    from parshall.welcome import welcome

    defaults: dict[str, object] = {"flush.interval_ms": INTERVAL_MS, "kafka.accept_weak": True, "kafka.create_topics": True}
    if config is None:
        with resources.as_file(resources.files("parshall") / "demo.toml") as demo:
            settings = with_demo_key(read_settings(str(demo), settings_given(given), defaults=defaults))
    else:
        settings = read_settings(config, settings_given(given), defaults=defaults)
    demand(settings, "up", {"a meter": (settings.meters, "[[meters]]"), "a tenant": (settings.tenants, "[[tenants]]")})
    configure_logs("up")
    refuse_usage_without_its_log(settings)
    folder, lock = take_data_folder(settings)
    origin = origin_of(config, settings_given(given), defaults, OF_ALL, settings)
    with reserved(settings) as addresses:
        postgres, settings = find_postgres(settings, folder)
        said = welcome(settings, folder.path, addresses, as_called(sys.argv[0]), os.environ, demo=config is None)
        _run(settings, folder, addresses, postgres, origin, lock, lambda: announce(said))


def _run(settings, folder, addresses, postgres, origin, lock, on_ready) -> None:  # type: ignore[no-untyped-def]
    from parshall.processes import Order
    from parshall.rater_process import RaterOrder
    from parshall.supervisor import Plan

    plan = Plan(
        workers=worker_orders(settings, folder, addresses, origin, with_rater=True),
        rater=Order("rater", "parshall.rater_process", RaterOrder(settings, folder, None, origin), patience_s=20),
        postgres=postgres,
        prepare=lambda: bring_schema_up(settings),
        reloads=origin is not None,
    )
    run_tree(plan, inherited=(lock,), on_ready=on_ready)


def as_called(program: str) -> str:
    """What a person types to call this program again: its name where the shell finds it, else where it is."""
    path = Path(program)
    if path.name == "__main__.py":
        return "python -m parshall"
    found = shutil.which(path.name)
    return path.name if found is not None and path.exists() and os.path.samefile(found, path) else shlex.quote(os.path.relpath(path))


def with_demo_key(settings: Settings) -> Settings:
    """Everybody knows this key, so it opens nothing to other machines."""
    from ingest.auth import hash_key
    from parshall.settings import KeySettings

    open_to_others = [
        address.text for address in (settings.address, settings.admin_address) if address is not None and not address.loopback
    ]
    if open_to_others:
        raise Stop(
            f"Without --config everybody knows the key ({DEMO_KEY}), so Parshall would be open to all that reach {open_to_others[0]}: "
            f"give --config FILE with keys of its own (`parshall key`), or listen on 127.0.0.1.",
            USAGE,
        )
    key = KeySettings(tenant=DEMO_TENANT, hash=hash_key(DEMO_KEY), scopes=("ingest", "read", "admin"))
    return settings.model_copy(update={"keys": (*settings.keys, key)})


def find_postgres(settings: Settings, folder: DataFolder) -> tuple[EmbeddedPostgres | None, Settings]:
    """The one that was named, or one of our own; the settings then name it."""
    from parshall.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError

    if settings.postgres.dsn is not None:
        return None, settings
    try:
        postgres = EmbeddedPostgres(folder.postgres, folder.postgres_sockets)
    except EmbeddedPostgresError as error:
        raise Stop(str(error), UNAVAILABLE) from error
    return postgres, settings.model_copy(update={"postgres": settings.postgres.model_copy(update={"dsn": postgres.dsn})})


def refuse_usage_without_its_log(settings: Settings) -> None:
    """Before the folders are made: the log's comes before PostgreSQL's, so where only that one is there, somebody took the other away."""
    from parshall.data_folder import DataFolder
    from parshall.errors import REFUSED

    folder = DataFolder(settings.data)
    ours = settings.kafka.bootstrap is None and settings.postgres.dsn is None
    if ours and os.path.isdir(folder.postgres) and not os.path.isdir(folder.log):
        raise Stop(
            f"{folder.path} has usage in {folder.postgres}, but the counter log that it came from, {folder.log}, is gone, and with it "
            "which events were counted: they could be counted twice. Put it back, or choose another --data.",
            REFUSED,
        )


async def bring_schema_up(settings: Settings) -> None:
    from parshall.errors import REFUSED
    from rater.migrate import DatabaseStarts, SchemaTooNew, migrate
    from rater.postgres import DatabaseFailed

    assert settings.postgres.dsn is not None
    until_s = time.monotonic() + _RECOVERY_S
    while True:
        try:
            return await migrate(settings.postgres.dsn)
        except SchemaTooNew as error:
            raise Stop(f"PostgreSQL: {error}.", REFUSED) from error
        except DatabaseStarts as error:
            if time.monotonic() > until_s:
                raise Stop(f"PostgreSQL does not come up: {error}; its own log says why.", UNAVAILABLE) from error
            await asyncio.sleep(0.2)
        except DatabaseFailed as error:
            raise Stop(f"PostgreSQL cannot be used: {error}. postgres.dsn (or --postgres) says which one it is.", UNAVAILABLE) from error
