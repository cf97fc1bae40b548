"""One writer of the simulated world: a disk that outlives its processes, a clock of its own, and the real pipeline in between.

Belongs here: how a process starts, ends and is killed. Must not know: senders, which faults there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from buffer.counter_log import LogUnavailable
from buffer.flush_tuner import FlushTuner
from buffer.journal import JournalError, JournalLimits, JournalStopped, open_journal
from dedupe.clearance import Clearance
from dedupe.port import ClaimsError, Identity, Zombie
from dedupe.redis_claims import RedisClaims
from ingest.agreed_meters import CannotStart
from ingest.catalogue import read_catalogue
from ingest.decode import Decoder, Limits
from ingest.writer import Writer, WriterLimits
from parshall.errors import OK
from parshall.settings import Settings
from parshall.writer_drain import finish_journal
from tests.lossy_disk import LossyDisk
from tests.simulation.counter_log import SharedLog, SimulatedLog
from tests.simulation.habits import Habits
from tests.simulation.redis_server import SimulatedRedis
from tests.simulation.steps import Steps

T = TypeVar("T")

LOG = "simulated-log"
TENANTS = {1: "demo", 2: "acme"}
_METER = {"event_type": "http.request", "window": "1h"}
# Each event has one counter of the first meter to itself; a subject, and a counter of the second meter, has many events. The second
# catalogue reads another field besides, so its events have another shape.
_REQUESTS = {**_METER, "name": "requests", "aggregation": "count", "dimensions": {"region": "data.region", "event": "data.event"}}
_LARGEST = {**_METER, "name": "largest", "aggregation": "max", "value": "data.size"}
_BYTES = {**_METER, "name": "bytes", "aggregation": "sum", "value": "data.bytes", "dimensions": {"region": "data.region"}}
CATALOGUES = (read_catalogue([_REQUESTS, _BYTES]), read_catalogue([_REQUESTS, _BYTES, _LARGEST]))
MIN_FREE_BYTES = 1 << 20
_FOR_EVER_S = 10**9
_SETTINGS = Settings()


class Surroundings:
    """What all writers of a world share."""

    def __init__(
        self, rng: random.Random, habits: Habits, clock_us: Callable[[], int], shards: Sequence[SimulatedRedis], log: SharedLog
    ) -> None:
        self.rng = rng
        self.habits = habits
        self.clock_us = clock_us
        self.shards = shards
        self.log = log
        self.catalogue = 0
        self.trace: list[str] = []
        self.on_defect: Callable[[BaseException], None] = _unheard

    def identity(self, shard: int) -> Identity:
        return Identity(LOG, self.habits.generation_s * 1_000_000, self.habits.lifetime_us, shard, len(self.shards))

    def note(self, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():12.6f} {what}")


def _unheard(error: BaseException) -> None:
    raise error


class Slow:
    """Background of one process: each function takes its time, one after the other; a killed process runs none."""

    def __init__(self, rng: random.Random, takes_s: tuple[float, ...]) -> None:
        self._rng = rng
        self._takes_s = takes_s
        self._lock = asyncio.Lock()
        self.killed = False

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        async with self._lock:
            await asyncio.sleep(self._rng.choice(self._takes_s))
            if self.killed:
                await asyncio.sleep(_FOR_EVER_S)
            return function(*arguments)


class WatchedDisk(LossyDisk):
    """Tells when a step failed that was to fail."""

    def __init__(self, on_failure: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.on_failure = on_failure

    def copy(self) -> WatchedDisk:
        """What a process sees now, on a disk that works."""
        other = WatchedDisk()
        other.put_all(self.contents())
        other._directories = set(self._directories)
        return other

    def _step(self, *arguments: Any, **options: Any) -> None:
        due = self.steps + 1 in (self.cut_at, self.fail_at) and not self.off
        if due and self.on_failure is not None:
            self.on_failure()
        super()._step(*arguments, **options)


class Node:
    def __init__(self, world: Surroundings, name: str) -> None:
        self.world = world
        self.name = name
        self.directory = f"/data/{name}"
        self.disk = WatchedDisk()
        self.disk_aside: WatchedDisk | None = None  # the right one, while a process has an old copy
        self.steps = Steps()
        self.steps.on_flushed = self.check_ledger
        self.clock_off_us = 0
        self.writer: Writer | None = None
        self.decoder: Decoder | None = None
        self.refused = ""  # why it must not start any more, if so
        self.closed_by_somebody_else = False  # then it is right that it ends as a zombie, and it may start again
        self.never_returns = False  # what starts from now on is `parshall writer drain`
        self.disk_lost = False
        self.drained = ""  # what the last drain that succeeded said
        self.starts = 0
        self._process: asyncio.Task[None] | None = None
        self._log: SimulatedLog | None = None
        self._background: Slow | None = None

    @property
    def up(self) -> bool:
        return self._process is not None and not self._process.done()

    @property
    def gone(self) -> bool:
        return self.never_returns or self.disk_lost

    @property
    def ready(self) -> bool:
        return self.writer is not None and self.writer.ready

    @property
    def serves(self) -> bool:
        return self.writer is not None and self.writer.serves

    @property
    def idle(self) -> bool:
        """Every call is finished and published; nothing is under way."""
        writer = self.writer
        if writer is None or not writer.ready or writer.calls_in_flight or writer._unsynced:
            return False
        for lane, redis in zip(writer.lanes, self.world.shards, strict=True):
            known = redis.table._w.get(writer.incarnation)
            if known is None or known.closed is not None or known.mark != lane.appended:
                return False
        return True

    def clock_us(self) -> int:
        return self.world.clock_us() + self.clock_off_us

    # ---- the life of a process

    def start(self) -> None:
        assert not self.up
        self.starts += 1
        self.closed_by_somebody_else = False
        self.steps.started()
        self._process = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def _run(self) -> None:
        """From opening the journal to the end."""
        world = self.world
        try:
            writer = await self._open()
            if self.never_returns:
                return await self._drain(writer)
            await writer.open()
            catalogue = CATALOGUES[world.catalogue]
            numbers = {definition.name: writer.meter_number(definition) for definition in catalogue.definitions}
            habits = world.habits
            self.decoder = Decoder(catalogue, numbers, Limits(max_age_s=habits.max_age_s, max_skew_s=habits.max_skew_s))
            self.writer = writer
            await writer.run()
        except Exception as error:
            self._stopped(error)
        finally:
            if self._process is asyncio.current_task():  # ended by itself, not killed: its locks end with it
                self.writer = self.decoder = None
                self.steps.ended()
                self.disk.kill()

    async def _drain(self, writer: Writer) -> None:
        assert self._log is not None
        told = await finish_journal(_SETTINGS, writer, self._log, self.directory, self.world.note)
        self.world.note(f"{self.name}: {told.sentence}")
        if told.code == OK:
            self.drained = told.sentence

    async def _open(self) -> Writer:
        world, habits = self.world, self.world.habits
        self._background = Slow(world.rng, habits.disk_s)
        limits = JournalLimits(habits.segment_bytes, max_bytes=1 << 30, min_free_bytes=MIN_FREE_BYTES, free_check_bytes=4096)
        journal = await open_journal(
            self.directory,
            disk=self.disk,
            background=self._background,
            entropy=world.rng.randbytes,
            clock_us=self.clock_us,
            limits=limits,
        )
        self._log = SimulatedLog(world.log, journal.writer, self.steps)
        clearance = Clearance(len(world.shards)) if len(world.shards) > 1 else None
        shards = [
            RedisClaims(
                redis.address(self.steps),
                identity=world.identity(shard),
                clock_us=self.clock_us,
                entropy=world.rng.randbytes,
                timeout_s=2.0,
                clearance=clearance,
            )
            for shard, redis in enumerate(world.shards)
        ]
        writer = Writer(
            journal,
            shards,
            self._log,
            FlushTuner(world.rng.choice(habits.flush_ms), 200),
            tenants=TENANTS,
            limits=WriterLimits(events_per_call=world.rng.choice(habits.events_per_call)),
            clock_us=self.clock_us,
            entropy=world.rng.randbytes,
            definitions=() if self.never_returns else CATALOGUES[-1].definitions,  # whichever catalogue it comes to have
        )
        self.steps.watch(journal)
        return writer

    def _stopped(self, error: BaseException) -> None:
        """A failed journal or a claim store that forbids going on ends the process; anything else is a defect."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        match error:
            case OSError() | JournalStopped():
                self.world.note(f"{self.name}: stopped by the disk: {error}")
            case LogUnavailable() if self.never_returns:
                pass  # a drain says so and ends; a writer that serves waits
            case Zombie() if self.closed_by_somebody_else:
                self.world.note(f"{self.name}: stopped: {error}")
                asyncio.get_running_loop().call_later(0.1, self.restart)
            case ClaimsError() | CannotStart() | JournalError():
                self._refuse(error)
            case _:
                self.world.on_defect(error)

    def _refuse(self, error: Exception) -> None:
        self.world.note(f"{self.name}: refused: {type(error).__name__}: {error}")
        self.refused = f"{type(error).__name__}: {error}"

    async def stop(self) -> None:
        """SIGTERM: drain, then end; when draining takes too long, end as a kill would."""
        writer, process = self.writer, self._process
        if writer is not None and process is not None:
            with contextlib.suppress(TimeoutError, ClaimsError, JournalStopped):
                await writer.drain(20)
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
        if self._background is not None:
            self._background.killed = True
        self.writer = self.decoder = None
        self.steps.ended()
        if self._process is not None:
            self._process.cancel()
            self._process = None
        self.disk.off = False

    def restart(self) -> None:
        if not self.up and not self.refused and not self.disk_lost:
            if self.disk.off:
                self.lose_power()
            self.start()

    # ---- what holds at every moment

    def check_ledger(self) -> None:
        """accepted = flushed + buffered, and received = the sum of the verdicts."""
        writer = self.writer
        if writer is None:
            return
        for tenant, counts in writer.journal.totals.items():
            flusher = writer.flusher
            buffered = sum(part.get(tenant, {}).get("accepted", 0) for part in (flusher.tallies, flusher.outstanding_tallies))
            accepted, flushed = counts.get("accepted", 0), writer.journal.flushed.get(tenant, 0)
            assert accepted == flushed + buffered, f"{self.name}: accepted {accepted}, flushed {flushed}, buffered {buffered}"
            assert 2 * counts["received"] == sum(counts.values()), f"{self.name}: the verdicts do not add up: {counts}"
