"""Much work of the same kind, in turn with whatever else the event loop has to do: where questions are answered, events may be taken too.

Belongs here: only that. Must not know: what the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

ITEMS_A_TURN = 100  # some milliseconds at most, with what an item costs here


async def in_turns(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """Some at a time."""
    for at in range(0, len(items), ITEMS_A_TURN):
        if at:
            await asyncio.sleep(0)
        yield items[at : at + ITEMS_A_TURN]
