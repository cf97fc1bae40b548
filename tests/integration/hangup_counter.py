"""A child of a supervisor, for test_processes.py: it writes a line to the file of its order for its start and for each SIGHUP, and ends by
SIGUSR1."""

import signal
import sys

from parshall.processes import heed_signals, read_order

if __name__ == "__main__":
    file = read_order()

    def note(what: str) -> None:
        with open(file, "a") as opened:
            opened.write(f"{what}\n")

    signal.signal(signal.SIGHUP, lambda *_: note("told"))
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))
    note("started")
    heed_signals()
    while True:
        signal.pause()
