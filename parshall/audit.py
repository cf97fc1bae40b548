"""`parshall audit`: the three equations, proved from the stores themselves; each thing that differs is named.

Belongs here: the command, and reading each store in the right order. Must not know: what agrees with what (audit_rules.py,
audit_journal.py).

Where the log begins is asked before anything: what it had lost by then need not be remembered one by one (`RatedSide.take`).
PostgreSQL is read first, then the journals, then the log to the end it had after that (and what was not remembered of PostgreSQL, but is in
one of them, is looked up there): so everything that is rated, and everything that
a journal says was flushed, must be found in what was read later, also while the service runs. The registry of writers is read after
PostgreSQL and before the journals are looked for: whoever is rated is in it, and whoever is in it has a journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from parshall.errors import EXIT_CODES, FAILED, UNAVAILABLE, USAGE, Stop
from parshall.roles import options, settings_given

if TYPE_CHECKING:
    from buffer.counter_log import Retired
    from parshall.audit_journal import JournalSide
    from parshall.audit_records import Difference, RecordKey
    from parshall.audit_rules import LogSide, RatedSide, Verdict
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings
    from rater.recount import Applied, Recount
    from rater.recount_archives import CountedArchives

HELP = f"""Prove that no event was lost or counted twice, from the journals, the counter log and PostgreSQL.

\b
  received = accepted + duplicate + rejected
  accepted = flushed + buffered
  flushed  = rated + in the log

It reads, and changes nothing; the service may run, and must where PostgreSQL is the one that `up` brings along. Give it the journals of
every writer: those below the data folder are found, others are named with --journal. A registered writer whose journal is not given makes
the audit fail: what it holds is unknown. Data folders remember their tenants; --config is for where Kafka and PostgreSQL are, and for a
folder that remembers none. Whatever differs is one line: what and where, and what to do next.

\b
Examples:
  parshall audit
  parshall audit --config parshall.toml --journal /mnt/ingest-1/writers/0
  parshall audit --archive /backup/parshall
  parshall audit --json | jq -r '.differences[].what'

