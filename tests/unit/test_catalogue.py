"""The catalogue: what a `[[meters]]` table means, and that each error names the place, what is wrong and what is allowed."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from buffer.counters import MeterDefinition
from ingest.catalogue import MOST_METERS, CatalogueError, read_catalogue

EGRESS = {
    "name": "egress_bytes",
    "event_type": "http.request",
    "aggregation": "sum",
    "value": "data.bytes",
    "dimensions": {"region": "data.region"},
}


def problems(*tables: object) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        read_catalogue(list(tables))
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def changed(**changes: object) -> dict[str, Any]:
    return {name: value for name, value in {**EGRESS, **changes}.items() if value is not ...}


def test_a_table_becomes_a_definition() -> None:
    table = tomllib.loads(
        """
        [[meters]]
        name = "storage_gb_hours"
        event_type = "storage.sample"
        aggregation = "sum"
        value = "data.gb_hours"
        dimensions = { tier = "data.disk.tier", zone = { path = "data.zone", default = "none" } }
        window = "1d"
        scale = 6
        signed = true
        time = "arrival"
        """
    )["meters"]
    (meter,) = read_catalogue(table).meters
    assert meter.definition == MeterDefinition("storage_gb_hours", meter.definition.hash, "sum", 6, 86_400, ("tier", "zone"))
    assert len(meter.definition.hash) == 16 and int(meter.definition.hash, 16)
    assert meter.value == ("gb_hours",)
    assert [(dimension.path, dimension.default) for dimension in meter.dimensions] == [(("disk", "tier"), None), (("zone",), "none")]
    assert meter.signed and meter.arrival


def test_defaults() -> None:
    (meter,) = read_catalogue([{"name": "pings", "event_type": "ping", "aggregation": "count"}]).meters
    assert meter.definition[2:] == ("count", 0, 3600, ())
    assert (meter.value, meter.signed, meter.arrival) == (None, False, False)


def test_the_hash_is_stable_and_follows_the_content() -> None:
    def hash_of(**changes: object) -> str:
        return read_catalogue([changed(**changes)]).meters[0].definition.hash

    assert hash_of() == "6a1f7b8038cdc9fc"  # journals and records hold it: a change here makes new meters of all old ones
    assert hash_of(window="1h") == hash_of()  # said or by default
    assert hash_of(dimensions={"region": {"path": "data.region"}}) == hash_of()
    others = [
        hash_of(window="1d"),
        hash_of(value="data.bits"),
        hash_of(event_type="other"),
        hash_of(scale=1),
        hash_of(signed=True),
        hash_of(dimensions={"region": {"path": "data.region", "default": ""}}),
        hash_of(dimensions={"region": "data.region", "zone": "data.zone"}),
        hash_of(dimensions={"zone": "data.zone", "region": "data.region"}),
    ]
    assert len({hash_of(), *others}) == 9


def test_several_meters_read_one_event_type() -> None:
    catalogue = read_catalogue(
        [EGRESS, changed(name="requests", aggregation="count", value=...), changed(name="other", event_type="other")]
    )
    assert [meter.name for meter in catalogue.by_event_type["http.request"]] == ["egress_bytes", "requests"]
    assert [definition.name for definition in catalogue.definitions] == ["egress_bytes", "requests", "other"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"name": "Egress"},
            "meters[0] \"Egress\" name: 'Egress' is not a meter name; allowed: 1 to 64 of a-z, 0-9 and _, with a letter first",
        ),
        ({"name": "a" * 65}, "name: 'aaa"),
        ({"name": "5xx"}, "name: '5xx' is not a meter name"),
        ({"name": "egress-bytes"}, "name: 'egress-bytes' is not a meter name"),
        ({"name": ...}, "meters[0] name: it is missing; allowed: 1 to 64 of a-z, 0-9 and _, with a letter first"),
        ({"event_type": ""}, "event_type: '' is not allowed; allowed: 1 to 256 characters, the CloudEvents type that the meter reads"),
        ({"event_type": "x" * 257}, "xxx... is not allowed; allowed: 1 to 256 characters"),
        ({"aggregation": "avg"}, "aggregation: 'avg' is not allowed; allowed: count, sum, max"),
        ({"aggregation": ...}, "aggregation: it is missing; allowed: count, sum, max"),
        ({"aggregation": "count"}, 'a count meter adds up events, so it has no value; allowed: aggregation = "count" without value, scale'),
        ({"aggregation": "count", "value": ..., "scale": 1}, "a count meter adds up events, so it has no value"),
        ({"aggregation": "count", "value": ..., "signed": True}, "a count meter adds up events, so it has no value"),
        ({"value": ...}, 'a sum meter needs `value`; allowed: a path such as value = "data.bytes"'),
        ({"value": "bytes"}, "value: 'bytes' is not a path below data; allowed: names joined by dots, \"data\" first"),
        ({"value": "data"}, "value: 'data' is not a path below data"),
        ({"value": "meta.bytes"}, "value: 'meta.bytes' is not a path below data"),
        ({"value": "data.a\x1f"}, "value: 'data.a\\x1f' holds a quotation mark, a backslash or a control character"),
        ({"value": "data..x"}, "value: 'data..x' is not a path below data"),
        ({"value": 5}, "value: 5 is not a path below data"),
        (
            {"value": 'data."http.bytes"'},
            "value: 'data.\"http.bytes\"' holds a quotation mark, a backslash or a control character; allowed: names",
        ),
        (
            {"dimensions": {"region": "data.a\\b"}},
            "dimensions.region.path: 'data.a\\\\b' holds a quotation mark, a backslash or a control character",
        ),
        ({"dimensions": {"Region": "data.region"}}, "dimensions: 'Region' is not a dimension name; allowed: 1 to 64"),
        ({"dimensions": {"a-b": "data.region"}}, "dimensions: 'a-b' is not a dimension name"),
        ({"dimensions": {"region": 7}}, 'dimensions.region: 7 is not allowed; allowed: a path such as "data.region", or { path'),
        (
            {"dimensions": {"region": {"path": "data.region", "default": 1}}},
            "dimensions.region.default: 1 is not allowed; allowed: text of",
        ),
        ({"dimensions": {"region": {"path": "data.r", "default": "x" * 257}}}, "xxx... is not allowed; allowed: text of at most 256"),
        (
            {"dimensions": {"region": {"path": "data.r", "default": "a\0"}}},
            "dimensions.region.default: it holds the character NUL; allowed",
        ),
        (
            {"dimensions": {"region": {"path": "data.r", "fallback": ""}}},
            "dimensions.region.fallback: there is no such setting; allowed: path, default",
        ),
        (
            {"dimensions": {"region": {"default": "none"}}},
            'dimensions.region.path: it is missing; allowed: a path such as "data.region"',
        ),
        ({"dimensions": {f"d{n}": f"data.d{n}" for n in range(17)}}, "is not allowed; allowed: at most 16 names with a path each"),
        (
            {"dimensions": {"bytes": "data.bytes"}},
            'dimensions.bytes: data.bytes is read as a dimension, while meters[0] "egress_bytes" value reads',
        ),
        ({"dimensions": {"bytes": "data.bytes.x"}}, "dimensions.bytes: data.bytes.x is read as a dimension, while"),
        ({"window": "2h"}, "window: '2h' is not allowed; allowed: 1m, 15m, 1h, 1d"),
        ({"scale": 19}, "scale: 19 is not allowed; allowed: a whole number from 0 to 18"),
        ({"scale": True}, "scale: True is not allowed; allowed: a whole number from 0 to 18"),
        ({"signed": "yes"}, "signed: 'yes' is not allowed; allowed: true, false"),
        ({"time": "now"}, 'time: \'now\' is not allowed; allowed: "event", "arrival"'),
        (
            {"unit": "byte"},
            "unit: there is no such setting; allowed: name, event_type, aggregation, value, dimensions, window, scale, signed, time",
        ),
    ],
)
def test_each_error_says_where_what_and_what_else(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems(changed(**changes))
    assert problem.startswith("meters[0]")
    assert expected in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a" * 64},
        {"event_type": "x" * 256},
        {"dimensions": {"region": {"path": "data.region", "default": "x" * 256}}},
        {"dimensions": {f"d{n}": f"data.d{n}" for n in range(16)}},
        {"scale": 18},
    ],
)
def test_as_much_as_is_allowed(changes: dict[str, Any]) -> None:
    assert len(read_catalogue([changed(**changes)]).meters) == 1


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, 'meters[1] "egress_bytes" name: meters[0] has the same name; allowed: one meter a name'),
        (
            {"name": "other", "time": "arrival"},
            'meters[1] "other" time: meters[0] "egress_bytes" reads the same event type with time = "event"',
        ),
        (
            {"name": "other", "dimensions": {"region": {"path": "data.region", "default": "none"}}},
            'meters[1] "other" dimensions.region: meters[0] "egress_bytes" dimensions.region reads the same path with another default',
        ),
        (
            {"name": "other", "aggregation": "count", "value": ..., "dimensions": {"size": "data.bytes"}},
            'meters[1] "other" dimensions.size: data.bytes is read as a dimension, while meters[0] "egress_bytes" value reads data.bytes',
        ),
        (
            {"name": "other", "value": "data.bytes.sent"},
            'meters[1] "other" value: data.bytes.sent is read as a value, while meters[0] "egress_bytes" value reads data.bytes as a value',
        ),
    ],
)
def test_meters_that_disagree(other: dict[str, Any], expected: str) -> None:
    (problem,) = problems(EGRESS, changed(**other))
    assert problem.startswith(expected)


def test_what_one_event_type_says_binds_no_other() -> None:
    other = {"name": "other", "event_type": "other", "aggregation": "count", "dimensions": {"bytes": "data.bytes"}, "time": "arrival"}
    assert len(read_catalogue([EGRESS, other]).meters) == 2


def test_all_problems_at_once() -> None:
    found = problems(changed(window="2h", scale=-1), changed(name="other", aggregation="avg"), 3)
    assert [problem.partition(":")[0] for problem in found] == [
        'meters[0] "egress_bytes" window',
        'meters[0] "egress_bytes" scale',
        'meters[1] "other" aggregation',
        "meters[2]",
    ]


@pytest.mark.parametrize("tables", [None, [], (), {}, "meters"])
def test_no_meter_at_all(tables: object) -> None:
    with pytest.raises(CatalogueError, match="there is no meter; allowed: at least one"):
        read_catalogue(tables)


def test_as_many_meters_as_are_allowed() -> None:
    tables = [{"name": f"m{number}", "event_type": f"t{number}", "aggregation": "count"} for number in range(MOST_METERS + 1)]
    assert len(read_catalogue(tables[1:]).meters) == MOST_METERS
    with pytest.raises(CatalogueError, match="there are 1001 meters; allowed: at most 1000"):
        read_catalogue(tables)
