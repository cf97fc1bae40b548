"""One run of chaos: load, a plan of faults meanwhile, and when all is answered the oracle and the audit.

Belongs here: the run, from an empty folder to its report. Must not know: how faults are brought about, what is asserted of the report.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from tests.acceptance.comparison import Differences
from tests.acceptance.edge import PROJECT
from tests.acceptance.exactness import make_traffic
from tests.acceptance.fleet import RATED_S, compare_fleet
from tests.acceptance.senders import Record, Route, Sending
from tests.chaos.faults import Faults
from tests.chaos.plan import RATERS, WORKERS, make_plan
from tests.chaos.report import Report, by_second, longest_refusal_ms
from tests.chaos.stage import Stage, stage
from tests.oracle.outcome import Outcome

SENDERS = 40
SIZES = (1, 3, 10, 30)
AGAIN_PER_MILLE = 60
TRY_S = 8.0  # a sender waits so long for an answer, then it tries elsewhere
PATIENCE_S = 240.0
RECOVERY_S = 120.0  # of the services, after the last fault


@dataclass(frozen=True)
class Chaos:
    """What is asked for."""

    seed: int
    length_s: int = 60
    events_per_s: int = 250
    every_s: float = 1.6  # between the beginnings of two faults
    only: Sequence[str] = ()  # kinds of faults; none: all
    rated_s: int = RATED_S  # how long rating may take after the last answer
    patches: Sequence[str] = ()  # changes to the product, see tests/acceptance/patches.py

    @property
    def layout(self) -> str:
        """Of the claims in Redis."""
        return "hashed" if self.seed % 2 else "packed"


async def run_chaos(folder: Path, chaos: Chaos, commit: str) -> Report:
    now = datetime.now(UTC)
    async with stage(folder, now, chaos.layout, chaos.patches) as it:
        record = Record()
        faults, start_s = Faults(it), time.monotonic()
        keeper = asyncio.create_task(it.keep())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(faults.run(make_plan(chaos.seed, chaos.length_s, chaos.every_s, chaos.only)))
                tasks.create_task(_send(it, chaos, now, record))
            end_s = time.monotonic()
            await _recover(it)
            expected, differences = await compare_fleet(folder, it.workers, it.keys, record, now, check=False, rated_s=chaos.rated_s)
            audit = await asyncio.to_thread(_audit, it)
        finally:
            if keeper.done():
                keeper.result()
            keeper.cancel()
        return _report(chaos, commit, it, faults, record, (start_s, end_s), expected, differences, audit)


async def _send(it: Stage, chaos: Chaos, now: datetime, record: Record) -> None:
    traffic = make_traffic(it.folder, chaos.seed, chaos.events_per_s * chaos.length_s, now)
    sending = Sending(
        seed=chaos.seed,
        senders=SENDERS,
        again_per_mille=AGAIN_PER_MILLE,
        sizes=SIZES,
        events_per_s=chaos.events_per_s,
        try_s=TRY_S,
        patience_s=PATIENCE_S,
    )
    route = _anywhere(it.urls, random.Random(f"{chaos.seed}/routes"))
    await sending.send_all(sending.pieces(traffic), it.keys, record, route)
    await sending.send_ordered(traffic, it.keys, record, route)


def _anywhere(urls: Sequence[str], pick: random.Random) -> Route:
    """The other worker than the last time; now and then both at once."""

    def route(attempt: int, last: Sequence[str]) -> Sequence[str]:
        if attempt == 0:
            return [pick.choice(urls)]
        return urls if pick.random() < 0.1 else [url for url in urls if url != last[0]]

    return route


async def _recover(it: Stage) -> None:
    """Nothing is broken any more: by itself everything must serve again, reading included."""
    asked = [(it.roles[name].url, "/readyz") for name in (*WORKERS, *RATERS)]
    asked += [(it.roles[name].url, "/v1/ledger") for name in WORKERS]
    headers = {"Authorization": f"Bearer {it.keys['demo']}"}
    deadline = time.monotonic() + RECOVERY_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(RECOVERY_S)) as session:
        for url, path in asked:
            told = "no answer"
            while told != "":
                assert time.monotonic() < deadline, f"{url}{path} has not recovered after {RECOVERY_S:g} s: {told}"
                try:
                    async with session.get(url + path, headers=headers) as answer:
                        text = await answer.text()
                        told = "" if answer.status == 200 and '"rated":null' not in text.replace(" ", "") else text
                except (aiohttp.ClientError, OSError) as error:
                    told = repr(error)
                await asyncio.sleep(0.05)


def _audit(it: Stage) -> tuple[bool, str]:
    """What `parshall audit` says of both journals, Kafka and PostgreSQL."""
    first, *others = (it.data_of(name) for name in WORKERS)
    command = [sys.executable, "-m", "parshall", "audit", "--config", str(it.folder / "parshall.toml"), "--data", str(first)]
    for other in others:
        command += ["--journal", str(other / "writers" / "0")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    return done.returncode == 0, f"{done.stdout}{done.stderr}".strip()


def _report(
    chaos: Chaos,
    commit: str,
    it: Stage,
    faults: Faults,
    record: Record,
    lasted: tuple[float, float],
    expected: Outcome,
    differences: Differences,
    audit: tuple[bool, str],
) -> Report:
    start_s, end_s = lasted
    return Report(
        seed=chaos.seed,
        commit=commit,
        layout=chaos.layout,
        asked_s=chaos.length_s,
        lasted_s=int(end_s - start_s),
        load=by_second(record.times, start_s),
        faults=dict(sorted(faults.happened.items())),
        ended_by_themselves=dict(it.ended),
        claims_missing_in_replicas=it.redis.claims_missing,
        acknowledged_requests=len(record.times),
        acknowledged_events=sum(answered.events for answered in record.times),
        counted_events=sum(ledger.accepted for ledger in expected.ledger.tenants.values()),
        refused={str(status): record.tries[status] for status in (429, 503)},
        not_answered=record.tries[0],
        refusals=dict(record.refusals),
        longest_refusal_ms=longest_refusal_ms(record.times, start_s),
        longest_wait_ms=int(1000 * max((answered.waited_s for answered in record.times), default=0)),
        lost=differences.missing_events,
        counted_twice=differences.extra_events,
        differences=list(differences),
        audit_agrees=audit[0],
        audit=audit[1],
    )
