"""The audit's reasoning: three stores, each told in its own words, and every way in which they may disagree.

Pure. Belongs here: the comparison of journals, counter log and PostgreSQL, and what to do about each kind of difference. Must not know:
files, Kafka, SQL, how the stores are read; a journal by itself is audit_journal.py's. The order of reading matters, see audit.py:
PostgreSQL first, then the journals, then the log, so whatever one of them holds must be found in the next.

1. received = accepted + duplicate + rejected   (the journal's tallies; accepted once more as digests granted)
2. accepted = flushed + buffered                (flushed: tallies in the bytes of acknowledged flushes; buffered: calls that none covers)
3. flushed = rated + in the log                 (record by record, by writer, partition, number and hash)

Each thing that is wrong is named once, where it is; the sums of a tenant are named only where no record explains them.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from buffer.counter_log import Retired
from buffer.record import CounterRecord, Undecodable, decode, read_place
from parshall.audit_journal import EVERY, JournalSide
from parshall.audit_records import Difference, RecordKey, Stored, key_of, named

Chain = tuple[str, int]  # (writer, partition)
Position = tuple[str, str, int]  # (log, stream, position after the record)

# More than a flush has in one partition, unless it is of a million counters in few of them: what its journal does not say to be flushed
# yet is still looked at one by one.
_KEPT_OF_A_CHAIN = 300

_BYTES_IN_JOURNAL = "its bytes are in the journal {directory}: keep that folder as it is until they are in the log again"
_GONE = (
    "what was in there is not charged: look for a backup of the log, or of the journal's folder, and find out how the log lost it "
    "(retention, an unclean leader election)"
)
_COPY_FIRST = "stop the rater and copy PostgreSQL before anything is changed"


@dataclass
class LogSide:
    """What the counter log has, from its first record to its last."""

    records: dict[RecordKey, Stored] = field(default_factory=dict)
    wanted: frozenset[RecordKey] = frozenset()  # records whose contents are needed
    found: dict[RecordKey, CounterRecord] = field(default_factory=dict)
    unsound: dict[RecordKey, str] = field(default_factory=dict)  # why a record cannot be read
    forks: set[RecordKey] = field(default_factory=set)  # there twice, with different bytes
    strays: dict[tuple[str, int], str] = field(default_factory=dict)  # (stream, position after it) -> why its place is not known
    identity: str = ""
    starts: dict[str, int] = field(default_factory=dict)  # stream -> where it begins, if not at 0: retention deleted what was before
    writers: Mapping[str, Retired | None] = field(default_factory=dict)  # the registry; None: a member

    def take(self, headers: Mapping[str, bytes], value: bytes) -> None:
        """Raises NoPlace."""
        place = read_place(headers)
        key = key_of(place)
        try:
            decoded = decode(headers, value)
        except Undecodable as error:
            self.unsound[key] = str(error)
            return
        if key in self.wanted:
            self.found[key] = decoded
        if self.records.setdefault(key, Stored(place.hash, decoded.tallies)).hash != place.hash:
            self.forks.add(key)


@dataclass
class Settled:
    """The first records of a chain: rated, and taken from the log by retention before anything was read. Little but their sums is left to
    compare, so an audit remembers one by one what the log still has, and not what years have brought. The last ones of a chain are none."""

    last: int  # all up to this number, but for what is missing or unsound
    tallies: Counter[tuple[str, str]] = field(default_factory=Counter)  # (tenant, verdict)


@dataclass
class RatedSide:
    """What PostgreSQL has rated."""

    identity: str = ""  # of the log
    starts: Mapping[str, int] = field(default_factory=dict)  # where its streams began before PostgreSQL was read
    records: dict[RecordKey, Stored] = field(default_factory=dict)
    positions: dict[RecordKey, Position] = field(default_factory=dict)
    settled: dict[Chain, Settled] = field(default_factory=dict)
    hashes: Mapping[RecordKey, str] = field(default_factory=dict)  # of those settled records that another store still has, or again
    missing: frozenset[RecordKey] = frozenset()  # the chains say that they are rated, but they are not there
    unsound: Mapping[RecordKey, str] = field(default_factory=dict)  # rated, but the bytes kept are not what was rated
    parked: Mapping[RecordKey, str] = field(default_factory=dict)  # reason
    strays: Mapping[tuple[str, int], str] = field(default_factory=dict)  # parked without a place: (stream, position after it) -> reason
    explained: Set[tuple[str, int]] = frozenset()  # of such, those that a person left out
    held: Mapping[Chain, str] = field(default_factory=dict)  # reason
    in_archive: Mapping[RecordKey, str] = field(default_factory=dict)  # of those that are missing: the archive that has them
    uncounted: Sequence[str] = ()  # what was not looked at, in clauses
    differences: Sequence[Difference] = ()  # usage, tallies and charges beside what the records make them

    _unsettled: deque[RecordKey] = field(default_factory=deque)  # of the chain that is being read

    @property
    def wanted(self) -> frozenset[RecordKey]:
        """Records that other stores must lend, to tell what their loss explains."""
        return self.missing | self.unsound.keys()

    def take(self, key: RecordKey, stored: Stored, position: Position) -> None:
        """In the order of their keys."""
        self.records[key], self.positions[key] = stored, position
        if self._unsettled and self._unsettled[0][:2] != key[:2]:
            self._unsettled.clear()
        self._unsettled.append(key)
        while len(self._unsettled) > _KEPT_OF_A_CHAIN and self._is_gone_from_log(self._unsettled[0]):
            self._settle(self._unsettled.popleft())

    def _is_gone_from_log(self, key: RecordKey) -> bool:
        log, stream, position = self.positions[key]
        return log != self.identity or position <= self.starts.get(stream, 0)

    def _settle(self, key: RecordKey) -> None:
        del self.positions[key]
        chain = self.settled.setdefault(key[:2], Settled(0))
        chain.last = key[2]
        for tenant, counts in self.records.pop(key).tallies.items():
            for verdict, events in counts.items():
                chain.tallies[tenant, verdict] += events

    def is_settled(self, key: RecordKey) -> bool:
        chain = self.settled.get(key[:2])
        return chain is not None and key[2] <= chain.last


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
    differences: list[Difference]
    losses: list[str]  # what went with disks that were declared lost: known, so no difference
    uncounted: list[str]  # what was not looked at, as its archives were not given


def compare(journals: Iterable[JournalSide], log: LogSide, rated: RatedSide) -> Verdict:
    sides, differences = _one_each(journals)
    differences += [difference for side in sides.values() for difference in side.differences]
    differences += _unnamed(sides.values())
    differences += _registry(sides.keys(), log, rated)
    records = _Records(sides, log, rated)
    differences += records.differences()
    differences += rated.differences
    books = {writer: _books_of_journal(side, records) for writer, side in sides.items()}
    for writer, side in sides.items():
        differences += _equations(side, books[writer])
    alone = [_books_of_records(writer, records) for writer in records.of_writer.keys() - sides.keys()]
    losses = [
        f"writer {writer}: {retired.lost}" for writer, retired in sorted(log.writers.items(), key=_by_name) if retired and retired.lost
    ]
    return Verdict(_rows([*books.values(), *alone]), differences, losses, list(rated.uncounted))


# ---- who is there


def _one_each(journals: Iterable[JournalSide]) -> tuple[dict[str, JournalSide], list[Difference]]:
    sides: dict[str, JournalSide] = {}
    differences = []
    for side in journals:
        if not side.writer:
            differences += side.differences
            continue
        known = sides.setdefault(side.writer, side)
        if known is not side:
            what = (
                f"the journals {known.directory} and {side.directory} are of the same writer {side.writer}; only the first one was audited"
            )
            differences.append(Difference(what, "one of them is a copy: never start a service on both, and audit the one that is in use"))
    return sides, differences


def _unnamed(sides: Iterable[JournalSide]) -> Iterator[Difference]:
    for number in sorted({number for side in sides for number in side.unnamed}):
        what = f"the journals hold events of tenant number {number}, which the configuration does not name: they cannot be compared"
        yield Difference(what, "put the tenant back under [[tenants]], with the name that it had, and audit again")


def _by_name(item: tuple[str, object]) -> str:
    return item[0]


def _registry(have: Iterable[str], log: LogSide, rated: RatedSide) -> Iterator[Difference]:
    have = set(have)
    for writer, retired in sorted(log.writers.items(), key=_by_name):
        if retired is None and writer not in have:
            what = f"writer {writer} is registered, but its journal was not given: what it holds is unknown"
            yield Difference(what, "name its directory with --journal (DATA/writers/N on the machine where it ran)")
    for writer in sorted({key[0] for key in rated.records} - log.writers.keys()):
        what = f"writer {writer} has rated records, but the counter log's registry (usage.writers) does not know it"
        then = "is this the log that PostgreSQL was rated from? If so, the registry has lost entries: start no writer, restore it"
        yield Difference(what, then)


# ---- record by record


class _Records:
    """Every record that any store knows of, each with at most one thing wrong with it."""

    def __init__(self, sides: Mapping[str, JournalSide], log: LogSide, rated: RatedSide) -> None:
        self._sides = sides
        self.log = log
        self.rated = rated
        self.journalled: dict[RecordKey, Stored] = {}
        self.committed: dict[Chain, int] = {}
        self.acknowledged: dict[Chain, int] = {}
        for writer, side in sides.items():
            self.journalled |= side.acknowledged | side.unacknowledged
            self.committed |= {(writer, partition): n for partition, n in side.last_committed.items()}
            self.acknowledged |= {(writer, partition): n for partition, n in side.last_acknowledged.items()}
        stores = (self.journalled, log.records, log.unsound, rated.records)
        keys = {*rated.wanted, *(key for store in stores for key in store if not rated.is_settled(key))}
        keys |= self._in_no_store(keys)
        self.of_writer: dict[str, list[RecordKey]] = defaultdict(list)
        for key in keys:
            self.of_writer[key[0]].append(key)
        self.problems = {key: problem for key in keys if (problem := self._problem(key)) is not None}
        self.problems |= self._settled_forks()
        self._add_parked()

    def _in_no_store(self, keys: Set[RecordKey]) -> set[RecordKey]:
        """Acknowledged behind the last one that is rated, and nowhere, or only parked: the count of its journal alone tells of it."""
        rated: dict[Chain, int] = {}
        for writer, partition, n in (*self.rated.records, *self.rated.missing):
            rated[writer, partition] = max(rated.get((writer, partition), 0), n)
        due = {
            (writer, partition, n)
            for (writer, partition), last in self.acknowledged.items()
            for n in range(rated.get((writer, partition), 0) + 1, last + 1)
        }
        return due - keys

    def _problem(self, key: RecordKey) -> Difference | None:
        """`{it}` and `{be}` are filled in when neighbours are told together."""
        in_log, rated = self.log.records.get(key), self.rated.records.get(key)
        if key in self.rated.unsound:
            what = f"{{it}} {{be}} rated, but what PostgreSQL keeps of {{it_}} in `records` is not sound: {self.rated.unsound[key]}"
            return Difference(what, f"{_COPY_FIRST}; then put back the row's bytes from {self._lender(key)}")
        if key in self.rated.missing:
            what = "{it} {be} missing from the table `records` in PostgreSQL, although `chains` says that {it_} {be} rated"
            return Difference(
                what, f"{_COPY_FIRST}; then put the row back from {self._lender(key)}, or restore a backup: the rater goes on from there"
            )
        if (fork := self._fork(key, rated)) is not None:
            return fork
        if key in self.log.unsound and in_log is None:
            return Difference(f"{{it}} {{be}} in the log, but cannot be read: {self.log.unsound[key]}", self._keep_journal(key))
        if in_log is None:
            return self._told_not_in_log(key)
        return None

    def _settled_forks(self) -> dict[RecordKey, Difference]:
        rated = {key: Stored(digest, {}) for key, digest in self.rated.hashes.items()}
        return {key: fork for key, stored in rated.items() if (fork := self._fork(key, stored)) is not None}

    def _fork(self, key: RecordKey, rated: Stored | None) -> Difference | None:
        places = (("in the log", self.log.records.get(key)), ("in PostgreSQL", rated), ("in the journal", self.journalled.get(key)))
        have = [(where, one.hash) for where, one in places if one is not None]
        if key not in self.log.forks and len({digest for _, digest in have}) <= 1:
            return None
        then = f"two journals run as writer {key[0]}, or one was changed: stop that writer, look for a copy of its folder, keep both"
        return Difference(f"{{it}} {{has}} different bytes: {', '.join(f'{digest} {where}' for where, digest in have)}", then)

    def _add_parked(self) -> None:
        """Of a chain only the first one is told, unless it waits for one that is named: the others wait for it."""
        waiting: dict[Chain, list[int]] = defaultdict(list)
        for writer, partition, n in sorted(self.rated.parked):
            waiting[writer, partition].append(n)
        for (writer, partition), numbers in waiting.items():
            key = (writer, partition, numbers[0])
            if key not in self.problems and (writer, partition, numbers[0] - 1) not in self.problems:
                later = f" (and {len(numbers) - 1} later ones)" if len(numbers) > 1 else ""
                then = f"this writer's usage in this partition is not charged from here on; {self._keep_journal(key)}"
                self.problems[key] = Difference(f"{{it}}{later} {{be}} parked, not rated: {self.rated.parked[key]}", then)

    def _told_not_in_log(self, key: RecordKey) -> Difference | None:
        rated = key in self.rated.records
        if rated and self._deleted_by_retention(key):
            return None
        if rated:
            then = (
                "nothing is uncharged; but the log lost an acknowledged record: look for an unclean leader election, or a topic made anew"
            )
            return Difference("{it} {be} rated, but not in the log", then)
        acknowledged = key[2] <= self.acknowledged.get(key[:2], 0)
        if acknowledged and key in self.journalled:
            return Difference("{it} {was} flushed, but {be} neither in the log nor rated", self._keep_journal(key))
        if acknowledged and key not in self.rated.parked:
            what = "{it} {was} flushed, but {be} neither in the log nor rated, and the journal keeps {it_} no longer"
            return Difference(what, _GONE)
        return None

    def _deleted_by_retention(self, key: RecordKey) -> bool:
        """Or written to another log than this one."""
        log, stream, position = self.rated.positions.get(key, ("", "", 0))
        return log != self.log.identity or position <= self.log.starts.get(stream, 0)

    def _ahead(self) -> Iterator[Difference]:
        """Rated, but not even committed in a journal that was read after PostgreSQL."""
        for writer, side in self._sides.items():
            each = [key for key in self.of_writer[writer] if key in self.rated.records and key[2] > self.committed.get(key[:2], 0)]
            runs = [*((key, 1) for key in each), *self._settled_ahead(writer)]
            ahead = Counter({first: many for first, many in runs if side.knows_numbers_of(first[1])})
            if ahead:
                more = f" (and {ahead.total() - 1} more of this writer)" if ahead.total() > 1 else ""
                what = f"{named(min(ahead))}{more} is rated, but not yet made according to its journal {side.directory}"
                yield Difference(what, "that folder is an old copy of the journal: never start a service on it; find the newest one")

    def _settled_ahead(self, writer: str) -> Iterator[tuple[RecordKey, int]]:
        """The first one of each chain, and how many there are: they may be those of years."""
        for chain, settled in _settled_of(writer, self.rated):
            if settled.last > (committed := self.committed.get(chain, 0)):
                yield (*chain, committed + 1), settled.last - committed

    def _keep_journal(self, key: RecordKey) -> str:
        if key in self.journalled:
            return _BYTES_IN_JOURNAL.format(directory=self._sides[key[0]].directory)
        return "keep the log and the journals as they are: the bytes may be in one of them"

    def _lender(self, key: RecordKey) -> str:
        if key in self.rated.in_archive:
            return f"the archive {self.rated.in_archive[key]}, which has it"
        if key in self.log.records:
            return "the log, which has it"
        if key in self.journalled:
            return f"the journal {self._sides[key[0]].directory}, which has it"
        return "an archive that was not given, or a backup" if self.rated.uncounted else "a backup: no other store has it"

    # ---- telling

    def differences(self) -> Iterator[Difference]:
        yield from self._strays()
        yield from self._ahead()
        run: list[RecordKey] = []
        for key in sorted(self.problems):
            if run and not self._goes_on(run[-1], key):
                yield self._told(run)
                run = []
            run.append(key)
        if run:
            yield self._told(run)
        shown = {key[:2] for key in self.problems if key in self.rated.parked or key in self.log.forks}
        for (writer, partition), reason in sorted(self.rated.held.items()):
            if (writer, partition) not in shown:
                what = f"partition {partition} of writer {writer} is held, nothing more of it is rated: {reason}"
                yield Difference(what, f"stop that writer, and find out which journal of writer {writer} is the right one")

    def _goes_on(self, before: RecordKey, key: RecordKey) -> bool:
        return before[:2] == key[:2] and before[2] + 1 == key[2] and self.problems[before] == self.problems[key]

    def _told(self, run: Sequence[RecordKey]) -> Difference:
        writer, partition, n = run[0]
        one = len(run) == 1
        it = f"record {n}" if one else f"records {n} to {run[-1][2]}"
        words = {
            "be": "is" if one else "are",
            "was": "was" if one else "were",
            "has": "has" if one else "have",
            "it_": "it" if one else "them",
        }
        problem = self.problems[run[0]]
        for word, text in {"it": f"{it} of partition {partition} of writer {writer}", **words}.items():
            problem = problem._replace(what=problem.what.replace(f"{{{word}}}", text))
        return problem

    def _strays(self) -> Iterator[Difference]:
        strays = {place: why for place, why in {**self.rated.strays, **self.log.strays}.items() if place not in self.rated.explained}
        then = "something else than Parshall writes to this log, or it is damaged: find out who, and keep the log as it is"
        for (stream, position), reason in sorted(strays.items()):
            yield Difference(f"a record in the log, in {stream} before position {position}, is no counter record: {reason}", then)


# ---- sums


class _Books(NamedTuple):
    """What became of one writer's events, by tenant."""

    tallies: Counter[tuple[str, str]]  # (tenant, verdict)
    flushed: Counter[str]
    buffered: Counter[str]
    rated: Counter[str]
    in_log: Counter[str]
    gone: Counter[str]  # flushed, but nowhere; named record by record. Under EVERY: records of which nobody knows any more what was in them


