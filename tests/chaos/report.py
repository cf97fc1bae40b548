"""What a chaos run did and what came of it, as JSON for programs and as Markdown for people.

Belongs here: the figures and how they are shown. Must not know: how they came about.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.acceptance.senders import Answered

SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Report:
    seed: int
    commit: str
    layout: str  # of the claims in Redis
    asked_s: int  # how long the load was to last
    lasted_s: int  # until the last request was answered
    load: list[int]  # events answered in each second
    faults: dict[str, int]
    ended_by_themselves: dict[str, int]
    claims_missing_in_replicas: int
    acknowledged_requests: int
    acknowledged_events: int
    counted_events: int  # those of the acknowledged that are neither duplicate nor rejected
    refused: dict[str, int]  # tries answered 429 or 503
    not_answered: int  # tries whose connection broke or that took too long
    refusals: dict[str, int]  # what 429 and 503 said
    longest_refusal_ms: int  # the longest time in which no request was answered with success
    longest_wait_ms: int  # of one request, from its first try to its answer
    lost: int
    counted_twice: int
    differences: list[str]  # of the oracle
    audit: str  # what it printed
    audit_agrees: bool

    @property
    def good(self) -> bool:
        return not self.differences and not self.lost and not self.counted_twice and self.audit_agrees

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chaos.json").write_text(json.dumps({**asdict(self), "good": self.good}, indent=2, ensure_ascii=False) + "\n")
        (folder / "chaos.md").write_text(self.markdown())

    def markdown(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"# Chaos, seed {self.seed}, commit {self.commit}: {'no promise broken' if self.good else 'A PROMISE IS BROKEN'}"
        yield ""
        yield from _table(("figure", "value"), self._figures())
        yield ""
        yield from _table(("fault", "times"), sorted(self.faults.items()))
        yield ""
        yield from _table(("a try that was refused was told", "times"), sorted(self.refusals.items(), key=lambda row: -row[1]))
        yield ""
        yield from (f"- {difference}" for difference in self.differences)
        yield ""
        yield from ("```", self.audit, "```")

    def _figures(self) -> Iterator[tuple[str, object]]:
        yield "load asked for, lasted", f"{self.asked_s} s, {self.lasted_s} s"
        yield "events answered a second", f"{self.acknowledged_events // max(1, self.lasted_s)}: {spark(self.load)}"
        yield "claims in Redis", self.layout
        yield "faults", sum(self.faults.values())
        yield "processes that ended by themselves and were started again", _told(self.ended_by_themselves)
        yield "claims that promoted replicas lacked", self.claims_missing_in_replicas
        yield (
            "acknowledged",
            f"{self.acknowledged_events} events in {self.acknowledged_requests} requests, {self.counted_events} of them new",
        )
        yield "tries that were refused", _told(self.refused)
        yield "tries without an answer", self.not_answered
        yield "longest refusal", f"{self.longest_refusal_ms} ms"
        yield "longest wait of a request", f"{self.longest_wait_ms} ms"
        yield "lost", self.lost
        yield "counted twice", self.counted_twice


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {times}" for name, times in sorted(counts.items())) or "none"


def _table(head: tuple[str, str], rows: Any) -> Iterator[str]:
    yield f"| {head[0]} | {head[1]} |"
    yield "|---|---|"
    for name, value in rows:
        yield f"| {name} | {value} |"


def spark(load: Sequence[int], width: int = 60) -> str:
    """The load over time as a line of bars."""
    step = max(1, -(-len(load) // width))
    sums = [sum(load[first : first + step]) for first in range(0, len(load), step)]
    most = max(sums, default=0)
    return "".join("·" if not value else SPARKS[value * (len(SPARKS) - 1) // most] for value in sums)


def by_second(times: Sequence[Answered], start_s: float) -> list[int]:
    seconds: Counter[int] = Counter()
    for answered in times:
        seconds[int(answered.at_s - start_s)] += answered.events
    return [seconds[second] for second in range(max(seconds, default=-1) + 1)]


def longest_refusal_ms(times: Sequence[Answered], start_s: float) -> int:
    moments = [start_s, *sorted(answered.at_s for answered in times)]
    return max((int(1000 * (later - earlier)) for earlier, later in pairwise(moments)), default=0)
