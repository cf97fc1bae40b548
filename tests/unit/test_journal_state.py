"""Replay against a plain model that reads the whole history by the definitions of PROTOCOL.md, one at a time."""

from __future__ import annotations

from copy import deepcopy
from random import Random

import pytest

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
    JournalRecord,
    Meters,
    Opened,
    Snapshot,
    Through,
)
from buffer.journal_segments import SegmentFacts, disposable
from buffer.journal_state import OutstandingFlush, Replayed, Standing, replay
from tests.journal_driver import METER, call, flush_records

WRITER = bytes(range(16))


class History:
    """Makes a random but lawful journal, the way the pipeline does: calls, flushes that lag behind, restarts, rolls."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.standing = Standing(WRITER)
        self.segments: list[list[JournalRecord]] = []
        self.facts: list[SegmentFacts] = []
        self.horizon_us = 0
        self.number = 0
        self.incarnation = b""
        self.through = Through(b"", 0)  # the last call merged
        self.swapped: tuple[int, Through, int] | None = None  # flush, through, how far it is: 1 begun, 2 committed
        self.roll()
        self.open()

    def add(self, record: JournalRecord) -> None:
        if isinstance(record, Flushed):
            assert self.standing.progress is not None
            record = Flushed(record.flush, self.standing.progress.accepted)
        self.segments[-1].append(deepcopy(record))
        self.standing.apply(record)
        self.facts[-1].note(record, self.standing.last_call)

    def roll(self) -> None:
        self.segments.append([])
        self.facts.append(SegmentFacts(len(self.segments)))
        self.add(self.standing.snapshot(kept_from=1))

    def open(self) -> None:
        """The process before died, at any moment; what it merged is all handed on."""
        self.standing.reopened()
        if self.swapped is not None and self.swapped[2] < 2:
            self.swapped = None
        self.incarnation = b""
        if self.random.random() < 0.7:
            self.begin_incarnation()

    def begin_incarnation(self) -> None:
        self.incarnation = self.random.randbytes(16)
        self.number = 0
        self.add(Opened(self.incarnation, self.random.randrange(1000)))

    def step(self) -> None:
        choice = self.random.choices(["call", "flush", "roll", "crash", "close", "meter"], [12, 6, 1.5, 0.5, 0.3, 0.3])[0]
        if choice == "call":
            if self.incarnation:
                self.call()
            elif self.swapped is None or self.swapped[2] != 1:  # a process opens before it flushes, or not at all
                self.begin_incarnation()
        elif choice == "flush":
            self.flush_step()
        elif choice == "roll":
            self.roll()
        elif choice == "crash":
            self.open()
        elif choice == "close" and self.incarnation:
            self.add(Closed(self.number))
            self.open()
        elif choice == "meter":
            number = len(self.standing.meters) + 1
            self.add(Meters({number: MeterDefinition(f"meter {number}", "0", "max", number, 60, ())}))

    def call(self) -> None:
        self.number += 1
        self.horizon_us += self.random.randrange(3)
        newest_us = self.horizon_us + self.random.randrange(1, 30) if self.random.random() < 0.8 else 0
        rejected = [Rejected("t", self.random.randbytes(3))] if self.random.random() < 0.3 else []
        accepted = self.random.randrange(4) if newest_us else 0
        self.add(
            call(
                self.number,
                accepted,
                newest_us=newest_us,
                horizon_us=self.horizon_us,
                tenant=self.random.randint(1, 2),
                random=self.random,
                rejected=rejected,
            )
        )
        self.through = Through(self.incarnation, self.number)

    def flush_step(self) -> None:
        """One step of the flush under way: swap, (calls go on), begin and parts, commit, acknowledge."""
        if self.swapped is None:
            self.swapped = (self.standing.next_flush, self.through, 0)
            return
        flush, through, done = self.swapped
        if done == 0:
            begin, *parts, _ = flush_records(flush, through, self.numbered(self.random.randrange(4)), parts=2)
            for record in (begin, *parts):
                self.add(record)
        elif done == 1:
            self.add(FlushCommit(flush))
        else:
            self.add(Flushed(flush))
            self.swapped = None
            return
        self.swapped = (flush, through, done + 1)

    def numbered(self, count: int) -> list[Record]:
        next_n, records = dict(self.standing.next_n), []
        for _ in range(count):
            partition = self.random.randrange(3)
            n = next_n.get(partition, 1)
            next_n[partition] = n + 1
            records.append(Record(partition, n, (("v", b"1"),), self.random.randbytes(5)))
        return records


def model(records: list[JournalRecord]) -> Replayed:
    """The definitions, read off the whole history: no state machine."""
    calls: list[tuple[bytes, CallRecord]] = []
    incarnations: dict[bytes, int] = {}
    meters: dict[int, MeterDefinition] = {}
    begun: FlushBegin | None = None
    parts: list[Record] = []
    committed: list[tuple[FlushBegin, list[Record]]] = []
    acknowledged = 0
    for record in records:
        if isinstance(record, Opened):
            incarnations[record.incarnation] = 0
        elif isinstance(record, CallRecord):
            calls.append((list(incarnations)[-1], record))
            incarnations[list(incarnations)[-1]] = record.number
        elif isinstance(record, Meters):
            meters.update(record.definitions)
        elif isinstance(record, FlushBegin):
            begun, parts = record, []
        elif isinstance(record, FlushPart):
            parts += record.records
        elif isinstance(record, FlushCommit):
            assert begun is not None
            committed.append((begun, parts))
        elif isinstance(record, Flushed):
            acknowledged = record.flush

    order = list(incarnations)

    def covered_by(through: Through) -> int:
        """How many of `calls` it covers."""
        if not through.incarnation:
            return 0
        last = (order.index(through.incarnation), through.call)
        return sum(1 for incarnation, one in calls if (order.index(incarnation), one.number) <= last)

    done = max((covered_by(begin.through) for begin, _ in committed if begin.flush <= acknowledged), default=0)
    covered = covered_by(committed[-1][0].through) if committed else 0

    def gather(some: list[tuple[bytes, CallRecord]]) -> tuple[Deltas, Tallies, list[Rejected]]:
        deltas: Deltas = {}
        tallies: Tallies = {}
        rejected: list[Rejected] = []
        for _, one in some:
            for more in one.deltas:
                merge(deltas, more)
            add_tallies(tallies, one.tallies)
            rejected += one.rejected
        return deltas, tallies, rejected

    deltas, tallies, rejected = gather(calls[covered:])
    flush = None
    if committed and committed[-1][0].flush > acknowledged:
        begin, flush_parts = committed[-1]
        _, flush_tallies, flush_rejected = gather(calls[done:covered])
        flush = OutstandingFlush(begin.flush, begin.through, flush_parts, flush_rejected, flush_tallies)
    return Replayed(
        writer=WRITER,
        fresh=not incarnations,
        incarnations=list(incarnations.items()),
        deltas=deltas,
        tallies=tallies,
        rejected=rejected,
        flush=flush,
        next_n={record.partition: record.n + 1 for _, records_of in committed for record in records_of},
        next_flush=committed[-1][0].flush + 1 if committed else 1,
        meters=meters,
        horizon_us=max((one.horizon_us for _, one in calls), default=0),
        totals=gather(calls)[1],
        flushed={tenant: counts["accepted"] for tenant, counts in gather(calls[:done])[1].items() if counts["accepted"]},
        shard_calls=[[] for _ in incarnations],
        shard_horizons_us=[],
    )


@pytest.mark.parametrize("seed", range(150))
def test_replay_is_what_the_definitions_say_at_every_length(seed: int) -> None:
    history = History(seed)
    for _ in range(80):
        history.step()
        records = [record for segment in history.segments for record in segment]
        if history.random.random() < 0.3:
            assert replay(deepcopy(records)) == model(records)


@pytest.mark.parametrize("seed", range(150))
def test_what_retention_lets_go_is_not_needed(seed: int) -> None:
    """Replay of the segments that stay, from the snapshot of the oldest of them, is the replay of everything."""
    history = History(seed)
    gone = 0
    for _ in range(150):
        history.step()
        if history.random.random() < 0.2:
            gone += len(disposable(history.facts[gone:], history.standing))
            kept = [record for segment in history.segments[gone:] for record in segment]
            assert replay(deepcopy(kept)) == model([record for segment in history.segments for record in segment])


def test_histories_reach_what_they_are_for() -> None:
    """Outstanding flushes, abandoned ones, coverage that lags behind the begin, and segments that go."""
    outstanding = abandoned = lagging = gone = 0
    for seed in range(150):
        history = History(seed)
        for _ in range(150):
            history.step()
        records = [record for segment in history.segments for record in segment]
        outstanding += replay(deepcopy(records)).flush is not None
        begun, committed = ([record for record in records if isinstance(record, kind)] for kind in (FlushBegin, FlushCommit))
        abandoned += len(begun) > len(committed) + 1
        gone += len(disposable(history.facts, history.standing)) > 1
        last = 0
        for record in records:
            if isinstance(record, CallRecord):
                last = record.number
            lagging += isinstance(record, FlushBegin) and record.through.call < last
    assert min(outstanding, abandoned, lagging, gone) > 10, (outstanding, abandoned, lagging, gone)


def test_a_digest_is_kept_until_the_horizon_has_reached_it() -> None:
    history = standing_with_one_flushed_segment(horizon_us=99)
    assert disposable(*history) == []
    history = standing_with_one_flushed_segment(horizon_us=100)
    assert [segment.first for segment in disposable(*history)] == [1]


def test_flush_bytes_are_kept_until_they_are_acknowledged() -> None:
    """Also when every call is covered already: a flush may carry tallies alone."""
    (first, second), standing = standing_with_one_flushed_segment(horizon_us=100)
    for record in flush_records(2, Through(bytes(16), 1), [Record(0, 1, (), b"x")]):
        standing.apply(record)
        first.note(record, standing.last_call)
    assert disposable([first, second], standing) == []
    standing.apply(Flushed(2))
    assert disposable([first, second], standing) == [first]


def standing_with_one_flushed_segment(horizon_us: int) -> tuple[list[SegmentFacts], Standing]:
    standing, first, second = Standing(WRITER), SegmentFacts(1), SegmentFacts(9)
    records: list[JournalRecord] = [
        Opened(bytes(16), 1),
        call(1, 2, newest_us=100, horizon_us=horizon_us),
        *flush_records(1, Through(bytes(16), 1), []),
        Flushed(1),
    ]
    for record in records:
        standing.apply(record)
        first.note(record, standing.last_call)
    return [first, second], standing


def lawful() -> Standing:
    standing = Standing(WRITER)
    for record in (Snapshot(WRITER, [], {1: METER}, {}, 1, 0, {}, {}), Opened(bytes(16), 1), call(1, 2), call(2, 1)):
        standing.apply(record)
    return standing


@pytest.mark.parametrize(
    "record",
    [
        call(4, 1),
        call(2, 1),
        Opened(bytes(16), 2),
        Closed(3),
        FlushBegin(2, Through(bytes(16), 2)),
        FlushBegin(1, Through(bytes(16), 3)),
        FlushPart(1, []),
        FlushCommit(1),
        Flushed(1),
    ],
)
def test_a_record_against_the_law_is_refused_before_it_is_written(record: JournalRecord) -> None:
    with pytest.raises(AssertionError):
        lawful().apply(record)


def test_a_branch_that_was_entered_outlives_its_segment() -> None:
    standing = lawful()
    for record in (Entering(b"a" * 16), Entering(b"c" * 16, 1), Entering(b"b" * 16)):
        standing.apply(record)
    later = Standing(WRITER)
    later.apply(standing.snapshot(kept_from=1))
    later.apply(Opened(b"o" * 16, 1))
    assert later.branches == [b"b" * 16, b"c" * 16]


def test_a_flush_must_cover_what_was_journalled_before_the_last_acknowledgement() -> None:
    standing = lawful()
    for record in (*flush_records(1, Through(bytes(16), 1), []), call(3, 1), Flushed(1)):
        standing.apply(record)
    with pytest.raises(AssertionError, match="covers all"):
        standing.apply(FlushBegin(2, Through(bytes(16), 2)))
    standing.apply(FlushBegin(2, Through(bytes(16), 3)))


def test_records_of_a_partition_have_no_gap() -> None:
    standing = lawful()
    standing.apply(FlushBegin(1, Through(bytes(16), 2)))
    standing.apply(FlushPart(1, [Record(0, 1, (), b""), Record(0, 2, (), b"")]))
    with pytest.raises(AssertionError, match="without a gap"):
        standing.apply(FlushPart(1, [Record(0, 4, (), b"")]))
