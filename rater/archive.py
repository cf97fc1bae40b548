"""Moving old records of the ledger to files: the part that PostgreSQL has in it.

Belongs here: which records are due, and taking away the bytes that a file has. Must not know: where files are, how they are written.

No transaction is longer than one answer or one file, so neither raters nor the vacuum wait for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from rater.archive_lines import LedgerRow, RecordRow
from rater.postgres import FAILURES, DatabaseFailed, told
from rater.statements import statements

ARCHIVE = statements("archive")
_LOCK = 0x70617273_61726368  # "parsarch": the same number in every version of the project
_ROWS_AT_ONCE = 100  # of up to 256 KiB each
_TIMEOUT_S = 600


class Busy(Exception):
    """Somebody else archives this database."""


class Moved(NamedTuple):
    """What stays of a record whose bytes are in a file."""

    key: RecordRow
    hash: str
    tallies: str | None  # JSON: as objects they would take many times its length; None: it has none


class LedgerArchive:
    """One connection, and the turn of whoever has it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def due(self, older_than_s: int) -> AsyncIterator[Sequence[LedgerRow]]:
        """In the order of their keys, some at a time; by the clock of the database."""
        before = await self._connection.fetchval(ARCHIVE["before"], older_than_s)
        last: RecordRow = (b"", 0, 0)
        while rows := await self._connection.fetch(ARCHIVE["due"], before, *last, _ROWS_AT_ONCE, timeout=_TIMEOUT_S):
            some = [LedgerRow(*row)._replace(rated_at=_iso(row["rated_at"])) for row in rows]
            last = some[-1].key
            yield some

    async def move(self, file: str, sha256: str, last_window_s: int | None, moved: Sequence[Moved]) -> None:
        """The bytes of these records are in the file from now on, and here no longer."""
        columns = zip(*[(*one.key, one.hash, one.tallies) for one in moved], strict=True)
        async with self._connection.transaction():
            archive = await self._connection.fetchval(ARCHIVE["archives_add"], file, sha256, len(moved), last_window_s)
            done = await self._connection.execute(ARCHIVE["records_move"], archive, *map(list, columns), timeout=_TIMEOUT_S)
            assert done == f"UPDATE {len(moved)}", f"{done} of {len(moved)} records, which nobody else changes"


@asynccontextmanager
async def ledger_archive(dsn: str) -> AsyncIterator[LedgerArchive]:
    """Raises Busy, DatabaseFailed; what is done with it raises DatabaseFailed, too."""
    try:
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "parshall archive"})
        try:
            if not await connection.fetchval(ARCHIVE["take_turns"], _LOCK):
                raise Busy
            await connection.execute(ARCHIVE["may_move"])  # before a file is written for nothing
            yield LedgerArchive(connection)
        finally:
            with suppress(*FAILURES):
                await connection.close(timeout=5)
    except FAILURES as error:
        raise DatabaseFailed(told(error)) from error


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
