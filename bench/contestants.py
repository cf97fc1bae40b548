"""The two servers that are compared, both as processes of their own: the shipped `parshall ingest`, and the control in bench/baseline.

Belongs here: how each is started and stopped, and how it is told to hand over what it still holds. Must not know: what is measured.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

from bench.services import Services

PROJECT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 60
TENANT = "demo"


class Contestant(NamedTuple):
    name: str
    process: subprocess.Popen[bytes]
    port: int
    key: str
    topic: str
    log: Path

    def hand_over(self) -> None:
        """Return when everything counted is in Kafka. (The control answers only then; Parshall flushes every ten seconds.)"""
        if self.name == "parshall":
            _post(f"http://127.0.0.1:{self.port}/v1/admin/flush/now", self.key)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def start_parshall(folder: Path, services: Services) -> Contestant:
    """With its default settings; only where things are is said, and that one broker will do."""
    key = "bench-" + os.urandom(12).hex()
    port = _free_port()
    config = (PROJECT / "parshall" / "demo.toml").read_text()
    config += (
        f'\n[redis]\nurl = "{services.redis_url}"\n\n[kafka]\nbootstrap = "{services.kafka}"\naccept_weak = true\ncreate_topics = true\n'
    )
    config += f'\n[[keys]]\ntenant = "{TENANT}"\nhash = "{_hash(key)}"\nscopes = ["ingest", "read", "admin"]\n'
    (folder / "parshall.toml").write_text(config)
    command = ["-m", "parshall", "ingest", "--config", str(folder / "parshall.toml"), "--data", str(folder / "data")]
    process, log = _start("parshall", [*command, "--listen", f"127.0.0.1:{port}"], folder)
    contestant = Contestant("parshall", process, port, key, "usage.counters", log)
    _wait(contestant, f"http://127.0.0.1:{port}/readyz")
    return contestant


def start_control(folder: Path, services: Services) -> Contestant:
    port = _free_port()
    command = [
        str(PROJECT / "bench" / "baseline" / "server.py"),
        "--port",
        str(port),
        "--redis",
        services.redis_url,
        "--kafka",
        services.kafka,
    ]
    process, log = _start("control", command, folder)
    contestant = Contestant("control", process, port, "bench-key", "baseline.events", log)
    _wait(contestant, f"http://127.0.0.1:{port}/readyz")
    return contestant


def _start(name: str, arguments: list[str], folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    path = folder / f"{name}.log"
    with open(path, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    return process, path


_prctl = ctypes.CDLL(None).prctl


def _die_with_parent() -> None:
    """However the benchmark ends, nothing of it goes on."""
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _wait(contestant: Contestant, url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and contestant.process.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    contestant.process.kill()
    raise RuntimeError(f"{contestant.name} did not start:\n{contestant.log.read_text()[-3000:]}")


def _post(url: str, key: str) -> None:
    with urlopen(Request(url, method="POST", headers={"Authorization": f"Bearer {key}"}), timeout=60):
        pass


def _hash(key: str) -> str:
    from ingest.auth import hash_key

    return hash_key(key)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
