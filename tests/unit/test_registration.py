"""The registry's entries as bytes: which one of a key counts, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.counter_log import Announced, Registry, Retired
from buffer.counters import MeterDefinition
from buffer.registration import (
    add_entry,
    branches_key,
    encode_branches,
    encode_member,
    encode_meter,
    member_key,
    meter_key,
    overtaken,
    registry_of,
)

ALICE = bytes(range(16))
PEAK = MeterDefinition("peak", "0" * 16, "max", 2, 60, ("region",))
OTHER = PEAK._replace(aggregation="sum")


def read(*entries: tuple[str, bytes]) -> Registry:
    registry = Registry({}, {}, {})
    for key, value in entries:
        add_entry(registry, key, value)
    return registry


def test_who_was_retired_stays_retired_of_announcements_the_highest_counts_and_of_a_meter_the_first() -> None:
    registry = read(
        (member_key(ALICE), encode_member(None)),
        (meter_key("peak"), encode_meter(PEAK)),
        (branches_key(ALICE), encode_branches(Announced(3, (b"a" * 16,)))),
        (member_key(ALICE), encode_member(Retired(7))),
        (meter_key("peak"), encode_meter(OTHER)),
        (branches_key(ALICE), encode_branches(Announced(10, (b"b" * 16,)))),
        (branches_key(ALICE), encode_branches(Announced(9, (b"a" * 16,)))),
        (member_key(ALICE), encode_member(None)),
        (member_key(ALICE), encode_member(Retired(8))),
    )
    assert registry == ({ALICE: Retired(7)}, {ALICE: Announced(10, (b"b" * 16,))}, {"peak": PEAK._replace(hash="")})


def test_an_announcement_of_a_build_that_gave_them_no_order_comes_before_all_others() -> None:
    """Of two such the last counts."""
    older = [(branches_key(ALICE), b'{"v":1,"branches":["%s"]}' % (letter * 32)) for letter in (b"a", b"b")]
    assert read(*older).announced == {ALICE: (0, (b"\xbb" * 16,))}
    newer = branches_key(ALICE), encode_branches(Announced(1, (b"\xcc" * 16,)))
    assert read(newer, *older).announced == {ALICE: (1, (b"\xcc" * 16,))}
    assert newer[1] == b'{"v":1,"branches":["%s"],"at":1}' % (b"c" * 32)


_ENTRIES = st.one_of(
    st.tuples(st.just(member_key(ALICE)), st.builds(encode_member, st.none() | st.builds(Retired, st.integers(1, 3)))),
    st.tuples(
        st.sampled_from((branches_key(ALICE), branches_key(b"b" * 16))),
        st.builds(encode_branches, st.builds(Announced, st.integers(0, 3), st.tuples(st.sampled_from((b"x" * 16, b"y" * 16))))),
    ),
    st.tuples(st.just(meter_key("peak")), st.builds(encode_meter, st.sampled_from((PEAK, OTHER)))),
)


@given(st.lists(_ENTRIES))
def test_compaction_keeps_what_counts_once_it_was_put_right(entries: list[tuple[str, bytes]]) -> None:
    again = overtaken(entries)
    registry = read(*entries, *again.items())
    assert registry == read(*entries) == read(*dict([*entries, *again.items()]).items())
    assert overtaken([*entries, *again.items()]) == {}
    assert all(dict(entries)[key] != value for key, value in again.items())


def test_a_meter_as_it_is_stored() -> None:
    assert meter_key("peak") == "meter:peak"
    assert encode_meter(PEAK) == b'{"v":1,"aggregation":"max","scale":2,"window_s":60,"dimensions":["region"]}'


def test_a_meter_may_be_called_as_a_writer_is() -> None:
    name = "a" * 32
    named = PEAK._replace(name=name, hash="")
    assert read((name, encode_member(None)), (meter_key(name), encode_meter(named))) == ({b"\xaa" * 16: None}, {}, {name: named})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (ALICE.hex() + ".later", b"{}"),
        (ALICE.hex() + "_branches", encode_branches(Announced(1, ()))),
        (ALICE.hex()[:-2], encode_member(None)),
        ("later:peak", encode_meter(PEAK)),
        ("later.meter:peak", encode_meter(PEAK)),
        ("peak", encode_meter(PEAK)),
        ("", encode_member(None)),
    ],
)
def test_a_kind_of_entry_that_is_not_known_is_refused(key: str, value: bytes) -> None:
    """It may say of a writer what must not be overlooked, as an announced branch does."""
    with pytest.raises(ValueError, match="a newer one may have written it"):
        read((key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("meter:peak", encode_meter(PEAK).replace(b'"v":1', b'"v":2')),
        (ALICE.hex(), encode_member(Retired(7)).replace(b'"v":1', b'"v":2')),
        (branches_key(ALICE), encode_branches(Announced(1, ())).replace(b'"v":1', b'"v":2')),
        ("meter:peak", encode_meter(PEAK).replace(b"}", b',"more":1}')),
        ("meter:peak", b""),
        (ALICE.hex(), b"{}"),
        (ALICE.hex(), encode_member(None).replace(b"}", b',"more":1}')),
        (branches_key(ALICE), encode_branches(Announced(1, ())).replace(b"}", b',"more":1}')),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_by_name(key: str, value: bytes) -> None:
    with pytest.raises(ValueError, match=f"^'{key}', "):
        registry_of([(key, value)])
