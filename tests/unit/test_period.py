"""Months in time zones, and which windows can serve which zone."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rater.period import Period, days_between, is_closed, misfit, month, month_labelled, months_between, period_of, zone_named

UTC_ZONE = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
ZONES = ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York", "Pacific/Apia", "Australia/Lord_Howe", "Asia/Beirut"]

instants = st.integers(min_value=0, max_value=4_000_000_000)


def at(text: str) -> int:
    since = datetime.fromisoformat(text).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86400 + since.seconds


def test_a_month_is_half_open() -> None:
    january = month(2026, 1, UTC_ZONE)
    assert january == Period("2026-01", at("2026-01-01T00:00:00Z"), at("2026-02-01T00:00:00Z"))
    assert period_of(january.end_s - 1, UTC_ZONE) == january
    assert period_of(january.end_s, UTC_ZONE).label == "2026-02"
    assert month(2025, 12, UTC_ZONE).end_s == january.start_s


def test_a_month_is_counted_in_its_zone() -> None:
    assert month(2026, 7, BERLIN) == Period("2026-07", at("2026-06-30T22:00:00Z"), at("2026-07-31T22:00:00Z"))
    assert period_of(at("2026-06-30T22:30:00Z"), BERLIN).label == "2026-07"
    march = month(2026, 3, BERLIN)  # the clocks change in it
    assert march.end_s - march.start_s == 31 * 86400 - 3600


@given(instants, st.sampled_from(ZONES))
def test_months_cover_time_without_gap_or_overlap(instant_s: int, name: str) -> None:
    zone = zone_named(name)
    period = period_of(instant_s, zone)
    assert period.start_s <= instant_s < period.end_s
    assert period_of(period.end_s, zone).start_s == period.end_s
    assert month_labelled(period.label, zone) == period


@given(instants, st.integers(min_value=1, max_value=40 * 86400), st.sampled_from(ZONES))
def test_days_and_months_between(start_s: int, length_s: int, name: str) -> None:
    zone = zone_named(name)
    for parts in (
        list(days_between(start_s, start_s + length_s, zone)),
        [part[1:] for part in months_between(start_s, start_s + length_s, zone)],
    ):
        assert parts[0][0] <= start_s < parts[0][1]
        assert parts[-1][0] < start_s + length_s <= parts[-1][1]
        assert all(one[1] == next_one[0] for one, next_one in pairwise(parts))


@pytest.mark.parametrize(
    ("name", "window_s", "serves"),
    [
        ("UTC", 86400, True),
        ("Europe/Berlin", 3600, True),
        ("Europe/Berlin", 86400, False),
        ("Asia/Kolkata", 3600, False),
        ("Asia/Kolkata", 900, True),
        ("Asia/Kathmandu", 900, True),
        ("Asia/Kathmandu", 3600, False),
        ("Africa/Abidjan", 86400, True),
    ],
)
def test_a_window_serves_a_zone_only_when_months_begin_with_it(name: str, window_s: int, serves: bool) -> None:
    assert (misfit(zone_named(name), window_s, 2026, 2046) is None) is serves


def test_the_month_that_does_not_fit_is_named() -> None:
    bad = misfit(KOLKATA, 3600, 2026, 2027)
    assert bad is not None
    assert bad.label == "2026-01"
    assert bad.start_s % 3600 == 1800


def test_a_month_closes_when_its_last_event_is_too_late() -> None:
    end_s = month(2026, 1, UTC_ZONE).end_s
    assert not is_closed(end_s, end_s + 86399, 86400)
    assert is_closed(end_s, end_s + 86400, 86400)


@pytest.mark.parametrize("label", ["2026-13", "2026-00", "26-01", "2026-1", "2026/01", "1968-12", "", "2026-٠1"])
def test_labels_that_are_no_month(label: str) -> None:
    with pytest.raises(ValueError, match="YYYY-MM"):
        month_labelled(label, UTC_ZONE)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "/etc/localtime", "localtime", "posixrules"])
def test_names_that_are_no_zone(name: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        zone_named(name)
