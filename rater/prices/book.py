"""Price books: the `[[price_books]]` of the configuration, checked, and which price governs which usage.

Pure. Belongs here: the models, the checks with their messages, the choice of version and price. Must not know: files, databases, usage.

TOML is to be parsed with `parse_float=Decimal`. One book a tenant; a version governs whole months: the latest one whose `effective_from`
is not after the month's first day. Within a version the first price that matches a counter wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from buffer.counters import MeterDefinition
from rater.period import FIRST_YEAR, LAST_YEAR, YEARS_AHEAD, Period, misfit, zone_named
from rater.prices.price import Price
from rater.prices.registry import MODELS, PRICE_FIELDS, AnyPrice

MOST_DECIMAL_PLACES = 12
SECTION = "price_books"


class BookProblem(NamedTuple):
    """One thing wrong with the price books."""

    path: tuple[str | int, ...]  # ("price_books", 0, "versions", 1, "prices", 0, "per")
    wrong: str
    allowed: str

    @property
    def setting(self) -> str:
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text

    def __str__(self) -> str:
        return f"{self.setting}: {self.wrong}" + (f"; allowed: {self.allowed}" if self.allowed else "")


class BadBooks(Exception):
    def __init__(self, problems: Sequence[BookProblem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def _currency(text: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", text):
        raise ValueError('three capital letters, as in "USD"')
    return text


def _zone(text: str) -> str:
    try:
        zone_named(text)
    except ValueError:
        raise ValueError("an IANA name, as in UTC, Europe/Berlin or America/New_York") from None
    return text


def _first_of_month(given: object) -> date:
    allowed = f"the first day of a month, from {FIRST_YEAR} to {LAST_YEAR}, as in 2026-01-01"
    if isinstance(given, str):
        try:
            given = date.fromisoformat(given)
        except ValueError:
            raise ValueError(allowed) from None
    if not isinstance(given, date) or isinstance(given, datetime) or given.day != 1 or not FIRST_YEAR <= given.year <= LAST_YEAR:
        raise ValueError(allowed)
    return given


class PriceVersion(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    effective_from: Annotated[date, BeforeValidator(_first_of_month)]
    prices: tuple[AnyPrice, ...] = ()


def _rising(versions: tuple[PriceVersion, ...]) -> tuple[PriceVersion, ...]:
    if not versions:
        raise ValueError("at least one version")
    for earlier, later in pairwise(versions):
        if later.effective_from <= earlier.effective_from:
            raise ValueError(
                f"versions in the order of effective_from, each month once ({later.effective_from} follows {earlier.effective_from})"
            )
    return versions


class PriceBook(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: str = Field(min_length=1)
    currency: Annotated[str, AfterValidator(_currency)]
    decimal_places: int = Field(2, ge=0, le=MOST_DECIMAL_PLACES, strict=True)
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    versions: Annotated[tuple[PriceVersion, ...], AfterValidator(_rising)]

    @cached_property
    def zone(self) -> ZoneInfo:
        return zone_named(self.timezone)

    def version_for(self, period: Period) -> PriceVersion | None:
        """The version that governs a month; None: it lies before the first."""
        governing = None
        for version in self.versions:
            if version.effective_from <= period.first_day:
                governing = version
        return governing


def price_for(version: PriceVersion | None, meter: MeterDefinition, dimensions: Sequence[str]) -> tuple[int, Price] | None:
    """(position in the version, price) of the first price that matches a counter; None: this usage is unpriced."""
    for position, price in enumerate(version.prices if version else ()):
        if price.meter == meter.name and price.matches(dict(zip(meter.dimensions, dimensions, strict=True))):
            return position, price
    return None


def read_books(raw: object, meters: Iterable[MeterDefinition] | None = None) -> tuple[PriceBook, ...]:
    """The list of tables as TOML gives it -> the books. Raises BadBooks with everything wrong.

    With `meters` (the catalogue) the prices are also held against it; without, only against themselves.
    """
    if not isinstance(raw, list | tuple):
        raise BadBooks([BookProblem((SECTION,), "is not a list of tables", f"[[{SECTION}]]")])
    books, problems = [], []
    for index, table in enumerate(raw):
        try:
            books.append((index, PriceBook.model_validate(table)))
        except ValidationError as error:
            problems += [_problem((SECTION, index), table, detail) for detail in error.errors(include_url=False)]
    problems += _repeated_tenants(books)
    problems += _covered_prices(books)
    if meters is not None:
        problems += _misfits(books, {meter.name: meter for meter in meters}, whole=True)
    if problems:
        raise BadBooks(problems)
    return tuple(book for _, book in books)


def _repeated_tenants(books: Sequence[tuple[int, PriceBook]]) -> list[BookProblem]:
    problems = []
    seen: dict[str, int] = {}
    for index, book in books:
        if book.tenant in seen:
            wrong = f"tenant {book.tenant!r} has a book already, {SECTION}[{seen[book.tenant]}]"
            problems.append(BookProblem((SECTION, index, "tenant"), wrong, "one book a tenant; its history is in `versions`"))
        seen.setdefault(book.tenant, index)
    return problems


def _covered_prices(books: Sequence[tuple[int, PriceBook]]) -> list[BookProblem]:
    """The first price that matches wins, so one behind another that matches all that it does would never be used."""
    problems = []
    for index, book in books:
        for number, version in enumerate(book.versions):
            for position, price in enumerate(version.prices):
                for before, other in enumerate(version.prices[:position]):
                    if other.meter == price.meter and other.where.items() <= price.where.items():
                        path = (SECTION, index, "versions", number, "prices", position)
                        wrong = f"is never used: prices[{before}] matches all that it matches, and comes first"
                        problems.append(BookProblem(path, wrong, "the price with the narrower `where` before the wider one"))
                        break
    return problems


def misfits(books: Iterable[PriceBook], meters: Mapping[str, MeterDefinition]) -> list[BookProblem]:
    """Prices that these meters cannot have. Of a meter that is not among them nothing is known."""
    return _misfits(enumerate(books), meters, whole=False)


def _misfits(books: Iterable[tuple[int, PriceBook]], meters: Mapping[str, MeterDefinition], *, whole: bool) -> list[BookProblem]:
    """`whole`: there are no other meters."""
    problems = []
    for index, book in books:
        for number, version in enumerate(book.versions):
            for position, price in enumerate(version.prices):
                path = (SECTION, index, "versions", number, "prices", position)
                if (meter := meters.get(price.meter)) is not None:
                    problems += _misfits_of(path, book, version, price, meter)
                elif whole:
                    problems.append(BookProblem((*path, "meter"), f"no meter is called {price.meter!r}", _listed(meters)))
    return problems


def _misfits_of(
    path: tuple[str | int, ...], book: PriceBook, version: PriceVersion, price: Price, meter: MeterDefinition
) -> list[BookProblem]:
    problems = []
    for field, names in (("dimensions", price.dimensions), ("where", tuple(price.where))):
        for name in names:
            if name not in meter.dimensions:
                wrong = f"meter {meter.name!r} has no dimension {name!r}"
                problems.append(BookProblem((*path, field), wrong, _listed(meter.dimensions) or "nothing: it has no dimensions"))
    first_year = version.effective_from.year
    bad = misfit(book.zone, meter.window_s, first_year, first_year + YEARS_AHEAD)
    if bad is not None:
        wrong = f"months in {book.timezone} begin inside the {meter.window_s} s windows of meter {meter.name!r} ({bad.label} does)"
        problems.append(
            BookProblem(
                (*path, "meter"),
                wrong,
                "a time zone whose offset is a multiple of the window, a meter of another name with a smaller window, or no price for this",
            )
        )
    return problems


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


# From what pydantic says to a sentence that names the place, what was given and what is allowed.

_ALLOWED = {
    "string_type": "text in quotes",
    "string_too_short": "text that is not empty",
    "dict_type": "a table",
    "tuple_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "int_type": "a whole number",
    "union_tag_invalid": "one of " + ", ".join(MODELS),
    "union_tag_not_found": "one of " + ", ".join(MODELS),
    "greater_than_equal": f"a whole number from 0 to {MOST_DECIMAL_PLACES}",
    "less_than_equal": f"a whole number from 0 to {MOST_DECIMAL_PLACES}",
}


def _problem(prefix: tuple[str | int, ...], table: object, detail: ErrorDetails) -> BookProblem:
    kind = detail["type"]
    path = _without_tags(table, detail["loc"])
    if kind.startswith("union_tag"):
        path = (*path, "model")
    if kind == "missing" or kind == "union_tag_not_found":
        return BookProblem((*prefix, *path), "is missing", _ALLOWED.get(kind, "this setting must be given"))
    if kind == "extra_forbidden":
        return BookProblem((*prefix, *path), "is no setting here", _fields_at(path))
    wrong = f"{_shown(table, path)} cannot be used"
    if kind == "value_error":
        return BookProblem((*prefix, *path), wrong, detail["msg"].removeprefix("Value error, "))
    return BookProblem((*prefix, *path), wrong, _ALLOWED.get(kind, detail["msg"]))


def _fields_at(path: Sequence[str | int]) -> str:
    """What may stand beside a setting that does not exist."""
    table = next((part for part in reversed(path[:-1]) if isinstance(part, str)), "")
    return {"tiers": "up_to, unit_price", "prices": PRICE_FIELDS, "versions": _listed(PriceVersion.model_fields)}.get(
        table, _listed(PriceBook.model_fields)
    )


def _without_tags(table: object, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """pydantic puts the name of the chosen model into the path; the file has no such level."""
    path: list[str | int] = []
    for part in location:
        follows_price = len(path) >= 2 and path[-2] == "prices" and isinstance(path[-1], int)
        if not (follows_price and part in MODELS):
            path.append(part)
    return tuple(path)


def _shown(table: Any, path: Sequence[str | int]) -> str:
    for part in path:
        try:
            table = table[part]
        except (KeyError, IndexError, TypeError):
            return "this"
    text = repr(str(table)) if isinstance(table, str) else f"the float {table!r}" if isinstance(table, float) else str(table)
    return text if len(text) <= 60 else text[:57] + "..."
