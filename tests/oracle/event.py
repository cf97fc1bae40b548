"""Whether one event counts, and as what: the contract's words on CloudEvents, times, values and names, one after the other.

An event is JSON with specversion "1.0", id, source, type, subject, time and data. A name (id, source, subject, a dimension that is text)
has at most 256 characters. A time is RFC 3339 with an offset, in [now - max_age, now + max_skew]. A value is a JSON number or a string
that is written as one; times 10**scale it is a whole number of at most 38 digits, negative only where the meter says so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any

from tests.oracle.config import Config, Meter

MOST_CHARACTERS = 256
MOST_DIGITS = 38
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXACT = Context(prec=1000, traps=[Inexact, InvalidOperation])
MARGIN = timedelta(minutes=1)  # how far an event must lie from a bound of time for the oracle to know on which side it was judged

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


@dataclass(frozen=True)
class Reading:
    """What one meter takes from an event."""

    meter: str
    dimensions: tuple[tuple[str, str], ...]  # (name, value), in the meter's order
    value: int  # scaled; 1 for count


@dataclass(frozen=True)
class Event:
    """An event that counts."""

    source: str
    id: str
    subject: str
    time_us: int
    readings: tuple[Reading, ...]
    shape: frozenset[tuple[str, ...]]  # which paths the meters of its type read


class Fault(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def read_event(line: bytes, config: Config, now: datetime) -> Event | str:
    """The event, or the code it is rejected with."""
    try:
        return _read(line, config, now)
    except Fault as fault:
        return fault.code


def _read(line: bytes, config: Config, now: datetime) -> Event:
    fields = _object(line)
    if _field(fields, "specversion") != "1.0":
        raise Fault("invalid_value")
    event_id = _name(_field(fields, "id"))
    source = _name(_field(fields, "source"))
    meters = config.meters_of(_text(_field(fields, "type")))
    if not meters:
        raise Fault("unknown_type")
    subject = _name(_field(fields, "subject"))
    time = _time(_field(fields, "time"), config, now)
    readings = tuple(_reading(meter, fields.get("data", {})) for meter in meters)
    shape = frozenset(path for meter in meters for path in (meter.value, *meter.dimensions.values()))
    return Event(source, event_id, subject, (time - EPOCH) // timedelta(microseconds=1), readings, shape)


def _object(line: bytes) -> dict[str, Any]:
    """Of a member that occurs twice the last one counts."""
    try:
        fields = json.loads(line.decode(), parse_float=Decimal, parse_constant=_not_json)
    except UnicodeDecodeError:
        raise Fault("invalid_value") from None
    if not isinstance(fields, dict):
        raise Fault("invalid_value")
    return fields


def _not_json(text: str) -> Any:
    raise AssertionError(f"{text} is no JSON: a whole request with it is refused")


def _field(fields: dict[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise Fault("missing_field")
    return fields[name]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Fault("invalid_value")
    return value


def _name(value: Any) -> str:
    if _text(value) == "":
        raise Fault("invalid_value")
    return _short(value)


def _short(value: str) -> str:
    if len(value) > MOST_CHARACTERS:
        raise Fault("too_long")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):  # no text that a database could keep
        raise Fault("invalid_value")
    return value


def _time(value: Any, config: Config, now: datetime) -> datetime:
    if not RFC_3339.fullmatch(_text(value)):
        raise Fault("invalid_value")
    try:
        time = datetime.fromisoformat(value.upper())
    except ValueError:
        raise Fault("invalid_value") from None
    oldest, newest = now - timedelta(seconds=config.max_age_s), now + timedelta(seconds=config.max_skew_s)
    assert abs(time - oldest) > MARGIN and abs(time - newest) > MARGIN, f"{value} is too near a bound: nobody can know how it was judged"
    if time < oldest:
        raise Fault("too_late")
    if time > newest:
        raise Fault("too_early")
    return time


def _reading(meter: Meter, data: Any) -> Reading:
    dimensions = tuple((name, _dimension(_at(data, path))) for name, path in meter.dimensions.items())
    value = 1 if meter.aggregation == "count" else _scaled(_at(data, meter.value), meter)
    return Reading(meter.name, dimensions, value)


def _at(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(data, dict):
            raise Fault("invalid_value")
        if name not in data:
            raise Fault("missing_field")
        data = data[name]
    return data


def _dimension(value: Any) -> str:
    """1 and "1" are the same dimension value."""
    if isinstance(value, bool):
        raise Fault("invalid_value")
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise Fault("invalid_value")
        return str(value)
    return _short(_text(value))


def _scaled(value: Any, meter: Meter) -> int:
    exact = EXACT.multiply(_number(value), Decimal(10) ** meter.scale)
    if exact != exact.to_integral_value() or EXACT.abs(exact) >= Decimal(10) ** MOST_DIGITS:
        raise Fault("too_many_digits")
    if exact < 0 and not meter.signed:
        raise Fault("invalid_value")
    return int(exact)


def _number(value: Any) -> Decimal:
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return Decimal(value)
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    raise Fault("invalid_value")
