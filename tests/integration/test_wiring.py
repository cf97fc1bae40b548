"""What a worker is made with, from its settings: each bound is the one that was set, and no default stands in its place."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from dedupe.port import Identity
from dedupe.redis_claims import RedisClaims
from ingest.auth import hash_key
from ingest.http import HttpLimits
from parshall.data_folder import DataFolder
from parshall.settings import Settings
from parshall.wiring import GENERATION_US, _cluster, identity_of, lifetime_us, make_keys, make_shards, open_worker
from parshall.worker import http_limits

OTHERWISE = {  # everything as it is by default nowhere
    "ingest": {
        "max_body_bytes": 2_000_001,
        "max_age_s": 7200,
        "max_skew_s": 60,
        "deadline_ms": 4321,
        "max_connections": 77,
        "max_in_flight_bytes": 33_000_001,
        "max_waiting_events": 44_444,
        "max_live_counters": 55_555,
    },
    "journal": {"max_bytes": 99 << 20, "min_free_bytes": 5 << 20},
    "flush": {"max_counters": 1_000_000},
    "tenants": [{"name": "demo", "number": 7}],
    "meters": [{"name": "hits", "event_type": "hit", "aggregation": "count"}],
}


def settings_with(**sections: object) -> Settings:
    return Settings.model_validate(OTHERWISE | sections)


async def test_the_bounds_of_a_worker_are_those_that_were_set(tmp_path: Path) -> None:
    folder = DataFolder(str(tmp_path / "data")).make()
    parts = await open_worker(settings_with(), folder, 0, 1234)
    writer, journal = parts.writer, parts.journal
    assert (writer.limits.waiting_events, writer.limits.live_counters) == (44_444, 55_555)
    assert (journal.most_bytes, journal.least_free_bytes) == (99 << 20, 5 << 20)
    assert parts.tuner.interval_ms == 1234
    # The flush comes first: where live counters reached their bound before it, requests would be refused for as long as an interval is.
    assert not parts.tuner.full(27_776) and parts.tuner.full(27_777)
    await parts.counter_log.close()
    await journal.close()


async def test_a_flush_begins_at_the_number_of_counters_that_was_set(tmp_path: Path) -> None:
    folder = DataFolder(str(tmp_path / "data")).make()
    parts = await open_worker(settings_with(flush={"max_counters": 500}), folder, 0, 1234)
    assert not parts.tuner.full(499) and parts.tuner.full(500)
    await parts.counter_log.close()
    await parts.journal.close()


def test_the_bounds_of_the_edge_are_those_that_were_set() -> None:
    limits = http_limits(settings_with())
    assert limits == HttpLimits(max_body_bytes=2_000_001, deadline_ms=4321, connections=77, in_flight_bytes=33_000_001)


def test_more_connections_than_the_system_has_descriptors_for_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are left over for files and servers: without them a node that is full of connections could not write its journal."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert http_limits(settings_with(ingest={"max_connections": 10_000})).connections == 1024 - 200
    assert http_limits(settings_with(ingest={"max_connections": 300})).connections == 300
    assert asked == [(1024, 1024), (500, 1024)]


def test_a_claim_outlives_every_event_that_is_still_accepted_on_any_clock() -> None:
    assert lifetime_us(settings_with()) == (7200 + 60 + 300) * 1_000_000  # the age, the skew, and what two clocks may differ by


def test_each_shard_is_known_for_its_share_of_the_tenants() -> None:
    settings = settings_with(redis={"url": "redis://127.0.0.1:1,redis://127.0.0.1:2", "layout": "packed"})
    lifetime = lifetime_us(settings)
    assert [identity_of(settings, "a log", shard) for shard in range(2)] == [
        Identity("a log", GENERATION_US, lifetime, shard, 2, "packed") for shard in range(2)
    ]
    assert identity_of(settings_with(), "a log") == Identity("a log", GENERATION_US, lifetime, 0, 1, "hashed")


def test_the_shards_of_a_writer_wait_for_each_other_and_a_single_one_for_nobody() -> None:
    urls = ("redis://127.0.0.1:1", "redis://127.0.0.1:2")
    several = make_shards(settings_with(redis={"url": ",".join(urls)}), "a log")
    (alone,) = make_shards(settings_with(redis={"url": urls[0]}), "a log")
    assert isinstance(several[0], RedisClaims) and isinstance(several[1], RedisClaims) and isinstance(alone, RedisClaims)
    assert several[0]._clearance is several[1]._clearance is not None
    assert alone._clearance is None
    assert [claims._identity.shard for claims in several if isinstance(claims, RedisClaims)] == [0, 1]


def test_a_key_may_do_what_was_set_and_nothing_else() -> None:
    keys = make_keys(
        settings_with(
            tenants=[{"name": "demo", "number": 7}, {"name": "other", "number": 8}],
            keys=[
                {"tenant": "demo", "hash": hash_key("k1"), "scopes": ["read"]},
                {"tenant": "other", "hash": hash_key("k2"), "scopes": ["ingest", "admin"]},
            ],
        )
    )
    assert keys.principal("Bearer k1") == (7, "demo", frozenset({"read"}))
    assert keys.principal("Bearer k2") == (8, "other", frozenset({"ingest", "admin"}))


@pytest.mark.parametrize("allowed", [None, False, True])
def test_a_weak_kafka_and_missing_topics_are_accepted_only_where_that_was_set(allowed: bool | None) -> None:
    settings = settings_with(kafka={"bootstrap": "127.0.0.1:1", "topic_prefix": "p.", "accept_weak": allowed, "create_topics": allowed})
    cluster = _cluster(settings)
    assert (cluster.accept_unsafe, cluster.create_topics) == (allowed is True, allowed is True)
    assert (cluster.bootstrap, cluster.counters) == ("127.0.0.1:1", "p.usage.counters")
