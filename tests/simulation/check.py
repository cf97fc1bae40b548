"""The promise, checked on a world in which everything was repaired and has settled."""

from __future__ import annotations

from collections import Counter

from tests.simulation.world import TENANTS, World


def check_promise(world: World) -> None:
    ledger = world.log.ledger
    assert ledger.gaps() == [], f"records with a gap before them: {ledger.gaps()}"
    for (tenant, name), sent in world.sent.items():
        counted = ledger.events[TENANTS[tenant], name]
        assert counted <= 1, f"{name} was counted {counted} times"
        if sent.acknowledged:
            assert counted == 1, f"{name} was acknowledged and is not counted"
        else:
            assert sent.rejected, f"{name} was never answered"
    known = {(TENANTS[tenant], name) for tenant, name in world.sent}
    assert set(ledger.events) <= known
    _check_ledger(world)


def _check_ledger(world: World) -> None:
    """received = accepted + duplicate + rejected; accepted = what the counters hold; each writer's journal agrees with the log."""
    tallies = world.log.ledger.tallies
    counted: Counter[str] = Counter()
    for (tenant, _), count in world.log.ledger.events.items():
        counted[tenant] += count
    for tenant in TENANTS.values():
        mine = {verdict: count for (owner, verdict), count in tallies.items() if owner == tenant}
        received = mine.pop("received", 0)
        assert received == sum(mine.values()), f"{tenant}: received {received}, but {mine}"
        assert mine.get("accepted", 0) == counted[tenant], f"{tenant}: accepted {mine.get('accepted', 0)}, counted {counted[tenant]}"
