"""`parshall writer list | drain | lost` as the operator uses them: a worker is killed for good, with and without its disk."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis as redis_client

from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from tests import services
from tests.acceptance.edge import PROJECT, Api, Role, wait_rated, write_config

LATE_US = 4 * 10**15  # a horizon beyond every event time


class Edge:
    """Two workers that share Redis, Kafka and PostgreSQL, and a rater. Nothing is flushed unless it is told to."""

    def __init__(self, folder: Path, shards: Sequence[services.Redis], kafka: services.Kafka, database: str) -> None:
        self.shards = shards
        self.redis = shards[-1]  # it has the tenant that sends
        self.folder = folder
        self.kafka = kafka
        urls = ",".join(redis.url for redis in shards)
        layout = "hashed" if len(shards) == 1 else "packed"
        more = f'\n[redis]\nurl = "{urls}"\nlayout = "{layout}"\n[postgres]\ndsn = "{database}"\n[flush]\ninterval_ms = 3600000\n'
        more += f'[kafka]\nbootstrap = "{kafka.address}"\naccept_weak = true\ncreate_topics = true\n'
        self.key = write_config(folder, now=datetime.now(UTC), deadline_ms=1000, more=more)["demo"]
        self.config = str(folder / "parshall.toml")
        self.gone, self.stays = (
            Role(name, ["ingest", "--config", self.config, "--data", str(folder / name)], folder) for name in ("gone", "stays")
        )
        self.rater = Role("rater", ["rate", "--config", self.config], folder)
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60))

    async def start(self) -> None:
        for role in (self.rater, self.gone, self.stays):
            role.start()
        await asyncio.gather(self.gone.wait_ready(), self.stays.wait_ready())

    async def end(self) -> None:
        await self.session.close()
        for role in (self.rater, self.gone, self.stays):
            role.kill()

    # ---- what people do

    def run(self, *command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "parshall", *command, "--config", self.config], cwd=PROJECT, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said and "defect" not in said, said
        return done.returncode, said

    async def writer(self, *command: str) -> tuple[int, str]:
        return await asyncio.to_thread(self.run, "writer", *command)

    async def listed(self) -> dict[str, dict[str, Any]]:
        code, said = await self.writer("list", "--json")
        assert code == 0, said
        rows, _ = json.JSONDecoder().raw_decode(said)  # behind it: what went to standard error
        assert [row["shard"] for row in rows] == list(range(len(self.shards))) * (len(rows) // len(self.shards))
        return {row["writer"]: row for row in rows}  # in the last shard

    async def send(self, role: Role, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Until it is answered."""
        headers = {"Authorization": f"Bearer {self.key}"}
        deadline = time.monotonic() + 60
        while True:
            async with self.session.post(f"{role.url}/v1/events", json=events, headers=headers) as answer:
                body: dict[str, Any] = await answer.json(content_type=None)
                if answer.status != 503:
                    return body
            assert time.monotonic() < deadline, body
            await asyncio.sleep(0.05)

    async def ready(self, role: Role) -> tuple[int, str]:
        async with self.session.get(f"{role.url}/readyz") as answer:
            return answer.status, await answer.text()

    async def until_ready(self, role: Role, condition: Callable[[int, str], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition(*await self.ready(role)):
                await asyncio.sleep(0.05)

    async def flush(self, role: Role) -> None:
        await Api(self.session, role.url, self.key).flush_now()

    async def counted(self, events: int) -> None:
        """That many are rated."""
        ledgers = await wait_rated({"demo": Api(self.session, self.stays.url, self.key)}, {"demo": events}, 60)
        assert ledgers["demo"]["rated"] == events

    async def audit(self, *journals: Path) -> str:
        more = [word for journal in journals for word in ("--journal", str(journal))]
        code, said = await asyncio.to_thread(self.run, "audit", "--data", str(self.folder / "stays"), *more)
        assert code == 0, said
        return said

    def redis_cli(self, *words: str | int) -> Any:
        with redis_client.Redis(port=self.redis.port) as connection:
            return connection.execute_command(*words)

    def horizon_passes(self, horizon_us: int) -> None:
        for redis in self.shards:
            with redis_client.Redis(port=redis.port) as connection:
                connection.set("parshall:horizon", horizon_us)

    async def redis_restarts_empty(self) -> None:
        for redis in self.shards:
            await asyncio.to_thread(redis.kill)
        for redis in self.shards:
            await asyncio.to_thread(redis.start)


@pytest.fixture(params=[1, 2], ids=["one Redis, hashed", "two shards, packed"])
async def edge(request: pytest.FixtureRequest, tmp_path: Path, own_kafka: services.Kafka, database: str) -> AsyncIterator[Edge]:
    with ExitStack() as stack:
        shards = [stack.enter_context(services.redis_server()) for _ in range(request.param)]
        edge = Edge(tmp_path, shards, own_kafka, database)
        try:
            await edge.start()
            yield edge
        finally:
            await edge.end()


def events(first: int, last: int) -> list[dict[str, Any]]:
    time_ = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    data = {"region": "eu", "zone": "1", "bytes": 7}
    return [
        {"specversion": "1.0", "type": "http.request", "source": "s", "id": str(n), "time": time_, "subject": "c", "data": data}
        for n in range(first, last)
    ]


def some(counts: dict[str, Any]) -> tuple[int, int, int]:
    return counts["accepted"], counts["duplicate"], counts["rejected"]


async def test_a_journal_is_drained_elsewhere(edge: Edge) -> None:
    for command, told in (
        (("lost", "abc"), "32 hexadecimal digits"),
        (("lost", "ab" * 16), "No writer"),
        (("drain", "/nowhere"), "There is no journal in /nowhere"),
    ):
        code, said = await edge.writer(*command)
        assert code == 2 and told in said, said

    journal = edge.folder / "gone" / "writers" / "0"
    sent = events(0, 50)
    assert some(await edge.send(edge.gone, sent)) == (50, 0, 0)
    code, said = await edge.writer("drain", str(journal))
    assert code == 3 and "open in another process" in said
    edge.gone.kill()

    code, said = await edge.writer("drain", str(journal))
    assert code == 0 and "is drained" in said and f"Keep {journal}" in said, said
    await edge.counted(50)
    assert some(await edge.send(edge.stays, sent)) == (0, 50, 0)
    await edge.flush(edge.stays)
    assert "The three equations hold" in await edge.audit(journal)
    assert sorted(row["state"] for row in (await edge.listed()).values()) == ["member", "member"]

    # Redis is new: the others wait for what the drained journal holds, and running the command again gives it.
    await edge.redis_restarts_empty()
    await edge.until_ready(edge.stays, lambda status, text: status == 503 and "waiting for 1 of 2 writers" in text)
    code, said = await edge.writer("drain", str(journal))
    assert code == 0 and "is drained" in said, said
    await edge.until_ready(edge.stays, lambda status, _: status == 200)
    assert some(await edge.send(edge.stays, sent)) == (0, 50, 0)

    # Its claims have grown old, as a day and more would do: nobody needs the journal any more.
    edge.horizon_passes(LATE_US)
    code, said = await edge.writer("drain", str(journal))
    assert code == 0 and "drained and retired" in said, said
    assert sorted(row["state"] for row in (await edge.listed()).values()) == ["member", "retired"]
    code, said = await edge.writer("drain", str(journal))
    assert code == 0 and "retired already" in said
    await edge.counted(50)


async def test_a_disk_is_lost(edge: Edge) -> None:
    flushed, unflushed = events(0, 30), events(30, 50)
    assert some(await edge.send(edge.gone, flushed)) == (30, 0, 0)
    await edge.flush(edge.gone)
    assert some(await edge.send(edge.gone, unflushed)) == (20, 0, 0)
    assert some(await edge.send(edge.stays, events(50, 60))) == (10, 0, 0)
    await edge.flush(edge.stays)
    assert some(await edge.send(edge.stays, unflushed)) == (0, 20, 0)  # the mark has arrived: these were on its disk
    (gone,) = [row["writer"] for row in (await edge.listed()).values() if row["mark"] == 2 and await claimed_by(edge, row) == 50]
    edge.gone.kill()
    died = datetime.now(UTC)
    shutil.rmtree(edge.folder / "gone")

    # Had its mark not reached Redis, nobody could tell whether they were answered.
    incarnation = (await edge.listed())[gone]["incarnation"]
    edge.redis_cli("HSET", f"parshall:w:{incarnation}", "mark", 1)
    code, said = await edge.writer("lost", gone)
    assert code == 0 and "In doubt: events of its last moments" in said and "20 of tenant demo. When they are sent again" in said, said
    assert "not all of it is in the log: 30 of tenant demo" in said and "Lost:" not in said, said
    edge.redis_cli("HSET", f"parshall:w:{incarnation}", "mark", 2)

    code, said = await edge.writer("lost", gone)
    assert code == 0 and "at most so many events that may have been answered and are in no flush: 20 of tenant demo" in said, said
    assert "Nothing was done yet" in said
    assert {row["state"] for row in (await edge.listed()).values()} == {"member"}
    assert "so are all new ones until then" in said and "--dead-since" in said, said
    code, said = await edge.writer("lost", gone, "--dead-since", "2020-02-30")
    assert code == 2 and "is not a time with an offset" in said, said
    code, said = await edge.writer("lost", gone, "--dead-since", f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}")
    assert code == 2 and "is not over yet" in said, said
    code, said = await edge.writer("lost", gone, "--i-accept-loss", "--dead-since", died.isoformat())
    assert code == 0 and "is retired" in said, said
    assert await horizon_of(edge, gone) == died + timedelta(seconds=86400 + 300)  # max_skew_s of the configuration, and the clocks' margin
    assert (await edge.listed())[gone]["state"] == "lost"
    code, said = await edge.writer("lost", gone, "--i-accept-loss")
    assert code == 0 and "20 of tenant demo" in said and not said.rstrip().endswith(".."), said

    assert some(await edge.send(edge.stays, [*flushed, *unflushed])) == (0, 50, 0)
    await edge.flush(edge.stays)
    await edge.counted(40)
    told = await edge.audit()
    assert "Declared lost" in told and "20 of tenant demo" in told and "The three equations hold" in told

    # Without its journal nobody can tell what it counted: after a rebuild events of that time are refused, never counted twice.
    await edge.redis_restarts_empty()
    await edge.until_ready(edge.stays, lambda status, text: status == 200 or "waiting for" in text)
    await edge.until_ready(edge.stays, lambda status, _: status == 200)
    answer = await edge.send(edge.stays, flushed)
    assert some(answer) == (0, 0, 30) and {error["code"] for error in answer["errors"]} == {"too_late"}


async def horizon_of(edge: Edge, writer: str) -> datetime:
    log = KafkaLog(KafkaCluster(edge.kafka.address, accept_unsafe=True))
    await log.open()
    retired = (await log.registry()).writers[bytes.fromhex(writer)]
    await log.close()
    assert retired is not None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=retired.horizon_us)


async def claimed_by(edge: Edge, row: dict[str, Any]) -> int:
    """How many claims in Redis carry the last incarnation of this writer."""
    found = 0
    with redis_client.Redis(port=edge.redis.port) as connection:
        number = int(connection.hget(f"parshall:w:{row['incarnation']}", "number") or 0)
        for key in connection.keys("parshall:claims:*"):
            for field, content in connection.hgetall(key).items():
                if len(field) == 12:  # hashed
                    found += content.startswith(number.to_bytes(4, "big"))
                elif len(field) == 4:  # packed: digest and value, one after the other
                    found += sum(content[at : at + 4] == number.to_bytes(4, "big") for at in range(12, len(content), 24))
    return found
