"""How much goes to Kafka at once, by how long the last portion took."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buffer.portions import Portions

DEADLINE_S = 16.0
LARGE = [bytes(250_000)] * 400


def sizes(portions: Portions, seconds: float, wanted: list[bytes] = LARGE) -> list[int]:
    """Each portion is acknowledged after so long."""
    found = []
    for portion in portions.of(wanted, len):
        found.append(sum(map(len, portion)))
        portions.took(seconds, found[-1])
    return found


def test_quick_ones_grow_up_to_a_bound() -> None:
    found = sizes(Portions(DEADLINE_S), 0.1)
    assert found[0] == 1_000_000
    assert found[:-1] == sorted(found[:-1]) and max(found) == found[-2] <= 8 << 20
    assert len(found) < 20


def test_slow_ones_shrink_and_never_below_one_item() -> None:
    found = sizes(Portions(DEADLINE_S), 6)
    assert found[:3] == [1_000_000, 500_000, 250_000] and set(found[3:]) == {250_000}


def test_what_takes_neither_long_nor_short_stays() -> None:
    assert set(sizes(Portions(DEADLINE_S), 4)) == {1_000_000}


def test_acknowledgements_that_take_their_time_do_not_keep_them_small() -> None:
    """Whatever is sent, it takes two seconds: a cluster that has just come back. After an outage had made them small, too."""
    portions = Portions(DEADLINE_S)
    for _ in range(10):
        portions.failed()
    assert len(sizes(portions, 2)) < 25
    assert len(sizes(portions, 2)) < 15


def test_small_ones_do_not_prove_that_large_ones_pass() -> None:
    """A flush of a few counters a second, and then the one after an outage."""
    portions = Portions(DEADLINE_S)
    for _ in range(100):
        assert sizes(portions, 0.001, [bytes(1000)]) == [1000]
    assert sizes(portions, 4)[0] == 1_000_000


def test_a_failed_one_is_followed_by_smaller_ones_until_they_are_quick_again() -> None:
    portions = Portions(DEADLINE_S)
    for _ in range(20):
        portions.failed()
    found = sizes(portions, 0.1, [bytes(30_000)] * 1000)
    assert found[:2] == [60_000, 120_000] and max(found) > 5_000_000


def test_however_long_the_link_was_slow_portions_grow_once_it_is_quick() -> None:
    portions = Portions(DEADLINE_S)
    for _ in range(50):
        portions.took(DEADLINE_S, 1000)
    assert max(sizes(portions, 0.1)) > 5_000_000


def test_nothing_is_no_portion() -> None:
    assert sizes(Portions(DEADLINE_S), 1, []) == []


@given(st.lists(st.tuples(st.integers(0, 3 << 20), st.sampled_from(["quick", "slow", "failed"]))))
def test_all_goes_out_once_in_its_order_whatever_happens(items: list[tuple[int, str]]) -> None:
    portions, sent = Portions(DEADLINE_S), []
    for portion in portions.of(list(enumerate(items)), lambda item: item[1][0]):
        assert portion
        sent += portion
        happened = portion[-1][1][1]
        if happened == "failed":
            portions.failed()
        else:
            portions.took(DEADLINE_S if happened == "slow" else 0.0, sum(item[1][0] for item in portion))
    assert sent == list(enumerate(items))
