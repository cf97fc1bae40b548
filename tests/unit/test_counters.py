"""The packing of deltas and the laws of merging."""

from __future__ import annotations

import copy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buffer.counters import PACKED_BYTES, CounterKey, Deltas, add_tallies, count, less, merge, merge_max, pack, together, unpack

LARGEST = 10**38 - 1  # 38 digits

values = st.integers(-LARGEST, LARGEST) | st.sampled_from([0, 1, -1, LARGEST, -LARGEST])
events = st.integers(1, 2**20)
packed = st.builds(pack, values, events)
keys: st.SearchStrategy[CounterKey] = st.tuples(st.integers(1, 2), st.just(1), st.sampled_from(["a", "b", "c"]), st.just(0))
deltas: st.SearchStrategy[Deltas] = st.fixed_dictionaries({}, optional={kind: st.dictionaries(keys, packed) for kind in ("sum", "max")})


def merged(*parts: Deltas) -> Deltas:
    into: Deltas = {}
    for part in parts:
        merge(into, part)
    return into


@given(values, st.integers(0, 2**31 - 1))
def test_pack_round_trip(value: int, number: int) -> None:
    assert unpack(pack(value, number)) == (value, number)


@given(values, st.integers(0, 2**31 - 1))
def test_a_packed_delta_fits_its_bytes(value: int, number: int) -> None:
    delta = pack(value, number)
    assert int.from_bytes(delta.to_bytes(PACKED_BYTES, "little", signed=True), "little", signed=True) == delta


@given(st.lists(st.tuples(values, events), min_size=1, max_size=50))
def test_adding_packed_deltas_adds_values_and_events(parts: list[tuple[int, int]]) -> None:
    total = sum(pack(value, number) for value, number in parts)
    assert unpack(total) == (sum(value for value, _ in parts), sum(number for _, number in parts))


@given(st.lists(st.tuples(values, events), min_size=1, max_size=50))
def test_merging_maxima_keeps_the_greatest_value_and_all_events(parts: list[tuple[int, int]]) -> None:
    total = pack(*parts[0])
    for value, number in parts[1:]:
        total = merge_max(total, pack(value, number))
    assert unpack(total) == (max(value for value, _ in parts), sum(number for _, number in parts))


@example({"sum": {(1, 1, "a", 0): pack(-5, 1)}}, {"sum": {(1, 1, "a", 0): pack(7, 1)}})
@given(deltas, deltas)
def test_what_was_merged_can_be_taken_away_more_than_once(one: Deltas, other: Deltas) -> None:
    sums, taken = one.get("sum", {}), other.get("sum", {})
    whole = merged({"sum": sums}, {"sum": taken})["sum"]
    assert less(whole, taken) == less(whole, taken) == sums


@given(deltas, deltas)
def test_merging_is_commutative(one: Deltas, other: Deltas) -> None:
    assert merged(one, other) == merged(other, one)


@given(deltas, deltas, deltas)
def test_merging_is_associative(one: Deltas, two: Deltas, three: Deltas) -> None:
    assert merged(merged(one, two), three) == merged(one, merged(two, three))


@given(deltas, deltas)
def test_merging_leaves_what_is_merged_in_alone(one: Deltas, other: Deltas) -> None:
    into, before = merged(one), copy.deepcopy(other)
    merge(into, other)
    merge(into, other)
    assert other == before


@given(st.lists(deltas, max_size=5))
def test_parts_taken_together_are_the_same_deltas(parts: list[Deltas]) -> None:
    before = copy.deepcopy(parts)
    assert merged(*together(parts)) == merged(*parts)
    assert parts == before


def test_parts_are_merged_where_their_counters_repeat_and_left_alone_where_they_do_not() -> None:
    def part(subjects: range) -> Deltas:
        return {"sum": {(1, 1, f"subject-{number}", 0): pack(1, 1) for number in subjects}}

    (whole,) = together([part(range(10)), part(range(10)), part(range(10))])
    assert count(whole) == 10
    apart = [part(range(10)), part(range(9, 19)), part(range(10))]
    assert together(apart) == apart


def _many(subjects: range, meters: int, alone: int = 0, part: str = "one") -> dict[CounterKey, int]:
    """As events bring them: the counters of one subject beside each other; of the first `alone` meters no other part has any."""
    return {
        (meter, 1, f"subject-{number}", 0, *([part] if meter <= alone else [])): pack(1, 1)
        for number in subjects
        for meter in range(1, meters + 1)
    }


@pytest.mark.parametrize(
    ("one", "other", "merged_counters"),
    [
        ({"sum": _many(range(1000), 1)}, {"sum": _many(range(900, 1900), 1)}, 0),
        ({"sum": _many(range(1000), 1)}, {"sum": _many(range(400, 1400), 1)}, 1400),
        ({"sum": _many(range(1000), 2, 1)}, {"sum": _many(range(1000), 2, 1, "other")}, 3000),  # every second one repeats
        ({"sum": _many(range(1000), 4, 3)}, {"sum": _many(range(1000), 4, 3, "other")}, 0),  # every fourth one of the other
        ({"sum": _many(range(1000), 8, 3)}, {"sum": _many(range(1000), 8, 3, "other")}, 11_000),
        ({"sum": _many(range(5000), 1), "max": _many(range(50), 1)}, {"sum": _many(range(5000, 10_000), 1), "max": _many(range(50), 1)}, 0),
        ({"sum": _many(range(50), 1), "max": _many(range(5000), 1)}, {"sum": _many(range(50, 100), 1), "max": _many(range(5000), 1)}, 5100),
    ],
)
def test_a_sample_of_many_counters_decides_as_all_of_them_would(one: Deltas, other: Deltas, merged_counters: int) -> None:
    """A fifth of both together must repeat. None of these is near it."""
    found = together([one, other])
    assert [count(part) for part in found] == ([merged_counters] if merged_counters else [count(one), count(other)])


def test_an_unknown_kind_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        merge({"median": {}}, {"median": {(1, 1, "a", 0): 1}})


@given(
    st.lists(st.dictionaries(st.integers(1, 3), st.dictionaries(st.sampled_from(["accepted", "too_late"]), st.integers(0, 9))), max_size=5)
)
def test_tallies_add_up(parts: list[dict[int, dict[str, int]]]) -> None:
    into: dict[int, dict[str, int]] = {}
    for part in parts:
        add_tallies(into, part)
    for tenant in (1, 2, 3):
        for name in ("accepted", "too_late"):
            assert into.get(tenant, {}).get(name, 0) == sum(part.get(tenant, {}).get(name, 0) for part in parts)
