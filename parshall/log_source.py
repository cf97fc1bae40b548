"""A source of the buffer's, as the rater's port wants it: the two packages do not know each other, so their words are translated here.

Must not know: which source it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

from buffer.counter_log import LogUnavailable
from rater.source import Positions, Received, SourceUnavailable


class BufferSource(Protocol):
    """What LocalSource and KafkaSource have in common. Their records have the fields of the rater's."""

    @property
    def identity(self) -> str: ...

    @property
    def open(self) -> Callable[[Positions], Awaitable[None]]: ...

    @property
    def poll(self) -> Callable[[int, float], Awaitable[Sequence[object]]]: ...

    async def rewind(self) -> None: ...

    async def ends(self) -> Mapping[str, int]: ...

    async def starts(self) -> Mapping[str, int]: ...

    async def close(self) -> None: ...


class LogSource:
    """`rater.source.Source`."""

    def __init__(self, source: BufferSource) -> None:
        self._source = source

    @property
    def identity(self) -> str:
        return self._source.identity

    async def open(self, positions: Positions) -> None:
        with _translated():
            await self._source.open(positions)

    async def poll(self, most: int, timeout_s: float) -> Sequence[Received]:
        with _translated():
            return cast(Sequence[Received], await self._source.poll(most, timeout_s))

    async def rewind(self) -> None:
        with _translated():
            await self._source.rewind()

    async def ends(self) -> Mapping[str, int]:
        with _translated():
            return await self._source.ends()

    async def starts(self) -> Mapping[str, int]:
        with _translated():
            return await self._source.starts()

    async def close(self) -> None:
        with _translated():
            await self._source.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except LogUnavailable as error:
        raise SourceUnavailable(str(error)) from error
