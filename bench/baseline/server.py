"""The honest control: an exactly-counting edge as a good engineer would write it in a day, with the tools most people reach for.

Belongs here: one aiohttp server, no project code. Each request is decoded and validated in one typed msgspec call; every event is claimed
with SET NX EX, all of a request in one pipeline; every new event is sent to Kafka, all sends awaited together; then it is answered.

It is weaker than Parshall where that is cheaper for it: a crash between the claim and the send loses the event, a Redis failover counts
twice, one bad event refuses its whole batch. So the comparison is in its favour.

    python bench/baseline/server.py --port 8090 --redis redis://127.0.0.1:6379/0 --kafka 127.0.0.1:9092
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import redis.asyncio as redis
import uvloop
from aiohttp import web
from aiokafka import AIOKafkaProducer

CLAIM_SECONDS = 86_400 + 300
TOPIC = "baseline.events"


class HttpRequestData(msgspec.Struct, gc=False):
    region: str
    zone: str
    bytes: int


class CompletionData(msgspec.Struct, gc=False):
    model: str
    direction: str
    tokens: int


class ConnectionsData(msgspec.Struct, gc=False):
    connections: int


class StorageData(msgspec.Struct, gc=False):
    gb_hours: Decimal


class Event(msgspec.Struct, tag_field="type", gc=False):
    id: str
    source: str
    subject: str
    time: datetime


class HttpRequest(Event, tag="http.request", gc=False):
    data: HttpRequestData


class Completion(Event, tag="llm.completion", gc=False):
    data: CompletionData


class Connections(Event, tag="db.sample", gc=False):
    data: ConnectionsData


class Storage(Event, tag="storage.sample", gc=False):
    data: StorageData


DECODE = msgspec.json.Decoder(list[HttpRequest | Completion | Connections | Storage]).decode
ENCODE = msgspec.json.Encoder().encode


class Edge:
    def __init__(self, claims: redis.Redis, producer: AIOKafkaProducer, keys: dict[str, str]) -> None:
        self._claims = claims
        self._producer = producer
        self._tenants = {f"Bearer {key}": tenant for key, tenant in keys.items()}

    async def post_events(self, request: web.Request) -> web.Response:
        tenant = self._tenants.get(request.headers.get("Authorization", ""))
        if tenant is None:
            return _answer(401, {"title": "Unauthorized"})
        try:
            events = DECODE(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _answer(400, {"title": "Bad request", "detail": str(error)})
        accepted = await self._claim(tenant, events)
        await self._send(tenant, accepted)
        counts = {"received": len(events), "accepted": len(accepted), "duplicate": len(events) - len(accepted), "rejected": 0}
        return _answer(200, counts)

    async def ready(self, request: web.Request) -> web.Response:
        return _answer(200, {"status": "ready"})

    async def _claim(self, tenant: str, events: list[Any]) -> list[Any]:
        pipeline = self._claims.pipeline(transaction=False)
        for event in events:
            pipeline.set(f"claim:{tenant}:{event.source}:{event.id}", b"1", nx=True, ex=CLAIM_SECONDS)
        granted = await pipeline.execute()
        return [event for event, new in zip(events, granted, strict=True) if new]

    async def _send(self, tenant: str, events: list[Any]) -> None:
        prefix = f"{tenant}:"
        sent = [await self._producer.send(TOPIC, ENCODE(event), key=(prefix + event.subject).encode()) for event in events]
        if sent:
            await asyncio.gather(*sent)


def _answer(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=ENCODE(body), content_type="application/json")


async def serve(port: int, redis_url: str, kafka: str) -> None:
    claims = redis.from_url(redis_url)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=True, linger_ms=5, max_batch_size=131_072)
    await producer.start()
    app = web.Application(client_max_size=16 * 1024 * 1024)
    edge = Edge(claims, producer, {"bench-key": "bench"})
    app.router.add_post("/v1/events", edge.post_events)
    app.router.add_get("/readyz", edge.ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"baseline is ready at http://127.0.0.1:{port}", flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await runner.cleanup()
    await producer.stop()
    await claims.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description="The control of the benchmark.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--kafka", required=True)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.redis, arguments.kafka))


if __name__ == "__main__":
    main()
