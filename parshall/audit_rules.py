"""The audit's reasoning: three stores, each told in its own words, and every way in which they may disagree.

Pure. Belongs here: what is added up from a journal, from the counter log and from PostgreSQL, and the comparison. Must not know: files,
Kafka, SQL, how the stores are read. The order of reading matters, see audit.py: PostgreSQL first, then the journals, then the log, so
whatever one of them holds must be found in the next.

1. received = accepted + duplicate + rejected   (the journal's tallies; accepted once more as digests granted)
2. accepted = flushed + buffered                (flushed: tallies in the bytes of acknowledged flushes; buffered: calls that none covers)
3. flushed = rated + in the log                 (record by record, by writer, partition, number and hash)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from buffer.counter_log import Record
from buffer.journal_records import (
    CallRecord,
    FlushBegin,
    FlushCommit,
    Flushed,
    FlushPart,
    JournalRecord,
    Opened,
    Snapshot,
    Through,
)
from buffer.record import CounterRecord, decode, read_place

RecordKey = tuple[str, int, int]  # writer (32 hex digits), partition, n
DIGEST_BYTES = 12

K = TypeVar("K", str, tuple[str, str])  # tenant, or (tenant, verdict)


class Stored(NamedTuple):
    """A counter record as some store has it."""

    hash: str
    accepted: Mapping[str, int]  # events by tenant, from its tallies


def stored(headers: Mapping[str, bytes], value: bytes) -> tuple[RecordKey, Stored, CounterRecord]:
    """Raises NoPlace or Undecodable."""
    place = read_place(headers)
    record = decode(headers, value)
    accepted = {tenant: counts.get("accepted", 0) for tenant, counts in record.tallies.items()}
    return (place.writer.hex(), place.partition, place.n), Stored(place.hash, accepted), record


def named(key: RecordKey) -> str:
    writer, partition, n = key
    return f"record {n} of partition {partition} of writer {writer}"


# ---- the journal's side


class _Call(NamedTuple):
    place: tuple[int, int]  # (position of the incarnation, call)
    accepted: Mapping[int, int]


class JournalSide:
    """One writer, added up from its journal's records."""

    def __init__(self, tenants: Mapping[int, str]) -> None:
        self.writer = ""
        self.tallies: Counter[tuple[str, str]] = Counter()  # (tenant, verdict), since the journal was made
        self.granted: Counter[str] = Counter()  # digests in the calls that are kept, by tenant
        self.flushed: Counter[str] = Counter()  # accepted events in acknowledged flushes, by tenant, from their bytes
        self.acknowledged: dict[RecordKey, Stored] = {}
        self.unacknowledged: dict[RecordKey, Stored] = {}  # of a committed flush under way: may be in the log or not
        self.differences: list[str] = []
        self._tenants = tenants
        self._incarnations: list[bytes] = []
        self._calls: list[_Call] = []  # not covered by an acknowledged flush
        self._through: tuple[int, int] = (-1, 0)
        self._parts: list[Record] = []
        self._flush: FlushBegin | None = None
        self._first_flush = 1  # flushes below it are not kept whole
        self._before_kept: Counter[str] = Counter()  # accepted before the oldest kept segment, and not covered there
        self._begun = False

    def read(self, records: Iterable[JournalRecord]) -> JournalSide:
        for record in records:
            self._apply(record)
        return self

    @property
    def buffered(self) -> Counter[str]:
        """Accepted events of the calls that no acknowledged flush covers, by tenant."""
        buffered = self._before_kept.copy()
        for call in self._calls:
            self._add(buffered, call.accepted)
        return buffered

    def _apply(self, record: JournalRecord) -> None:
        match record:
            case Snapshot():
                self._snapshot(record)
            case Opened():
                self._incarnations.append(record.incarnation)
            case CallRecord():
                self._call(record)
            case FlushBegin():
                self._flush, self._parts = record, []
            case FlushPart():
                self._parts += record.records
            case FlushCommit():
                self.unacknowledged = self._records(self._parts)
            case Flushed():
                self._flushed(record)

    def _snapshot(self, snapshot: Snapshot) -> None:
        totals = Counter({(self._name(number), verdict): n for number, counts in snapshot.totals.items() for verdict, n in counts.items()})
        if self._begun:
            self._compare("tallies at the start of a segment", +totals, +self.tallies)
            return
        self._begun = True
        self.writer = snapshot.writer.hex()
        self._incarnations = [incarnation for incarnation, _ in snapshot.incarnations]
        self.tallies = totals
        self.flushed = Counter({self._name(number): n for number, n in snapshot.flushed.items()})
        self._before_kept = Counter({tenant: n for (tenant, verdict), n in totals.items() if verdict == "accepted"})
        self._before_kept.subtract(self.flushed)
        self._first_flush = snapshot.next_flush
        self._through = self._place(snapshot.through)

    def _call(self, call: CallRecord) -> None:
        for number, counts in call.tallies.items():
            for verdict, n in counts.items():
                self.tallies[self._name(number), verdict] += n
        granted = Counter[int]()
        for tenant, digests, _ in call.claims:
            granted[tenant] += len(digests) // DIGEST_BYTES
        accepted = {number: counts["accepted"] for number, counts in call.tallies.items() if counts.get("accepted")}
        for number in granted.keys() | accepted.keys():
            if granted[number] != accepted.get(number, 0):
                self.differences.append(
                    f"writer {self.writer}: call {call.number} of incarnation {self._incarnations[-1].hex()} "
                    f"holds {granted[number]} digests of tenant {self._name(number)}, but accepted {accepted.get(number, 0)} events"
                )
            self.granted[self._name(number)] += granted[number]
        self._calls.append(_Call((len(self._incarnations) - 1, call.number), accepted))

    def _flushed(self, flushed: Flushed) -> None:
        whole = self._flush is not None and self._flush.flush == flushed.flush and flushed.flush >= self._first_flush
        carried: Counter[str] = Counter()
        if whole:
            for record in self.unacknowledged.values():
                carried.update(record.accepted)
        else:  # it began before the oldest kept segment: what the journal noted must do
            self._add(carried, flushed.accepted or {})
        self.acknowledged.update(self.unacknowledged)
        self.unacknowledged = {}
        self.flushed.update(carried)
        if self._flush is not None and self._flush.flush == flushed.flush:
            self._through = self._place(self._flush.through)
            covered = Counter(self._before_kept)
            for call in self._calls:
                if call.place <= self._through:
                    self._add(covered, call.accepted)
            if whole:
                self._compare(
                    f"flush {flushed.flush}: accepted events in its records, beside those of the calls it covers", +carried, +covered
                )
            self._calls = [call for call in self._calls if call.place > self._through]
            self._before_kept = Counter()
        else:
            self._before_kept.subtract(carried)

    def _records(self, records: Iterable[Record]) -> dict[RecordKey, Stored]:
        return dict(stored(dict(record.headers), record.value)[:2] for record in records)

    def _compare(self, what: str, one: Mapping[K, int], other: Mapping[K, int]) -> None:
        if one != other:
            self.differences.append(f"writer {self.writer}: {what}: {_shown(one)} is not {_shown(other)}")

    def _place(self, through: Through) -> tuple[int, int]:
        return (self._incarnations.index(through.incarnation), through.call) if through.incarnation in self._incarnations else (-1, 0)

    def _name(self, number: int) -> str:
        return self._tenants.get(number, f"number {number}")

    def _add(self, into: Counter[str], events: Mapping[int, int]) -> None:
        for number, n in events.items():
            into[self._name(number)] += n


