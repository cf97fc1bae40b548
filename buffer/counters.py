"""Counters: how what a meter adds up is packed into one integer, and how two deltas of a counter merge.

Pure. Belongs here: the key, the packing, the merge laws (commutative, associative). Must not know: events, catalogues, files, Kafka.

A delta is one Python int, so a million live counters are a million entries of one dict that the garbage collector never visits:
`packed = (events << 160) + value`, value signed, |value| < 2**158, events < 2**31. Merging sums is adding the ints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

# (meter number, tenant number, subject, window start in seconds since 1970 UTC, *dimension values in the meter's order)
CounterKey = tuple[int | str, ...]

# Deltas by how they merge: {"sum": {key: packed}, "max": {key: packed}}; a kind without counters may be absent.
Deltas = dict[str, dict[CounterKey, int]]

EVENTS_SHIFT = 160
ONE_EVENT = 1 << EVENTS_SHIFT
HALF_AN_EVENT = 1 << (EVENTS_SHIFT - 1)
PACKED_BYTES = 24  # what a packed delta needs, signed, in a journal
_WORTH_MERGING = 5  # one counter in five must repeat
_SAMPLE, _RUN = 100, 4  # so many counters of a kind, or more, in runs of so many: enough to tell few from many


class MeterDefinition(NamedTuple):
    """What merging and rating need to know of a meter; immutable under (name, hash)."""

    name: str
    hash: str  # of the whole definition in the catalogue, 16 hex digits
    aggregation: str  # "count", "sum", "max"
    scale: int  # decimal places of the value: 0 to 18
    window_s: int  # 60, 900, 3600 or 86400
    dimensions: tuple[str, ...]


def changed(before: MeterDefinition, now: MeterDefinition) -> str | None:
    """The first field that differs although it never may under one name: counters of both would be added up. None: nothing of that kind."""
    for field in ("aggregation", "scale", "window_s", "dimensions"):
        if getattr(before, field) != getattr(now, field):
            return field
    return None


# aggregation -> how its deltas merge. `count` is a sum of ones.
MERGE_OF = {"count": "sum", "sum": "sum", "max": "max"}


def pack(value: int, events: int) -> int:
    return (events << EVENTS_SHIFT) + value


def unpack(packed: int) -> tuple[int, int]:
    """(value, events)."""
    events = (packed + HALF_AN_EVENT) >> EVENTS_SHIFT
    return packed - (events << EVENTS_SHIFT), events


def merge_max(one: int, other: int) -> int:
    value_1, events_1 = unpack(one)
    value_2, events_2 = unpack(other)
    return pack(max(value_1, value_2), events_1 + events_2)


def merge(into: Deltas, deltas: Deltas) -> None:
    """Merge `deltas` into `into`, in place."""
    for kind, more in deltas.items():
        live = into.get(kind)
        if live is None:
            into[kind] = dict(more)
        elif kind == "sum":
            get = live.get
            for key, packed in more.items():
                live[key] = get(key, 0) + packed
        elif kind == "max":
            for key, packed in more.items():
                known = live.get(key)
                live[key] = packed if known is None else merge_max(known, packed)
        else:
            raise AssertionError(f"no merge law for {kind!r}")


def less(sums: Mapping[CounterKey, int], taken: Mapping[CounterKey, int]) -> dict[CounterKey, int]:
    """`sums` without the events of `taken`, which are among them. A counter with no event left is gone."""
    rest = dict(sums)
    for key, packed in taken.items():
        left = rest[key] - packed
        if left:
            rest[key] = left
        else:  # without events there is no value either
            del rest[key]
    return rest


def together(parts: Sequence[Deltas]) -> list[Deltas]:
    """The same deltas in fewer parts where their counters repeat: what repeats is then encoded and merged onwards once.

    The first two decide: where few of their counters meet, merging would only copy them.
    """
    if len(parts) < 2 or not _meet(parts[0], parts[1]):
        return list(parts)
    whole: Deltas = {kind: dict(counters) for kind, counters in parts[0].items()}
    for more in parts[1:]:
        merge(whole, more)
    return [whole]


def _meet(one: Deltas, other: Deltas) -> bool:
    """Whether so many counters of the two are the same, as far as a sample of the other's tells."""
    met = 0
    for kind, counters in other.items():
        if counters:
            sample = _sample(list(counters))
            met += sum(map(one.get(kind, {}).__contains__, sample)) * len(counters) // len(sample)
    return met * _WORTH_MERGING >= count(one) + count(other)


def _sample(keys: Sequence[CounterKey]) -> Sequence[CounterKey]:
    """Short runs, each beginning elsewhere in the order of meters: the counters of one event stand beside each other, by meter."""
    apart = len(keys) // _SAMPLE
    if apart < 2:
        return keys
    return list(chain.from_iterable(keys[start : start + _RUN] for start in range(0, len(keys), apart * _RUN + 1)))


def count(deltas: Mapping[str, Mapping[CounterKey, int]]) -> int:
    return sum(map(len, deltas.values()))


def items(deltas: Deltas) -> Iterator[tuple[CounterKey, int]]:
    for counters in deltas.values():
        yield from counters.items()


# Tallies of events, per tenant number: {"received": n, "accepted": n, "duplicate": n, and one entry a rejection code}.
Tallies = dict[int, dict[str, int]]


def add_tallies(into: Tallies, more: Tallies) -> None:
    for tenant, counts in more.items():
        mine = into.setdefault(tenant, {})
        for name, number in counts.items():
            mine[name] = mine.get(name, 0) + number
