"""What a claim store over Redis knows of writers, for operators: where each one stands, and the end of one whose disk is lost.

Belongs here: a few commands on a connection of their own, far from the hot path. Must not know: journals, the counter log, what is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from struct import Struct
from types import TracebackType
from typing import NamedTuple, cast

import redis.asyncio as redis

from dedupe.claim_layouts import values_in
from dedupe.port import Identity
from dedupe.rebuild import refused
from dedupe.scripts import NAMESPACE, arguments_of, context_arguments, context_of, load

_TAG = Struct(">II")  # first in the value of a claim: incarnation number, call
_SCANNED_AT_ONCE = 5000
_NOBODY = bytes(16)
_NO_END = 1 << 32

Unreachable = redis.RedisError


class Standing(NamedTuple):
    """One writer in the store."""

    incarnation: bytes  # the last one opened; empty: the store knows none
    mark: int  # the highest call known to be on its disk
    closed: int | None  # the call it ended with; None while it is open
    joined: bool  # whether the store holds all that its journal claims


class Buried(NamedTuple):
    """The last incarnation of a writer whose disk is lost."""

    incarnation: bytes  # empty: the store knows none
    mark: int
    closed: int | None  # before this
    last_call: int  # what it ends with; claims of later calls are void


class Claimed(NamedTuple):
    """What a writer claimed in some of its calls."""

    incarnations: tuple[bytes, ...]  # in the order in which they were opened
    events: Mapping[tuple[bytes, int], Mapping[int, int]]  # (incarnation, call) -> tenant number -> events


def _call_in(through: tuple[bytes, int], incarnation: bytes) -> int:
    """The call of this incarnation that is covered; -1 when none is known to be."""
    return through[1] if through[0] == incarnation else -1


class RedisWriters:
    """`async with` it. Its methods raise `Unreachable`, and WrongLog when the store belongs to another log or identity."""

    def __init__(self, url: str, identity: Identity, namespace: str = NAMESPACE) -> None:
        self._identity = identity
        self._namespace = namespace
        self._redis = redis.Redis.from_url(url)

    async def __aenter__(self) -> RedisWriters:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._redis.aclose()

    async def is_open(self) -> bool:
        """Whether claims are complete: every member has joined."""
        return await self._get("open", "replid") == (await self._replication_id()).encode()

    async def standings(self, writers: Sequence[bytes]) -> dict[bytes, Standing]:
        joined = f"{self._namespace}joined:{await self._replication_id()}"
        found = {}
        for writer in writers:
            incarnation = await self._last(writer)
            mark, closed = await self._marks(incarnation)
            has_joined = bool(await self._redis.sismember(joined, writer.hex()))
            found[writer] = Standing(incarnation, mark, closed, has_joined)
        return found

    async def bury(self, writer: bytes, through: tuple[bytes, int], *, for_good: bool) -> Buried:
        """Close the last incarnation where its record ends; `through`: the last call that a flush in the log covered.

        Not `for_good`: only tell what that would be.
        """
        context = context_of(self._identity, writer, _NOBODY, 0)
        arguments = [*context_arguments(self._namespace, context), *arguments_of("bury", for_good, *through)]
        reply = cast(Sequence[object], await self._redis.eval(load()["bury"].text.decode(), 0, *arguments))
        if reply[0] != b"buried":
            refused(reply)
        _, named, mark, closed, last = cast(tuple[bytes, bytes, int, int, int], tuple(reply))
        return Buried(bytes.fromhex(named.decode()), mark, None if closed < 0 else closed, last)

    async def claimed_after(self, writer: bytes, before: tuple[bytes, int], through: tuple[bytes, int]) -> Claimed:
        """What the writer claimed in calls after `before`: looks at every claim.

        Call 0 stands for what was claimed again from the journal when Redis was new: it is told only where the journal then held calls
        after `through`.
        """
        incarnations = await self._incarnations_from(writer, before[0])
        last = await self._last(writer)
        spans = {number: await self._span(incarnation, before, last) for number, incarnation in incarnations.items()}
        told_again = {
            number for number, incarnation in incarnations.items() if await self._base(incarnation) > _call_in(through, incarnation)
        }
        events: dict[tuple[bytes, int], Counter[int]] = {}
        if incarnations:
            async for key in self._redis.scan_iter(f"{self._namespace}claims:*", count=_SCANNED_AT_ONCE):
                tenant = int(key.rsplit(b":", 1)[1])
                async for field, content in self._redis.hscan_iter(key, count=_SCANNED_AT_ONCE):
                    for value in values_in(self._identity.layout, field, content):
                        number, call = _TAG.unpack_from(value)
                        if number in spans and (call in spans[number] if call else number in told_again):
                            events.setdefault((incarnations[number], call), Counter())[tenant] += 1
        return Claimed(tuple(incarnations.values()), events)

    async def _incarnations_from(self, writer: bytes, first: bytes) -> dict[int, bytes]:
        """Of this writer, `first` and those opened after it; all where the store does not know `first`. By their number in tags."""
        found = cast(Mapping[bytes, bytes], await self._redis.hgetall(f"{self._namespace}incarnations"))
        numbers = sorted((int(number), bytes.fromhex(incarnation.decode())) for number, incarnation in found.items())
        least = next((number for number, incarnation in numbers if incarnation == first), 0)
        owners = {number: await self._get(f"w:{incarnation.hex()}", "writer") for number, incarnation in numbers if number >= least}
        return {number: incarnation for number, incarnation in numbers if owners.get(number) == writer.hex().encode()}

    async def _span(self, incarnation: bytes, before: tuple[bytes, int], last: bytes) -> range:
        """Its calls after `before` that may count: a call above the one that its journal closed it with was never answered. The last one
        may have been closed by `bury` instead, which knows only what was told, when the end of the writer was not written down after it."""
        _, closed = await self._marks(incarnation)
        end = _NO_END if closed is None or incarnation == last else closed + 1
        return range(before[1] + 1 if incarnation == before[0] else 1, end)

    async def _last(self, writer: bytes) -> bytes:
        """The incarnation that was opened last; empty when none is known."""
        named = cast(bytes | None, await self._redis.get(f"{self._namespace}writer:{writer.hex()}"))
        return b"" if named is None else bytes.fromhex(named.decode())

    async def _base(self, incarnation: bytes) -> int:
        """The call up to which its journal was claimed again here; -1 when it was not."""
        return int(await self._get(f"w:{incarnation.hex()}", "base") or -1)

    async def _marks(self, incarnation: bytes) -> tuple[int, int | None]:
        if not incarnation:
            return 0, None
        mark, closed = await self._get(f"w:{incarnation.hex()}", "mark"), await self._get(f"w:{incarnation.hex()}", "closed")
        return int(mark or 0), None if closed is None else int(closed)

    async def _get(self, key: str, field: str) -> bytes | None:
        return cast(bytes | None, await self._redis.hget(self._namespace + key, field))

    async def _replication_id(self) -> str:
        return str((await self._redis.info("replication"))["master_replid"])
