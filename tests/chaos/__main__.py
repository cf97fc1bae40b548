"""`make chaos`: real services, two ingest workers, two raters, and everything that can happen to them, for a while.

    make chaos                                   one minute, seed 1
    make chaos ARGS="--seed 7 --seconds 300"     longer, and another plan of faults
    make chaos ARGS="--only 'redis failover'"    one kind of fault; --list names them all

It ends when everything that was sent is answered, and the oracle and `parshall audit` have been asked. The report is printed, and written
to the folder of --report. The exit code is 0 when no promise was broken. The same seed gives the same traffic and the same plan.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.acceptance.fleet import RATED_S
from tests.acceptance.patches import PATCHES
from tests.chaos.plan import NAMES
from tests.chaos.run import Chaos, run_chaos

PATCHED_RATED_S = 20  # what a broken product has not rated by then will never be


def commit() -> str:
    named = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return (named or "unknown") + ("-dirty" if changed else "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=60, help="how long the load lasts (default: %(default)s)")
    parser.add_argument("--events", type=int, default=250, help="events a second (default: %(default)s)")
    parser.add_argument("--every", type=float, default=1.6, help="seconds between the beginnings of two faults (default: %(default)s)")
    parser.add_argument(
        "--only", action="append", default=[], choices=NAMES, metavar="FAULT", help="this kind of fault; repeat it for more"
    )
    parser.add_argument("--patch", action="append", default=[], choices=sorted(PATCHES), help="break the product first, to see it found")
    parser.add_argument("--report", type=Path, help="where chaos.json and chaos.md go")
    parser.add_argument("--keep", action="store_true", help="leave logs and journals where they are")
    parser.add_argument("--list", action="store_true", help="name the kinds of faults, and end")
    given = parser.parse_args()
    if given.list:
        print(*NAMES, sep="\n")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="parshall-chaos-", dir="/tmp"))
    chaos = Chaos(
        given.seed, given.seconds, given.events, given.every, given.only, patches=given.patch, rated_s=30 if given.patch else RATED_S
    )
    good = False
    try:
        report = asyncio.run(run_chaos(folder, chaos, commit()))
        good = report.good
        if given.report:
            report.write(given.report)
        print(report.markdown())
    finally:
        if good and not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs and journals: {folder}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
