"""Connections and the server of them: aiohttp's, with our answers to what is not HTTP, bounds on connections, and a direct way.

Belongs here: what depends on the state of a connection. Must not know: what a request means; that is the edge's (http.py).

The direct way: a request to the hot route whose body has come with its head, as small ones do, is answered from here, without the task,
the request and the response that aiohttp makes for every other. Its parser reads both kinds, and its queue holds both. While a direct
request is under way the loop of aiohttp sleeps: the future that would wake it (`_waiter`) is kept in `_parked`.

A direct request with the head of the one before it (known_head.py) is not parsed at all. That is only right where the parser stands
between two messages, so it is kept in mind where it stands (`_between`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, cast

import msgspec
import structlog
from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpRequestParser, RawRequestMessage

from ingest.auth import Keys
from ingest.http import EVENTS, JSON, PROBLEM, SERVER, UNEXPECTED, Admitted, Edge, Room, echoed, problem_response, refusal
from ingest.known_head import KnownHead
from ingest.sink import Outcome
from ingest.verdict import ALL_COUNTED, ALL_REJECTED, SOME_REJECTED, answer, problem

log = structlog.get_logger()

_READ_BYTES = 512 * 1024  # a usual body arrives without the socket being stopped and started again
_MOST_IN_VAIN = 8  # heads in a row that are looked at and do not come again: a sender that never repeats one shall not pay for it
_MOST_HEAD_BYTES = 32 * 1024  # of a head that comes in pieces: it is kept until it ends, for whoever sends it
_REMEDIES = {  # by what aiohttp's parser says of a head, or how it begins
    "Got more than": "no line, and no header, may be longer",
    "Too many headers": "send at most 128",
    "Missing": "send it",
    "Duplicate": "send it once",
}
_END_OF_HEAD = b"\r\n\r\n"
_BACKLOG = 1024  # connections that nobody has accepted yet
_LINGER_S = 5.0  # how long the rest of a refused body is read and thrown away, so that the sender sees the answer


class Connection(web.RequestHandler):
    __slots__ = (
        "_begun",
        "_between",
        "_body",
        "_content",
        "_crowded",
        "_direct",
        "_edge",
        "_head",
        "_in_vain",
        "_last",
        "_parked",
        "_unread",
        "_upgrading",
        "_wire",
        "tenant",
    )

    tenant: int | None  # whose key came over it first; None: none has, and it gives way to others

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = cast(Server, self._manager)
        edge = server.edge
        self.tenant = None
        self._crowded = False  # so many messages were in the queue that the parser may have stopped
        self._between = True  # the parser has read whole messages and nothing after them; False: perhaps not
        self._body: StreamReader | None = None  # the parser was within it when something last came
        self._content: StreamReader = EMPTY_PAYLOAD  # the body of the last message
        self._upgrading = False  # that one wants another protocol
        self._begun = 0  # bytes of a head that has begun behind it, or a few less
        self._head: KnownHead | None = None  # of the message that came last, if it came alone
        self._last: _Last | None = None
        self._in_vain = 0
        self._direct: _Direct | None = None  # the direct request that is under way
        self._parked: asyncio.Future[None] | None = None
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
            cast(Server, self._manager).unknown.pop(self, None)
        self._uncount()
        self._stop_waiting()
        self._body, self._content = None, EMPTY_PAYLOAD  # their readers know this connection
        super().connection_lost(exc)

    def displace(self) -> None:
        self._uncount()
        self.force_close()

    def belong(self, tenant: int) -> bool:
        edge = self._edge
        if edge is not None:
            if not edge.connections_of.fits(tenant, 1):
                return False
            edge.connections_of.take(tenant, 1)
            self.tenant = tenant
        return True

    def _uncount(self) -> None:
        if self._edge is not None:
            self._edge.connections -= 1
            if self.tenant is not None:
                self._edge.connections_of.give(self.tenant, 1)
            self._edge = None

    # An answer that nobody reads holds its connection, closed or not, for as long as the peer's system is alive: aiohttp waits for ever.

    async def start(self) -> None:
        try:
            await super().start()
        finally:
            if self._wire.get_write_buffer_size():
                self._wait_for_reader()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._message_tail and not self._messages:
            self._read_on_behind_an_upgrade()
        if self._close:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def _read_on_behind_an_upgrade(self) -> None:
        """aiohttp keeps what stands behind a request for a protocol that it knows, and parses it when that is refused. This does the same
        before it, so that what it brings is looked at as all that comes."""
        if self._parser is not None:
            tail, self._message_tail, self._upgraded = self._message_tail, b"", False
            self._parser.set_upgraded(False)
            self._receive(tail)
            if self._buffer_paused:
                self._resume_reading_if_drained()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._wire.is_closing():
            self._stop_waiting()

    def _wait_for_reader(self) -> None:
        if self._unread is None and self._manager is not None:
            self._unread = self._loop.call_later(cast(Server, self._manager).edge.limits.answer_s, self._wire.abort)

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done() or self._edge is None:
            self._receive(data)
            return
        self._parked, self._waiter = waiter, None
        if not self._begin_like_the_last(data):
            self._receive(data)
        self._go_on()

    def _receive(self, data: bytes) -> None:
        last = b""
        if self._upgrading and len(data) > 1 and not self._content.is_eof():
            data, last = data[:-1], data[-1:]  # see _end_behind_an_upgrade
        queued, within = len(self._messages), not self._content.is_eof()
        body = None if self._body is None or self._body.is_eof() else self._body  # its end may have come without another byte
        come, all_read = 0 if body is None else body.total_bytes, not self._reading_paused
        super().data_received(data)
        messages = len(self._messages) - queued
        if messages:
            message, self._content = self._messages[-1]
            self._upgrading = getattr(message, "upgrade", False)
        if data:
            self._see_where_the_parser_stands(data, messages, body, come, all_read)
        if messages:
            self._begun = _behind(data, self._content.total_bytes) if self._content.is_eof() else 0
        elif not within:
            self._bound_the_head(len(data))
        if self._upgrading and self._content.is_eof():
            self._end_behind_an_upgrade()
        if len(self._messages) >= self._max_msg_queue_size - 1:
            self._crowded = True
        if self._messages and (self._current_request is not None or len(self._messages) > 1):
            self._end_broken_bodies()
        if last:
            self._receive(last)

    def _bound_the_head(self, more: int) -> None:
        """Of what has come nothing is a whole head. aiohttp bounds each header, and how many there are: a megabyte is within that."""
        idle = self._parked is not None and self._direct is None and not self._messages  # else the answer would come before others
        if not idle or self._upgraded or self._edge is None:
            return
        self._begun += more
        if self._begun > _MOST_HEAD_BYTES:
            self._edge.statuses[431] = self._edge.statuses.get(431, 0) + 1
            self._wire.write(_LARGE_HEAD)
            self.force_close()

    def _see_where_the_parser_stands(self, data: bytes, messages: int, body: StreamReader | None, come: int, all_read: bool) -> None:
        """After `data`, which brought so many messages. `body`: it was within this one, of which `come` bytes were there. `all_read`: it
        had kept nothing to read later, which it does when the reader of a body is slow.

        Upgraded: what stood behind the head, whatever length that names, is kept by aiohttp and parsed later. A CONNECT has no body.
        """
        between, self._between, self._head = self._between, False, None
        if messages:
            content = self._messages[-1][1]
            self._body = None if content.is_eof() else content
            if self._body is None and between and len(self._messages) == 1 and not self._upgraded:
                behind = len(data) - data.find(_END_OF_HEAD) - len(_END_OF_HEAD) - content.total_bytes  # more than 0 of one in chunks
                self._between = not behind or (self._upgrading and _ends_with(data, self._loop))
                if not behind and content.total_bytes and self._in_vain < _MOST_IN_VAIN:
                    self._in_vain += 1
                    self._head = KnownHead.of(data)
        elif body is not None and body.is_eof():
            self._between = body.total_bytes - come == len(data) or (len(data) == 1 and all_read)
            self._body = None

    def _end_behind_an_upgrade(self) -> None:
        """What comes with the end of a request for a protocol that aiohttp does not know, its parser drops, and reads on with what comes
        later: that must not be answered in the place of what was dropped. It answers the request that is the first by now, no other.

        So such a request leaves its connection open only where it is known that nothing came with its end. That of a body is looked for
        byte by byte as it were: the last byte of what comes is read by itself."""
        self._upgrading = False
        if not self._upgraded and not self._between:
            self.close()

    def _end_broken_bodies(self) -> None:
        """A message behind a body that has not ended is an error in that body: without this its reader would wait for the rest."""
        contents = [content for _, content in self._messages]
        if self._current_request is not None:
            contents.insert(0, self._current_request.content)
        for content in contents[:-1]:
            if not content.is_eof() and content.exception() is None:
                content.set_exception(web.RequestPayloadError("the body is broken"))

    # ---- the direct way

    def _go_on(self) -> None:
        """Take direct requests from the queue until one is under way. Where another one comes first, aiohttp's loop takes over."""
        while self._direct is None and self._messages and self._goes_direct(*self._messages[0]):
            message, content = self._messages.popleft()
            self._free_a_slot()
            self._begin_parsed(cast(RawRequestMessage, message).headers, self._whole(content))
        if self._direct is None:
            self._unpark()

    def _goes_direct(self, message: Any, content: StreamReader) -> bool:
        return (
            isinstance(message, RawRequestMessage)
            and message.path == EVENTS
            and message.method == "POST"
            and message.version == HttpVersion11
            and not message.should_close
            and not self._upgraded  # the last of the queue is for a protocol that aiohttp knows
            and content.is_eof()
            and content.exception() is None
            and self._takes_direct()
        )

    def _takes_direct(self) -> bool:
        edge = self._edge  # paused: earlier answers are not read
        return not (self._paused or self._close or self._force_close) and edge is not None and not edge.closing

    def _free_a_slot(self) -> None:
        """As `start` of aiohttp does for each message that it takes.

        Its parser takes one message for two once a body has come after its message was taken, and then stops one short of a full queue,
        which its own loop only comes over by reading bodies. So here it is asked once more when a long queue is through.
        """
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        elif self._crowded and not self._messages:
            self._crowded = False
            self._receive(b"")

    def _begin_like_the_last(self, data: bytes) -> bool:
        """Begin the request that `data` is, if it has the head of the last one. Whether it was begun, or refused."""
        last, edge = self._last, cast(Edge, self._edge)
        if last is None or not self._between or last.keys is not edge.keys or not self._takes_direct():
            return False
        body = last.head.body_of(data)
        if body is None:
            return False
        self._in_vain = 0
        self._begin(edge, last.admitted, body, last.echo)
        return True

    def _begin_parsed(self, headers: Mapping[str, str], body: bytes) -> None:
        edge, head = cast(Edge, self._edge), self._head
        self._head = self._last = None
        echo = echoed(headers)
        try:
            admitted = edge.admit(headers, self)
        except Exception as error:
            self._refuse(edge, error, echo)
            return
        if head is not None:
            self._last = _Last(head, admitted, echo, edge.keys)
        self._begin(edge, admitted, body, echo)

    def _begin(self, edge: Edge, admitted: Admitted, body: bytes, echo: Mapping[str, str]) -> None:
        room = Room(edge, admitted.tenant)
        try:
            outcome = asyncio.ensure_future(edge.submit(admitted, edge.bounded(body), room))
        except Exception as error:
            room.give_back()
            self._refuse(edge, error, echo)
            return
        self._direct = _Direct(edge, room, echo)
        outcome.add_done_callback(self._settled)

    def _whole(self, content: StreamReader) -> bytes:
        """The body, which is here. A single piece, as small ones are, is taken as it lies: reading it costs as much as counting it."""
        if content.__class__ is StreamReader and len(content._buffer) == 1 and not self._reading_paused:
            return content._buffer.popleft()
        return content.read_nowait()

    def _settled(self, future: asyncio.Future[Outcome]) -> None:
        assert self._direct is not None
        edge, room, echo = self._direct.edge, self._direct.room, self._direct.echo
        self._direct = None
        room.give_back()
        try:
            status, content = answer(future.result())
        except Exception as error:
            self._refuse(edge, error, echo)
        else:
            self._answer(edge, status, _HEADS[status] + _lines(echo) if echo else _HEADS[status], content)
        self._go_on()

    def _refuse(self, edge: Edge, error: Exception, echo: Mapping[str, str]) -> None:
        response = refusal(error, echo)
        head = _head(response.status, response.headers)
        self._answer(edge, response.status, head, cast(bytes, response.body), close=response.keep_alive is False)

    def _answer(self, edge: Edge, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        edge.statuses[status] = edge.statuses.get(status, 0) + 1
        if self.transport is None:  # the sender is gone
            return
        close = close or edge.closing
        if close:
            head += b"Connection: close\r\n"
        date = rfc822_formatted_time().encode()
        self.transport.write(b"%bContent-Length: %d\r\nDate: %b\r\n\r\n%b" % (head, len(body), date, body))
        if close:
            self.force_close()
            return
        self._next_keepalive_close_time = close_at = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)

    def _unpark(self) -> None:
        """aiohttp's loop goes on: with what is in the queue, or it waits."""
        waiter, self._parked = self._parked, None
        if waiter is None or waiter.done():
            return
        if self._force_close or (self._close and not self._messages):
            waiter.cancel()
            return
        self._waiter = waiter
        if self._messages:
            waiter.set_result(None)

    # ---- what is not HTTP

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        if status >= 500:
            log.error("a request failed unexpectedly", exc_info=exc)
            response = problem_response(503, UNEXPECTED, {"Retry-After": "1"})
        else:
            response = problem_response(status, _unreadable(message or ""))
        response.force_close()
        if self._edge is not None:
            self._edge.statuses[response.status] = self._edge.statuses.get(response.status, 0) + 1
        return response


