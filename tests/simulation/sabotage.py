"""Each guard of PROTOCOL.md, with a way to take it out. Only the simulation knows these switches; the product has none.

A sabotage is a context manager that puts a broken function in place of a sound one. test_sabotage.py shows that each is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import buffer.journal_segments as journal_segments
from buffer.counter_log import Record
from buffer.journal_records import FlushBegin, JournalRecord, Through
from dedupe.claim_table import _VOID, ClaimTable
from dedupe.port import DUPLICATE, GRANTED, PENDING, Call, Verdicts
from dedupe.redis_claims import RedisClaims
from ingest.flusher import Flusher
from ingest.history import JournalHistory
from ingest.writer import Writer
from tests.simulation.counter_log import Ledger

Sabotage = Callable[[], Any]


@contextmanager
def _answer_before_sync(only_without_grants: bool) -> Iterator[None]:
    append = Writer._append

    def broken(self: Writer, number: int) -> None:
        append(self, number)
        for request in self._unsynced[-1].decided:
            if (not only_without_grants or not request.accepted) and not request.answer.done():
                request.answer.set_result(request.outcome())

    with patch.object(Writer, "_append", broken):
        yield


@contextmanager
def _mark_before_sync() -> Iterator[None]:
    append = Writer._append

    def broken(self: Writer, number: int) -> None:
        append(self, number)
        self.claims.raise_mark(number)

    with patch.object(Writer, "_append", broken):
        yield


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
    return sum(len(section.digests) for section in call.sections) // 12


@contextmanager
def _verdict(change: Callable[[ClaimTable, int, bool, int, int], int]) -> Iterator[None]:
    """change(table, verdict, mine, stored call, this call) -> verdict"""
    verdict = ClaimTable._verdict

    def broken(self: ClaimTable, value: bytes, my_number: int, number: int) -> int:
        mine = int.from_bytes(value[:4], "big") == my_number
        return change(self, verdict(self, value, my_number, number), mine, int.from_bytes(value[4:8], "big"), number)

    with patch.object(ClaimTable, "_verdict", broken):
        yield


@contextmanager
def _any_session() -> Iterator[None]:
    admit = ClaimTable._admit

    def broken(self: ClaimTable, context: Any) -> Any:
        refusal = admit(self, context)
        return None if refusal == [b"stale"] else refusal

    with patch.object(ClaimTable, "_admit", broken):
        yield


@contextmanager
def _any_redis() -> Iterator[None]:
    """The script does not look at which Redis it runs in, and a writer does not ask."""
    claim, hello = ClaimTable.claim, ClaimTable.hello

    def open_everywhere(self: ClaimTable, context: Any) -> None:
        self._open.replication_id, self._open.identity = self.replication_id, context.identity

    def broken_claim(self: ClaimTable, context: Any, *rest: Any) -> Any:
        open_everywhere(self, context)
        return claim(self, context, *rest)

    def broken_hello(self: ClaimTable, context: Any, *rest: Any) -> Any:
        reply = hello(self, context, *rest)
        if reply[0] != b"hello":
            return reply
        open_everywhere(self, context)
        return [*reply[:2], 1, 1, 0, reply[5]]

    with patch.object(ClaimTable, "claim", broken_claim), patch.object(ClaimTable, "hello", broken_hello):
        yield


@contextmanager
def _opens_alone() -> Iterator[None]:
    async def broken(self: JournalHistory) -> frozenset[bytes]:
        return frozenset((self.writer,))

    with patch.object(JournalHistory, "members", broken):
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


@contextmanager
def _produced_before_sync() -> Iterator[None]:
    flush = Flusher.flush

    async def broken(self: Flusher) -> None:
        journal = self._journal
        drain = journal.drain

        async def at_once() -> None:
            pass

        journal.drain = at_once  # type: ignore[method-assign]
        try:
            await flush(self)
        finally:
            journal.drain = drain  # type: ignore[method-assign]

    with patch.object(Flusher, "flush", broken):
        yield


@contextmanager
def _numbered_again() -> Iterator[None]:
    """After a crash a committed flush goes out under new numbers."""
    run = Flusher.run

    async def broken(self: Flusher) -> None:
        if self._outstanding is not None:
            records = []
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
    flush_encode = Flusher._encode

    async def broken(self: Flusher, flush: int, through: Through, *rest: Any) -> list[Record]:
        records = await flush_encode(self, flush, through, *rest)
        self._journal.append(FlushBegin(flush, self.through))
        from buffer.journal_records import FlushPart

        self._journal.append(FlushPart(flush, records))
        return records

    with patch.object(Flusher, "_encode", broken):
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


@contextmanager
def _copies_in_a_call() -> Iterator[None]:
    """Two copies of a digest in one call are two claims."""
    import ingest.calls as calls

    def broken(requests: Sequence[Any]) -> list[Any]:
        return [
            calls._whole(request) if request.open_positions is None else calls._some(request, request.open_positions)
            for request in requests
        ]

    with patch.object(calls, "_parts", broken):
        yield


def _foreign_pending_is_duplicate(_: ClaimTable, verdict: int, mine: bool, stored: int, number: int) -> int:
    return DUPLICATE if verdict == PENDING and not mine else verdict


def _void_stays_pending(_: ClaimTable, verdict: int, mine: bool, stored: int, number: int) -> int:
    return PENDING if verdict == _VOID else verdict


def _own_earlier_is_granted(_: ClaimTable, verdict: int, mine: bool, stored: int, number: int) -> int:
    return GRANTED if mine and 0 < stored < number else verdict


def _own_later_is_duplicate(_: ClaimTable, verdict: int, mine: bool, stored: int, number: int) -> int:
    return DUPLICATE if mine and verdict == PENDING else verdict


SABOTAGES: dict[str, Sabotage] = {
    "answer before the sync": lambda: _answer_before_sync(False),
    "a call that granted nothing is answered before the sync": lambda: _answer_before_sync(True),
    "mark before the sync": _mark_before_sync,
    "a call once sent is abandoned": _call_abandoned,
    "a foreign pending claim is a duplicate": lambda: _verdict(_foreign_pending_is_duplicate),
    "a void claim is never taken over": lambda: _verdict(_void_stays_pending),
    "an earlier call of one's own is granted again": lambda: _verdict(_own_earlier_is_granted),
    "a later call of one's own is a duplicate": lambda: _verdict(_own_later_is_duplicate),
    "a stale copy is executed": _any_session,
    "claims go to any Redis": _any_redis,
    "claims open before all members joined": _opens_alone,
    "closed is published for an unsynced tail": _tail_not_copied,
    "a flush is produced before it is synced": _produced_before_sync,
    "a flush is numbered again": _numbered_again,
    "a flush covers what stands before it": _covers_what_stands_before_it,
    "the rater counts known records": _rater_does_not_skip,
    "two copies in a call are two claims": _copies_in_a_call,
}
_ = JournalRecord
