"""The routes that read, over HTTP: what a worker's ledger makes of several sources, and what it says when one of them is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping

import aiohttp
import asyncpg
import pytest

from ingest.connection import make_server
from ingest.http import HttpLimits
from ingest.snapshot import TenantLedger, WriterSnapshot
from parshall.read_api import ledger_routes, rated_routes
from rater.postgres import Ledger
from tests.integration.http_edge import MemorySink, make_edge
from tests.integration.rating import Writer
from tests.integration.test_rater import LOG, api_at, at, some


class Node:
    """Two workers whose snapshots a test decides; while they are asked, something else may happen."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.workers: dict[int, WriterSnapshot | None] = {}
        self.meanwhile: list[Coroutine[object, object, object]] = []

    async def snapshots(self) -> Mapping[int, WriterSnapshot | None]:
        found = dict(self.workers)
        while self.meanwhile:
            await self.meanwhile.pop()
        return found

    async def get(self, path: str) -> tuple[int, dict[str, object]]:
        async with self.http.get(path, headers={"Authorization": "Bearer demo-key"}) as answer:
            return answer.status, await answer.json(content_type=None)

    async def ledger(self) -> dict[str, object]:
        status, answer = await self.get("/v1/ledger")
        assert status == 200
        (mine,) = answer["tenants"].values()  # type: ignore[attr-defined]
        found: dict[str, object] = mine
        return found


@pytest.fixture
async def node(pool: asyncpg.Pool) -> AsyncIterator[Node]:
    edge = make_edge(MemorySink(), HttpLimits())
    server = make_server(edge)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}") as http:
        opened = Node(http)
        edge.routes.update({**rated_routes(api_at(pool)), **ledger_routes(api_at(pool), opened.snapshots)})
        yield opened
    listening.close()
    await server.shutdown(1)


def snapshot(flushed: int) -> WriterSnapshot:
    ledger = TenantLedger(received=9, accepted=flushed, flushed=flushed, rejected={"too_late": 1, "conflict": 2})
    return WriterSnapshot(writer="ab" * 16, worker=0, tenants={"demo": ledger, "other": TenantLedger(received=1000)})


async def test_what_is_rated_never_looks_like_more_than_what_was_flushed(node: Node, ledger: Ledger) -> None:
    """Also where more is flushed and rated while the workers are asked."""
    writer = Writer(1)
    await ledger.apply(LOG, at(writer.flush(some(), {"demo": {"accepted": 3}})))
    node.workers = {0: snapshot(flushed=3), 1: snapshot(flushed=0)}
    more = ledger.apply(LOG, at(writer.flush(some(), {"demo": {"accepted": 4}}), start=1))
    node.meanwhile = [more]
    found = await node.ledger()
    assert (found["received"], found["accepted"], found["rejected"], found["flushed"], found["rated"]) == (18, 3, 6, 3, 3)
    assert (await node.ledger())["rated"] == 7


async def test_of_a_worker_that_does_not_answer_no_number_is_made_up(node: Node) -> None:
    node.workers = {0: snapshot(flushed=3), 1: None, 2: snapshot(flushed=1)}
    found = await node.ledger()
    assert found["unknown_workers"] == [1] and found["rated"] == 0
    assert [found[name] for name in ("received", "accepted", "duplicate", "rejected", "unanswered", "flushed", "buffered")] == [None] * 7


async def test_without_postgresql_what_is_rated_is_not_known(node: Node, pool: asyncpg.Pool) -> None:
    node.workers = {0: snapshot(flushed=3)}
    await pool.close()
    found = await node.ledger()
    assert (found["flushed"], found["rated"]) == (3, None)
    assert (await node.get("/v1/usage?meter=requests"))[0] == 503


async def test_a_parameter_that_is_given_twice_is_refused(node: Node) -> None:
    for path in ("/v1/usage?meter=requests&subject=a&subject=b", "/v1/charges?subject=a&subject=b"):
        status, answer = await node.get(path)
        assert (status, answer["detail"]) == (400, "subject is given twice; allowed: once")
    status, answer = await node.get("/v1/ledger?tenant=other")
    assert (status, answer["detail"]) == (400, "The ledger takes no parameters.")
