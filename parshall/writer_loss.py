"""`parshall writer lost`: the disk of a writer is gone. What went with it, and its end.

What was counted by it and flushed stays counted. Calls that were on its disk but in no flush are lost: their events were answered, and
a retry of them is answered as duplicate. Claims of calls above its last known one are void from now on, and a retry counts; whoever was
answered before Redis had heard of it and does not send again loses them. It is retired with a horizon beyond everything that it can have
claimed: where claims are rebuilt without its journal, an event at or before that time might be one that it counted, and is refused as
too late rather than counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from buffer.counter_log import Retired
from parshall.errors import REFUSED, UNAVAILABLE, USAGE, Stop
from parshall.writer_log import opened_log

if TYPE_CHECKING:
    from buffer.counter_log import CounterLog
    from buffer.record import Place
    from dedupe.redis_writers import Buried, Claimed, Standing
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings

Call = tuple[bytes, int]  # (incarnation, number)
NO_CALL: Call = (b"", 0)


class LostWriterStore(Protocol):
    """What the end of a lost writer needs of the claim store; dedupe.redis_writers.RedisWriters says what each does."""

    async def standings(self, writers: Sequence[bytes]) -> Mapping[bytes, Standing]: ...

    async def bury(self, writer: bytes, through: Call, *, for_good: bool) -> Buried: ...

    async def claimed_after(self, writer: bytes, before: Call, through: Call) -> Claimed: ...


class Flushed(NamedTuple):
    """What the counter log has of one writer."""

    through: Call  # the last call that a flush in it covers
    before: Call  # the same of the flush before


class Loss(NamedTuple):
    """Tenant number -> events, each at most."""

    cut_short: Mapping[int, int]  # of the last flush seen, which may not be whole
    lost: Mapping[int, int]  # answered, maybe, and in no flush
    doubtful: Mapping[int, int]  # of calls that are void now: a retry counts


async def declare_lost(
    settings: Settings,
    folder: DataFolder | None,
    writer: bytes,
    *,
    dead_since_us: int | None,
    accept: bool,
    say: Callable[[str], None],
) -> list[str]:
    """The lines to tell. `dead_since_us`: from when on it has certainly counted nothing; None: from now. Raises Stop."""
    from dedupe.port import ClaimsError
    from dedupe.redis_writers import RedisWriters, Unreachable
    from parshall.wiring import CLOCK_MARGIN_S, clock_us, identity_of

    assert settings.redis.urls
    async with opened_log(settings, folder) as log:
        registry = (await log.registry()).writers
        if writer not in registry:
            raise Stop(f"No writer {writer.hex()} is registered: `parshall writer list` shows those that are.", USAGE)
        if (retired := registry[writer]) is not None:
            return [f"Writer {writer.hex()} is " + ("retired." if retired.lost is None else f"lost already: {retired.lost}")]
        say("Reading the counter log for what it flushed …")
        places = await _places(settings, folder, writer)
        say("Looking through the claims for what it did not …")
        now_us = clock_us()
        ahead_us = (settings.ingest.max_skew_s + CLOCK_MARGIN_S) * 1_000_000
        horizon_us = (now_us if dead_since_us is None else dead_since_us) + ahead_us
        try:
            async with AsyncExitStack() as opened:
                stores = [
                    await opened.enter_async_context(RedisWriters(url, identity_of(settings, log.identity, shard)))
                    for shard, url in enumerate(settings.redis.urls)
                ]
                names = {tenant.number: tenant.name for tenant in settings.tenants}
                _, lines = await end_lost_writer(log, stores, writer, places, names=names, horizon_us=horizon_us, accept=accept)
                lines[-1:-1] = [since_when(dead_since_us, now_us), what_is_refused(horizon_us, now_us)]
        except (Unreachable, OSError) as error:
            raise Stop(f"Redis cannot be asked: {str(error).rstrip('.')}.", UNAVAILABLE) from error
        except ClaimsError as error:
            raise Stop(str(error), REFUSED) from error
        return lines


async def end_lost_writer(
    log: CounterLog,
    stores: Sequence[LostWriterStore],
    writer: bytes,
    places: Sequence[Place],
    *,
    names: Mapping[int, str],
    horizon_us: int,
    accept: bool,
) -> tuple[Loss, list[str]]:
    """`stores`: the shards. `places`: of the writer's records in the log, in its order. Returns what is lost, also in sentences. Does it
    only if `accept`."""
    ends = [await _end_in(store, writer, _in_shard(places, shard, len(stores))) for shard, store in enumerate(stores)]
    loss = Loss(*(sum((Counter(end.loss[part]) for end in ends), Counter[int]()) for part in range(3)))
    lines = [
        line if len(ends) == 1 else f"Shard {shard}: {line}"
        for shard, end in enumerate(ends)
        for line in _sentences(end.loss, end.buried, end.through, names)
    ]
    if not accept:
        not_yet = "Nothing was done yet: --i-accept-loss does it. Is the disk really gone? `parshall writer drain` loses nothing."
        return loss, [*lines, not_yet]
    for store, end in zip(stores, ends, strict=True):
        await store.bury(writer, end.through, for_good=True)
    await log.retire(writer, Retired(horizon_us, " ".join(lines)))
    return loss, [*lines, f"Writer {writer.hex()} is retired: nobody waits for it any more."]


class _End(NamedTuple):
    """Of a lost writer in one shard."""

    through: Call
    buried: Buried
    loss: Loss


async def _end_in(store: LostWriterStore, writer: bytes, places: Iterable[Call]) -> _End:
    flushed = what_was_flushed(places, (await store.standings([writer]))[writer].incarnation)
    buried = await store.bury(writer, flushed.through, for_good=False)
    claimed = await store.claimed_after(writer, flushed.before, flushed.through)
    return _End(flushed.through, buried, sort_out(claimed, flushed, (buried.incarnation, buried.last_call)))


def since_when(dead_since_us: int | None, now_us: int) -> str:
    """How it was understood: a wrong year or offset is seen here, or never."""
    if dead_since_us is None:
        return "It is taken to have counted until now."
    hours, seconds = divmod((now_us - dead_since_us) // 1_000_000, 3600)
    moment = f"{datetime.fromtimestamp(dead_since_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"It is taken to be dead since {moment}, {hours} h {seconds // 60} min ago: what it counted later would count once more."


def what_is_refused(horizon_us: int, now_us: int) -> str:
    """What the end of a writer costs where its claims are gone as well."""
    until = f"{datetime.fromtimestamp(horizon_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    told = f"Where claims have to be made again without it (Redis lost them too), events up to {until} are refused for good, too_late"
    if horizon_us <= now_us:
        return f"{told}: late ones, that is."
    return (
        f"{told}: so are all new ones until then, {(horizon_us - now_us) // 1_000_000} s from now. "
        "If it has been dead for longer, say since when: --dead-since."
    )


def _in_shard(places: Iterable[Place], shard: int, shards: int) -> list[Call]:
    """What flushes covered of a shard's calls. One of another set of shards covered calls that no store of this set has executed."""
    return [
        (place.through.incarnation, place.shard_calls[shard] if len(place.shard_calls) == shards else place.through.call)
        for place in places
    ]


