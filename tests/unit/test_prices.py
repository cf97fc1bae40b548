"""Price models and price books: exactness, tiers, rounding, and what a wrong book is told."""

from __future__ import annotations

import tomllib
from datetime import date
from decimal import Decimal, Inexact
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from buffer.counters import MeterDefinition
from rater.period import Period
from rater.prices.book import BadBooks, PriceBook, price_for, read_books
from rater.prices.graduated import Graduated
from rater.prices.money import EXACT, from_scaled, plain, round_money, scaled_text
from rater.prices.per_unit import PerUnit
from rater.prices.price import rate
from rater.prices.registry import MODELS, model_of

amounts = st.decimals(min_value=0, max_value=10**6, allow_nan=False, allow_infinity=False, places=4)
quantities = st.integers(min_value=0, max_value=10**42).map(lambda scaled: from_scaled(scaled, 6))
powers = st.integers(min_value=0, max_value=39).map(lambda power: 10**power) | st.tuples(
    st.integers(min_value=0, max_value=59), st.integers(min_value=0, max_value=25)
).map(lambda power: 2 ** power[0] * 5 ** power[1]).filter(lambda per: per <= 10**18)


@st.composite
def graduated_prices(draw: st.DrawFn) -> Graduated:
    bounds = sorted(draw(st.sets(st.integers(min_value=1, max_value=10**9), max_size=5)))
    tiers: list[dict[str, object]] = [{"up_to": str(bound), "unit_price": str(draw(amounts))} for bound in bounds]
    tiers.append({"unit_price": str(draw(amounts))})
    free, per = draw(st.integers(min_value=0, max_value=10**9)), draw(powers)
    return Graduated.model_validate({"meter": "m", "model": "graduated", "free": free, "per": per, "tiers": tiers})


def half_even(exact: Fraction, places: int) -> Fraction:
    """Rounding by the book, in rationals: round() of a Fraction is half to even."""
    return Fraction(round(exact * 10**places), 10**places)


def by_brute_force(quantity: Decimal, price: Graduated) -> Fraction:
    """Each tier takes what lies between its bounds."""
    billable = max(Fraction(quantity) - Fraction(price.free), Fraction(0))
    total, lower = Fraction(0), Fraction(0)
    for tier in price.tiers:
        upper = billable if tier.up_to is None else Fraction(tier.up_to)
        inside = max(min(billable, upper) - lower, Fraction(0))
        total += inside * Fraction(tier.unit_price) / Fraction(price.per)
        lower = upper
    return total


@given(quantities, graduated_prices(), st.integers(min_value=0, max_value=6))
def test_graduated_is_the_sum_over_its_tiers(quantity: Decimal, price: Graduated, places: int) -> None:
    line = rate(quantity, price, places)
    exact = by_brute_force(quantity, price)
    assert sum(Fraction(tier.amount) for tier in line.tiers) == exact
    assert Fraction(line.amount) == half_even(exact, places)
    assert Fraction(line.free) + sum(Fraction(tier.quantity) for tier in line.tiers) == Fraction(quantity)


@given(quantities, amounts, amounts, powers, st.integers(min_value=0, max_value=6))
def test_per_unit_is_quantity_times_price(quantity: Decimal, free: Decimal, unit_price: Decimal, per: int, places: int) -> None:
    price = PerUnit.model_validate({"meter": "m", "model": "per_unit", "free": free, "per": per, "unit_price": unit_price})
    exact = max(Fraction(quantity) - Fraction(free), Fraction(0)) * Fraction(unit_price) / per
    assert Fraction(rate(quantity, price, places).amount) == half_even(exact, places)


@given(st.lists(st.integers(min_value=-(10**37), max_value=10**38), min_size=1, max_size=20), graduated_prices())
@settings(max_examples=50)
def test_a_series_of_deltas_rates_as_their_sum(deltas: list[int], price: Graduated) -> None:
    """The charge is a function of the total alone: what came in between leaves no trace, in any order."""
    total = 0
    for delta in deltas:
        total += delta
        running = rate(from_scaled(total, 6), price, 2)
    assert running == rate(from_scaled(sum(reversed(deltas)), 6), price, 2)


