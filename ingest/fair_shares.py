"""Who may take how much of what is bounded, and in which order tenants get their turn: so that one tenant's flood is its own trouble.

Pure. Belongs here: the rule, the account of who holds what, and the queue that gives tenants turns. Must not know: what is shared, HTTP,
claims.

The rule: up to three quarters of a bound anybody may take, one tenant alone as well. The last quarter is for those who hold nothing or
little of it, so whoever comes after a flood finds room.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


def fits(size: int, *, total: int, mine: int, tenants: int, limit: int) -> bool:
    """May a tenant that holds `mine` take `size` more, when all `tenants` that hold anything, this one included, hold `total`?

    Whoever asks while nothing is held is given it, however much it is: else it could never be served.
    """
    if total + size <= limit - limit // 4 or total == 0:
        return True
    return total + size <= limit and (mine == 0 or 4 * tenants * (mine + size) <= limit)


class Shares:
    """What each tenant, by its number or its name, holds of one bound."""

    __slots__ = ("_held", "limit", "total")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._held: dict[int | str, int] = {}

    def held(self, tenant: int | str) -> int:
        return self._held.get(tenant, 0)

    def fits(self, tenant: int | str, size: int) -> bool:
        if self.total + size <= self.limit - self.limit // 4:
            return True
        mine = self._held.get(tenant, 0)
        return fits(size, total=self.total, mine=mine, tenants=len(self._held) + (not mine), limit=self.limit)

    def take(self, tenant: int | str, size: int) -> None:
        self.total += size
        self._held[tenant] = self._held.get(tenant, 0) + size

    def give(self, tenant: int | str, size: int) -> None:
        self.total -= size
        left = self._held.get(tenant, 0) - size
        assert left >= 0, "more is given back than was taken"
        if left:
            self._held[tenant] = left
        else:
            self._held.pop(tenant, None)

    def crowded(self, tenant: int | str) -> bool:
        """Whether a refusal is the tenant's own doing: it holds more than those for whom the last quarter is kept."""
        return 4 * max(1, len(self._held)) * self._held.get(tenant, 0) > self.limit


class TurnQueue(Generic[T]):
    """First come, first served within a tenant; tenants take turns."""

    __slots__ = ("_queues", "_turns", "length")

    def __init__(self) -> None:
        self.length = 0
        self._queues: dict[int, deque[T]] = {}
        self._turns: deque[int] = deque()  # every tenant that has something waiting, once

    def push(self, tenant: int, item: T) -> None:
        queue = self._queues.get(tenant)
        if queue is None:
            self._queues[tenant] = deque((item,))
            self._turns.append(tenant)
        else:
            queue.append(item)
        self.length += 1

    def first(self) -> T | None:
        """What `pop` would return."""
        return self._queues[self._turns[0]][0] if self._turns else None

    def pop(self) -> T:
        tenant = self._turns.popleft()
        queue = self._queues[tenant]
        item = queue.popleft()
        if queue:
            self._turns.append(tenant)
        else:
            del self._queues[tenant]
        self.length -= 1
        return item
