"""How the brokers of Kafka are spoken to: whether what [kafka] says of TLS, user and password fits together, and what its client is told.

Belongs here: the checks across those settings, and reading the certificate files. Must not know: topics, what a broker answers.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from parshall.settings_sources import Raw

if TYPE_CHECKING:
    from parshall.settings import KafkaSettings, Problem

_PROTOCOLS = {"plaintext": "PLAINTEXT", "tls": "SSL", "sasl_plaintext": "SASL_PLAINTEXT", "sasl_tls": "SASL_SSL"}
_WITH_TLS = ("tls", "sasl_tls")
_WITH_SASL = ("sasl_plaintext", "sasl_tls")


class _Leaving(ssl.SSLObject):
    """Ends a connection without waiting for the other side's goodbye, as TLS allows.

    A broker that is to answer a fetch later reads nothing until then, and that late answer instead of a goodbye makes uvloop wait half a
    minute: longer than we wait for anything of Kafka, so that reading the registry of writers would fail.
    """

    def unwrap(self) -> None:
        with suppress(ssl.SSLWantReadError):  # our goodbye is written by then
            super().unwrap()


class _Fault(NamedTuple):
    setting: str  # of [kafka]
    wrong: str
    allowed: str
    because_of: str | None = None  # the setting whose place is told, where the one that is meant is not there


class _BadFile(Exception):
    def __init__(self, setting: str, wrong: str, allowed: str) -> None:
        super().__init__(f"kafka.{setting} {wrong}: {allowed}")
        self.fault = _Fault(setting, wrong, allowed)


def check_security(raw: Raw, kafka: KafkaSettings) -> list[Problem]:
    from parshall.settings import Problem

    return [
        Problem(raw.place(("kafka", fault.because_of or fault.setting)), f"kafka.{fault.setting}", fault.wrong, fault.allowed)
        for fault in _faults(kafka)
    ]


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """As aiokafka names them. Raises UnfitLog when a certificate file is not what it was when the settings were checked."""
    from buffer.counter_log import UnfitLog

    options: dict[str, Any] = {"security_protocol": _PROTOCOLS[kafka.security]}
    if kafka.security in _WITH_TLS:
        try:
            options["ssl_context"] = _tls_context(kafka)
        except _BadFile as bad:
            raise UnfitLog(str(bad)) from bad
    if kafka.security in _WITH_SASL:
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.username
        options["sasl_plain_password"] = kafka.password
    return options


def _faults(kafka: KafkaSettings) -> Iterator[_Fault]:
    yield from _tls_faults(kafka) if kafka.security in _WITH_TLS else _unused(kafka, ("ca_file", "cert_file", "key_file"), _WITH_TLS)
    yield from (_sasl_faults(kafka) if kafka.security in _WITH_SASL else _unused(kafka, ("username", "password"), _WITH_SASL))


def _unused(kafka: KafkaSettings, names: tuple[str, ...], wanted: tuple[str, str]) -> Iterator[_Fault]:
    for name in names:
        if getattr(kafka, name):
            wrong = f"is of no use while kafka.security is {kafka.security}"
            yield _Fault(name, wrong, f'kafka.security = "{wanted[1]}" or "{wanted[0]}", or no kafka.{name}')


def _sasl_faults(kafka: KafkaSettings) -> Iterator[_Fault]:
    wrong = f"is missing while kafka.security is {kafka.security}"
    if not kafka.username:
        yield _Fault("username", wrong, "the name of the user, here or in PARSHALL_KAFKA_USERNAME", "security")
    if not kafka.password:
        yield _Fault("password", wrong, "the user's password, best in PARSHALL_KAFKA_PASSWORD", "security")
    if kafka.sasl_mechanism is None:
        yield _Fault("sasl_mechanism", wrong, "the one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 that the cluster has", "security")


def _tls_faults(kafka: KafkaSettings) -> Iterator[_Fault]:
    if kafka.cert_file and not kafka.key_file:
        yield _Fault("cert_file", "is of no use without its key", "kafka.key_file too, or neither")
    elif kafka.key_file and not kafka.cert_file:
        yield _Fault("key_file", "is of no use without its certificate", "kafka.cert_file too, or neither")
    try:
        _tls_context(kafka)
    except _BadFile as bad:
        yield bad.fault


def _tls_context(kafka: KafkaSettings) -> ssl.SSLContext:
    """Raises _BadFile."""
    for name in ("ca_file", "cert_file", "key_file"):
        _see_that_it_can_be_read(name, getattr(kafka, name))
    try:
        context = ssl.create_default_context(cafile=kafka.ca_file or None)
    except ssl.SSLError as error:
        raise _BadFile(
            "ca_file", f"{kafka.ca_file} has no certificate in it", "a PEM file, -----BEGIN CERTIFICATE----- and so on"
        ) from error
    context.sslobject_class = _Leaving
    if kafka.cert_file and kafka.key_file:
        _load_own(context, kafka)
    return context


def _see_that_it_can_be_read(name: str, path: str) -> None:
    try:
        if path:
            open(path, "rb").close()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise _BadFile(name, f"{path} cannot be read: {why}", "a PEM file that this user may read") from error


def _load_own(context: ssl.SSLContext, kafka: KafkaSettings) -> None:
    def no_passphrase() -> str:  # OpenSSL would ask for it at the terminal
        raise _BadFile("key_file", f"{kafka.key_file} asks for a passphrase", "a key without one, as `openssl pkey` writes it")

    try:
        context.load_cert_chain(kafka.cert_file, kafka.key_file, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _BadFile("key_file", f"{kafka.key_file} is not the key of {kafka.cert_file}", "the key that belongs to it") from error
        wrong = f"{kafka.cert_file} and {kafka.key_file} are not a certificate and its key"
        raise _BadFile("cert_file", wrong, "PEM files, -----BEGIN CERTIFICATE----- and -----BEGIN PRIVATE KEY-----") from error
