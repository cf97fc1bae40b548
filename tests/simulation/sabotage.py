"""Each guard of PROTOCOL.md, with a way to take it out. Only the simulation knows these switches; the product has none.

A sabotage is a context manager that puts a broken function in place of a sound one, and the worlds in which the guard is needed often.
test_sabotage.py shows that each is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import buffer.journal as journal
import buffer.journal_segments as journal_segments
import buffer.registration as registration
import ingest.calls as calls
import parshall.writer_loss as writer_loss
from buffer.counter_log import LogUnavailable, Record, Registry, Retired
from buffer.journal_records import CallRecord, Entering, FlushCommit, JournalRecord, Through
from buffer.journal_segments import SegmentFacts, Tail
from buffer.journal_state import Replayed, Standing
from dedupe import rebuild
from dedupe.claim_table import _TAG, _VOID, ClaimTable
from dedupe.clearance import Clearance
from dedupe.port import CONFLICT, COPY, DIGEST_BYTES, DUPLICATE, GRANTED, PENDING, Call, Claimed, Refused, Reply, Section, Verdicts
from dedupe.redis_claims import RedisClaims
from dedupe.scripts import Context
from ingest.flusher import Flusher
from ingest.history import JournalHistory
from ingest.lane import Answered, Lane
from ingest.writer import Writer
from tests.lossy_disk import PowerCut
from tests.simulation.counter_log import Ledger
from tests.simulation.habits import BRIEF, CROWDED, DUEL, FLUSHING, HEDGED, HOURS, OPERATED, Habits
from tests.simulation.scenario import simulate
from tests.simulation.steps import APPENDED, EXECUTED, FLUSH_PART, FLUSHED, JOINING, PRODUCED, SENT, SYNCED

Off = Callable[[], AbstractContextManager[None]]


class Sabotage(NamedTuple):
    habits: Habits
    off: Off
    shows_as: type[Exception] = AssertionError  # a promise that is broken; another error only where the product ends in it by itself

    def breaks(self, seed: int) -> str | None:
        """How this world shows that the guard is out; None: it does not."""
        try:
            with self.off():
                simulate(seed, self.habits)
        except AssertionError as error:
            told = str(error).splitlines()[0]
            return told if f": {self.shows_as.__name__}: " in told else None
        return None


# ---- answers and marks wait for the disk


@contextmanager
def _answer_before_sync(only_without_grants: bool) -> Iterator[None]:
    append = Writer._append

    def broken(self: Writer, lane: Lane, answered: Answered) -> None:
        append(self, lane, answered)
        for request in self._unsynced[-1].decided:
            if (not only_without_grants or not request.accepted) and not request.answer.done():
                request.answer.set_result(request.outcome())

    with patch.object(Writer, "_append", broken):
        yield


@contextmanager
def _mark_before_sync() -> Iterator[None]:
    append = Writer._append

    def broken(self: Writer, lane: Lane, answered: Answered) -> None:
        append(self, lane, answered)
        lane.claims.raise_mark(answered.call.number)

    with patch.object(Writer, "_append", broken):
        yield


@contextmanager
def _failed_sync_is_success() -> Iterator[None]:
    put = Tail._put

    def broken(self: Tail, parts: list[bytes], sizes: dict[int, int]) -> None:
        try:
            put(self, parts, sizes)
        except PowerCut:
            raise
        except OSError:
            sizes.setdefault(self._first, 0)

    with patch.object(Tail, "_put", broken):
        yield


@contextmanager
def _tail_not_copied() -> Iterator[None]:
    """`closed` is published for a tail that reads fine but is not on the disk."""
    open_locked = journal_segments._open_locked

    def broken(directory: str, disk: Any, *rest: Any) -> Any:
        replace = disk.replace
        disk.replace = lambda path, content: replace(path, content) if path not in disk._files else None
        try:
            return open_locked(directory, disk, *rest)
        finally:
            del disk.replace

    with patch.object(journal_segments, "_open_locked", broken):
        yield


# ---- calls


@contextmanager
def _call_abandoned() -> Iterator[None]:
    """What is unanswered when a connection ends is given up: nothing of it is journalled, its events are asked again in other calls."""
    serve = RedisClaims._serve

    async def broken(self: RedisClaims) -> None:
        abandoned, self._unanswered = list(self._unanswered), type(self._unanswered)()
        for call, on_reply in sorted(abandoned, key=lambda waiting: waiting[0].number):
            on_reply(Verdicts(call.number, 0, 0, 0, bytes([PENDING]) * _size(call)))
        await serve(self)

    with patch.object(RedisClaims, "_serve", broken):
        yield


def _size(call: Call) -> int:
    return sum(len(section.digests) for section in call.sections) // DIGEST_BYTES + len(call.copies) // COPY.size


@contextmanager
def _no_empty_records() -> Iterator[None]:
    """A call that granted nothing leaves no record."""
    append = journal.Journal.append

    def broken(self: journal.Journal, record: JournalRecord) -> int:
        if isinstance(record, CallRecord) and not record.claims:
            return self._last
        return append(self, record)

    with patch.object(journal.Journal, "append", broken):
        yield


@contextmanager
def _rest_under_a_new_number() -> Iterator[None]:
    """What is left of a refused call is asked again in another call; the refused one is finished without it."""
    on_reply = Lane.on_reply

    def broken(self: Lane, reply: Reply) -> None:
        if isinstance(reply, Refused) and self.calls[reply.number].sections:
            rest, too_late = calls.refuse(self.calls[reply.number], reply.horizon_us)
            self._too_late.setdefault(reply.number, []).extend(too_late)
            self.calls[reply.number] = rest
            if rest.sections:
                reply = Verdicts(reply.number, 0, 0, reply.horizon_us, bytes([PENDING]) * _size(rest.to_send()))
        on_reply(self, reply)

    with patch.object(Lane, "on_reply", broken):
        yield


@contextmanager
def _copies_in_a_call() -> Iterator[None]:
    """Two copies of a digest in one call are two claims."""

    def broken(parts: Sequence[calls.Part], place: int, found: list[bytes]) -> list[calls.Part]:
        return list(parts)

    with patch.object(calls, "_without_copies", broken):
        yield


@contextmanager
def _copies_are_duplicates() -> Iterator[None]:
    """Of what nobody may ever have counted, too."""
    with_copies = ClaimTable._with_copies

    def broken(self: ClaimTable, codes: bytes, sections: Sequence[Section], copies: bytes) -> bytes:
        firsts = with_copies(self, codes, sections, copies)[: -(len(copies) // COPY.size)]
        return firsts + bytes((DUPLICATE,)) * (len(copies) // COPY.size)

    with patch.object(ClaimTable, "_with_copies", broken):
        yield


# ---- the claim script


@contextmanager
def _table(name: str, make: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """make(the sound method) -> the broken one"""
    with patch.object(ClaimTable, name, make(getattr(ClaimTable, name))):
        yield


@contextmanager
def _verdict(change: Callable[[int, bool, int, int], int]) -> Iterator[None]:
    """change(verdict, mine, stored call, this call) -> verdict"""
    verdict = ClaimTable._verdict

    def broken(self: ClaimTable, value: bytes, my_number: int, number: int) -> int:
        mine = int.from_bytes(value[:4], "big") == my_number
        return change(verdict(self, value, my_number, number), mine, int.from_bytes(value[4:8], "big"), number)

    with patch.object(ClaimTable, "_verdict", broken):
        yield


def _foreign_pending_is_duplicate(verdict: int, mine: bool, stored: int, number: int) -> int:
    return DUPLICATE if verdict == PENDING and not mine else verdict


def _void_stays_pending(verdict: int, mine: bool, stored: int, number: int) -> int:
    return PENDING if verdict == _VOID else verdict


def _own_earlier_is_granted(verdict: int, mine: bool, stored: int, number: int) -> int:
    return GRANTED if mine and 0 < stored < number else verdict


def _own_later_is_duplicate(verdict: int, mine: bool, stored: int, number: int) -> int:
    return DUPLICATE if mine and verdict == PENDING else verdict


def _admits(refusal: bytes) -> AbstractContextManager[None]:
    def make(admit: Any) -> Any:
        def broken(self: ClaimTable, context: Context) -> Any:
            answer = admit(self, context)
            return None if answer == [refusal] else answer

        return broken

    return _table("_admit", make)


def _marks_sink() -> AbstractContextManager[None]:
    """A mark that comes alone is taken as it is, from whichever connection it comes.

    With sessions in place no lower mark ever arrives: the rule is a second guard. So the first is off for marks here, and only for them.
    """

    def make(claim: Any) -> Any:
        def broken(self: ClaimTable, context: Context, number: int, mark: int, *rest: Any) -> Any:
            me = self._w.get(context.incarnation)
            if number or me is None or self._open.replication_id != self.replication_id:
                return claim(self, context, number, mark, *rest)
            me.mark = mark
            return [b"marked"]

        return broken

    return _table("claim", make)


@contextmanager
def _any_redis() -> Iterator[None]:
    """The script does not look at which Redis it runs in, and a writer does not ask."""
    claim, hello = ClaimTable.claim, ClaimTable.hello

    async def the_same_as_ever(history: Any, branch: bytes) -> bytes:
        return branch

    def open_everywhere(self: ClaimTable, context: Context) -> None:
        self._open.replication_id, self._open.identity = self.replication_id, context.identity

    def broken_claim(self: ClaimTable, context: Context, *rest: Any) -> Any:
        open_everywhere(self, context)
        return claim(self, context, *rest)

    def broken_hello(self: ClaimTable, context: Context, *rest: Any) -> Any:
        reply = hello(self, context, *rest)
        if reply[0] != b"hello":
            return reply
        open_everywhere(self, context)
        return [*reply[:2], 1, 1, 0, *reply[5:]]

    with (
        patch.object(ClaimTable, "claim", broken_claim),
        patch.object(ClaimTable, "hello", broken_hello),
        patch.object(rebuild, "_last_entered", the_same_as_ever),
    ):
        yield


def _other_shape_is_conflict() -> AbstractContextManager[None]:
    def make(decide: Any) -> Any:
        def broken(self: ClaimTable, gen: int, tenant: int, keys: Any, fingerprints: Any, holders: Any, *rest: Any) -> bytearray:
            known = [
                next((held[key][8:] for held in holders if key in held), fingerprint)
                for key, fingerprint in zip(keys, fingerprints, strict=True)
            ]
            codes = decide(self, gen, tenant, keys, fingerprints, holders, *rest)
            differ = [mine != theirs for mine, theirs in zip(fingerprints, known, strict=True)]
            return bytearray(CONFLICT if code == DUPLICATE and other else code for code, other in zip(codes, differ, strict=True))

        return broken

    return _table("_decide", make)


# ---- generations and the horizon


def _no_horizon() -> AbstractContextManager[None]:
    """Events at or below the horizon are claimed."""

    def make(claim: Any) -> Any:
        def broken(self: ClaimTable, context: Context, number: int, mark: int, clock_us: int, _: int, *rest: Any) -> Any:
            return claim(self, context, number, mark, clock_us, 1 << 60, *rest)

        return broken

    return _table("claim", make)


def _dropped_without_horizon() -> AbstractContextManager[None]:
    """A generation is dropped, and the horizon stays where it was."""

    def make(drop_old: Any) -> Any:
        def broken(self: ClaimTable, *arguments: Any) -> Any:
            before = self._horizon
            low = drop_old(self, *arguments)
            self._horizon = before
            return low

        return broken

    return _table("_drop_old", make)


def _only_this_generation() -> AbstractContextManager[None]:
    """Claims of older generations are not looked up."""

    def make(verdicts: Any) -> Any:
        def broken(self: ClaimTable, gen: int, *rest: Any) -> Any:
            low, self._low = self._low, gen
            try:
                return verdicts(self, gen, *rest)
            finally:
                self._low = low

        return broken

    return _table("_verdicts", make)


def _generation_goes_back() -> AbstractContextManager[None]:
    """The generation is what the clocks say, also when they were set back."""

    def make(rotate: Any) -> Any:
        def broken(self: ClaimTable, context: Context, clock_us: int) -> int:
            by_clock = min(self._clock_us(), clock_us) // context.generation_us
            if self._gen is not None:
                self._gen = max(self._low, min(self._gen, by_clock))
            return int(rotate(self, context, clock_us))

        return broken

    return _table("rotate", make)


def _reclaimed_where_it_was() -> AbstractContextManager[None]:
    """Claims go back into the generation that the journal names, live or not."""

    def make(write: Any) -> Any:
        def broken(self: ClaimTable, context: Context, era: bytes, clock_us: int, sections: Any) -> Any:
            named = iter([section.generation for section in sections if section.digests])
            with _generations(named):
                return write(self, context, era, clock_us, sections)

        return broken

    return _table("reclaim", make)


@contextmanager
def _generations(named: Iterator[int]) -> Iterator[None]:
    write, raise_newest, at = ClaimTable._write, ClaimTable._raise_newest, [0]

    def broken_write(self: ClaimTable, _: int, *rest: Any) -> None:
        at[0] = next(named)
        write(self, at[0], *rest)

    def broken_raise(self: ClaimTable, _: int, time_us: int) -> None:
        raise_newest(self, at[0], time_us)

    with patch.object(ClaimTable, "_write", broken_write), patch.object(ClaimTable, "_raise_newest", broken_raise):
        yield


def _reclaimed_without_newest() -> AbstractContextManager[None]:
    """Claims come back, but their generation does not learn how new they are."""

    def make(reclaim: Any) -> Any:
        def broken(self: ClaimTable, *arguments: Any) -> Any:
            before = dict(self._newest)
            reply = reclaim(self, *arguments)
            self._newest = {generation: newest for generation, newest in self._newest.items() if generation in before} | before
            return reply

        return broken

    return _table("reclaim", make)


def _no_horizon_at_joining() -> AbstractContextManager[None]:
    def make(joined: Any) -> Any:
        def broken(self: ClaimTable, context: Context, era: bytes, mark: int, _: int, elsewhere: int, members: Any) -> Any:
            return joined(self, context, era, mark, 0, elsewhere, members)

        return broken

    return _table("joined", make)


# ---- joining, and journals that must not be opened


@contextmanager
def _opens_alone() -> Iterator[None]:
    async def broken(self: JournalHistory) -> dict[bytes, bytes]:
        return {self.writer: self.branch}

    with patch.object(JournalHistory, "members", broken):
        yield


@contextmanager
def _joins_undrained() -> Iterator[None]:
    async def undrained(_: JournalHistory) -> None:
        pass

    async def entered(self: JournalHistory, branch: bytes) -> None:
        self._journal.append(Entering(branch, self._shard))

    with patch.object(JournalHistory, "drain", undrained), patch.object(JournalHistory, "enter", entered):
        yield


def _first_joiner_keeps_all() -> AbstractContextManager[None]:
    """What a Redis still has that was taken in the middle of a join stays: also claims that nobody ever journalled."""

    def make(_: Any) -> Any:
        def broken(self: ClaimTable) -> None:
            self._joined.clear()

        return broken

    return _table("_wipe", make)


def _claimed_again(broken: Callable[[Claimed, int, int], bool]) -> AbstractContextManager[None]:
    """In the faster way only what this says is claimed again: of a claim, the executions that the store knows, and its base."""

    def lacking(claims: Iterable[Claimed], incarnations: Sequence[bytes], branch: bytes, known: Sequence[int]) -> Iterator[Claimed]:
        there = dict(zip(incarnations, zip(known[0::2], known[1::2], strict=True), strict=True))
        return (claimed for claimed in claims if broken(claimed, *there.get(claimed.incarnation, (0, -1))))

    return patch.object(rebuild, "lacking", lacking)


def _branches_not_compared() -> AbstractContextManager[None]:
    """Neither by the joiner nor by the store, which would not let it join in the faster way."""
    both = ExitStack()
    both.enter_context(_claimed_again(lambda claimed, executions, base: claimed.execution > executions and claimed.call > base))
    both.enter_context(patch.object(JournalHistory, "branch", property(lambda _: b"")))
    return both


def _counts_call_numbers() -> AbstractContextManager[None]:
    """The store says how far it has come by its highest call: an earlier call that was executed later is missed.

    Failovers overlap here, and most stores are of another branch then: so that they are joined in the faster way, that rule is out too.
    """
    answer = ClaimTable._faster

    def faster(self: ClaimTable, first: int, incarnations: Sequence[bytes]) -> list[object]:
        reply = answer(self, first, incarnations)
        for number, incarnation in enumerate(incarnations):
            tags = [_TAG.unpack_from(value) for kept in self._claims.values() for held in kept.values() for value in held.values()]
            reply[6 + 2 * number] = max((call for of, call in tags if self._interned.get(of) == incarnation), default=0)
        return reply

    both = ExitStack()
    both.enter_context(_table("_faster", lambda _: faster))
    both.enter_context(patch.object(JournalHistory, "branch", property(lambda _: b"")))
    both.enter_context(_claimed_again(lambda claimed, calls, base: claimed.call > max(calls, base)))
    return both


@contextmanager
def _flush_at_once() -> Iterator[None]:
    async def broken(self: Writer) -> None:
        self.flusher.allowed.set()

    with patch.object(Writer, "_allow_flushes", broken):
        yield


@contextmanager
def _committed_flush_at_once() -> Iterator[None]:
    """What a journal holds as committed goes out before the store has accepted the journal."""
    run = Flusher.run

    async def broken(self: Flusher) -> None:
        if self._outstanding is not None:
            await self._finish(self._outstanding.flush, self._outstanding.records, self._outstanding.rejected)
            self._outstanding = None
        await run(self)

    with patch.object(Flusher, "run", broken):
        yield


def _old_copy_accepted() -> AbstractContextManager[None]:
    return _table("_stale_journal", lambda _: lambda *_: None)


@contextmanager
def _any_registry() -> Iterator[None]:
    """A registry without entries is taken for that of a new installation."""

    async def broken_register(self: Writer) -> dict[bytes, int | None]:
        await self._log.register(self.journal.writer)
        return {}

    async def broken_members(self: JournalHistory) -> dict[bytes, bytes]:
        registry = await self._log.registry()
        return {writer: self._of_this_shard(registry.announced.get(writer)) for writer, gone in registry.writers.items() if gone is None}

    with patch.object(Writer, "_register", broken_register), patch.object(JournalHistory, "members", broken_members):
        yield


# ---- flushes


@contextmanager
def _produced_before_sync() -> Iterator[None]:
    flush = Flusher.flush

    async def broken(self: Flusher) -> None:
        drain = self._journal.drain

        async def at_once() -> None:
            pass

        self._journal.drain = at_once  # type: ignore[method-assign]
        try:
            await flush(self)
        finally:
            self._journal.drain = drain  # type: ignore[method-assign]

    with patch.object(Flusher, "flush", broken):
        yield


@contextmanager
def _numbered_again() -> Iterator[None]:
    """After a crash a committed flush goes out under new numbers."""
    run = Flusher.run

    async def broken(self: Flusher) -> None:
        if self._outstanding is not None:
            records: list[Record] = []
            for record in self._outstanding.records:
                n = self._next_n.get(record.partition, 1)
                self._next_n[record.partition] = n + 1
                records.append(record._replace(n=n))
            self._outstanding = self._outstanding._replace(records=records)
        await run(self)

    with patch.object(Flusher, "run", broken):
        yield


@contextmanager
def _covers_what_stands_before_it() -> Iterator[None]:
    """A flush counts as covering every call that stands before its commit in the journal, not just those merged when it was swapped out."""
    commit = Standing._flush_commit

    def broken(self: Standing, record: FlushCommit) -> None:
        assert self.progress is not None
        self.progress = self.progress._replace(through=Through(self._ids[-1], self._last_calls[-1]))
        commit(self, record)

    with patch.object(Standing, "_flush_commit", broken):
        yield


@contextmanager
def _uncommitted_flush_exists() -> Iterator[None]:
    """After a crash the parts of a flush that were written count as the flush."""
    reopened = Standing.reopened

    def broken(self: Standing) -> None:
        if self.progress is not None and not self.progress.committed and self.progress.next_n:
            self._flush_commit(FlushCommit(self.progress.flush))
        reopened(self)

    with patch.object(Standing, "reopened", broken):
        yield


@contextmanager
def _one_more_is_durable() -> Iterator[None]:
    """Of a try that failed, one record more counts as being in the log than the log has said."""
    insist = Flusher._insist

    async def broken(self: Flusher, flush: int, produce: Callable[[Any], Any], wanted: Sequence[Any]) -> None:
        async def told(some: Sequence[Any]) -> None:
            try:
                await produce(some)
            except LogUnavailable as error:
                error.durable += 1
                raise

        await insist(self, flush, told, wanted)

    with patch.object(Flusher, "_insist", broken):
        yield


@contextmanager
def _rater_does_not_skip() -> Iterator[None]:
    apply = Ledger.apply

    def broken(self: Ledger, writer: bytes, record: Record) -> None:
        if record.n <= self.last[writer, record.partition]:
            self._fold(record)
        else:
            apply(self, writer, record)

    with patch.object(Ledger, "apply", broken):
        yield


# ---- retention


@contextmanager
def _retains(least: Callable[[SegmentFacts, Standing], bool]) -> Iterator[None]:
    """least(segment, standing): may it go?"""

    def broken(segments: Sequence[SegmentFacts], standing: Standing) -> list[SegmentFacts]:
        gone: list[SegmentFacts] = []
        for segment in segments[:-1]:
            if not least(segment, standing):
                break
            gone.append(segment)
        return gone

    with patch.object(journal, "disposable", broken):
        yield


def _flushed(segment: SegmentFacts, standing: Standing) -> bool:
    underway = standing.next_flush if standing.progress is None else standing.progress.flush
    return segment.last_call <= standing.acknowledged and segment.last_flush < underway


def _below_horizon(segment: SegmentFacts, standing: Standing) -> bool:
    return segment.newest_us <= standing.horizon_us


# ---- writers that never come back


@contextmanager
def _retired_without_horizon() -> Iterator[None]:
    with patch("parshall.writer_loss.Retired", lambda _, lost: Retired(0, lost)):
        yield


@contextmanager
def _lost_and_left_open() -> Iterator[None]:
    bury = ClaimTable.bury
    with patch.object(ClaimTable, "bury", lambda self, context, _, *rest: bury(self, context, False, *rest)):
        yield


@contextmanager
def _told_without(kind: str) -> Iterator[None]:
    sort_out = writer_loss.sort_out
    with patch.object(writer_loss, "sort_out", lambda *arguments: sort_out(*arguments)._replace(**{kind: {}})):
        yield


@contextmanager
def _retired_at_once() -> Iterator[None]:
    """A drained journal is deleted while its claims may be needed again."""
    with patch.object(journal.Journal, "newest_us", 0):
        yield


# ---- several shards


@contextmanager
def _told_before_all_looked() -> Iterator[None]:
    async def broken(self: Clearance, shard: int) -> None:
        pass

    with patch.object(Clearance, "by", broken):
        yield


@contextmanager
def _closed_with_calls_of_all_shards() -> Iterator[None]:
    with patch.object(Replayed, "closed_in", lambda self, shard, shards: list(self.incarnations)):
        yield


@contextmanager
def _mark_of_all_shards() -> Iterator[None]:
    """The place of its record in the journal is taken for a call's number in its shard."""
    append = Writer._append

    def broken(self: Writer, lane: Lane, answered: Answered) -> None:
        append(self, lane, answered)
        self._unsynced.append(self._unsynced.pop()._replace(call=self._next_number - 1))

    with patch.object(Writer, "_append", broken):
        yield


