"""The meter catalogue: what the `[[meters]]` tables of the configuration may say, and what they mean once they have been read.

Belongs here: the models, every check of a definition (each error names the place, what is wrong and what is allowed), the content hash.
Must not know: files, JSON, events, how a catalogue is compiled (compile.py).

A catalogue is immutable. A meter is known downstream by (name, hash), so a change of anything that it says makes another meter of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from buffer.counters import MeterDefinition

MOST_METERS = 1000
MOST_DIMENSIONS = 16
MOST_CHARACTERS = 256  # of an event type, of a default, of every string that an event brings into a key

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NAME_RULE = "1 to 64 of a-z, 0-9 and _, with a letter first"
_WINDOWS = {"1m": 60, "15m": 900, "1h": 3600, "1d": 86400}

Path = tuple[str, ...]  # below `data`


class Problem(NamedTuple):
    path: tuple[str | int, ...]  # ("meters", 2, "window")
    meter: str  # its name, "" where it has none
    wrong: str
    allowed: str

    @property
    def place(self) -> str:
        """'meters[2] "egress_bytes" window'."""
        return _place(self.path, self.meter)

    def __str__(self) -> str:
        return f"{self.place}: {self.wrong}; allowed: {self.allowed}"


def _place(path: tuple[str | int, ...], meter: str) -> str:
    table = "meters" if len(path) == 1 else f"meters[{path[1]}]"
    field = ".".join(str(part) for part in path[2:])
    return " ".join(part for part in (table, f'"{meter}"' if meter else "", field) if part)


class CatalogueError(Exception):
    """The catalogue must not be used. One problem a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class _Refusal(ValueError):
    def __init__(self, wrong: str, allowed: str) -> None:
        super().__init__(wrong)
        self.allowed = allowed


_UNREADABLE = re.compile(r'["\\\x00-\x1f]')


def _read_path(text: object) -> Path:
    if isinstance(text, str):
        root, *path = text.split(".")
        if _UNREADABLE.search(text):  # the decoder of events takes no such names
            raise _Refusal(
                f"{text!r} holds a quotation mark, a backslash or a control character",
                "names without them, joined by dots; no quotes around a name",
            )
        if root == "data" and path and all(path):
            return tuple(path)
    raise _Refusal(f"{text!r} is not a path below data", 'names joined by dots, "data" first, such as "data.region" or "data.http.status"')


class DimensionModel(BaseModel):
    """`region = "data.region"`, or `region = { path = "data.region", default = "none" }`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: Path
    default: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None

    _path = field_validator("path", mode="before")(_read_path)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: object) -> object:
        return {"path": given} if isinstance(given, str) else given

    @field_validator("default")
    @classmethod
    def _fits_postgres(cls, default: str | None) -> str | None:
        if default is not None and "\0" in default:
            raise _Refusal("it holds the character NUL", "text without NUL")
        return default


class MeterModel(BaseModel):
    """One `[[meters]]` table."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    event_type: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
    aggregation: Literal["count", "sum", "max"]
    value: Path | None = None
    dimensions: Annotated[dict[str, DimensionModel], Field(max_length=MOST_DIMENSIONS)] = {}
    window: Literal["1m", "15m", "1h", "1d"] = "1h"
    scale: Annotated[int, Field(ge=0, le=18)] = 0
    signed: bool = False
    time: Literal["event", "arrival"] = "event"

    _value = field_validator("value", mode="before")(_read_path)

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise _Refusal(f"{name!r} is not a meter name", _NAME_RULE)
        return name

    @field_validator("dimensions")
    @classmethod
    def _dimension_names(cls, dimensions: dict[str, DimensionModel]) -> dict[str, DimensionModel]:
        for name in dimensions:
            if not _NAME.fullmatch(name):
                raise _Refusal(f"{name!r} is not a dimension name", _NAME_RULE)
        return dimensions

    @model_validator(mode="after")
    def _value_fits_aggregation(self) -> MeterModel:
        if self.aggregation != "count":
            if self.value is None:
                raise _Refusal(f"a {self.aggregation} meter needs `value`", 'a path such as value = "data.bytes"')
        elif self.value is not None or self.scale or self.signed:
            raise _Refusal("a count meter adds up events, so it has no value", 'aggregation = "count" without value, scale and signed')
        return self


class Dimension(NamedTuple):
    name: str
    path: Path
    default: str | None


class Meter(NamedTuple):
    definition: MeterDefinition
    event_type: str
    value: Path | None  # None: count
    dimensions: tuple[Dimension, ...]
    signed: bool
    arrival: bool  # an event without time counts at its arrival

    @property
    def name(self) -> str:
        return self.definition.name


class Catalogue:
    """All meters of one configuration, immutable."""

    __slots__ = ("by_event_type", "meters")

    def __init__(self, meters: Sequence[Meter]) -> None:
        by_event_type: dict[str, tuple[Meter, ...]] = {}
        for meter in meters:
            by_event_type[meter.event_type] = (*by_event_type.get(meter.event_type, ()), meter)
        self.meters: tuple[Meter, ...] = tuple(meters)
        self.by_event_type: Mapping[str, tuple[Meter, ...]] = by_event_type

    @property
    def definitions(self) -> tuple[MeterDefinition, ...]:
        return tuple(meter.definition for meter in self.meters)


