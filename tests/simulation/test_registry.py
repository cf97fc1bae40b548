"""What a writer makes of a registry of writers that changes while it lives."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random

from buffer.counter_log import Announced, Retired
from buffer.journal import Journal
from buffer.journal_records import Entering, Opened
from ingest.history import JournalHistory
from tests.journal_driver import call, opened
from tests.lossy_disk import LossyDisk
from tests.simulation.counter_log import SharedLog, SimulatedLog
from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.steps import Steps

_OTHER = b"other writer's 1"


def _in_a_world(check) -> None:  # type: ignore[no-untyped-def]
    async def main(_: SimulatedLoop) -> None:
        rng = random.Random(1)
        journal = await opened(LossyDisk(), rng)
        shared = SharedLog(rng, 1)
        shared.registry = {journal.writer: None, _OTHER: None}
        await check(journal, shared, SimulatedLog(shared, journal.writer, Steps()))

    run(main)


def test_a_registry_that_lost_an_entry_is_waited_for() -> None:
    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        history = JournalHistory(journal, log, b"i" * 16, dict(shared.registry))
        del shared.registry[_OTHER]
        asking = asyncio.create_task(history.members())
        await asyncio.sleep(60)
        assert not asking.done()
        shared.registry[_OTHER] = None
        assert (await asking).keys() == {journal.writer, _OTHER}

    _in_a_world(check)


def test_a_registry_without_the_writer_itself_is_waited_for() -> None:
    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        history = JournalHistory(journal, log, b"i" * 16, {})
        del shared.registry[journal.writer]
        asking = asyncio.create_task(history.members())
        await asyncio.sleep(60)
        assert not asking.done()
        shared.registry[journal.writer] = None
        assert journal.writer in await asking

    _in_a_world(check)


def test_a_registry_that_cannot_be_reached_is_waited_for() -> None:
    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        history = JournalHistory(journal, log, b"i" * 16, dict(shared.registry))
        shared.unreachable_until_s = asyncio.get_running_loop().time() + 30
        asking = [asyncio.create_task(waits) for waits in (history.members(), history.enter(b"b" * 16))]
        await asyncio.sleep(29)
        assert not any(task.done() for task in asking)
        assert (await asking[0]).keys() == {journal.writer, _OTHER}
        await asking[1]
        assert [announced.branches for announced in shared.announced[journal.writer]] == [(b"b" * 16,)]

    _in_a_world(check)


def test_members_are_told_with_their_branch_of_this_shard() -> None:
    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        history = JournalHistory(journal, log, b"i" * 16, dict(shared.registry), shard=1, shards=2)
        shared.announced[_OTHER] = [Announced(1, (b"0" * 16, b"1" * 16))]
        assert await history.members() == {journal.writer: b"", _OTHER: b"1" * 16}
        shared.announced[_OTHER] = [Announced(2, (b"0" * 16, b"1" * 16, b"2" * 16))]  # its tenants lie otherwise
        assert await history.members() == {journal.writer: b"", _OTHER: b""}

    _in_a_world(check)


def test_each_shard_has_its_own_past() -> None:
    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        rng, disk = random.Random(3), LossyDisk()
        journal = await opened(disk, rng)
        journal.append(Opened(b"o" * 16, 0, 2))
        for number, (shard, in_shard) in enumerate([(0, 1), (1, 1), (1, 2)], 1):
            journal.append(Entering(b"branch of shard %d" % shard, shard))
            one = call(number, 1, tenant=2 + shard, horizon_us=10 * number)
            journal.append(one._replace(shard=shard, in_shard=in_shard))
        await journal.drain()
        await journal.close()
        journal = await opened(disk, rng)
        pasts = [JournalHistory(journal, log, b"i" * 16, {}, shard=shard, shards=2) for shard in range(2)]
        assert [list(past.closed) for past in pasts] == [[(b"o" * 16, 1)], [(b"o" * 16, 2)]]
        assert [past.horizon_us for past in pasts] == [10, 30]
        assert [past.branch for past in pasts] == [b"branch of shard 0", b"branch of shard 1"]
        assert [[claimed[0] for claimed in past.claims()] for past in pasts] == [[2], [3, 3]]

    _in_a_world(check)


def test_a_branch_that_is_in_the_journal_is_announced_and_not_journalled_again() -> None:
    """Each opening enters; and what is journalled before it is on the disk once it has drained."""

    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        for _ in range(3):
            history = JournalHistory(journal, log, b"i" * 16, dict(shared.registry))
            await history.enter(b"b" * 16)
        assert {announced.at for announced in shared.announced[journal.writer]} == {journal.synced}
        last = journal.append(Entering(b"c" * 16, 0))
        await history.drain()
        assert journal.synced == last

    _in_a_world(check)


def test_the_horizon_of_a_writer_retired_meanwhile_is_published() -> None:
    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        history = JournalHistory(journal, log, b"i" * 16, dict(shared.registry))
        shared.registry[_OTHER] = Retired(123)
        assert (await history.members()).keys() == {journal.writer}
        assert (history.horizon_us, history.lost_horizon_us) == (123, 0)
        shared.registry[b"l" * 16] = Retired(456, "its disk is gone")
        await history.members()
        assert (history.horizon_us, history.lost_horizon_us) == (123, 456)
        shared.registry |= {b"m" * 16: Retired(122), b"n" * 16: Retired(455, "its disk is gone")}  # the highest one counts
        await history.members()
        assert (history.horizon_us, history.lost_horizon_us) == (123, 456)

    _in_a_world(check)


def test_what_a_shard_announces_does_not_undo_what_another_has_announced_meanwhile() -> None:
    """One entry tells of all shards: the one that was begun first and takes longest must not be the last. Else a new writer that is led to
    an old primary believes it (found by the simulation, seed 2888)."""

    class SlowAtFirst(SimulatedLog):
        takes_s = 1.0

        async def announce(self, writer: bytes, announced: Announced) -> None:
            takes_s, self.takes_s = self.takes_s, 0.0
            await asyncio.sleep(takes_s)
            await super().announce(writer, announced)

    async def check(journal: Journal, shared: SharedLog, _: SimulatedLog) -> None:
        log, announcing = SlowAtFirst(shared, journal.writer, Steps()), asyncio.Lock()
        one, other = (
            JournalHistory(journal, log, b"i" * 16, dict(shared.registry), shard=shard, shards=2, announcing=announcing)
            for shard in range(2)
        )
        first = asyncio.create_task(one.enter(b"branch of shard 0"))
        await asyncio.sleep(0.5)
        await asyncio.gather(first, other.enter(b"branch of shard 1"))
        assert [announced.branches for announced in shared.announced[journal.writer]] == [
            (b"branch of shard 0", b""),
            (b"branch of shard 0", b"branch of shard 1"),
        ]
        assert [announced.at for announced in shared.announced[journal.writer]] == [journal.synced - 1, journal.synced]

    _in_a_world(check)


def test_who_goes_back_to_a_branch_announces_it_again() -> None:
    """What it told of the other one, and was interrupted in telling, may have arrived or arrive yet."""

    class Interrupted(SimulatedLog):
        interrupted = False

        async def announce(self, writer: bytes, announced: Announced) -> None:
            await super().announce(writer, announced)
            if self.interrupted:
                await asyncio.sleep(60)

    async def check(journal: Journal, shared: SharedLog, _: SimulatedLog) -> None:
        log = Interrupted(shared, journal.writer, Steps())
        history = JournalHistory(journal, log, b"i" * 16, dict(shared.registry))
        await history.enter(b"a" * 16)
        log.interrupted = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(history.enter(b"b" * 16), 1)
        log.interrupted = False
        await history.enter(b"a" * 16)
        assert (await log.registry()).announced[journal.writer].branches == (b"a" * 16,)
        assert [announced.branches for announced in shared.announced[journal.writer]] == [(b"a" * 16,), (b"b" * 16,), (b"a" * 16,)]

    _in_a_world(check)


def test_announcements_are_in_order_across_a_loss_of_power() -> None:
    """What was not synced yet is gone then, and its sequence numbers come again: so they are in no announcement."""

    async def check(journal: Journal, shared: SharedLog, log: SimulatedLog) -> None:
        rng, disk = random.Random(2), LossyDisk()
        for number in range(30):
            journal = await opened(disk, rng)  # of segments of a few records each
            journal.append(Opened(rng.randbytes(16), 0, 2))
            announcing = asyncio.Lock()
            for shard in range(2):
                history = JournalHistory(journal, log, b"i" * 16, {}, shard=shard, shards=2, announcing=announcing)
                await history.enter(b"%015d%d" % (number, shard) if rng.random() < 0.8 else history.branch or b"first branch %3d" % shard)
            for _ in range(rng.randrange(4)):
                journal.append(Entering(rng.randbytes(16), rng.randrange(2)))  # not to be announced
            if rng.random() < 0.5:
                await asyncio.sleep(0)  # they are being written
            disk.crash(rng)
        told = shared.announced[journal.writer]
        assert len(told) == 60
        for one, following in itertools.pairwise(told):
            assert one.at < following.at or one == following, (one, following)

    _in_a_world(check)
