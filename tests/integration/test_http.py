"""The HTTP edge over real sockets: every status, every form of a request, and what a connection is worth after an error."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, cast

import pytest
from aiohttp import web

from ingest import connection as connections
from ingest.admin import admin_routes
from ingest.auth import Keys, Principal, hash_key
from ingest.connection import make_server
from ingest.eventless_edge import add_admin_routes
from ingest.http import Edge, HttpLimits, Problem, Route, json_response
from ingest.metrics import SnapshotCollector, metrics_routes
from ingest.request_body import zstd
from ingest.sink import Unavailable
from ingest.snapshot import TenantLedger, WriterSnapshot
from parshall.rater_process import ReadEdge
from parshall.wiring import REAL
from rater.consume import Rater
from tests.good_event import event
from tests.integration.http_edge import NOW_US, MemorySink, make_edge

PACK = {"gzip": gzip.compress, "x-gzip": gzip.compress, "zstd": zstd.compress}
MOST_BYTES = 20_000


class Flushing:
    def __init__(self) -> None:
        self.flush_interval_ms = 1000
        self.flushes = 0

    async def set_flush_interval(self, interval_ms: int) -> None:
        self.flush_interval_ms = interval_ms

    async def flush_now(self) -> None:
        self.flushes += 1


class Served(NamedTuple):
    edge: Edge
    sink: MemorySink
    flushing: Flushing
    port: int
    server: web.Server
    reasons: list[str]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    version: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(params=["direct", "by aiohttp"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with the direct way of ingest/connection.py and without it: no sender must see a difference."""
    if request.param == "by aiohttp":
        monkeypatch.setattr(connections.Connection, "_goes_direct", lambda *_: False)
    return str(request.param)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, deadline_ms=10_000)) as running:
        yield running


@asynccontextmanager
async def serving(limits: HttpLimits) -> AsyncIterator[Served]:
    sink, flushing, reasons = MemorySink(), Flushing(), list[str]()
    edge = make_edge(sink, limits, reasons)
    edge.routes.update(admin_routes(flushing))
    async with listening(edge) as (port, server):
        yield Served(edge, sink, flushing, port, server, reasons)
        assert edge.in_flight.total == 0, "every request gives back what it held"


@asynccontextmanager
async def listening(edge: Edge) -> AsyncIterator[tuple[int, web.Server]]:
    """At a port."""
    server = make_server(edge)
    sockets = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield sockets.sockets[0].getsockname()[1], server
    finally:
        sockets.close()
        await server.shutdown(1)
        await sockets.wait_closed()


# ---- a plain HTTP client, so that every byte is ours


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, head: str, body: bytes = b"") -> None:
        self.writer.write(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)

    async def answer(self, *, body: bool = True) -> Answer:
        """`body`: whether one follows, as its length says; of HEAD there is none."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status_line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            content = await self.reader.readexactly(int(headers.get("content-length", "0")) if body else 0)
            return Answer(int(status_line.split()[1]), headers, content, status_line.split()[0])

    async def ended(self) -> bool:
        """Whether the server closed its side, without another byte."""
        async with asyncio.timeout(10):
            return await self.reader.read(1) == b""

    async def ended_or_reset(self) -> bool:
        """The same of a client that is still sending: what it sends while the server closes makes that a reset."""
        try:
            return await self.ended()
        except ConnectionResetError:
            return True


@asynccontextmanager
async def connection(served: Served | int) -> AsyncIterator[Connection]:
    """To what is served, or to a port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served if isinstance(served, int) else served.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


