"""Redis and Kafka for the benchmarks, each with a port of its own, as the tests start them.

Belongs here: only that. How servers are configured is in tests/services.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Services(NamedTuple):
    redis_url: str
    redis_pid: int
    kafka: str
    kafka_pid: int


@contextmanager
def real_services() -> Iterator[Services]:
    from tests.services import kafka_broker, redis_server

    with redis_server() as redis, kafka_broker() as kafka:
        yield Services(redis.url, redis.pid, kafka.address, kafka.pid)
