"""What became of every event that was sent: the first copy of an identity counts, later ones are duplicates or conflicts.

An identity is (tenant, source, id). Validation comes before it: a rejected event takes no identity. A later copy with other content (time,
subject, or what the meters read) is a conflict, which is a rejection; but a copy of another shape, of which the meters read other fields,
cannot be compared and is a duplicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from tests.oracle.config import Config
from tests.oracle.event import Event, read_event


@dataclass(frozen=True)
class Sent:
    """One event of one request that was answered."""

    tenant: str
    line: bytes


@dataclass
class TenantLedger:
    received: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by code


@dataclass
class Ledger:
    tenants: dict[str, TenantLedger]
    accepted: dict[tuple[str, str, str], Event]  # (tenant, source, id) -> the event that counts


def judge(sent: Iterable[Sent], config: Config, now: datetime) -> Ledger:
    """`sent` in the order of sending, a line once for each time it was answered."""
    ledger = Ledger({tenant: TenantLedger() for tenant in config.tenants}, {})
    for event in sent:
        _judge(event, ledger, config, now)
    return ledger


def _judge(sent: Sent, ledger: Ledger, config: Config, now: datetime) -> None:
    mine = ledger.tenants[sent.tenant]
    mine.received += 1
    event = read_event(sent.line, config, now)
    if isinstance(event, str):
        mine.rejected[event] += 1
        return
    identity = (sent.tenant, event.source, event.id)
    first = ledger.accepted.setdefault(identity, event)
    if first is event:
        mine.accepted += 1
    elif first == event or first.shape != event.shape:
        mine.duplicate += 1
    else:
        mine.rejected["conflict"] += 1


def accepted_of(ledger: Ledger) -> Iterator[tuple[str, Event]]:
    for (tenant, _, _), event in ledger.accepted.items():
        yield tenant, event
