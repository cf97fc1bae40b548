"""What tests over a real PostgreSQL share: a database with the rater's tables, and who asks it. Must not know: what is rated."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from rater.migrate import migrate
from rater.postgres import Ledger, open_pool


@pytest.fixture
async def dsn(database: str) -> str:
    """A database of this test's own, with all tables."""
    await migrate(database)
    return database


@pytest.fixture
async def ledger(dsn: str) -> AsyncIterator[Ledger]:
    opened = Ledger(dsn)
    yield opened
    await opened.close()


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    async with await open_pool(dsn) as opened:
        yield opened
