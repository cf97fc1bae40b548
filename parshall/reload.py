"""Reading the configuration again while the service runs: what follows at once, what waits for a restart, what is refused.

Belongs here: the rules, and one process's part in it. Must not know: sockets, which other processes there are, what a worker or a rater
does with new settings.

Tenants, keys, meters and price books follow; every other setting is what it was when the process started. Each process is given the very
bytes of the file, so all of them read the same; what was in force last is kept in the data folder for processes that start later.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from buffer.disk import Background
from parshall.settings import BadSettings, Settings, TenantSettings, load_settings, scalar_fields

OF_INGEST = ("tenants", "keys", "meters")
OF_ALL = (*OF_INGEST, "price_books")

_NEEDED = ("tenants", "keys", "meters")  # what a service that has some cannot do without


class Refused(Exception):
    """Nothing is changed. The message is for the operator, one problem a line."""


class Reloaded(msgspec.Struct):
    """What came of it."""

    in_force: list[str]  # sections that changed
    after_restart: list[str]  # settings that differ from those in force, and stay as they are until then


class Origin(NamedTuple):
    """Where the settings of a command came from, and which sections of it follow."""

    file: str
    options: Mapping[str, object]
    defaults: Mapping[str, object]
    follows: tuple[str, ...]
    configured: Settings  # as they were read, before a command completed them

    def read(self, content: bytes) -> Settings:
        """`content`: what is in the file. Raises Refused. Which Redis is asked stays as it is, whatever became of its files."""
        try:
            return load_settings(
                self.file, environment=os.environ, options=self.options, defaults=self.defaults, content=content, asks_redis=False
            )
        except BadSettings as bad:
            raise Refused("\n".join(map(str, bad.problems))) from None


def origin_of(
    file: str | None, options: Mapping[str, object], defaults: Mapping[str, object], follows: tuple[str, ...], configured: Settings
) -> Origin | None:
    return None if file is None else Origin(os.path.abspath(file), options, defaults, follows, configured)


def compare(origin: Origin, running: Settings, read: Settings) -> Reloaded:
    """Raises Refused."""
    for section in _NEEDED:
        if section in origin.follows and getattr(running, section) and not getattr(read, section):
            raise Refused(f"{origin.file}: there is no [[{section}]] any more, and nobody could be served: put one back.")
    if "tenants" in origin.follows:
        _refuse_other_tenants(origin.file, running, read)
    return Reloaded(
        in_force=[section for section in origin.follows if getattr(running, section) != getattr(read, section)],
        after_restart=[".".join(path) for path, _ in scalar_fields() if _value(origin.configured, path) != _value(read, path)],
    )


def together(outcomes: Sequence[Reloaded]) -> Reloaded:
    """Of several processes of a node: what changes in some of them, as when others followed at an earlier try, changes now."""
    return Reloaded(
        in_force=[section for section in OF_ALL if any(section in outcome.in_force for outcome in outcomes)],
        after_restart=list(dict.fromkeys(name for outcome in outcomes for name in outcome.after_restart)),
    )


def renewed(origin: Origin, running: Settings, read: Settings) -> Settings:
    return running.model_copy(update={section: getattr(read, section) for section in origin.follows})


def _refuse_other_tenants(file: str, running: Settings, read: Settings) -> None:
    """Everything that is kept of a tenant is kept under its number, and some of it may be on its way."""
    numbers = {tenant.name: tenant.number for tenant in running.tenants}
    names = {number: name for name, number in numbers.items()}
    if gone := sorted(numbers.keys() - {tenant.name for tenant in read.tenants}):
        raise Refused(
            f"{file}: the tenant {gone[0]!r} is not there any more, while usage of it may be on its way: leave it until the next restart. "
            "To shut it out now, take its keys away."
        )
    for tenant in read.tenants:
        if (before := numbers.get(tenant.name, tenant.number)) != tenant.number:
            raise Refused(f"{file}: the tenant {tenant.name!r} has the number {before}, which never changes, and not {tenant.number}.")
        if (name := names.get(tenant.number, tenant.name)) != tenant.name:
            raise Refused(f"{file}: the number {tenant.number} is that of the tenant {name!r}, and never that of {tenant.name!r}.")


def _value(settings: Settings, path: tuple[str, ...]) -> object:
    value: object = settings
    for name in path:
        value = getattr(value, name)
    return value


class LiveSettings:
    """The settings in force in one process."""

    def __init__(
        self,
        origin: Origin | None,
        settings: Settings,
        background: Background,
        *,
        check: Callable[[Settings], Awaitable[None]],
        follow: Callable[[Settings], Awaitable[None]],
        settle: Callable[[Settings], Awaitable[None]] | None = None,
    ) -> None:
        """`check` raises Refused for what this process cannot follow; `follow` puts in force what was checked. Between them `settle` makes
        it known beyond this node, and may raise Refused as well. Reading is done in the background: a file with thousands of tenants
        takes a while."""
        self.settings = settings
        self._origin = origin
        self._background = background
        self._check = check
        self._follow = follow
        self._settle = settle
        self._read: tuple[bytes, Settings] | None = None  # the last content

    async def content(self) -> bytes:
        """What is in the file now. Raises Refused."""
        return await self._background.run(_content, self._known.file)

    @property
    def _known(self) -> Origin:
        if self._origin is None:
            raise Refused("There is no file to read again: this Parshall was started without --config.")
        return self._origin

    async def check(self, content: bytes) -> Reloaded:
        """What would come of it. Raises Refused."""
        read = await self._settings(content)
        outcome = compare(self._known, self.settings, read)
        await self._check(renewed(self._known, self.settings, read))
        return outcome

    def tenants(self, content: bytes) -> Sequence[TenantSettings]:
        """Of what was checked."""
        assert self._read is not None and self._read[0] == content, "check first"
        return self._read[1].tenants

    async def settle(self, content: bytes) -> None:
        """What was checked is about to be put in force. By one process for all of its node."""
        if self._settle is not None:
            await self._settle(renewed(self._known, self.settings, await self._settings(content)))

    async def follow(self, content: bytes) -> None:
        """Put in force what was checked."""
        settings = renewed(self._known, self.settings, await self._settings(content))
        await self._follow(settings)
        self.settings = settings

    async def _settings(self, content: bytes) -> Settings:
        if self._read is None or self._read[0] != content:
            self._read = content, await self._background.run(self._known.read, content)
        return self._read[1]


def _content(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise Refused(f"{file}: cannot be read: {error.strerror}") from error


def with_kept(origin: Origin | None, settings: Settings, kept: bytes | None) -> Settings:
    """For a process that starts when the configuration was read again before. Raises Refused."""
    if origin is None or kept is None:
        return settings
    return renewed(origin, settings, origin.read(kept))
