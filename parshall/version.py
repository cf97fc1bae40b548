"""Which version of Parshall this is."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """Nothing where it runs from a source tree that is not installed."""
    try:
        return metadata.version("parshall")
    except metadata.PackageNotFoundError:
        return ""
