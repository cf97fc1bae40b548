"""`parshall resend` as the operator uses it: Kafka has lost a record, PostgreSQL is new, and the journals heal both."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests import services
from tests.acceptance.edge import PROJECT, Api, Role, write_config
from tests.acceptance.tampering import remove_from_kafka

FLUSHES, EVENTS = 6, 10


async def test_a_lost_record_is_sent_again_and_what_waited_behind_it_is_rated(
    tmp_path: Path, redis: services.Redis, own_kafka: services.Kafka, postgres: services.Postgres
) -> None:
    more = f'\n[redis]\nurl = "{redis.url}"\n[flush]\ninterval_ms = 3600000\n'
    more += f'[kafka]\nbootstrap = "{own_kafka.address}"\naccept_weak = true\ncreate_topics = true\n'
    key = write_config(tmp_path, now=datetime.now(UTC), deadline_ms=1000, more=more)["demo"]
    config = ["--config", str(tmp_path / "parshall.toml")]
    worker = Role("worker", ["ingest", *config], tmp_path)
    database = postgres.create_database("rated_from_the_rest")
    rater = Role("rater", ["rate", *config, "--postgres", database], tmp_path)

    async def resend(*options: str) -> str:
        command = [sys.executable, "-m", "parshall", "resend", *config, *options]
        done = await asyncio.to_thread(subprocess.run, command, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout

    async def held() -> tuple[int, str]:
        command = [sys.executable, "-m", "parshall", "held", "list", "--postgres", database]
        done = await asyncio.to_thread(subprocess.run, command, cwd=PROJECT, capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode, done.stdout

    try:
        worker.start()
        await worker.wait_ready()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            edge = Api(session, worker.url, key)
            for flush in range(FLUSHES):
                await send(session, worker.url, key, flush)
                await edge.flush_now()
            assert worker.stop() == 0, worker.log_end()
            assert "Nothing to send" in await resend()

            gone = await remove_from_kafka(own_kafka.address)
            rater.start()
            reading = Api(session, rater.url, key)
            before = EVENTS * (gone.n - 1)
            await until(reading, lambda events: events == before)
            line = f"writer {gone.writer}, partition {gone.partition}: {gone.n}\n"
            assert await resend("--dry-run") == f"{line}1 records would be sent again.\n"
            assert await counted(reading) == before, "what lies behind the gap is held"
            code, told = await held()
            assert code == 1 and f"record {gone.n} has to come first" in told, told
            place = f"--writer {gone.writer} --partition {gone.partition}"
            assert f"parshall resend {place} --from {gone.n} --to {gone.n}" in told, told
            assert "parshall_held_chains 1.0" in await metrics(session, rater.url)

            assert await resend() == f"{line}1 records sent again.\n"
            await until(reading, lambda events: events == FLUSHES * EVENTS)
            named = ["--writer", gone.writer, "--partition", str(gone.partition), "--from", "2", "--to", "4"]
            assert await resend(*named) == f"writer {gone.writer}, partition {gone.partition}: 2 to 4\n3 records sent again.\n"
            assert "Nothing to send" in await resend()
            await asyncio.sleep(1)  # so that the rater meets them
            assert await counted(reading) == FLUSHES * EVENTS
            assert await held() == (0, "Nothing is held: every record that came is rated.\n")
            told = await metrics(session, rater.url)
            assert "parshall_held_chains 0.0" in told and "parshall_rater_unparked_total" in told
            assert f'parshall_rater_behind{{stream="usage.counters/{gone.partition}"}} 0.0' in told, told
    finally:
        worker.kill()
        if rater.running:
            rater.kill()


async def send(session: aiohttp.ClientSession, url: str, key: str, flush: int) -> None:
    time = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    data = {"region": "eu", "zone": "1", "bytes": 7}
    events = [
        {"specversion": "1.0", "type": "http.request", "source": "s", "id": f"{flush}-{n}", "time": time, "subject": "c", "data": data}
        for n in range(EVENTS)
    ]
    async with session.post(f"{url}/v1/events", json=events, headers={"Authorization": f"Bearer {key}"}) as answer:
        assert (await answer.json())["accepted"] == EVENTS


async def metrics(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/metrics") as answer:
        assert answer.status == 200
        return await answer.text()


async def counted(api: Api) -> int:
    year = datetime.now(UTC).year
    asked = {
        "meter": "requests",
        "subject": "c",
        "from": f"{year - 1}-01-01T00:00:00Z",
        "to": f"{year + 1}-02-01T00:00:00Z",
        "window": "month",
    }
    try:
        rows: list[dict[str, Any]] = (await api.get("/v1/usage", **asked))["data"]
    except AssertionError as refusal:
        assert "no meter is called" in str(refusal)  # nothing of it is rated yet
        return 0
    return sum(row["events"] for row in rows)


async def until(api: Api, condition: Callable[[int], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if condition(await counted(api)):
                    return
            except aiohttp.ClientConnectionError:  # it is still starting
                pass
            await asyncio.sleep(0.1)
