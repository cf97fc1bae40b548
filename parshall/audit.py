"""`parshall audit`: the three equations, proved from the stores themselves; each thing that differs is named.

Belongs here: the command, and reading each store in the right order. Must not know: what agrees with what (audit_rules.py).

PostgreSQL is read first, then the journals, then the log to the end it had after that: so everything that is rated, and everything that
a journal says was flushed, must be found in what was read later, also while the service runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click

from parshall.errors import EXIT_CODES, FAILED, UNAVAILABLE, USAGE, Stop
from parshall.roles import options, settings_given

if TYPE_CHECKING:
    from parshall.audit_rules import JournalSide, LogSide, RatedSide, Verdict
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings

HELP = f"""Prove that no event was lost or counted twice, from the journals, the counter log and PostgreSQL.

\b
  received = accepted + duplicate + rejected
  accepted = flushed + buffered
  flushed  = rated + in the log

It reads, and changes nothing; the service may run. Give it the journals of every writer: those below the data folder are found, others
are named with --journal. A registered writer whose journal is not given makes the audit fail: what it holds is unknown.

\b
Examples:
  parshall audit
  parshall audit --config parshall.toml --journal /mnt/ingest-1/writers/0

{EXIT_CODES}"""

_MOST_SHOWN = 50
_QUIET_S = 30.0  # a log that gives nothing for so long although it has more is unavailable


@click.command(help=HELP)
@options("--config", "--data", "--kafka", "--postgres")
@click.option(
    "--journal", "journals", multiple=True, type=click.Path(), metavar="DIR", help="The journal of another writer; repeat it for more."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(config: str | None, journals: tuple[str, ...], as_json: bool, **given: object) -> None:
    from parshall.data_folder import DataFolder
    from parshall.logs import configure_logs

    configure_logs("audit")
    settings = _read_settings(config, given)
    if not os.path.isdir(settings.data):
        raise Stop(f"There is no data folder {settings.data}: say with --data where it is.", USAGE)
    folder = DataFolder(settings.data)
    verdict = asyncio.run(_audit(settings, folder, _journals(folder, journals)))
    click.echo(_as_json(verdict) if as_json else _as_text(verdict))
    if verdict.differences:
        raise click.exceptions.Exit(FAILED)


def _read_settings(config: str | None, given: Mapping[str, object]) -> Settings:
    from importlib import resources

    from parshall.check import read_settings

    if config is not None:
        return read_settings(config, settings_given(given), defaults={})
    with resources.as_file(resources.files("parshall") / "demo.toml") as demo:
        return read_settings(str(demo), settings_given(given), defaults={"kafka.accept_weak": True})


def _journals(folder: DataFolder, more: Iterable[str]) -> list[str]:
    below = f"{folder.path}/writers"
    mine = [f"{below}/{name}" for name in sorted(os.listdir(below))] if os.path.isdir(below) else []
    found = [*mine, *map(os.path.abspath, more)]
    for directory in found:
        if not os.path.isdir(directory):
            raise Stop(f"There is no journal in {directory}.", USAGE)
    return found


async def _audit(settings: Settings, folder: DataFolder, directories: list[str]) -> Verdict:
    from parshall.audit_rules import compare

    rated = await _read_rated(settings, folder)
    journals = await asyncio.to_thread(_read_journals, settings, directories)
    log = await _read_log(settings, folder)
    return compare(journals, log, rated)


# ---- each store


async def _read_rated(settings: Settings, folder: DataFolder) -> RatedSide:
    from parshall.audit_rules import RatedSide, stored
    from parshall.up import find_postgres
    from rater.postgres import DatabaseFailed
    from rater.recount import LedgerRecord, recount

    embedded, settings = find_postgres(settings, folder)
    assert settings.postgres.dsn is not None
    side = RatedSide()

    def add(record: LedgerRecord) -> None:
        key, kept, _ = stored(record.headers, record.value)
        side.records[key] = kept

    try:
        found = await recount(settings.postgres.dsn, add)
    except DatabaseFailed as error:
        where = "start `parshall up` on this data folder, whose PostgreSQL runs with it" if embedded else "--postgres says which one it is"
        raise Stop(f"PostgreSQL cannot be read: {error}; {where}.", UNAVAILABLE) from error
    side.parked = {(writer.hex(), partition, n): reason for (writer, partition, n), reason in found.parked.items()}
    side.differences = found.differences
    return side


def _read_journals(settings: Settings, directories: list[str]) -> list[JournalSide]:
    from buffer.disk import RealDisk
    from buffer.journal import JournalError, read_journal
    from parshall.audit_rules import JournalSide

    tenants = {tenant.number: tenant.name for tenant in settings.tenants}
    sides = []
    for directory in directories:
        try:
            sides.append(JournalSide(tenants).read(read_journal(directory, RealDisk())))
        except JournalError as error:
            raise Stop(str(error), FAILED) from error
        except OSError as error:
            raise Stop(f"The journal in {directory} cannot be read: {error.strerror}.", USAGE) from error
    return sides


async def _read_log(settings: Settings, folder: DataFolder) -> LogSide:
    from parshall.audit_rules import LogSide
    from rater.source import SourceUnavailable

    side = LogSide()
    try:
        side.writers = await _read_registry(settings, folder)
        await _read_records(settings, folder, side)
    except SourceUnavailable as error:
        raise Stop(f"The counter log cannot be read: {error}.", UNAVAILABLE) from error
    return side


async def _read_registry(settings: Settings, folder: DataFolder) -> frozenset[str]:
    from buffer.counter_log import LogUnavailable, UnfitLog
    from parshall.wiring import make_counter_log

    log = make_counter_log(settings, folder)
    try:
        await log.open()
        writers = await log.writers()
    except (LogUnavailable, UnfitLog) as error:
        raise Stop(f"The counter log cannot be read: {error}", UNAVAILABLE) from error
    finally:
        await log.close()
    return frozenset(writer.hex() for writer, retired in writers.items() if retired is None)


async def _read_records(settings: Settings, folder: DataFolder, side: LogSide) -> None:
    """From the first record to the end that the log has now."""
    from buffer.record import NoPlace, Undecodable
    from parshall.audit_rules import stored
    from parshall.wiring import make_source

    source = make_source(settings, folder, group=f"parshall-audit-{os.urandom(8).hex()}")
    try:
        await source.open(_from_the_start)
        left = {stream: end for stream, end in (await source.ends()).items() if end > 0}
        while left:
            received = await source.poll(1000, _QUIET_S)
            if not received:
                return  # what is left was deleted by the log's retention, or never holds a record
            for stream, next_position, headers, value in received:
                try:
                    key, record, _ = stored(headers, value)
                except (NoPlace, Undecodable) as error:
                    side.differences.append(f"a record in the log, in {stream} before position {next_position}, cannot be read: {error}")
                else:
                    side.add(key, record)
                if next_position >= left.get(stream, next_position + 1):
                    del left[stream]
    finally:
        await source.close()


async def _from_the_start(_streams: Iterable[str]) -> dict[str, int]:
    return {}


# ---- telling


def _as_text(verdict: Verdict) -> str:
    from parshall.audit_rules import TenantRow

    table = [TenantRow._fields, *[tuple(map(str, row)) for row in verdict.rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(TenantRow._fields))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    if not verdict.differences:
        return "\n".join([*lines, "", "The three equations hold: nothing is lost, nothing is counted twice."])
    lines += ["", f"{len(verdict.differences)} differences:", *[f"- {difference}" for difference in verdict.differences[:_MOST_SHOWN]]]
    if len(verdict.differences) > _MOST_SHOWN:
        lines.append(f"- … and {len(verdict.differences) - _MOST_SHOWN} more (--json has them all)")
    return "\n".join(lines)


def _as_json(verdict: Verdict) -> str:
    import json

    return json.dumps({"tenants": [row._asdict() for row in verdict.rows], "differences": verdict.differences}, indent=2)
