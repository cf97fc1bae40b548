"""What is known of every writer ever registered: by the registry in the counter log, and by Redis.

Must not know: how it is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from parshall.errors import UNAVAILABLE, Stop
from parshall.writer_log import opened_log

if TYPE_CHECKING:
    from buffer.counter_log import Retired
    from dedupe.redis_writers import Standing
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings


class Row(NamedTuple):
    """Of one writer in one shard. From the shard to `joined`, None where no Redis is given."""

    writer: str
    state: str  # "member", "retired" or "lost"
    shard: int | None
    incarnation: str | None  # the last one that the claims know; "": none
    mark: int | None  # its highest call known to be on disk
    closed: int | None  # the call it ended with; None: it runs, or died
    joined: bool | None  # whether Redis has what its journal claims; a member that has not is waited for
    lost: str | None  # what went with its disk


async def rows(settings: Settings, folder: DataFolder | None) -> list[Row]:
    async with opened_log(settings, folder) as log:
        registry = (await log.registry()).writers
        shards = [await _standings(settings, log.identity, list(registry), shard) for shard in range(len(settings.redis.urls))]
    return [
        _row(writer, retired, shard, known.get(writer))
        for writer, retired in sorted(registry.items(), key=lambda item: item[0])
        for shard, known in enumerate(shards or [{}])
    ]


async def _standings(settings: Settings, log_identity: str, writers: list[bytes], shard: int) -> dict[bytes, Standing]:
    from dedupe.redis_writers import RedisWriters, Unreachable
    from parshall.wiring import identity_of

    try:
        async with RedisWriters(settings.redis.urls[shard], identity_of(settings, log_identity, shard)) as store:
            return await store.standings(writers)
    except (Unreachable, OSError) as error:
        which = "Redis" if len(settings.redis.urls) == 1 else f"The Redis of shard {shard}"
        raise Stop(f"{which} cannot be asked: {str(error).rstrip('.')}.", UNAVAILABLE) from error


def _row(writer: bytes, retired: Retired | None, shard: int, standing: Standing | None) -> Row:
    state = "member" if retired is None else "retired" if retired.lost is None else "lost"
    lost = None if retired is None else retired.lost
    if standing is None:
        return Row(writer.hex(), state, None, None, None, None, None, lost)
    return Row(writer.hex(), state, shard, standing.incarnation.hex(), standing.mark, standing.closed, standing.joined, lost)
