"""Each guard of the protocol, taken out: the simulation finds it within a bounded number of seeds, and nothing while it is in place."""

from __future__ import annotations

import pytest

from tests.simulation.rater_sabotage import RATER_SABOTAGES
from tests.simulation.sabotage import SABOTAGES
from tests.simulation.scenario import simulate
from tests.usual_python import USUAL_PYTHON

ALL = {**SABOTAGES, **RATER_SABOTAGES}
BOUND = 40 if USUAL_PYTHON else 1000  # another Python makes other worlds of a seed, and searches from 0
FIRST = {  # where the search begins, for those that take long to find from 0; `python -m tests.prove sabotage` begins elsewhere for all
    "a flush that a lost disk cut short is not told": 22,
    "a flush that an old copy holds as committed is produced": 314,
    "a flush without its commit exists": 21,
    "mark before the sync": 38,
    "the faster join counts call numbers": 46,
    "who joined an older store and went on is taken for joined": 90,
    "who joins a second time stays joined": 22,
}
SOUND = 2  # seeds of the same worlds with the guard in place


@pytest.mark.timeout(300 if USUAL_PYTHON else 3600)
@pytest.mark.parametrize("name", ALL)
def test_the_simulation_finds_it(name: str) -> None:
    sabotage = ALL[name]
    first = FIRST.get(name, 0) if USUAL_PYTHON else 0
    for seed in range(first, first + BOUND):
        if told := sabotage.breaks(seed):
            print(f"seed {seed}: {told}")
            break
    else:
        raise AssertionError(f"{name}: not found in {BOUND} seeds from {first}")
    for sound in range(seed, seed + SOUND):
        simulate(sound, sabotage.habits)
