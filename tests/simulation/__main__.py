"""Long runs: `python -m tests.simulation --seeds 0:10000`.

Prints what happened in all worlds together, and the command that replays a failure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter

from tests.simulation.habits import profile_of
from tests.simulation.scenario import simulate


def _run(seed: int) -> tuple[int, str, Counter[str], Counter[str], int]:
    """(seed, why it failed, faults, answers, simulated seconds)"""
    try:
        stats = simulate(seed)
    except AssertionError as error:
        return seed, str(error), Counter(), Counter(), 0
    return seed, "", Counter(stats.faults), Counter(stats.answers), stats.simulated_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:1000", metavar="FROM:TO", help="the seeds FROM to TO - 1")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    arguments = parser.parse_args()
    first, last = map(int, arguments.seeds.split(":"))
    began = time.monotonic()
    faults: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    profiles: Counter[str] = Counter()
    simulated_s = failed = 0
    with multiprocessing.Pool(arguments.jobs) as pool:
        for seed, why, its_faults, its_answers, seconds in pool.imap_unordered(_run, range(first, last), chunksize=8):
            if why:
                failed += 1
                print(why, flush=True)
            faults += its_faults
            answers += its_answers
            profiles[profile_of(seed).name] += 1
            simulated_s += seconds
    print(f"{last - first} worlds, {simulated_s // 3600} simulated hours, {round(time.monotonic() - began)} s, {failed} broken promises")
    for title, counts in (("worlds", profiles), ("faults", faults), ("answers", answers)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
