"""Query strings, and the windows they stand for. (What a wrong one is told: tests/integration/test_rater.py.)"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from buffer.counters import MeterDefinition
from rater.questions import BadQuery, UsageQuestion, charges_question, usage_question

MINUTES = MeterDefinition("calls", "a" * 16, "count", 0, 60, ("region", "subject"))
HOURS = MINUTES._replace(name="requests", window_s=3600, dimensions=("region",))
DAYS = HOURS._replace(name="storage", window_s=86400)


def at(text: str) -> int:
    since = datetime.fromisoformat(text).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86400 + since.seconds


NOW = at("2026-03-15T10:20:30Z")


def asked(meter: MeterDefinition, **query: str) -> UsageQuestion:
    return usage_question({"meter": meter.name, **{name.removesuffix("_"): value for name, value in query.items()}}, meter, NOW)


def test_without_times_it_is_this_month_up_to_the_window_that_runs() -> None:
    found = asked(HOURS, window="day")
    assert (found.bounds[0], found.bounds[-1]) == (at("2026-03-01T00:00:00Z"), at("2026-03-15T11:00:00Z"))
    assert len(found.bounds) == 16
    assert asked(HOURS, timezone="Europe/Berlin").bounds[0] == at("2026-03-01T00:00:00+01:00")


def test_without_a_beginning_it_is_the_month_that_the_end_lies_in() -> None:
    """At the border of two months that is the one that ends there."""
    for end in ("2026-02-03T00:00:00Z", "2026-03-01T00:00:00Z"):
        found = asked(HOURS, to=end, window="month")
        assert found.bounds == (at("2026-02-01T00:00:00Z"), at(end))
    assert asked(HOURS, to="2026-04-01T00:00:00Z").bounds[0] == at("2026-03-01T00:00:00Z"), "but not one that is to come"


def test_the_default_window_is_the_finest_that_there_is() -> None:
    assert {later - earlier for earlier, later in pairwise(asked(HOURS).bounds)} == {3600}
    assert {later - earlier for earlier, later in pairwise(asked(DAYS).bounds)} == {86400}


def test_days_are_as_long_as_they_are_where_the_clocks_change() -> None:
    found = asked(HOURS, from_="2026-03-28T00:00:00+01:00", to="2026-03-31T00:00:00+02:00", window="day", timezone="Europe/Berlin")
    assert [later - earlier for earlier, later in pairwise(found.bounds)] == [86400, 82800, 86400]


def test_the_first_and_last_window_are_cut() -> None:
    found = asked(HOURS, from_="2026-01-31T22:00:00Z", to="2026-03-01T02:00:00Z", window="month")
    assert found.bounds == (at("2026-01-31T22:00:00Z"), at("2026-02-01T00:00:00Z"), at("2026-03-01T00:00:00Z"), at("2026-03-01T02:00:00Z"))


def test_hours_of_a_zone_with_half_an_hour() -> None:
    found = asked(MINUTES, from_="2026-01-01T00:00:00Z", to="2026-01-01T02:00:00Z", timezone="Asia/Kolkata")
    assert found.bounds == tuple(map(at, ("2026-01-01T00:00:00Z", "2026-01-01T00:30:00Z", "2026-01-01T01:30:00Z", "2026-01-01T02:00:00Z")))
    with pytest.raises(BadQuery, match="timezone: an hour of Asia/Kolkata"):
        asked(HOURS, timezone="Asia/Kolkata")


@pytest.mark.parametrize(
    ("day", "begins"),
    [
        ("2026-04-05", ["01:00:00+11:00", "01:30:00+10:30", "02:00:00+10:30", "03:00:00+10:30"]),
        ("2026-10-04", ["01:00:00+10:30", "02:30:00+11:00", "03:00:00+11:00", "04:00:00+11:00"]),
    ],
)
def test_hours_of_a_day_on_which_the_clocks_change_by_half_an_hour(day: str, begins: list[str]) -> None:
    bounds = tuple(at(f"{day}T{time}") for time in begins)
    for beginning in range(3):
        given = {"from_": f"{day}T{begins[beginning]}", "to": f"{day}T{begins[-1]}"}
        assert asked(MINUTES, timezone="Australia/Lord_Howe", **given).bounds == bounds[beginning:]


def test_grouping() -> None:
    found = asked(HOURS, group_by=" region , subject")
    assert (found.group_by, found.by_subject) == (("region",), True)
    assert asked(HOURS, subject="acme").by_subject
    assert not asked(HOURS).by_subject
    own = asked(MINUTES, group_by="subject")
    assert own.group_by == ("subject",), "a dimension may bear the name"


def test_charges_are_of_this_month_unless_said() -> None:
    assert charges_question({"subject": "acme"}, NOW) == ("acme", "2026-03", None, 100)
    assert charges_question({"subject": "acme", "period": "2025-12"}, NOW) == ("acme", "2025-12", None, 100)
    assert charges_question({}, NOW) == (None, "2026-03", None, 100)
    assert charges_question({"after": "acme", "limit": "1000"}, NOW) == (None, "2026-03", "acme", 1000)


def test_usage_of_nobody_is_not_asked_for() -> None:
    with pytest.raises(BadQuery, match="subject: it is empty"):
        asked(HOURS, subject="")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"subject": ""}, "subject: it is empty"),
        ({"after": ""}, "after: it is empty"),
        ({"subject": "acme", "after": "a"}, "after: one subject has no pages"),
        ({"subject": "acme", "limit": "5"}, "limit: one subject has no pages"),
        *[({"limit": limit}, f"limit: {limit!r} is no number of subjects") for limit in ("0", "1001", "-1", "", "1e2", "١")],
    ],
)
def test_pages_that_cannot_be_had(query: dict[str, str], said: str) -> None:
    with pytest.raises(BadQuery) as refused:
        charges_question(query, NOW)
    assert str(refused.value).startswith(said)
