"""Credentials."""

from __future__ import annotations

import pytest

from ingest import auth
from ingest.auth import Keys, Principal, hash_key

DEMO = Principal(1, "demo", frozenset({"ingest"}))
OTHER = Principal(2, "other", frozenset({"read"}))


def test_the_hash_of_a_key_never_changes() -> None:
    # Configurations hold it: another hash here locks every sender out.
    assert hash_key("demo-key") == "510e984f21a6567ea367341751be4f8ee11b3929eddd5d74051cb74f6b36883e"


def test_a_key_is_known_by_its_hash() -> None:
    keys = Keys([(hash_key("demo-key"), DEMO), (hash_key("other-key"), OTHER)])
    for _ in range(2):  # the second time from the cache
        assert keys.principal("Bearer demo-key") is DEMO
        assert keys.principal("bearer  other-key ") is OTHER


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "demo-key", "Basic demo-key", "Bearer Demo-key", f"Bearer {hash_key('demo-key')}", "Bearer \udcff"],
)
def test_what_is_no_key(header: str | None) -> None:
    assert Keys([(hash_key("demo-key"), DEMO)]).principal(header) is None


def test_a_known_key_behind_many_spaces_is_not_kept() -> None:
    keys = Keys([(hash_key("demo-key"), DEMO)])
    assert keys.principal("Bearer" + " " * 8000 + "demo-key") is DEMO
    assert not keys._by_header


def test_the_cache_is_bounded_and_keeps_no_unknown_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MOST_CACHED", 3)
    keys = Keys([(hash_key("demo-key"), DEMO)])
    for spaces in range(1, 20):
        assert keys.principal("Bearer" + " " * spaces + "demo-key") is DEMO
        assert keys.principal(f"Bearer wrong-{spaces}") is None
        assert len(keys._by_header) <= 3
    assert all("wrong" not in header for header in keys._by_header)
