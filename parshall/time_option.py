"""Times on the command line, as in 10m or 7d.

Must not know: which command asks, what for.
"""

from __future__ import annotations

import re
from typing import Any

import click

_TIMES_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Time(click.ParamType[int]):
    """In milliseconds, or in seconds."""

    name = "time"

    def __init__(self, least: str, most: str, unit: str = "s") -> None:
        self.least, self.most, self.unit = least, most, unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        given = milliseconds(str(value))
        low, high = milliseconds(self.least), milliseconds(self.most)
        assert low is not None and high is not None
        if given is None or not low <= given <= high or given % _TIMES_MS[self.unit]:
            self.fail(f"{value!r} is not a time from {self.least} to {self.most}, as in 30s, 10m, 24h or 7d.", param, ctx)
        return given // _TIMES_MS[self.unit]


def milliseconds(text: str) -> int | None:
    match = re.fullmatch(r"(\d{1,9})(ms|s|m|h|d)", text, re.ASCII)
    return int(match[1]) * _TIMES_MS[match[2]] if match else None
