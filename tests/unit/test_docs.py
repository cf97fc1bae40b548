"""The pages for people name only what is there: files, make targets, commands of the program.

Belongs here: checks of README, ARCHITECTURE, CONTRIBUTING, CHANGELOG and docs/, and of the alert rules and the dashboard that
docs/OPERATING.md hands out.
Whether a page's commands work is tests/acceptance.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus_client.metrics_core import HistogramMetricFamily, Metric

from buffer.kafka_cluster import KafkaCluster, Topic, objections_to
from ingest.admin import LEAST_INTERVAL_MS, MOST_INTERVAL_MS, admin_routes
from ingest.auth import INGEST
from ingest.batch import REJECTION_CODES
from ingest.catalogue import MOST_CHARACTERS, read_catalogue
from ingest.cloudevents import STRUCTURED_TYPES
from ingest.http import EVENTS, Edge, HttpLimits
from ingest.metrics import LATENCIES, SPECS, SnapshotCollector, metrics_routes
from parshall.cli import COMMANDS
from parshall.rating_metrics import RatingCollector
from parshall.read_api import ledger_routes, rated_routes
from parshall.reload_routes import reload_routes
from parshall.settings import IngestSettings, Settings
from parshall.sizing import Machines
from parshall.wiring import GENERATION_US, lifetime_us
from rater.api import MOST_ROWS
from rater.consume import RaterCounts
from rater.prices.book import price_for, read_books
from rater.prices.money import plain
from rater.prices.price import rate
from rater.query import Rating
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
    bounds = dict(re.findall(r"^\| `ingest\.(\w+)` \| ([\d,]+) \|", events, re.MULTILINE))
    assert len(bounds) == 4
    assert bounds == {name: f"{getattr(IngestSettings(), name):,}" for name in bounds}

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


# --- Operating


def exported_metrics() -> dict[str, tuple[str, ...]]:
    """Every metric that a process can show -> its labels."""
    rating = RatingCollector(cast(Any, None), RaterCounts())
    rating._rating = Rating(None, 0, 0, 0, 0)  # as if PostgreSQL had answered
    families: list[Metric] = [*SnapshotCollector(list, lambda: 0).collect(), *rating.collect()]
    assert len(families) > len(SPECS) + len(LATENCIES)
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: tuple(cast(Any, family)._labelnames) for family in families
    }


def test_the_table_of_metrics_is_what_is_exported() -> None:
    page = (PROJECT / "docs" / "OPERATING.md").read_text()
    rows = re.findall(r"^\| `(parshall_\w+)` \| ([\w, ]*?) ?\|", page, re.MULTILINE)
    assert [(name, tuple(labels.split(", ")) if labels else ()) for name, labels in rows] == list(exported_metrics().items())


def samples() -> set[str]:
    """The names that a scrape has: of a histogram those of its parts."""
    histograms = {family.name for family in SnapshotCollector(list, lambda: 0).collect() if isinstance(family, HistogramMetricFamily)}
    return (exported_metrics().keys() - histograms) | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROJECT / "deploy" / "prometheus-rules.yaml").read_text())["groups"] for rule in group["rules"]
]


def rule_of(alert: str) -> Mapping[str, Any]:
    (rule,) = [rule for rule in RULES if rule["alert"] == alert]
    return rule


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_watches_what_is_exported_and_names_the_next_command(rule: Mapping[str, Any]) -> None:
    watched = set(re.findall(r"parshall_\w+", rule["expr"]))
    assert watched, rule["expr"]
    assert watched <= samples()
    named = re.findall(r'\b(\w+)(?:=~?|!=|!~)"', rule["expr"])
    allowed = {label for name, labels in exported_metrics().items() for label in labels if any(one.startswith(name) for one in watched)}
    assert set(named) <= allowed
    assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}
    told = " ".join(rule["annotations"].values())
    assert re.match(r"`(parshall|kubectl|kafka-[a-z-]+\.sh) ", rule["annotations"]["description"])
    assert [name for name in re.findall(r"`parshall ([a-z]+)", told) if name not in COMMANDS] == []
    assert set(re.findall(r"parshall_\w+", told)) <= exported_metrics().keys()


DASHBOARD: dict[str, Any] = json.loads((PROJECT / "deploy" / "grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_shows_what_is_exported_and_says_what_it_means(panel: Mapping[str, Any]) -> None:
    assert panel["description"].endswith(".") and panel["targets"]
    assert [name for name in re.findall(r"`parshall ([a-z]+)", panel["description"]) if name not in COMMANDS] == []
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        shown = set(re.findall(r"parshall_\w+", target["expr"]))
        assert shown and shown <= samples()
        labels = {label for name, its in exported_metrics().items() for label in its if any(one.startswith(name) for one in shown)}
        named = re.findall(r'(\w+)(?:=~?|!=|!~)"', target["expr"]) + re.findall(r"{{(\w+)}}", target["legendFormat"])
        named += [label for group in re.findall(r"\b(?:by|ignoring) \(([\w, ]+)\)", target["expr"]) for label in group.split(", ")]
        assert set(named) - {"instance", "le"} <= labels
        for bounded, bound in re.findall(r'parshall_(\w+){[^}]*} / ignoring \(of\) parshall_bound{of="(\w+)"', target["expr"]):
            assert bounded == bound
        assert set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"} <= {one["name"] for one in DASHBOARD["templating"]["list"]}


def test_no_panel_covers_another() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken
        taken |= cells


def test_a_writer_that_was_seen_and_is_not_any_more_is_told() -> None:
    """Its own series are gone by then: what is left is that there were some, whichever pod, worker and version it was."""
    rule = rule_of("ParshallWriterGone")
    found = re.fullmatch(
        r"max by \(writer\) \(max_over_time\(parshall_writer_info\[(\d)d\]\)\) unless max by \(writer\) \(parshall_writer_info\)",
        rule["expr"],
    )
    assert found is not None
    assert 60 * int(rule["for"].removesuffix("m")) > Machines().start_s, "who reads its journal comes back"
    assert int(found[1]) * 86_400_000_000 > GENERATION_US + lifetime_us(Settings()), "it stands until a drained one can be retired"
    assert f"alert {rule['alert']}" in (PROJECT / "docs" / "OPERATING.md").read_text()


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if "`kafka-" in rule["annotations"]["description"]], ids=lambda rule: rule["alert"]
)
def test_a_command_of_kafka_in_an_alert_can_be_run(rule: Mapping[str, Any]) -> None:
    """Without --from-beginning a consumer shows what comes from now on, which may be nothing."""
    commands = re.findall(r"`(kafka-[^`]*)`", rule["annotations"]["description"])
    assert [command for command in commands if '--bootstrap-server "$KAFKA"' not in command] == []
    assert [command for command in commands if command.startswith("kafka-console-consumer") and "--from-beginning" not in command] == []


def test_the_alert_of_refusals_explains_each_reason() -> None:
    page = (PROJECT / "docs" / "OPERATING.md").read_text()
    (told,) = [paragraph for paragraph in page.split("\n\n") if paragraph.startswith("Reasons of a refusal:")]
    reasons = set(re.findall(r"`([a-z_]+)`", told)) - {"draining"}
    explained = rule_of("ParshallRequestsRefused")["annotations"]["description"].split(". ")[1:]
    assert {name for part in explained for name in part.split(": ")[0].split(", ")} == reasons


def test_what_each_topic_must_take_is_what_is_looked_at() -> None:
    cluster = KafkaCluster("localhost:9092")
    page = (PROJECT / "docs" / "FORMATS.md").read_text()
    for name in cluster.topics:
        small = {
            "min.insync.replicas": "2",
            "cleanup.policy": "compact" if name == cluster.writers else "delete",
            "max.message.bytes": "999999",
        }
        refused = any("max.message.bytes" in objection.remedy for objection in objections_to(cluster, Topic(name, 1, 3, small)))
        (settings,) = re.findall(rf"^\| `{name}` \| [^|]* \| ([^|]*) \|", page, re.MULTILINE)
        assert ("`max.message.bytes` of 1,000,000 or more" in settings) == refused


# --- Prices


def test_the_worked_prices_are_what_the_code_makes_of_them() -> None:
    page = (PROJECT / "docs" / "PRICES.md").read_text()
    block = re.search(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    demo = tomllib.loads((PROJECT / "parshall" / "demo.toml").read_text(), parse_float=Decimal)
    meters = {meter.name: meter for meter in read_catalogue(demo["meters"]).definitions}
    (book,) = read_books(tomllib.loads(block[1], parse_float=Decimal)["price_books"], meters.values())
    assert [book.tenant] == [tenant["name"] for tenant in demo["tenants"]]

    rows = re.findall(r"^\| `(\w+)` \| `(\w+)=(\w+)` \| (\d+) \| ([\d.]+) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for name, dimension, value, quantity, amount, how in rows:
        found = price_for(book.versions[-1], meters[name], [value if one == dimension else "any" for one in meters[name].dimensions])
        assert found is not None
        line = rate(Decimal(quantity), found[1], book.decimal_places)
        assert f"{line.amount}" == amount
        exact = [plain(number) for number in (line.free, *(tier.amount for tier in line.tiers)) if number]
        assert [number for number in exact if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", how)] == []
    assert {name for name, *_ in rows} == {price.meter for price in book.versions[-1].prices}
