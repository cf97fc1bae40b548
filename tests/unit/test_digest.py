"""The digest of an event's identity."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from dedupe.digest import MOST_PREFIXES, _prefixes, digest, digests, identity_hash
from dedupe.port import shard_of

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


class Event(NamedTuple):
    source: str
    id: str


def test_the_stored_form_never_changes() -> None:
    """Claims in a store and digests in journals were made with it: another value needs another DIGEST_VERSION."""
    assert digest("edge/1", "a").hex() == "b9a23d153ffa53458643f367"
    assert identity_hash(3_600_000_000) == b"30d114c8899cce33"


@given(text, text, text, text)
def test_source_and_id_do_not_run_into_each_other(source: str, one: str, other: str, event_id: str) -> None:
    identities = {(source, one), (source + one, other), (one, source), (other, event_id)}
    assert len({digest(*identity) for identity in identities}) == len(identities)


@given(st.lists(st.tuples(text, text)))
def test_a_batch_has_the_digests_of_its_events(pairs: list[tuple[str, str]]) -> None:
    assert digests([Event(*pair) for pair in pairs]) == [digest(*pair) for pair in pairs]


def test_what_is_remembered_of_sources_is_bounded() -> None:
    before = digest("source 0", "a")
    for number in range(MOST_PREFIXES + 10):
        digest(f"source {number}", "a")
    assert len(_prefixes) <= MOST_PREFIXES
    assert digest("source 0", "a") == before


def test_identity_depends_on_the_length_of_a_generation() -> None:
    assert identity_hash(1) != identity_hash(2)


def test_identity_holds_which_tenants_are_in_a_store() -> None:
    assert identity_hash(1, 0, 1) == identity_hash(1), "one store is as it was before there were shards"
    places = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    assert len({identity_hash(1, *place) for place in places}) == len(places)


def test_every_tenant_has_one_shard() -> None:
    assert [shard_of(tenant, 3) for tenant in (1, 2, 3, 77, 2**32 - 1)] == [1, 2, 0, 2, 0]
    assert {shard_of(tenant, 1) for tenant in range(1, 100)} == {0}
