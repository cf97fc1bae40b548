"""The real writer over several real Redis: each has its tenants and numbers, one that is away stops only its own, and another list of them
is taken up only when all are empty.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import redis as redis_client

from buffer.disk import RealDisk
from buffer.flush_tuner import FlushTuner
from buffer.journal import read_journal
from buffer.journal_records import CallRecord, Opened
from dedupe.port import WrongLog
from ingest.calls import Outcome
from ingest.decode import Decoder
from ingest.sink import Unavailable
from ingest.writer import Writer
from parshall.data_folder import DataFolder
from parshall.settings import Settings
from parshall.wiring import clock_us, make_decoder, make_writer, meter_numbers, read_catalogue
from tests.services import Redis, redis_server

TENANTS = (1, 2, 3, 4, 5)
TIME = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Running(NamedTuple):
    writer: Writer
    decoder: Decoder

    async def send(self, tenant: int, *names: str, most_s: float = 30) -> Outcome:
        shared = {"specversion": "1.0", "type": "hit", "source": "s", "subject": "c", "time": TIME}
        body = json.dumps([{**shared, "id": name} for name in names]).encode()
        until = asyncio.get_running_loop().time() + most_s
        return await self.writer.submit(self.decoder.decode_batch(tenant, body, clock_us()), until)

    async def accepted(self, *names: str) -> list[int]:
        """Of these events, sent by every tenant."""
        return [(await self.send(tenant, *names)).accepted for tenant in TENANTS]

    async def until(self, *states: bool) -> None:
        """Which lanes are open."""
        async with asyncio.timeout(30):
            while tuple(lane.open for lane in self.writer.lanes) != states:
                await asyncio.sleep(0.01)


@pytest.fixture
def servers() -> Iterator[list[Redis]]:
    with ExitStack() as stack:
        yield [stack.enter_context(redis_server()) for _ in range(3)]


@asynccontextmanager
async def running(folder: Path, servers: Sequence[Redis]) -> AsyncIterator[Running]:
    settings = Settings.model_validate(
        {
            "redis": {"url": ",".join(server.url for server in servers)},
            "tenants": [{"name": f"t{number}", "number": number} for number in TENANTS],
            "meters": [{"name": "hits", "event_type": "hit", "aggregation": "count"}],
        }
    )
    data = DataFolder(str(folder / "data")).make()
    writer, counter_log = await make_writer(settings, data, data.journal(0), FlushTuner(3_600_000, 1_000_000))
    await writer.open()
    catalogue = read_catalogue(settings.meters)
    it = Running(writer, make_decoder(settings, catalogue, meter_numbers(catalogue, writer)))
    serving = asyncio.create_task(writer.run())
    opening = asyncio.create_task(it.until(*[True] * len(servers)))
    try:
        await asyncio.wait({serving, opening}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        yield it
        await writer.drain(30)
    finally:
        opening.cancel()
        serving.cancel()
        await asyncio.gather(serving, opening, return_exceptions=True)
        await counter_log.close()
        await writer.journal.close()


def empty(servers: Sequence[Redis]) -> None:
    for server in servers:
        with redis_client.Redis(port=server.port) as connection:
            connection.flushall()


def tenants_in(server: Redis) -> set[int]:
    with redis_client.Redis(port=server.port) as connection:
        return {int(key.rsplit(b":", 1)[1]) for key in connection.scan_iter("parshall:claims:*")}


async def test_each_redis_has_its_tenants_and_its_own_numbers(tmp_path: Path, servers: list[Redis]) -> None:
    async with running(tmp_path, servers) as it:
        assert await it.accepted("a", "b") == [2] * 5
        assert await it.accepted("b", "c") == [1] * 5
        assert [lane.appended for lane in it.writer.lanes] == [2, 4, 4]
    assert [tenants_in(server) for server in servers] == [{3}, {1, 4}, {2, 5}]
    records = list(read_journal(f"{tmp_path}/data/writers/0", RealDisk()))
    calls = [record for record in records if isinstance(record, CallRecord)]
    assert [call.number for call in calls] == list(range(1, 11))
    for shard in range(3):
        own = [call.in_shard for call in calls if call.shard == shard]
        assert own == list(range(1, len(own) + 1))
        assert {tenant % 3 for call in calls if call.shard == shard for tenant, _, _ in call.claims} == {shard}
    assert [record.shards for record in records if isinstance(record, Opened)] == [3]


async def test_the_horizon_of_a_journal_is_the_least_of_its_shards(tmp_path: Path, servers: list[Redis]) -> None:
    """A drained journal is retired by it: what lies above that of one shard can still be claimed there again."""
    async with running(tmp_path, servers) as it:
        for server, horizon_us in zip(servers, (9_000, 5_000, 7_000), strict=True):
            with redis_client.Redis(port=server.port) as connection:
                connection.set("parshall:horizon", horizon_us)
        assert await it.writer.learn_horizon() == 5_000
        assert [lane.history.horizon_us for lane in it.writer.lanes] == [9_000, 5_000, 7_000]


async def test_each_redis_is_told_the_end_of_its_own_calls(tmp_path: Path, servers: list[Redis]) -> None:
    async with running(tmp_path, servers) as it:
        await it.accepted("a", "b")
        ends = [lane.appended for lane in it.writer.lanes]
        incarnation = it.writer.incarnation.hex()
    assert ends == [1, 2, 2]
    for server, end in zip(servers, ends, strict=True):
        with redis_client.Redis(port=server.port) as connection:
            told = connection.hmget(f"parshall:w:{incarnation}", "mark", "closed")
        assert told == [b"%d" % end] * 2


async def test_a_redis_that_is_away_stops_its_tenants_only(tmp_path: Path, servers: list[Redis]) -> None:
    async with running(tmp_path, servers) as it:
        assert await it.accepted("a") == [1] * 5
        servers[1].kill()
        await it.until(True, False, True)
        assert it.writer.serves and not it.writer.ready
        for tenant in (1, 4):
            with pytest.raises(Unavailable, match="not ready"):
                await it.send(tenant, "b")
        for tenant in (2, 3, 5):
            assert (await it.send(tenant, "a", "b")).accepted == 1
        await it.writer.flusher.now()
        await asyncio.to_thread(servers[1].start)
        await it.until(True, True, True)
        assert await it.accepted("a", "b") == [1, 0, 0, 1, 0]


async def test_what_waits_for_a_redis_that_stands_still_gives_its_room_back(tmp_path: Path, servers: list[Redis]) -> None:
    async with running(tmp_path, servers) as it:
        servers[1].pause()
        sent = [asyncio.create_task(it.send(1, f"{n}", most_s=0.3)) for n in range(4)]
        for _ in range(3):  # two calls are under way, what comes then waits
            await asyncio.sleep(0)
            sent.append(asyncio.create_task(it.send(1, f"more {len(sent)}", most_s=0.3)))
        assert (await it.send(3, "a")).accepted == 1
        failed = await asyncio.gather(*sent, return_exceptions=True)
        assert all(isinstance(one, Unavailable) for one in failed)
        async with asyncio.timeout(10):
            while it.writer.waiting_events:
                await asyncio.sleep(0.01)
        servers[1].resume()


async def test_a_redis_that_stands_still_does_not_keep_what_others_counted_from_the_log(tmp_path: Path, servers: list[Redis]) -> None:
    async with running(tmp_path, servers) as it:
        servers[1].pause()
        sent = asyncio.create_task(it.send(1, "a"))
        assert (await it.send(2, "a")).accepted == 1
        with pytest.raises(TimeoutError):
            await it.writer.drain(1)
        assert it.writer.flusher.live_counters == 0 and [*it.writer.journal.records()]
        await asyncio.to_thread(servers[1].resume)
        assert (await sent).accepted == 1


async def test_another_list_is_taken_up_only_by_empty_redis(tmp_path: Path, servers: list[Redis]) -> None:
    """One becomes two, two become three, three become one: nothing counts twice, and no horizon or call of before is in the way."""
    known: list[str] = []
    for step, size in enumerate((1, 2, 3, 1, 2)):
        now = servers[:size]
        if step:
            with pytest.raises(WrongLog, match="set of shards"):
                async with running(tmp_path, now):
                    pass
            empty(servers)
        async with running(tmp_path, now) as it:
            assert await it.accepted(*known, f"new {step}") == [1] * 5, f"{size} Redis"
            known.append(f"new {step}")


async def test_the_log_says_what_a_flush_covers_in_each_shard(tmp_path: Path, servers: list[Redis]) -> None:
    async with running(tmp_path, servers[:2]) as it:
        await it.accepted("a")
        await it.writer.flusher.now()
        assert it.writer.flusher.live_counters == 0
        headers = [dict(record.headers) for record in it.writer.journal.records()]
        assert headers and {header["shards"] for header in headers} == {b"2,3"}
        assert {header["through"] for header in headers} == {b"%s:5" % it.writer.incarnation.hex().encode()}
    async with running(tmp_path / "alone", servers[2:]) as it:
        await it.accepted("a")
        await it.writer.flusher.now()
        assert not any("shards" in dict(record.headers) for record in it.writer.journal.records())
