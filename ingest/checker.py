"""The explicit checker: why one event is refused, in precise words. It runs only for events that the fast decoder could not take.

Pure. Belongs here: every rejection code but `conflict`, and its sentence. Must not know: batches, folding, claims.

An event is read member by member (each stays raw until it is wanted), so a fault in one field never hides another, and what no meter
reads is never looked at. Of several faults the first in this order is named: specversion, id, source, type, subject, data_base64, time,
data. Of a member that occurs twice the last one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import astuple

from ingest.batch import INVALID_VALUE, MISSING_FIELD, TOO_EARLY, TOO_LATE, TOO_LONG, TOO_MANY_DIGITS, UNKNOWN_TYPE
from ingest.catalogue import MOST_CHARACTERS
from ingest.quantity import Fault, decode_decimal, shown
from ingest.shape import Leaf, Moment, Shape

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXAMPLE_TIME = '"2026-11-24T10:15:00Z"'
_MOST_TYPES_NAMED = 10

Members = dict[str, Raw | None]
_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=decode_decimal)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_ABSENT = object()


class TimeBounds(msgspec.Struct, frozen=True):
    """Event times that are accepted, both ends included."""

    oldest_us: int
    newest_us: int

    @property
    def oldest(self) -> datetime:
        return EPOCH + timedelta(microseconds=self.oldest_us)

    @property
    def newest(self) -> datetime:
        return EPOCH + timedelta(microseconds=self.newest_us)

    def fault(self, time: datetime) -> Fault | None:
        if time < self.oldest:
            oldest = self.oldest.isoformat()
            return Fault(TOO_LATE, f"time is {time.isoformat()}, but events before {oldest} are no longer counted: send events sooner.")
        if time > self.newest:
            newest = self.newest.isoformat()
            return Fault(
                TOO_EARLY,
                f"time is {time.isoformat()}, but events after {newest} are ahead of us: check the sender's clock and send it later.",
            )
        return None


def identify(raw: bytes | Raw) -> tuple[str, str]:
    """(id, source) of an event, each "" if it cannot be read; the beginning of one that is too long: they are told and kept as they are."""
    try:
        members = _identity_members(raw)
    except _UNREADABLE:
        return "", ""
    return _text_or_nothing(members.get("id"))[:MOST_CHARACTERS], _text_or_nothing(members.get("source"))[:MOST_CHARACTERS]


def last_members(raw: bytes | Raw, shapes: Mapping[str, Shape]) -> bytes:
    """The event with every member that is read once: of those that occur twice, the last. Raises what a decoder does where it cannot be
    read."""
    members = _event_members(raw)
    shape = shapes.get(_text_or_nothing(members.get("type")))
    if shape is not None and shape.leaves:
        members["data"] = _last_members(members["data"], [leaf.path for leaf in shape.leaves])
    return _encoded(members)


def _last_members(raw: Raw | None, paths: Sequence[tuple[str, ...]]) -> Raw | None:
    if raw is None:
        return None
    members = _reader(tuple(dict.fromkeys(path[0] for path in paths)))(raw)
    for path in paths:
        if len(path) > 1:
            members[path[0]] = _last_members(members[path[0]], [other[1:] for other in paths if other[0] == path[0]])
    return Raw(_encoded(members))


def _encoded(members: Members) -> bytes:
    return msgspec.json.encode({name: raw for name, raw in members.items() if raw is not None})


def check(raw: bytes | Raw, shapes: Mapping[str, Shape], bounds: TimeBounds) -> Fault | None:
    """What is wrong with an event, or None."""
    try:
        _check(raw, shapes, bounds)
    except Fault as fault:
        return Fault(fault.code, fault.detail)  # the one that was raised holds on to every frame, and so to all events of the batch
    return None


def holds_nul(event: Any, shape: Shape) -> bool:
    """PostgreSQL cannot store NUL, so no text that may get there holds it."""
    dimensions = [leaf.get(event) for leaf in shape.leaves if not leaf.quantities]
    return any("\0" in text for text in (event.id, event.source, event.subject, *dimensions) if isinstance(text, str))


def _check(raw: bytes | Raw, shapes: Mapping[str, Shape], bounds: TimeBounds) -> None:
    try:
        members = _event_members(raw)
    except _UNREADABLE:
        raise Fault(INVALID_VALUE, "The event is not a JSON object: send one object for each event.") from None
    version = _read(members, "specversion", "specversion")
    if version != "1.0":
        raise Fault(INVALID_VALUE, f'specversion is {shown(version)}; send "1.0", the only version of CloudEvents that is read.')
    _name(members, "id")
    _name(members, "source")
    shape = _shape(members, shapes)
    _name(members, "subject")
    if (base64 := members["data_base64"]) is not None and bytes(base64) != b"null":
        raise Fault(INVALID_VALUE, "data_base64 is not read: send the data as a JSON object in `data`.")
    _time(members, shape, bounds)
    if shape.leaves:
        _object(members, (), shape.leaves)


def _shape(members: Members, shapes: Mapping[str, Shape]) -> Shape:
    event_type = _text(members, "type")
    shape = shapes.get(event_type)
    if shape is None:
        known = ", ".join(sorted(shapes)[:_MOST_TYPES_NAMED]) + (", …" if len(shapes) > _MOST_TYPES_NAMED else "")
        raise Fault(UNKNOWN_TYPE, f"type is {shown(event_type)}, which no meter reads; the catalogue has: {known}.")
    return shape


def _time(members: Members, shape: Shape, bounds: TimeBounds) -> None:
    time = _read(members, "time", "time", required=not shape.arrival)
    if time is _ABSENT:
        return
    try:
        moment: datetime = msgspec.convert(time, Moment)
    except msgspec.ValidationError:
        raise Fault(INVALID_VALUE, f"time is {shown(time)}; send RFC 3339 with an offset, such as {_EXAMPLE_TIME}.") from None
    if (fault := bounds.fault(moment)) is not None:
        raise fault


def _object(above: Members, path: tuple[str, ...], leaves: Sequence[Leaf]) -> None:
    """Check all `leaves` below the object at `path`, which is a member of `above`."""
    field = ".".join(("data", *path))
    raw = above.get(path[-1] if path else "data")
    if raw is None:
        needed = next((leaf for leaf in leaves if leaf.default is None), None)
        if needed is not None:
            raise _missing(needed)
        return
    depth = len(path)
    keys = tuple(dict.fromkeys(leaf.path[depth] for leaf in leaves))
    try:
        members = _reader(keys)(raw)
    except _UNREADABLE:
        raise Fault(INVALID_VALUE, f"{field} is {shown(_decoded(raw, field))}; send a JSON object.") from None
    for key in keys:
        below = [leaf for leaf in leaves if leaf.path[depth] == key]
        if len(below[0].path) == depth + 1:
            _leaf(members, below[0])
        else:
            _object(members, (*path, key), below)


def _leaf(members: Members, leaf: Leaf) -> None:
    raw = members[leaf.path[-1]]
    if raw is None:
        if leaf.default is None:
            raise _missing(leaf)
        return
    value = _decoded(raw, leaf.field)
    if leaf.quantities:
        for quantity in leaf.quantities:
            quantity.scaled(value)
    elif value.__class__ is int:
        if not -(2**63) <= value < 2**63:
            raise Fault(INVALID_VALUE, f"{leaf.field} is an integer of more than 64 bits: send it as a string.")
    elif isinstance(value, str):
        _check_text(value, leaf.field)
    else:
        raise Fault(INVALID_VALUE, f"{leaf.field} is {shown(value)}; a dimension is a string or an integer.")


def _missing(leaf: Leaf) -> Fault:
    meters = ", ".join(leaf.meters)
    return Fault(
        MISSING_FIELD, f"{leaf.field} is missing; the meter{'s' if len(leaf.meters) > 1 else ''} {meters} cannot count without it."
    )


# ---- members


@lru_cache(maxsize=1000)
def _reader(names: tuple[str, ...]) -> Callable[[bytes | Raw], Members]:
    """Of an object the members with these names, None where there is none. It may have millions of others."""
    fields = {f"f{number}": name for number, name in enumerate(names)}
    struct = msgspec.defstruct("Members", [(field, Raw, None) for field in fields], rename=fields, gc=False)
    decode = msgspec.json.Decoder(struct).decode
    return lambda raw: dict(zip(names, astuple(decode(raw)), strict=True))


_event_members = _reader(("specversion", "id", "source", "type", "subject", "data_base64", "time", "data"))
_identity_members = _reader(("id", "source"))


def _read(members: Members, name: str, field: str, *, required: bool = True) -> Any:
    raw = members.get(name)
    if raw is None or (text := bytes(raw)) == b"null":
        if required:
            raise Fault(MISSING_FIELD, f"{field} is missing; every event needs it.")
        return _ABSENT
    return _decoded(text, field)


def _decoded(raw: bytes | Raw, field: str) -> Any:
    """Of an array or an object only that it is one: there may be millions of values in it."""
    text = bytes(raw)
    if text.startswith((b"[", b"{")):
        return [] if text.startswith(b"[") else {}
    try:
        return _anything.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # which of them depends on the version of msgspec
        if text.startswith(b'"'):
            raise Fault(INVALID_VALUE, f"{field} is not valid UTF-8: encode it as UTF-8 before sending.") from None
        # The JSON was read before, so this is an integer of thousands of digits.
        raise Fault(TOO_MANY_DIGITS, f"{field} has more digits than any number that is counted.") from None


def _text(members: Members, name: str) -> str:
    value = _read(members, name, name)
    if not isinstance(value, str):
        raise Fault(INVALID_VALUE, f"{name} is {shown(value)}; send a string.")
    return value


def _name(members: Members, name: str) -> None:
    value = _text(members, name)
    if not value:
        raise Fault(INVALID_VALUE, f"{name} is empty; send a string of 1 to {MOST_CHARACTERS} characters.")
    _check_text(value, name)


def _check_text(value: str, field: str) -> None:
    if len(value) > MOST_CHARACTERS:
        raise Fault(TOO_LONG, f"{field} has {len(value)} characters; send at most {MOST_CHARACTERS}.")
    if "\0" in value:
        raise Fault(INVALID_VALUE, f"{field} holds NUL or half of a surrogate pair: send text without it.")


def _text_or_nothing(raw: Raw | None) -> str:
    if raw is None:
        return ""
    try:
        value = _decoded(raw, "")
    except Fault:
        return ""
    return value if isinstance(value, str) else ""
