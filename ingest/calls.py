"""From requests to claim calls and back: which events a call asks about, and what its reply means for each request.

Pure: no IO, clock or task; every function changes state in one step and returns what is now due. The law is PROTOCOL.md's:
a call once sent is finished under its number, every call leaves a record, two copies of a digest in one call are one claim. Of copies the
first is asked about; the others are told beside the sections, so that however many there are, one call decides them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

from buffer.counters import Deltas, Tallies, together
from dedupe.port import CONFLICT, COPY, DUPLICATE, FINGERPRINT_BYTES, GRANTED, PENDING, Call, Section, Verdicts
from ingest import batch as codes
from ingest.batch import Batch, Rejection


class Outcome(msgspec.Struct, frozen=True):  # one a request, as Batch
    """What a request is answered with once every event of it has its verdict."""

    received: int
    accepted: int
    duplicate: int
    rejections: Sequence[Rejection]


class Request:
    """One batch on its way: what has been decided so far, and who waits for it."""

    __slots__ = (
        "accepted",
        "answer",
        "asked_again",
        "batch",
        "coming",
        "coming_rejected",
        "deadline_s",
        "duplicate",
        "open_positions",
        "rejections",
        "tallied",
    )

    def __init__(self, batch: Batch, deadline_s: float, answer: asyncio.Future[Outcome]) -> None:
        self.batch = batch
        self.deadline_s = deadline_s  # by the event loop's clock
        self.answer = answer
        self.open_positions: Sequence[int] | None = None  # events without a verdict; None: all of them, none was asked about yet
        self.asked_again = 0  # how often, because of pending events
        self.accepted = 0
        self.duplicate = 0
        self.rejections: list[Rejection] | None = None  # None: just those of the decoder
        self.coming = 0  # counters that it may add, until it does
        self.coming_rejected = 0  # bytes of rejected events, likewise
        self.tallied = False  # whether what the decoder rejected is in a call record

    @property
    def undecided(self) -> int:
        return len(self.batch.digests) if self.open_positions is None else len(self.open_positions)

    def reject(self, position: int, code: str, detail: str) -> Rejection:
        id_, source, raw = self.batch.describe(position)
        rejection = Rejection(self.batch.indexes[position], id_, source, code, detail, raw)
        if self.rejections is None:
            self.rejections = list(self.batch.rejections)
        self.rejections.append(rejection)
        return rejection

    def outcome(self) -> Outcome:
        rejections = self.batch.rejections if self.rejections is None else sorted(self.rejections)
        return Outcome(self.batch.received, self.accepted, self.duplicate, rejections)


class Part(msgspec.Struct, frozen=True):  # one a request, as Batch
    """What one call asks for one request."""

    request: Request
    positions: Sequence[int] | None  # None: every claimable event of the batch
    copies: Sequence[int]  # positions whose digest an earlier event of the call has, of this request or another
    digests: Sequence[bytes]  # of those at `positions`
    fingerprints: bytes


class PlannedCall(NamedTuple):
    number: int
    parts: Sequence[Part]  # in the order of the sections
    sections: Sequence[Section]
    oldest_us: int
    newest_us: int
    copies: bytes  # as in Call; in the order of the parts

    def to_send(self) -> Call:
        return Call(self.number, self.sections, self.oldest_us, self.newest_us, self.copies)


class CallResult(NamedTuple):
    """What the journal records of a call, and what becomes of its requests."""

    claims: list[tuple[int, bytes, bytes]]
    deltas: list[Deltas]
    newest_us: int
    tallies: Tallies
    rejected: list[tuple[int, Rejection]]  # (tenant, rejection)
    decided: list[Request]  # every event has its verdict: answer when the record is synced
    pending: list[Request]  # ask again later


TOO_LATE_BY_HORIZON = (
    "the event's time is older than what can still be deduplicated, so it was not counted now; it may have been counted before: "
    "look it up instead of sending it again"
)
CONFLICT_DETAIL = (
    "an event with this source and id was counted before with other content; an id names one event for ever: "
    "send a correction under a new id"
)


def plan(number: int, requests: Iterable[Request]) -> PlannedCall:
    """One call for these requests, sections by tenant, no digest twice."""
    by_tenant: dict[int, list[Request]] = {}
    for request in requests:
        by_tenant.setdefault(request.batch.tenant, []).append(request)
    parts: list[Part] = []
    sections: list[Section] = []
    copies: list[bytes] = []
    asked = 0
    for tenant, group in by_tenant.items():
        mine = [_whole(request) if request.open_positions is None else _some(request, request.open_positions) for request in group]
        digests = _digests(mine)
        if len(set(digests)) != len(digests):
            mine = _without_copies(mine, asked, copies)
            digests = _digests(mine)
        parts += mine
        asked += len(digests)
        if digests:
            sections.append(Section(tenant, b"".join(digests), b"".join([part.fingerprints for part in mine])))
    oldest_us, newest_us = _time_range(parts)
    return PlannedCall(number, parts, sections, oldest_us, newest_us, b"".join(copies))


def _digests(parts: Sequence[Part]) -> Sequence[bytes]:
    return parts[0].digests if len(parts) == 1 else list(chain.from_iterable([part.digests for part in parts]))


def _whole(request: Request) -> Part:
    return Part(request, None, (), request.batch.digests, request.batch.fingerprints)


def _some(request: Request, positions: Sequence[int], copies: Sequence[int] = ()) -> Part:
    digests, prints = request.batch.digests, request.batch.fingerprints
    size = FINGERPRINT_BYTES
    return Part(
        request, positions, copies, [digests[k] for k in positions], b"".join([prints[k * size : k * size + size] for k in positions])
    )


def _without_copies(parts: Sequence[Part], place: int, found: list[bytes]) -> list[Part]:
    """The parts of a tenant, no digest twice. The next place in the call is `place`; what is told of the copies is put into `found`."""
    places: dict[bytes, int] = {}
    left = []
    for part in parts:
        asked: list[int] = []
        copies: list[int] = []
        positions = range(len(part.digests)) if part.positions is None else part.positions
        for k, (position, digest) in enumerate(zip(positions, part.digests, strict=True)):
            if digest in places:
                copies.append(position)
                found.append(COPY.pack(places[digest], part.fingerprints[k * FINGERPRINT_BYTES : (k + 1) * FINGERPRINT_BYTES]))
            else:
                asked.append(position)
                places[digest] = place + len(places)
        left.append(_some(part.request, asked, copies) if copies else part)
    return left


def _time_range(parts: Sequence[Part]) -> tuple[int, int]:
    oldest: list[int] = []
    newest: list[int] = []
    for part in parts:
        if not part.digests:
            continue
        if part.positions is None:
            oldest.append(part.request.batch.oldest_us)
            newest.append(part.request.batch.newest_us)
        else:  # exact: a decided event at or below the horizon must not have the rest refused for ever
            times = part.request.batch.times_us()
            mine = [times[k] for k in part.positions]
            oldest.append(min(mine))
            newest.append(max(mine))
    return min(oldest, default=0), max(newest, default=0)


class Refusal(NamedTuple):
    """What is left of a call of which some events lie at or below the horizon."""

    rest: PlannedCall
    too_late: list[tuple[Request, Rejection]]


def refuse(call: PlannedCall, horizon_us: int) -> Refusal:
    """Events at or below the horizon become `too_late`; the rest is to be sent again under the same number."""
    too_late: list[tuple[Request, Rejection]] = []
    requests: list[Request] = []
    for part in call.parts:
        request = part.request
        times = request.batch.times_us()
        positions = range(len(request.batch.digests)) if request.open_positions is None else request.open_positions
        rest = []
        for position in positions:
            if times[position] <= horizon_us:
                too_late.append((request, request.reject(position, codes.TOO_LATE, TOO_LATE_BY_HORIZON)))
            else:
                rest.append(position)
        request.open_positions = rest
        requests.append(request)
    return Refusal(plan(call.number, requests), too_late)


def settle(call: PlannedCall, verdicts: Verdicts | None, too_late: Sequence[tuple[Request, Rejection]] = ()) -> CallResult:
    """What the reply means. `verdicts` is None for a call of which nothing was left above the horizon."""
    result = CallResult([], [], 0, {}, [], [], [])
    for request, rejection in too_late:
        _tally(result.tallies, request.batch.tenant, rejection.code, 1)
        result.rejected.append((request.batch.tenant, rejection))
    replied = b"" if verdicts is None else verdicts.codes
    everything = replied.count(GRANTED) == len(replied)  # almost always: then the claims are the sections as they were sent
    if everything:
        result.claims.extend(call.sections)
    newest_us = 0
    for part, of_part, of_copies in [(part, None, b"") for part in call.parts] if everything else _shared_out(call.parts, replied):
        newest_us = max(newest_us, _settle_part(part, of_part, of_copies, result))
    return result._replace(deltas=together(result.deltas), newest_us=newest_us)


def _shared_out(parts: Sequence[Part], replied: bytes) -> Iterator[tuple[Part, bytes, bytes]]:
    """(part, what was replied of what it asks, and of its copies): those of all parts come last."""
    at, copies_at = 0, sum([len(part.digests) for part in parts])
    for part in parts:
        end, copies_end = at + len(part.digests), copies_at + len(part.copies)
        yield part, replied[at:end], replied[copies_at:copies_end]
        at, copies_at = end, copies_end


def _settle_part(part: Part, replied: bytes | None, of_copies: bytes, result: CallResult) -> int:
    """`replied` is None where all is granted and claimed. Returns the newest event time granted (or a little more), 0 when nothing was."""
    request = part.request
    if not request.tallied:
        request.tallied = True
        for rejection in request.batch.rejections:
            _tally(result.tallies, request.batch.tenant, rejection.code, 1)
            result.rejected.append((request.batch.tenant, rejection))
    newest_us = 0
    pending: Sequence[int] = ()
    if replied is None:
        if part.digests:
            newest_us = _count(part, range(len(part.digests)), result)
    else:
        whole = replied.count(GRANTED) == len(replied)
        granted = range(len(replied)) if whole else [k for k in range(len(replied)) if replied[k] == GRANTED]
        if granted:
            result.claims.append(_claims(part, granted))
            newest_us = _count(part, granted, result)
        if of_copies or not whole:
            pending = _settle_others(part, replied + of_copies, result)
    request.open_positions = pending
    (result.pending if pending else result.decided).append(request)
    return newest_us


def _settle_others(part: Part, replied: bytes, result: CallResult) -> Sequence[int]:
    """Duplicates and conflicts; `replied` is of the copies, too. Returns the positions that are pending."""
    request = part.request
    positions = range(len(replied)) if part.positions is None else [*part.positions, *part.copies]
    duplicates = replied.count(DUPLICATE)
    if duplicates:
        request.duplicate += duplicates
        _tally(result.tallies, request.batch.tenant, "duplicate", duplicates)
    if CONFLICT in replied:
        _conflicts(request, [positions[k] for k in range(len(replied)) if replied[k] == CONFLICT], result)
    return [positions[k] for k in range(len(replied)) if replied[k] == PENDING]


def _claims(part: Part, granted: Sequence[int]) -> tuple[int, bytes, bytes]:
    """Of the events at these places of the part."""
    tenant, size = part.request.batch.tenant, FINGERPRINT_BYTES
    if len(granted) == len(part.digests):
        return tenant, b"".join(part.digests), part.fingerprints
    digests = b"".join([part.digests[k] for k in granted])
    return tenant, digests, b"".join([part.fingerprints[k * size : k * size + size] for k in granted])


def _count(part: Part, granted: Sequence[int], result: CallResult) -> int:
    """Count the events at these places of the part."""
    request, batch = part.request, part.request.batch
    request.accepted += len(granted)
    _tally(result.tallies, batch.tenant, "accepted", len(granted))
    if len(granted) == len(batch.digests):
        result.deltas.append(batch.deltas)
        return batch.newest_us
    if part.positions is None:
        result.deltas.append(batch.refold(granted))
        return batch.newest_us  # may be that of an event that was not granted: it was asked about, so the claims keep for as long
    positions = [part.positions[k] for k in granted]
    result.deltas.append(batch.refold(positions))
    times = batch.times_us()
    return max(times[position] for position in positions)


def _conflicts(request: Request, positions: Sequence[int], result: CallResult) -> None:
    for position in positions:
        rejection = request.reject(position, codes.CONFLICT, CONFLICT_DETAIL)
        _tally(result.tallies, request.batch.tenant, rejection.code, 1)
        result.rejected.append((request.batch.tenant, rejection))


def _tally(tallies: Tallies, tenant: int, verdict: str, number: int) -> None:
    counts = tallies.get(tenant)
    if counts is None:
        counts = tallies[tenant] = {"received": 0}
    counts["received"] += number
    counts[verdict] = counts.get(verdict, 0) + number
