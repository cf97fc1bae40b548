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
from dedupe.rebuild import chunks
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
