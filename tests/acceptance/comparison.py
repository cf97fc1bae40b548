"""Holds what a service says against what the oracle says, and names every difference.

Belongs here: asking for all usage, all charges and the ledger, and comparing texts exactly. Must not know: how the service was run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.acceptance.edge import Api
from tests.oracle import charges as oracle_charges
from tests.oracle.charges import Line, LineKey
from tests.oracle.config import Meter
from tests.oracle.outcome import Outcome
from tests.oracle.usage import Key, Usage, regroup, window_bounds

MOST_SHOWN = 20
DAYS_A_QUERY = 3  # hours of so many days in one answer: the number of rows in an answer is bounded


class Differences(list[str]):
    """One sentence each; `kinds` says of what: usage, charges, ledger. `missing_events` and `extra_events`: of hours, over all meters."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()
        self.missing_events = 0
        self.extra_events = 0

    def note(self, kind: str, place: str, expected: object, found: object) -> None:
        self.kinds[kind] += 1
        if self.kinds[kind] <= MOST_SHOWN:
            self.append(f"{kind} {place}: expected {expected}, found {found}")


async def compare(outcome: Outcome, apis: Mapping[str, Api]) -> Differences:
    """Usage and charges. The ledger is compared by `compare_ledger`, since what may be asked of it depends on the run."""
    differences = Differences()
    for tenant, api in apis.items():
        for meter in outcome.config.meters:
            await _compare_usage(outcome, tenant, meter, api, differences)
        await _compare_charges(outcome, tenant, api, differences)
    return differences


def compare_ledger(outcome: Outcome, ledgers: Mapping[str, dict[str, Any]], rejected: Mapping[str, Counter[str]]) -> Differences:
    """Everything was answered, nothing is on its way: the ledger is exact. `rejected`: by code, as answered to the senders."""
    differences = Differences()
    for tenant, expected in outcome.ledger.tenants.items():
        found = ledgers[tenant]
        wanted = {
            "received": expected.received,
            "accepted": expected.accepted,
            "duplicate": expected.duplicate,
            "rejected": sum(expected.rejected.values()),
            "unanswered": 0,
            "flushed": expected.accepted,
            "buffered": 0,
            "rated": expected.accepted,
        }
        for name, number in wanted.items():
            if found[name] != number:
                differences.note("ledger", f"{tenant} {name}", number, found[name])
        if rejected.get(tenant, Counter()) != expected.rejected:
            differences.note("ledger", f"{tenant} rejections", dict(expected.rejected), dict(rejected[tenant]))
    return differences


# ---- usage


async def _compare_usage(outcome: Outcome, tenant: str, meter: Meter, api: Api, differences: Differences) -> None:
    book = outcome.config.books.get(tenant)
    zone = book.timezone if book else "UTC"
    first_names = tuple(meter.dimensions)[:1]
    for window, timezone, names in (("hour", "UTC", tuple(meter.dimensions)), ("day", zone, first_names), ("month", zone, ())):
        expected = regroup(outcome.usage, meter, tenant, window, timezone, names)
        found: dict[Key, tuple[str, int]] = {}
        for start_s, end_s in _ranges(expected, window, timezone):
            answer = await api.get(
                "/v1/usage",
                meter=meter.name,
                window=window,
                timezone=timezone,
                group_by=",".join(("subject", *names)),
                **{"from": _instant(start_s), "to": _instant(end_s)},
            )
            found.update(_rows(answer["data"], tenant, meter, names))
        _compare_cells(expected, found, f"by {window} in {timezone}", meter, differences)
        if window == "hour":
            _count_events(expected, found, differences)


def _ranges(expected: Usage, window: str, timezone: str) -> Iterator[tuple[int, int]]:
    """[start, end) of each query: all windows that must have usage, and some before and after that must have none."""
    if not expected:
        return
    first_s, last_s = min(key.start_s for key in expected), max(key.start_s for key in expected)
    if window == "hour":
        step_s = DAYS_A_QUERY * 86400
        start_s = first_s - first_s % 86400 - 86400
        while start_s <= last_s + 86400:
            yield start_s, start_s + step_s
            start_s += step_s
    else:
        yield window_bounds(first_s - 1, window, timezone)[0], window_bounds(last_s, window, timezone)[1]