def _behind(data: bytes, body: int) -> int:
    """How many bytes have come behind the last whole message, whose body has so many; or a few less."""
    head_end = len(data) - body
    if data.endswith(_END_OF_HEAD, 0, head_end):  # almost always; looking for it takes as long as a long body is
        return 0
    return max(0, head_end - data.rfind(_END_OF_HEAD) - len(_END_OF_HEAD))


def _unreadable(message: str) -> str:
    """What a sender is told to whom aiohttp says this. It may hold what was sent: only that is told whose remedy is clear."""
    said = message.partition(" when reading")[0].rstrip(".")
    for begin, remedy in _REMEDIES.items():
        if said.startswith(begin):
            return f"The head of the request cannot be read. {said}: {remedy}."
    return "This is not an HTTP request that can be read."


def _ends_with(data: bytes, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the request that these bytes begin with, and that is whole, needs the last of them."""
    again = HttpRequestParser(BaseProtocol(loop), loop, len(data), auto_decompress=False)
    messages, _, _ = again.feed_data(data[:-1])
    return not messages or not messages[0][1].is_eof()


class _Direct(msgspec.Struct, frozen=True):  # one a request: a NamedTuple takes five times as long to make
    edge: Edge
    room: Room
    echo: Mapping[str, str]


class _Last(NamedTuple):
    """What the last request that was parsed came to, but for its body."""

    head: KnownHead
    admitted: Admitted
    echo: Mapping[str, str]
    keys: Keys  # that were in force


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    """The first lines of an answer; its length, the date and the body follow."""
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode() + _lines(headers)


_HEADS = {status: _head(status, {"Content-Type": JSON, "Server": SERVER}) for status in (ALL_COUNTED, SOME_REJECTED, ALL_REJECTED)}


def _last_answer(status: int, detail: str, more: Mapping[str, str]) -> bytes:
    body = problem(status, detail)
    headers = {"Server": SERVER, "Content-Type": PROBLEM, **more, "Connection": "close", "Content-Length": str(len(body))}
    return _head(status, headers) + b"\r\n" + body


_FULL = _last_answer(503, "Too many connections are open here: try again, later.", {"Retry-After": "2"})
_LARGE_HEAD = _last_answer(431, f"The head of a request has at most {_MOST_HEAD_BYTES} bytes: send fewer or shorter headers.", {})


class Server(web.Server):
    def __init__(self, edge: Edge, **settings: Any) -> None:
        super().__init__(edge.handle, **settings)
        self.edge = edge
        self.unknown: OrderedDict[Connection, None] = OrderedDict()  # no key had come over them when last looked at; oldest first

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    def displace(self) -> bool:
        """Close the oldest connection over which no key has come, so that strangers cannot keep customers out. Whether there was one."""
        while self.unknown:
            oldest, _ = self.unknown.popitem(last=False)
            if oldest.tenant is None:
                self.edge.displaced_connections += 1
                oldest.displace()
                return True
        return False


def make_server(edge: Edge) -> Server:
    """For `loop.create_server` or `create_unix_server`; made on the loop that serves. Bodies arrive as they were sent, packed or not."""
    settings: dict[str, Any] = {
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": edge.limits.idle_s,
        "lingering_time": _LINGER_S,
        "read_bufsize": _READ_BYTES,
    }
    return Server(edge, **settings)


class Listening(NamedTuple):
    http: Server
    sockets: asyncio.AbstractServer


async def listen_at(edge: Edge, host: str, port: int) -> Listening:
    """Other processes may listen there, too."""
    http = make_server(edge)
    return Listening(http, await asyncio.get_running_loop().create_server(http, host, port, reuse_port=True, backlog=_BACKLOG))
