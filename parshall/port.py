"""The ports that a service listens on: found free before anything starts, and kept while the workers come and go.

Must not know: what is served.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from parshall.errors import UNAVAILABLE, USAGE, Stop
from parshall.settings import Address, Settings


class Addresses(NamedTuple):
    """Where a service listens."""

    public: Address
    admin: Address | None = None  # None: what operators ask for is at the public one

    def named(self) -> dict[str, str]:
        """For logs."""
        return {"address": self.public.text, **({} if self.admin is None else {"admin": self.admin.text})}


@contextmanager
def reserved(settings: Settings) -> Iterator[Addresses]:
    """Nobody else can listen there until the end. Raises Stop."""
    holder, public = _reserve(settings.address, "--listen")
    with holder:
        if settings.admin_address is None:
            yield Addresses(public)
            return
        holder, admin = _reserve(settings.admin_address, "--admin-listen")
        with holder:
            _check_apart(public, admin)
            yield Addresses(public, admin)


def _check_apart(public: Address, admin: Address) -> None:
    """Both are ours, so nothing refuses the second, and connections would come to either. The settings know only names."""
    if any(one.meets(other) for one in _everywhere(public) for other in _everywhere(admin)):
        raise Stop(f"{admin.text} is where --listen is: choose another port with --admin-listen.", USAGE)


def _everywhere(address: Address) -> set[Address]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return {Address(str(place[0]), address.port) for *_, place in found}


def _reserve(address: Address, option: str) -> tuple[socket.socket, Address]:
    """A bound socket that never listens, and the address with the port that was chosen when 0 was asked for.

    Workers bind the same port beside it (SO_REUSEPORT); others cannot, even while no worker is up.
    """
    family, host = _resolved(address, option)
    _check_free(family, host, address, option)
    holder = socket.socket(family, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind((host, address.port))
    except OSError as error:
        raise _sentence(address, option, error) from error
    return holder, Address(address.host, holder.getsockname()[1])


def _resolved(address: Address, option: str) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, resolved = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise Stop(f"There is no address {address.host} on this machine: choose another with {option}.", USAGE) from error
    return family, str(resolved[0])


def _check_free(family: socket.AddressFamily, host: str, address: Address, option: str) -> None:
    """Without SO_REUSEPORT: with it, a second service of the same user would silently share the port."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, address.port))
        except OSError as error:
            raise _sentence(address, option, error) from error


def _sentence(address: Address, option: str, error: OSError) -> Stop:
    another = Address(address.host, address.port + 1 if 1024 <= address.port < 65535 else 8080).text
    if error.errno == errno.EADDRINUSE:
        return Stop(
            f"Port {address.port} on {address.host} is in use by another program: stop it, or choose another port with {option} {another}",
            UNAVAILABLE,
        )
    if error.errno == errno.EACCES:
        return Stop(f"This user may not listen on port {address.port}: choose one above 1023 with {option} {another}", USAGE)
    return Stop(f"Cannot listen on {address.text}: {error.strerror}. Choose another address with {option}.", USAGE)
