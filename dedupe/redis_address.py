"""Where a Redis is and how one gets in: from a URL, or made by a simulation with a network of its own.

Belongs here: parsing (redis-py's parser, so its URLs mean what they mean everywhere) and making a transport. Must not know: claims.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.connection import SSLConnection, parse_url

from dedupe.ordered_connection import Connect
from dedupe.redis_info import in_cluster_mode
from dedupe.redis_tls import check_but_for_files, tls_context

_REFUSAL = re.compile(r"WRONGPASS|NOAUTH|ERR .*(password|DB index)")
_NO_RIGHT = re.compile(r"NOPERM|ERR The user executing the script can't")


@dataclass(frozen=True)
class RedisAddress:
    connect: Connect
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    name: str = "redis"  # for messages: never holds a password

    @property
    def introduction(self) -> Sequence[Sequence[bytes]]:
        """The commands that say who we are, and which database it is about."""
        commands: list[list[bytes]] = []
        if self.password is not None:
            user = [self.username.encode()] if self.username else []
            commands.append([b"AUTH", *user, self.password.encode()])
        if self.db:
            commands.append([b"SELECT", b"%d" % self.db])
        return commands

    def not_let_in(self, told: str) -> str | None:
        """The sentence for the operator, where what the server told of them means that our setting is wrong; None: it does not."""
        if _NO_RIGHT.search(told):
            return f"The Redis at {self.name} does not permit it ({told}): its ACL must give the user what docs/OPERATING.md lists."
        if _REFUSAL.search(told):
            return (
                f"The Redis at {self.name} does not let us in ({told}): redis.url must hold its user, its password and a database it has."
            )
        return in_cluster_mode(self.name, told)

    @classmethod
    def from_url(cls, url: str) -> RedisAddress:
        """redis://, rediss:// or unix://. Raises ValueError, without a password in it; where it is about TLS, a BadOption."""
        parsed: dict[str, Any] = dict(parse_url(url))
        db = int(parsed.get("db", 0))
        tls = tls_context(parsed, tls=_is_tls(parsed))
        if "path" in parsed:
            return cls(_unix(parsed["path"]), parsed.get("username"), parsed.get("password"), db, parsed["path"])
        host, port = parsed.get("host", "localhost"), int(parsed.get("port", 6379))
        connect = _tcp(host, port, tls)
        return cls(connect, parsed.get("username"), parsed.get("password"), db, f"{host}:{port}")


def check_url(url: str) -> None:
    """All that can be said without the files that it names. Raises ValueError, as `RedisAddress.from_url`."""
    parsed: dict[str, Any] = dict(parse_url(url))
    check_but_for_files(parsed, tls=_is_tls(parsed))


def _is_tls(parsed: dict[str, Any]) -> bool:
    return parsed.get("connection_class") is SSLConnection


def _tcp(host: str, port: int, tls: ssl.SSLContext | None) -> Connect:
    async def connect(factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        transport, _ = await asyncio.get_running_loop().create_connection(factory, host, port, ssl=tls)
        return transport

    return connect


def _unix(path: str) -> Connect:
    async def connect(factory: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        transport, _ = await asyncio.get_running_loop().create_unix_connection(factory, path)
        return transport

    return connect
