"""Folding: the decoded events of one type and one window become packed deltas. The code for it is made once a catalogue.

Belongs here: the source of the fold functions. Must not know: JSON, requests, claims.

Two functions a type, with the same result. `direct` visits the counters once an event. `grouped` first gathers events that share subject
and all dimensions and visits the counters once a group: faster when keys repeat, slower when they do not.

An event with a value that does not count changes nothing and is put into `faulty`. All values of an event are read before any counter is
touched, and a `try` costs nothing until something is raised.

Only names made here and numbers go into the source; whatever a catalogue says comes in as a value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from buffer.counters import MERGE_OF, ONE_EVENT, CounterKey, merge_max, pack
from ingest.catalogue import Meter
from ingest.quantity import LIMIT, Fault, Quantity
from ingest.shape import Leaf, Shape

Counters = dict[CounterKey, int]
# events of one type, tenant, a second of the window, sums, maxima, faulty
FoldFunction = Callable[[Sequence[Any], int, int, Counters, Counters, list[Any]], None]


class Fold(NamedTuple):
    direct: FoldFunction
    grouped: FoldFunction
    finest_window_s: int  # all events of one fold lie in one window of this length


def make_fold(shape: Shape, meter_numbers: Mapping[str, int]) -> Fold:
    source = _Source(shape, meter_numbers)
    return Fold(source.compile(source.direct()), source.compile(source.grouped()), min(meter.definition.window_s for meter in shape.meters))


def put_maximum(maxima: Counters, key: CounterKey, packed: int) -> None:
    known = maxima.get(key)
    maxima[key] = packed if known is None else merge_max(known, packed)


class _Source:
    def __init__(self, shape: Shape, meter_numbers: Mapping[str, int]) -> None:
        self._shape = shape
        self._numbers = meter_numbers
        self._dimensions = [leaf for leaf in shape.leaves if not leaf.quantities]
        self._values = [leaf for leaf in shape.leaves if leaf.quantities]
        self._locals = {leaf.path: f"d{number}" for number, leaf in enumerate(self._dimensions)}
        self._names: dict[str, Any] = {
            "Fault": Fault,
            "defaultdict": defaultdict,
            "put_maximum": put_maximum,
            "ONE_EVENT": ONE_EVENT,
            "ONE_AND_ONE": pack(1, 1),
        }
        for number, quantity in enumerate(self._quantities()):
            self._names[f"scaled{number}"] = quantity.scaled
            self._names[f"FACTOR{number}"] = 10**quantity.scale
            self._names[f"MOST{number}"] = (LIMIT - 1) // 10**quantity.scale

    def compile(self, lines: Sequence[str]) -> FoldFunction:
        names = dict(self._names)
        exec(compile("\n".join(lines), f"<fold of {self._shape.event_type!r}>", "exec"), names)
        function: FoldFunction = names["fold"]
        return function

    def direct(self) -> list[str]:
        lines = self._opening()
        maxima = [meter for meter in self._shape.meters if MERGE_OF[meter.definition.aggregation] == "max"]
        lines += [f"    top{self._index(meter)} = defaultdict(list)" for meter in maxima]
        lines += self._visit()
        for meter in self._shape.meters:
            key = self._key(meter)
            if meter in maxima:
                lines.append(f"        top{self._index(meter)}[{key}].append({self._value(meter)})")
            elif meter.value is None:
                lines += [f"        key = {key}", "        sums[key] = get(key, 0) + ONE_AND_ONE"]
            else:
                lines += [f"        key = {key}", f"        sums[key] = get(key, 0) + (ONE_EVENT + {self._value(meter)})"]
        for meter in maxima:
            lines.append(f"    for key, values in top{self._index(meter)}.items():")
            lines.append("        put_maximum(maxima, key, len(values) * ONE_EVENT + max(values))")
        return lines

    def grouped(self) -> list[str]:
        values = [f"v{number}" for number in range(len(self._quantities()))]
        group_key = ", ".join(["s", *self._locals.values()])
        lines = [*self._opening(), "    groups = defaultdict(list)", *self._visit()]
        gathered = f"({', '.join(values)})" if len(values) > 1 else values[0] if values else "None"
        lines += [f"        groups[{group_key}].append({gathered})"]
        lines += [f"    for {'(' + group_key + ')' if self._locals else 's'}, values in groups.items():", "        n = len(values)"]
        if len(values) > 1:
            lines.append(f"        {', '.join(values)} = zip(*values)")
        elif values:
            lines.append("        v0 = values")
        for meter in self._shape.meters:
            key = self._key(meter)
            if MERGE_OF[meter.definition.aggregation] == "max":
                lines.append(f"        put_maximum(maxima, {key}, n * ONE_EVENT + max({self._value(meter)}))")
            elif meter.value is None:
                lines += [f"        key = {key}", "        sums[key] = get(key, 0) + n * ONE_AND_ONE"]
            else:
                lines += [f"        key = {key}", f"        sums[key] = get(key, 0) + (n * ONE_EVENT + sum({self._value(meter)}))"]
        return lines

    def _opening(self) -> list[str]:
        windows = sorted({meter.definition.window_s for meter in self._shape.meters})
        return [
            "def fold(events, tenant, second, sums, maxima, faulty):",
            "    get = sums.get",
            *(f"    w{window} = second - second % {window}" for window in windows),
        ]

    def _visit(self) -> list[str]:
        """The head of the loop over the events, up to where an event's dimensions and values are known."""
        loads = self._load_leaves()
        if self._values:
            loads = [
                "        try:",
                *("    " + line for line in loads),
                "        except Fault:",
                "            faulty.append(event)",
                "            continue",
            ]
        return ["    for event in events:", "        s = event.subject", *loads]

    def _load_leaves(self) -> list[str]:
        """Attribute loads, each object once, and the values made integers."""
        lines: list[str] = []
        loaded: dict[tuple[str, ...], str] = {}
        for leaf in self._shape.leaves:
            owner = self._load_owner(lines, loaded, leaf)
            attribute = f"{owner}.{leaf.attributes[-1]}"
            if leaf.quantities:
                lines += [f"        raw = {attribute}", *self._scale(leaf)]
            else:
                lines.append(f"        {self._locals[leaf.path]} = {attribute}")
        return lines

    def _load_owner(self, lines: list[str], loaded: dict[tuple[str, ...], str], leaf: Leaf) -> str:
        owner = "event"
        for depth in range(1, len(leaf.attributes)):
            above = leaf.attributes[:depth]
            if above not in loaded:
                loaded[above] = f"o{len(loaded)}"
                lines.append(f"        {loaded[above]} = {owner}.{above[-1]}")
            owner = loaded[above]
        return owner

    def _scale(self, leaf: Leaf) -> list[str]:
        lines = []
        for quantity in dict.fromkeys(leaf.quantities):
            number = self._quantities().index(quantity)
            least = f"-MOST{number}" if quantity.signed else "0"
            times = f" * FACTOR{number}" if quantity.scale else ""
            plain = f"raw.__class__ is int and {least} <= raw <= MOST{number}"
            lines.append(f"        v{number} = raw{times} if {plain} else scaled{number}(raw)")
        return lines

    def _quantities(self) -> list[Quantity]:
        return list(dict.fromkeys(quantity for leaf in self._values for quantity in leaf.quantities))

    def _value(self, meter: Meter) -> str:
        (number,) = [n for n, quantity in enumerate(self._quantities()) if quantity.meter == meter.name]
        return f"v{number}"

    def _key(self, meter: Meter) -> str:
        dimensions = [self._locals[dimension.path] for dimension in meter.dimensions]
        parts = [str(self._numbers[meter.name]), "tenant", "s", f"w{meter.definition.window_s}", *dimensions]
        return f"({', '.join(parts)})"

    def _index(self, meter: Meter) -> int:
        return self._shape.meters.index(meter)
