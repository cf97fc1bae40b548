"""Fixtures of the acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import services


@pytest.fixture
def own_kafka() -> Iterator[services.Kafka]:
    """A broker of this test's own: the registry of writers in it must name no writer that will never come back."""
    with services.kafka_broker() as broker:
        yield broker
