"""A rolling restart under load: each worker in turn is told to end, drains, exits 0 and comes back; nobody loses or repeats anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests import services
from tests.acceptance.edge import Role, write_config
from tests.acceptance.exactness import make_traffic
from tests.acceptance.fleet import compare_fleet, services_sections
from tests.acceptance.senders import Record, Route, Sending

SEED = 41
EVENTS, EVENTS_A_SECOND = 10_000, 700
SIZES = (1, 3, 10, 30)
ROUNDS = 2


def the_other(workers: Sequence[Role], pick: random.Random) -> Route:
    """As a load balancer does: a request that found nobody goes to another worker."""

    def route(attempt: int, last: Sequence[str]) -> Sequence[str]:
        return [pick.choice([worker.url for worker in workers if attempt == 0 or worker.url != last[0]])]

    return route


async def test_workers_are_restarted_one_after_the_other(
    tmp_path: Path, own_kafka: services.Kafka, redis: services.Redis, database: str
) -> None:
    now = datetime.now(UTC)
    more = services_sections(redis=redis.url, kafka=own_kafka.address, postgres=database)
    keys = write_config(tmp_path, now=now, deadline_ms=2000, more=more)
    config = ["--config", str(tmp_path / "parshall.toml")]
    workers = [Role(f"worker-{n}", ["ingest", *config, "--data", str(tmp_path / f"data-{n}")], tmp_path) for n in range(2)]
    rater = Role("rater", ["rate", *config], tmp_path)
    traffic = make_traffic(tmp_path, SEED, EVENTS, now)
    record, restarts = Record(), 0
    sending = Sending(seed=SEED, senders=20, sizes=SIZES, again_per_mille=60, events_per_s=EVENTS_A_SECOND)
    route = the_other(workers, random.Random(SEED))
    try:
        for role in (rater, *workers):
            role.start()
        await asyncio.gather(*(worker.wait_ready() for worker in workers))
        async with asyncio.TaskGroup() as tasks:
            load = tasks.create_task(sending.send_all(sending.pieces(traffic), keys, record, route))
            for worker in workers * ROUNDS:
                answered = len(record.times)
                while len(record.times) < answered + 50 and not load.done():
                    await asyncio.sleep(0.01)
                restarts += not load.done()
                code = await asyncio.to_thread(worker.stop)
                assert code == 0, worker.log_end()
                worker.start()
                await worker.wait_ready()
        await sending.send_ordered(traffic, keys, record, route)
        _, differences = await compare_fleet(tmp_path, workers, keys, record, now)
    finally:
        for role in (rater, *workers):
            role.kill()
    assert differences == []
    assert restarts == ROUNDS * len(workers), "the load ended before the last restart"
    assert set(record.tries) <= {0, 200, 207, 422, 503}, record.tries
