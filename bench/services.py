"""Redis, Kafka and PostgreSQL for the benchmarks, each with a port of its own, as the tests start them.

Belongs here: only that. How servers are configured is in tests/services.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Services(NamedTuple):
    redis_url: str
    redis_pid: int
    kafka: str
    kafka_pid: int


@contextmanager
def real_redis() -> Iterator[tuple[str, int]]:
    """(URL, process id)"""
    from tests.services import redis_server

    with redis_server() as redis:
        yield redis.url, redis.pid


@contextmanager
def redis_of(program: Path) -> Iterator[tuple[str, int]]:
    """(URL, process id) of another program than that of this machine: a Redis, or what speaks its protocol."""
    from tests.services import redis_server

    with redis_server(program=program) as redis:
        yield redis.url, redis.pid


@contextmanager
def real_valkey() -> Iterator[tuple[str, int]]:
    """(URL, process id)"""
    from tests.services import valkey_server

    with valkey_server() as valkey:
        yield valkey.url, valkey.pid


@contextmanager
def mortal_redis() -> Iterator[tuple[str, int, Callable[[], None]]]:
    """(URL, process id, what kills it)"""
    from tests.services import redis_server

    with redis_server() as redis:
        yield redis.url, redis.pid, redis.kill


@contextmanager
def real_postgres() -> Iterator[str]:
    """DSN of an empty database"""
    from tests.services import postgres_server

    with postgres_server() as postgres:
        yield postgres.create_database("bench")


@contextmanager
def postgres_and_pid() -> Iterator[tuple[str, int]]:
    """(DSN of an empty database, process id of the postmaster)"""
    from tests.services import postgres_server

    with postgres_server() as postgres:
        yield postgres.create_database("bench"), postgres.pid


@contextmanager
def kafka_and_folder() -> Iterator[tuple[str, Path]]:
    """(bootstrap address, where the partitions lie)"""
    from tests.services import kafka_broker

    with kafka_broker() as kafka:
        yield kafka.address, kafka.folder / "data"


@contextmanager
def real_kafka() -> Iterator[tuple[str, int]]:
    """(bootstrap address, process id)"""
    from tests.services import kafka_broker

    with kafka_broker() as kafka:
        yield kafka.address, kafka.pid


@contextmanager
def real_services() -> Iterator[Services]:
    with real_redis() as (redis_url, redis_pid), real_kafka() as (kafka, kafka_pid):
        yield Services(redis_url, redis_pid, kafka, kafka_pid)
