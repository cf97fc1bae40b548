"""Fixtures of the acceptance tests."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.acceptance.up import Up


@pytest.fixture
def own_kafka() -> Iterator[services.Kafka]:
    """A broker of this test's own: the registry of writers in it must name no writer that will never come back."""
    with services.kafka_broker() as broker:
        yield broker


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        chosen: int = probe.getsockname()[1]
        return chosen


@pytest.fixture
def data() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="up-"))
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture
def starts(data: Path, port: int) -> Iterator[list[Up]]:
    """Add each start to it: all are ended, whatever happens."""
    started: list[Up] = []
    yield started
    for up in started:
        up.end()
