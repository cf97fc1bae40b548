"""The claims port: what a writer may ask about event identities, and what it is promised.

Belongs here: the port and the values that cross it. Must not know: Redis, files, HTTP, meters.

An identity is (tenant number, 12-byte digest); see digest.py. A *call* asks about a group of them in one step; its verdicts are taken
atomically. The law (PROTOCOL.md): calls are numbered 1, 2, 3 … within an incarnation; a call once sent is finished, sent again under
its number until it is answered; only the caller's journal makes a grant count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from struct import Struct
from typing import NamedTuple, Protocol

GRANTED, DUPLICATE, PENDING, CONFLICT = b"gdpc"  # one byte an event in `Verdicts.codes`

DIGEST_BYTES = 12
FINGERPRINT_BYTES = 4  # first byte: the shape of the event type; the other three: what was sent
COPY = Struct(">I4s")  # the place of its first among all digests of the call, from 0; its own fingerprint


HASHED, PACKED = LAYOUTS = ("hashed", "packed")  # how claims may lie in Redis: claim_layouts.py


def shard_of(tenant: int, shards: int) -> int:
    """Which of so many claim stores has the claims of a tenant.

    By its number, which journals and claims keep even when the tenant is gone from the configuration. A remainder is enough: changing the
    number of shards moves every claim anyway, and whoever gives out the numbers can see where a tenant will be.
    """
    return tenant % shards


class Section(NamedTuple):
    """The identities of one tenant in one call. No digest occurs twice in the sections of one tenant in a call."""

    tenant: int
    digests: bytes  # 12 bytes an event, concatenated
    fingerprints: bytes  # 4 bytes an event, in the same order


class Call(NamedTuple):
    """One claim round trip for a group of requests. Sections may be empty: then the call only occupies its number."""

    number: int  # 1, 2, 3 … within the incarnation, below 2**32
    sections: Sequence[Section]
    oldest_us: int  # the least event time in the call, microseconds since 1970 UTC
    newest_us: int  # the greatest
    copies: bytes = b""  # a COPY for each event whose digest is in the sections already: they are one claim


class Verdicts(NamedTuple):
    """The call was executed."""

    number: int
    generation: int  # the generation that grants went into; the journal keeps it
    execution: int  # how many calls of this incarnation the store had executed, this one included; the journal keeps it
    horizon_us: int  # no event at or below this time is ever claimed again; the journal keeps it
    codes: bytes  # one of GRANTED, DUPLICATE, PENDING, CONFLICT an event, sections first, then copies; b"" when all are granted
    branch: bytes = b""  # of the store's life, within which executions count; the journal keeps it


class Refused(NamedTuple):
    """Nothing was claimed: the call holds an event at or below the horizon. Send the rest again under the same number."""

    number: int
    horizon_us: int


Reply = Verdicts | Refused


class Claimed(NamedTuple):
    """What one journal record granted to one tenant: read back to rebuild the claims."""

    tenant: int
    generation: int
    newest_us: int  # the newest event time of the record
    digests: bytes
    fingerprints: bytes
    incarnation: bytes = b""  # which called; the faster join skips what the store has of it
    call: int = 0
    execution: int = 0  # as in `Verdicts`, like the branch
    branch: bytes = b""


class History(Protocol):
    """What a writer's journal knows of its claims. `ingest` hands it in, so that claims need not know the journal."""

    @property
    def writer(self) -> bytes:
        """The writer's 16-byte id."""

    @property
    def incarnation(self) -> bytes:
        """The 16-byte id of this opening; journalled and synced before `Claims.run` is called."""

    @property
    def closed(self) -> Sequence[tuple[bytes, int]]:
        """All earlier incarnations with the number of the last call each has in the journal (0: none), oldest first."""

    @property
    def mark(self) -> int:
        """The highest call of this incarnation known to be on disk."""

    @property
    def horizon_us(self) -> int:
        """The highest horizon in the journal or in the registry of writers."""

    @property
    def lost_horizon_us(self) -> int:
        """The highest horizon of writers whose journals are lost: their claims stand only where claims have been complete since."""

    @property
    def branch(self) -> bytes:
        """The branch of the store's life that was entered last; nothing before the first."""

    async def enter(self, branch: bytes) -> None:
        """Return once it is on disk, and in the registry for all to see, that claims go on in this branch."""

    async def drain(self) -> None:
        """Return once everything appended so far is on disk (so that `claims` and `mark` hold it)."""

    def claims(self) -> Iterator[Claimed]:
        """Every digest that the journal still keeps. May read files."""

    async def members(self) -> Mapping[bytes, bytes]:
        """All writers registered and not retired, dead ones included: id -> the branch each one entered last, nothing before the first."""


class State(Enum):
    DISCONNECTED = "disconnected"  # not reachable; unanswered calls wait
    REBUILDING = "rebuilding"  # reachable, but claims are not complete yet: some member has not joined
    OPEN = "open"  # calls are executed
    FULL = "full"  # calls already sent are executed, but no more ought to be sent: there is no room for their claims


class Identity(NamedTuple):
    """What must agree between all writers of one claim store."""

    log: str  # the counter log's identity: of a Kafka cluster with its topic prefix, or of a local log
    generation_us: int  # length of a generation
    lifetime_us: int  # max_age + max_skew (the margins of both clocks included): a generation goes once its newest is older
    shard: int = 0  # which of `shards` stores this is
    shards: int = 1  # how many share the tenants
    layout: str = HASHED


class ClaimsError(Exception):
    """The process must stop: going on could count twice or lose. The message is one sentence for the operator."""


class Zombie(ClaimsError):
    """This incarnation was closed by somebody else."""


class CallsSpent(Zombie):
    """The incarnation has no call numbers left: what helps is a new one, too."""


class StaleJournal(ClaimsError):
    """The claim store knows more of this journal than the journal does: it is an old copy."""


class WrongLog(ClaimsError):
    """The claim store belongs to another log or to another kind of identity."""


class UnsuitableStore(ClaimsError):
    """The claim store is set up in a way that would lose claims."""


class Claims(Protocol):
    """An ordered connection of one incarnation to the place that keeps the claims."""

    @property
    def state(self) -> State: ...

    @property
    def clock_off_us(self) -> int | None:
        """By how much our clock is ahead of the store's, less than 0: behind; None: not known, or the same clock."""

    @property
    def accepted(self) -> bool:
        """Whether the store has once taken this journal for what it claims to be: no old copy, and the writer's newest opening."""

    async def run(self, history: History) -> None:
        """Connect, publish what `history` closed, join where that is needed, reconnect and rejoin for ever; until cancelled.

        Publishes, in this order: closed incarnations, then this incarnation as the writer's last (compare-and-set).
        Raises ClaimsError when the process must stop.
        """

    def send(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        """Send without waiting, from the event loop. `on_reply` is called exactly once, from the event loop, never within `send`.

        Replies come in the order of execution, which is call order except for a call that is sent again after `Refused`
        (`send` it again with the same number). While not OPEN calls wait; they are sent in call order once it is.
        """

    def raise_mark(self, mark: int) -> None:
        """Tell others that every call up to `mark` is on disk: with the next call, or by itself within 50 ms."""

    async def close(self, last_call: int) -> None:
        """Publish that this incarnation ended with `last_call` (all answered, all on disk): the last thing done with a store that is OPEN.

        It ends `run`. What does not get through is published by the journal's next opening.
        """
