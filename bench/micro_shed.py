"""Refusing beside serving: server CPU per request of the shipped `parshall ingest`, with its claims there and with them gone.

Belongs here: that one comparison. While Redis is away every request is refused, as it is at any other bound: before it is decoded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.contestants import Contestant, start_parshall
from bench.processes import cpu_us
from bench.services import Services, mortal_redis, real_kafka

PROJECT = Path(__file__).parents[1]
CONNECTIONS = 32
REQUESTS = {1000: 200, 100: 1_000, 1: 8_000}


def load(server: Contestant, size: int, requests: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.load", "--port", str(server.port), "--key", server.key, "--connections", str(CONNECTIONS)]
    command += ["--requests", str(requests), "--events", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300, cwd=PROJECT)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def per_request(server: Contestant, size: int, requests: int, status: str) -> int:
    """Microseconds of CPU; every answer must be of this status."""
    before = cpu_us(server.process.pid)
    answer = load(server, size, requests)
    assert answer["statuses"] == {status: requests}, answer
    server_us = cpu_us(server.process.pid) - before
    return server_us // requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    served: dict[int, list[int]] = {size: [] for size in REQUESTS}
    refused: dict[int, list[int]] = {size: [] for size in REQUESTS}
    with (
        tempfile.TemporaryDirectory(prefix="parshall-bench-") as name,
        mortal_redis() as (url, pid, kill_redis),
        real_kafka() as (kafka, kafka_pid),
    ):
        server = start_parshall(Path(name), Services(url, pid, kafka, kafka_pid))
        try:
            load(server, 100, 100)
            for _ in range(runs):
                for size, requests in REQUESTS.items():
                    served[size].append(per_request(server, size, requests, "200"))
            kill_redis()
            while list(load(server, 1, 32)["statuses"]) != ["503"]:
                pass
            for _ in range(runs):
                for size, requests in REQUESTS.items():
                    refused[size].append(per_request(server, size, requests, "503"))
        finally:
            server.stop()
    print("us of CPU per request, the least of the runs")
    for size in REQUESTS:
        print(f"  {size:5} events: served {min(served[size]):6}   refused {min(refused[size]):6}")


if __name__ == "__main__":
    main()