@contextmanager
def _highest_horizon() -> Iterator[None]:
    """A segment goes once the horizon of some shard has passed it."""
    with patch.object(Standing, "least_horizon_us", property(lambda self: self.horizon_us)):
        yield


def _only(profile: Habits, *faults: str, steps: tuple[str, ...] = (), **changes: Any) -> Habits:
    """Worlds in which only these faults happen, at these steps: what the guard is there for."""
    if steps:
        changes |= {"steps": steps, "at_a_step": 0.9}
    return replace(profile, faults=dict.fromkeys(faults, 1), **{"rated": 0.0, "shards": (1,), **changes})


@contextmanager
def _older_store_entered() -> Iterator[None]:
    async def nothing(*_: object) -> bytes:
        return b""

    with patch.object(JournalHistory, "branch", property(lambda _: b"")), patch.object(rebuild, "_last_entered", nothing):
        yield


@contextmanager
def _newcomers_believe() -> Iterator[None]:
    async def broken(history: JournalHistory, _: bytes) -> bytes:
        return history.branch

    with patch.object(rebuild, "_last_entered", broken):
        yield


def _joined_stays_joined() -> AbstractContextManager[None]:
    """Who joins a second time counts as joined before it has claimed again."""

    def make(join: Any) -> Any:
        def broken(self: ClaimTable, context: Context, *rest: Any) -> Any:
            before = context.writer in self._joined
            reply = join(self, context, *rest)
            if before and reply[0] == b"joining" and not reply[2]:
                self._joined.add(context.writer)
            return reply

        return broken

    return _table("join", make)


