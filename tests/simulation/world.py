"""The simulated world: writers, one Redis or several, one log, senders that retry, and what they were promised.

Belongs here: what exists, what senders do, how everything is repaired at the end. The faults are in faults.py, what must hold in check.py,
the writers in node.py.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ingest.sink import Unavailable
from tests.simulation.check_rated import Rated
from tests.simulation.counter_log import SharedLog
from tests.simulation.departures import SOURCE, LostDisk, claims_are_complete, drain_for_ever
from tests.simulation.habits import Habits
from tests.simulation.loop import SimulatedLoop
from tests.simulation.node import CATALOGUES, TENANTS, Node, Surroundings
from tests.simulation.raters import Raters
from tests.simulation.redis_server import SimulatedRedis
from tests.simulation.stats import Stats
from tests.simulation.steps import RATER_STEPS, STEPS
from tests.simulation.topic import Topic

START = datetime(2026, 3, 31, 20, tzinfo=UTC)  # the run crosses a month's end
START_US = int(START.timestamp()) * 1_000_000
_SUBJECTS = 5  # of a tenant: their charge lines grow with many records


@dataclass
class Sent:
    """What is known of one event."""

    tenant: int
    name: str
    body: dict[str, object]
    time: datetime
    promised: bool = False  # a writer answered that it is counted, whoever read the answer
    acknowledged: bool = False  # its sender read such an answer
    rejected: str = ""  # or that it is not counted


class World:
    def __init__(self, loop: SimulatedLoop, seed: int, habits: Habits) -> None:
        self.rng = random.Random(seed)
        self.habits = habits
        self.loop = loop
        loop.turn_us = self.rng.choice(habits.turn_us)
        loop.on_exception = self._on_exception
        self.stats = Stats()
        self.stats.profiles[habits.name] = 1
        shards = random.Random(f"shards {seed}").choice(habits.shards)
        self.shards = [SimulatedRedis(self.rng, self.clock_us, shard) for shard in range(shards)]
        self.log = SharedLog(self.rng, self.rng.randint(1, 4))
        self.surroundings = Surroundings(self.rng, habits, self.clock_us, self.shards, self.log)
        self.surroundings.on_defect = self.defect
        self.nodes = [Node(self.surroundings, f"w{index}") for index in range(self.rng.randint(*habits.writers))]
        self.sent: dict[tuple[int, str], Sent] = {}
        self.answered: Counter[tuple[str, str]] = Counter()  # (tenant, verdict) -> events, in all answers that a writer gave
        self.defects: list[BaseException] = []
        self.broken: asyncio.Future[None] = loop.create_future()  # ends with the first defect
        self.after_an_answer: Callable[[Node], None] | None = None  # a fault that waits for the next answer to happen at once
        self.after_power_loss: Callable[[Node], None] = lambda _: None
        self.lost_disks: list[LostDisk] = []
        self._operators: set[asyncio.Task[None]] = set()
        self.redis_kept = 0  # while a fault relies on what Redis knows
        self._tasks: set[asyncio.Task[None]] = set()
        self.raters: Raters | None = None
        self.forged: dict[tuple[bytes, int], int] = {}  # (writer, partition) -> n of a record that came with other bytes too
        if random.Random(f"rated {seed}").random() < habits.rated:
            self._add_raters(seed)

    def _add_raters(self, seed: int) -> None:
        topic = self.log.topic = Topic(self.log.partitions, self.clock_us)
        self.raters = Raters(seed, self.habits, topic, self.clock_us, CATALOGUES[-1])
        self.raters.on_defect = self.defect
        self.raters.postgres.on_commit_lost = self.struck
        self.rated = Rated(self.raters)
        self.stats.rated_runs = 1

    def clock_us(self) -> int:
        """The true time."""
        return START_US + self.loop.time_us()

    @property
    def redis(self) -> SimulatedRedis:
        """One of them, for a fault to strike."""
        return self.shards[0] if len(self.shards) == 1 else self.rng.choice(self.shards)

    def note(self, what: str) -> None:
        self.surroundings.note(what)

    def defect(self, error: BaseException) -> None:
        self.defects.append(error)
        if not self.broken.done():
            self.broken.set_result(None)

    def _on_exception(self, error: BaseException) -> None:
        """Of a callback, or of a task that nobody waits for. Assertions are defects; a killed process leaves the other kinds behind."""
        if isinstance(error, AssertionError):
            self.defect(error)

    def struck(self, fault: str) -> None:
        """A fault happens, now."""
        self.note(f"fault: {fault}")
        self.stats.faults[fault] += 1
        steps = {step for node in self.nodes if node.up for step in node.steps.now(ready=node.ready)}
        steps |= self.raters.steps_now() if self.raters is not None else set()
        self.stats.coverage.update((fault, step) for step in (*STEPS, *RATER_STEPS) if step in steps)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.defect(error)

    # ---- writers that come and go

    @property
    def staying(self) -> list[Node]:
        return [node for node in self.nodes if not node.gone]

    def leave(self, node: Node) -> None:
        """Its process never returns; an operator finishes its journal elsewhere."""
        node.never_returns = True
        node.kill()
        operator = self.loop.create_task(drain_for_ever(self, node))
        self._operators.add(operator)  # busy to the end
        operator.add_done_callback(self._operator_done)

    def _operator_done(self, task: asyncio.Task[None]) -> None:
        self._operators.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.defect(error)

    def lose_disk(self, node: Node) -> None:
        node.kill()
        node.disk_lost = True
        disk = LostDisk(self, node)
        self.lost_disks.append(disk)
        self.background(disk.declare())

    def replace(self) -> None:
        self.new_writer().start()

    def new_writer(self) -> Node:
        """With an empty disk."""
        node = Node(self.surroundings, f"w{len(self.nodes)}")
        self.nodes.append(node)
        return node

    def lost(self) -> Set[tuple[int, str]]:
        """Events that may not be counted, with a lost disk, by tenant and name."""
        return {(sent.tenant, sent.name) for disk in self.lost_disks for sent in disk.lost}

    def lost_writers(self) -> Set[str]:
        return {disk.writer.hex() for disk in self.lost_disks}

    def lose_power(self, node: Node) -> None:
        node.lose_power()
        self.after_power_loss(node)

    # ---- the end

    async def settle(self) -> None:
        """Nothing is broken any more: every writer is up, has nothing under way, and has flushed all it holds."""
        while self._tasks:
            await asyncio.sleep(0.1)
        self._repair()
        for node in self.nodes:
            assert not node.refused, f"{node.name} must not start any more: {node.refused}"
        for node in self.staying:
            while not node.ready:
                assert not node.refused, f"{node.name} must not start any more: {node.refused}"
                await asyncio.sleep(0.1)
            assert node.writer is not None
            while not node.writer.journal.has_room(1 << 16):  # it looks at the disk again about every second
                await asyncio.sleep(0.1)
            while node.writer.pending_events:  # of senders that gave up: they end at their deadline
                await asyncio.sleep(0.1)
        for node in self.nodes:
            while node.never_returns and not (node.drained and claims_are_complete(self) and not node.up):
                assert not node.refused, f"{node.name} cannot be drained: {node.refused}"
                await asyncio.sleep(0.1)
        await self.flush_all()
        while not all(node.ready for node in self.staying):  # one that started meanwhile may have made all others join again
            await asyncio.sleep(0.1)

    def _repair(self) -> None:
        for redis in self.shards:
            redis.heal()
        self.log.heal()
        self.after_an_answer = None
        for node in self.nodes:
            node.steps.forget_actions()
            node.clock_off_us = 0
            node.disk.cut_at = node.disk.fail_at = 0
            node.disk.free = 1 << 40
            if node.disk.off:
                self.lose_power(node)
            if node.closed_by_somebody_else:
                node.kill()
            node.restart()

    async def flush_all(self) -> None:
        for node in self.staying:
            while not await self._flushed(node):
                await asyncio.sleep(0.1)
        await asyncio.sleep(10)  # late copies of records land

    async def _flushed(self, node: Node) -> bool:
        """Whether it was; not when a last fault, under way when the repair began, ended its process meanwhile."""
        writer = node.writer
        if writer is None or not writer.ready:
            return False
        flushing = asyncio.ensure_future(writer.flusher.now())
        while not flushing.done() and node.writer is writer:
            await asyncio.sleep(0.1)
        if not flushing.done():
            flushing.cancel()
            return False
        return True

    # ---- senders

    def new_event(self, tenant: int) -> Sent:
        name = f"e{len(self.sent)}"
        age_s = self.habits.oldest_s * (self.rng.uniform(0.9, 0.99) if self.rng.random() < self.habits.old else self.rng.random())
        time = START + timedelta(microseconds=self.loop.time_us() - round(age_s * 1_000_000))
        body: dict[str, object] = {
            "specversion": "1.0",
            "id": name,
            "source": SOURCE,
            "type": "http.request",
            "subject": f"s{len(self.sent) % _SUBJECTS}",
            "time": time.isoformat().replace("+00:00", "Z"),
            "data": {
                "region": self.rng.choice(("eu", "us")),
                "zone": self.rng.choice("abc"),
                "event": name,
                "size": len(self.sent) * 37 % 101,
                "bytes": len(self.sent) * 7919 % 10_007,
            },
        }
        self.sent[tenant, name] = sent = Sent(tenant, name, body, time)
        self.stats.events += 1
        return sent

    async def sender(self, batches: int) -> None:
        """Sends batches, each until it is answered, to writers of its choice each time, sometimes to several at once."""
        habits = self.habits
        for _ in range(batches):
            tenant = self.rng.choice(list(TENANTS))
            if self.rng.random() < habits.revived:
                batch = self._revived(tenant)
            else:
                batch = [self.new_event(tenant) for _ in range(self.rng.choice(habits.new))]
                known = [sent for sent in self.sent.values() if sent.tenant == tenant][-habits.memory :]
                batch += self.rng.sample(known, min(len(known), self.rng.choice(habits.again)))
            self.rng.shuffle(batch)
            if batch:
                await self._deliver(batch)
            await asyncio.sleep(self.rng.choice(habits.pause_s))

    def _revived(self, tenant: int) -> list[Sent]:
        """Events too old for a right clock, but not for one that went back."""
        habits = self.habits
        old: list[Sent] = []
        for node in self.nodes:
            latest = START + timedelta(microseconds=self.loop.time_us() + node.clock_off_us)
            earliest = latest - timedelta(seconds=habits.max_age_s)
            if node.clock_off_us < 0:
                old += [sent for sent in self.sent.values() if sent.tenant == tenant and earliest < sent.time < latest]
        return self.rng.sample(old, min(len(old), 3))

    async def _deliver(self, batch: list[Sent]) -> None:
        body = json.dumps([sent.body for sent in batch]).encode()
        begun_s = self.loop.time()
        while True:
            nodes, times = self.rng.choice(self.habits.copies)
            staying = self.staying
            chosen = self.rng.sample(staying, min(len(staying), nodes)) * times
            answers = await asyncio.gather(*[self._post(node, batch, body) for node in chosen])
            arrived = [answer for answer in answers if answer is not None]
            for answer in arrived:
                _settle(batch, answer)
            if arrived:
                return
            waited_s = self.loop.time() - begun_s
            assert waited_s < self.habits.stuck_s, f"{', '.join(sent.name for sent in batch)}: no answer for {waited_s:.0f} s"
            await asyncio.sleep(self.rng.choice(self.habits.retry_s))

    async def _post(self, node: Node, batch: list[Sent], body: bytes) -> dict[int, str] | None:
        """One HTTP request: None when no answer arrives, else index -> rejection code."""
        await asyncio.sleep(self.rng.uniform(*self.habits.travel_s))
        writer, decoder = node.writer, node.decoder
        if writer is None or decoder is None or self.rng.random() < 0.02:
            self.stats.answers["no connection"] += 1
            return None
        try:
            answer = writer.submit(decoder.decode_batch(batch[0].tenant, body, node.clock_us()), self.loop.time() + 10)
            outcome = await asyncio.wait_for(asyncio.shield(answer), self.rng.choice(self.habits.patience_s))
        except Unavailable:
            self.stats.answers["503"] += 1
            return None
        except TimeoutError:
            self.stats.answers["gave up"] += 1
            return None
        assert outcome.received == outcome.accepted + outcome.duplicate + len(outcome.rejections)
        verdicts = {"accepted": outcome.accepted, "duplicate": outcome.duplicate}
        verdicts |= Counter(rejection.code for rejection in outcome.rejections)
        self.answered.update({(TENANTS[batch[0].tenant], verdict): events for verdict, events in verdicts.items()})
        rejections = {rejection.index: rejection.code for rejection in outcome.rejections}
        for index, sent in enumerate(batch):
            sent.promised = sent.promised or index not in rejections
        if self.after_an_answer is not None:
            fault, self.after_an_answer = self.after_an_answer, None
            fault(node)
        await asyncio.sleep(self.rng.uniform(*self.habits.travel_s))
        if self.rng.random() < 0.05:
            self.stats.answers["lost reply"] += 1
            return None
        self.stats.answers["answered"] += 1
        return rejections

    async def ask_again(self, node: Node, sent: Sent) -> None:
        """When everything is over: is the event's claim still good? Not answered, or answered as new: a defect."""
        writer, decoder = node.writer, node.decoder
        assert writer is not None and decoder is not None
        batch = decoder.decode_batch(sent.tenant, json.dumps(sent.body).encode(), node.clock_us())
        outcome = await writer.submit(batch, self.loop.time() + 60)
        if (sent.tenant, sent.name) in self.lost():
            for disk in self.lost_disks if outcome.accepted else ():
                disk.counts_again(sent)
            return
        assert outcome.accepted == 0, f"{sent.name} was accepted again by {node.name}"
        if outcome.duplicate:
            sent.promised = sent.acknowledged = True


def _settle(batch: list[Sent], rejections: dict[int, str]) -> None:
    for index, sent in enumerate(batch):
        if index in rejections:
            sent.rejected = rejections[index]
        else:
            sent.acknowledged = True
