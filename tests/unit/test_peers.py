"""What is asked of all workers of a node when one of them is silent or away. The other processes are sockets of this one."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from buffer.disk import RealDisk
from ingest.flusher import Flusher
from ingest.sink import Unavailable
from parshall import admin_client, peers
from tests.lossy_disk import Inline


class Stuck:
    """A flusher whose log takes nothing."""

    interval_ms = 1000

    def set_interval(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms

    async def now(self) -> None:
        await asyncio.get_running_loop().create_future()


class Node:
    """Worker 0, and the place where another may listen; or the other way round."""

    def __init__(self, folder: Path, worker: int = 0) -> None:
        self.flusher = Stuck()
        self.flush_file = str(folder / "flush.json")
        self.mine, self.other = (str(folder / f"worker-{number}.sock") for number in (worker, 1 - worker))
        self.files = Inline()
        local = peers.Local(worker, cast(Flusher, self.flusher), cast(Any, None), tuple, cast(Any, None))
        kept = peers.Kept(self.flush_file, str(folder / "tenants.json"), str(folder / "reloaded.toml"))
        self.all = peers.AllWorkers(local, peers.Sockets({1 - worker: self.other}, None), kept, RealDisk(), self.files)
        self.control = peers.Control(local, self.all.reload)

    def interval_for_later(self) -> int | None:
        return peers.read_interval(self.flush_file, RealDisk())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Somebody takes the question and does not answer it."""
    await reader.read()
    writer.close()


async def test_an_interval_that_a_running_worker_does_not_take_is_no_success(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_ANSWER_S", 0.1)
    async with await asyncio.start_unix_server(silent, node.other):
        with pytest.raises(Unavailable) as refused:
            await node.all.set_flush_interval(2000)
    assert refused.value.reason == "Worker 1 does not answer and may keep its old interval until it restarts: ask once more."
    assert (node.flusher.interval_ms, node.interval_for_later()) == (2000, 2000)


@pytest.mark.parametrize("left_behind", [False, True])
async def test_an_interval_waits_for_a_worker_that_is_away(node: Node, left_behind: bool) -> None:
    if left_behind:
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(node.other)
            killed.listen()
    assert os.path.exists(node.other) is left_behind
    with capture_logs() as logs:
        await node.all.set_flush_interval(2000)
    assert [entry["event"] for entry in logs] == ["a worker was not told the new flush interval; it will read it when it starts"]
    assert (node.flusher.interval_ms, node.interval_for_later()) == (2000, 2000)


async def test_two_intervals_at_once_leave_one_in_force_and_kept(tmp_path: Path) -> None:
    """Each asked of another worker: what is in force in both is what a restart finds."""
    nodes = [Node(tmp_path, worker) for worker in (0, 1)]
    async with AsyncExitStack() as listening:
        for node in nodes:
            await listening.enter_async_context(await peers.listen(node.control.handle, node.mine))
        for round_ms in range(1000, 1020):
            await asyncio.gather(nodes[0].all.set_flush_interval(round_ms), nodes[1].all.set_flush_interval(2 * round_ms))
            assert nodes[0].flusher.interval_ms == nodes[1].flusher.interval_ms == nodes[0].interval_for_later()


async def test_the_others_are_told_one_interval_after_the_other(node: Node) -> None:
    told: list[bytes] = []

    async def slow(request: web.BaseRequest) -> web.Response:
        told.append(b"begin")
        await asyncio.sleep(0.05)
        told.append(b"end")
        return web.Response(body=b"{}")

    async with await peers.listen(slow, node.other):
        await asyncio.gather(*(node.all.set_flush_interval(interval_ms) for interval_ms in (2000, 3000)))
    assert told == [b"begin", b"end"] * 2


async def test_who_does_not_get_its_turn_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_TURN_S", 0.1)
    held = RealDisk().lock(f"{node.flush_file}.lock")  # by another process, which stands still
    with pytest.raises(Unavailable, match="Another worker is setting a flush interval; nothing is changed"):
        await node.all.set_flush_interval(2000)
    assert (node.flusher.interval_ms, node.interval_for_later()) == (1000, None)
    held.release()
    await node.all.set_flush_interval(2000)
    assert (node.flusher.interval_ms, node.interval_for_later()) == (2000, 2000)


async def test_an_interval_that_cannot_be_kept_is_not_in_force(node: Node) -> None:
    os.mkdir(node.flush_file)
    with pytest.raises(Unavailable) as refused:
        await node.all.set_flush_interval(2000)
    assert refused.value.reason.endswith("cannot be written (Is a directory); nothing is in force yet: ask once more.")
    assert node.flusher.interval_ms == 1000


async def test_a_flush_that_the_log_does_not_take_is_told_after_one_wait(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_FLUSH_S", 1.0)
    loop = asyncio.get_running_loop()
    async with await asyncio.start_unix_server(silent, node.other):
        began_s = loop.time()
        with pytest.raises(Unavailable, match="The counter log does not take the flush now"):
            await node.all.flush_now()
    assert 1.0 <= loop.time() - began_s < 1.9, "the others and this one are waited for at the same time"


async def test_a_round_of_a_reload_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one that comes late."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    latest_s: list[float] = []

    async def not_there(socket: str, method: str, path: str, patience_s: float, body: bytes | None) -> None:
        latest_s.append(loop.time() + patience_s)

    monkeypatch.setattr(peers, "_ask", not_there)
    monkeypatch.setattr(peers, "_STARTING_S", 0.3)
    assert await peers._ask_until_there("", "PUT", peers.CHECK, b"") is None
    assert len(latest_s) > 1
    assert max(latest_s) - began_s < peers._ROUND_S + 0.1


def test_the_service_says_what_keeps_it_before_a_command_gives_up() -> None:
    rounded_up_s = 1  # as aiohttp does with what is longer than five seconds
    assert peers._FLUSH_S + rounded_up_s < admin_client.PATIENCE_S
    assert 2 * (peers._ROUND_S + rounded_up_s) < peers._RELOAD_S < admin_client.PATIENCE_S - rounded_up_s
    assert peers._STARTING_S < peers._ROUND_S
    assert peers._ANSWER_S < peers._TURN_S < admin_client.PATIENCE_S - peers._ANSWER_S - rounded_up_s
