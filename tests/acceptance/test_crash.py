"""kill -9 of workers and rater: each acknowledged event is counted once, every other at most once, all end acknowledged.

The full form (20 crashes a run, several seeds) is `make prove`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import services
from tests.acceptance.crash import run_crashes
from tests.acceptance.edge import NotReady
from tests.acceptance.senders import NotAnswered

EVENTS = 16_000
CRASHES = 6


@pytest.mark.parametrize(("seed", "patches"), [(11, []), (12, ["drop_unsynced"])], ids=["page cache stays", "unsynced writes are lost"])
async def test_crashes_count_every_event_once(
    tmp_path: Path, own_kafka: services.Kafka, redis: services.Redis, database: str, seed: int, patches: list[str]
) -> None:
    run = await run_crashes(
        tmp_path, redis=redis, kafka=own_kafka, database=database, seed=seed, events=EVENTS, crashes=CRASHES, patches=patches
    )
    print(*run.lines(), sep="\n")
    assert run.differences == []
    assert run.rows_missing == set(), "the run did not reach every row of the verdict table"


async def test_without_fdatasync_the_run_fails(tmp_path: Path, own_kafka: services.Kafka, redis: services.Redis, database: str) -> None:
    """The test's own teeth: with syncs stubbed out, on a disk that loses unsynced writes, a run cannot end well."""
    try:
        run = await run_crashes(
            tmp_path,
            redis=redis,
            kafka=own_kafka,
            database=database,
            seed=13,
            events=EVENTS // 4,
            crashes=3,
            patches=["drop_unsynced", "no_sync"],
        )
    except NotReady as refusal:
        assert "This journal is an old copy" in str(refusal)  # the worker itself noticed that its journal lost what Redis knows of
    except NotAnswered:
        pass  # a claim stays pending whose record the journal lost: that is no good end either
    else:
        assert run.differences != []
