"""The Claims port, for every adapter: RedisClaims over a real Redis, InProcessClaims over a ClaimTable.

What only a real server can do to a writer (a killed connection, lost data, errors) is below, for RedisClaims alone.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import redis as redis_py

from buffer.counter_log import CounterLog, LogUnavailable, Retired
from dedupe import redis_claims
from dedupe.claim_table import ClaimTable
from dedupe.clearance import Clearance
from dedupe.in_process import InProcessClaims
from dedupe.port import (
    COPY,
    Call,
    Claimed,
    Claims,
    Identity,
    Refused,
    Reply,
    Section,
    StaleJournal,
    State,
    UnsuitableStore,
    Verdicts,
    WrongLog,
    Zombie,
)
from dedupe.redis_address import RedisAddress
from dedupe.redis_claims import RedisClaims
from dedupe.redis_tls import BadOption
from dedupe.redis_writers import Buried, RedisWriters
from parshall.writer_loss import Loss, end_lost_writer
from tests.secured_kafka import certificates
from tests.services import Redis, fetch, free_port, redis_server, valkey_server
from tests.tcp_proxy import TcpProxy

HOUR_US = 3_600_000_000
PROJECT = Path(__file__).parents[2]
NOW_US = 1_700_000_000_000_000
IDENTITY = Identity("log", HOUR_US, 3 * HOUR_US)
ELSEWHERE = b"elsewhere".rjust(16)  # a branch of some other store


@dataclass
class Journal:
    """A History in memory."""

    writer: bytes = field(default_factory=lambda: os.urandom(16))
    incarnation: bytes = field(default_factory=lambda: os.urandom(16))
    closed: Sequence[tuple[bytes, int]] = ()
    mark: int = 0
    horizon_us: int = 0
    lost_horizon_us: int = 0
    kept: list[Claimed] = field(default_factory=list)
    registered: frozenset[bytes] = frozenset()
    announced: dict[bytes, bytes] = field(default_factory=dict)  # writer -> branch, as others told the registry
    drains: int = 0
    asked: int = 0  # how often for the members: before each time that it says it has joined
    branch: bytes = b""

    async def enter(self, branch: bytes) -> None:
        self.branch = branch

    async def drain(self) -> None:
        self.drains += 1

    def claims(self) -> Iterator[Claimed]:
        return iter(list(self.kept))

    async def members(self) -> dict[bytes, bytes]:
        self.asked += 1
        return {writer: self.announced.get(writer, b"") for writer in self.registered} | {self.writer: self.branch}

    def reopened(self, last_call: int) -> Journal:
        """As the next process finds it."""
        closed = [*self.closed, (self.incarnation, last_call)]
        return replace(self, incarnation=os.urandom(16), closed=closed, mark=0, kept=list(self.kept), drains=0)


class Place:
    """Where claims are kept during one test."""

    def claims(self, identity: Identity = IDENTITY) -> Claims:
        raise NotImplementedError


class InRedis(Place):
    def __init__(self, server: Redis) -> None:
        self.server = server

    def claims(self, identity: Identity = IDENTITY, timeout_s: float = 5.0, clearance: Clearance | None = None) -> RedisClaims:
        return RedisClaims(
            RedisAddress.from_url(self.server.url),
            identity=identity,
            clock_us=lambda: NOW_US,
            entropy=os.urandom,
            timeout_s=timeout_s,
            clearance=clearance,
        )


class InThisProcess(Place):
    def __init__(self) -> None:
        self.table = ClaimTable(lambda: NOW_US, "1")

    def claims(self, identity: Identity = IDENTITY) -> InProcessClaims:
        return InProcessClaims(identity=identity, clock_us=lambda: NOW_US, entropy=os.urandom, table=self.table)


@pytest.fixture(params=["redis", "in process"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "redis":
        with redis_server() as server:
            yield InRedis(server)
    else:
        yield InThisProcess()


@pytest.fixture
def in_redis() -> Iterator[InRedis]:
    with redis_server() as server:
        yield InRedis(server)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(claims: Claims, journal: Journal, state: State = State.OPEN) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(claims.run(journal))
    try:
        await until(lambda: claims.state is state or task.done())
        if task.done():
            task.result()
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def section(*ids: str, content: str = "a", tenant: int = 1) -> Section:
    return Section(tenant, b"".join(name.encode().rjust(12) for name in ids), (b"s" + content.encode() * 3) * len(ids))


def call(number: int, *sections: Section, time_us: int = NOW_US) -> Call:
    return Call(number, sections, time_us, time_us)


async def answer(claims: Claims, asked: Call) -> Reply:
    replies: list[Reply] = []
    claims.send(asked, replies.append)
    assert replies == [], "not within send"
    await until(lambda: bool(replies))
    return replies[0]


async def codes(claims: Claims, asked: Call) -> bytes:
    reply = await answer(claims, asked)
    assert isinstance(reply, Verdicts)
    assert reply.number == asked.number
    return reply.codes


# ---- every adapter


async def test_new_claims_are_granted_and_all_granted_is_empty(place: Place) -> None:
    claims = place.claims()
    async with running(claims, Journal()):
        assert claims.accepted
        reply = await answer(claims, call(1, section("a", "b"), section("a", tenant=2)))
        assert reply[:5] == Verdicts(1, NOW_US // HOUR_US, 1, 0, b"")[:5]


async def test_an_earlier_call_makes_duplicates_and_conflicts_in_the_order_of_the_sections(place: Place) -> None:
    claims = place.claims()
    async with running(claims, Journal()):
        await answer(claims, call(1, section("a", "b", "c")))
        assert await codes(claims, call(2, section("new", "a"), section("b", content="x"), section("c", tenant=2))) == b"gdcg"


async def test_copies_are_decided_with_their_first(place: Place) -> None:
    """Ten thousand of them as well as one."""
    claims, other = place.claims(), place.claims()
    async with running(claims, Journal()), running(other, Journal()):
        await answer(other, call(1, section("theirs")))
        copies = COPY.pack(1, b"saaa") + COPY.pack(1, b"sxxx") + COPY.pack(2, b"saaa")
        asked = call(1, section("a", "b"), section("theirs"))._replace(copies=copies)
        assert await codes(claims, asked) == b"ggpdcp"
        assert await codes(claims, asked) == b"ggpdcp", "sent again"
        many = call(2, section("b", content="x"))._replace(copies=COPY.pack(0, b"saaa") * 10_000)
        assert await codes(claims, many) == b"c" + b"d" * 10_000
        assert await codes(claims, call(3, section("c"))) == b"", "and the next call is as ever"


async def test_an_empty_call_occupies_its_number(place: Place) -> None:
    claims = place.claims()
    async with running(claims, Journal()):
        assert (await answer(claims, call(1)))[:5] == Verdicts(1, NOW_US // HOUR_US, 1, 0, b"")[:5]
        assert (await answer(claims, call(2)))[:5] == Verdicts(2, NOW_US // HOUR_US, 2, 0, b"")[:5]


async def test_replies_come_in_order_and_the_same_number_is_granted_again(place: Place) -> None:
    claims = place.claims()
    replies: list[Reply] = []
    async with running(claims, Journal()):
        for number in range(1, 201):
            claims.send(call(number, section(f"e{number}")), replies.append)
        await until(lambda: len(replies) == 200)
        assert [(reply.number, reply.codes) for reply in replies if isinstance(reply, Verdicts)] == [(n, b"") for n in range(1, 201)]
        assert await codes(claims, call(200, section("e200"))) == b""


async def test_calls_sent_before_the_store_is_open_wait_and_go_in_call_order(place: Place) -> None:
    claims = place.claims()
    numbers: list[int] = []
    for number in (2, 1, 3):
        claims.send(call(number, section("same")), lambda reply: numbers.append(reply.number))
    async with running(claims, Journal()):
        await until(lambda: len(numbers) == 3)
        assert numbers == [1, 2, 3]


async def test_below_the_horizon_the_call_is_refused_and_the_rest_goes_under_the_same_number(place: Place) -> None:
    claims = place.claims()
    async with running(claims, Journal(horizon_us=NOW_US - HOUR_US)):
        refused = await answer(claims, Call(1, [section("old", "new")], NOW_US - HOUR_US, NOW_US))
        assert refused == Refused(1, NOW_US - HOUR_US)
        assert (await answer(claims, call(1, section("new"))))[:5] == Verdicts(1, NOW_US // HOUR_US, 2, NOW_US - HOUR_US, b"")[:5]


async def test_a_journal_is_claimed_again(place: Place) -> None:
    journal = Journal(kept=[Claimed(1, 5, NOW_US, *section("a", "b")[1:]), Claimed(2, NOW_US // HOUR_US, NOW_US, *section("c")[1:])])
    claims = place.claims()
    async with running(claims, journal):
        assert journal.drains == 1
        assert await codes(claims, call(1, section("a", "b", "c"), section("a", "c", tenant=2))) == b"ddggd"


async def test_another_writer_waits_for_the_mark_which_goes_out_by_itself(place: Place) -> None:
    """A mark is sent without any call after it."""
    one, other = place.claims(), place.claims()
    async with running(one, Journal()), running(other, Journal()):
        await answer(one, call(1, section("a")))
        assert await codes(other, call(1, section("a"))) == b"p"
        one.raise_mark(1)
        number, verdict = 1, b"p"
        async with asyncio.timeout(30):
            while verdict == b"p":
                number += 1
                verdict = await codes(other, call(number, section("a")))
                await asyncio.sleep(0.01)
        assert verdict == b"d"


async def test_the_mark_goes_with_the_next_call(place: Place) -> None:
    one, other = place.claims(), place.claims()
    async with running(one, Journal()), running(other, Journal()):
        await answer(one, call(1, section("a")))
        one.raise_mark(1)
        await answer(one, call(2))
        assert await codes(other, call(1, section("a"))) == b"d"


async def test_what_a_closed_incarnation_did_not_journal_is_taken_over(place: Place) -> None:
    journal = Journal()
    claims = place.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("kept")))
        await answer(claims, call(2, section("lost")))
    claims = place.claims()
    async with running(claims, journal.reopened(last_call=1)):
        assert await codes(claims, call(1, section("kept", "lost"))) == b"dg"


async def test_who_joined_before_does_not_claim_its_journal_again(place: Place) -> None:
    """Nor does it when others have gone elsewhere; and what it entered is in its journal, should it not have been."""
    journal = Journal()
    async with running(place.claims(), journal):
        pass
    others = frozenset((b"r" * 16,))
    elsewhere = replace(journal.reopened(0), registered=others, announced=dict.fromkeys(others, ELSEWHERE))
    async with running(place.claims(), elsewhere):
        assert elsewhere.drains == 0
    forgetful = replace(journal, incarnation=os.urandom(16), closed=[*elsewhere.closed, (elsewhere.incarnation, 0)], branch=b"", drains=0)
    async with running(place.claims(), forgetful):
        assert forgetful.drains == 0 and forgetful.branch == journal.branch


async def test_who_has_not_joined_claims_its_journal_again_where_the_store_is_open_too(place: Place) -> None:
    """As a writer that was taken for retired."""
    async with running(place.claims(), Journal()):
        pass
    claims = place.claims()
    async with running(claims, Journal(kept=[Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:])])):
        assert await codes(claims, call(1, section("a", "b"))) == b"dg"


async def test_an_orderly_close_is_published_and_ends_run(place: Place) -> None:
    journal, other = Journal(), place.claims()
    claims = place.claims()
    async with running(claims, journal) as task:
        await answer(claims, call(1, section("a")))
        await claims.close(1)
        await asyncio.wait_for(task, 10)
    async with running(other, Journal()):
        assert await codes(other, call(1, section("a"))) == b"d"


async def test_a_closed_incarnation_is_a_zombie(place: Place) -> None:
    journal = Journal()
    zombie, successor = place.claims(), place.claims()
    async with running(zombie, journal) as task:
        await answer(zombie, call(1, section("a")))
        async with running(successor, journal.reopened(last_call=1)):
            zombie.send(call(2, section("b")), lambda reply: None)
            with pytest.raises(Zombie):
                await asyncio.wait_for(task, 10)
            assert await codes(successor, call(1, section("b"))) == b""


@pytest.mark.parametrize("last_call", [0, 1])
async def test_a_journal_that_ends_below_its_mark_is_an_old_copy(place: Place, last_call: int) -> None:
    journal = Journal()
    claims = place.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("a")))
        await answer(claims, call(2, section("b")))
        claims.raise_mark(2)
        await answer(claims, call(3))
    with pytest.raises(StaleJournal):
        await asyncio.wait_for(place.claims().run(journal.reopened(last_call)), 10)


async def test_a_journal_without_the_last_incarnation_is_an_old_copy(place: Place) -> None:
    journal = Journal()
    async with running(place.claims(), journal):
        pass
    second = journal.reopened(0)
    async with running(place.claims(), second):
        pass
    with pytest.raises(StaleJournal):
        await asyncio.wait_for(place.claims().run(journal.reopened(0)), 10)
    async with running(place.claims(), second.reopened(0)):
        pass


async def test_a_store_that_was_left_for_another_one_is_claimed_again(place: Place) -> None:
    """It is open, and has this writer as joined; what was claimed elsewhere since is in the journal alone."""
    journal = Journal()
    claims = place.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("a")))
    here = journal.branch
    back = journal.reopened(1)
    back.branch = ELSEWHERE
    back.kept = [Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a", "b")[1:])]
    claims = place.claims()
    async with running(claims, back):
        reply = await answer(claims, call(1, section("a", "b", "c")))
        assert isinstance(reply, Verdicts) and reply.codes == b"ddg"
        assert reply.branch == back.branch not in (b"", ELSEWHERE, here), "it has begun anew"


async def test_a_journal_that_began_elsewhere_is_no_old_copy(place: Place) -> None:
    """The store was left before this writer came: it has never heard of it, though it counts as complete."""
    async with running(place.claims(), Journal()):
        pass
    kept = [Claimed(1, NOW_US // HOUR_US, NOW_US, *section("b")[1:])]
    claims, journal = place.claims(), Journal(closed=[(os.urandom(16), 3)], kept=kept, branch=ELSEWHERE)
    async with running(claims, journal):
        assert await codes(claims, call(1, section("b", "c"))) == b"dg"
    async with running(place.claims(), journal.reopened(1)):
        pass
    with pytest.raises(StaleJournal):  # as it is told from one that does not say so
        await asyncio.wait_for(place.claims().run(Journal(closed=[(os.urandom(16), 3)])), 10)


async def test_an_old_copy_that_was_elsewhere_is_refused_before_anything_is_claimed_again(place: Place) -> None:
    """It would close the store to all others."""
    journal, claims = Journal(), place.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("a")))
        claims.raise_mark(1)
        await answer(claims, call(2))
    copy = replace(journal.reopened(0), branch=ELSEWHERE)
    with pytest.raises(StaleJournal):
        await asyncio.wait_for(place.claims().run(copy), 10)
    assert copy.drains == 0


async def test_where_a_store_that_was_left_is_claimed_again_the_horizon_of_a_lost_writer_counts(place: Place) -> None:
    """It lacks what that writer claimed elsewhere since, like a store that was emptied."""
    journal = Journal()
    claims = place.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("a")))
    back = replace(journal.reopened(1), branch=ELSEWHERE, lost_horizon_us=NOW_US - HOUR_US)
    claims = place.claims()
    async with running(claims, back):
        assert await answer(claims, call(1, section("b"), time_us=NOW_US - HOUR_US)) == Refused(1, NOW_US - HOUR_US)


async def test_a_new_writer_does_not_believe_a_store_that_others_have_left(place: Place) -> None:
    """It has no branch to compare, but the registry says where the others went."""
    one = Journal()
    claims = place.claims()
    async with running(claims, one):
        await answer(claims, call(1, section("a")))
    left = one.reopened(1)
    newcomers = frozenset(os.urandom(16) for _ in range(8))  # they have entered nothing yet
    new = Journal(registered=newcomers | {one.writer}, announced={one.writer: ELSEWHERE})
    claims = place.claims()
    async with running(claims, new, State.REBUILDING):
        new.registered = frozenset((one.writer,))
        replies: list[Reply] = []
        claims.send(call(1, section("a", "b")), replies.append)
        await asyncio.sleep(0.1)
        assert claims.state is State.REBUILDING and replies == [], "what is claimed elsewhere is not known here"
        left.branch, left.kept = ELSEWHERE, [Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a", "b")[1:])]
        left.registered = frozenset((new.writer,))
        back = place.claims()
        async with running(back, left):
            await until(lambda: bool(replies))
            assert isinstance(replies[0], Verdicts) and replies[0].codes == b"dd"


async def test_who_is_idle_notices_that_others_join_anew(redis: Redis) -> None:
    """Else they would wait until it has something to claim."""
    place = InRedis(redis)
    idle, back = Journal(), Journal(branch=ELSEWHERE)
    async with running(place.claims(), idle):
        idle.registered = back.registered = frozenset((idle.writer, back.writer))
        async with running(place.claims(), back):
            assert idle.branch == back.branch != ELSEWHERE


async def test_a_new_writer_believes_a_store_that_others_are_in(place: Place) -> None:
    one, new = Journal(), Journal()
    first, second = place.claims(), place.claims()
    async with running(first, one):
        await answer(first, call(1, section("a")))
        new.registered, new.announced = frozenset((one.writer, b"r" * 16)), {one.writer: one.branch}
        async with running(second, new):
            assert await codes(second, call(1, section("a", "b"))) == b"pg"
            assert first.state is State.OPEN


async def test_who_joined_and_went_elsewhere_is_waited_for(place: Place) -> None:
    """Two were told of this store; one joined it, and both were led to another one before it opened."""
    one, other = Journal(), Journal()
    one.registered = other.registered = frozenset((one.writer, other.writer))
    claims = place.claims()
    async with running(claims, one, State.REBUILDING):
        await until(lambda: one.asked > 1)  # it has joined
    claimed = Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:])
    back = one.reopened(1)
    back.branch, back.kept = ELSEWHERE, [claimed]
    other.branch, other.announced = ELSEWHERE, {one.writer: ELSEWHERE}
    second = place.claims()
    async with running(second, other, State.REBUILDING):
        replies: list[Reply] = []
        second.send(call(1, section("a")), replies.append)
        await asyncio.sleep(0.3)
        assert second.state is State.REBUILDING and replies == []
        first = place.claims()
        async with running(first, back):
            await until(lambda: bool(replies))
            assert isinstance(replies[0], Verdicts) and replies[0].codes == b"d"


@pytest.mark.parametrize("identity", [IDENTITY._replace(log="another"), IDENTITY._replace(generation_us=HOUR_US // 2)])
async def test_a_store_of_another_log_or_kind_of_identity_is_refused(place: Place, identity: Identity) -> None:
    async with running(place.claims(), Journal()):
        with pytest.raises(WrongLog):
            await asyncio.wait_for(place.claims(identity).run(Journal()), 10)


async def test_claims_open_when_every_member_has_joined(place: Place) -> None:
    one, other = Journal(), Journal()
    both = frozenset((one.writer, other.writer))
    one.registered = other.registered = both
    first, second = place.claims(), place.claims()
    async with running(first, one, State.REBUILDING):
        replies: list[Reply] = []
        first.send(call(1, section("a")), replies.append)
        await asyncio.sleep(0.1)
        assert first.state is State.REBUILDING and replies == []
        async with running(second, other):
            await until(lambda: bool(replies))
            assert first.state is State.OPEN


async def test_a_member_that_is_retired_is_not_waited_for(place: Place) -> None:
    journal = Journal(registered=frozenset((b"r" * 16,)))
    claims = place.claims()
    async with running(claims, journal, State.REBUILDING):
        journal.registered = frozenset()
        await until(lambda: claims.state is State.OPEN)


async def test_where_claims_are_rebuilt_the_horizon_of_a_lost_writer_counts(place: Place) -> None:
    claims = place.claims()
    async with running(claims, Journal(lost_horizon_us=NOW_US - HOUR_US)):
        assert await answer(claims, call(1, section("a"), time_us=NOW_US - HOUR_US)) == Refused(1, NOW_US - HOUR_US)


async def test_where_claims_have_been_complete_since_it_does_not(place: Place) -> None:
    """Those of the lost writer still stand there, and refusing what is older would be for nothing."""
    one, newcomer = place.claims(), place.claims()
    async with running(one, Journal()), running(newcomer, Journal(lost_horizon_us=NOW_US - HOUR_US)):
        assert await codes(newcomer, call(1, section("a"), time_us=NOW_US - HOUR_US)) == b""  # all granted


class Registry:
    """As much of a counter log as the end of a lost writer needs. It is away at first."""

    def __init__(self) -> None:
        self.away = True
        self.retired: dict[bytes, Retired] = {}

    async def retire(self, writer: bytes, retired: Retired) -> None:
        if self.away:
            raise LogUnavailable("Kafka is away")
        self.retired[writer] = retired


async def test_a_writer_that_is_declared_lost_again_after_an_interruption_loses_the_same(in_redis: InRedis) -> None:
    """Redis knows of its end by then, and the registry does not."""
    journal, claims, registry = Journal(), in_redis.claims(), Registry()
    async with running(claims, journal):
        await answer(claims, call(1, section("a", "b")))
        claims.raise_mark(1)
        await answer(claims, call(2, section("c", "d", "e")))
    async with RedisWriters(in_redis.server.url, IDENTITY) as store:

        async def declare(*, accept: bool) -> tuple[Loss, list[str]]:
            return await end_lost_writer(
                cast(CounterLog, registry), [store], journal.writer, [], names={1: "demo"}, horizon_us=NOW_US, accept=accept
            )

        before, _ = await declare(accept=False)
        assert before == Loss({}, {1: 2}, {1: 3})
        with pytest.raises(LogUnavailable):
            await declare(accept=True)
        registry.away = False
        assert (await declare(accept=True))[0] == before
        assert "3 of tenant demo. When they are sent again they count." in (registry.retired[journal.writer].lost or "")


async def test_a_writer_is_declared_lost_also_where_memory_is_full_and_its_mark_is_gone(in_redis: InRedis) -> None:
    journal, claims = Journal(), in_redis.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("a", "b")))
    with redis_py.Redis(port=in_redis.server.port) as client:
        client.delete(f"parshall:w:{journal.incarnation.hex()}")
        client.config_set("maxmemory", 1)
        async with RedisWriters(in_redis.server.url, IDENTITY) as store:
            told = [await store.bury(journal.writer, (b"", 0), for_good=True) for _ in range(2)]
            assert told == [Buried(journal.incarnation, 0, closed, 0) for closed in (None, 0)]
            claimed = await store.claimed_after(journal.writer, (b"", 0), (b"", 0))
        assert {call: dict(events) for call, events in claimed.events.items()} == {(journal.incarnation, 1): {1: 2}}


async def test_calls_that_an_earlier_incarnation_never_answered_are_not_lost_with_its_writer(in_redis: InRedis) -> None:
    journal, claims = Journal(), in_redis.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("a")))
        await answer(claims, call(2, section("b", "c")))  # a crash: it reached no disk
    later = in_redis.claims()
    async with running(later, journal.reopened(1)):
        await answer(later, call(1, section("d")))
    async with RedisWriters(in_redis.server.url, IDENTITY) as store:
        claimed = await store.claimed_after(journal.writer, (b"", 0), (b"", 0))
    assert [dict(events) for _, events in sorted(claimed.events.items(), key=lambda item: item[0][0] != journal.incarnation)] == [
        {1: 1},
        {1: 1},
    ]


async def test_what_was_claimed_again_from_a_journal_is_lost_with_it_where_no_flush_had_covered_it(in_redis: InRedis) -> None:
    """Its tags no longer say in which call it was: that some of it was beyond the last flush is all that is known."""
    journal = Journal(mark=3)
    journal.kept.append(Claimed(1, NOW_US // IDENTITY.generation_us, NOW_US, b"a" * 12 + b"b" * 12, b"sabcsdef", journal.incarnation, 3))
    async with running(in_redis.claims(), journal):
        pass
    async with RedisWriters(in_redis.server.url, IDENTITY) as store:
        for covered, told in ((2, {(journal.incarnation, 0): {1: 2}}), (3, {})):
            through = (journal.incarnation, covered)
            claimed = await store.claimed_after(journal.writer, through, through)
            assert {call: dict(events) for call, events in claimed.events.items()} == told


async def test_a_handler_that_breaks_an_invariant_stops_run(place: Place) -> None:
    def broken(reply: Reply) -> None:
        raise AssertionError("broken")

    claims = place.claims()
    async with running(claims, Journal()) as task:
        claims.send(call(1), broken)
        with pytest.raises(AssertionError, match="broken"):
            await asyncio.wait_for(task, 10)


# ---- in process


async def test_a_full_table_says_so_executes_what_was_sent_and_opens_when_claims_have_grown_old() -> None:
    now_us = NOW_US

    def clock_us() -> int:
        return now_us

    claims = InProcessClaims(identity=IDENTITY, clock_us=clock_us, entropy=os.urandom, most_claims=3)
    async with running(claims, Journal()):
        assert await codes(claims, call(1, section("a", "b"))) == b""
        assert claims.state is State.OPEN
        assert await codes(claims, call(2, section("c"))) == b""
        assert claims.state is State.FULL
        assert await codes(claims, call(3, section("a", "e"))) == b"dg"
        now_us += 4 * HOUR_US + 1
        await until(lambda: claims.state is State.OPEN)
        assert claims.table.size == 0 and not claims.table.free(0), "nor does anything dropped keep its memory"


# ---- over Redis: what only a server does


async def test_a_killed_connection_costs_nothing(in_redis: InRedis) -> None:
    claims = in_redis.claims()
    client = redis_py.Redis.from_url(in_redis.server.url)
    replies: list[Reply] = []
    async with running(claims, Journal()):
        for number in range(1, 401):
            claims.send(call(number, section(f"e{number}", "common")), replies.append)
            if number % 100 == 0:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await until(lambda: claims.state is not State.OPEN)
                await until(lambda: claims.state is State.OPEN)
        await until(lambda: len(replies) == 400)
    assert [reply.number for reply in replies] == list(range(1, 401))
    # A call that was executed before the connection was lost is granted again under its number.
    assert [reply.codes for reply in replies if isinstance(reply, Verdicts)] == [b"", *[b"gd"] * 399]
    (w,) = client.keys("parshall:w:*")
    assert int(client.hget(w, "session") or 0) >= 5
    client.close()


class LosesReplies(asyncio.Protocol):
    """A network that delivers everything until `losing`; then the next reply is lost, and the connection with it."""

    losing = False

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.inner = inner
        self.connection_lost = inner.connection_lost  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if LosesReplies.losing:
            LosesReplies.losing = False
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.abort()
        else:
            self.inner.data_received(data)


async def test_a_call_whose_reply_is_lost_is_granted_again_under_its_number(in_redis: InRedis) -> None:
    address = RedisAddress.from_url(in_redis.server.url)

    async def connect(factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        return await address.connect(lambda: LosesReplies(factory()))

    claims = RedisClaims(RedisAddress(connect), identity=IDENTITY, clock_us=lambda: NOW_US, entropy=os.urandom)
    async with running(claims, Journal()):
        LosesReplies.losing = True
        assert (await answer(claims, call(1, section("a", "b"))))[:5] == Verdicts(1, NOW_US // HOUR_US, 2, 0, b"")[:5]
        assert await codes(claims, call(2, section("a"))) == b"d"


async def test_each_mark_goes_out_by_itself_also_when_it_was_lost_with_its_connection(
    in_redis: InRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it: they need not wait until somebody looks whether the server is there."""
    monkeypatch.setattr(redis_claims, "LOOK_S", 60.0)
    proxy = TcpProxy(("127.0.0.1", in_redis.server.port))
    await proxy.start()
    journal, claims = Journal(), claims_at(f"redis://{proxy.address}")
    with redis_py.Redis(port=in_redis.server.port) as client:

        def mark() -> int:
            return int(client.hget(f"parshall:w:{journal.incarnation.hex()}", "mark") or 0)

        async with running(claims, journal):
            for journal.mark in (1, 2):
                claims.raise_mark(journal.mark)
                await until(lambda: mark() == journal.mark)
            proxy.cut_off = True
            journal.mark = 3
            claims.raise_mark(3)
            await asyncio.sleep(3 * redis_claims.IDLE_MARK_S)
            assert mark() == 2
            proxy.reset()
            proxy.cut_off = False
            await until(lambda: mark() == 3)
    await proxy.stop()


