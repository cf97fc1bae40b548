"""`parshall writer list | drain | lost`: writers that come and go.

Belongs here: options and what is told. Must not know: how a journal is drained (writer_drain.py), what is lost with one (writer_loss.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from parshall.errors import EXIT_CODES, USAGE, Stop
from parshall.roles import demand, options, settings_given
from parshall.streams import say

if TYPE_CHECKING:
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings

HELP = f"""See the writers that share the claims, and finish those that will not come back.

A writer is a journal directory (DATA/writers/N of a `parshall ingest`). Each one registered is waited for whenever Redis has lost data,
so one that is gone for good must be drained, from any machine that has its disk, or declared lost when the disk is gone too.

\b
Examples:
  parshall writer list --config parshall.toml
  parshall writer drain /mnt/ingest-2/writers/0 --config parshall.toml
  parshall writer lost 3f0c…  --config parshall.toml

{EXIT_CODES}"""


_CLAIMS_ARE_GONE = (
    "`parshall writer lost` needs the Redis that has the claims (--redis). Where `up` ran without one, they went with the journal, and "
    "nobody can tell any more which events were counted: that data folder takes no events any more. What was flushed can be read and "
    "audited; new events need another --data."
)


@click.group(help=HELP)
def writer() -> None:
    pass


@writer.command("list", help="Every writer ever registered, and where it stands.")
@options("--config", "--data", "--redis", "--kafka")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_writers(config: str | None, as_json: bool, **given: object) -> None:
    from parshall.writer_list import rows

    settings = _settings(config, given, "list", redis=False)
    found = asyncio.run(rows(settings, _folder(settings)))
    click.echo(json.dumps([row._asdict() for row in found], indent=2) if as_json else _table([row._asdict() for row in found]))


@writer.command(
    help="Finish the journal in DIR, whose process will not return: close it, claim what it holds again where Redis is new, flush it, "
    "and retire the writer once nothing in it is needed any more. Safe to interrupt and to repeat; it says when to run it again."
)
@click.argument("directory", metavar="DIR", type=click.Path())
@options("--config", "--data", "--redis", "--kafka")
def drain(directory: str, config: str | None, **given: object) -> None:
    from buffer.journal_segments import segment_firsts
    from parshall.writer_drain import drain_journal

    settings = _settings(config, given, "drain", redis=True)
    try:
        if not segment_firsts(os.listdir(directory)):
            raise Stop(f"There is no journal in {directory}: name the directory that holds the .journal files, as DATA/writers/0.", USAGE)
    except OSError as error:
        raise Stop(f"There is no journal in {directory}: {error.strerror}.", USAGE) from error
    told = asyncio.run(drain_journal(settings, _folder(settings), os.path.abspath(directory), say))
    click.echo(told.sentence)
    raise click.exceptions.Exit(told.code)


@writer.command(
    help="The disk of writer ID is gone. Says exactly what is lost or in doubt; with --i-accept-loss it also ends the writer, so that the "
    "others no longer wait for it, and writes the loss down where `parshall audit` finds it."
)
@click.argument("writer_id", metavar="ID")
@click.option("--i-accept-loss", "accept", is_flag=True, help="Do it: what is lost stays lost.")
@click.option(
    "--dead-since",
    metavar="TIME",
    callback=lambda _context, _option, text: _moment_us(text),
    help="Since when it has certainly not run, as in 2026-11-28T09:30:00Z. It may have counted events of until then, so where claims have "
    "to be made again without it, those are refused. [default: now]",
)
@options("--config", "--data", "--redis", "--kafka")
def lost(writer_id: str, accept: bool, dead_since: int | None, config: str | None, **given: object) -> None:
    from parshall.writer_loss import declare_lost

    settings = _settings(config, given, "lost", redis=False)
    if not settings.redis.urls:
        raise Stop(_CLAIMS_ARE_GONE, USAGE)
    try:
        writer = bytes.fromhex(writer_id)
    except ValueError:
        writer = b""
    if len(writer) != 16:
        raise Stop(f"{writer_id} is not the id of a writer, 32 hexadecimal digits: `parshall writer list` shows them.", USAGE)
    for line in asyncio.run(declare_lost(settings, _folder(settings), writer, dead_since_us=dead_since, accept=accept, say=say)):
        click.echo(line)


def _moment_us(text: str | None) -> int | None:
    if text is None:
        return None
    from datetime import UTC, datetime, timedelta

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(f"{text!r} is not a time with an offset as in 2026-11-28T09:30:00Z")
    if moment > datetime.now(UTC):
        raise click.BadParameter(f"{text} is not over yet")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _settings(config: str | None, given: Mapping[str, Any], command: str, *, redis: bool) -> Settings:
    from parshall.check import read_settings
    from parshall.logs import configure_logs

    configure_logs(f"writer {command}", level=logging.WARNING)
    settings = read_settings(config, settings_given(given))
    if redis:
        demand(settings, f"writer {command}", {"Redis": (settings.redis.url, "--redis")})
    return settings


def _folder(settings: Settings) -> DataFolder | None:
    """Only the local log lies in it."""
    from parshall.data_folder import DataFolder

    if settings.kafka.bootstrap is not None:
        return None
    if not os.path.exists(f"{settings.data}/log/log.json"):
        raise Stop(f"There is no counter log in {settings.data}/log: --kafka, --config or --data says where it is.", USAGE)
    return DataFolder(settings.data)


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No writer is registered."
    lines = [[name.replace("_", " ") for name in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(value: object) -> str:
    return "-" if value is None else {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
