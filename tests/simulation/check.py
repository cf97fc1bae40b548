"""The promise: what must hold at every moment, and what must hold once everything was repaired and has settled.

At every moment: no event is counted twice (counter_log.py says so when a record arrives), the ledger of each writer adds up at each flush
(node.py), and what was promised would survive: after a power loss each event that was answered as counted is counted, or stands in a
journal. At the end: exactly the acknowledged events are counted, once; every event asked about again is answered; nothing has a gap.
"""

from __future__ import annotations

from collections import Counter

from dedupe.digest import digest
from tests.simulation.departures import SOURCE, journalled
from tests.simulation.node import TENANTS
from tests.simulation.world import Sent, World

_ASKED_AGAIN = 30  # of the latest events


def check_promised(world: World) -> None:
    """Right after a power loss: nothing that was answered is gone."""
    counted = world.log.ledger.events
    lost = world.lost()
    waiting = [
        sent for key, sent in world.sent.items() if sent.promised and not counted[TENANTS[sent.tenant], sent.name] and key not in lost
    ]
    if waiting:
        kept = {claim for node in world.nodes for claim in journalled(node, (node.disk_aside or node.disk).copy())}
        for sent in waiting:
            assert (sent.tenant, digest(SOURCE, sent.name)) in kept, f"{sent.name} was answered as counted, and is in no journal"


async def check_answers(world: World) -> None:
    """No event is pending for ever, and none is granted again: each writer is asked about the latest events."""
    for node in world.staying:
        for sent in list(world.sent.values())[-_ASKED_AGAIN:]:
            if sent.acknowledged:
                await world.ask_again(node, sent)
    await world.flush_all()


def check_end(world: World) -> None:
    ledger = world.log.ledger
    gaps = [gap for gap in ledger.gaps() if gap[0] not in world.lost_writers()]
    assert gaps == [], f"records with a gap before them: {gaps}"
    lost = world.lost()
    for key, sent in world.sent.items():
        if key not in lost:
            _check_event(sent, ledger.events[TENANTS[sent.tenant], sent.name])
    for disk in world.lost_disks:
        disk.check_told()
    assert set(ledger.events) <= {(TENANTS[tenant], name) for tenant, name in world.sent}
    for node in world.nodes:
        node.check_ledger()
    _check_ledger(world)


def _check_event(sent: Sent, counted: int) -> None:
    assert counted <= 1, f"{sent.name} was counted {counted} times"
    if sent.promised:
        assert counted == 1, f"{sent.name} was answered as counted and is not counted"
    else:
        assert sent.rejected, f"{sent.name} was never answered"
    assert sent.rejected != "conflict", f"{sent.name} always had the same content and was refused as a conflict"


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
        # The last flush of a lost disk may be in the log in part: its tallies without all of its counters, or these without them.
        cut_short = sum(disk.held_events for disk in world.lost_disks)
        assert abs(mine.get("accepted", 0) - counted[tenant]) <= cut_short, f"{tenant}: {mine}, counted {counted[tenant]}"
