"""Do the two load generators agree? The same batches from both, to a real service: the second one must meet nothing but duplicates.

Belongs here: running both, comparing verdicts. Must not know: how either of them sends.

    python -m bench.agreement       exit 1 when they differ
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.bodies import Mix
from bench.contestants import Contestant, start_parshall
from bench.sending import PROJECT, VERDICTS
from bench.services import real_services

BATCHES, EVENTS = 60, 100
Verdicts = dict[str, int]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as name, real_services() as services:
        server = start_parshall(Path(name), services)
        try:
            wrong = [fault for one, other in ((by_load, by_locust), (by_locust, by_load)) for fault in compare(server, one, other)]
        finally:
            server.stop()
    for fault in wrong:
        print(fault)
    print(f"load.py and Locust {'do NOT agree' if wrong else 'agree'}: {2 * BATCHES * EVENTS} events from each.")
    return 1 if wrong else 0


def compare(server: Contestant, first: Callable[..., Verdicts], second: Callable[..., Verdicts]) -> list[str]:
    run, now_us = os.urandom(6).hex(), time.time_ns() // 1000
    expected = Mix(BATCHES, EVENTS, bad=True).expected()
    repeated = expected | {"accepted": 0, "duplicate": expected["accepted"]}
    found = [(sender.__name__, sender(server, run, now_us), wanted) for sender, wanted in ((first, expected), (second, repeated))]
    return [f"{who}: expected {wanted}, answered {verdicts}" for who, verdicts, wanted in found if verdicts != wanted]


def by_load(server: Contestant, run: str, now_us: int) -> Verdicts:
    command = [sys.executable, "-m", "bench.load", "--port", str(server.port), "--key", server.key, "--run", run, "--now-us", str(now_us)]
    command += ["--requests", str(BATCHES), "--events", str(EVENTS), "--bad"]
    return _last_line(subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, check=True).stdout)


def by_locust(server: Contestant, run: str, now_us: int) -> Verdicts:
    settings = {"LOAD_RUN": run, "LOAD_NOW_US": str(now_us), "LOAD_BATCHES": str(BATCHES), "LOAD_EVENTS": str(EVENTS)}
    command = [sys.executable, "-m", "locust", "-f", "bench/locustfile.py", "--host", server.url, "--headless", "-u", "4", "-r", "4"]
    environment = os.environ | settings | {"PARSHALL_KEY": server.key, "LOAD_SHAPE": "steady"}
    done = subprocess.run([*command, "-t", "60s"], cwd=PROJECT, env=environment, capture_output=True)
    if done.returncode:
        raise SystemExit(f"Locust ended with {done.returncode}: {done.stderr.decode()[-1500:]}")
    return _last_line(done.stdout, "answered")


def _last_line(printed: bytes, part: str = "") -> Verdicts:
    (line,) = [json.loads(line) for line in printed.splitlines() if line.startswith(b"{")][-1:]
    verdicts = line[part] if part else line
    return {name: verdicts[name] for name in VERDICTS}


if __name__ == "__main__":
    sys.exit(main())
