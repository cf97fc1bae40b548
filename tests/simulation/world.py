"""The simulated world: writers with their disks, one Redis, one log, senders that retry, and faults from one seed.

Belongs here: what exists and how each part is killed and brought back. The faults are in faults.py, the checks in check.py. The pipeline
in between (journal, claims over the ordered connection, writer, flusher, decoder) is the real one, unchanged.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from buffer.flush_tuner import FlushTuner
from buffer.journal import JournalError, JournalLimits, JournalStopped, open_journal
from dedupe.port import ClaimsError, Identity
from dedupe.redis_claims import RedisClaims
from ingest.catalogue import read_catalogue
from ingest.decode import Decoder, Limits
from ingest.sink import Unavailable
from ingest.writer import CannotStart, Writer, WriterLimits
from tests.lossy_disk import LossyDisk
from tests.simulation.counter_log import SharedLog, SimulatedLog
from tests.simulation.loop import SimulatedLoop
from tests.simulation.redis_server import SimulatedRedis

T = TypeVar("T")

START = datetime(2026, 3, 31, 20, tzinfo=UTC)  # the run crosses a month's end
START_US = int(START.timestamp()) * 1_000_000
MAX_AGE_S, MAX_SKEW_S = 3600, 60
LIFETIME_US = (MAX_AGE_S + MAX_SKEW_S + 60) * 1_000_000
IDENTITY = Identity("simulated-log", LIFETIME_US, LIFETIME_US)
TENANTS = {1: "demo", 2: "acme"}
METERS = [
    {"name": "requests", "event_type": "http.request", "aggregation": "count", "dimensions": {"region": "data.region"}, "window": "1h"}
]

# Small segments, so that rolling and retention happen within a run.
JOURNAL_LIMITS = JournalLimits(segment_bytes=20_000, max_bytes=1 << 30, min_free_bytes=0, free_check_bytes=1 << 20)


class Slow:
    """Background of one process: each function takes its time, one after the other; a killed process runs none."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._lock = asyncio.Lock()

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        async with self._lock:
            await asyncio.sleep(self._rng.choice((0.0002, 0.001, 0.005, 0.05)))
            return function(*arguments)


@dataclass
class Stats:
    """What happened in a run, for the coverage table."""

    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    scripts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Habits:
    """How senders behave and how fast things are repaired: spread over an hour, or crowded into a second."""

    new: tuple[int, ...]
    again: tuple[int, ...]
    memory: int  # how many of the latest events may be sent again
    pause_s: tuple[float, ...]
    retry_s: tuple[float, ...]
    patience_s: tuple[float, ...]
    repair_s: tuple[float, float]
    outage_s: tuple[float, ...]
    batches: tuple[int, int]
    senders: tuple[int, int]
    faults: tuple[int, int]
    between_faults_s: tuple[float, ...]

    def batch(self, rng: random.Random) -> tuple[int, int, float]:
        """(new events, known events sent again, pause after it)"""
        return rng.choice(self.new), rng.choice(self.again), rng.choice(self.pause_s)


SPREAD = Habits(
    new=(1, 2, 5, 20),
    again=(0, 0, 1, 3),
    memory=1_000_000,
    pause_s=(0.0, 0.01, 1.0, 20.0),
    retry_s=(0.05, 0.5, 2.0),
    patience_s=(0.05, 2, 30),
    repair_s=(0.01, 60),
    outage_s=(0.3, 5, 40),
    batches=(3, 12),
    senders=(2, 6),
    faults=(1, 8),
    between_faults_s=(0.01, 0.3, 3.0, 30.0),
)
CROWDED = Habits(
    new=(0, 0, 1),
    again=(1, 1, 2),
    memory=4,
    pause_s=(0.0, 0.002, 0.02),
    retry_s=(0.001, 0.01, 0.1),
    patience_s=(0.005, 0.05, 2),
    repair_s=(0.001, 0.2),
    outage_s=(0.005, 0.05, 2.5),
    batches=(10, 40),
    senders=(3, 8),
    faults=(10, 40),
    between_faults_s=(0.001, 0.01, 0.05),
)


