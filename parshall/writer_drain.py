"""`parshall writer drain`: a journal whose process will not return is finished by this one.

It is a writer like any other, without HTTP: it opens the journal, which closes what was open in it, claims everything again where Redis is
new, flushes, and closes. Then the writer is retired by the rule that segments go by: the horizon has reached the newest event time in the
journal, so no event of it can ever be claimed again. Until then it stays a member, and the journal may be needed once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from parshall.errors import OK, REFUSED, UNAVAILABLE, Stop

if TYPE_CHECKING:
    from buffer.counter_log import CounterLog
    from dedupe.redis_claims import RedisClaims
    from ingest.writer import Writer
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings

_LOOK_S = 0.02
_OPEN_S = 5.0  # how long to wait for other writers that may be joining too


class Told(NamedTuple):
    sentence: str
    code: int


async def drain_journal(settings: Settings, folder: DataFolder | None, directory: str, say: Callable[[str], None]) -> Told:
    """Raises Stop when the journal or the log cannot be used."""
    from buffer.flush_tuner import FlushTuner
    from parshall.wiring import make_writer

    try:
        writer, log = await make_writer(settings, folder, directory, FlushTuner(1000, settings.flush.max_counters))
        try:
            return await finish_journal(settings, writer, log, directory, say)
        finally:
            await log.close()
            await writer.journal.close()
    except Exception as error:
        raise _stop(error) from error


def _stop(error: BaseException) -> Stop:
    from buffer.counter_log import LogUnavailable, UnfitLog
    from buffer.journal import JournalBusy, JournalError, JournalStopped
    from dedupe.port import ClaimsError
    from ingest.agreed_meters import CannotStart

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case LogUnavailable():
            return Stop(f"The counter log cannot be reached ({error}): run this again.", UNAVAILABLE)
        case JournalBusy() | JournalStopped() | OSError():
            return Stop(str(error), UNAVAILABLE)
        case JournalError() | ClaimsError() | CannotStart() | UnfitLog():
            return Stop(str(error), REFUSED)
        case _:
            raise error


async def finish_journal(settings: Settings, writer: Writer, log: CounterLog, directory: str, say: Callable[[str], None]) -> Told:
    """`writer` has its journal open and was not opened itself. Raises what a writer raises, in groups."""
    name = writer.journal.writer.hex()
    if (await log.registry()).writers.get(writer.journal.writer) is not None:
        return Told(f"Writer {name} is retired already: {directory} can be deleted.", OK)
    await writer.open()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(writer.run())
        told = await _finish(settings, writer, log, directory, say)
        running.cancel()
    return told


async def _finish(settings: Settings, writer: Writer, log: CounterLog, directory: str, say: Callable[[str], None]) -> Told:
    from buffer.counter_log import Retired

    claims: list[RedisClaims] = [lane.claims for lane in writer.lanes]  # type: ignore[misc]  # the command demands Redis
    name = writer.journal.writer.hex()
    joined = await _until(lambda: all(one.joined for one in claims), settings.ingest.drain_s)
    if not joined:
        return Told(f"Its claims could not be published ({_reasons(claims)}), and nothing was flushed: run this again.", UNAVAILABLE)
    await writer.flusher.now()
    say(f"Writer {name}: everything it counted is in the counter log.")
    complete = await _until(lambda: writer.ready, _OPEN_S)
    reason = _reasons(claims)
    horizon_us = await writer.learn_horizon() if complete else 0
    newest_us = writer.journal.newest_us
    try:
        await writer.drain(settings.ingest.drain_s)
    except TimeoutError:
        return Told(f"Writer {name} could not be closed within {settings.ingest.drain_s} s: run this again.", UNAVAILABLE)
    if complete and newest_us <= horizon_us:
        await log.retire(writer.journal.writer, Retired(horizon_us))
        return Told(f"Writer {name} is drained and retired: {directory} can be deleted.", OK)
    waiting = "" if complete else f" Redis is not open yet: {reason}."
    return Told(f"Writer {name} is drained.{waiting} {_keep_until(settings, newest_us, directory)}", OK)


def _reasons(claims: Sequence[RedisClaims]) -> str:
    """Why not all of them are open."""
    return "; ".join(one.reason for one in claims if one.reason)


def _keep_until(settings: Settings, newest_us: int, directory: str) -> str:
    """When its claims have grown old for certain: the generation of the last one is over, and all that was claimed in it is too old."""
    from parshall.wiring import GENERATION_US, lifetime_us

    until_us = newest_us + GENERATION_US + lifetime_us(settings) + settings.ingest.max_skew_s * 1_000_000
    until = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=until_us)
    return (
        f"Keep {directory} until {until:%Y-%m-%d %H:%M} UTC at the latest, then run this again to retire it; "
        "run it again also whenever Redis has lost its data: the others wait for what is in it."
    )


async def _until(condition: Callable[[], bool], most_s: float) -> bool:
    try:
        async with asyncio.timeout(most_s):
            while not condition():
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return False
    return True
