"""The sections of the report, and how large each is in an ordinary run, a quick look and a full run.

Belongs here: that list. Must not know: how a section measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench.figures import Figure

MILLION = 1_000_000


class Scale(NamedTuple):
    rounds: int
    share_percent: int  # of the usual events of a round of the whole writer
    claims: tuple[int, ...]
    counters: int
    dropped: int  # claims of the generation that is dropped
    replayed: int
    rows: int
    seconds: int  # of acknowledgements, a round


SCALES = {
    "quick": Scale(1, 10, (MILLION,), 100_000, 200_000, 500_000, 100_000, 2),
    "usual": Scale(3, 100, (MILLION, 5 * MILLION, 10 * MILLION), MILLION, MILLION, 3 * MILLION, 10 * MILLION, 5),
    "full": Scale(5, 100, (MILLION, 5 * MILLION, 10 * MILLION, 20 * MILLION), MILLION, 4 * MILLION, 10 * MILLION, 10 * MILLION, 20),
}


def _whole(scale: Scale) -> Iterable[Figure]:
    from bench import whole

    return whole.figures(whole.measure(scale.rounds, scale.share_percent, lambda line: print(line, flush=True)))


def _claims(scale: Scale) -> Iterable[Figure]:
    from bench import claims_at_size

    return claims_at_size.figures(scale.claims)


def _stalls(scale: Scale) -> Iterable[Figure]:
    from bench import stalls

    return stalls.figures(min(3, scale.rounds), scale.counters, scale.dropped)


def _memory(scale: Scale) -> Iterable[Figure]:
    from bench import counter_memory

    return counter_memory.figures(scale.counters)


def _acknowledgements(scale: Scale) -> Iterable[Figure]:
    from bench import acknowledgements

    return acknowledgements.figures(scale.rounds, scale.seconds)


def _restart(scale: Scale) -> Iterable[Figure]:
    from bench import restart

    return restart.figures(scale.rounds, scale.replayed)


def _rating(scale: Scale) -> Iterable[Figure]:
    from bench import rating

    return rating.figures(scale.rounds, scale.rows)


SECTIONS: dict[str, Callable[[Scale], Iterable[Figure]]] = {
    "whole": _whole,
    "claims": _claims,
    "stalls": _stalls,
    "memory": _memory,
    "acknowledgements": _acknowledgements,
    "restart": _restart,
    "rating": _rating,
}
STEPS = ("micro_edge", "micro_claims", "micro_journal", "micro_flush", "micro_rebuild", "micro_shed")
