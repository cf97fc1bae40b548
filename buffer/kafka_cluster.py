"""Which Kafka it is, which topics are used there, and whether they can keep the promise (PROTOCOL.md, "Kafka at start").

Belongs here: connection settings, topic names, the checks at the start, making topics where that is asked for. Must not know: records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from buffer import kafka_outages
from buffer.counter_log import LogUnavailable, UnfitLog
from buffer.kafka_refusals import ask_why

T = TypeVar("T")

log = structlog.get_logger()

_NOT_PERMITTED = (ClusterAuthorizationFailedError, GroupAuthorizationFailedError, TopicAuthorizationFailedError)
_TOPIC_EXISTS = 36
_PAUSE_S = 0.1
_LARGEST_BATCH_BYTES = 1_000_000  # what topics must take; a batch of ours is smaller


@dataclass(frozen=True)
class KafkaCluster:
    bootstrap: str  # host:port,host:port
    prefix: str = ""  # of the names of all topics
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)  # security_protocol, ssl_context, sasl_…: as aiokafka names them
    create_topics: bool = False  # make topics that are missing
    partitions: int = 6  # of `usage.counters`, when it is made
    retention_ms: int = 7 * 86_400_000  # how long an unrated counter must be kept; topics are made with it
    accept_unsafe: bool = False  # start although the cluster can lose what it has acknowledged
    deadline_ms: int = 15_000  # an answer that takes longer is no answer

    @property
    def counters(self) -> str:
        return f"{self.prefix}usage.counters"

    @property
    def rejected(self) -> str:
        return f"{self.prefix}usage.rejected"

    @property
    def writers(self) -> str:
        return f"{self.prefix}usage.writers"

    @property
    def topics(self) -> tuple[str, str, str]:
        return self.counters, self.rejected, self.writers

    def options(self) -> dict[str, Any]:
        """What each kind of client is made with."""
        return {"bootstrap_servers": self.bootstrap, "request_timeout_ms": self.deadline_ms, **self.client}

    async def within_deadline(self, what: str, work: Awaitable[T]) -> T:
        """Every failure of the cluster, and no answer in time, is LogUnavailable."""
        try:
            async with asyncio.timeout(self.deadline_ms / 1000):
                result = await work
        except TimeoutError as error:
            raise LogUnavailable(f"Kafka at {self.bootstrap} did not answer within {self.deadline_ms} ms ({what})") from error
        except KafkaConnectionError as error:
            raise await self._not_connected(what, error) from error
        except (KafkaError, OSError) as error:
            raise self.failed(what, error) from error
        kafka_outages.answered()
        return result

    async def _not_connected(self, what: str, error: KafkaConnectionError) -> LogUnavailable:
        why = await ask_why(self.options())
        if why is None:
            return LogUnavailable(f"Kafka at {self.bootstrap}: {error} ({what})")
        kind = NotLetIn if why.refused else LogUnavailable
        return kind(f"Kafka at {self.bootstrap} {why.told}")

    def failed(self, what: str, error: KafkaError | OSError) -> LogUnavailable:
        if isinstance(error, _NOT_PERMITTED):
            return NotLetIn(
                f"Kafka at {self.bootstrap} does not permit it ({what}: {error}): its ACLs must allow what docs/OPERATING.md lists"
            )
        return LogUnavailable(f"Kafka at {self.bootstrap}: {error or type(error).__name__} ({what})")

    def identity(self, cluster_id: str) -> str:
        """Which log it is: topics with another prefix are another log, also in the same cluster."""
        return f"{cluster_id}/{self.prefix}" if self.prefix else cluster_id


class NotLetIn(LogUnavailable):
    """The cluster is there, and refuses whom we say we are or what we may do, or shows a certificate that we cannot trust."""


class Topic(NamedTuple):
    name: str
    partitions: int
    replicas: int  # of the partition that has the fewest
    settings: Mapping[str, str]


class Prepared(NamedTuple):
    identity: str
    partitions: int  # of `usage.counters`
    writers_partitions: int  # of `usage.writers`


async def prepare(cluster: KafkaCluster, before: Prepared | None) -> Prepared:
    """Connect, make what is missing if that is asked for, check. Raises LogUnavailable or UnfitLog.

    `before`: what it was when it was opened before. Who has never been let in has a wrong setting, and had better stop; who was let in
    before tries again, for the password may be being changed just now.
    """
    kafka_outages.take_over()
    admin = AIOKafkaAdminClient(**cluster.options())
    try:
        return await cluster.within_deadline("start", _prepare(cluster, admin))
    except NotLetIn as error:
        if before is not None:
            raise
        raise UnfitLog(str(error)) from error
    finally:
        await admin.close()


async def _prepare(cluster: KafkaCluster, admin: AIOKafkaAdminClient) -> Prepared:
    await admin.start()
    about = await admin.describe_cluster()
    found, missing = await _describe(admin, cluster.topics)
    if missing and not cluster.create_topics:
        raise UnfitLog(
            f"Kafka at {cluster.bootstrap} has no topic {' and no topic '.join(missing)}: create what is missing, see docs/OPERATING.md"
        )
    if missing:
        await _create(cluster, admin, missing, brokers=len(about["brokers"]))
    if len(found) < len(cluster.topics) and cluster.create_topics:  # they are being made, perhaps by another process
        found = await _await_leaders(admin, cluster.topics)
    if leaderless := [name for name in cluster.topics if name not in found]:
        raise LogUnavailable(f"Kafka at {cluster.bootstrap} has no leader for some partition of {' and of '.join(leaderless)}")
    objections = [objection for name in cluster.topics for objection in objections_to(cluster, found[name])]
    if (why := why_unfit(objections, accept_unsafe=cluster.accept_unsafe)) is not None:
        raise UnfitLog(why)
    if objections:
        _warn_once(told_of(objections))
    return Prepared(cluster.identity(about["cluster_id"]), found[cluster.counters].partitions, found[cluster.writers].partitions)


class Objection(NamedTuple):
    topic: str
    fault: str
    remedy: str
    acceptable: bool  # by whoever accepts that usage can get lost; else not everything could even be written


@cache
def _warn_once(because: str) -> None:
    """A process opens more than one log, and some of them again and again."""
    log.warning("this kafka can lose usage", because=because)


def why_unfit(objections: Sequence[Objection], *, accept_unsafe: bool) -> str | None:
    """None: it may be used. Pure."""
    hindering = [objection for objection in objections if not objection.acceptable]
    if accept_unsafe:
        return told_of(hindering) if hindering else None
    if objections and not hindering:
        return f"{told_of(objections)}; or accept that usage can get lost, with kafka.accept_weak = true"
    return told_of(objections) if objections else None


def told_of(objections: Sequence[Objection]) -> str:
    """All of them, and what helps: one clause for the topics that have the same fault. Pure."""
    topics: dict[tuple[str, str], list[str]] = {}
    for topic, fault, remedy, _ in objections:
        topics.setdefault((fault, remedy), []).append(topic)
    return "; ".join(f"{_each(names)} {fault}: {remedy}" for (fault, remedy), names in topics.items())


def _each(topics: Sequence[str]) -> str:
    return f"topic {topics[0]}" if len(topics) == 1 else f"each of the topics {', '.join(topics)}"


def objections_to(cluster: KafkaCluster, topic: Topic) -> list[Objection]:
    """Why a topic cannot keep the promise, and what to change. Pure."""
    objections: list[Objection] = []

    def object_to(fault: str, remedy: str, *, acceptable: bool = True) -> None:
        objections.append(Objection(topic.name, fault, remedy, acceptable))

    setting = topic.settings.get
    if topic.replicas < 2:
        object_to("keeps a single copy of each record", "give it a replication factor of 3 (at least 2)")
    if int(setting("min.insync.replicas", "1")) < 2:
        object_to("acknowledges records that only one broker has", "set its min.insync.replicas to 2")
    if setting("unclean.leader.election.enable") == "true":
        object_to("may elect a leader that lacks acknowledged records", "set its unclean.leader.election.enable to false")
    if topic.name == cluster.writers:
        if setting("cleanup.policy") != "compact":
            object_to("forgets writers", "set its cleanup.policy to compact")
        return objections
    if int(setting("max.message.bytes", str(_LARGEST_BATCH_BYTES))) < _LARGEST_BATCH_BYTES:
        remedy = f"set its max.message.bytes to at least {_LARGEST_BATCH_BYTES}"
        object_to("refuses large records", remedy, acceptable=False)
    if topic.name == cluster.counters:
        if "compact" in setting("cleanup.policy", ""):
            object_to("is compacted, and takes no record without a key", "set its cleanup.policy to delete", acceptable=False)
        if 0 <= int(setting("retention.ms", "-1")) < cluster.retention_ms:
            object_to("may delete counters before they are rated", f"set its retention.ms to at least {cluster.retention_ms}")
        if int(setting("retention.bytes", "-1")) >= 0:
            object_to("may delete counters before they are rated", "set its retention.bytes to -1")
    return objections


async def _describe(admin: AIOKafkaAdminClient, names: Sequence[str]) -> tuple[dict[str, Topic], list[str]]:
    """The topics that have a leader for every partition, and the names of those that do not exist."""
    found, missing = sort_topics(await admin.describe_topics(list(names)))
    settings = await _settings(admin, list(found))
    topics = {
        name: Topic(name, len(partitions), min(len(partition["replicas"]) for partition in partitions), settings[name])
        for name, partitions in found.items()
    }
    return topics, missing


def sort_topics(told: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Sequence[Mapping[str, Any]]], list[str]]:
    """The partitions of the topics that have a leader for each, and the names of those that do not exist. Pure.

    Raises what Kafka says of one that may not be looked at. It says that whether or not the topic exists.
    """
    found, missing = {}, []
    for topic in told:
        error, name = for_code(topic["error_code"]), topic["topic"]
        if error is UnknownTopicOrPartitionError:
            missing.append(name)
        elif error in _NOT_PERMITTED:
            raise error(f"topic {name} cannot be looked at")
        elif topic["error_code"] == 0 and all(partition["leader"] >= 0 for partition in topic["partitions"]):
            found[name] = topic["partitions"]
    return found, missing


async def _settings(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    settings: dict[str, dict[str, str]] = {}
    if names:
        for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
            for code, message, _, name, entries in response.resources:
                if code != 0:
                    raise for_code(code)(f"the settings of topic {name} cannot be read: {message}")
                settings[name] = {entry[0]: entry[1] for entry in entries}
    return settings


async def _create(cluster: KafkaCluster, admin: AIOKafkaAdminClient, names: Sequence[str], brokers: int) -> None:
    replicas = min(3, brokers)
    always = {"min.insync.replicas": str(min(2, replicas)), "unclean.leader.election.enable": "false"}
    kept = {"cleanup.policy": "delete", "retention.ms": str(cluster.retention_ms)}
    wanted = {
        cluster.counters: NewTopic(
            cluster.counters, cluster.partitions, replicas, topic_configs={**always, **kept, "retention.bytes": "-1"}
        ),
        cluster.rejected: NewTopic(cluster.rejected, 1, replicas, topic_configs={**always, **kept}),
        cluster.writers: NewTopic(cluster.writers, 1, replicas, topic_configs={**always, "cleanup.policy": "compact"}),
    }
    response = await admin.create_topics([wanted[name] for name in names])
    for name, code, *message in response.topic_errors:
        if code not in (0, _TOPIC_EXISTS):  # another worker may have made it at the same moment
            raise for_code(code)(f"topic {name} cannot be made: {' '.join(map(str, message))}")


async def _await_leaders(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, Topic]:
    while True:  # within the deadline of `prepare`
        found, _ = await _describe(admin, names)
        if len(found) == len(names):
            return found
        await asyncio.sleep(_PAUSE_S)
