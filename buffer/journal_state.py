"""What each journal record means: the standing of a journal after it, and what a replay hands to the pipeline.

Pure. Belongs here: coverage (which calls a flush carries), the ledger's totals, what a snapshot must say. Must not know: bytes, files.

`Standing` is one state machine for the live journal and for replay; it reads only outlines (records without their bodies), and its
assertions are the laws of the journal. `Details` then picks, in a second pass, the deltas and bytes that are still of use.

The law of flushes: one at a time, and a flush covers at least every call journalled before the previous one was acknowledged. Within
`accepted = flushed + buffered`, `flushed` is the accepted events at the last acknowledged flush's `through`, so it holds by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from buffer.counter_log import Record, Rejected
from buffer.counters import Deltas, MeterDefinition, Tallies, add_tallies, merge
from buffer.journal_records import (
    CallRecord,
    Closed,
    Entering,
    FlushBegin,
    FlushCommit,
    Flushed,
    FlushPart,
    FlushProgress,
    JournalRecord,
    Meters,
    Opened,
    Snapshot,
    Through,
)

# (number of the incarnation in order of opening, call): how calls of all incarnations compare.
Position = tuple[int, int]

BEFORE_ALL: Position = (-1, 0)


class OutstandingFlush(NamedTuple):
    """Committed, not known to be in the counter log: produce these very records again, then journal `Flushed`."""

    flush: int
    through: Through
    records: list[Record]
    rejected: list[Rejected]  # of the calls it covers
    tallies: Tallies  # of the calls it covers


class Replayed(NamedTuple):
    """What opening a journal found. Everything in it belongs to the caller."""

    writer: bytes
    fresh: bool  # no incarnation was ever opened in it, so nothing was ever claimed for it
    incarnations: list[tuple[bytes, int]]  # (id, last call), oldest first; all of them are closed now
    deltas: Deltas  # not covered by a committed flush, like the next two
    tallies: Tallies
    rejected: list[Rejected]
    flush: OutstandingFlush | None
    next_n: dict[int, int]  # partition -> number of its next record; a partition that has none yet is absent
    next_flush: int
    meters: dict[int, MeterDefinition]
    horizon_us: int
    totals: Tallies  # since the journal was made
    flushed: dict[int, int]  # accepted events per tenant in acknowledged flushes; the outstanding one is not in it
    shard_calls: list[Sequence[int]]  # beside `incarnations`: the last call of each in each shard; nothing for one that had one shard
    shard_horizons_us: list[int]  # of the shards of the newest incarnation; nothing where it has one

    def closed_in(self, shard: int, shards: int) -> list[tuple[bytes, int]]:
        """The incarnations as one of so many shards may know them: (id, last call there), oldest first.

        One of another set of shards is known to no store of this set, and its claims carry no call any more: that all of its calls are
        on disk is enough to say.
        """
        return [
            (incarnation, calls[shard] if len(calls) == shards else last)
            for (incarnation, last), calls in zip(self.incarnations, self.shard_calls, strict=True)
        ]

    def horizon_in(self, shard: int, shards: int) -> int:
        """What a shard must have as its horizon at least. In a new set of shards its tenants may come from any shard of the old one."""
        return self.shard_horizons_us[shard] if len(self.shard_horizons_us) == shards else self.horizon_us


class Standing:
    """Where a journal stands after the records applied so far."""

    def __init__(self, writer: bytes) -> None:
        self.writer = writer
        self.meters: dict[int, MeterDefinition] = {}
        self.next_n: dict[int, int] = {}
        self.next_flush = 1
        self.horizon_us = 0
        self.totals: Tallies = {}
        self.flushed: dict[int, int] = {}
        self.through = Through(b"", 0)  # of the last acknowledged flush
        self.progress: FlushProgress | None = None
        self.last_call: Position = BEFORE_ALL
        self.kept_from = 1
        self.branches: list[bytes] = []  # by shard, the branch of its claim store that was entered last
        self._ids: list[bytes] = []
        self._last_calls: list[int] = []
        self._shard_calls: list[list[int]] = []  # beside them: the last call in each shard; nothing for an incarnation that had one
        self.shard_horizons_us: list[int] = []  # of the newest incarnation; nothing where it has one shard
        # Accepted events of the calls since the last acknowledged flush, for the next flush to be told how far it reaches. Nothing is
        # noted while a committed flush is under way: by the law those calls are all covered by the one after it.
        self._recent: list[tuple[Position, int, int]] = []
        self._floor: Position = BEFORE_ALL  # the next flush reaches at least so far

    # ---- reading

    @property
    def incarnations(self) -> list[tuple[bytes, int]]:
        return list(zip(self._ids, self._last_calls, strict=True))

    @property
    def shard_calls(self) -> list[Sequence[int]]:
        return [list(calls) for calls in self._shard_calls]

    @property
    def least_horizon_us(self) -> int:
        """No event at or below it is ever claimed again, whatever its shard."""
        return min(self.shard_horizons_us, default=self.horizon_us)

    def position(self, through: Through) -> Position:
        if not through.incarnation:
            return BEFORE_ALL
        return self._ids.index(through.incarnation), through.call

    @property
    def acknowledged(self) -> Position:
        """Every call up to it is covered by an acknowledged flush."""
        return self.position(self.through)

    @property
    def committed(self) -> Position:
        """Every call up to it is covered by a committed flush."""
        return self.acknowledged if self.progress is None or not self.progress.committed else self.position(self.progress.through)

    def snapshot(self, kept_from: int) -> Snapshot:
        """Shares nothing with this object that may change before it is encoded, which is at once."""
        return Snapshot(
            self.writer,
            self.incarnations,
            self.meters,
            self.next_n,
            self.next_flush,
            self.horizon_us,
            self.totals,
            self.flushed,
            self.through,
            self.progress,
            kept_from,
            self._shard_calls,
            self.shard_horizons_us,
            self.branches,
        )

    # ---- applying

    def apply(self, record: JournalRecord) -> None:
        match record:
            case CallRecord():
                self._call(record)
            case FlushPart():
                self._flush_part(record)
            case FlushBegin():
                self._flush_begin(record)
            case FlushCommit():
                self._flush_commit(record)
            case Flushed():
                self._flush_acknowledged(record)
            case Meters():
                self.meters.update(record.definitions)
            case Opened():
                self._opened(record)
            case Entering():
                self._entering(record)
            case Closed():
                assert self._ids and record.last_call == self._last_calls[-1], "closed names the last call journalled"
            case Snapshot():
                self._snapshot(record)

    def reopened(self) -> None:
        """The process that wrote so far is gone: its uncommitted flush never was, and what it had merged is handed on as a whole."""
        if self.progress is not None and not self.progress.committed:
            self.progress = None
        self._recent.clear()
        self._floor = self.last_call

    def _snapshot(self, record: Snapshot) -> None:
        if self.last_call == BEFORE_ALL and not self._ids:
            self._start_from(record)
        self.kept_from = record.kept_from

    def _start_from(self, record: Snapshot) -> None:
        assert record.writer == self.writer
        self._ids = [incarnation for incarnation, _ in record.incarnations]
        self._last_calls = [last for _, last in record.incarnations]
        self._shard_calls = [list(calls) for calls in record.shard_calls] or [[] for _ in self._ids]
        self.shard_horizons_us = list(record.shard_horizons_us)
        self.branches = list(record.branches)
        self.last_call = next(((index, last) for index, last in reversed(list(enumerate(self._last_calls))) if last), BEFORE_ALL)
        self.meters = dict(record.meters)
        self.next_n = dict(record.next_n)
        self.next_flush = record.next_flush
        self.horizon_us = record.horizon_us
        self.totals = {tenant: dict(counts) for tenant, counts in record.totals.items()}
        self.flushed = dict(record.flushed)
        self.through = record.through
        self.progress = record.progress and record.progress._replace(next_n=dict(record.progress.next_n))

    def _opened(self, record: Opened) -> None:
        assert record.incarnation not in self._ids, "an incarnation opens once"
        self.reopened()
        self._ids.append(record.incarnation)
        self._last_calls.append(0)
        several = record.shards > 1
        self._shard_calls.append([0] * record.shards if several else [])
        if not several:
            self.shard_horizons_us = []
        elif len(self.shard_horizons_us) != record.shards:
            self.shard_horizons_us = [self.horizon_us] * record.shards

    def _entering(self, record: Entering) -> None:
        self.branches += [b""] * (record.shard + 1 - len(self.branches))
        self.branches[record.shard] = record.branch

    def _call(self, record: CallRecord) -> None:
        number = record.number
        assert self._ids and number == self._last_calls[-1] + 1, "every call leaves one record, in call order"
        self._last_calls[-1] = number
        self.last_call = (len(self._ids) - 1, number)
        if record.horizon_us > self.horizon_us:
            self.horizon_us = record.horizon_us
        if record.in_shard or self.shard_horizons_us:
            self._call_in_shard(record)
        add_tallies(self.totals, record.tallies)
        if self.progress is None or not self.progress.committed:
            for tenant, counts in record.tallies.items():
                accepted = counts.get("accepted")
                if accepted:
                    self._recent.append((self.last_call, tenant, accepted))

    def _call_in_shard(self, record: CallRecord) -> None:
        calls, horizons = self._shard_calls[-1], self.shard_horizons_us
        assert record.shard < len(calls) and record.in_shard == calls[record.shard] + 1, "each shard's calls are journalled in their order"
        calls[record.shard] = record.in_shard
        horizons[record.shard] = max(horizons[record.shard], record.horizon_us)

    def _flush_begin(self, record: FlushBegin) -> None:
        assert self.progress is None or not self.progress.committed, "one flush at a time"
        assert record.flush == self.next_flush, "flushes are numbered without a gap"
        position = self.position(record.through)
        assert self._floor <= position, "a flush covers all that was journalled before the last one was acknowledged"
        assert position[0] < 0 or position[1] <= self._last_calls[position[0]], "a flush covers only calls that are journalled"
        self.progress = FlushProgress(record.flush, record.through, {}, False, {})

    def _flush_part(self, record: FlushPart) -> None:
        progress = self.progress
        assert progress is not None and not progress.committed and record.flush == progress.flush, "a part follows its begin"
        for partition, n, _, _ in record.records:
            expected = progress.next_n.get(partition) or self.next_n.get(partition, 1)
            assert n == expected, (
                f"records of a partition are numbered without a gap: {n} where {expected} is next in partition {partition}"
            )
            progress.next_n[partition] = n + 1

    def _flush_commit(self, record: FlushCommit) -> None:
        progress = self.progress
        assert progress is not None and not progress.committed and record.flush == progress.flush, "a commit follows its begin"
        self.next_n.update(progress.next_n)
        self.next_flush = record.flush + 1
        self.progress = progress._replace(committed=True, accepted=self._accepted_through(self.position(progress.through)))
        self._recent.clear()

    def _accepted_through(self, position: Position) -> dict[int, int]:
        """Accepted events per tenant up to `position` that no acknowledged flush carried."""
        accepted = {tenant: counts.get("accepted", 0) - self.flushed.get(tenant, 0) for tenant, counts in self.totals.items()}
        for at, tenant, number in reversed(self._recent):
            if at <= position:
                break
            accepted[tenant] -= number
        return {tenant: number for tenant, number in accepted.items() if number}

    def _flush_acknowledged(self, record: Flushed) -> None:
        progress = self.progress
        assert progress is not None and progress.committed and record.flush == progress.flush, "only a committed flush is acknowledged"
        # A replay that starts after the calls it covers (their segments are gone) has only the record's own word.
        accepted = progress.accepted if record.accepted is None else record.accepted
        for tenant, number in accepted.items():
            self.flushed[tenant] = self.flushed.get(tenant, 0) + number
        self.through = progress.through
        self.progress = None
        self._floor = self.last_call


class Details:
    """Second pass: the bodies that are still of use, once `standing` has seen every record and was `reopened`."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._acknowledged = standing.acknowledged
        self._committed = standing.committed
        self._outstanding = standing.progress
        self._incarnation = -1
        self._deltas: Deltas = {}
        self._tallies: Tallies = {}
        self._rejected: list[Rejected] = []
        self._flush_records: list[Record] = []
        self._flush_rejected: list[Rejected] = []
        self._flush_tallies: Tallies = {}

    def wants(self, outline: JournalRecord) -> bool:
        """Whether `apply` needs the body of this record too. Never for what an acknowledged flush covers."""
        if isinstance(outline, CallRecord):
            return (self._incarnation, outline.number) > self._acknowledged
        return isinstance(outline, FlushPart) and self._outstanding is not None and outline.flush == self._outstanding.flush

    def apply(self, record: JournalRecord) -> None:
        match record:
            case CallRecord() if self.wants(record):
                self._call(record)
            case FlushPart() if self.wants(record):
                self._flush_records += record.records
            case FlushBegin():
                self._flush_records = []  # an earlier begin under this number was never committed
            case Opened():
                self._incarnation += 1
            case Snapshot():
                self._incarnation = len(record.incarnations) - 1
            case _:
                pass

    def _call(self, record: CallRecord) -> None:
        if (self._incarnation, record.number) <= self._committed:
            self._flush_rejected += record.rejected
            add_tallies(self._flush_tallies, record.tallies)
            return
        for deltas in record.deltas:
            merge(self._deltas, deltas)
        add_tallies(self._tallies, record.tallies)
        self._rejected += record.rejected

    def replayed(self) -> Replayed:
        standing = self._standing
        self._check_ledger()
        return Replayed(
            writer=standing.writer,
            fresh=not standing.incarnations,
            incarnations=standing.incarnations,
            deltas=self._deltas,
            tallies=self._tallies,
            rejected=self._rejected,
            flush=self._flush(),
            next_n=dict(standing.next_n),
            next_flush=standing.next_flush,
            meters=dict(standing.meters),
            horizon_us=standing.horizon_us,
            totals={tenant: dict(counts) for tenant, counts in standing.totals.items()},
            flushed=dict(standing.flushed),
            shard_calls=standing.shard_calls,
            shard_horizons_us=list(standing.shard_horizons_us),
        )

    def _flush(self) -> OutstandingFlush | None:
        if self._outstanding is None:
            return None
        flush, through = self._outstanding.flush, self._outstanding.through
        return OutstandingFlush(flush, through, self._flush_records, self._flush_rejected, self._flush_tallies)

    def _check_ledger(self) -> None:
        """accepted = flushed + buffered, the right side added up from the calls themselves."""
        for tenant, counts in self._standing.totals.items():
            parts = (self._flush_tallies.get(tenant, {}), self._tallies.get(tenant, {}))
            buffered = sum(part.get("accepted", 0) for part in parts)
            assert counts.get("accepted", 0) == self._standing.flushed.get(tenant, 0) + buffered, (
                f"the ledger of tenant {tenant} does not add up"
            )


def replay(records: Sequence[JournalRecord]) -> Replayed:
    """Both passes over records in memory; the first is a snapshot."""
    first = records[0]
    assert isinstance(first, Snapshot)
    standing = standing_after(Standing(first.writer), records)
    standing.reopened()
    details = Details(standing)
    for record in records:
        details.apply(record)
    return details.replayed()


def standing_after(standing: Standing, records: Iterable[JournalRecord]) -> Standing:
    for record in records:
        standing.apply(record)
    return standing