def head(
    length: int | None,
    *,
    path: str = "POST /v1/events",
    key: str | None = "demo-key",
    kind: str | None = "application/json",
    more: str = "",
) -> str:
    lines = [f"{path} HTTP/1.1", "Host: x"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\n".join([*lines, *([more] if more else [])])


async def post(served: Served, content: object, **how: Any) -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    async with connection(served) as client:
        client.send(head(len(body), **how), body)
        return await client.answer()


async def get(served: Served, path: str, **how: Any) -> Answer:
    async with connection(served) as client:
        client.send(head(None, path=f"GET {path}", kind=None, **how))
        return await client.answer()


async def ask(port: int, path: str, *, key: str | None = "demo-key", body: bytes = b"") -> Answer:
    async with connection(port) as client:
        client.send(head(len(body), path=path, key=key), body)
        return await client.answer()


def is_problem(answer: Answer, status: int, detail: str) -> bool:
    """And it is made as every error is."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json) == {"type", "title", "status", "detail"}
    assert answer.json["status"] == answer.status
    assert detail in answer.json["detail"], answer.json["detail"]
    return answer.status == status


# ---- verdicts


async def test_all_counted(served: Served) -> None:
    answer = await post(served, [event(), event(id="2")])
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {"received": 2, "accepted": 2, "duplicate": 0, "rejected": 0, "durability": "journaled", "errors": []}
    again = await post(served, [event(), event(id="3")])
    assert (again.status, again.json["accepted"], again.json["duplicate"]) == (200, 1, 1)
    assert served.sink.deadline_in_s == 10
    assert served.edge.statuses == {200: 2}


async def test_some_rejected(served: Served) -> None:
    answer = await post(served, [event(type="nope"), event(), event(id="3", data={"bytes": 1.5, "region": "eu"})])
    assert answer.status == 207
    assert {name: answer.json[name] for name in ("received", "accepted", "duplicate", "rejected")} == {
        "received": 3,
        "accepted": 1,
        "duplicate": 0,
        "rejected": 2,
    }
    assert [(error["index"], error["id"], error["code"]) for error in answer.json["errors"]] == [
        (0, "1", "unknown_type"),
        (2, "3", "too_many_digits"),
    ]
    assert "data.bytes is 1.5" in answer.json["errors"][1]["detail"]


async def test_all_rejected_and_a_conflict(served: Served) -> None:
    await post(served, [event()])
    answer = await post(served, [event(subject="customer-2")])
    assert answer.status == 422
    assert [error["code"] for error in answer.json["errors"]] == ["conflict"]


async def test_no_event_is_no_fault_and_no_work(served: Served) -> None:
    answer = await post(served, [])
    assert (answer.status, answer.json["received"], served.sink.batches) == (200, 0, [])


async def test_the_tenant_comes_from_the_key(served: Served) -> None:
    await post(served, [event()])
    assert [batch.tenant for batch in served.sink.batches] == [1]


async def test_idempotency_key_is_echoed(served: Served) -> None:
    assert (await post(served, [event()], more="Idempotency-Key: a b-1")).headers["idempotency-key"] == "a b-1"
    assert (await post(served, b"x", more="Idempotency-Key: k")).headers["idempotency-key"] == "k"
    for odd in ("Idempotency-Key: \xff", f"Idempotency-Key: {'k' * 256}"):
        answer = await post(served, [event()], more=odd)
        assert answer.status == 200 and "idempotency-key" not in answer.headers
    for refused in (Unavailable("Not now."), Unavailable("Too fast.", overloaded=True)):
        served.sink.fails = refused
        answer = await post(served, [event()], more="Idempotency-Key: k")
        assert answer.status in (429, 503) and answer.headers["idempotency-key"] == "k"


# ---- forms


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        "application/cloudevents-batch+json",
        "application/cloudevents+json; charset=utf-8",
    ],
)
async def test_media_types(served: Served, kind: str) -> None:
    assert (await post(served, [event()], kind=kind)).status == 200
    assert (await post(served, event(id="2"), kind=kind)).json["accepted"] == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/cloudevents+avro", None, "", "json"])
async def test_unknown_media_types(served: Served, kind: str | None) -> None:
    answer = await post(served, [event()], kind=kind)
    assert is_problem(answer, 415, "send application/cloudevents+json, application/cloudevents-batch+json, application/json")
    assert "application/json" in answer.headers["accept"]


BINARY = "ce-specversion: 1.0\nce-id: 1\nce-source: /edge\nce-type: http.request\nce-subject: customer-1\nce-time: 2026-11-24T09:59:30Z"


@pytest.mark.parametrize("kind", [None, "application/json; charset=utf-8", "application/vnd.x+json"])
async def test_binary_mode(served: Served, kind: str | None) -> None:
    answer = await post(served, {"bytes": 5, "region": "eu"}, kind=kind, more=BINARY + "\nce-extension: x")
    assert (answer.status, answer.json["accepted"]) == (200, 1)
    await post(served, event())
    assert served.sink.batches[0].digests == served.sink.batches[1].digests
    assert served.sink.batches[0].deltas == served.sink.batches[1].deltas


@pytest.mark.parametrize(
    ("sent", "subject"),
    [
        ("caf%C3%A9 %22x%22", 'café "x"'),
        ("\u00c3\u00a9", "é"),  # raw UTF-8
        ("\u00e9", "é"),  # raw Latin-1
        ('"a \\"quoted\\" one"', 'a "quoted" one'),
        ("100%", "100%"),
    ],
)
async def test_binary_headers_are_decoded(served: Served, sent: str, subject: str) -> None:
    answer = await post(served, {"bytes": 5, "region": "eu"}, kind=None, more=BINARY.replace("customer-1", sent))
    assert answer.status == 200
    (key,) = served.sink.batches[0].deltas["sum"]
    assert key[2] == subject


async def test_binary_without_data_or_with_a_fault(served: Served) -> None:
    ping = BINARY.replace("http.request", "ping").replace("\nce-time: 2026-11-24T09:59:30Z", "")
    assert (await post(served, b"", kind=None, more=ping)).status == 200
    missing = await post(served, b"", kind=None, more=BINARY.replace("ce-subject: customer-1\n", ""))
    assert (missing.status, missing.json["errors"][0]["code"]) == (422, "missing_field")
    old = await post(served, b"{}", kind=None, more=BINARY.replace("1.0", "0.3"))
    assert (old.status, old.json["errors"][0]["code"]) == (422, "invalid_value")
    assert is_problem(await post(served, b"{", kind=None, more=BINARY), 400, "The JSON ends too early")
    smuggled = b'{"bytes":5,"region":"eu"},"id":"other"'
    assert is_problem(await post(served, smuggled, kind=None, more=BINARY), 400, "trailing characters")
    assert is_problem(await post(served, b"<x/>", kind="text/xml", more=BINARY), 415, "This Content-Type is not read")


async def test_broken_json_has_a_place(served: Served) -> None:
    assert is_problem(await post(served, b'[{"id":}]'), 400, "The JSON is broken at byte 7")
    assert is_problem(await post(served, b""), 400, "The body is empty")
    assert is_problem(await post(served, [event(id=str(n)) for n in range(101)]), 413, "101 events; send at most 100")


# ---- credentials


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic ZGVtbzp4", "demo-key", f"Bearer {'x' * 1000}", "Bearer \xff"])
async def test_unknown_keys(served: Served, header: str | None) -> None:
    more = "" if header is None else f"Authorization: {header}"
    answer = await post(served, [event()], key=None, more=more)
    assert is_problem(answer, 401, "send `Authorization: Bearer KEY`")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert served.sink.batches == []


async def test_scopes(served: Served) -> None:
    assert is_problem(await post(served, [event()], key="reader"), 403, 'This key lacks the scope "ingest"; it has: read.')
    assert is_problem(await get(served, "/v1/admin/flush", key="reader"), 403, 'lacks the scope "admin"')


# ---- sizes and encodings


@pytest.mark.parametrize("encoding", PACK)
async def test_packed(served: Served, encoding: str) -> None:
    pack = PACK[encoding]
    body = json.dumps([event()]).encode()
    for packed in (pack(body), pack(body[:9]) + pack(body[9:])):
        assert (await post(served, packed, more=f"Content-Encoding: {encoding}")).status == 200


async def test_not_packed(served: Served) -> None:
    assert (await post(served, [event()], more="Content-Encoding: identity")).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_packing_that_is_none(served: Served, encoding: str) -> None:
    packed = PACK[encoding](json.dumps([event()]).encode())
    more = f"Content-Encoding: {encoding}"
    assert is_problem(await post(served, packed[:-9], more=more), 400, f"The {encoding} body ends too early.")
    assert is_problem(await post(served, [event()], more=more), 400, f"is not {encoding}")
    assert is_problem(await post(served, packed + b"more", more=more), 400, f"is not {encoding}")


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "gzip, zstd"])
async def test_unknown_encodings(served: Served, encoding: str) -> None:
    answer = await post(served, [event()], more=f"Content-Encoding: {encoding}")
    assert is_problem(answer, 415, "send gzip, zstd, or nothing packed")
    assert answer.headers["accept-encoding"] == "gzip, zstd"


@pytest.mark.parametrize(("encoding", "maker"), [("gzip", "zlib.decompressobj"), ("zstd", "zstd.ZstdDecompressor")])
async def test_a_bomb_is_stopped_early(served: Served, monkeypatch: pytest.MonkeyPatch, encoding: str, maker: str) -> None:
    made: list[int] = []

    class Watched:
        def __init__(self, *settings: Any, **options: Any) -> None:
            self._inner = make(*settings, **options)

        def decompress(self, data: bytes, most: int) -> bytes:
            out: bytes = self._inner.decompress(data, most)
            made.append(len(out))
            return out

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    make = {"gzip": zlib.decompressobj, "zstd": zstd.ZstdDecompressor}[encoding]
    bomb = PACK[encoding](b" " * 10_000_000)
    assert len(bomb) < MOST_BYTES
    monkeypatch.setattr(f"ingest.request_body.{maker}", Watched)
    assert is_problem(await post(served, bomb, more=f"Content-Encoding: {encoding}"), 413, f"larger than {MOST_BYTES} bytes")
    assert sum(made) == MOST_BYTES + 1


async def test_members_share_one_bound(served: Served) -> None:
    many = gzip.compress(b" " * (MOST_BYTES // 2)) * 3
    assert is_problem(await post(served, many, more="Content-Encoding: gzip"), 413, f"larger than {MOST_BYTES} bytes")


async def test_exactly_as_large_as_allowed(served: Served) -> None:
    body = json.dumps([event()]).encode()
    body += b" " * (MOST_BYTES - len(body))
    assert (await post(served, body)).status == 200
    assert (await post(served, gzip.compress(body), more="Content-Encoding: gzip")).status == 200
    assert is_problem(await post(served, body + b" "), 413, "larger than")
    assert is_problem(await post(served, gzip.compress(body + b" "), more="Content-Encoding: gzip"), 413, "larger than")


async def test_a_large_length_is_refused_before_the_body_comes(served: Served) -> None:
    async with connection(served) as client:
        client.send(head(MOST_BYTES + 1))
        answer = await client.answer()
        assert is_problem(answer, 413, f"larger than {MOST_BYTES} bytes")
        assert answer.headers["connection"] == "close"
        client.writer.write(b" " * (MOST_BYTES + 1))  # drained, so that no reset destroys the answer
        assert await client.ended()


async def test_chunked(served: Served) -> None:
    body = json.dumps([event()]).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:50], body[50:])) + b"0\r\n\r\n"
    async with connection(served) as client:
        client.send(head(None, more="Transfer-Encoding: chunked"), chunks)
        assert (await client.answer()).status == 200
        client.send(head(None, more="Transfer-Encoding: chunked"), chunks)
        assert (await client.answer()).json["duplicate"] == 1


async def test_chunks_in_http_1_0_end_the_connection(served: Served) -> None:
    """RFC 9112, 6.1: who handed them on may not know them, and take what follows for something else."""
    body = json.dumps([event()]).encode()
    async with connection(served) as client:
        sent = head(None, more="Connection: keep-alive\nTransfer-Encoding: chunked").replace("HTTP/1.1", "HTTP/1.0")
        client.send(sent, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert (await client.answer()).status == 200
        assert await client.ended()


async def test_chunked_without_end_is_bounded(served: Served) -> None:
    async with connection(served) as client:
        client.send(head(None, more="Transfer-Encoding: chunked"))
        for _ in range(MOST_BYTES // 1000 + 1):
            client.writer.write(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        answer = await client.answer()
        assert is_problem(answer, 413, "larger than")
        assert answer.headers["connection"] == "close"
        client.writer.write(b"0\r\n\r\n")
        assert await client.ended()


@pytest.mark.parametrize(
    ("at_once", "detail"), [(False, "The body is not framed as its headers say."), (True, "This is not an HTTP request")]
)
async def test_broken_chunks(served: Served, at_once: bool, detail: str) -> None:
    async with connection(served) as client:
        client.send(head(None, more="Transfer-Encoding: chunked"), b"5\r\n[    \r\n")
        if not at_once:
            await asyncio.sleep(0.05)
        client.writer.write(b"zz\r\n")
        assert is_problem(await client.answer(), 400, detail)
        assert await client.ended()


async def test_expect_continue(served: Served) -> None:
    body = json.dumps([event()]).encode()
    async with connection(served) as client:
        client.send(head(len(body), more="Expect: 100-continue"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(body)
        assert (await client.answer()).status == 200
        client.send(head(MOST_BYTES + 1, more="Expect: 100-continue"))
        assert is_problem(await client.answer(), 413, "larger than")  # and the body never travels
    async with connection(served) as client:
        client.send(head(len(body), key="wrong", more="Expect: 100-continue"))
        assert is_problem(await client.answer(), 401, "Bearer")


# ---- connections


async def test_half_a_request_then_silence_or_gone() -> None:
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, body_s=0.2)) as served:
        async with connection(served) as client:
            client.send(head(100), b"[")
            answer = await client.answer()
            assert is_problem(answer, 408, "did not arrive within 0.2 s: send the same again.")
            assert answer.headers["connection"] == "close"
        async with connection(served) as client:
            client.send(head(100), b"[")
            client.writer.close()
        assert (await post(served, [event()])).status == 200
        assert len(served.sink.batches) == 1
        assert 503 not in served.edge.statuses  # a sender that goes is nothing unexpected


async def test_half_a_head_is_closed_and_disturbs_nobody() -> None:
    """Slow on purpose, by the hundred: some say nothing, some begin, some go on a byte at a time."""
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, idle_s=0.5)) as served, AsyncExitStack() as open_:
        slow = [await open_.enter_async_context(connection(served)) for _ in range(150)]
        for number, client in enumerate(slow):
            client.writer.write([b"", b"P", b"POST /v1/events HTTP/1.1\r\nHost: x\r\n"][number % 3])
        assert (await post(served, [event()])).status == 200

        async def drip() -> None:
            while True:
                for client in slow[2::3]:
                    client.writer.write(b"X: y\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert all(await asyncio.gather(*(client.ended_or_reset() for client in slow)))
        dripping.cancel()
        assert served.edge.connections == 0
        assert (await post(served, [event(id="2")])).status == 200


async def test_two_thousand_idle_connections_disturb_nobody(served: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 8192 else 8192, hard))
    try:
        async with AsyncExitStack() as open_:
            for _ in range(2000):
                await open_.enter_async_context(connection(served))
            for number in range(20):
                assert (await post(served, [event(id=str(number))])).status == 200
            assert served.edge.connections >= 2000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_too_many_connections_are_told_and_closed() -> None:
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, connections=3)) as served, AsyncExitStack() as open_:
        clients = [await open_.enter_async_context(connection(served)) for _ in range(3)]
        body = json.dumps([event()]).encode()
        for client in clients:
            client.send(head(len(body)), body)
            assert (await client.answer()).status == 200
        async with connection(served) as one_more:
            answer = await one_more.answer()
            assert is_problem(answer, 503, "Too many connections")
            assert answer.headers["retry-after"] == "2" and await one_more.ended()
        assert served.edge.refused_connections == 1
        clients[1].writer.close()
        while served.edge.connections == 3:
            await asyncio.sleep(0.01)
        assert (await post(served, [event(id="2")])).status == 200


async def test_strangers_give_way_when_there_are_too_many() -> None:
    """Whoever holds every connection without a key is displaced, oldest first; a customer's idle connection is not."""
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, connections=200)) as served, AsyncExitStack() as open_:
        body = json.dumps([event()]).encode()
        customer = await open_.enter_async_context(connection(served))
        customer.send(head(len(body)), body)
        assert (await customer.answer()).status == 200
        strangers = [await open_.enter_async_context(connection(served)) for _ in range(199)]
        for number, stranger in enumerate(strangers):  # silent, half a head, whole heads without a key or with a wrong one
            match number % 4:
                case 1:
                    stranger.writer.write(b"POST /v1/events HTTP/1.1\r\n")
                case 2:
                    stranger.send(head(None, path="GET /healthz", kind=None, key=None))
                    assert (await stranger.answer()).status == 200
                case 3:
                    stranger.send(head(len(body), key="wrong"), body)
                    assert (await stranger.answer()).status == 401
        while served.edge.connections < 200:
            await asyncio.sleep(0.01)
        newcomers = [await open_.enter_async_context(connection(served)) for _ in range(50)]
        for client in [*newcomers, customer]:
            client.send(head(len(body)), body)
            assert (await client.answer()).status == 200
        assert all([await stranger.ended() for stranger in strangers[:50]])
        assert (served.edge.connections, served.edge.displaced_connections, served.edge.refused_connections) == (200, 50, 0)