def _books_of_journal(side: JournalSide, records: _Records) -> _Books:
    books = _Books(side.tallies, side.flushed, side.buffered, Counter(), Counter(), Counter())
    for key in records.of_writer[side.writer]:
        if key[2] > records.acknowledged.get(key[:2], 0):
            continue  # its flush is under way, or was made after the journal was read
        whereabouts, stored = _whereabouts(key, books, records)
        whereabouts.update({EVERY: 1} if stored is None else stored.accepted)
    for chain, settled in _settled_of(side.writer, records.rated):
        books.rated.update(_accepted(settled))
        if settled.last > records.acknowledged.get(chain, 0):
            # An old copy, which is named, or a flush that nobody acknowledged since: how much of the sum is flushed cannot be told.
            books.gone.update({EVERY: 1})
    return books


def _settled_of(writer: str, rated: RatedSide) -> Iterator[tuple[Chain, Settled]]:
    return ((chain, settled) for chain, settled in rated.settled.items() if chain[0] == writer)


def _accepted(settled: Settled) -> dict[str, int]:
    return {tenant: events for (tenant, verdict), events in settled.tallies.items() if verdict == "accepted"}


def _whereabouts(key: RecordKey, books: _Books, records: _Records) -> tuple[Counter[str], Stored | None]:
    rated, in_log, journalled = records.rated.records.get(key), records.log.records.get(key), records.journalled.get(key)
    if rated is not None:
        return books.rated, rated
    lent = in_log or journalled
    if lent is None:
        return books.gone, None
    if key in records.rated.unsound:
        return books.rated, lent
    return (books.gone if in_log is None else books.in_log), lent


