"""GET /metrics while PostgreSQL does not answer: asked over HTTP, as Prometheus does, with a network between it and a real PostgreSQL.

Belongs here: what a scrape is answered, and what is left at PostgreSQL. Must not know: which metrics there are (tests/unit/test_docs.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import pytest

from ingest.connection import make_server
from ingest.http import HttpLimits
from ingest.metrics import metrics_routes
from parshall.rating_metrics import RatingCollector
from rater.consume import RaterCounts
from rater.postgres import open_pool
from tests import services
from tests.integration.http_edge import MemorySink, make_edge
from tests.tcp_proxy import TcpProxy

SCRAPE_TIMEOUT = aiohttp.ClientTimeout(total=10)  # Prometheus' own


class Scraped(NamedTuple):
    http: aiohttp.ClientSession
    url: str
    network: TcpProxy  # between it and PostgreSQL

    async def postgres_up(self) -> int:
        async with self.http.get(self.url) as answer:
            found = re.search(r"^parshall_postgres_up (\d)\.0$", await answer.text(), re.MULTILINE)
        assert found is not None
        return int(found[1])


@pytest.fixture(params=[None, RaterCounts(ready=True)], ids=["ingest", "rate"])
async def scraped(request: pytest.FixtureRequest, dsn: str, postgres: services.Postgres) -> AsyncIterator[Scraped]:
    """Of either role: the rater asks for its positions as well."""
    network = TcpProxy(postgres.folder / ".s.PGSQL.5432")
    await network.start()
    pool = await open_pool(f"postgresql://parshall@{network.address}{urlsplit(dsn).path}")
    collector = RatingCollector(pool, request.param)
    edge = make_edge(MemorySink(), HttpLimits())
    edge.routes.update(metrics_routes(collector, refresh=collector.refresh))
    server = make_server(edge)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    async with aiohttp.ClientSession(timeout=SCRAPE_TIMEOUT) as http:
        yield Scraped(http, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/metrics", network)
    listening.close()
    await server.shutdown(1)
    pool.terminate()
    await network.stop()


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not yet connected"])
async def test_a_postgresql_that_hangs_is_told_in_time_and_asked_once(scraped: Scraped, connected: bool) -> None:
    if connected:
        assert await scraped.postgres_up() == 1
    scraped.network.cut_off = True
    assert [await scraped.postgres_up() for _ in range(2)] == [0, 0]
    assert await asyncio.gather(*(scraped.postgres_up() for _ in range(5))) == [0] * 5
    assert scraped.network.connections == 1

    scraped.network.cut_off = False
    scraped.network.reset()  # what was lost on the way comes no more
    async with asyncio.timeout(30):
        while not await scraped.postgres_up():
            await asyncio.sleep(0.05)
    assert scraped.network.connections == 1


async def test_a_question_that_hung_is_answered_late_and_the_next_in_time(scraped: Scraped) -> None:
    scraped.network.delay_s = 3.0
    assert await scraped.postgres_up() == 0
    scraped.network.delay_s = 0.0
    async with asyncio.timeout(30):
        while not await scraped.postgres_up():
            await asyncio.sleep(0.05)
    assert scraped.network.connections == 1
