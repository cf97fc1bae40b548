"""The end of a consumer of Kafka, which aiokafka does not always bring about.

Belongs here: stopping one, whatever state its cluster is in. Must not know: what it read.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiokafka import AIOKafkaConsumer

_CLOSING_S = 5


async def end(consumer: AIOKafkaConsumer) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSING_S):
            await _stop(consumer)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """aiokafka gives up half-way where a fetch waits to be made again: it awaits what it has cancelled. Then the rest is done here, which
    reaches into it; a test notices when it moves."""
    stopping = asyncio.ensure_future(consumer.stop())
    try:
        await asyncio.wait([stopping])  # a cancellation in there is not ours
    finally:
        stopping.cancel()
    if not stopping.cancelled():
        stopping.result()
        return
    if fetches := list(consumer._fetcher._pending_tasks if consumer._fetcher else ()):
        for fetch in fetches:
            fetch.cancel()
        await asyncio.wait(fetches)
    await consumer._client.close()
