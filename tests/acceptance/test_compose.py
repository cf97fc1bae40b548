"""Both roles start with the environment that deploy/compose.yaml gives them, on services that have nothing of ours yet."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests import services
from tests.acceptance.edge import PROJECT, Role, free_port

CONFIG = PROJECT / "deploy" / "parshall.toml"
ADDRESSES = ("PARSHALL_REDIS_URL", "PARSHALL_KAFKA_BOOTSTRAP", "PARSHALL_POSTGRES_DSN")


async def test_the_roles_start(tmp_path: Path, own_kafka: services.Kafka, redis: services.Redis, database: str) -> None:
    compose: dict[str, Any] = yaml.safe_load((PROJECT / "deploy" / "compose.yaml").read_text())["services"]
    here = dict(zip(ADDRESSES, (redis.url, own_kafka.address, database), strict=True))
    roles = {}
    for service in ("ingest", "rater"):
        role, *_ = compose[service]["command"]
        options = ["--data", str(tmp_path / "data")] if role == "ingest" else []
        options += ["--admin-listen", f"127.0.0.1:{free_port()}"]
        roles[service] = Role(service, [role, "--config", str(CONFIG), *options], tmp_path)
        given = compose[service]["environment"]
        assert given.keys() >= here.keys()
        roles[service].environment = {**given, **here}
    try:
        for one in roles.values():
            one.start()
        await asyncio.gather(*(until_ready(one) for one in roles.values()))
    finally:
        for one in roles.values():
            one.kill()


async def until_ready(role: Role) -> None:
    until = time.monotonic() + 60
    while await readiness(role) != 200:
        assert role.running and time.monotonic() < until, role.log_end()
        await asyncio.sleep(0.05)


async def readiness(role: Role) -> int:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{role.url}/readyz") as answer:
            return answer.status
    except aiohttp.ClientError:
        return 0
