"""`make bench`: everything that is promised about cost, measured on this machine, beside what was aimed at.

python -m bench                     the report, within ten minutes; real Redis, Kafka and PostgreSQL are started for it
python -m bench --only whole        one section (steps, whole, claims, stalls, memory, acknowledgements, restart, rating); can be repeated
python -m bench --quick             small: to see that it works, not for a figure
python -m bench --full              larger: 20 million claims, more rounds; half an hour
python -m bench growth              what an event costs as counters, claims, tenants, meters, connections … grow; --full goes further
python -m bench publish             make the last report and growth the committed ones, and put the figures into docs/PERFORMANCE.md;
                                    a report that is quick or lacks a section is refused

The report is in bench/report: latest.json, targets.png, steps.txt; growth.json and growth.png. --strict: exit 1 if a target is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import MISSED, Figure, as_json, from_json, markdown, table
from bench.sections import SCALES, SECTIONS, STEPS

REPORT = Path(__file__).parent / "report"
PUBLISHED = REPORT / "published"
FILES = ("latest.json", "targets.png", "growth.json", "growth.png")
MOST_S = 600
PAGE = Path(__file__).parents[1] / "docs" / "PERFORMANCE.md"
BEGIN = "<!-- targets: written by `make bench ARGS=publish` -->"
END = "<!-- end of targets -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="report", choices=("report", "growth", "publish", "section"))
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", choices=("steps", *SECTIONS))
    parser.add_argument("--quick", action="store_const", dest="scale", const="quick", default="usual")
    parser.add_argument("--full", action="store_const", dest="scale", const="full")
    parser.add_argument("--note", default="", help="goes into the report: what else the machine did")
    parser.add_argument("--strict", action="store_true")
    arguments = parser.parse_args()
    REPORT.mkdir(exist_ok=True)
    match arguments.what:
        case "section":
            return _one_section(arguments.name, arguments.scale)
        case "growth":
            return _growth(arguments.scale == "full", arguments.note)
        case "publish":
            return _publish()
    return _report(arguments)


def _report(arguments: argparse.Namespace) -> int:
    wanted = arguments.only or ["steps", *SECTIONS]
    about = _about(arguments.scale, arguments.note)
    deadline = time.monotonic() + (MOST_S if arguments.scale != "full" else 6 * MOST_S)
    figures: list[Figure] = []
    left_out = []
    for name in [*SECTIONS, "steps"]:  # the targets first: steps are for whoever looks closer
        if name not in wanted:
            continue
        print(f"\n== {name}", flush=True)
        try:
            figures += _run_steps(arguments.scale, deadline) if name == "steps" else _run_section(name, arguments.scale, deadline)
        except subprocess.TimeoutExpired:
            left_out.append(name)
            print(f"{name} was cut off: the time is over.")
    file = REPORT / "latest.json"
    file.write_text(json.dumps(about | {"sections": wanted, "left_out": left_out, "figures": as_json(figures)}, indent=1) + "\n")
    print(f"\n{about['at']}, {about['commit']}, {about['machine']}, load before it {about['load']}. {about['note']}\n")
    for line in table(figures):
        print(line)
    if figures:
        _plot_targets(figures)
    print(f"\nIn {REPORT}: {', '.join(sorted(path.name for path in REPORT.iterdir()))}")
    missed = [figure.name for figure in figures if figure.verdict == MISSED]
    if missed:
        print(f"Not met: {'; '.join(missed)}")
    return 1 if left_out or (arguments.strict and missed) else 0


def _run_section(name: str, scale: str, deadline: float) -> list[Figure]:
    """In a process of its own: one section must not warm or fill the caches of another."""
    into = REPORT / f"{name}.part"
    command = (
        [sys.executable, "-m", "bench", "section", name, f"--{scale}"]
        if scale != "usual"
        else [sys.executable, "-m", "bench", "section", name]
    )
    subprocess.run(command, check=True, timeout=max(1.0, deadline - time.monotonic()))
    figures = from_json(json.loads(into.read_text()))
    into.unlink()
    return figures


def _one_section(name: str, scale: str) -> int:
    figures = list(SECTIONS[name](SCALES[scale]))
    (REPORT / f"{name}.part").write_text(json.dumps(as_json(figures)))
    return 0


def _run_steps(scale: str, deadline: float) -> list[Figure]:
    """What the micro-benchmarks print is kept as it is."""
    lines: list[str] = []
    for step in STEPS:
        command = [sys.executable, "-m", f"bench.{step}", "--runs", "1" if scale == "quick" else "3"]
        lines += [f"== {step}\n"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in _lines_until(process, deadline):
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    (REPORT / "steps.txt").write_text("".join(lines))
    return []


def _lines_until(process: subprocess.Popen[str], deadline: float) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if time.monotonic() > deadline:
            process.kill()
            raise subprocess.TimeoutExpired(process.args, 0)


def _growth(full: bool, note: str) -> int:
    from bench import growth
    from bench.plots import plot_growth

    about = _about("full" if full else "usual", note)
    sweeps = []
    for sweep in growth.measure(lambda line: print(line, flush=True), full=full):
        sweeps.append(sweep)
        content = about | {"sweeps": [sweep._asdict() | {"points": [point._asdict() for point in sweep.points]} for sweep in sweeps]}
        (REPORT / "growth.json").write_text(json.dumps(content, indent=1) + "\n")
        plot_growth(sweeps, REPORT / "growth.png")
    print(f"\n{REPORT / 'growth.png'}, {REPORT / 'growth.json'}")
    return 0


def _plot_targets(figures: Sequence[Figure]) -> None:
    from bench.plots import plot_targets

    plot_targets(figures, REPORT / "targets.png")


def _publish() -> int:
    if unfit := _unfit(REPORT / "latest.json"):
        print(f"Not published: {unfit}.", file=sys.stderr)
        return 1
    PUBLISHED.mkdir(exist_ok=True)
    for name in FILES:
        if (REPORT / name).exists():
            shutil.copy(REPORT / name, PUBLISHED / name)
            print(PUBLISHED / name)
    report = json.loads((PUBLISHED / "latest.json").read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    measured = f"Measured {report['at'][:10]}, {report['machine']}. {report['note']}".strip()
    lines = [BEGIN, "", measured, "", *markdown(from_json(report["figures"])), "", END]
    PAGE.write_text(before + "\n".join(lines) + after)
    print(PAGE)
    return 0


def _unfit(latest: Path) -> str:
    """Why the last report is not one to publish; nothing: it is, or there is none and the published one is only shown again."""
    if not latest.exists():
        return ""
    report = json.loads(latest.read_text())
    if report["scale"] == "quick":
        return "the last report is a quick one, which is not for a figure"
    measured = set(report.get("sections", ())) - set(report["left_out"])
    lacking = [name for name in SECTIONS if name not in measured]
    return f"the last report lacks {', '.join(lacking)}" if lacking else ""


def _about(scale: str, note: str) -> dict[str, object]:
    load = " ".join(Path("/proc/loadavg").read_text().split()[:3])
    at = datetime.now(UTC).isoformat(timespec="seconds")
    nice = f" Niceness {os.nice(0)}." if os.nice(0) else ""
    return {"at": at, "commit": _commit(), "machine": _machine(), "load": load, "scale": scale, "note": f"{note}{nice}".strip()}


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    cores = f"{os.cpu_count()} cores"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{cores}, {line.partition(':')[2].strip()}, Python {platform.python_version()}"
    return f"{cores}, {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
