"""What may never change of a meter under its name, held against what is counted under that name already.

Belongs here: the say of a writer's own journal, and that of all writers, which the registry (`usage.writers`) keeps. Must not know: what
else a catalogue says, when a writer starts or reads its catalogue again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from buffer.counter_log import CounterLog
from buffer.counters import MeterDefinition, changed


class CannotStart(Exception):
    """The writer must not serve. One sentence for the operator."""


def check_meters(journalled: Mapping[int, MeterDefinition], definitions: Iterable[MeterDefinition]) -> None:
    """Raises CannotStart when a journal knows one of them as another kind of meter; what it knew first counts, as it does for the rater."""
    known: dict[str, MeterDefinition] = {}
    for _, meter in sorted(journalled.items()):
        known.setdefault(meter.name, meter)
    _compare(known, definitions, "in this journal, and what both count")


class AgreedMeters:
    """What all writers of a log count, as far as this one knows. An entry stays as it is: what was read once is not read again."""

    def __init__(self, log: CounterLog) -> None:
        self._log = log
        self._known: Mapping[str, MeterDefinition] = {}

    def learn(self, registered: Mapping[str, MeterDefinition]) -> None:
        """By a registry that was read."""
        self._known = registered

    async def check(self, definitions: Sequence[MeterDefinition]) -> None:
        """Raises CannotStart when one contradicts what others count; LogUnavailable, UnfitLog. Asks the log about new names only."""
        if self._missing(definitions):
            self.learn((await self._log.registry()).meters)
        self._compare(definitions)

    async def settle(self, definitions: Sequence[MeterDefinition]) -> None:
        """After it every one of them is in the registry, durably, and nobody's contradicts it. Raises what `check` does.

        Of two that contradict each other and come at once the first one's entry counts, and the other is told so here.
        """
        self._compare(definitions)  # first, so that nothing is written for who is refused
        if missing := self._missing(definitions):
            self.learn(await self._log.define(missing))
            self._compare(definitions)

    def _missing(self, definitions: Iterable[MeterDefinition]) -> list[MeterDefinition]:
        return [definition for definition in definitions if definition.name not in self._known]

    def _compare(self, definitions: Iterable[MeterDefinition]) -> None:
        _compare(self._known, definitions, "for other writers (in the registry, usage.writers), and what all count")


def _compare(known: Mapping[str, MeterDefinition], definitions: Iterable[MeterDefinition], where: str) -> None:
    for definition in definitions:
        before = known.get(definition.name)
        if before is not None and (field := changed(before, definition)) is not None:
            raise CannotStart(
                f"The meter {definition.name!r} has {field} {getattr(definition, field)!r} in the catalogue and {getattr(before, field)!r} "
                f"{where} would be added up: put it back, or give the changed meter a name of its own."
            )
