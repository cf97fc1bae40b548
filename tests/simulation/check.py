"""The promise: what must hold at every moment, and what must hold once everything was repaired and has settled.

At every moment: no event is counted twice (counter_log.py says so when a record arrives), the ledger of each writer adds up at each flush
(node.py), and what was promised would survive: after a power loss each event that was answered as counted is counted, or stands in a
journal. At the end: exactly the acknowledged events are counted, once, and the counters are what they make them; every event asked about
again is answered; nothing has a gap; tallies and `usage.rejected` tell of all that senders were answered.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta

from dedupe.digest import digest
from tests.simulation.counter_log import CounterName
from tests.simulation.departures import SOURCE, journalled
from tests.simulation.node import TENANTS
from tests.simulation.world import Sent, World

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
    if not world.lost_disks:  # the last flush of one may be in the log in part, and what it rejected lost
        _check_usage(world)
        _check_told(world)


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


def _check_usage(world: World) -> None:
    """By plain arithmetic from the events that are counted; of `largest`, which not every catalogue has, what can be said of it."""
    ledger = world.log.ledger
    made: dict[CounterName, tuple[int, int]] = {}
    sizes: dict[tuple[str, str, int], list[int]] = {}
    for (number, name), sent in world.sent.items():
        tenant, subject, data = TENANTS[number], sent.body["subject"], sent.body["data"]
        if not ledger.events[tenant, name]:
            continue
        assert isinstance(subject, str) and isinstance(data, dict)
        start_s = (sent.time - _EPOCH) // timedelta(hours=1) * 3600
        made["requests", tenant, subject, start_s, (data["region"], name)] = (1, 1)
        known = made.get(key := ("bytes", tenant, subject, start_s, (data["region"],)), (0, 0))
        made[key] = (known[0] + data["bytes"], known[1] + 1)
        sizes.setdefault((tenant, subject, start_s), []).append(data["size"])
    counted = {key: total for key, total in ledger.usage.items() if key[0] != "largest"}
    wrong = {key: (counted.get(key), made.get(key)) for key in counted.keys() | made.keys() if counted.get(key) != made.get(key)}
    assert not wrong, f"counters (counted, made by the events): {wrong}"
    for (meter, tenant, subject, start_s, _), (value, events) in ledger.usage.items():
        if meter == "largest":
            mine = sizes[tenant, subject, start_s]
            assert value in mine and 0 < events <= len(mine), f"the largest of {mine} is {value}, of {events} events"


def _check_told(world: World) -> None:
    """Answers may be given twice, and be lost; a tally and a record of each there are."""
    tallies = world.log.ledger.tallies
    for (tenant, verdict), events in world.answered.items():
        assert tallies[tenant, verdict] >= events, (
            f"{events} events of {tenant} were answered as {verdict}, and {tallies[tenant, verdict]} are told"
        )
    kept = Counter((one.tenant, json.loads(one.body)["code"]) for one in world.log.rejected)
    for (tenant, verdict), events in tallies.items():
        if verdict not in ("received", "accepted", "duplicate"):
            assert kept[tenant, verdict] >= events, (
                f"{events} events of {tenant} were rejected as {verdict}, and {kept[tenant, verdict]} are kept"
            )
