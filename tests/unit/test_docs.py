"""The pages for people name only what is there: files, make targets, commands of the program.

Belongs here: checks of README, ARCHITECTURE, CONTRIBUTING, CHANGELOG and docs/. Whether a page's commands work is tests/acceptance.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest

from ingest.admin import LEAST_INTERVAL_MS, MOST_INTERVAL_MS, admin_routes
from ingest.auth import INGEST
from ingest.batch import REJECTION_CODES
from ingest.catalogue import MOST_CHARACTERS
from ingest.cloudevents import STRUCTURED_TYPES
from ingest.http import EVENTS, Edge, HttpLimits
from ingest.metrics import metrics_routes
from parshall.cli import COMMANDS
from parshall.read_api import ledger_routes, rated_routes
from parshall.reload_routes import reload_routes
from rater.api import MOST_ROWS
from rater.questions import CHARGES_PARAMETERS, MOST_WINDOWS, USAGE_PARAMETERS

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


def test_the_api_page_says_what_the_code_does() -> None:
    page = (PROJECT / "docs" / "API.md").read_text()
    sections = {part.split("\n", 1)[0]: part for part in page.split("\n## ")}
    events, usage = sections["Sending events: `POST /v1/events`"], sections["Usage: `GET /v1/usage`"]
    charges, ledger = sections["Charges: `GET /v1/charges`"], sections["Where every event is: `GET /v1/ledger`"]

    assert _first_cells(events, "code") == REJECTION_CODES
    assert set(_first_cells(events, "Content-Type")) == set(STRUCTURED_TYPES)
    assert (_first_cells(usage, "parameter"), _first_cells(charges, "parameter")) == (USAGE_PARAMETERS, CHARGES_PARAMETERS)
    assert f"{MOST_ROWS:,} rows" in usage and f"{MOST_WINDOWS:,} windows" in usage
    assert events.count(f"1 to {MOST_CHARACTERS} characters") == 2
    assert f"from {LEAST_INTERVAL_MS} to {MOST_INTERVAL_MS}" in sections["Operating"]

    nothing = cast(Any, None)
    edge = Edge(nothing, nothing, nothing, HttpLimits(), clock_us=nothing, not_ready=nothing)
    routes = {
        **edge.routes,
        **admin_routes(nothing),
        **rated_routes(None),
        **ledger_routes(None, nothing),
        **metrics_routes(),
        **reload_routes(nothing),
    }
    scopes = {f"{method} {path}": route.scope for (method, path), route in routes.items()} | {f"POST {EVENTS}": INGEST}
    said = {name: re.search(r"Scope `(\w+)`", part) for part in (events, usage, charges, ledger) for name in _routes_in(part)[:1]}
    rows = re.findall(r"^\| `((?:GET|PUT|POST) /[^`]+)` \| `?(\w+)`? \|", sections["Operating"], re.MULTILINE)
    assert {name: found[1] if found else None for name, found in said.items()} | dict(rows) == {
        name: scope or "none" for name, scope in scopes.items()
    }
    assert set(_routes_in(page)) == scopes.keys()


def _first_cells(text: str, heading: str) -> tuple[str, ...]:
    """What stands in code marks in the first column of the table with this heading."""
    table = re.search(rf"^\| {heading} \|.*\n\|---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, heading
    return tuple(name for row in table[1].splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0]) if name != "ce-")


def _routes_in(text: str) -> list[str]:
    return re.findall(r"`((?:GET|PUT|POST) /[^`]+)`", text)
