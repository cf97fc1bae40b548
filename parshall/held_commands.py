"""`parshall held list | show | release`: usage that is not rated because a record is missing, cannot be read, or contradicts another.

Belongs here: the commands, and the operator's next step for each case. Must not know: SQL, how records are rated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from parshall.database import dsn_given
from parshall.errors import EXIT_CODES, FAILED, UNAVAILABLE, USAGE, Stop
from parshall.roles import options
from rater.chain import BEHIND_A_FORK
from rater.changed_meter import is_why

if TYPE_CHECKING:
    import asyncpg

    from rater.postgres import Ledger, Released
    from rater.query import Held, Stray

HELP = f"""See what the rater could not rate, and go on.

A record that cannot be applied is parked with its bytes and holds its writer in its partition, nobody else. What is missing is applied by
itself as soon as it can be: when the record that has to come first arrives, or when a newer version of Parshall can read it. A record that
counts another kind of meter than the records before it, under the same name, never can be.

Two things need a person's word, `release`. Where two journals ran under one writer id, rating goes on with the record that was rated first,
or with --record where neither was; what came behind it is sent again from the right journal. A record without a place is no counter record:
--record alone leaves it out.

\b
Examples:
  parshall held list --config parshall.toml
  parshall held show 17 --config parshall.toml
  parshall held release --writer 3f0c… --partition 2 --config parshall.toml
  parshall held release --record 17 --config parshall.toml

