"""calls.py against a plain model: whatever the replies are, each event of each request gets exactly one verdict, and the record says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from buffer.counters import Deltas, pack
from dedupe.port import CONFLICT, COPY, DUPLICATE, GRANTED, PENDING, Verdicts
from ingest.batch import Batch, Rejection
from ingest.calls import CallResult, PlannedCall, Request, plan, refuse, settle

BASE_US = 1_000_000


def batch(names: Sequence[int], *, tenant: int = 1, bad: int = 0) -> Batch:
    """A batch of events by number: event k has digest, time and counter of its own number; `bad` more were rejected by the decoder."""
    digests = [f"{name:012d}".encode() for name in names]
    times = [BASE_US + name for name in names]

    def refold(positions: Sequence[int]) -> Deltas:
        counters: Counter[int] = Counter(names[k] for k in positions)
        return {"sum": {(1, tenant, f"s{name}", 0): pack(count, count) for name, count in counters.items()}}

    return Batch(
        tenant=tenant,
        received=len(names) + bad,
        indexes=range(len(names)),
        digests=digests,
        fingerprints=b"".join(b"%04d" % (name % 1000) for name in names),
        times_us=lambda: times,
        oldest_us=min(times, default=0),
        newest_us=max(times, default=0),
        deltas=refold(range(len(names))),
        rejections=[Rejection(len(names) + k, "x", "y", "unknown_type", "no such type", b"{}") for k in range(bad)],
        refold=refold,
        describe=lambda k: (str(names[k]), "source", b"{}"),
    )


def request(batch_: Batch) -> Request:
    loop = asyncio.new_event_loop()
    try:
        return Request(batch_, 0, loop.create_future())
    finally:
        loop.close()


class Store:
    """Claims as a set, with a reply for each digest chosen by the test."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = list(choices)
        self.granted: Counter[tuple[int, bytes]] = Counter()

    def execute(self, call: PlannedCall) -> Verdicts:
        codes = bytearray()
        for tenant, digests, prints in call.sections:
            assert len(prints) * 3 == len(digests)
            for k in range(0, len(digests), 12):
                codes.append(self._decide(tenant, digests[k : k + 12]))
        for place, _ in COPY.iter_unpack(call.copies):
            codes.append(PENDING if codes[place] == PENDING else self._choices.pop() if self._copies_conflict() else DUPLICATE)
        return Verdicts(call.number, 1, call.number, 0, b"" if set(codes) <= {GRANTED} else bytes(codes))

    def _copies_conflict(self) -> bool:
        return bool(self._choices) and self._choices[-1] == CONFLICT

    def _decide(self, tenant: int, digest: bytes) -> int:
        choice = self._choices.pop() if self._choices else GRANTED
        if self.granted[tenant, digest]:
            return CONFLICT if choice == CONFLICT else DUPLICATE
        if choice == GRANTED:
            self.granted[tenant, digest] += 1
        return choice


