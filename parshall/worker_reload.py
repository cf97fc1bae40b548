"""What a worker does with a configuration that was read again: new meters, tenants and keys, without missing a request.

Must not know: where the configuration came from, which other processes follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from buffer.counter_log import LogUnavailable, UnfitLog
from buffer.counters import MeterDefinition
from buffer.disk import Background
from ingest.agreed_meters import CannotStart, check_meters
from ingest.catalogue import Catalogue, read_catalogue
from ingest.http import Edge
from ingest.sink import Unavailable
from ingest.writer import Writer
from parshall.reload import Refused
from parshall.settings import Settings
from parshall.wiring import make_decoder, make_keys, meter_numbers

log = structlog.get_logger()


class WorkerReload:
    def __init__(self, writer: Writer, edge: Edge, meters: Sequence[MeterDefinition], background: Background) -> None:
        """`meters`: those that count now. What takes a while with a large catalogue is done in the background: requests go on meanwhile."""
        self._read: tuple[object, Catalogue] | None = None  # the last tables of meters, and what they say
        self.meters = meters
        self._writer = writer
        self._edge = edge
        self._background = background

    async def check(self, settings: Settings) -> None:
        """Raises Refused or Unavailable."""
        catalogue = await self._catalogue(settings)
        with _for_the_operator():
            check_meters(self._writer.meters, catalogue.definitions)
            await self._writer.agreed.check(catalogue.definitions)
        any_numbers = {definition.name: number for number, definition in enumerate(catalogue.definitions)}
        await self._background.run(
            make_decoder, settings, catalogue, any_numbers
        )  # what `follow` cannot do must be known before anything changes

    async def settle(self, settings: Settings) -> None:
        """Tell all other writers which meters are new, before anything is changed. Raises what `check` does."""
        with _for_the_operator():
            await self._writer.agreed.settle((await self._catalogue(settings)).definitions)

    async def follow(self, settings: Settings) -> None:
        """A request under way ends with the decoder that it began with. Names come before the keys that lead to them."""
        catalogue = await self._catalogue(settings)
        numbers = meter_numbers(catalogue, self._writer)
        decoder = await self._background.run(make_decoder, settings, catalogue, numbers)
        self._writer.tenants.update({tenant.number: tenant.name for tenant in settings.tenants})
        self.meters = catalogue.definitions
        self._edge.decoder = decoder
        self._edge.keys = make_keys(settings)
        log.info("the configuration is in force", tenants=len(settings.tenants), keys=len(settings.keys), meters=len(settings.meters))

    async def _catalogue(self, settings: Settings) -> Catalogue:
        """Asked for three times a reload, and read once."""
        if self._read is None or self._read[0] is not settings.meters:
            self._read = settings.meters, await self._background.run(read_catalogue, settings.meters)
        return self._read[1]


@contextmanager
def _for_the_operator() -> Iterator[None]:
    try:
        yield
    except (CannotStart, UnfitLog) as error:
        raise Refused(str(error)) from None
    except LogUnavailable as error:
        reason = f"The counter log cannot be asked how other writers count a new meter ({error}); nothing is changed."
        raise Unavailable(reason, 5) from None
