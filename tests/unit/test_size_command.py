"""`parshall size` as a person and a script meet it, and docs/CAPACITY.md, which shows what it prints.

Must not know: the model (test_sizing.py).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from parshall.cli import main, parshall
from parshall.errors import USAGE
from parshall.size_report import amount, lasting, lasting_ms

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "CAPACITY.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```\n\$ parshall (size [^\n]*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NEEDED = ["--events-per-second", "10k", "--subjects", "1k", "--meters", "3"]


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(parshall, ["size", *arguments])
    assert result.exit_code == 0, result.output
    return result


# ---- the page


def test_the_page_works_out_the_three_rates() -> None:
    rates = [command.split()[2] for command, _ in BLOCKS]
    assert sorted(set(rates)) == ["10M", "10k", "1M"]
    assert PAGE.count("```") == 2 * len(BLOCKS)  # nothing else looks like a table of the command


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_the_page_shows_what_the_command_prints(command: str, shown: str) -> None:
    assert run(*shlex.split(command)[1:]).stdout == shown


def test_the_figures_between_the_tables_are_in_them() -> None:
    told = re.sub(r"^```\n.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    shown = set(re.findall(r"\d+(?:,\d{3})+", "".join(text for _, text in BLOCKS)))
    figures = re.findall(r"\d+(?:,\d{3})+", told)
    assert figures and [figure for figure in figures if figure not in shown] == []


# ---- for scripts


def test_json_says_what_the_table_says() -> None:
    answer = json.loads(run(*NEEDED, "--json").stdout, parse_float=lambda text: pytest.fail(f"a float: {text}"))
    assert answer["workload"]["events_per_second"] == 10_000
    assert answer["workload"]["max_age_s"] == 86_400
    assert answer["machines"]["redis_bytes"] == 64 << 30
    text = run(*NEEDED).stdout
    assert f"Writers {answer['writers']['needed']:,}" in " ".join(text.split())
    assert f"{answer['claims']['alive']:,} claims" in text
    assert f"{answer['postgres']['usage_rows']:,} rows" in text
    assert answer["bottleneck"] in " ".join(text.split())
    assert answer["limits"] == sorted(answer["limits"], key=lambda limit: limit["events_per_second"])
    assert {entry["setting"] for entry in answer["settings"]} == {"journal.max_bytes"}


@pytest.mark.parametrize(
    ("option", "value", "path", "expected"),
    [
        ("--events-per-second", "2M", "workload.events_per_second", 2_000_000),
        ("--subjects", "20k", "workload.subjects", 20_000),
        ("--meters", "7", "workload.meters", 7),
        ("--max-age", "7d", "workload.max_age_s", 604_800),
        ("--max-skew", "0s", "workload.max_skew_s", 0),
        ("--values", "12", "workload.values", 12),
        ("--meters-per-event", "2", "workload.meters_per_event", 2),
        ("--window", "15m", "workload.window_s", 900),
        ("--late-percent", "0", "workload.late_percent", 0),
        ("--events-per-request", "10", "workload.events_per_request", 10),
        ("--event-bytes", "400", "workload.event_bytes", 400),
        ("--tenants", "5", "workload.tenants", 5),
        ("--largest-tenant-percent", "100", "workload.largest_tenant_percent", 100),
        ("--flush-interval", "500ms", "workload.flush_interval_ms", 500),
        ("--partitions", "12", "workload.partitions", 12),
        ("--replication", "2", "workload.replication", 2),
        ("--retention", "12h", "workload.retention_s", 43_200),
        ("--months", "3", "workload.kept_months", 3),
        ("--archive-after", "90d", "workload.archived_s", 7_776_000),
        ("--busy-percent", "50", "machines.busy_percent", 50),
        ("--start", "90s", "machines.start_s", 90),
        ("--redis-gib", "2", "machines.redis_bytes", 2 << 30),
        ("--postgres-cores", "4", "machines.postgres_cores", 4),
        ("--postgres-gib", "5", "machines.postgres_bytes", 5 << 30),
    ],
)
def test_every_option_arrives(option: str, value: str, path: str, expected: int) -> None:
    part, name = path.split(".")
    assert json.loads(run(*NEEDED, option, value, "--json").stdout)[part][name] == expected


@pytest.mark.parametrize("flag", ["routed", "valkey"])
def test_every_flag_arrives(flag: str) -> None:
    assert json.loads(run(*NEEDED, f"--{flag}", "--json").stdout)["workload"][flag] is True
    assert json.loads(run(*NEEDED, "--json").stdout)["workload"][flag] is False


# ---- for people


def test_too_few_partitions_are_told() -> None:
    text = run("--events-per-second", "1M", "--subjects", "1M", "--meters", "3", "--partitions", "12").stdout
    assert "but only 12 can work: one a partition" in text
    assert "the partitions of Kafka, beyond " in text


def test_a_small_workload_is_told_that_it_needs_no_redis() -> None:
    assert (
        "`parshall up` keeps up to 5,000,000 claims itself" in run("--events-per-second", "20", "--subjects", "5", "--meters", "1").stdout
    )
    assert "`parshall up` keeps" not in run(*NEEDED).stdout


def test_no_line_is_wider_than_a_terminal() -> None:
    for arguments in (NEEDED, ["--events-per-second", "100M", "--subjects", "1G", "--meters", "1k", "--max-age", "30d", "--tenants", "1k"]):
        assert max(map(len, run(*arguments).stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--subjects", "0"], "'0' is not a whole number from 1 to 1,000,000,000, as in 500, 10k or 10M."),
        (["--subjects", "-3"], "'-3' is not a whole number"),
        (["--subjects", "1.5k"], "'1.5k' is not a whole number"),
        (["--subjects", "٣"], "'٣' is not a whole number"),
        (["--events-per-second", "101M"], "'101M' is not a whole number from 1 to 100,000,000,"),
        (["--max-age", "24"], "'24' is not a time from 1m to 30d, as in 30s, 10m, 24h or 7d."),
        (["--max-age", "31d"], "'31d' is not a time"),
        (["--max-age", "60500ms"], "'60500ms' is not a time"),
        (["--flush-interval", "5ms"], "'5ms' is not a time from 10ms to 1h,"),
        (["--window", "2h"], "'2h' is not one of"),
        (["--busy-percent", "0"], "0 is not in the range 1<=x<=100."),
        (["--meters-per-event", "4"], "An event cannot feed 4 meters where --meters is 3."),
        (["--tenants", "2", "--largest-tenant-percent", "49"], "The largest of 2 tenants has more than 49 % of the events"),
        (["--tenants", "2k"], "2,000 tenants need a subject each, and --subjects is 1,000."),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    wrong: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["parshall", "size", *NEEDED, *wrong])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    sentence = error.strip().splitlines()[-1]
    assert (ended.value.code, out) == (USAGE, "")
    assert told in sentence and sentence.endswith(".") and sentence.count(". ") == 0
    assert "Traceback" not in error


@pytest.mark.parametrize("missing", range(3))
def test_what_is_missing_is_named(missing: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = NEEDED[: 2 * missing] + NEEDED[2 * missing + 2 :]
    monkeypatch.setattr("sys.argv", ["parshall", "size", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == USAGE
    assert f"Missing option '{NEEDED[2 * missing]}'." in capsys.readouterr().err


# ---- units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1_023, "1,023 B"),
        (1_024, "1.0 KiB"),
        (1_025, "1.1 KiB"),  # up
        (64 << 30, "64.0 GiB"),
        ((64 << 30) + 1, "64.1 GiB"),
        (3 << 49, "1.5 PiB"),
        (5_000 << 50, "5,000.0 PiB"),
    ],
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (61, "1m 1s"), (600, "10m"), (3_661, "1h 1m"), (177_300, "49h 15m"), (259_200, "3d"), (270_000, "3d 3h")],
)
def test_times(seconds: int, text: str) -> None:
    assert lasting(seconds) == text
    assert lasting_ms(1_000 * seconds) == text
    assert lasting_ms(1_500) == "1500ms"