def _shown(counts: Mapping[K, int]) -> str:
    return ", ".join(sorted(f"{key if isinstance(key, str) else ' '.join(key)} {n}" for key, n in counts.items())) or "none"


# ---- the other sides


@dataclass
class LogSide:
    """What the counter log has, from its first record to its last."""

    records: dict[RecordKey, Stored] = field(default_factory=dict)
    first: dict[tuple[str, int], int] = field(default_factory=dict)  # lowest n of a writer in a partition: older ones may be deleted
    writers: frozenset[str] = frozenset()  # registered and not retired
    differences: list[str] = field(default_factory=list)

    def add(self, key: RecordKey, record: Stored) -> None:
        known = self.records.setdefault(key, record)
        if known.hash != record.hash:
            self.differences.append(f"{named(key)} is in the log twice with different bytes")
        chain = key[:2]
        self.first[chain] = min(self.first.get(chain, key[2]), key[2])


@dataclass
class RatedSide:
    """What PostgreSQL has rated."""

    records: dict[RecordKey, Stored] = field(default_factory=dict)
    parked: dict[RecordKey, str] = field(default_factory=dict)  # reason
    differences: list[str] = field(default_factory=list)  # usage, tallies and charges beside what the records make them


# ---- the comparison


class TenantRow(NamedTuple):
    """One tenant's line of the answer."""

    tenant: str
    received: int
    accepted: int
    duplicate: int
    rejected: int
    flushed: int
    buffered: int
    rated: int
    in_log: int