def _joined_is_joined() -> AbstractContextManager[None]:
    """Whoever has joined a store is taken for joined, though he went on to another one."""
    return patch.object(rebuild, "_elsewhere", lambda *_: set())


@contextmanager
def _branch_forgotten() -> Iterator[None]:
    """The process knows where it has been; neither its journal nor the registry does."""

    async def broken(self: JournalHistory, branch: bytes) -> None:
        known[self.incarnation] = branch

    known: dict[bytes, bytes] = {}
    with (
        patch.object(JournalHistory, "enter", broken),
        patch.object(JournalHistory, "branch", property(lambda self: known.get(self.incarnation, b""))),
    ):
        yield


def _last_announcement_counts() -> AbstractContextManager[None]:
    """Of what a writer told the registry, what arrived last, also when it was told long before."""
    add = registration._add_branches

    def broken(registry: Registry, writer: bytes, read: Any) -> None:
        registry.announced.pop(writer, None)
        add(registry, writer, read)

    return patch.object(registration, "_add_branches", broken)


_NO_CLOCK = _only(HOURS, "writer_clock_jumps")
_REDIS_LOST = _only(CROWDED, "redis_restarts_empty", "redis_fails_over")
_REDIS_FAILS_OVER = _only(CROWDED, "redis_fails_over")
_REDIS_LOST_OFTEN = _only(BRIEF, "redis_restarts_empty")

