"""The real writer, its journal, claims and log, when it cannot take everything: who is refused, in which order the others are answered."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from structlog.testing import capture_logs

from buffer.counter_log import LogUnavailable, Rejected
from buffer.disk import RealDisk
from buffer.flush_tuner import FlushTuner
from buffer.journal import read_journal
from buffer.journal_records import Opened
from buffer.local_log import LocalLog
from dedupe.in_process import InProcessClaims
from dedupe.port import CallsSpent
from ingest.agreed_meters import CannotStart
from ingest.batch import Batch
from ingest.decode import Decoder
from ingest.sink import Unavailable
from ingest.writer import Writer, pause_before_asking_again_s
from parshall.data_folder import DataFolder
from parshall.errors import FAILED, REFUSED
from parshall.settings import Settings
from parshall.wiring import REAL, World, clock_us, make_decoder, make_writer, meter_numbers, read_catalogue
from parshall.worker import not_ready, why_stopped
from tests import services

FLOOD, TRICKLE = 1, 2
SMALL_JOURNAL = 8 << 20  # smaller than settings may make it
EVENTS = 5_000  # two such requests do not fit in one call


class Running(NamedTuple):
    writer: Writer
    decoder: Decoder
    serving: asyncio.Task[None]

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
    yield Running(writer, decoder, serving)
    if not serving.done():
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


async def test_rejected_events_are_bounded_while_the_counter_log_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold memory, and fill no counters. Whose they are is refused, the next tenant is not; all of them are in the log in the end."""
    log = {"away": True}

    async def produce_rejected(self: LocalLog, rejected: Sequence[Rejected]) -> None:
        if log["away"]:
            raise LogUnavailable("it is away")
        assert sum(len(one.body) for one in rejected) < 2 << 20
        produced.extend(rejected)

    def unknown_text(number: int, letter: str = "x") -> bytes:
        shared = {"specversion": "1.0", "type": "typo", "source": "s"}
        return json.dumps([{**shared, "id": f"{number}-{n}", "more": 300 * letter} for n in range(100)]).encode()

    def unknown(number: int) -> Batch:
        return it.decoder.decode_batch(FLOOD, unknown_text(number), clock_us())

    monkeypatch.setattr(LocalLog, "produce_rejected", produce_rejected)
    produced: list[Rejected] = []
    async with running(tmp_path) as it:
        held, until = it.writer.flusher.rejected_held, asyncio.get_running_loop().time() + 60
        held.limit = 4 << 20
        number = 0
        with pytest.raises(Unavailable, match="Too many rejected events of this tenant wait for the counter log") as refused:
            for number in range(1000):
                await it.writer.submit(unknown(number), until)
        assert refused.value.overloaded and held.limit // 2 < held.total < held.limit
        for tenant in (FLOOD, TRICKLE):
            assert (await it.writer.submit(it.batch(tenant, "a", 1), until)).accepted == 1, "nothing of it is rejected"
        assert it.writer.refused == {(FLOOD, "rejected"): 1}
        at_once = [it.decoder.decode_batch(TRICKLE, unknown_text(n, "y"), clock_us()) for n in range(1000)]
        taken = []
        with pytest.raises(Unavailable, match="Too many rejected events"):
            taken += (it.writer.submit(batch, until) for batch in at_once)
        assert held.total < held.limit, "what is under way is reckoned with"
        await asyncio.gather(*taken)
        log["away"] = False
        await it.writer.flusher.now()
        assert held.total == 0
        assert len({one.body for one in produced}) == len(produced) == 100 * (number + len(taken))
        assert len((await it.writer.submit(unknown(number), until)).rejections) == 100


