"""What INFO tells of a Redis: whether it is a server of the kind that keeps claims, whether it throws keys away when its memory is full
(the policy, and how many went), and its clock.

Belongs here: the question, the answer, the sentences for the operator. Must not know: connections, when it is asked.

A claim that was thrown away lets its event be counted again, and nothing in the store shows that it is missing. So both are looked at: the
policy may be changed while writers are connected, and back again before anybody has looked.
"""

from __future__ import annotations

from typing import NamedTuple

from dedupe.ordered_connection import pack
from dedupe.port import UnsuitableStore

QUESTION = pack([b"INFO", b"memory", b"stats", b"server"])
SAFE_POLICY = b"noeviction"
CLOCK_OFF_US = 30_000_000  # two clocks that differ by more are worth a word: no clock that is kept right is so far off
_UNKNOWN = b"unknown"
_UNFIT = {  # mode -> what to do
    b"cluster": "The Redis at {name} is in cluster mode, where the keys that one call needs lie on several nodes: redis.url must name one "
    "primary that is in no cluster, or several such, separated by commas, that share the tenants (docs/decisions/0015-shards.md).",
    b"sentinel": "What answers at {name} is a Sentinel, which keeps no claims: redis.url must name the primary that it watches, by a name "
    "or an address that goes with it when another Redis becomes the primary.",
}


class Info(NamedTuple):
    mode: bytes  # standalone, as a rule
    policy: bytes
    evicted: int  # keys, since the server started or its statistics were reset
    clock_us: int | None  # since 1970 UTC; None: it does not say


def read_info(info: bytes) -> Info:
    evicted, clock_us = _field(info, b"evicted_keys"), _field(info, b"server_time_usec")
    return Info(
        mode=_mode(info),
        policy=_field(info, b"maxmemory_policy"),
        evicted=int(evicted) if evicted.isdigit() else 0,
        clock_us=int(clock_us) if clock_us.isdigit() else None,
    )


def clocks_differ(name: str, off_us: int) -> str | None:
    """`off_us`: by how much ours is ahead. None: not worth a word."""
    if abs(off_us) < CLOCK_OFF_US:
        return None
    way = "ahead of" if off_us > 0 else "behind"
    return (
        f"the clock of this machine is {abs(off_us) // 1_000_000} s {way} that of the Redis at {name}: set right the one that is wrong; "
        "by ours it is judged which events are too late or too early, and what is rejected is not sent again"
    )


def check_mode(name: str, mode: bytes) -> None:
    """Raises UnsuitableStore."""
    if mode in _UNFIT:
        raise UnsuitableStore(_UNFIT[mode].format(name=name))


def in_cluster_mode(name: str, told: str) -> str | None:
    """The sentence for the operator, where what was refused is refused in cluster mode alone: choosing a database, before anything else."""
    return _UNFIT[b"cluster"].format(name=name) if "in cluster mode" in told else None


def check_policy(name: str, policy: bytes) -> None:
    """Raises UnsuitableStore."""
    if policy != SAFE_POLICY:
        raise UnsuitableStore(
            f"The Redis at {name} evicts keys when its memory is full (maxmemory-policy {policy.decode(errors='replace')}), which would "
            "lose claims, so that events are counted twice: set maxmemory-policy to noeviction; if it has evicted keys by then, all claims "
            "are made again from the journals, as after a FLUSHALL."
        )


def _mode(info: bytes) -> bytes:
    """Valkey has another name for it, unless it is told to be compatible."""
    return next((mode for name in (b"redis_mode", b"server_mode") if (mode := _field(info, name)) != _UNKNOWN), _UNKNOWN)


def _field(info: bytes, name: bytes) -> bytes:
    """The value of a line `name:value`."""
    for line in info.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key == name:
            return value
    return _UNKNOWN
