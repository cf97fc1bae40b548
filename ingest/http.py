"""The HTTP edge: from a request to an answer.

Belongs here: routes, credentials and scopes at work, headers, statuses. Must not know: how events are decoded or counted, which sink stands
behind it, how connections come and go (connection.py).

The hot route comes first, without router or middleware. Every other route is in a dict that the front door extends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import structlog
from aiohttp import HttpVersion11, web

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
UNEXPECTED = "Something unexpected went wrong here; it is in the log. Sending the same bytes again is safe."

JSON = "application/json"
PROBLEM = "application/problem+json"  # without a charset: clients compare it exactly

Handler = Callable[[web.BaseRequest, Principal | None], Awaitable[web.StreamResponse]]


class Known(Protocol):
    """A connection, as far as the edge marks it."""

    tenant: int | None  # whose key came over it first; None: none has, and it gives way to others

    def belong(self, tenant: int) -> bool:
        """From now on it is this tenant's. False: that one has too many."""


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

    where_events_go = "Events go to POST /v1/events."

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
        self.connections_of = Shares(limits.connections)  # those over which a key has come
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
        except Exception as error:
            if isinstance(error, ConnectionError) and request.transport is None:
                response = problem_response(400, "The sender is gone.")  # nobody reads it
            else:
                response = refusal(error, {}, request.path)
        # The rest of a body is drained for a while, then the connection goes. And who speaks HTTP/1.0 may frame chunks otherwise.
        if self.closing or not request.content.is_eof() or (request.version < HttpVersion11 and "Transfer-Encoding" in request.headers):
            response.force_close()
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        return response

    # ---- events

    async def _events(self, request: web.BaseRequest) -> web.Response:
        headers = request.headers
        echo = echoed(headers)
        try:
            admitted = self.admit(headers, cast(Known, request.protocol))
            room = Room(self, admitted.tenant)
            try:
                body = await self._body(request, room)
                outcome = await self.submit(admitted, body, room)
            finally:
                room.give_back()
        except (Problem, Unavailable) as error:
            return refusal(error, echo)
        status, content = answer(outcome)
        return web.Response(body=content, status=status, headers={"Content-Type": JSON, "Server": SERVER, **echo})

    def admit(self, headers: Mapping[str, str], connection: Known) -> Admitted:
        """What the head of a request alone decides. Raises Problem."""
        principal = self._authorized(headers, connection, INGEST)
        content_type = headers.get("Content-Type")
        form = form_of(content_type, headers)
        if form is None:
            raise _unknown_media_type(content_type)
        return Admitted(principal.tenant, form, headers, headers.get("Content-Encoding"))

    def submit(self, admitted: Admitted, body: bytes, room: Room) -> Awaitable[Outcome]:
        """Decode a body and hand over what is in it. Raises Problem or Unavailable; so does waiting for the outcome."""
        tenant = admitted.tenant
        deadline_s = asyncio.get_running_loop().time() + self._deadline_s
        if admitted.encoding is not None:
            body = self._unpack(body, admitted.encoding)
        room.cover(len(body))
        if admitted.form is Form.BINARY:
            body = _one_event(admitted.headers, body)
        try:
            self._sink.check(tenant)
            batch = self.decoder.decode_batch(tenant, body, self._clock_us())
            return self._sink.submit(batch, deadline_s) if batch.received else _nothing()
        except Unusable as error:
            raise Problem(error.status, error.detail) from None

    def full(self, tenant: int) -> Problem:
        """What a request is told for which there is no room."""
        refusals = self.refused[tenant] = self.refused.get(tenant, 0) + 1
        retry = {"Retry-After": str(1 + refusals % 3)}  # senders that were refused together come again apart
        if self.in_flight.crowded(tenant):
            return Problem(429, "Too much of this tenant is in flight: send the same again, later.", retry)
        return Problem(503, "Too much is in flight: send the same again, later.", retry)

    async def _body(self, request: web.BaseRequest, room: Room) -> bytes:
        limits = self.limits
        content = request.content
        try:
            if not content.is_eof():
                length = request.content_length
                if length is not None and length > limits.max_body_bytes:
                    raise request_body.too_large(limits.max_body_bytes)
                room.cover(length or 0)  # before it is read
                if "Expect" in request.headers:
                    await _send_continue(request)
            return await request_body.read(content, limits.max_body_bytes, limits.body_s, room.cover)
        except request_body.Refused as refused:
            raise Problem(refused.status, refused.detail, close=not content.is_eof()) from None

    def bounded(self, body: bytes) -> bytes:
        """A body of which all is here. Raises Problem."""
        try:
            return request_body.bounded(body, self.limits.max_body_bytes)
        except request_body.Refused as refused:
            raise Problem(refused.status, refused.detail) from None

    def _unpack(self, body: bytes, encoding: str) -> bytes:
        try:
            return request_body.unpack(body, encoding, self.limits.max_body_bytes)
        except request_body.Refused as refused:
            raise Problem(
                refused.status, refused.detail, {"Accept-Encoding": request_body.ACCEPTED} if refused.status == 415 else None
            ) from None

    # ---- everything else

    async def _elsewhere(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == EVENTS and request.method == "POST":
            return await self._events(request)
        method = "GET" if request.method == "HEAD" else request.method  # load balancers ask so; only the head is sent
        route = self.routes.get((method, path))
        if route is None:
            raise self._no_route(path)
        principal = None if route.scope is None else self.authorized(request, route.scope)
        return await route.handler(request, principal)

    def authorized(self, request: web.BaseRequest, scope: str) -> Principal:
        return self._authorized(request.headers, cast(Known, request.protocol), scope)

    def _authorized(self, headers: Mapping[str, str], connection: Known, scope: str) -> Principal:
        principal = self.keys.principal(headers.get("Authorization"))
        if principal is None:
            detail = "No API key that is known here: send `Authorization: Bearer KEY`."
            raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})
        if connection.tenant is None and not connection.belong(principal.tenant):
            self.refused_connections += 1
            detail = "Too many connections of this tenant are open: send more over each of them."
            raise Problem(429, detail, {"Retry-After": "2"}, close=True)
        if scope not in principal.scopes:
            raise Problem(403, f'This key lacks the scope "{scope}"; it has: {", ".join(sorted(principal.scopes))}.')
        return principal

    def _no_route(self, path: str) -> Problem:
        methods = sorted({method for method, known in self.routes if known == path} | ({"POST"} if path == EVENTS else set()))
        if methods:
            return Problem(405, f"{path} takes {' and '.join(methods)} only.", {"Allow": ", ".join(methods)})
        return Problem(404, f"There is nothing at this path. {self.where_events_go}")

    async def _alive(self, _request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        return json_response(b'{"status":"alive"}')

    async def _ready(self, _request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        reasons = self._not_ready()
        if reasons:
            raise Problem(503, " ".join(reasons), {"Retry-After": "1"})
        return json_response(b'{"status":"ready"}')


class Admitted(NamedTuple):
    """What the head of a request comes to."""

    tenant: int
    form: Form
    headers: Mapping[str, str]
    encoding: str | None  # of the body


class Room:
    """What one request holds of the bound on bodies in flight, until it is answered."""

    __slots__ = ("_edge", "_held", "tenant")

    def __init__(self, edge: Edge, tenant: int) -> None:
        self._edge = edge
        self.tenant = tenant
        self._held = 0

    def cover(self, size: int) -> None:
        """Hold so much altogether. Raises Problem when it does not fit."""
        more = size - self._held
        if more > 0:
            if not self._edge.in_flight.fits(self.tenant, more):
                raise self._edge.full(self.tenant)
            self._edge.in_flight.take(self.tenant, more)
            self._held = size

    def give_back(self) -> None:
        self._edge.in_flight.give(self.tenant, self._held)


def refusal(error: Exception, echo: Mapping[str, str], path: str = EVENTS) -> web.Response:
    """The answer to a request that raised this."""
    if isinstance(error, Unavailable):
        error = _not_now(error)
    if isinstance(error, Problem):
        response = error.response()
    else:
        log.error("a request failed unexpectedly", exc_info=error, path=path)
        response = problem_response(503, UNEXPECTED, {"Retry-After": "1"})
        response.force_close()
    response.headers.update(echo)
    return response


async def _nothing() -> Outcome:
    """Of a request without events."""
    return Outcome(0, 0, 0, ())


def _not_now(error: Unavailable) -> Problem:
    return Problem(429 if error.overloaded else 503, error.reason, {"Retry-After": str(error.retry_after_s)})


def json_response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers={"Content-Type": JSON, "Server": SERVER})


def problem_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=problem(status, detail), status=status, headers={"Content-Type": PROBLEM, "Server": SERVER, **(headers or {})})


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


def echoed(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a request's headers comes back with its answer, whatever that is."""
    key = headers.get("Idempotency-Key")
    if key and len(key) <= _MOST_ECHOED and key.isascii() and key.isprintable():
        return {"Idempotency-Key": key}
    return {}


async def _send_continue(request: web.BaseRequest) -> None:
    """The sender waits for a word before it sends its body."""
    if request.headers["Expect"].lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