async def test_one_tenant_cannot_have_all_connections() -> None:
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, connections=20)) as served, AsyncExitStack() as open_:
        body = json.dumps([event()]).encode()

        async def status(key: str) -> int:
            client = await open_.enter_async_context(connection(served))
            client.send(head(len(body), key=key), body)
            answer = await client.answer()
            assert (answer.status == 429) == ("connection" in answer.headers)
            return answer.status

        assert [await status("demo-key") for _ in range(17)] == [200] * 15 + [429] * 2
        assert [await status("third-key") for _ in range(2)] == [200] * 2
        assert served.edge.refused_connections == 2


async def test_nothing_is_kept_of_connections_that_have_gone() -> None:
    """Whether or not a key has come over them, and also of those that gave way."""
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, connections=5)) as served:
        body = json.dumps([event()]).encode()
        for key in ("demo-key", "wrong", None):
            for _ in range(4):
                async with connection(served) as client:
                    client.send(head(len(body), key=key), body)
                    assert (await client.answer()).status == (200 if key == "demo-key" else 401)
        async with AsyncExitStack() as open_:
            for _ in range(8):
                await open_.enter_async_context(connection(served))
        async with asyncio.timeout(10):
            while served.edge.connections or cast(connections.Server, served.server).unknown:
                await asyncio.sleep(0.01)
        assert served.edge.connections == served.edge.connections_of.total == 0 and served.edge.in_flight.total == 0