async def test_a_restart_that_loses_everything_is_healed_from_the_journal(in_redis: InRedis) -> None:
    journal, claims = Journal(), in_redis.claims()
    async with running(claims, journal):
        assert await codes(claims, call(1, section("a"))) == b""
        journal.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))
        await asyncio.to_thread(in_redis.server.kill)
        replies: list[Reply] = []
        claims.send(call(2, section("a", "b")), replies.append)
        await until(lambda: "Connect call failed" in claims.reason)
        assert claims.state is State.DISCONNECTED and claims.clock_off_us is None and not claims.joined
        await asyncio.to_thread(in_redis.server.start)
        await until(lambda: bool(replies))
        assert isinstance(replies[0], Verdicts)
        assert replies[0].codes == b"dg"
        assert journal.drains == 2


async def test_a_restart_that_keeps_everything_is_joined_too(in_redis: InRedis, caplog: pytest.LogCaptureFixture) -> None:
    in_redis.server.stop()
    in_redis.server.settings |= {"appendonly": "yes", "appendfsync": "always"}
    await asyncio.to_thread(in_redis.server.start)
    journal, claims = Journal(), in_redis.claims()
    async with running(claims, journal):
        assert await codes(claims, call(1, section("a"))) == b""
        journal.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:], journal.incarnation, 1, 1))
        journal.mark = 1
        await asyncio.to_thread(in_redis.server.restart)
        await until(lambda: journal.drains == 2 and claims.state is State.OPEN)  # it may have joined again by now
        assert await codes(claims, call(2, section("a", "b"))) == b"dg"
    assert "was left" not in caplog.text


