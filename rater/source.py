"""The source port: where the rater takes counter records from, and in what order.

Belongs here: the port and the values that cross it. Must not know: Kafka, files, PostgreSQL.

A *stream* is a sequence with positions of its own: a Kafka partition, or one writer's file of the local log. The rater stores for
each stream the position after the last record it has committed, in the same transaction as what the records did.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol


class Received(NamedTuple):
    stream: str
    next_position: int  # where this stream goes on after this record
    headers: Mapping[str, bytes]
    value: bytes


# Given streams, answers the stored position of those that have one.
Positions = Callable[[Iterable[str]], Awaitable[Mapping[str, int]]]


class SourceUnavailable(Exception):
    """The log cannot be reached now: try again later. Any method below may raise it. The message says what happened."""


class Source(Protocol):
    @property
    def identity(self) -> str:
        """The log's id, as `CounterLog.identity`."""

    async def open(self, positions: Positions) -> None:
        """Connect. `positions` is asked whenever streams are taken on (at the start, after a rebalance)."""

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        """Up to `most` next records, in order within a stream; empty after `timeout_s` without any."""

    async def rewind(self) -> None:
        """Go back to the stored positions of all streams: what was polled since was not committed."""

    async def ends(self) -> Mapping[str, int]:
        """The end position of every stream, to tell how far behind the rater is."""

    async def starts(self) -> Mapping[str, int]:
        """Where the first record lies that a stream still has; its end where it has none. A stream that loses nothing may be missing."""

    async def close(self) -> None: ...
