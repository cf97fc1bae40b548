"""How claims lie in the hashes of Redis, for whoever reads them without a script.

Pure. Belongs here: what lua/claims_hashed.lua and lua/claims_packed.lua write, as Python reads it. Must not know: what a tag means.

hashed: a field a claim, digest -> value. packed: fields that are groups of claims, 4 bytes -> (digest, value) joined, and two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from dedupe.port import DIGEST_BYTES, HASHED

_VALUE_BYTES = 12  # tag and fingerprint
_ENTRY_BYTES = DIGEST_BYTES + _VALUE_BYTES
_GROUP_NUMBER_BYTES = 4


def values_in(layout: str, field: bytes, content: bytes) -> Iterator[bytes]:
    """The values of the claims in one field of a hash."""
    if layout == HASHED:
        yield content
    elif len(field) == _GROUP_NUMBER_BYTES:  # the others are numbers
        for at in range(DIGEST_BYTES, len(content), _ENTRY_BYTES):
            yield content[at : at + _VALUE_BYTES]
