"""Load from a process of its own (load.py), and what came of it, checked: verdicts that differ from what was sent end the benchmark.

Belongs here: starting the generator, comparing its answers. Must not know: what is measured meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.bodies import Mix
from bench.contestants import Contestant

PROJECT = Path(__file__).resolve().parents[1]
CONNECTIONS = 32
VERDICTS = ("received", "accepted", "duplicate", "rejected")


class Sending:
    """One mix for one server, under one name, so that its duplicates can be sent first."""

    def __init__(self, server: Contestant, mix: Mix, *, connections: int = CONNECTIONS, rate: int = 0, keys: Path | None = None) -> None:
        self.mix = mix._replace(run=os.urandom(6).hex())
        self._server = server
        self._command = [sys.executable, "-m", "bench.load", "--port", str(server.port), "--key", f"@{keys}" if keys else server.key]
        self._command += ["--requests", str(mix.requests), "--events", str(mix.events), "--subjects", str(mix.subjects)]
        self._command += ["--connections", str(connections), "--rate", str(rate), "--types", str(mix.types)]
        self._command += ["--run", self.mix.run, "--now-us", str(time.time_ns() // 1000)]
        self._command += ["--duplicates"] if mix.duplicates else []
        self._command += ["--bad"] if mix.bad else []

    def earlier(self) -> int:
        """Send what is going to be sent again. How many events that are."""
        if not self.mix.duplicates:
            return 0
        answer = self._send("--earlier")
        accepted: int = answer["accepted"]
        return accepted

    def send(self) -> dict[str, Any]:
        return self._send()

    def start(self) -> subprocess.Popen[bytes]:
        """Without waiting, or asking for anything: the server is going to crash."""
        return subprocess.Popen(self._command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _send(self, *more: str) -> dict[str, Any]:
        done = subprocess.run([*self._command, *more], stdout=subprocess.PIPE, check=True, timeout=600, cwd=PROJECT)
        answer: dict[str, Any] = json.loads(done.stdout)
        found = {verdict: answer[verdict] for verdict in VERDICTS}
        assert found == answer["expected"], f"{self._server.name}: sent was {answer['expected']}, answered {found}, {answer['statuses']}"
        return answer
