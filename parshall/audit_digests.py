"""Is any event counted twice: one identity granted by two calls, in one journal or in two?

An identity whose claim has gone may be granted again, to an event that is newer: then the horizon, which a claim's generation raises when
it goes, has reached the first one's time, and nothing at that time can be counted any more. So that is no event counted twice.

Pure but for the journals that it is handed. Belongs here: finding a digest that occurs twice among very many, in little memory. Must not
know: files, what else is audited.

Two passes. The first marks each digest in a field of bits and keeps those whose bit was set already: all that occur twice, and a few that
only share a bit. The second looks at these alone. A digest costs two bytes, where a set of them would cost a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from buffer.journal_records import CallRecord, JournalRecord, Opened, Snapshot
from parshall.audit_records import Difference

_DIGEST_BYTES = 12
_BITS_A_DIGEST = 16
_FEWEST_BITS, _MOST_BITS = 1 << 16, 1 << 33
_JOURNAL_BYTES_A_DIGEST = 16  # at least: its 12 bytes and 4 of a fingerprint

Journal = tuple[str, Callable[[], Iterable[JournalRecord]]]  # (where it is, its records from the first that is kept)
Identity = tuple[int, bytes]  # (tenant number, digest)


class Grant(NamedTuple):
    directory: str
    incarnation: str
    call: int
    newest_us: int  # event time that it granted
    horizon_us: int  # that it was answered with

    def overlaps(self, other: Grant) -> bool:
        """Whether the claims of neither may have gone before the other one was made: of another journal, it may have come first."""
        return self.horizon_us < other.newest_us and other.horizon_us < self.newest_us

    def __str__(self) -> str:
        return f"call {self.call} of incarnation {self.incarnation} in {self.directory}"


def granted_twice(journals: Iterable[Journal], journal_bytes: int, tenants: Callable[[int], str]) -> Iterator[Difference]:
    """`journal_bytes`: of all journals together, about."""
    journals = list(journals)
    suspects = _suspects(journals, _bits_for(journal_bytes // _JOURNAL_BYTES_A_DIGEST))
    known: dict[Identity, list[Grant]] = {}
    for identity, grant in _grants(journals) if suspects else ():
        if identity not in suspects:
            continue
        others = known.setdefault(identity, [])
        others.append(grant)
        if (earlier := next((one for one in others[:-1] if grant.overlaps(one)), None)) is not None:
            tenant, digest = identity
            what = f"an event of tenant {tenants(tenant)} (digest {digest.hex()}) is counted twice: by {earlier}, and by {grant}"
            yield Difference(what, "copy both journals, and report it; the usage of one of the two calls is too much")


def _bits_for(digests: int) -> int:
    """A power of two."""
    return 1 << (max(_FEWEST_BITS, min(_MOST_BITS, digests * _BITS_A_DIGEST)) - 1).bit_length()


def _suspects(journals: Iterable[Journal], bits: int) -> set[Identity]:
    field = bytearray(bits // 8)
    mask = bits - 1
    found: set[Identity] = set()
    for identity, _ in _grants(journals):
        tenant, digest = identity
        bit = (int.from_bytes(digest[:8], "big") ^ tenant * 0x9E3779B97F4A7C15) & mask
        at, flag = bit >> 3, 1 << (bit & 7)
        if field[at] & flag:
            found.add(identity)
        field[at] |= flag
    return found


def _grants(journals: Iterable[Journal]) -> Iterator[tuple[Identity, Grant]]:
    for directory, records in journals:
        incarnation = ""
        for record in records():
            match record:
                case Snapshot() if not incarnation and record.incarnations:
                    incarnation = record.incarnations[-1][0].hex()
                case Opened():
                    incarnation = record.incarnation.hex()
                case CallRecord():
                    grant = Grant(directory, incarnation, record.number, record.newest_us, record.horizon_us)
                    for tenant, digests, _ in record.claims:
                        for at in range(0, len(digests), _DIGEST_BYTES):
                            yield (tenant, digests[at : at + _DIGEST_BYTES]), grant
                case _:
                    pass
