"""One run: senders and faults for a while, then everything is repaired, and the promise is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.simulation.check import check_promise
from tests.simulation.faults import FAULTS
from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.world import CROWDED, SPREAD, Stats, World

REPAIR_S = 900  # how long everything may take to end answered once nothing is broken any more


def simulate(seed: int, *, faults: Sequence[str] = tuple(FAULTS)) -> Stats:
    """Run one seed; AssertionError, with the seed and the last steps, when the promise is broken."""
    worlds: list[World] = []

    async def main(loop: SimulatedLoop) -> None:
        world = World(loop, seed, CROWDED if seed % 2 else SPREAD, writers=1 + seed // 2 % 3, partitions=1 + seed % 4)
        worlds.append(world)
        try:
            await _live(world, faults)
        finally:
            if world.defects:
                raise world.defects[0]
        check_promise(world)

    try:
        run(main)
    except BaseException as error:
        trace = "\n".join(worlds[0].trace[-60:]) if worlds else ""
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{trace}\nreplay it: make simulate SEED={seed}") from error
    world = worlds[0]
    world.stats.scripts.update(world.redis.executed)
    return world.stats


async def _live(world: World, faults: Sequence[str]) -> None:
    rng = world.rng
    for node in world.nodes:
        node.start()
    habits = world.habits
    senders = [asyncio.create_task(world.sender(rng.randint(*habits.batches))) for _ in range(rng.randint(*habits.senders))]
    for _ in range(rng.randint(*habits.faults) if faults else 0):
        await asyncio.sleep(rng.choice(habits.between_faults_s) * rng.random())
        name = rng.choice(list(faults))
        world.note(f"fault: {name}")
        world.stats.faults[name] += 1
        FAULTS[name](world)
    async with asyncio.timeout(REPAIR_S):
        await asyncio.gather(*senders)
        await world.settle()