async def test_what_a_replica_lacks_of_a_later_opening_is_claimed_again(in_redis: InRedis) -> None:
    """The first one claimed its whole journal when it joined; that says nothing of the one after it."""
    journal = Journal()
    async with running(in_redis.claims(), journal):
        pass
    later, claims = journal.reopened(0), in_redis.claims()
    async with running(claims, later):
        lost = Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:], later.incarnation, 1, 1, later.branch)
        later.kept, later.mark = [lost], 1
        in_redis.server.ask("REPLICAOF", "127.0.0.1", "1")
        in_redis.server.ask("REPLICAOF", "NO", "ONE")
        assert await codes(claims, call(2, section("a", "b"))) == b"dg"
        assert lost.branch != later.branch, "it has joined"


@pytest.mark.parametrize("command", ["FLUSHALL", "SCRIPT FLUSH"])
async def test_data_or_scripts_flushed_beneath_the_connection(in_redis: InRedis, command: str) -> None:
    """FLUSHALL keeps the replication id, but `open` is gone; SCRIPT FLUSH is answered with NOSCRIPT."""
    journal, claims = Journal(), in_redis.claims()
    client = redis_py.Redis.from_url(in_redis.server.url)
    async with running(claims, journal):
        assert await codes(claims, call(1, section("a"))) == b""
        journal.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))
        client.execute_command(*command.split())
        assert await codes(claims, call(2, section("a", "b"))) == b"dg"
    client.close()


