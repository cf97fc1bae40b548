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

from dedupe.port import Identity
from dedupe.rebuild import refused
from dedupe.scripts import NAMESPACE, arguments_of, context_arguments, context_of, load

_TAG = Struct(">II")  # first in the value of a claim: incarnation number, call
_SCANNED_AT_ONCE = 5000
_NOBODY = bytes(16)

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
            named = cast(bytes | None, await self._redis.get(f"{self._namespace}writer:{writer.hex()}"))
            incarnation = b"" if named is None else bytes.fromhex(named.decode())
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

    async def claimed_after(self, writer: bytes, through: tuple[bytes, int], last: tuple[bytes, int]) -> Mapping[int, int]:
        """Tenant number -> events that the writer claimed after `through`, in calls that count (up to `last`): looks at every claim."""
        doubtful = await self._doubtful_calls(writer, through, last)
        events: Counter[int] = Counter()
        if doubtful:
            async for key in self._redis.scan_iter(f"{self._namespace}claims:*", count=_SCANNED_AT_ONCE):
                tenant = int(key.rsplit(b":", 1)[1])
                async for _, value in self._redis.hscan_iter(key, count=_SCANNED_AT_ONCE):
                    number, call = _TAG.unpack_from(value)
                    events[tenant] += number in doubtful and doubtful[number][0] < call <= doubtful[number][1]
        return +events

    async def _doubtful_calls(self, writer: bytes, through: tuple[bytes, int], last: tuple[bytes, int]) -> dict[int, tuple[int, int]]:
        """Number of an incarnation in the tags of claims -> (call after which, call up to which) nothing was seen in the log.

        Numbers are given in order of opening. Call 0 stands for what was claimed again from the journal.
        """
        found = cast(Mapping[bytes, bytes], await self._redis.hgetall(f"{self._namespace}incarnations"))
        numbers = {int(number): bytes.fromhex(incarnation.decode()) for number, incarnation in found.items()}
        covered = {incarnation: number for number, incarnation in numbers.items()}.get(through[0], 0)
        doubtful = {}
        for number, incarnation in sorted(numbers.items()):
            if number < covered or await self._get(f"w:{incarnation.hex()}", "writer") != writer.hex().encode():
                continue
            mark, closed = await self._marks(incarnation)
            end = last[1] if incarnation == last[0] else max(mark, closed or 0)
            doubtful[number] = (through[1] if number == covered else -1, end)
        return doubtful

    async def _marks(self, incarnation: bytes) -> tuple[int, int | None]:
        if not incarnation:
            return 0, None
        mark, closed = await self._get(f"w:{incarnation.hex()}", "mark"), await self._get(f"w:{incarnation.hex()}", "closed")
        return int(mark or 0), None if closed is None else int(closed)

    async def _get(self, key: str, field: str) -> bytes | None:
        return cast(bytes | None, await self._redis.hget(self._namespace + key, field))

    async def _replication_id(self) -> str:
        return str((await self._redis.info("replication"))["master_replid"])
