"""The whole pipeline in simulated worlds: a number of seeds that are always the same, and a few that are new in each run.

A failure names its seed; `make simulate SEED=…` runs it again, exactly. Long runs: `python -m tests.simulation --seeds A:B`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.habits import PROFILES, Habits, seeds_of
from tests.simulation.rater_faults import RATER_FAULTS
from tests.simulation.scenario import simulate, trace_of
from tests.simulation.stats import Stats
from tests.simulation.steps import RATER_STEPS, REPLY, STEPS
from tests.usual_python import USUAL_PYTHON

SEEDS = 10 * len(PROFILES)
MOST_SEEDS = (3 if USUAL_PYTHON else 10) * SEEDS  # until all is reached: another Python, or a change, makes other worlds of a seed
FRESH = 2 * len(PROFILES)


def test_the_promise_holds_and_the_seeds_reach_everything() -> None:
    total = Stats(runs=0)
    for seed in range(MOST_SEEDS):
        total.add(simulate(seed))
        if seed >= SEEDS and not _not_reached(total):
            break
    assert _not_reached(total) == set()


def _not_reached(total: Stats) -> set[object]:
    # A reply is appended in the same turn of the loop, unless it waits for that of an earlier call that was refused: rare.
    steps = {*STEPS, *RATER_STEPS} - {REPLY}
    return ({*FAULTS, *RATER_FAULTS} ^ set(total.faults)) | (steps - {step for _, step in total.coverage})


def test_the_promise_holds_for_seeds_never_tried() -> None:
    first = int.from_bytes(os.urandom(5), "big")
    print(f"fresh seeds from {first}")
    for seed in range(first, first + FRESH):
        simulate(seed)


@pytest.mark.parametrize("profile", PROFILES, ids=[profile.name for profile in PROFILES])
def test_a_seed_is_one_run(profile: Habits) -> None:
    first, second = (trace_of(seeds_of(profile, 3)[2], profile) for _ in range(2))
    assert first == second


def test_a_seed_is_one_run_whatever_strings_hash_to() -> None:
    command = "from tests.simulation.scenario import simulate; print([repr(simulate(seed)) for seed in range(8, 16)])"
    runs = [
        subprocess.run(
            [sys.executable, "-c", command], env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True, capture_output=True, text=True
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
