"""A catalogue that makes another kind of meter of one that a journal knows, or other writers count, does not start and is not followed:
what both count would be added up.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import pytest

from buffer.counter_log import LogUnavailable, UnfitLog
from buffer.counters import MeterDefinition
from buffer.disk import Thread
from buffer.journal import Journal, open_journal
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from buffer.local_log import LocalLog
from ingest.agreed_meters import CannotStart, check_meters
from ingest.auth import Principal, hash_key
from ingest.decode import to_us
from ingest.http import Edge
from ingest.sink import Unavailable
from parshall import wiring
from parshall.data_folder import DataFolder
from parshall.reload import Refused
from parshall.settings import Settings, load_settings
from parshall.wiring import WorkerParts, make_decoder, make_keys, meter_numbers, open_worker
from parshall.worker import http_limits
from parshall.worker_reload import WorkerReload
from tests.good_event import event

DEMO = Path(__file__).parents[2] / "parshall" / "demo.toml"
PEAK = 'name = "peak_connections"\nevent_type = "db.sample"\naggregation = "max"\nvalue = "data.connections"\n'
LOGINS = '\n[[meters]]\nname = "logins"\nevent_type = "user.login"\naggregation = "count"\n'


def settings_with(tmp_path: Path, peak: str) -> Settings:
    text = DEMO.read_text()
    assert PEAK in text
    (tmp_path / "parshall.toml").write_text(text.replace(PEAK, peak))
    return load_settings(str(tmp_path / "parshall.toml"), environment={}, options={})


class Closable(Protocol):
    async def close(self) -> None: ...


LEFT: dict[str, list[Closable]] = {}  # by data folder: what a process that does not start lets go of by ending


@pytest.fixture(autouse=True)
async def processes() -> AsyncIterator[None]:
    async def journal(directory: str, **parts: Any) -> Journal:
        opened = await open_journal(directory, **parts)
        LEFT.setdefault(directory.removesuffix("/writers/0"), []).append(opened)
        return opened

    with patch.object(wiring, "open_journal", journal):
        yield
    assert not LEFT


async def end(folder: DataFolder) -> None:
    for one in LEFT.pop(folder.path, ()):
        await one.close()


@asynccontextmanager
async def started(tmp_path: Path, peak: str, folder: str = "data") -> AsyncIterator[WorkerParts]:
    data = DataFolder(str(tmp_path / folder)).make()
    try:
        parts = await open_worker(settings_with(tmp_path, peak), data, 0, 1000)
        meter_numbers(parts.catalogue, parts.writer)
        yield parts
        await parts.counter_log.close()
    finally:
        await end(data)


async def start(tmp_path: Path, peak: str, folder: str = "data") -> None:
    async with started(tmp_path, peak, folder):
        pass


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (PEAK.replace('"max"', '"sum"'), "aggregation 'sum' in the catalogue and 'max' in this journal"),
        (PEAK + "scale = 2\n", "scale 2 in the catalogue and 0 in this journal"),
        (PEAK + 'window = "1m"\n', "window_s 60 in the catalogue and 3600 in this journal"),
        (PEAK + 'dimensions = { shard = "data.shard" }\n', "dimensions ('shard',) in the catalogue and () in this journal"),
    ],
    ids=["aggregation", "scale", "window", "dimensions"],
)
async def test_another_kind_of_meter_under_an_old_name(tmp_path: Path, changed: str, words: str) -> None:
    await start(tmp_path, PEAK)
    with pytest.raises(CannotStart, match="The meter 'peak_connections' has") as caught:
        await start(tmp_path, changed)
    assert words in str(caught.value)
    assert "give the changed meter a name of its own" in str(caught.value)


def test_of_two_kinds_in_one_journal_the_first_counts() -> None:
    """As for the rater. Builds that did not look may have let the second one in."""
    first, second = (MeterDefinition("peak", f"{number:016}", kind, 0, 3600, ()) for number, kind in enumerate(("max", "sum")))
    check_meters({7: second, 2: first}, [first])
    with pytest.raises(CannotStart, match="aggregation 'sum' in the catalogue and 'max' in this journal"):
        check_meters({7: second, 2: first}, [second])


async def test_what_may_change_under_a_name(tmp_path: Path) -> None:
    await start(tmp_path, PEAK)
    await start(tmp_path, PEAK.replace("data.connections", "data.open"))
    another = PEAK.replace("peak_connections", "connections").replace('"max"', '"sum"')
    await start(tmp_path, f"{PEAK}\n[[meters]]\n{another}")


# ---- a writer with a data folder of its own, beside others


@pytest.fixture(params=["local", "kafka"])
def shared_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type]:
    """One log behind the data folders `data` and `beside`; which kind it is."""
    DataFolder(str(tmp_path / "data")).make()
    if request.param == "local":
        (tmp_path / "beside").mkdir()
        os.symlink(tmp_path / "data" / "log", tmp_path / "beside" / "log")
        yield LocalLog
        return
    address, prefix = request.getfixturevalue("kafka").address, request.getfixturevalue("topic_prefix")

    def kafka_log(_: Settings, folder: DataFolder, *_world: object) -> KafkaLog:
        log = KafkaLog(KafkaCluster(address, prefix, create_topics=True, accept_unsafe=True))
        LEFT.setdefault(folder.path, []).append(log)
        return log

    with patch.object(wiring, "make_counter_log", kafka_log):
        yield KafkaLog


OTHERS = "for other writers (in the registry, usage.writers)"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (PEAK.replace('"max"', '"sum"'), f"aggregation 'sum' in the catalogue and 'max' {OTHERS}"),
        (PEAK + "scale = 2\n", f"scale 2 in the catalogue and 0 {OTHERS}"),
        (PEAK + 'window = "1m"\n', f"window_s 60 in the catalogue and 3600 {OTHERS}"),
        (PEAK + 'dimensions = { shard = "data.shard" }\n', f"dimensions ('shard',) in the catalogue and () {OTHERS}"),
    ],
    ids=["aggregation", "scale", "window", "dimensions"],
)
async def test_a_new_writer_that_counts_otherwise_than_others_does_not_start(
    tmp_path: Path, shared_log: type, changed: str, words: str
) -> None:
    async with started(tmp_path, PEAK) as parts:
        before = await parts.counter_log.registry()
        assert set(before.meters) == {definition.name for definition in parts.catalogue.definitions}
        with pytest.raises(CannotStart, match="The meter 'peak_connections' has") as caught:
            await start(tmp_path, changed + LOGINS, "beside")
        assert words in str(caught.value) and "give the changed meter a name of its own" in str(caught.value)
        assert await parts.counter_log.registry() == before, "nobody waits for it, and its new meter is free"
        renamed = changed.replace("peak_connections", "peak")
        await start(tmp_path, f"{PEAK}\n[[meters]]\n{renamed}{LOGINS}", "beside")
        assert (await parts.counter_log.registry()).meters.keys() == {*before.meters, "peak", "logins"}


async def test_of_two_new_writers_that_start_at_once_one_goes_on(tmp_path: Path, shared_log: type) -> None:
    """Both have read a registry without the meter before either writes."""
    define, both_have_read = shared_log.define, asyncio.Barrier(2)  # type: ignore[attr-defined]

    async def held_back(log: object, meters: Sequence[MeterDefinition]) -> Mapping[str, MeterDefinition]:
        await both_have_read.wait()
        found: Mapping[str, MeterDefinition] = await define(log, meters)
        return found

    with patch.object(shared_log, "define", held_back):
        kinds = (PEAK, PEAK.replace('"max"', '"sum"'))
        ends = await asyncio.gather(*map(start, (tmp_path, tmp_path), kinds, ("data", "beside")), return_exceptions=True)
    (refused,) = [end for end in ends if end is not None]
    assert isinstance(refused, CannotStart) and OTHERS in str(refused)
    winner = ends.index(None)
    async with started(tmp_path, kinds[winner], ("data", "beside")[winner]) as parts:
        registry = await parts.counter_log.registry()
        assert registry.meters["peak_connections"].aggregation == ("max", "sum")[winner]
        assert list(registry.writers) == [parts.journal.writer], "nobody waits for the claims of the other"


@pytest.fixture
def asked() -> Iterator[Counter[str]]:
    """How often the registry was read, and meters written to it."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        method = getattr(LocalLog, name)

        async def counted(log: LocalLog, *arguments: object) -> object:
            counts[name] += 1
            return await method(log, *arguments)

        return counted

    with patch.multiple(LocalLog, registry=counting("registry"), define=counting("define"), register=counting("register")):
        yield counts


