"""What can go wrong around the raters: PostgreSQL, the topic they read, the group that deals out its partitions, and themselves.

As faults.py for the writers: `@fault` happens at once, `@waiting_fault` says itself when it strikes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xxhash import xxh3_128_hexdigest

from buffer.counter_log import Record
from tests.simulation.raters import BOOKS, RaterNode, Raters
from tests.simulation.topic import Partition
from tests.simulation.world import World

RaterFault = Callable[[World, Raters, RaterNode], None]
RATER_FAULTS: dict[str, RaterFault] = {}
RATER_WAITING: set[str] = set()


def fault(function: RaterFault) -> RaterFault:
    name = function.__name__

    def strike(world: World, raters: Raters, node: RaterNode) -> None:
        world.struck(name)
        function(world, raters, node)

    RATER_FAULTS[name] = strike
    return strike


def waiting_fault(function: RaterFault) -> RaterFault:
    RATER_FAULTS[function.__name__] = function
    RATER_WAITING.add(function.__name__)
    return function


def _later(raters: Raters, function: Callable[[], object], *within: tuple[float, float]) -> None:
    asyncio.get_running_loop().call_later(raters.rng.uniform(*(within or (raters.habits.repair_s,))[0]), function)


# ---- raters


@fault
def rater_killed(world: World, raters: Raters, node: RaterNode) -> None:
    node.kill(raters.rng.choice((0.0, 0.1, 10.0)))
    _later(raters, node.start)


@fault
def rater_stands_still(world: World, raters: Raters, node: RaterNode) -> None:
    """It goes on with what it had in hand when its partitions are long with the other."""
    if node.connection is not None:
        still_s = raters.rng.choice((0.5, 5.0, 90.0))
        node.connection.stalled_until_s = world.loop.time() + still_s
        if raters.rng.random() < 0.5:
            raters.group.deal()


@fault
def price_book_changes(world: World, raters: Raters, node: RaterNode) -> None:
    """The raters get another price book, one after the other."""
    raters.book = (raters.book + 1) % len(BOOKS)
    for other in raters.nodes:
        if other.up:
            other.kill()
            _later(raters, other.start, (0.0, 1.0))


# ---- the group and the topic


@fault
def raters_rebalance(world: World, raters: Raters, node: RaterNode) -> None:
    raters.group.deal()


@fault
def two_own_a_partition(world: World, raters: Raters, node: RaterNode) -> None:
    """A rebalance that one of them learns of late."""
    raters.group.deal(late_s=raters.rng.choice((0.01, 1.0, 15.0)))


@fault
def partition_added(world: World, raters: Raters, node: RaterNode) -> None:
    """Writers take it up when they open again: until then a subject's counters are in two partitions, which two raters read."""
    world.log.add_partition()
    raters.group.deal()


@fault
def counters_delivered_again(world: World, raters: Raters, node: RaterNode) -> None:
    if node.source is not None:
        node.source.deliver_again(raters.rng.choice((1, 3, 1000)))


@fault
def counters_unreadable(world: World, raters: Raters, node: RaterNode) -> None:
    raters.topic.unreachable_until_s = world.loop.time() + raters.rng.choice(raters.habits.outage_s)


@waiting_fault
def topic_loses_its_start(world: World, raters: Raters, node: RaterNode) -> None:
    """Retention deletes records, also such as nobody has read."""

    def strike(partition: Partition) -> None:
        if not partition.forged:
            world.struck("topic_loses_its_start")
            partition.lose_start(len(partition.entries) - raters.rng.choice((0, 0, 1, 3)))
            raters.topic.tell()

    _lose_next(raters, strike)


@waiting_fault
def topic_loses_its_end(world: World, raters: Raters, node: RaterNode) -> None:
    """A leader that lacks the latest records takes over: their positions are given to others."""

    def strike(partition: Partition) -> None:
        if not partition.forged:
            world.struck("topic_loses_its_end")
            partition.lose_end(len(partition.entries) - raters.rng.choice((1, 1, 2, 4)))
            raters.topic.tell()

    _lose_next(raters, strike)


def _lose_next(raters: Raters, strike: Callable[[Partition], None]) -> None:
    """At the next record: before anybody can have read it, or a little later."""
    delay_s = raters.rng.choice((None, None, 0.0, 0.01, 1.0))

    def on_append(partition: Partition) -> None:
        if delay_s is None:
            strike(partition)
        else:
            asyncio.get_running_loop().call_later(delay_s, strike, partition)

    raters.topic.after_append = on_append


@fault
def record_forged(world: World, raters: Raters, node: RaterNode) -> None:
    """Two journals run under one writer id: a record comes a second time with other bytes.

    Only of those that have come without a gap before them, so that an operator's one word is enough afterwards.
    """
    last = world.log.ledger.last
    partitions = [partition for partition in raters.topic.partitions if not partition.cut]
    entries = [
        entry
        for partition in partitions
        for entry in partition.entries
        if entry.n <= last[entry.writer, partition.number] and (entry.writer, partition.number) not in world.forged
    ]
    if not entries:
        return
    entry = raters.rng.choice(entries[-10:])
    partition = raters.topic.of(entry.received.stream)
    value = entry.received.value.replace(b'{"v":1,', b'{"v": 1,', 1)
    headers = {**entry.received.headers, "hash": xxh3_128_hexdigest(value).encode()}
    partition.forged = True
    world.forged[entry.writer, partition.number] = entry.n
    raters.topic.append(entry.writer, Record(partition.number, entry.n, tuple(headers.items()), value))


# ---- PostgreSQL


@fault
def postgres_connection_lost(world: World, raters: Raters, node: RaterNode) -> None:
    if node.connection is not None:
        node.connection.break_off()


@waiting_fault
def commit_lost(world: World, raters: Raters, node: RaterNode) -> None:
    """The connection ends before the commit arrives."""
    raters.postgres.next_commit_lost = True


@waiting_fault
def commit_reply_lost(world: World, raters: Raters, node: RaterNode) -> None:
    """The connection ends after the commit took effect."""
    raters.postgres.next_commit_reply_lost = True


@fault
def postgres_restarts(world: World, raters: Raters, node: RaterNode) -> None:
    raters.postgres.restart(raters.rng.choice((0.0, 0.2, *raters.habits.outage_s)))


@fault
def postgres_is_slow(world: World, raters: Raters, node: RaterNode) -> None:
    """So slow that statements take longer than the rater waits, some of them."""
    raters.postgres.slow = raters.rng.choice((20.0, 2000.0, 10_000.0))

    def again() -> None:
        raters.postgres.slow = 1.0

    _later(raters, again, (0.5, 10.0))


@waiting_fault
def postgres_is_restored(world: World, raters: Raters, node: RaterNode) -> None:
    """From a backup, or a replica that lagged takes over: what was committed since is not.

    Not to before the price book in force was loaded: raters load theirs when they start.
    """
    backup = raters.postgres.backup()

    def strike() -> None:
        same_books = backup[0]["tenants"].get(("demo",)) == raters.postgres.tables["tenants"].get(("demo",))
        if same_books and not any(partition.cut for partition in raters.topic.partitions):
            world.struck("postgres_is_restored")
            raters.postgres.restore(backup, raters.rng.choice((0.0, 0.2, 2.0)))
            world.rated.restored()

    _later(raters, strike, (0.01, 3.0))