{EXIT_CODES}"""

_MOST_SHOWN = 50
_READINGS = 5  # of a journal whose oldest segments go while it is read


@click.command(help=HELP)
@options("--config", "--data", "--kafka", "--postgres")
@click.option(
    "--journal", "journals", multiple=True, type=click.Path(), metavar="DIR", help="The journal of another writer; repeat it for more."
)
@click.option("--archive", "archives", type=click.Path(), metavar="DIR", help="Where the files of `parshall archive` are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(config: str | None, journals: tuple[str, ...], archives: str | None, as_json: bool, **given: object) -> None:
    from parshall.check import read_settings
    from parshall.data_folder import DataFolder
    from parshall.logs import configure_logs

    configure_logs("audit", level=logging.CRITICAL)  # whatever matters is in the answer, or is why there is none
    settings = _only_to_read(read_settings(config, settings_given(given), asks_redis=False))
    if not os.path.isdir(settings.data):
        raise Stop(f"There is no data folder {settings.data}: say with --data where it is.", USAGE)
    for directory in journals:
        if not os.path.isdir(directory):
            raise Stop(f"There is no journal in {directory}.", USAGE)
    if archives is not None and not os.path.isdir(archives):
        raise Stop(f"There is no folder {archives}: --archive says where the files of `parshall archive` are.", USAGE)
    folder = DataFolder(settings.data)
    if settings.kafka.bootstrap is None and not os.path.exists(f"{folder.log}/log.json"):
        raise Stop(f"There is no counter log in {folder.log}: --kafka, --config or --data says where it is.", USAGE)
    verdict = asyncio.run(_audit(settings, folder, [os.path.abspath(directory) for directory in journals], archives))
    click.echo(_as_json(verdict) if as_json else _as_text(verdict))
    if verdict.differences:
        raise click.exceptions.Exit(FAILED)


def _only_to_read(settings: Settings) -> Settings:
    """Whether Kafka keeps the promise is for those who write to it; and nothing is made."""
    kafka = settings.kafka.model_copy(update={"accept_weak": True, "create_topics": False})
    return settings.model_copy(update={"kafka": kafka})


async def _audit(settings: Settings, folder: DataFolder, more_journals: list[str], archives: str | None) -> Verdict:
    from parshall.audit_records import Difference
    from parshall.audit_rules import LogSide, RatedSide, compare
    from parshall.data_folder import journals_below
    from parshall.whole_log import whole_log

    async with whole_log(settings, folder) as begins:
        identity, starts = begins.identity, await begins.first_positions()
    rated, counted = await _read_rated(settings, folder, archives, RatedSide(identity, starts))
    log = LogSide(wanted=rated.wanted)
    log.writers = await _read_registry(settings, folder)
    directories = journals_below(folder.path, more_journals)
    tenants = _names(settings, folder, directories)
    journals = await asyncio.to_thread(lambda: [_read_journal(tenants, directory, rated.wanted) for directory in directories])
    await _read_log(settings, folder, log)
    elsewhere = itertools.chain(log.records, *((*journal.acknowledged, *journal.unacknowledged) for journal in journals))
    rated.hashes = await _read_hashes(settings, folder, filter(rated.is_settled, elsewhere))
    for key in rated.wanted - rated.in_archive.keys():
        lent = next((found[key] for found in (log.found, *(journal.found for journal in journals)) if key in found), None)
        if lent is not None:
            counted.lend((bytes.fromhex(key[0]), *key[1:]), lent)
    rated.differences = [Difference(*finding) for finding in counted.findings()]
    verdict = compare(journals, log, rated)
    verdict.differences.extend(await asyncio.to_thread(_counted_twice, tenants, directories))
    return verdict


# ---- each store


async def _read_rated(settings: Settings, folder: DataFolder, archives: str | None, side: RatedSide) -> tuple[RatedSide, Recount]:
    from parshall.archive_files import lines_of
    from parshall.audit_records import Stored
    from rater.recount import recount

    def add(applied: Applied) -> None:
        position = (sys.intern(applied.log), sys.intern(applied.stream), applied.next_position)
        side.take(_key(applied.row), Stored(applied.hash, applied.tallies), position)

    with _postgres(settings, folder) as dsn:
        found = await recount(dsn, add, None if archives is None else partial(lines_of, archives))
    side.missing = frozenset(_key(row) for row in found.missing)
    side.unsound = {_key(row): reason for row, reason in found.unsound.items()}
    side.parked = {_key(row): reason for row, reason in found.parked.items()}
    side.strays, side.explained = found.strays, found.explained
    side.in_archive = {_key(row): file for row, file in found.archives.lent.items()}
    side.uncounted = _told_uncounted(found.archives)
    side.held = {(writer.hex(), partition): reason for (writer, partition), reason in found.held.items()}
    return side, found


async def _read_hashes(settings: Settings, folder: DataFolder, keys: Iterable[RecordKey]) -> dict[RecordKey, str]:
    from rater.recount import hashes_of

    with _postgres(settings, folder) as dsn:
        found = await hashes_of(dsn, ((bytes.fromhex(writer), partition, n) for writer, partition, n in keys))
    return {_key(row): digest for row, digest in found.items()}


@contextlib.contextmanager
def _postgres(settings: Settings, folder: DataFolder) -> Iterator[str]:
    """Its DSN. What fails with it meanwhile ends the command."""
    from parshall.up import find_postgres
    from rater.postgres import DatabaseFailed

    embedded, settings = find_postgres(settings, folder)
    assert settings.postgres.dsn is not None
    try:
        yield settings.postgres.dsn
    except DatabaseFailed as error:
        raise Stop(_why_no_postgres(error, folder, embedded=embedded is not None), UNAVAILABLE) from error


def _told_uncounted(archives: CountedArchives) -> list[str]:
    if archives.unread_to_s < 0 or not archives.unread:
        return []
    one = len(archives.unread) == 1
    has = "1 archive has records: name its folder" if one else f"{len(archives.unread)} archives have records: name their folder"
    reach = datetime.fromtimestamp(archives.unread_to_s, UTC)
    return [f"usage of windows up to {reach:%Y-%m-%dT%H:%M}Z, of which {has} with --archive"]


def _key(row: tuple[bytes, int, int]) -> RecordKey:
    writer, partition, n = row
    return writer.hex(), partition, n


def _why_no_postgres(error: Exception, folder: DataFolder, *, embedded: bool) -> str:
    from parshall.database import told_tables

    if (told := told_tables(error)) is not None:
        return told
    if not embedded:
        return f"PostgreSQL cannot be read: {error}. --postgres or --config says which one it is."
    if isinstance(error.__cause__, OSError):
        return f"PostgreSQL runs only while `parshall up` does: start that on {folder.path}, and audit again while it runs."
    return f"PostgreSQL cannot be read: {error}."


def _names(settings: Settings, folder: DataFolder, directories: list[str]) -> dict[int, str]:
    """Of every tenant that a journal may know by its number: as the folders remember them, each beside its journals, and as the
    configuration has them, if there is one."""
    from buffer.disk import RealDisk
    from parshall.known_tenants import OtherTenant, known_with, read
    from parshall.settings import TenantSettings

    numbers = {tenant.name: tenant.number for tenant in settings.tenants}
    files = [folder.tenants_file, *(f"{directory}/../../{os.path.basename(folder.tenants_file)}" for directory in directories)]
    try:
        for file in dict.fromkeys(map(os.path.realpath, files)):
            served = [TenantSettings(name=name, number=number) for name, number in numbers.items()]
            numbers = known_with(read(file, RealDisk()), served, file)
    except OtherTenant as error:
        raise Stop(f"Who the tenants are cannot be told: {error}", USAGE) from error
    if directories and not numbers:
        file = folder.tenants_file
        raise Stop(f"Nothing says what the tenants are called, as there is no {file}: give the configuration with --config.", USAGE)
    return {number: name for name, number in numbers.items()}


def _read_journal(tenants: Mapping[int, str], directory: str, wanted: frozenset[RecordKey]) -> JournalSide:
    from buffer.disk import RealDisk
    from buffer.journal import JournalError, read_journal
    from buffer.journal_segments import kept_segments
    from parshall.audit_journal import JournalSide

    disk = RealDisk()
    try:
        for _ in range(_READINGS):
            first = kept_segments(directory, disk)[:1]
            side = JournalSide(tenants, directory, wanted).read(read_journal(directory, disk))
            if kept_segments(directory, disk)[:1] == first:
                return side  # else a segment may have gone before its turn came, which would look like a loss
    except JournalError as error:
        raise Stop(str(error), FAILED) from error
    except OSError as error:
        raise Stop(f"The journal in {directory} cannot be read: {error.strerror}.", USAGE) from error
    raise Stop(f"The journal in {directory} changes faster than it can be read: audit again when less is sent.", UNAVAILABLE)


def _counted_twice(tenants: Mapping[int, str], directories: Iterable[str]) -> list[Difference]:
    """What two journals, or one, granted twice."""
    from buffer.disk import RealDisk
    from buffer.journal import JournalError
    from buffer.journal_segments import read_outlines
    from parshall.audit_digests import granted_twice

    disk = RealDisk()
    each_once = {os.path.realpath(directory): directory for directory in directories}.values()
    journals = [(directory, partial(read_outlines, directory, disk)) for directory in each_once]
    size = sum(map(_size_of, each_once))
    try:
        return list(granted_twice(journals, size, lambda number: tenants.get(number, str(number))))
    except JournalError as error:
        raise Stop(str(error), FAILED) from error


def _size_of(directory: str) -> int:
    """About: segments go while it is looked at."""
    size = 0
    for entry in os.scandir(directory):
        with contextlib.suppress(FileNotFoundError):
            size += entry.stat().st_size
    return size


async def _read_registry(settings: Settings, folder: DataFolder) -> dict[str, Retired | None]:
    from buffer.counter_log import LogUnavailable, UnfitLog
    from parshall.wiring import make_counter_log

    log = make_counter_log(settings, folder)
    try:
        await log.open()
        return {writer.hex(): retired for writer, retired in (await log.registry()).writers.items()}
    except LogUnavailable as error:
        raise Stop(f"The counter log cannot be read: {error}.", UNAVAILABLE) from error
    except UnfitLog as error:
        raise Stop(f"The counter log cannot be read: {error}.", FAILED) from error
    finally:
        await log.close()


async def _read_log(settings: Settings, folder: DataFolder, side: LogSide) -> None:
    from buffer.record import NoPlace
    from parshall.whole_log import whole_log

    async with whole_log(settings, folder) as log:
        side.identity = log.identity
        async for stream, next_position, headers, value in log:
            try:
                side.take(headers, value)
            except NoPlace as error:
                side.strays[stream, next_position] = str(error)
        side.starts = log.starts


# ---- telling


def _as_text(verdict: Verdict) -> str:
    from parshall.audit_rules import TenantRow

    table = [TenantRow._fields, *[tuple(map(str, row)) for row in verdict.rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(TenantRow._fields))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    if verdict.losses:
        lines += ["", "Declared lost, with the disk it was on:", *(f"- {loss}" for loss in verdict.losses)]
    if verdict.uncounted:
        lines += ["", "Not counted again:", *(f"- {what}" for what in verdict.uncounted)]
    if not verdict.differences:
        return "\n".join([*lines, "", "The three equations hold: nothing is lost, nothing is counted twice."])
    counted = "1 difference" if len(verdict.differences) == 1 else f"{len(verdict.differences)} differences"
    lines += ["", f"{counted}; the first ones explain most:" if len(verdict.differences) > 1 else f"{counted}:"]
    lines += [f"- {difference.what}. Next: {difference.then}." for difference in verdict.differences[:_MOST_SHOWN]]
    if len(verdict.differences) > _MOST_SHOWN:
        lines.append(f"- … and {len(verdict.differences) - _MOST_SHOWN} more (--json has them all)")
    return "\n".join(lines)


def _as_json(verdict: Verdict) -> str:
    import json

    answer = {
        "agrees": not verdict.differences,
        "losses": verdict.losses,
        "not_counted": verdict.uncounted,
        "tenants": [row._asdict() for row in verdict.rows],
        "differences": [{"what": difference.what, "next": difference.then} for difference in verdict.differences],
    }
    return json.dumps(answer, indent=2, ensure_ascii=False)
