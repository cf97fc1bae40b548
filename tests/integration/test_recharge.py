"""`parshall recharge` over a real PostgreSQL: a final month whose prices were wrong."""

from __future__ import annotations

import json

import asyncpg

from rater.postgres import Ledger
from tests.integration.rating import PEAK, REQUESTS, Count, Writer, parshall
from tests.integration.test_rater import FEBRUARY, JANUARY, LATE_S, LOG, at, book, peak_at, total

MARCH = FEBRUARY + 28 * 86400


def peaks(start_s: int, **subjects: int) -> list[Count]:
    return [(PEAK, "demo", subject, start_s, (), value, 1) for subject, value in subjects.items()]


async def test_a_final_month_is_charged_by_the_book_in_force(ledger: Ledger, pool: asyncpg.Pool, database: str) -> None:
    writer = Writer(1)
    await ledger.put_book(peak_at("0.5"), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(writer.flush([*peaks(JANUARY, acme=8, zero=0), *peaks(FEBRUARY, acme=2)])))
    assert await ledger.put_book(peak_at("2"), now_s=MARCH + LATE_S, late_s=LATE_S) == ([], ["2026-01", "2026-02"])

    given = ("2026-01", "--tenant", "demo")
    told = "acme: 4.00 -> 16.00\n2026-01 would be charged again: 4.00 USD -> 16.00 USD. Nothing has changed; with --yes it does.\n"
    assert parshall(database, "recharge", *given) == (0, told, "")
    assert await total(pool, "2026-01") == "4.00", "without --yes nothing changes"
    assert parshall(database, "recharge", *given, "--yes") == (
        0,
        "acme: 4.00 -> 16.00\n2026-01 is charged again: 4.00 USD -> 16.00 USD.\n",
        "",
    )
    assert [await total(pool, month) for month in ("2026-01", "2026-02")] == ["16.00", "1.00"], "the other month stays as it was"
    assert parshall(database, "recharge", *given, "--yes")[:2] == (
        0,
        "2026-01 comes to 16.00 USD by the price book in force, as it did: no total changes.\n",
    )

    await ledger.apply(LOG, at(writer.flush(peaks(JANUARY, acme=9))))
    assert await total(pool, "2026-01") == "18.00", "what comes after all is charged as the month is now"
    assert await ledger.check_charges("demo") == []


async def test_lines_of_another_shape_and_currency(ledger: Ledger, database: str) -> None:
    """By region before, all together and without a price for peaks now: what a subject has lost and won is told."""
    counts: list[Count] = [(REQUESTS, "demo", "acme", JANUARY, (region, "a"), 0, 50) for region in ("eu", "us")]
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush([*counts, *peaks(JANUARY, peak=3)])))
    prices = [{"meter": "requests", "model": "per_unit", "unit_price": "0.001"}]
    changed = book(versions=[{"effective_from": "2025-01-01", "prices": prices}], currency="EUR", decimal_places=3)
    await ledger.put_book(changed, now_s=MARCH, late_s=LATE_S)
    for applied in (False, True):
        code, told, _ = parshall(database, "recharge", "2026-01", "--tenant", "demo", "--json", *(["--yes"] if applied else []))
        assert code == 0
        assert json.loads(told) == {
            "tenant": "demo",
            "period": "2026-01",
            "applied": applied,
            "before": {"currency": "USD", "total": "4.90"},
            "after": {"currency": "EUR", "total": "0.100"},
            "subjects": [
                {"subject": "acme", "before": {"total": "3.40", "unpriced": False}, "after": {"total": "0.100", "unpriced": False}},
                {"subject": "peak", "before": {"total": "1.50", "unpriced": False}, "after": {"total": "0", "unpriced": True}},
            ],
        }
    assert await ledger.check_charges("demo") == []


async def test_what_has_no_price_is_told_whatever_else_the_subject_has(ledger: Ledger, database: str) -> None:
    """Before and after; namesakes of another tenant are left alone."""
    names = [f"customer {number}" for number in range(8)]  # so many that what has a price comes first of some, and last of others
    await ledger.put_book(peak_at("0.5"), now_s=JANUARY, late_s=LATE_S)
    await ledger.put_book(peak_at("0.5", tenant="other"), now_s=JANUARY, late_s=LATE_S)
    requests: list[Count] = [(REQUESTS, tenant, name, JANUARY, ("eu", "a"), 0, 50) for tenant in ("demo", "other") for name in names]
    await ledger.apply(LOG, at(Writer(1).flush([*peaks(JANUARY, **dict.fromkeys(names, 3), zero=1), *requests])))
    await ledger.put_book(peak_at("2"), now_s=MARCH, late_s=LATE_S)
    code, told, _ = parshall(database, "recharge", "2026-01", "--tenant", "demo", "--yes")
    some_unpriced = [f"{name}: 1.50, some of it unpriced -> 6.00, some of it unpriced" for name in names]
    assert (code, told.splitlines()[:-1]) == (0, [*some_unpriced, "zero: 0.50 -> 2.00"])
    assert await ledger.check_charges("demo") == await ledger.check_charges("other") == []


async def test_the_same_digits_in_another_currency_are_another_total(ledger: Ledger, database: str) -> None:
    forged = "acme: 4.00 USD -> 9.00 EUR\nzoe\x1b[2K"
    await ledger.put_book(peak_at("0.5"), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(Writer(1).flush(peaks(JANUARY, acme=8, **{forged: 2}))))
    await ledger.put_book(peak_at("0.5", currency="EUR"), now_s=MARCH, late_s=LATE_S)
    assert parshall(database, "recharge", "2026-01", "--tenant", "demo", "--yes") == (
        0,
        "acme: 4.00 USD -> 4.00 EUR\n"
        '"acme: 4.00 USD -> 9.00 EUR\\nzoe\\u001b[2K": 1.00 USD -> 1.00 EUR\n'
        "2026-01 is charged again: 5.00 USD -> 5.00 EUR.\n",
        "",
    )


async def test_what_cannot_be_charged_again(ledger: Ledger, database: str) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(peaks(JANUARY, acme=8))))
    for month, tenant, why in (
        ("January", "demo", "January is no month; allowed: a month as YYYY-MM"),
        ("2026-01", "nobody", "Nothing of a tenant 'nobody' is rated"),
        ("2026-01", "demo", "has no price book in force"),
    ):
        code, told, errors = parshall(database, "recharge", month, "--tenant", tenant, "--yes")
        assert (code, told) == (2, "") and why in errors, errors
    await ledger.put_book(peak_at("1"), now_s=JANUARY, late_s=LATE_S)
    code, _, errors = parshall(database, "recharge", "2026-02", "--tenant", "demo")
    assert code == 2 and "has no usage in 2026-02; it has some in: 2026-01." in errors
