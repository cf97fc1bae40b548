"""What a rater does with a configuration that was read again: new price books, keys, and meters that may be asked for.

Belongs here: that, and the reload of a rater that no worker leads. Must not know: where the configuration came from, SQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from buffer.counters import MeterDefinition
from ingest.auth import Keys
from ingest.sink import Unavailable
from parshall.reload import LiveSettings, Refused, Reloaded
from parshall.reload_routes import tell_outcome
from parshall.settings import Settings
from parshall.wiring import make_configured, make_keys
from rater.configured import ConfigurationRefused
from rater.consume import Rater
from rater.postgres import DatabaseFailed, Ledger

_CHECK_S = 10.0  # how long a reload waits for what PostgreSQL knows of meters and price books


class Reading(Protocol):
    """What answers for usage and charges, as far as it follows."""

    keys: Keys
    meters: Sequence[MeterDefinition]


class RaterReload:
    def __init__(self, rater: Rater, edge: Reading, dsn: str) -> None:
        self._rater = rater
        self._edge = edge
        self._dsn = dsn

    async def check(self, settings: Settings) -> None:
        """Raises Refused or Unavailable. Meters and books that stay as they are need no answer of PostgreSQL."""
        ledger = Ledger(self._dsn)
        try:
            async with asyncio.timeout(_CHECK_S):
                await self._rater.check(make_configured(settings), ledger)
        except TimeoutError:
            reason = "The rater is charging months again, for new prices: ask once more when its log says that it has."
            raise Unavailable(reason, 30) from None
        except ConfigurationRefused as refused:
            raise Refused(str(refused)) from None
        except DatabaseFailed as error:
            raise Unavailable(f"PostgreSQL cannot say what is counted and charged with what now: {error}", 5) from None
        finally:
            await ledger.close()

    async def follow(self, settings: Settings) -> None:
        configured = make_configured(settings)
        self._edge.keys, self._edge.meters = make_keys(settings), configured.meters
        self._rater.use(configured)


class ReloadAlone:
    """Of a process that nobody else must follow."""

    def __init__(self, live: LiveSettings) -> None:
        self._live = live
        self._one_at_a_time = asyncio.Lock()
        self._asked: set[asyncio.Task[None]] = set()

    async def reload(self) -> Reloaded:
        """Raises Refused or Unavailable."""
        async with self._one_at_a_time:
            content = await self._live.content()
            outcome = await self._live.check(content)
            await self._live.follow(content)
            return outcome

    def asked(self) -> None:
        """By a signal."""
        task = asyncio.ensure_future(tell_outcome(self.reload))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
