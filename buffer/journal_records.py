"""The records of a journal, as values. What each one means on replay is in journal_state.py; how they become bytes is in journal_codec.py.

Pure. Must not know: files, threads, Redis, HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from buffer.counter_log import Record, Rejected
from buffer.counters import Deltas, MeterDefinition, Tallies


class Through(NamedTuple):
    """Every call of `incarnation` up to `call`, and of all incarnations before it."""

    incarnation: bytes  # 16 bytes; empty before the first
    call: int


class Opened(NamedTuple):
    """A new incarnation. Synced before its first claim."""

    incarnation: bytes
    at_us: int
    shards: int = 1  # how many claim stores share the tenants; each has call numbers of its own


class Entering(NamedTuple):
    """Claims go on in this branch of a claim store's life. Synced before the store may count on it: from here on no older one will do."""

    branch: bytes
    shard: int = 0


class Meters(NamedTuple):
    """Meter numbers that later keys use. Replay needs no catalogue."""

    definitions: dict[int, MeterDefinition]


class CallRecord(NamedTuple):
    """One claim call: every call leaves one, also one that granted nothing."""

    number: int  # in the journal: 1, 2, 3 … within the incarnation, whatever the shard
    generation: int
    execution: int
    horizon_us: int
    newest_us: int  # newest event time granted; 0 when nothing was
    claims: Sequence[tuple[int, bytes, bytes]]  # (tenant, digests granted, their fingerprints)
    deltas: Sequence[Deltas]  # what was granted, folded
    tallies: Tallies  # verdicts given in this call
    rejected: Sequence[Rejected]
    branch: bytes = b""  # of the claim store's life, within which executions count
    shard: int = 0
    in_shard: int = 0  # its number in its shard: 1, 2, 3 … there; 0 where there is one shard, for it is `number` then


class FlushBegin(NamedTuple):
    """Counters were swapped out after the call `through`. Only a committed flush exists."""

    flush: int
    through: Through


class FlushPart(NamedTuple):
    flush: int
    records: Sequence[Record]


class FlushCommit(NamedTuple):
    flush: int


class Flushed(NamedTuple):
    """Every record of the flush is in the counter log."""

    flush: int
    accepted: dict[int, int] | None = None  # accepted events per tenant that it carried; the journal fills it in


class Closed(NamedTuple):
    """The incarnation ended in order."""

    last_call: int


class FlushProgress(NamedTuple):
    """A flush between its begin and its `Flushed`."""

    flush: int
    through: Through
    next_n: dict[int, int]  # partition -> number of the next record, for the partitions that its parts so far touch
    committed: bool
    accepted: dict[int, int]  # accepted events per tenant that it covers; empty until it is committed


class Snapshot(NamedTuple):
    """First record of each segment: what the segments before it add up to, so that they can go."""

    writer: bytes
    incarnations: Sequence[tuple[bytes, int]]  # (id, last call) in order of opening
    meters: dict[int, MeterDefinition]
    next_n: dict[int, int]  # partition -> number of its next record
    next_flush: int
    horizon_us: int
    totals: Tallies  # since the journal was made
    flushed: dict[int, int]  # accepted events per tenant that committed and acknowledged flushes carried
    through: Through = Through(b"", 0)  # of the last flush that was committed and acknowledged
    progress: FlushProgress | None = None  # the flush under way
    kept_from: int = 1  # first sequence of the oldest segment that is still kept; what is older may go
    shard_calls: Sequence[Sequence[int]] = ()  # per incarnation the last call in each shard; nothing for one that had one shard
    shard_horizons_us: Sequence[int] = ()  # of the shards of the newest incarnation; nothing where it has one
    branches: Sequence[bytes] = ()  # by shard, the one that was entered last


JournalRecord = Opened | Entering | Meters | CallRecord | FlushBegin | FlushPart | FlushCommit | Flushed | Closed | Snapshot
