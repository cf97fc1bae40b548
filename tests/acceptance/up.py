"""Runs `parshall up` as a user does: one start, what one types meanwhile, and its end.

Must not know: what a test looks for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
PARSHALL = [sys.executable, "-m", "parshall"]
KEY = {"Authorization": "Bearer demo-key", "Content-Type": "application/json"}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


class Up:
    """One start of `parshall up`."""

    def __init__(self, data: Path, port: int, *options: str, below: str = "true") -> None:
        """`below`: what a shell does before it becomes the command, such as setting limits."""
        self.url = f"http://127.0.0.1:{port}"
        command = [
            "bash",
            "-c",
            f'{below}; exec "$@"',
            "bash",
            *PARSHALL,
            "up",
            "--listen",
            f"127.0.0.1:{port}",
            "--data",
            str(data),
            *options,
        ]
        self.log = data.parent / "stderr"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=ENVIRONMENT, cwd="/", text=True, stdout=subprocess.PIPE, stderr=log)
        self.welcome = self._until_ready()

    def _until_ready(self) -> str:
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if line == f"Parshall is ready at {self.url}\n":
                return said
        raise AssertionError(f"it ended before it was ready:\n{said}\n{self.log.read_text()}")

    def descendants(self) -> list[int]:
        found = children_of(self.process.pid)
        for pid in found:
            found += children_of(pid)  # the list grows while it is walked
        return found

    def child(self, text: str) -> int:
        (found,) = [pid for pid in children_of(self.process.pid) if text in Path(f"/proc/{pid}/cmdline").read_text()]
        return found

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def kill_all(self) -> None:
        for pid in [self.process.pid, *self.descendants()]:
            with contextlib.suppress(ProcessLookupError):  # PostgreSQL's processes come and go
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.kill_all()
        self.process.communicate()

    # ---- what a user does

    def paste(self, command: str) -> str:
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30).stdout

    def ask(self, path: str, body: bytes | None = None) -> Any:
        with urlopen(Request(self.url + path, data=body, headers=KEY), timeout=30) as answer:
            return json.loads(answer.read())

    def send(self, ids: list[str], at: str) -> Any:
        events = [
            {
                "specversion": "1.0",
                "type": "http.request",
                "source": "test",
                "id": id_,
                "time": at,
                "subject": "s",
                "data": {"region": "eu", "zone": "a", "bytes": 3},
            }
            for id_ in ids
        ]
        return self.ask("/v1/events", json.dumps(events).encode())

    def run(self, *arguments: str) -> str:
        finished = run(*arguments, "--url", self.url)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def usage(self, meter: str, subject: str) -> list[str]:
        return [row["value"] for row in self.ask(f"/v1/usage?meter={meter}&subject={subject}&window=month")["data"]]

    def until_rated(self, wanted: int) -> dict[str, Any]:
        """The ledger, once so many events and all that was flushed with them are rated."""
        flushed = None
        while True:
            answer = self.ask("/v1/ledger")
            ledger: dict[str, Any] = answer["tenants"]["demo"]
            if ledger["rated"] == wanted and ledger["buffered"] == 0:  # null while PostgreSQL is away
                flushed = flushed or datetime.now(UTC)
                if answer["as_of"] is not None and datetime.fromisoformat(answer["as_of"]) > flushed:
                    return ledger
            time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PARSHALL, *arguments], env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=120)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
