"""The HTTP edge: from a request to an answer.

Belongs here: routes, credentials and scopes at work, headers, statuses, what a connection does after an error. Must not know: how events
are decoded or counted, which sink stands behind it.

The hot route comes first, without router or middleware. Every other route is in a dict that the front door extends.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import structlog
from aiohttp import web

from ingest import request_body
from ingest.auth import INGEST, Keys, Principal
from ingest.cloudevents import STRUCTURED_TYPES, Form, form_of, structured
from ingest.decode import Decoder, Unusable, check_one
from ingest.fair_shares import Shares
from ingest.sink import Outcome, Sink, Unavailable
from ingest.verdict import answer, problem

log = structlog.get_logger()

EVENTS = "/v1/events"
SERVER = "Parshall"
_MOST_ECHOED = 255
_READ_BYTES = 512 * 1024  # a usual body arrives without the socket being stopped and started again
_LINGER_S = 5.0  # how long the rest of a refused body is read and thrown away, so that the sender sees the answer
_UNEXPECTED = "Something unexpected went wrong here; it is in the log. Sending the same bytes again is safe."

_JSON = "application/json"
_PROBLEM = "application/problem+json"  # without a charset: clients compare it exactly

Handler = Callable[[web.BaseRequest, Principal | None], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    handler: Handler
    scope: str | None  # None: open to everybody, and the principal is None


class HttpLimits(NamedTuple):
    max_body_bytes: int = 16 * 1024 * 1024
    deadline_ms: int = 10_000
    body_s: float = 60.0  # how long a body may take to arrive
    idle_s: float = 75.0  # how long a connection may stay without a whole request head
    answer_s: float = 60.0  # how long an answer may wait for its reader
    connections: int = 10_000
    in_flight_bytes: int = 512 * 1024 * 1024  # bodies of requests that are not answered, unpacked


class Problem(Exception):
    """An answer that is not a success; a handler raises it from anywhere."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, *, close: bool = False) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self._close = close

    def response(self) -> web.Response:
        response = problem_response(self.status, self.detail, self.headers)
        if self._close:
            response.force_close()
        return response


