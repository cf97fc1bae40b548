"""What the registry of writers (`usage.writers`) holds, as bytes: two entries a writer, each under a key of its own.

Pure. `WRITER` says whether it is a member, `WRITER.branches` which branch of each claim store it entered last. They are apart because
somebody else may retire a writer, which its own announcement must not undo. Must not know: where the registry lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from buffer.counter_log import Registry, Retired

_BRANCHES = ".branches"


class _Registration(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    v: int
    retired_us: int | None
    lost: str | None = None


class _Branches(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    branches: list[str]  # hexadecimal, in the order of the shards


def member_key(writer: bytes) -> str:
    return writer.hex()


def branches_key(writer: bytes) -> str:
    return writer.hex() + _BRANCHES


def encode_member(retired: Retired | None) -> bytes:
    return msgspec.json.encode(_Registration(1, None) if retired is None else _Registration(1, *retired))


def encode_branches(branches: Sequence[bytes]) -> bytes:
    return msgspec.json.encode(_Branches(1, [branch.hex() for branch in branches]))


def add_entry(registry: Registry, key: str, value: bytes) -> None:
    """Oldest first: a later entry of the same key counts. Raises ValueError: these bytes are none."""
    try:
        writer = bytes.fromhex(key.removesuffix(_BRANCHES))
        if key.endswith(_BRANCHES):
            registry.branches[writer] = tuple(map(bytes.fromhex, msgspec.json.decode(value, type=_Branches).branches))
        else:
            read = msgspec.json.decode(value, type=_Registration)
            registry.writers[writer] = None if read.retired_us is None else Retired(read.retired_us, read.lost)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