@pytest.mark.parametrize("size", [50_000, 16 << 20], ids=["what one write takes", "more than that"])
@pytest.mark.parametrize("more", ["", "Connection: close"], ids=["kept alive", "closed"])
async def test_an_answer_that_nobody_reads_does_not_hold_its_connection(size: int, more: str) -> None:
    async def large(_request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        return json_response(b" " * size)

    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, idle_s=0.2, answer_s=0.3)) as served:
        served.edge.routes["GET", "/large"] = Route(large, None)
        with socket.socket() as half_open:
            half_open.setblocking(False)
            half_open.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(half_open, ("127.0.0.1", served.port))
            while not served.server.connections:
                await asyncio.sleep(0.01)
            transport = served.server.connections[0].transport
            assert transport is not None
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await loop.sock_sendall(half_open, f"GET /large HTTP/1.1\r\nHost: x\r\n{more}{chr(13) + chr(10) if more else ''}\r\n".encode())
            async with asyncio.timeout(10):
                while not transport.get_write_buffer_size():
                    await asyncio.sleep(0.01)
                while served.edge.connections:
                    await asyncio.sleep(0.01)


async def test_a_slow_reader_gets_its_whole_answer() -> None:
    size = 16 << 20

    async def large(_request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        return json_response(b" " * size)

    async with serving(HttpLimits(max_body_bytes=MOST_BYTES)) as served, connection(served) as client:
        served.edge.routes["GET", "/large"] = Route(large, None)
        for _ in range(2):  # it was paused and resumed, and lives on
            client.send(head(None, path="GET /large", kind=None))
            assert len((await client.answer()).body) == size


async def test_what_is_in_flight_is_bounded_before_the_body_comes() -> None:
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, in_flight_bytes=MOST_BYTES)) as served, AsyncExitStack() as open_:
        served.sink.wait.clear()
        body = json.dumps([event(id=str(number)) for number in range(80)]).encode()
        assert MOST_BYTES // 2 < len(body) < MOST_BYTES * 3 // 4
        first = await open_.enter_async_context(connection(served))
        first.send(head(len(body)), body)
        while not served.edge.in_flight.total:
            await asyncio.sleep(0.01)
        async with connection(served) as second:
            second.send(head(len(body)))  # and not a byte of the body
            answer = await second.answer()
            assert is_problem(answer, 429, "Too much of this tenant is in flight") and 1 <= int(answer.headers["retry-after"]) <= 3
        async with connection(served) as chunked:  # it does not say how much will come
            chunked.send(head(None, more="Transfer-Encoding: chunked"))
            chunked.writer.write(b"%x\r\n%b\r\n" % (len(body), body))
            assert is_problem(await chunked.answer(), 429, "Too much of this tenant")
        packed = gzip.compress(json.dumps([event(data={"bytes": 1, "region": "e" * 10_000})]).encode())
        async with connection(served) as grows:
            grows.send(head(len(packed), more="Content-Encoding: gzip"), packed)
            assert is_problem(await grows.answer(), 429, "Too much of this tenant")
        served.sink.wait.set()
        assert (await first.answer()).status == 200
        assert served.edge.refused == {1: 3}
        assert len(served.sink.batches) == 1


