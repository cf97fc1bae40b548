"""All tests, in two streams side by side: `make test`.

The first runs what drives the whole product. The second begins with what only computes (pure decisions, the simulation), at the lower
priority, and fills the time in which the first waits for servers; then it runs the conformance suites, with servers of its own. Belongs
here: which folder is in which stream. A part alone: `make test ONLY=tests/unit`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

TESTS = Path(__file__).parent
COMPUTING = ("unit", "simulation")
CONFORMANCE = ("conformance",)
NICE = ("nice", "-n", "10")
NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED.value


def main() -> int:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    with tempfile.TemporaryFile() as printed, ThreadPoolExecutor(1) as pool:
        second = pool.submit(_second_stream, command, printed)
        first = subprocess.call([*command, str(TESTS), *(f"--ignore={folder}" for folder in _paths(*COMPUTING, *CONFORMANCE))])
        codes = {first, *second.result()}
        printed.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(printed.read())
        sys.stdout.flush()
    codes -= {NO_TESTS}  # of `ARGS="-k …"` all may be in one stream
    return max(codes) if codes else NO_TESTS


def _second_stream(command: list[str], printed: IO[bytes]) -> list[int]:
    """Exit codes."""
    alone = [*command, "-p", "no:cacheprovider"]
    runs = [[*NICE, *alone, *_paths(*COMPUTING)], [*alone, *_paths(*CONFORMANCE)]]
    return [subprocess.call(run, stdout=printed, stderr=subprocess.STDOUT) for run in runs]


def _paths(*folders: str) -> list[str]:
    return [str(TESTS / folder) for folder in folders]


if __name__ == "__main__":
    sys.exit(main())
