"""`make prove`: runs the full proofs one after the other and keeps what they print, with commit and seeds, in tests/prove/results/.

python -m tests.prove                          everything: three quarters of an hour
python -m tests.prove exactness crashes        these alone
python -m tests.prove crashes --seed 7         other seeds: the same seed gives the same traffic and the same order of crashes
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests import services
from tests.acceptance.crash import run_crashes
from tests.acceptance.exactness import Run, run_up, seeds
from tests.acceptance.patches import MUTANTS
from tests.chaos.run import Chaos, run_chaos
from tests.simulation.rater_sabotage import RATER_SABOTAGES
from tests.simulation.sabotage import SABOTAGES, Sabotage
from tests.simulation.scenario import simulate

RESULTS = Path(__file__).parent / "results"
EVENTS = 1_000_000
SEVERAL_SEEDS_EVENTS = 100_000
MUTANT_EVENTS = 20_000
CRASH_EVENTS = 100_000
CRASHES = 20
CHAOS_S = 180
SABOTAGE_WORLDS = 2000  # until a guard's absence must have been found; the rarest one takes hundreds


class Report:
    """Says everything twice: to whoever waits, and to a file."""

    def __init__(self, name: str, seed: int) -> None:
        RESULTS.mkdir(exist_ok=True)
        self._file = open(RESULTS / f"{name}.txt", "w")  # noqa: SIM115 - open for the whole run
        self.failed = 0
        self.say(f"{name}, seed {seed}, commit {_commit()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()

    def verdict(self, good: bool, what: str, seconds: int) -> None:
        self.failed += not good
        self.say(f"{'ok    ' if good else 'FAILED'} {what} ({seconds} s)")

    def close(self) -> None:
        self._file.close()


async def exactness(report: Report, seed: int) -> None:
    """A million events, embedded and with real services; then smaller runs of several seeds."""
    first, *more = seeds(seed, 4)
    for number, (one_seed, events) in enumerate([(first, EVENTS), *((other, SEVERAL_SEEDS_EVENTS) for other in more)]):
        with folder() as place:
            start = time.monotonic()
            run = await run_up(place, seed=one_seed, events=events, restart=number % 2 == 1)
            _say_run(report, f"embedded, {events} events, seed {one_seed}", run, start)
        with folder() as place, real() as (redis, kafka, database):
            start = time.monotonic()
            options = ["--redis", redis.url, "--kafka", kafka.address, "--postgres", database, "--workers", "2"]
            run = await run_up(place, seed=one_seed, events=events, services=options)
            _say_run(report, f"real services, {events} events, seed {one_seed}", run, start)


async def mutants(report: Report, seed: int) -> None:
    """Every mutant is found."""
    for kind, group in MUTANTS.items():
        for mutant in group:
            with folder() as place:
                start = time.monotonic()
                run = await run_up(place, seed=seed, events=MUTANT_EVENTS, patches=[mutant.__name__])
                what = f"{kind} mutant {mutant.__name__}: {dict(run.differences.kinds)}"
                report.verdict(bool(run.differences), what, int(time.monotonic() - start))


async def crashes(report: Report, seed: int) -> None:
    """Twenty crashes a run; in half of the runs what was not synced is lost."""
    for number, one_seed in enumerate(seeds(seed, 6)):
        patches = ["drop_unsynced"] if number % 2 else []
        with folder() as place, real() as (redis, kafka, database):
            start = time.monotonic()
            run = await run_crashes(
                place, redis=redis, kafka=kafka, database=database, seed=one_seed, events=CRASH_EVENTS, crashes=CRASHES, patches=patches
            )
            for line in run.lines():
                report.say("  " + line)
            for trouble in (*run.differences, *(f"row never reached: {row}" for row in sorted(run.rows_missing))):
                report.say("  " + trouble)
            good = run.differences == [] and run.rows_missing == set()
            what = f"{CRASHES} crashes, seed {one_seed}, {'unsynced writes lost' if patches else 'page cache kept'}"
            report.verdict(good, what, int(time.monotonic() - start))


async def chaos(report: Report, seed: int) -> None:
    """Every service, worker and connection is broken under load, every kind of fault several times."""
    for one_seed in seeds(seed, 3):
        with folder() as place:
            start = time.monotonic()
            told = await run_chaos(place, Chaos(one_seed, CHAOS_S), _commit())
            for line in told.markdown().splitlines():
                report.say("  " + line)
            report.verdict(told.good, f"{sum(told.faults.values())} faults in {CHAOS_S} s, seed {one_seed}", int(time.monotonic() - start))


async def sabotage(report: Report, seed: int) -> None:
    """Each guard of the protocol is taken out, and the simulation finds that, from whatever seed it begins."""
    for name, guard in {**SABOTAGES, **RATER_SABOTAGES}.items():
        start = time.monotonic()
        found = await asyncio.to_thread(_worlds_until_found, guard, seed * SABOTAGE_WORLDS)  # a world has an event loop of its own
        report.verdict(found > 0, f"{name}: found in world {found or 'none'}", int(time.monotonic() - start))


def _worlds_until_found(guard: Sabotage, first: int) -> int:
    """0: not found. Raises AssertionError when a world does not hold with the guard either."""
    for world in range(SABOTAGE_WORLDS):
        if guard.breaks(first + world):
            simulate(first + world, guard.habits)
            return world + 1
    return 0


PROOFS: dict[str, Callable[[Report, int], Coroutine[None, None, None]]] = {
    "exactness": exactness,
    "mutants": mutants,
    "crashes": crashes,
    "chaos": chaos,
    "sabotage": sabotage,
}


def _say_run(report: Report, what: str, run: Run, start: float) -> None:
    for difference in run.differences:
        report.say("  " + difference)
    report.verdict(run.differences == [], what, int(time.monotonic() - start))


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="parshall-prove-", dir="/tmp"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def real() -> Iterator[tuple[services.Redis, services.Kafka, str]]:
    with services.redis_server() as redis, services.kafka_broker() as kafka, services.postgres_server(max_connections="200") as postgres:
        yield redis, kafka, postgres.create_database("parshall")


def _commit() -> str:
    """What runs; the results themselves are being written and do not count as changes."""
    named = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", ":/", ":(top,exclude)tests/prove/results"], capture_output=True, text=True
    ).stdout.strip()
    return (named or "unknown") + ("-dirty" if changed else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proofs", nargs="*", help=", ".join(PROOFS), metavar="PROOF")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.proofs) - PROOFS.keys():
        parser.error(f"there is no proof {', '.join(unknown)}; there are: {', '.join(PROOFS)}")
    failed = 0
    for name in arguments.proofs or PROOFS:
        report = Report(name, arguments.seed)
        try:
            asyncio.run(PROOFS[name](report, arguments.seed))
        finally:
            report.close()
        failed += report.failed
    print("1 passed, 0 failed" if not failed else f"0 passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
