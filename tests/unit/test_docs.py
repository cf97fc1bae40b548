"""The pages for people name only what is there: files, make targets, commands of the program.

Belongs here: checks of README, ARCHITECTURE, CONTRIBUTING, CHANGELOG and docs/. Whether a page's commands work is tests/acceptance.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest

from ingest.admin import admin_routes
from ingest.batch import REJECTION_CODES
from ingest.cloudevents import STRUCTURED_TYPES
from ingest.http import EVENTS, Edge, HttpLimits
from ingest.metrics import metrics_routes
from parshall.cli import COMMANDS
from parshall.read_api import ledger_routes, rated_routes
from rater.questions import CHARGES_PARAMETERS, USAGE_PARAMETERS

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


def test_the_api_page_names_every_code_parameter_and_type() -> None:
    page = (PROJECT / "docs" / "API.md").read_text()
    first_cells = re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    codes = page[page.index("| code |") : page.index("`Idempotency-Key`")]
    assert tuple(re.findall(r"^\| `(\w+)` \|", codes, re.MULTILINE)) == REJECTION_CODES
    assert named >= {*USAGE_PARAMETERS, *STRUCTURED_TYPES}
    assert all(f"`{name}`" in page for name in CHARGES_PARAMETERS)
    nothing = cast(Any, None)
    edge = Edge(nothing, nothing, nothing, HttpLimits(), clock_us=nothing, not_ready=nothing)
    routes = {**edge.routes, **admin_routes(nothing), **rated_routes(None), **ledger_routes(None, nothing), **metrics_routes()}
    served = {f"POST {EVENTS}", *(f"{method} {path}" for method, path in routes)}
    assert set(re.findall(r"`((?:GET|PUT|POST) /[^`]+)`", page)) == served
