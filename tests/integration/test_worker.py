"""One ingest worker from its order to its exit code, over a real journal and the log of files."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from buffer.disk import AppendFile, RealDisk
from ingest.auth import hash_key
from ingest.snapshot import WriterSnapshot
from parshall import peers, worker
from parshall.data_folder import DataFolder
from parshall.errors import FAILED, OK
from parshall.port import Addresses
from parshall.settings import Address, JournalSettings, Settings
from parshall.supervisor import why_not_ready
from parshall.wiring import World
from parshall.worker import Worker, WorkerOrder
from tests.services import free_port
from tests.small_disk import small_disk

SETTINGS = Settings.model_validate(
    {
        "tenants": [{"name": "demo", "number": 1}],
        "meters": [{"name": "hits", "event_type": "hit", "aggregation": "count", "time": "arrival"}],
        "keys": [{"tenant": "demo", "hash": hash_key("k")}],
        "flush": {"interval_ms": 60_000},
    }
)


ANYWHERE = Addresses(Address("127.0.0.1", 0))


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


class SyncsLater(RealDisk):
    """Once it is told so, what is below a folder is not synced until it may be."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.may_sync = threading.Event()
        self.may_sync.set()

    def create(self, path: str) -> AppendFile:
        file = super().create(path)
        if path.startswith(self._folder):
            sync = file.sync
            file.sync = lambda: self.may_sync.wait(30) and sync()  # type: ignore[method-assign]
        return file


@asynccontextmanager
async def serving(folder: DataFolder, world: World, addresses: Addresses = ANYWHERE) -> AsyncIterator[Callable[[], None]]:
    """Gives what tells it to stop; at the end it is told if it has not been yet (told twice it would hurry)."""
    told: list[None] = []

    def stop() -> None:
        if not told:
            told.append(None)
            os.kill(os.getpid(), signal.SIGTERM)

    order = WorkerOrder(SETTINGS, folder, 0, 1, addresses)
    running = asyncio.create_task(Worker(order, world, lambda: None).run())
    async with asyncio.timeout(30):
        while not running.done() and await why_not_ready(folder.control_socket(0)):
            await asyncio.sleep(0.02)
        yield stop
        stop()
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


async def test_while_it_drains_the_admin_address_answers_and_the_other_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "spare_the_collector", lambda: None)
    folder = DataFolder(str(tmp_path / "data")).make()
    disk = SyncsLater(folder.log)
    public, admin = Address("127.0.0.1", free_port()), Address("127.0.0.1", free_port())
    hit = {"specversion": "1.0", "id": "1", "source": "here", "type": "hit", "subject": "s"}
    async with aiohttp.ClientSession() as http, serving(folder, World(disk=disk), Addresses(public, admin)) as stop:
        async with http.post(f"{public.url}/v1/events", json=[hit], headers={"Authorization": "Bearer k"}) as answer:
            assert (await answer.json())["accepted"] == 1
        disk.may_sync.clear()
        stop()
        with pytest.raises(aiohttp.ClientConnectorError):
            while True:
                async with http.get(f"{public.url}/healthz", headers={"Connection": "close"}):
                    await asyncio.sleep(0.01)
        async with http.get(f"{admin.url}/readyz") as ready, http.get(f"{admin.url}/metrics") as metrics:
            assert ready.status == 503 and "shutting down" in await ready.text()
            assert 'parshall_events_buffered{tenant="demo",worker="0"} 1.0' in await metrics.text()
        disk.may_sync.set()


async def test_a_disk_that_is_filled_to_the_last_byte_is_named_in_one_sentence(tmp_path: Path) -> None:
    """Whoever finds out first: the flush, or what watches the journal."""
    with small_disk(8 << 20) as disk:
        if disk is None:
            return  # test_small_disk.py says whether that is so
        folder = DataFolder(str(tmp_path / "data")).make()
        os.rmdir(f"{folder.path}/writers")
        os.symlink(disk.path, f"{folder.path}/writers")
        settings = SETTINGS.model_copy(update={"journal": JournalSettings(min_free_bytes=0)})
        public = Address("127.0.0.1", free_port())
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "parshall.worker", "worker-0", stdin=PIPE, stderr=PIPE)
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(WorkerOrder(settings, folder, 0, 1, Addresses(public))))
        process.stdin.close()
        async with asyncio.timeout(60), aiohttp.ClientSession() as http:
            while await why_not_ready(folder.control_socket(0)):
                await asyncio.sleep(0.02)
            hit = {"specversion": "1.0", "source": "here", "type": "hit"}
            hits = [hit | {"id": str(n), "subject": f"{n:0256}"} for n in range(500)]  # more than the last block of a file takes
            async with http.post(f"{public.url}/v1/events", json=hits, headers={"Authorization": "Bearer k"}) as answer:
                assert answer.status == 200
            disk.fill()
            await peers._ask(folder.control_socket(0), "POST", peers.FLUSH_NOW, 20, None)
            _, said = await process.communicate()
    assert process.returncode == FAILED
    (last,) = [json.loads(line) for line in said.decode().splitlines() if '"error"' in line]
    assert last["event"] == "the worker stops" and "exception" not in last
    assert "No space left on device" in last["error"] and f"{folder.path}/writers/0/" in last["error"]
