"""The scripts of lua/, loaded, and how the arguments of each are laid out.

Pure but for reading its own package's files. Belongs here: one function per script that turns Python values into the script's ARGV (its
head documents them). Must not know: connections, sessions' life, when which script is due. claim_table.py has the same operations in
Python: `getattr(table, name)(context, *arguments)` answers what the script `name` answers to `arguments_of(name, *arguments)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from dedupe.digest import identity_hash
from dedupe.port import HASHED, PACKED, Identity, Section

NAMES = ("hello", "publish", "join", "reclaim", "joined", "claim", "close", "bury")
NAMESPACE = "parshall:"

HEAD = Struct(">IIQQQ")  # of a claim: number, mark, caller's clock, least and greatest event time; copies follow
_ORIGIN = Struct(">QQ")  # of a re-claimed section: generation, newest event time
_INCLUDE = "--@include "
_FOLDER = Path(__file__).parent / "lua"


class Context(NamedTuple):
    """What every script is told first: who asks on which connection, and what must agree between writers."""

    writer: bytes
    incarnation: bytes
    session: int
    log: str
    identity: bytes  # digest.identity_hash
    generation_us: int
    lifetime_us: int


class Reclaim(NamedTuple):
    """Digests of one tenant and generation, to be claimed again."""

    tenant: int
    generation: int
    newest_us: int
    digests: bytes
    fingerprints: bytes


class Script(NamedTuple):
    text: bytes
    sha: bytes


def context_of(identity: Identity, writer: bytes, incarnation: bytes, session: int) -> Context:
    assert identity.generation_us >= 1_000_000, "the scripts count generations in numbers of at most 14 digits"
    hashed = identity_hash(identity.generation_us, identity.shard, identity.shards, packed=identity.layout == PACKED)
    return Context(writer, incarnation, session, identity.log, hashed, identity.generation_us, identity.lifetime_us)


def _read(file: str, layout: str) -> str:
    """`claims.lua`, which scripts include, is that of the layout."""
    lines = (_FOLDER / (f"claims_{layout}.lua" if file == "claims.lua" else file)).read_text("utf-8").splitlines()
    return "\n".join([_read(line.removeprefix(_INCLUDE), layout) if line.startswith(_INCLUDE) else line for line in lines])


def load(layout: str = HASHED) -> dict[str, Script]:
    """name -> script, its includes put in."""
    texts = {name: _read(f"{name}.lua", layout).encode() for name in NAMES}
    return {name: Script(text, hashlib.sha1(text).hexdigest().encode()) for name, text in texts.items()}


def context_arguments(namespace: str, context: Context) -> list[bytes]:
    """ARGV[1..8] of every script."""
    writer, incarnation, session, log, identity, generation_us, lifetime_us = context
    texts = [namespace, writer.hex(), incarnation.hex(), str(session), log]
    return [text.encode() for text in texts] + [identity, b"%d" % generation_us, b"%d" % lifetime_us]


def _hello(clock_us: int) -> list[bytes]:
    return [b"%d" % clock_us]


def _publish(mark: int, closed: Iterable[tuple[bytes, int]]) -> list[bytes]:
    arguments = [b"%d" % mark]
    for incarnation, last in closed:
        arguments += (incarnation.hex().encode(), b"%d" % last)
    return arguments


def _join(era: bytes, last: bytes, incarnations: Sequence[bytes]) -> list[bytes]:
    return [era, last, *(incarnation.hex().encode() for incarnation in incarnations)]


def _reclaim(era: bytes, clock_us: int, sections: Sequence[Reclaim]) -> list[bytes]:
    arguments = [era, b"%d" % clock_us]
    for tenant, generation, newest_us, digests, fingerprints in sections:
        arguments += (b"%d" % tenant, _ORIGIN.pack(generation, newest_us), digests + fingerprints)
    return arguments


def _joined(era: bytes, mark: int, horizon_us: int, elsewhere: int, members: Iterable[bytes]) -> list[bytes]:
    return [era, b"%d" % mark, b"%d" % horizon_us, b"%d" % elsewhere, *(member.hex().encode() for member in sorted(members))]


def _claim(
    number: int, mark: int, clock_us: int, oldest_us: int, newest_us: int, sections: Sequence[Section], copies: bytes = b""
) -> list[bytes]:
    arguments = [HEAD.pack(number, mark, clock_us, oldest_us, newest_us) + copies]
    for tenant, digests, fingerprints in sections:
        arguments += (b"%d" % tenant, digests + fingerprints)
    return arguments


def _close(last_call: int) -> list[bytes]:
    return [b"%d" % last_call]


def _bury(for_good: bool, through: bytes, through_call: int) -> list[bytes]:
    return [b"%d" % for_good, through.hex().encode(), b"%d" % through_call]


_LAYOUT: dict[str, Callable[..., list[bytes]]] = {
    "hello": _hello,
    "publish": _publish,
    "join": _join,
    "reclaim": _reclaim,
    "joined": _joined,
    "claim": _claim,
    "close": _close,
    "bury": _bury,
}


def arguments_of(name: str, *arguments: object) -> list[bytes]:
    """ARGV[9..] of the script `name`."""
    return _LAYOUT[name](*arguments)
