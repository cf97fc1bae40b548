"""Everything that a chaos run plays with: real services, two ingest workers and two raters, and a TCP proxy on each way between them.

Belongs here: what runs, how it is wired, starting again whatever ends by itself. Must not know: which faults there are, what is sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from parshall.errors import REFUSED
from tests import services
from tests.acceptance.edge import Role, write_config
from tests.acceptance.fleet import services_sections
from tests.chaos.plan import KAFKA_LINK, LINKS, ON_SMALL_DISK, POSTGRES_LINK, RATERS, REDIS_LINKS, SENDERS_LINKS, WORKERS
from tests.chaos.redis_pair import RedisPair
from tests.small_disk import SmallDisk, small_disk
from tests.tcp_proxy import TcpProxy

DEADLINE_MS = 2_000  # a request that waits for a dead worker's claims is told to come again soon
_RESTART_S = 0.2
_DISKS = {ON_SMALL_DISK: 96 << 20, "postgres": 768 << 20}  # bytes: several times what a run needs
ANY_ROOM_WILL_DO = {"PARSHALL_JOURNAL_MIN_FREE_BYTES": "0"}  # else it would refuse, long before its disk is full


class GaveUp(Exception):
    """A role refuses to go on: a person would have to decide. Nothing that a run does may lead there."""


@dataclass
class Stage:
    """Parts by the names that a plan uses."""

    folder: Path
    keys: dict[str, str]
    roles: dict[str, Role]
    links: dict[str, TcpProxy]
    redis: RedisPair
    kafka: services.Kafka
    postgres: services.Postgres
    disks: dict[str, SmallDisk]  # of the parts that have one of their own
    busy: dict[str, asyncio.Lock]  # held while a fault has its way with a part
    ended: Counter[str] = field(default_factory=Counter)  # roles that ended by themselves, and how; they were started again

    @property
    def workers(self) -> list[Role]:
        return [self.roles[name] for name in WORKERS]

    @property
    def urls(self) -> list[str]:
        """Where senders send to."""
        return [f"http://{self.links[link].address}" for link in SENDERS_LINKS]

    def data_of(self, worker: str) -> Path:
        return _data_of(worker, self.folder, self.disks)

    async def keep(self) -> None:
        """As an init system does: what ended without being killed is started again."""
        while True:
            await asyncio.sleep(_RESTART_S)
            for name, role in self.roles.items():
                if not self.busy[name].locked() and not role.running:
                    self.note_end(role)
                    role.start()

    def note_end(self, role: Role) -> None:
        code = role.exit_code
        if code == REFUSED:
            raise GaveUp(f"{role.name} refuses to go on:\n{role.log_end()}")
        self.ended[f"{role.name.rpartition('-')[0]}, exit code {code}"] += 1


@asynccontextmanager
async def stage(folder: Path, now: datetime, layout: str, patches: Sequence[str] = ()) -> AsyncIterator[Stage]:
    """With everything running and ready."""
    links = {name: TcpProxy() for name in LINKS}
    for link in links.values():
        await link.start()
    with ExitStack() as stack:
        # Claims outlive a kill: with every command in the file before it is answered, "data kept" is what it says.
        settings = {"appendonly": "yes", "appendfsync": "always"}
        primary, spare = [await asyncio.to_thread(stack.enter_context, services.redis_server(**settings)) for _ in range(2)]
        through = f"PLAINTEXT://{links[KAFKA_LINK].address}"
        kafka = await asyncio.to_thread(stack.enter_context, services.kafka_broker(advertised__listeners=through))
        disks = {name: disk for name, size in _DISKS.items() if (disk := stack.enter_context(small_disk(size))) is not None}
        settings = {"max_connections": "100", "max_wal_size": "128MB"}
        postgres = await asyncio.to_thread(stack.enter_context, services.postgres_server(disks.get("postgres"), **settings))
        await asyncio.to_thread(postgres.create_database, "parshall")
        links[KAFKA_LINK].server = ("127.0.0.1", kafka.port)
        links[POSTGRES_LINK].server = postgres.folder / ".s.PGSQL.5432"
        redis = RedisPair(primary, spare, [links[name] for name in REDIS_LINKS])
        await redis.start()
        addresses = {"kafka": links[KAFKA_LINK].address, "postgres": f"postgresql://parshall@{links[POSTGRES_LINK].address}/parshall"}
        sections = services_sections(redis=f"redis://{links[REDIS_LINKS[0]].address}", layout=layout, **addresses)
        keys = write_config(folder, now=now, deadline_ms=DEADLINE_MS, more=sections)
        roles = _roles(folder, links, disks, patches)
        for worker, link in zip(WORKERS, SENDERS_LINKS, strict=True):
            links[link].server = ("127.0.0.1", roles[worker].port)
        busy = {name: asyncio.Lock() for name in (*roles, *links, "redis", "kafka", "postgres")}
        try:
            for role in roles.values():
                role.start()
            await asyncio.gather(*(roles[name].wait_ready() for name in WORKERS))
            yield Stage(folder, keys, roles, links, redis, kafka, postgres, disks, busy)
        finally:
            for role in roles.values():
                role.kill()
            await redis.stop()
            for link in links.values():
                await link.stop()


def _data_of(worker: str, folder: Path, disks: Mapping[str, SmallDisk]) -> Path:
    return (disks[worker].path if worker in disks else folder) / f"data-{worker}"


def _roles(folder: Path, links: Mapping[str, TcpProxy], disks: Mapping[str, SmallDisk], patches: Sequence[str]) -> dict[str, Role]:
    config = ["--config", str(folder / "parshall.toml")]
    roles = {}
    for name, link in zip(WORKERS, REDIS_LINKS, strict=True):
        own = ["--data", str(_data_of(name, folder, disks)), "--redis", f"redis://{links[link].address}"]
        roles[name] = Role(name, ["ingest", *config, *own], folder, patches=patches)
        if name in disks:
            roles[name].environment = dict(ANY_ROOM_WILL_DO)
    for name in RATERS:
        roles[name] = Role(name, ["rate", *config], folder, patches=patches)
    return roles
