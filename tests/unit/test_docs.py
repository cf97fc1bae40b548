"""The pages for people name only what is there: files, make targets, commands of the program.

Belongs here: checks of README, ARCHITECTURE, CONTRIBUTING, CHANGELOG and docs/. Whether a page's commands work is tests/acceptance.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parshall.cli import COMMANDS

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
FOLDERS = r"ingest|dedupe|buffer|rater|parshall|bench|deploy|tests|docs|\.ci"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_named_files_exist(page: Path) -> None:
    named = re.findall(rf"[`(](?:\./)?((?:{FOLDERS})/[\w./-]*)[`)#]", page.read_text())
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    missing = [name for name in named if not (PROJECT / name).exists()]
    missing += [link for link in linked if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^    |^\$ )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert [name for name in named if name not in targets] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_named_commands_exist(page: Path) -> None:
    named = re.findall(r"(?:`|^    |^\$ |/)parshall ([a-z]+)", page.read_text(), re.MULTILINE)
    assert [name for name in named if name not in COMMANDS] == []