class Node:
    """One writer: its disk outlives its processes."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = LossyDisk()
        self.writer: Writer | None = None
        self.decoder: Decoder | None = None
        self.refused = ""  # why it must not start any more, if so
        self._process: asyncio.Task[None] | None = None
        self._log: SimulatedLog | None = None

    @property
    def up(self) -> bool:
        return self._process is not None and not self._process.done()

    def start(self) -> None:
        assert not self.up
        self.world.stats.starts += 1
        self._process = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def _run(self) -> None:
        """The life of one process, from opening the journal to its end."""
        world = self.world
        try:
            journal = await open_journal(
                f"/data/{self.name}",
                disk=self.disk,
                background=Slow(world.rng),
                entropy=world.rng.randbytes,
                clock_us=world.clock_us,
                limits=JOURNAL_LIMITS,
            )
            self._log = SimulatedLog(world.log, journal.writer)
            claims = RedisClaims(
                world.redis.address(), identity=IDENTITY, clock_us=world.clock_us, entropy=world.rng.randbytes, timeout_s=2.0
            )
            writer = Writer(
                journal,
                claims,
                self._log,
                FlushTuner(world.rng.choice((50, 500, 3000)), 200),
                tenants=TENANTS,
                limits=WriterLimits(events_per_call=world.rng.choice((1, 5, 50))),
                clock_us=world.clock_us,
                entropy=world.rng.randbytes,
            )
            await writer.open()
            catalogue = read_catalogue(METERS)
            numbers = {definition.name: writer.meter_number(definition) for definition in catalogue.definitions}
            self.decoder = Decoder(catalogue, numbers, Limits(max_age_s=MAX_AGE_S, max_skew_s=MAX_SKEW_S))
            self.writer = writer
            await writer.run()
        except (OSError, JournalStopped) as error:
            world.note(f"{self.name}: stopped by the disk: {error}")
        except (ClaimsError, CannotStart, JournalError) as error:
            world.note(f"{self.name}: refused: {type(error).__name__}: {error}")
            self.refused = f"{type(error).__name__}: {error}"
        except ExceptionGroup as group:
            world.note(f"{self.name}: stopped: {group.exceptions}")
            world.defects += _unexpected(group)
        except Exception as error:
            world.defects.append(error)
        if self._process is asyncio.current_task():  # ended by itself, not killed: its locks end with it
            self.writer = self.decoder = None
            self.disk.kill()

    async def stop(self) -> None:
        """SIGTERM: drain, then end; when draining takes too long, end as a kill would."""
        writer, process = self.writer, self._process
        if writer is None or process is None:
            return self.kill()
        try:
            await writer.drain(20)
        except (TimeoutError, ClaimsError, JournalStopped):
            pass
        if process is self._process:
            self.kill()

    def kill(self) -> None:
        """kill -9: nothing more is written or sent; what the page cache holds stays."""
        self._die()
        self.disk.kill()

    def lose_power(self) -> None:
        """Any part of what was not synced is gone."""
        self._die()
        self.disk.crash(self.world.rng)

    def _die(self) -> None:
        self.disk.off = True  # whatever the cancelled tasks still try, nothing reaches disk or log
        if self._log is not None:
            self._log.dead = True
        self.writer = self.decoder = None
        if self._process is not None:
            self._process.cancel()
            self._process = None
        self.disk.off = False


def _unexpected(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    """A failed journal or a claim store that forbids going on ends the process; anything else is a defect."""
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _unexpected(error)
        elif not isinstance(error, (OSError, ClaimsError, JournalStopped)):
            found.append(error)
    return found


@dataclass
class Sent:
    """What a sender knows of one event."""

    tenant: int
    subject: str
    body: dict[str, object]
    acknowledged: bool = False
    rejected: str = ""


class World:
    def __init__(self, loop: SimulatedLoop, seed: int, habits: Habits, *, writers: int, partitions: int) -> None:
        self.habits = habits
        self.loop = loop
        self.rng = random.Random(seed)
        self.clock_skew_us = 0
        self.stats = Stats()
        self.trace: list[str] = []
        self.redis = SimulatedRedis(self.rng, lambda: self.clock_us())
        self.log = SharedLog(self.rng, partitions)
        self.nodes = [Node(self, f"w{index}") for index in range(writers)]
        self.sent: dict[tuple[int, str], Sent] = {}
        self.defects: list[BaseException] = []
        self.after_an_answer: Callable[[Node], None] | None = None  # a fault that waits for the next answer to happen at once
        self._tasks: set[asyncio.Task[None]] = set()

    def clock_us(self) -> int:
        return START_US + self.loop.time_us() + self.clock_skew_us

    def note(self, what: str) -> None:
        self.trace.append(f"{self.loop.time():12.6f} {what}")

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Nothing is broken any more: every writer that may start is up, has nothing under way, and has flushed all it holds."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.log.unknown_outcomes = 0.0
        for node in self.nodes:
            node.disk.cut_at = node.disk.fail_at = 0
            if node.disk.off:
                node.lose_power()
            if not node.up and not node.refused:
                node.start()
        for node in self.nodes:
            assert not node.refused, f"{node.name} must not start any more: {node.refused}"
            while node.writer is None or not node.writer.ready:
                await asyncio.sleep(0.1)
            while node.writer.pending_events:  # of senders that gave up: they end at their deadline
                await asyncio.sleep(0.1)
            await node.writer.flusher.now()
        await asyncio.sleep(10)  # late copies of records land

    # ---- senders

    def new_event(self, tenant: int) -> Sent:
        name = f"e{len(self.sent)}"
        time = START + timedelta(microseconds=self.loop.time_us() - self.rng.randrange(600_000_000))
        body = {
            "specversion": "1.0",
            "id": name,
            "source": "/simulated",
            "type": "http.request",
            "subject": name,
            "time": time.isoformat().replace("+00:00", "Z"),
            "data": {"region": self.rng.choice(("eu", "us"))},
        }
        self.sent[tenant, name] = sent = Sent(tenant, name, body)
        return sent

    async def sender(self, batches: int) -> None:
        """Sends batches, each until it is answered, to a node of its choice each time; a fifth goes to two nodes at once."""
        for _ in range(batches):
            tenant = self.rng.choice(list(TENANTS))
            new, again, pause_s = self.habits.batch(self.rng)
            batch = [self.new_event(tenant) for _ in range(new)]
            known = [sent for sent in self.sent.values() if sent.tenant == tenant][-self.habits.memory :]
            batch += self.rng.sample(known, min(len(known), again))
            self.rng.shuffle(batch)
            if batch:
                await self._deliver(batch)
            await asyncio.sleep(pause_s)

    async def _deliver(self, batch: list[Sent]) -> None:
        body = json.dumps([sent.body for sent in batch]).encode()
        while True:
            nodes = self.rng.sample(self.nodes, min(len(self.nodes), 2 if self.rng.random() < 0.2 else 1))
            answers = await asyncio.gather(*[self._post(node, batch[0].tenant, body) for node in nodes])
            if any(self._settle(batch, answer) for answer in answers if answer is not None):
                return
            await asyncio.sleep(self.rng.choice(self.habits.retry_s))

    async def _post(self, node: Node, tenant: int, body: bytes) -> dict[int, str] | None:
        """One HTTP request: None when no answer arrives, else index -> rejection code."""
        await asyncio.sleep(self.rng.uniform(0.0005, 0.02))
        writer, decoder = node.writer, node.decoder
        if self.rng.random() < 0.02 or writer is None or decoder is None:
            self.stats.answers["no connection"] += 1
            return None
        batch = decoder.decode_batch(tenant, body, self.clock_us())
        try:
            answer = writer.submit(batch, self.loop.time() + 10)
            outcome = await asyncio.wait_for(asyncio.shield(answer), self.rng.choice(self.habits.patience_s))
        except Unavailable:
            self.stats.answers["503"] += 1
            return None
        except TimeoutError:
            self.stats.answers["gave up"] += 1
            return None
        if self.after_an_answer is not None:
            fault, self.after_an_answer = self.after_an_answer, None
            fault(node)
        await asyncio.sleep(self.rng.uniform(0.0005, 0.02))
        if self.rng.random() < 0.05:
            self.stats.answers["lost reply"] += 1
            return None
        assert outcome.received == outcome.accepted + outcome.duplicate + len(outcome.rejections)
        self.stats.answers["answered"] += 1
        return {rejection.index: rejection.code for rejection in outcome.rejections}

    def _settle(self, batch: list[Sent], rejections: dict[int, str]) -> bool:
        for index, sent in enumerate(batch):
            if index in rejections:
                sent.rejected = rejections[index]
            else:
                sent.acknowledged = True
        return True
