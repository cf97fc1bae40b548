"""The named SQL statements of rater/sql/*.sql.

Belongs here: finding a statement by its name. Must not know: what statements do, connections.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_NAME = re.compile(r"^-- name: ([a-z_]+)$", re.MULTILINE)


@cache
def statements(topic: str) -> dict[str, str]:
    """name -> text, of one file."""
    text = resources.files("rater.sql").joinpath(f"{topic}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    names, bodies = parts[::2], parts[1::2]
    assert len(set(names)) == len(names), f"{topic}.sql has a name twice"
    return {name: body.strip() for name, body in zip(names, bodies, strict=True)}
