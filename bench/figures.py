"""Figures: what was measured, beside what was aimed at, and the table of them.

Pure. Belongs here: a figure, whether it meets its target, the table. Must not know: how anything is measured, files, plots.
No floats: values are whole hundredths of their unit.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

MET, MISSED, NOT_BUILT, NO_TARGET = "met", "NOT MET", "not built", ""


class Target(NamedTuple):
    least: int | None = None  # hundredths; None: no such bound
    most: int | None = None

    def __str__(self) -> str:
        if self.least is not None:
            return f">= {shown(self.least)}"
        return f"<= {shown(self.most)}" if self.most is not None else ""


NONE = Target()


def at_least(value: int) -> Target:
    return Target(least=100 * value)


def at_most(value: int) -> Target:
    return Target(most=100 * value)


class Figure(NamedTuple):
    section: str
    name: str
    unit: str
    values: tuple[int, ...]  # hundredths, one a round; none: there is nothing to measure yet
    target: Target = NONE
    note: str = ""

    @property
    def value(self) -> int:
        return statistics.median_low(self.values)

    @property
    def verdict(self) -> str:
        if not self.values:
            return NOT_BUILT
        if self.target == NONE:
            return NO_TARGET
        return MET if _holds(self.target, self.value) else MISSED

    @property
    def spread(self) -> str:
        if len(self.values) < 2:
            return ""
        return f"{shown(min(self.values))} - {shown(max(self.values))}"


def figure(section: str, name: str, unit: str, values: Sequence[int], target: Target = NONE, note: str = "") -> Figure:
    return Figure(section, name, unit, tuple(values), target, note)


def _holds(target: Target, value: int) -> bool:
    return (target.least is None or value >= target.least) and (target.most is None or value <= target.most)


def shown(hundredths: int | None) -> str:
    if hundredths is None:
        return ""
    if abs(hundredths) >= 100_000:
        return f"{hundredths // 100:,}"
    return f"{hundredths // 100}.{hundredths % 100:02d}"


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """One line a figure: what, target, figure, how far it is from the target, spread of the rounds, verdict."""
    rows = [("", "target", "figure", "of target", "least - greatest", "", "")]
    rows += [
        (
            figure.name,
            str(figure.target),
            f"{shown(figure.value)} {figure.unit}" if figure.values else "-",
            _share(figure),
            figure.spread,
            figure.verdict,
            figure.note,
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    section = ""
    for row, figure in zip(rows, (None, *figures), strict=True):
        if figure is not None and figure.section != section:
            section = figure.section
            yield f"-- {section}"
        name, *numbers, verdict, note = row
        columns = [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:5], strict=True))]
        yield "  ".join([*columns, verdict.ljust(widths[5]), note]).rstrip()


def markdown(figures: Sequence[Figure]) -> Iterator[str]:
    """What has a target, as a table for a page."""
    yield "| | target | figure | least - greatest | |"
    yield "|---|---|---|---|---|"
    for figure in figures:
        if figure.target != NONE:
            value = f"{shown(figure.value)} {figure.unit}" if figure.values else ""
            verdict = "**not met**" if figure.verdict == MISSED else figure.verdict
            yield f"| {figure.section}: {figure.name} | {figure.target} | {value} | {figure.spread} | {verdict} |"


def _share(figure: Figure) -> str:
    """The figure as a part of its target, in per cent: what must be small is good below 100, what must be large above it."""
    bound = figure.target.most if figure.target.most is not None else figure.target.least
    return f"{100 * figure.value // bound} %" if bound and figure.values else ""


def as_json(figures: Sequence[Figure]) -> list[dict[str, object]]:
    return [
        {
            "section": figure.section,
            "name": figure.name,
            "unit": figure.unit,
            "target": str(figure.target),
            "least": figure.target.least,
            "most": figure.target.most,
            "hundredths": figure.value if figure.values else None,
            "rounds": list(figure.values),
            "verdict": figure.verdict,
            "note": figure.note,
        }
        for figure in figures
    ]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    return [
        Figure(row["section"], row["name"], row["unit"], tuple(row["rounds"]), Target(row["least"], row["most"]), row["note"])
        for row in rows
    ]
