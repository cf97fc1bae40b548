"""Seeded traffic through HTTP agrees exactly with the oracle: usage, charges, ledger; embedded and with real services. Mutants do not.

The full form (a million events, several seeds, every mutant) is `make prove`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import services
from tests.acceptance.exactness import run_up
from tests.acceptance.patches import MUTANTS

EVENTS = 12_000
MUTANT_EVENTS = 6_000


async def test_embedded_agrees_with_the_oracle(tmp_path: Path) -> None:
    run = await run_up(tmp_path, seed=1, events=EVENTS)
    assert run.differences == []


async def test_embedded_agrees_after_a_restart(tmp_path: Path) -> None:
    run = await run_up(tmp_path, seed=2, events=MUTANT_EVENTS, restart=True)
    assert [line for line in run.differences if "unanswered" not in line] == []


async def test_real_services_agree_with_the_oracle(tmp_path: Path, redis: services.Redis, own_kafka: services.Kafka, database: str) -> None:
    options = ["--redis", redis.url, "--kafka", own_kafka.address, "--postgres", database, "--workers", "2"]
    run = await run_up(tmp_path, seed=3, events=EVENTS, services=options)
    assert run.differences == []


@pytest.mark.parametrize(
    ("mutant", "kind"),
    [(MUTANTS["price"][0].__name__, "charges"), (MUTANTS["window"][0].__name__, "usage"), (MUTANTS["merge"][0].__name__, "usage")],
)
async def test_a_mutant_is_found(tmp_path: Path, mutant: str, kind: str) -> None:
    run = await run_up(tmp_path, seed=4, events=MUTANT_EVENTS, patches=[mutant])
    assert run.differences.kinds[kind] > 0, f"{mutant} was not found"
    if kind == "charges":
        assert set(run.differences.kinds) == {"charges"}, "a price changes nothing but charges"
    assert run.differences.kinds["ledger"] == 0, "no mutant loses events"
