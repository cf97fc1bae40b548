"""What must hold of PostgreSQL: at each commit, and once everything that can be read is rated.

The numbers come from the records that the writers produced, by plain arithmetic, and share nothing with the rater's.

At each commit: a record is applied only behind all that come before it; a stored position has nothing before it that is not applied or
parked; `as_of` is claimed only when all that stood in the topic then is applied. At the end: usage, tallies and charges are what the
records make them; nothing is parked and nobody held unless records were lost or forged, and then exactly who that concerns. What was lost
is sent again, forks are released: then all of it must be rated.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from buffer.counter_log import Record
from tests.simulation.postgres import Work
from tests.simulation.raters import FREE, LARGEST_THOUSANDTHS, THOUSANDTHS, UP_TO, Raters
from tests.simulation.topic import IDENTITY, Partition

if TYPE_CHECKING:
    from tests.simulation.world import World

ChainKey = tuple[bytes, int]


class Rated:
    """Watches commits."""

    def __init__(self, raters: Raters) -> None:
        self._raters = raters
        self._looked_at: dict[str, int] = {}  # stream -> up to where everything was found applied or parked
        self._applied_to: dict[str, int] = {}  # the same, applied
        raters.postgres.on_commit = self._committed

    def restored(self) -> None:
        """The database went back."""
        self._looked_at.clear()
        self._applied_to.clear()

    def _committed(self, work: Work) -> None:
        records = self._raters.postgres.tables["records"]
        for writer, partition, n in work.written.get("records", ()):
            assert n == 1 or (writer, partition, n - 1) in records, f"record {n} of partition {partition} was applied before record {n - 1}"
        for (_, stream), position in work.written.get("positions", {}).items():
            self._check_position(self._raters.topic.of(stream), position)
        for as_of_us in work.written.get("progress", {}).values():
            for partition in self._raters.topic.partitions:
                self._check_as_of(partition, as_of_us)
        self._raters.committed(work)

    def _check_position(self, partition: Partition, position: int) -> None:
        kept = _kept(self._raters)
        for at in range(max(partition.first, self._looked_at.get(partition.stream, 0)), min(position, len(partition.entries))):
            entry = partition.entries[at]
            known = (entry.writer, partition.number, entry.n) in kept or entry.passed_over
            assert known, f"position {position} of {partition.stream} is stored, and record {entry.n} before it is nowhere"
        self._looked_at[partition.stream] = position if not partition.cut else 0

    def _check_as_of(self, partition: Partition, as_of_us: int) -> None:
        records = self._raters.postgres.tables["records"]
        at = max(partition.first, self._applied_to.get(partition.stream, 0))
        while at < len(partition.entries) and partition.entries[at].at_us <= as_of_us:
            entry = partition.entries[at]
            applied = (entry.writer, partition.number, entry.n) in records or entry.passed_over
            assert applied, f"as_of is {as_of_us}, but record {entry.n} of {partition.stream} came at {entry.at_us} and is not applied"
            at += 1
        self._applied_to[partition.stream] = at if not partition.cut else 0


class _Kept:
    """Which records are applied or parked."""

    def __init__(self, raters: Raters) -> None:
        self._records = raters.postgres.tables["records"]
        self._parked = {(row.writer, row.partition, row.n) for row in raters.postgres.tables["parked"].values()}

    def __contains__(self, key: tuple[bytes, int, int]) -> bool:
        return key in self._records or key in self._parked


def _kept(raters: Raters) -> _Kept:
    return _Kept(raters)


async def check_rated(world: World) -> None:
    raters = world.raters
    assert raters is not None
    await raters.settle()
    produced = _produced(world)
    missing = _check_chains(world, raters, produced)
    if missing or world.forged:
        _check_no_silence(raters, produced, missing)
        await _heal(world, raters, missing)
    _check_whole(raters, produced)
    await _check_as_of_goes_on(world, raters)
    assert raters.postgres.deadlocks == 0, "two raters waited for each other"


def _produced(world: World) -> dict[ChainKey, dict[int, Record]]:
    found: dict[ChainKey, dict[int, Record]] = defaultdict(dict)
    for writer, record in world.log.records:
        found[writer, record.partition][record.n] = record
    lost = world.lost_writers()
    return {chain: _up_to_a_hole(records) if chain[0].hex() in lost else records for chain, records in found.items()}


def _up_to_a_hole(records: Mapping[int, Record]) -> dict[int, Record]:
    """What a lost disk held and the log has not will never come: what stands behind it waits for ever, for all to see."""
    kept: dict[int, Record] = {}
    while (following := records.get(len(kept) + 1)) is not None:
        kept[len(kept) + 1] = following
    return kept


def _check_chains(world: World, raters: Raters, produced: Mapping[ChainKey, Mapping[int, Record]]) -> dict[ChainKey, list[int]]:
    """Each record that can be read is applied, or parked behind one that was lost. Answers the lost ones."""
    tables = raters.postgres.tables
    applied, parked = defaultdict(set), defaultdict(set)
    for writer, partition, n in tables["records"]:
        applied[writer, partition].add(n)
    for row in tables["parked"].values():
        parked[row.writer, row.partition].add(row.n)
    for partition in raters.topic.partitions:
        for entry in partition.readable():
            chain = (entry.writer, partition.number)
            assert entry.n in applied[chain] | parked[chain], f"record {entry.n} of partition {partition.number} can be read and was not"
    missing: dict[ChainKey, list[int]] = {}
    for chain, records in produced.items():
        there = applied[chain] | parked[chain]
        if not records:
            continue
        lost = sorted(set(records) - there)
        if lost:
            assert raters.topic.partitions[chain[1]].cut, f"nothing was lost, but partition {chain[1]} lacks {lost}"
            missing[chain] = lost
        held = tables["chains"][chain].held if chain in tables["chains"] else None
        if chain in world.forged:
            assert held is not None and held.startswith("fork"), f"record {world.forged[chain]} came with other bytes, and nobody is held"
            continue
        assert held is None, held
        first_lost = lost[0] if lost else max(records) + 1
        assert applied[chain] == set(range(1, first_lost)), f"applied {sorted(applied[chain])} of partition {chain[1]}, lost {lost}"
        assert parked[chain] == there - applied[chain], f"parked {sorted(parked[chain])} of partition {chain[1]}, lost {lost}"
    assert not set(applied) - set(produced), "records of nobody were applied"
    return missing


def _check_no_silence(raters: Raters, produced: Mapping[ChainKey, Any], missing: Mapping[ChainKey, list[int]]) -> None:
    """A loss shows: records wait behind it, and say for what; or the chain is shorter than its writer's (which the audit compares)."""
    tables = raters.postgres.tables
    for chain, lost in missing.items():
        waiting = [row for row in tables["parked"].values() if (row.writer, row.partition) == chain and row.n > lost[0]]
        last_n = tables["chains"][chain].last_n if chain in tables["chains"] else 0
        assert waiting or last_n < max(produced[chain])
        for row in waiting:
            assert row.missing
            assert row.reason.startswith("record ") or row.reason.startswith("this writer is held"), row.reason


