"""One transaction of the rater: from a polled batch to records, usage, tallies, charges and positions.

Belongs here: the order of the steps, and the SQL that does them. Must not know: how connections are made, what happens after an error.

Order of locks, the same in every transaction: chains, (new meters), tenants shared, series, usage, periods, charge lines, tallies,
positions; within each, the order of the key. So two raters with the same records take turns and never deadlock; the second one finds
them known.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from io import BytesIO
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_128_hexdigest

from buffer.counters import MeterDefinition
from buffer.record import CounterRecord, NoPlace, Undecodable, decode, read_place
from rater.chain import Chain, ChainKey, Incoming, ToPark
from rater.changed_meter import why_not_rated
from rater.configured import Configured
from rater.fold import KEPT_SERIES, Fold, Series, SeriesTable, unstorable
from rater.prices.book import PriceBook
from rater.pricing import BookInForce, ChargeLine, PricedPeriod, add_to_line
from rater.source import Received
from rater.statements import statements

log = logging.getLogger(__name__)

CHAINS = statements("chains")
USAGE = statements("usage")
CHARGES = statements("charges")

_encode = msgspec.json.Encoder().encode

_MOST_PARKED = 64  # parked records of a chain that one transaction applies; the rest follows in the next

Connection = Any  # asyncpg.Connection or one of a pool: what is used of both is the same


class Applied(NamedTuple):
    """What one transaction did."""

    records: int = 0
    counters: int = 0
    skipped: int = 0
    parked: int = 0
    unparked: int = 0
    forks: int = 0
    lines: int = 0


class Tenant(NamedTuple):
    number: int  # in this database; not the configuration's
    book: int | None


class Known:
    """What committed transactions have seen, so that the next need not ask. Thrown away whole after any error."""

    def __init__(self) -> None:
        self.series = SeriesTable()
        self.stored_series: set[str] = set()
        self.stored_lines: set[str] = set()
        self.chains: set[ChainKey] = set()
        self.meters: dict[str, tuple[int, MeterDefinition]] = {}  # the hash in the definition says nothing
        self.meter_hashes: set[tuple[str, str]] = set()
        self.tenants: set[str] = set()
        self.books: dict[int | None, BookInForce] = {None: BookInForce(None, None)}
        self.periods: dict[tuple[str, str, int | None], PricedPeriod] = {}

    def trim(self) -> None:
        """Between transactions: forgetting costs some statements, never a number."""
        if self.series.trim():
            self.stored_series.clear()
            self.periods.clear()
        if sum(map(len, self.periods.values())) > KEPT_SERIES:
            self.periods.clear()
        if len(self.stored_lines) > KEPT_SERIES:
            self.stored_lines.clear()


class Transaction:
    """Used once: `run`, commit, then `learn`."""

    def __init__(self, connection: Connection, log_identity: str, known: Known, configured: Configured) -> None:
        self._sql: Connection = connection
        self._log_identity = log_identity
        self._known = known
        self._configured = configured
        self._fold = Fold(known.series)
        self._chains: dict[ChainKey, Chain] = {}
        self._accepted: list[Incoming] = []
        self._unparked: list[int] = []
        self._new_series: list[Series] = []
        self._new_lines: set[str] = set()
        self._new_meters: dict[str, tuple[int, MeterDefinition]] = {}
        self._new_hashes: set[tuple[str, str]] = set()
        self._tenants: dict[str, Tenant] = {}
        self._parked = 0
        self._lines = 0

    async def run(self, batch: Sequence[Received], refuse: str | None = None) -> Applied:
        """`refuse`: a reason to park whatever would be applied. Raises ConfigurationRefused."""
        incoming = await self._place(batch)
        await self._lock_chains({record.chain for record in incoming})
        known = await self._known_hashes(incoming)
        for record in incoming:
            self._chains[record.chain].offer(record, known[(*record.chain, record.place.n)])
        await self._apply_due(refuse)
        await self._store_positions(batch)
        return self._applied()

    async def run_parked(self, chain: ChainKey) -> Applied:
        """Apply what is parked in a chain and has become due."""
        await self._lock_chains({chain})
        await self._apply_due(None)
        return self._applied()

    def learn(self) -> None:
        """After the commit: what was written is there."""
        known = self._known
        known.chains.update(self._chains)
        known.meters.update(self._new_meters)
        known.meter_hashes.update(self._new_hashes)
        known.tenants.update(self._tenants)
        known.stored_series.update(series.key for series in self._new_series)
        known.stored_lines.update(self._new_lines)

    def _applied(self) -> Applied:
        skipped = sum(chain.skipped for chain in self._chains.values())
        forks = sum(chain.forks for chain in self._chains.values())
        return Applied(len(self._accepted), self._fold.counters, skipped, self._parked, len(self._unparked), forks, self._lines)

    # Records.

    async def _place(self, batch: Sequence[Received]) -> list[Incoming]:
        placed = []
        for received in batch:
            try:
                placed.append(Incoming(received, read_place(received.headers), xxh3_128_hexdigest(received.value)))
            except NoPlace as error:
                await self._park(received, None, xxh3_128_hexdigest(received.value), str(error), sound=False, missing=True)
        return placed

    async def _lock_chains(self, keys: Iterable[ChainKey]) -> None:
        ordered = sorted(keys)
        if new := [key for key in ordered if key not in self._known.chains]:
            await self._sql.execute(CHAINS["chains_add"], *_columns(new, 2))
        for writer, partition, last_n, held in await self._sql.fetch(CHAINS["chains_lock"], *_columns(ordered, 2)):
            self._chains[writer, partition] = Chain(last_n, held)

    async def _known_hashes(self, incoming: Sequence[Incoming]) -> Mapping[tuple[bytes, int, int], list[str]]:
        known: dict[tuple[bytes, int, int], list[str]] = defaultdict(list)
        asked = sorted({(*record.chain, record.place.n) for record in incoming})
        for writer, partition, n, hash_hex in await self._sql.fetch(CHAINS["records_known"], *_columns(asked, 3)):
            known[writer, partition, n].append(hash_hex)
        return known

    async def _apply_due(self, refuse: str | None) -> None:
        for key, chain in sorted(self._chains.items()):
            await self._run_chain(key, chain, refuse)
        await self._store_records()
        await self._store_usage()
        await self._store_tallies()

    async def _run_chain(self, key: ChainKey, chain: Chain, refuse: str | None) -> None:
        before = chain.last_n
        parked: dict[int, list[tuple[int, Incoming]]] | None = None
        while True:
            if (record := chain.due()) is not None:
                reason = refuse or await self._take(record)
                if reason is not None:
                    chain.refuse(reason)
                    break
                chain.applied()
                continue
            if not chain.waits_for_parked():
                break
            if parked is None:
                parked = await self._parked_of(key, chain.last_n)
            if not await self._take_parked(chain, parked.get(chain.last_n + 1, [])):
                break
        for rest in chain.park_rest():
            await self._park_placed(rest)
        if chain.last_n != before:
            await self._sql.execute(CHAINS["parked_settle"], *key, chain.last_n)

    async def _parked_of(self, key: ChainKey, last_n: int) -> dict[int, list[tuple[int, Incoming]]]:
        by_n: dict[int, list[tuple[int, Incoming]]] = defaultdict(list)
        for row in await self._sql.fetch(CHAINS["parked_next"], *key, last_n, _MOST_PARKED):
            headers = dict(zip(row["header_names"], row["header_values"], strict=True))
            received = Received(row["stream"], row["next_position"], headers, row["value"])
            by_n[row["n"]].append((row["id"], Incoming(received, read_place(headers), xxh3_128_hexdigest(received.value))))
        return by_n

    async def _take_parked(self, chain: Chain, candidates: Sequence[tuple[int, Incoming]]) -> bool:
        """Apply the parked record that is due. Whether it was."""
        if len(candidates) != 1:
            if candidates:
                chain.hold(f"fork: record {chain.last_n + 1} is parked with several hashes")
            return False
        number, record = candidates[0]
        if await self._take(record) is not None:
            return False  # it stays parked, its reason with it
        self._unparked.append(number)
        chain.applied()
        return True

    async def _take(self, record: Incoming) -> str | None:
        """Decode and fold; or the reason why it cannot be applied."""
        try:
            decoded = decode(record.received.headers, record.received.value)
        except Undecodable as error:
            return f"undecodable: {error}"
        reason = unstorable(decoded, record.received.value) or await self._know_meters(decoded)
        if reason is not None:
            return reason
        self._fold.add(record.place.writer, decoded)
        self._accepted.append(record)
        return None

    async def _know_meters(self, record: CounterRecord) -> str | None:
        """Store definitions that are new; the reason when one contradicts what is stored."""
        for definition in record.meters:
            _, stored = await self._meter(definition)
            if (reason := why_not_rated(stored, definition)) is not None:
                return reason
            key = (definition.name, definition.hash)
            if key not in self._known.meter_hashes and key not in self._new_hashes:
                await self._sql.execute(USAGE["meter_hashes_add"], self._meter_number(definition.name), definition.hash)
                self._new_hashes.add(key)
        return None

    async def _meter(self, definition: MeterDefinition) -> tuple[int, MeterDefinition]:
        found = self._known.meters.get(definition.name) or self._new_meters.get(definition.name)
        if found is None:
            await self._sql.execute(USAGE["meters_turn"])
            row = await self._sql.fetchrow(USAGE["meter_named"], definition.name)
            if row is None:
                values = (definition.name, definition.aggregation, definition.scale, definition.window_s, list(definition.dimensions))
                await self._sql.execute(USAGE["meters_add"], *values)
                row = await self._sql.fetchrow(USAGE["meter_named"], definition.name)
            number, name, aggregation, scale, window_s, dimensions = row
            stored = MeterDefinition(name, "", aggregation, scale, window_s, tuple(dimensions))
            self._configured.check([stored])  # whoever stored it: nothing of it is charged before this
            found = self._new_meters[definition.name] = (number, stored)
        return found

    def _meter_number(self, name: str) -> int:
        number, _ = self._known.meters.get(name) or self._new_meters[name]
        return number

    async def _store_records(self) -> None:
        if self._accepted:
            columns = ["writer", "partition", "n", "hash", "log", "stream", "next_position", "header_names", "header_values", "value"]
            rows = [
                (*record.chain, record.place.n, record.hash, self._log_identity, *_kept(record.received))
                for record in sorted(self._accepted, key=lambda record: (record.chain, record.place.n))
            ]
            await self._sql.copy_records_to_table("records", records=rows, columns=columns)
        if self._unparked:
            await self._sql.execute(CHAINS["parked_applied"], self._unparked)
        if self._chains:
            chains = [(*key, chain.last_n, chain.held) for key, chain in sorted(self._chains.items())]
            await self._sql.execute(CHAINS["chains_store"], *_columns(chains, 4))

    async def _park_placed(self, rest: ToPark) -> None:
        incoming = rest.incoming
        await self._park(incoming.received, incoming, incoming.hash, rest.reason, sound=incoming.sound, missing=rest.missing)

    async def _park(self, received: Received, incoming: Incoming | None, hash_hex: str, reason: str, *, sound: bool, missing: bool) -> None:
        self._parked += 1
        values = (hash_hex, reason.replace("\0", "\\0"), sound, missing, self._log_identity, *_kept(received))
        if incoming is None:
            log.error("parked %s: %s", received.stream, reason)
            await self._sql.execute(CHAINS["stray_add"], *values)
        else:
            writer, partition = incoming.chain
            log.error("parked writer %s partition %s record %s: %s", writer.hex(), partition, incoming.place.n, reason)
            await self._sql.execute(CHAINS["parked_add"], writer, partition, incoming.place.n, *values)

    async def _store_positions(self, batch: Sequence[Received]) -> None:
        positions: dict[str, int] = {}
        for received in batch:
            positions[received.stream] = max(received.next_position, positions.get(received.stream, 0))
        await self._sql.execute(CHAINS["positions_store"], self._log_identity, *_columns(sorted(positions.items()), 2))

    # Usage.

    async def _store_usage(self) -> None:
        fold = self._fold
        if not fold.sums and not fold.maxima and not fold.tallies:
            return
        await self._lock_tenants(fold.tenants())
        await self._store_series()
        if fold.sums or fold.maxima:
            await self._sql.copy_to_table("folded", source=BytesIO(_folded_rows(fold)), format="text")
        if fold.sums:
            await self._sql.execute(USAGE["usage_add"])
        if fold.maxima:
            await self._sql.execute(USAGE["usage_raise"])
        await self._charge()

    async def _lock_tenants(self, names: Iterable[str]) -> None:
        ordered = sorted(names)
        if new := [name for name in ordered if name not in self._known.tenants]:
            await self._sql.execute(USAGE["tenants_add"], new)
        for number, name, book in await self._sql.fetch(USAGE["tenants_lock"], ordered):
            self._tenants[name] = Tenant(number, book)

    async def _store_series(self) -> None:
        stored = self._known.stored_series
        new = {series.key: series for series, _ in self._fold.usage() if series.key not in stored}
        self._new_series = [series for _, series in sorted(new.items())]
        if new:
            rows = [
                (
                    series.key,
                    self._tenants[series.tenant].number,
                    self._meter_number(series.meter.name),
                    series.subject,
                    _json(series.dimensions),
                )
                for series in self._new_series
            ]
            await self._sql.execute(USAGE["series_add"], *_columns(rows, 5))

    async def _store_tallies(self) -> None:
        if self._fold.tallies:
            rows = [(self._tenants[name].number, writer, verdict, events) for (name, writer, verdict), events in self._fold.tallies.items()]
            await self._sql.execute(USAGE["tallies_add"], *_columns(sorted(rows), 4))

    # Charges.

    async def _charge(self) -> None:
        books = {name: await book_in_force(self._sql, self._known.books, tenant.book) for name, tenant in self._tenants.items()}
        cells = [
            (series, books[series.tenant].period_of(start), value)
            for cell in (self._fold.sums, self._fold.maxima)
            for (series, start), (value, _) in cell.items()
        ]
        periods = await self._priced_periods({(series.tenant, period) for series, period, _ in cells}, books)
        lines: dict[str, ChargeLine] = {}
        quantities: dict[str, int] = {}
        for series, period, value in cells:
            line = periods[series.tenant, period.label].line(series)
            lines[line.key] = line
            add_to_line(quantities, line, value)
        await self._store_lines(lines, quantities)

    async def _priced_periods(
        self, touched: Iterable[tuple[str, Any]], books: Mapping[str, BookInForce]
    ) -> dict[tuple[str, str], PricedPeriod]:
        names = {self._tenants[name].number: name for name in self._tenants}
        asked = sorted((self._tenants[name].number, period) for name, period in touched)
        keys = [(number, period.label) for number, period in asked]
        rows = await self._sql.fetch(CHARGES["periods_of"], *_columns(keys, 2))
        numbers: dict[tuple[int, str], int | None] = {(tenant, label): book for tenant, label, book in rows}
        new = [(number, *period, self._tenants[names[number]].book) for number, period in asked if (number, period.label) not in numbers]
        if new:
            await self._sql.execute(CHARGES["periods_add"], *_columns(new, 5))
            numbers |= {(number, label): book for number, label, _, _, book in new}
        priced = {}
        for (tenant, label), book in numbers.items():
            priced[names[tenant], label] = await self._priced_period(names[tenant], label, book)
        return priced

    async def _priced_period(self, tenant: str, label: str, number: int | None) -> PricedPeriod:
        key = (tenant, label, number)
        found = self._known.periods.get(key)
        if found is None:
            book = await book_in_force(self._sql, self._known.books, number)
            found = self._known.periods[key] = PricedPeriod(tenant, label, book)
        return found

    async def _store_lines(self, lines: Mapping[str, ChargeLine], quantities: Mapping[str, int]) -> None:
        """Lines that are new are written whole; of the others the quantity is read under lock, merged, and the amount computed from it."""
        self._lines = len(lines)
        totals: dict[str, int] = {}
        rest = set(lines)
        maybe_new = lines.keys() - self._known.stored_lines
        while rest:
            rest -= await self._add_lines([lines[key] for key in sorted(maybe_new)], quantities)
            for key, quantity in await self._sql.fetch(CHARGES["lines_lock"], sorted(rest)) if rest else ():
                totals[key] = int(quantity)
                add_to_line(totals, lines[key], quantities[key])
                rest.discard(key)
            maybe_new = rest  # known once, but taken away by a re-rating: add them
        if totals:
            updates = [(key, str(total), _text(lines[key].amount(total))) for key, total in totals.items()]
            await self._sql.execute(CHARGES["lines_store"], *_columns(updates, 3))
        self._new_lines = set(lines)

    async def _add_lines(self, lines: Sequence[ChargeLine], quantities: Mapping[str, int]) -> set[str]:
        """The keys of those that were not there."""
        if not lines:
            return set()
        numbers = {name: tenant.number for name, tenant in self._tenants.items()}
        rows = await self._sql.fetch(CHARGES["lines_add"], *line_columns(lines, numbers, quantities))
        return {row[0] for row in rows}


async def book_in_force(connection: Connection, books: dict[int | None, BookInForce], number: int | None) -> BookInForce:
    found = books.get(number)
    if found is None:
        definition = await connection.fetchval(CHARGES["book_numbered"], number)
        found = books[number] = BookInForce(number, PriceBook.model_validate_json(definition))
    return found


def line_columns(lines: Sequence[ChargeLine], tenants: Mapping[str, int], quantities: Mapping[str, int]) -> list[list[Any]]:
    """Arguments of the statement `lines_add`."""
    rows = []
    for line in lines:
        quantity = quantities[line.key]
        names = (line.key, tenants[line.tenant], line.period, line.subject, line.meter, line.position, _json(line.dimensions))
        rows.append((*names, str(quantity), _text(line.amount(quantity))))
    return _columns(rows, 9)


def _folded_rows(fold: Fold) -> bytes:
    """In the text format of COPY. Nothing in it needs escaping."""
    parts = [f"f\t{series.key}\t{start}\t{value}\t{events}\n" for (series, start), (value, events) in fold.sums.items()]
    parts += [f"t\t{series.key}\t{start}\t{value}\t{events}\n" for (series, start), (value, events) in fold.maxima.items()]
    return "".join(parts).encode()


def _kept(received: Received) -> tuple[Any, ...]:
    headers = received.headers
    names = [name.replace("\0", "\\0") for name in headers]
    return received.stream, received.next_position, names, list(headers.values()), received.value


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows -> one list a column, for unnest."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _json(content: object) -> str:
    return _encode(content).decode()


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount, "f")
