"""A writer with a real journal in memory, for the tests of the audit: random lawful lives, and the log and the database that go with them.

Belongs here: what happens in such a life, and what the three stores must hold after it. Must not know: what the audit makes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random

from buffer.counter_log import Record, Rejected
from buffer.counters import Deltas, MeterDefinition, Tallies, add_tallies, merge, pack
from buffer.journal import Journal, JournalLimits, read_journal
from buffer.journal_records import CallRecord, Closed, FlushBegin, FlushCommit, Flushed, FlushPart, JournalRecord, Opened, Through
from buffer.record import RecordEncoder, decode, read_place
from parshall.audit_records import RecordKey, Stored, key_of
from parshall.audit_rules import LogSide, Position, RatedSide
from tests.journal_driver import DIRECTORY, clock_us, opened
from tests.lossy_disk import LossyDisk

TENANTS = {1: "demo", 2: "acme"}
METERS = [
    MeterDefinition("requests", "00", "count", 0, 3600, ("zone",)),
    MeterDefinition("bytes", "01", "sum", 0, 60, ()),
    MeterDefinition("peak", "02", "max", 2, 3600, ("zone",)),
]
PARTITIONS = 3


class AuditedWriter:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = LossyDisk()
        self.log: list[Record] = []  # produced, in order; the same record perhaps more than once
        self.totals: Tallies = {}
        self.flushed: Counter[str] = Counter()
        self.restarts = 0
        self.moments: list[tuple[list[JournalRecord], int]] = []  # what the journal held now and then, and how long the log was
        segment_bytes = self.random.choice([2000, 4000, 6000])
        self._limits = JournalLimits(segment_bytes=segment_bytes, max_bytes=1 << 30, min_free_bytes=0, free_check_bytes=1 << 30)
        self._horizon_us = 0

    # ---- a life

    async def live(self, steps: int) -> None:
        """Ends without closing: a flush may be under way, in any of its steps."""
        await self._open()
        for _ in range(steps):
            step = self.random.choices([self._call, self._flush_step, self._crash, self._close], [12, 7, 0.4, 0.2])[0]
            await step()
            if self.random.random() < 0.08:
                await self._journal.drain()
                self.moments.append((self.records(), len(self.log)))
        await self._journal.drain()
        self.disk.kill()

    async def _open(self) -> None:
        self._journal: Journal = await opened(self.disk, self.random, self._limits)
        state = self._journal.state
        self._meters = {self._journal.meter_number(meter): meter for meter in METERS}
        self._live, self._tallies = state.deltas, state.tallies
        self._through = Through(*state.incarnations[-1]) if state.incarnations else Through(b"", 0)
        self._next_n = dict(state.next_n)
        self._next_flush = state.next_flush
        self._steps: list[JournalRecord] = []  # of the flush under way, not journalled yet
        self._records: list[Record] = []
        self._carried: Tallies = {}
        if state.flush is not None:
            self._records, self._steps = state.flush.records, [Flushed(state.flush.flush)]
            self._carried = state.flush.tallies
        self._incarnation, self._number = self.random.randbytes(16), 0
        self._journal.append(Opened(self._incarnation, clock_us()))

    async def _call(self) -> None:
        random = self.random
        self._number += 1
        self._horizon_us += random.choice([0, 1, 1, 40])
        tallies: Tallies = {}
        claims: list[tuple[int, bytes, bytes]] = []
        deltas: list[Deltas] = []
        for tenant in random.sample(list(TENANTS), random.randint(0, 2)):
            granted, others = random.choice([0, 1, 2, 9]), {"duplicate": random.randrange(3), "too_late": random.randrange(2)}
            counts = {"accepted": granted, **others}
            tallies[tenant] = {"received": sum(counts.values()), **{verdict: n for verdict, n in counts.items() if n}}
            if granted:
                claims.append((tenant, random.randbytes(12 * granted), random.randbytes(4 * granted)))
                deltas += [self._deltas(tenant) for _ in range(granted)]
        rejected = [Rejected("t", b"{}")] if random.random() < 0.1 else []
        newest_us = self._horizon_us + random.randrange(1, 60) if claims else 0
        record = CallRecord(self._number, 1, self._number, self._horizon_us, newest_us, claims, deltas, tallies, rejected)
        self._journal.append(record)
        add_tallies(self.totals, tallies)
        add_tallies(self._tallies, tallies)
        for one in deltas:
            merge(self._live, one)
        self._through = Through(self._incarnation, self._number)

    def _deltas(self, tenant: int) -> Deltas:
        number = self.random.choice(list(self._meters))
        meter = self._meters[number]
        zones: list[int | str] = ["a", "1", 1]
        zone = [self.random.choice(zones)] if meter.dimensions else []
        key = (number, tenant, f"subject {self.random.randrange(4)}", 3600 * self.random.randrange(2), *zone)
        value = 1 if meter.aggregation == "count" else self.random.randrange(-50, 50)
        return {"max" if meter.aggregation == "max" else "sum": {key: pack(value, 1)}}

    async def _flush_step(self) -> None:
        """Swap and begin; then calls may come between the parts, the commit, the acknowledgement."""
        if not self._steps:
            if not self._live and not self._tallies:
                return
            self._begin()
            if self.random.random() < 0.7:
                return  # calls go on between the swap and the begin
        step = self._steps.pop(0)
        await self._journal.drain()
        if isinstance(step, Flushed):
            self.log += self._records
            if self.random.random() < 0.2:
                self.log += self._records  # produced again after an unknown outcome
            for tenant, counts in self._carried.items():
                self.flushed[TENANTS[tenant]] += counts.get("accepted", 0)
        self._journal.append(step)

    def _begin(self) -> None:
        encoder = RecordEncoder(self._meters, TENANTS, self._journal.writer, PARTITIONS, self._through, self._next_n)
        self._records = [record for piece in encoder.pieces(self._live, self._tallies) for record in piece]
        self._next_n = encoder.next_n
        self._live, self._carried, self._tallies = {}, self._tallies, {}
        size = self.random.choice([1, 2, 50])
        parts = [FlushPart(self._next_flush, self._records[at : at + size]) for at in range(0, len(self._records), size)]
        self._steps = [FlushBegin(self._next_flush, self._through), *parts, FlushCommit(self._next_flush), Flushed(self._next_flush)]
        self._next_flush += 1

    async def _crash(self) -> None:
        """kill -9: what was written stays, in whole frames or not."""
        self.restarts += 1
        await self._journal.drain()
        self.disk.kill()
        await self._open()

    async def _close(self) -> None:
        self.restarts += 1
        self._journal.append(Closed(self._number))
        await self._journal.close()
        await self._open()

    # ---- what it leaves

    def records(self) -> list[JournalRecord]:
        return list(read_journal(DIRECTORY, self.disk))

    def log_side(self, produced: int | None = None, *, wanted: Iterable[RecordKey] = (), deleted: int = 0) -> LogSide:
        """As it was once so many records were produced; None: now. Retention took so many of them."""
        side = LogSide(wanted=frozenset(wanted), identity="log", starts=_starts(deleted), writers={self.writer: None})
        for record in self.log[deleted:produced]:
            side.take(dict(record.headers), record.value)
        return side

    def rated_side(self, rated: int | None = None, deleted: int = 0) -> RatedSide:
        """The first so many produced records are rated; None: all. Retention took so many of them from the log before."""
        first: dict[RecordKey, tuple[Stored, Position]] = {}
        for position, record in enumerate(self.log[:rated], 1):
            place = read_place(dict(record.headers))
            stored = Stored(place.hash, decode(dict(record.headers), record.value).tallies)
            first.setdefault(key_of(place), (stored, ("log", f"stream {record.partition}", position)))
        side = RatedSide("log", _starts(deleted))
        for key, (stored, where) in sorted(first.items()):
            side.take(key, stored, where)
        return side

    @property
    def writer(self) -> str:
        return self._journal.writer.hex()

    def segments(self) -> list[str]:
        return [name for name in self.disk.names(DIRECTORY) if name.endswith(".journal")]


def _starts(deleted: int) -> dict[str, int]:
    return {f"stream {number}": deleted for number in range(PARTITIONS)}
