"""The sink port: where the HTTP edge hands its decoded batches.

Belongs here: the port and what it may answer. Must not know: HTTP, journals, claims.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from ingest.batch import Batch
from ingest.calls import Outcome

__all__ = ["Outcome", "Sink", "Unavailable"]


class Unavailable(Exception):
    """Not now: nothing more was counted than what comes back as duplicate; sending the same bytes again is safe."""

    def __init__(self, reason: str, retry_after_s: int = 1, *, overloaded: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.overloaded = overloaded  # 429: the sender is too fast; else 503


class Sink(Protocol):
    def check(self, tenant: int) -> None:
        """Before a request is decoded. Raises Unavailable when one of this tenant would be refused now, however small."""

    def submit(self, batch: Batch, deadline_s: float) -> Awaitable[Outcome]:
        """Ends with the outcome once all of it is journalled, or raises Unavailable. `deadline_s` is by the event loop's clock."""
