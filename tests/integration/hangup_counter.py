"""A child of a supervisor, for test_processes.py: it writes a line to a file for its start, for each SIGHUP and for each SIGTERM, by which
it ends unless it is stubborn. SIGUSR1 ends it with the exit code it was given. Its order: (file, exit code, whether it is stubborn)."""

import signal
import sys

from parshall.processes import heed_signals, read_order

if __name__ == "__main__":
    file, code, stubborn = read_order()

    def note(what: str) -> None:
        with open(file, "a") as opened:
            opened.write(f"{what}\n")

    def asked() -> None:
        note("asked")
        if not stubborn:
            sys.exit(0)

    signal.signal(signal.SIGHUP, lambda *_: note("told"))
    signal.signal(signal.SIGTERM, lambda *_: asked())
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(code))
    note("started")
    heed_signals()
    while True:
        signal.pause()
