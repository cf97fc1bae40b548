"""An event that counts, for tests of what decodes and answers. Must not know: catalogues, what a test makes of it."""

from __future__ import annotations


def event(**changes: object) -> dict[str, object]:
    """A good event; `...` takes a member away."""
    whole = {
        "specversion": "1.0",
        "id": "1",
        "source": "/edge",
        "type": "http.request",
        "subject": "customer-1",
        "time": "2026-11-24T09:59:30Z",
        "data": {"bytes": 5, "region": "eu", "zone": "a"},
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not ...}
