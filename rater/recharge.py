"""A month charged again because an operator says so, final or not.

Belongs here: what each subject's total would become, and making it so. Must not know: why; how lines are computed (rerate.py).
Everything happens under the exclusive lock of the tenant's row, which no rater shares meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

from rater.period import Period
from rater.prices.money import EXACT, ZERO
from rater.pricing import BookInForce, ChargeLine
from rater.rerate import TIMEOUT_S, lines_from_usage, replace_lines, total_of
from rater.transaction import CHARGES, Connection, book_in_force


class NotCharged(Exception):
    """There is no such month to charge. The message is one sentence for the operator."""


class Total(NamedTuple):
    amount: Decimal  # of what is priced
    unpriced: bool  # some of it has no price


class Changed(NamedTuple):
    """A subject whose total is another one; None: it has no line."""

    subject: str
    before: Total | None
    after: Total | None


class Recharge(NamedTuple):
    before_currency: str
    after_currency: str
    before: Decimal
    after: Decimal
    changed: list[Changed]  # by subject


async def recharge(connection: Connection, tenant_name: str, label: str, *, apply: bool) -> Recharge:
    """Charge a month by the tenant's book in force, within the caller's transaction; without `apply` only say what that would change.

    Raises NotCharged.
    """
    row = await connection.fetchrow(CHARGES["tenant_lock_alone"], tenant_name)
    if row is None:
        raise NotCharged(f"Nothing of a tenant {tenant_name!r} is rated: say its name as it stands under [[tenants]].")
    tenant = row["tenant"]
    if row["book"] is None:
        raise NotCharged(f"Tenant {tenant_name!r} has no price book in force: put one into the configuration and let the rater read it.")
    months = {month["period"]: month for month in await connection.fetch(CHARGES["periods_of_tenant"], tenant)}
    if label not in months:
        raise NotCharged(f"Tenant {tenant_name!r} has no usage in {label}; it has some in: {', '.join(months) or 'no month'}.")
    books: dict[int | None, BookInForce] = {}
    old = await book_in_force(connection, books, months[label]["book"])
    new = await book_in_force(connection, books, row["book"])
    assert old.book is not None and new.book is not None, "the first book of a tenant charges all its months"
    assert old.zone == new.zone, "no book comes into force that has other months"
    period = Period(label, months[label]["start_s"], months[label]["end_s"])
    lines, quantities = await lines_from_usage(connection, tenant, tenant_name, period, new)
    rows = await connection.fetch(CHARGES["totals_of_period"], tenant, label, timeout=TIMEOUT_S)
    before = {found["subject"]: Total(Decimal(found["total"]), found["unpriced"]) for found in rows}
    after = totals_of(lines.values(), quantities)
    if apply:
        await connection.execute(CHARGES["period_set_book"], tenant, label, new.number)
        await replace_lines(connection, tenant, period, lines, quantities)
    return Recharge(
        old.book.currency,
        new.book.currency,
        total_of(one.amount for one in before.values()),
        total_of(one.amount for one in after.values()),
        differing(before, after, same_currency=old.book.currency == new.book.currency),
    )


def totals_of(lines: Iterable[ChargeLine], quantities: Mapping[str, int]) -> dict[str, Total]:
    """By subject."""
    totals: dict[str, Total] = {}
    for line in lines:
        amount, unpriced = totals.get(line.subject, Total(ZERO, False))
        charge = line.amount(quantities[line.key])
        totals[line.subject] = Total(EXACT.add(amount, charge or ZERO), unpriced or charge is None)
    return totals


def differing(before: Mapping[str, Total], after: Mapping[str, Total], *, same_currency: bool) -> list[Changed]:
    """In another currency the same digits are another total."""
    changed = [Changed(one, before.get(one), after.get(one)) for one in sorted(before.keys() | after.keys())]
    return [one for one in changed if one.before != one.after or not same_currency]
