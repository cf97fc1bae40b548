"""Long runs of the simulation.

python -m tests.simulation --seeds 0:2000                 one process; prints totals, the coverage, and how to replay what failed
python -m tests.simulation --seeds 0:10000 --jobs 4 --report FILE
python -m tests.simulation --seeds 0:80000 --profile hours     of these only the 10,000 whose worlds last for hours
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.simulation.habits import PROFILES, profile_of
from tests.simulation.scenario import outcome_of
from tests.simulation.stats import Stats

_SAY_EVERY_S = 30


def _results(seeds: Sequence[int], jobs: int) -> Iterator[tuple[int, Stats | None, str]]:
    if jobs == 1:
        yield from map(outcome_of, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(outcome_of, seeds, chunksize=4)


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end or int(first) + 1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Runs many seeds of the simulation.")
    parser.add_argument("--seeds", type=_seeds, required=True, metavar="A:B", help="from A up to but without B")
    parser.add_argument("--profile", choices=[profile.name for profile in PROFILES], help="only those seeds whose worlds are of this kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--report", type=Path, help="write what is printed at the end to this file too")
    arguments = parser.parse_args()
    seeds = [seed for seed in arguments.seeds if arguments.profile in (None, profile_of(seed).name)]
    started = said = time.monotonic()
    total, failed = Stats(runs=0), list[int]()
    for done, (seed, stats, why) in enumerate(_results(seeds, arguments.jobs), 1):
        if stats is None:
            failed.append(seed)
            print(why, flush=True)
        else:
            total.add(stats)
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            print(f"{done} of {len(seeds)} seeds, {len(failed)} failed", flush=True)
    report = _report(arguments.seeds, total, failed, round(time.monotonic() - started))
    print(report)
    if arguments.report:
        arguments.report.write_text(report + "\n")
    return 1 if failed else 0


def _report(seeds: range, total: Stats, failed: list[int], seconds: int) -> str:
    lines = [f"seeds {seeds.start}:{seeds.stop}, {seconds} s", str(total), "", total.table(), "", f"{len(failed)} seeds failed"]
    lines += [f"replay it: make simulate SEED={seed}" for seed in failed]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
