"""Why Kafka does not let a client in, in a few words: aiokafka keeps to itself what it heard, and says that it could not connect.

Belongs here: asking once more, and the words for each answer, with the setting that is to be changed. Must not know: topics, records, when
to try again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import IllegalSaslStateError, KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from aiokafka.protocol.metadata import MetadataRequest

_ASKING_S = 5
_OTHER_NAME = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH


class Why(NamedTuple):
    told: str  # follows "Kafka at HOST:PORT"
    refused: bool  # it will be the same the next time; else it may pass


async def ask_why(options: Mapping[str, Any]) -> Why | None:
    """What a client with these options is told by the first broker that tells anything. None: nobody says it soon, or it works by now."""
    try:
        async with asyncio.timeout(_ASKING_S):
            return await _ask_each(options)
    except TimeoutError:
        return None


async def _ask_each(options: Mapping[str, Any]) -> Why | None:
    client = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    for host, port, _ in collect_hosts(options["bootstrap_servers"]):
        try:
            await _ask(host, port, client)
        except (KafkaError, OSError) as error:
            if (why := _in_words(error, client)) is not None:
                return why
    return None


async def _ask(host: str, port: int, client: Mapping[str, Any]) -> None:
    connection = await create_conn(host, port, **client)
    try:
        await connection.send(MetadataRequest([]))
    finally:
        await connection.close()


def _in_words(error: BaseException, client: Mapping[str, Any]) -> Why | None:
    heard = error.__cause__ or error  # aiokafka says that the connection was closed, and keeps the reason behind it
    match heard:
        case SaslAuthenticationFailed():
            user, said = client.get("sasl_plain_username"), heard.args[0] if heard.args else "no reason given"
            return Why(f"does not let the user {user!r} in ({said}): correct kafka.username or kafka.password", True)
        case UnsupportedSaslMechanismError():
            return Why(f"does not know {client.get('sasl_mechanism')}: set kafka.sasl_mechanism to one that it has", True)
        case IllegalSaslStateError():
            return Why("asks for no user and password: set kafka.security to tls or plaintext, or kafka.bootstrap to another port", True)
        case ssl.SSLCertVerificationError():
            return Why(_of_certificate(heard), True)
        case ssl.SSLEOFError() | EOFError() | ConnectionResetError():
            spoken = {"PLAINTEXT": "plaintext", "SSL": "tls", "SASL_PLAINTEXT": "sasl_plaintext", "SASL_SSL": "sasl_tls"}
            now = spoken[client.get("security_protocol", "PLAINTEXT")]
            return Why(f"closes the connection: if it goes on doing so, it wants another kafka.security than {now} at this port", False)
        case ssl.SSLError():
            return _of_tls(heard)
        case _:
            return None


def _of_certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OTHER_NAME:
        return f"shows a certificate with other names ({error.verify_message}): set kafka.bootstrap to names that are in it"
    return f"shows a certificate that is not trusted ({error.verify_message}): set kafka.ca_file to the CA that signed it"


def _of_tls(error: ssl.SSLError) -> Why:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason and ("certificate" in reason or "ca" in reason.split()):
        return Why(f"refuses our certificate ({reason}): set kafka.cert_file and kafka.key_file to one that it trusts", True)
    return Why(f"cannot be spoken to over TLS ({reason}): see kafka.security and the port in kafka.bootstrap", False)
