"""What a worker does with a configuration that was read again: new meters, tenants and keys, without missing a request.

Must not know: where the configuration came from, which other processes follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from buffer.counters import MeterDefinition
from buffer.disk import Background
from ingest.catalogue import read_catalogue
from ingest.http import Edge
from ingest.writer import CannotStart, Writer, check_meters
from parshall.reload import Refused
from parshall.settings import Settings
from parshall.wiring import make_decoder, make_keys, meter_numbers

log = structlog.get_logger()


class WorkerReload:
    def __init__(self, writer: Writer, edge: Edge, meters: Sequence[MeterDefinition], background: Background) -> None:
        """`meters`: those that count now."""
        self.meters = meters
        self._writer = writer
        self._edge = edge
        self._background = background

    async def check(self, settings: Settings) -> None:
        """Raises Refused."""
        try:
            check_meters(self._writer.meters, read_catalogue(settings.meters).definitions)
        except CannotStart as error:
            raise Refused(str(error)) from None

    async def follow(self, settings: Settings) -> None:
        """A request under way ends with the decoder that it began with. Names come before the keys that lead to them."""
        catalogue = read_catalogue(settings.meters)
        numbers = meter_numbers(catalogue, self._writer)
        decoder = await self._background.run(make_decoder, settings, catalogue, numbers)  # compiling a large one takes a while
        self._writer.tenants.update({tenant.number: tenant.name for tenant in settings.tenants})
        self.meters = catalogue.definitions
        self._edge.decoder = decoder
        self._edge.keys = make_keys(settings)
        log.info("the configuration is in force", tenants=len(settings.tenants), keys=len(settings.keys), meters=len(settings.meters))
