"""A real Kafka that asks who is there: settings that get in, what is told when they do not, the rights that are needed; two installations
that share a cluster."""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from structlog.testing import capture_logs

from buffer.counter_log import LogUnavailable, Rejected, UnfitLog
from buffer.counters import MeterDefinition
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from buffer.kafka_refusals import ask_why
from buffer.kafka_source import KafkaSource
from parshall.errors import Stop
from parshall.kafka_security import client_options
from parshall.settings import BadSettings, Settings, load_settings
from parshall.whole_log import whole_log
from parshall.wiring import make_counter_log, make_source
from parshall.writer_log import opened_log
from rater.source import SourceUnavailable
from tests.conformance.counter_log_places import ALICE, BOB, Reader, numbers, record, records
from tests.secured_kafka import PASSWORD, USER, Right, SecuredKafka, secured_kafka

PROJECT = Path(__file__).parents[2]
METER = MeterDefinition("requests", "0" * 16, "sum", 0, 60, ())
WAYS = ("scram", "plain", "unencrypted", "certificate")


@pytest.fixture(scope="module")
def secured() -> Iterator[SecuredKafka]:
    with secured_kafka() as started:
        yield started


def way(kafka: SecuredKafka, name: str) -> dict[str, object]:
    ca = {"ca_file": str(kafka.certificates.ca)}
    user = {"username": USER, "password": PASSWORD}
    own = {"cert_file": str(kafka.certificates.client), "key_file": str(kafka.certificates.client_key)}
    return {
        "scram": {"bootstrap": kafka.sasl_tls, "security": "sasl_tls", "sasl_mechanism": "SCRAM-SHA-512", **user, **ca},
        "plain": {"bootstrap": kafka.sasl_tls, "security": "sasl_tls", "sasl_mechanism": "PLAIN", **user, **ca},
        "unencrypted": {"bootstrap": kafka.sasl_plaintext, "security": "sasl_plaintext", "sasl_mechanism": "PLAIN", **user},
        "certificate": {"bootstrap": kafka.tls, "security": "tls", **own, **ca},
    }[name]


def settings(kafka: dict[str, object], **more: object) -> Settings:
    given = {"accept_weak": True, "create_topics": True, **kafka, **more}
    return load_settings(None, environment={}, options={f"kafka.{name}": value for name, value in given.items()})


@asynccontextmanager
async def rating(of: Settings) -> AsyncIterator[Reader]:
    reader = Reader(make_source(of, None))
    await reader.open()
    try:
        yield reader
    finally:
        await reader.close()


async def nothing_is_left() -> bool:
    await asyncio.sleep(0.05)  # a socket is closed in the loop's next rounds
    return asyncio.all_tasks() == {asyncio.current_task()}


# ---- let in