async def _places(settings: Settings, folder: DataFolder | None, writer: bytes) -> list[Place]:
    """One for each flush and partition would be many: of each incarnation and flush the first one."""
    from buffer.record import NoPlace, read_place
    from parshall.whole_log import whole_log

    found: dict[Call, Place] = {}
    async with whole_log(settings, folder) as log:
        async for received in log:
            try:
                place = read_place(received.headers)
            except NoPlace:
                continue
            if place.writer == writer:
                found.setdefault(place.through, place)
    return list(found.values())


def what_was_flushed(places: Iterable[Call], named: bytes) -> Flushed:
    """`places`: the calls up to which flushes reached, in the order of the log. `named`: the incarnation that Redis names as the last, so
    calls of it come after all others.

    Where Redis names none that the log has, partitions tell no order between incarnations: the last one to be named is a guess that can
    only make more seem lost than is.
    """
    covered: dict[bytes, set[int]] = {}
    for incarnation, call in places:
        covered.setdefault(incarnation, set()).add(call)
    if named in covered:
        covered[named] = covered.pop(named)
    calls = [(incarnation, call) for incarnation, numbers in covered.items() for call in sorted(numbers)]
    return Flushed(*reversed(([NO_CALL, NO_CALL, *calls])[-2:]))


def sort_out(claimed: Claimed, flushed: Flushed, last: Call) -> Loss:
    """`last`: with what its last incarnation ends. It comes after all others, also where it claimed nothing."""
    order = {incarnation: at for at, incarnation in enumerate(claimed.incarnations)}
    order.setdefault(last[0], len(order))
    cut_short, lost, doubtful = Counter[int](), Counter[int](), Counter[int]()
    for (incarnation, call), events in claimed.events.items():
        at = order[incarnation]
        if (at == order.get(flushed.through[0], -1) and 0 < call <= flushed.through[1]) or at < order.get(flushed.through[0], -1):
            cut_short.update(events)
        elif incarnation == last[0] and call > last[1]:
            doubtful.update(events)
        else:
            lost.update(events)
    return Loss(cut_short, lost, doubtful)


def _sentences(loss: Loss, buried: Buried, through: Call, names: Mapping[int, str]) -> list[str]:
    incarnation, call = through
    flushed = f"call {call} of incarnation {incarnation.hex()}" if incarnation else "nothing"
    lines = [f"The counter log has what it counted up to {flushed}."]
    if buried.incarnation:
        lines.append(f"Redis knows call {buried.last_call} of incarnation {buried.incarnation.hex()} as its last one that was on its disk.")
    else:
        lines.append("Redis does not know it, so what it answered after its last flush cannot be told.")

    def told(events: Mapping[int, int]) -> str:
        return ", ".join(f"{number} of tenant {names.get(tenant, tenant)}" for tenant, number in sorted(events.items()))

    if loss.lost:
        lines.append(f"Lost: at most so many events that may have been answered and are in no flush: {told(loss.lost)}.")
    elif buried.incarnation:
        lines.append("No claim of it is left that was answered and is in no flush, as far as Redis knows.")
    if loss.doubtful:
        lines.append(
            f"In doubt: events of its last moments, which it may have answered before Redis heard that they were on its disk: "
            f"{told(loss.doubtful)}. When they are sent again they count."
        )
    if loss.cut_short:
        lines.append(f"In doubt: its last flush, in case it ended within it and not all of it is in the log: {told(loss.cut_short)}.")
    return lines