TIERED = Graduated.model_validate(
    {
        "meter": "m",
        "model": "graduated",
        "free": "5",
        "tiers": [{"up_to": "10", "unit_price": "1"}, {"up_to": "20", "unit_price": "0.5"}, {"unit_price": "0.1"}],
    }
)


@pytest.mark.parametrize(
    ("quantity", "amount", "tiers"),
    [
        ("-3", "0.00", []),
        ("0", "0.00", []),
        ("5", "0.00", []),
        ("6", "1.00", ["1"]),
        ("14", "9.00", ["9"]),
        ("15", "10.00", ["10"]),
        ("16", "10.50", ["10", "1"]),
        ("25", "15.00", ["10", "10"]),
        ("26", "15.10", ["10", "10", "1"]),
        ("25.000001", "15.00", ["10", "10", "0.000001"]),
    ],
)
def test_the_bounds_of_tiers_exactly(quantity: str, amount: str, tiers: list[str]) -> None:
    line = rate(Decimal(quantity), TIERED, 2)
    assert str(line.amount) == amount
    assert line.free == min(max(Decimal(quantity), Decimal(0)), Decimal(5))
    assert [plain(tier.quantity) for tier in line.tiers] == tiers


@pytest.mark.parametrize(
    ("exact", "rounded"),
    [("0.005", "0.00"), ("0.015", "0.02"), ("0.025", "0.02"), ("0.0250000000000000000000000000000000001", "0.03"), ("2.675", "2.68")],
)
def test_money_is_rounded_half_to_even_once(exact: str, rounded: str) -> None:
    assert str(round_money(Decimal(exact), 2)) == rounded
    price = PerUnit.model_validate({"meter": "m", "model": "per_unit", "unit_price": exact})
    assert str(rate(Decimal(1), price, 2).amount) == rounded


def test_the_sum_of_tiers_is_rounded_and_not_each_tier() -> None:
    tiers = [{"up_to": 1, "unit_price": "0.004"}, {"up_to": 2, "unit_price": "0.004"}, {"unit_price": "0.004"}]
    price = Graduated.model_validate({"meter": "m", "model": "graduated", "tiers": tiers})
    assert str(rate(Decimal(3), price, 2).amount) == "0.01"


def test_nothing_is_rounded_silently() -> None:
    with pytest.raises(Inexact):
        EXACT.divide(Decimal(1), Decimal(3))
    with pytest.raises(Inexact):
        EXACT.add(Decimal(10) ** 20, Decimal("1e-240"))


@pytest.mark.parametrize(
    ("scaled", "scale", "text"), [(0, 0, "0"), (0, 6, "0.000000"), (1234567, 6, "1.234567"), (-5, 2, "-0.05"), (10**38, 0, "1" + "0" * 38)]
)
def test_scaled_integers_are_shown_with_all_their_places(scaled: int, scale: int, text: str) -> None:
    assert scaled_text(scaled, scale) == text


BOOK = """
[[price_books]]
tenant = "demo"
currency = "USD"
[[price_books.versions]]
effective_from = 2026-01-01
[[price_books.versions.prices]]
meter = "requests"
model = "graduated"
dimensions = ["region"]
where = { region = "eu" }
free = "1000000"
per = 1000000
tiers = [ { up_to = 10000000, unit_price = 0.40 }, { unit_price = "0.30" } ]
[[price_books.versions.prices]]
meter = "requests"
model = "per_unit"
unit_price = "0.0000004"
[[price_books.versions]]
effective_from = 2026-03-01
prices = []
"""
METERS = (MeterDefinition("requests", "", "count", 0, 3600, ("region", "zone")), MeterDefinition("daily", "", "sum", 0, 86400, ()))


def parsed(text: str) -> Any:
    return tomllib.loads(text, parse_float=Decimal)["price_books"]


