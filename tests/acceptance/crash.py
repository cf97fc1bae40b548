"""One run of crashes: real services, workers on ports of their own, kill -9 at seeded random moments, senders that go elsewhere.

Belongs here: the run, from an empty folder to what came out of it. Must not know: how many crashes, which seeds, what is asserted.

Workers are separate `parshall ingest` roles, each with a data folder, that share Redis, Kafka and PostgreSQL. Now and then all connections
of Redis are cut while calls are under way, so that some are executed without their reply and sent again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests import services
from tests.acceptance.comparison import Differences
from tests.acceptance.edge import Role, write_config
from tests.acceptance.exactness import make_traffic
from tests.acceptance.fleet import compare_fleet, services_sections
from tests.acceptance.patches import ROWS, ROWS_KEY
from tests.acceptance.senders import PATIENCE_S, Piece, Record, Route, Sender, Sending
from tests.oracle.outcome import Outcome
from tests.tcp_proxy import TcpProxy

WORKERS = 3
SENDERS = 16
SIZES = (1, 3, 10, 30, 100, 300)
AGAIN_PER_MILLE = 100
DEADLINE_MS = 2_000  # a request that waits for a dead worker's claims is told to come again soon

# Rows of PROTOCOL.md's verdict table that crashes of workers cannot bring about: a call sent again after a later one of its own incarnation
# has taken what it asks for; an incarnation that Redis has forgotten (Redis is not killed here).
OUT_OF_REACH = {"mine, a later call", "other unknown"}


@dataclass
class Run:
    differences: Differences
    outcome: Outcome
    record: Record
    rows: dict[str, int]  # verdict table row -> how often
    kills: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """What happened, for whoever reads the output."""
        yield f"tries by status (0: no answer): {dict(sorted(self.record.tries.items()))}; killed: {dict(self.kills)}"
        yield f"refusals: {dict(self.record.refusals)}"
        for row in ROWS:
            yield f"{self.rows.get(row, 0):10}  {row}"

    @property
    def rows_missing(self) -> set[str]:
        return {row for row in ROWS if not self.rows.get(row)} - OUT_OF_REACH


# Sends a piece to one URL first, then as any other.
SendTo = Callable[[Piece, str], Coroutine[Any, Any, None]]


class Again(NamedTuple):
    """A request that is sent to the victim alone, and again to another worker once the victim is back."""

    sending: Sending
    piece: Piece
    send_to: SendTo


class Crashing:
    """Kills one role after the other, spread over the traffic, each time in another way, and starts it again."""

    def __init__(
        self, workers: Sequence[Role], rater: Role, redis: services.Redis, proxy: TcpProxy, pick: random.Random, crashes: int
    ) -> None:
        self._workers = workers
        self._rater = rater
        self._redis = redis
        self._proxy = proxy  # between the workers and Redis
        self._pick = pick
        self._crashes = crashes
        self.kills: Counter[str] = Counter()
        self._under_way: asyncio.Task[None] | None = None

    async def run(self, sending: Sending, record: Record, requests: int, reserved: Sequence[Piece], send_to: SendTo) -> None:
        """`requests`: how many answers there will be at least. `reserved`: pieces that nobody else sends, one a crash."""
        ways = [self._after_an_answer, self._before_its_journal, self._after_a_cut, self._anywhere, self._after_a_pause]
        for number in range(self._crashes):
            await _until(partial(_so_many, record, requests * (2 * number + 1) // (2 * self._crashes)))
            victim = self._rater if number % 5 == 4 else self._pick.choice(self._workers)
            way = self._anywhere if victim is self._rater else ways[number % 5] if number < 5 else self._pick.choice(ways)
            again = Again(sending, reserved[number], send_to)
            await way(victim, again)
            self.kills[f"{victim.name}{way.__name__.replace('_', ' ')}"] += 1
            await asyncio.sleep(self._pick.choice([0, 300, 1000]) / 1000)
            victim.start()
            if victim is not self._rater:
                await victim.wait_ready()
            if self._under_way is not None:
                await self._under_way
                self._under_way = None
            others = [worker for worker in self._workers if worker is not victim]
            await send_to(reserved[number], self._pick.choice(others).url)

    async def _after_an_answer(self, victim: Role, again: Again) -> None:
        """What it answered is on its disk, but nobody was told: its mark would go out with the next call, or 50 ms later."""
        await again.sending.gate.close()
        try:
            await again.send_to(again.piece, victim.url)
            victim.kill()
        finally:
            again.sending.gate.open()

    async def _anywhere(self, victim: Role, again: Again) -> None:
        await asyncio.sleep(self._pick.randrange(50) / 1000)
        await asyncio.to_thread(victim.kill)

    async def _after_a_pause(self, victim: Role, again: Again) -> None:
        """Calls queue up before Redis; when it goes on they are all executed at about the time of the kill."""
        self._redis.pause()
        await asyncio.sleep(0.1)
        self._redis.resume()
        await asyncio.sleep(self._pick.randrange(5) / 1000)
        await asyncio.to_thread(victim.kill)

    async def _before_its_journal(self, victim: Role, again: Again) -> None:
        """Its call lies before Redis, which stands still, when it is killed: it will be executed for a dead incarnation."""
        await again.sending.gate.close()
        self._redis.pause()
        try:
            sent = asyncio.create_task(again.send_to(again.piece, victim.url))
            await asyncio.sleep(0.2)
            victim.kill()
        finally:
            self._redis.resume()
            again.sending.gate.open()
        self._under_way = sent  # it is answered elsewhere, once the victim is back and has said how far its journal goes

    async def _after_a_cut(self, victim: Role, again: Again) -> None:
        """Its call is executed, but the reply is lost with the connection: it is sent again under the same number."""
        await again.sending.gate.close()
        self._proxy.replies_lost = True
        try:
            sent = asyncio.create_task(again.send_to(again.piece, victim.url))
            await asyncio.sleep(0.3)
        finally:
            self._proxy.reset()
            self._proxy.replies_lost = False
            again.sending.gate.open()
        await sent
        self.kills["redis connections"] += 1
        await asyncio.to_thread(victim.kill)


def _so_many(record: Record, answers: int) -> bool:
    return len(record.sent) >= answers


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def routes(workers: Sequence[Role], pick: random.Random) -> Route:
    """A retry goes to another worker than the first try; a fifth of all retries to two at once."""

    def route(attempt: int, last: Sequence[str]) -> Sequence[str]:
        others = [worker.url for worker in workers if worker.url not in last[:1]]
        if attempt == 0:
            return [pick.choice(workers).url]
        return pick.sample(others, 2) if pick.random() < 0.2 else [pick.choice(others)]

    return route


async def run_crashes(
    folder: Path,
    *,
    redis: services.Redis,
    kafka: services.Kafka,
    database: str,
    seed: int,
    events: int,
    crashes: int,
    patches: Sequence[str] = (),
) -> Run:
    now, pick = datetime.now(UTC), random.Random(seed)
    proxy = TcpProxy(("127.0.0.1", redis.port))
    await proxy.start()
    services_used = services_sections(redis=f"redis://{proxy.address}", kafka=kafka.address, postgres=database)
    keys = write_config(folder, now=now, deadline_ms=DEADLINE_MS, more=services_used)
    traffic = make_traffic(folder, seed, events, now)
    config = str(folder / "parshall.toml")
    workers = [
        Role(
            f"worker-{number}",
            ["ingest", "--config", config, "--data", str(folder / f"data-{number}")],
            folder,
            patches=[*patches, "count_rows"],
        )
        for number in range(WORKERS)
    ]
    rater = Role("rater", ["rate", "--config", config], folder)
    roles = [rater, *workers]
    crashing = Crashing(workers, rater, redis, proxy, pick, crashes)
    try:
        for role in roles:
            role.start()
        await asyncio.gather(*(role.wait_ready() for role in workers))
        record = Record()
        sending = Sending(seed=seed, senders=SENDERS, sizes=SIZES, again_per_mille=AGAIN_PER_MILLE)
        pieces = sending.pieces(traffic)
        reserved, rest = pieces[:crashes], pieces[crashes:]
        route = routes(workers, random.Random(f"{seed}/routes"))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session:

            async def send_to(piece: Piece, url: str) -> None:
                first_there: Route = lambda attempt, last: [url] if attempt == 0 else route(attempt, last)  # noqa: E731
                await Sender(session, keys, record, pick, first_there).send(piece)

            killer = asyncio.create_task(crashing.run(sending, record, len(rest), reserved, send_to))
            await sending.send_all(rest, keys, record, route)
            await killer
            await sending.send_ordered(traffic, keys, record, route)
        assert all(role.running for role in workers), "\n".join(role.log_end() for role in workers)
        expected, differences = await compare_fleet(folder, workers, keys, record, now)
        return Run(differences, expected, record, verdict_rows(redis), crashing.kills)
    finally:
        for role in roles:
            role.kill()
        await proxy.stop()


def verdict_rows(redis: services.Redis) -> dict[str, int]:
    import redis as client

    with client.Redis(port=redis.port) as connection:
        return {row.decode(): int(times) for row, times in connection.hgetall(ROWS_KEY).items()}
