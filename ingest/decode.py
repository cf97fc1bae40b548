"""Decoding: the bytes of one request become digests, fingerprints, folded deltas, and a verdict for every event that cannot count.

Belongs here: the two paths through a batch. Must not know: HTTP, Redis, the journal, the clock (`now_us` comes in).

One C call decodes and validates the whole array; where the types refuse something in it, the array is decoded event by event. A few passes
over columns follow, which leave out what the types cannot refuse. Each event that is left out gets its own verdict (checker.py), and its
neighbours still count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, Union

import msgspec
from msgspec import Raw
from xxhash import xxh3_64_digest

from buffer.counters import MERGE_OF, Deltas, less
from dedupe.digest import digest, digests
from dedupe.port import FINGERPRINT_BYTES
from ingest.batch import INVALID_VALUE, Batch, Rejection
from ingest.catalogue import Catalogue
from ingest.checker import EPOCH, TimeBounds, check, holds_nul, identify, last_members
from ingest.fold import Counters, Fold, make_fold
from ingest.quantity import Fault, decode_decimal
from ingest.shape import Shape, shape_of
from ingest.stack_room import SHALLOW_BYTES, leaving_room

_REPEATS = 2  # events a counter on average, from which on gathering them first is faster
_MOST_COMMAS_AN_EVENT = 64  # a body with many more may be a bomb of tiny elements: look closer before it is split

# Half of a surrogate pair, escaped, where each backslash begins an escape: a high one that no low one follows, or a low one behind no high
# one. It is legal JSON and stands for no text. For text, as bytes are joined with ten times the memory, and there may be millions.
_HIGH, _LOW = r"[89abAB][0-9a-fA-F]{2}", r"[c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(rf"\\u[dD](?:{_HIGH}(?!\\u[dD]{_LOW})|(?<!\\u[dD]{_HIGH}\\u[dD]){_LOW})")
_UNMASKED = bytes.maketrans(b"\1", b"\\")
_NUL = b"\\u0000"

_REFUSED_BY_TYPE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_to_msgpack = msgspec.msgpack.Encoder().encode
_to_json = msgspec.json.Encoder().encode


class _Object(msgspec.Struct, gc=False):
    """Any JSON object, nothing of it kept."""


_one: Callable[[bytes], Raw] = msgspec.json.Decoder(Raw).decode
_split: Callable[[bytes], list[Raw]] = msgspec.json.Decoder(list[Raw]).decode
_objects: Callable[[bytes], list[_Object]] = msgspec.json.Decoder(list[_Object]).decode


class Limits(NamedTuple):
    max_events: int = 10_000
    max_age_s: int = 86_400
    max_skew_s: int = 300


class Unusable(Exception):
    """The request as a whole cannot be read: nothing of it was counted, and sending the same again will not help."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class _Kind:
    """One event type, ready to count."""

    __slots__ = ("fold", "repeats", "shape")

    def __init__(self, shape: Shape, fold: Fold) -> None:
        self.shape = shape
        self.fold = fold
        self.repeats = False  # whether counters repeated in the last batch: a hint that decides speed, never a result


# The elements of a body: as they were sent, and as they can be read (the same object where nothing differs).
Elements = tuple[Sequence[bytes | Raw], Sequence[bytes | Raw]]


class _Decoded(msgspec.Struct, frozen=True):
    events: Sequence[Any]  # None in the place of one that the types refuse
    sound: Sequence[Any]  # those that they do not refuse, and that hold no NUL
    elements: Elements | None  # if the body had to be split


class _Counted(msgspec.Struct, frozen=True):
    digests: Sequence[bytes]
    fingerprints: bytes
    oldest_us: int
    newest_us: int
    deltas: Deltas


_NOTHING = _Counted((), b"", 0, 0, {})


