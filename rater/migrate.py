"""Bringing the schema up to date, by Alembic: numbered steps, each run once.

Belongs here: the connection, the lock and the transaction of a migration. Must not know: what the tables mean.

All steps and the note of what ran are one transaction, begun with an advisory lock: of two processes that start at once the second waits
and finds nothing to do; a process that is killed half-way leaves nothing behind, no lock either. A step that changes a table which somebody
reads for long (a dump, an audit) lets go at once and tries again later: raters that run would wait behind it. Why Alembic:
docs/decisions/0003-the-schema-is-migrated-by-alembic.md.
"""

from __future__ import annotations

import asyncio
import logging
from importlib import resources
from pathlib import Path

import asyncpg
from alembic import command, op
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from rater.postgres import FAILURES, DatabaseFailed, told

log = logging.getLogger(__name__)

_LOCK = 0x7061727368616C6C  # "parshall": the same number in every version of the project
_WAIT_MS = 1000  # for a table, with everybody else behind
_PAUSE_S = 5


async def migrate(dsn: str) -> None:
    """Run every step that this database has not seen.

    Raises SchemaTooNew when it has seen more than this version knows, DatabaseFailed when it cannot be reached: try again.
    """
    while True:
        try:
            return await _migrate(dsn)
        except _InUse as error:
            log.warning("the schema is brought up to date once its tables are not in use (a dump, an audit): %s", error)
            await asyncio.sleep(_PAUSE_S)


class _InUse(DatabaseFailed):
    """Somebody has used a table for longer than others should wait."""


async def _migrate(dsn: str) -> None:
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(dsn), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.execute(text(f"SET LOCAL lock_timeout = {_WAIT_MS}"))
            await connection.run_sync(_upgrade)
    except (SQLAlchemyError, *FAILURES) as error:
        said = _said_by_the_server(error)
        kinds: dict[type[BaseException], type[DatabaseFailed]]
        kinds = {asyncpg.CannotConnectNowError: DatabaseStarts, asyncpg.LockNotAvailableError: _InUse}
        raise kinds.get(type(said), DatabaseFailed)(told(said)) from error
    finally:
        await engine.dispose()


def _said_by_the_server(error: BaseException) -> BaseException:
    """SQLAlchemy, and its adapter of asyncpg, put names of classes and links to their own pages around it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


class DatabaseStarts(DatabaseFailed):
    """It is being started, recovers, or is being stopped: it may soon be there."""


class SchemaTooNew(Exception):
    """The database was used by a newer version of Parshall. The message is one sentence for the operator."""


def run_sql(name: str) -> None:
    """Called by a step: a file of this package's migrations, which may hold many statements."""
    statements = _folder().joinpath(name).read_text(encoding="utf-8")
    connection = op.get_bind().connection.dbapi_connection
    assert connection is not None
    connection.run_async(lambda driver: driver.execute(statements))


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_folder()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    _refuse_newer(connection, config)
    command.upgrade(config, "head")


def _refuse_newer(connection: Connection, config: Config) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    seen = MigrationContext.configure(connection, opts={"version_table": "schema_steps"}).get_current_heads()
    if unknown := set(seen) - known:
        raise SchemaTooNew(
            f"the database has schema {', '.join(unknown)}, this version of Parshall knows up to {max(known)}: use a newer version"
        )


def _folder() -> Path:
    with resources.as_file(resources.files("rater.migrations")) as folder:
        return folder
