"""What a rater is configured with, held against the meters that are counted: those that PostgreSQL knows, from the records of all writers.

Pure. A configuration that contradicts them would judge its price books by windows and dimensions that no counter has, and charge usage to
the wrong month. Must not know: SQL, when a rater starts or reads its configuration again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from buffer.counters import MeterDefinition, changed
from rater.prices.book import PriceBook, misfits


class ConfigurationRefused(Exception):
    """It contradicts what is counted or charged already. The message names the section, and what to do; one problem a line.

    `counted`: the meters that it was held against.
    """

    def __init__(self, told: str, counted: Sequence[MeterDefinition] = ()) -> None:
        super().__init__(told)
        self.counted = counted


@dataclass(frozen=True)
class Configured:
    meters: Sequence[MeterDefinition] = ()  # a rater need not be given any
    books: Sequence[PriceBook] = ()
    _agreed: set[MeterDefinition] = field(default_factory=set, compare=False, repr=False)  # with them it was found to agree

    def check(self, counted: Iterable[MeterDefinition]) -> None:
        """Raises ConfigurationRefused. With thousands of price books it takes a while, once for each meter."""
        new = {meter.name: meter for meter in counted if meter not in self._agreed}
        if problems := [*_other_meters(self.meters, new), *map(str, misfits(self.books, new))] if new else []:
            raise ConfigurationRefused("\n".join(problems), tuple(new.values()))
        self._agreed.update(new.values())


def _other_meters(meters: Iterable[MeterDefinition], counted: dict[str, MeterDefinition]) -> list[str]:
    problems = []
    for meter in meters:
        stored = counted.get(meter.name)
        if stored is not None and (what := changed(stored, meter)) is not None:
            here, there = getattr(meter, what), getattr(stored, what)
            problems.append(
                f"meters: the meter {meter.name!r} has {what} {here!r} in the catalogue and {there!r} in the counters of that name: make "
                "it what it is where events are taken"
            )
    return problems