def test_a_book_is_read_as_it_was_written() -> None:
    (book,) = read_books(parsed(BOOK), METERS)
    assert (book.decimal_places, book.timezone) == (2, "UTC")
    price = book.versions[0].prices[0]
    assert isinstance(price, Graduated)
    assert str(price.tiers[0].unit_price) == "0.40"
    assert PriceBook.model_validate_json(book.model_dump_json()) == book
    assert set(MODELS) == {price.model for version in book.versions for price in version.prices}


def test_a_version_governs_months_that_begin_on_or_after_it() -> None:
    (book,) = read_books(parsed(BOOK), METERS)
    found = [book.version_for(Period(label, 0, 0)) for label in ("2025-12", "2026-01", "2026-02", "2026-03", "2027-01")]
    assert [version and version.effective_from for version in found] == [
        None, date(2026, 1, 1), date(2026, 1, 1), date(2026, 3, 1), date(2026, 3, 1)
    ]  # fmt: skip


def test_the_first_price_that_matches_wins() -> None:
    (book,) = read_books(parsed(BOOK), METERS)
    version = book.versions[0]
    for dimensions, position in ((("eu", "a"), 0), (("us", "eu"), 1)):
        found = price_for(version, METERS[0], dimensions)
        assert found is not None
        assert found[0] == position
    assert price_for(version, METERS[1], ()) is None
    assert price_for(None, METERS[0], ("eu", "a")) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"USD"', '"usd"', "price_books[0].currency: 'usd' cannot be used; allowed: three capital letters"),
        ("2026-01-01", "2026-01-02", "versions[0].effective_from: 2026-01-02 cannot be used; allowed: the first day of a month"),
        ("2026-01-01", "9999-12-01", "9999-12-01 cannot be used; allowed: the first day of a month, from 1970 to 9000"),
        ("2026-03-01", "2026-01-01", "price_books[0].versions: "),
        ('"graduated"', '"tiered"', "prices[0].model: 'tiered' cannot be used; allowed: one of per_unit, graduated"),
        ('model = "per_unit"\n', "", "prices[1].model: is missing; allowed: one of per_unit, graduated"),
        ("per = 1000000", "per = 30", "prices[0].per: 30 cannot be used; allowed: a whole number from 1 to 10^18 made of twos and fives"),
        ("0.40", "-0.40", "tiers[0].unit_price: -0.40 cannot be used; allowed: a number of at least 0"),
        ('"0.30"', '"1e3"', "tiers[1].unit_price: '1e3' cannot be used"),
        ("up_to = 10000000", "up_to = 0", "prices[0].tiers: "),
        ('{ unit_price = "0.30" }', '{ up_to = 5, unit_price = "0.30" }', "the last tier has no up_to"),
        ("free =", "fee =", "prices[0].fee: is no setting here; allowed: "),
        ('["region"]', '["regoin"]', "prices[0].dimensions: meter 'requests' has no dimension 'regoin'; allowed: region, zone"),
        ('where = { region = "eu" }', 'where = { area = "eu" }', "prices[0].where: meter 'requests' has no dimension 'area'"),
        ('where = { region = "eu" }', 'where = { region = "e\\u0000u" }', "where.region: 'e\\x00u' cannot be used; allowed: text without"),
        ('"requests"', '"reqests"', "prices[0].meter: no meter is called 'reqests'; allowed: daily, requests"),
        ('"demo"', '""', "price_books[0].tenant: '' cannot be used; allowed: text that is not empty"),
        ("2026-03-01", '2026-03-01\ntimezone = "Asia/Kolkata"', "timezone: is no setting here; allowed: effective_from, prices"),
        ('"USD"', '"USD"\ntimezone = "Asia/Kolkata"', "months in Asia/Kolkata begin inside the 3600 s windows of meter 'requests'"),
        ('"USD"', '"USD"\ntimezone = "Mars/Olympus"', "price_books[0].timezone: 'Mars/Olympus' cannot be used; allowed: an IANA name"),
        ('"USD"', '"USD"\ndecimal_places = 13', "price_books[0].decimal_places: 13 cannot be used; allowed: a whole number from 0 to 12"),
    ],
)  # fmt: skip
def test_a_wrong_book_is_told_the_place_and_what_is_allowed(old: str, new: str, said: str) -> None:
    assert old in BOOK
    with pytest.raises(BadBooks) as refused:
        read_books(parsed(BOOK.replace(old, new, 1) if old != '"requests"' else BOOK.replace(old, new)), METERS)
    assert said in str(refused.value)


