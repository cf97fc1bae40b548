"""Everything that can go wrong around the pipeline, each as one small function; which and when is decided by the seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.simulation.world import Node, World


def _any_up(world: World) -> Node | None:
    up = [node for node in world.nodes if node.up]
    return world.rng.choice(up) if up else None


def _later(world: World, least_s: float, most_s: float, function: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(world.rng.uniform(least_s, most_s), function)


def _repair(world: World, function: Callable[[], object]) -> None:
    _later(world, *world.habits.repair_s, function)


def _restart(node: Node) -> None:
    if not node.up and not node.refused:
        node.start()


def kill(world: World) -> None:
    node = _any_up(world)
    if node is not None:
        node.kill()
        _repair(world, lambda: _restart(node))


def power_loss(world: World) -> None:
    node = _any_up(world)
    if node is not None:
        node.lose_power()
        _repair(world, lambda: _restart(node))


def power_loss_at_a_step(world: World) -> None:
    """The disk goes off at one of its next steps, wherever the process is then."""
    node = _any_up(world)
    if node is None:
        return
    node.disk.cut_at = node.disk.steps + world.rng.randint(1, 12)

    def come_back() -> None:
        if node.disk.off:
            node.lose_power()
        node.disk.cut_at = 0
        _restart(node)

    _repair(world, come_back)


def disk_error(world: World) -> None:
    """One write or sync fails with EIO; the process must stop, and start again from what is really there."""
    node = _any_up(world)
    if node is None:
        return
    node.disk.fail_at = node.disk.steps + world.rng.randint(1, 12)

    def come_back() -> None:
        node.disk.fail_at = 0
        if not node.up:
            node.lose_power()
            _restart(node)

    _repair(world, come_back)


def power_loss_after_an_answer(world: World) -> None:
    """The moment at which whatever was answered too early is lost."""

    def lose(node: Node) -> None:
        if node.up:
            node.lose_power()
            _repair(world, lambda: _restart(node))

    world.after_an_answer = lose


def reply_lost(world: World) -> None:
    """The next claim is executed, and its connection breaks before the reply."""
    world.redis.break_after_claim = True


def rolling_restart(world: World) -> None:
    async def one_by_one() -> None:
        for node in list(world.nodes):
            if node.up:
                await node.stop()
                await asyncio.sleep(world.rng.uniform(0.01, 2))
                _restart(node)

    world.background(one_by_one())


def connections_break(world: World) -> None:
    world.redis.break_connections()


def redis_restarts_empty(world: World) -> None:
    world.redis.restart_empty()


def redis_restarts_with_data(world: World) -> None:
    world.redis.restart_with_data()


def redis_fails_over(world: World) -> None:
    world.redis.replicate()
    _later(world, 0.01, 5, world.redis.fail_over)


def redis_pauses(world: World) -> None:
    world.redis.pause(world.rng.choice(world.habits.outage_s))


def log_unreachable(world: World) -> None:
    world.log.unreachable_until_s = world.loop.time() + world.rng.choice(world.habits.outage_s)


def produce_outcome_unknown(world: World) -> None:
    world.log.unknown_outcomes = 0.5

    def back() -> None:
        world.log.unknown_outcomes = 0.0

    _repair(world, back)


FAULTS: dict[str, Callable[[World], None]] = {
    function.__name__: function
    for function in (
        kill,
        power_loss,
        power_loss_at_a_step,
        power_loss_after_an_answer,
        disk_error,
        rolling_restart,
        connections_break,
        reply_lost,
        redis_restarts_empty,
        redis_restarts_with_data,
        redis_fails_over,
        redis_pauses,
        log_unreachable,
        produce_outcome_unknown,
    )
}
