"""One run of exactness: seeded traffic through HTTP into `parshall up`, and the differences to the oracle.

Belongs here: the run, from an empty folder to a list of differences. Must not know: how many events, which seeds, what is asserted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from tests.acceptance.comparison import Differences, compare, compare_ledger
from tests.acceptance.edge import TENANTS, Api, Role, wait_rated, write_config
from tests.acceptance.senders import Record, Sending
from tests.oracle.config import read_config
from tests.oracle.outcome import Outcome, outcome
from tests.traffic import Plan, Traffic, generate

DEADLINE_MS = 120_000  # nothing is broken in this run: every request is answered at its first try, however slow the machine
AGAIN_PER_MILLE = 30


@dataclass
class Run:
    differences: Differences
    outcome: Outcome
    record: Record


async def run_up(
    folder: Path,
    *,
    seed: int,
    events: int,
    services: Sequence[str] = (),
    senders: int = 8,
    patches: Sequence[str] = (),
    restart: bool = False,
) -> Run:
    """`services` are further options of `parshall up`. With `restart` it is stopped and started again before anything is compared."""
    now = datetime.now(UTC)
    keys = write_config(folder, now=now, deadline_ms=DEADLINE_MS)
    traffic = make_traffic(folder, seed, events, now)
    arguments = ["up", "--config", str(folder / "parshall.toml"), "--data", str(folder / "data"), *services]
    role = Role("up", arguments, folder, patches=patches)
    role.start()
    try:
        await role.wait_ready()
        record, sending = Record(), Sending(seed=seed, senders=senders, again_per_mille=AGAIN_PER_MILLE)
        await sending.send_all(sending.pieces(traffic), keys, record, lambda *_: [role.url])
        await sending.send_ordered(traffic, keys, record, lambda *_: [role.url])
        assert record.unanswered == 0, f"some requests were not answered: {dict(record.tries)} {dict(record.refusals)}\n{role.log_end()}"
        if restart:
            assert role.stop() == 0, role.log_end()
            role.start()
            await role.wait_ready()
        found = await differences(folder, role.url, keys, record, now)
        if not restart:
            assert role.stop() == 0, role.log_end()
        return found
    finally:
        role.kill()


def make_traffic(folder: Path, seed: int, events: int, now: datetime) -> Traffic:
    config = read_config(folder / "parshall.toml")
    traffic = generate(Plan(seed, events, TENANTS, now, config.max_age_s, config.max_skew_s))
    traffic.write(folder)
    return traffic


async def differences(folder: Path, url: str, keys: dict[str, str], record: Record, now: datetime) -> Run:
    record.write(folder / "sent.ndjson")
    expected = outcome(folder / "parshall.toml", folder / "sent.ndjson", now)
    check_traffic(expected)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(300)) as session:
        apis = {tenant: Api(session, url, key) for tenant, key in keys.items()}
        for api in apis.values():
            await api.flush_now()
        accepted = {tenant: ledger.accepted for tenant, ledger in expected.ledger.tenants.items()}
        ledgers = await wait_rated(apis, accepted)
        found = compare_ledger(expected, ledgers, record.rejected)
        for more in (await compare(expected, apis),):
            found.extend(more)
            found.kinds.update(more.kinds)
    return Run(found, expected, record)


def check_traffic(expected: Outcome) -> None:
    """That the traffic was worth comparing: every code, every meter, more than one month, tiers that were crossed."""
    for ledger in expected.ledger.tenants.values():
        codes = {"conflict", "too_late", "too_early", "unknown_type", "missing_field", "invalid_value", "too_many_digits", "too_long"}
        assert set(ledger.rejected) == codes, ledger.rejected
        assert ledger.duplicate * 30 > ledger.received, ledger
    assert {key.meter for key in expected.usage} == {meter.name for meter in expected.config.meters}
    assert len({key.period for key in expected.charges}) >= 2
    assert any(len(line.tiers) >= 2 for line in expected.charges.values())
    assert any(cell.events > 1 for cell in expected.usage.values())


def seeds(first: int, number: int) -> list[int]:
    pick = random.Random(first)
    return [pick.randrange(1_000_000) for _ in range(number)]