def test_what_is_stored_of_a_book_stays_as_it_is() -> None:
    """Books are told apart by these bytes: others would make every book a new one, and charge months again."""
    (book,) = read_books(parsed(BOOK), METERS)
    assert book.model_dump_json().startswith(
        '{"tenant":"demo","currency":"USD","decimal_places":2,"timezone":"UTC","versions":[{"effective_from":"2026-01-01","prices":'
        '[{"meter":"requests","dimensions":["region"],"where":{"region":"eu"},"free":"1000000","per":"1000000","model":"graduated","tiers":'
    )


def test_each_model_knows_its_name() -> None:
    (book,) = read_books(parsed(BOOK), METERS)
    assert [model_of(price) for price in book.versions[0].prices] == ["graduated", "per_unit"]


@pytest.mark.parametrize("per", ["0", "3", "60", "3600", "1.5", "0.5", "-2", str(2**60), str(3 * 10**20), "1" + "0" * 40])
def test_a_unit_that_does_not_divide_exactly_is_refused(per: str) -> None:
    with pytest.raises(ValidationError):
        PerUnit.model_validate({"meter": "m", "model": "per_unit", "per": per, "unit_price": "1"})


@pytest.mark.parametrize("scale", [0, 18])
def test_the_largest_sums_stay_exact(scale: int) -> None:
    """As many digits as there can be, over the `per` that adds most decimal places."""
    small = "0." + "3" * 38
    tiers = [{"up_to": small, "unit_price": small}, {"unit_price": "9" * 40}]
    price = Graduated.model_validate({"meter": "m", "model": "graduated", "free": small, "per": str(2**59), "tiers": tiers})
    quantity = from_scaled(int("9" * 60), scale)
    line = rate(quantity, price, 12)
    exact = by_brute_force(quantity, price)
    assert sum(Fraction(tier.amount) for tier in line.tiers) == exact and Fraction(line.amount) == half_even(exact, 12)


def test_a_price_that_is_never_used_is_named() -> None:
    wide = '[[price_books.versions.prices]]\nmeter = "requests"\nmodel = "per_unit"\nunit_price = "1"\n'
    head, *rest = BOOK.split("[[price_books.versions.prices]]")
    with pytest.raises(BadBooks) as refused:
        read_books(parsed("[[price_books.versions.prices]]".join([head + wide, *rest])), METERS)
    (problem, *_) = refused.value.problems
    assert str(problem).startswith("price_books[0].versions[0].prices[1]: is never used: prices[0] matches all that it matches")
    narrow = {"meter": "requests", "model": "per_unit", "unit_price": "1", "where": {"region": "eu"}}
    narrower = {**narrow, "where": {"region": "eu", "zone": "a"}}

    def problems(*prices: dict[str, Any]) -> int:
        book = {"tenant": "demo", "currency": "USD", "versions": [{"effective_from": "2026-01-01", "prices": list(prices)}]}
        try:
            read_books([book], METERS)
        except BadBooks as bad:
            return len(bad.problems)
        return 0

    us = {**narrow, "where": {"region": "us"}}
    assert (problems(narrower, narrow), problems(narrow, narrower), problems(narrow, us), problems(narrow, narrow)) == (0, 1, 0, 1)


def test_a_float_is_refused_in_every_place() -> None:
    with pytest.raises(BadBooks) as refused:
        read_books(tomllib.loads(BOOK)["price_books"])
    assert "tiers[0].unit_price: the float 0.4 cannot be used" in str(refused.value)


def test_a_tenant_has_one_book() -> None:
    with pytest.raises(BadBooks) as refused:
        read_books(parsed(BOOK) * 2)
    assert "price_books[1].tenant: tenant 'demo' has a book already" in str(refused.value)
