"""Three real Redis share the tenants. One of them dies under load and a replica without its last claims takes its place: its tenants wait,
those of the others are answered all the while, and the oracle agrees about all.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import redis as redis_client

from tests import services
from tests.acceptance.edge import PROJECT, Api, Role, make_key, wait_rated, write_config
from tests.acceptance.exactness import make_traffic
from tests.acceptance.fleet import compare_fleet, services_sections
from tests.acceptance.senders import VERDICTS, Record, Route, Sending
from tests.acceptance.test_redis_failover import claims, in_step
from tests.tcp_proxy import TcpProxy

EVENTS, EVENTS_PER_S = 6000, 400
SIZES = (1, 5, 20, 50)
DEADLINE_MS = 20_000
# By their numbers (tests/acceptance/metered.toml) demo, 1, is in the shard that fails over, acme, 77, in the last, a third in the first.
FAILING = 1
THIRD = '[[tenants]]\nname = "third"\nnumber = 3\n'


async def test_a_shard_fails_over_and_only_its_tenants_wait(tmp_path: Path, own_kafka: services.Kafka, database: str) -> None:
    now = datetime.now(UTC)
    with ExitStack() as stack:
        shards = [stack.enter_context(services.redis_server()) for _ in range(3)]
        failing = shards[FAILING]
        replication, *proxies = [TcpProxy(("127.0.0.1", failing.port)) for _ in range(3)]
        for proxy in (replication, *proxies):
            await proxy.start()
        # In a thread, like all that waits for a server behind a proxy: this loop moves its bytes.
        replicating = services.redis_server(replicaof=f"127.0.0.1 {replication.port}")
        spare = await asyncio.to_thread(stack.enter_context, replicating)
        third_key, third_section = make_key("third")
        urls = [",".join([shards[0].url, f"redis://{proxy.address}", shards[2].url]) for proxy in proxies]
        sections = services_sections(redis=urls[0], kafka=own_kafka.address, postgres=database) + THIRD + third_section
        keys = write_config(tmp_path, now=now, deadline_ms=DEADLINE_MS, more=sections)
        traffic = make_traffic(tmp_path, 7, EVENTS, now)
        config = ["--config", str(tmp_path / "parshall.toml")]
        workers = [
            Role(f"w{n}", ["ingest", *config, "--data", str(tmp_path / f"data-{n}"), "--redis", url], tmp_path)
            for n, url in enumerate(urls)
        ]
        rater = Role("rater", ["rate", *config], tmp_path)
        try:
            for role in (rater, *workers):
                role.start()
            await asyncio.gather(*(worker.wait_ready() for worker in workers))
            load = Load(keys, Sending(seed=7, senders=8, sizes=SIZES, again_per_mille=100, events_per_s=EVENTS_PER_S), workers)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
                for worker in workers:
                    await all_open(session, worker)
                steady = Steady(session, third_key, workers, now)
                async with asyncio.TaskGroup() as tasks:
                    sent = [tasks.create_task(load.send(traffic, tenant)) for tenant in keys]
                    trickle = tasks.create_task(steady.run(lambda: all(one.done() for one in sent)))
                    tasks.create_task(fail_over(failing, spare, replication, proxies, workers, load, steady, session))
                assert trickle.done()
                await load.send_again(traffic, "demo")
                await load.send_ordered(traffic)
                answered = load.records["acme"].tries
                assert set(answered) <= set(VERDICTS), f"acme was refused: {answered} {load.records['acme'].refusals}"
                await Api(session, workers[0].url, third_key).flush_now()
                await Api(session, workers[1].url, third_key).flush_now()
                third = Api(session, workers[0].url, third_key)
                ledger = (await wait_rated({"third": third}, {"third": steady.accepted}))["third"]
                assert ledger["rated"] == steady.accepted
            _, differences = await compare_fleet(tmp_path, workers, keys, load.together(), now, check=False)
            assert not differences, differences
            await asyncio.to_thread(check_commands, tmp_path, urls[1])
        finally:
            for role in (rater, *workers):
                role.kill()
            for proxy in (replication, *proxies):
                await proxy.stop()


class Load:
    """The traffic of the oracle, each tenant recorded by itself."""

    def __init__(self, keys: dict[str, str], sending: Sending, workers: Sequence[Role]) -> None:
        self.records = {tenant: Record() for tenant in keys}
        self._keys = keys
        self._sending = sending
        pick = random.Random(7)
        self._route: Route = lambda *_: [pick.choice(workers).url]

    async def send(self, traffic: Any, tenant: str) -> None:
        pieces = [piece for piece in self._sending.pieces(traffic) if piece.tenant == tenant]
        await self._sending.send_all(pieces, self._keys, self.records[tenant], self._route)

    async def send_again(self, traffic: Any, tenant: str) -> None:
        """All that was answered before: nothing of it counts again, whichever Redis it was claimed in."""
        again = Record()
        await replace(self._sending, events_per_s=None).send_all(
            [piece for piece in self._sending.pieces(traffic) if piece.tenant == tenant], self._keys, again, self._route
        )
        self.records["again"] = again

    async def send_ordered(self, traffic: Any) -> None:
        ordered = Record()
        await self._sending.send_ordered(traffic, self._keys, ordered, self._route)
        self.records["in order"] = ordered

    def together(self) -> Record:
        return Record(sent=[one for record in self.records.values() for one in record.sent])


class Steady:
    """One tenant that sends a few new events at a time, to one worker and then the other, and is never refused."""

    def __init__(self, session: aiohttp.ClientSession, key: str, workers: Sequence[Role], now: datetime) -> None:
        self.accepted = 0
        self._session = session
        self._headers = {"Authorization": f"Bearer {key}"}
        self._workers = workers
        self._time = f"{now:%Y-%m-%dT%H:%M:%SZ}"

    async def run(self, is_over: Callable[[], bool]) -> None:
        number = 0
        while not is_over():
            body = [self._event(f"{number}-{n}") for n in range(3)]
            worker = self._workers[number % len(self._workers)]
            async with self._session.post(f"{worker.url}/v1/events", json=body, headers=self._headers) as answer:
                told = await answer.json(content_type=None)
                assert answer.status == 200 and told["accepted"] == 3, told
            self.accepted += 3
            number += 1
            await asyncio.sleep(0.01)

    def _event(self, name: str) -> dict[str, Any]:
        data = {"region": "eu", "zone": "1", "bytes": 7}
        return {"specversion": "1.0", "type": "http.request", "source": "s", "id": name, "time": self._time, "subject": "c", "data": data}


async def fail_over(
    old: services.Redis,
    new: services.Redis,
    replication: TcpProxy,
    proxies: Sequence[TcpProxy],
    workers: Sequence[Role],
    load: Load,
    steady: Steady,
    session: aiohttp.ClientSession,
) -> None:
    demo, acme = load.records["demo"], load.records["acme"]
    await until(lambda: len(demo.sent) > 20 and len(acme.sent) > 20)
    primary, replica = redis_client.Redis(port=old.port), redis_client.Redis(port=new.port)
    try:
        async with asyncio.timeout(60):
            await in_step(primary, replica)
        replication.cut_off = True  # from here on the replica misses everything
        before = len(demo.sent)
        await until(lambda: len(demo.sent) > before + 20)
        assert claims(primary) > claims(replica)
        old.kill()
        await until(lambda: sum(demo.refusals.values()) > 10)
        answered = len(acme.sent), steady.accepted, len(demo.sent)
        await until(lambda: len(acme.sent) > answered[0] + 20 and steady.accepted > answered[1] + 60)
        assert len(demo.sent) == answered[2], "nobody can know whether an event of demo is new"
        for worker in workers:
            assert await states(session, worker) == ["open", "disconnected", "open"]
            assert await text(session, worker, "/readyz") == b'{"status":"ready"}'
        replica.replicaof("NO", "ONE")
        for proxy in proxies:
            proxy.server = ("127.0.0.1", new.port)
            proxy.reset()
        for worker in workers:
            await all_open(session, worker)
        assert replica.hget("parshall:join", "faster") == b"1", "what it had was not claimed again"
    finally:
        primary.close()
        replica.close()


async def until(condition: Callable[[], bool], most_s: float = 60) -> None:
    async with asyncio.timeout(most_s):
        while not condition():
            await asyncio.sleep(0.01)


async def text(session: aiohttp.ClientSession, worker: Role, path: str) -> bytes:
    async with session.get(worker.url + path) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def states(session: aiohttp.ClientSession, worker: Role) -> list[str]:
    """Of the shards, as the metrics tell."""
    found = {}
    for line in (await text(session, worker, "/metrics")).decode().splitlines():
        if line.startswith("parshall_claims_state{") and line.endswith(" 1.0"):
            labels = dict(label.split("=") for label in line[len("parshall_claims_state{") : line.index("}")].split(","))
            found[int(labels["shard"].strip('"'))] = labels["state"].strip('"')
    return [found[shard] for shard in sorted(found)]


async def all_open(session: aiohttp.ClientSession, worker: Role) -> None:
    async with asyncio.timeout(60):
        while await states(session, worker) != ["open"] * 3:
            await asyncio.sleep(0.02)


def check_commands(folder: Path, urls: str) -> None:
    """The operator sees every writer in every shard, and the audit finds no difference."""
    said = command("writer", "list", "--config", str(folder / "parshall.toml"), "--redis", urls, "--json")
    rows, _ = json.JSONDecoder().raw_decode(said)
    assert [row["shard"] for row in rows] == [0, 1, 2] * 2 and all(row["joined"] for row in rows), said
    journals = ["--data", str(folder / "data-0"), "--journal", str(folder / "data-1/writers/0")]
    command("audit", "--config", str(folder / "parshall.toml"), *journals)


def command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "parshall", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