async def test_where_all_meters_are_known_a_start_reads_the_registry_once_and_writes_nothing(tmp_path: Path, asked: Counter[str]) -> None:
    await start(tmp_path, PEAK)
    assert asked == {"registry": 1, "define": 1, "register": 1}
    asked.clear()
    await start(tmp_path, PEAK.replace("data.connections", "data.open"))
    assert asked == {"registry": 1}
    await start(tmp_path, PEAK + LOGINS)
    assert asked == {"registry": 2, "define": 1}


async def test_a_registry_of_an_earlier_build_learns_the_meters(tmp_path: Path) -> None:
    """Its writers are there, and what they count is not."""
    await start(tmp_path, PEAK)
    entries = list((tmp_path / "data" / "log" / "writers").glob("meter:*"))
    for entry in entries:
        entry.unlink()
    await start(tmp_path, PEAK)
    assert entries and all(entry.exists() for entry in entries)


# ---- a configuration that is read again


def reload_of(parts: WorkerParts, settings: Settings) -> WorkerReload:
    decoder = make_decoder(settings, parts.catalogue, meter_numbers(parts.catalogue, parts.writer))
    edge = Edge(parts.writer, decoder, make_keys(settings), http_limits(settings), clock_us=wiring.clock_us, not_ready=lambda: ())
    return WorkerReload(parts.writer, edge, parts.catalogue.definitions, Thread("files"))


