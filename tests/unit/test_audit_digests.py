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
        CallRecord(number, 0, 0, 0, 0, [(tenant, b"".join(some), b"") for tenant, some in granted], [], {}, [])
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
