"""Credentials: from an Authorization header to the tenant and the scopes of its key.

Pure but for a bounded cache. Must not know: HTTP answers, where the keys are configured.

A key is never stored, only its keyed hash. It is found by looking the hash up in a dict, so how long that takes says nothing about how
much of a guessed key was right.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

INGEST = "ingest"
READ = "read"
ADMIN = "admin"
SCOPES = (INGEST, READ, ADMIN)

_HASH_KEY = b"parshall api key 1"  # keeps these hashes apart from every other use of blake2b
_MOST_CACHED = 10_000
_MOST_CHARACTERS = 512


class Principal(NamedTuple):
    """Who sent a request."""

    tenant: int
    tenant_name: str
    scopes: frozenset[str]


def hash_key(key: str) -> str:
    """What the configuration keeps of an API key: 64 hexadecimal digits."""
    return blake2b(key.encode("utf-8", "surrogateescape"), key=_HASH_KEY, digest_size=32).hexdigest()


class Keys:
    """All keys of one configuration; replaced as a whole."""

    def __init__(self, keys: Iterable[tuple[str, Principal]]) -> None:
        """`keys`: (hash of a key, whose it is)."""
        self._by_hash = dict(keys)
        self._by_header: dict[str, Principal] = {}

    def principal(self, authorization: str | None) -> Principal | None:
        """None: no key, or none that is known."""
        if authorization is None:
            return None
        known = self._by_header.get(authorization)
        return known if known is not None else self._look_up(authorization)

    def _look_up(self, authorization: str) -> Principal | None:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key or len(key) > _MOST_CHARACTERS:
            return None
        principal = self._by_hash.get(hash_key(key))
        # What is unknown is not cached, as there is no end of it; nor is what may be long by many spaces.
        if principal is not None and len(authorization) <= _MOST_CHARACTERS:
            if len(self._by_header) >= _MOST_CACHED:
                self._by_header.clear()
            self._by_header[authorization] = principal
        return principal
