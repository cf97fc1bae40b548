"""A real failover: a replica without the last claims is promoted, while the old primary is dead, or lives on for one of the workers; and
workers that are led back to an old primary, which knows nothing of what was claimed since."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import redis as redis_client

from tests import services
from tests.acceptance.edge import Api, Role, wait_rated, write_config
from tests.tcp_proxy import TcpProxy

BATCHES, EVENTS = 20, 25


def events(first_batch: int) -> list[list[dict[str, Any]]]:
    time_ = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    data = {"region": "eu", "zone": "1", "bytes": 7}
    return [
        [
            {"specversion": "1.0", "type": "http.request", "source": "s", "id": f"{b}-{n}", "time": time_, "subject": f"c{n}", "data": data}
            for n in range(EVENTS)
        ]
        for b in range(first_batch, first_batch + BATCHES)
    ]


class Sender:
    def __init__(self, session: aiohttp.ClientSession, key: str) -> None:
        self.session = session
        self.key = key
        self.headers = {"Authorization": f"Bearer {key}"}
        self.refused = 0

    async def send(self, role: Role, batch: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """Until it is answered: how many were accepted, how many were duplicate."""
        deadline = time.monotonic() + 60
        while True:
            async with self.session.post(f"{role.url}/v1/events", json=batch, headers=self.headers) as answer:
                told = await answer.json(content_type=None)
                if answer.status == 200:
                    return told["accepted"], told["duplicate"]
                assert answer.status == 503, told
                self.refused += 1
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.05)

    async def send_all(self, role: Role, batches: Sequence[Sequence[dict[str, Any]]]) -> tuple[int, int]:
        answers = await asyncio.gather(*(self.send(role, batch) for batch in batches))
        return sum(accepted for accepted, _ in answers), sum(duplicate for _, duplicate in answers)


async def in_step(primary: redis_client.Redis, replica: redis_client.Redis) -> None:
    """The replica has all that the primary has."""
    while True:
        theirs, mine = replica.info("replication"), primary.info("replication")
        if theirs["master_link_status"] == "up" and theirs["slave_repl_offset"] == mine["master_repl_offset"]:
            return
        await asyncio.sleep(0.01)


class Fleet(NamedTuple):
    """Two workers and a rater, up; the proxies lead to the first Redis."""

    one: Role
    other: Role
    sender: Sender
    proxies: Sequence[TcpProxy]  # one for both workers, or one for each
    worker: Callable[[str, str], Role]  # name, address of its Redis -> one more, not started

    def lead_to(self, server: services.Redis, *proxies: TcpProxy) -> None:
        """Connections through these proxies, or through all, break, and new ones end there."""
        for proxy in proxies or self.proxies:
            proxy.server = ("127.0.0.1", server.port)
            proxy.reset()

    async def all_is_rated(self, accepted: int) -> None:
        apis = [Api(self.sender.session, role.url, self.sender.key) for role in (self.one, self.other)]
        for role, api in zip((self.one, self.other), apis, strict=True):
            await says(self.sender.session, role, '"status":"ready"')  # who waits for others looks once a second
            await api.flush_now()
        ledger = (await wait_rated({"demo": apis[0]}, {"demo": accepted}))["demo"]
        assert ledger["rated"] == accepted


class Place(NamedTuple):
    folder: Path
    redis: services.Redis
    kafka: services.Kafka
    database: str


@pytest.fixture
def place(tmp_path: Path, redis: services.Redis, own_kafka: services.Kafka, database: str) -> Place:
    return Place(tmp_path, redis, own_kafka, database)


@asynccontextmanager
async def fleet(place: Place, *, proxies: int, layout: str = "hashed") -> AsyncIterator[Fleet]:
    more = f'\n[postgres]\ndsn = "{place.database}"\n[redis]\nlayout = "{layout}"\n'
    more += f'[kafka]\nbootstrap = "{place.kafka.address}"\naccept_weak = true\ncreate_topics = true\n'
    key = write_config(place.folder, now=datetime.now(UTC), deadline_ms=1000, more=more)["demo"]
    config = ["--config", str(place.folder / "parshall.toml")]
    ways = [TcpProxy(("127.0.0.1", place.redis.port)) for _ in range(proxies)]
    for proxy in ways:
        await proxy.start()
    addresses = (ways[0].address, ways[-1].address)

    def worker(name: str, address: str) -> Role:
        return Role(name, ["ingest", *config, "--data", str(place.folder / f"data-{name}"), "--redis", f"redis://{address}"], place.folder)

    one, other = (worker(f"w{n}", address) for n, address in enumerate(addresses))
    rater = Role("rater", ["rate", *config], place.folder)
    try:
        for role in (rater, one, other):
            role.start()
        await asyncio.gather(one.wait_ready(), other.wait_ready())
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            yield Fleet(one, other, Sender(session, key), ways, worker)
    finally:
        for role in (rater, one, other):
            if role.running:
                role.kill()
        for proxy in ways:
            await proxy.stop()


@pytest.mark.parametrize(("old_primary", "layout"), [("is dead", "hashed"), ("lives on for one worker", "packed")])
async def test_a_replica_without_the_last_claims_is_promoted(place: Place, old_primary: str, layout: str) -> None:
    is_dead = old_primary == "is dead"
    replication = TcpProxy(("127.0.0.1", place.redis.port))
    await replication.start()
    with services.redis_server(replicaof=f"127.0.0.1 {replication.port}") as second:
        primary, replica = redis_client.Redis(port=place.redis.port), redis_client.Redis(port=second.port)
        try:
            async with fleet(place, proxies=2, layout=layout) as workers:
                one, other, sender, ways = workers[:4]
                copied, late, new = events(0), events(BATCHES), events(2 * BATCHES)
                whole = BATCHES * EVENTS
                assert await sender.send_all(one, copied) == (whole, 0)
                await in_step(primary, replica)
                # From here on the replica misses everything. (One that merely stands still reads it from its socket when it goes on.)
                replication.cut_off = True
                assert await sender.send_all(one, late[: BATCHES // 2]) == (whole // 2, 0)
                assert await sender.send_all(other, late[BATCHES // 2 :]) == (whole // 2, 0)
                assert await sender.send(one, late[-1]) == (0, EVENTS)  # so the mark of the other's last call has arrived
                assert claims(replica) == whole < claims(primary), "the last claims are missing there"
                if is_dead:
                    place.redis.kill()
                replica.replicaof("NO", "ONE")

                if is_dead:
                    workers.lead_to(second)
                else:
                    workers.lead_to(second, ways[1])
                    # The other is at the new Redis and waits; one still claims at the old one, which knows all that was claimed.
                    await says(sender.session, other, "waiting for 1 of 2 writers")
                    assert await sender.send(one, late[-1]) == (0, EVENTS)
                    assert await sender.send(one, new[0]) == (EVENTS, 0)
                    workers.lead_to(second, ways[0])
                assert await sender.send_all(other, [*copied, *late]) == (0, 2 * whole), "no duplicate counts, none is refused for ever"
                assert await sender.send_all(one, [*copied, *late]) == (0, 2 * whole)
                accepted, duplicate = await sender.send_all(other, new)
                assert accepted + duplicate == whole and duplicate == (0 if is_dead else EVENTS)
                for role in (one, other):
                    assert '"status":"ready"' in await readiness(sender.session, role)
                assert replica.hget("parshall:join", "faster") == b"1", "what it had was not claimed again"
                await workers.all_is_rated(3 * whole)
        finally:
            primary.close()
            replica.close()
            await replication.stop()


async def test_connections_end_at_the_old_primary_again(place: Place) -> None:
    """It lives on, and was never told of the failover; by then one worker was killed and knows only what its journal does."""
    with services.redis_server() as second:
        async with fleet(place, proxies=1) as workers:
            one, other, sender, _ = workers[:4]
            before, between, after = events(0), events(BATCHES), events(2 * BATCHES)
            whole = BATCHES * EVENTS
            assert await sender.send_all(one, before) == (whole, 0)
            workers.lead_to(second)
            assert await sender.send_all(other, between[: BATCHES // 2]) == (whole // 2, 0)
            assert await sender.send_all(one, between[BATCHES // 2 :]) == (whole // 2, 0)

            other.kill()
            workers.lead_to(place.redis)
            other.start()
            assert await sender.send_all(one, [*before, *between]) == (0, 2 * whole), "the old primary knows nothing of the second half"
            assert await sender.send_all(other, [*between, *before]) == (0, 2 * whole)
            assert await sender.send_all(other, after) == (whole, 0)
            workers.lead_to(second)
            assert await sender.send_all(one, [*before, *between, *after]) == (0, 3 * whole), "there and back again"
            await workers.all_is_rated(3 * whole)


async def test_a_new_worker_ends_at_the_old_primary(place: Place) -> None:
    """As when it is added during a failover and its name server still gives the old address. It has nothing to compare but the registry."""
    way = TcpProxy(("127.0.0.1", place.redis.port))
    await way.start()
    with services.redis_server() as second:
        async with fleet(place, proxies=1) as workers:
            one, other, sender, _ = workers[:4]
            before, between = events(0), events(BATCHES)
            whole = BATCHES * EVENTS
            assert await sender.send_all(one, before) == (whole, 0)
            workers.lead_to(second)
            assert await sender.send_all(other, between) == (whole, 0)

            new = workers.worker("new", way.address)
            new.start()
            try:
                await says(sender.session, new, "waiting for 2 of 3 writers")
                workers.lead_to(second, way)
                assert await sender.send_all(new, [*before, *between]) == (0, 2 * whole)
                assert await sender.send_all(one, between) == (0, whole), "who was here all the time has not noticed"
                await workers.all_is_rated(2 * whole)
            finally:
                new.kill()
                await way.stop()


def claims(server: redis_client.Redis) -> int:
    keys = server.scan_iter("parshall:claims:*")
    return sum(int(server.hget(key, "claims") or server.hlen(key)) for key in keys)  # packed, or hashed


async def says(session: aiohttp.ClientSession, role: Role, what: str) -> None:
    """Wait until its readiness does; it may only just have been started."""
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientConnectionError):
                if what in await readiness(session, role):
                    return
            await asyncio.sleep(0.02)


async def readiness(session: aiohttp.ClientSession, role: Role) -> str:
    async with session.get(f"{role.url}/readyz") as answer:
        return await answer.text()