async def _heal(world: World, raters: Raters, missing: Mapping[ChainKey, list[int]]) -> None:
    """`parshall resend` for what was lost, and an operator's word for each fork."""
    produced = _produced(world)
    await _send_again(raters, produced, missing)
    # A record that is sent again at positions that were read before is passed over; the raters start from what is stored.
    for chain, n in world.forged.items():
        assert await raters.nodes[0].release(*chain, _parked_id(raters, (*chain, n), produced[chain][n]))
    if world.forged:
        await raters.restart()
    while again := _check_lost_again(raters, produced):
        await _send_again(raters, produced, again)


async def _send_again(raters: Raters, produced: Mapping[ChainKey, Mapping[int, Record]], missing: Mapping[ChainKey, list[int]]) -> None:
    for (writer, partition), lost in missing.items():
        for n in lost:
            raters.topic.append(writer, produced[writer, partition][n])
    await raters.settle()


def _parked_id(raters: Raters, place: tuple[bytes, int, int], right: Record) -> int | None:
    """Where neither side of a fork is applied (they came in one batch) the operator says which one is right."""
    hash_hex = dict(right.headers)["hash"].decode()
    rows = raters.postgres.tables["parked"].values()
    return next((row.id for row in rows if (row.writer, row.partition, row.n) == place and row.hash == hash_hex), None)


def _check_lost_again(raters: Raters, produced: Mapping[ChainKey, Mapping[int, Record]]) -> dict[ChainKey, list[int]]:
    """What was sent again and came to lie at positions that raters had been at: to be sent once more. And what came behind a fork."""
    tables = raters.postgres.tables
    kept = {*tables["records"], *((row.writer, row.partition, row.n) for row in tables["parked"].values() if row.sound)}
    lost = {chain: [n for n in sorted(records) if (*chain, n) not in kept] for chain, records in produced.items()}
    return {chain: numbers for chain, numbers in lost.items() if numbers}


# ---- totals


def _check_whole(raters: Raters, produced: Mapping[ChainKey, Mapping[int, Record]]) -> None:
    tables = raters.postgres.tables
    assert set(tables["records"]) == {(*chain, n) for chain, records in produced.items() for n in records}
    assert not [row.reason for row in tables["parked"].values() if row.missing and row.n <= len(produced[row.writer, row.partition])]
    assert not [chain.held for chain in tables["chains"].values() if chain.held]
    for chain, records in produced.items():
        assert tables["chains"][chain].last_n == len(records)
    usage, tallies = _totals(produced)
    assert _stored_usage(tables) == usage
    assert _stored_tallies(tables) == tallies
    _check_charges(tables, usage)


