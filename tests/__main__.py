"""All tests, in two streams side by side: `make test`.

The first runs what drives the whole product, then the simulation. The second begins with what only computes, at the lower priority, and
fills the time in which the first waits for servers; then it runs what drives parts of the product, with servers of its own. So both end
together.

Belongs here: which folder is in which stream. A part alone: `make test ONLY=tests/unit`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

TESTS = Path(__file__).parent
COMPUTING = ("unit",)
LAST = ("simulation",)  # of the first stream
PARTS = ("conformance", "integration")
NICE = ("nice", "-n", "10")
NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED.value
INTERRUPTED = pytest.ExitCode.INTERRUPTED.value


def main() -> int:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    alone = [*command, "-p", "no:cacheprovider"]
    with tempfile.TemporaryFile() as printed:
        second = _Stream([[*NICE, *alone, *_paths(*COMPUTING)], [*alone, *_paths(*PARTS)]], printed)
        second.start()
        try:
            first = [subprocess.call([*command, str(TESTS), *(f"--ignore={folder}" for folder in _paths(*COMPUTING, *LAST, *PARTS))])]
            if INTERRUPTED not in first:
                first.append(subprocess.call([*alone, *_paths(*LAST)]))
            if INTERRUPTED not in first:
                second.join()
        finally:
            second.end()
        printed.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(printed.read())
        sys.stdout.flush()
    codes = {*first, *second.codes} - {NO_TESTS}  # of `ARGS="-k …"` all may be in one stream
    return max(codes) if codes else NO_TESTS


class _Stream(threading.Thread):
    """Commands one after the other, until one is interrupted or all is ended."""

    def __init__(self, commands: Sequence[Sequence[str]], printed: IO[bytes]) -> None:
        super().__init__()
        self.codes: list[int] = []
        self._commands = commands
        self._printed = printed
        self._lock = threading.Lock()
        self._ended = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        for command in self._commands:
            with self._lock:
                if self._ended:
                    return
                self._process = subprocess.Popen(command, stdout=self._printed, stderr=subprocess.STDOUT)
            self.codes.append(self._process.wait())
            if self.codes[-1] == INTERRUPTED:
                return

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
        self.join()


def _paths(*folders: str) -> list[str]:
    return [str(TESTS / folder) for folder in folders]


if __name__ == "__main__":
    sys.exit(main())
