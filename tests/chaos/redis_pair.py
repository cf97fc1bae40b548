"""A Redis that serves and its replica, and what can happen to the two: restarts with or without data, failover.

Belongs here: who replicates whom, where clients are led. Must not know: who the clients are, when which fault is due.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence

import redis

from tests import services
from tests.tcp_proxy import TcpProxy

_MOST_LAG_S = 5.0


class RedisPair:
    """`links` are the proxies through which clients come; they are led to whoever serves."""

    def __init__(self, primary: services.Redis, spare: services.Redis, links: Sequence[TcpProxy]) -> None:
        self.primary = primary
        self.spare = spare
        self.claims_missing = 0  # in replicas, at the moment they were promoted; all failovers together
        self._links = links
        self._replication = TcpProxy()  # between the two

    async def start(self) -> None:
        await self._replication.start()
        self._replication.server = ("127.0.0.1", self.primary.port)
        for link in self._links:
            self._lead(link, self.primary)
        await self._follow(self.spare)

    async def stop(self) -> None:
        await self._replication.stop()

    async def _follow(self, follower: services.Redis) -> None:
        follower.settings["replicaof"] = f"127.0.0.1 {self._replication.port}"
        if follower.running:
            await asyncio.to_thread(follower.kill)
        await asyncio.to_thread(follower.start)

    @staticmethod
    def _lead(link: TcpProxy, server: services.Redis) -> None:
        link.server = ("127.0.0.1", server.port)
        link.reset()

    async def restart_with_data(self, down_s: float) -> None:
        """What its append-only file holds."""
        await asyncio.to_thread(self.primary.kill)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(self.primary.start)

    async def restart_empty(self, down_s: float) -> None:
        await asyncio.to_thread(self.primary.kill)
        shutil.rmtree(self.primary.folder / "appendonlydir", ignore_errors=True)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(self.primary.start)

    async def fail_over(self, lag_s: float, *, last: TcpProxy | None = None, alive_s: float = 0) -> None:
        """The replica misses at least the last `lag_s`, then it serves. The old primary is killed, at once or, with `last`, a link that
        stays with it, after `alive_s`; it comes back as the replica."""
        await self._in_step()
        old, new = self.primary, self.spare
        self._replication.cut_off = True
        self.claims_missing += await self._until_claims_are_missing(lag_s)
        if last is None:
            await asyncio.to_thread(old.kill)
        assert await asyncio.to_thread(new.ask, "REPLICAOF", "NO", "ONE") == b"+OK"
        self.primary, self.spare = new, old
        new.settings.pop("replicaof")
        for link in self._links:
            if link is not last:
                self._lead(link, new)
        if last is not None:
            await asyncio.sleep(alive_s)
            await asyncio.to_thread(old.kill)
            self._lead(last, new)
        self._replication.server = ("127.0.0.1", new.port)
        self._replication.cut_off = False
        self._replication.reset()
        await self._follow(old)

    async def _until_claims_are_missing(self, least_s: float) -> int:
        """How many. None when nothing is claimed for long: then there is no load, or some other fault stops it."""
        loop = asyncio.get_running_loop()
        start_s, missing = loop.time(), 0
        while loop.time() < start_s + least_s or (missing <= 0 and loop.time() < start_s + _MOST_LAG_S):
            await asyncio.sleep(0.1)
            missing = await asyncio.to_thread(_claims, self.primary) - await asyncio.to_thread(_claims, self.spare)
        return missing

    async def _in_step(self, most_s: float = 10) -> None:
        """The replica has what the primary has, a moment ago: else the drill is a restart without data."""
        async with asyncio.timeout(most_s):
            while (await asyncio.to_thread(_replication_of, self.spare)).get("master_link_status") != "up":
                await asyncio.sleep(0.05)


def _replication_of(server: services.Redis) -> Mapping[str, object]:
    with redis.Redis(port=server.port, socket_timeout=5) as connection:
        return connection.info("replication")  # type: ignore[no-any-return]


def _claims(server: services.Redis) -> int:
    with redis.Redis(port=server.port, socket_timeout=5) as connection:
        keys = connection.scan_iter("*claims:*", count=1000)
        return sum(int(connection.hget(key, "claims") or connection.hlen(key)) for key in keys)  # packed, or hashed
