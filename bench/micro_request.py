"""CPU of a worker from the bytes of a request to the bytes of its answer. `python -m bench.micro_request`

The worker's own parts, put together as it does, with 32 connections, a claim store that grants everything after 0.6 ms, and a journal on
/dev/shm: no socket, no Redis, no disk. So what is left is the process's own work, and it can be counted in instructions, which another
load on the machine does not change. Belongs here: only that; the whole writer beside its services is whole.py.

    valgrind --tool=callgrind --callgrind-out-file=/dev/null .venv/bin/python -m bench.micro_request --runs 1 --bodies 1920 --requests 640

and the same with `--requests 1920`: the difference, divided by 1280, is what one takes.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.bodies import bodies
from bench.settings import demo_settings
from buffer.disk import RealDisk, Thread
from buffer.flush_tuner import FlushTuner
from buffer.journal import JournalLimits, open_journal
from buffer.local_log import LocalLog
from dedupe.port import Call, History, State, Verdicts
from dedupe.redis_claims import OnReply
from ingest.auth import INGEST, Keys, Principal, hash_key
from ingest.catalogue import read_catalogue
from ingest.connection import make_server
from ingest.http import Edge
from ingest.writer import Writer, WriterLimits
from parshall.wiring import REAL, make_decoder, meter_numbers
from parshall.worker import http_limits, spare_the_collector

CONNECTIONS = 32
REPLY_S = 0.0006
TENANT = 1
KEY = "bench"
NO_FLUSH_MS = 3_600_000


class Granting:
    """Claims, all of them granted."""

    state, joined, accepted, clock_off_us = State.OPEN, True, True, None

    def __init__(self) -> None:
        self._executed = 0

    async def run(self, history: History) -> None:
        await asyncio.Event().wait()

    def send(self, call: Call, on_reply: OnReply) -> None:
        self._executed += 1
        verdicts = Verdicts(call.number, 1, self._executed, 0, b"")
        asyncio.get_running_loop().call_later(REPLY_S, on_reply, verdicts)

    def raise_mark(self, mark: int) -> None: ...

    async def close(self, last_call: int) -> None: ...


class Sender(asyncio.Transport):
    """The other end of a connection: it sends its next request when it has read an answer."""

    def __init__(self, waiting: list[bytes], answered: asyncio.Semaphore) -> None:
        super().__init__()
        self._waiting = waiting
        self._answered = answered
        self.server: Any = None

    def connect(self, server: Any) -> None:
        self.server = server
        server.connection_made(self)

    def go_on(self) -> None:
        if self._waiting:
            self.server.data_received(self._waiting.pop())

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert bytes(data).startswith(b"HTTP/1.1 200"), bytes(data)
        self._answered.release()
        asyncio.get_running_loop().call_soon(self.go_on)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def requests(number: int, events: int) -> list[bytes]:
    head = (
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    )
    return [head % (KEY.encode(), len(body), body) for body in bodies(number, events)]


async def measure(folder: Path, runs: Sequence[list[bytes]]) -> list[float]:
    """Microseconds of CPU a request, of each run."""
    settings = demo_settings()
    catalogue = read_catalogue(settings.meters)
    disk = RealDisk()
    journal = await open_journal(
        str(folder / "journal"),
        disk=disk,
        background=Thread("journal"),
        entropy=REAL.entropy,
        clock_us=REAL.clock_us,
        limits=JournalLimits(min_free_bytes=0),
    )
    log = LocalLog(str(folder / "log"), disk=disk, background=Thread("log"), entropy=REAL.entropy)
    await log.open()
    tuner = FlushTuner(NO_FLUSH_MS, 10**9)
    writer = Writer(
        journal,
        [Granting()],
        log,
        tuner,
        tenants={TENANT: "bench"},
        limits=WriterLimits(),
        clock_us=REAL.clock_us,
        entropy=REAL.entropy,
        definitions=catalogue.definitions,
    )
    await writer.open()
    keys = Keys([(hash_key(KEY), Principal(TENANT, "bench", frozenset({INGEST})))])
    decoder = make_decoder(settings, catalogue, meter_numbers(catalogue, writer))
    server = make_server(Edge(writer, decoder, keys, http_limits(settings), clock_us=REAL.clock_us, not_ready=lambda: ()))
    running = asyncio.ensure_future(writer.run())
    spare_the_collector()
    spent = [await _run(server, sent) / 1000 for sent in runs]
    running.cancel()
    return spent


async def _run(server: Any, waiting: list[bytes]) -> float:
    """Nanoseconds of CPU a request, until all are answered."""
    number, answered = len(waiting), asyncio.Semaphore(0)
    senders = [Sender(waiting, answered) for _ in range(min(CONNECTIONS, number))]
    for sender in senders:
        sender.connect(server())
    await asyncio.sleep(0.05)  # each connection's own task waits for its first message
    start = time.process_time_ns()
    for sender in senders:
        sender.go_on()
    for _ in range(number):
        await answered.acquire()
    return (time.process_time_ns() - start) / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1, help="a request")
    parser.add_argument("--requests", type=int, default=20_000, help="a run")
    parser.add_argument("--bodies", type=int, default=0, help="made a run, if more than are sent: to compare runs of different length")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    made = max(arguments.bodies, arguments.requests)
    runs = [requests(made, arguments.events)[: arguments.requests] for _ in range(arguments.runs)]
    with tempfile.TemporaryDirectory(prefix="parshall-bench-", dir="/dev/shm") as folder:
        spent = uvloop.run(measure(Path(folder), runs))
    print(f"us of CPU a request of {arguments.events} events: least {min(spent):.1f}, all {' '.join(f'{one:.1f}' for one in spent)}")


if __name__ == "__main__":
    main()