names = st.lists(st.integers(0, 12), max_size=12)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(names, st.integers(1, 2), st.integers(0, 2)), min_size=1, max_size=5),
    st.lists(st.sampled_from([GRANTED, DUPLICATE, PENDING, CONFLICT]), max_size=40),
)
def test_every_event_gets_one_verdict(requests_: list[tuple[list[int], int, int]], choices: list[int]) -> None:
    requests = [request(batch(names_, tenant=tenant, bad=bad)) for names_, tenant, bad in requests_]
    store = Store(choices)
    waiting: list[Request] = list(requests)
    counted: Counter[tuple[object, ...]] = Counter()
    tallies: Counter[tuple[int, str]] = Counter()
    journalled: Counter[tuple[int, bytes]] = Counter()
    decided: list[Request] = []
    number = 0
    while waiting:
        number += 1
        assert number < 100
        call = plan(number, waiting)
        digests = [(s.tenant, s.digests[k : k + 12]) for s in call.sections for k in range(0, len(s.digests), 12)]
        assert len(set(digests)) == len(digests), "two copies of a digest in one call"
        assert len({s.tenant for s in call.sections}) == len(call.sections)
        asked = sum(len(s.digests) // 12 for s in call.sections) + len(call.copies) // COPY.size
        assert asked == sum(r.undecided for r in waiting), "every open event is asked about in one call, copies too"
        result = settle(call, store.execute(call))
        _collect(result, counted, tallies, journalled)
        decided += result.decided
        waiting = result.pending
    assert sorted(map(id, decided)) == sorted(map(id, requests))
    assert journalled == +store.granted
    for request_, (names_, _, bad) in zip(requests, requests_, strict=True):
        outcome = request_.outcome()
        assert outcome.received == outcome.accepted + outcome.duplicate + len(outcome.rejections) == len(names_) + bad
    assert sum(counted.values()) == sum(r.accepted for r in requests) == sum(journalled.values())
    for tenant in (1, 2):
        mine = {verdict: count for (owner, verdict), count in tallies.items() if owner == tenant}
        received = sum(len(names_) + bad for names_, owner, bad in requests_ if owner == tenant)
        assert mine.get("received", 0) == received == sum(count for verdict, count in mine.items() if verdict != "received")


def _collect(
    result: CallResult, counted: Counter[tuple[object, ...]], tallies: Counter[tuple[int, str]], journalled: Counter[tuple[int, bytes]]
) -> None:
    for deltas in result.deltas:
        for key, packed in deltas["sum"].items():
            counted[key] += packed >> 160
    for tenant, counts in result.tallies.items():
        for verdict, count in counts.items():
            tallies[tenant, verdict] += count
    for tenant, digests, prints in result.claims:
        assert len(prints) * 3 == len(digests)
        for k in range(0, len(digests), 12):
            journalled[tenant, digests[k : k + 12]] += 1
            assert prints[k // 3 : k // 3 + 4] == b"%04d" % (int(digests[k : k + 12]) % 1000), "the fingerprint of another event"
    assert (result.newest_us > 0) == bool(result.claims)


@given(names, names, st.integers(0, 14))
def test_a_refused_call_keeps_what_lies_above_the_horizon(one: list[int], other: list[int], horizon: int) -> None:
    requests = [request(batch(one)), request(batch(other, tenant=2))]
    call = plan(7, requests)
    rest, too_late = refuse(call, BASE_US + horizon)
    assert rest.number == 7
    assert len(too_late) == sum(name <= horizon for name in one + other)
    assert {rejection.code for _, rejection in too_late} <= {"too_late"}
    if rest.sections:
        assert rest.oldest_us > BASE_US + horizon
    result = settle(rest, Store([]).execute(rest) if rest.sections else None, too_late)
    assert not result.pending
    for request_, names_ in zip(requests, (one, other), strict=True):
        outcome = request_.outcome()
        assert outcome.accepted + outcome.duplicate + len(outcome.rejections) == len(names_)
        assert outcome.accepted == len({name for name in names_ if name > horizon})


def test_a_decided_event_below_the_horizon_does_not_have_the_rest_refused() -> None:
    old_and_new = request(batch([1, 9]))
    first = settle(plan(1, [old_and_new]), Verdicts(1, 1, 1, 0, bytes([GRANTED, PENDING])))
    assert first.pending == [old_and_new]
    assert plan(2, [old_and_new]).oldest_us == BASE_US + 9


def test_copies_are_told_beside_the_sections() -> None:
    """Two tenants, copies within a request and between two; each names its first by its place in the whole call."""
    one, other = request(batch([1, 1, 2])), request(batch([2, 3]))
    elsewhere = request(batch([1, 4, 4, 4], tenant=2))
    call = plan(1, [one, elsewhere, other])
    assert [len(section.digests) // 12 for section in call.sections] == [3, 2]
    assert list(COPY.iter_unpack(call.copies)) == [(0, b"0001"), (1, b"0002"), (4, b"0004"), (4, b"0004")]
    codes = bytes([GRANTED, PENDING, GRANTED, DUPLICATE, GRANTED, DUPLICATE, PENDING, CONFLICT, DUPLICATE])
    result = settle(call, Verdicts(1, 1, 1, 0, codes))
    assert result.pending == [one, other]
    assert [(r.accepted, r.duplicate, r.undecided) for r in (one, other, elsewhere)] == [(1, 1, 1), (1, 0, 1), (1, 2, 0)]
    assert [rejection.index for rejection in elsewhere.outcome().rejections] == [2]
    assert result.tallies == {
        1: {"received": 3, "accepted": 2, "duplicate": 1},
        2: {"received": 4, "accepted": 1, "duplicate": 2, "conflict": 1},
    }
    again = plan(2, result.pending)
    assert (len(again.sections[0].digests) // 12, list(COPY.iter_unpack(again.copies))) == (1, [(0, b"0002")])