async def test_an_incarnation_that_the_store_forgot_joins_again(in_redis: InRedis) -> None:
    """`open` still names this Redis: only the answer `rejoin` shows that w: is gone."""
    journal, claims = Journal(), in_redis.claims()
    client = redis_py.Redis.from_url(in_redis.server.url)
    async with running(claims, journal):
        assert await codes(claims, call(1, section("a"))) == b""
        journal.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))
        client.delete(*client.keys("parshall:w:*"))
        assert await codes(claims, call(2, section("a", "b"))) == b"dg"
        assert journal.drains == 2
    client.close()


async def test_a_silent_server_ends_the_connection_and_the_calls_go_again(in_redis: InRedis) -> None:
    claims = in_redis.claims(timeout_s=0.4)
    async with running(claims, Journal()):
        in_redis.server.pause()
        replies: list[Reply] = []
        claims.send(call(1, section("a")), replies.append)
        await until(lambda: claims.state is State.DISCONNECTED)
        in_redis.server.resume()
        await until(lambda: bool(replies))
        assert isinstance(replies[0], Verdicts) and replies[0].codes == b""


async def test_a_server_without_memory_waits_and_recovers_as_claims_grow_old(in_redis: InRedis) -> None:
    """hello is allowed when memory is full, and rotates."""
    now_us = NOW_US
    address = RedisAddress.from_url(in_redis.server.url)
    claims = RedisClaims(address, identity=IDENTITY, clock_us=lambda: now_us, entropy=os.urandom)
    client = redis_py.Redis.from_url(in_redis.server.url)
    async with running(claims, Journal()):
        many = [f"{n:x}" for n in range(60_000)]
        await answer(claims, call(1, section(*many)))
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", used - 3_000_000)  # more than buffers can give back
        replies: list[Reply] = []
        claims.send(call(2, section("a")), replies.append)
        await until(lambda: claims.state is not State.OPEN)
        assert replies == []
        now_us += 5 * HOUR_US
        claims.send(call(3, section("b"), time_us=now_us), replies.append)
        await until(lambda: len(replies) == 2)
        assert isinstance(replies[0], Refused)
        assert isinstance(replies[1], Verdicts) and replies[1].codes == b""
    client.close()


