"""How a journal's claims are put into chunks, and that the hot path writes what scripts.py lays out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from dedupe.ordered_connection import OnReply, pack
from dedupe.port import Call, Claimed, Identity, Section, State
from dedupe.rebuild import chunks, lacking
from dedupe.redis_address import RedisAddress
from dedupe.redis_claims import RedisClaims
from dedupe.scripts import NAMESPACE, arguments_of, context_arguments, context_of, load

Shape = tuple[int, int, int, int]  # tenant, generation, newest event time, how many digests
shapes = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 1000), st.integers(0, 30)))


def journal(shaped: list[Shape]) -> Iterator[Claimed]:
    """No digest occurs twice."""
    ids = itertools.count()
    for tenant, generation, newest_us, count in shaped:
        digests = [next(ids).to_bytes(12) for _ in range(count)]
        yield Claimed(tenant, generation, newest_us, b"".join(digests), b"".join([digest[8:] for digest in digests]))


def each(tenant: int, digests: bytes, fingerprints: bytes) -> list[tuple[int, bytes, bytes]]:
    return [(tenant, digests[12 * i : 12 * i + 12], fingerprints[4 * i : 4 * i + 4]) for i in range(len(digests) // 12)]


@given(shapes, st.integers(1, 20))
def test_chunks_hold_every_claim_once_under_its_origin(shaped: list[Shape], most: int) -> None:
    before, after = {}, {}
    for record in journal(shaped):
        for claim in each(record.tenant, record.digests, record.fingerprints):
            before[claim] = (record.generation, record.newest_us)
    for sections in chunks(journal(shaped), most):
        assert 0 < sum(len(section.digests) for section in sections) <= 12 * most
        for section in sections:
            for claim in each(section.tenant, section.digests, section.fingerprints):
                assert claim not in after
                after[claim] = (section.generation, section.newest_us)
    assert after.keys() == before.keys()
    assert all(after[claim][0] == generation and after[claim][1] >= newest_us for claim, (generation, newest_us) in before.items())


@given(st.data())
def test_what_a_store_of_an_earlier_moment_lacks_is_claimed_again(data: st.DataObject) -> None:
    """One writer's life: incarnations, calls executed in another order than they are numbered, whole joins; then a failover."""
    there: set[bytes] = set()  # claims in the store
    moments: list[tuple[set[bytes], bytes, dict[bytes, list[int]]]] = []  # what a replica may have: claims, executions and base
    branch = b"first"
    journalled: list[Claimed] = []
    known: dict[bytes, list[int]] = {}
    incarnations: list[bytes] = []
    ids = itertools.count()
    for number in range(data.draw(st.integers(1, 3))):
        incarnation = bytes([number]) * 16
        incarnations.append(incarnation)
        calls = data.draw(st.integers(0, 6))
        order = data.draw(st.permutations(range(1, calls + 1)))
        joins_before = data.draw(st.integers(0, calls + 1)) if data.draw(st.booleans()) else None
        done: dict[int, Claimed] = {}
        known[incarnation] = [0, -1]
        for step, call in enumerate(order):
            if step == joins_before and len(done) == step and sorted(done) == list(range(1, step + 1)):  # all calls so far are journalled
                known, branch = {incarnation: [0, step]}, next(ids).to_bytes(16)
                there = {claimed.digests for claimed in [*journalled, *done.values()]}
            known[incarnation][0] += 1
            digest = next(ids).to_bytes(12)
            done[call] = Claimed(1, 0, 0, digest, b"ffff", incarnation, call, known[incarnation][0], branch)
            there = there | {digest}
            moments.append((there, branch, {each: list(counts) for each, counts in known.items()}))
        journalled += [done[call] for call in sorted(done)]
    if not moments:
        return
    kept, found, counts = data.draw(st.sampled_from(moments))
    told = [figure for incarnation in incarnations for figure in counts.get(incarnation, [0, -1])]
    again = {claimed.digests for claimed in lacking(journalled, incarnations, found, told)}
    assert kept | again >= {claimed.digests for claimed in journalled}


def test_what_the_store_has_is_not_claimed_again() -> None:
    old, new = b"o" * 16, b"n" * 16
    claims = [
        Claimed(1, 0, 0, bytes([n]) * 12, b"ffff", incarnation, call, execution)
        for n, (incarnation, call, execution) in enumerate([(old, 1, 1), (old, 2, 2), (new, 1, 1), (new, 2, 3), (new, 3, 2), (new, 4, 4)])
    ]
    assert [claimed.call for claimed in lacking(claims, [old, new], b"", [0, -1, 2, 1])] == [2, 4], "old is covered by the base of new"
    assert [claimed.call for claimed in lacking(claims, [old, new], b"", [1, -1, 3, -1])] == [2, 4]
    assert len(list(lacking(claims, [old, new], b"another branch", [1, -1, 3, -1]))) == 6
    assert [claimed.call for claimed in lacking(claims, [old, new], b"another branch", [0, -1, 0, 1])] == [2, 3, 4]
    for base in (-1, 1):
        counts = [0, base, 0, 0]
        assert [claimed.call for claimed in lacking(claims, [old, new], b"another branch", counts)] == [1, 2, 3, 4], "the last base decides"


class Recorder:
    """Stands where the connection is, to see what is written to it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, command: bytes, on_reply: OnReply) -> None:
        self.sent.append(command)


async def test_the_hot_path_writes_what_the_script_expects() -> None:
    identity = Identity("log", 10_000_000, 30_000_000)
    claims = RedisClaims(RedisAddress.from_url("redis://nowhere"), identity=identity, clock_us=lambda: 77, entropy=os.urandom)
    context = context_of(identity, b"w" * 16, b"i" * 16, 3)
    recorder = Recorder()
    claims._connection, claims._context, claims._state = cast("None", recorder), context, State.OPEN
    claims._mark = 4
    sections = [Section(1, b"d" * 24, b"f" * 8), Section(70_000, b"e" * 12, b"g" * 4)]
    for some in (sections, [], sections[:1]):
        claims.send(Call(5, some, 11, 12), lambda reply: None)
        expected = [b"EVALSHA", load()["claim"].sha, b"0", *context_arguments(NAMESPACE, context)]
        assert recorder.sent.pop() == pack([*expected, *arguments_of("claim", 5, 4, 77, 11, 12, some)])
