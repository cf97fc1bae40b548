"""The digest: what stands for an event's identity (source, id) within its tenant.

Pure. Belongs here: the digest and the hash of all that identity depends on. Must not know: tenants (the tenant number stays beside the
digest, outside the hash: xxh3 is not proof against a tenant who constructs collisions), events' other fields, where claims are kept.

digest = the first 12 bytes of xxh3_128 over `<length of source>:<source><id>` in UTF-8. The length makes it unambiguous.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from xxhash import xxh3_64_hexdigest, xxh3_128_digest

DIGEST_VERSION = 1
SEED = 0  # xxh3's default, so it need not be passed
MOST_PREFIXES = 10_000


class Identified(Protocol):
    """An event as far as its identity goes."""

    @property
    def source(self) -> str: ...

    @property
    def id(self) -> str: ...


class _Prefixes(dict[str, str]):
    """source -> its length-prefixed form. Senders have few sources; should they not, the cache starts afresh."""

    def __missing__(self, source: str) -> str:
        if len(self) >= MOST_PREFIXES:
            self.clear()
        self[source] = prefix = f"{len(source)}:{source}"
        return prefix


_prefixes = _Prefixes()


def digest(source: str, event_id: str) -> bytes:
    return xxh3_128_digest((_prefixes[source] + event_id).encode())[:12]


def digests(events: Iterable[Identified]) -> list[bytes]:
    """The digests of a batch, in its order. A comprehension over the events themselves is the fastest form."""
    prefixes = _prefixes
    return [xxh3_128_digest((prefixes[event.source] + event.id).encode())[:12] for event in events]


def identity_hash(generation_us: int, shard: int = 0, shards: int = 1, *, packed: bool = False) -> bytes:
    """Of all that must agree between writers of one claim store: 16 hex digits. Which tenants are in it, and how claims lie in it, too."""
    share = f" shard {shard} of {shards}" if shards > 1 else ""
    layout = " packed" if packed else ""
    return xxh3_64_hexdigest(f"digest {DIGEST_VERSION} seed {SEED} generation {generation_us}{share}{layout}".encode()).encode()
