"""Which step of the protocol a writer is in: seen from outside, at its disk, its connection and its log.

Belongs here: the steps, who reports them, and faults that wait for one. Must not know: what a fault does.

A call's step is the last thing that happened to it: `claim sent` (the request is under way), `executed` (the reply is), `reply` (it waits
for the reply of an earlier call), `appended` (it is being written), `synced` (answered; its mark is not in Redis yet), `marked` (nothing
of it is left to do, and no other call is under way). A flush likewise: `flush begun`, `committed` (not produced before it is synced),
`produced` (being produced), `flushed` (that is being written).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from buffer.journal import Journal
from buffer.journal_records import CallRecord, FlushBegin, FlushCommit, Flushed, FlushPart, JournalRecord

SENT, EXECUTED, REPLY, APPENDED, SYNCED, MARKED = "claim sent", "executed", "reply", "appended", "synced", "marked"
FLUSH_BEGUN, COMMITTED, PRODUCED, FLUSHED = "flush begun", "committed", "produced", "flushed"
OPENING, JOINING = "opening", "joining"
FLUSH_PART = "flush part"  # within `flush begun`: only to wait for
# Of a rater: what it does with a batch, that the reply to its commit was lost, that it goes back; and that something waits in the database.
POLLED, IN_TRANSACTION, COMMIT_SENT, REPLY_LOST = "polled", "in transaction", "commit sent", "committed, reply lost"
PARKED, REWINDING = "parked", "rewinding"
RATER_STEPS = (POLLED, IN_TRANSACTION, COMMIT_SENT, REPLY_LOST, PARKED, REWINDING)
STEPS = (SENT, EXECUTED, REPLY, APPENDED, SYNCED, MARKED, FLUSH_BEGUN, COMMITTED, PRODUCED, FLUSHED, OPENING, JOINING)

Action = Callable[[], object]
Call = tuple[int, int]  # shard, number there


class Steps:
    """Of one writer, over all its processes."""

    def __init__(self) -> None:
        self.on_flushed: Action = _nothing  # right after a flush was journalled as flushed
        self._waiting: dict[str, list[Action]] = {}
        self._begin("")

    def _begin(self, life: str) -> None:
        self._life = life
        self._calls: dict[Call, str] = {}
        self._sequences: dict[Call, int] = {}  # call -> sequence of its record
        self._flush = ""
        self._flushed_sequence = 0
        self._marks: dict[int, int] = {}  # of each shard

    # ---- asking

    def now(self, *, ready: bool) -> set[str]:
        life = "" if ready else self._life
        steps = {step for step in (life, self._flush, *self._calls.values()) if step}
        return steps or ({MARKED} if self._marks else set())

    def when(self, step: str, action: Action) -> None:
        """Do it once, right after the step is reached next."""
        self._waiting.setdefault(step, []).append(action)

    def forget_actions(self) -> None:
        self._waiting.clear()

    def _reach(self, step: str) -> None:
        for action in self._waiting.pop(step, ()):
            asyncio.get_running_loop().call_soon(action)

    # ---- the process

    def started(self) -> None:
        self._begin(OPENING)
        self._reach(OPENING)

    def ended(self) -> None:
        self._begin("")

    # ---- the connection

    def sent(self, shard: int, call: int) -> None:
        if call:
            self._calls[shard, call] = SENT
            self._reach(SENT)

    def executed(self, shard: int, call: int, mark: int) -> None:
        self._life = ""
        if call and (shard, call) in self._calls:
            self._calls[shard, call] = EXECUTED
            self._reach(EXECUTED)
        if mark > self._marks.get(shard, 0):
            self._marks[shard] = mark
            for finished in [one for one, step in self._calls.items() if step == SYNCED and one[0] == shard and one[1] <= mark]:
                del self._calls[finished]
            self._reach(MARKED)

    def replied(self, shard: int, call: int) -> None:
        if self._calls.get((shard, call)) == EXECUTED:
            self._calls[shard, call] = REPLY
            self._reach(REPLY)

    def joining(self) -> None:
        self._life = JOINING
        self._reach(JOINING)

    # ---- the journal

    def watch(self, journal: Journal) -> None:
        """After the writer took the journal: it is told first."""
        append, on_synced = journal.append, journal.on_synced

        def watched_append(record: JournalRecord) -> int:
            sequence = append(record)
            self._appended(record, sequence)
            return sequence

        def watched_sync(synced: int) -> None:
            on_synced(synced)
            self._synced(synced)

        journal.append = watched_append  # type: ignore[method-assign]
        journal.on_synced = watched_sync

    def _appended(self, record: JournalRecord, sequence: int) -> None:
        match record:
            case CallRecord():
                call = record.shard, record.in_shard or record.number
                self._calls[call] = APPENDED
                self._sequences[call] = sequence
                self._reach(APPENDED)
            case FlushBegin():
                self._flush = FLUSH_BEGUN
                self._reach(FLUSH_BEGUN)
            case FlushPart():
                self._reach(FLUSH_PART)
            case FlushCommit():
                self._flush = COMMITTED
                self._reach(COMMITTED)
            case Flushed():
                self._flush, self._flushed_sequence = FLUSHED, sequence
                self._reach(FLUSHED)
                asyncio.get_running_loop().call_soon(self.on_flushed)
            case _:
                pass

    def _synced(self, synced: int) -> None:
        for call in [one for one, sequence in self._sequences.items() if sequence <= synced]:
            del self._sequences[call]
            self._calls[call] = SYNCED
            self._reach(SYNCED)
        if self._flush == FLUSHED and self._flushed_sequence <= synced:
            self._flush = ""

    # ---- the log

    def produced(self) -> None:
        self._flush = PRODUCED
        self._reach(PRODUCED)


def _nothing() -> None:
    """Nobody asked."""
