"""A Kafka broker with ACLs that asks who is there: over TLS with a CA made for it, for a user and a password, or for a client certificate.

Belongs here: certificates for tests, the listeners, and giving rights. Must not know: what a test shows with them.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from tests import services

USER, PASSWORD = "edge", "right horse"  # may do everything
ROLES = ("ingest", "rate")  # users with the same password, who may do what `allow` says
# As numbers in Kafka's protocol.
_KINDS = {"topic": 2, "group": 3}
_PATTERNS = {"literal": 3, "prefixed": 4}
_OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10}
_ALLOW = 3
_OF_A_CA = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
_OF_NO_CA = "basicConstraints=critical,CA:FALSE"  # from Python 3.13 on all of this is looked at


class Certificates:
    """A CA, and what it signed; PEM files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._make("ca", "/CN=CA of the tests", *_OF_A_CA)
        self._make("stranger", "/CN=Another CA", *_OF_A_CA)
        self._make("broker", "/CN=broker", _OF_NO_CA, "subjectAltName=IP:127.0.0.1", ca="ca")
        self._make("client", "/CN=client", _OF_NO_CA, "extendedKeyUsage=clientAuth", ca="ca")
        self.stranger, self.client, self.client_key = folder / "stranger.pem", folder / "client.pem", folder / "client.key"
        self.broker = folder / "broker-with-key.pem"  # as Kafka wants it
        self.broker.write_text((folder / "broker.key").read_text() + (folder / "broker.pem").read_text())

    def _make(self, name: str, subject: str, *extensions: str, ca: str | None = None) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        command += ["-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        command += [part for extension in extensions for part in ("-addext", extension)]
        command += [] if ca is None else ["-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"]
        done = subprocess.run(command, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class Right(NamedTuple):
    """In the words of `kafka-acls.sh`."""

    role: str  # whose
    kind: str  # of the resource: topic, group
    name: str  # of the resource
    pattern: str  # literal, prefixed
    operation: str


class SecuredKafka:
    """The same broker at several ports."""

    def __init__(self, broker: services.Kafka, certificates: Certificates, ports: dict[str, int]) -> None:
        self.plaintext = broker.address
        self.certificates = certificates
        self.sasl_tls, self.sasl_plaintext, self.tls = (f"127.0.0.1:{ports[name]}" for name in ("SASLTLS", "SASLPLAIN", "MUTUAL"))

    async def allow(self, rights: Iterable[Right]) -> None:
        """As `kafka-acls.sh` does; returns when they are in force."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.plaintext)
        await admin.start()
        try:
            for right in rights:
                acl = (
                    _KINDS[right.kind],
                    right.name,
                    _PATTERNS[right.pattern],
                    f"User:{right.role}",
                    "*",
                    _OPERATIONS[right.operation],
                    _ALLOW,
                )
                answer = await admin._send_request(CreateAclsRequest(*acl))
                assert [code for code, _ in answer.creation_responses] == [0], answer
                while not (await admin._send_request(DescribeAclsRequest(*acl))).resources:
                    await asyncio.sleep(0.01)
        finally:
            await admin.close()


@contextmanager
def certificates() -> Iterator[Certificates]:
    folder = Path(tempfile.mkdtemp(prefix="parshall-certificates-", dir="/tmp"))
    try:
        yield Certificates(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def secured_kafka() -> Iterator[SecuredKafka]:
    """SASL over TLS, SASL without, and TLS that asks for a client certificate; PLAIN and SCRAM-SHA-512 know USER with PASSWORD."""
    protocols = {"SASLTLS": "SASL_SSL", "SASLPLAIN": "SASL_PLAINTEXT", "MUTUAL": "SSL"}
    ports = {name: services.free_port() for name in protocols}
    with certificates() as made, services.kafka_broker(users={USER: PASSWORD}, **_settings(protocols, ports, made)) as broker:
        yield SecuredKafka(broker, made, ports)


def _settings(protocols: dict[str, str], ports: dict[str, int], made: Certificates) -> dict[str, str]:
    own = ["PLAINTEXT://127.0.0.1:{PORT}", *(f"{name}://127.0.0.1:{port}" for name, port in ports.items())]
    kinds = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **protocols}
    settings = {
        "listeners": ",".join([*own, "CONTROLLER://127.0.0.1:{CONTROLLER_PORT}"]),
        "advertised.listeners": ",".join(own),
        "listener.security.protocol.map": ",".join(f"{name}:{kind}" for name, kind in kinds.items()),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(made.broker),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(made.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{USER};User:CN=client",
    }
    others = " ".join(f'user_{role}="{PASSWORD}"' for role in ROLES)
    modules = "org.apache.kafka.common.security"
    for listener in ("sasltls", "saslplain"):
        settings[f"listener.name.{listener}.plain.sasl.jaas.config"] = (
            f'{modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}" {others};'
        )
        settings[f"listener.name.{listener}.scram-sha-512.sasl.jaas.config"] = f"{modules}.scram.ScramLoginModule required;"
    return settings
