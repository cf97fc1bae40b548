"""What the registry of writers (`usage.writers`) holds, as bytes: two entries a writer and one a meter, each under a key of its own.

Pure. `WRITER` says whether it is a member, `WRITER.branches` which branch of each claim store it entered last. They are apart because
somebody else may retire a writer, which its own announcement must not undo. `meter:NAME` says what may never change of a meter: how it
merges, its scale, window and dimensions. Must not know: where the registry lies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from buffer.counter_log import Registry, Retired
from buffer.counters import MeterDefinition

_BRANCHES = ".branches"
_METER = "meter:"
_OF_A_WRITER = re.compile(rf"([0-9a-f]{{32}})({re.escape(_BRANCHES)})?")


class _Registration(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    v: int
    retired_us: int | None
    lost: str | None = None


class _Branches(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    branches: list[str]  # hexadecimal, in the order of the shards


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


def encode_branches(branches: Sequence[bytes]) -> bytes:
    return msgspec.json.encode(_Branches(1, [branch.hex() for branch in branches]))


def encode_meter(meter: MeterDefinition) -> bytes:
    return msgspec.json.encode(_Meter(1, meter.aggregation, meter.scale, meter.window_s, meter.dimensions))


def add_entry(registry: Registry, key: str, value: bytes) -> None:
    """Oldest first: of a writer the last entry of a key counts, of a meter the first. Raises ValueError: these bytes are none.

    A key of an unknown kind is refused as well. Whoever skipped the retirement of a writer, or its branches, would count events twice; a
    build cannot know that what a newer one wrote is harmless.
    """
    try:
        if key.startswith(_METER):
            _add_meter(registry, key.removeprefix(_METER), msgspec.json.decode(value, type=_Meter))
        else:
            _add_of_a_writer(registry, key, value)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def _add_meter(registry: Registry, name: str, read: _Meter) -> None:
    registry.meters.setdefault(name, MeterDefinition(name, "", read.aggregation, read.scale, read.window_s, read.dimensions))


def _add_of_a_writer(registry: Registry, key: str, value: bytes) -> None:
    named = _OF_A_WRITER.fullmatch(key)
    if named is None:
        raise ValueError("a kind of entry that this build does not know; a newer one may have written it")
    writer = bytes.fromhex(named[1])
    if named[2]:
        registry.branches[writer] = tuple(map(bytes.fromhex, msgspec.json.decode(value, type=_Branches).branches))
    else:
        read = msgspec.json.decode(value, type=_Registration)
        registry.writers[writer] = None if read.retired_us is None else Retired(read.retired_us, read.lost)