@pytest.mark.parametrize("name", WAYS)
async def test_what_is_produced_is_read(secured: SecuredKafka, topic_prefix: str, name: str) -> None:
    given = settings(way(secured, name), topic_prefix=topic_prefix, consumer_group=f"{topic_prefix}rater")
    with capture_logs() as lines:
        async with opened_log(given, None) as log, rating(given) as reader:
            await log.register(ALICE)
            await log.produce(records(range(1, 6)))
            assert list((await log.registry()).writers) == [ALICE]
            assert numbers(await reader.take(5)) == [1, 2, 3, 4, 5]
            assert reader.source.identity == log.identity
    assert "in the clear" not in str(lines), "what was chosen is no trouble"
    assert await nothing_is_left()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_ends_while_the_broker_owes_an_answer(
    secured: SecuredKafka, topic_prefix: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """As at the end of each reading of the registry, which has a deadline. The broker reads no goodbye until it has answered."""
    given = settings(way(secured, "scram"), topic_prefix=topic_prefix)

    async def read() -> None:
        async with opened_log(given, None):
            pass  # makes the topics
        options = {"bootstrap_servers": secured.sasl_tls, **client_options(given.kafka)}
        consumer = AIOKafkaConsumer(**options, fetch_max_wait_ms=60_000)
        consumer.assign([TopicPartition(f"{topic_prefix}usage.counters", 0)])
        await consumer.start()
        assert await consumer.getmany(timeout_ms=500) == {}
        async with asyncio.timeout(10):
            await consumer.stop()
        assert await nothing_is_left()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(read())


# ---- not let in


def wrong_settings(kafka: SecuredKafka, name: str) -> tuple[dict[str, object], str]:
    scram, own, stranger = way(kafka, "scram"), way(kafka, "certificate"), str(kafka.certificates.stranger)
    port = kafka.sasl_tls.rpartition(":")[2]
    nobody: dict[str, object] = {"cert_file": "", "key_file": ""}
    return {
        "password": ({**scram, "password": "wrong"}, r"does not let the user 'edge' in \(.*\): correct kafka\.username or kafka\.password"),
        "user": ({**way(kafka, "plain"), "username": "edgy"}, r"does not let the user 'edgy' in \(.*\): correct kafka\.username or"),
        "mechanism": ({**scram, "sasl_mechanism": "SCRAM-SHA-256"}, r"does not know SCRAM-SHA-256: set kafka\.sasl_mechanism to"),
        "no SASL there": ({**scram, "bootstrap": kafka.tls, **_own(own)}, r"asks for no user and password: set kafka\.security to tls or"),
        "CA": (
            {**scram, "ca_file": stranger},
            r"shows a certificate that is not trusted \(.*\): set kafka\.ca_file to the CA that signed it",
        ),
        "CAs of this machine": ({**scram, "ca_file": ""}, r"shows a certificate that is not trusted \(.*\): set kafka\.ca_file to"),
        "name": (
            {**scram, "bootstrap": f"localhost:{port}"},
            r"shows a certificate with other names \(.*'localhost'.*\): set kafka\.boots",
        ),
        "no certificate": ({**own, **nobody}, r"refuses our certificate \(.*\): set kafka\.cert_file and kafka\.key_file to one that it"),
    }[name]


def _own(given: dict[str, object]) -> dict[str, object]:
    return {name: given[name] for name in ("cert_file", "key_file")}


@pytest.mark.parametrize("name", ["password", "user", "mechanism", "no SASL there", "CA", "CAs of this machine", "name", "no certificate"])
async def test_who_is_not_let_in_is_told_why_in_one_sentence(secured: SecuredKafka, name: str) -> None:
    kafka, told = wrong_settings(secured, name)
    with capture_logs() as lines:
        for open_it in (make_counter_log(settings(kafka), None).open, Reader(make_source(settings(kafka), None)).open):
            with pytest.raises(UnfitLog, match=rf"^Kafka at {kafka['bootstrap']} {told}") as caught:
                await open_it()
            assert "\n" not in str(caught.value)
    assert PASSWORD not in str(lines) and not [line for line in lines if "exc_info" in line]
    assert await nothing_is_left()


@pytest.mark.parametrize("spoken", ["plaintext to TLS", "plaintext to SASL", "TLS to plaintext", "TLS to SASL"])
async def test_what_a_broker_only_hangs_up_on_may_be_an_outage(secured: SecuredKafka, spoken: str) -> None:
    kafka = {
        "plaintext to TLS": {"bootstrap": secured.sasl_tls},
        "plaintext to SASL": {"bootstrap": secured.sasl_plaintext},
        "TLS to plaintext": {**way(secured, "scram"), "bootstrap": secured.plaintext},
        "TLS to SASL": {"bootstrap": secured.sasl_tls, "security": "tls", "ca_file": str(secured.certificates.ca)},
    }[spoken]
    now = kafka.get("security", "plaintext")
    with pytest.raises(LogUnavailable, match=rf"closes the connection: .* another kafka\.security than {now} at this port$"):
        await make_counter_log(settings(kafka), None).open()
    assert await nothing_is_left()


async def test_a_broker_that_lets_us_in_when_it_is_asked_again_gives_no_reason(secured: SecuredKafka) -> None:
    options = {"bootstrap_servers": secured.sasl_tls, **client_options(settings(way(secured, "scram")).kafka)}
    assert await ask_why(options) is None
    assert await nothing_is_left()


async def test_who_was_let_in_before_goes_on_trying(secured: SecuredKafka, topic_prefix: str) -> None:
    """While a password is changed, in the cluster first and then here or the other way round."""
    given = settings(way(secured, "scram"), topic_prefix=topic_prefix, consumer_group=f"{topic_prefix}rater")
    client = client_options(given.kafka)
    cluster = KafkaCluster(secured.sasl_tls, topic_prefix, client, create_topics=True, accept_unsafe=True)
    log, reader = KafkaLog(cluster), Reader(KafkaSource(cluster, f"{topic_prefix}rater"))
    await log.open()
    await reader.open()
    client["sasl_plain_password"] = "changed"
    await log.close()
    await reader.close()
    with pytest.raises(LogUnavailable, match="does not let the user 'edge' in"):
        await log.produce(records([1]))
    with pytest.raises(LogUnavailable, match="does not let the user 'edge' in"):
        await log.open()
    with pytest.raises(SourceUnavailable, match="does not let the user 'edge' in"):
        await reader.source.poll(1, 0.1)
    client["sasl_plain_password"] = PASSWORD
    await log.produce(records([1]))
    assert numbers(await reader.take(1)) == [1]
    await log.close()
    await reader.close()
    assert await nothing_is_left()


def test_a_command_ends_with_the_sentence_and_says_nothing_more(secured: SecuredKafka, topic_prefix: str, tmp_path: Path) -> None:
    kafka = {**way(secured, "scram"), "topic_prefix": topic_prefix, "create_topics": "true", "accept_weak": "true"}

    def run(*command: str, password: str) -> subprocess.CompletedProcess[str]:
        variables = {f"PARSHALL_KAFKA_{name.upper()}": str(value) for name, value in {**kafka, "password": password}.items()}
        words = [sys.executable, "-P", "-m", "parshall", *command, "--data", str(tmp_path)]
        environment = os.environ | variables | {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)

    right = run("writer", "list", password=PASSWORD)
    assert (right.returncode, right.stdout) == (0, "No writer is registered.\n"), right.stderr
    wrong = run("writer", "list", password="not this one")
    assert (wrong.returncode, wrong.stdout) == (4, "")
    assert wrong.stderr.splitlines()[-1].startswith(f"Kafka at {secured.sasl_tls} does not let the user 'edge' in (")
    assert "Traceback" not in wrong.stderr and "not this one" not in wrong.stderr


# ---- one cluster, two installations


async def test_two_installations_do_not_see_each_other(secured: SecuredKafka, topic_prefix: str) -> None:
    eu = settings(way(secured, "scram"), topic_prefix=f"{topic_prefix}eu.", consumer_group=f"{topic_prefix}eu-rater")
    us = settings(way(secured, "scram"), topic_prefix=f"{topic_prefix}us.", consumer_group=f"{topic_prefix}us-rater")
    async with opened_log(eu, None) as eu_log, opened_log(us, None) as us_log, rating(eu) as eu_rater, rating(us) as us_rater:
        await eu_log.register(ALICE)
        await us_log.register(BOB)
        await eu_log.produce(records([1, 2, 3], partition=1))
        await us_log.produce(records([1, 2], partition=1, writer=BOB))
        assert [list((await log.registry()).writers) for log in (eu_log, us_log)] == [[ALICE], [BOB]]
        assert eu_log.identity != us_log.identity, "or claims of one could be taken for those of the other"
        assert numbers(await eu_rater.take(3), 1) == [1, 2, 3]
        assert numbers(await us_rater.take(2), 1, BOB) == [1, 2]
        await eu_rater.nothing_more()
        await us_rater.nothing_more()
        async with whole_log(eu, None) as log:
            assert [one.headers["writer"] async for one in log] == [ALICE.hex().encode()] * 3


async def test_commands_read_in_groups_that_begin_as_the_raters(secured: SecuredKafka, topic_prefix: str) -> None:
    """So a cluster that lets a user into groups by a prefix needs no more than one rule; and a rater keeps its partitions meanwhile."""
    given = settings(way(secured, "scram"), topic_prefix=topic_prefix, consumer_group=f"{topic_prefix}rater")
    async with opened_log(given, None) as log:
        await log.produce([record(1)])
    async with whole_log(given, None) as whole, rating(given) as reader:
        assert len(await reader.take(1)) == len([one async for one in whole]) == 1
        admin = AIOKafkaAdminClient(bootstrap_servers=secured.plaintext)
        await admin.start()
        groups = {name for name, *_ in await admin.list_consumer_groups() if name.startswith(topic_prefix)}
        await admin.close()
    assert f"{topic_prefix}rater" in groups
    (other,) = groups - {f"{topic_prefix}rater"}
    assert other.startswith(f"{topic_prefix}rater-reading-")


# ---- ACLs


def documented_rights() -> list[Right]:
    """What docs/OPERATING.md gives the users of the roles."""
    rights = []
    for line in (PROJECT / "docs" / "OPERATING.md").read_text().splitlines():
        if line.startswith("$ACLS "):
            options = [(word, value) for word, value in itertools.pairwise(shlex.split(line)) if word.startswith("--")]
            ((_, principal),) = [option for option in options if option[0] == "--allow-principal"]
            ((kind, name),) = [(word[2:], value) for word, value in options if word in ("--topic", "--group")]
            pattern = dict(options).get("--resource-pattern-type", "literal")
            role = principal.removeprefix("User:")
            rights += [Right(role, kind, name, pattern, value) for word, value in options if word == "--operation"]
    return rights


RIGHTS = documented_rights()


async def work_as_ingest(of: Settings) -> None:
    """All that ingest asks of Kafka, and the commands in its pods."""
    async with opened_log(of, None) as log:
        await log.registry()
        await log.register(ALICE)
        await log.define([METER])
        assert not await log.has_data()
        await log.produce([record(1)])
        await log.produce_rejected([Rejected("acme", b"{}")])
    async with whole_log(of, None) as whole:
        assert len([one async for one in whole]) == 1


async def work_as_rate(of: Settings) -> None:
    async with rating(of) as reader:
        await reader.nothing_more()
    async with whole_log(of, None) as whole:
        assert [one async for one in whole] == []


WORK = {"ingest": work_as_ingest, "rate": work_as_rate}


def as_role(kafka: SecuredKafka, role: str, prefix: str) -> Settings:
    given = {**way(kafka, "unencrypted"), "username": role}
    return settings(given, topic_prefix=prefix, consumer_group=f"{prefix}parshall-rater", create_topics=False)


async def allow(kafka: SecuredKafka, rights: Iterable[Right], prefix: str) -> None:
    """The topics exist then, too."""
    async with opened_log(settings(way(kafka, "scram"), topic_prefix=prefix), None):
        pass
    await kafka.allow(right._replace(name=f"{prefix}{right.name}") for right in rights)


@pytest.mark.parametrize("role", WORK)
async def test_the_documented_rights_are_enough(secured: SecuredKafka, topic_prefix: str, role: str) -> None:
    await allow(secured, [right for right in RIGHTS if right.role == role], topic_prefix)
    await WORK[role](as_role(secured, role, topic_prefix))


@pytest.mark.parametrize("lacking", RIGHTS, ids=lambda right: f"{right.role}-{right.operation}-{right.name}")
async def test_whoever_lacks_one_of_them_is_told_so(secured: SecuredKafka, topic_prefix: str, lacking: Right) -> None:
    role = lacking.role
    await allow(secured, [right for right in RIGHTS if right.role == role and right != lacking], topic_prefix)
    with pytest.raises((Stop, UnfitLog, LogUnavailable, SourceUnavailable)) as caught:
        await WORK[role](as_role(secured, role, topic_prefix))
    told = f"Kafka at {secured.sasl_plaintext} does not permit it ("
    assert told in str(caught.value) and f"{topic_prefix}{lacking.name}" in str(caught.value), str(caught.value)
    assert "docs/OPERATING.md" in str(caught.value)
    assert await nothing_is_left()


# ---- a client certificate that cannot be one


def test_a_key_that_does_not_fit_or_has_a_passphrase_is_told_by_the_check(secured: SecuredKafka, tmp_path: Path) -> None:
    own = way(secured, "certificate")
    locked = tmp_path / "locked.key"
    openssl = shutil.which("openssl")
    assert openssl is not None
    subprocess.run([openssl, "pkey", "-in", str(own["key_file"]), "-aes256", "-passout", "pass:x", "-out", str(locked)], check=True)
    stranger = str(secured.certificates.stranger).replace(".pem", ".key")
    for key, told in ((stranger, f"{stranger} is not the key of {own['cert_file']}"), (str(locked), f"{locked} asks for a passphrase")):
        with pytest.raises(BadSettings, match=r"^--key_file: kafka\.key_file: ") as caught:
            settings({**own, "key_file": key})
        assert told in str(caught.value)
