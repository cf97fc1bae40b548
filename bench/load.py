"""The load generator: one process, keep-alive connections, bodies made before the clock starts, answers counted.

Belongs here: a small HTTP/1.1 client that costs little, so that the server is what is measured. Must not know: which server answers.

    python bench/load.py --port 8080 --key demo-key --requests 100 --events 1000 --connections 32
prints one JSON line: what was sent, what the answers said, how long it took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

from bench.bodies import SUBJECTS, Mix, bodies_of


class Due(NamedTuple):
    frame: bytes
    due_ns: int  # 0: as soon as a connection is free


class Answer(NamedTuple):
    status: int
    body: bytes
    latency_ns: int  # from when it was due


class Connection(asyncio.Protocol):
    """One request in flight; the next one goes out when its answer is complete, and when it is due."""

    def __init__(self, requests: Iterator[Due], answers: list[Answer], finished: asyncio.Future[None]) -> None:
        self._requests = requests
        self._answers = answers
        self._finished = finished
        self._buffer = b""
        self._sent_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._send_next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        length_at = head.find(b"content-length:")
        assert length_at >= 0, f"the load generator needs a Content-Length: {head!r}"
        length = int(head[length_at + 15 :].split(b"\r\n", 1)[0])
        end = head_end + 4 + length
        if len(self._buffer) < end:
            return
        self._answers.append(Answer(int(head[9:12]), self._buffer[head_end + 4 : end], time.perf_counter_ns() - self._sent_ns))
        self._buffer = self._buffer[end:]
        self._send_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._finished.done():
            self._finished.set_exception(ConnectionError(f"the server closed a connection: {error}"))

    def _send_next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            if not self._finished.done():
                self._finished.set_result(None)
            self._transport.close()
            return
        now_ns = time.perf_counter_ns()
        if request.due_ns > now_ns:
            asyncio.get_running_loop().call_later((request.due_ns - now_ns) / 1e9, self._send, request.due_ns, request.frame)
        else:
            self._send(request.due_ns or now_ns, request.frame)

    def _send(self, due_ns: int, framed: bytes) -> None:
        self._sent_ns = due_ns  # a request that waits for a free connection waits for the server
        self._transport.write(framed)


def frame(body: bytes, port: int, key: str) -> bytes:
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(frames: Sequence[bytes], port: int, connections: int, rate: int = 0) -> tuple[list[Answer], int]:
    """`rate`: requests a second, evenly spaced; 0: as many as are answered."""
    loop = asyncio.get_running_loop()
    answers: list[Answer] = []
    finished = [loop.create_future() for _ in range(connections)]
    start = time.perf_counter_ns()
    queue = (Due(framed, start + number * 1_000_000_000 // rate if rate else 0) for number, framed in enumerate(frames))
    for future in finished:
        await loop.create_connection(partial(Connection, queue, answers, future), "127.0.0.1", port)
    await asyncio.gather(*finished)
    return answers, time.perf_counter_ns() - start


def summary(answers: Sequence[Answer], wall_ns: int) -> dict[str, object]:
    statuses: Counter[int] = Counter()
    counts: Counter[str] = Counter()
    for status, body, _ in answers:
        statuses[status] += 1
        if status in (200, 207, 422):
            answer = json.loads(body)
            for name in ("received", "accepted", "duplicate", "rejected"):
                counts[name] += answer[name]
    latencies = sorted(latency for _, _, latency in answers)
    return {
        "requests": len(answers),
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        **{name: counts[name] for name in ("received", "accepted", "duplicate", "rejected")},
        "wall_us": wall_ns // 1000,
        "p50_us": latencies[len(latencies) // 2] // 1000,
        "p99_us": latencies[len(latencies) * 99 // 100] // 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Load with fresh ids.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", required=True, help="or @FILE of several: requests use them in turn")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--events", type=int, required=True, help="events a request")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--rate", type=int, default=0, help="requests a second (default: as many as are answered)")
    parser.add_argument("--duplicates", action="store_true", help="one event in ten was sent before: --earlier sends those")
    parser.add_argument("--bad", action="store_true", help="one event in a hundred is bad")
    parser.add_argument("--types", type=int, default=0, help="so many event types, type0 and on, in the place of the demo's")
    parser.add_argument("--run", default="", help="what event ids begin with (default: chance)")
    parser.add_argument("--now-us", type=int, default=time.time_ns() // 1000, help="event times lie a little before this")
    parser.add_argument(
        "--earlier", action="store_true", help="send what a run with --duplicates and the same --run and --now-us sends again"
    )
    arguments = parser.parse_args()
    keys = Path(arguments.key[1:]).read_text().split() if arguments.key.startswith("@") else [arguments.key]
    mix = Mix(arguments.requests, arguments.events, arguments.subjects, arguments.duplicates, arguments.bad, arguments.types, arguments.run)
    mix = mix.earlier if arguments.earlier else mix
    now = datetime.fromtimestamp(arguments.now_us // 1_000_000, UTC)
    frames = [frame(body, arguments.port, keys[number % len(keys)]) for number, body in enumerate(bodies_of(mix, now))]
    answers, wall_ns = uvloop.run(run(frames, arguments.port, min(arguments.connections, len(frames)), arguments.rate))
    print(json.dumps(summary(answers, wall_ns) | {"expected": mix.expected()}))


if __name__ == "__main__":
    main()
