"""One ingest worker from its order to its exit code, over a real journal and the log of files."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from buffer.disk import RealDisk
from ingest.snapshot import WriterSnapshot
from parshall import peers, worker
from parshall.data_folder import DataFolder
from parshall.errors import OK
from parshall.settings import Address, Settings
from parshall.supervisor import why_not_ready
from parshall.wiring import World
from parshall.worker import Worker, WorkerOrder

SETTINGS = Settings.model_validate(
    {
        "tenants": [{"name": "demo", "number": 1}],
        "meters": [{"name": "hits", "event_type": "hit", "aggregation": "count"}],
        "flush": {"interval_ms": 60_000},
    }
)


class SetWhileItOpens(RealDisk):
    """Another worker is told of an interval when this one has read the old one and does not listen yet: the file is all that is left."""

    def __init__(self, flush_file: str, interval_ms: int) -> None:
        self._flush_file = flush_file
        self._later = [msgspec.json.encode(peers.Interval(interval_ms))]

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        try:
            return super().read(path, offset, size)
        finally:
            if path == self._flush_file and self._later:
                self.replace(path, self._later.pop())


@asynccontextmanager
async def serving(folder: DataFolder, world: World) -> AsyncIterator[None]:
    order = WorkerOrder(SETTINGS, folder, 0, 1, Address("127.0.0.1", 0))
    running = asyncio.create_task(Worker(order, world, lambda: None).run())
    async with asyncio.timeout(30):
        while not running.done() and await why_not_ready(folder.control_socket(0)):
            await asyncio.sleep(0.02)
        yield
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == OK


@pytest.mark.parametrize("before_ms", [None, 30_000])
async def test_an_interval_set_while_it_opens_its_journal_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_ms: int | None
) -> None:
    monkeypatch.setattr(worker, "spare_the_collector", lambda: None)  # this process has more to do
    folder = DataFolder(str(tmp_path / "data")).make()
    if before_ms is not None:
        RealDisk().replace(folder.flush_file, msgspec.json.encode(peers.Interval(before_ms)))
    async with serving(folder, World(disk=SetWhileItOpens(folder.flush_file, 2000))):
        answer = await peers._ask(folder.control_socket(0), "GET", peers.SNAPSHOT, 5, None)
    assert answer is not None and msgspec.json.decode(answer.content, type=WriterSnapshot).flush_interval_ms == 2000