async def test_a_gone_sender_does_not_disturb_the_sink(served: Served) -> None:
    served.sink.wait.clear()
    async with connection(served) as client:
        body = json.dumps([event()]).encode()
        client.send(head(len(body)), body)
        await asyncio.sleep(0.05)
    served.sink.wait.set()
    assert (await post(served, [event()])).json["duplicate"] == 1  # what it sent was counted all the same


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    async with connection(served) as client:
        for number in range(20):
            body = json.dumps([event(id=str(number), type="nope" if number % 3 == 0 else "http.request")]).encode()
            client.send(head(len(body), more=f"Idempotency-Key: {number}"), body)
        answers = [await client.answer() for _ in range(20)]
    assert [answer.headers["idempotency-key"] for answer in answers] == [str(number) for number in range(20)]
    assert [answer.status for answer in answers] == [422 if number % 3 == 0 else 200 for number in range(20)]


async def test_pipelined_requests_of_several_kinds_are_answered_in_order(served: Served) -> None:
    """Those behind a request that waits for its answer wait too."""
    body = json.dumps([event()]).encode()
    large = json.dumps([event(id=str(number)) for number in range(80)]).encode()
    kinds = [("events", body), ("/healthz", b""), ("events", large), ("events", body), ("/nowhere", b""), ("events", b"no json")]
    served.sink.wait.clear()
    async with connection(served) as client:
        for kind, content in 3 * kinds:
            if kind == "events":
                client.send(head(len(content)), content)
            else:
                client.send(head(None, path=f"GET {kind}", kind=None))
        await asyncio.sleep(0.05)
        assert not served.edge.statuses
        served.sink.wait.set()
        assert [(await client.answer()).status for _ in 3 * kinds] == 3 * [200, 200, 200, 200, 404, 400]


async def test_many_at_once_behind_a_body_that_came_late(served: Served) -> None:
    """aiohttp's parser then stops one short of a full queue."""
    body = json.dumps([event()]).encode()
    whole = head(len(body)).replace("\n", "\r\n").encode() + b"\r\n\r\n" + body
    async with connection(served) as client:
        for many in (31, 32, 33, 200, 400):
            client.send(head(len(body)))
            await asyncio.sleep(0.05)
            client.writer.write(body)
            assert (await client.answer()).status == 200
            client.writer.write(many * whole)
            assert [(await client.answer()).status for _ in range(many)] == many * [200]


async def test_large_bodies_behind_a_request_that_waits() -> None:
    """More than is read ahead: the connection stops reading, and goes on."""
    bodies = [json.dumps([event(id=str(number))]).encode().ljust(size) for number, size in enumerate((200, 3_000_000, 200, 3_000_000, 200))]
    async with serving(HttpLimits(max_body_bytes=4_000_000)) as served, connection(served) as client:
        served.sink.wait.clear()
        for body in bodies:
            client.send(head(len(body)), body)
        await asyncio.sleep(0.2)
        (reading,) = served.server.connections
        assert reading._reading_paused
        served.sink.wait.set()
        assert [(await client.answer()).json["accepted"] for _ in bodies] == [1, 1, 1, 1, 1]


