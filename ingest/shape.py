"""The shape of an event type: which fields its meters read, and the msgspec struct that a decoder fills with just those.

Belongs here: from meters to typed structs, once a catalogue. Must not know: requests, how values fold (fold.py), what a fault is called
(checker.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct
from xxhash import xxh3_64_digest

from ingest.catalogue import MOST_CHARACTERS, Meter, Path
from ingest.quantity import Quantity

Name = Annotated[str, Meta(min_length=1, max_length=MOST_CHARACTERS)]
Moment = Annotated[datetime, Meta(tz=True)]
DimensionValue = Annotated[str, Meta(max_length=MOST_CHARACTERS)] | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

_MISSING: Any = msgspec.NODEFAULT


class Leaf(NamedTuple):
    """One path below `data` that some meter of the type reads: a value or a dimension, never both."""

    path: Path
    attributes: tuple[str, ...]  # where it is in the struct: ("data", "f0", "f1")
    quantities: tuple[Quantity, ...]  # what meters want of a value; empty for a dimension
    default: str | None  # of a dimension
    meters: tuple[str, ...]
    get: Callable[[Struct], Any]  # the leaf of a decoded event

    @property
    def field(self) -> str:
        return ".".join(("data", *self.path))


class Shape(NamedTuple):
    event_type: str
    meters: tuple[Meter, ...]
    struct: type[Struct]
    leaves: tuple[Leaf, ...]  # sorted by path
    arrival: bool  # an event without time counts at its arrival
    byte: int  # first byte of a fingerprint: another shape reads other fields, so its fingerprints do not compare


def shape_of(event_type: str, meters: Sequence[Meter], number: int) -> Shape:
    """`number` only makes the name of the struct unique within a catalogue."""
    leaves = tuple(_leaves(meters))
    arrival = meters[0].arrival
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("specversion", Literal["1.0"]),
        ("id", Name),
        ("source", Name),
        ("subject", Name),
        ("time", Moment | None, None) if arrival else ("time", Moment),
        ("data_base64", None, None),  # only null: data that comes this way would not be read
    ]
    if leaves:
        fields.append(_data_field(f"Event{number}", "data", [(leaf.path, leaf) for leaf in leaves]))
    unread = {} if leaves else {"data": None}  # so that every event has `data`
    struct = msgspec.defstruct(f"Event{number}", fields, tag=event_type, tag_field="type", gc=False, kw_only=True, namespace=unread)
    return Shape(event_type, tuple(meters), struct, leaves, arrival, _byte(leaves, arrival))


def _leaves(meters: Sequence[Meter]) -> Iterator[Leaf]:
    quantities: dict[Path, list[Quantity]] = {}
    defaults: dict[Path, str | None] = {}
    readers: dict[Path, list[str]] = {}
    for meter in meters:
        if meter.value is not None:
            field = ".".join(("data", *meter.value))
            quantities.setdefault(meter.value, []).append(Quantity(field, meter.name, meter.definition.scale, meter.signed))
            readers.setdefault(meter.value, []).append(meter.name)
        for dimension in meter.dimensions:
            defaults[dimension.path] = dimension.default
            readers.setdefault(dimension.path, []).append(meter.name)
    numbers = _numbers(readers)
    for path in sorted(readers):
        attributes = ("data", *(f"f{numbers[path[: depth + 1]]}" for depth in range(len(path))))
        get = attrgetter(".".join(attributes))
        yield Leaf(path, attributes, tuple(quantities.get(path, ())), defaults.get(path), tuple(readers[path]), get)


def _numbers(paths: Mapping[Path, object]) -> dict[Path, int]:
    """Every name in the struct is a plain `f<number>`, whatever the event calls it."""
    prefixes = sorted({path[: depth + 1] for path in paths for depth in range(len(path))})
    return {prefix: number for number, prefix in enumerate(prefixes)}


def _data_field(owner: str, attribute: str, below: Sequence[tuple[Path, Leaf]]) -> tuple[str, Any] | tuple[str, Any, Any]:
    """The field for an object that holds all of `below`: it may be absent only if everything in it has a default."""
    name = f"{owner}_{attribute}"
    fields: list[Any] = []
    renamed: dict[str, str] = {}
    depth = len(below[0][1].path) - len(below[0][0])
    for key in dict.fromkeys(path[0] for path, _ in below):
        inner = [(path[1:], leaf) for path, leaf in below if path[0] == key]
        field = inner[0][1].attributes[depth + 1]
        renamed[field] = key
        fields.append(_leaf_field(field, inner[0][1]) if inner[0][0] == () else _data_field(name, field, inner))
    struct = msgspec.defstruct(name, fields, rename=renamed, gc=False, kw_only=True)
    if all(leaf.default is not None for _, leaf in below):
        return attribute, struct, msgspec.field(default_factory=struct)
    return attribute, struct


def _leaf_field(attribute: str, leaf: Leaf) -> tuple[str, Any] | tuple[str, Any, Any]:
    if leaf.quantities:
        return attribute, Any  # an int, a Decimal or a string: `Any` alone keeps numbers and strings apart
    return (attribute, DimensionValue) if leaf.default is None else (attribute, DimensionValue, leaf.default)


def _byte(leaves: Sequence[Leaf], arrival: bool) -> int:
    read = [[leaf.path, bool(leaf.quantities), leaf.default] for leaf in leaves]
    return xxh3_64_digest(json.dumps([read, arrival], separators=(",", ":")).encode())[0]
