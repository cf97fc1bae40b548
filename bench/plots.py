"""Plots of what was measured, as PNG files.

Belongs here: matplotlib. Must not know: how anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from bench.figures import MET, NO_TARGET, Figure, shown
from bench.growth import Sweep

GOOD, BAD, PLAIN = "#2a7f62", "#c0392b", "#34618f"


def plot_targets(figures: Sequence[Figure], file: Path) -> None:
    """How far each figure is on the good side of its target: 2 is twice as good as it must be, 0.5 half as good."""
    aimed = [figure for figure in figures if figure.values and figure.verdict != NO_TARGET]
    picture, axes = pyplot.subplots(figsize=(11, 1 + 0.32 * len(aimed)), layout="constrained")
    goodness = [_goodness(figure) for figure in aimed]
    rows = range(len(aimed))
    axes.barh(rows, [value - 1 for value in goodness], left=1, color=[GOOD if figure.verdict == MET else BAD for figure in aimed])
    axes.set_yticks(rows, [f"{figure.section}: {figure.name}" for figure in aimed], fontsize=8)
    for row, figure, value in zip(rows, aimed, goodness, strict=True):
        side = "left" if value >= 1 else "right"
        axes.annotate(f" {shown(figure.value)} {figure.unit} ", (value, row), va="center", ha=side, fontsize=7)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(0.12, *goodness) / 1.6, max(4, *goodness) * 2.2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("times better than the target (left of 1: not met)")
    axes.invert_yaxis()
    picture.savefig(file, dpi=110)
    pyplot.close(picture)


def _goodness(figure: Figure) -> float:
    value = max(1, figure.value)
    if figure.target.least is not None:
        return value / figure.target.least
    assert figure.target.most is not None
    return figure.target.most / value


def plot_growth(sweeps: Sequence[Sweep], file: Path) -> None:
    rows = -(-len(sweeps) // 2)
    picture, grid = pyplot.subplots(rows, 2, figsize=(12, 3.3 * rows), layout="constrained", squeeze=False)
    for axes, sweep in zip(grid.flat, sweeps, strict=False):
        xs = [point.x for point in sweep.points]
        costs = [point.cost / 100 for point in sweep.points]
        axes.plot(xs, costs, "o-", color=PLAIN)
        for x, cost in zip(xs, costs, strict=True):
            axes.annotate(f"{cost:.2f}", (x, cost), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7)
        axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:,}" for x in xs], fontsize=7)
        axes.minorticks_off()
        axes.set_title(sweep.name, fontsize=10)
        axes.set_xlabel(sweep.x, fontsize=8)
        axes.set_ylabel("us of CPU", fontsize=8)
        axes.set_ylim(0, max(costs) * 1.25)
        if sweep.more:
            other = axes.twinx()
            other.plot(xs, [point.more / 100 for point in sweep.points], "s--", color=BAD, linewidth=1)
            other.set_ylabel(f"{sweep.more} (dashed)", fontsize=8, color=BAD)
            other.set_ylim(0, max(point.more for point in sweep.points) / 80)
    for axes in grid.flat[len(sweeps) :]:
        axes.set_visible(False)
    picture.savefig(file, dpi=110)
    pyplot.close(picture)
