"""A connection fed chunk by chunk: whether a request is parsed or recognised by its head, no sender must see a difference.

The transport is ours, so that it is known which bytes come together; a kernel would put them together as it likes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pytest

from ingest import connection as connections
from ingest.auth import Keys
from ingest.connection import make_server
from ingest.http import Edge, HttpLimits
from ingest.known_head import KnownHead
from tests.good_event import event
from tests.integration.http_edge import MemorySink, make_edge

MOST_BYTES = 3_000
SCHEDULES = 400
TURNS = 12  # of the loop, after which everything that can happen without another chunk has happened


class Wire(asyncio.Transport):
    """The server's end of a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Step(NamedTuple):
    chunk: bytes
    turns: int  # of the loop that follow it


class Seen(NamedTuple):
    written: bytes
    closed: bool
    counted: list[tuple[int, bytes]]  # tenant and digests of each request that came through


# ---- what is sent


def one_event(pick: random.Random) -> dict[str, object]:
    return event(id=str(pick.randrange(10**6)), subject="s" * pick.randrange(1, 30))


def a_body(pick: random.Random) -> bytes:
    some = [one_event(pick) for _ in range(pick.choice([1, 1, 1, 2, 5]))]
    body = json.dumps(some[0] if len(some) == 1 and pick.random() < 0.5 else some).encode()
    return pick.choice(
        [body] * 40 + [b"", b"[]", b"{", b"x" * MOST_BYTES, body + b" " * MOST_BYTES, body.replace(b"http.request", b"nonsense")]
    )


USUAL = [
    "POST /v1/events HTTP/1.1",
    "Host: x",
    "Authorization: Bearer demo-key",
    "Content-Type: application/json",
    "Content-Length: %d",
]
UNUSUAL = [
    (0, "POST /v1/events HTTP/1.0"),
    (0, "POST /v1/events?x=1 HTTP/1.1"),
    (0, "PUT /v1/events HTTP/1.1"),
    (0, "CONNECT x:1 HTTP/1.1"),
    (0, "\r\nPOST /v1/events HTTP/1.1"),
    (1, "X: no host"),
    (2, "Authorization: Bearer reader"),
    (2, "Authorization: Bearer nobody"),
    (2, "Authorization: Bearer third-key"),
    (2, "Authorization: Bearer third-key"),
    (2, "X: no key"),
    (3, "Content-Type: application/cloudevents-batch+json"),
    (3, "Content-Type: text/plain"),
    (4, "content-length:%d"),
    (4, "Content-Length:\t %d "),
    (4, "Transfer-Encoding: chunked"),
    *((5, more) for more in ("Idempotency-Key: a", "Content-Encoding: gzip", "Connection: keep-alive", "Connection: close", "ce-id: 7")),
    *((5, f"Connection: Upgrade\r\nUpgrade: {name}") for name in ("websocket", "h2c", "h2c")),
    *((5, more) for more in ("Expect: 100-continue", "X: Content-Length: 5", "Content-Length: 3", "Transfer-Encoding: chunked")),
]


def a_head(pick: random.Random) -> str:
    """With a %d for the length. In most one line is unusual; those of a third are all as usual, but for their order."""
    lines = list(USUAL)
    for place, line in pick.sample(UNUSUAL, pick.choice([0, 0, 1, 1, 1, 2])):
        lines[place : place + 1] = [line]
    first, *rest = lines
    pick.shuffle(rest)
    return "\r\n".join([first, *rest]) + "\r\n\r\n"


def requests(pick: random.Random) -> Iterator[bytes]:
    """Those of one sender: it mostly keeps to a head, and its lengths are mostly right."""
    head = a_head(pick)
    for _ in range(pick.randrange(4, 20)):
        if pick.random() < 0.1:
            head = a_head(pick)
        if pick.random() < 0.03:
            yield b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
            continue
        body = a_body(pick)
        if "Content-Encoding: gzip" in head:
            body = gzip.compress(body, mtime=0)
        length = len(body) + (pick.choice([-2, -1, 1, 40]) if pick.random() < 0.03 else 0)
        yield head.replace("%d", str(max(0, length))).encode() + body


def stray(pick: random.Random) -> bytes:
    """What no whole request follows: whatever comes next becomes part of it. Half of them make a header of its first line."""
    if pick.random() < 0.5:
        return "\r\n".join([*USUAL[: pick.choice([3, 4])], "X: "]).encode()
    begun = a_head(pick).encode()
    return begun[: pick.randrange(1, len(begun))]


