"""Several `parshall ingest` roles that share real services: their configuration, and what they say together beside the oracle.

Belongs here: what every test with more than one worker needs. Must not know: what is broken meanwhile, how services are started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.acceptance.comparison import Differences, compare
from tests.acceptance.edge import Api, Role, wait_rated
from tests.acceptance.exactness import check_traffic
from tests.acceptance.senders import Record
from tests.oracle.outcome import Outcome, outcome

FLUSH_MS = 300
RATED_S = 120


def services_sections(*, redis: str, kafka: str, postgres: str, layout: str = "hashed") -> str:
    """Sections of parshall.toml."""
    text = f'\n[redis]\nurl = "{redis}"\nlayout = "{layout}"\n[postgres]\ndsn = "{postgres}"\n[flush]\ninterval_ms = {FLUSH_MS}\n'
    return text + f'[kafka]\nbootstrap = "{kafka}"\naccept_weak = true\ncreate_topics = true\n'


async def compare_fleet(
    folder: Path,
    workers: Sequence[Role],
    keys: Mapping[str, str],
    record: Record,
    now: datetime,
    *,
    check: bool = True,
    rated_s: int = RATED_S,
) -> tuple[Outcome, Differences]:
    """Once everything that was sent is answered. `check`: whether the traffic must hold everything that exactness is about. `rated_s`:
    how long rating may take."""
    record.write(folder / "sent.ndjson")
    expected = outcome(folder / "parshall.toml", folder / "sent.ndjson", now)
    if check:
        check_traffic(expected)
    accepted = {tenant: ledger.accepted for tenant, ledger in expected.ledger.tenants.items()}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(300)) as session:
        for worker in workers:
            await Api(session, worker.url, keys["demo"]).flush_now()
        apis = {tenant: Api(session, workers[0].url, key) for tenant, key in keys.items()}
        await wait_rated(apis, accepted, rated_s)
        differences = await compare(expected, apis)
        for tenant, key in keys.items():
            ledgers = [(await Api(session, worker.url, key).get("/v1/ledger"))["tenants"][tenant] for worker in workers]
            _compare_ledgers(tenant, accepted[tenant], ledgers, differences)
    return expected, differences


def _compare_ledgers(tenant: str, accepted: int, ledgers: Sequence[dict[str, Any]], differences: Differences) -> None:
    """Of all workers together. What was received and answered how depends on what broke; what was accepted does not."""
    names = ("received", "accepted", "duplicate", "rejected", "flushed", "buffered")
    found = {name: sum(ledger[name] for ledger in ledgers) for name in names}
    found["rated"] = ledgers[0]["rated"]  # every worker asks the same database
    wanted = {"accepted": accepted, "flushed": accepted, "buffered": 0, "rated": accepted}
    wanted["received"] = found["accepted"] + found["duplicate"] + found["rejected"]
    for name, number in wanted.items():
        if found[name] != number:
            differences.note("ledger", f"{tenant} {name}", number, found[name])
