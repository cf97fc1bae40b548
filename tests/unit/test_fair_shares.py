"""The rule by which tenants share what is bounded, and the queue in which they take turns."""

from __future__ import annotations

from collections import Counter, deque
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.fair_shares import Shares, TurnQueue, fits


@pytest.mark.parametrize(("limit", "open_to_all"), [(16, 12), (17, 13), (7, 6), (3, 3)])
def test_the_rule_at_every_small_value(limit: int, open_to_all: int) -> None:
    for size, mine, others, tenants in product(range(1, 20), range(17), range(17), range(1, 5)):
        total = mine + others
        given_ = fits(size, total=total, mine=mine, tenants=tenants, limit=limit)
        if total == 0 or total + size <= open_to_all:
            assert given_, "anybody may take three quarters, and one alone whatever it asks"
        elif total + size > limit:
            assert not given_, "the bound holds"
        else:
            assert given_ == (mine == 0 or 4 * tenants * (mine + size) <= limit), "the last quarter is for those who hold nothing or little"


tenants = st.integers(1, 4)
takes = st.lists(st.tuples(tenants, st.integers(1, 40)), max_size=60)


@given(takes, st.integers(1, 100))
def test_the_bound_holds_and_the_account_is_right(asked: list[tuple[int, int]], limit: int) -> None:
    shares, held = Shares(limit), Counter[int]()
    taken: deque[tuple[int, int]] = deque()
    for tenant, size in asked:
        expected = fits(size, total=held.total(), mine=held[tenant], tenants=len(held | {tenant: 1}), limit=limit)
        assert shares.fits(tenant, size) == expected
        if expected:
            shares.take(tenant, size)
            held[tenant] += size
            taken.append((tenant, size))
            assert shares.total <= max(limit, size)
        elif taken:
            given_back = taken.popleft()
            shares.give(*given_back)
            held.subtract({given_back[0]: given_back[1]})
            held = +held
        assert shares.total == held.total()
        assert all(shares.held(tenant) == held[tenant] for tenant in range(1, 5))


@given(st.integers(100, 10_000), st.integers(1, 50))
def test_after_a_flood_the_next_tenant_finds_room(limit: int, size: int) -> None:
    shares = Shares(limit)
    while shares.fits(1, 1):
        shares.take(1, 1)
    assert shares.crowded(1) and not shares.crowded(2)
    assert shares.fits(2, 1)
    assert shares.fits(2, limit // 8)


def test_who_has_given_everything_back_takes_no_share_from_others() -> None:
    shares = Shares(100)
    for tenant in range(3, 13):
        shares.take(tenant, 1)
        shares.give(tenant, 1)
    shares.take(1, 75)
    shares.take(2, 5)
    assert shares.fits(2, 5) and not shares.crowded(2), "the last quarter is for two, not for twelve"


def test_a_refusal_is_ones_own_doing_beyond_the_share_of_the_last_quarter() -> None:
    shares = Shares(100)
    assert not shares.crowded(1)
    shares.take(1, 25)
    assert not shares.crowded(1)
    shares.take(1, 1)
    assert shares.crowded(1)


def test_nobody_gives_back_more_than_was_taken() -> None:
    shares = Shares(100)
    shares.take(1, 5)
    with pytest.raises(AssertionError, match="more is given back than was taken"):
        shares.give(1, 6)


@given(st.lists(st.tuples(tenants, st.integers()), max_size=60))
def test_tenants_take_turns_and_each_keeps_its_order(pushed: list[tuple[int, int]]) -> None:
    queue: TurnQueue[tuple[int, int]] = TurnQueue()
    for item in pushed:
        queue.push(item[0], item)
    out: list[tuple[int, int]] = []
    while queue.length:
        first = queue.first()
        out.append(queue.pop())
        assert out[-1] is first
    assert queue.first() is None
    for tenant in range(1, 5):
        assert [item for item in out if item[0] == tenant] == [item for item in pushed if item[0] == tenant]
    for place, (tenant, _) in enumerate(out):  # nobody is passed over twice while it waits
        waiting = {one for one, _ in out[place:]} - {tenant}
        turns = Counter(one for one, _ in out[max(0, place - 3) : place])
        assert all(turns[one] <= 1 for one in turns if len(waiting) == 3), out


def test_a_flood_does_not_hold_up_another_tenant() -> None:
    queue: TurnQueue[str] = TurnQueue()
    for number in range(1000):
        queue.push(1, f"flood {number}")
    queue.push(2, "trickle")
    assert "trickle" in [queue.pop(), queue.pop()]


def test_who_comes_waits_behind_those_who_wait() -> None:
    queue: TurnQueue[str] = TurnQueue()
    queue.push(1, "a")
    queue.push(2, "b")
    assert queue.pop() == "a"
    queue.push(1, "c")
    queue.push(3, "d")
    assert [queue.pop(), queue.pop(), queue.pop()] == ["b", "c", "d"]
