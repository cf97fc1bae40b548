"""The audit's reasoning on real journal records: silent on every lawful history, and each thing that was tampered with is named once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from random import Random

import pytest
from xxhash import xxh3_128_hexdigest

from buffer.counter_log import Record, Retired
from buffer.counters import Deltas, pack
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
from buffer.journal_state import Standing, standing_after
from parshall import audit_rules
from parshall.audit_journal import JournalSide
from parshall.audit_records import Difference, RecordKey, Stored
from parshall.audit_rules import LogSide, RatedSide, compare
from tests.unit.audited_writer import TENANTS, AuditedWriter

SEEDS = range(40)
STEPS = 160
DIRECTORY = "/mnt/writers/0"

Records = list[JournalRecord]


_lives: dict[int, AuditedWriter] = {}


async def lived(seed: int) -> AuditedWriter:
    """The same one each time: to be looked at, not to be changed."""
    if seed not in _lives:
        _lives[seed] = AuditedWriter(seed)
        await _lives[seed].live(STEPS)
    return _lives[seed]


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
    verdict = compare([side], writer.log_side(), writer.rated_side(Random(seed).randrange(len(writer.log) + 1)))
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
    random = Random(seed)
    for at, (records, produced) in enumerate(writer.moments):
        rated = writer.rated_side(writer.moments[random.randrange(at + 1)][1])
        log = writer.log_side(random.randrange(produced, len(writer.log) + 1))
        assert compare([read(records)], log, rated).differences == []


@pytest.mark.parametrize("seed", SEEDS)
async def test_what_retention_took_is_added_up_and_nothing_else_changes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer as when each record is remembered: all is well, the journal is an old copy, it is not there at all."""
    writer, random = await lived(seed), Random(seed)
    produced = len(writer.log)
    rated = random.randrange(produced * 3 // 4, produced + 1)
    journals = [[read(writer.records())], [read(writer.moments[len(writer.moments) // 3][0])], []]
    for deleted in (0, random.randrange(rated + 1), rated):
        log = writer.log_side(deleted=deleted)
        monkeypatch.setattr(audit_rules, "_KEPT_OF_A_CHAIN", 10**6)
        each = writer.rated_side(rated, deleted)
        monkeypatch.setattr(audit_rules, "_KEPT_OF_A_CHAIN", 2)  # a flush has one record in a partition
        some = writer.rated_side(rated, deleted)
        assert not each.settled
        assert len(some.records) + sum(settled.last for settled in some.settled.values()) == len(each.records)
        for sides in journals:
            one, other = compare(sides, log, some), compare(sides, log, each)
            assert one.differences == other.differences, deleted
            assert one.rows == other.rows or sides is journals[1], "an old copy does not tell how much of the sums it has flushed"
    assert some.settled and set(Counter(key[:2] for key in some.records).values()) == {2}


def side_of(identity: str, starts: dict[str, int], records: int) -> RatedSide:
    side = RatedSide(identity, starts)
    for chain in (("a" * 32, 0), ("a" * 32, 1), ("b" * 32, 0)):
        for n in range(1, records + 1):
            side.take((*chain, n), Stored(f"{n}", {"acme": {"accepted": n, "too_late": 1}}), ("log", f"stream {chain[1]}", n))
    return side


def test_what_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_rules, "_KEPT_OF_A_CHAIN", 2)
    some = side_of("log", {"stream 0": 3}, 6)
    assert {chain: (settled.last, dict(settled.tallies)) for chain, settled in some.settled.items()} == {
        (writer, 0): (3, {("acme", "accepted"): 6, ("acme", "too_late"): 3}) for writer in ("a" * 32, "b" * 32)
    }
    assert [key[1:] for key in some.records] == [(0, 4), (0, 5), (0, 6), *((1, n) for n in range(1, 7)), (0, 4), (0, 5), (0, 6)]
    assert some.positions.keys() == some.records.keys()
    assert not side_of("log", {"stream 0": 3}, 2).settled, "the last ones are looked at one by one"
    assert not side_of("log", {}, 6).settled
    assert {settled.last for settled in side_of("another log", {}, 6).settled.values()} == {4}, "rated from a log that was left"


async def test_an_old_copy_of_one_journal_says_nothing_of_another_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_rules, "_KEPT_OF_A_CHAIN", 2)
    writers = [await lived(seed) for seed in (1, 2)]
    old, whole = read(writers[0].moments[len(writers[0].moments) // 3][0]), read(writers[1].records())
    log = LogSide(
        identity="log", starts={f"stream {number}": 10**6 for number in range(3)}, writers={writer.writer: None for writer in writers}
    )
    sides = [writer.rated_side(None, 10**6) for writer in writers]
    rated = RatedSide("log", log.starts, settled=sides[0].settled | sides[1].settled)
    rated.records, rated.positions = sides[0].records | sides[1].records, sides[0].positions | sides[1].positions
    (one,) = compare([old, whole], log, rated).differences
    assert f"of writer {writers[0].writer}" in one.what and "not yet made according to its journal" in one.what


async def test_other_bytes_of_what_retention_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal may keep it for longer than the log, and the log may have it again."""
    monkeypatch.setattr(audit_rules, "_KEPT_OF_A_CHAIN", 2)
    looked_at = 0
    for seed in SEEDS:
        writer = await lived(seed)
        side, rated, log = read(writer.records()), writer.rated_side(deleted=len(writer.log)), writer.log_side(deleted=len(writer.log))
        for key, stored in side.acknowledged.items():
            if rated.is_settled(key):
                looked_at += 1
                for have in ({}, {key: stored}):
                    log.records = have
                    rated.hashes = {key: stored.hash}
                    assert compare([side], log, rated).differences == []
                    rated.hashes = {key: "f" * 32}
                    (told,) = compare([side], log, rated).differences
                    assert told.what.startswith(f"{place(key)} has different bytes: ") and f"{'f' * 32} in PostgreSQL" in told.what
    assert looked_at > 10


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
        reached["a flush that covers less than what is dropped"] += any(
            isinstance(one, FlushBegin)
            and one.through.incarnation == first.incarnations[-1][0]
            and one.through.call < first.incarnations[-1][1]
            for one in records
            if first.incarnations
        )
        reached["a flush over several segments"] += any(
            isinstance(one, Snapshot) and one.progress is not None and not one.progress.committed for one in records[1:]
        )
        reached["a flush under way at the end"] += bool(read(records).unacknowledged)
        reached["a flush that never was"] += any(
            isinstance(one, Opened) and isinstance(before, FlushBegin | FlushPart) for before, one in pairwise(records)
        )
        reached["several incarnations"] += sum(isinstance(record, Opened) for record in records) > 1
    assert all(reached.values()) and len(reached) == 9, reached


# ---- a journal that was tampered with


class Tampering:
    """A history, and the places in it where any change can be seen: covered by a flush of which everything is kept."""

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
        place_of: Callable[[Through], tuple[int, int]] = lambda one: (known.index(one.incarnation) if one.incarnation else -1, one.call)  # noqa: E731
        dropped_to = max((place_of(Through(*one)) for one in first.incarnations if one[1]), default=(-1, 0))
        covered_to = place_of(first.through)
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
                    covered = [one for one in open_calls if place_of(one[0]) <= place_of(begin.through)]
                    open_calls = open_calls[len(covered) :]
                    all_known, covered_to = covered_to >= dropped_to, place_of(begin.through)
                    if all_known:
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


def without(tenant: int, call: CallRecord) -> tuple[list[tuple[int, bytes, bytes]], dict[int, dict[str, int]]]:
    """(claims, tallies) of a call, but for those of one tenant."""
    claims = [one for one in call.claims if one[0] != tenant]
    return claims, {number: counts for number, counts in call.tallies.items() if number != tenant}


def in_one_segment(records: Records) -> Records:
    return [record for at, record in enumerate(records) if not at or not isinstance(record, Snapshot)]


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
def a_fingerprint_is_too_many(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    (tenant, digests, prints), *others = call.claims
    return t.edit(at, call._replace(claims=[(tenant, digests, prints + bytes(4)), *others])), [name, TENANTS[tenant], "fingerprints"]


@on_calls()
def a_digest_without_fingerprint_is_too_many(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    (tenant, digests, prints), *others = call.claims
    return t.edit(at, call._replace(claims=[(tenant, digests + bytes(12), prints), *others])), [
        name,
        f"digests of tenant {TENANTS[tenant]}",
    ]


@on_calls(accepted=False)
def a_tenant_of_whom_nothing_was_received_is_granted_one(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    claims, tallies = without(2, call)
    changed = call._replace(claims=[*claims, (2, bytes(12), bytes(4))], tallies=tallies)
    return t.edit(at, changed), [name, "holds 1 digests of tenant acme, but accepted 0 events of it"]


@on_calls(accepted=False)
def one_more_was_received_where_none_was_accepted(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    claims, tallies = without(2, call)
    changed = call._replace(claims=claims, tallies={**tallies, 2: {"received": 1}})
    return t.edit(at, changed), [name, "received 1 events of tenant acme, but decided 0"]


@on_calls()
def one_more_was_decided(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    return t.edit(at, retally(call, call.claims[0][0], duplicate=1)), [name, "but decided"]


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


@on_calls()
def a_delta_is_gone(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    return t.edit(at, call._replace(deltas=call.deltas[1:])), ["flush ", "but the calls that it covers make it"]


@on_calls()
def a_delta_is_too_many(t: Tampering, at: int, call: CallRecord, name: str) -> Tampered:
    more: Deltas = {"sum": {(1, call.claims[0][0], "another subject", 0, "a"): pack(1, 1)}}
    return t.edit(at, call._replace(deltas=[*call.deltas, more])), ["carries nothing", "'another subject'", "make it 1 (1 events)"]


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
def a_record_of_a_flush_is_gone(t: Tampering, flush: int, at: int) -> Tampered | None:
    if isinstance(t.records[at], Flushed) and flush == max(t.flushes):
        return None  # it is under way, then
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


@on_flushes("flushed")
def an_acknowledgement_forgets_a_tenant(t: Tampering, flush: int, at: int) -> Tampered | None:
    flushed = t.records[at]
    assert isinstance(flushed, Flushed) and flushed.accepted is not None
    if not flushed.accepted.get(1):
        return None
    others = {tenant: n for tenant, n in flushed.accepted.items() if tenant != 1}
    return t.edit(at, flushed._replace(accepted=others)), [f"flush {flush}", "demo, its acknowledgement says 0"]


@on_flushes("flushed")
def an_acknowledgement_stands_twice(t: Tampering, flush: int, at: int) -> Tampered:
    return t.edit(at, t.records[at], t.records[at]), [f"flush {flush} is acknowledged after", "but was not begun"]


@on_flushes("begin")
def a_flush_covers_calls_that_are_not_there(t: Tampering, flush: int, at: int) -> Tampered | None:
    begin = t.records[at]
    assert isinstance(begin, FlushBegin)
    if not begin.through.incarnation:
        return None
    return t.edit(at, begin._replace(through=begin.through._replace(call=begin.through.call + 1000))), [
        f"flush {flush}",
        "not in the journal",
    ]


@on_flushes("commit", "flushed")
def the_end_of_a_flush_is_gone_before_a_snapshot(t: Tampering, flush: int, at: int) -> Tampered:
    first = t.records[0]
    assert isinstance(first, Snapshot)
    what = "commit" if isinstance(t.records[at], FlushCommit) else "acknowledgement"
    after = standing_after(Standing(first.writer), t.records[: at + 1])
    return t.edit(at, after.snapshot(1)), [f"the {what} of flush {flush} is missing before the snapshot"]


@on_flushes("commit")
def a_snapshot_has_another_flush_under_way(t: Tampering, flush: int, at: int) -> Tampered:
    first = t.records[0]
    assert isinstance(first, Snapshot)
    snapshot = standing_after(Standing(first.writer), t.records[: at + 1]).snapshot(1)
    assert snapshot.progress is not None
    other = snapshot._replace(progress=snapshot.progress._replace(flush=flush + 1))
    return t.edit(at, t.records[at], other), [f"flush under way {flush + 1} instead of {flush}"]


@on_flushes("begin")
def a_flush_is_acknowledged_as_another(t: Tampering, flush: int, at: int) -> Tampered | None:
    (flushed,) = t.flushes[flush]["flushed"]
    return t.edit(flushed, Flushed(flush + 1, {})), [f"flush {flush + 1} is acknowledged after", "but was not begun"]


def a_tenant_is_gone_from_all_calls(t: Tampering) -> Iterator[Tampered]:
    if any(2 in t.call_at(at)[0].tallies for at in t.covered):
        records = list(t.records)
        for at in t.covered:
            call = t.call_at(at)[0]
            claims, tallies = without(2, call)
            records[at] = call._replace(claims=claims, tallies=tallies)
        yield in_one_segment(records), ["events of tenant acme, but the calls that it covers have 0"]


def on_records(change: Callable[[Record], Record | None]) -> Tamper:
    def tampered(t: Tampering, flush: int, at: int) -> Tampered:
        part = t.records[at]
        assert isinstance(part, FlushPart)
        which = t.random.randrange(len(part.records))
        changed = change(part.records[which])
        records = [*part.records[:which], *([changed] if changed is not None else []), *part.records[which + 1 :]]
        record = part.records[which]
        names = (
            [f"flush {flush}"] if changed is None else [f"record {record.n} of partition {record.partition} of writer", f"flush {flush}"]
        )
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


@on_records
def a_record_is_of_another_writer(record: Record) -> Record:
    return record._replace(headers=tuple((name, b"77" * 16 if name == "writer" else content) for name, content in record.headers))


@on_records
def a_record_is_of_another_partition(record: Record) -> Record:
    return record._replace(headers=tuple((name, b"77" if name == "partition" else content) for name, content in record.headers))


@on_flushes("part")
def a_record_stands_twice(t: Tampering, flush: int, at: int) -> Tampered:
    part = t.records[at]
    assert isinstance(part, FlushPart)
    return t.edit(at, part._replace(records=[*part.records, part.records[-1]])), [f"(flush {flush}) stands twice in the journal"]


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
        yield (
            [record for at, record in enumerate(t.records) if at not in gone],
            [f"flush {flush} is missing"] if flush + 1 in t.flushes else [],
        )


def an_opening_is_gone(t: Tampering) -> Iterator[Tampered]:
    for at, record in enumerate(t.records):
        if isinstance(record, Opened) and any(t.incarnations[one] == record.incarnation for one in t.covered):
            yield t.edit(at), ["incarnation"]


def an_incarnation_was_closed_elsewhere(t: Tampering) -> Iterator[Tampered]:
    for at, record in enumerate(t.records):
        if isinstance(record, Closed):
            yield t.edit(at, Closed(record.last_call + 1)), [t.incarnations[at].hex(), f"after call {record.last_call + 1}"]


def an_incarnation_was_closed_before_its_last_call(t: Tampering) -> Iterator[Tampered]:
    for at, record in enumerate(t.records):
        if isinstance(record, Closed) and record.last_call:
            yield t.edit(at, Closed(record.last_call - 1)), [t.incarnations[at].hex(), f"was closed after call {record.last_call - 1}"]


def an_incarnation_is_opened_twice(t: Tampering) -> Iterator[Tampered]:
    for at, record in enumerate(t.records):
        if isinstance(record, Opened):
            yield t.edit(at, record, record), [f"incarnation {record.incarnation.hex()} was opened twice"]


@on_snapshots
def a_snapshot_has_another_last_call(t: Tampering, snapshot: Snapshot) -> Snapshot:
    *others, (incarnation, last) = snapshot.incarnations
    return snapshot._replace(incarnations=[*others, (incarnation, last - 1)])


def a_snapshot_has_another_incarnation(t: Tampering) -> Iterator[Tampered]:
    for at, record in enumerate(t.records):
        if isinstance(record, Snapshot) and at:
            more = record._replace(incarnations=[*record.incarnations, (b"?" * 16, 0)])
            yield t.edit(at, more), [f"the opening of incarnation {(b'?' * 16).hex()} is missing before the snapshot"]
            return


@on_snapshots
def a_snapshot_has_lower_totals(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(totals={**snapshot.totals, 1: {**snapshot.totals.get(1, {}), "duplicate": -1}})


@on_snapshots
def a_snapshot_forgets_a_tenant(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(totals={number: counts for number, counts in snapshot.totals.items() if number > 1})


@on_snapshots
def a_snapshot_has_flushed_less(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(flushed={**snapshot.flushed, 2: snapshot.flushed.get(2, 0) - 1})


@on_snapshots
def a_snapshot_has_a_lower_next_number(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(next_n={**snapshot.next_n, 1: snapshot.next_n.get(1, 1) - 1})


@on_snapshots
def a_snapshot_has_a_lower_horizon(t: Tampering, snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(horizon_us=snapshot.horizon_us - 1)


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
    a_fingerprint_is_too_many,
    a_digest_without_fingerprint_is_too_many,
    one_more_was_decided,
    a_tenant_of_whom_nothing_was_received_is_granted_one,
    one_more_was_received_where_none_was_accepted,
    one_more_was_accepted,
    one_more_was_received,
    a_duplicate_was_added,
    a_delta_was_changed,
    a_delta_is_gone,
    a_delta_is_too_many,
    a_call_is_gone,
    a_call_stands_twice,
    a_record_of_a_flush_is_gone,
    a_part_of_a_flush_is_gone,
    a_flush_covers_something_else,
    a_flush_covers_what_is_not_there,
    an_acknowledgement_says_something_else,
    an_acknowledgement_forgets_a_tenant,
    an_acknowledgement_stands_twice,
    the_end_of_a_flush_is_gone_before_a_snapshot,
    a_snapshot_has_another_flush_under_way,
    a_record_is_of_another_writer,
    a_record_is_of_another_partition,
    a_record_stands_twice,
    a_record_is_gone_from_the_flush,
    a_byte_of_a_record_is_changed,
    a_record_has_the_place_of_another,
    a_record_with_a_right_hash_holds_something_else,
    a_flush_is_gone,
    an_opening_is_gone,
    an_incarnation_was_closed_elsewhere,
    a_snapshot_has_another_last_call,
    a_snapshot_has_lower_totals,
    a_snapshot_forgets_a_tenant,
    a_snapshot_has_flushed_less,
    a_snapshot_has_a_lower_next_number,
    a_snapshot_has_a_lower_horizon,
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
        for records, names in tamper(Tampering(writer.records(), Random(seed))):
            tried += 1
            told = audit(writer, records)
            assert len(told) == 1, f"seed {seed}, {names}: {[one.what for one in told]}"
            assert all(name in told[0].what for name in (*names, DIRECTORY)), f"seed {seed}, {names}: {told[0].what}"
            assert told[0].then and "\n" not in told[0].what + told[0].then
    assert tried >= 5


@pytest.mark.parametrize(
    "tamper",
    [
        a_flush_covers_calls_that_are_not_there,
        an_incarnation_was_closed_before_its_last_call,
        an_incarnation_is_opened_twice,
        a_flush_is_acknowledged_as_another,
        a_tenant_is_gone_from_all_calls,
        a_snapshot_has_another_incarnation,
    ],
    ids=lambda tamper: tamper.__name__,
)
async def test_what_shows_in_several_places_is_named_first(tamper: Tamper) -> None:
    """What follows from it may be named as well."""
    tried = 0
    for seed in SEEDS:
        for records, names in tamper(Tampering((await lived(seed)).records(), Random(seed))):
            tried += 1
            told = read(records).differences
            assert told and all(name in told[0].what for name in (*names, DIRECTORY)), f"seed {seed}, {names}: {told}"
    assert tried >= 5


THIRD = {**TENANTS, 3: "third"}


async def told_of_a_third(kept: bool, tallies: dict[str, int], claims: Sequence[tuple[int, bytes, bytes]]) -> list[list[str]]:
    """What is told of journals in which one call, covered by a flush, has decided events of a tenant that the flush does not carry.
    `kept`: of a flush whose calls are all kept, or else of one of which some are not."""
    told = []
    for seed in SEEDS:
        t = Tampering((await lived(seed)).records(), Random(seed))
        committed = {record.flush for record in t.records if isinstance(record, FlushCommit)}
        before = 0
        for begin, record in enumerate(t.records):
            if not isinstance(record, FlushBegin) or record.flush not in committed:
                continue
            calls = [at for at in range(before, begin) if isinstance(t.records[at], CallRecord)]
            of_it = [at for at in calls if t.incarnations[at] == record.through.incarnation]
            covered = [at for at in of_it if t.call_at(at)[0].number <= record.through.call]
            if covered and (record.flush in t.flushes) == kept:
                call = t.call_at(covered[-1])[0]
                changed = call._replace(tallies={**call.tallies, 3: tallies}, claims=[*call.claims, *claims])
                side = JournalSide(THIRD, DIRECTORY).read(in_one_segment(t.edit(covered[-1], changed)))
                told.append([one.what for one in side.differences])
                break
            before = begin
    return told


async def test_a_flush_that_leaves_a_tenant_out_is_named() -> None:
    for kept, verdict, claims in (
        (True, "duplicate", []),
        (True, "accepted", [(3, bytes(12), bytes(4))]),
        (False, "accepted", [(3, bytes(12), bytes(4))]),
    ):
        told = await told_of_a_third(kept, {"received": 1, verdict: 1}, claims)
        assert told, f"{kept}, {verdict}"
        for one in told:
            assert len(one) == 1 and f"carries 0 {verdict} events of tenant third, but the calls that it covers have 1" in one[0], one


async def test_the_acknowledgement_of_a_flush_that_was_committed_before_what_is_kept_is_held_against_the_snapshot() -> None:
    tried = 0
    for seed in SEEDS:
        records = (await lived(seed)).records()
        first = records[0]
        assert isinstance(first, Snapshot)
        for at, record in enumerate(records):
            if (
                isinstance(record, Flushed)
                and first.progress is not None
                and first.progress.committed
                and record.flush == first.progress.flush
            ):
                more = Flushed(record.flush, {**(record.accepted or {}), 1: (record.accepted or {}).get(1, 0) + 1})
                (told,) = read([*records[:at], more, *records[at + 1 :]]).differences
                assert f"flush {record.flush} carries" in told.what and "of tenant demo, its acknowledgement says" in told.what
                tried += 1
    assert tried


async def test_a_call_may_hold_a_tenant_in_several_parts() -> None:
    """As it does when several requests of one tenant share it."""

    def in_parts(record: JournalRecord) -> JournalRecord:
        if not isinstance(record, CallRecord):
            return record
        parts = [(tenant, d[at * 12 :][:12], p[at * 4 :][:4]) for tenant, d, p in record.claims for at in range(len(d) // 12)]
        return record._replace(claims=parts)

    for seed in SEEDS:
        assert read([in_parts(record) for record in (await lived(seed)).records()]).differences == []


async def test_a_journal_that_does_not_begin_with_a_snapshot_is_named() -> None:
    (told,) = read((await lived(0)).records()[1:]).differences
    assert "does not begin with a snapshot: nothing of it can be audited" in told.what


# ---- a log and a database that were tampered with


class Stores:
    """The three stores of one writer, all of it rated but the last few records, and tampered with by the tests below."""

    def __init__(self, writer: AuditedWriter) -> None:
        self.records = writer.records()
        self.writer = writer.writer
        self.log = writer.log_side()
        keys = list(self.log.records)
        self.last = next(key for key in reversed(keys) if self.log.records[key].accepted)  # acknowledged, in the log, not rated
        self.rated = writer.rated_side(next(at for at, record in enumerate(writer.log) if (record.partition, record.n) == self.last[1:]))
        self.first = keys[0]  # not kept by the journal any more
        acknowledged = read(self.records).acknowledged
        self.kept_all = [key for key in acknowledged if key in self.rated.records]
        self.kept_last = [key for key in acknowledged if key not in self.rated.records]
        self.kept = self.kept_all[-1] if self.kept_all else self.first

    def told(self, *more: JournalSide) -> list[str]:
        return [one.what for one in compare([read(self.records), *more], self.log, self.rated).differences]

    def only(self, *names: str) -> None:
        told = self.told()
        assert len(told) == 1 and all(name in told[0] for name in names), f"{names}: {told}"


@pytest.fixture(params=range(5))
async def stores(request: pytest.FixtureRequest) -> Stores:
    """Of some lives whose journal still has an acknowledged record that is rated, and one that is not."""
    seed, fit = -1, -1
    while fit < request.param:
        seed += 1
        stores = Stores(await lived(seed))
        fit += bool(stores.kept_all) and stores.last in stores.kept_last
    assert stores.told() == []
    return stores


def place(key: RecordKey) -> str:
    return f"record {key[2]} of partition {key[1]} of writer {key[0]}"


def test_a_rated_record_is_gone_from_the_log(stores: Stores) -> None:
    for key in (stores.first, stores.kept):
        gone = stores.log.records.pop(key)
        stores.only(f"{place(key)} is rated, but not in the log")
        stores.log.records[key] = gone


def test_what_the_logs_retention_deleted_is_not_missed(stores: Stores) -> None:
    _, stream, position = stores.rated.positions[stores.kept]
    gone = [key for key, (_, one, at) in stores.rated.positions.items() if one == stream and at <= position]
    for key in gone:
        del stores.log.records[key]
    assert len(stores.told()) >= 1
    stores.log.starts[stream] = position
    assert stores.told() == []
    stores.log.starts[stream] = position - 1
    stores.only(f"{place(stores.kept)} is rated, but not in the log")


def test_many_neighbours_are_told_in_one_line(stores: Stores) -> None:
    chain = [key for key in stores.rated.records if key[:2] == stores.first[:2]]
    for key in chain:
        del stores.log.records[key]
    stores.only(f"records 1 to {max(key[2] for key in chain)} of partition {stores.first[1]} of writer {stores.writer} are rated")


def test_records_of_another_log_are_not_missed(stores: Stores) -> None:
    del stores.log.records[stores.kept]
    stores.rated.positions[stores.kept] = ("another log", "stream", 1)
    assert stores.told() == []


def test_a_flushed_record_is_nowhere(stores: Stores) -> None:
    del stores.log.records[stores.last]
    stores.only(f"{place(stores.last)} was flushed, but is neither in the log nor rated")


def test_a_flushed_record_is_nowhere_and_its_segment_is_gone(stores: Stores) -> None:
    """Of the journal only a snapshot is kept, which says how far each partition was flushed."""
    standing = Standing(bytes.fromhex(stores.writer))
    for record in stores.records:
        standing.apply(record)
    stores.records = [standing.snapshot(1)]
    assert stores.told() == []
    del stores.log.records[stores.last]
    stores.only(f"{place(stores.last)} was flushed, but is neither in the log nor rated, and the journal keeps it no longer")
    stores.rated.parked = {stores.last: f"record {stores.last[2] - 1} has to come first"}
    stores.only(f"{place(stores.last)} is parked, not rated")
    for key in [key for key in stores.log.records if key[:2] == stores.last[:2]]:
        for store in (stores.log.records, stores.rated.records):
            store.pop(key, None)
    stores.rated.parked = {}
    writer, partition, _ = stores.last
    last = read(stores.records).last_acknowledged[partition]
    if last > 1:
        stores.only(
            f"records 1 to {last} of partition {partition} of writer {writer} were flushed, but are neither in the log nor rated, and the"
        )


def test_other_bytes_in_one_store(stores: Stores) -> None:
    for store in (stores.log.records, stores.rated.records):
        right = store[stores.kept]
        store[stores.kept] = right._replace(hash="f" * 32)
        stores.only(f"{place(stores.kept)} has different bytes", "f" * 32, "in the journal")
        store[stores.kept] = right
    stores.log.forks.add(stores.first)
    stores.only(f"{place(stores.first)} has different bytes")


async def test_two_records_under_one_number_in_the_log() -> None:
    """Each of them sound in itself, in either order; the same bytes twice are none."""
    writer = await lived(0)
    record = writer.log[0]
    value = record.value + b" "
    digest = xxh3_128_hexdigest(value).encode()
    headers = tuple((name, digest if name == "hash" else content) for name, content in record.headers)
    other = record._replace(headers=headers, value=value)
    for pair in ((record, other), (other, record)):
        log = writer.log_side(0)
        for one in (*pair, record):
            log.take(dict(one.headers), one.value)
        assert log.forks == {(writer.writer, record.partition, record.n)}
    log = writer.log_side(0)
    for _ in range(2):
        log.take(dict(record.headers), record.value)
    assert log.forks == set()


def test_a_damaged_copy_of_a_record_that_the_log_has_whole_is_no_difference(stores: Stores) -> None:
    stores.log.unsound[stores.last] = "the value hashes to something else"
    stores.log.unsound[stores.kept] = "the value hashes to something else"
    assert stores.told() == []


def test_a_record_in_the_log_cannot_be_read(stores: Stores) -> None:
    stores.log.unsound[stores.last] = "the value hashes to something else"
    stores.log.records.pop(stores.last)
    stores.only(f"{place(stores.last)} is in the log, but cannot be read: the value hashes to something else")
    stores.rated.parked = {stores.last: "its bytes hash to something else"}
    stores.only(f"{place(stores.last)} is in the log, but cannot be read: the value hashes to something else")


def test_a_record_is_missing_or_damaged_in_postgres(stores: Stores) -> None:
    del stores.rated.records[stores.kept]
    stores.rated.missing = frozenset({stores.kept})
    stores.only(f"{place(stores.kept)} is missing from the table `records` in PostgreSQL")
    stores.rated.missing, stores.rated.unsound = frozenset(), {stores.kept: "a byte is wrong"}
    stores.only(f"{place(stores.kept)} is rated", "not sound: a byte is wrong")


def test_a_record_that_no_store_has_any_more_hides_nothing_else(stores: Stores) -> None:
    for store in (stores.rated.records, stores.log.records):
        del store[stores.first]
    stores.rated.missing = frozenset({stores.first})
    stores.only(f"{place(stores.first)} is missing from the table")
    for uncounted, lender in ([], "a backup: no other store has it"), (["usage"], "an archive that was not given, or a backup"):
        stores.rated.uncounted = uncounted
        (told,) = compare([read(stores.records)], stores.log, stores.rated).differences
        assert f"put the row back from {lender}, or restore" in told.then


def test_parked_records_are_told_once_a_chain(stores: Stores) -> None:
    writer, partition, n = stores.last
    stores.rated.parked = {(writer, partition, n + more): f"record {n - 1} has to come first" for more in range(3)}
    stores.only(f"record {n} of partition {partition} of writer {writer} (and 2 later ones) is parked, not rated: record {n - 1} has to")
    stores.rated.parked = {(writer, partition, n + 1 + more): f"record {n} has to come first" for more in range(3)}
    del stores.log.records[stores.last]
    stores.only(f"{place(stores.last)} was flushed, but is neither")


def test_a_chain_is_held(stores: Stores) -> None:
    stores.rated.held = {stores.last[:2]: "fork: two hashes"}
    stores.only(f"partition {stores.last[1]} of writer {stores.writer} is held", "fork: two hashes")
    stores.rated.parked = {stores.last: "fork: two hashes"}
    stores.only(f"{place(stores.last)} is parked, not rated: fork: two hashes")
    stores.rated.parked = {}
    for key in [key for key in stores.rated.records if key[:2] == stores.last[:2]]:
        del stores.log.records[key]
    told = stores.told()
    assert "are rated, but not in the log" in told[0].replace(" is ", " are ") and len(told) == 2, "what is wrong besides hides it not"
    assert told[1].startswith(f"partition {stores.last[1]} of writer {stores.writer} is held")


def test_the_journal_says_that_more_was_flushed_than_any_store_has(stores: Stores) -> None:
    """Of it only a snapshot is kept, which agrees with itself."""
    standing = Standing(bytes.fromhex(stores.writer))
    for record in stores.records:
        standing.apply(record)
    snapshot = standing.snapshot(1)
    counts = {**snapshot.totals[1], **{verdict: snapshot.totals[1][verdict] + 1 for verdict in ("received", "accepted")}}
    stores.records = [snapshot._replace(totals={**snapshot.totals, 1: counts}, flushed={**snapshot.flushed, 1: snapshot.flushed[1] + 1})]
    stores.only(f"writer {stores.writer}, tenant demo: flushed {snapshot.flushed[1] + 1} is not rated ", " + in the log ")
    counts = {**snapshot.totals[1], "received": snapshot.totals[1]["received"] + 1}
    stores.records = [snapshot._replace(totals={**snapshot.totals, 1: counts})]
    stores.only(f"writer {stores.writer}, tenant demo: received {counts['received']} is not accepted {counts['accepted']} + duplicate ")


def test_the_journal_is_an_old_copy(stores: Stores) -> None:
    *_, last = (record.flush for record in stores.records if isinstance(record, Flushed))
    begun = [at for at, record in enumerate(stores.records) if isinstance(record, FlushBegin) and record.flush == last]
    stores.records = stores.records[: begun[0]]
    stores.rated.records = dict(stores.log.records)
    stores.only("is rated, but not yet made according to its journal /mnt/writers/0")


def test_something_in_the_log_is_no_record(stores: Stores) -> None:
    stores.log.strays["usage.counters/2", 71] = "header writer is missing"
    stores.rated.strays = {("usage.counters/2", 71): "header writer is missing"}
    stores.only("in usage.counters/2 before position 71", "header writer is missing")
    stores.rated.strays, stores.rated.explained = {}, {("usage.counters/2", 71)}
    assert stores.told() == [], "a person left it out"
    stores.log.strays["usage.counters/2", 72] = "header writer is missing"
    stores.only("in usage.counters/2 before position 72")


def test_a_registered_writer_without_journal(stores: Stores) -> None:
    other = "ab" * 16
    stores.log.writers = {**stores.log.writers, other: None}
    stores.only(f"writer {other} is registered, but its journal was not given")
    stores.log.writers = {**stores.log.writers, other: Retired(17)}
    assert stores.told() == [], "it was retired"
    stores.log.writers = {**stores.log.writers, "cd" * 16: Retired(17, "3 calls are lost")}
    verdict = compare([read(stores.records)], stores.log, stores.rated)
    assert (verdict.differences, verdict.losses) == ([], [f"writer {'cd' * 16}: 3 calls are lost"])


def test_nothing_of_a_writer_is_given_but_its_records(stores: Stores) -> None:
    whole = compare([read(stores.records)], stores.log, stores.rated)
    stores.log.writers = {stores.writer: Retired(17)}
    verdict = compare([], stores.log, stores.rated)
    assert verdict.differences == []
    for row, without in zip(whole.rows, verdict.rows, strict=True):
        assert (row.flushed, row.rated, row.in_log) == (without.accepted, without.rated, without.in_log)


def test_an_unknown_writer_is_rated(stores: Stores) -> None:
    stores.log.writers = {}
    stores.only(f"writer {stores.writer} has rated records, but the counter log's registry (usage.writers) does not know it")


def test_a_journal_and_its_copy(stores: Stores) -> None:
    told = stores.told(JournalSide(TENANTS, "/mnt/copy").read(stores.records))
    assert len(told) == 1 and "/mnt/writers/0 and /mnt/copy are of the same writer" in told[0]


def test_a_tenant_that_the_configuration_does_not_name(stores: Stores) -> None:
    side = JournalSide({1: "demo"}, DIRECTORY).read(stores.records)
    told = [one.what for one in compare([side], stores.log, stores.rated).differences]
    assert len(told) == 1 and "tenant number 2, which the configuration does not name" in told[0]


def test_a_journal_lends_what_postgres_lost(stores: Stores) -> None:
    side = JournalSide(TENANTS, DIRECTORY, wanted={stores.kept}).read(stores.records)
    assert set(side.found) == {stores.kept}
    assert {**stores.rated.records[stores.kept].tallies} == side.found[stores.kept].tallies
