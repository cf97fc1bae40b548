"""The constants of `parshall size`: each says how it was measured, the page shows them all, and what the build fixes is what it fixes.

Must not know: the model.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import statistics
from pathlib import Path

import pytest

from bench.sections import SECTIONS
from buffer.journal import JournalLimits
from buffer.kafka_cluster import KafkaCluster
from buffer.record import CHUNK_BYTES
from dedupe.in_process import InProcessClaims
from parshall import measured, wiring
from parshall.measured import Constants, Cost, Speed
from parshall.settings import Settings
from parshall.size_report import constants_table

PROJECT = Path(__file__).resolve().parents[2]
PUBLISHED = PROJECT / "bench" / "report" / "published" / "latest.json"
PAGE = PROJECT / "docs" / "PERFORMANCE.md"
COSTS: dict[str, Cost | Speed] = Constants()._asdict()


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_what_measured_it_is_there(cost: Cost | Speed) -> None:
    assert cost.value > 0 and 0 <= cost.margin_percent <= 100
    command = cost.measured_by
    if command in (measured.CURL, measured.PS, measured.GROWTH):
        return
    if module := re.fullmatch(r"python -m (bench\.\w+)( --claims \d+)?", command):
        spec = importlib.util.find_spec(module[1])
        assert spec is not None and "__main__" in inspect.getsource(importlib.import_module(module[1]))
        return
    section = re.fullmatch(r'make bench ARGS="--only (\w+)"', command)
    assert section is not None and section[1] in SECTIONS


def test_what_was_published_is_what_is_reckoned_with() -> None:
    """Whoever publishes a report changes the constants too. Its values are hundredths."""
    rounds = {figure["name"]: figure["rounds"] for figure in json.loads(PUBLISHED.read_text())["figures"]}

    def ns(name: str) -> int:
        return 10 * statistics.median_low(rounds[name])

    constants = Constants()
    assert constants.writer_1.value == ns("1 a request")
    assert constants.writer_100.value == ns("100 a request")
    assert constants.writer_1000.value == ns("1000 a request")
    hashed, packed = ns("hashed, 10 million: Redis"), ns("packed, 10 million: Redis")
    assert (constants.redis_cpu.value, constants.packed_percent.value) == (hashed, -(-100 * packed // hashed))
    # What was rounded is on the side of caution.
    alone = ns("1000 a request, a counter an event") - ns("1000 a request")
    more_deltas_tenths = measured.PLAIN_DELTAS_TENTHS - 10 * measured.PLAIN_COUNTERS // 1000
    assert 0 <= constants.writer_delta.value * more_deltas_tenths // 10 - alone <= alone // 20
    assert 100 * constants.counter_memory.value >= max(rounds["a live counter, 1,000,000 of them"])
    assert 100 * constants.replay.value <= min(rounds["replay of 3,000,000 events"])
    assert 100 * constants.rater.value <= min(rounds["counters that are new in usage"] + rounds["counters that are in usage"])


def test_the_page_shows_them_all() -> None:
    shown = re.search(r"<!-- constants: .*? -->\n(.*?)\n<!-- end of constants -->", PAGE.read_text(), re.DOTALL)
    assert shown is not None and shown[1] == constants_table()


def test_every_line_of_the_table_is_one_constant() -> None:
    lines = constants_table(Constants(replay=Speed(1_234_567, "events/s", 7, "a command", "reading"))).splitlines()[2:]
    assert len(lines) == len(COSTS)
    assert "| reading | 1,234,567 events/s | 7 % | `a command` |" in lines


def test_what_the_build_fixes() -> None:
    settings = Settings()
    assert measured.GENERATION_S * 1_000_000 == wiring.GENERATION_US
    assert measured.CLOCK_MARGIN_S == wiring.CLOCK_MARGIN_S
    assert measured.CHUNK_BYTES == CHUNK_BYTES
    assert JournalLimits().segment_bytes == measured.SEGMENT_BYTES
    assert settings.journal.min_free_bytes == measured.MIN_FREE_BYTES
    assert settings.journal.max_bytes == measured.JOURNAL_BYTES
    assert settings.ingest.max_in_flight_bytes == measured.IN_FLIGHT_BYTES
    assert settings.flush.max_counters == measured.FLUSH_COUNTERS
    assert settings.ingest.max_live_counters == 4 * measured.FLUSH_COUNTERS
    assert inspect.signature(InProcessClaims).parameters["most_claims"].default == measured.IN_PROCESS_CLAIMS
    assert inspect.signature(KafkaCluster).parameters["partitions"].default == measured.PARTITIONS
