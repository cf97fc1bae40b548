"""The short form of `make chaos`: no promise is broken whatever breaks; and runs of a broken product are seen to break one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.senders import Answered
from tests.chaos.plan import KINDS, POSTGRES_DISK_FULL, SMALL_DISK_FULL, make_plan
from tests.chaos.report import by_second, longest_refusal_ms, spark
from tests.chaos.run import Chaos, run_chaos
from tests.small_disk import small_disk

LENGTH_S = 42
EVERY_S = 1
MET_NOTHING = 3  # so many faults may find nobody to hit: a connection that another fault has just ended


async def test_no_promise_is_broken(tmp_path: Path) -> None:
    chaos = Chaos(seed=2, length_s=LENGTH_S, every_s=EVERY_S)
    planned = make_plan(chaos.seed, LENGTH_S, EVERY_S)
    assert {fault.kind for fault in planned} == {kind.name for kind in KINDS}
    report = await run_chaos(tmp_path, chaos, "test")
    print(report.markdown())
    assert report.differences == []
    assert (report.lost, report.counted_twice, report.audit_agrees) == (0, 0, True), report.audit
    assert report.good
    with small_disk(1 << 20) as disk:
        impossible = 0 if disk else sum(fault.kind in (SMALL_DISK_FULL, POSTGRES_DISK_FULL) for fault in planned)
    assert sum(report.faults.values()) >= len(planned) - MET_NOTHING - impossible
    assert report.acknowledged_events >= chaos.events_per_s * LENGTH_S * 99 // 100, "the load was not what was asked for"
    assert sum(report.load) == report.acknowledged_events


@pytest.mark.parametrize(
    ("patch", "only", "every_s", "sees"),
    [
        ("pending_is_duplicate", ("ingest killed, its claims not heard of",), 2, "lost"),
        ("rate_again", ("replies lost, kafka", "ingest killed"), 0.7, "counted_twice"),
    ],
)
async def test_a_broken_product_is_seen(tmp_path: Path, patch: str, only: tuple[str, ...], every_s: float, sees: str) -> None:
    """(The same runs of the sound product are in the plan of the test above.)"""
    report = await run_chaos(tmp_path, Chaos(1, 15, every_s=every_s, only=only, patches=[patch], rated_s=5), "test")
    assert getattr(report, sees) > 0
    assert report.differences != []
    assert not report.good


def test_a_plan_is_the_seeds_alone() -> None:
    one = make_plan(7, 300, 1.5)
    assert one == make_plan(7, 300, 1.5) != make_plan(8, 300, 1.5)
    first_round = one[: len(KINDS)]
    assert sorted(fault.kind for fault in first_round) == sorted(kind.name for kind in KINDS)
    assert {fault.kind for fault in make_plan(7, 60, 2, ("redis failover",))} == {"redis failover"}
    for fault in one:
        (kind,) = (kind for kind in KINDS if kind.name == fault.kind)
        assert fault.target in kind.targets and kind.least_s <= fault.length_s <= kind.most_s


def test_the_figures_of_a_report() -> None:
    times = [Answered(11.0, 5, 0.1), Answered(10.5, 2, 0.1), Answered(14.25, 7, 2.0)]
    assert by_second(times, 10.0) == [2, 5, 0, 0, 7]
    assert longest_refusal_ms(times, 10.0) == 3250
    assert longest_refusal_ms([], 10.0) == 0
    assert spark([0, 7, 1], width=3) == "·█▂"