async def test_a_writer_whose_clock_is_ahead_begins_no_generation_before_its_time(in_redis: InRedis) -> None:
    """With all claims that are older than a lifetime by its clock, those of all others would go."""
    claims = RedisClaims(RedisAddress.from_url(in_redis.server.url), identity=IDENTITY, clock_us=lambda: 2**52, entropy=os.urandom)
    with redis_py.Redis(port=in_redis.server.port) as client:
        async with running(claims, Journal()):
            before, _ = client.time()
            reply = await answer(claims, call(1, section("a")))
            after, _ = client.time()
    assert isinstance(reply, Verdicts) and before // 3600 <= reply.generation <= after // 3600


async def test_a_replica_is_not_served_by(in_redis: InRedis) -> None:
    """Read-only or writable: a replica shows its primary's replication id."""
    claims = in_redis.claims()
    client = redis_py.Redis.from_url(in_redis.server.url)
    with redis_server(repl_diskless_sync_delay="0") as primary:
        async with running(claims, Journal()):
            client.config_set("replica-read-only", "no")
            client.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
            await until(lambda: client.info("replication")["master_link_status"] == "up")
            replies: list[Reply] = []
            claims.send(call(1, section("a")), replies.append)
            await until(lambda: claims.state is not State.OPEN)
            await asyncio.sleep(0.2)
            assert replies == []
            client.execute_command("REPLICAOF", "NO", "ONE")
            await until(lambda: bool(replies))
    client.close()


async def test_who_joins_a_second_time_is_waited_for_until_it_says_so_again(in_redis: InRedis) -> None:
    """It may have claimed elsewhere in between: what it said the first time says nothing of that."""
    one, other = Journal(), Journal()
    one.registered = other.registered = frozenset((one.writer, other.writer))
    first = in_redis.claims()
    async with running(first, one, State.REBUILDING):
        await until(lambda: one.asked > 1)  # it has said that it joined
    again, entering, go_on = one.reopened(0), asyncio.Event(), asyncio.Event()
    again.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))

    async def enter(branch: bytes) -> None:
        again.branch = branch
        entering.set()
        await go_on.wait()

    again.enter = enter  # type: ignore[method-assign]
    first, second = in_redis.claims(), in_redis.claims()
    async with running(first, again, State.REBUILDING):
        await entering.wait()
        async with running(second, other, State.REBUILDING):
            await until(lambda: other.asked > 1)
            await asyncio.sleep(0.3)
            assert second.state is State.REBUILDING, "opened without what the first has not claimed again yet"
            assert second.joined and second.accepted, "open or not"
            go_on.set()
            await until(lambda: first.state is second.state is State.OPEN)
            assert await codes(second, call(1, section("a", "b"))) == b"dg"


REMEDY = r"evicts keys .* \(maxmemory-policy allkeys-lru\), .* set maxmemory-policy to noeviction; .* made again from the journals"


