"""One writer's journal as the audit reads it: what its records add up to, and every place where they contradict each other.

Pure. Belongs here: what each journal record must agree with. Must not know: files, the other stores. It shares nothing with the state
machine that wrote the journal (buffer/journal_state.py), which is what is to be proved.

The oldest kept segment begins in the middle: its snapshot says what came before. Of a flush whose begin or parts are gone the audit has
only the journal's word, and the calls of dropped segments are known only by how many events they accepted.

What follows from a difference is not named again: whoever is named (a tenant, or every tenant) is in doubt until the next flush that
covers the place, and in the next snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from buffer.counter_log import Record
from buffer.counters import Deltas, MeterDefinition, unpack
from buffer.journal_records import (
    CallRecord,
    Closed,
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
from buffer.record import CounterRecord, NoPlace, Undecodable, decode, read_place
from dedupe.port import DIGEST_BYTES, FINGERPRINT_BYTES
from parshall.audit_records import (
    BEFORE_ALL,
    CallPlace,
    CounterName,
    Difference,
    Flush,
    RecordKey,
    Stored,
    add_counter,
    key_of,
    named,
    told_counter,
)

K = TypeVar("K", bound=tuple[str, ...])
EVERY = ""  # among names of tenants: each of them


_THEN = (
    "copy the folder before anything else happens to it, and report this: its checksums are right, so no disk did it, but somebody who "
    "changed it, or a defect of Parshall"
)


class _Call(NamedTuple):
    place: CallPlace
    tallies: Mapping[int, Mapping[str, int]]
    deltas: Sequence[Deltas]


class _Doubt(NamedTuple):
    """Calls of a tenant whose numbers follow from something named."""

    first: CallPlace
    last: CallPlace
    tenant: str


class JournalSide:
    """One writer, added up from its journal's records."""

    def __init__(self, tenants: Mapping[int, str], directory: str = "", wanted: Collection[RecordKey] = ()) -> None:
        """`wanted`: records whose contents the audit needs, if this journal has them."""
        self.directory = directory
        self.writer = ""
        self.tallies: Counter[tuple[str, str]] = Counter()  # (tenant, verdict), since the journal was made
        self.flushed: Counter[str] = Counter()  # accepted events in acknowledged flushes, by tenant, from their bytes
        self.acknowledged: dict[RecordKey, Stored] = {}
        self.unacknowledged: dict[RecordKey, Stored] = {}  # of a committed flush under way: may be in the log or not
        self.last_acknowledged: dict[int, int] = {}  # partition -> n
        self.doubted: set[str] = set()  # tenants whose numbers here follow from something named
        self.unnamed: set[int] = set()  # numbers of tenants that the configuration does not name
        self.differences: list[Difference] = []
        self.found: dict[RecordKey, CounterRecord] = {}
        self._wanted = wanted
        self._tenants = tenants
        self._begun = False
        self._incarnations: list[bytes] = []
        self._last_calls: list[int] = []
        self._meters: dict[int, MeterDefinition] = {}
        self._next_n: dict[int, int] = {}
        self._next_flush = 1
        self._horizon_us = 0
        self._through = Through(b"", 0)
        self._acknowledged = BEFORE_ALL
        self._calls: list[_Call] = []  # kept, and not covered by an acknowledged flush
        self._dropped: Counter[str] = Counter()  # accepted in calls that are not kept, not covered by an acknowledged flush
        self._kept_after = BEFORE_ALL  # calls up to here are not kept
        self._flush: Flush | None = None
        self._doubts: list[_Doubt] = []
        self._aliases: dict[bytes, int] = {}  # incarnation that was never opened -> the position of that which may have its calls
        self._named_flushes: set[int] = set()
        self._named_throughs: set[Through] = set()
        self._first_call: CallRecord | None = None  # of the last incarnation
        self._doubted_since_snapshot: set[str] = set()
        self._numbers_doubted = False
        self._numbers_sure: set[int] = set()  # partitions whose next number was seen since
        self._tolerated: dict[tuple[str, tuple[str, ...]], set[int]] = {}  # how far a number of a snapshot may be off: it was named

    def read(self, records: Iterable[JournalRecord]) -> JournalSide:
        for record in records:
            if not self._begun and not isinstance(record, Snapshot):
                self._differs(f"the journal {self.directory} does not begin with a snapshot: nothing of it can be audited")
                return self
            self._apply(record)
        return self

    @property
    def buffered(self) -> Counter[str]:
        """Accepted events of the calls that no acknowledged flush covers, by tenant."""
        buffered = self._dropped.copy()
        for call in self._calls:
            buffered.update(self._accepted(call))
        return buffered

    @property
    def last_committed(self) -> dict[int, int]:
        """Partition -> n of the last record that may be in the log."""
        return {partition: n - 1 for partition, n in self._next_n.items()}

    @property
    def tenants(self) -> Collection[str]:
        """Those that the configuration names."""
        return self._tenants.values()

    def knows_numbers_of(self, partition: int) -> bool:
        return not self._numbers_doubted or partition in self._numbers_sure

    def _apply(self, record: JournalRecord) -> None:
        match record:
            case CallRecord():
                self._call(record)
            case FlushPart():
                self._part(record)
            case FlushBegin():
                self._begin(record)
            case FlushCommit():
                self._commit(record)
            case Flushed():
                self._flushed(record)
            case Opened():
                self._opened(record)
            case Meters():
                self._meters.update(record.definitions)
            case Closed():
                self._closed(record)
            case Snapshot() if self._begun:
                self._compare_with(record)
            case Snapshot():
                self._start_from(record)

    # ---- snapshots

    def _start_from(self, snapshot: Snapshot) -> None:
        self._begun = True
        self.writer = snapshot.writer.hex()
        self._incarnations = [incarnation for incarnation, _ in snapshot.incarnations]
        self._last_calls = [last for _, last in snapshot.incarnations]
        self._kept_after = next(((at, last) for at, last in reversed(list(enumerate(self._last_calls))) if last), BEFORE_ALL)
        self._meters = dict(snapshot.meters)
        self._next_n = dict(snapshot.next_n)
        self._next_flush = snapshot.next_flush
        self._horizon_us = snapshot.horizon_us
        self.tallies = self._totals(snapshot)
        self.flushed = self._by_name(snapshot.flushed)
        self._dropped = Counter({tenant: n for (tenant, verdict), n in self.tallies.items() if verdict == "accepted"})
        self._dropped.subtract(self.flushed)
        self._through = snapshot.through
        self._acknowledged = self._place(snapshot.through) or BEFORE_ALL
        self.last_acknowledged = self.last_committed
        if (progress := snapshot.progress) is not None:
            place = self._place(progress.through) or BEFORE_ALL
            self._flush = Flush(progress.flush, progress.through, place, whole=False, committed=progress.committed)
            self._flush.next_n = dict(progress.next_n)
            if progress.committed:
                self._flush.told = progress.accepted

    def _compare_with(self, snapshot: Snapshot) -> None:
        """A later snapshot repeats what the records before it add up to."""
        self._catch_up_with(snapshot)
        doubted = self._doubted_since_snapshot
        flushed, own_flushed = (
            {(name,): n for name, n in one.items() if self._is_named(name)} for one in (self._by_name(snapshot.flushed), self.flushed)
        )
        next_n, own_next_n = ({(str(partition),): n for partition, n in one.items()} for one in (snapshot.next_n, self._next_n))
        numbers_off = self._off("next record of partition", next_n, own_next_n, lambda key: not self.knows_numbers_of(int(key[0])))
        if numbers_off and not self._numbers_doubted:
            self._numbers_doubted = True
            self._numbers_sure = {partition for partition, n in self._next_n.items() if snapshot.next_n.get(partition) == n}
        off = {
            **self._off("events of", self._totals(snapshot), self.tallies, lambda key: self._in_doubt(doubted, key[0])),
            **self._off("flushed events of", flushed, own_flushed, lambda key: self._in_doubt(doubted, key[0])),
            **numbers_off,
            **self._off("next flush", {(): snapshot.next_flush}, {(): self._next_flush}, lambda _: EVERY in doubted),
            **self._off("horizon", {(): snapshot.horizon_us}, {(): self._horizon_us}, lambda _: EVERY in doubted),
        }
        told = [*off, *(self._others_off(snapshot) if EVERY not in doubted else ())]
        if told:
            what = f"the snapshot after {self._here()} does not repeat what the records before it make: {', '.join(told)}"
            self._differs(what, *{tenant for tenant in off.values() if tenant}, since=self._acknowledged)
        self._doubted_since_snapshot = set()

    def _catch_up_with(self, snapshot: Snapshot) -> None:
        """Name what is missing before it and follow it, so that it is not named again where it is missed next."""
        for incarnation, last in snapshot.incarnations[len(self._incarnations) :]:
            if Through(incarnation, 0) not in self._named_throughs:
                self._differs(f"the opening of incarnation {incarnation.hex()} is missing before the snapshot after {self._here()}", EVERY)
            self._incarnations.append(incarnation)
            self._last_calls.append(last)
        for at, (incarnation, last) in enumerate(snapshot.incarnations):
            if last > self._last_calls[at] and EVERY not in self._doubted_since_snapshot:
                missing = f"{_range('call', self._last_calls[at] + 1, last)} missing from incarnation {incarnation.hex()}"
                self._last_calls[at] = last
                self._differs(f"{missing}, before the snapshot after call {last}", EVERY, since=self._acknowledged)
        flush, progress = self._flush, snapshot.progress
        if flush is not None and flush.committed and progress is None:
            self._flush_differs(flush, f"the acknowledgement of flush {flush.number} is missing before the snapshot after {self._here()}")
            self._acknowledge(flush, None)
        elif progress is not None and progress.committed and flush is not None and not flush.committed:
            self._flush_differs(flush, f"the commit of flush {flush.number} is missing before the snapshot after {self._here()}")
            self._committed(flush)
        elif progress is not None and flush is None and progress.flush >= self._next_flush:
            flush = self._without_begin(progress.flush)
            flush.through, flush.place = progress.through, self._place(progress.through) or flush.place
            if progress.committed:
                self._committed(flush)
        self._skip_named_flushes(snapshot.next_flush)
        if snapshot.next_flush > self._next_flush and snapshot.through != self._through:
            missing = f"{_range('flush', self._next_flush, snapshot.next_flush - 1)} missing before the snapshot after {self._here()}"
            self._differs(missing, EVERY, since=self._acknowledged)
            self._next_flush, self._next_n = snapshot.next_flush, dict(snapshot.next_n)
        if EVERY in self._doubted_since_snapshot:
            self._incarnations = [incarnation for incarnation, _ in snapshot.incarnations]
            self._last_calls = [last for _, last in snapshot.incarnations]
            self._through = snapshot.through
            self._acknowledged = self._place(snapshot.through) or self._acknowledged

    def _off(self, what: str, found: Mapping[K, int], own: Mapping[K, int], doubted: Callable[[K], bool]) -> dict[str, str]:
        """What is off -> the tenant whose number it is, if it is one's."""
        told = {}
        for key in sorted(found.keys() | own.keys()):
            off = found.get(key, 0) - own.get(key, 0)
            tolerated = self._tolerated.setdefault((what, key), {0})
            if off not in tolerated:
                tolerated.add(off)
                if not doubted(key):
                    tenant = key[0] if key and "events" in what else ""
                    told[f"{' '.join((what, *key))} {found.get(key, 0)} instead of {own.get(key, 0)}"] = tenant
        return told

    def _others_off(self, snapshot: Snapshot) -> Iterable[str]:
        if list(snapshot.incarnations) != list(zip(self._incarnations, self._last_calls, strict=True)):
            yield "incarnations and their last calls"
        if snapshot.meters != self._meters:
            yield "meters"
        if snapshot.through != self._through:
            yield f"flushed through {self._told(snapshot.through)} instead of {self._told(self._through)}"
        if self._flush is not None and not self._flush.sound:
            return
        own = (self._flush.number, self._flush.through) if self._flush is not None and self._flush.committed else None
        progress = snapshot.progress
        found = (progress.flush, progress.through) if progress is not None and progress.committed else None
        if found != own:
            yield f"flush under way {found and found[0]} instead of {own and own[0]}"

    def _totals(self, snapshot: Snapshot) -> Counter[tuple[str, str]]:
        return Counter({(self._name(number), verdict): n for number, counts in snapshot.totals.items() for verdict, n in counts.items()})

    # ---- calls

    def _opened(self, opened: Opened) -> None:
        if opened.incarnation in self._incarnations:
            self._differs(f"incarnation {opened.incarnation.hex()} was opened twice", EVERY)
        self._incarnations.append(opened.incarnation)
        self._last_calls.append(0)
        if self._flush is not None and not self._flush.committed:
            self._flush = None  # the process that wrote it is gone: it never was

    def _call(self, call: CallRecord) -> None:
        if not self._follows(call):
            return
        self._last_calls[-1] = call.number
        if call.number == 1:
            self._first_call = call
        self._horizon_us = max(self._horizon_us, call.horizon_us)
        for number, counts in call.tallies.items():
            for verdict, n in counts.items():
                self.tallies[self._name(number), verdict] += n
        self._calls.append(_Call(self._last_place(), call.tallies, call.deltas))
        if complaints := dict(self._complaints(call)):
            self._differs(f"{self._here()} {' and '.join(complaints.values())}", *complaints)

    def _closed(self, closed: Closed) -> None:
        if self._last_calls and closed.last_call != self._last_calls[-1]:
            self._differs(f"{self._incarnation()} was closed after call {closed.last_call}, but {self._here()} is its last one", EVERY)
            self._last_calls[-1] = closed.last_call

    def _follows(self, call: CallRecord) -> bool:
        """Whether it counts. Names what is missing before it."""
        again = call == self._first_call and self._last_calls[-1] > 0
        if not self._incarnations or (call.number == 1 and self._last_calls[-1] > 0 and not again):
            self._differs(f"call {call.number} after {self._here()} belongs to an incarnation whose opening is missing", EVERY)
            self._incarnations.append(b"")
            self._last_calls.append(call.number - 1)
        last = self._last_calls[-1]
        if call.number <= last:
            self._differs(f"call {call.number} of {self._incarnation()} stands again after {self._here()}", EVERY)
            return False
        if call.number > last + 1:
            missing = f"{_range('call', last + 1, call.number - 1)} missing from {self._incarnation()}, before call {call.number}"
            self._differs(missing, EVERY)
            self._doubts.append(_Doubt(self._last_place(), (len(self._incarnations) - 1, call.number - 1), EVERY))
        return True

    def _complaints(self, call: CallRecord) -> Iterable[tuple[str, str]]:
        """(tenant, what is wrong with its part of the call)"""
        digests, fingerprints = Counter[int](), Counter[int]()
        for tenant, granted, prints in call.claims:
            digests[tenant] += len(granted)
            fingerprints[tenant] += len(prints)
        for number in sorted(digests.keys() | call.tallies.keys()):
            name, counts = self._name(number), call.tallies.get(number, {})
            accepted, received = counts.get("accepted", 0), counts.get("received", 0)
            decided = sum(n for verdict, n in counts.items() if verdict != "received")
            if digests[number] != accepted * DIGEST_BYTES:
                whole, rest = divmod(digests[number], DIGEST_BYTES)
                yield name, f"holds {whole} digests{' and a part' if rest else ''} of tenant {name}, but accepted {accepted} events of it"
            elif fingerprints[number] != accepted * FINGERPRINT_BYTES:
                yield name, f"holds {fingerprints[number]} bytes of fingerprints of tenant {name} for {accepted} accepted events"
            elif received != decided:
                yield name, f"received {received} events of tenant {name}, but decided {decided}"

    # ---- flushes

    def _begin(self, begin: FlushBegin) -> None:
        if self._flush is not None and self._flush.committed:
            never = f"flush {self._flush.number} was committed, but flush {begin.flush} begins before it is acknowledged"
            self._flush_differs(self._flush, never)
            self._acknowledge(self._flush, None)
        self._skip_named_flushes(begin.flush)
        flush = self._flush = Flush(begin.flush, begin.through, self._place(begin.through) or BEFORE_ALL, whole=True)
        if begin.flush < self._next_flush:
            again = f"flush {begin.flush} begins again after {self._here()}, where flush {self._next_flush} is next"
            self._flush_differs(flush, again)
        elif begin.flush > self._next_flush:
            self._flush_differs(flush, f"{_range('flush', self._next_flush, begin.flush - 1)} missing before flush {begin.flush}")
            self._next_flush = begin.flush
        elif self._place(begin.through) is None:
            self._covers_what_is_missing(flush)
        elif flush.place < self._acknowledged:
            self._flush_differs(flush, f"flush {begin.flush} covers {self._told(begin.through)} and so less than the flush before it")

    def _skip_named_flushes(self, following: int) -> None:
        while self._next_flush < following and self._next_flush in self._named_flushes:
            self._next_flush += 1
            self._doubted_since_snapshot.add(EVERY)

    def _covers_what_is_missing(self, flush: Flush) -> None:
        incarnation, call = flush.through
        where = flush.through if incarnation in self._incarnations else Through(incarnation, 0)
        if where not in self._named_throughs:
            self._flush_differs(flush, f"flush {flush.number} covers {self._told(flush.through)}, which is not in the journal")
            self._named_throughs.add(where)
        flush.sound, flush.through_unknown = False, True
        if incarnation in self._incarnations:
            at = self._incarnations.index(incarnation)
            self._last_calls[at] = call  # so that the gap is not named once more
        elif self._incarnations:
            self._aliases[incarnation] = len(self._incarnations) - 1  # its opening may be what is missing
        flush.place = self._place(flush.through) or self._last_place()

    def _part(self, part: FlushPart) -> None:
        flush = self._flush
        if flush is None or flush.committed or flush.number != part.flush:
            flush = self._without_begin(part.flush)
        for record in part.records:
            self._record(flush, record)

    def _without_begin(self, number: int) -> Flush:
        if self._flush is not None and self._flush.committed:
            self._acknowledge(self._flush, None)
        flush = self._flush = Flush(number, Through(b"", 0), self._last_place(), whole=True, through_unknown=True)
        self._flush_differs(flush, f"the begin of flush {number} is missing after {self._here()}")
        return flush

    def _record(self, flush: Flush, record: Record) -> None:
        expected = flush.next_n.get(record.partition) or self._next_n.get(record.partition, 1)
        it = f"{named((self.writer, record.partition, record.n))} (flush {flush.number})"
        if record.n != expected:
            if record.partition in flush.next_n or self.knows_numbers_of(record.partition):
                missing = f"{_range('record', expected, record.n - 1)} missing from the journal before {it}"
                self._flush_differs(flush, missing if record.n > expected else f"{it} stands twice in the journal")
            if record.partition not in flush.next_n:
                self._next_n[record.partition] = record.n
        flush.next_n[record.partition] = record.n + 1
        self._numbers_sure.add(record.partition)
        try:
            place = read_place(dict(record.headers))
            decoded = decode(dict(record.headers), record.value)
        except (NoPlace, Undecodable) as error:
            self._flush_differs(flush, f"{it} is not sound in the journal: {error}")
            return
        key = key_of(place)
        if flush.through_unknown:
            flush.through, flush.place = place.through, self._place(place.through) or flush.place
        if key != (self.writer, record.partition, record.n):
            self._flush_differs(flush, f"{it} says in its headers that it is {named(key)}")
        elif place.through != flush.through and flush.sound:
            self._flush_differs(flush, f"{it} covers {self._told(place.through)}, but its flush {self._told(flush.through)}")
        flush.take(key, place, decoded)
        if key in self._wanted:
            self.found[key] = decoded

    def _commit(self, commit: FlushCommit) -> None:
        flush = self._flush
        if flush is None or flush.committed or flush.number != commit.flush:
            flush = self._without_begin(commit.flush)
        self._committed(flush)

    def _committed(self, flush: Flush) -> None:
        flush.committed = True
        self._next_flush = flush.number + 1
        self._next_n.update(flush.next_n)
        self.unacknowledged = flush.records
        if flush.whole and flush.sound and flush.place >= self._kept_after:
            self._check_coverage(flush)

    def _check_coverage(self, flush: Flush) -> None:
        """What its records carry beside what the calls that it covers decided and counted."""
        doubted = self._doubted_in(flush)
        covered = [call for call in self._calls if call.place <= flush.place]
        all_kept = self._acknowledged >= self._kept_after
        if all_kept:
            tallies = Counter[tuple[str, str]]()
            for call in covered:
                tallies.update(
                    {(self._name(number), verdict): n for number, counts in call.tallies.items() for verdict, n in counts.items()}
                )
            found, own = flush.tallies, tallies
        else:
            accepted = self._dropped.copy()
            for call in covered:
                accepted.update(self._accepted(call))
            found, own = (Counter({(tenant, "accepted"): n for tenant, n in one.items()}) for one in (flush.accepted, accepted))
        for key in sorted(found.keys() | own.keys()):
            tenant, verdict = key
            if found[key] != own[key] and self._is_named(tenant) and not self._in_doubt(doubted, tenant):
                carried = f"carries {found[key]} {verdict} events of tenant {tenant}, but the calls that it covers have {own[key]}"
                self._flush_differs(flush, f"flush {flush.number} (through {self._told(flush.through)}) {carried}")
                return
        if all_kept:
            self._check_counters(flush, covered, doubted)

    def _check_counters(self, flush: Flush, covered: Iterable[_Call], doubted: Collection[str]) -> None:
        own: dict[CounterName, tuple[int, int]] = {}
        for call in covered:
            for deltas in call.deltas:
                self._add_deltas(own, deltas)
        off = [
            name
            for name in sorted(flush.counters.keys() | own.keys())
            if flush.counters.get(name) != own.get(name) and self._is_named(name[1]) and not self._in_doubt(doubted, name[1])
        ]
        if off:
            meter, tenant, subject, window_start_s, dimensions = off[0]
            counter = f"tenant {tenant}, meter {meter}, subject {subject!r}, window {window_start_s}, dimensions {list(dimensions)}"
            made = f"but the calls that it covers make it {told_counter(own.get(off[0]))}"
            carried = f"carries {told_counter(flush.counters.get(off[0]))} for {counter}, {made}"
            more = f" (and {len(off) - 1} more counters)" if len(off) > 1 else ""
            self._flush_differs(flush, f"flush {flush.number} (through {self._told(flush.through)}) {carried}{more}")

    def _add_deltas(self, into: dict[CounterName, tuple[int, int]], deltas: Deltas) -> None:
        for counters in deltas.values():
            for (number, tenant, subject, window_start_s, *dimensions), packed in counters.items():
                meter = self._meters.get(int(number)) or MeterDefinition(f"number {number}", "", "sum", 0, 60, ())
                value, events = unpack(packed)
                name = (meter.name, self._name(int(tenant)), str(subject), int(window_start_s), tuple(map(str, dimensions)))
                add_counter(into, name, meter, events if meter.aggregation == "count" else value, events)

    def _flushed(self, flushed: Flushed) -> None:
        flush = self._flush
        if flush is None or flush.number != flushed.flush:
            self._differs(f"flush {flushed.flush} is acknowledged after {self._here()}, but was not begun", EVERY)
            return
        if not flush.committed:
            self._flush_differs(flush, f"flush {flush.number} is acknowledged after {self._here()}, but its commit is missing")
            self._committed(flush)
        self._acknowledge(flush, flushed.accepted)

    def _acknowledge(self, flush: Flush, told: Mapping[int, int] | None) -> None:
        self._flush = None
        carried = flush.accepted if flush.whole else self._by_name(told or flush.told or {})
        doubted = self._doubted_in(flush)
        if told is not None and flush.sound:
            self._check_told(flush, self._by_name(told), self._expected(flush, carried), doubted)
        self.flushed.update(carried)
        if flush.sound:
            self.acknowledged.update(flush.records)
        else:
            self._doubted_since_snapshot.add(EVERY)
        self.unacknowledged = {}
        self.last_acknowledged.update({partition: n - 1 for partition, n in flush.next_n.items()})
        self._through, self._acknowledged = flush.through, max(flush.place, self._acknowledged)
        if flush.place >= self._kept_after:
            self._dropped = Counter()
        else:
            self._dropped.subtract(carried)
        self._calls = [call for call in self._calls if call.place > flush.place]
        self._doubts = [doubt for doubt in self._doubts if doubt.last > flush.place]

    def _expected(self, flush: Flush, carried: Counter[str]) -> Counter[str]:
        """What the acknowledgement must say."""
        if flush.whole:
            return carried
        if flush.told is not None:
            return self._by_name(flush.told)
        return self._dropped if flush.place >= self._kept_after else carried

    def _check_told(self, flush: Flush, told: Counter[str], carried: Counter[str], doubted: Collection[str]) -> None:
        for tenant in sorted(told.keys() | carried.keys()):
            if told[tenant] != carried[tenant] and self._is_named(tenant) and not self._in_doubt(doubted, tenant):
                carries = f"flush {flush.number} carries {carried[tenant]} accepted events of tenant {tenant}"
                self._flush_differs(flush, f"{carries}, its acknowledgement says {told[tenant]}")

    # ---- naming

    def _differs(self, what: str, *tenants: str, since: CallPlace | None = None) -> None:
        """`tenants`: whose numbers are in doubt because of it, from the call `since` on (the last one) to here."""
        self.differences.append(Difference(f"journal {self.directory} of writer {self.writer}: {what}", _THEN))
        last = self._last_place()
        self._doubts += [_Doubt(since or last, last, tenant) for tenant in tenants]
        self._doubted_since_snapshot.update(tenants)
        self.doubted.update(tenants)

    def _flush_differs(self, flush: Flush, what: str) -> None:
        """At most one difference a flush: the first one explains the others."""
        if flush.sound:
            flush.sound = False
            self._named_flushes.add(flush.number)
            self._differs(what, EVERY, since=self._acknowledged)
            self._numbers_doubted = True
            self._numbers_sure.clear()

    def _doubted_in(self, flush: Flush) -> set[str]:
        return {doubt.tenant for doubt in self._doubts if doubt.first <= flush.place}

    @staticmethod
    def _in_doubt(doubted: Collection[str], tenant: str) -> bool:
        return EVERY in doubted or tenant in doubted

    def _here(self) -> str:
        """The last call so far."""
        return f"call {self._last_calls[-1]} of {self._incarnation()}" if self._incarnations else "its beginning"

    def _incarnation(self) -> str:
        return f"incarnation {self._incarnations[-1].hex() or '(not known)'}"

    def _told(self, through: Through) -> str:
        return f"call {through.call} of incarnation {through.incarnation.hex()}" if through.incarnation else "no call"

    def _last_place(self) -> CallPlace:
        return (len(self._incarnations) - 1, self._last_calls[-1]) if self._incarnations else BEFORE_ALL

    def _place(self, through: Through) -> CallPlace | None:
        if not through.incarnation:
            return BEFORE_ALL
        if through.incarnation not in self._incarnations and b"" in self._incarnations:
            self._incarnations[self._incarnations.index(b"")] = through.incarnation  # the one whose opening is missing
        if through.incarnation in self._incarnations:
            at = self._incarnations.index(through.incarnation)
        elif through.incarnation in self._aliases:
            at = self._aliases[through.incarnation]
        else:
            return None
        return (at, through.call) if through.call <= self._last_calls[at] else None

    def _name(self, number: int) -> str:
        name = self._tenants.get(number)
        if name is None:
            self.unnamed.add(number)
            return f"number {number}"
        return name

    def _is_named(self, tenant: str) -> bool:
        """Of a tenant that the configuration does not name, calls have the number and records the name: nothing can be compared."""
        return tenant in self._tenants.values()

    def _by_name(self, events: Mapping[int, int]) -> Counter[str]:
        return Counter({self._name(number): n for number, n in events.items()})

    def _accepted(self, call: _Call) -> dict[str, int]:
        return {self._name(number): counts["accepted"] for number, counts in call.tallies.items() if counts.get("accepted")}


def _range(what: str, first: int, last: int) -> str:
    return f"{what} {first} is" if first >= last else f"{what}{'es' if what.endswith('sh') else 's'} {first} to {last} are"
