"""`parshall resend`: counter records that the counter log lost are produced again from the journals.

Belongs here: the command, which records are sent. Must not know: how a journal is read, what a record says.

The same bytes under the same numbers, so the rater skips what it has, and whatever it held behind a gap follows. Only flushes that the
journal knows as acknowledged are touched: the others are their writer's own business, and it repeats them by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from parshall.errors import EXIT_CODES, FAILED, OK, UNAVAILABLE, USAGE, Stop
from parshall.roles import options, settings_given
from parshall.streams import say

if TYPE_CHECKING:
    from buffer.counter_log import CounterLog, Record
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings

HELP = f"""Produce counter records again that the counter log has lost, from the journals of this machine.

By itself it compares the log with the journals and sends all that the log does not have, rated or not, also what Kafka deleted by its
retention. --writer, --partition, --from and --to name records instead, which are sent whatever the log has. Sending again is always safe:
the rater knows each record by its number. The service may run. On the machine of each writer it sends that one's; --journal names a
journal elsewhere.

\b
Examples:
  parshall resend --config parshall.toml --dry-run
  parshall resend --config parshall.toml
  parshall resend --config parshall.toml --writer 3f0c… --partition 2 --from 117

{EXIT_CODES}"""

_AT_ONCE = 200  # records in one request to the log
_TRIES_IN_VAIN = 3  # one after the other, each with a quarter of what the one before began with

Chain = tuple[str, int]  # (writer in hex, partition)


class Wanted(NamedTuple):
    """What was named on the command line; None: any."""

    writer: str | None
    partition: int | None
    first: int | None
    last: int | None

    @property
    def anything(self) -> bool:
        return self == (None, None, None, None)

    def fits(self, chain: Chain, n: int) -> bool:
        writer, partition = chain
        return (
            self.writer in (None, writer)
            and self.partition in (None, partition)
            and (self.first is None or n >= self.first)
            and (self.last is None or n <= self.last)
        )


class InLog:
    """Which records the log has."""

    def __init__(self) -> None:
        self._numbers: dict[Chain, set[int]] = {}

    def add(self, chain: Chain, n: int) -> None:
        self._numbers.setdefault(chain, set()).add(n)

    def lacks(self, chain: Chain, n: int) -> bool:
        """Lost, or deleted by retention, perhaps before it was rated: what the log has does not tell which."""
        return n not in self._numbers.get(chain, ())


@click.command(help=HELP)
@options("--config", "--data", "--kafka")
@click.option("--journal", "journals", multiple=True, type=click.Path(), metavar="DIR", help="A journal elsewhere; repeat it for more.")
@click.option("--writer", metavar="ID", help="Only records of this writer, 32 hexadecimal digits.")
@click.option("--partition", type=click.IntRange(min=0), metavar="P", help="Only records of this partition.")
@click.option("--from", "first", type=click.IntRange(min=1), metavar="N", help="From this number on.")
@click.option("--to", "last", type=click.IntRange(min=1), metavar="N", help="Up to this number.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be sent.")
def resend(
    config: str | None,
    journals: tuple[str, ...],
    writer: str | None,
    partition: int | None,
    first: int | None,
    last: int | None,
    dry_run: bool,
    **given: object,
) -> None:
    from parshall.check import read_settings
    from parshall.data_folder import DataFolder
    from parshall.logs import configure_logs

    configure_logs("resend", level=logging.WARNING)
    settings = read_settings(config, settings_given(given), asks_redis=False)
    directories = _journals(settings.data, journals)
    if settings.kafka.bootstrap is None and not os.path.exists(f"{settings.data}/log/log.json"):
        raise Stop(f"There is no counter log in {settings.data}/log: --kafka, --config or --data says where it is.", USAGE)
    folder = None if settings.kafka.bootstrap is not None else DataFolder(settings.data)
    wanted = Wanted(writer, partition, first, last)
    sent = asyncio.run(_resend(settings, folder, directories, wanted, dry_run=dry_run))
    raise click.exceptions.Exit(_tell(sent, wanted, dry_run=dry_run))


def _journals(data: str, more: Sequence[str]) -> list[str]:
    for directory in more:
        if not os.path.isdir(directory):
            raise Stop(f"There is no journal in {directory}.", USAGE)
    from parshall.data_folder import journals_below

    found = journals_below(data, more)
    if not found:
        raise Stop(f"There is no journal below {data}: --data or --journal says where they are.", USAGE)
    return found


def _tell(sent: dict[Chain, list[int]], wanted: Wanted, *, dry_run: bool) -> int:
    for (writer, partition), numbers in sorted(sent.items()):
        click.echo(f"writer {writer}, partition {partition}: {_ranges(numbers)}")
    total = sum(map(len, sent.values()))
    if dry_run:
        click.echo(f"{total} records would be sent again.")
        return OK
    click.echo(f"{total} records sent again." if total else "Nothing to send: the log has every record that the journals keep.")
    if not total and not wanted.anything:
        say("No journal here keeps a record that was named.")
        return FAILED
    return OK


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in parts)


async def _resend(
    settings: Settings, folder: DataFolder | None, directories: Sequence[str], wanted: Wanted, *, dry_run: bool
) -> dict[Chain, list[int]]:
    from buffer.counter_log import LogUnavailable
    from parshall.writer_log import opened_log

    in_log = await _read_log(settings, folder) if wanted.anything else None
    sent: dict[Chain, list[int]] = {}
    async with opened_log(settings, folder) as log:
        for directory in directories:
            try:
                await _resend_journal(log, directory, wanted, in_log, sent, dry_run=dry_run)
            except LogUnavailable as error:
                raise Stop(
                    f"The counter log cannot be written to: {error}. Run it again: sending twice does no harm.", UNAVAILABLE
                ) from error
    return sent


async def _read_log(settings: Settings, folder: DataFolder | None) -> InLog:
    from buffer.record import NoPlace, read_place
    from parshall.whole_log import whole_log

    found = InLog()
    async with whole_log(settings, folder) as log:
        async for received in log:
            try:
                place = read_place(received.headers)
            except NoPlace:
                continue
            found.add((place.writer.hex(), place.partition), place.n)
    return found


async def _resend_journal(
    log: CounterLog, directory: str, wanted: Wanted, in_log: InLog | None, sent: dict[Chain, list[int]], *, dry_run: bool
) -> None:
    group: list[Record] = []
    for record in _acknowledged(directory):
        chain = (dict(record.headers)["writer"].decode(), record.partition)
        if in_log.lacks(chain, record.n) if in_log is not None else wanted.fits(chain, record.n):
            sent.setdefault(chain, []).append(record.n)
            group.append(record)
        if len(group) == _AT_ONCE and not dry_run:
            await _produce(log, group)
            group = []
    if group and not dry_run:
        await _produce(log, group)


async def _produce(log: CounterLog, group: Sequence[Record]) -> None:
    """Over a slow link, too: a try that fails makes the next portion smaller. Raises LogUnavailable after some tries in vain."""
    from buffer.counter_log import LogUnavailable

    in_vain = 0
    while group:
        try:
            await log.produce(group)
            return
        except LogUnavailable as error:
            in_vain = 0 if error.durable else in_vain + 1
            if in_vain == _TRIES_IN_VAIN:
                raise
            group = group[error.durable :]


def _acknowledged(directory: str) -> Iterator[Record]:
    """The records of every acknowledged flush that the journal keeps, in order; also while its writer runs."""
    from buffer.disk import RealDisk
    from buffer.journal import JournalError, read_journal
    from buffer.journal_records import FlushBegin, Flushed, FlushPart

    parts: list[Record] = []
    try:
        for record in read_journal(directory, RealDisk()):
            match record:
                case FlushBegin():
                    parts = []
                case FlushPart():
                    parts += record.records
                case Flushed():
                    yield from parts
                    parts = []
                case _:
                    pass
    except JournalError as error:
        raise Stop(str(error), FAILED) from error
    except OSError as error:
        raise Stop(f"The journal in {directory} cannot be read: {error.strerror}.", USAGE) from error