class Verdict(NamedTuple):
    rows: list[TenantRow]
    differences: list[str]


def compare(journals: Iterable[JournalSide], log: LogSide, rated: RatedSide) -> Verdict:
    journals = list(journals)
    differences = [difference for journal in journals for difference in journal.differences]
    differences += log.differences + rated.differences
    have = {journal.writer for journal in journals}
    differences += [
        f"writer {writer} is registered, but its journal was not given: what it holds is unknown" for writer in sorted(log.writers - have)
    ]
    for journal in journals:
        differences += _journal_beside_log(journal, log, rated)
    differences += _rated_beside_log(log, rated)
    rows = _rows(journals, log, rated)
    for row in rows:
        differences += _equations(row)
    return Verdict(rows, differences)


def _journal_beside_log(journal: JournalSide, log: LogSide, rated: RatedSide) -> Iterable[str]:
    for key, record in journal.acknowledged.items():
        found = log.records.get(key)
        if found is not None:
            if found.hash != record.hash:
                yield f"{named(key)} has other bytes in the log than in the journal"
        elif key not in rated.records:
            yield f"{named(key)} was flushed (it is in the journal), but is neither in the log nor rated"
        elif key[2] >= log.first.get(key[:2], key[2] + 1):
            yield f"{named(key)} was flushed (it is in the journal), but is not in the log, which has older ones"


def _rated_beside_log(log: LogSide, rated: RatedSide) -> Iterable[str]:
    for key, record in rated.records.items():
        found = log.records.get(key)
        if found is None:
            if key[2] >= log.first.get(key[:2], key[2] + 1):  # below: the log's retention
                yield f"{named(key)} is rated, but is not in the log, which has older ones"
        elif found.hash != record.hash:
            yield f"{named(key)} is rated with other bytes than the log has"
    last: dict[tuple[str, int], int] = {}
    for writer, partition, n in rated.records:
        last[writer, partition] = max(last.get((writer, partition), 0), n)
    for key in sorted(log.records.keys() - rated.records.keys()):
        if key in rated.parked:
            yield f"{named(key)} is parked, not rated: {rated.parked[key]}"
        elif key[2] <= last.get(key[:2], 0):
            yield f"{named(key)} is in the log and later ones are rated, but it is not"


def _rows(journals: list[JournalSide], log: LogSide, rated: RatedSide) -> list[TenantRow]:
    tallies: Counter[tuple[str, str]] = Counter()
    flushed, buffered, in_log, rated_events = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    underway: set[RecordKey] = set()
    for journal in journals:
        tallies.update(journal.tallies)
        flushed.update(journal.flushed)
        buffered.update(journal.buffered)
        underway |= journal.unacknowledged.keys()
    for key, record in rated.records.items():
        if key not in underway:
            rated_events.update(record.accepted)
    for key, record in log.records.items():
        if key not in rated.records and key not in underway:
            in_log.update(record.accepted)
    names = sorted({tenant for tenant, _ in tallies} | set(flushed) | set(in_log) | set(rated_events))
    fixed = {"received", "accepted", "duplicate", "unanswered"}
    return [
        TenantRow(
            name,
            tallies[name, "received"],
            tallies[name, "accepted"],
            tallies[name, "duplicate"],
            sum(n for (tenant, verdict), n in tallies.items() if tenant == name and verdict not in fixed),
            flushed[name],
            buffered[name],
            rated_events[name],
            in_log[name],
        )
        for name in names
    ]


def _equations(row: TenantRow) -> Iterable[str]:
    if row.received != row.accepted + row.duplicate + row.rejected:
        parts = f"accepted {row.accepted} + duplicate {row.duplicate} + rejected {row.rejected}"
        yield f"tenant {row.tenant}: received {row.received} is not {parts}"
    if row.accepted != row.flushed + row.buffered:
        yield f"tenant {row.tenant}: accepted {row.accepted} is not flushed {row.flushed} + buffered {row.buffered}"
    if row.flushed != row.rated + row.in_log:
        yield f"tenant {row.tenant}: flushed {row.flushed} is not rated {row.rated} + in the log {row.in_log}"