SABOTAGES: dict[str, Sabotage] = {
    "answer before the sync": Sabotage(_only(HEDGED, "power_loss_after_an_answer"), lambda: _answer_before_sync(False)),
    "a call that granted nothing is answered before the sync": Sabotage(
        _only(HEDGED, "power_loss_after_an_answer"), lambda: _answer_before_sync(True)
    ),
    "mark before the sync": Sabotage(_only(CROWDED, "power_loss", steps=(SENT, APPENDED)), _mark_before_sync),
    "a failed sync is taken for a success": Sabotage(_only(HEDGED, "disk_error", "power_loss_after_an_answer"), _failed_sync_is_success),
    "closed is published for an unsynced tail": Sabotage(_only(CROWDED, "disk_error", "power_loss"), _tail_not_copied),
    "a call once sent is abandoned": Sabotage(_only(CROWDED, "reply_lost", "connections_break", steps=(EXECUTED,)), _call_abandoned),
    "a call that granted nothing leaves no record": Sabotage(CROWDED, _no_empty_records),
    "the rest of a refused call goes under a new number": Sabotage(
        _only(BRIEF, "redis_away_after_a_claim", outage_s=(1, 2, 3), new=(4, 6), events_per_call=(20,)), _rest_under_a_new_number
    ),
    "two copies in a call are two claims": Sabotage(CROWDED, _copies_in_a_call),
    "a copy of a pending claim is a duplicate": Sabotage(
        _only(
            DUEL,
            "power_loss",
            steps=(EXECUTED, APPENDED),
            copies=((2, 3),),
            events_per_call=(50,),
            disk_s=(0.0002, 0.3),
            repair_s=(11, 20),  # longer than a request waits
            stuck_s=300,
        ),
        _copies_are_duplicates,
    ),
    "a foreign pending claim is a duplicate": Sabotage(
        _only(DUEL, "power_loss", steps=(EXECUTED, APPENDED)), lambda: _verdict(_foreign_pending_is_duplicate)
    ),
    "a void claim is never taken over": Sabotage(_only(DUEL, "power_loss", steps=(EXECUTED,)), lambda: _verdict(_void_stays_pending)),
    "an earlier call of one's own is granted again": Sabotage(CROWDED, lambda: _verdict(_own_earlier_is_granted)),
    "a later call of one's own is a duplicate": Sabotage(
        _only(HEDGED, "error_reply", "power_loss_after_an_answer"), lambda: _verdict(_own_later_is_duplicate)
    ),
    "a stale copy is executed": Sabotage(_only(DUEL, "stale_copy_meets_a_reopening"), lambda: _admits(b"stale")),
    "a closed incarnation goes on": Sabotage(_only(OPERATED, "closed_by_somebody_else"), lambda: _admits(b"zombie")),
    "a mark may sink": Sabotage(_only(DUEL, "mark_stays_behind"), _marks_sink),
    "another shape is a conflict": Sabotage(_only(OPERATED, "catalogue_changes"), _other_shape_is_conflict),
    "an event below the horizon is claimed": Sabotage(_NO_CLOCK, _no_horizon),
    "a generation is dropped without raising the horizon": Sabotage(_NO_CLOCK, _dropped_without_horizon),
    "only the current generation is looked up": Sabotage(BRIEF, _only_this_generation),
    "the generation follows a clock that goes back": Sabotage(_only(BRIEF, "redis_clock_jumps"), _generation_goes_back),
    "claims go to any Redis": Sabotage(_REDIS_LOST, _any_redis),
    "claims open before all members joined": Sabotage(_REDIS_LOST, _opens_alone),
    "a registry that lost its entries is believed": Sabotage(
        _only(OPERATED, "registry_lost", "redis_restarts_empty", "power_loss"), _any_registry
    ),
    "a writer joins with an unsynced tail": Sabotage(_only(DUEL, "redis_restarts_empty", steps=(APPENDED,)), _joins_undrained),
    "the first joiner keeps the claims it finds": Sabotage(
        _only(DUEL, "redis_restarts_with_data", steps=(EXECUTED, JOINING)), _first_joiner_keeps_all
    ),
    "an older store is entered": Sabotage(_only(CROWDED, "older_redis_answers"), _older_store_entered),
    "a new writer believes an older store": Sabotage(
        _only(OPERATED, "newcomer_at_older_redis", outage_s=(3, 5), between_s=(0.3, 1, 3)), _newcomers_believe
    ),
    "of two announcements the later arrival counts": Sabotage(
        _only(OPERATED, "announcements_arrive_late", outage_s=(3, 5), between_s=(0.3, 1, 3)),
        _last_announcement_counts,
    ),
    "who joined an older store and went on is taken for joined": Sabotage(
        _only(CROWDED, "older_redis_answers", outage_s=(1, 2, 3)), _joined_is_joined
    ),
    "who joins a second time stays joined": Sabotage(_only(CROWDED, "older_redis_answers", outage_s=(1, 2, 3)), _joined_stays_joined),
    "the branch that was entered is not in the journal": Sabotage(
        _only(CROWDED, "older_redis_answers", "kill", writers=(1, 1), outage_s=(1, 2, 3), repair_s=(0.01, 0.1)), _branch_forgotten
    ),
    "the faster join claims nothing again": Sabotage(_REDIS_FAILS_OVER, lambda: _claimed_again(lambda *_: False)),
    "the faster join compares executions of different branches": Sabotage(
        _only(BRIEF, "redis_restarts_empty", "redis_fails_over"),
        _branches_not_compared,
    ),
    "the faster join counts call numbers": Sabotage(_only(HEDGED, "error_reply", "redis_fails_over"), _counts_call_numbers),
    "claims come back into the generation they were in": Sabotage(_REDIS_LOST_OFTEN, _reclaimed_where_it_was),
    "claims come back without their newest time": Sabotage(_REDIS_LOST_OFTEN, _reclaimed_without_newest),
    "the horizon is not published at joining": Sabotage(_only(HOURS, "writer_clock_jumps", "redis_restarts_empty"), _no_horizon_at_joining),
    "an old copy of a journal is opened": Sabotage(_only(OPERATED, "old_copy_starts"), _old_copy_accepted),
    "a flush begins before the store has accepted the journal": Sabotage(
        _only(OPERATED, "old_copy_starts", "redis_pauses", at_a_step=0.0, outage_s=(1, 2, 3)), _flush_at_once
    ),
    "a flush that an old copy holds as committed is produced": Sabotage(
        _only(FLUSHING, "old_copy_starts", "power_loss_at_a_disk_step"), _committed_flush_at_once
    ),
    "a flush is produced before it is synced": Sabotage(
        _only(FLUSHING, "power_loss", steps=(PRODUCED,), disk_s=(0.03, 0.1)), _produced_before_sync
    ),
    "a flush is numbered again": Sabotage(_only(FLUSHING, "kill", steps=(PRODUCED, FLUSHED)), _numbered_again),
    "a flush covers what stands before it": Sabotage(
        _only(FLUSHING, "kill", "power_loss", steps=(PRODUCED, FLUSHED)), _covers_what_stands_before_it
    ),
    "a flush without its commit exists": Sabotage(
        _only(FLUSHING, "kill", steps=(FLUSH_PART,), disk_s=(0.0002,), turn_us=(1000,)), _uncommitted_flush_exists
    ),
    "a record that may not be in the log is not produced again": Sabotage(_only(FLUSHING, "produce_outcome_unknown"), _one_more_is_durable),
    "the rater counts known records": Sabotage(
        _only(FLUSHING, "produce_outcome_unknown", "kill", steps=(PRODUCED, FLUSHED)), _rater_does_not_skip
    ),
    "a lost writer is retired without a horizon": Sabotage(
        _only(OPERATED, "disk_is_lost", "redis_restarts_empty"), _retired_without_horizon
    ),
    "a lost writer is left open": Sabotage(_only(OPERATED, "disk_is_lost", stuck_s=60), _lost_and_left_open),
    "events of a lost disk are not told": Sabotage(_only(OPERATED, "disk_is_lost"), lambda: _told_without("lost")),
    "events answered in the last moment of a disk are not told": Sabotage(
        _only(OPERATED, "disk_is_lost", steps=(SYNCED,), new=(1, 3, 8), again=(0, 1)), lambda: _told_without("doubtful")
    ),
    "a flush that a lost disk cut short is not told": Sabotage(
        _only(
            FLUSHING, "produce_outcome_unknown", "disk_is_lost", steps=(PRODUCED, APPENDED), writers=(2, 3), number=(3, 6), between_s=(0.3,)
        ),
        lambda: _told_without("cut_short"),
    ),
    "a drained writer is retired while it is needed": Sabotage(
        _only(
            OPERATED,
            "process_never_returns",
            "redis_restarts_empty",
            batches=(40, 80),
            memory=100,
            pause_s=(0.2, 1.0),
            number=(4, 8),
            between_s=(10.0,),
        ),
        _retired_at_once,
    ),
    "a segment goes before the horizon has passed it": Sabotage(_REDIS_LOST_OFTEN, lambda: _retains(_flushed)),
    "a shard is told of an opening before all have looked at the journal": Sabotage(
        _only(OPERATED, "old_copy_starts", shards=(2, 3)), _told_before_all_looked
    ),
    "a shard is told that calls of all shards are on the disk": Sabotage(
        _only(DUEL, "power_loss", steps=(EXECUTED,), shards=(2, 3)), _closed_with_calls_of_all_shards
    ),
    "a mark counts the calls of all shards": Sabotage(
        _only(DUEL, "power_loss", steps=(SENT, APPENDED), shards=(2, 3)), _mark_of_all_shards
    ),
    "a segment goes once one shard's horizon has passed it": Sabotage(
        _only(HOURS, "redis_pauses", "redis_restarts_empty", "writer_clock_jumps", shards=(2,)), _highest_horizon
    ),
    "a segment goes before it is flushed": Sabotage(_only(BRIEF, "kill", "log_unreachable"), lambda: _retains(_below_horizon)),
}