{EXIT_CODES}"""

T = TypeVar("T")


class Line(NamedTuple):
    """What is told of one writer in one partition, or of one record whose place is not known."""

    writer: str | None
    partition: int | None
    rated_up_to: int | None
    waiting: int
    since: str | None
    record: int | None  # for `show`
    why: str
    next: str


def line_of(held: Held) -> Line:
    writer = held.writer.hex()
    since = None if held.since is None else held.since.isoformat(timespec="seconds")
    why = held.held or held.reason or "unknown"
    return Line(writer, held.partition, held.last_n, held.waiting, since, held.id, why, next_step(held))


def next_step(held: Held) -> str:
    """One sentence."""
    place = f"--writer {held.writer.hex()} --partition {held.partition}"
    due = held.last_n + 1
    if held.held is not None:
        return (
            f"two journals ran under one writer id: find out which is the copy and stop it; then `parshall held release {place}` goes on "
            "with the record that was rated, or with one that you choose where none was, and says what to send again from the right journal"
        )
    if held.sound is False or held.n is None or held.n > due:
        last = due if held.n is None or held.n <= due else held.n - 1
        if held.sound is False and held.last_unsound is not None:
            last = max(last, held.last_unsound)
        again = f"run `parshall resend {place} --from {due} --to {last}` where that writer's journal is"
        if held.reason != BEHIND_A_FORK:
            return again
        parked = "takes up as it is parked (--take-up) or gives up (--give-up)"
        return f"{again}; what it does not have any more `parshall held release {place}` {parked}"
    if held.reason is not None and is_why(held.reason):
        return _after_changed_meter(held)
    return f"update Parshall and start the rater again, which tries it anew; `parshall held show {held.id}` shows the record"


def _after_changed_meter(held: Held) -> str:
    """Another writer id, since what this one counts in the partition stands behind the record."""
    return (
        f"this record cannot be rated, by no version: writer {held.writer.hex()} counted it, and what it counts here waits behind it; stop "
        "that writer, finish its journal with `parshall writer drain`, and start it with an empty data folder and the meter as it was, or "
        "under another name: what it counts from then on is rated; what is held stays in usage.counters and in its journal, and as_of "
        f"stands still; `parshall held show {held.id}` shows the record"
    )


def line_of_stray(stray: Stray) -> Line:
    why = f"in {stray.stream} before position {stray.next_position}: {stray.reason}"
    step = (
        f"find out what else produces into this topic; `parshall held show {stray.id}` shows the record, and "
        f"`parshall held release --record {stray.id}` leaves it out, so that as_of goes on"
    )
    return Line(None, None, None, 1, stray.parked_at.isoformat(timespec="seconds"), stray.id, why, step)


@click.group(help=HELP)
def held() -> None:
    pass


@held.command("list", help="What is held, why, and what to do. Exits with 1 when anything is.")
@options("--config", "--data", "--postgres")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_held(config: str | None, as_json: bool, **given: object) -> None:
    from rater import query

    async def read(pool: asyncpg.Pool) -> list[Line]:
        return [*map(line_of, await query.held(pool)), *map(line_of_stray, await query.strays(pool))]

    lines = _with_database(config, given, read)
    click.echo(json.dumps([line._asdict() for line in lines], indent=2, ensure_ascii=False) if as_json else as_text(lines))
    if lines:
        raise click.exceptions.Exit(FAILED)


def as_text(lines: Sequence[Line]) -> str:
    if not lines:
        return "Nothing is held: every record that came is rated."
    told = []
    for line in lines:
        where = "a record without a place" if line.writer is None else f"writer {line.writer}, partition {line.partition}"
        rated = "" if line.rated_up_to is None else f", rated up to record {line.rated_up_to}"
        told.append(f"{where}{rated}: {line.waiting} waiting since {line.since}\n  why:  {line.why}\n  next: {line.next}.")
    return "\n".join(told)


@held.command(help="Print the headers and the value of the parked record ID.")
@click.argument("record", metavar="ID", type=int)
@options("--config", "--data", "--postgres")
def show(record: int, config: str | None, **given: object) -> None:
    from rater import query

    found = _with_database(config, given, lambda pool: query.parked_record(pool, record))
    if found is None:
        raise Stop(f"No record {record} is parked: `parshall held list` shows those that are.", USAGE)
    headers, value = found
    for name, content in headers.items():
        click.echo(f"{name}: {content.decode(errors='backslashreplace')}")
    click.echo()
    click.echo(value.decode(errors="backslashreplace"))


@held.command(
    help="""After a fork, with --writer and --partition: go on with the record that was rated first, or with --record where neither side
    was. The other stays parked, as explained. What came behind the fork is left out until it is sent again from the right journal; where
    that does not have it any more, --take-up rates what is parked, or one --record of it, and --give-up leaves the rest out for good.

    With --record alone: leave out a record without a place."""
)
@click.option("--writer", metavar="ID", help="32 hexadecimal digits. Only with --partition.")
@click.option("--partition", type=click.IntRange(min=0), metavar="P", help="Only with --writer.")
@click.option("--record", type=int, metavar="ID", help="Which of the two is right, where both are parked; alone: one without a place.")
@click.option("--take-up", is_flag=True, help="What was left out behind a fork is of the right journal: rate it.")
@click.option("--give-up", is_flag=True, help="What is still left out behind a fork is of the wrong journal: never rate it.")
@options("--config", "--data", "--postgres")
def release(
    writer: str | None, partition: int | None, record: int | None, take_up: bool, give_up: bool, config: str | None, **given: object
) -> None:
    if (take_up and give_up) or (give_up and record is not None):
        raise Stop("--take-up takes all that was left out, or one --record of it; --give-up takes the rest: say one of them.", USAGE)
    if writer is not None and partition is not None:
        writer_id = _writer_id(writer)
        if take_up:
            told = _left_out_told(_with_ledger(config, given, lambda ledger: ledger.take_up(writer_id, partition, record)), "taken up")
        elif give_up:
            told = _left_out_told(_with_ledger(config, given, lambda ledger: ledger.give_up(writer_id, partition)), "given up")
        else:
            told = _told(
                _with_ledger(config, given, lambda ledger: ledger.release(writer_id, partition, record)), writer, partition, record
            )
        click.echo(told)
    elif writer is not None or partition is not None or take_up or give_up:
        raise Stop("--writer and --partition only name a fork together: `parshall held list` shows both.", USAGE)
    elif record is not None:
        if not _with_ledger(config, given, lambda ledger: ledger.leave_out_stray(record)):
            raise Stop(
                f"{record} is no record without a place: `parshall held list` shows those. A fork needs --writer and --partition.", USAGE
            )
        click.echo(f"Record {record} is left out. It stays parked, as explained.")
    else:
        raise Stop("Say what to release: --writer and --partition after a fork, --record for a record without a place.", USAGE)


def _left_out_told(records: int, done: str) -> str:
    if not records:
        raise Stop("Nothing of that is left out behind a fork: `parshall held list` shows what is held.", FAILED)
    return f"{records} {'record is' if records == 1 else 'records are'} {done}. The rater goes on within a few seconds."


def _writer_id(writer: str) -> bytes:
    try:
        return bytes.fromhex(writer)
    except ValueError:
        raise Stop(f"{writer} is not the id of a writer, 32 hexadecimal digits.", USAGE) from None


def _told(released: Released, writer: str, partition: int, record: int | None) -> str:
    """Raises Stop where nothing was released."""
    ids = ", ".join(map(str, released.choices))
    place = f"--writer {writer} --partition {partition}"
    if released.unfit and ids:
        raise Stop(f"Record {record} is not one of those to choose from, which are {ids}. Nothing was done.", USAGE)
    if released.unfit:
        raise Stop(
            f"Record {record} cannot be chosen: that can only be where both sides of a fork are parked. Nothing was done. One that was "
            f"rated already stays rated, and `parshall held release {place}` goes on with it.",
            USAGE,
        )
    if ids:
        raise Stop(f"Both sides of the fork are parked: say with --record which one is right, of {ids} (`parshall held show ID`).", USAGE)
    if not released.done:
        raise Stop(f"Writer {writer} is not held after a fork in partition {partition}.", FAILED)
    if released.again is None:
        return "Released. The rater goes on within a few seconds."
    first, last = released.again
    return (
        "Released. What came behind the fork is left out, since it may be the copy's: run "
        f"`parshall resend {place} --from {first} --to {last}` where the right journal is."
    )


def _with_ledger(config: str | None, given: Mapping[str, Any], do: Callable[[Ledger], Awaitable[T]]) -> T:
    from rater.postgres import DatabaseFailed, Ledger

    dsn = dsn_given("held", config, given)

    async def done() -> T:
        ledger = Ledger(dsn)
        try:
            return await do(ledger)
        except DatabaseFailed as error:
            raise Stop(f"PostgreSQL cannot be asked: {error}.", UNAVAILABLE) from error
        finally:
            await ledger.close()

    return asyncio.run(done())


def _with_database(config: str | None, given: Mapping[str, Any], ask: Callable[[asyncpg.Pool], Awaitable[T]]) -> T:
    from rater.postgres import FAILURES, open_pool, told

    dsn = dsn_given("held", config, given)

    async def asked() -> T:
        async with await open_pool(dsn) as pool:
            return await ask(pool)

    try:
        return asyncio.run(asked())
    except FAILURES as error:
        raise Stop(f"PostgreSQL cannot be asked: {told(error)}. --postgres or --config says which one it is.", UNAVAILABLE) from error
