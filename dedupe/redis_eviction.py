"""Whether a Redis throws keys away when its memory is full, as INFO tells it: the setting, and how many keys are gone by it.

Belongs here: the question, the answer, the sentence for the operator. Must not know: connections, when it is asked.

A claim that was thrown away lets its event be counted again, and nothing in the store shows that it is missing. So both are looked at: the
policy may be changed while writers are connected, and back again before anybody has looked.
"""

from __future__ import annotations

from typing import NamedTuple

from dedupe.ordered_connection import pack
from dedupe.port import UnsuitableStore

QUESTION = pack([b"INFO", b"memory", b"stats"])
SAFE_POLICY = b"noeviction"


class Eviction(NamedTuple):
    policy: bytes
    evicted: int  # keys, since the server started or its statistics were reset


def eviction_in(info: bytes) -> Eviction:
    evicted = _field(info, b"evicted_keys")
    return Eviction(_field(info, b"maxmemory_policy"), int(evicted) if evicted.isdigit() else 0)


def check_policy(name: str, policy: bytes) -> None:
    """Raises UnsuitableStore."""
    if policy != SAFE_POLICY:
        raise UnsuitableStore(
            f"The Redis at {name} evicts keys when its memory is full (maxmemory-policy {policy.decode(errors='replace')}), which would "
            "lose claims, so that events are counted twice: set maxmemory-policy to noeviction; if it has evicted keys by then, all claims "
            "are made again from the journals, as after a FLUSHALL."
        )


def _field(info: bytes, name: bytes) -> bytes:
    """The value of a line `name:value`."""
    for line in info.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key == name:
            return value
    return b"unknown"