async def test_a_redis_that_evicts_is_refused() -> None:
    with redis_server(maxmemory_policy="allkeys-lru", maxmemory="100mb") as server, pytest.raises(UnsuitableStore, match=REMEDY):
        await asyncio.wait_for(InRedis(server).claims().run(Journal()), 10)


async def test_over_tls_with_a_certificate_of_ours() -> None:
    port = free_port()
    with certificates() as made:
        files = {"tls_cert_file": str(made.broker), "tls_key_file": str(made.broker), "tls_ca_cert_file": str(made.ca)}
        locked = made.ca.with_name("locked.key")
        lock = ["openssl", "pkey", "-aes256", "-passout", "pass:hidden", "-in", str(made.client_key), "-out", str(locked)]
        subprocess.run(lock, check=True, stdin=subprocess.DEVNULL)
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={made.ca}&ssl_certfile={made.client}&ssl_keyfile="
        with pytest.raises(BadOption, match=r"^ssl_keyfile asks for a passphrase: a key without one"):
            claims_at(f"{url}{locked}")
        with pytest.raises(BadOption, match=r"^ssl_certfile .*client\.pem cannot be used \(KEY_VALUES_MISMATCH\): PEM files with a cert"):
            claims_at(f"{url}{made.broker}")
        with redis_server(tls_port=str(port), **files):
            for event, end in (("a", str(made.client_key)), ("b", f"{locked}&ssl_password=hidden")):
                claims = claims_at(f"{url}{end}")
                async with running(claims, Journal()):
                    assert await codes(claims, call(1, section(event))) == b""
                    await claims.close(1)


@pytest.mark.parametrize(("server", "db"), [(redis_server, 0), (valkey_server, 0), (redis_server, 3)])
async def test_a_node_of_a_cluster_is_refused(server: Callable[..., AbstractContextManager[Redis]], db: int) -> None:
    """Redis refuses another database there before it is asked what it is."""
    with server(cluster_enabled="yes", cluster_port=str(free_port())) as node:  # else it is one that the kernel hands to clients
        why = (
            f"The Redis at 127.0.0.1:{node.port} is in cluster mode, .*: redis.url must name one primary that is in no cluster, or several"
        )
        with pytest.raises(UnsuitableStore, match=why):
            await asyncio.wait_for(claims_at(f"redis://127.0.0.1:{node.port}/{db}").run(Journal()), 10)


class Sentinel(Redis):
    def command(self) -> Sequence[str]:
        """It insists on a file."""
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor primary 127.0.0.1 {free_port()} 1\n"
        )
        return [str(self._program), str(self.folder / "sentinel.conf"), "--sentinel"]


async def test_a_sentinel_is_not_taken_for_a_store(tmp_path: Path) -> None:
    sentinel = Sentinel(tmp_path, "sentinel", fetch.redis(), {})
    sentinel.start()
    try:
        with pytest.raises(UnsuitableStore, match=r"is a Sentinel, which keeps no claims: redis.url must name the primary that it watches"):
            await asyncio.wait_for(claims_at(sentinel.url).run(Journal()), 10)
    finally:
        sentinel.kill()


@pytest.mark.parametrize(
    ("user", "db", "told"),
    [("", 0, "NOAUTH"), (":wrong@", 0, "WRONGPASS"), ("nobody:right@", 0, "WRONGPASS"), (":right@", 99, "DB index is out of range")],
)
async def test_whoever_is_not_let_in_stops_and_is_told_by_which_setting(in_redis: InRedis, user: str, db: int, told: str) -> None:
    in_redis.server.ask("CONFIG", "SET", "requirepass", "right")
    url = f"redis://{user}127.0.0.1:{in_redis.server.port}/{db}"
    claims = RedisClaims(RedisAddress.from_url(url), identity=IDENTITY, clock_us=lambda: NOW_US, entropy=os.urandom)
    why = f"The Redis at 127.0.0.1:{in_redis.server.port} does not let us in .*{told}.*: redis.url must hold"
    with pytest.raises(UnsuitableStore, match=why) as refused:
        await asyncio.wait_for(claims.run(Journal()), 10)
    assert "right" not in str(refused.value) and "wrong@" not in str(refused.value)


async def test_who_was_let_in_before_tries_again(in_redis: InRedis) -> None:
    """A password may be being changed, on one side after the other."""
    claims = in_redis.claims()
    with redis_py.Redis(port=in_redis.server.port) as client:
        async with running(claims, Journal()) as task:
            client.config_set("requirepass", "another")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: "does not let us in" in claims.reason)
            client.config_set("requirepass", "")
            await until(lambda: claims.state is State.OPEN)
            assert not task.done()


def rights_in_the_docs() -> list[str]:
    (command,) = re.findall(r"^redis-cli (ACL SETUSER parshall .*)$", (PROJECT / "docs" / "OPERATING.md").read_text(), re.MULTILINE)
    return shlex.split(command.replace("$PASSWORD", "secret"))


def claims_of_parshall(server: Redis) -> RedisClaims:
    return claims_at(f"redis://parshall:secret@127.0.0.1:{server.port}/0")


def claims_at(url: str) -> RedisClaims:
    return RedisClaims(RedisAddress.from_url(url), identity=IDENTITY, clock_us=lambda: NOW_US, entropy=os.urandom)


async def test_the_rights_in_the_docs_suffice_also_to_claim_everything_again(in_redis: InRedis) -> None:
    in_redis.server.ask(*rights_in_the_docs())
    journal, claims = Journal(), claims_of_parshall(in_redis.server)
    async with running(claims, journal):
        assert await codes(claims, call(1, section("a"))) == b""
        journal.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))
        in_redis.server.ask("FLUSHALL")
        assert await codes(claims, call(2, section("a", "b"))) == b"dg"
        await claims.close(2)


@pytest.mark.parametrize("lacking", ["~parshall:*", "+@read", "+@write", "+@scripting", "+info"])
async def test_each_of_them_is_needed_and_its_lack_is_told(in_redis: InRedis, lacking: str) -> None:
    """But for the clock, which is asked for first when something is claimed."""
    in_redis.server.ask(*[right for right in rights_in_the_docs() if right != lacking])
    with pytest.raises(UnsuitableStore, match=r"does not permit it .*: its ACL must give the user what docs/OPERATING.md lists"):
        await asyncio.wait_for(claims_of_parshall(in_redis.server).run(Journal()), 10)