async def test_who_does_not_read_is_not_answered_on_and_on(served: Served) -> None:
    """Its answers would fill the memory."""
    many = 30_000
    async with connection(served) as client:
        client.writer.write(many * (head(2).replace("\n", "\r\n").encode() + b"\r\n\r\n[]"))
        answered = -1
        while answered < (answered := served.edge.statuses.get(200, 0)) or not answered:
            await asyncio.sleep(0.3)
        assert answered < many
        for _ in range(many):
            assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("version", "wish", "said"),
    [("1.1", "close", "close"), ("1.1", "keep-alive", None), ("1.0", "keep-alive", "keep-alive"), ("1.0", "close", None)],
)
async def test_the_connection_stays_as_long_as_the_sender_wishes(served: Served, version: str, wish: str, said: str | None) -> None:
    async with connection(served) as client:
        client.send(head(2, more=f"Connection: {wish}").replace("HTTP/1.1", f"HTTP/{version}"), b"[]")
        answer = await client.answer()
        assert (answer.status, answer.version, answer.headers.get("connection")) == (200, f"HTTP/{version}", said)
        if wish == "close":
            assert await client.ended()
        else:
            client.send(head(2), b"[]")
            assert (await client.answer()).status == 200


async def test_a_request_that_comes_in_pieces(served: Served) -> None:
    body = json.dumps([event()]).encode()
    whole = head(len(body)).replace("\n", "\r\n").encode() + b"\r\n\r\n" + body
    async with connection(served) as client:
        for at in (1, 30, len(whole) - len(body), len(whole) - 1):
            client.writer.write(whole[:at])
            await asyncio.sleep(0.01)
            client.writer.write(whole[at:] + whole)
            assert [(await client.answer()).status for _ in range(2)] == [200, 200]


async def test_a_connection_is_idle_only_between_requests() -> None:
    body = json.dumps([event()]).encode()
    async with serving(HttpLimits(max_body_bytes=MOST_BYTES, idle_s=0.3)) as served, connection(served) as client:
        served.sink.wait.clear()
        client.send(head(len(body)), body)
        await asyncio.sleep(0.5)
        served.sink.wait.set()
        assert (await client.answer()).status == 200
        await asyncio.sleep(0.15)
        client.send(head(len(body)), body)
        assert (await client.answer()).status == 200
        answered_s = asyncio.get_running_loop().time()
        assert await client.ended()
        assert asyncio.get_running_loop().time() - answered_s >= 0.25


async def test_nothing_is_left_of_a_connection_whose_sender_went_before_its_answer(served: Served) -> None:
    tasks = len(asyncio.all_tasks())
    served.sink.wait.clear()
    body = json.dumps([event()]).encode()
    async with connection(served) as client:
        client.send(head(len(body)), body)
        await asyncio.sleep(0.05)
        client.writer.transport.abort()
    await asyncio.sleep(0.05)
    served.sink.wait.set()
    await asyncio.sleep(0.05)
    assert (served.edge.connections, served.edge.in_flight.total, len(asyncio.all_tasks())) == (0, 0, tasks)


async def test_shutting_down_waits_for_what_is_under_way(served: Served) -> None:
    body = json.dumps([event()]).encode()
    served.sink.wait.clear()
    async with connection(served) as client, connection(served) as idle:
        client.send(head(len(body)), body)
        idle.send(head(2), b"[]")
        assert (await idle.answer()).status == 200
        await asyncio.sleep(0.05)
        served.edge.closing = True
        ending = asyncio.ensure_future(served.server.shutdown(5))
        await asyncio.sleep(0.05)
        assert not ending.done()
        served.sink.wait.set()
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.ended()
        ending.cancel()


async def test_the_connection_lives_on_after_errors_that_were_read_to_their_end(served: Served) -> None:
    async with connection(served) as client:
        for bad in (
            head(1, key="wrong"),
            head(1, kind="text/plain"),
            head(1),
            head(1, path="PUT /v1/events"),
            head(1, path="POST /nowhere"),
        ):
            client.send(bad, b"x")
            answer = await client.answer()
            assert answer.status in (400, 401, 404, 405, 415)
            assert "connection" not in answer.headers
        body = json.dumps([event()]).encode()
        client.send(head(len(body)), body)
        assert (await client.answer()).status == 200


async def test_a_refusal_before_the_body_has_come_closes_the_connection(served: Served) -> None:
    async with connection(served) as client:
        client.send(head(1000, key="wrong"), b"x")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        client.writer.write(b"x" * 999 + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await client.ended()


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA A: x\r\n\r\n"],
)
async def test_what_is_not_http(served: Served, garbage: bytes) -> None:
    async with connection(served) as client:
        client.writer.write(garbage + b"\r\n\r\n")
        answer = await client.answer()
        assert is_problem(answer, 400, "This is not an HTTP request that can be read.")
        assert b"Traceback" not in answer.body
        assert await client.ended()
    assert served.edge.statuses == {400: 1}


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        (head(2, more="A: " + "x" * 8200), "Got more than 8190 bytes: no line, and no header, may be longer."),
        (head(2, path="POST /v1/events?" + "x" * 8190), "Got more than 8190 bytes: no line, and no header, may be longer."),
        (head(2, more="\n".join(f"A{number}: x" for number in range(125))), "Too many headers received: send at most 128."),
        (head(2).replace("Host", "A"), "Missing 'Host' header in request: send it."),
        (head(2, more="Content-Type: application/json"), "Duplicate 'Content-Type' header found: send it once."),
    ],
)
async def test_a_head_that_cannot_be_read_is_told_why(served: Served, sent: str, detail: str) -> None:
    async with connection(served) as client:
        client.send(sent, b"[]")
        answer = await client.answer()
        assert is_problem(answer, 400, f"The head of the request cannot be read. {detail}")
        assert await client.ended_or_reset()