async def test_a_rejected_event_takes_little_however_long_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka takes no record of more than a megabyte, and a flush that it refuses would be tried for ever."""

    async def produce_rejected(self: LocalLog, rejected: Sequence[Rejected]) -> None:
        produced.extend(rejected)

    monkeypatch.setattr(LocalLog, "produce_rejected", produce_rejected)
    produced: list[Rejected] = []
    async with running(tmp_path) as it:
        shared = {"specversion": "1.0", "type": "hit", "subject": "s", "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        long = [{**shared, "id": "i" * 2_000_000, "source": "s"}, {**shared, "id": "1", "source": "ü" * 2_000_000}]
        batch = it.decoder.decode_batch(FLOOD, json.dumps(long, ensure_ascii=False).encode(), clock_us())
        outcome = await it.writer.submit(batch, asyncio.get_running_loop().time() + 30)
        assert [(one.code, one.id, one.source) for one in outcome.rejections] == [
            ("too_long", "i" * 256, "s"),
            ("too_long", "1", "ü" * 256),
        ]
        await it.writer.flusher.now()
    told = [json.loads(one.body) for one in produced]
    assert [(one["id"], one["source"], one["cut"]) for one in told] == [("i" * 256, "s", True), ("1", "ü" * 256, True)]
    assert max(len(one.body) for one in produced) < 100_000


async def test_one_call_decides_however_often_an_id_comes(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        lane, until = it.writer.lanes[0], asyncio.get_running_loop().time() + 30

        def copies(*subjects: str) -> Batch:
            shared = {"specversion": "1.0", "type": "hit", "source": "s", "id": "same", "time": "2030-01-01T00:00:00Z"}
            body = json.dumps([{**shared, "subject": subject} for subject in subjects]).encode()
            return it.decoder.decode_batch(FLOOD, body, 1_893_456_000_000_000)

        calls = lane.next_call
        first = await it.writer.submit(copies(*["a"] * 3000, *["b"] * 2000), until)
        assert (first.accepted, first.duplicate) == (1, 2999)
        assert [(one.index, one.code) for one in first.rejections] == [(3000 + n, "conflict") for n in range(2000)]
        again = await it.writer.submit(copies(*[str(n) for n in range(3000)], "a"), until)
        assert (again.accepted, again.duplicate, len(again.rejections)) == (0, 1, 3000)
        assert lane.next_call == calls + 2
        both = [
            it.writer.submit(copies("a", "a"), until),
            it.writer.submit(copies("b"), until),
            it.writer.submit(it.batch(FLOOD, "x", 1), until),
        ]
        outcomes = await asyncio.gather(*both)
        assert [(one.accepted, one.duplicate, len(one.rejections)) for one in outcomes] == [(0, 2, 0), (0, 0, 1), (1, 0, 0)]
        assert lane.next_call == calls + 3, "within one turn of the loop they share a call"
        assert it.writer.flusher.live_counters == 2


async def test_what_stays_pending_is_asked_about_less_and_less_often(tmp_path: Path) -> None:
    """The writer that has claimed it is gone, and another request with it."""
    async with running(tmp_path) as it:
        lane, until = it.writer.lanes[0], asyncio.get_running_loop().time() + 3
        assert (await it.writer.submit(it.batch(FLOOD, "other", 1), until)).accepted == 1
        table, batch = cast(InProcessClaims, lane.claims).table, it.batch(FLOOD, "a", 1)
        (claims,) = [held[FLOOD] for held in table._claims.values()]
        claims[batch.digests[0]] = b"\xff" * 8 + batch.fingerprints  # of an incarnation that nobody knows
        calls = lane.next_call
        with pytest.raises(Unavailable, match="could not be settled before the deadline"):
            await it.writer.submit(batch, until)
        assert 2 < lane.next_call - calls < 12, "every 20 ms would be more than a hundred"
        assert it.writer.pending_events <= 1
    pauses = [pause_before_asking_again_s(asked) for asked in range(5000)]
    assert pauses == sorted(pauses) and pauses[0] == 0.02 and pauses[-1] < 1


async def test_who_has_used_up_its_call_numbers_ends_for_the_next_to_begin_anew(tmp_path: Path) -> None:
    """A tag has four bytes for them."""
    async with running(tmp_path) as it:
        (lane,) = it.writer.lanes
        lane.next_call = lane.next_append = 2**32 - 2**20 - 2
        outcome = await it.writer.submit(it.batch(TRICKLE, "a", 1), asyncio.get_running_loop().time() + 10)
        assert outcome.accepted == 1 and not it.serving.done()
        lane.next_call += 1
        lane.next_append += 1
        with pytest.raises(CallsSpent, match="has used up its call numbers"):
            await asyncio.wait_for(asyncio.shield(it.serving), 5)
        assert why_stopped(CallsSpent("…")) == FAILED, "it is started again"


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


async def test_a_certificate_that_went_since_the_settings_were_checked_leaves_nothing_open(
    tmp_path: Path, kafka: services.Kafka, topic_prefix: str
) -> None:
    """A producer of Kafka that is not closed says so when it goes, which is an error here."""
    url = f"rediss://:hidden@127.0.0.1:1?ssl_ca_certs={tmp_path}/ca.pem"
    of_kafka = {"bootstrap": kafka.address, "topic_prefix": topic_prefix, "create_topics": True, "accept_weak": True}
    settings = Settings.model_validate({"redis": {"url": url}, "kafka": of_kafka})
    data = DataFolder(str(tmp_path / "data")).make()
    with pytest.raises(CannotStart) as told:
        await make_writer(settings, data, data.journal(0), FlushTuner(3_600_000, 1_000_000))
    assert str(told.value) == (
        f"redis.url: ssl_ca_certs {tmp_path}/ca.pem cannot be read: No such file or directory: a PEM file that this user may read"
    )
    assert why_stopped(told.value) == REFUSED
    del told
    gc.collect()


async def test_an_opening_is_on_the_disk_before_anything_is_claimed_by_it(tmp_path: Path) -> None:
    """Else a crash might let the next one have its number of calls, and what it claimed would look as if that one had journalled it."""
    settings = Settings.model_validate({"tenants": [{"name": "flood", "number": FLOOD}]})
    data = DataFolder(str(tmp_path / "data")).make()
    writer, counter_log = await make_writer(settings, data, data.journal(0), FlushTuner(3_600_000, 1_000_000))
    await writer.open()
    on_disk = [record.incarnation for record in read_journal(data.journal(0), RealDisk()) if isinstance(record, Opened)]
    assert on_disk == [writer.incarnation]
    await counter_log.close()
    await writer.journal.close()


@pytest.mark.parametrize("event_type", ["hit", "of no meter"])
async def test_a_tenant_that_is_not_configured_any_more_is_missed_before_anything_is_served(tmp_path: Path, event_type: str) -> None:
    """Its usage could not be flushed, and with it nobody's: also where all that is left of it is that its events were rejected."""
    time = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    one = {"specversion": "1.0", "type": event_type, "source": "s", "time": time, "id": "1", "subject": "c"}
    async with running(tmp_path) as it:
        batch = it.decoder.decode_batch(TRICKLE, json.dumps([one]).encode(), clock_us())
        assert (await it.writer.submit(batch, asyncio.get_running_loop().time() + 10)).received == 1
        it.serving.cancel()  # nothing is flushed
        await asyncio.gather(it.serving, return_exceptions=True)
    settings = Settings.model_validate({"tenants": [{"name": "flood", "number": FLOOD}]})
    data = DataFolder(str(tmp_path / "data"))
    writer, counter_log = await make_writer(settings, data, data.journal(0), FlushTuner(3_600_000, 1_000_000))
    with pytest.raises(CannotStart, match=f"unflushed usage of tenant number {TRICKLE}, which the configuration no longer names"):
        await writer.open()
    await counter_log.close()
    await writer.journal.close()
    async with running(tmp_path) as it:
        await it.writer.flusher.now()
        assert it.writer.flusher.buffered(TRICKLE) == 0


