"""A record that counts another kind of meter under a name than all records before it: why it is parked, in words that are known again.

Pure. Whatever else is parked can be rated once something comes; this cannot, by any version. Must not know: PostgreSQL, commands.
"""

from __future__ import annotations

from buffer.counters import MeterDefinition, changed

_BEGINNING, _END = "meter ", "in all records before: these never change"


def why_not_rated(stored: MeterDefinition, given: MeterDefinition) -> str | None:
    """None: it can be added to what is stored."""
    field = changed(stored, given)
    if field is None:
        return None
    return f"{_BEGINNING}{given.name!r} has {field} {getattr(given, field)!r} in it, {getattr(stored, field)!r} {_END}"


def is_why(reason: str) -> bool:
    """Whether a parked record's reason is this one."""
    return reason.startswith(_BEGINNING) and reason.endswith(_END)
