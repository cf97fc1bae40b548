"""`parshall writer lost`: the disk of a writer is gone. What went with it, and its end.

What was counted by it and flushed stays counted. Calls that were on its disk but in no flush are lost: their events were answered, and
a retry of them is answered as duplicate. Calls above its last known one were never answered; their claims are void from now on, and a
retry counts. It is retired with a horizon beyond everything that it can have claimed: where claims are rebuilt without its journal, an
event at or before that time might be one that it counted, and is refused as too late rather than counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from parshall.errors import REFUSED, UNAVAILABLE, USAGE, Stop
from parshall.writer_log import opened_log

if TYPE_CHECKING:
    from dedupe.redis_writers import Buried, RedisWriters
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings

Call = tuple[bytes, int]  # (incarnation, number)
NO_CALL: Call = (b"", 0)


async def declare_lost(
    settings: Settings, folder: DataFolder | None, writer: bytes, *, accept: bool, say: Callable[[str], None]
) -> list[str]:
    """The lines to tell. Raises Stop."""
    from buffer.counter_log import Retired
    from dedupe.port import ClaimsError
    from dedupe.redis_writers import RedisWriters, Unreachable
    from parshall.wiring import CLOCK_MARGIN_S, clock_us, identity_of

    assert settings.redis.url is not None
    async with opened_log(settings, folder) as log:
        registry = await log.writers()
        if writer not in registry:
            raise Stop(f"No writer {writer.hex()} is registered: `parshall writer list` shows those that are.", USAGE)
        if (retired := registry[writer]) is not None:
            return [f"Writer {writer.hex()} is {'retired' if retired.lost is None else f'lost already: {retired.lost}'}."]
        say("Reading the counter log for what it flushed …")
        covered = await _covered(settings, folder, writer)
        try:
            async with RedisWriters(settings.redis.url, identity_of(settings, log.identity)) as store:
                say("Looking through the claims for what it did not …")
                through = last_covered(covered, (await store.standings([writer]))[writer].incarnation)
                lost = _sentence(await _lost(store, writer, through), _names(settings))
                if not accept:
                    return [
                        *lost,
                        "Nothing was done yet: --i-accept-loss does it. Is the disk really gone? `parshall writer drain` loses nothing.",
                    ]
                await store.bury(writer, through, for_good=True)
        except (Unreachable, OSError) as error:
            raise Stop(f"Redis cannot be asked: {error}.", UNAVAILABLE) from error
        except ClaimsError as error:
            raise Stop(str(error), REFUSED) from error
        horizon_us = clock_us() + (settings.ingest.max_skew_s + CLOCK_MARGIN_S) * 1_000_000
        await log.retire(writer, Retired(horizon_us, " ".join(lost)))
        return [*lost, f"Writer {writer.hex()} is retired: nobody waits for it any more."]


async def _covered(settings: Settings, folder: DataFolder | None, writer: bytes) -> dict[bytes, int]:
    """Incarnation -> its last call that a flush in the log covers, in the order in which the log first names them."""
    from buffer.record import NoPlace, read_place
    from parshall.whole_log import whole_log

    covered: dict[bytes, int] = {}
    async with whole_log(settings, folder) as log:
        async for received in log:
            try:
                place = read_place(received.headers)
            except NoPlace:
                continue
            if place.writer == writer:
                incarnation, call = place.through
                covered[incarnation] = max(call, covered.get(incarnation, 0))
    return covered


def last_covered(covered: Mapping[bytes, int], named: bytes) -> Call:
    """The last call seen in the log. `named`: the incarnation that Redis names as the last, so calls of it come after all others.

    Where Redis names none that the log has, partitions tell no order between incarnations: the last one to be named is a guess that can
    only make more seem lost than is.
    """
    if named in covered:
        return named, covered[named]
    return next(((incarnation, call) for incarnation, call in reversed(list(covered.items()))), NO_CALL)


class _Loss:
    def __init__(self, buried: Buried, through: Call, events: Mapping[int, int]) -> None:
        self.buried = buried
        self.through = through
        self.events = events  # tenant number -> events claimed in calls that count, seen in no flush


async def _lost(store: RedisWriters, writer: bytes, through: Call) -> _Loss:
    buried = await store.bury(writer, through, for_good=False)
    return _Loss(buried, through, await store.claimed_after(writer, through, (buried.incarnation, buried.last_call)))


def _names(settings: Settings) -> Mapping[int, str]:
    return {tenant.number: tenant.name for tenant in settings.tenants}


def _sentence(loss: _Loss, names: Mapping[int, str]) -> list[str]:
    buried, (incarnation, call) = loss.buried, loss.through
    flushed = f"call {call} of incarnation {incarnation.hex()}" if incarnation else "nothing"
    lines = [f"The counter log has what it counted up to {flushed}."]
    if buried.incarnation:
        lines.append(f"Redis knows call {buried.last_call} of incarnation {buried.incarnation.hex()} as its last one that was on its disk.")
    else:
        lines.append("Redis does not know it, so what it answered after its last flush cannot be told.")
    if loss.events:
        told = ", ".join(f"{events} of tenant {names.get(tenant, tenant)}" for tenant, events in sorted(loss.events.items()))
        lines.append(f"Lost: at most so many events that may have been answered and are in no flush: {told}.")
    elif buried.incarnation:
        lines.append("No claim of it is left that was answered and is in no flush.")
    return lines
