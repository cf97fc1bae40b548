"""The records of one writer in one partition: which are new, known, too early or a fork.

Pure. Belongs here: the decision for each record. Must not know: PostgreSQL, what a record's value means.

The law (PROTOCOL.md, "Rater"): records are applied in the order of n, without a gap, each once. A record that is known by (n, hash) is
skipped. The same n with other bytes is a fork: two journals run under one writer id, and which of them is right no program can know.
Whatever cannot be applied is parked with its bytes; what is parked holds this writer in this partition, never another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from buffer.record import Place
from rater.source import Received

ChainKey = tuple[bytes, int]  # (writer, partition)

# Reasons of parked records, after a fork.
CHOSEN = "a person chose it after a fork"
BEHIND_A_FORK = "it came behind a fork: it has to be sent again from the right journal"


class Incoming(NamedTuple):
    """A record whose headers tell its place."""

    received: Received
    place: Place
    hash: str  # of the bytes that came

    @property
    def sound(self) -> bool:
        """Whether the bytes are those that the writer hashed."""
        return self.hash == self.place.hash

    @property
    def chain(self) -> ChainKey:
        return self.place.writer, self.place.partition


class ToPark(NamedTuple):
    incoming: Incoming
    reason: str
    missing: bool  # whether something that should be rated is not


class Chain:
    """One chain during one transaction, under its row's lock."""

    def __init__(self, last_n: int, held: str | None) -> None:
        self.last_n = last_n
        self.held = held
        self.to_park: list[ToPark] = []
        self.skipped = 0
        self.forks = 0
        self.refused: str | None = None  # why the record that is due cannot be applied
        self._waiting: dict[int, Incoming] = {}

    def offer(self, incoming: Incoming, known: Iterable[str]) -> None:
        """`known`: hashes of the sound records with this n that are applied or parked."""
        n = incoming.place.n
        known = set(known)
        if (waiting := self._waiting.get(n)) is not None:
            known.add(waiting.hash)
        if not incoming.sound:
            reason = f"its bytes hash to {incoming.hash}, its header says {incoming.place.hash}"
            self.to_park.append(ToPark(incoming, reason, missing=n > self.last_n and incoming.place.hash not in known))
        elif incoming.hash in known:
            self.skipped += 1
        elif known:
            self._fork(incoming, known)
        else:
            assert n > self.last_n, f"record {n} is below {self.last_n} but not in the ledger"
            self._waiting[n] = incoming

    def waits_for_parked(self) -> bool:
        """Whether the record that is due is not in this batch."""
        return self.held is None and self.refused is None and self.last_n + 1 not in self._waiting

    def due(self) -> Incoming | None:
        if self.held is not None or self.refused is not None:
            return None
        return self._waiting.get(self.last_n + 1)

    def applied(self) -> None:
        self.last_n += 1
        self._waiting.pop(self.last_n, None)

    def refuse(self, reason: str) -> None:
        """The record that is due cannot be applied."""
        self.refused = reason

    def hold(self, reason: str) -> None:
        self.held = self.held or reason

    def park_rest(self) -> list[ToPark]:
        """Everything that is not applied; at the end."""
        for n, incoming in sorted(self._waiting.items()):
            if self.held is not None:
                reason = f"this writer is held in this partition: {self.held}"
            elif n == self.last_n + 1:
                assert self.refused is not None
                reason = self.refused
            else:
                reason = f"record {self.last_n + 1} has to come first"
            self.to_park.append(ToPark(incoming, reason, missing=True))
        self._waiting.clear()
        return self.to_park

    def _fork(self, incoming: Incoming, known: set[str]) -> None:
        self.forks += 1
        reason = f"fork: record {incoming.place.n} came with the hash {incoming.hash} and with {', '.join(sorted(known))}"
        self.to_park.append(ToPark(incoming, reason, missing=True))
        self.hold(reason)
