"""The port that a service listens on: found free before anything starts, and kept while the workers come and go.

Must not know: what is served.
"""

from __future__ import annotations

import errno
import socket

from parshall.errors import UNAVAILABLE, USAGE, Stop
from parshall.settings import Address


def reserve(address: Address) -> tuple[socket.socket, Address]:
    """A bound socket that never listens, and the address with the port that was chosen when 0 was asked for.

    Workers bind the same port beside it (SO_REUSEPORT); others cannot, even while no worker is up.
    """
    family, host = _resolved(address)
    _check_free(family, host, address)
    holder = socket.socket(family, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind((host, address.port))
    except OSError as error:
        raise _sentence(address, error) from error
    return holder, Address(address.host, holder.getsockname()[1])


def _resolved(address: Address) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, resolved = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise Stop(f"There is no address {address.host} on this machine: choose another with --listen.", USAGE) from error
    return family, str(resolved[0])


def _check_free(family: socket.AddressFamily, host: str, address: Address) -> None:
    """Without SO_REUSEPORT: with it, a second service of the same user would silently share the port."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, address.port))
        except OSError as error:
            raise _sentence(address, error) from error


def _sentence(address: Address, error: OSError) -> Stop:
    another = Address(address.host, address.port + 1 if 1024 <= address.port < 65535 else 8080).text
    if error.errno == errno.EADDRINUSE:
        return Stop(
            f"Port {address.port} on {address.host} is in use by another program: stop it, or choose another port with --listen {another}",
            UNAVAILABLE,
        )
    if error.errno == errno.EACCES:
        return Stop(f"This user may not listen on port {address.port}: choose one above 1023 with --listen {another}", USAGE)
    return Stop(f"Cannot listen on {address.text}: {error.strerror}. Choose another address with --listen.", USAGE)