def read_catalogue(tables: object) -> Catalogue:
    """The catalogue that the value of `meters` in a configuration describes. Raises CatalogueError with every problem found."""
    if not isinstance(tables, list | tuple) or not tables:
        raise CatalogueError([Problem(("meters",), "", "there is no meter", "at least one [[meters]] table")])
    if len(tables) > MOST_METERS:
        raise CatalogueError([Problem(("meters",), "", f"there are {len(tables)} meters", f"at most {MOST_METERS}")])
    problems: list[Problem] = []
    models: list[tuple[int, MeterModel]] = []
    for index, table in enumerate(tables):
        try:
            models.append((index, MeterModel.model_validate(table)))
        except ValidationError as error:
            problems.extend(_problems(index, table, error))
    problems.extend(_disagreements(models))
    if problems:
        raise CatalogueError(problems)
    return Catalogue([_meter(model) for _, model in models])


def _meter(model: MeterModel) -> Meter:
    dimensions = tuple(Dimension(name, of.path, of.default) for name, of in model.dimensions.items())
    definition = MeterDefinition(
        name=model.name,
        hash=_content_hash(model),
        aggregation=model.aggregation,
        scale=model.scale,
        window_s=_WINDOWS[model.window],
        dimensions=tuple(dimension.name for dimension in dimensions),
    )
    return Meter(definition, model.event_type, model.value, dimensions, model.signed, model.time == "arrival")


def _content_hash(model: MeterModel) -> str:
    """Over everything the table says, defaults filled in, the order of the dimensions kept: keys depend on it."""
    content = model.model_dump(mode="json")
    content["dimensions"] = [[name, dimension["path"], dimension["default"]] for name, dimension in content["dimensions"].items()]
    return blake2b(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), digest_size=8).hexdigest()


# ---- what is wrong


def _problems(index: int, table: object, error: ValidationError) -> Iterator[Problem]:
    name = table.get("name") if isinstance(table, dict) else None
    for fault in error.errors(include_url=False):
        wrong, allowed = _wrong_and_allowed(fault)
        yield Problem(("meters", index, *fault["loc"]), name if isinstance(name, str) else "", wrong, allowed)


def _wrong_and_allowed(fault: ErrorDetails) -> tuple[str, str]:
    refusal = fault.get("ctx", {}).get("error")
    if isinstance(refusal, _Refusal):
        return str(refusal), refusal.allowed
    where = fault["loc"]
    if fault["type"] == "extra_forbidden":
        model = DimensionModel if where[0] == "dimensions" else MeterModel
        return "there is no such setting", ", ".join(model.model_fields)
    if not where:
        return f"{_shown(fault['input'])} is not allowed", "a table with name, event_type and aggregation"
    field = where[-1] if where[0] != "dimensions" or where[-1] in ("dimensions", "path", "default") else "dimension"
    wrong = "it is missing" if fault["type"] == "missing" else f"{_shown(fault['input'])} is not allowed"
    return wrong, _ALLOWED[str(field)]


_ALLOWED = {
    "name": _NAME_RULE,
    "event_type": f"1 to {MOST_CHARACTERS} characters, the CloudEvents type that the meter reads",
    "aggregation": "count, sum, max",
    "value": 'a path such as "data.bytes"',
    "dimensions": f'at most {MOST_DIMENSIONS} names with a path each, such as {{ region = "data.region" }}',
    "dimension": 'a path such as "data.region", or { path = "data.region", default = "none" }',
    "path": 'a path such as "data.region"',
    "default": f"text of at most {MOST_CHARACTERS} characters",
    "window": "1m, 15m, 1h, 1d",
    "scale": "a whole number from 0 to 18",
    "signed": "true, false",
    "time": '"event", "arrival"',
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Use(NamedTuple):
    """One path of one meter."""

    at: int  # which table
    meter: str
    field: tuple[str, ...]
    path: Path
    kind: str  # "a value" or "a dimension"
    default: str | None

    @property
    def place(self) -> str:
        return _place(("meters", self.at, *self.field), self.meter)

    def problem(self, wrong: str, allowed: str) -> Problem:
        return Problem(("meters", self.at, *self.field), self.meter, wrong, allowed)


def _disagreements(models: Sequence[tuple[int, MeterModel]]) -> Iterator[Problem]:
    """What no table says wrongly by itself."""
    names: dict[str, int] = {}
    first_of_type: dict[str, tuple[int, MeterModel]] = {}
    uses: dict[str, list[_Use]] = {}
    for index, model in models:
        if (other := names.setdefault(model.name, index)) != index:
            yield Problem(("meters", index, "name"), model.name, f"meters[{other}] has the same name", "one meter a name")
        first, same_type = first_of_type.setdefault(model.event_type, (index, model))
        if same_type.time != model.time:
            wrong = f'{_place(("meters", first), same_type.name)} reads the same event type with time = "{same_type.time}"'
            yield Problem(("meters", index, "time"), model.name, wrong, "one `time` for all meters of an event type")
        known = uses.setdefault(model.event_type, [])
        for use in _uses(index, model):
            yield from _first_clash(known, use)
            known.append(use)


def _uses(index: int, model: MeterModel) -> Iterator[_Use]:
    if model.value is not None:
        yield _Use(index, model.name, ("value",), model.value, "a value", None)
    for name, dimension in model.dimensions.items():
        yield _Use(index, model.name, ("dimensions", name), dimension.path, "a dimension", dimension.default)


def _first_clash(known: Sequence[_Use], use: _Use) -> Iterator[Problem]:
    for other in known:
        shorter = min(len(use.path), len(other.path))
        if use.path[:shorter] != other.path[:shorter]:
            continue
        if len(use.path) != len(other.path) or use.kind != other.kind:
            wrong = f"{_text(use.path)} is read as {use.kind}, while {other.place} reads {_text(other.path)} as {other.kind}"
            yield use.problem(wrong, "one meaning for each path of an event type")
            return
        if use.default != other.default:
            wrong = f"{other.place} reads the same path with another default ({_shown(other.default)})"
            yield use.problem(wrong, "one default for each path of an event type")
            return


def _text(path: Path) -> str:
    return ".".join(("data", *path))
