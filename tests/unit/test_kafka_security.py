"""What [kafka] says of TLS, users, passwords and shared clusters: what is refused with which remedy, and what Kafka's client is told."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from buffer.counter_log import UnfitLog
from buffer.kafka_cluster import KafkaCluster
from parshall.kafka_security import client_options
from parshall.settings import BadSettings, Settings, load_settings


def load(**kafka: object) -> Settings:
    return load_settings(None, environment={}, options={f"kafka.{name}": value for name, value in kafka.items()})


def problems(**kafka: object) -> list[str]:
    with pytest.raises(BadSettings) as caught:
        load(**kafka)
    return [str(problem) for problem in caught.value.problems]


def test_nothing_said_is_plaintext_without_a_prefix() -> None:
    kafka = load().kafka
    assert client_options(kafka) == {"security_protocol": "PLAINTEXT"}
    assert (kafka.topic_prefix, kafka.consumer_group) == ("", "parshall-rater")


def test_variables_set_all_of_it() -> None:
    environment = {
        "PARSHALL_KAFKA_SECURITY": "sasl_tls",
        "PARSHALL_KAFKA_SASL_MECHANISM": "PLAIN",
        "PARSHALL_KAFKA_USERNAME": "edge",
        "PARSHALL_KAFKA_PASSWORD": "12345",  # text, whatever it looks like
        "PARSHALL_KAFKA_TOPIC_PREFIX": "eu.",
        "PARSHALL_KAFKA_CONSUMER_GROUP": "eu-rater",
    }
    kafka = load_settings(None, environment=environment, options={}).kafka
    options = client_options(kafka)
    context = options.pop("ssl_context")
    assert options == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "edge",
        "sasl_plain_password": "12345",
    }
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (kafka.topic_prefix, kafka.consumer_group) == ("eu.", "eu-rater")


def test_without_tls_a_user_is_shown_all_the_same() -> None:
    options = client_options(load(security="sasl_plaintext", username="edge", password="p", sasl_mechanism="SCRAM-SHA-256").kafka)
    assert options["security_protocol"] == "SASL_PLAINTEXT" and "ssl_context" not in options


SASL = {"security": "sasl_tls", "username": "edge", "password": "hidden", "sasl_mechanism": "PLAIN"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"username": "edge"},
            "--username: kafka.username: is of no use while kafka.security is plaintext; "
            'allowed: kafka.security = "sasl_tls" or "sasl_plaintext", or no kafka.username',
        ),
        (
            {"password": "hidden", "security": "tls"},
            "--password: kafka.password: is of no use while kafka.security is tls; "
            'allowed: kafka.security = "sasl_tls" or "sasl_plaintext", or no kafka.password',
        ),
        (
            {"ca_file": "/etc/ca.pem"},
            "--ca_file: kafka.ca_file: is of no use while kafka.security is plaintext; "
            'allowed: kafka.security = "sasl_tls" or "tls", or no kafka.ca_file',
        ),
        (
            {**SASL, "security": "sasl_plaintext", "key_file": "/etc/key.pem"},
            "--key_file: kafka.key_file: is of no use while kafka.security is sasl_plaintext; "
            'allowed: kafka.security = "sasl_tls" or "tls", or no kafka.key_file',
        ),
        (
            {**SASL, "username": ""},
            "--security: kafka.username: is missing while kafka.security is sasl_tls; "
            "allowed: the name of the user, here or in PARSHALL_KAFKA_USERNAME",
        ),
        (
            {**SASL, "password": ""},
            "--security: kafka.password: is missing while kafka.security is sasl_tls; "
            "allowed: the user's password, best in PARSHALL_KAFKA_PASSWORD",
        ),
        (
            {**SASL, "sasl_mechanism": None},
            "--security: kafka.sasl_mechanism: is missing while kafka.security is sasl_tls; "
            "allowed: the one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 that the cluster has",
        ),
        (
            {"sasl_mechanism": "GSSAPI"},
            "--sasl_mechanism: kafka.sasl_mechanism: 'GSSAPI' cannot be used; allowed: one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
        ),
        (
            {"security": "SASL_SSL"},
            "--security: kafka.security: 'SASL_SSL' cannot be used; allowed: one of plaintext, tls, sasl_plaintext, sasl_tls",
        ),
        (
            {"security": "tls", "ca_file": "/nowhere/ca.pem"},
            "--ca_file: kafka.ca_file: /nowhere/ca.pem cannot be read: No such file or directory; "
            "allowed: a PEM file that this user may read",
        ),
        (
            {"security": "tls", "ca_file": __file__},
            f"--ca_file: kafka.ca_file: {__file__} has no certificate in it; allowed: a PEM file, -----BEGIN CERTIFICATE----- and so on",
        ),
        (
            {"security": "tls", "cert_file": __file__},
            "--cert_file: kafka.cert_file: is of no use without its key; allowed: kafka.key_file too, or neither",
        ),
        (
            {"security": "tls", "key_file": __file__},
            "--key_file: kafka.key_file: is of no use without its certificate; allowed: kafka.cert_file too, or neither",
        ),
        (
            {"security": "tls", "cert_file": __file__, "key_file": __file__},
            f"--cert_file: kafka.cert_file: {__file__} and {__file__} are not a certificate and its key; "
            "allowed: PEM files, -----BEGIN CERTIFICATE----- and -----BEGIN PRIVATE KEY-----",
        ),
        (
            {"bootstrap": "SASL_SSL://b-1:9096,SASL_SSL://b-2:9096"},
            "--kafka: kafka.bootstrap: 'SASL_SSL://b-1:9096,SASL_SSL://b-2:9096' cannot be used; "
            'allowed: host:port without SASL_SSL://, as in kafka-0:9092,kafka-1:9092, and kafka.security = "sasl_tls" in its place',
        ),
        (
            {"bootstrap": "kafka://b-1:9096"},
            "--kafka: kafka.bootstrap: 'kafka://b-1:9096' cannot be used; allowed: host:port without kafka://, "
            "as in kafka-0:9092,kafka-1:9092, and kafka.security = one of plaintext, tls, sasl_plaintext, sasl_tls in its place",
        ),
        (
            {"topic_prefix": "eu/"},
            "--topic_prefix: kafka.topic_prefix: 'eu/' cannot be used; allowed: at most 200 letters, digits, dots, dashes or underscores",
        ),
        (
            {"consumer_group": ""},
            "--consumer_group: kafka.consumer_group: '' cannot be used; "
            "allowed: a name: raters that have it in common share the partitions among them",
        ),
    ],
)
def test_what_does_not_fit_together_is_told_with_the_remedy(given: dict[str, object], told: str) -> None:
    assert problems(**given) == [told]


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[kafka]\nbootstrap = "b:9092"\nsecurity = "sasl_tls"\nca_file = "/nowhere/ca.pem"\n')
    with pytest.raises(BadSettings) as caught:
        load_settings(str(file), environment={}, options={})
    assert [(problem.place.removeprefix(f"{file}:"), problem.setting) for problem in caught.value.problems] == [
        ("3", "kafka.username"),
        ("3", "kafka.password"),
        ("3", "kafka.sasl_mechanism"),
        ("4", "kafka.ca_file"),
    ]


def test_the_longest_prefix_makes_names_that_kafka_takes() -> None:
    cluster = KafkaCluster("b:9092", prefix=load(topic_prefix="x" * 200).kafka.topic_prefix)
    assert max(map(len, cluster.topics)) <= 249
    assert problems(topic_prefix="x" * 201)


def test_topics_with_another_prefix_are_another_log() -> None:
    identities = {KafkaCluster("b:9092", prefix=prefix).identity("c") for prefix in ("", "eu.", "us.")}
    assert identities == {"c", "c/eu.", "c/us."}, "without one it is as it always was"


@pytest.mark.parametrize("password", ["hidden\n", 12345, ["hidden"]])
def test_a_password_is_not_shown_not_even_a_wrong_one(password: object) -> None:
    (told,) = problems(**{**SASL, "password": password})
    assert told.startswith("--password: kafka.password: what is given cannot be used; allowed: text")
    assert "hidden" not in told and "12345" not in told


def test_a_password_is_not_shown_where_settings_are() -> None:
    kafka = load(**SASL).kafka
    assert "hidden" not in repr(kafka)
    assert "hidden" not in repr(KafkaCluster("b:9092", client=client_options(kafka)))


def test_a_certificate_that_went_since_the_settings_were_checked_is_one_sentence(tmp_path: Path) -> None:
    gone = load().kafka.model_copy(update={"security": "tls", "ca_file": str(tmp_path / "ca.pem")})
    with pytest.raises(UnfitLog, match=r"kafka\.ca_file .*/ca\.pem cannot be read: No such file or directory: a PEM file"):
        client_options(gone)
