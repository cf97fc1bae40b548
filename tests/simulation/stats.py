"""What happened in a run, and in many runs together: totals, and the table of faults and steps of the protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.simulation.steps import RATER_STEPS, STEPS


@dataclass
class Stats:
    runs: int = 1
    profiles: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fault, step some writer was in when it happened)
    answers: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)  # executed by Redis
    events: int = 0
    starts: int = 0  # of writers
    simulated_s: int = 0
    segments_gone: int = 0
    rated_runs: int = 0  # with raters
    rater_starts: int = 0
    commits: int = 0  # in PostgreSQL

    def add(self, other: Stats) -> None:
        for name in ("runs", "events", "starts", "simulated_s", "segments_gone", "rated_runs", "rater_starts", "commits"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("profiles", "faults", "coverage", "answers", "scripts"):
            getattr(self, name).update(getattr(other, name))

    def __str__(self) -> str:
        answers = ", ".join(f"{count} {answer}" for answer, count in sorted(self.answers.items()))
        return (
            f"{self.runs} runs ({', '.join(f'{count} {name}' for name, count in self.profiles.items())}), "
            f"{self.simulated_s // 3600} h {self.simulated_s % 3600 // 60} min simulated\n"
            f"{self.events} events, requests: {answers}\n"
            f"{sum(self.faults.values())} faults, {self.starts} starts of writers, {self.scripts['claim']} claims and marks executed, "
            f"{self.scripts['joined']} times joined, {self.segments_gone} segments retired\n"
            f"{self.rated_runs} runs with raters, {self.rater_starts} starts of raters, {self.commits} commits in PostgreSQL"
        )

    def table(self) -> str:
        """Markdown: a row a fault, a column a step; a cell counts the faults that happened while a writer (below: rater) was in it."""
        return f"{self._table(STEPS)}\n\n{self._table(RATER_STEPS)}"

    def _table(self, steps: Sequence[str]) -> str:
        rows = [["fault", "all", *steps], ["---", *["---:"] * (1 + len(steps))]]
        for fault, count in sorted(self.faults.items()):
            cells = [self.coverage[fault, step] for step in steps]
            if any(cells):
                rows.append([fault.replace("_", " "), str(count), *map(str, cells)])
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
