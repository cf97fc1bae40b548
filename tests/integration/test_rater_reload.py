"""What a rater makes of a configuration that was read again: what is refused, what must wait, what is in force from then on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from buffer.counters import MeterDefinition
from ingest.auth import Keys, hash_key
from ingest.sink import Unavailable
from parshall import rater_reload
from parshall.rater_reload import RaterReload
from parshall.reload import Refused
from parshall.settings import Settings, load_settings
from parshall.wiring import make_configured
from rater.consume import Rater
from rater.postgres import Ledger
from tests.integration.rating import MINUTES, ListSource, Writer

FILE = f"""
[[tenants]]
name = "demo"
number = 1
[[keys]]
tenant = "demo"
hash = "{hash_key("new-key")}"
[[meters]]
name = "calls"
event_type = "call"
aggregation = "count"
window = "1m"
"""


@pytest.fixture
def read(tmp_path: Path) -> Settings:
    (tmp_path / "parshall.toml").write_text(FILE)
    return load_settings(str(tmp_path / "parshall.toml"), environment={}, options={})


class Edge:
    keys = Keys([])
    meters: tuple[MeterDefinition, ...] = ()


@pytest.fixture
async def rater(ledger: Ledger) -> Rater:
    """Of a database in which `calls` is counted by the minute."""
    await ledger.apply("log", Writer(1).flush([(MINUTES, "demo", "s", 60, (), 1, 1)]))
    return Rater(ListSource(), ledger, clock_us=lambda: 0, late_s=0)


async def test_what_was_read_again_is_in_force(rater: Rater, dsn: str, read: Settings) -> None:
    edge = Edge()
    reload = RaterReload(rater, edge, dsn)
    await reload.check(read)
    assert edge.meters == () and edge.keys.principal("Bearer new-key") is None, "others may refuse it yet"
    await reload.follow(read)
    assert [meter.name for meter in edge.meters] == ["calls"]
    assert edge.keys.principal("Bearer new-key") is not None
    assert rater.configured == make_configured(read)


async def test_what_contradicts_what_is_counted_is_refused_and_leaves_no_connection(
    rater: Rater, dsn: str, pool: asyncpg.Pool, read: Settings
) -> None:
    contrary = read.model_copy(update={"meters": [{**read.meters[0], "window": "1h"}]})
    connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = await pool.fetchval(connections)
    with pytest.raises(Refused, match="the meter 'calls' has window_s 3600 in the catalogue and 60 in the counters of that name"):
        await RaterReload(rater, Edge(), dsn).check(contrary)
    async with asyncio.timeout(20):
        while await pool.fetchval(connections) != before:
            await asyncio.sleep(0.01)


async def test_where_postgresql_does_not_answer_it_is_asked_for_once_more(
    rater: Rater, dsn: str, pool: asyncpg.Pool, read: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="PostgreSQL cannot say what is counted and charged with what now") as away:
        await RaterReload(rater, Edge(), "postgresql://127.0.0.1:1/away").check(read)
    assert away.value.retry_after_s == 5
    monkeypatch.setattr(rater_reload, "_CHECK_S", 0.2)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE meters IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="The rater is charging months again, for new prices") as busy:
            await RaterReload(rater, Edge(), dsn).check(read)
    assert busy.value.retry_after_s == 30


async def test_what_stays_as_it_is_needs_no_answer_of_postgresql(rater: Rater, read: Settings) -> None:
    rater.use(make_configured(read))
    await RaterReload(rater, Edge(), "postgresql://127.0.0.1:1/away").check(read)
