"""All tests, in two halves side by side: `make test`.

What only computes (pure decisions, the simulation) has the lower priority and fills the time in which the other half waits for servers, so
servers are not kept waiting by it. Belongs here: which folder is in which half. A part alone: `make test ONLY=tests/unit`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
COMPUTING = ("unit", "simulation")
NICE = ("nice", "-n", "10")
NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED.value


def main() -> int:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    computing = [str(TESTS / name) for name in COMPUTING]
    with tempfile.TemporaryFile() as printed:
        beside = subprocess.Popen([*NICE, *command, *computing, "-p", "no:cacheprovider"], stdout=printed, stderr=subprocess.STDOUT)
        try:
            first = subprocess.call([*command, str(TESTS), *(f"--ignore={folder}" for folder in computing)])
            second = beside.wait()
        finally:
            beside.kill()
        printed.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(printed.read())
        sys.stdout.flush()
    codes = {first, second} - {NO_TESTS}  # of `ARGS="-k …"` all may be in one half
    return max(codes) if codes else NO_TESTS


if __name__ == "__main__":
    sys.exit(main())
