"""What a rater is configured with, held against the meters that are counted: those that PostgreSQL knows, from the records of all writers.

Pure. A configuration that contradicts them would judge its price books by windows and dimensions that no counter has, and charge usage to
the wrong month. Must not know: SQL, when a rater starts or reads its configuration again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from buffer.counters import MeterDefinition, changed
from rater.prices.book import PriceBook, misfits


class ConfigurationRefused(Exception):
    """It contradicts what is counted or charged already. The message names the section, and what to do; one problem a line."""


class Configured(NamedTuple):
    meters: Sequence[MeterDefinition] = ()  # a rater need not be given any
    books: Sequence[PriceBook] = ()

    def check(self, counted: Iterable[MeterDefinition]) -> None:
        """Raises ConfigurationRefused."""
        known = {meter.name: meter for meter in counted}
        if problems := [*_other_meters(self.meters, known), *map(str, misfits(self.books, known))]:
            raise ConfigurationRefused("\n".join(problems))


def _other_meters(meters: Iterable[MeterDefinition], counted: dict[str, MeterDefinition]) -> list[str]:
    problems = []
    for meter in meters:
        stored = counted.get(meter.name)
        if stored is not None and (field := changed(stored, meter)) is not None:
            here, there = getattr(meter, field), getattr(stored, field)
            problems.append(
                f"meters: the meter {meter.name!r} has {field} {here!r} in the catalogue and {there!r} in all that is counted under that "
                "name: put it back, as it is where events are taken"
            )
    return problems