class Decoder:
    """One catalogue, compiled. Immutable but for hints about speed; a new catalogue makes a new decoder."""

    def __init__(self, catalogue: Catalogue, meter_numbers: Mapping[str, int], limits: Limits) -> None:
        self._limits = limits
        shapes = [shape_of(event_type, meters, number) for number, (event_type, meters) in enumerate(catalogue.by_event_type.items())]
        self._shapes = {shape.event_type: shape for shape in shapes}
        self._kinds: dict[type, _Kind] = {shape.struct: _Kind(shape, make_fold(shape, meter_numbers)) for shape in shapes}
        self._finest_window_s = min((kind.fold.finest_window_s for kind in self._kinds.values()), default=60)  # it divides every other one
        self._shape_bytes: dict[type, int] = {shape.struct: shape.byte for shape in shapes}
        self._shapes_with_maximum = {
            shape.byte for shape in shapes if any(MERGE_OF[meter.definition.aggregation] == "max" for meter in shape.meters)
        }
        self._max_age_us = limits.max_age_s * 1_000_000
        self._max_skew_us = limits.max_skew_s * 1_000_000
        self._arrival = any(shape.arrival for shape in shapes)
        event: Any = Union[tuple(shape.struct for shape in shapes)]  # noqa: UP007 - made at run time
        self._decode_all: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[event], float_hook=Decimal).decode
        self._decode_one: Callable[[bytes | Raw], Any] = msgspec.json.Decoder(event, float_hook=decode_decimal).decode

    def decode_batch(self, tenant: int, body: bytes, now_us: int) -> Batch:
        """`body` is a JSON array of events, or one event. Raises Unusable."""
        body = as_array(body)
        bounds = TimeBounds(now_us - self._max_age_us, now_us + self._max_skew_us)
        decoded = self._decode(body) if len(body) <= SHALLOW_BYTES else leaving_room(self._decode, body)
        counted, good = self._count(tenant, decoded.sound, now_us, bounds)
        received = len(decoded.events)
        indexes: Sequence[int] = range(received)
        rejections: Sequence[Rejection] = ()
        if len(good) != received:
            counts = set(map(id, good))
            indexes = [index for index, event in enumerate(decoded.events) if id(event) in counts]
            rejections = self._rejections(decoded.elements or split(body, self._limits.max_events), indexes, bounds)
        again = _Again(self, tenant, body, now_us, received, indexes, counted)
        return Batch(
            tenant=tenant,
            received=received,
            indexes=indexes,
            digests=counted.digests,
            fingerprints=counted.fingerprints,
            times_us=again.times_us,
            oldest_us=counted.oldest_us,
            newest_us=counted.newest_us,
            deltas=counted.deltas,
            rejections=rejections,
            refold=again.refold,
            describe=again.describe,
        )

    # ---- the events

    def _decode(self, body: bytes) -> _Decoded:
        try:
            events = self._decode_all(body)
        except (*_REFUSED_BY_TYPE, ArithmeticError):
            return self._decode_one_by_one(body, split(body, self._limits.max_events))
        self._check_count(len(events))
        return _Decoded(events, self._without_nul(events) if may_hold_nul(body) else events, None)

    def _decode_one_by_one(self, body: bytes, elements: Elements) -> _Decoded:
        sent, readable = elements
        self._check_count(len(sent))
        events = [self._event(raw) for raw in readable]
        sound = [event for event in events if event is not None]
        return _Decoded(events, self._without_nul(sound) if may_hold_nul(body) or readable is not sent else sound, elements)

    def _event(self, raw: bytes | Raw) -> Any:
        """The event, or None if the types refuse it. Of members that occur twice the last one counts, whatever the others are."""
        try:
            return self._decode_one(raw)
        except _REFUSED_BY_TYPE:
            pass
        try:
            return self._decode_one(last_members(raw, self._shapes))
        except _REFUSED_BY_TYPE:
            return None

    def _without_nul(self, events: Sequence[Any]) -> Sequence[Any]:
        return [event for event in events if not holds_nul(event, self._kinds[event.__class__].shape)]

    def _rejections(self, elements: Elements, indexes: Sequence[int], bounds: TimeBounds) -> list[Rejection]:
        """Of all events but those at `indexes`."""
        sent, readable = elements
        good = set(indexes)
        return [self._rejection(index, sent[index], raw, bounds) for index, raw in enumerate(readable) if index not in good]

    def _rejection(self, index: int, sent: bytes | Raw, readable: bytes | Raw, bounds: TimeBounds) -> Rejection:
        fault = check(readable, self._shapes, bounds)
        if fault is None:  # the types know a fault that the checker does not name
            fault = Fault(INVALID_VALUE, "The event cannot be read: send it as CloudEvents 1.0 in JSON.")
        id_, source = identify(readable)
        return Rejection(index, id_, source, fault.code, fault.detail, bytes(sent))

    def _check_count(self, events: int) -> None:
        if events > self._limits.max_events:
            raise _too_many(events, self._limits.max_events)

    # ---- what counts of them

    def _count(self, tenant: int, events: Sequence[Any], now_us: int, bounds: TimeBounds) -> tuple[_Counted, Sequence[Any]]:
        """What the types cannot refuse, a time or a value, is left out. Returns the events that count, too."""
        if len(events) < 2:
            return self._count_one(tenant, events[0], now_us, bounds) if events else (_NOTHING, ())
        times = self._times(events, now_us)
        oldest_us, newest_us = range_us(times)
        if oldest_us < bounds.oldest_us or newest_us > bounds.newest_us:
            first, last = bounds.oldest, bounds.newest
            within = [event for event, time in zip(events, times, strict=True) if first <= time <= last]
            return self._count(tenant, within, now_us, bounds)
        faulty: list[Any] = []
        deltas = self._fold(tenant, events, times, oldest_us, newest_us, faulty)
        if faulty:
            left_out = set(map(id, faulty))
            events = [event for event in events if id(event) not in left_out]
            if not events:
                return _NOTHING, ()
            oldest_us, newest_us = range_us(self._times(events, now_us))
        return _Counted(digests(events), self._fingerprints(events), oldest_us, newest_us, deltas), events

    def _count_one(self, tenant: int, event: Any, now_us: int, bounds: TimeBounds) -> tuple[_Counted, Sequence[Any]]:
        """The same of a single event: some senders have no larger batches, and passes over columns are most of what one costs."""
        time_us = now_us if event.time is None else to_us(event.time)
        if not bounds.oldest_us <= time_us <= bounds.newest_us:
            return _NOTHING, ()
        sums: Counters = {}
        maxima: Counters = {}
        faulty: list[Any] = []
        self._kinds[event.__class__].fold.direct((event,), tenant, time_us // 1_000_000, sums, maxima, faulty)
        if faulty:
            return _NOTHING, ()
        fingerprint = bytes((self._shape_bytes[event.__class__],)) + xxh3_64_digest(_sent(event))[:3]
        return _Counted((digest(event.source, event.id),), fingerprint, time_us, time_us, _deltas(sums, maxima)), (event,)

    def _times(self, events: Sequence[Any], now_us: int) -> list[datetime]:
        times = [event.time for event in events]
        if self._arrival:
            now = EPOCH + timedelta(microseconds=now_us)
            return [now if time is None else time for time in times]
        return times

    def _fold(
        self, tenant: int, events: Sequence[Any], times: Sequence[datetime], oldest_us: int, newest_us: int, faulty: list[Any]
    ) -> Deltas:
        """Events with a value that does not count are put into `faulty`, and nothing of them is in the deltas."""
        sums: Counters = {}
        maxima: Counters = {}
        first, last = oldest_us // 1_000_000, newest_us // 1_000_000
        if first // self._finest_window_s == last // self._finest_window_s:  # almost always
            self._fold_window(tenant, events, first, sums, maxima, faulty)
        else:
            for second, part in by_window(events, times, self._finest_window_s):
                self._fold_window(tenant, part, second, sums, maxima, faulty)
        return _deltas(sums, maxima)

    def _fold_window(self, tenant: int, events: Sequence[Any], second: int, sums: Counters, maxima: Counters, faulty: list[Any]) -> None:
        """Events that no window of any meter tells apart."""
        if len(set(map(type, events))) == 1:
            self._fold_kind(tenant, events, second, sums, maxima, faulty)
            return
        by_kind: dict[type, list[Any]] = {struct: [] for struct in self._kinds}
        for event in events:
            by_kind[event.__class__].append(event)
        for of_kind in by_kind.values():
            if of_kind:
                self._fold_kind(tenant, of_kind, second, sums, maxima, faulty)

    def _fold_kind(self, tenant: int, events: Sequence[Any], second: int, sums: Counters, maxima: Counters, faulty: list[Any]) -> None:
        kind = self._kinds[type(events[0])]
        known = len(sums) + len(maxima)
        (kind.fold.grouped if kind.repeats else kind.fold.direct)(events, tenant, second, sums, maxima, faulty)
        counters = (len(sums) + len(maxima) - known) // len(kind.shape.meters)
        kind.repeats = counters * _REPEATS < len(events)

    def _fingerprints(self, events: Sequence[Any]) -> bytes:
        """Of each event the byte of its shape and three bytes of a hash of what was sent."""
        try:
            hashes = b"".join([xxh3_64_digest(_to_msgpack((event.time, event.subject, event.data))) for event in events])
        except OverflowError:  # an integer beyond 64 bits, which MessagePack does not have
            hashes = b"".join([xxh3_64_digest(_sent(event)) for event in events])
        shape_bytes = bytes([self._shape_bytes[event.__class__] for event in events])
        fingerprints = bytearray(4 * len(events))
        fingerprints[0::4] = shape_bytes
        fingerprints[1::4] = hashes[0::8]
        fingerprints[2::4] = hashes[1::8]
        fingerprints[3::4] = hashes[2::8]
        return bytes(fingerprints)

    # ---- a body that was decoded before

    def _claimable(self, body: bytes, received: int, indexes: Sequence[int]) -> list[Any]:
        if len(indexes) == received:
            try:
                return self._decode_all(body)
            except (*_REFUSED_BY_TYPE, ArithmeticError):
                pass
        _, readable = split(body, self._limits.max_events)
        return [self._event(readable[index]) for index in indexes]


class _Again:
    """A request decoded once more, as much of it as is needed, when its events are not all new. Positions are those of claimable events."""

    __slots__ = ("_body", "_counted", "_decoder", "_elements", "_indexes", "_now_us", "_received", "_tenant", "_times_us")

    def __init__(
        self, decoder: Decoder, tenant: int, body: bytes, now_us: int, received: int, indexes: Sequence[int], counted: _Counted
    ) -> None:
        self._decoder = decoder
        self._tenant = tenant
        self._body = body
        self._now_us = now_us
        self._received = received
        self._indexes = indexes
        self._counted = counted
        self._elements: Elements | None = None
        self._times_us: Sequence[int] | None = None  # asked for with each call that asks about a part of the request

    def _split(self) -> Elements:
        if self._elements is None:
            self._elements = split(self._body, self._decoder._limits.max_events)  # as at first: what was read then can be read now
        return self._elements

    def _events(self) -> list[Any]:
        return self._decoder._claimable(self._body, self._received, self._indexes)

    def times_us(self) -> Sequence[int]:
        if self._times_us is None:
            self._times_us = [to_us(time) for time in self._decoder._times(self._events(), self._now_us)]
        return self._times_us

    def refold(self, positions: Sequence[int]) -> Deltas:
        """Whichever is less is decoded: what counts, or what does not and is taken away from the whole."""
        kept = set(positions)
        left_out = [position for position in range(len(self._indexes)) if position not in kept]
        return self._fold(positions) if len(positions) <= len(left_out) else self._without(left_out, positions)

    def _without(self, left_out: Sequence[int], positions: Sequence[int]) -> Deltas:
        taken = self._fold(left_out)
        deltas = dict(self._counted.deltas)
        if "sum" in taken:
            deltas["sum"] = less(deltas["sum"], taken["sum"])
        if "max" in taken:  # a maximum cannot be taken away: those events are folded again whose type may have one
            with_maximum = self._decoder._shapes_with_maximum
            again = [position for position in positions if self._counted.fingerprints[FINGERPRINT_BYTES * position] in with_maximum]
            deltas["max"] = self._fold(again).get("max", {})
        return {kind: counters for kind, counters in deltas.items() if counters}

    def _fold(self, positions: Sequence[int]) -> Deltas:
        if not positions:
            return {}
        events = self._pick(positions)
        times = self._decoder._times(events, self._now_us)
        return self._decoder._fold(self._tenant, events, times, *range_us(times), [])

    def _pick(self, positions: Sequence[int]) -> list[Any]:
        if 2 * len(positions) > len(self._indexes):
            events = self._events()
            return [events[position] for position in positions]
        _, readable = self._split()
        return [self._decoder._event(readable[self._indexes[position]]) for position in positions]

    def describe(self, position: int) -> tuple[str, str, bytes]:
        sent, readable = self._split()
        index = self._indexes[position]
        return (*identify(readable[index]), bytes(sent[index]))


def _deltas(sums: Counters, maxima: Counters) -> Deltas:
    deltas: Deltas = {}
    if sums:
        deltas["sum"] = sums
    if maxima:
        deltas["max"] = maxima
    return deltas


def to_us(time: datetime) -> int:
    since = time - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def range_us(times: Sequence[datetime]) -> tuple[int, int]:
    """(oldest, newest)"""
    oldest_us = to_us(min(times))
    return oldest_us, oldest_us if len(times) == 1 else to_us(max(times))


def by_window(events: Sequence[Any], times: Sequence[datetime], window_s: int) -> Iterator[tuple[int, list[Any]]]:
    """(a second of the window, its events)."""
    parts: dict[int, list[Any]] = defaultdict(list)
    for event, time in zip(events, times, strict=True):
        since = time - EPOCH
        parts[(since.days * 86_400 + since.seconds) // window_s].append(event)
    for number, part in parts.items():
        yield number * window_s, part


def _sent(event: Any) -> bytes:
    content = (event.time, event.subject, event.data)
    try:
        return _to_msgpack(content)
    except OverflowError:
        return _to_msgpack((event.time, event.subject, _to_json(event.data)))


# ---- the body as a whole


def as_array(body: bytes) -> bytes:
    """One event is a batch of one. Raises Unusable."""
    start = body[:1]
    if start != b"[" and start != b"{":
        start = body.lstrip(b" \t\r\n")[:1]
    if start == b"[":
        return body
    if start == b"{":
        check_one(body)
        return b"[" + body + b"]"
    if not start:
        raise Unusable(400, "The body is empty: send a JSON array of events, or one event.")
    raise Unusable(400, "The body is neither a JSON array of events nor one event: it must start with [ or {.")


def check_one(body: bytes) -> None:
    """Exactly one JSON value: what follows it must not become part of an array."""
    try:
        try:
            _one(body)
        except msgspec.MsgspecError:
            _one(without_half_pairs(body))
    except RecursionError:
        raise _too_deep() from None
    except msgspec.MsgspecError as error:
        raise broken(body, error) from None


def may_hold_nul(body: bytes) -> bool:
    """Whether some string may hold NUL, which PostgreSQL cannot store. Almost no body has a backslash, and looking for one is cheap."""
    return b"\\" in body and _NUL in body


def split(body: bytes, max_events: int) -> Elements:
    """The elements of an array. Raises Unusable."""
    try:
        _refuse_bomb(body, max_events)
        try:
            sent = _split(body)
        except msgspec.MsgspecError:
            return _split_half_pairs(body)
    except RecursionError:
        raise _too_deep() from None
    except msgspec.MsgspecError as error:
        raise broken(body, error) from None
    return sent, sent


def _split_half_pairs(body: bytes) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """An event with half of a surrogate pair (text cut in the middle of an emoji) must not cost its neighbours."""
    whole = without_half_pairs(body)
    readable = [bytes(raw) for raw in _split(whole)]
    sent = []
    end = 0
    for element in readable:  # between elements there is only white space and a comma, so the next find is the right one
        start = whole.index(element, end)
        end = start + len(element)
        sent.append(body[start:end])
    return sent, readable


def without_half_pairs(body: bytes) -> bytes:
    """NUL takes the place of each half, at the same length: where a meter reads it, the event is refused for it."""
    if b"\1" in body:  # then it is no JSON, which has control characters as escapes only
        return body
    masked = body.replace(rb"\\", b"\1\1").decode("latin-1")  # now each backslash that is left begins an escape
    return _HALF.sub(r"\\u0000", masked).encode("latin-1").translate(_UNMASKED)


def _refuse_bomb(body: bytes, max_events: int) -> None:
    """Splitting costs far more memory than the body when its elements are tiny: find out before."""
    if body.count(b",") > _MOST_COMMAS_AN_EVENT * max_events:
        elements = _count_objects(body)
        if elements > max_events:
            raise _too_many(elements, max_events)


def _count_objects(body: bytes) -> int:
    try:
        return len(_objects(body))
    except msgspec.ValidationError:  # an element is no object, and would be none without half pairs
        raise
    except msgspec.DecodeError:
        return len(_objects(without_half_pairs(body)))


def _too_many(events: int, max_events: int) -> Unusable:
    return Unusable(413, f"The request has {events} events; send at most {max_events} in one.")


def _too_deep() -> Unusable:
    return Unusable(400, "The JSON is nested too deeply: no meter reads anything that deep.")


def broken(body: bytes, error: Exception) -> Unusable:
    """400 with the place."""
    if isinstance(error, msgspec.ValidationError):
        return Unusable(400, "The elements of the array are not objects: send one object for each event.")
    match = re.search(r"^(?:JSON is malformed: )?(.*?) \(byte (\d+)\)$", str(error))
    if match is None:
        return Unusable(400, f"The JSON ends too early, after {len(body)} bytes: {_excerpt(body, len(body))}.")
    place = int(match[2]) - (match[1] == "trailing characters")  # that one is counted from one
    return Unusable(400, f"The JSON is broken at byte {place}: {match[1]}, near {_excerpt(body, place)}.")


def _excerpt(body: bytes, place: int) -> str:
    return repr(body[max(0, place - 20) : place + 20].decode("utf-8", "replace"))
