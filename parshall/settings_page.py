"""The configuration file with every setting in it, each explained by the words of its definition, all commented out.

Belongs here: how the page looks, and the examples of sections that are lists. Must not know: values in force, files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from parshall.settings import KeySettings, Settings, TenantSettings, allowed_for
from parshall.settings_sources import variable_name

WIDTH = 120

INTRODUCTION = """\
The configuration of Parshall, with every setting and its default. Take the "#" away from what you want to change.
A setting that is one value can also be given by an environment variable (named behind it), which wins over this file;
an option of the command line wins over both. `parshall check FILE` tells what is wrong with a file, and where."""

EXAMPLES = {"tenants": ('"acme"', "1"), "keys": ('"acme"', f'"{"0" * 64}"', '["ingest", "read", "admin"]')}

LISTS = """\
# ---- What is counted. A meter never changes under its name; what it counts starts with the first event after it was added.
# [[meters]]
# name = "egress_bytes"
# event_type = "http.request"                # the CloudEvents type it counts; several meters may count the same
# aggregation = "sum"                        # count: events; sum: of the value; max: the largest value
# value = "data.bytes"                       # where the value is in the event; not for count
# dimensions = { region = "data.region" }    # usage is kept apart by these: name = where it is in the event
# window = "1h"                              # the finest time that usage is kept by: 1m, 15m, 1h (default) or 1d
# scale = 0                                  # decimal places of the value, 0 (default) to 18; more in an event is an error
# signed = false                             # whether a value may be negative
# time = "event"                             # or "arrival": without a time it counts when it comes, and again if resent after max_age_s

# ---- What it costs: one book for each tenant.
# [[price_books]]
# tenant = "acme"
# currency = "USD"
# decimal_places = 2                         # every line is rounded to this once, half to even; exact before
# timezone = "UTC"                           # months are counted in it

# [[price_books.versions]]                   # the latest that took effect by the start of a month governs the whole month
# effective_from = 2026-01-01                # the first of a month

# [[price_books.versions.prices]]            # the first price that matches is used
# meter = "egress_bytes"
# model = "graduated"                        # or per_unit
# dimensions = ["region"]                    # one line of the bill for each combination; other dimensions are summed
# where = { region = "eu" }                  # only this usage; without it, all
# free = "1000000000"                        # units of each line that cost nothing
# per = "1000000000"                         # the unit price is for so many units: made of twos and fives
# tiers = [ { up_to = "10000000000", unit_price = "0.09" }, { unit_price = "0.07" } ]
"""


def settings_page() -> str:
    head = textwrap.indent(INTRODUCTION, "# ")
    return "\n".join([head, "", *_table(Settings, ()), *_lists(), LISTS])


def _table(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner.append((name, field.annotation))
        elif name not in ("tenants", "keys", "meters", "price_books"):
            yield from _setting((*path, name), field)
    for name, section in inner:
        yield f"# ---- {section.__doc__}"
        yield f"# [{'.'.join((*path, name))}]"
        yield ""
        yield from _table(section, (*path, name))


def _setting(path: tuple[str, ...], field: FieldInfo) -> Iterator[str]:
    allowed = allowed_for(field)
    limits = f" {allowed[0].upper()}{allowed[1:]}." if " from " in allowed else ""
    yield from textwrap.wrap(f"{field.description}{limits} {variable_name(path)}", WIDTH, initial_indent="# ", subsequent_indent="# ")
    value = field.default if field.default is not None else (field.examples or [""])[0]
    yield f"# {path[-1]} = {_toml(value)}{'' if field.default is not None else '  # an example; not set by default'}"
    yield ""


def _lists() -> Iterator[str]:
    for name, model in (("tenants", TenantSettings), ("keys", KeySettings)):
        yield f"# ---- {model.__doc__}"
        yield f"# [[{name}]]"
        for (setting, field), example in zip(model.model_fields.items(), EXAMPLES[name], strict=True):
            yield f"# {f'{setting} = {example}':<42} # {field.description}"
        yield ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
