"""One run: senders and faults for a while, then everything is repaired, and the promise is checked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterator
from unittest.mock import patch

import structlog

import buffer.record as record
import ingest.writer as writer
from tests.simulation.check import check_answers, check_end, check_promised
from tests.simulation.check_rated import check_rated
from tests.simulation.faults import FAULTS, WAITING
from tests.simulation.habits import Habits, profile_of
from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.rater_faults import RATER_FAULTS, RATER_WAITING
from tests.simulation.raters import Raters
from tests.simulation.stats import Stats
from tests.simulation.world import World

_PIECE_COUNTERS = 2  # a flush is encoded in many pieces, and calls come in between
_AFTER_A_STEP_S = (0, 0.001, 0.01, 0.03)
_SETTLE_S = 900  # how long it may take, once nothing is broken any more, until all is answered and flushed
_TRACE = 60


def simulate(seed: int, habits: Habits | None = None) -> Stats:
    """Run one seed; AssertionError, with the seed and the last steps, when the promise is broken."""
    return trace_of(seed, habits or profile_of(seed))[0]


def outcome_of(seed: int) -> tuple[int, Stats | None, str]:
    """(seed, what happened or None, why it failed): for processes of their own, which cannot pickle a function of __main__."""
    try:
        return seed, simulate(seed), ""
    except AssertionError as error:
        return seed, None, str(error)


def trace_of(seed: int, habits: Habits) -> tuple[Stats, list[str]]:
    """What happened, and every step that was noted."""
    worlds: list[World] = []

    async def main(loop: SimulatedLoop) -> None:
        world = World(loop, seed, habits)
        worlds.append(world)
        await _until_broken(world, asyncio.ensure_future(_live(world)))

    try:
        with _paces(habits):
            run(main)
    except Exception as error:
        if not worlds:
            raise  # nothing was simulated: that is no finding
        trace = "\n".join(worlds[0].surroundings.trace[-_TRACE:])
        message = f"seed {seed} ({habits.name}): {type(error).__name__}: {error}\n{trace}\nreplay it: make simulate SEED={seed}"
        raise AssertionError(message) from error
    return _stats(worlds[0]), worlds[0].surroundings.trace


@contextlib.contextmanager
def _paces(habits: Habits) -> Iterator[None]:
    """Constants of the product that decide how finely things interleave, for this world; and no log, which would take most of the time."""
    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    before = structlog.get_config()
    structlog.configure(wrapper_class=quiet)
    logging.disable(logging.ERROR)
    try:
        with patch.object(record, "PIECE_COUNTERS", _PIECE_COUNTERS), patch.object(writer, "_SWEEP_S", habits.sweep_s):
            yield
    finally:
        logging.disable(logging.NOTSET)
        structlog.configure(**before)


async def _until_broken(world: World, life: asyncio.Future[None]) -> None:
    await asyncio.wait((life, world.broken), return_when=asyncio.FIRST_COMPLETED)
    if world.defects:
        raise world.defects[0]
    life.result()


async def _live(world: World) -> None:
    rng, habits = world.rng, world.habits
    world.after_power_loss = lambda _: check_promised(world)
    for index, node in enumerate(world.nodes):
        if index and rng.random() < habits.late:
            world.loop.call_later(rng.choice(habits.between_s) * 10, node.restart)
        else:
            node.start()
    breaker = None
    if world.raters is not None:
        world.raters.start()
        breaker = asyncio.create_task(_break_raters(world, world.raters))
    senders = [asyncio.create_task(world.sender(rng.randint(*habits.batches))) for _ in range(rng.randint(*habits.senders))]
    for _ in range(rng.randint(*habits.number)):
        await asyncio.sleep(rng.choice(habits.between_s) * rng.random())
        for _ in range(rng.choice(habits.together)):
            _inject(world)
    await asyncio.gather(*senders)
    if breaker is not None:
        breaker.cancel()
    async with asyncio.timeout(_SETTLE_S):
        await world.settle()
        await check_answers(world)
    check_end(world)
    if world.raters is not None:
        async with asyncio.timeout(_SETTLE_S):
            await check_rated(world)


def _inject(world: World) -> None:
    """Now, or when some writer takes some step."""
    rng, weights = world.rng, world.habits.faults or dict.fromkeys(FAULTS, 1)
    name = rng.choices(list(weights), list(weights.values()))[0]
    node = rng.choice([node for node in world.nodes if node.up] or world.nodes)
    if name not in WAITING and rng.random() < world.habits.at_a_step:
        delay_s = rng.choice(_AFTER_A_STEP_S) * rng.random()
        node.steps.when(rng.choice(world.habits.steps), lambda: world.loop.call_later(delay_s, FAULTS[name], world, node))
    else:
        FAULTS[name](world, node)


async def _break_raters(world: World, raters: Raters) -> None:
    rng, habits = raters.rng, world.habits
    weights = habits.rater_faults or dict.fromkeys(RATER_FAULTS, 1)
    for _ in range(rng.randint(*habits.rater_number)):
        await asyncio.sleep(rng.choice(habits.between_s) * rng.random())
        name = rng.choices(list(weights), list(weights.values()))[0]
        node = rng.choice(raters.nodes)
        if name not in RATER_WAITING and rng.random() < habits.rater_at_a_step:
            delay_s = rng.choice(_AFTER_A_STEP_S) * rng.random()
            strike = functools.partial(world.loop.call_later, delay_s, RATER_FAULTS[name], world, raters, node)
            node.steps.when(rng.choice(habits.rater_steps), strike)
        else:
            RATER_FAULTS[name](world, raters, node)


def _stats(world: World) -> Stats:
    stats = world.stats
    for redis in world.shards:
        stats.scripts.update(redis.executed)
    stats.starts = sum(node.starts for node in world.nodes)
    stats.simulated_s = round(world.loop.time())
    if world.raters is not None:
        stats.rater_starts = sum(len(node.counts) for node in world.raters.nodes)
        stats.commits = world.raters.postgres.commits
    stats.segments_gone = sum(step.startswith("remove ") for node in world.nodes for step in node.disk.log)
    return stats
