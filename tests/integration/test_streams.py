"""What a command and a service do when what they print arrives nowhere. Python fails a last time when it ends, so these are processes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from ingest.auth import hash_key
from tests.services import free_port

ROOT = Path(__file__).parents[2]
PARSHALL = [sys.executable, "-m", "parshall"]


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def full() -> Iterator[int]:
    """A file on a full disk."""
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


PRINTING = [
    ["--version"],
    ["--help"],
    ["check", "--defaults"],
    ["size", "--events-per-second", "1000", "--max-age", "1d", "--subjects", "10", "--meters", "3"],
]


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda arguments: arguments[0])
def test_a_full_disk_is_told_in_a_sentence(arguments: list[str], full: int) -> None:
    done = subprocess.run([*PARSHALL, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == "Not everything could be written (No space left on device): make room, then run the same command again.\n"
    assert done.returncode == 3


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda arguments: arguments[0])
def test_a_reader_that_has_seen_enough_is_no_trouble(arguments: list[str], unread: int) -> None:
    done = subprocess.run([*PARSHALL, *arguments], stdout=unread, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize("where", ["full", "unread"])
def test_a_service_runs_whether_or_not_what_it_says_arrives(where: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    output = request.getfixturevalue(where)
    command = [*PARSHALL, "up", "--data", str(tmp_path / "data"), "--listen", url.removeprefix("http://")]
    process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until_all_answers(url, process)
        time.sleep(0.5)  # it has said that it is ready by now
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()


def until_all_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """PostgreSQL and the rater too, which come last."""
    ask = Request(f"{url}/v1/ledger", headers={"Authorization": "Bearer demo-key"})
    while process.poll() is None:
        try:
            with urlopen(ask) as answer:
                if json.load(answer)["tenants"]["demo"]["rated"] is not None:
                    return
        except URLError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"it ended with {process.returncode}")


CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}


@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "--defaults"], 0),
        (["audit", "--data", "/nowhere"], 2),
        (["flush", "show", "--url", "http://127.0.0.1:1"], 3),
        (["no"], 2),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else str(given),
)
def test_a_stream_that_is_closed_changes_no_exit_code(arguments: list[str], code: int, closed: str, tmp_path: Path) -> None:
    command = f'exec "$@" {closed}'
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", "-c", command, "-", *PARSHALL, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr
    assert not list(tmp_path.iterdir()), "no defect was reported"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["audit", "--data", "/nowhere"], 2), (["flush", "show", "--url", "http://127.0.0.1:1"], 3), (["no"], 2)]
)
def test_a_sentence_that_arrives_nowhere_changes_no_exit_code(arguments: list[str], code: int, full: int) -> None:
    assert subprocess.run([*PARSHALL, *arguments], stdout=subprocess.DEVNULL, stderr=full).returncode == code


@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
def test_a_service_runs_without_a_stream_and_its_workers_hold_the_folder(closed: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [*PARSHALL, "up", "--data", str(tmp_path / "data"), "--listen", url.removeprefix("http://")]
    process = subprocess.Popen(["bash", "-c", f'exec "$@" {closed}', "-", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_all_answers(url, process)
        for pid in worker_and_rater(process.pid):
            assert str(tmp_path / "data" / "lock") in open_files(pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def worker_and_rater(parent: int) -> list[int]:
    """Once both are there: questions are answered before the rater has become the program that it will be."""
    give_up_s = time.monotonic() + 30
    while True:
        children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        ours = [pid for pid in children if b"parshall." in command_of(pid)]
        if len(ours) == 2:
            return ours
        assert time.monotonic() < give_up_s, children
        time.sleep(0.05)


def command_of(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def open_files(pid: int) -> set[str]:
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.add(os.readlink(file))
    return found


def test_whoever_is_the_first_process_of_a_container_is_ended_while_it_starts() -> None:
    """To such a process the kernel gives no signal that it has not asked for."""
    script = "import os, signal; from parshall import cli; os.getpid = lambda: 1; cli._heed_signals(); signal.raise_signal(signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 143


def test_a_command_that_reads_makes_no_folder(tmp_path: Path) -> None:
    for command in (["audit"], ["held", "list"], ["writer", "list", "--redis", "redis://127.0.0.1:1"]):
        assert subprocess.run([*PARSHALL, *command, "--data", str(tmp_path)], capture_output=True).returncode == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "postgres").mkdir()
    done = subprocess.run([*PARSHALL, "held", "list", "--data", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"The PostgreSQL in {tmp_path} does not run: start `parshall up` there, or say with --postgres which one.\n",
    )


@pytest.mark.parametrize(
    "arguments", [["up"], ["ingest", "--redis", "redis://127.0.0.1:1", "--kafka", "127.0.0.1:1"]], ids=lambda one: one[0]
)
def test_a_folder_that_is_gone_is_told_in_a_sentence(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "parshall.toml"
    key = f'\n[[keys]]\ntenant = "demo"\nhash = "{hash_key("k")}"\nscopes = ["ingest"]\n'
    config.write_text((ROOT / "parshall" / "demo.toml").read_text() + key)
    command = [*PARSHALL, *arguments, "--config", str(config)]
    leave = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec {shlex.join(command)}"
    done = subprocess.run(["bash", "-c", leave], capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == ""
    assert (done.stderr, done.returncode) == (
        "The folder that this was started in is gone: go to another one (cd), then start it again.\n", 3
    )  # fmt: skip
