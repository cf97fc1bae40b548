"""The catalogue and the price books are checked by the packages that they belong to; here their findings become problems with places.

Must not know: what a meter or a price may be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from parshall.settings_sources import Raw

if TYPE_CHECKING:
    from buffer.counters import MeterDefinition
    from parshall.settings import Problem


def check_sections(raw: Raw) -> list[Problem]:
    """Everything wrong with [[meters]] and [[price_books]]; an absent section is no problem here, a role may need none."""
    meters, definitions = _check_catalogue(raw)
    return meters + _check_price_books(raw, definitions)


def _check_catalogue(raw: Raw) -> tuple[list[Problem], tuple[MeterDefinition, ...] | None]:
    from ingest.catalogue import CatalogueError, read_catalogue

    if not _is_list_of_tables(tables := raw.value(("meters",))):
        return [], None
    try:
        return [], read_catalogue(tables).definitions
    except CatalogueError as error:
        return [_located(raw, problem.path, problem.wrong, problem.allowed) for problem in error.problems], None


def _check_price_books(raw: Raw, definitions: Iterable[MeterDefinition] | None) -> list[Problem]:
    from rater.prices.book import BadBooks, read_books

    if not _is_list_of_tables(tables := raw.value(("price_books",))):
        return []
    try:
        read_books(tables, definitions)  # without a sound catalogue the books are held against themselves alone
    except BadBooks as bad:
        return [_located(raw, problem.path, problem.wrong, problem.allowed) for problem in bad.problems]
    return []


def _located(raw: Raw, path: tuple[str | int, ...], wrong: str, allowed: str) -> Problem:
    from parshall.settings import Problem, dotted

    return Problem(raw.place(path), dotted(path), wrong, allowed)


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(table, dict) for table in value)
