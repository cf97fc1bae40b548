"""Memory a live counter takes: resident memory of this process before and after a million of them came from decoded requests.

Belongs here: that one figure. It needs a process of its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from bench.bodies import Mix, bodies_of
from bench.figures import Figure, at_most, figure
from bench.settings import demo_settings
from buffer.counters import Deltas, count, merge
from ingest.catalogue import read_catalogue
from ingest.decode import Decoder, Limits

PAGE = os.sysconf("SC_PAGE_SIZE")


def figures(counters: int) -> Iterator[Figure]:
    catalogue = read_catalogue(demo_settings().meters)
    decoder = Decoder(catalogue, {meter.name: number for number, meter in enumerate(catalogue.definitions, 1)}, Limits())
    now = datetime.now(UTC)
    live: Deltas = {}
    bodies = bodies_of(Mix(counters, 1000, 10 * counters), now)
    for body in islice(bodies, 20):
        decoder.decode_batch(1, body, int(now.timestamp()) * 1_000_000)
    gc.collect()
    before = _resident()
    while count(live) < counters:
        merge(live, decoder.decode_batch(1, next(bodies), int(now.timestamp()) * 1_000_000).deltas)
    gc.collect()
    each = 100 * (_resident() - before) // count(live)
    yield figure("memory", f"a live counter, {counters:,} of them", "B", [each], at_most(400))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
