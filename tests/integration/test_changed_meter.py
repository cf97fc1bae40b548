"""A catalogue that makes another kind of meter of one that a journal knows does not start: what both count would be added up."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffer.counters import MeterDefinition
from ingest.writer import CannotStart, check_meters
from parshall.data_folder import DataFolder
from parshall.settings import Settings, load_settings
from parshall.wiring import meter_numbers, open_worker

DEMO = Path(__file__).parents[2] / "parshall" / "demo.toml"
PEAK = 'name = "peak_connections"\nevent_type = "db.sample"\naggregation = "max"\nvalue = "data.connections"\n'


def settings_with(tmp_path: Path, peak: str) -> Settings:
    text = DEMO.read_text()
    assert PEAK in text
    (tmp_path / "parshall.toml").write_text(text.replace(PEAK, peak))
    return load_settings(str(tmp_path / "parshall.toml"), environment={}, options={})


async def start(tmp_path: Path, peak: str) -> None:
    settings = settings_with(tmp_path, peak)
    parts = await open_worker(settings, DataFolder(str(tmp_path / "data")), 0, 1000)
    try:
        meter_numbers(parts.catalogue, parts.writer)
    finally:
        await parts.journal.close()
        await parts.counter_log.close()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (PEAK.replace('"max"', '"sum"'), "aggregation 'sum' in the catalogue and 'max' in this journal"),
        (PEAK + "scale = 2\n", "scale 2 in the catalogue and 0 in this journal"),
        (PEAK + 'window = "1m"\n', "window_s 60 in the catalogue and 3600 in this journal"),
        (PEAK + 'dimensions = { shard = "data.shard" }\n', "dimensions ('shard',) in the catalogue and () in this journal"),
    ],
    ids=["aggregation", "scale", "window", "dimensions"],
)
async def test_another_kind_of_meter_under_an_old_name(tmp_path: Path, changed: str, words: str) -> None:
    await start(tmp_path, PEAK)
    with pytest.raises(CannotStart, match="The meter 'peak_connections' has") as caught:
        await start(tmp_path, changed)
    assert words in str(caught.value)
    assert "give the changed meter a name of its own" in str(caught.value)


def test_of_two_kinds_in_one_journal_the_first_counts() -> None:
    """As for the rater. Builds that did not look may have let the second one in."""
    first, second = (MeterDefinition("peak", f"{number:016}", kind, 0, 3600, ()) for number, kind in enumerate(("max", "sum")))
    check_meters({7: second, 2: first}, [first])
    with pytest.raises(CannotStart, match="aggregation 'sum' in the catalogue and 'max' in this journal"):
        check_meters({7: second, 2: first}, [second])


async def test_what_may_change_under_a_name(tmp_path: Path) -> None:
    await start(tmp_path, PEAK)
    await start(tmp_path, PEAK.replace("data.connections", "data.open"))
    another = PEAK.replace("peak_connections", "connections").replace('"max"', '"sum"')
    await start(tmp_path, f"{PEAK}\n[[meters]]\n{another}")
