"""Runs `parshall` as a user does: configuration, processes, keys, and an HTTP client for its API.

Belongs here: how a role is started, found ready, stopped and killed; asking the API. Must not know: what is sent, what must come of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).with_name("metered.toml")
TENANTS = (("demo", "UTC"), ("acme", "America/New_York"))  # with the time zone of each one's price book, as in the template
START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 60
PR_SET_PDEATHSIG = 1


class NotReady(Exception):
    """A role did not start. The message holds the end of its log."""


def write_config(folder: Path, *, now: datetime, deadline_ms: int, more: str = "") -> dict[str, str]:
    """`folder`/parshall.toml; returns tenant -> key. `more` are further tables."""
    keys, sections = {}, ""
    for tenant, _ in TENANTS:
        keys[tenant], section = make_key(tenant)
        sections += section + "\n"
    text = TEMPLATE.read_text()
    values = {"DATA": str(folder / "data"), "DEADLINE_MS": str(deadline_ms), "KEYS": sections, "THIS_MONTH": f"{now:%Y-%m}-01"}
    for name, value in values.items():
        text = re.sub(rf"\b{name}\b", value.replace("\\", "\\\\"), text)
    (folder / "parshall.toml").write_text(text + more)
    return keys


def make_key(tenant: str) -> tuple[str, str]:
    """A key of all scopes, and its section for the configuration, by `parshall key`."""
    command = [sys.executable, "-m", "parshall", "key", "--tenant", tenant]
    for scope in ("ingest", "read", "admin"):
        command += ["--scope", scope]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    key = re.search(r"pk_[\w-]+", done.stderr)
    assert key is not None and "[[keys]]" in done.stdout, done.stderr + done.stdout
    return key[0], done.stdout


def free_port() -> int:
    """A port that nobody uses, below those that the kernel hands to clients."""
    for port in range(20_000 + os.getpid() % 997 * 11, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in _handed_out:
                _handed_out.add(port)
                return port
    raise AssertionError("no port is free")


_handed_out: set[int] = set()


class Role:
    """One `parshall …` process and its children."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, *, patches: Sequence[str] = ()) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "parshall", *arguments, "--listen", f"127.0.0.1:{self.port}"]
        self._patches = patches
        self.environment: dict[str, str] = {}  # what a start adds to this process's own
        self._process: subprocess.Popen[bytes] | None = None
        self._log_before = 0  # where this start's part of the log begins

    def start(self) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environment}
        if self._patches:
            environment["TEST_PATCHES"] = ",".join(self._patches)
            environment["TEST_PROJECT"] = str(PROJECT)
            environment["PYTHONPATH"] = str(Path(__file__).with_name("patched"))
        with open(self.log, "ab") as log:
            self._log_before = log.tell()
            self._process = subprocess.Popen(
                self._command,
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    async def wait_ready(self, timeout_s: int = START_TIMEOUT_S) -> None:
        """Until it says so. (Of several workers `GET /readyz` reaches one, and it may be the first that is ready.)"""
        deadline = time.monotonic() + timeout_s
        while b"Parshall is ready at " not in self.log.read_bytes()[self._log_before :]:
            if not self.running:
                raise NotReady(f"{self.name} ended at its start:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise NotReady(f"{self.name} was not ready after {timeout_s} seconds:\n{self.log_end()}")
            await asyncio.sleep(0.02)
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/readyz") as answer:
            assert answer.status == 200, f"{self.name} says that it is ready, /readyz says {await answer.text()}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def has_spoken(self) -> bool:
        """Since its last start. Before its first words it still imports, and a signal just ends it."""
        return self.log.stat().st_size > self._log_before

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def pause(self) -> None:
        """SIGSTOP of the whole tree: its connections stay, nothing is answered."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        for pid in tree(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """kill -9 of the whole tree; the parent is stopped first, so that no supervisor starts a child again."""
        assert self._process is not None
        if self.running:
            os.kill(self._process.pid, signal.SIGSTOP)
            for pid in reversed(list(tree(self._process.pid))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        """SIGTERM: it drains. Returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_TIMEOUT_S)

    def log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:]) if self.log.exists() else "(no log)"


def tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return


_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Api:
    """One tenant's view of a service."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}

    async def get(self, path: str, **parameters: str) -> Any:
        async with self._session.get(self._url + path, params=parameters, headers=self._headers) as answer:
            assert answer.status == 200, f"GET {path} {parameters}: {answer.status} {await answer.text()}"
            return await answer.json()

    async def flush_now(self) -> None:
        async with self._session.post(f"{self._url}/v1/admin/flush/now", headers=self._headers) as answer:
            assert answer.status == 200, f"flush now: {answer.status} {await answer.text()}"


async def wait_rated(apis: Mapping[str, Api], accepted: Mapping[str, int], timeout_s: int = 120) -> dict[str, dict[str, Any]]:
    """The ledger of each tenant, once all is rated that was flushed before, as many events as must be; or when the time is over.

    `rated` alone does not say so: a flush is several records, and its numbers of events come with one of them.
    """
    flushed, deadline = datetime.now(UTC), time.monotonic() + timeout_s
    while True:
        answers = {tenant: await api.get("/v1/ledger") for tenant, api in apis.items()}
        ledgers = {tenant: answer["tenants"][tenant] for tenant, answer in answers.items()}
        if all(_is_rated(answers[tenant]["as_of"], flushed, ledgers[tenant]["rated"], accepted[tenant]) for tenant in apis):
            return ledgers
        if time.monotonic() > deadline:
            return ledgers
        await asyncio.sleep(0.1)


def _is_rated(as_of: str | None, flushed: datetime, rated: int | None, accepted: int) -> bool:
    """Both are null while PostgreSQL is away."""
    return as_of is not None and datetime.fromisoformat(as_of) > flushed and rated is not None and rated >= accepted
