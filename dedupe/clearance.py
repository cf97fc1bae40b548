"""What the claim stores of one writer wait for together: that each has looked at the journal and knows nothing against it.

Belongs here: the waiting. Must not know: what a store looks for, what it does afterwards.

An old copy of a journal is known only to a shard that has executed calls since. Were another shard told of the copy's opening before, it
would name that one as the writer's last, and refuse the right journal when it is put back.
"""

from __future__ import annotations

import asyncio


class Clearance:
    def __init__(self, shards: int) -> None:
        self._missing = set(range(shards))
        self._cleared = asyncio.Event()

    async def by(self, shard: int) -> None:
        """This shard knows nothing against the journal. Returns once all have said so."""
        self._missing.discard(shard)
        if not self._missing:
            self._cleared.set()
        await self._cleared.wait()
