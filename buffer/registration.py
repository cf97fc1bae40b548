"""What the registry of writers (`usage.writers`) holds, as bytes: two entries a writer and one a meter, each under a key of its own.

Pure. `WRITER` says whether it is a member, `WRITER.branches` which branch of each claim store it entered last. They are apart because
somebody else may retire a writer, which its own announcement must not undo. `meter:NAME` says what may never change of a meter: how it
merges, its scale, window and dimensions. An entry whose outcome was unknown may arrive at any later time, so the order of arrival decides
nothing about a writer. Must not know: where the registry lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from buffer.counter_log import Announced, Registry, Retired
from buffer.counters import MeterDefinition

_BRANCHES = ".branches"
_METER = "meter:"
_OF_A_WRITER = re.compile(rf"([0-9a-f]{{32}})({re.escape(_BRANCHES)})?")


class _Registration(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    v: Literal[1]
    retired_us: int | None
    lost: str | None = None


class _Branches(msgspec.Struct, forbid_unknown_fields=True):
    v: Literal[1]
    branches: list[str]  # hexadecimal, in the order of the shards
    at: int = 0  # an announcement of a build that gave them no order comes before all others


class _Meter(msgspec.Struct, forbid_unknown_fields=True):
    v: Literal[1]
    aggregation: str
    scale: int
    window_s: int
    dimensions: tuple[str, ...]


def member_key(writer: bytes) -> str:
    return writer.hex()


def branches_key(writer: bytes) -> str:
    return writer.hex() + _BRANCHES


def meter_key(name: str) -> str:
    return _METER + name


def encode_member(retired: Retired | None) -> bytes:
    return msgspec.json.encode(_Registration(1, None) if retired is None else _Registration(1, *retired))


def encode_branches(announced: Announced) -> bytes:
    return msgspec.json.encode(_Branches(1, [branch.hex() for branch in announced.branches], announced.at))


def encode_meter(meter: MeterDefinition) -> bytes:
    return msgspec.json.encode(_Meter(1, meter.aggregation, meter.scale, meter.window_s, meter.dimensions))


def add_entry(registry: Registry, key: str, value: bytes) -> None:
    """Oldest first. Who was retired stays retired; of a writer's announcements the one with the highest number counts, of several with
    one number the last; of a meter's entries the first. Raises ValueError: these bytes are none.

    A key of an unknown kind is refused as well. Whoever skipped the retirement of a writer, or its branches, would count events twice; a
    build cannot know that what a newer one wrote is harmless.
    """
    if key.startswith(_METER):
        _add_meter(registry, key.removeprefix(_METER), msgspec.json.decode(value, type=_Meter))
    else:
        _add_of_a_writer(registry, key, value)


def registry_of(entries: Iterable[tuple[str, bytes]]) -> Registry:
    """Oldest first. Raises ValueError, naming the key, where one is none."""
    registry = Registry({}, {}, {})
    for key, value in entries:
        try:
            add_entry(registry, key, value)
        except ValueError as error:
            raise ValueError(f"{key!r}, {error}") from error
    return registry


def overtaken(entries: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """What is forgotten if each key keeps its last entry alone, as in a compacted topic: to be written once more, behind the others."""
    counts, kept = registry_of(entries), registry_of(dict(entries).items())
    return {
        **{member_key(writer): encode_member(one) for writer, one in counts.writers.items() if one != kept.writers[writer]},
        **{branches_key(writer): encode_branches(one) for writer, one in counts.announced.items() if one != kept.announced[writer]},
        **{meter_key(name): encode_meter(one) for name, one in counts.meters.items() if one != kept.meters[name]},
    }


def _add_meter(registry: Registry, name: str, read: _Meter) -> None:
    registry.meters.setdefault(name, MeterDefinition(name, "", read.aggregation, read.scale, read.window_s, read.dimensions))


def _add_of_a_writer(registry: Registry, key: str, value: bytes) -> None:
    named = _OF_A_WRITER.fullmatch(key)
    if named is None:
        raise ValueError("a kind of entry that this build does not know; a newer one may have written it")
    writer = bytes.fromhex(named[1])
    if named[2]:
        _add_branches(registry, writer, msgspec.json.decode(value, type=_Branches))
    else:
        _add_member(registry, writer, msgspec.json.decode(value, type=_Registration))


def _add_branches(registry: Registry, writer: bytes, read: _Branches) -> None:
    known = registry.announced.get(writer)
    if known is None or read.at >= known.at:
        registry.announced[writer] = Announced(read.at, tuple(map(bytes.fromhex, read.branches)))


def _add_member(registry: Registry, writer: bytes, read: _Registration) -> None:
    if registry.writers.get(writer) is None:
        registry.writers[writer] = None if read.retired_us is None else Retired(read.retired_us, read.lost)
