"""A newcomer's hour: the README's commands, verbatim, from a fresh clone, as a user without rights."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534
READY_S = 300  # building .venv is part of it


def blocks() -> list[str]:
    """The shell commands of the chapter, in order: the first starts the service, the others run beside it."""
    chapter = (ROOT / "README.md").read_text().split("## From nothing to a charge in five minutes", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is committed and what is about to be, without anything that was built."""
    folder = tmp_path_factory.mktemp("readme") / "parshall"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    if os.getuid() == 0:
        for parent in [folder, *folder.parents][:4]:
            if str(parent).startswith("/tmp/"):
                parent.chmod(0o755)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, command: str) -> subprocess.Popen[str]:
    rights: dict[str, object] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    # A login's environment: nothing of this test run's virtual environment.
    path = ":".join(part for part in os.environ["PATH"].split(":") if not part.startswith(sys.prefix))
    environment = {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"}
    environment |= {name: value for name, value in os.environ.items() if name.lower().startswith(("pip_", "http", "no_proxy", "ssl_"))}
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **rights,
    )


def run(folder: Path, command: str) -> str:
    process = start(folder, command)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith("Parshall is ready at http://127.0.0.1:8080"):
            return seen
    raise AssertionError(f"it ended before it was ready:\n{seen}")


@pytest.mark.timeout(READY_S + 120)
def test_from_nothing_to_a_charge(clone: Path) -> None:
    up, event, look = blocks()
    service = start(clone, up)
    try:
        said = until_ready(service)
        assert run(clone, re.findall(r"Next: .*? {4}(.*? flush show) ", said)[0]) == "every 1s\n"  # what it suggests works as it is typed
        assert '"accepted":1' in run(clone, event)
        seen = run(clone, look)
        assert '"value":"125000000000"' in seen
        assert '"total":"11.25"' in seen
        assert '"received":1,"accepted":1' in seen
        assert "The three equations hold" in seen
        os.killpg(service.pid, signal.SIGINT)
        assert service.wait(60) in (0, -signal.SIGINT, 130)
    finally:
        if service.poll() is None:
            os.killpg(service.pid, signal.SIGKILL)
        service.communicate()


@pytest.mark.timeout(READY_S + 60)
def test_a_taken_port_is_told_in_one_sentence(clone: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 8080))
        taken.listen()
        process = start(clone, blocks()[0])
        output, _ = process.communicate(timeout=READY_S)
    assert process.returncode != 0
    told = [line for line in output.splitlines() if "8080" in line]
    assert len(told) == 1 and "--listen" in told[0], output
    assert "Traceback" not in output
