"""How a Redis is spoken to over TLS: the options of its URL (redis-py's names, so they mean what they mean everywhere), each looked at.

Belongs here: which options there are, what is wrong with one, the context. Must not know: the rest of a URL, where it was set.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any, NoReturn

from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# What belongs together -> what it may be. The first one is named where it is not known which of them is wrong.
_GROUPS = {
    ("ssl_cert_reqs",): "none, optional or required",
    ("ssl_ca_certs",): "a PEM file with certificates, -----BEGIN CERTIFICATE----- and so on",
    ("ssl_ca_path",): "a directory of certificates",
    ("ssl_ca_data",): "certificates in PEM",
    ("ssl_certfile", "ssl_keyfile", "ssl_password"): "PEM files with a certificate and its key, and the passphrase if the key has one",
    ("ssl_check_hostname",): "true or false",
    ("ssl_min_version",): "771 for TLS 1.2, 772 for TLS 1.3",
    ("ssl_ciphers",): "names of ciphers as OpenSSL knows them",
    ("ssl_include_verify_flags",): "names of ssl.VerifyFlags",
    ("ssl_exclude_verify_flags",): "names of ssl.VerifyFlags",
}
_KNOWN = [name for names in _GROUPS for name in names]
_SECRET = ("ssl_password", "ssl_ca_data")  # the second is no secret, and long


class BadOption(ValueError):
    """An option of the URL that cannot be used; no password is in it."""

    def __init__(self, option: str, wrong: str, allowed: str) -> None:
        super().__init__(f"{option} {wrong}: {allowed}")
        self.wrong = f"{option} {wrong}"
        self.allowed = allowed


def tls_context(given: Mapping[str, Any], *, tls: bool) -> ssl.SSLContext | None:
    """None for plain TCP. Raises BadOption. `given`: all options of the URL."""
    options = _checked(given, tls)
    if not tls:
        return None
    _check_files(options)
    for names, allowed in _GROUPS.items():
        _try({name: options[name] for name in names if name in options}, allowed)
    return _context(options)


def check_but_for_files(given: Mapping[str, Any], *, tls: bool) -> None:
    """For who asks no Redis, and need not have the files. Raises BadOption."""
    options = _checked(given, tls)
    for names, allowed in _GROUPS.items():
        if not {*_FILES, "ssl_ca_path"} & set(names):
            _try({name: options[name] for name in names if name in options}, allowed)


def _checked(given: Mapping[str, Any], tls: bool) -> dict[str, Any]:
    options = {name: value for name, value in given.items() if name.startswith("ssl_")}
    _check_names(options, tls)
    if "ssl_check_hostname" in options:  # redis-py's parser does not know every word for it
        options["ssl_check_hostname"] = str(options["ssl_check_hostname"]).lower() not in ("false", "0", "no")
    return options


def _check_names(options: Mapping[str, Any], tls: bool) -> None:
    for name in options:
        if name not in _KNOWN:
            raise BadOption(name, "is no option of TLS", ", ".join(_KNOWN))
        if not tls:
            raise BadOption(name, "is of no use without TLS", "rediss:// in the place of redis://, or no such option")


def _check_files(options: Mapping[str, Any]) -> None:
    for name in _FILES:
        _see_that_it_can_be_read(name, options.get(name))
    _see_that_it_is_a_directory(options.get("ssl_ca_path"))
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise BadOption("ssl_keyfile", "is of no use without its certificate", "ssl_certfile too, or neither")


def _see_that_it_can_be_read(name: str, path: str | None) -> None:
    try:
        if path is not None:
            open(path, "rb").close()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadOption(name, f"{path} cannot be read: {why}", "a PEM file that this user may read") from error


def _see_that_it_is_a_directory(path: str | None) -> None:
    if path is not None and not os.path.isdir(path):
        raise BadOption("ssl_ca_path", f"{path} is no directory", "a directory of certificates")


def _try(some: Mapping[str, Any], allowed: str) -> None:
    """Options of one kind alone, so that it is known which of them is wrong."""
    if not some:
        return
    try:
        _context(some)
    except BadOption:
        raise
    except (RedisError, OSError, ValueError, TypeError, OverflowError) as error:
        name = next(iter(some))
        wrong = "cannot be used" if name in _SECRET else f"{some[name]} cannot be used"
        raise BadOption(name, f"{wrong} ({_why(error)})", allowed) from error


def _why(error: Exception) -> str:
    if getattr(error, "reason", None):
        return str(error.reason)  # type: ignore[attr-defined]  # of ssl.SSLError, where OpenSSL has a word for it
    told = error.args[-1] if error.args else error
    return str(told[0] if isinstance(told, tuple) else told)


def _context(options: Mapping[str, Any]) -> ssl.SSLContext:
    def no_passphrase() -> NoReturn:  # OpenSSL would ask for it at the terminal
        raise BadOption("ssl_keyfile", "asks for a passphrase", "a key without one, as `openssl pkey` writes it, or ssl_password")

    # redis-py hands a password on as it is, and Python takes a function, too
    return SSLConnection(**{"ssl_password": no_passphrase, **options}).ssl_context.get()
