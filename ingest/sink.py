"""The sink port: where the HTTP edge hands its decoded batches.

Belongs here: the port and what it may answer. Must not know: HTTP, journals, claims.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from ingest.batch import Batch
from ingest.calls import Outcome
from ingest.writer import Unavailable

__all__ = ["Outcome", "Sink", "Unavailable"]


class Sink(Protocol):
    def submit(self, batch: Batch, deadline_s: float) -> Awaitable[Outcome]:
        """Ends with the outcome once all of it is journalled, or raises Unavailable. `deadline_s` is by the event loop's clock."""