def steps(pick: random.Random) -> list[Step]:
    """In chunks that are a request, or part of one, or several."""
    chunks: list[bytes] = []
    for sent in requests(pick):
        if pick.random() < 0.04:
            if chunks and pick.random() < 0.5:
                chunks[-1] += stray(pick)
            else:
                chunks.append(stray(pick))
        if chunks and pick.random() < 0.08:
            chunks[-1] += sent
        elif pick.random() < 0.1 and len(sent) > 2:
            cuts = sorted(pick.sample(range(1, len(sent)), pick.choice([1, 1, 2])))
            chunks += [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
        else:
            chunks.append(sent)
    return [Step(chunk, pick.choice([TURNS] * 6 + [0, 1, 2, 3])) for chunk in chunks]


# ---- what comes of it


async def feed(edge: Edge, sink: MemorySink, schedule: Sequence[Step], first_turns: int) -> Seen:
    server = make_server(edge)
    wire, protocol = Wire(), server()
    protocol.connection_made(wire)
    await turns(first_turns)  # with none the first chunk comes before the connection's own task has begun
    for step in schedule:
        if not wire.closed:
            protocol.data_received(step.chunk)
        await turns(step.turns)
    await turns(20 * TURNS)
    seen = Seen(
        re.sub(rb"Date: [^\r]*", b"Date: -", wire.written), wire.closed, [(one.tenant, b"".join(one.digests)) for one in sink.batches]
    )
    protocol.connection_lost(None)
    await turns(TURNS)
    assert edge.in_flight.total == 0
    return seen


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def of_schedule(schedule: Sequence[Step], first_turns: int = 3) -> Seen:
    sink = MemorySink()
    return await feed(make_edge(sink, HttpLimits(max_body_bytes=MOST_BYTES)), sink, schedule, first_turns)


async def outcome(seed: int) -> Seen:
    pick = random.Random(seed)
    return await of_schedule(steps(pick), pick.choice([0, 3]))


@pytest.fixture
def recognised(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """An entry for each chunk that was looked at: whether it was a request with the head of the last one."""
    answers: list[bool] = []
    ask = connections.Connection._begin_like_the_last

    def asked(self: connections.Connection, data: bytes) -> bool:
        answers.append(ask(self, data))
        return answers[-1]

    monkeypatch.setattr(connections.Connection, "_begin_like_the_last", asked)
    return answers


async def test_recognised_or_parsed_no_sender_sees_a_difference(recognised: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [await outcome(seed) for seed in range(SCHEDULES)]
    assert recognised.count(True) > SCHEDULES // 2
    assert {tenant for one in seen for tenant, _ in one.counted} == {1, 3}
    answered = b"".join(one.written for one in seen)
    for status in (200, 400, 401, 403, 405, 413, 415, 422):
        assert b"HTTP/1.1 %d " % status in answered, "the schedules have every kind of answer"
    recognised.clear()
    monkeypatch.setattr(connections, "_MOST_IN_VAIN", 0)
    for seed, one in enumerate(seen):
        assert await outcome(seed) == one, f"schedule {seed}"
    assert not any(recognised)


def plain(id_: str, more: str = "") -> bytes:
    body = json.dumps(event(id=id_)).encode()
    return ("\r\n".join(USUAL).replace("%d", str(len(body))) + f"\r\n{more}\r\n").encode() + body


class Client:
    """One connection, chunk by chunk."""

    def __init__(self) -> None:
        self.sink = MemorySink()
        self.edge = make_edge(self.sink, HttpLimits())
        self.wire = Wire()
        self.protocol = make_server(self.edge)()
        self.protocol.connection_made(self.wire)

    async def sends(self, *chunks: bytes) -> list[int]:
        """The statuses of what is answered."""
        before = len(self.wire.written)
        for chunk in chunks:
            await turns(TURNS)
            self.protocol.data_received(chunk)
        await turns(TURNS)
        return [int(status) for status in re.findall(rb"HTTP/1.[01] (\d+)", self.wire.written[before:])]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    made.protocol.connection_lost(None)
    await turns(TURNS)


async def test_a_key_that_is_withdrawn_opens_nothing_any_more(client: Client, recognised: list[bool]) -> None:
    assert await client.sends(plain("1"), plain("2")) == [200, 200]
    client.edge.keys = Keys([])
    assert await client.sends(plain("3")) == [401]
    assert recognised == [False, True, False]


async def test_shutting_down_is_said_to_a_head_that_is_known(client: Client, recognised: list[bool]) -> None:
    assert await client.sends(plain("1"), plain("2")) == [200, 200]
    client.edge.closing = True
    assert await client.sends(plain("3")) == [200]
    assert client.wire.written.count(b"Connection: close") == 1 and client.wire.closed
    assert recognised == [False, True, False]


async def test_who_does_not_read_answers_gets_no_more(client: Client, recognised: list[bool]) -> None:
    assert await client.sends(plain("1"), plain("2")) == [200, 200]
    client.protocol.pause_writing()
    assert await client.sends(plain("3"), plain("4")) == [200]
    client.protocol.resume_writing()
    await turns(TURNS)
    assert client.wire.written.count(b"HTTP/1.1 200") == 4
    assert recognised == [False, True, False]


async def test_a_closed_connection_takes_nothing_more(client: Client, recognised: list[bool]) -> None:
    assert await client.sends(plain("1"), plain("2")) == [200, 200]
    client.protocol._force_close = True
    assert await client.sends(plain("3")) == []
    assert recognised == [False, True, False]


# In each of these a chunk is, to the byte, a request whose head is known or becomes known, and yet it is not that request.

SWALLOWS = b"GET /nothing HTTP/1.1\r\nX: "  # the first line of what comes next is the rest of this header


async def test_what_follows_the_beginning_of_a_head_belongs_to_it(client: Client) -> None:
    assert await client.sends(plain("1"), plain("2"), SWALLOWS, plain("3")) == [200, 200, 404]


async def test_what_follows_the_beginning_of_a_head_behind_a_body_belongs_to_it(client: Client) -> None:
    body_in_pieces = plain("3")
    chunks = [plain("1"), plain("2"), body_in_pieces[:-20], body_in_pieces[-20:] + SWALLOWS, plain("4")]
    assert await client.sends(*chunks) == [200, 200, 200, 404]


async def test_what_follows_the_beginning_of_a_head_behind_two_requests_belongs_to_it(client: Client) -> None:
    assert await client.sends(plain("1"), plain("2"), plain("3") + plain("4") + SWALLOWS, plain("5")) == [200, 200, 200, 200, 404]


async def test_a_head_that_another_one_completed_is_not_known_by_itself(client: Client) -> None:
    body = json.dumps(event()).encode()
    without_key = b"POST /v1/events HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    begun = "\r\n".join([*USUAL[:4], "X: "]).encode()
    assert await client.sends(begun, without_key, without_key) == [200, 400]


@pytest.mark.parametrize("protocol", ["x", "websocket"])
async def test_what_follows_an_upgrade_that_is_not_made_stands_for_itself(client: Client, protocol: str) -> None:
    """aiohttp's parser reads the body of such a request; one that did not would take it for the beginning of the next."""
    wants = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nContent-Length: {len(SWALLOWS)}\r\n\r\n"
    assert await client.sends(plain("1"), plain("2"), wants.encode() + SWALLOWS, plain("3")) == [200, 200, 401, 200]


@pytest.mark.parametrize("before", [0, 2, 20])
@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("framing", ["Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "\r\n"])
async def test_what_came_with_the_end_of_an_upgrade_is_not_answered_by_what_comes_later(
    client: Client, before: int, pieces: int, framing: str
) -> None:
    """aiohttp's parser drops it where it does not know the protocol."""
    wants = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n{framing}".encode()
    if framing == "\r\n":
        wants = wants.replace(b"POST", b"PUT")
    behind = wants + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    first = len(wants) - 1
    chunks = {1: [behind], 2: [wants[:first], behind[first:]], 3: [wants[:-3], wants[-3:first], behind[first:]]}[pieces]
    answered = await client.sends(*(plain(str(number)) for number in range(before)), *chunks, plain("last"))
    assert answered[before:] in ([401], [405])


@pytest.mark.parametrize("known", [1, 2])
@pytest.mark.parametrize("together", [True, False])
async def test_nor_is_it_where_an_upgrade_that_aiohttp_knows_came_before(client: Client, known: int, together: bool) -> None:
    wants = [
        f"PUT /v1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {name}\r\n\r\n".encode() for name in ("websocket", "h2c")
    ]
    pieces = [wants[0]] * known + [wants[1] + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"]
    answered = await client.sends(*([b"".join(pieces)] if together else pieces), plain("last"))
    assert answered == [405] * (known if together else len(pieces)) and client.wire.closed
    assert client.wire.written.count(b"Connection: close") == 1


WISH = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
COUNTED = plain("1", WISH)
HEAD, _, BODY = COUNTED.partition(b"\r\n\r\n")
STREAMED = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", HEAD) + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("whole", [f"GET /healthz HTTP/1.1\r\nHost: x\r\n{WISH}\r\n".encode(), COUNTED, STREAMED])
async def test_a_sender_that_would_like_another_protocol_keeps_its_connection(client: Client, whole: bytes) -> None:
    """As the HTTP client of Java does, at each request: of a body that it was given as a stream it does not say the length."""
    plain_one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert await client.sends(*[whole, plain_one, plain("2")] * 20) == [200] * 60
    head_end, end = whole.index(b"\r\n\r\n") + 4, len(whole)
    for cuts in ([head_end], [head_end, end - 1], [end - 1], [head_end + 1, end - 7, end - 5]):
        if head_end < end:
            pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, end], strict=True)]
            assert await client.sends(*[*pieces, whole] * 20) == [200] * 40
    assert b"Connection: close" not in client.wire.written


@pytest.mark.parametrize(
    "between", [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", f"GET /healthz HTTP/1.1\r\nHost: x\r\n{WISH}\r\n".encode()]
)
async def test_a_head_is_known_with_its_wish_for_another_protocol(client: Client, recognised: list[bool], between: bytes) -> None:
    """And however many requests without a body came before it."""
    assert await client.sends(*[between] * 20, COUNTED, COUNTED, between, COUNTED) == [200] * 24
    assert recognised[-4:] == [False, True, False, True]


async def test_a_byte_behind_a_body_that_ended_unseen_begins_a_head(client: Client) -> None:
    """The parser had to wait for the reader of that body, and came to its end without another byte."""
    body = BODY.ljust(2_000_000)
    head = HEAD.replace(b"Upgrade", b"nothing").replace(b"Content-Length: %d" % len(BODY), b"Content-Length: %d" % len(body))
    assert await client.sends(plain("2"), head + b"\r\n\r\n", body, SWALLOWS[:1], plain("2")) == [200, 200, 400]


@pytest.mark.parametrize("behind", [b"", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_nor_is_it_where_the_parser_had_to_wait_for_the_reader(client: Client, behind: bytes) -> None:
    """It keeps what it has not read then, and reads it with the last byte."""
    head, _, _ = STREAMED.partition(b"\r\n\r\n")
    long = b"%x\r\n%b\r\n0\r\n\r\n" % (2_000_000, BODY.ljust(2_000_000))
    assert await client.sends(head + b"\r\n\r\n", long + behind, plain("last")) == [200]
    assert client.wire.closed and len(client.sink.batches) == 1


async def test_a_wish_for_another_protocol_changes_no_answer() -> None:
    """Where something came with the end of such a request there are fewer answers, and the connection ends."""
    kept = wished = 0
    for seed in range(SCHEDULES):
        wishing = [step._replace(chunk=step.chunk.replace(b"websocket", b"h2c")) for step in steps(random.Random(seed))]
        sent = b"".join(step.chunk for step in wishing)
        bytes_without = iter(sent.replace(b"Connection: Upgrade", b"Connection: nothing"))
        without = [step._replace(chunk=bytes(islice(bytes_without, len(step.chunk)))) for step in wishing]
        one, other = await of_schedule(wishing), await of_schedule(without)
        if b"h2c" not in sent or b"HTTP/1.0 400" in other.written:  # what cannot be read takes with it what came before
            continue
        answers, more = (re.findall(rb"HTTP/1.[01] (\d+)", seen.written) for seen in (one, other))
        assert answers == more[: len(answers)] and one.counted == other.counted[: len(one.counted)], f"schedule {seed}"
        assert one.closed or answers == more, f"schedule {seed}"
        wished += 1
        kept += one.closed == other.closed
    assert wished > kept > wished // 2


LINE = b"X-Long: " + b"x" * 8000 + b"\r\n"


@pytest.mark.parametrize("before", [b"", plain("1"), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_head_that_does_not_end_is_not_kept(client: Client, before: bytes) -> None:
    begun = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    assert await client.sends(before + begun, *[LINE] * 4) == ([200] if before else [])
    assert await client.sends(LINE) == [431] and client.wire.closed
    assert client.edge.statuses[431] == 1


@pytest.mark.parametrize("later", range(TURNS))
async def test_a_head_that_does_not_end_is_answered_after_what_came_before_it(client: Client, later: int) -> None:
    """However far that has come: aiohttp takes a request from the queue before it calls it the current one."""
    await turns(TURNS)
    client.protocol.data_received(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await turns(later)
    client.protocol.data_received(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + 5 * LINE)
    await turns(TURNS)
    if not client.wire.closed:
        await client.sends(5 * LINE)
    assert re.findall(rb"HTTP/1.1 (\d+)", client.wire.written) == [b"200", b"431"]


@pytest.mark.parametrize(("key", "status"), [("demo-key", 200), ("nobody", 401)])
async def test_only_a_head_is_bounded_as_one(client: Client, key: str, status: int) -> None:
    """Not what frames a body, also where nobody wants that any more."""
    head = "\r\n".join([*USUAL[:4], "Transfer-Encoding: chunked"]).replace("demo-key", key).encode()
    body = json.dumps(event()).encode() + b" " * 20_000
    framed = [b"1;x=y\r\n%c\r\n" % byte for byte in body]
    pieces = [b"".join(framed[at : at + 1000]) for at in range(0, len(framed), 1000)]
    assert await client.sends(head + b"\r\n\r\n", *pieces, b"0\r\n\r\n") == [status]


def connect(body: bytes) -> bytes:
    """aiohttp's parser reads no body of it, whatever its length says: it is the beginning of the next request."""
    return b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_what_follows_a_connect_belongs_to_what_looked_like_its_body(client: Client) -> None:
    assert await client.sends(plain("1"), plain("2"), connect(SWALLOWS), plain("3")) == [200, 200, 404, 404]


@pytest.mark.parametrize(("known_before", "tenants"), [(0, [1, 3, 3]), (2, [3, 3, 1, 3])])
async def test_a_key_that_looked_like_the_body_of_a_connect_is_that_of_one_request(
    client: Client, known_before: int, tenants: list[int]
) -> None:
    begun = b"POST /v1/events HTTP/1.1\r\nAuthorization: Bearer demo-key\r\nX: "
    third = [plain(str(number)).replace(b"demo-key", b"third-key") for number in range(len(tenants))]
    answered = await client.sends(*third[:known_before], connect(begun), *third[known_before:])
    assert sorted(answered) == [200] * len(tenants) + [404]
    assert [batch.tenant for batch in client.sink.batches] == tenants


async def test_a_refused_head_is_not_known_for_the_one_before_it_in_the_queue(client: Client) -> None:
    may_not = plain("3").replace(b"demo-key", b"reader")
    client.sink.wait.clear()
    assert await client.sends(plain("1"), plain("2", "X: y\r\n"), may_not) == []
    client.sink.wait.set()
    assert await client.sends(may_not) == [200, 200, 403, 403]


@pytest.mark.parametrize(("key", "status"), [("demo-key", 200), ("nobody", 401)])
async def test_heads_that_never_come_again_are_soon_parsed_only(
    client: Client, recognised: list[bool], monkeypatch: pytest.MonkeyPatch, key: str, status: int
) -> None:
    looked: list[bytes] = []
    of = KnownHead.of

    def counted(data: bytes) -> KnownHead | None:
        looked.append(data)
        return of(data)

    monkeypatch.setattr(KnownHead, "of", counted)
    chunks = [plain(str(number), f"Idempotency-Key: {number}\r\n").replace(b"demo-key", key.encode()) for number in range(40)]
    assert await client.sends(*chunks) == [status] * 40
    assert looked == chunks[: connections._MOST_IN_VAIN] and not any(recognised)


async def test_a_large_body_in_pieces_is_no_end_to_it(client: Client, recognised: list[bool]) -> None:
    """Senders with batches of many sizes: what came in pieces has ended where a piece does, so the next head is recognised again."""
    large = plain("2")
    assert await client.sends(plain("1"), large[:-70], large[-70:-20], large[-20:], plain("3"), plain("4")) == [200] * 4
    assert recognised == [False, False, True, True]