def _rows(data: list[dict[str, Any]], tenant: str, meter: Meter, names: tuple[str, ...]) -> Iterator[tuple[Key, tuple[str, int]]]:
    for row in data:
        dimensions = tuple((name, row["dimensions"][name]) for name in meter.dimensions if name in names)
        assert set(row["dimensions"]) == set(names), row
        yield Key(tenant, meter.name, row["subject"], dimensions, _second(row["window_start"])), (row["value"], row["events"])


def _compare_cells(expected: Usage, found: dict[Key, tuple[str, int]], how: str, meter: Meter, differences: Differences) -> None:
    for key in expected.keys() | found.keys():
        cell = expected.get(key)
        wanted = None if cell is None else (scaled_text(cell.value, meter.scale), cell.events)
        if found.get(key) != wanted:
            differences.note("usage", f"{how} of {key}", wanted, found.get(key))


def _count_events(expected: Usage, found: Mapping[Key, tuple[str, int]], differences: Differences) -> None:
    for key in expected.keys() | found.keys():
        too_many = found.get(key, ("", 0))[1] - (expected[key].events if key in expected else 0)
        differences.extra_events += max(0, too_many)
        differences.missing_events += max(0, -too_many)


def scaled_text(value: int, scale: int) -> str:
    """12345 with scale 2 -> "123.45"."""
    digits = str(abs(value)).rjust(scale + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-scale]}.{digits[-scale:]}" if scale else digits)


def _instant(second: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _second(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


# ---- charges


async def _compare_charges(outcome: Outcome, tenant: str, api: Api, differences: Differences) -> None:
    mine = {key: line for key, line in outcome.charges.items() if key.tenant == tenant}
    book = outcome.config.books[tenant]
    subjects, periods = {key.subject for key in mine}, {key.period for key in mine}
    for subject in sorted(subjects):
        for period in sorted(periods):
            place = f"of {tenant} {subject!r} in {period}"
            answer = await api.get("/v1/charges", subject=subject, period=period)
            total = oracle_charges.total(outcome.charges, tenant, subject, period)
            expected = sorted(_line_texts(key, line) for key, line in mine.items() if (key.subject, key.period) == (subject, period))
            found = sorted(_answer_texts(line) for line in answer["lines"])
            for wanted in expected:
                if wanted not in found:
                    differences.note("charges", place, wanted, "no such line")
            for line in found:
                if line not in expected:
                    differences.note("charges", place, "no such line", line)
            if len(expected) != len(found):
                differences.note("charges", f"{place}: lines", len(expected), len(found))
            if (answer["currency"], Decimal(answer["total"])) != (book.currency, total):
                differences.note("charges", f"{place}: total", f"{total} {book.currency}", f"{answer['total']} {answer['currency']}")
            assert len(answer["total"].partition(".")[2]) == book.decimal_places, answer["total"]


LineTexts = tuple[str, tuple[tuple[str, str], ...], Decimal, str, tuple[tuple[str, Decimal, Decimal, Decimal], ...]]


def _line_texts(key: LineKey, line: Line) -> LineTexts:
    tiers = tuple((str(tier.up_to), tier.quantity, tier.unit_price, tier.amount) for tier in line.tiers)
    return key.meter, tuple(sorted(key.dimensions)), line.quantity, "unpriced" if line.amount is None else str(line.amount), tiers


def _answer_texts(line: dict[str, Any]) -> LineTexts:
    assert all(isinstance(line[name], str) for name in ("quantity",)), line
    assert (line["amount"] is None) == line.get("unpriced", False), line
    tiers = tuple(
        (str(tier["up_to"] and Decimal(tier["up_to"])), Decimal(tier["quantity"]), Decimal(tier["unit_price"]), Decimal(tier["amount"]))
        for tier in line["tiers"]
    )
    amount = "unpriced" if line["amount"] is None else line["amount"]
    return line["meter"], tuple(sorted(line["dimensions"].items())), Decimal(line["quantity"]), amount, tiers
