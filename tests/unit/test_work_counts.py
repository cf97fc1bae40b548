"""A change must not make the pure steps do more work without anybody noticing. Nothing here looks at a clock.

What is counted, and what that does not see, stands in work_counts.py. Allowed is work_counts.json: passes exactly, bytecodes and calls
give or take two in a thousand (an empty loop over the events is ten to thirty), memory one in a hundred. Whoever changes the work on
purpose, or takes a library that does, writes the figures anew and says why in the commit:

    PYTHONHASHSEED=0 .venv/bin/python -m tests.unit.work_counts > tests/unit/work_counts.json

The figures are those of Python 3.11. Another Python has other bytecodes, not all of which a tracer sees: they are not compared there, and
the rest is only held to half as much again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.usual_python import USUAL_PYTHON

PROJECT = Path(__file__).resolve().parents[2]
ALLOWED: dict[str, dict[str, int]] = json.loads(Path(__file__).with_name("work_counts.json").read_text())
TOLERANCE_PER_MILLE = {"bytecodes": 2, "c_calls": 2, "peak_bytes": 10, "kept_bytes": 10, "passes": 0}
OTHER_PYTHON_PER_MILLE = 0 if USUAL_PYTHON else 500


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """In a process of its own, where no other thread takes memory and no other test has filled a cache."""
    command = [sys.executable, "-m", "tests.unit.work_counts"]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | {"PYTHONHASHSEED": "0"}, stdout=subprocess.PIPE, check=True)
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def test_every_step_is_counted(counted: dict[str, dict[str, int]]) -> None:
    assert counted.keys() == ALLOWED.keys()


@pytest.mark.parametrize("step", ALLOWED)
def test_a_step_does_as_much_work_as_is_written_down(step: str, counted: dict[str, dict[str, int]]) -> None:
    changed = {
        what: f"{allowed} -> {counted[step][what]}"
        for what, allowed in ALLOWED[step].items()
        if (USUAL_PYTHON or what != "bytecodes")
        and abs(counted[step][what] - allowed) * 1000 > max(TOLERANCE_PER_MILLE[what], OTHER_PYTHON_PER_MILLE) * allowed
    }
    assert not changed, f"{step}: more or less work than tests/unit/work_counts.json says"