class Load:
    """Calls for an event each, the next one sent as soon as one is answered: a connection that is never idle."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self.sent = self.answered = 0

    def go_on(self, reply: Reply | None = None) -> None:
        self.answered += reply is not None
        self.sent += 1
        self._claims.send(call(self.sent, section(f"load {self.sent}")), self.go_on)


def evict_claims(server: Redis, *, then: str = "noeviction") -> None:
    """All claims and nothing else are evicted; nobody looks meanwhile, for the event loop stands. `then`: the policy afterwards."""
    evict_all(server, "parshall:claims:*", then=then)


def evict_all(server: Redis, pattern: str, *, then: str) -> None:
    with redis_py.Redis(port=server.port) as client:
        for key in client.scan_iter(pattern):
            client.expire(key, 86_400)
        before = int(client.info("stats")["evicted_keys"])
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("maxmemory", 1)
        deadline = time.monotonic() + 30
        while list(client.scan_iter(pattern)):
            assert time.monotonic() < deadline
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", then)
        assert int(client.info("stats")["evicted_keys"]) > before


@pytest.mark.parametrize("under_load", [False, True])
async def test_a_policy_that_begins_to_evict_stops_claims_until_it_is_set_back(
    in_redis: InRedis, under_load: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_claims, "LOOK_S", 0.05)
    journal, claims = Journal(), in_redis.claims()
    load = Load(claims)
    async with running(claims, journal) as task:
        if under_load:
            load.go_on()
            await until(lambda: load.answered > 10)
        in_redis.server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await until(lambda: claims.state is not State.OPEN)
        await until(lambda: re.search(REMEDY, claims.reason) is not None)
        if not under_load:
            load.go_on()
        answered = load.answered
        await asyncio.sleep(0.3)
        assert load.answered == answered and claims.state is not State.OPEN and not task.done()
        in_redis.server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await until(lambda: load.answered > answered + 10)
        assert claims.state is State.OPEN and claims.reason == ""
        assert journal.drains == 1, "nothing was evicted, so nothing is claimed again"


@pytest.mark.parametrize("under_load", [False, True])
async def test_where_claims_were_evicted_all_writers_claim_again(
    in_redis: InRedis, under_load: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy is as it should be whenever somebody looks: only the count of evicted keys tells."""
    monkeypatch.setattr(redis_claims, "LOOK_S", 0.05)
    one, other = Journal(), Journal()
    one.registered = other.registered = frozenset((one.writer, other.writer))
    first, second = in_redis.claims(), in_redis.claims()
    load = Load(first)
    async with running(first, one, State.REBUILDING), running(second, other):
        await until(lambda: first.state is State.OPEN)
        for claims, journal, name in ((second, other, "theirs"), (first, one, "mine")):
            assert await codes(claims, call(1, section(name))) == b""
            journal.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section(name)[1:]))
        load.sent = 1
        if under_load:
            load.go_on()
        evict_claims(in_redis.server)
        await until(lambda: one.drains == other.drains == 2 and first.state is second.state is State.OPEN)
        assert await codes(second, call(2, section("mine", "theirs", "new"))) == b"ddg"
        evict_claims(in_redis.server)
        await until(lambda: one.drains == other.drains == 3 and first.state is second.state is State.OPEN)
        await asyncio.sleep(0.2)
        assert one.drains == other.drains == 3, "what was evicted before the claims were begun is no reason to begin them again"


async def test_what_was_evicted_while_nobody_was_connected_is_claimed_again(in_redis: InRedis) -> None:
    journal, claims = Journal(), in_redis.claims()
    async with running(claims, journal):
        assert await codes(claims, call(1, section("a"))) == b""
    evict_claims(in_redis.server)
    journal = journal.reopened(1)
    journal.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))
    claims = in_redis.claims()
    async with running(claims, journal):
        assert await codes(claims, call(1, section("a", "b"))) == b"dg"


@pytest.mark.parametrize("start", [redis_server, valkey_server])
async def test_a_clock_that_is_wrong_is_told_when_it_begins(
    start: Callable[[], AbstractContextManager[Redis]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_claims, "LOOK_S", 0.02)
    off_s = 0

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]

    def is_about(off_us: int | None) -> bool:
        return off_us is not None and abs(off_us - off_s * 1_000_000) < 5_000_000

    with start() as server:
        claims = RedisClaims(
            RedisAddress.from_url(server.url),
            identity=IDENTITY,
            clock_us=lambda: time.time_ns() // 1000 + off_s * 1_000_000,
            entropy=os.urandom,
        )
        async with running(claims, Journal()):
            assert is_about(claims.clock_off_us) and told() == []
            for off_s, way in ((86_400, "ahead of"), (-100, "behind")):
                await until(lambda: is_about(claims.clock_off_us))
                await asyncio.sleep(0.1)
                (sentence,) = told()
                assert re.search(rf"the clock of this machine is \d+ s {way} that of the Redis at 127.0.0.1:{server.port}: ", sentence)
                off_s = 0
                await until(lambda: is_about(claims.clock_off_us))
                caplog.clear()


@pytest.mark.parametrize("key", ["open", "join"])
async def test_a_store_that_lost_the_key_which_says_so_is_claimed_again(in_redis: InRedis, key: str) -> None:
    """Eviction takes any key, that of the last join as well; and who joined before does not count as joined any more."""
    one, other = Journal(), Journal()
    one.registered = other.registered = frozenset((one.writer, other.writer))
    first, second = in_redis.claims(), in_redis.claims()
    async with running(first, one, State.REBUILDING), running(second, other):
        assert await codes(second, call(1, section("a"))) == b""
    evict_claims(in_redis.server)
    in_redis.server.ask("DEL", f"parshall:{key}")
    one, other = one.reopened(0), other.reopened(1)
    other.kept.append(Claimed(1, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))
    first, second = in_redis.claims(), in_redis.claims()
    before = one.asked
    async with running(first, one, State.REBUILDING):
        await until(lambda: one.asked > before + 1)  # it has joined
        assert first.state is State.REBUILDING
        async with running(second, other):
            await until(lambda: first.state is State.OPEN)
            assert await codes(first, call(1, section("a", "b"))) == b"dg"