def _books_of_records(writer: str, records: _Records) -> _Books:
    """Of a writer without journal: retired, or missing, which is named. Its records are all that is known of it."""
    books = _Books(Counter(), Counter(), Counter(), Counter(), Counter(), Counter())
    for key in records.of_writer[writer]:
        whereabouts, stored = _whereabouts(key, books, records)
        if stored is not None:
            whereabouts.update(stored.accepted)
            books.flushed.update(stored.accepted)
            books.tallies.update({(tenant, verdict): n for tenant, counts in stored.tallies.items() for verdict, n in counts.items()})
    for _, settled in _settled_of(writer, records.rated):
        books.rated.update(_accepted(settled))
        books.flushed.update(_accepted(settled))
        books.tallies.update(settled.tallies)
    return books


def _equations(side: JournalSide, books: _Books) -> Iterator[Difference]:
    """Of one writer. Tenants of whom something was named that explains it are left out."""
    tenants = {tenant for tenant, _ in books.tallies} | books.flushed.keys() | books.rated.keys() | books.in_log.keys()
    unknown = tenants - set(side.tenants) if EVERY not in side.doubted else tenants
    for tenant in sorted(tenants - unknown - side.doubted):
        if (told := _unequal(tenant, books)) is not None:
            yield Difference(f"writer {side.writer}, tenant {tenant}: {told}", "copy the journal's folder and PostgreSQL, and report it")


