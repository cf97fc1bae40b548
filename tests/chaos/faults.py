"""How each fault of a plan is brought about, and ended.

Belongs here: one function a kind, on real processes and connections. Must not know: when a fault is due, what must come of it.

A disk is full in three ways. A small file system that a worker or PostgreSQL has for itself is filled to the last byte. The kernel refuses
a journal's write in the middle of a frame, by RLIMIT_FSIZE set on the running process (EFBIG where a full file system says ENOSPC). And a
worker is started with a bound on free space that no disk meets, so its own look at the disk tells it to refuse.
"""

from __future__ import annotations

import asyncio
import random
import resource
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tests import services
from tests.acceptance.edge import Role
from tests.chaos.plan import POSTGRES_DISK_FULL, REDIS_LINKS, SMALL_DISK_FULL, WORKERS, Fault
from tests.chaos.stage import Stage
from tests.tcp_proxy import TcpProxy

LAG_S = 0.4  # how much of the last claims a promoted replica lacks
DELAY_S = 0.15
_FULL_AFTER_BYTES = 3000  # less than a few records
# While other faults leave a worker without Kafka or without claims nobody may connect, nothing is written: a fault waits until it hits.
_MOST_UNTIL_A_WRITE_S = 60.0
_MOST_UNTIL_CONNECTED_S = 60.0
_NO_DISK_HAS_BYTES = 1 << 50