async def test_what_was_evicted_is_not_forgotten_when_the_policy_is_set_right_by_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of evicted keys begins at 0 then, and by what is there nothing shows."""
    monkeypatch.setattr(redis_claims, "LOOK_S", 1.0)
    journal = Journal()
    with redis_server(appendonly="yes", appendfsync="always") as server:
        claims = InRedis(server).claims()
        async with running(claims, journal):
            assert await codes(claims, call(1, section("a"))) == b""
            evict_claims(server, then="volatile-lru")
            assert await codes(claims, call(2, section("b"))) == b"", "within the moment until the next look"
            await until(lambda: "maxmemory-policy volatile-lru" in claims.reason)
            await asyncio.sleep(2 * redis_claims.FIRST_PAUSE_S + 0.3)  # it has connected again, and seen it once more
        server.restart()
        with redis_py.Redis(port=server.port) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.info("stats")["evicted_keys"] == 0
        made = (journal.incarnation, journal.branch)
        journal = journal.reopened(2)
        for number, name in enumerate("ab", 1):  # as the faster join would skip them: executed here, by what the store says
            executed = Claimed(1, NOW_US // HOUR_US, NOW_US, *section(name)[1:], made[0], number, number, made[1])
            journal.kept.append(executed)
        claims = InRedis(server).claims()
        async with running(claims, journal):
            assert await codes(claims, call(1, section("a", "b", "c"))) == b"ddg"


@pytest.mark.parametrize("namespace", ["parshall:", "mine:"])
async def test_a_store_that_evicts_says_itself_that_it_is_not_complete(in_redis: InRedis, namespace: str) -> None:
    """Whatever looks at it next: neither is it open, nor does the next join begin with what it holds."""
    address = RedisAddress.from_url(in_redis.server.url)

    def claims() -> RedisClaims:
        return RedisClaims(address, identity=IDENTITY, clock_us=lambda: NOW_US, entropy=os.urandom, namespace=namespace)

    with redis_py.Redis(port=in_redis.server.port) as client:
        async with running(first := claims(), Journal()):
            await answer(first, call(1, section("a")))
        for evicted in (0, 1):
            assert client.hexists(f"{namespace}open", "replid") and client.hexists(f"{namespace}join", "replid"), "none was evicted"
            if evicted:
                client.set("other", "value")
                evict_all(in_redis.server, "other", then="allkeys-lru")
            client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(UnsuitableStore, match=REMEDY):
                await asyncio.wait_for(claims().run(Journal()), 10)
        assert not client.hexists(f"{namespace}open", "replid") and not client.hexists(f"{namespace}join", "replid")


async def test_a_count_of_evicted_keys_that_was_reset_counts_anew(in_redis: InRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_claims, "LOOK_S", 0.05)
    journal, claims = Journal(), in_redis.claims()
    async with running(claims, journal):
        for number in (1, 2):
            assert await codes(claims, call(number, section(f"{number}"), section(f"{number}", tenant=2))) == b""
            journal.kept += [Claimed(tenant, NOW_US // HOUR_US, NOW_US, *section(f"{number}")[1:]) for tenant in (1, 2)]
            evict_claims(in_redis.server)
            await until(lambda: journal.drains == number + 1 and claims.state is State.OPEN)  # noqa: B023 - it is called here
            in_redis.server.ask("CONFIG", "RESETSTAT")
            await asyncio.sleep(0.3)
        assert await codes(claims, call(3, section("1", "2", "3"))) == b"ddg"


async def test_a_store_without_room_is_claimed_again_after_an_eviction(in_redis: InRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """hello deletes claims although memory is full."""
    monkeypatch.setattr(redis_claims, "LOOK_S", 0.05)
    journal, claims = Journal(), in_redis.claims()
    with redis_py.Redis(port=in_redis.server.port) as client:
        async with running(claims, journal):
            await answer(claims, call(1, section(*[f"{n:x}" for n in range(60_000)])))
            await answer(claims, call(2, section("a", tenant=2)))
            journal.kept.append(Claimed(2, NOW_US // HOUR_US, NOW_US, *section("a")[1:]))
            client.expire(next(client.scan_iter("parshall:claims:*:2")), 86_400)
            client.config_set("maxmemory-policy", "volatile-lru")
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 3_000_000)
            await until(lambda: int(client.info("stats")["evicted_keys"]) == 1)
            client.config_set("maxmemory-policy", "noeviction")
            await until(lambda: journal.drains == 2 and claims.state is State.OPEN)
            assert await codes(claims, call(3, section("a", "b", tenant=2))) == b"dg"


async def test_a_store_that_lost_a_part_of_its_keys_is_named_as_a_cause(in_redis: InRedis) -> None:
    journal, claims = Journal(), in_redis.claims()
    async with running(claims, journal):
        await answer(claims, call(1, section("a")))
    in_redis.server.ask("DEL", f"parshall:writer:{journal.writer.hex()}")
    with pytest.raises(StaleJournal, match=r"old copy, or the claim store has lost a part of its keys \(evicted.*\(missing\).*FLUSHALL"):
        await asyncio.wait_for(in_redis.claims().run(journal.reopened(1)), 10)


async def test_a_password_and_a_database() -> None:
    with redis_server() as server:
        server.ask("CONFIG", "SET", "requirepass", "a b")
        address = RedisAddress.from_url(f"redis://default:a%20b@{server.address}/3")
        claims = RedisClaims(address, identity=IDENTITY, clock_us=lambda: NOW_US, entropy=os.urandom)
        async with running(claims, Journal()):
            assert await codes(claims, call(1, section("a"))) == b""
        client = redis_py.Redis.from_url(f"redis://:a%20b@{server.address}/3")
        assert client.exists("parshall:open") == 1
        client.close()


# ---- several shards


@pytest.fixture
def two_shards() -> Iterator[list[InRedis]]:
    with redis_server() as first, redis_server() as second:
        yield [InRedis(first), InRedis(second)]


def both(shards: list[InRedis]) -> list[RedisClaims]:
    """Of one writer's next opening."""
    clearance = Clearance(2)
    return [place.claims(IDENTITY._replace(shard=shard, shards=2), clearance=clearance) for shard, place in enumerate(shards)]


def keys(place: InRedis) -> dict[bytes, object]:
    """What the store knows of writers."""
    with redis_py.Redis(port=place.server.port) as connection:
        found = {name: connection.hgetall(name) for name in connection.scan_iter("parshall:w:*")}
        return found | {name: connection.get(name) for name in connection.scan_iter("parshall:writer:*")}


async def test_an_old_copy_that_one_shard_knows_is_told_to_no_other(two_shards: list[InRedis]) -> None:
    journal = Journal()
    first, second = both(two_shards)
    async with running(first, journal, State.REBUILDING), running(second, journal):
        await answer(second, call(1, section("a")))
        second.raise_mark(1)
        await until(lambda: keys(two_shards[1])[f"parshall:w:{journal.incarnation.hex()}".encode()].get(b"mark") == b"1")  # type: ignore[attr-defined]
    before = keys(two_shards[0])
    first, second = both(two_shards)
    copy = journal.reopened(0)
    waiting = asyncio.create_task(first.run(copy))
    with pytest.raises(StaleJournal, match=r"\(mark\)"):
        await asyncio.wait_for(second.run(copy), 10)
    await until(lambda: "waiting for the other shards" in first.reason)
    assert first.state is not State.OPEN and not first.accepted
    assert keys(two_shards[0]) == before
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first, second = both(two_shards)
    right = [Journal(journal.writer, os.urandom(16), [(journal.incarnation, last_call)]) for last_call in (0, 1)]
    async with running(first, right[0], State.REBUILDING), running(second, right[1]):
        await until(lambda: first.accepted and second.accepted)


async def test_an_opening_that_the_journal_lacks_is_seen_before_anything_is_said(two_shards: list[InRedis]) -> None:
    journal = Journal()
    first, second = both(two_shards)
    async with running(first, journal, State.REBUILDING), running(second, journal):
        pass
    first, second = both(two_shards)
    without_it = Journal(journal.writer)
    before = keys(two_shards[0])
    with pytest.raises(StaleJournal, match=r"\(unknown\)"):
        await asyncio.wait_for(first.run(without_it), 10)
    assert keys(two_shards[0]) == before


async def test_no_shard_opens_before_the_others_can_be_reached(two_shards: list[InRedis]) -> None:
    journal = Journal()
    two_shards[1].server.kill()
    first, second = both(two_shards)
    async with running(first, journal, State.REBUILDING):
        assert "waiting for the other shards" in first.reason
        assert not keys(two_shards[0]), "nothing was said"
        await asyncio.to_thread(two_shards[1].server.start)
        async with running(second, journal):
            await until(lambda: first.state is State.OPEN)
            two_shards[1].server.kill()
            await until(lambda: second.state is not State.OPEN)
            await answer(first, call(1, section("a")))


async def test_a_store_of_another_set_of_shards_is_refused(two_shards: list[InRedis]) -> None:
    async with running(two_shards[0].claims(), Journal()):
        pass
    with pytest.raises(WrongLog, match="set of shards"):
        await asyncio.wait_for(two_shards[0].claims(IDENTITY._replace(shard=0, shards=2)).run(Journal()), 10)
    with redis_py.Redis(port=two_shards[0].server.port) as connection:
        connection.flushall()
    async with running(two_shards[0].claims(IDENTITY._replace(shard=0, shards=2)), Journal()):
        pass
    with pytest.raises(WrongLog, match="set of shards"):
        await asyncio.wait_for(two_shards[0].claims(IDENTITY._replace(shard=1, shards=2)).run(Journal()), 10)
