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
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvloop

from bench.bodies import SUBJECTS, bodies


class Connection(asyncio.Protocol):
    """One request in flight; the next one goes out when its answer is complete."""

    def __init__(self, requests: Iterator[bytes], answers: list[tuple[int, bytes, int]], finished: asyncio.Future[None]) -> None:
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
        self._answers.append((int(head[9:12]), self._buffer[head_end + 4 : end], time.perf_counter_ns() - self._sent_ns))
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
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(request)


def frame(body: bytes, port: int, key: str) -> bytes:
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run(requests: list[bytes], port: int, connections: int) -> tuple[list[tuple[int, bytes, int]], int]:
    loop = asyncio.get_running_loop()
    answers: list[tuple[int, bytes, int]] = []
    queue = iter(requests)
    finished = [loop.create_future() for _ in range(connections)]
    start = time.perf_counter_ns()
    for future in finished:
        await loop.create_connection(partial(Connection, queue, answers, future), "127.0.0.1", port)
    await asyncio.gather(*finished)
    return answers, time.perf_counter_ns() - start


def summary(answers: list[tuple[int, bytes, int]], wall_ns: int) -> dict[str, object]:
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
    parser.add_argument("--key", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--events", type=int, required=True, help="events a request")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    arguments = parser.parse_args()
    requests = [
        frame(body, arguments.port, arguments.key) for body in bodies(arguments.requests, arguments.events, subjects=arguments.subjects)
    ]
    answers, wall_ns = uvloop.run(run(requests, arguments.port, arguments.connections))
    print(json.dumps(summary(answers, wall_ns)))


if __name__ == "__main__":
    main()
