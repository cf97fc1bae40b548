"""`make bench`: CPU per event of each step, then of the whole service beside the control.

python -m bench                     everything
python -m bench --only whole        the servers alone
python -m bench --quick             a fifth of the events, one round: for a look, not for a figure
python -m bench --at-least 10       exit 1 if the control costs less than ten times as much at 1000 events a request
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench import whole

STEPS = ("micro_edge", "micro_claims", "micro_journal", "micro_flush", "micro_rebuild", "micro_shed")
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("steps", "whole"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-least", type=int, default=0, metavar="TIMES")
    parser.add_argument("--json", type=Path, help="where to write the figures (default: bench/results/latest.json)")
    arguments = parser.parse_args()
    report: dict[str, object] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit(), "machine": _machine()}
    if arguments.only != "whole":
        _run_steps(arguments.quick)
    if arguments.only == "steps":
        return 0
    print("\n== The whole service beside the control\n", flush=True)
    rounds, share = (1, 20) if arguments.quick else (arguments.rounds, 100)
    results = whole.measure(rounds, share, lambda line: print(line, flush=True))
    print()
    for line in whole.table(results):
        print(line)
    report["rounds"] = [row._asdict() for row in results]
    file = arguments.json or RESULTS / "latest.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nAll rounds: {file}")
    return _verdict(results, arguments.at_least)


def _run_steps(quick: bool) -> None:
    """Each in a process of its own: one bench must not warm or fill the caches of another."""
    for step in STEPS:
        print(f"\n== {(importlib.import_module(f'bench.{step}').__doc__ or step).splitlines()[0]}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{step}", *(["--runs", "2"] if quick else [])], check=True)


def _verdict(results: list[whole.Round], at_least: int) -> int:
    ours, control = whole.of_case(results, whole.CASES[0])
    enough = whole.median(control, "server_us") >= at_least * whole.median(ours, "server_us")
    if at_least:
        print(f"At 1000 events a request the control costs {'' if enough else 'NOT '}at least {at_least} times as much.")
    return 0 if enough else 1


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, Python {platform.python_version()}"
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
