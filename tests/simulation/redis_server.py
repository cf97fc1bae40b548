"""A Redis of the simulation: speaks the protocol to the real RedisClaims, and executes scripts on a ClaimTable.

The twins test holds ClaimTable to the Lua scripts, so what is found here holds there. Faults: connections that lose what is under way in
either direction, requests that arrive late on a connection that its client gave up (stale copies), restarts, pauses, failovers.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from dedupe.claim_table import ClaimTable
from dedupe.port import Section
from dedupe.redis_address import RedisAddress
from dedupe.scripts import HEAD, Context, Reclaim, load

_OK = b"+OK\r\n"
_SCRIPT_OF = {script.sha: name for name, script in load().items()}


class SimulatedRedis:
    """One address with one server behind it; which one it is can change (restart, failover)."""

    def __init__(self, rng: random.Random, clock_us: Callable[[], int]) -> None:
        self._rng = rng
        self._clock_us = clock_us
        self._connections: list[_Transport] = []
        self._behind: ClaimTable | None = None  # a replica as it was at some moment
        self.table = self._new_table()
        self.down = False
        self.paused_until_s = 0.0
        self.executed: list[str] = []  # names of scripts, for coverage
        self.break_after_claim = False  # the next claim is executed, and its reply lost

    def _new_table(self) -> ClaimTable:
        return ClaimTable(self._clock_us, self._rng.randbytes(20).hex())

    def address(self) -> RedisAddress:
        return RedisAddress(self._connect, name="simulated redis")

    async def _connect(self, factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        await asyncio.sleep(self._rng.uniform(0.0001, 0.002))
        if self.down:
            raise ConnectionRefusedError("the simulated redis is down")
        transport = _Transport(self, factory(), self._rng)
        self._connections.append(transport)
        transport.protocol.connection_made(transport)
        return transport

    # ---- faults

    def break_connections(self) -> None:
        for transport in list(self._connections):
            transport.break_off()

    def restart_empty(self) -> None:
        self.break_connections()
        self.table = self._new_table()

    def restart_with_data(self) -> None:
        """What an append-only file keeps; the replication id changes all the same."""
        self.break_connections()
        self.table = copy.deepcopy(self.table)
        self.table.replication_id = self._rng.randbytes(20).hex()

    def replicate(self) -> None:
        """The replica catches up."""
        self._behind = copy.deepcopy(self.table)

    def fail_over(self) -> None:
        """The replica is promoted: the last claims are missing. Old connections go on talking to the old primary until they break."""
        old = self.table
        self.table = copy.deepcopy(self._behind) if self._behind is not None else self._new_table()
        self.table.replication_id = self._rng.randbytes(20).hex()
        for transport in self._connections:
            transport.table = transport.table or old
            asyncio.get_running_loop().call_later(self._rng.uniform(0, 2), transport.break_off)

    def pause(self, seconds: float) -> None:
        self.paused_until_s = max(self.paused_until_s, asyncio.get_running_loop().time() + seconds)

    def forget(self, transport: _Transport) -> None:
        if transport in self._connections:
            self._connections.remove(transport)

    # ---- serving

    def execute(self, table: ClaimTable, command: list[bytes]) -> bytes:
        name = command[0].upper()
        if name == b"EVALSHA":
            script = _SCRIPT_OF[command[1]]
            self.executed.append(script)
            return _encode(_run_script(table, script, command[3:]))
        if name == b"INFO":
            return _encode(b"maxmemory_policy:noeviction\r\n")
        if name in (b"SCRIPT", b"AUTH", b"SELECT"):
            return _OK
        raise AssertionError(f"the simulated redis does not know {command[0]!r}")


class _Transport(asyncio.Transport):
    """Both directions keep their order; each message takes its own time."""

    def __init__(self, server: SimulatedRedis, protocol: asyncio.Protocol, rng: random.Random) -> None:
        super().__init__()
        self.protocol = protocol
        self.table: ClaimTable | None = None  # set when this connection stays with an old primary
        self._server = server
        self._rng = rng
        self._reader = hiredis.Reader()
        self._inbound: deque[bytes] = deque()
        self._outbound: deque[bytes] = deque()
        self._arrives_s = 0.0
        self._answers_s = 0.0
        self._client_gone = False
        self._server_gone = False

    def write(self, data: Any) -> None:
        loop = asyncio.get_running_loop()
        self._inbound.append(bytes(data))
        self._arrives_s = max(self._arrives_s, loop.time() + self._rng.uniform(0.00005, 0.002))
        loop.call_at(self._arrives_s, self._arrive)

    def _arrive(self) -> None:
        """The next message, whichever timer rings: timers of one moment ring in any order, a connection keeps its own."""
        if self._server_gone:
            return
        loop = asyncio.get_running_loop()
        if self._server.paused_until_s > loop.time():
            self._arrives_s = max(self._arrives_s, self._server.paused_until_s)
            loop.call_at(self._server.paused_until_s, self._arrive)
            return
        self._reader.feed(self._inbound.popleft())
        while (command := self._reader.gets()) is not False:
            reply = self._server.execute(self.table or self._server.table, command)
            if self._server.break_after_claim and self._server.executed[-1:] == ["claim"]:
                self._server.break_after_claim = False
                self.break_off()
                return
            self._outbound.append(reply)
            self._answers_s = max(self._answers_s, loop.time() + self._rng.uniform(0.00005, 0.002))
            loop.call_at(self._answers_s, self._answer)

    def _answer(self) -> None:
        reply = self._outbound.popleft()
        if not self._client_gone and not self._server_gone:
            self.protocol.data_received(reply)

    def break_off(self) -> None:
        """The client sees the end now; what it had sent may still arrive, late: a stale copy."""
        if self._client_gone:
            return
        self._client_gone = True
        if self._rng.random() < 0.5:
            self._server_gone = True
        else:
            asyncio.get_running_loop().call_later(self._rng.uniform(0, 3), self._die)
        self._server.forget(self)
        self.protocol.connection_lost(ConnectionResetError("simulated"))

    def _die(self) -> None:
        self._server_gone = True

    def abort(self) -> None:
        """The client gave up: what is under way may still be executed, nobody reads the reply."""
        self._client_gone = True
        self._server.forget(self)
        asyncio.get_running_loop().call_later(self._rng.uniform(0, 0.5), self._die)

    def close(self) -> None:
        self.abort()

    def is_closing(self) -> bool:
        return self._client_gone


def _encode(value: object) -> bytes:
    if isinstance(value, list):
        return b"*%d\r\n%b" % (len(value), b"".join([_encode(item) for item in value]))
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    assert isinstance(value, int)
    return b":%d\r\n" % value


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
    "join": lambda rest: (rest[0],),
    "reclaim": lambda rest: (rest[0], int(rest[1]), _reclaimed(rest[2:])),
    "joined": lambda rest: (rest[0], int(rest[1]), int(rest[2]), frozenset(bytes.fromhex(member.decode()) for member in rest[3:])),
    "claim": lambda rest: (*HEAD.unpack(rest[0]), _sections(rest[1:])),
    "close": lambda rest: (int(rest[0]),),
}
