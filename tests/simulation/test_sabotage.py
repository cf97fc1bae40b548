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
    "a charge is computed from a stale quantity": 25,
    "a flush begins before the store has accepted the journal": 13,
    "a flush is produced before it is synced": 25,
    "a flush that a lost disk cut short is not told": 145,
    "a flush that an old copy holds as committed is produced": 43,
    "a flush without its commit exists": 16,
    "a lost writer is left open": 15,
    "a mark counts the calls of all shards": 55,
    "a new writer believes an older store": 58,
    "a segment goes once one shard's horizon has passed it": 62,
    "a shard is told of an opening before all have looked at the journal": 5,
    "a shard is told that calls of all shards are on the disk": 35,
    "chains are not locked": 7,
    "events of a lost disk are not told": 13,
    "the faster join counts call numbers": 29,
    "who joined an older store and went on is taken for joined": 80,
    "who joins a second time stays joined": 87,
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