class Edge:
    """One worker's HTTP. `keys` and `decoder` are replaced as a whole when the configuration is read again."""

    def __init__(
        self,
        sink: Sink,
        decoder: Decoder,
        keys: Keys,
        limits: HttpLimits,
        *,
        clock_us: Callable[[], int],
        not_ready: Callable[[], Sequence[str]],
    ) -> None:
        """`not_ready` says why requests cannot be served now; nothing when they can."""
        self.decoder = decoder
        self.keys = keys
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", "/healthz"): Route(self._alive, None),
            ("GET", "/readyz"): Route(self._ready, None),
        }
        self.statuses: dict[int, int] = {}  # answers by status, for the metrics
        self.refused: dict[int, int] = {}  # requests by tenant, because of what is in flight
        self.connections = 0
        self.refused_connections = 0
        self.displaced_connections = 0  # closed for others when there were too many: no key had come over them
        self.in_flight = Shares(limits.in_flight_bytes)
        self.closing = False  # draining: every answer says `Connection: close`
        self._sink = sink
        self.limits = limits
        self._deadline_s = limits.deadline_ms / 1000
        self._clock_us = clock_us
        self._not_ready = not_ready

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The handler of `web.Server`."""
        try:
            if request.raw_path == EVENTS and request.method == "POST":
                response: web.StreamResponse = await self._events(request)
            else:
                response = await self._elsewhere(request)
        except Problem as refusal:
            response = refusal.response()
        except Unavailable as error:
            response = _not_now(error).response()
        except Exception as error:
            if isinstance(error, ConnectionError) and request.transport is None:
                response = problem_response(400, "The sender is gone.")  # nobody reads it
            else:
                log.exception("a request failed unexpectedly", method=request.method, path=request.path)
                response = problem_response(503, _UNEXPECTED, {"Retry-After": "1"})
                response.force_close()
        if self.closing or not request.content.is_eof():
            response.force_close()  # the rest of the body is drained for a while, then the connection goes
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        return response

    # ---- events

    async def _events(self, request: web.BaseRequest) -> web.Response:
        headers = request.headers
        echo = _echoed(headers.get("Idempotency-Key"))
        try:
            principal = self.authorized(request, INGEST)
            form = form_of(headers.get("Content-Type"), headers)
            if form is None:
                raise _unknown_media_type(headers.get("Content-Type"))
            room = _Room(self, principal.tenant)
            try:
                body = await self._body(request, room)
                outcome = await self._outcome(principal.tenant, _one_event(headers, body) if form is Form.BINARY else body)
            finally:
                room.give_back()
        except Problem as refusal:
            if echo:
                refusal.headers = {**(refusal.headers or {}), **echo}
            raise
        status, content = answer(outcome)
        return web.Response(body=content, status=status, headers={"Content-Type": _JSON, "Server": SERVER, **echo})

    def full(self, tenant: int) -> Problem:
        """What a request is told for which there is no room."""
        refusals = self.refused[tenant] = self.refused.get(tenant, 0) + 1
        retry = {"Retry-After": str(1 + refusals % 3)}  # senders that were refused together come again apart
        if self.in_flight.crowded(tenant):
            return Problem(429, "Too much of this tenant is in flight: send the same again, later.", retry)
        return Problem(503, "Too much is in flight: send the same again, later.", retry)

    async def _outcome(self, tenant: int, body: bytes) -> Outcome:
        deadline_s = asyncio.get_running_loop().time() + self._deadline_s
        try:
            self._sink.check(tenant)
            batch = self.decoder.decode_batch(tenant, body, self._clock_us())
            if not batch.received:
                return Outcome(0, 0, 0, ())
            return await self._sink.submit(batch, deadline_s)
        except Unusable as error:
            raise Problem(error.status, error.detail) from None
        except Unavailable as error:
            raise _not_now(error) from None

    async def _body(self, request: web.BaseRequest, room: _Room) -> bytes:
        headers = request.headers
        limits = self.limits
        content = request.content
        try:
            if not content.is_eof():
                length = request.content_length
                if length is not None and length > limits.max_body_bytes:
                    raise request_body.too_large(limits.max_body_bytes)
                room.cover(length or 0)  # before it is read
                if "Expect" in headers:
                    await _send_continue(request)
            body = await request_body.read(content, limits.max_body_bytes, limits.body_s, room.cover)
            encoding = headers.get("Content-Encoding")
            if encoding is not None:
                body = request_body.unpack(body, encoding, limits.max_body_bytes)
            room.cover(len(body))
            return body
        except request_body.Refused as refused:
            headers_of_it = {"Accept-Encoding": "gzip"} if refused.status == 415 else None
            raise Problem(refused.status, refused.detail, headers_of_it, close=not content.is_eof()) from None

    # ---- everything else

    async def _elsewhere(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == EVENTS and request.method == "POST":
            return await self._events(request)
        route = self.routes.get((request.method, path))
        if route is None:
            raise self._no_route(path)
        principal = None if route.scope is None else self.authorized(request, route.scope)
        return await route.handler(request, principal)

    def authorized(self, request: web.BaseRequest, scope: str) -> Principal:
        principal = self.keys.principal(request.headers.get("Authorization"))
        if principal is None:
            detail = "No API key that is known here: send `Authorization: Bearer KEY`."
            raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})
        cast(_Connection, request.protocol).known = True
        if scope not in principal.scopes:
            raise Problem(403, f'This key lacks the scope "{scope}"; it has: {", ".join(sorted(principal.scopes))}.')
        return principal

    def _no_route(self, path: str) -> Problem:
        methods = sorted({method for method, known in self.routes if known == path} | ({"POST"} if path == EVENTS else set()))
        if methods:
            return Problem(405, f"{path} takes {' and '.join(methods)} only.", {"Allow": ", ".join(methods)})
        return Problem(404, "There is nothing at this path; events go to POST /v1/events.")

    async def _alive(self, _request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        return json_response(b'{"status":"alive"}')

    async def _ready(self, _request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        reasons = self._not_ready()
        if reasons:
            raise Problem(503, " ".join(reasons), {"Retry-After": "1"})
        return json_response(b'{"status":"ready"}')


class _Room:
    """What one request holds of the bound on bodies in flight, until it is answered."""

    __slots__ = ("_edge", "_held", "_tenant")

    def __init__(self, edge: Edge, tenant: int) -> None:
        self._edge = edge
        self._tenant = tenant
        self._held = 0

    def cover(self, size: int) -> None:
        """Hold so much altogether. Raises Problem when it does not fit."""
        more = size - self._held
        if more > 0:
            if not self._edge.in_flight.fits(self._tenant, more):
                raise self._edge.full(self._tenant)
            self._edge.in_flight.take(self._tenant, more)
            self._held = size

    def give_back(self) -> None:
        self._edge.in_flight.give(self._tenant, self._held)


def _not_now(error: Unavailable) -> Problem:
    return Problem(429 if error.overloaded else 503, error.reason, {"Retry-After": str(error.retry_after_s)})


def json_response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers={"Content-Type": _JSON, "Server": SERVER})


def problem_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=problem(status, detail), status=status, headers={"Content-Type": _PROBLEM, "Server": SERVER, **(headers or {})}
    )


async def read_small(request: web.BaseRequest, most: int = 64 * 1024) -> bytes:
    """The body of an ordinary request, for the handlers of other routes. Raises Problem."""
    try:
        return await request_body.read(request.content, most, 10.0)
    except request_body.Refused as refused:
        raise Problem(refused.status, refused.detail, close=not request.content.is_eof()) from None


def _one_event(headers: Mapping[str, str], data: bytes) -> bytes:
    if data:
        try:
            check_one(data)  # else what follows the first value would become part of the event
        except Unusable as error:
            raise Problem(error.status, error.detail) from None
    return structured(headers, data)


def _unknown_media_type(content_type: str | None) -> Problem:
    said = "Content-Type is missing" if content_type is None else "This Content-Type is not read"
    allowed = f"{', '.join(STRUCTURED_TYPES)}, or a JSON body with `ce-` headers"
    return Problem(415, f"{said}: send {allowed}.", {"Accept": ", ".join(STRUCTURED_TYPES)})


def _echoed(key: str | None) -> dict[str, str]:
    if key and len(key) <= _MOST_ECHOED and key.isascii() and key.isprintable():
        return {"Idempotency-Key": key}
    return {}


async def _send_continue(request: web.BaseRequest) -> None:
    """The sender waits for a word before it sends its body."""
    if request.headers["Expect"].lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


# ---- the server


class _Connection(web.RequestHandler):
    """aiohttp's connection, with our answers to what is not HTTP."""

    __slots__ = ("_edge", "_unread", "_wire", "known")

    known: bool  # a key has come over it: it does not give way to others

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = cast(_Server, self._manager)
        edge = server.edge
        self.known = False
        self._unread: asyncio.TimerHandle | None = None
        self._wire = cast(asyncio.Transport, transport)
        if edge.connections < edge.limits.connections or server.displace():
            self._edge: Edge | None = edge  # None: it does not count, or no longer
            edge.connections += 1
            server.unknown[self] = None
            super().connection_made(transport)
            return
        self._edge = None
        edge.refused_connections += 1
        self._force_close = True  # whatever it sends is not read
        self._wire.write(_FULL)
        self._wire.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._manager is not None:
            cast(_Server, self._manager).unknown.pop(self, None)
        self._uncount()
        self._stop_waiting()
        super().connection_lost(exc)

    def displace(self) -> None:
        self._uncount()
        self.force_close()

    def _uncount(self) -> None:
        if self._edge is not None:
            self._edge.connections -= 1
            self._edge = None

    # An answer that nobody reads holds its connection, closed or not, for as long as the peer's system is alive: aiohttp waits for ever.

    async def start(self) -> None:
        try:
            await super().start()
        finally:
            if self._wire.get_write_buffer_size():
                self._wait_for_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._wire.is_closing():
            self._stop_waiting()

    def _wait_for_reader(self) -> None:
        if self._unread is None and self._manager is not None:
            self._unread = self._loop.call_later(cast(_Server, self._manager).edge.limits.answer_s, self._wire.abort)

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and (self._current_request is not None or len(self._messages) > 1):
            self._end_broken_bodies()

    def _end_broken_bodies(self) -> None:
        """A message behind a body that has not ended is an error in that body: without this its reader would wait for the rest."""
        contents = [content for _, content in self._messages]
        if self._current_request is not None:
            contents.insert(0, self._current_request.content)
        for content in contents[:-1]:
            if not content.is_eof() and content.exception() is None:
                content.set_exception(web.RequestPayloadError("the body is broken"))

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        if status >= 500:
            log.error("a request failed unexpectedly", exc_info=exc)
            response = problem_response(503, _UNEXPECTED, {"Retry-After": "1"})
        else:
            response = problem_response(status, "This is not an HTTP request that can be read.")
        response.force_close()
        return response


def _full() -> bytes:
    body = problem(503, "Too many connections are open here: try again, later.")
    head = f"HTTP/1.1 503 Service Unavailable\r\nServer: {SERVER}\r\nContent-Type: {_PROBLEM}\r\nRetry-After: 2\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


_FULL = _full()


class _Server(web.Server):
    def __init__(self, edge: Edge, **settings: Any) -> None:
        super().__init__(edge.handle, **settings)
        self.edge = edge
        self.unknown: OrderedDict[_Connection, None] = OrderedDict()  # no key had come over them when last looked at; oldest first

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def displace(self) -> bool:
        """Close the oldest connection over which no key has come, so that strangers cannot keep customers out. Whether there was one."""
        while self.unknown:
            oldest, _ = self.unknown.popitem(last=False)
            if not oldest.known:
                self.edge.displaced_connections += 1
                oldest.displace()
                return True
        return False


def make_server(edge: Edge) -> web.Server:
    """For `loop.create_server` or `create_unix_server`; made on the loop that serves. Bodies arrive as they were sent, packed or not."""
    settings: dict[str, Any] = {
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": edge.limits.idle_s,
        "lingering_time": _LINGER_S,
        "read_bufsize": _READ_BYTES,
    }
    return _Server(edge, **settings)
