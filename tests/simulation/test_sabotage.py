"""Each guard of the protocol carries weight: taken out, the simulation finds it within a bounded number of worlds."""

from __future__ import annotations

import pytest

from tests.simulation.habits import seeds_of
from tests.simulation.sabotage import SABOTAGES
from tests.simulation.scenario import simulate

MOST_WORLDS = 150  # most guards are missed in the first few


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_guard_that_is_taken_out_is_missed(name: str) -> None:
    sabotage = SABOTAGES[name]
    with sabotage.off():
        for seed in seeds_of(sabotage.profile, MOST_WORLDS):
            try:
                simulate(seed)
            except AssertionError:
                return
    pytest.fail(f"{MOST_WORLDS} worlds do without this guard: {name}")
