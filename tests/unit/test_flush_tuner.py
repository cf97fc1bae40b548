"""When a flush is due, told every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.flush_tuner import FlushTuner


def test_the_first_interval_counts_from_the_first_time_told() -> None:
    tuner = FlushTuner(interval_ms=1000, max_counters=10)
    assert tuner.wait_s(50.0, 0) == 1.0
    assert tuner.wait_s(50.75, 3) == 0.25
    assert tuner.wait_s(51.0, 3) == 0.0


def test_a_late_flush_is_due_and_not_negative() -> None:
    tuner = FlushTuner(interval_ms=1000, max_counters=10)
    tuner.wait_s(50.0, 0)
    assert tuner.wait_s(58.0, 0) == 0.0


def test_a_flush_starts_the_next_interval() -> None:
    tuner = FlushTuner(interval_ms=2000, max_counters=10)
    tuner.flushed(10.0)
    assert tuner.wait_s(10.5, 0) == 1.5
    tuner.flushed(11.0)
    assert tuner.wait_s(11.0, 0) == 2.0


def test_the_bound_makes_it_due_early() -> None:
    tuner = FlushTuner(interval_ms=60_000, max_counters=10)
    tuner.flushed(0.0)
    assert not tuner.full(9)
    assert tuner.wait_s(1.0, 9) == 59.0
    assert tuner.full(10)
    assert tuner.wait_s(1.0, 10) == 0.0


def test_a_new_interval_holds_at_once() -> None:
    tuner = FlushTuner(interval_ms=60_000, max_counters=10)
    tuner.flushed(0.0)
    tuner.set_interval(1000)
    assert tuner.interval_ms == 1000
    assert tuner.wait_s(0.25, 0) == 0.75
    tuner.set_interval(100)
    assert tuner.wait_s(0.25, 0) == 0.0
    tuner.set_interval(5000)
    assert tuner.wait_s(0.25, 0) == 4.75


def test_asking_makes_one_flush_due() -> None:
    tuner = FlushTuner(interval_ms=60_000, max_counters=10)
    tuner.flushed(0.0)
    tuner.ask()
    assert tuner.wait_s(1.0, 0) == 0.0
    tuner.flushed(1.0)
    assert tuner.wait_s(1.0, 0) == 60.0


@pytest.mark.parametrize("interval_ms", [0, -5])
def test_an_impossible_interval_is_refused_and_changes_nothing(interval_ms: int) -> None:
    tuner = FlushTuner(interval_ms=1000, max_counters=10)
    with pytest.raises(ValueError, match="at least 1 ms"):
        tuner.set_interval(interval_ms)
    assert tuner.interval_ms == 1000
    with pytest.raises(ValueError, match="at least 1 ms"):
        FlushTuner(interval_ms, max_counters=10)


def test_a_bound_of_no_counters_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        FlushTuner(interval_ms=1000, max_counters=0)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 12), st.sampled_from(["look", "flush", "ask", "slower", "faster"]))),
)
def test_whoever_waits_as_told_never_waits_longer_than_the_interval(steps: list[tuple[int, int, str]]) -> None:
    tuner = FlushTuner(interval_ms=1000, max_counters=10)
    now_ms = 0
    for passed_ms, live, what in steps:
        now_ms += passed_ms
        if what == "flush":
            tuner.flushed(now_ms / 1000)
        elif what == "ask":
            tuner.ask()
        elif what == "slower":
            tuner.set_interval(tuner.interval_ms * 2)
        elif what == "faster":
            tuner.set_interval(max(1, tuner.interval_ms // 2))
        wait_s = tuner.wait_s(now_ms / 1000, live)
        assert 0 <= wait_s <= tuner.interval_ms / 1000
        if live >= 10:
            assert wait_s == 0