async def test_draining_says_close(served: Served) -> None:
    served.edge.closing = True
    async with connection(served) as client:
        client.send(head(2), b"[]")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.ended()


# ---- not now


async def test_unavailable_and_overloaded(served: Served) -> None:
    served.sink.fails = Unavailable("The claims are not ready (rebuilding).", 3)
    answer = await post(served, [event()])
    assert is_problem(answer, 503, "The claims are not ready (rebuilding).")
    assert answer.headers["retry-after"] == "3"
    served.sink.fails = Unavailable("Too many events are waiting.", overloaded=True)
    answer = await post(served, [event()])
    assert is_problem(answer, 429, "Too many events are waiting.")
    assert answer.headers["retry-after"] == "1"


async def test_what_will_be_refused_is_not_decoded_first(served: Served) -> None:
    served.sink.refuses = Unavailable("The claims are not ready (rebuilding).", 3)
    async with connection(served) as client:
        for _ in range(2):
            client.send(head(7), b"no json")
            assert is_problem(await client.answer(), 503, "The claims are not ready")
        served.sink.refuses = None
        client.send(head(7), b"no json")
        assert (await client.answer()).status == 400


async def test_nothing_unexpected_shows_a_traceback(served: Served) -> None:
    served.sink.fails = RuntimeError("secret detail")
    answer = await post(served, [event()])
    assert is_problem(answer, 503, "Sending the same bytes again is safe.")
    assert answer.headers["retry-after"] == "1"
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    assert served.edge.statuses == {503: 1}


# ---- other routes


async def test_a_load_balancer_may_ask_for_the_head_alone(served: Served) -> None:
    async with connection(served) as client:
        for _ in range(2):  # nothing of a body follows, so the connection goes on
            client.send(head(None, path="HEAD /healthz", kind=None, key=None))
            answer = await client.answer(body=False)
            assert (answer.status, answer.headers["content-length"]) == (200, "18")
        client.send(head(None, path="GET /healthz", kind=None, key=None))
        assert (await client.answer()).json == {"status": "alive"}


async def test_health_and_readiness(served: Served) -> None:
    assert (await get(served, "/healthz", key=None)).json == {"status": "alive"}
    assert (await get(served, "/readyz", key=None)).json == {"status": "ready"}
    served.reasons.extend(["The claims are not ready (disconnected).", "The journal is full."])
    answer = await get(served, "/readyz", key=None)
    assert is_problem(answer, 503, "The claims are not ready (disconnected). The journal is full.")
    assert answer.headers["retry-after"] == "1"
    assert (await get(served, "/healthz", key=None)).status == 200


async def test_no_such_path_or_method(served: Served) -> None:
    assert is_problem(await get(served, "/v1/nothing"), 404, "Events go to POST /v1/events")
    answer = await get(served, "/v1/events")
    assert is_problem(answer, 405, "/v1/events takes POST only.")
    assert answer.headers["allow"] == "POST"
    answer = await post(served, {}, path="POST /v1/admin/flush")
    assert is_problem(answer, 405, "/v1/admin/flush takes GET and PUT only.")
    assert answer.headers["allow"] == "GET, PUT"
    assert (await post(served, [event()], path="POST /v1/events?from=worker")).status == 200


async def test_a_node_that_rates_takes_no_events() -> None:
    edge = ReadEdge(Keys([(hash_key("demo-key"), Principal(1, "demo", frozenset({"ingest"})))]), (), REAL, cast(Rater, None))
    async with listening(edge) as (port, _), connection(port) as client:
        client.send(head(2), b"[]")
        answer = await client.answer()
        assert is_problem(answer, 404, "events go to a node that runs `parshall ingest`")
        assert answer.headers["connection"] == "close"
        assert await client.ended()
    async with listening(edge) as (port, _):
        for path in ("GET /v1/admin/flush", "GET /nowhere"):
            assert is_problem(await ask(port, path), 404, "nothing at this path. This node rates; events go to a node that runs"), path


async def test_an_admin_address_has_what_is_for_operators_and_goes_by_the_keys_in_force() -> None:
    flushing, reasons = Flushing(), list[str]()
    public = make_edge(MemorySink(), HttpLimits(), reasons)
    routes = {**admin_routes(flushing), **metrics_routes()}
    admin = add_admin_routes(public, routes, apart=True)
    assert admin is not None
    async with listening(public) as (public_port, _), listening(admin) as (admin_port, _):
        for path in ("GET /v1/admin/flush", "PUT /v1/admin/flush", "POST /v1/admin/flush/now", "GET /metrics"):
            assert is_problem(await ask(public_port, path), 404, "at the admin address of the node alone (admin_listen"), path
        assert flushing.flushes == 0
        assert is_problem(await ask(public_port, "DELETE /metrics"), 405, "/metrics takes GET only.")
        assert (await ask(admin_port, "GET /metrics", key=None)).status == 200
        assert (await ask(admin_port, "POST /v1/admin/flush/now")).json == {"flushed": True}
        assert is_problem(await ask(admin_port, "POST /v1/admin/flush/now", key="third-key"), 403, 'lacks the scope "admin"')
        assert is_problem(await ask(admin_port, "POST /v1/admin/flush/now", key=None), 401, "No API key")
        answer = await ask(admin_port, "POST /v1/events", body=b"[]")
        assert is_problem(answer, 404, "events go to the other one (listen)") and answer.headers["connection"] == "close"
        assert (await ask(public_port, "POST /v1/events", body=b"[]")).status == 200

        public.keys = Keys([(hash_key("new-key"), Principal(1, "demo", frozenset({"admin"})))])
        assert is_problem(await ask(admin_port, "POST /v1/admin/flush/now"), 401, "No API key")
        assert (await ask(admin_port, "POST /v1/admin/flush/now", key="new-key")).json == {"flushed": True}

        for port in (public_port, admin_port):
            assert (await ask(port, "GET /healthz", key=None)).status == (await ask(port, "GET /readyz", key=None)).status == 200
        reasons.append("The journal is full.")
        for port in (public_port, admin_port):
            assert is_problem(await ask(port, "GET /readyz", key=None), 503, "The journal is full.")


