"""The guards of the rater, each with a way to take it out, as sabotage.py does for the writers'.

Belongs here: broken functions in the place of the rater's, statements that lack what protects them, and the worlds in which that matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from buffer.record import decode
from rater.chain import Chain, Incoming
from rater.consume import Rater
from rater.postgres import Ledger
from rater.source import Received
from rater.transaction import Applied, Known, Transaction
from tests.simulation.habits import CROWDED, FLUSHING, SPREAD, Habits
from tests.simulation.postgres import Work
from tests.simulation.postgres_statements import STATEMENTS
from tests.simulation.sabotage import Sabotage

# ---- each record once, in order


@contextmanager
def _folds_known_records() -> Iterator[None]:
    """What the primary key of the ledger is there for."""
    offer, apply_due = Chain.offer, Transaction._apply_due

    def broken_offer(self: Any, incoming: Incoming, known: Iterable[str]) -> None:
        known = list(known)
        if incoming.hash in known and incoming.place.n <= self.last_n:
            self.again = [*getattr(self, "again", []), incoming]
        offer(self, incoming, known)

    async def broken_apply(self: Transaction, refuse: str | None) -> None:
        for chain in self._chains.values():
            for incoming in getattr(chain, "again", ()):
                record = decode(incoming.received.headers, incoming.received.value)
                assert await self._know_meters(record) is None
                self._fold.add(incoming.place.writer, record)
        await apply_due(self, refuse)

    with patch.object(Chain, "offer", broken_offer), patch.object(Transaction, "_apply_due", broken_apply):
        yield


@contextmanager
def _gap_not_held() -> Iterator[None]:
    """n + 2 is applied before n + 1."""

    def broken(self: Chain) -> Incoming | None:
        if self.held is not None or self.refused is not None or not self._waiting:
            return None
        n = min(self._waiting)
        self.last_n = n - 1
        return self._waiting[n]

    with patch.object(Chain, "due", broken):
        yield


@contextmanager
def _fork_not_noticed() -> Iterator[None]:
    offer = Chain.offer

    def broken(self: Chain, incoming: Incoming, known: Iterable[str]) -> None:
        offer(self, incoming, [incoming.hash] if list(known) else [])

    with patch.object(Chain, "offer", broken):
        yield


# ---- transactions


@contextmanager
def _positions_outside() -> Iterator[None]:
    """Positions are stored in a transaction of their own, before what lies below them is applied."""
    apply = Ledger.apply

    async def broken(self: Ledger, log: str, batch: Sequence[Received], refuse: str | None = None) -> Applied:
        async with self._transaction() as connection:
            await Transaction(connection, log, self._known, self._configured)._store_positions(batch)
        return await apply(self, log, batch, refuse)

    with patch.object(Ledger, "apply", broken):
        yield


@contextmanager
def _no_rewind() -> Iterator[None]:
    step = Rater._step

    async def broken(self: Rater) -> None:
        self._must_rewind = False
        await step(self)

    with patch.object(Rater, "_step", broken):
        yield


@contextmanager
def _new_connection_unnoticed() -> Iterator[None]:
    """A connection that ended between two transactions is replaced, and reading goes on where it was."""
    connected = Ledger._connected

    async def broken(self: Ledger) -> Any:
        if self._connection is not None and self._connection.is_closed():
            self._forget()
        return await connected(self)

    with patch.object(Ledger, "_connected", broken):
        yield


@contextmanager
def _keeps_what_it_knew() -> Iterator[None]:
    """What was stored before an error is believed to be stored."""
    forget = Ledger._forget

    def broken(self: Ledger) -> None:
        known: Known = self._known
        forget(self)
        self._known = known

    with patch.object(Ledger, "_forget", broken):
        yield


# ---- statements without what protects them


def _instead(**statements: Any) -> AbstractContextManager[Any]:
    return patch.dict(STATEMENTS, statements)


async def _lines_unlocked(work: Work, lines: Sequence[str]) -> list[Any]:
    """Without FOR UPDATE: charges are computed from a quantity that another rater may be changing."""
    return [(line, str(row.quantity)) for line in sorted(lines) if (row := work.row("charge_lines", (line,))) is not None]


async def _chains_unlocked(work: Work, writers: Sequence[bytes], partitions: Sequence[int]) -> list[Any]:
    keys = sorted(zip(writers, partitions, strict=True))
    return [(*key, *row) for key in keys if (row := work.row("chains", key)) is not None]


async def _progress_anyhow(work: Work, log: str, as_of_us: int, streams: Sequence[str], ends: Sequence[int]) -> list[Any]:
    return await STATEMENTS["progress_store_sound"](work, log, as_of_us, (), ())


def _rated(profile: Habits, *faults: str, **changes: Any) -> Habits:
    """Worlds with raters in which only these faults happen to them, and none to the writers but what `changes` says."""
    faults_of = {"rater_faults": dict.fromkeys(faults, 1), "faults": {"rolling_restart": 1}, "number": (0, 1)}
    return replace(profile, rated=1.0, **{"rater_number": (5, 15), **faults_of, **changes})


_TWO_AT_ONCE = {"writers": (2, 3), "flush_ms": (3, 10), "between_s": (0.01, 0.1), "faults": {"kill": 1}, "number": (3, 8)}

RATER_SABOTAGES: dict[str, Sabotage] = {
    "the rater folds a known record again": Sabotage(_rated(CROWDED, "counters_delivered_again", "rater_killed"), _folds_known_records),
    "a record is applied before the one before it": Sabotage(
        _rated(CROWDED, "topic_loses_its_start", "topic_loses_its_end", rater_number=(10, 20)), _gap_not_held
    ),
    "a fork is not noticed": Sabotage(_rated(CROWDED, "record_forged"), _fork_not_noticed),
    "positions are stored outside the transaction": Sabotage(_rated(CROWDED, "commit_lost"), _positions_outside),
    "the rater does not rewind after a failure": Sabotage(_rated(CROWDED, "commit_lost", "postgres_connection_lost"), _no_rewind),
    "a connection that ended is replaced in silence": Sabotage(
        _rated(SPREAD, "postgres_is_restored", between_s=(0.3, 3.0)), _new_connection_unnoticed
    ),
    "what was stored before an error is believed": Sabotage(
        _rated(SPREAD, "postgres_is_restored", between_s=(0.3, 3.0)), _keeps_what_it_knew, shows_as=KeyError
    ),
    "a charge is computed from a stale quantity": Sabotage(
        _rated(FLUSHING, "partition_added", **_TWO_AT_ONCE), lambda: _instead(lines_lock=_lines_unlocked)
    ),
    "chains are not locked": Sabotage(
        _rated(FLUSHING, "two_own_a_partition", "counters_delivered_again", rater_number=(15, 30), **_TWO_AT_ONCE),
        lambda: _instead(chains_lock=_chains_unlocked),
    ),
    "as_of is claimed too early": Sabotage(
        _rated(FLUSHING, "raters_rebalance", "postgres_is_slow"),
        lambda: _instead(progress_store=_progress_anyhow, progress_store_sound=STATEMENTS["progress_store"]),
    ),
}