async def test_a_new_meter_that_others_count_otherwise_is_not_followed(tmp_path: Path, shared_log: type) -> None:
    async with started(tmp_path, PEAK) as one, started(tmp_path, PEAK, "beside") as other:
        settings = settings_with(tmp_path, PEAK + LOGINS)
        reload = reload_of(one, settings)
        await reload.check(settings)
        assert "logins" not in (await one.counter_log.registry()).meters, "it may be refused by others yet"
        await reload.settle(settings)
        await reload.follow(settings)

        contrary = settings_with(tmp_path, PEAK + LOGINS.replace('"count"', '"max"\nvalue = "data.n"'))
        with pytest.raises(Refused, match=r"'logins' has aggregation 'max' in the catalogue and 'count' for other writers"):
            await reload_of(other, contrary).check(contrary)
        await reload_of(other, settings).check(settings)


async def test_what_was_read_again_counts_under_the_numbers_of_the_journal(tmp_path: Path) -> None:
    """A new meter stands first in the file, before all that have numbers already."""
    async with started(tmp_path, PEAK) as parts:
        settings = settings_with(tmp_path, PEAK)
        reload = reload_of(parts, settings)
        before = dict(parts.writer.tenants)
        text = (tmp_path / "parshall.toml").read_text()
        key = f'[[keys]]\ntenant = "beta"\nhash = "{hash_key("beta-key")}"\n'
        (tmp_path / "parshall.toml").write_text(f'[[tenants]]\nname = "beta"\nnumber = 88\n{key}{LOGINS}{text}')
        read = load_settings(str(tmp_path / "parshall.toml"), environment={}, options={})
        await reload.check(read)
        edge = reload._edge
        assert (parts.writer.tenants, edge.keys.principal("Bearer beta-key")) == (before, None), "others may refuse it yet"
        await reload.follow(read)
        assert parts.writer.tenants == {**before, 88: "beta"}
        assert edge.keys.principal("Bearer beta-key") == Principal(88, "beta", frozenset({"ingest"}))
        assert [meter.name for meter in reload.meters][:2] == ["logins", "requests"]
        sent = [event(type="user.login", data=...), event(id="2", type="db.sample", data={"connections": 7})]
        now_us = to_us(datetime.fromisoformat("2026-11-24T10:00:00Z"))
        deltas = edge.decoder.decode_batch(88, json.dumps(sent).encode(), now_us).deltas
        counted = {kind: [parts.writer.meters[int(key[0])].name for key in counters] for kind, counters in deltas.items()}
        assert counted == {"sum": ["logins"], "max": ["peak_connections"]}


async def test_a_log_that_is_not_fit_refuses_what_was_read_again(tmp_path: Path) -> None:
    async def unfit(*_: object) -> None:
        raise UnfitLog("it has lost entries")

    async with started(tmp_path, PEAK) as parts:
        more = settings_with(tmp_path, PEAK + LOGINS)
        with patch.object(LocalLog, "registry", unfit), pytest.raises(Refused, match="it has lost entries"):
            await reload_of(parts, settings_with(tmp_path, PEAK)).check(more)


async def test_of_two_nodes_that_read_contrary_meters_at_once_one_is_refused(tmp_path: Path, shared_log: type) -> None:
    async with started(tmp_path, PEAK) as one, started(tmp_path, PEAK, "beside") as other:
        settings = settings_with(tmp_path, PEAK + LOGINS)
        contrary = settings_with(tmp_path, PEAK + LOGINS.replace('"count"', '"max"\nvalue = "data.n"'))
        reloads = reload_of(one, settings), reload_of(other, contrary)
        await reloads[0].check(settings)
        await reloads[1].check(contrary)
        await reloads[0].settle(settings)
        with pytest.raises(Refused, match="'logins' has aggregation 'max'"):
            await reloads[1].settle(contrary)
        assert "logins" not in {meter.name for meter in other.writer.meters.values()}


async def test_a_log_that_is_away_holds_up_new_meters_only(tmp_path: Path) -> None:
    async def away(*_: object) -> None:
        raise LogUnavailable("it is away")

    async with started(tmp_path, PEAK) as parts:
        settings, more = settings_with(tmp_path, PEAK), settings_with(tmp_path, PEAK + LOGINS)
        reload = reload_of(parts, settings)
        with patch.object(LocalLog, "registry", away):
            with pytest.raises(Unavailable, match=r"how other writers count a new meter \(it is away\); nothing is changed\."):
                await reload.check(more)
            await reload.check(settings)
        await reload.check(more)
        with patch.object(LocalLog, "define", away):
            with pytest.raises(Unavailable, match="nothing is changed"):
                await reload.settle(more)
            await reload.settle(settings)
        await reload.settle(more)
