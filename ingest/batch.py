"""What one request becomes once it is decoded: digests, folded deltas, and a verdict for every event that is already decided.

Belongs here: the values between decoding and the writer's pipeline. Must not know: HTTP, Redis, the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from buffer.counters import Deltas

# Every verdict that is a rejection. `conflict` is found by the claim, the others before it.
CONFLICT = "conflict"
TOO_LATE = "too_late"
TOO_EARLY = "too_early"
UNKNOWN_TYPE = "unknown_type"
MISSING_FIELD = "missing_field"
INVALID_VALUE = "invalid_value"
TOO_MANY_DIGITS = "too_many_digits"
TOO_LONG = "too_long"
REJECTION_CODES = (CONFLICT, TOO_LATE, TOO_EARLY, UNKNOWN_TYPE, MISSING_FIELD, INVALID_VALUE, TOO_MANY_DIGITS, TOO_LONG)


class Rejection(NamedTuple):
    index: int  # type: ignore[assignment]  # in the request; hides tuple.index, which nobody needs here
    id: str  # as sent, as far as it could be read, else ""; of one that is too long the beginning
    source: str
    code: str  # one of REJECTION_CODES
    detail: str  # one sentence that names the field and the remedy
    raw: bytes  # the event as it was sent


class Batch(msgspec.Struct, frozen=True):  # one a request: a NamedTuple takes five times as long to make
    """One request, decoded, validated and folded. The four sequences line up: event k of those that may be claimed."""

    tenant: int
    received: int  # events in the request
    indexes: Sequence[int]  # of the claimable events, in the request; range(received) when none was rejected
    digests: Sequence[bytes]  # 12 bytes each
    fingerprints: bytes  # 4 bytes each, concatenated
    times_us: Callable[[], Sequence[int]]  # event times of the claimable events; computed on demand, the rare path
    oldest_us: int  # 0 when nothing is claimable
    newest_us: int
    deltas: Deltas  # of all claimable events together
    rejections: Sequence[Rejection]
    refold: Callable[[Sequence[int]], Deltas]  # positions k that count -> their deltas; decodes what it must again, the rare path
    describe: Callable[[int], tuple[str, str, bytes]]  # position k -> (id, source, raw event); the rare path
