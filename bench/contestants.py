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
from collections.abc import Sequence
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
    command: Sequence[str] = ()
    keys: Sequence[str] = ()  # of further tenants, if any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hand_over(self) -> None:
        """Return when everything counted is in Kafka. (The control answers only then; Parshall flushes every ten seconds.)"""
        if self.name == "parshall":
            _ask("POST", f"{self.url}/v1/admin/flush/now", self.key)

    def wait_until_ready(self) -> None:
        _wait(self, f"{self.url}/readyz")

    def set_interval(self, interval_ms: int) -> None:
        _ask("PUT", f"{self.url}/v1/admin/flush", self.key, b'{"interval_ms":%d}' % interval_ms)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def start_parshall(folder: Path, services: Services, *, more: str = "", catalogue: str = "", tenants: int = 1) -> Contestant:
    """With its default settings; only where things are is said, and that one broker will do.

    `more`: further lines of its configuration; `catalogue` in the place of the demo's; `tenants`: so many, each with a key.
    """
    keys = ["bench-" + os.urandom(12).hex() for _ in range(tenants)]
    config = (catalogue or (PROJECT / "parshall" / "demo.toml").read_text()) + more
    config += f'\n[redis]\nurl = "{services.redis_url}"\n\n'
    config += f'[kafka]\nbootstrap = "{services.kafka}"\naccept_weak = true\ncreate_topics = true\n'
    for number, key in enumerate(keys, 1):
        name = TENANT if number == 1 else f"{TENANT}-{number}"
        config += "" if number == 1 else f'\n[[tenants]]\nname = "{name}"\nnumber = {number}\n'
        config += f'\n[[keys]]\ntenant = "{name}"\nhash = "{_hash(key)}"\nscopes = ["ingest", "read", "admin"]\n'
    (folder / "parshall.toml").write_text(config)
    command = ["-m", "parshall", "ingest", "--config", str(folder / "parshall.toml"), "--data", str(folder / "data")]
    port = _free_port()
    return _start_parshall(folder, port, keys, [*command, "--listen", f"127.0.0.1:{port}"])


def start_again(crashed: Contestant, folder: Path) -> Contestant:
    """The same service on what it left."""
    return _start_parshall(folder, crashed.port, crashed.keys, crashed.command)


def _start_parshall(folder: Path, port: int, keys: Sequence[str], command: Sequence[str]) -> Contestant:
    process, log = _start("parshall", command, folder)
    contestant = Contestant("parshall", process, port, keys[0], "usage.counters", log, command, keys)
    _wait(contestant, f"{contestant.url}/readyz")
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


def _start(name: str, arguments: Sequence[str], folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
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
            time.sleep(0.02)
    contestant.process.kill()
    raise RuntimeError(f"{contestant.name} did not start:\n{contestant.log.read_text()[-3000:]}")


def _ask(method: str, url: str, key: str, body: bytes | None = None) -> None:
    with urlopen(Request(url, body, method=method, headers={"Authorization": f"Bearer {key}"}), timeout=120):
        pass


def _hash(key: str) -> str:
    from ingest.auth import hash_key

    return hash_key(key)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