async def test_without_an_admin_address_all_is_at_the_public_one() -> None:
    edge = make_edge(MemorySink(), HttpLimits())
    assert add_admin_routes(edge, {**admin_routes(Flushing()), **metrics_routes()}, apart=False) is None
    async with listening(edge) as (port, _):
        assert (await ask(port, "GET /metrics", key=None)).status == 200
        assert (await ask(port, "POST /v1/admin/flush/now")).json == {"flushed": True}


async def test_a_mounted_route(served: Served) -> None:
    async def usage(request: web.BaseRequest, principal: Principal | None) -> web.StreamResponse:
        assert principal is not None
        if "fail" in request.query:
            raise Problem(400, "There is no such meter.")
        return json_response(json.dumps({"tenant": principal.tenant_name, "meter": request.query["meter"]}).encode())

    served.edge.routes["GET", "/v1/usage"] = Route(usage, "read")
    assert (await get(served, "/v1/usage?meter=egress", key="reader")).json == {"tenant": "other", "meter": "egress"}
    assert is_problem(await get(served, "/v1/usage?fail=1", key="reader"), 400, "There is no such meter.")
    assert is_problem(await get(served, "/v1/usage?meter=x", key=None), 401, "Bearer")


async def test_admin(served: Served) -> None:
    path = "PUT /v1/admin/flush"
    assert (await get(served, "/v1/admin/flush")).json == {"interval_ms": 1000}
    assert (await post(served, {"interval_ms": 250}, path=path)).json == {"interval_ms": 250}
    assert served.flushing.flush_interval_ms == 250
    assert (await post(served, b"", path="POST /v1/admin/flush/now", kind=None)).json == {"flushed": True}
    assert served.flushing.flushes == 1


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 400, "The body is not JSON"),
        (b"x", 400, "The body is not JSON"),
        (b"[1]", 400, "The body is not a JSON object"),
        (b"{}", 422, "interval_ms is missing"),
        (b'{"interval":5}', 422, "There is no setting 'interval' here; interval_ms is the only one."),
        (b'{"interval_ms":9}', 422, "interval_ms must be a whole number from 10 to 3600000 (milliseconds)."),
        (b'{"interval_ms":3600001}', 422, "interval_ms must be a whole number from 10 to 3600000"),
        (b'{"interval_ms":true}', 422, "interval_ms must be a whole number"),
        (b'{"interval_ms":"5"}', 422, "interval_ms must be a whole number"),
        (b'{"interval_ms":50.5}', 422, "interval_ms must be a whole number"),
        (b" " * 70_000, 413, "larger than 65536 bytes"),
    ],
)
async def test_admin_refuses(served: Served, body: bytes, status: int, detail: str) -> None:
    assert is_problem(await post(served, body, path="PUT /v1/admin/flush"), status, detail)
    assert served.flushing.flush_interval_ms == 1000


@pytest.mark.parametrize("interval_ms", [10, 3_600_000])
async def test_admin_takes_the_ends_of_the_range(served: Served, interval_ms: int) -> None:
    assert (await post(served, {"interval_ms": interval_ms}, path="PUT /v1/admin/flush")).json == {"interval_ms": interval_ms}


async def test_metrics(served: Served) -> None:
    ledger = TenantLedger(received=6, accepted=3, duplicate=1, rejected={"too_late": 2}, flushed=1, buffered=2)
    snapshot = WriterSnapshot(
        writer="00" * 16,
        worker=0,
        claims_states=["open", "rebuilding"],
        clocks_off_us=[-1_500_000, None],
        ready=True,
        tenants={"demo": ledger},
        unflushed_since_us=NOW_US - 500_000,
    )
    snapshot.claim_call.observe(300)
    snapshot.claim_call.observe(10_000_000)
    served.edge.routes.update(metrics_routes(SnapshotCollector(lambda: [snapshot], lambda: NOW_US)))
    answer = await get(served, "/metrics", key=None)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain")
    lines = answer.body.decode().splitlines()
    for line in (
        'parshall_events_total{tenant="demo",verdict="accepted",worker="0"} 3.0',
        'parshall_events_total{tenant="demo",verdict="too_late",worker="0"} 2.0',
        'parshall_events_buffered{tenant="demo",worker="0"} 2.0',
        'parshall_claims_state{shard="0",state="open",worker="0"} 1.0',
        'parshall_claims_state{shard="0",state="rebuilding",worker="0"} 0.0',
        'parshall_claims_state{shard="1",state="rebuilding",worker="0"} 1.0',
        'parshall_clock_off_seconds{shard="0",worker="0"} -1.5',
        'parshall_flush_lag_seconds{worker="0"} 0.5',
        'parshall_claim_call_seconds_bucket{le="0.00025",worker="0"} 0.0',
        'parshall_claim_call_seconds_bucket{le="0.0005",worker="0"} 1.0',
        'parshall_claim_call_seconds_bucket{le="+Inf",worker="0"} 2.0',
        'parshall_claim_call_seconds_count{worker="0"} 2.0',
    ):
        assert line in lines, line
