"""Entering a claim store: say hello, publish what the journal closed, and where claims are not complete claim the whole journal again.

Belongs here: the order of the steps (PROTOCOL.md, "Redis loses data"), the same for every store. `ask` executes one script by its name.
Must not know: what the store is, how it is reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn, cast

from dedupe.port import Claimed, History, StaleJournal, WrongLog, Zombie
from dedupe.scripts import Reclaim

log = logging.getLogger(__name__)

Ask = Callable[..., Awaitable[Sequence[object]]]  # (name of the script, *its arguments) -> its reply

CLAIMS_A_CHUNK = 4000
FIRST_POLL_S, SLOWEST_POLL_S = 0.05, 1.0


class Entered(NamedTuple):
    replication_id: str
    branch: bytes  # of the store's life, for the journal to keep with each call


class StartOver(Exception):
    """The store changed under our hands, or does not answer calls: connect again and begin with hello. Retry."""


def refused(reply: Sequence[object]) -> NoReturn:
    """Raise what a reply that is no answer means."""
    status = reply[0]
    if status == b"zombie":
        raise Zombie("This incarnation of the journal was closed by somebody else: another process has it, or it was declared lost.")
    if status == b"wrong_log":
        raise WrongLog(f"The claim store belongs to the log {_text(reply[1])}, not to this one: point this writer at its own claim store.")
    if status == b"wrong_identity":
        raise WrongLog(
            "The claim store is in use with another digest version, generation length, layout or set of shards: all writers must agree; "
            "to change them stop every writer, empty the store, and start them again."
        )
    if status == b"stale_journal":
        raise StaleJournal(_stale(_text(reply[1]), _text(reply[2])))
    raise StartOver(f"the claim store answered {_text(status)!r}")


def _stale(incarnation: str, what: str) -> str:
    if what == "missing":
        return (
            "This journal is an old copy, or the claim store has lost a part of its keys (evicted, or deleted by somebody): it counts as "
            "complete and knows nothing of this writer, whose journal has claims (missing); only if you are sure that the journal is "
            "the newest, set maxmemory-policy to noeviction and empty the store (FLUSHALL), so that all claims are made again."
        )
    return (
        f"This journal is an old copy: the claim store knows more of incarnation {incarnation} than the journal does ({what}); put the "
        "newest copy back. Where there is none, start with an empty data folder, and end this one's writer with `parshall writer lost`."
    )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def enter(
    ask: Ask,
    history: History,
    *,
    clock_us: Callable[[], int],
    era: bytes,
    known_in: str,
    on_rebuilding: Callable[[str], None],
    on_joined: Callable[[], None],
) -> Entered:
    """Return once calls may be sent to the store.

    `on_joined`: everything of this journal is claimed there, though others may still be missing.

    `known_in` is the replication id that this incarnation entered before: if the store has forgotten it since, it joins again.
    """
    reply = await _expect(ask, b"hello", "hello", clock_us())
    _, replication_id, is_open, is_joined, unknown, _, branch = cast(tuple[object, object, int, int, int, int, bytes], reply)
    entered = _text(replication_id)
    # A store opens once every writer has entered its branch: if one went on to another, what answers is an old primary.
    last = await _last_entered(history, branch) if is_open else history.branch
    was_left = bool(is_open) and last not in (b"", branch)
    await _publish(ask, history, may_be_new=was_left)
    if is_open and is_joined and not was_left and not (unknown and known_in == entered):
        await history.enter(branch)
        on_joined()
        return Entered(entered, branch)
    if was_left:
        log.warning(
            "claims: this store was left for another one, so every writer claims its journal again here. "
            "If it should not be used any more, see where the address in redis.url leads"
        )
    on_rebuilding("claiming the journal again")
    join = await _join(ask, history, clock_us, era, last)
    if was_left:
        await _publish(ask, history)
    await _wait_until_open(ask, history, join, on_rebuilding, on_joined, complete=bool(is_open) and not was_left)
    return Entered(entered, join.branch)


async def _last_entered(history: History, branch: bytes) -> bytes:
    """What this writer entered last; where it is new, what shows that others entered another branch than this one.

    It is registered by now, and they tell the registry before they ask it who must join. So either they are seen here, or they
    wait for this writer.
    """
    if history.branch:
        return history.branch
    members = await history.members()
    return next((entered for entered in members.values() if entered not in (b"", branch)), b"")


async def _publish(ask: Ask, history: History, *, may_be_new: bool = False) -> None:
    """`may_be_new`: the store may never have heard of this writer though its journal has claims. Publish again once it is not open."""
    reply = await ask("publish", history.mark, list(history.closed))
    if reply[0] != b"published" and not (may_be_new and reply[0] == b"stale_journal" and reply[2] == b"missing"):
        refused(reply)


class _Join(NamedTuple):
    """What the joiners agreed on."""

    era: bytes
    branch: bytes


async def _join(ask: Ask, history: History, clock_us: Callable[[], int], era: bytes, last: bytes) -> _Join:
    await history.drain()
    incarnations = [incarnation for incarnation, _ in history.closed] + [history.incarnation]
    reply = await _expect(ask, b"joining", "join", era, last, incarnations)
    _, agreed, _, branch, faster, *known = cast(tuple[object, bytes, int, bytes, int, object], reply)
    await history.enter(branch)  # before `joined`: the store may open from then on, and no older one will do
    claims = history.claims()
    if faster:
        found, *counts = known
        claims = lacking(claims, incarnations, cast(bytes, found), cast(Sequence[int], counts))
    count = 0
    for sections in chunks(claims, CLAIMS_A_CHUNK):
        await _expect(ask, b"reclaimed", "reclaim", agreed, clock_us(), sections)
        count += sum(len(section.digests) for section in sections) // 12
    log.info("claimed %d digests of the journal again%s", count, ", the others are there" if faster else "")
    return _Join(agreed, branch)


async def _wait_until_open(
    ask: Ask, history: History, join: _Join, on_rebuilding: Callable[[str], None], on_joined: Callable[[], None], *, complete: bool
) -> None:
    """Members are read anew each time: some may be retired while we wait, and then nobody else would notice.

    Who entered another branch has not joined, whatever the store remembers: he was here, and went on to where he claims now.

    `complete`: the claims of all others were there when the join began. Should that change, the era does too, and the join starts over.
    """
    pause_s = FIRST_POLL_S
    while True:
        branches = await history.members()
        elsewhere = _elsewhere(branches, join.branch) - {history.writer}
        members = branches.keys() - elsewhere | {history.writer}
        horizon_us = history.horizon_us if complete else max(history.horizon_us, history.lost_horizon_us)
        _, is_open, missing = await _expect(ask, b"joined", "joined", join.era, history.mark, horizon_us, len(elsewhere), members)
        on_joined()
        if is_open:
            return
        on_rebuilding(f"waiting for {missing} of {len(members) + len(elsewhere)} writers to claim their journals again")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, SLOWEST_POLL_S)


def _elsewhere(branches: Mapping[bytes, bytes], branch: bytes) -> set[bytes]:
    return {writer for writer, entered in branches.items() if entered not in (b"", branch)}


async def _expect(ask: Ask, status: bytes, name: str, *arguments: object) -> Sequence[object]:
    reply = await ask(name, *arguments)
    if reply[0] != status:
        refused(reply)
    return reply


def lacking(claims: Iterable[Claimed], incarnations: Sequence[bytes], branch: bytes, known: Sequence[int]) -> Iterator[Claimed]:
    """What a store lacks that is as it was at some earlier moment of a branch.

    `known`: per incarnation, oldest first, its executions in the store, and the call up to which it had claimed its whole journal there,
    or -1. What lies up to the last such call was claimed into this store at once; beyond it executions in the same branch count, in the
    order in which calls were executed: by call numbers an earlier call that was executed later would be missed.
    """
    executions, bases = known[0::2], known[1::2]
    place = {incarnation: number for number, incarnation in enumerate(incarnations)}
    last_base = max((number for number, base in enumerate(bases) if base >= 0), default=-1)
    for claimed in claims:
        number = place.get(claimed.incarnation)
        if number is not None and (
            number < last_base
            or (number == last_base and claimed.call <= bases[number])
            or (claimed.branch == branch and claimed.execution <= executions[number])
        ):
            continue
        yield claimed


def chunks(claims: Iterable[Claimed], most: int) -> Iterator[list[Reclaim]]:
    """The claims in groups of about `most` digests; neighbours of one tenant and generation become one section."""
    group: list[Reclaim] = []
    size = 0
    for claimed in _pieces(claims, most):
        if size + len(claimed.digests) // 12 > most and group:
            yield _joined_up(group)
            group, size = [], 0
        group.append(Reclaim(*claimed[:5]))
        size += len(claimed.digests) // 12
    if group:
        yield _joined_up(group)


def _pieces(claims: Iterable[Claimed], most: int) -> Iterator[Claimed]:
    for claimed in claims:
        tenant, generation, newest_us, digests, fingerprints = claimed[:5]
        for first in range(0, len(digests) // 12, most):
            last = first + most
            yield Claimed(tenant, generation, newest_us, digests[12 * first : 12 * last], fingerprints[4 * first : 4 * last])


def _joined_up(group: list[Reclaim]) -> list[Reclaim]:
    by_origin: dict[tuple[int, int], list[Reclaim]] = {}
    for piece in group:
        by_origin.setdefault((piece.tenant, piece.generation), []).append(piece)
    return [
        Reclaim(
            tenant,
            generation,
            max(piece.newest_us for piece in pieces),
            b"".join([piece.digests for piece in pieces]),
            b"".join([piece.fingerprints for piece in pieces]),
        )
        for (tenant, generation), pieces in by_origin.items()
    ]
