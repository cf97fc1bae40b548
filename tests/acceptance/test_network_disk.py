"""A journal on a network file system is refused: two machines could open it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from parshall.errors import REFUSED
from tests.acceptance.edge import Role

_MOST_S = 60


@pytest.mark.parametrize("patches", [["on_a_network"], []])
def test_it_is_refused_in_one_sentence(tmp_path: Path, patches: list[str]) -> None:
    """And it is for that alone: without the patch the same start goes well."""
    role = Role("up", ["up", "--data", str(tmp_path / "data")], tmp_path, patches=patches)
    role.start()
    deadline = time.monotonic() + _MOST_S
    try:
        while role.running and b"Parshall is ready" not in role.log.read_bytes():
            assert time.monotonic() < deadline, role.log_end()
            time.sleep(0.05)
        said = role.log.read_text()
        assert role.exit_code == (REFUSED if patches else None), said
        assert ("is on a network file system" in said) == bool(patches)
        assert "Traceback" not in said
        assert bool(list(tmp_path.glob("data/writers/0/*.journal"))) != bool(patches), "nothing is written before it is refused"
    finally:
        role.kill()
