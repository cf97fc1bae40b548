"""The counter log from its first record to the end that it has now, for commands that look at all of it.

Must not know: what a record says, what it is wanted for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from parshall.errors import FAILED, UNAVAILABLE, Stop

if TYPE_CHECKING:
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings
    from rater.source import Received, Source

_POLL_S = 1.0
_QUIET_S = 30.0  # a log that gives nothing for so long although it has more is unavailable


class WholeLog:
    """Iterate over it once; `starts` is right afterwards."""

    def __init__(self, source: Source, *, retention: bool) -> None:
        """`retention`: the log may have deleted its oldest records."""
        self.identity = source.identity
        self.starts: dict[str, int] = {}  # stream -> where it begins, if retention deleted what was before
        self._source = source
        self._retention = retention

    async def first_positions(self) -> Mapping[str, int]:
        """Where each stream begins that has lost something to retention."""
        return await self._source.starts() if self._retention else {}

    async def __aiter__(self) -> AsyncIterator[Received]:
        ends: Mapping[str, int] = {stream: end for stream, end in (await self._source.ends()).items() if end > 0}
        reached: dict[str, int] = {}
        loop = asyncio.get_running_loop()
        quiet_since_s = loop.time()
        while any(reached.get(stream, 0) < end for stream, end in ends.items()):
            received = await self._source.poll(1000, _POLL_S)
            if not received:
                # A local log says how far it can be read once it was read so far: behind that may be what a crash left unfinished.
                ends = {
                    stream: min(end, now) for stream, now in (await self._source.ends()).items() if (end := ends.get(stream)) is not None
                }
                if loop.time() - quiet_since_s > _QUIET_S:
                    if not self._retention or any(stream in reached for stream, end in ends.items() if reached.get(stream, 0) < end):
                        raise Stop(
                            f"The counter log gives nothing for {_QUIET_S:.0f} seconds although it has more: try again.", UNAVAILABLE
                        )
                    break  # of these streams nothing is left: retention deleted it
                continue
            quiet_since_s = loop.time()
            for one in received:
                if one.stream not in reached and self._retention:
                    self.starts[one.stream] = one.next_position - 1
                reached[one.stream] = one.next_position
                yield one
        if self._retention:
            self.starts |= {stream: end for stream, end in ends.items() if stream not in reached}


@asynccontextmanager
async def whole_log(settings: Settings, folder: DataFolder | None) -> AsyncIterator[WholeLog]:
    """Raises Stop when it cannot be read."""
    from buffer.counter_log import UnfitLog
    from parshall.wiring import make_source
    from rater.source import SourceUnavailable

    source = make_source(settings, folder, alone=True)
    try:
        await source.open(_from_the_start)
        yield WholeLog(source, retention=settings.kafka.bootstrap is not None)
    except SourceUnavailable as error:
        raise Stop(f"The counter log cannot be read: {error}.", UNAVAILABLE) from error
    except UnfitLog as error:
        raise Stop(f"The counter log cannot be read: {error}.", FAILED) from error
    finally:
        await source.close()


async def _from_the_start(_streams: Iterable[str]) -> dict[str, int]:
    return {}
