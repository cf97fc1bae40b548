"""Claims over Redis: one ordered connection, one script execution a call.

Belongs here: the life of the connection (connect, enter, serve, begin again) and the hot path, where a call becomes bytes. The store's
law is in lua/, the order of entering in rebuild.py. Must not know: the journal, HTTP, meters.

Each connection is a session. The reply to a call is either its verdict (or its refusal with the horizon) or the end of the connection:
then a new one says hello first, and all unanswered calls go out again, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from dedupe.clearance import Clearance
from dedupe.ordered_connection import ConnectionEnded, OrderedConnection, pack
from dedupe.port import Call, History, Identity, Refused, Reply, State, UnsuitableStore, Verdicts
from dedupe.rebuild import StartOver, enter, refused
from dedupe.redis_address import RedisAddress
from dedupe.redis_info import QUESTION, SAFE_POLICY, Info, check_mode, check_policy, clocks_differ, read_info
from dedupe.scripts import HEAD, NAMESPACE, Context, arguments_of, context_arguments, context_of, load

log = logging.getLogger(__name__)

IDLE_MARK_S = 0.04  # a mark goes out by itself within 50 ms
LOOK_S = 5.0  # how often it is looked whether the store may lose claims; and, by who is idle, whether it is open: others may join again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
ERA_BYTES = 16

OnReply = Callable[[Reply], None]


class RedisClaims:
    """The Claims port for one incarnation.

    `reason` says in words why the state is not OPEN; `joined`, whether the store has all that the journal claims, open or not.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        identity: Identity,
        clock_us: Callable[[], int],
        entropy: Callable[[int], bytes],
        namespace: str = NAMESPACE,
        timeout_s: float = 5.0,
        clearance: Clearance | None = None,
    ) -> None:
        """`clearance`: what this shard shares with the others of its writer, where there are others."""
        self.reason = "not connected yet"
        self.joined = self.accepted = False
        self.clock_off_us: int | None = None
        self._told_clock = False
        self._address = address
        self._identity = identity
        self._clock_us = clock_us
        self._entropy = entropy
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._clearance = clearance
        self._scripts = load(identity.layout)
        self._state = State.DISCONNECTED
        self._session = 0
        self._known_in = ""  # the replication id that was entered last
        self._branch = b""
        self._connection: OrderedConnection | None = None
        self._context: Context | None = None
        self._unanswered: deque[tuple[Call, OnReply]] = deque()
        self._headers: list[bytes] = []  # by number of sections: everything of a claim command before ARGV[9]
        self._mark = 0
        self._marked = 0  # the highest mark sent on this connection
        self._evicted = 0  # keys that the server had evicted before this connection
        self._idle: asyncio.TimerHandle | None = None
        self._served = False  # this connection has answered a call: the next failure is a new one
        self._closing = False

    @property
    def state(self) -> State:
        return self._state

    # ---- the life of the connection

    async def run(self, history: History) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closing:
            self._served = False
            reason = "not connected"
            try:
                await self._enter(history)
                await self._serve()
            except (ConnectionEnded, StartOver, OSError, TimeoutError) as error:
                not_let_in = self._address.not_let_in(str(error))
                if not_let_in is not None and not self.accepted:
                    raise UnsuitableStore(not_let_in) from None  # who was let in before tries again: a password may be being changed
                reason = not_let_in or f"{self._address.name}: {str(error) or type(error).__name__}"
                log.warning("claims: %s", reason)
            except UnsuitableStore as error:
                if not self.accepted:
                    raise
                reason = str(error)  # somebody changed a store that was suitable: what is journalled goes on, and it may be changed back
                log.error("claims: %s", reason)
            finally:
                self._drop_connection(reason)
            if not self._closing:
                pause_s = FIRST_PAUSE_S if self._served else min(2 * pause_s, LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s)

    async def _enter(self, history: History) -> None:
        connection = self._connection = await OrderedConnection.open(self._address.connect, self._timeout_s)
        await self._prepare(connection)
        if self._clearance is not None and not self.accepted:
            await self._look_at(history, connection)
            self._on_rebuilding("waiting for the other shards to look at this journal")
            await self._clearance.by(self._identity.shard)
        self._session += 1
        self._context = context_of(self._identity, history.writer, history.incarnation, self._session)
        self._headers = []
        self._marked = 0
        self._known_in, self._branch = await enter(
            self._ask,
            history,
            clock_us=self._clock_us,
            era=self._entropy(ERA_BYTES),
            known_in=self._known_in,
            on_rebuilding=self._on_rebuilding,
            on_joined=self._on_joined,
        )

    async def _prepare(self, connection: OrderedConnection) -> None:
        """Who we are, which database, the scripts; and a look at what it is, and at the one setting that loses claims."""
        address = self._address
        for command in address.introduction:
            await connection.ask(pack(command))
        found = read_info(cast(bytes, await connection.ask(QUESTION)))
        check_mode(address.name, found.mode)
        if found.policy != SAFE_POLICY and found.evicted:
            await self._close_store(connection)
        check_policy(address.name, found.policy)
        self._evicted = found.evicted
        for script in self._scripts.values():
            await connection.ask(pack([b"SCRIPT", b"LOAD", script.text]))

    async def _close_store(self, connection: OrderedConnection) -> None:
        """It may lack claims, and whoever mends the policy may restart it, which forgets how many keys were evicted: so the store itself
        must say that it is not complete. A replica refuses this, and is no store."""
        for key in (b"open", b"join"):
            with suppress(ConnectionEnded):
                await connection.ask(pack([b"HDEL", self._namespace.encode() + key, b"replid"]))

    async def _look_at(self, history: History, connection: OrderedConnection) -> None:
        """Raises StaleJournal where `publish` would, and WrongLog where the claims are another share of the tenants; writes nothing."""

        async def look(command: bytes, key: str, *fields: bytes) -> object:
            return await connection.ask(pack([command, f"{self._namespace}{key}".encode(), *fields]))

        (identity,) = cast(Sequence[bytes | None], await look(b"HMGET", "open", b"identity"))
        if identity not in (None, context_of(self._identity, history.writer, history.incarnation, 0).identity):
            refused([b"wrong_identity", identity])
        named = cast(bytes | None, await look(b"GET", f"writer:{history.writer.hex()}"))
        known = [incarnation.hex().encode() for incarnation, _ in history.closed]
        if named is not None and named not in known and named != history.incarnation.hex().encode():
            refused([b"stale_journal", named, b"unknown"])
        for incarnation, last in history.closed:
            mark, closed = cast(Sequence[bytes | None], await look(b"HMGET", f"w:{incarnation.hex()}", b"mark", b"closed"))
            if (mark is not None and int(mark) > last) or (closed is not None and int(closed) != last):
                refused([b"stale_journal", incarnation.hex().encode(), b"mark" if closed is None else b"closed"])

    async def _serve(self) -> None:
        """Send what is unanswered, in call order; then calls go out as they come, until the connection ends."""
        connection = self._connection
        assert connection is not None
        if connection.ended.done():
            connection.ended.result()
        self._unanswered = deque(sorted(self._unanswered, key=lambda waiting: waiting[0].number))
        self._state, self.reason = State.OPEN, ""
        log.info("claims: open at %s", self._address.name)
        self._look_at_server()  # before any call: what was evicted while we entered is told before the verdicts are
        for call, _ in self._unanswered:
            self._transmit(call)
        if self._mark > self._marked:
            self._schedule_mark()
        while not connection.ended.done():
            await asyncio.wait((connection.ended,), timeout=LOOK_S)
            if not self._closing:
                self._look_at_server()
                if not self._unanswered:
                    self._send_mark()
        connection.ended.result()

    def _look_at_server(self) -> None:
        connection = self._connection
        if connection is not None and not connection.ended.done():
            connection.send(QUESTION, self._on_info)

    def _on_info(self, reply: object) -> None:
        if not isinstance(reply, bytes):
            self._give_up(reply)
            return
        try:
            found = read_info(reply)
            check_policy(self._address.name, found.policy)
            if found.evicted != self._evicted:  # less: somebody reset the count, and hello looks at what that hides
                raise StartOver(f"it has evicted {found.evicted} keys, {self._evicted} of them before: claims may be among them")
        except (UnsuitableStore, StartOver) as error:
            self._end(error)
            return
        self._compare_clocks(found)

    def _compare_clocks(self, found: Info) -> None:
        if found.clock_us is None:
            return
        self.clock_off_us = self._clock_us() - found.clock_us  # the way of the answer is in it, which is far from a word's worth
        told = clocks_differ(self._address.name, self.clock_off_us)
        if told is not None and not self._told_clock:
            log.warning("claims: %s", told)
        self._told_clock = told is not None

    def _not_open(self, state: State, reason: str) -> None:
        self._state, self.reason = state, reason

    def _on_rebuilding(self, reason: str) -> None:
        if (self._state, self.reason) != (State.REBUILDING, reason):
            self._not_open(State.REBUILDING, reason)
            log.info("claims: %s", reason)

    def _on_joined(self) -> None:
        self.joined = self.accepted = True

    def _drop_connection(self, reason: str) -> None:
        self.joined = False
        self.clock_off_us = None
        self._not_open(State.DISCONNECTED, reason)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end(ConnectionEnded("given up"))

    async def _ask(self, name: str, *arguments: object) -> Sequence[object]:
        connection, context = self._connection, self._context
        assert connection is not None and context is not None
        command = [b"EVALSHA", self._scripts[name].sha, b"0"]
        command += context_arguments(self._namespace, context) + arguments_of(name, *arguments)
        return cast(Sequence[object], await connection.ask(pack(command)))

    # ---- the hot path

    def send(self, call: Call, on_reply: OnReply) -> None:
        self._unanswered.append((call, on_reply))
        if self._state is State.OPEN:
            self._transmit(call)

    def _transmit(self, call: Call) -> None:
        connection = self._connection
        assert connection is not None
        if not connection.ended.done():
            number, sections, oldest_us, newest_us, copies = call
            mark = self._marked = self._mark
            head = HEAD.pack(number, mark, self._clock_us(), oldest_us, newest_us)
            header = self._claim_header(len(sections), copies) if copies else self._header(len(sections))
            parts = [header, head, copies, b"\r\n"]
            for tenant, digests, fingerprints in sections:
                name = b"%d" % tenant
                parts += (b"$%d\r\n%b\r\n$%d\r\n" % (len(name), name, len(digests) + len(fingerprints)), digests, fingerprints, b"\r\n")
            connection.send(b"".join(parts), self._answer)

    def _header(self, sections: int) -> bytes:
        while len(self._headers) <= sections:
            self._headers.append(self._claim_header(len(self._headers)))
        return self._headers[sections]

    def _claim_header(self, sections: int, copies: bytes = b"") -> bytes:
        assert self._context is not None
        first = [b"EVALSHA", self._scripts["claim"].sha, b"0", *context_arguments(self._namespace, self._context)]
        packed = pack(first).split(b"\r\n", 1)[1]
        return b"*%d\r\n%b$%d\r\n" % (len(first) + 1 + 2 * sections, packed, HEAD.size + len(copies))

    def _answer(self, reply: object) -> None:
        if isinstance(reply, list):
            status = reply[0]
            if status == b"verdicts":
                self._served = True
                call, on_reply = self._unanswered.popleft()
                on_reply(Verdicts(call.number, reply[1], reply[2], reply[3], reply[4], self._branch))
                return
            if status == b"late":
                call, on_reply = self._unanswered.popleft()
                on_reply(Refused(call.number, reply[1]))
                return
        self._give_up(reply)

    def _give_up(self, reply: object) -> None:
        """Not a verdict."""
        try:
            if isinstance(reply, list):
                refused(reply)
            raise ConnectionEnded(f"the server answered: {reply}")
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        """This connection is over, and no later reply on it counts."""
        self._state = State.DISCONNECTED
        connection = self._connection
        assert connection is not None
        connection.end(error)

    # ---- marks, and the end

    def raise_mark(self, mark: int) -> None:
        if mark > self._mark:
            self._mark = mark
            if self._idle is None:
                self._schedule_mark()

    def _schedule_mark(self) -> None:
        if self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_MARK_S, self._publish_mark)

    def _publish_mark(self) -> None:
        self._idle = None
        if self._mark > self._marked:
            self._send_mark()

    def _send_mark(self) -> None:
        connection = self._connection
        if self._state is State.OPEN and connection is not None and not connection.ended.done():
            self._marked = self._mark
            head = HEAD.pack(0, self._mark, self._clock_us(), 0, 0)
            connection.send(b"%b%b\r\n" % (self._header(0), head), self._mark_answer)

    def _mark_answer(self, reply: object) -> None:
        if not (isinstance(reply, list) and reply[0] == b"marked"):
            self._give_up(reply)

    async def close(self, last_call: int) -> None:
        """Best done, not needed: where it does not get through, the next opening of the journal publishes it."""
        assert not self._unanswered, "calls must be finished first"
        self._closing = True
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        connection = self._connection
        if self._state is State.OPEN and connection is not None and not connection.ended.done():
            try:
                reply = await self._ask("close", last_call)
            except ConnectionEnded as error:
                log.warning("claims: could not publish the end of this incarnation: %s", error)
            else:
                if reply[0] != b"closed":
                    log.warning("claims: the end of this incarnation was refused: %s", reply)
        if connection is not None:
            connection.end(ConnectionEnded("closed"))
        self._not_open(State.DISCONNECTED, "closed")
