"""What is required of the topics that usage rests on."""

from __future__ import annotations

import pytest
from aiokafka.errors import TopicAuthorizationFailedError

from buffer.kafka_cluster import KafkaCluster, Topic, objections_to, sort_topics, told_of, why_unfit

CLUSTER = KafkaCluster("broker:9092", prefix="p.")
GOOD = {
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
}


def counters(replicas: int = 3, **settings: str) -> Topic:
    return Topic("p.usage.counters", 6, replicas, GOOD | {name.replace("__", "."): value for name, value in settings.items()})


def writers(**settings: str) -> Topic:
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    return Topic("p.usage.writers", 1, 3, GOOD | {"cleanup.policy": "compact"} | changed)


@pytest.mark.parametrize(
    "topic",
    [
        counters(),
        counters(2),
        counters(retention__ms="-1"),
        counters(max__message__bytes="1000000"),
        writers(),
        writers(retention__ms="1", max__message__bytes="1000"),
        Topic("p.usage.rejected", 1, 3, GOOD | {"retention.ms": "1", "retention.bytes": "5"}),
        Topic("p.usage.rejected", 1, 3, GOOD | {"cleanup.policy": "compact"}),
    ],
)
def test_a_fit_topic(topic: Topic) -> None:
    assert objections_to(CLUSTER, topic) == []


@pytest.mark.parametrize(
    ("topic", "remedy"),
    [
        (counters(1), "replication factor of 3"),
        (counters(min__insync__replicas="1"), "min.insync.replicas to 2"),
        (counters(unclean__leader__election__enable="true"), "unclean.leader.election.enable to false"),
        (counters(cleanup__policy="compact"), "cleanup.policy to delete"),
        (counters(cleanup__policy="compact,delete"), "cleanup.policy to delete"),
        (counters(retention__ms="604799999"), "retention.ms to at least 604800000"),
        (counters(retention__ms="0"), "retention.ms to at least 604800000"),
        (counters(retention__bytes="1000000000"), "retention.bytes to -1"),
        (counters(retention__bytes="0"), "retention.bytes to -1"),
        (counters(max__message__bytes="999999"), "max.message.bytes to at least"),
        (writers(cleanup__policy="delete"), "cleanup.policy to compact"),
        (writers(cleanup__policy="compact,delete"), "cleanup.policy to compact"),
        (writers(min__insync__replicas="1"), "min.insync.replicas to 2"),
    ],
)
def test_an_unfit_topic_is_told_what_to_change(topic: Topic, remedy: str) -> None:
    (objection,) = objections_to(CLUSTER, topic)
    assert objection.topic == topic.name
    assert remedy in objection.remedy
    cannot_be_written = remedy in ("cleanup.policy to delete", "max.message.bytes to at least")
    assert objection.acceptable != cannot_be_written


def test_of_what_a_broker_does_not_tell_only_the_copies_are_doubted() -> None:
    assert [objection.remedy for objection in objections_to(CLUSTER, counters()._replace(settings={}))] == [
        "set its min.insync.replicas to 2"
    ]


def test_topics_with_the_same_fault_are_told_of_together() -> None:
    weak = [
        objection
        for topic in (counters(1, retention__bytes="5"), writers()._replace(replicas=1))
        for objection in objections_to(CLUSTER, topic)
    ]
    assert told_of(weak) == (
        "each of the topics p.usage.counters, p.usage.writers keeps a single copy of each record: "
        "give it a replication factor of 3 (at least 2); "
        "topic p.usage.counters may delete counters before they are rated: set its retention.bytes to -1"
    )


def test_what_can_be_accepted_is_not_told_again_where_it_is() -> None:
    weak, unwritable = objections_to(CLUSTER, counters(1)), objections_to(CLUSTER, counters(cleanup__policy="compact"))
    assert why_unfit([], accept_unsafe=False) is None
    assert why_unfit(weak, accept_unsafe=False) == f"{told_of(weak)}; or accept that usage can get lost, with kafka.accept_weak = true"
    assert why_unfit(weak, accept_unsafe=True) is None
    assert why_unfit(weak + unwritable, accept_unsafe=False) == told_of(weak + unwritable)
    assert why_unfit(weak + unwritable, accept_unsafe=True) == told_of(unwritable)


def told(name: str, code: int, *leaders: int) -> dict[str, object]:
    """As a broker tells of a topic."""
    return {"topic": name, "error_code": code, "partitions": [{"leader": leader, "replicas": [1, 2]} for leader in leaders]}


def test_a_topic_is_there_or_missing_or_has_no_leader_just_now() -> None:
    found, missing = sort_topics([told("good", 0, 0, 2), told("none", 3), told("leaderless", 0, 1, -1), told("being made", 5)])
    assert (list(found), missing) == (["good"], ["none"])
    assert [partition["leader"] for partition in found["good"]] == [0, 2]


def test_a_topic_that_may_not_be_looked_at_is_not_missing() -> None:
    with pytest.raises(TopicAuthorizationFailedError, match="topic hidden cannot be looked at"):
        sort_topics([told("good", 0, 1), told("hidden", 29)])
