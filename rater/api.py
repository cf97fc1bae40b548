"""The usage and charges API, for whichever HTTP server mounts it: a tenant's name and query strings in, a status and JSON bytes out.

Belongs here: from values to JSON, from errors to problem+json. Must not know: HTTP servers, credentials (the caller decides the tenant).

Quantities and amounts are strings of plain decimal digits, never JSON numbers. `as_of`: every counter record that stood in the log at that
time is in the numbers, but for those that Kafka deleted before they were rated, of which the rater's log tells; null until that was so
once. It stands still while any record is parked, since that one's usage is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import asyncpg
import msgspec

from buffer.counters import MeterDefinition
from rater import query as queries
from rater.period import is_closed
from rater.postgres import FAILURES
from rater.prices.money import EXACT, ZERO, plain, scaled_text
from rater.prices.price import Line, Tier
from rater.prices.registry import model_of
from rater.questions import (
    USAGE_PARAMETERS,
    BadQuery,
    UsageQuestion,
    charges_question,
    instant_text,
    only,
    required,
    usage_question,
)
from rater.turns import in_turns

log = logging.getLogger(__name__)

MOST_ROWS = 50_000
RETRY_AFTER_S = 5  # what a 503 should carry

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def content_type(self) -> str:
        return "application/json" if self.status < 400 else "application/problem+json"


class Api:
    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        clock_us: Callable[[], int],
        late_s: int,
        meters: Callable[[], Iterable[MeterDefinition]] = tuple,
    ) -> None:
        """`late_s` as for Rater. `meters`: the catalogue, so that a meter without any usage yet is known too."""
        self._pool = pool
        self._clock_us = clock_us
        self._late_s = late_s
        self._meters = meters

    async def usage(self, tenant: str, query: Mapping[str, str]) -> Answer:
        """GET /v1/usage: meter, subject, from, to, window, group_by, timezone."""
        return await self._answered(tenant, self._usage(tenant, query))

    async def charges(self, tenant: str, query: Mapping[str, str]) -> Answer:
        """GET /v1/charges: period, and subject or after and limit."""
        return await self._answered(tenant, self._charges(tenant, query))

    async def ledger(self, tenant: str | None, query: Mapping[str, str]) -> Answer:
        """The rated part of GET /v1/ledger, of one tenant or (None, for an operator) of all, then with the chains of every writer."""
        return await self._answered(tenant, self._ledger(tenant, query))

    async def _answered(self, tenant: str | None, work: Any) -> Answer:
        try:
            return Answer(200, _encode(await work))
        except BadQuery as error:
            return problem(400, "Bad query", str(error))
        except queries.WrongLine as error:
            log.error("tenant %r: %s: see `parshall audit`", tenant, error)
            return problem(500, "Wrong charge", f"{error}: `parshall audit` says more, and nothing is answered until it is mended")
        except FAILURES as error:
            log.warning("a query failed: %s: %s", type(error).__name__, error)
            return problem(503, "Not now", f"the database cannot be asked now; ask again in {RETRY_AFTER_S} seconds")

    async def _usage(self, tenant: str, query: Mapping[str, str]) -> dict[str, Any]:
        only(query, USAGE_PARAMETERS)
        number, meter = await self._meter(required(query, "meter", "the name of a meter"))
        asked = usage_question(query, meter, self._clock_us() // 1_000_000)
        as_of_us = await queries.as_of_us(self._pool)  # before the numbers: these may be newer, never older
        rows: Sequence[asyncpg.Record] = ()
        if number is not None:
            rows = await queries.usage(self._pool, tenant, number, asked, MOST_ROWS + 1)
        if len(rows) > MOST_ROWS:
            raise BadQuery(
                "from",
                f"the answer has more than {MOST_ROWS} rows",
                "a shorter time, larger windows, one subject, or fewer names in group_by",
            )
        return {"as_of": _time(as_of_us), "data": _array(await _encoded(rows, partial(_of_window, asked)))}

    async def _meter(self, name: str) -> tuple[int | None, MeterDefinition]:
        found = await queries.meter_named(self._pool, name)
        if found is not None:
            return found
        catalogue = {meter.name: meter for meter in self._meters()}
        if name in catalogue:
            return None, catalogue[name]
        known = sorted(catalogue.keys() | set(await queries.meter_names(self._pool)))
        raise BadQuery("meter", f"no meter is called {name!r}", ", ".join(known) or "none: no usage is rated yet")

    async def _charges(self, tenant: str, query: Mapping[str, str]) -> dict[str, Any]:
        asked = charges_question(query, self._clock_us() // 1_000_000)
        as_of_us = await queries.as_of_us(self._pool)
        try:
            found = await queries.charges(self._pool, tenant, asked, MOST_ROWS)
        except queries.TooMany:
            raise BadQuery("limit", f"the answer has more than {MOST_ROWS} lines", "fewer subjects at a time") from None
        zone = found.book.zone if found.book else ZoneInfo("UTC")
        head = {
            "currency": found.book.currency if found.book else None,
            "period": asked.period,
            "period_start": instant_text(found.period.start_s, zone),
            "period_end": instant_text(found.period.end_s, zone),
            "status": "final" if is_closed(found.period.end_s, (as_of_us or 0) // 1_000_000, self._late_s) else "open",
            "as_of": _time(as_of_us),
        }
        places = found.book.decimal_places if found.book else 0
        subjects = await _of_subjects(found.rows, places)
        if asked.subject is not None:
            return head | subjects[0]
        return head | {"subjects": subjects, "next": subjects[-1]["subject"] if found.more else None}

    async def _ledger(self, tenant: str | None, query: Mapping[str, str]) -> dict[str, Any]:
        only(query, ())
        as_of_us = await queries.as_of_us(self._pool)  # before the numbers, as above
        tenants: dict[str, dict[str, Any]] = {tenant: _no_events()} if tenant is not None else {}
        for tally in await queries.tallies(self._pool, tenant):
            mine = tenants.setdefault(tally.tenant, _no_events())
            _count(mine, tally.verdict, tally.events)
            _count(mine["writers"].setdefault(tally.writer.hex(), _no_events_of_writer()), tally.verdict, tally.events)
        answer: dict[str, Any] = {"as_of": _time(as_of_us), "tenants": tenants}
        if tenant is None:
            answer["chains"] = [
                {
                    "writer": chain.writer.hex(),
                    "partition": chain.partition,
                    "last_n": chain.last_n,
                    "held": chain.held,
                    "parked": chain.parked,
                }
                for chain in await queries.chains(self._pool)
            ]
        return answer


def problem(status: int, title: str, detail: str) -> Answer:
    return Answer(status, _encode({"type": "about:blank", "title": title, "status": status, "detail": detail}))


def _no_events_of_writer() -> dict[str, Any]:
    return {"received": 0, "accepted": 0, "duplicate": 0, "rejected": 0, "rated": 0, "rejections": {}}


def _no_events() -> dict[str, Any]:
    return {**_no_events_of_writer(), "writers": {}}


def _count(into: dict[str, Any], verdict: str, events: int) -> None:
    """Every verdict that has no name of its own is a rejection code."""
    if verdict in ("received", "accepted", "duplicate"):
        into[verdict] += events
        if verdict == "accepted":
            into["rated"] += events
    else:
        into["rejected"] += events
        into["rejections"][verdict] = into["rejections"].get(verdict, 0) + events


async def _encoded(rows: Sequence[T], item: Callable[[T], Mapping[str, Any]]) -> list[bytes]:
    """What JSON each row becomes."""
    return [_encode(item(row)) async for some in in_turns(rows) for row in some]


def _array(encoded: Iterable[bytes]) -> msgspec.Raw:
    return msgspec.Raw(b"[" + b",".join(encoded) + b"]")


def _of_window(asked: UsageQuestion, found: asyncpg.Record) -> dict[str, Any]:
    row = queries.usage_row(asked, found)
    return {
        "window_start": instant_text(row.start_s, asked.zone),
        "window_end": instant_text(row.end_s, asked.zone),
        "subject": row.subject if asked.subject is None else asked.subject,
        "dimensions": row.dimensions,
        "value": scaled_text(row.value, asked.meter.scale),
        "events": row.events,
    }


async def _of_subjects(rows: Mapping[str, Sequence[queries.ChargeRow]], places: int) -> list[dict[str, Any]]:
    """In turns over all lines of all subjects: each may have only a few."""
    lines = iter(await _encoded([row for its in rows.values() for row in its], partial(_line, places)))
    return [_of_subject(subject, its, places, islice(lines, len(its))) for subject, its in rows.items()]


def _of_subject(subject: str, rows: Sequence[queries.ChargeRow], places: int, lines: Iterable[bytes]) -> dict[str, Any]:
    total = ZERO
    for row in rows:
        total = EXACT.add(total, row.amount or ZERO)
    return {
        "subject": subject,
        "total": _money(total, places),
        "unpriced": any(row.amount is None for row in rows),
        "lines": _array(lines),
    }


def _line(places: int, row: queries.ChargeRow) -> dict[str, Any]:
    line: dict[str, Any] = {
        "meter": row.meter,
        "dimensions": row.dimensions,
        "quantity": plain(row.quantity),
        "amount": None if row.amount is None else _money(row.amount, places),
    }
    if row.line is None:
        return {**line, "unpriced": True, "tiers": []}
    charged_by = row.line.price
    price = {"price_from": f"{row.price_from}", "where": charged_by.where, "model": model_of(charged_by), "per": plain(charged_by.per)}
    return {**line, **price, "free": plain(row.line.free), "tiers": _tiers(row.line)}


def _tiers(line: Line) -> list[dict[str, Any]]:
    return [_tier(tier) for tier in line.tiers]


def _tier(tier: Tier) -> dict[str, Any]:
    """The amounts of tiers are exact; the line's is their sum, rounded once."""
    return {
        "up_to": None if tier.up_to is None else plain(tier.up_to),
        "quantity": plain(tier.quantity),
        "unit_price": format(tier.unit_price, "f"),
        "amount": plain(tier.amount),
    }


def _money(amount: Decimal, places: int) -> str:
    """Already rounded: this only shows all places."""
    return format(amount.quantize(EXACT.scaleb(Decimal(1), -places), context=EXACT), "f")


def _time(instant_us: int | None) -> str | None:
    if instant_us is None:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
