"""The counter-log port: where flushed counter records go, in Kafka or in a local log.

Belongs here: the port and the values that cross it. Must not know: what a record's bytes mean, who reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from buffer.counters import MeterDefinition


class Record(NamedTuple):
    """One numbered record of one (writer, partition), as it is journalled and produced: the same bytes every time it is sent."""

    partition: int
    n: int  # 1, 2, 3 … per (writer, partition), without a gap
    headers: tuple[tuple[str, bytes], ...]
    value: bytes  # uncompressed


class Rejected(NamedTuple):
    """One rejected event, for the operator."""

    tenant: str
    body: bytes  # JSON: when, code, detail, source, id, and the raw event in base64, cut at 64 KiB


class Retired(NamedTuple):
    """A writer that is no member any more: nobody waits for its journal, and nobody can claim it again."""

    horizon_us: int  # claims that are rebuilt without that journal are complete only for events after it
    lost: str | None = None  # the disk is gone: one sentence that says what was lost with it


class Announced(NamedTuple):
    """Which branch of each claim store a writer entered last, by shard; nothing for a store that it never entered."""

    at: int  # of two announcements of a writer the one with the higher number counts, whichever arrived later
    branches: tuple[bytes, ...]


class Registry(NamedTuple):
    """The registry of writers (`usage.writers`) at one moment."""

    writers: dict[bytes, Retired | None]  # every one that was ever registered; None while it is a member
    announced: dict[bytes, Announced]  # what each announced last; one that never did is absent
    meters: dict[str, MeterDefinition]  # by name, without their hashes: what may never change of each, whoever counts it


class LogUnavailable(Exception):
    """Not now, or the outcome is unknown: produce the same records again later. The message says what happened."""

    durable = 0  # so many from the first one on are in the log, whatever became of the others: they need not be produced again


class CounterLog(Protocol):
    @property
    def identity(self) -> str:
        """The Kafka cluster id, with the prefix of the topics behind it if they have one; or the id of the local log."""

    @property
    def partitions(self) -> int:
        """How many partitions counters are spread over. Fixed while open."""

    async def open(self) -> None:
        """Connect and check. Raises LogUnavailable (try again) or UnfitLog (do not)."""

    async def produce(self, records: Sequence[Record]) -> None:
        """Return when every record is durable in the log, in order within a partition, however long that takes while it goes on.

        Raises LogUnavailable: any subset may have been written, the first `durable` ones were.
        """

    async def produce_rejected(self, rejected: Sequence[Rejected]) -> None:
        """The same for `usage.rejected`; at least once."""

    async def register(self, writer: bytes) -> None:
        """Add the writer to the registry (`usage.writers`), durably."""

    async def retire(self, writer: bytes, retired: Retired) -> None:
        """The writer is a member no more, durably; who was retired stays retired."""

    async def announce(self, writer: bytes, announced: Announced) -> None:
        """Tell everybody, durably. Raises LogUnavailable: it may have been told, or be told later yet, which undoes nothing newer."""

    async def define(self, meters: Sequence[MeterDefinition]) -> Mapping[str, MeterDefinition]:
        """Keep in the registry, durably, what may never change of each, unless its name is known: who came first stays.

        Returns what is kept of every meter then. Of several that define one name at once all are told the same.
        """

    async def registry(self) -> Registry:
        """All that was registered, retired, announced and defined before the question."""

    async def has_data(self) -> bool:
        """Whether any counter record was ever written: an empty registry beside data is refused."""

    async def close(self) -> None: ...


class UnfitLog(Exception):
    """The log cannot keep the promise (replication, retention, another format). One sentence that says what to change."""
