"""Which adapter stands behind which port: the one place to read it.

Belongs here: making the parts of a worker and of a rater from settings. Must not know: processes, signals, options.

| port        | `up` as it comes          | a real service                     |
|-------------|---------------------------|------------------------------------|
| Claims      | in this process           | redis.url, one for each shard      |
| CounterLog  | files, DATA/log           | kafka.bootstrap                    |
| Source      | the same files            | the same Kafka                     |
| PostgreSQL  | embedded, DATA/postgres   | postgres.dsn (always one, by now)  |
| Disk        | RealDisk; whoever calls may hand in another                    |
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from buffer import file_system
from buffer.counter_log import CounterLog, LogUnavailable
from buffer.counters import MeterDefinition
from buffer.disk import Background, Disk, RealDisk, Thread
from buffer.flush_tuner import FlushTuner
from buffer.journal import Journal, JournalLimits, open_journal
from dedupe.port import Claims, Identity
from ingest.agreed_meters import CannotStart, check_meters
from ingest.auth import Keys, Principal
from ingest.catalogue import Catalogue, read_catalogue
from ingest.decode import Decoder, Limits
from ingest.writer import Writer, WriterLimits
from parshall.data_folder import DataFolder
from parshall.log_source import LogSource
from parshall.settings import Settings
from rater.configured import Configured
from rater.consume import Rater
from rater.postgres import Ledger
from rater.prices.book import read_books
from rater.source import Source

if TYPE_CHECKING:
    from buffer.kafka_cluster import KafkaCluster
    from dedupe.redis_address import RedisAddress

log = structlog.get_logger()

# Part of what identity rests on: never changed, whatever max_age is. With the default max_age two generations are alive, rarely three:
# every claim looks in each of them, so shorter ones would cost CPU where these cost memory.
GENERATION_US = 25 * 3600 * 1_000_000
CLOCK_MARGIN_S = 300  # how far the clocks of two nodes may differ
LONGEST_FLUSH_INTERVAL_S = 3600

_LOG_RETRY_S = 1.0


def clock_us() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True)
class World:
    """Everything that is not a decision. The defaults are the real ones; a test hands in others."""

    disk: Disk = field(default_factory=RealDisk)
    background: Callable[[str], Background] = Thread
    clock_us: Callable[[], int] = clock_us
    entropy: Callable[[int], bytes] = os.urandom


REAL = World()


# ---- the writer's side


@dataclass(frozen=True)
class WorkerParts:
    journal: Journal
    counter_log: CounterLog
    writer: Writer
    tuner: FlushTuner
    catalogue: Catalogue


async def open_worker(settings: Settings, folder: DataFolder, worker: int, flush_interval_ms: int, world: World = REAL) -> WorkerParts:
    """Open the journal and connect. What it may raise is what `why_stopped` of worker.py knows."""
    catalogue = read_catalogue(settings.meters)
    # A flush makes room long before the bound on live counters refuses anybody.
    tuner = FlushTuner(flush_interval_ms, min(settings.flush.max_counters, max(1, settings.ingest.max_live_counters // 2)))
    writer, counter_log = await make_writer(settings, folder, folder.journal(worker), tuner, world, definitions=catalogue.definitions)
    try:
        await writer.open()
    except BaseException:
        await counter_log.close()
        raise
    return WorkerParts(writer.journal, counter_log, writer, tuner, catalogue)


async def make_writer(
    settings: Settings,
    folder: DataFolder | None,
    directory: str,
    tuner: FlushTuner,
    world: World = REAL,
    *,
    definitions: Sequence[MeterDefinition] = (),
) -> tuple[Writer, CounterLog]:
    """The writer of the journal in `directory`, not open yet, and its log, which is. `definitions`: the meters that are to count."""
    if (kind := file_system.network_file_system(directory)) is not None:
        raise CannotStart(
            f"{directory} is on a network file system ({kind}), where two machines could open one journal: put the data folder on a disk "
            "that one machine mounts (in Kubernetes a ReadWriteOncePod volume)."
        )
    journal = await open_journal(
        directory,
        disk=world.disk,
        background=world.background("journal"),
        entropy=world.entropy,
        clock_us=world.clock_us,
        limits=JournalLimits(max_bytes=settings.journal.max_bytes, min_free_bytes=settings.journal.min_free_bytes),
    )
    check_meters(journal.state.meters, definitions)
    counter_log = make_counter_log(settings, folder, world)
    try:
        await _connect(counter_log)
        shards = make_shards(settings, counter_log.identity, world)
    except BaseException:
        await counter_log.close()
        raise
    writer = Writer(
        journal,
        shards,
        counter_log,
        tuner,
        tenants={tenant.number: tenant.name for tenant in settings.tenants},
        limits=WriterLimits(waiting_events=settings.ingest.max_waiting_events, live_counters=settings.ingest.max_live_counters),
        clock_us=world.clock_us,
        entropy=world.entropy,
        definitions=definitions,
    )
    return writer, counter_log


async def _connect(counter_log: CounterLog) -> None:
    """The claims must be told which log it is before they are made."""
    while True:
        try:
            return await counter_log.open()
        except LogUnavailable as error:
            log.warning("waiting for the counter log", error=str(error))
            await asyncio.sleep(_LOG_RETRY_S)


def make_shards(settings: Settings, log_identity: str, world: World = REAL) -> list[Claims]:
    """Raises CannotStart when a certificate file is not what it was when the settings were checked."""
    if not settings.redis.urls:
        from dedupe.in_process import InProcessClaims

        return [InProcessClaims(identity=identity_of(settings, log_identity), clock_us=world.clock_us, entropy=world.entropy)]
    from dedupe.clearance import Clearance
    from dedupe.redis_claims import RedisClaims

    clearance = Clearance(len(settings.redis.urls)) if len(settings.redis.urls) > 1 else None
    return [
        RedisClaims(
            _redis_address(url),
            identity=identity_of(settings, log_identity, shard),
            clock_us=world.clock_us,
            entropy=world.entropy,
            clearance=clearance,
        )
        for shard, url in enumerate(settings.redis.urls)
    ]


def _redis_address(url: str) -> RedisAddress:
    from dedupe.redis_address import RedisAddress

    try:
        return RedisAddress.from_url(url)
    except ValueError as error:
        raise CannotStart(f"redis.url: {error}") from error


def identity_of(settings: Settings, log_identity: str, shard: int = 0) -> Identity:
    return Identity(
        log=log_identity,
        generation_us=GENERATION_US,
        lifetime_us=lifetime_us(settings),
        shard=shard,
        shards=max(1, len(settings.redis.urls)),
        layout=settings.redis.layout,
    )


def lifetime_us(settings: Settings) -> int:
    return (settings.ingest.max_age_s + settings.ingest.max_skew_s + CLOCK_MARGIN_S) * 1_000_000


def make_counter_log(settings: Settings, folder: DataFolder | None, world: World = REAL) -> CounterLog:
    if settings.kafka.bootstrap is None:
        from buffer.local_log import LocalLog

        assert folder is not None, "the local log lies in the data folder"
        return LocalLog(folder.log, disk=world.disk, background=world.background("log"), entropy=world.entropy)
    from buffer.kafka_log import KafkaLog

    return KafkaLog(_cluster(settings))


def meter_numbers(catalogue: Catalogue, writer: Writer) -> dict[str, int]:
    """They are journalled here, before any event can use them."""
    return {definition.name: writer.meter_number(definition) for definition in catalogue.definitions}


def make_decoder(settings: Settings, catalogue: Catalogue, numbers: Mapping[str, int]) -> Decoder:
    limits = Limits(settings.ingest.max_events, settings.ingest.max_age_s, settings.ingest.max_skew_s)
    return Decoder(catalogue, numbers, limits)


def make_keys(settings: Settings) -> Keys:
    numbers = {tenant.name: tenant.number for tenant in settings.tenants}
    return Keys((key.hash, Principal(numbers[key.tenant], key.tenant, frozenset(key.scopes))) for key in settings.keys)


# ---- the rater's side


def make_rater(settings: Settings, folder: DataFolder | None, world: World = REAL) -> tuple[Rater, Source, Ledger]:
    assert settings.postgres.dsn is not None, "whoever starts a rater has found it a PostgreSQL"
    source = make_source(settings, folder, world)
    ledger = Ledger(settings.postgres.dsn)
    rater = Rater(source, ledger, clock_us=world.clock_us, late_s=late_s(settings), configured=make_configured(settings))
    return rater, source, ledger


def make_source(settings: Settings, folder: DataFolder | None, world: World = REAL, *, alone: bool = False) -> Source:
    """`alone`: it is to read all partitions, and shares them with nobody."""
    if settings.kafka.bootstrap is None:
        from buffer.local_source import LocalSource

        assert folder is not None, "the local log lies in the data folder"
        return LogSource(LocalSource(folder.log, disk=world.disk, background=world.background("log"), entropy=world.entropy))
    from buffer.kafka_source import KafkaSource

    # Whoever may use the group of the raters, as a rule by its prefix, may use this one too.
    group = settings.kafka.consumer_group + (f"-reading-{world.entropy(8).hex()}" if alone else "")
    return LogSource(KafkaSource(_cluster(settings), group))


def make_configured(settings: Settings) -> Configured:
    meters = read_catalogue(settings.meters).definitions if settings.meters else None
    return Configured(meters or (), read_books(settings.price_books, meters))


def late_s(settings: Settings) -> int:
    """How long after its time an event may still be accepted, answered and flushed, at the longest flush interval there is."""
    deadline_s = -(-settings.ingest.deadline_ms // 1000)  # rounded up
    return settings.ingest.max_age_s + deadline_s + LONGEST_FLUSH_INTERVAL_S


def _cluster(settings: Settings) -> KafkaCluster:
    from buffer.kafka_cluster import KafkaCluster
    from parshall.kafka_security import client_options

    assert settings.kafka.bootstrap is not None
    return KafkaCluster(
        settings.kafka.bootstrap,
        prefix=settings.kafka.topic_prefix,
        client=client_options(settings.kafka),
        create_topics=bool(settings.kafka.create_topics),
        accept_unsafe=bool(settings.kafka.accept_weak),
    )
