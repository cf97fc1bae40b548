"""The audit's reasoning on real journal records: silent on every lawful history, and each thing that was tampered with is named once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest
from xxhash import xxh3_128_hexdigest

from buffer.counter_log import Record
from buffer.counters import pack
from buffer.journal_records import (
    CallRecord,
    Closed,
    FlushBegin,
    FlushCommit,
    Flushed,
    FlushPart,
    JournalRecord,
    Opened,
    Snapshot,
    Through,
)
from parshall.audit_journal import Difference, JournalSide, RecordKey, Stored
from parshall.audit_rules import LogSide, RatedSide, compare
from tests.unit.audited_writer import TENANTS, AuditedWriter

SEEDS = range(40)
STEPS = 160
DIRECTORY = "/mnt/writers/0"

Records = list[JournalRecord]


async def lived(seed: int, steps: int = STEPS) -> AuditedWriter:
    writer = AuditedWriter(seed)
    await writer.live(steps)
    return writer


def read(records: Records) -> JournalSide:
    return JournalSide(TENANTS, DIRECTORY).read(records)


def audit(writer: AuditedWriter, records: Records | None = None, rated: int | None = None) -> list[Difference]:
    side = read(writer.records() if records is None else records)
    return compare([side], writer.log_side(), writer.rated_side(rated)).differences


# ---- lawful histories


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_lawful_history_has_no_difference(seed: int) -> None:
    writer = await lived(seed)
    side = read(writer.records())
    verdict = compare([side], writer.log_side(), writer.rated_side(writer.random.randrange(len(writer.log) + 1)))
    assert verdict.differences == []
    for number, name in TENANTS.items():
        counts = writer.totals.get(number, {})
        (row,) = [row for row in verdict.rows if row.tenant == name]
        assert (row.received, row.accepted) == (counts.get("received", 0), counts.get("accepted", 0))
        assert (row.duplicate, row.rejected) == (counts.get("duplicate", 0), counts.get("too_late", 0))
        assert row.flushed == writer.flushed[name] == row.rated + row.in_log
        assert row.buffered == row.accepted - row.flushed


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_journal_that_ends_anywhere_has_no_difference(seed: int) -> None:
    """A flush under way in any of its steps; a flush whose end is the first thing that is kept."""
    records = (await lived(seed)).records()
    for length in range(1, len(records)):
        side = read(records[:length])
        assert side.differences == [], f"after {records[length - 1]}"


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_service_that_runs_has_no_difference(seed: int) -> None:
    """PostgreSQL is read first, then the journal, then the log: each is further than the one before."""
    writer = await lived(seed)
    whole = list(writer.log)
    for at, (records, produced) in enumerate(writer.moments):
        rated_at = writer.random.randrange(at + 1)
        writer.log = whole[: writer.moments[rated_at][1]]
        rated = writer.rated_side()
        read_later = writer.random.randrange(produced, len(whole) + 1)
        writer.log = whole[:read_later]
        assert compare([read(records)], writer.log_side(), rated).differences == []


async def test_histories_reach_what_they_are_for() -> None:
    reached: Counter[str] = Counter()
    for seed in SEEDS:
        writer = await lived(seed)
        records = writer.records()
        first = records[0]
        assert isinstance(first, Snapshot)
        reached["a dropped segment"] += first.next_flush > 1
        reached["a flush committed before what is kept"] += first.progress is not None and first.progress.committed
        reached["a flush begun before what is kept"] += first.progress is not None and not first.progress.committed
        reached["calls not covered before what is kept"] += first.totals != {} and first.through != Through(*first.incarnations[-1])
        reached["a flush over several segments"] += any(
            isinstance(one, Snapshot) and one.progress is not None and not one.progress.committed for one in records[1:]
        )
        reached["a flush under way at the end"] += bool(read(records).unacknowledged)
        reached["a flush that never was"] += any(
            isinstance(one, Opened) and isinstance(before, FlushBegin | FlushPart)
            for before, one in zip(records, records[1:], strict=False)
        )
        reached["several incarnations"] += sum(isinstance(record, Opened) for record in records) > 1
    assert all(reached.values()) and len(reached) == 8, reached


# ---- a journal that was tampered with


class Tampering:
    """Picks places in a history where a difference can be seen: what it touches is covered by a flush that is wholly kept, and committed."""

    def __init__(self, records: Records, random: Random) -> None:
        self.records = records
        self.random = random
        self.incarnations: dict[int, bytes] = {}  # position -> incarnation at it
        self.covered: list[int] = []  # positions of calls of which everything is known: nothing they share a flush with is dropped
        self.parts: list[int] = []  # positions of parts of flushes of which everything is known
        self.flushes: dict[int, dict[str, list[int]]] = {}  # flush -> kind -> positions, of the same flushes
        self._look()

    def _look(self) -> None:
        first = self.records[0]
        assert isinstance(first, Snapshot)
        known = [one[0] for one in first.incarnations]
        incarnation = known[-1] if known else b""
        begin: FlushBegin | None = None
        open_calls: list[tuple[Through, int]] = []
        positions: dict[str, list[int]] = {}
        flushes_seen = 0
        for at, record in enumerate(self.records):
            self.incarnations[at] = incarnation
            match record:
                case Opened():
                    incarnation = self.incarnations[at] = record.incarnation
                    known.append(incarnation)
                    begin = None
                case CallRecord():
                    open_calls.append((Through(incarnation, record.number), at))
                case FlushBegin():
                    begin, positions = record, {"begin": [at], "part": []}
                case FlushPart() if begin is not None:
                    positions["part"].append(at)
                case FlushCommit() if begin is not None:
                    positions["commit"] = [at]
                case Flushed() if begin is not None and record.flush == begin.flush:
                    positions["flushed"] = [at]
                    place = (known.index(begin.through.incarnation), begin.through.call) if begin.through.incarnation else (-1, 0)
                    covered = [one for one in open_calls if (known.index(one[0].incarnation), one[0].call) <= place]
                    open_calls = open_calls[len(covered) :]
                    flushes_seen += 1
                    if flushes_seen > 1:  # the first one may carry calls that are not kept
                        self.covered += [at for _, at in covered]
                        self.parts += positions["part"]
                        self.flushes[record.flush] = positions
                case _:
                    pass

    def edit(self, at: int, *instead: JournalRecord) -> Records:
        return [*self.records[:at], *instead, *self.records[at + 1 :]]

    def flush_of(self, at: int) -> int:
        return next(flush for flush, positions in self.flushes.items() if any(at in some for some in positions.values()))

    def call_at(self, at: int) -> tuple[CallRecord, str]:
        """The call, and how it must be named."""
        call = self.records[at]
        assert isinstance(call, CallRecord)
        return call, f"call {call.number} of incarnation {self.incarnations[at].hex()}"


Tampered = tuple[Records, Sequence[str]]  # the records, and what their one difference must name
Tamper = Callable[[Tampering], Iterator[Tampered]]


def on_calls(*, accepted: bool = True) -> Callable[[Callable[[Tampering, int, CallRecord, str], Tampered]], Tamper]:
    """Decorates what is done to one covered call."""

    def decorate(change: Callable[[Tampering, int, CallRecord, str], Tampered]) -> Tamper:
        def tamper(t: Tampering) -> Iterator[Tampered]:
            calls = [at for at in t.covered if not accepted or t.call_at(at)[0].claims]
            for at in t.random.sample(calls, min(3, len(calls))):
                yield change(t, at, *t.call_at(at))

        tamper.__name__ = change.__name__
        return tamper

    return decorate


def on_flushes(*kinds: str) -> Callable[[Callable[[Tampering, int, int], Tampered | None]], Tamper]:
    """Decorates what is done to one position of a flush of which everything is known."""

    def decorate(change: Callable[[Tampering, int, int], Tampered | None]) -> Tamper:
        def tamper(t: Tampering) -> Iterator[Tampered]:
            places = [(flush, at) for flush, positions in t.flushes.items() for kind in kinds for at in positions.get(kind, ())]
            for flush, at in t.random.sample(places, min(3, len(places))):
                tampered = change(t, flush, at)
                if tampered is not None:
                    yield tampered

        tamper.__name__ = change.__name__
        return tamper

    return decorate


def on_snapshots(change: Callable[[Tampering, Snapshot], Snapshot]) -> Tamper:
    def tamper(t: Tampering) -> Iterator[Tampered]:
        places = [at for at, record in enumerate(t.records) if isinstance(record, Snapshot) and at]
        for at in t.random.sample(places, min(2, len(places))):
            snapshot = t.records[at]
            assert isinstance(snapshot, Snapshot)
            last = f"call {snapshot.incarnations[-1][1]} of incarnation {snapshot.incarnations[-1][0].hex()}"
            yield t.edit(at, change(t, snapshot)), ["the snapshot after", last]

    tamper.__name__ = change.__name__
    return tamper


def retally(call: CallRecord, tenant: int, **more: int) -> CallRecord:
    counts = {verdict: call.tallies[tenant].get(verdict, 0) + more.get(verdict, 0) for verdict in {*call.tallies[tenant], *more}}
    return call._replace(tallies={**call.tallies, tenant: counts})


@on_calls()
def a_digest_is_gone(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    (tenant, digests, prints), *others = call.claims
    had = len(digests) // 12
    what = f"holds {had - 1} digests of tenant {TENANTS[tenant]}, but accepted {had}"
    return t.edit(at, call._replace(claims=[(tenant, digests[12:], prints[4:]), *others])), [name, what]


@on_calls()
def a_digest_is_too_many(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    (tenant, digests, prints), *others = call.claims
    return t.edit(at, call._replace(claims=[(tenant, digests + bytes(12), prints + bytes(4)), *others])), [name, TENANTS[tenant]]


@on_calls()
def a_fingerprint_is_gone(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    (tenant, digests, prints), *others = call.claims
    return t.edit(at, call._replace(claims=[(tenant, digests, prints[4:]), *others])), [name, TENANTS[tenant], "fingerprints"]


@on_calls()
def one_more_was_accepted(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    tenant = call.claims[0][0]
    return t.edit(at, retally(call, tenant, accepted=1, received=1)), [name, TENANTS[tenant]]


@on_calls()
def one_more_was_received(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    tenant = call.claims[0][0]
    return t.edit(at, retally(call, tenant, received=1)), [name, TENANTS[tenant], "received"]


@on_calls()
def a_duplicate_was_added(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    """In itself the call is sound."""
    tenant = call.claims[0][0]
    return t.edit(at, retally(call, tenant, received=1, duplicate=1)), [TENANTS[tenant]]


@on_calls()
def a_delta_was_changed(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    kind, counters = next(iter(call.deltas[0].items()))
    (key, packed), *_ = counters.items()
    deltas = [{kind: {**counters, key: packed + pack(1000, 1)}}, *call.deltas[1:]]
    return t.edit(at, call._replace(deltas=deltas)), ["flush ", TENANTS[int(key[1])], repr(key[2]), f"window {key[3]}"]


@on_calls(accepted=False)
def a_call_is_gone(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    last = {t.incarnations[one]: t.call_at(one)[0].number for one, record in enumerate(t.records) if isinstance(record, CallRecord)}
    if call.number == last[t.incarnations[at]] or call.number == 1:
        return t.edit(at), []  # nothing after it shows it but what it decided
    return t.edit(at), [f"call {call.number} is missing".split(" is")[0], t.incarnations[at].hex()]


@on_calls(accepted=False)
def a_call_stands_twice(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    return t.edit(at, call, call), [name, "again"] if call.number > 1 else []


@on_flushes("begin", "commit", "flushed")
def a_record_of_a_flush_is_gone(t: Tampering, flush: int, at: int) -> Tampered:
    return t.edit(at), [f"flush {flush}"]


@on_flushes("part")
def a_part_of_a_flush_is_gone(t: Tampering, flush: int, at: int) -> Tampered:
    return t.edit(at), [f"flush {flush}"]


@on_flushes("begin")
def a_flush_covers_something_else(t: Tampering, flush: int, at: int) -> Tampered | None:
    begin = t.records[at]
    assert isinstance(begin, FlushBegin)
    if not begin.through.call:
        return None
    return t.edit(at, begin._replace(through=begin.through._replace(call=begin.through.call - 1))), [f"flush {flush}"]


@on_flushes("begin")
def a_flush_covers_what_is_not_there(t: Tampering, flush: int, at: int) -> Tampered:
    begin = t.records[at]
    assert isinstance(begin, FlushBegin)
    return t.edit(at, begin._replace(through=Through(b"?" * 16, 1))), [f"flush {flush}", (b"?" * 16).hex()]


@on_flushes("flushed")
def an_acknowledgement_says_something_else(t: Tampering, flush: int, at: int) -> Tampered:
    flushed = t.records[at]
    assert isinstance(flushed, Flushed) and flushed.accepted is not None
    return t.edit(at, flushed._replace(accepted={**flushed.accepted, 2: flushed.accepted.get(2, 0) + 1})), [f"flush {flush}", "acme"]


def on_records(change: Callable[[Record], Record | None]) -> Tamper:
    def tampered(t: Tampering, flush: int, at: int) -> Tampered:
        part = t.records[at]
        assert isinstance(part, FlushPart)
        which = t.random.randrange(len(part.records))
        changed = change(part.records[which])
        records = [*part.records[:which], *([changed] if changed is not None else []), *part.records[which + 1 :]]
        record = part.records[which]
        names = [f"flush {flush}"] if changed is None else [f"record {record.n} of partition {record.partition} of writer", f"flush {flush}"]
        return t.edit(at, part._replace(records=records)), names

    tamper = on_flushes("part")(tampered)
    tamper.__name__ = change.__name__
    return tamper


@on_records
def a_record_is_gone_from_the_flush(record: Record) -> Record | None:
    return None


@on_records
def a_byte_of_a_record_is_changed(record: Record) -> Record:
    return record._replace(value=record.value.replace(b'"v":1', b'"v":2', 1))


@on_records
def a_record_has_the_place_of_another(record: Record) -> Record:
    return record._replace(headers=tuple((name, b"77" if name == "n" else content) for name, content in record.headers))


@on_flushes("part")
def a_record_with_a_right_hash_holds_something_else(t: Tampering, flush: int, at: int) -> Tampered | None:
    part = t.records[at]
    assert isinstance(part, FlushPart)
    record = part.records[-1]
    value = record.value.replace(b'"subject 1"', b'"subject 7"').replace(b'"subject 2"', b'"subject 8"')
    if value == record.value:
        return None
    digest = xxh3_128_hexdigest(value).encode()
    headers = tuple((name, digest if name == "hash" else content) for name, content in record.headers)
    return t.edit(at, part._replace(records=[*part.records[:-1], Record(*record[:2], headers, value)])), []


def a_flush_is_gone(t: Tampering) -> Iterator[Tampered]:
    for flush in t.random.sample(sorted(t.flushes), min(2, len(t.flushes))):
        gone = {at for positions in t.flushes[flush].values() for at in positions}
        yield [record for at, record in enumerate(t.records) if at not in gone], [f"flush {flush} is missing"] if flush + 1 in t.flushes else []


def an_opening_is_gone(t: Tampering) -> Iterator[Tampered]:
    for at, record in enumerate(t.records):
        if isinstance(record, Opened) and any(t.incarnations[one] == record.incarnation for one in t.covered):
            yield t.edit(at), ["opening is missing"]


def an_incarnation_was_closed_elsewhere(t: Tampering) -> Iterator[Tampered]:
    for at, record in enumerate(t.records):
        if isinstance(record, Closed):
            yield t.edit(at, Closed(record.last_call + 1)), [t.incarnations[at].hex(), f"after call {record.last_call + 1}"]


@on_snapshots
def a_snapshot_has_other_totals(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(totals={**snapshot.totals, 1: {**snapshot.totals.get(1, {}), "duplicate": 999}})


@on_snapshots
def a_snapshot_has_flushed_more(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(flushed={**snapshot.flushed, 2: snapshot.flushed.get(2, 0) + 1})


@on_snapshots
def a_snapshot_has_another_next_number(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(next_n={**snapshot.next_n, 1: snapshot.next_n.get(1, 1) + 1})


@on_snapshots
def a_snapshot_has_another_next_flush(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(next_flush=snapshot.next_flush + 1)


@on_snapshots
def a_snapshot_has_another_horizon(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(horizon_us=snapshot.horizon_us + 1)


@on_snapshots
def a_snapshot_has_another_coverage(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(through=snapshot.through._replace(call=snapshot.through.call + 1))


@on_snapshots
def a_snapshot_forgets_a_meter(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(meters={number: meter for number, meter in snapshot.meters.items() if number > 1})


def the_first_snapshot_has_accepted_more(t: Tampering) -> Iterator[Tampered]:
    first = t.records[0]
    assert isinstance(first, Snapshot)
    if t.flushes:
        counts = {**first.totals[1], "accepted": first.totals[1]["accepted"] + 1, "received": first.totals[1]["received"] + 1}
        yield t.edit(0, first._replace(totals={**first.totals, 1: counts})), ["demo"]


def the_first_snapshot_has_flushed_more(t: Tampering) -> Iterator[Tampered]:
    first = t.records[0]
    assert isinstance(first, Snapshot)
    if t.flushes:
        yield t.edit(0, first._replace(flushed={**first.flushed, 1: first.flushed.get(1, 0) + 1})), ["demo"]


TAMPERINGS: list[Tamper] = [
    a_digest_is_gone,
    a_digest_is_too_many,
    a_fingerprint_is_gone,
    one_more_was_accepted,
    one_more_was_received,
    a_duplicate_was_added,
    a_delta_was_changed,
    a_call_is_gone,
    a_call_stands_twice,
    a_record_of_a_flush_is_gone,
    a_part_of_a_flush_is_gone,
    a_flush_covers_something_else,
    a_flush_covers_what_is_not_there,
    an_acknowledgement_says_something_else,
    a_record_is_gone_from_the_flush,
    a_byte_of_a_record_is_changed,
    a_record_has_the_place_of_another,
    a_record_with_a_right_hash_holds_something_else,
    a_flush_is_gone,
    an_opening_is_gone,
    an_incarnation_was_closed_elsewhere,
    a_snapshot_has_other_totals,
    a_snapshot_has_flushed_more,
    a_snapshot_has_another_next_number,
    a_snapshot_has_another_next_flush,
    a_snapshot_has_another_horizon,
    a_snapshot_has_another_coverage,
    a_snapshot_forgets_a_meter,
    the_first_snapshot_has_accepted_more,
    the_first_snapshot_has_flushed_more,
]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
async def test_what_was_tampered_with_is_named_once(tamper: Tamper) -> None:
    tried = 0
    for seed in SEEDS:
        writer = await lived(seed)
        for records, names in tamper(Tampering(writer.records(), writer.random)):
            tried += 1
            told = audit(writer, records)
            assert len(told) == 1, f"seed {seed}, {names}: {[one.what for one in told]}"
            assert all(name in told[0].what for name in (*names, DIRECTORY)), f"seed {seed}, {names}: {told[0].what}"
            assert told[0].then and "\n" not in told[0].what + told[0].then
    assert tried >= 8
