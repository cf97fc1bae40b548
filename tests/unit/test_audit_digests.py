"""Identities that were granted twice are found, all of them and no others, however crowded the field of bits is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from buffer.journal_records import CallRecord, JournalRecord, Opened
from parshall.audit_digests import granted_twice

# Few tenants and few digests, many of which share their first bytes, so that bits collide.
digests = st.builds(lambda first, last: bytes([0] * 7 + [first] + [0] * 3 + [last]), st.integers(0, 3), st.integers(0, 3))
claims = st.lists(st.tuples(st.integers(1, 2), st.lists(digests, min_size=1, max_size=4)), max_size=4)
journals = st.lists(st.lists(claims, max_size=4), min_size=1, max_size=3)


def records(calls: Sequence[Sequence[tuple[int, list[bytes]]]]) -> list[JournalRecord]:
    opened: list[JournalRecord] = [Opened(b"i" * 16, 0)]
    return opened + [
        CallRecord(number, 0, 0, 0, 1, [(tenant, b"".join(some), b"") for tenant, some in granted], [], {}, [])
        for number, granted in enumerate(calls, 1)
    ]


@given(journals)
def test_all_that_were_granted_twice_and_no_others(made: list[list[list[tuple[int, list[bytes]]]]]) -> None:
    times = Counter((tenant, digest) for calls in made for granted in calls for tenant, some in granted for digest in some)
    told = granted_twice([(f"/j/{n}", lambda calls=calls: records(calls)) for n, calls in enumerate(made)], 0, str)  # type: ignore[misc]
    found = Counter(
        (int(tenant), bytes.fromhex(digest)) for line in told for tenant, digest in re.findall(r"tenant (\d+) \(digest (\w+)\)", line.what)
    )
    assert found == {identity: number - 1 for identity, number in times.items() if number > 1}


def test_it_says_where() -> None:
    digest = bytes(range(12))
    made = {"/a": [[(7, [digest])]], "/b": [[], [(7, [digest])]]}
    (line,) = granted_twice([(place, lambda calls=calls: records(calls)) for place, calls in made.items()], 0, lambda number: f"t{number}")  # type: ignore[misc]
    incarnation = (b"i" * 16).hex()
    assert line.what == (
        f"an event of tenant t7 (digest {digest.hex()}) is counted twice: "
        f"by call 1 of incarnation {incarnation} in /a, and by call 2 of incarnation {incarnation} in /b"
    )


def daily(*calls: tuple[int, int]) -> list[JournalRecord]:
    """Calls that grant one identity each: (newest event time, horizon)."""
    return [
        Opened(b"i" * 16, 0),
        *(
            CallRecord(number, 0, 0, horizon, newest, [(1, bytes(12), b"")], [], {}, [])
            for number, (newest, horizon) in enumerate(calls, 1)
        ),
    ]


def found(*journals: list[JournalRecord]) -> list[list[str]]:
    """The numbers of the calls that are told."""
    told = granted_twice([(f"/j/{n}", lambda records=records: records) for n, records in enumerate(journals)], 0, str)  # type: ignore[misc]
    return [re.findall(r"call (\d+)", line.what) for line in told]


def test_an_identity_that_comes_again_when_its_claim_has_gone_is_another_event() -> None:
    assert found(daily((10, 0), (30, 10), (60, 30))) == []
    assert found(daily((10, 0), (30, 9))) == [["1", "2"]]
    assert found(daily((10, 0), (30, 10), (60, 29))) == [["2", "3"]], "the first one is long gone"
    assert found(daily((10, 0), (30, 10), (20, 10), (60, 30))) == [["2", "3"]]


def test_journals_are_read_in_no_order_of_time() -> None:
    for journals in ([daily((30, 10)), daily((10, 0))], [daily((10, 0)), daily((30, 10))]):
        assert found(*journals) == []
    assert found(daily((30, 9)), daily((10, 0))) == [["1", "1"]]


def test_a_double_of_one_that_lawfully_came_again_since_is_told_too() -> None:
    assert found(daily((10, 0), (30, 10)), daily((11, 0))) == [["1", "1"]]
