"""The real writer, its journal, claims and log, when it cannot take everything: who is refused, in which order the others are answered."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from structlog.testing import capture_logs

from buffer.disk import RealDisk
from buffer.flush_tuner import FlushTuner
from ingest.agreed_meters import CannotStart
from ingest.batch import Batch
from ingest.decode import Decoder
from ingest.sink import Unavailable
from ingest.writer import Writer
from parshall.data_folder import DataFolder
from parshall.settings import Settings
from parshall.wiring import REAL, World, clock_us, make_decoder, make_writer, meter_numbers, read_catalogue
from parshall.worker import not_ready

FLOOD, TRICKLE = 1, 2
SMALL_JOURNAL = 8 << 20  # smaller than settings may make it
EVENTS = 5_000  # two such requests do not fit in one call


class Running(NamedTuple):
    writer: Writer
    decoder: Decoder

    def batch(self, tenant: int, name: str, events: int, subjects: int = 1) -> Batch:
        time = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        shared = {"specversion": "1.0", "type": "hit", "source": "s", "time": time}
        body = json.dumps([{**shared, "id": f"{name}-{n}", "subject": f"customer {n % subjects}"} for n in range(events)]).encode()
        return self.decoder.decode_batch(tenant, body, clock_us())


@asynccontextmanager
async def running(folder: Path, world: World = REAL, journal_bytes: int = 1 << 30, **ingest: int) -> AsyncIterator[Running]:
    settings = Settings.model_validate(
        {
            "ingest": ingest,
            "tenants": [{"name": "flood", "number": FLOOD}, {"name": "trickle", "number": TRICKLE}],
            "meters": [{"name": "hits", "event_type": "hit", "aggregation": "count"}],
        }
    )
    settings = settings.model_copy(update={"journal": settings.journal.model_copy(update={"max_bytes": journal_bytes})})
    data = DataFolder(str(folder / "data")).make()
    writer, counter_log = await make_writer(settings, data, data.journal(0), FlushTuner(3_600_000, 1_000_000), world)
    await writer.open()
    catalogue = read_catalogue(settings.meters)
    decoder = make_decoder(settings, catalogue, meter_numbers(catalogue, writer))
    serving = asyncio.create_task(writer.run())
    async with asyncio.timeout(30):
        while not writer.ready:
            await asyncio.sleep(0.01)
    yield Running(writer, decoder)
    await writer.drain(30)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await counter_log.close()
    await writer.journal.close()


async def test_a_flood_that_waits_is_refused_and_the_next_tenant_is_not(tmp_path: Path) -> None:
    """All within one turn of the loop, so that nothing has been claimed when the trickle comes."""
    async with running(tmp_path, max_waiting_events=8 * EVENTS) as it:
        batches = [it.batch(FLOOD, str(number), EVENTS) for number in range(12)]
        small = [it.batch(TRICKLE, str(number), 10) for number in range(3)]
        until = asyncio.get_running_loop().time() + 30
        taken, refusals = [], []
        for batch in batches:
            try:
                taken.append(it.writer.submit(batch, until))
            except Unavailable as refusal:
                refusals.append(refusal)
        assert (len(taken), len(refusals)) == (6, 6), "three quarters of the bound"
        assert all(refusal.overloaded for refusal in refusals), "it is its own doing"
        assert {refusal.retry_after_s for refusal in refusals} == {1, 2, 3}, "they come again apart"
        answered: list[str] = []
        for future in taken:
            future.add_done_callback(lambda _: answered.append("flood"))
        trickle = [it.writer.submit(batch, until) for batch in small]
        for future in trickle:
            future.add_done_callback(lambda _: answered.append("trickle"))
        outcomes = await asyncio.gather(*taken, *trickle)
        assert [outcome.accepted for outcome in outcomes] == [EVENTS] * 6 + [10] * 3
        assert answered.index("trickle") <= 1, "it takes turns with the flood"
        assert answered[-3:] == ["flood"] * 3, answered
        assert it.writer.refused == {(FLOOD, "waiting"): 6}
        assert it.writer.waiting_events == 0
        assert it.writer.unanswered == {FLOOD: 6 * EVENTS}


class Disk(RealDisk):
    free = 0

    def free_bytes(self, directory: str) -> int:
        return self.free


async def test_without_room_for_the_journal_it_says_so_everywhere_until_there_is_some(tmp_path: Path) -> None:
    disk = Disk()
    why = "The journal has no room left: its disk has 0 bytes free, and 268435456 are kept free (journal.min_free_bytes)."
    with capture_logs() as logs:
        async with running(tmp_path, World(disk=disk)) as it:
            until = asyncio.get_running_loop().time() + 30
            with pytest.raises(Unavailable) as refused:
                it.writer.submit(it.batch(TRICKLE, "a", 1), until)
            assert str(refused.value) == why and not refused.value.overloaded
            assert it.writer.serves and not_ready(it.writer, draining=False) == [why]
            await asyncio.sleep(0.3)  # it is looked at ten times a second
            disk.free = 1 << 30
            async with asyncio.timeout(10):
                while not_ready(it.writer, draining=False):  # and nobody sends meanwhile
                    await asyncio.sleep(0.1)
            assert (await it.writer.submit(it.batch(TRICKLE, "a", 1), until)).accepted == 1
            await asyncio.sleep(0.3)
    told = [(line["log_level"], line["event"], line.get("reason")) for line in logs if line["event"] != "flushed"]
    assert told == [("error", "requests are refused", why), ("info", "the journal has room again", None)]


async def test_a_journal_that_has_grown_to_its_bound_says_so_before_it_is_quite_there(tmp_path: Path) -> None:
    """What refuses a batch is the room that it needs, which is more than what is left by then."""
    with capture_logs() as logs:
        async with running(tmp_path, journal_bytes=SMALL_JOURNAL) as it:
            until = asyncio.get_running_loop().time() + 60
            number = 0
            with pytest.raises(Unavailable) as refused:
                while True:
                    number += 1
                    await it.writer.submit(it.batch(FLOOD, str(number), EVENTS, subjects=EVENTS), until)
            assert it.writer.journal.kept_bytes < SMALL_JOURNAL
            why = rf"The journal has no room left: it holds \d+ of the {SMALL_JOURNAL} bytes that it may \(journal.max_bytes\)\."
            assert re.fullmatch(why, str(refused.value))
            (reason,) = not_ready(it.writer, draining=False)
            assert re.fullmatch(why, reason)
            await asyncio.sleep(0.3)
    assert any(line["event"] == "requests are refused" and re.fullmatch(why, line["reason"]) for line in logs)


async def test_who_never_reached_redis_stops_at_once(tmp_path: Path) -> None:
    settings = Settings.model_validate({"redis": {"url": "redis://127.0.0.1:1"}})
    data = DataFolder(str(tmp_path / "data")).make()
    writer, counter_log = await make_writer(settings, data, data.journal(0), FlushTuner(3_600_000, 1_000_000))
    await writer.open()
    serving = asyncio.create_task(writer.run())
    await asyncio.sleep(0.2)
    async with asyncio.timeout(30):
        await writer.drain(3600)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await counter_log.close()
    await writer.journal.close()


async def test_an_old_copy_of_the_journal_is_not_opened(tmp_path: Path) -> None:
    """Also where no Redis remembers: its claims would be those of that day. What it told the registry since gives it away."""
    journal, copy, newest = tmp_path / "data" / "writers" / "0", tmp_path / "copy", tmp_path / "newest"
    for _ in range(2):
        shutil.copytree(journal, copy, dirs_exist_ok=True) if journal.exists() else None
        async with running(tmp_path) as service:
            await service.writer.submit(service.batch(TRICKLE, "e", 1), asyncio.get_running_loop().time() + 10)
    journal.rename(newest)
    shutil.copytree(copy, journal)
    with pytest.raises(
        CannotStart, match=r"This journal is an old copy: it ends with record \d+, and the registry of writers \(usage.writers\) knows"
    ):
        async with running(tmp_path):
            pass
    shutil.rmtree(journal)
    newest.rename(journal)
    async with running(tmp_path) as service:
        outcome = await service.writer.submit(service.batch(TRICKLE, "e", 1), asyncio.get_running_loop().time() + 10)
        assert (outcome.accepted, outcome.duplicate) == (0, 1)
