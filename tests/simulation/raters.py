"""The raters of the simulated world: two processes of the real rater over one topic and one PostgreSQL, and which step each is in.

Belongs here: how a rater starts and ends, its steps, the price books it is given, when all have nothing left to do. Must not know: which
faults there are, what must hold (check_rated.py).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

from ingest.catalogue import Catalogue
from rater.configured import Configured
from rater.consume import Rater, RaterCounts, RaterLimits
from rater.postgres import Ledger
from rater.prices.book import PriceBook, read_books
from tests.simulation.habits import Habits
from tests.simulation.postgres import SimulatedConnection, SimulatedPostgres, Work
from tests.simulation.postgres_statements import TABLES, by_text
from tests.simulation.steps import COMMIT_SENT, IN_TRANSACTION, PARKED, POLLED, REPLY_LOST, REWINDING
from tests.simulation.topic import Group, SimulatedSource, Topic

Action = Callable[[], object]

_FREE, _UP_TO = 3, 10  # units
_BOOK = {"tenant": "demo", "currency": "USD"}


def _version(month: str, first: str, rest: str) -> dict[str, object]:
    requests = {"meter": "requests", "model": "graduated", "dimensions": ["region"], "free": _FREE}
    requests["tiers"] = [{"up_to": _UP_TO, "unit_price": first}, {"unit_price": rest}]
    return {"effective_from": month, "prices": [requests, {"meter": "largest", "model": "per_unit", "unit_price": "0.5"}]}


# The price books of one tenant, one after the other; the other tenant has none. Prices in thousandths, for check_rated.py: the first
# tier's and the rest's, by month.
BOOKS = (
    {**_BOOK, "versions": [_version("2026-03-01", "0.125", "0.1"), _version("2026-04-01", "0.255", "0.2")]},
    {**_BOOK, "versions": [_version("2026-03-01", "0.125", "0.1"), _version("2026-04-01", "0.005", "0.003")]},
)
THOUSANDTHS = ({"2026-03": (125, 100), "2026-04": (255, 200)}, {"2026-03": (125, 100), "2026-04": (5, 3)})
LARGEST_THOUSANDTHS = 500
FREE, UP_TO = _FREE, _UP_TO


def books_for(catalogue: Catalogue) -> tuple[tuple[PriceBook, ...], ...]:
    return tuple(read_books([book], catalogue.definitions) for book in BOOKS)


class RaterSteps:
    """Of one rater, over all its processes. `parked` is a step of the database: something waits in it."""

    def __init__(self) -> None:
        self.step = ""
        self._waiting: dict[str, list[Action]] = {}

    def when(self, step: str, action: Action) -> None:
        self._waiting.setdefault(step, []).append(action)

    def forget_actions(self) -> None:
        self._waiting.clear()

    def reach(self, step: str) -> None:
        if step != PARKED:
            self.step = step
        for action in self._waiting.pop(step, ()):
            asyncio.get_running_loop().call_soon(action)

    def source(self, what: str) -> None:
        if what == "polled":
            self.reach(POLLED)
        elif what == "rewinding":
            self.reach(REWINDING)
        elif self.step == REWINDING:
            self.step = ""

    def transaction(self, what: str) -> None:
        if self.step == REWINDING:  # it asks for its positions
            return
        if what == "begin":
            self.reach(IN_TRANSACTION)
        elif what == "commit":
            self.reach(COMMIT_SENT)
        elif what == "lost":
            self.reach(REPLY_LOST)
        elif what == "end":
            self.step = ""


class RaterNode:
    def __init__(self, raters: Raters, name: str) -> None:
        self.name = name
        self.steps = RaterSteps()
        self.source: SimulatedSource | None = None
        self.connection: SimulatedConnection | None = None
        self.counts: list[RaterCounts] = []  # of each process
        self._raters = raters
        self._process: asyncio.Task[None] | None = None
        self._ledger: Ledger | None = None

    @property
    def up(self) -> bool:
        return self._process is not None

    @property
    def idle(self) -> bool:
        return self.source is not None and self.source.idle

    def start(self) -> None:
        if self.up:
            return
        raters, rng = self._raters, self._raters.rng
        self.source = SimulatedSource(raters.group, rng, self.steps.source)
        self._ledger = Ledger("simulated", command_timeout_s=rng.choice((3, 60)), connect=self._connect)
        rater = Rater(
            self.source,
            self._ledger,
            clock_us=raters.clock_us,
            late_s=raters.habits.max_age_s,
            configured=Configured((), raters.books[raters.book]),
            limits=RaterLimits(
                poll_records=rng.choice((1, 7, 200)),
                batch_bytes=rng.choice((1, 2000, 4 << 20)),
                poll_timeout_s=raters.habits.rater_poll_s,
                progress_every_s=raters.habits.rater_poll_s,
                ends_every_s=math.inf,  # for the metrics alone, which nobody reads here
            ),
        )
        self.counts.append(rater.counts)
        self._process = asyncio.get_running_loop().create_task(rater.run(), name=self.name)
        self._process.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._raters.on_defect(error)

    async def _connect(self, dsn: str, **settings: Any) -> SimulatedConnection:
        connection = await self._raters.postgres.connect(dsn, **settings)
        connection.step = self.steps.transaction
        self.connection = connection
        return connection

    def kill(self, noticed_after_s: float = 0.0) -> None:
        """kill -9; the group notices later that this member is gone."""
        if self._process is None or self.source is None:
            return
        self._process.cancel()
        if self.connection is not None:
            self.connection.break_off()
        self._process, source, self.source, self.connection = None, self.source, None, None
        self.steps.step = ""
        asyncio.get_running_loop().call_later(noticed_after_s, self._raters.group.leave, source)

    async def release(self, writer: bytes, partition: int, right: int | None) -> bool:
        """What an operator does after a fork; `right`: the parked record to apply, where both sides are parked."""
        ledger = Ledger("simulated", connect=self._raters.postgres.connect)
        try:
            return (await ledger.release(writer, partition, right)).done
        finally:
            await ledger.close()


class Raters:
    def __init__(self, seed: int, habits: Habits, topic: Topic, clock_us: Callable[[], int], catalogue: Catalogue) -> None:
        self.rng = random.Random(f"raters {seed}")  # of their own: with or without raters, a seed's writers draw the same lots
        self.habits = habits
        self.clock_us = clock_us
        self.topic = topic
        self.group = Group(topic, self.rng)
        self.postgres = SimulatedPostgres(self.rng, by_text(), TABLES)
        self.postgres.travel_s = self.rng.choice(((0.0,), (0.0, 0.0002, 0.001), (0.001, 0.01)))
        self.books = books_for(catalogue)
        self.book = 0
        self.nodes = [RaterNode(self, f"rater {index}") for index in range(2)]
        self.on_defect: Callable[[BaseException], None] = _unheard

    def start(self) -> None:
        for node in self.nodes:
            asyncio.get_running_loop().call_later(self.rng.choice((0.0, 0.01, 1.0)), node.start)

    def committed(self, work: Work) -> None:
        """Told by PostgreSQL."""
        if any(row is not None and row.missing for row in work.written.get("parked", {}).values()):
            for node in self.nodes:
                node.steps.reach(PARKED)

    def steps_now(self) -> set[str]:
        steps = {node.steps.step for node in self.nodes if node.up and node.steps.step}
        if any(row.missing for row in self.postgres.tables["parked"].values()):
            steps.add(PARKED)
        return steps

    async def settle(self) -> None:
        """Nothing is broken any more: everything that can be read is rated."""
        self.repair()
        while not (self.group.settled and len(self.group.members) == len(self.nodes) and all(node.idle for node in self.nodes)):
            await asyncio.sleep(0.2)

    def repair(self) -> None:
        self.postgres.heal()
        self.topic.unreachable_until_s = 0.0
        self.topic.after_append = None
        for node in self.nodes:
            node.steps.forget_actions()
            node.start()

    async def restart(self) -> None:
        for node in self.nodes:
            node.kill()
        await asyncio.sleep(5)  # whatever they had under way has ended
        await self.settle()


def _unheard(error: BaseException) -> None:
    raise error
