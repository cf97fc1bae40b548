"""The servers of tests/services.py themselves: they start, keep their data over kill -9, pause, and die with the test process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests import services

REDIS_LIKE = [services.redis_server, services.valkey_server]


@pytest.mark.parametrize("server", REDIS_LIKE)
def test_redis_keeps_its_data_over_kill_9(server: Callable[..., AbstractContextManager[services.Redis]]) -> None:
    with server(appendonly="yes", appendfsync="always") as redis:
        assert redis.ask("SET", "key", "value") == b"+OK"
        redis.kill()
        with pytest.raises(OSError):
            redis.ask("GET", "key")
        redis.start()
        assert redis.ask("STRLEN", "key") == b":5"


@pytest.mark.parametrize("server", REDIS_LIKE)
def test_redis_forgets_without_a_file(server: Callable[..., AbstractContextManager[services.Redis]]) -> None:
    with server() as redis:
        redis.ask("SET", "key", "value")
        redis.restart()
        assert redis.ask("STRLEN", "key") == b":0"


def test_a_paused_server_answers_when_resumed(redis: services.Redis) -> None:
    redis.pause()
    with pytest.raises(TimeoutError):
        redis.ask("PING", timeout_s=0.2)
    redis.resume()
    assert redis.ask("PING") == b"+PONG"


async def test_kafka_keeps_records_over_kill_9_and_a_restart_from_a_thread(topic_prefix: str) -> None:
    topic = f"{topic_prefix}counters"
    with services.kafka_broker(partitions=2) as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
        await admin.start()
        await admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)])
        await admin.close()
        async with AIOKafkaProducer(bootstrap_servers=broker.address, acks="all") as producer:
            await producer.send_and_wait(topic, b"value", partition=1)
        await asyncio.to_thread(broker.restart)
        consumer = AIOKafkaConsumer(bootstrap_servers=broker.address, auto_offset_reset="earliest")
        await consumer.start()
        consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
        record = await consumer.getone()
        await consumer.stop()
        assert (record.partition, record.value) == (1, b"value")
        assert broker.running


async def test_postgres_keeps_rows_over_kill_9() -> None:
    with services.postgres_server() as server:
        dsn = server.create_database("mine")
        for round_number in range(2):
            connection = await asyncpg.connect(dsn)
            await connection.execute("create table if not exists kept (n int); insert into kept values (1)")
            assert await connection.fetchval("select count(*) from kept") == round_number + 1
            server.restart()  # the connection is still open: its backend must be gone before the start
            connection.terminate()


async def test_each_test_gets_an_empty_database(database: str) -> None:
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    await connection.close()


def test_servers_die_with_the_process_that_started_them() -> None:
    program = (
        "import os, sys, time; from tests import services\n"
        "with services.redis_server() as redis, services.postgres_server() as postgres:\n"
        "    print(redis.pid, postgres.pid, redis.folder, postgres.folder, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=services.PROJECT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        *pids, redis_folder, postgres_folder = parent.stdout.readline().split()
        parent.kill()
    deadline = time.monotonic() + 20
    while any(services.alive(int(pid)) for pid in pids):
        assert time.monotonic() < deadline, "a server outlived its parent"
        time.sleep(0.02)
    for folder in (redis_folder, postgres_folder):
        subprocess.run(["rm", "-rf", folder], check=True)
