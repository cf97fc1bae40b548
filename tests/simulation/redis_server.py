"""A Redis of the simulation: speaks the protocol to the real RedisClaims, and executes scripts on a ClaimTable.

The twins test holds ClaimTable to the Lua scripts, so what is found here holds there. Faults: connections that lose what is under way in
either direction or keep it back, requests that arrive late on a connection that its client gave up (stale copies), a command that is
answered with an error while the next ones are executed, restarts, pauses, failovers.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import hiredis

from dedupe.claim_table import ClaimTable
from dedupe.port import Section
from dedupe.redis_address import RedisAddress
from dedupe.scripts import HEAD, Context, Reclaim, load
from tests.simulation.steps import Steps

_OK = b"+OK\r\n"
_SCRIPT_OF = {script.sha: name for name, script in load().items()}
_HEAD_AT = 11  # where a claim command has its head: EVALSHA, sha, number of keys, ARGV[1..8] stand before it
_ERRORS = (
    b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    b"-BUSY Redis is busy running a script.\r\n",
    b"-NOSCRIPT No matching script.\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
)


def _encode(value: object) -> bytes:
    if isinstance(value, list):
        return b"*%d\r\n%b" % (len(value), b"".join([_encode(item) for item in value]))
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    assert isinstance(value, int)
    return b":%d\r\n" % value


_NEVER_EVICTS = _encode(b"maxmemory_policy:noeviction\r\nevicted_keys:0\r\n")


class SimulatedRedis:
    """One address with one server behind it; which one it is can change (restart, failover)."""

    def __init__(self, rng: random.Random, clock_us: Callable[[], int], shard: int = 0) -> None:
        self._rng = rng
        self.shard = shard
        self.clock_off_us = 0
        self._clock_us = lambda: clock_us() + self.clock_off_us  # a function: tables are copied, and it stays
        self._connections: list[Transport] = []
        self._behind: ClaimTable | None = None  # a replica as it was at some moment
        self._older: ClaimTable | None = None  # the primary before the last failover: it lives on
        self._astray = False  # whether new connections end there
        self._strays: set[Steps] = set()  # the writers whose new connections end there
        self.table = self._new_table()
        self.down = False
        self.paused_until_s = 0.0
        self.executed: Counter[str] = Counter()  # scripts
        self.next_claim_fails = False  # the next claim is not executed, but answered with an error
        self.next_reply_lost = False  # the next claim is executed, and its connection breaks before the reply
        self._after: dict[tuple[str, Steps], list[Callable[[], object]]] = {}

    def _new_table(self) -> ClaimTable:
        return ClaimTable(self._clock_us, self._rng.randbytes(20).hex())

    def address(self, steps: Steps) -> RedisAddress:
        """For one writer, whose steps are told."""

        async def connect(factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
            await asyncio.sleep(self._rng.uniform(0.0001, 0.002))
            if self.down:
                raise ConnectionRefusedError("the simulated redis is down")
            transport = Transport(self, factory(), self._rng, steps)
            self._connections.append(transport)
            transport.protocol.connection_made(transport)
            return transport

        return RedisAddress(connect, name="simulated redis")

    def reached(self, steps: Steps | None = None) -> ClaimTable:
        """What a new connection ends at, of this writer or of most."""
        return self._older if (self._astray or steps in self._strays) and self._older is not None else self.table

    # ---- faults

    def connections(self, steps: Steps | None = None) -> list[Transport]:
        return [transport for transport in self._connections if steps is None or transport.steps is steps]

    def restart_empty(self) -> None:
        self._break_all()
        self.table = self._new_table()

    def restart_with_data(self) -> None:
        """What an append-only file keeps; the replication id changes all the same."""
        self._break_all()
        self.table = copy.deepcopy(self.table)
        self.table.replication_id = self._rng.randbytes(20).hex()

    def _break_all(self) -> None:
        """The server itself is gone: what was under way to it arrives nowhere."""
        for transport in self.connections():
            transport.break_off()
            transport.lose()

    def replicate(self) -> None:
        """The replica catches up."""
        self._behind = copy.deepcopy(self.table)

    def fail_over(self) -> None:
        """The replica is promoted: the last claims are missing. Old connections go on talking to the old primary until they break."""
        self._older, self._astray = self.reached(), False
        self.table = copy.deepcopy(self._behind) if self._behind is not None else self._new_table()
        self.table.replication_id = self._rng.randbytes(20).hex()
        for transport in self._connections:
            asyncio.get_running_loop().call_later(self._rng.uniform(0, 2), transport.break_off)

    def go_astray(self) -> bool:
        """All connections break, and new ones end at the old primary, which was never told that it is one no more."""
        self._astray = self._older is not None
        if not self._astray:
            return False
        for transport in self.connections():
            transport.break_off()
        return True

    def lead_astray(self, steps: Steps) -> bool:
        """The same for one writer alone."""
        if self._older is not None:
            self._strays.add(steps)
        return self._older is not None

    def come_back(self) -> None:
        if self._astray or self._strays:
            self._astray = False
            self._strays.clear()
            for transport in self.connections():
                if transport.table is not self.table:
                    transport.break_off()

    def pause(self, seconds: float) -> None:
        self.paused_until_s = max(self.paused_until_s, asyncio.get_running_loop().time() + seconds)

    def after(self, script: str, steps: Steps, action: Callable[[], object]) -> None:
        """Do it once, right after the script was executed for that writer."""
        self._after.setdefault((script, steps), []).append(action)

    def heal(self) -> None:
        self.next_claim_fails = self.next_reply_lost = False
        self.paused_until_s = 0.0
        self.clock_off_us = 0
        self.come_back()
        self._after.clear()
        for transport in self._connections:
            transport.stalled_until_s = 0.0

    def forget(self, transport: Transport) -> None:
        if transport in self._connections:
            self._connections.remove(transport)

    # ---- serving

    def execute(self, table: ClaimTable, command: list[bytes], steps: Steps) -> bytes:
        name = command[0].upper()
        if name == b"EVALSHA":
            return self._run(table, _SCRIPT_OF[command[1]], command, steps)
        if name == b"INFO":
            return _NEVER_EVICTS
        if name in (b"SCRIPT", b"AUTH", b"SELECT"):
            return _OK
        if name in (b"GET", b"HMGET"):
            return _look(table, command[1].decode())
        raise AssertionError(f"the simulated redis does not know {command[0]!r}")

    def _run(self, table: ClaimTable, script: str, command: list[bytes], steps: Steps) -> bytes:
        if script == "claim" and self.next_claim_fails:
            self.next_claim_fails = False
            return self._rng.choice(_ERRORS)
        self.executed[script] += 1
        marks = {incarnation: w.mark for incarnation, w in table._w.items()}
        reply = _run_script(table, script, command[3:])
        assert all(table._w[incarnation].mark >= mark for incarnation, mark in marks.items()), f"a mark sank in {script}"
        if script == "claim":
            number, mark = HEAD.unpack_from(command[_HEAD_AT])[:2]
            steps.executed(self.shard, number, mark)
        elif script == "join":
            steps.joining()
        for action in self._after.pop((script, steps), ()):
            asyncio.get_running_loop().call_soon(action)
        return _encode(reply)


class Transport(asyncio.Transport):
    """Both directions keep their order; each message takes its own time."""

    def __init__(self, server: SimulatedRedis, protocol: asyncio.Protocol, rng: random.Random, steps: Steps) -> None:
        super().__init__()
        self.protocol = protocol
        self.steps = steps
        self.table = server.reached(steps)  # of the server it was made to: an old primary lives on for its connections
        self.stalled_until_s = 0.0  # nothing arrives in either direction before
        self._server = server
        self._rng = rng
        self._reader = hiredis.Reader()
        self._inbound: deque[list[bytes]] = deque()
        self._outbound: deque[tuple[int, bytes]] = deque()  # (call, reply)
        self._arrives_s = 0.0
        self._answers_s = 0.0
        self._client_gone = False
        self._server_gone = False
        self._held = False
        self._opened = False  # its first command came
        self._looks: deque[int] = deque()  # for each command under way, how many regular looks travel with it

    def write(self, data: Any) -> None:
        self._reader.feed(bytes(data))
        while (command := self._reader.gets()) is not False:
            if command[0] == b"INFO" and self._opened:
                self._look_at_eviction()
                continue
            self._opened = True
            self._looks.append(0)
            self._inbound.append(command)
            self.steps.sent(self._server.shard, _call_of(command))
            self._arrive_later()

    def _look_at_eviction(self) -> None:
        """A regular look, of which nothing comes here: it travels with what was sent before it, or takes no time at all. So it draws
        nothing and delays nothing, and the worlds are those that they would be without it."""
        if self._looks:
            self._looks[-1] += 1
        else:
            self.protocol.data_received(_NEVER_EVICTS)

    def _arrive_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._arrives_s = max(self._arrives_s, loop.time() + self._rng.uniform(0.00005, 0.002))
        loop.call_at(self._arrives_s, self._arrive)

    def _arrive(self) -> None:
        """The next message, whichever timer rings: timers of one moment ring in any order, a connection keeps its own."""
        if self._server_gone or self._held:
            return
        loop = asyncio.get_running_loop()
        blocked_until_s = max(self._server.paused_until_s, self.stalled_until_s)
        if blocked_until_s > loop.time():
            self._arrives_s = max(self._arrives_s, blocked_until_s)
            loop.call_at(blocked_until_s, self._arrive)
            return
        command = self._inbound.popleft()
        reply = self._server.execute(self.table, command, self.steps)
        call = _call_of(command)
        if call and self._server.next_reply_lost:
            self._server.next_reply_lost = False
            self.break_off()
            return
        self._outbound.append((call, reply))
        self._answers_s = max(self._answers_s, loop.time() + self._rng.uniform(0.00005, 0.002))
        loop.call_at(self._answers_s, self._answer)

    def _answer(self) -> None:
        loop = asyncio.get_running_loop()
        if self.stalled_until_s > loop.time():
            loop.call_at(self.stalled_until_s, self._answer)
            return
        call, reply = self._outbound.popleft()
        reply += self._looks.popleft() * _NEVER_EVICTS
        if not self._client_gone and not self._server_gone:
            if call and reply[:1] == b"*":
                self.steps.replied(self._server.shard, call)
            self.protocol.data_received(reply)

    # ---- the end

    def break_off(self, *, hold: bool = False) -> None:
        """The client sees the end now. What it sent is lost, or arrives soon, or late: a stale copy (`hold`: once `release` is called)."""
        if self._client_gone:
            return
        self._client_gone = True
        if hold:
            self._held = True
        elif self._rng.random() < 0.4:
            self._server_gone = True
        else:
            self._linger()
        self._server.forget(self)
        self.protocol.connection_lost(ConnectionResetError("simulated"))

    def _linger(self) -> None:
        """What is under way stays in the network for a while, in half of the cases long enough for the client to have connected again."""
        loop = asyncio.get_running_loop()
        self._held = self._rng.random() < 0.5
        loop.call_later(self._rng.choice((0.001, 0.1, 0.5, 3)) * self._rng.random(), self.release)

    def release(self) -> None:
        """What was under way arrives now."""
        if not self._held:
            return
        self._held = False
        for _ in self._inbound:
            self._arrive_later()

    def lose(self) -> None:
        self._server_gone = True

    def abort(self) -> None:
        """The client gave up: what is under way may still be executed, nobody reads the reply."""
        if not self._client_gone:
            self._client_gone = True
            self._server.forget(self)
            self._linger()

    def close(self) -> None:
        self.abort()

    def is_closing(self) -> bool:
        return self._client_gone


def _call_of(command: list[bytes]) -> int:
    """The number of the call in a claim command; 0 for a bare mark and for every other command."""
    if command[0] == b"EVALSHA" and _SCRIPT_OF[command[1]] == "claim":
        return int(HEAD.unpack_from(command[_HEAD_AT])[0])
    return 0


def _look(table: ClaimTable, key: str) -> bytes:
    """At writer:ID, at the identity in open, or at mark and closed of w:INCARNATION."""
    _, kind, *names = key.split(":")
    if kind == "open":
        return b"*1\r\n" + _or_nil(table._open.identity)
    (name,) = names
    if kind == "writer":
        named = table._writers.get(bytes.fromhex(name))
        return _or_nil(None if named is None else named.hex().encode())
    w = table._w.get(bytes.fromhex(name))
    values = (None, None) if w is None else (w.mark, w.closed)
    return b"*2\r\n" + b"".join(_or_nil(None if value is None else b"%d" % value) for value in values)


def _or_nil(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else _encode(value)


def _run_script(table: ClaimTable, name: str, argv: list[bytes]) -> object:
    """The inverse of dedupe.scripts.arguments_of."""
    argv = argv[1:] if argv and argv[0] == b"0" else argv
    context = Context(
        bytes.fromhex(argv[1].decode()),
        bytes.fromhex(argv[2].decode()),
        int(argv[3]),
        argv[4].decode(),
        argv[5],
        int(argv[6]),
        int(argv[7]),
    )
    rest = argv[8:]
    return getattr(table, name)(context, *_ARGUMENTS[name](rest))


def _closed(rest: list[bytes]) -> list[tuple[bytes, int]]:
    return [(bytes.fromhex(rest[k].decode()), int(rest[k + 1])) for k in range(0, len(rest), 2)]


def _reclaimed(rest: list[bytes]) -> list[Reclaim]:
    sections = []
    for k in range(0, len(rest), 3):
        generation, newest_us = int.from_bytes(rest[k + 1][:8], "big"), int.from_bytes(rest[k + 1][8:], "big")
        digests, prints = _halves(rest[k + 2])
        sections.append(Reclaim(int(rest[k]), generation, newest_us, digests, prints))
    return sections


def _sections(rest: list[bytes]) -> list[Section]:
    return [Section(int(rest[k]), *_halves(rest[k + 1])) for k in range(0, len(rest), 2)]


def _halves(blob: bytes) -> tuple[bytes, bytes]:
    count = len(blob) // 16
    return blob[: 12 * count], blob[12 * count :]


_ARGUMENTS: dict[str, Callable[[list[bytes]], tuple[Any, ...]]] = {
    "hello": lambda rest: (int(rest[0]),),
    "publish": lambda rest: (int(rest[0]), _closed(rest[1:])),
    "join": lambda rest: (rest[0], rest[1], [bytes.fromhex(incarnation.decode()) for incarnation in rest[2:]]),
    "reclaim": lambda rest: (rest[0], int(rest[1]), _reclaimed(rest[2:])),
    "joined": lambda rest: (
        rest[0],
        int(rest[1]),
        int(rest[2]),
        int(rest[3]),
        frozenset(bytes.fromhex(member.decode()) for member in rest[4:]),
    ),
    "claim": lambda rest: (*HEAD.unpack_from(rest[0]), _sections(rest[1:]), rest[0][HEAD.size :]),
    "close": lambda rest: (int(rest[0]),),
}
