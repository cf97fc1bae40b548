"""The benchmark's own arithmetic: what it says it sends is what it sends, and a target is met or it is not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import claims_at_size, processes, stalls
from bench.bodies import Mix, bodies_of
from bench.counted import accepted_in_counter_records
from bench.figures import MET, MISSED, NO_TARGET, NOT_BUILT, Target, as_json, at_least, at_most, figure, from_json, table
from bench.sections import SCALES, SECTIONS

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize(("requests", "events"), [(7, 1), (3, 100), (2, 333), (1, 1000)])
def test_a_mix_is_what_it_says(requests: int, events: int, duplicates: bool, bad: bool) -> None:
    mix = Mix(requests, events, 5, duplicates, bad, run="a1")
    earlier = {event["id"]: event for body in bodies_of(mix.earlier, NOW) for event in json.loads(body)} if duplicates else {}
    sent = [event for body in bodies_of(mix, NOW) for event in json.loads(body)]

    counts = Counter(received=len(sent))
    for event in sent:
        if event["id"] in earlier:
            assert event == earlier[event["id"]]  # the same bytes: other content would be a conflict
            counts["duplicate"] += 1
        elif event["data"] == {"connections": "many"}:
            counts["rejected"] += 1
        else:
            counts["accepted"] += 1
    assert {name: counts[name] for name in mix.expected()} == mix.expected()
    assert len({event["id"] for event in sent}) == len(sent)


def test_the_same_mix_is_the_same_bytes() -> None:
    mix = Mix(3, 50, 5, duplicates=True, bad=True, run="a1")
    assert list(bodies_of(mix, NOW)) == list(bodies_of(mix, NOW))
    assert list(bodies_of(mix, NOW)) != list(bodies_of(mix._replace(run="a2"), NOW))


@pytest.mark.parametrize(
    ("values", "target", "verdict"),
    [
        ([2000], at_least(20), MET),
        ([1999], at_least(20), MISSED),
        ([200, 201, 900], Target(most=201), MET),
        ([200, 202, 900], Target(most=201), MISSED),
        ([], at_most(40), NOT_BUILT),
        ([5], Target(), NO_TARGET),
    ],
)
def test_the_median_meets_a_target_or_does_not(values: list[int], target: Target, verdict: str) -> None:
    row = figure("a section", "a figure", "us", values, target)
    assert row.verdict == verdict
    assert verdict in list(table([row]))[-1]
    assert from_json(json.loads(json.dumps(as_json([row])))) == [row]


def test_counters_must_hold_the_events_that_tallies_tell() -> None:
    requests, egress = ["requests", "a1", "count", 0, 3600, []], ["egress_bytes", "b1", "sum", 0, 3600, []]
    met_twice = {"meters": [egress, requests], "counters": [[0, "demo", "c", 0, [], "900", 3], [1, "demo", "c", 0, [], "3", 3]]}
    told = {"meters": [requests], "counters": [[0, "demo", "d", 0, [], "4", 4]], "tallies": {"demo": {"received": 8, "accepted": 7}}}
    values = [json.dumps({"v": 1, "tallies": {}} | record).encode() for record in (met_twice, told)]
    assert accepted_in_counter_records(values) == (7, 3)
    with pytest.raises(AssertionError, match="tallies say 7 events, counters hold 4"):
        accepted_in_counter_records(values[1:])


def test_memory_of_a_claim_is_not_rounded_to_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([1_000_000, 1_808_585])

    async def fill(*_: object, **__: object) -> int:
        return 0

    monkeypatch.setattr(claims_at_size, "used_memory", lambda _: next(used))
    monkeypatch.setattr(claims_at_size, "fill", fill)
    monkeypatch.setattr(claims_at_size, "claims_in", lambda _: 9_992)  # calls are of a full size
    monkeypatch.setattr(claims_at_size, "cpu_us", lambda _: 0)
    assert asyncio.run(claims_at_size._point("", 1, 10_000, "hashed")).memory == 8_092


def test_cpu_of_children_that_have_ended_is_counted() -> None:
    burn = "import time; exec('while time.process_time() < 0.2: pass')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('ended', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ended\n"
        found = processes.cpu_us(process.pid)
        process.communicate()
    assert found >= 200_000 - 2 * 10_000  # ticks of user and of system time


def test_cpu_of_a_process_is_not_in_ticks() -> None:
    before = time.process_time_ns() // 1000
    found = processes._own_cpu_us(os.getpid())
    assert before <= found <= time.process_time_ns() // 1000


@pytest.mark.parametrize("scale", SCALES)
def test_a_median_is_of_an_odd_number_of_rounds(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an even one it would be the better of two."""
    rounds: list[int] = []
    monkeypatch.setattr(stalls, "figures", lambda number, *_: rounds.append(number))
    SECTIONS["stalls"](SCALES[scale])
    assert [SCALES[scale].rounds % 2, *(number % 2 for number in rounds)] == [1, 1]


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"scale": "quick"}, "a quick one"),
        ({"sections": ["claims", "steps"]}, "lacks whole, stalls, "),
        ({"left_out": ["rating"]}, "lacks rating."),
        ({}, ""),
        ({"scale": "full"}, ""),
    ],
)
def test_only_a_whole_report_is_published(
    about: dict[str, object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "PERFORMANCE.md"
    page.write_text(f"before\n{command.BEGIN}\nfigures\n{command.END}\nafter\n")
    report = {
        "at": "2026-11-24T10:00:00",
        "machine": "",
        "note": "",
        "scale": "usual",
        "sections": [*SECTIONS],
        "left_out": [],
        "figures": [],
    }
    (tmp_path / "latest.json").write_text(json.dumps(report | about))
    for name, path in (("REPORT", tmp_path), ("PUBLISHED", tmp_path / "published"), ("PAGE", page)):
        monkeypatch.setattr(command, name, path)
    assert command._publish() == (1 if told else 0)
    assert told in capsys.readouterr().err
    assert ("figures\n" in page.read_text()) == bool(told) == (not (tmp_path / "published").exists())
