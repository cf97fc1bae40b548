"""Fixtures that every kind of test may use: real servers, and places of one's own in them.

Belongs here: which server lives how long, how properties are explored. Must not know: how servers are started (tests/services.py), the
project's own code. A test that breaks a server starts one of its own with tests/services.py; those of the session are shared, and must
stay up.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import services

# The same examples in every run, however slow the machine; `--hypothesis-profile explore` looks further, and anew each time.
settings.register_profile("seeded", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("seeded")

# Whoever started us in the background may have had us ignore it, and the processes that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A user's output is buffered, and what is left in the buffer of a closed terminal is part of what is tested.
os.environ.pop("PYTHONUNBUFFERED", None)

_names = itertools.count(1)


@pytest.fixture(scope="session")
def kafka() -> Iterator[services.Kafka]:
    """One broker for the whole run. Use topics that begin with `topic_prefix`."""
    # Nobody kills this one: it may take its time before it counts as dead.
    with services.kafka_broker(broker__session__timeout__ms="20000") as broker:
        yield broker


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topic names that no other test has."""
    return f"test{next(_names)}."


@pytest.fixture(scope="session")
def postgres() -> Iterator[services.Postgres]:
    """One server for the whole run. Use `database`."""
    with services.postgres_server(fsync="off", max_connections="200") as server:
        yield server


@pytest.fixture
def database(postgres: services.Postgres) -> Iterator[str]:
    """The DSN of an empty database that only this test has."""
    name = f"test{next(_names)}"
    yield postgres.create_database(name)
    postgres.sql(f'drop database "{name}" with (force)')


@pytest.fixture
def redis() -> Iterator[services.Redis]:
    """A Redis of this test's own: a start takes a tenth of a second."""
    with services.redis_server() as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[services.Redis]:
    """A Valkey of this test's own."""
    with services.valkey_server() as server:
        yield server
