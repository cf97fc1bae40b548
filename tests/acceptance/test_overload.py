"""One tenant floods, another sends a trickle: the flood is refused before it is claimed, the trickle is served, both are counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.acceptance.edge import Api, Role, wait_rated, write_config

FLOOD_CONNECTIONS, FLOOD_EVENTS, FLOOD_REQUESTS = 40, 500, 400
TRICKLE_REQUESTS = 60
MOST_COUNTERS = 6_000
MOST_BYTES = 1 << 20


def events(tenant: str, request: int, count: int, *, subjects: int) -> bytes:
    time = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    data = {"region": "eu", "zone": "1", "bytes": 7}
    return json.dumps(
        [
            {
                "specversion": "1.0",
                "type": "http.request",
                "source": tenant,
                "id": f"{request}-{n}",
                "time": time,
                "subject": f"customer-{(request * count + n) % subjects}",
                "data": data,
            }
            for n in range(count)
        ]
    ).encode()


class Tenant:
    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self.session = session
        self.url = url
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.statuses: Counter[int] = Counter()
        self.accepted = 0

    async def send(self, body: bytes) -> dict[str, Any]:
        async with self.session.post(f"{self.url}/v1/events", data=body, headers=self.headers) as answer:
            told: dict[str, Any] = await answer.json(content_type=None)
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.accepted += told["accepted"]
            else:
                assert answer.status in (429, 503) and int(answer.headers["Retry-After"]) >= 1, told
            return told


async def run(folder: Path, bound: str, *, subjects: int) -> tuple[Tenant, Tenant, str]:
    """The flood, the trickle, and what the metrics say afterwards. `bound` is a line for [ingest]; nothing is flushed by itself."""
    keys = write_config(folder, now=datetime.now(UTC), deadline_ms=10_000, more="\n[flush]\ninterval_ms = 3600000\n")
    text = (folder / "parshall.toml").read_text()
    (folder / "parshall.toml").write_text(text.replace("[ingest]\n", f"[ingest]\n{bound}\n", 1))
    up = Role("up", ["up", "--config", str(folder / "parshall.toml"), "--data", str(folder / "data")], folder)
    try:
        up.start()
        await up.wait_ready()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120), connector=connector) as session:
            flood, trickle = Tenant(session, up.url, keys["acme"]), Tenant(session, up.url, keys["demo"])
            requests = iter(range(FLOOD_REQUESTS))

            async def flooding() -> None:
                for number in requests:
                    await flood.send(events("acme", number, FLOOD_EVENTS, subjects=subjects))

            async def trickling() -> None:
                for number in range(TRICKLE_REQUESTS):
                    await trickle.send(events("demo", number, 2, subjects=100))
                    await asyncio.sleep(0.01)

            await asyncio.gather(trickling(), *(flooding() for _ in range(FLOOD_CONNECTIONS)))
            apis = {"acme": Api(session, up.url, keys["acme"]), "demo": Api(session, up.url, keys["demo"])}
            await apis["demo"].flush_now()
            accepted = {"acme": flood.accepted, "demo": trickle.accepted}
            for tenant, ledger in (await wait_rated(apis, accepted)).items():
                assert (ledger["accepted"], ledger["rated"], ledger["buffered"]) == (accepted[tenant], accepted[tenant], 0)
            async with session.get(f"{up.url}/metrics") as metrics:
                return flood, trickle, await metrics.text()
    finally:
        up.kill()


def check_trickle(trickle: Tenant) -> None:
    assert trickle.statuses == {200: TRICKLE_REQUESTS}, "the other tenant is not refused"
    assert trickle.accepted == 2 * TRICKLE_REQUESTS


async def test_a_flood_of_bytes(tmp_path: Path) -> None:
    flood, trickle, metrics = await run(tmp_path, f"max_in_flight_bytes = {MOST_BYTES}", subjects=50)
    check_trickle(trickle)
    assert flood.statuses[200] and flood.statuses[429], flood.statuses
    assert flood.accepted == FLOOD_EVENTS * flood.statuses[200]
    refused = flood.statuses[429] + flood.statuses[503]
    assert f'parshall_requests_refused_total{{reason="in_flight",tenant="acme",worker="0"}} {refused}.0' in metrics
    assert 'parshall_bound{of="in_flight_bytes",worker="0"}' in metrics and 'parshall_in_flight_bytes{worker="0"} 0.0' in metrics


async def test_a_flood_of_counters(tmp_path: Path) -> None:
    """Every event of the flood is a counter of its own: memory would grow without end, and the flush with it."""
    flood, trickle, metrics = await run(tmp_path, f"max_live_counters = {MOST_COUNTERS}", subjects=10**9)
    check_trickle(trickle)
    assert flood.statuses[200] and flood.statuses[429], flood.statuses
    assert 'reason="counters",tenant="acme"' in metrics and 'reason="counters",tenant="demo"' not in metrics
