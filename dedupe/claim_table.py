"""The claim store as a value in this process: the same operations as the scripts of lua/, one to one, with the same replies.

Pure: time comes in through `clock_us`, as the server's clock does in a script. Belongs here: what the scripts do, and nothing that they
do not. Must not know: the event loop, journals, who calls. The twins test holds both sides to the same answers; change them together.

A reply is a list like the script's, statuses as bytes. Claims: generation -> tenant -> {digest: 8-byte tag + 4-byte fingerprint}; bytes
only, so the garbage collector never visits them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from struct import Struct

from dedupe.port import CONFLICT, COPY, DIGEST_BYTES, DUPLICATE, GRANTED, PENDING, Section
from dedupe.scripts import Context, Reclaim

Reply = list[object]
_TAG = Struct(">II")  # incarnation number, call
_VOID = 0  # found, but never counted: to be taken over


@dataclass(slots=True)
class _Incarnation:
    """w:{incarnation}"""

    session: int | None = None  # None: only known as closed
    mark: int = 0
    executions: int = 0
    closed: int | None = None
    base: int = -1  # the call up to which it has claimed its journal here
    number: int = 0  # holds only in the era it was given in
    era: bytes = b""


@dataclass(slots=True)
class _Owner:
    """`open` and `join`"""

    replication_id: str | None = None
    log: str | None = None
    identity: bytes | None = None
    era: bytes = b""
    branch: bytes = b""
    faster: bool = False  # of a join: only what its journals have beyond what is here is claimed again
    found: bytes = b""  # of a faster join: the branch of what is here


class ClaimTable:
    def __init__(self, clock_us: Callable[[], int], replication_id: str) -> None:
        self.replication_id = replication_id  # another one: the store restarted
        self.size = 0  # claims alive
        self._clock_us = clock_us
        self._open = _Owner()
        self._join = _Owner()
        self._joined: set[bytes] = set()  # into `replication_id`
        self._gen: int | None = None
        self._low = 0
        self._horizon = 0
        self._newest: dict[int, int] = {}
        self._claims: dict[int, dict[int, dict[bytes, bytes]]] = {}
        self._interned: dict[int, bytes] = {}
        self._w: dict[bytes, _Incarnation] = {}
        self._writers: dict[bytes, bytes] = {}
        self._dropped: list[dict[bytes, bytes]] = []

    # ---- the scripts

    def hello(self, context: Context, clock_us: int) -> Reply:
        elsewhere = self._belongs_elsewhere(context)
        if elsewhere:
            return elsewhere
        refusal = self._admit(context)
        if refusal and refusal[0] != b"rejoin":
            return refusal
        unknown = self._number(context, self._open.era) is None
        self._w.setdefault(context.incarnation, _Incarnation()).session = context.session
        is_open = self._open.replication_id == self.replication_id
        if is_open:
            self._intern(context, self._open.era)
            self.rotate(context, clock_us)
        joined = self._join.replication_id == self.replication_id and context.writer in self._joined
        branch = self._open.branch if is_open else b""
        return [b"hello", self.replication_id.encode(), int(is_open), int(joined), int(unknown), self._horizon, branch]

    def publish(self, context: Context, mark: int, closed: Sequence[tuple[bytes, int]]) -> Reply:
        refusal = self._admit(context)
        if refusal:
            return refusal
        stale = self._stale_journal(context, mark, closed)
        if stale:
            return stale
        for incarnation, last in closed:
            self._w.setdefault(incarnation, _Incarnation()).closed = last
        self._writers[context.writer] = context.incarnation
        return [b"published"]

    def join(self, context: Context, era: bytes, last: bytes = b"", incarnations: Sequence[bytes] = ()) -> Reply:
        refusal = self._belongs_elsewhere(context) or self._admit(context)
        if refusal:
            return refusal
        as_it_was_left = last in (b"", self._open.branch)
        under_way = self._join.replication_id == self.replication_id and (
            self._open.replication_id != self.replication_id or as_it_was_left
        )
        if under_way and (not self._join.faster or last in (b"", self._join.branch, self._join.found)):
            self._joined.discard(context.writer)  # it may have claimed elsewhere since: what it claims again now is waited for
            self._intern(context, self._join.era)
            return self._faster(0, incarnations) if self._join.faster else [b"joining", self._join.era, 0, self._join.branch, 0]
        complete = as_it_was_left and self._was_complete(context)
        self._open.replication_id = None
        if complete and self._fits_together():
            self._joined.clear()
            self._join = replace(self._join, replication_id=self.replication_id, branch=era, faster=True, found=self._open.branch)
            self._intern(context, self._join.era)
            return self._faster(1, incarnations)
        self._wipe()
        self._join = _Owner(self.replication_id, context.log, context.identity, era, era)
        self._intern(context, era)
        return [b"joining", era, 1, era, 0]

    def _was_complete(self, context: Context) -> bool:
        """Whether what is here is a store as it was while its claims were complete."""
        was, last = self._open, self._join
        return (
            was.replication_id is not None
            and (was.replication_id, was.branch) == (last.replication_id, last.branch)
            and (was.log, was.identity) == (context.log, context.identity)
        )

    def _fits_together(self) -> bool:
        if not self._interned or (self._newest and self._gen is None):
            return False
        return self._newest.keys() == self._claims.keys() and all(self._claims.values())

    def _faster(self, first: int, incarnations: Sequence[bytes]) -> Reply:
        reply: Reply = [b"joining", self._join.era, first, self._join.branch, 1, self._join.found]
        for incarnation in incarnations:
            w = self._w.get(incarnation)
            reply += (0, -1) if w is None else (w.executions, w.base)
        return reply

    def reclaim(self, context: Context, era: bytes, clock_us: int, sections: Sequence[Reclaim]) -> Reply:
        if not self._joining(era):
            return [b"rebuild"]
        refusal = self._admit(context)
        if refusal:
            return refusal
        number = self._number(context, era)
        if number is None:
            return [b"rejoin"]
        gen = self.rotate(context, clock_us)
        tag = _TAG.pack(number, 0)
        for tenant, generation, newest_us, digests, fingerprints in sections:
            if digests:
                generation = max(self._low, min(gen, generation))
                self._write(generation, tenant, _split(digests, 12), _tagged(tag, fingerprints))
                self._raise_newest(generation, newest_us)
        return [b"reclaimed", gen, self._horizon]

    def joined(self, context: Context, era: bytes, mark: int, horizon_us: int, elsewhere: int, members: Iterable[bytes]) -> Reply:
        if not self._joining(era):
            return [b"rebuild"]
        refusal = self._admit(context)
        if refusal:
            return refusal
        me = self._w[context.incarnation]
        me.mark = max(me.mark, mark)
        me.base = mark
        self._horizon = max(self._horizon, horizon_us)
        self._joined.add(context.writer)
        missing = elsewhere + len(set(members) - self._joined)
        if missing == 0:
            self._open = _Owner(self.replication_id, context.log, context.identity, era, self._join.branch)
        return [b"joined", int(self._open.replication_id == self.replication_id), missing]

    def claim(
        self,
        context: Context,
        number: int,
        mark: int,
        clock_us: int,
        oldest_us: int,
        newest_us: int,
        sections: Sequence[Section],
        copies: bytes = b"",
    ) -> Reply:
        if self._open.replication_id != self.replication_id or self._open.identity != context.identity:
            return [b"rebuild"]
        refusal = self._admit(context)
        if refusal:
            return refusal
        my_number = self._number(context, self._open.era)
        if my_number is None:
            return [b"rejoin"]
        me = self._w[context.incarnation]
        if mark > me.mark:
            me.mark = mark
        if number == 0:
            return [b"marked"]
        me.executions += 1
        gen = self.rotate(context, clock_us)
        if sections and oldest_us <= self._horizon:
            return [b"late", self._horizon]
        codes = self._verdicts(gen, my_number, number, newest_us, sections)
        if copies:
            codes = self._with_copies(codes, sections, copies)
        return [b"verdicts", gen, me.executions, self._horizon, codes]

    def close(self, context: Context, last_call: int) -> Reply:
        me = self._w.get(context.incarnation)
        if me is not None and me.closed == last_call:
            return [b"closed"]
        refusal = self._admit(context)
        if refusal:
            return refusal
        me = self._w[context.incarnation]
        me.mark = max(me.mark, last_call)
        me.closed = last_call
        return [b"closed"]

    def bury(self, context: Context, for_good: bool, through: bytes, through_call: int) -> Reply:
        elsewhere = self._belongs_elsewhere(context)
        if elsewhere:
            return elsewhere
        named = self._writers.get(context.writer, b"")
        known = self._w.get(named)
        mark, closed = (0, -1) if known is None else (known.mark, -1 if known.closed is None else known.closed)
        last = closed if closed >= 0 else max(mark, through_call) if through == named else mark
        if for_good:
            if named and closed < 0:
                self._w.setdefault(named, _Incarnation()).closed = last
            if through and through != named and self._w.setdefault(through, _Incarnation()).closed is None:
                self._w[through].closed = through_call
        return [b"buried", named.hex().encode(), mark, closed, last]

    # ---- verdicts

    def _verdicts(self, gen: int, my_number: int, number: int, newest_us: int, sections: Sequence[Section]) -> bytes:
        my_tag = _TAG.pack(my_number, number)
        older = sorted((g for g in self._newest if self._low <= g < gen), reverse=True)
        total, notes, any_granted = 0, [], False
        for tenant, digests, fingerprints in sections:
            keys = _split(digests, 12)
            holders = [self._claims[g][tenant] for g in (gen, *older) if tenant in self._claims.get(g, ())]
            if all(held.keys().isdisjoint(keys) for held in holders):  # the usual case: all new
                if keys:
                    self._write(gen, tenant, keys, _tagged(my_tag, fingerprints))
                    any_granted = True
            else:
                codes = self._decide(gen, tenant, keys, _split(fingerprints, 4), holders, my_number, number)
                any_granted = any_granted or GRANTED in codes
                notes.append((total, codes))
            total += len(keys)
        if any_granted:
            self._raise_newest(gen, newest_us)
        return _merged(total, notes)

    def _decide(
        self,
        gen: int,
        tenant: int,
        keys: list[bytes],
        fingerprints: list[bytes],
        holders: list[dict[bytes, bytes]],
        my_number: int,
        number: int,
    ) -> bytearray:
        my_tag = _TAG.pack(my_number, number)
        codes, taken, values = bytearray(), [], []
        for key, fingerprint in zip(keys, fingerprints, strict=True):
            code = _VOID
            for held in holders:  # newest generation first; the first claim found decides
                value = held.get(key)
                if value is not None:
                    code = self._verdict(value, my_number, number)
                    if code == DUPLICATE:
                        code = _duplicate_or_conflict(value, fingerprint)
                    break
            if code == _VOID:
                taken.append(key)
                values.append(my_tag + fingerprint)
                code = GRANTED
            codes.append(code)
        if taken:
            self._write(gen, tenant, taken, values)
        return codes

    def _with_copies(self, codes: bytes, sections: Sequence[Section], copies: bytes) -> bytes:
        """Each copy is a duplicate of what its first is a claim of by now, or a conflict with it; or as pending as its first."""
        places = [(tenant, digest) for tenant, digests, _ in sections for digest in _split(digests, DIGEST_BYTES)]
        known = codes or bytes((GRANTED,)) * len(places)
        newest_first = [self._claims[generation] for generation in sorted(self._claims, reverse=True)]
        of_copies = bytearray()
        for place, fingerprint in COPY.iter_unpack(copies):
            if known[place] == PENDING:
                of_copies.append(PENDING)
                continue
            tenant, digest = places[place]
            value = next(held[tenant][digest] for held in newest_first if digest in held.get(tenant, ()))
            of_copies.append(_duplicate_or_conflict(value, fingerprint))
        return known + of_copies

    def _verdict(self, value: bytes, my_number: int, number: int) -> int:
        other_number, call = _TAG.unpack_from(value)
        if other_number == my_number:
            if call == number:
                return GRANTED
            return DUPLICATE if call < number else PENDING
        other = self._w.get(self._interned.get(other_number, b""))
        if other is None:
            return PENDING
        if call <= other.mark:
            return DUPLICATE
        if other.closed is not None:
            return DUPLICATE if call <= other.closed else _VOID
        return PENDING

    # ---- who may speak

    def _admit(self, context: Context) -> Reply | None:
        w = self._w.get(context.incarnation)
        if w is None:
            return [b"rejoin"]
        if w.closed is not None:
            return [b"zombie"]
        if w.session is None:
            return [b"rejoin"]
        return [b"stale"] if w.session > context.session else None

    def _belongs_elsewhere(self, context: Context) -> Reply | None:
        for owner in (self._open, self._join):
            if owner.log is not None and owner.log != context.log:
                return [b"wrong_log", owner.log.encode()]
            if owner.replication_id == self.replication_id and owner.identity != context.identity:
                return [b"wrong_identity", owner.identity]
        return None

    def _stale_journal(self, context: Context, mark: int, closed: Sequence[tuple[bytes, int]]) -> Reply | None:
        if self._w[context.incarnation].mark > mark:
            return [b"stale_journal", context.incarnation.hex().encode(), b"mark"]
        for incarnation, last in closed:
            w = self._w.get(incarnation)
            if w is not None and w.mark > last:
                return [b"stale_journal", incarnation.hex().encode(), b"mark"]
            if w is not None and w.closed is not None and w.closed != last:
                return [b"stale_journal", incarnation.hex().encode(), b"closed"]
        named = self._writers.get(context.writer)
        if named is not None and named != context.incarnation and named not in dict(closed):
            return [b"stale_journal", named.hex().encode(), b"unknown"]
        claimed = any(last > 0 for _, last in closed)
        if named is None and claimed and self._open.replication_id == self.replication_id:
            return [b"stale_journal", context.incarnation.hex().encode(), b"missing"]
        return None

    def _joining(self, era: bytes) -> bool:
        return self._join.replication_id == self.replication_id and self._join.era == era

    def _number(self, context: Context, era: bytes) -> int | None:
        me = self._w.get(context.incarnation)
        return me.number if me is not None and me.number and me.era == era else None

    def _intern(self, context: Context, era: bytes) -> None:
        if self._number(context, era) is None:
            me = self._w[context.incarnation]
            me.number, me.era = len(self._interned) + 1, era
            self._interned[me.number] = context.incarnation

    # ---- generations

    def rotate(self, context: Context, clock_us: int) -> int:
        """Step 4; returns the current generation."""
        now_us = min(self._clock_us(), clock_us)
        by_clock = now_us // context.generation_us
        if self._gen is None:
            self._gen = self._low = by_clock
        elif by_clock > self._gen:
            self._gen = by_clock
        gen = self._gen
        if self._low < gen and self._newest.get(self._low, 0) < now_us - context.lifetime_us:
            self._low = self._drop_old(gen, now_us - context.lifetime_us)
        return gen

    def _drop_old(self, gen: int, limit_us: int) -> int:
        for generation in sorted(g for g in self._newest if g < gen):
            if self._newest[generation] >= limit_us:
                return generation
            self._horizon = max(self._horizon, self._newest.pop(generation))
            self._bury(generation)
        return gen

    def _raise_newest(self, generation: int, time_us: int) -> None:
        self._newest[generation] = max(self._newest.get(generation, 0), time_us)

    def _write(self, generation: int, tenant: int, keys: list[bytes], values: list[bytes]) -> None:
        claims = self._claims.setdefault(generation, {}).setdefault(tenant, {})
        before = len(claims)
        claims.update(zip(keys, values, strict=True))
        self.size += len(claims) - before

    def _wipe(self) -> None:
        for generation in list(self._claims):
            self._bury(generation)
        self._newest.clear()
        self._interned.clear()
        self._joined.clear()
        for w in self._w.values():
            w.executions, w.base = 0, -1

    # ---- freeing: a dict of a million claims takes a tenth of a second to free at once

    def _bury(self, generation: int) -> None:
        for claims in self._claims.pop(generation, {}).values():
            self.size -= len(claims)
            self._dropped.append(claims)

    def free(self, most: int) -> bool:
        """Free up to `most` dropped claims. Is there more?"""
        while self._dropped and most > 0:
            claims = self._dropped[-1]
            for _ in range(min(most, len(claims))):
                claims.popitem()
                most -= 1
            if not claims:
                self._dropped.pop()
        return bool(self._dropped)


def _split(joined: bytes, size: int) -> list[bytes]:
    return [joined[at : at + size] for at in range(0, len(joined), size)]


def _duplicate_or_conflict(value: bytes, fingerprint: bytes) -> int:
    """Of the same shape with other content it is a conflict; of another shape it is only a duplicate."""
    return CONFLICT if value[8:] != fingerprint and value[8] == fingerprint[0] else DUPLICATE


def _tagged(tag: bytes, fingerprints: bytes) -> list[bytes]:
    return [tag + fingerprints[at : at + 4] for at in range(0, len(fingerprints), 4)]


def _merged(total: int, notes: list[tuple[int, bytearray]]) -> bytes:
    """One code an event; b"" when all are granted."""
    codes = bytearray((GRANTED,)) * total
    for at, some in notes:
        codes[at : at + len(some)] = some
    return b"" if codes.count(GRANTED) == total else bytes(codes)