def _unequal(tenant: str, books: _Books) -> str | None:
    row = _row(tenant, books)
    if row.received != row.accepted + row.duplicate + row.rejected:
        return f"received {row.received} is not accepted {row.accepted} + duplicate {row.duplicate} + rejected {row.rejected}"
    if row.accepted != row.flushed + row.buffered:
        return f"accepted {row.accepted} is not flushed {row.flushed} + buffered {row.buffered}"
    if row.flushed != row.rated + row.in_log + books.gone[tenant] and not books.gone[EVERY]:
        return f"flushed {row.flushed} is not rated {row.rated} + in the log {row.in_log}"
    return None


_NOT_REJECTED = frozenset({"received", "accepted", "duplicate"})


def _row(tenant: str, books: _Books) -> TenantRow:
    verdicts = {verdict: n for (name, verdict), n in books.tallies.items() if name == tenant}
    return TenantRow(
        tenant,
        verdicts.get("received", 0),
        verdicts.get("accepted", 0),
        verdicts.get("duplicate", 0),
        sum(n for verdict, n in verdicts.items() if verdict not in _NOT_REJECTED),
        books.flushed[tenant],
        books.buffered[tenant],
        books.rated[tenant],
        books.in_log[tenant],
    )


def _rows(all_books: Sequence[_Books]) -> list[TenantRow]:
    total = _Books(Counter(), Counter(), Counter(), Counter(), Counter(), Counter())
    for books in all_books:
        total.tallies.update(books.tallies)
        for into, more in zip(total[1:], books[1:], strict=True):
            into.update(more)
    tenants = {tenant for tenant, _ in total.tallies} | total.flushed.keys() | total.rated.keys() | total.in_log.keys()
    return [_row(tenant, total) for tenant in sorted(tenants - {EVERY})]