def _totals(produced: Mapping[ChainKey, Mapping[int, Record]]) -> tuple[dict[Any, tuple[int, int]], Counter[Any]]:
    """What the records say: (tenant, meter, subject, dimensions, window) -> (value, events), and (tenant, writer, verdict) -> events."""
    usage: dict[Any, tuple[int, int]] = {}
    tallies: Counter[Any] = Counter()
    for (writer, _), records in produced.items():
        for record in records.values():
            value = json.loads(record.value)
            for meter, tenant, subject, start, dimensions, number, events in value["counters"]:
                name, _, aggregation, *_ = value["meters"][meter]
                key = (tenant, name, subject, tuple(dimensions), start)
                known = usage.get(key, (0, 0))
                merged = max(known[0], int(number)) if aggregation == "max" else known[0] + int(number)
                usage[key] = (merged, known[1] + events)
            for tenant, counts in value["tallies"].items():
                tallies.update({(tenant, writer, verdict): events for verdict, events in counts.items()})
    return usage, tallies


def _stored_usage(tables: Mapping[str, Any]) -> dict[Any, tuple[int, int]]:
    tenants = {row.tenant: name for (name,), row in tables["tenants"].items()}
    meters = {row.meter: name for (name,), row in tables["meters"].items()}
    found = {}
    for (key, start), cell in tables["usage"].items():
        series = tables["series"][key,]
        name = (tenants[series.tenant], meters[series.meter], series.subject, tuple(json.loads(series.dimensions)), start)
        found[name] = (cell.value, cell.events)
    return found


def _stored_tallies(tables: Mapping[str, Any]) -> dict[Any, int]:
    tenants = {row.tenant: name for (name,), row in tables["tenants"].items()}
    return {(tenants[tenant], writer, verdict): events for (tenant, writer, verdict), events in tables["tallies"].items()}


def _check_charges(tables: Mapping[str, Any], usage: Mapping[Any, tuple[int, int]]) -> None:
    quantities: dict[Any, int] = {}
    for (tenant, meter, subject, dimensions, start), (value, _) in usage.items():
        region = {"region": dimensions[0]} if meter == "requests" and tenant == "demo" else {}
        key = (tenant, f"{datetime.fromtimestamp(start, UTC):%Y-%m}", subject, meter, json.dumps(region))
        quantities[key] = max(quantities.get(key, 0), value) if meter == "largest" else quantities.get(key, 0) + value
    tenants = {row.tenant: name for (name,), row in tables["tenants"].items()}
    lines = {(tenants[row.tenant], row.period, row.subject, row.meter, row.dimensions): row for row in tables["charge_lines"].values()}
    assert len(lines) == len(tables["charge_lines"])
    assert lines.keys() == quantities.keys(), f"charge lines differ: {lines.keys() ^ quantities.keys()}"
    for key, line in lines.items():
        assert line.quantity == quantities[key], f"charge line {key} has the quantity {line.quantity}, usage makes it {quantities[key]}"
        amount = _amount(tables, line, tenants[line.tenant])
        assert line.amount == amount, f"charge line {key} costs {line.amount}, its quantity {line.quantity} makes it {amount}"


def _amount(tables: Mapping[str, Any], line: Any, tenant: str) -> Decimal | None:
    if tenant != "demo" or line.meter == "bytes":  # no price is for them
        return None
    if line.meter == "largest":
        return _money(line.quantity * LARGEST_THOUSANDTHS)
    first, rest = _prices(tables, line)
    above = max(0, line.quantity - FREE)
    return _money(min(above, UP_TO) * first + max(0, above - UP_TO) * rest)


def _prices(tables: Mapping[str, Any], line: Any) -> tuple[int, int]:
    """By the book that the month is charged with."""
    number = tables["periods"][line.tenant, line.period].book
    definition = next(row.definition for row in tables["price_books"].values() if row.book == number)
    later = {version["effective_from"]: version for version in json.loads(definition)["versions"]}["2026-04-01"]
    which = 0 if later["prices"][0]["tiers"][0]["unit_price"] == "0.255" else 1
    return THOUSANDTHS[which][line.period]


def _money(thousandths: int) -> Decimal:
    """Rounded to cents, half to even."""
    cents, rest = divmod(thousandths, 10)
    cents += rest > 5 or (rest == 5 and cents % 2)
    return Decimal(cents).scaleb(-2)


async def _check_as_of_goes_on(world: World, raters: Raters) -> None:
    """Once all is rated, the raters say so."""
    now_us = world.clock_us()
    while raters.postgres.tables["progress"].get((IDENTITY,), 0) < now_us:
        await asyncio.sleep(0.2)
