"""`parshall archive`: moves old counter records out of PostgreSQL into files.

Belongs here: the command, how large a file is, and the order of what is done. Must not know: SQL, what a line says, how files are written.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import click

from parshall.archive_files import ArchiveWriter, lines_of
from parshall.database import dsn_given, told_tables
from parshall.errors import EXIT_CODES, FAILED, UNAVAILABLE, USAGE, Stop
from parshall.roles import options
from parshall.time_option import Time
from rater.archive import Busy, LedgerArchive, Moved, ledger_archive
from rater.archive_lines import Archived, ArchiveFailed, BadLine, line_of, read_line
from rater.postgres import DatabaseFailed

HELP = f"""Move old counter records out of PostgreSQL, into files of a folder.

PostgreSQL keeps the bytes of every counter record: they explain each number, and fill its disk before anything else does. Here they go
to files of JSON lines, compressed by gzip. Usage and charges stay as they are, and of each record its place and its hash, so that one that
comes again is still known. A file is synced and read back before anything is taken away; a command that is stopped goes on where it was.

Keep the files as long as your books: `parshall audit --archive DIR` counts with them. PostgreSQL uses the room again once it has vacuumed
the table `records`, as it does by itself.

\b
Examples:
  parshall archive /backup/parshall --older-than 90d --config parshall.toml
  zcat records-*.ndjson.gz | jq -c '[.writer, .partition, .n, .rated_at]'

{EXIT_CODES}"""

_FILE_BYTES = 64 << 20  # of lines, before they are compressed
_FILE_RECORDS = 100_000


@click.command(help=HELP)
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--older-than", required=True, type=Time("1d", "36500d"), metavar="TIME", help="Since a record was rated, as in 90d.")
@options("--config", "--data", "--postgres")
def archive(folder: str, older_than: int, config: str | None, **given: object) -> None:
    if not os.path.isdir(folder):
        raise Stop(f"There is no folder {folder}: make it, on a disk that is backed up.", USAGE)
    dsn = dsn_given("archive", config, given)

    async def run() -> int:
        async with ledger_archive(dsn) as ledger:
            return await move_old(ledger, os.path.abspath(folder), older_than)

    try:
        left = asyncio.run(run())
    except Busy:
        raise Stop("Another `parshall archive` runs on this database: let it end.", UNAVAILABLE) from None
    except DatabaseFailed as error:
        told = f"PostgreSQL cannot be used: {error}. What was told is moved; the same command goes on with the rest."
        raise Stop(told_tables(error) or told, UNAVAILABLE) from error
    except ArchiveFailed as error:
        raise Stop(f"Nothing more is moved: {error}.", FAILED) from error
    if left:
        raise Stop(f"Left in PostgreSQL: {_counted(left)} whose bytes are not what was rated. `parshall audit` names them.", FAILED)


async def move_old(ledger: LedgerArchive, folder: str, older_than_s: int) -> int:
    """How many are left because of what they are."""
    records = left = 0
    file: _File | None = None
    try:
        async for rows in ledger.due(older_than_s):
            for row in rows:
                if (made := line_of(row)) is None:
                    left += 1
                    continue
                file = file or _File(folder)
                file.add(*made)
                if file.full:
                    records += await file.move(ledger)
                    file = None
        if file is not None:
            records += await file.move(ledger)
            file = None
    finally:
        if file is not None:
            file.writer.give_up()
    click.echo(f"{_counted(records)} moved." if records else "No record that is here was rated that long ago.")
    return left


class _File:
    """One file, and what PostgreSQL keeps of its records."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.writer = ArchiveWriter(folder, f"records-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.ndjson.gz")
        self._moved: list[Moved] = []
        self._last_window_s: int | None = None

    @property
    def full(self) -> bool:
        return self.writer.bytes >= _FILE_BYTES or len(self._moved) >= _FILE_RECORDS

    def add(self, line: bytes, archived: Archived) -> None:
        self.writer.write(line)
        self._moved.append(Moved(archived.key, archived.hash, archived.tallies))
        self._last_window_s = max((one for one in (self._last_window_s, archived.last_window_s) if one is not None), default=None)

    async def move(self, ledger: LedgerArchive) -> int:
        """How many records it has."""
        sha256 = self.writer.finish()
        self._read_back(sha256)
        await ledger.move(self.writer.name, sha256, self._last_window_s, self._moved)
        click.echo(f"{self.writer.name}: {_counted(len(self._moved))}")
        return len(self._moved)

    def _read_back(self, sha256: str) -> None:
        try:
            hashes = [read_line(line).hash for line in lines_of(self._folder, self.writer.name, sha256)]
        except BadLine as error:
            raise ArchiveFailed(f"{self.writer.name} is not read back as it was written: {error}") from error
        if hashes != [moved.hash for moved in self._moved]:
            raise ArchiveFailed(f"{self.writer.name} is not read back as it was written")


def _counted(records: int) -> str:
    return "1 record" if records == 1 else f"{records:,} records"
