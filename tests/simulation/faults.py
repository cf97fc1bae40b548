"""Everything that can go wrong around the pipeline, each as one small function; which, when and to whom is decided by the seed.

`@fault`: happens at once. `@waiting_fault`: lies in wait and says itself when it strikes (`world.struck`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from buffer.journal import read_journal
from buffer.journal_records import CallRecord, Opened, Snapshot
from dedupe.redis_claims import IDLE_MARK_S
from tests.simulation.node import CATALOGUES, Node, WatchedDisk
from tests.simulation.redis_server import SimulatedRedis
from tests.simulation.steps import EXECUTED, MARKED, SENT, SYNCED
from tests.simulation.world import World

Fault = Callable[[World, Node], None]
FAULTS: dict[str, Fault] = {}
WAITING: set[str] = set()
_MOST_LEAVE, _MOST_WRITERS = 2, 6  # in one world


def fault(function: Fault) -> Fault:
    name = function.__name__

    def strike(world: World, node: Node) -> None:
        world.struck(name)
        function(world, node)

    FAULTS[name] = strike
    return strike


def waiting_fault(function: Fault) -> Fault:
    FAULTS[function.__name__] = function
    WAITING.add(function.__name__)
    return function


def _later(world: World, least_s: float, most_s: float, function: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(world.rng.uniform(least_s, most_s), function)


def _repair(world: World, function: Callable[[], object]) -> None:
    _later(world, *world.habits.repair_s, function)


# ---- processes and disks


@fault
def kill(world: World, node: Node) -> None:
    if node.up:
        node.kill()
        _repair(world, node.restart)


@fault
def power_loss(world: World, node: Node) -> None:
    _lose_power(world, node)


def _lose_power(world: World, node: Node) -> None:
    if node.up:
        world.lose_power(node)
        _repair(world, node.restart)


@waiting_fault
def power_loss_at_a_disk_step(world: World, node: Node) -> None:
    """The disk goes off at one of its next steps, wherever the process is then."""

    def strike() -> None:
        world.struck("power_loss_at_a_disk_step")
        _repair(world, come_back)

    def come_back() -> None:
        if node.disk.off:
            world.lose_power(node)
        elif node.up:  # an error that lay in wait came first, and it may not have noticed it yet
            world.loop.call_later(0.1, node.restart)
        node.restart()

    node.disk.on_failure = strike
    node.disk.cut_at = node.disk.steps + world.rng.randint(1, 12)


@waiting_fault
def power_loss_after_an_answer(world: World, _: Node) -> None:
    """The next answer is the last thing its writer does."""

    def strike(node: Node) -> None:
        world.struck("power_loss_after_an_answer")
        _lose_power(world, node)

    world.after_an_answer = strike


@waiting_fault
def disk_error(world: World, node: Node) -> None:
    """One write or sync fails with EIO; the process must stop. What it finds when it starts again may read fine and not be on the disk."""

    def strike() -> None:
        world.struck("disk_error")
        _repair(world, come_back)

    def come_back() -> None:
        if node.disk.off:  # a power cut that lay in wait came first
            world.lose_power(node)
        elif node.up:  # it has not noticed yet
            _later(world, 0.01, 0.05, come_back)
            return
        elif world.rng.random() < 0.5:
            world.lose_power(node)
        node.restart()

    node.disk.on_failure = strike
    node.disk.fail_at = node.disk.steps + world.rng.randint(1, 12)


@fault
def disk_full(world: World, node: Node) -> None:
    """No room: refused before any claim."""

    disk = node.disk  # this one, whatever another fault puts in its place meanwhile

    def make_room() -> None:
        disk.free = 1 << 40

    disk.free = 0
    _repair(world, make_room)


@fault
def rolling_restart(world: World, _: Node) -> None:
    world.background(_one_by_one(world))


async def _one_by_one(world: World) -> None:
    for node in list(world.nodes):
        if node.up:
            await node.stop()
            await asyncio.sleep(world.rng.uniform(0.01, 2))
            node.restart()


# ---- the network


@fault
def connections_break(world: World, _: Node) -> None:
    for transport in world.redis.connections():
        transport.break_off()


@fault
def connection_stalls(world: World, node: Node) -> None:
    """Neither way does anything arrive for a while; the client gives up, and what it sent arrives afterwards."""
    until_s = world.loop.time() + world.rng.uniform(0.1, 4)
    for transport in world.redis.connections(node.steps):
        transport.stalled_until_s = until_s


@fault
def reply_lost(world: World, _: Node) -> None:
    """The next claim is executed, and its connection breaks before the reply."""
    world.redis.next_reply_lost = True


@waiting_fault
def redis_away_after_a_claim(world: World, node: Node) -> None:
    """A claim is executed, its reply is lost, and Redis cannot be reached for a while: time passes before the call is sent again."""

    def strike() -> None:
        world.struck("redis_away_after_a_claim")
        redis = world.redis
        for transport in redis.connections(node.steps):
            transport.break_off()
        redis.pause(world.rng.choice(world.habits.outage_s))

    node.steps.when(EXECUTED, strike)


@fault
def error_reply(world: World, _: Node) -> None:
    """The next claim is not executed but answered with an error; those behind it are executed."""
    world.redis.next_claim_fails = True


@waiting_fault
def stale_copy_meets_a_reopening(world: World, node: Node) -> None:
    """A claim is executed and its writer loses power; a request of another writer stays in the network until the first has opened again.

    By then the other has connected again and has its verdict. The copy must not take over the claim that has just become void.
    """
    others = [other for other in world.nodes if other is not node]
    if not others:
        return
    other = world.rng.choice(others)

    def hold_back() -> None:
        redis = world.redis
        held = redis.connections(other.steps)
        for transport in held:
            transport.break_off(hold=True)
            redis.after("publish", node.steps, transport.release)

    def strike() -> None:
        if node.up:
            world.struck("stale_copy_meets_a_reopening")
            world.lose_power(node)
            if SENT in other.steps.now(ready=other.ready):
                hold_back()
            else:
                other.steps.when(SENT, hold_back)
            _later(world, 0.2, 0.8, node.restart)

    node.steps.when(EXECUTED, strike)


@waiting_fault
def mark_stays_behind(world: World, node: Node) -> None:
    """A mark that went out by itself stays in the network; newer ones overtake it on another connection."""

    def hold_back() -> None:
        world.struck("mark_stays_behind")
        for transport in world.redis.connections(node.steps):
            transport.break_off(hold=True)
            _later(world, 0.1, 1, transport.release)

    node.steps.when(SYNCED, lambda: asyncio.get_running_loop().call_later(IDLE_MARK_S + 0.0001, hold_back))


# ---- Redis


@fault
def redis_restarts_empty(world: World, _: Node) -> None:
    if not world.redis_kept:
        world.redis.restart_empty()


@fault
def redis_restarts_with_data(world: World, _: Node) -> None:
    world.redis.restart_with_data()


@waiting_fault
def redis_fails_over(world: World, _: Node) -> None:
    """What was claimed since the replica last caught up is missing."""

    def strike() -> None:
        if not world.redis_kept:
            world.struck("redis_fails_over")
            redis.fail_over()

    redis = world.redis
    redis.replicate()
    _later(world, 0.001, 5 * world.rng.random(), strike)


def _some_time_after_a_failover(world: World, then: Callable[[SimulatedRedis], None]) -> None:
    def fail_over() -> None:
        if not world.redis_kept:
            redis.fail_over()
            _later(world, 0.3, 5, later)

    def later() -> None:
        if not world.redis_kept:
            then(redis)

    redis = world.redis
    redis.replicate()
    _later(world, 0.001, 1, fail_over)


@waiting_fault
def older_redis_answers(world: World, _: Node) -> None:
    """Some time after a failover connections end at the old primary again, which lives on and thinks that it knows everything."""

    def astray(redis: SimulatedRedis) -> None:
        if redis.go_astray():
            world.struck("older_redis_answers")
        _later(world, 0.1, world.rng.choice(world.habits.outage_s), redis.come_back)

    _some_time_after_a_failover(world, astray)


@waiting_fault
def newcomer_at_older_redis(world: World, _: Node) -> None:
    """Some time after a failover a new writer starts, and its connections alone end at the old primary, which was never told."""

    _some_time_after_a_failover(world, lambda redis: _new_writer_at_older(world, redis, "newcomer_at_older_redis"))


@waiting_fault
def announcements_arrive_late(world: World, _: Node) -> None:
    """Copies of what writers told the registry before a failover, sent once and again to a broker that stood still, arrive long after it.
    Then a new writer is led to the old primary: it asks the registry where the others are."""

    def arrive(redis: SimulatedRedis) -> None:
        for writer, announced in told:
            world.log.announced.setdefault(writer, []).append(announced)
        _new_writer_at_older(world, redis, "announcements_arrive_late")

    told = [(writer, arrived[-1]) for writer, arrived in world.log.announced.items() if arrived]
    _some_time_after_a_failover(world, arrive)


def _new_writer_at_older(world: World, redis: SimulatedRedis, fault: str) -> None:
    if len(world.nodes) < _MOST_WRITERS:
        node = world.new_writer()
        if redis.lead_astray(node.steps):
            world.struck(fault)
        node.start()
        _later(world, 0.1, world.rng.choice(world.habits.outage_s), redis.come_back)


@fault
def redis_pauses(world: World, _: Node) -> None:
    world.redis.pause(world.rng.choice(world.habits.outage_s))


# ---- the log


@fault
def log_unreachable(world: World, _: Node) -> None:
    world.log.unreachable_until_s = world.loop.time() + world.rng.choice(world.habits.outage_s)


@fault
def produce_outcome_unknown(world: World, _: Node) -> None:
    world.log.unknown_outcomes = 0.5

    def back() -> None:
        world.log.unknown_outcomes = 0.0

    _repair(world, back)


@fault
def registry_lost(world: World, node: Node) -> None:
    """The topic of writers is empty for a while, and Redis too: who trusts it would open claims without the others.

    Not before the first flush of all: then nothing tells a new writer that there were others.
    """

    async def until_restored() -> None:
        await asyncio.sleep(world.rng.uniform(0, 4))
        world.log.restore_registry()
        for _ in range(50):  # for a while: who had read the empty registry just before is refused only after
            for refused in world.nodes:
                if refused.refused.startswith("CannotStart"):
                    refused.refused = ""
                    refused.restart()
            await asyncio.sleep(0.1)

    if not world.log.records:
        return
    world.log.lose_registry()
    for redis in world.shards if not world.redis_kept else ():
        redis.restart_empty()
    if node.up:
        node.kill()
        _later(world, 0.001, 1, node.restart)
    world.background(until_restored())


# ---- clocks


@fault
def writer_clock_jumps(world: World, node: Node) -> None:
    node.clock_off_us = 1_000_000 * world.rng.choice(world.habits.jump_s)

    def back() -> None:
        node.clock_off_us = 0

    _later(world, *world.habits.jump_lasts_s, back)


@fault
def redis_clock_jumps(world: World, _: Node) -> None:
    redis = world.redis
    redis.clock_off_us = 1_000_000 * world.rng.choice(world.habits.jump_s)

    def back() -> None:
        redis.clock_off_us = 0

    _later(world, *world.habits.jump_lasts_s, back)


# ---- operators


@fault
def catalogue_changes(world: World, _: Node) -> None:
    """Another shape of the same event type: writers take it up one after the other."""
    world.surroundings.catalogue = (world.surroundings.catalogue + 1) % len(CATALOGUES)
    world.background(_one_by_one(world))


@waiting_fault
def process_never_returns(world: World, node: Node) -> None:
    """Its journal is finished by `parshall writer drain`; sometimes a new writer takes its place."""

    def strike() -> None:
        if _can_leave(world, node):
            world.struck("process_never_returns")
            world.leave(node)
            _maybe_replace(world)

    _now_or_at_a_step(world, node, strike)


@waiting_fault
def disk_is_lost(world: World, node: Node) -> None:
    """With its process. `parshall writer lost` ends it."""

    def strike() -> None:
        if _can_leave(world, node) and not node.disk.off:
            world.struck("disk_is_lost")
            world.lose_disk(node)
            _maybe_replace(world)

    _now_or_at_a_step(world, node, strike)


def _now_or_at_a_step(world: World, node: Node, strike: Callable[[], None]) -> None:
    if world.rng.random() < world.habits.at_a_step:
        node.steps.when(world.rng.choice(world.habits.steps), strike)
    else:
        strike()


def _can_leave(world: World, node: Node) -> bool:
    """Somebody must be left to answer."""
    leaving = sum(other.gone for other in world.nodes)
    return node in world.staying and len(world.staying) > 1 and leaving < _MOST_LEAVE and node.disk_aside is None


def _maybe_replace(world: World) -> None:
    if world.rng.random() < 0.5:
        _later(world, 0.01, 5, world.replace)


@waiting_fault
def closed_by_somebody_else(world: World, node: Node) -> None:
    """Its incarnation is closed while it lives and has nothing under way: it must end at its next word to Redis."""

    def strike() -> None:
        if node.idle and not world.redis_kept:
            assert node.writer is not None
            world.struck("closed_by_somebody_else")
            known = world.redis.table._w[node.writer.incarnation]
            known.closed = known.mark
            node.closed_by_somebody_else = True

    node.steps.when(MARKED, strike)


@waiting_fault
def old_copy_starts(world: World, node: Node) -> None:
    """A snapshot of the disk is restored by mistake after the writer went on: it must be refused, and the disk itself is put back."""
    world.background(_start_old_copy(world, node, node.disk.copy()))


async def _start_old_copy(world: World, node: Node, copy: WatchedDisk) -> None:
    await asyncio.sleep(world.rng.uniform(0.05, 2))
    if world.redis_kept or node.gone or not node.up or not _redis_knows_more(world, node, copy):
        return
    world.struck("old_copy_starts")
    world.redis_kept += 1
    node.kill()
    node.disk_aside, node.disk = node.disk, copy
    end_s = world.loop.time() + 120
    while not node.refused:
        assert not node.serves, f"an old copy of the journal of {node.name} was opened"
        assert world.loop.time() < end_s, f"an old copy of the journal of {node.name} was neither opened nor refused"
        node.restart()
        await asyncio.sleep(0.02)
    if node.up:
        node.kill()
    node.disk, node.disk_aside, node.refused = node.disk_aside, None, ""
    world.redis_kept -= 1
    node.restart()


def _redis_knows_more(world: World, node: Node, copy: WatchedDisk) -> bool:
    """Only then can the copy be told from the journal: an incarnation that the copy does not have, or a mark above its last call."""
    writer, last_calls = _incarnations(node, copy)
    for redis in world.shards:
        named = redis.table._writers.get(writer)
        if named is not None and redis.table._open.replication_id == redis.table.replication_id:
            known = last_calls.get(named)
            if known is None or redis.table._w[named].mark > known[redis.shard]:
                return True
    return False


def _incarnations(node: Node, disk: WatchedDisk) -> tuple[bytes, dict[bytes, list[int]]]:
    """The writer, and its incarnations with the last call of each in each shard."""
    writer, last_calls, current = b"", dict[bytes, list[int]](), b""
    for record in read_journal(node.directory, disk):
        match record:
            case Snapshot() if not writer:
                writer = record.writer
                for (incarnation, last), calls in zip(
                    record.incarnations, record.shard_calls or [[]] * len(record.incarnations), strict=True
                ):
                    last_calls[incarnation] = list(calls) or [last]
                current = next(reversed(last_calls), b"")
            case Opened():
                current = record.incarnation
                last_calls[current] = [0] * record.shards
            case CallRecord():
                last_calls[current][record.shard] = record.in_shard or record.number
            case _:
                pass
    return writer, last_calls
