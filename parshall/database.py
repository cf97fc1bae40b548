"""Which PostgreSQL a command asks: the one that is named, or the one that `parshall up` runs in its data folder.

Must not know: what is asked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from parshall.errors import USAGE, Stop
from parshall.roles import settings_given


def told_tables(error: Exception) -> str | None:
    """What a person is told whose database is another one, or of an older version. `error`: a DatabaseFailed."""
    from asyncpg.exceptions import UndefinedColumnError, UndefinedTableError

    if isinstance(error.__cause__, UndefinedTableError):
        return "PostgreSQL has no tables of Parshall: --postgres or --config says which database is the right one."
    if isinstance(error.__cause__, UndefinedColumnError):
        return "PostgreSQL has the tables of an older Parshall: a rater of this version that starts brings them up to date."
    return None


def dsn_given(command: str, config: str | None, given: Mapping[str, Any]) -> str:
    """`given`: the command's options --data and --postgres. Raises Stop."""
    from parshall.check import read_settings
    from parshall.data_folder import DataFolder
    from parshall.logs import configure_logs
    from parshall.up import find_postgres

    configure_logs(command)
    settings = read_settings(config, settings_given(given), asks_redis=False)
    if settings.postgres.dsn is not None:
        return settings.postgres.dsn
    if not os.path.isdir(f"{settings.data}/postgres"):
        raise Stop(f"There is no PostgreSQL in {settings.data}: --postgres, --config or --data says where it is.", USAGE)
    folder = DataFolder(settings.data)
    if not os.path.exists(f"{folder.postgres_sockets}/.s.PGSQL.5432"):
        raise Stop(f"The PostgreSQL in {settings.data} does not run: start `parshall up` there, or say with --postgres which one.", USAGE)
    dsn = find_postgres(settings, folder)[1].postgres.dsn
    assert dsn is not None
    return dsn
