"""What a command and a service do when what they print arrives nowhere. Python fails a last time when it ends, so these are processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.services import free_port

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
