"""Benchmarks that drive parts of the service themselves still drive them as the service does: small runs, whose figures nobody looks at.

The other benchmarks start the shipped process, or measure pure steps.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bench import micro_claims, micro_journal, micro_request, restart, stalls
from buffer.kafka_cluster import KafkaCluster
from dedupe.in_process import InProcessClaims
from dedupe.port import Identity
from tests import services


async def test_a_flush(kafka: services.Kafka, topic_prefix: str) -> None:
    assert await stalls.flush(1000, KafkaCluster(kafka.address, topic_prefix, create_topics=True, accept_unsafe=True)) > 0


async def test_a_generation_is_dropped() -> None:
    assert await stalls.drop_in_process(8000) > 0


async def test_claims_that_are_not_granted_end_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = micro_claims.fresh(10, 10)
    monkeypatch.setattr(micro_claims, "EVENTS", {10: 100})
    monkeypatch.setattr(micro_claims, "fresh", lambda *_: 10 * [call])
    identity = Identity("bench", 3600 * 1_000_000, 86_700 * 1_000_000)
    claims = InProcessClaims(identity=identity, clock_us=micro_claims.clock_us, entropy=os.urandom)
    with pytest.raises(AssertionError, match="not everything was granted"):
        await asyncio.wait_for(micro_claims.measure("in process", claims, 1, None), 10)


async def test_a_journal_is_opened(tmp_path: Path) -> None:
    assert len(await micro_journal.opening(20, 2)) == 2
    await restart._write(str(tmp_path), 2000)
    assert await restart._open(str(tmp_path), 2000) > 0
    with pytest.raises(AssertionError):
        await restart._open(str(tmp_path), 3000)


async def test_requests_without_a_socket(tmp_path: Path) -> None:
    assert len(await micro_request.measure(tmp_path, [micro_request.requests(20, 1), micro_request.requests(20, 100)])) == 2
