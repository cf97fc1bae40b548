"""The real pipeline in simulated worlds: a bounded number of seeds, some of them fresh; and the same seed is the same run."""

from __future__ import annotations

import secrets

import pytest

from tests.simulation.habits import PROFILES, profile_of
from tests.simulation.scenario import simulate, trace_of

FIXED = 96
FRESH = 24  # a failure prints the seed, and `make simulate SEED=…` replays it


@pytest.mark.parametrize("first", range(0, FIXED, len(PROFILES)))
def test_the_promise_holds(first: int) -> None:
    for seed in range(first, first + len(PROFILES)):
        simulate(seed)


def test_the_promise_holds_for_seeds_never_tried() -> None:
    for _ in range(FRESH):
        simulate(secrets.randbelow(1 << 40))


@pytest.mark.parametrize("seed", range(len(PROFILES)), ids=lambda seed: profile_of(seed).name)
def test_a_seed_is_one_run(seed: int) -> None:
    assert trace_of(seed)[1] == trace_of(seed)[1]