async def test_an_old_copy_of_the_journal_is_not_opened(tmp_path: Path) -> None:
    """Also where no Redis remembers: its claims would be those of that day. What it told the registry since gives it away."""
    journal, copy, newest = tmp_path / "data" / "writers" / "0", tmp_path / "copy", tmp_path / "newest"
    time = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    body = json.dumps([{"specversion": "1.0", "type": "hit", "source": "s", "id": "e", "time": time, "subject": "c"}]).encode()

    async def sent(it: Running) -> tuple[int, int]:
        batch = it.decoder.decode_batch(TRICKLE, body, clock_us())
        outcome = await it.writer.submit(batch, asyncio.get_running_loop().time() + 10)
        return outcome.accepted, outcome.duplicate

    for _ in range(2):
        shutil.copytree(journal, copy, dirs_exist_ok=True) if journal.exists() else None
        async with running(tmp_path) as it:
            await sent(it)
    journal.rename(newest)
    shutil.copytree(copy, journal)
    with pytest.raises(
        CannotStart, match=r"This journal is an old copy: it ends with record \d+, and the registry of writers \(usage.writers\) knows"
    ):
        async with running(tmp_path):
            pass
    shutil.rmtree(journal)
    newest.rename(journal)
    async with running(tmp_path) as it:
        assert await sent(it) == (0, 1)