class Faults:
    """Brings faults about, and counts those that happened."""

    def __init__(self, stage: Stage) -> None:
        self.happened: Counter[str] = Counter()
        self._stage = stage

    async def run(self, plan: list[Fault]) -> None:
        """All of it, each at its time, or once its target is free again; return when everything is whole."""
        start_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for fault in plan:
                tasks.create_task(self._one(fault, start_s), name=fault.kind)

    async def _one(self, fault: Fault, start_s: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(start_s + fault.at_s - loop.time())
        async with AsyncExitStack() as held:
            for part in sorted({fault.target, *_also(fault)}):
                await held.enter_async_context(self._stage.busy[part])
            if await self._bring_about(fault):
                self.happened[fault.kind] += 1

    def _bring_about(self, fault: Fault) -> Awaitable[bool]:
        if fault.target in self._stage.links:
            return _on_link(self._stage, fault)
        return _WAYS[fault.kind](self._stage, fault)


def _also(fault: Fault) -> set[str]:
    """Parts that a fault needs for itself besides its target."""
    return {_redis_link(fault.target)} if fault.kind == "ingest killed, its claims not heard of" else set()


def _redis_link(worker: str) -> str:
    return REDIS_LINKS[WORKERS.index(worker)]


# ---- roles


async def _killed(stage: Stage, fault: Fault) -> bool:
    role = stage.roles[fault.target]
    await asyncio.to_thread(role.kill)
    await asyncio.sleep(fault.length_s)
    role.start()
    return True


async def _told_to_end(stage: Stage, fault: Fault) -> bool:
    """SIGTERM, as in a rolling restart: whatever else is broken meanwhile, it ends in order."""
    role = stage.roles[fault.target]
    if not role.running:
        return False
    code = await asyncio.to_thread(role.stop)
    in_order = code == 0 or (code == -signal.SIGTERM and not role.has_spoken)
    assert in_order, f"{role.name} was told to end and did with exit code {code}:\n{role.log_end()}"
    await asyncio.sleep(fault.length_s)
    role.start()
    return True


async def _stopped(stage: Stage, fault: Fault) -> bool:
    role = stage.roles[fault.target]
    if not role.running:
        return False
    role.pause()
    await asyncio.sleep(fault.length_s)
    role.resume()
    return True


async def _killed_unheard(stage: Stage, fault: Fault) -> bool:
    """Redis has executed its claims, it never hears of it, and dies: those claims are in no journal."""
    link = stage.links[_redis_link(fault.target)]
    link.replies_lost = True
    await asyncio.sleep(fault.length_s)
    await asyncio.to_thread(stage.roles[fault.target].kill)
    link.replies_lost = False
    link.reset()
    await asyncio.sleep(fault.length_s)
    stage.roles[fault.target].start()
    return True


async def _full_in_mid_write(stage: Stage, fault: Fault) -> bool:
    role = stage.roles[fault.target]
    if not role.running:
        return False
    segments = sorted(_journal(stage, fault.target).glob("*.journal"), key=lambda path: path.stat().st_mtime)
    assert segments, f"{_journal(stage, fault.target)} has no segment"
    most = segments[-1].stat().st_size + random.Random(fault.at_s).randrange(_FULL_AFTER_BYTES)
    _, hard = resource.prlimit(role.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    if not await _ends(role):
        resource.prlimit(role.pid, resource.RLIMIT_FSIZE, (hard, hard))
        return False
    stage.note_end(role)
    await asyncio.sleep(fault.length_s)
    role.start()
    return True


async def _small_disk_full(stage: Stage, fault: Fault) -> bool:
    """Its next write fails and it ends; while the disk stays full it cannot even open its journal."""
    role, disk = stage.roles[fault.target], stage.disks.get(fault.target)
    if disk is None or not role.running:
        return False
    disk.fill()
    try:
        if not await _ends(role):
            return False
        stage.note_end(role)
        role.start()
        await asyncio.sleep(fault.length_s)
        assert await _ends(role), f"{role.name} runs although its disk is full"
        stage.note_end(role)
    finally:
        disk.relieve()
    role.start()
    return True


async def _ends(role: Role) -> bool:
    try:
        async with asyncio.timeout(_MOST_UNTIL_A_WRITE_S):
            while role.running:
                await asyncio.sleep(0.01)
    except TimeoutError:  # nothing was written that long
        return False
    return True


async def _without_room(stage: Stage, fault: Fault) -> bool:
    role = stage.roles[fault.target]
    usual = role.environment
    refusing = {"PARSHALL_JOURNAL_MIN_FREE_BYTES": str(_NO_DISK_HAS_BYTES)}
    for environment, pause_s in ((refusing, fault.length_s), (usual, 0)):
        await asyncio.to_thread(role.kill)
        role.environment = environment
        role.start()
        await asyncio.sleep(pause_s)
    return True


def _journal(stage: Stage, worker: str) -> Path:
    return stage.data_of(worker) / "writers" / "0"


# ---- services


def _server(stage: Stage, name: str) -> services.Server:
    server: services.Server = {"redis": stage.redis.primary, "kafka": stage.kafka, "postgres": stage.postgres}[name]
    return server


async def _server_killed(stage: Stage, fault: Fault) -> bool:
    server = _server(stage, fault.target)
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(fault.length_s)
    await asyncio.to_thread(server.start)
    return True


async def _server_stopped(stage: Stage, fault: Fault) -> bool:
    server = _server(stage, fault.target)
    server.pause()
    await asyncio.sleep(fault.length_s)
    server.resume()
    return True


async def _postgres_disk_full(stage: Stage, fault: Fault) -> bool:
    """What it cannot write is an error, or the end of it."""
    server, disk = stage.postgres, stage.disks.get(fault.target)
    if disk is None:
        return False
    disk.fill()
    await asyncio.sleep(fault.length_s)
    disk.relieve()
    if not server.running:
        await asyncio.to_thread(server.start)
    return True


async def _redis_empty(stage: Stage, fault: Fault) -> bool:
    await stage.redis.restart_empty(fault.length_s)
    return True


async def _redis_with_data(stage: Stage, fault: Fault) -> bool:
    await stage.redis.restart_with_data(fault.length_s)
    return True


async def _failover(stage: Stage, fault: Fault) -> bool:
    await stage.redis.fail_over(LAG_S)
    return True


async def _split(stage: Stage, fault: Fault) -> bool:
    last = stage.links[REDIS_LINKS[int(fault.at_s * 1000) % 2]]
    await stage.redis.fail_over(LAG_S, last=last, alive_s=fault.length_s)
    return True


# ---- links


async def _on_link(stage: Stage, fault: Fault) -> bool:
    link, what = stage.links[fault.target], fault.kind.partition(", ")[0]
    met = await _has_connections(link)
    if what == "reset":
        link.reset()
    elif what == "half open":
        link.leave_half_open()
    elif what == "delay":
        link.delay_s = DELAY_S
        await asyncio.sleep(fault.length_s)
        link.delay_s = 0
    else:
        name = {"replies lost": "replies_lost", "cut off": "cut_off"}[what]
        setattr(link, name, True)
        await asyncio.sleep(fault.length_s)
        setattr(link, name, False)
        link.reset()
    return met


async def _has_connections(link: TcpProxy) -> bool:
    """Another fault may just have ended them: whoever uses the link comes back soon."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _MOST_UNTIL_CONNECTED_S
    while not link.connections and loop.time() < until_s:
        await asyncio.sleep(0.02)
    return link.connections > 0


_WAYS: dict[str, Callable[[Stage, Fault], Awaitable[bool]]] = {
    "ingest killed": _killed,
    "ingest told to end": _told_to_end,
    "ingest stopped": _stopped,
    "ingest killed, its claims not heard of": _killed_unheard,
    "disk full in mid-write": _full_in_mid_write,
    "disk without room": _without_room,
    SMALL_DISK_FULL: _small_disk_full,
    "rater killed": _killed,
    "rater told to end": _told_to_end,
    "rater stopped": _stopped,
    "redis killed, data lost": _redis_empty,
    "redis killed, data kept": _redis_with_data,
    "redis stopped": _server_stopped,
    "redis failover": _failover,
    "redis failover, the old one alive for one": _split,
    "kafka killed": _server_killed,
    "kafka stopped": _server_stopped,
    "postgres killed": _server_killed,
    "postgres stopped": _server_stopped,
    POSTGRES_DISK_FULL: _postgres_disk_full,
}
