"""What `parshall resend` puts into a log, from journals of random lives: all that was acknowledged and nothing else, as it was produced.
(The command: tests/acceptance/test_resend.py; which records are named: tests/unit/test_resend.py.)"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from buffer.disk import RealDisk
from buffer.journal_records import FlushPart, Opened
from buffer.local_log import LocalLog
from buffer.local_source import LocalSource
from parshall import resend
from parshall.audit_journal import JournalSide
from parshall.resend import InLog, Wanted
from tests.journal_driver import DIRECTORY
from tests.lossy_disk import Inline
from tests.unit.audited_writer import PARTITIONS, TENANTS, AuditedWriter

SEEDS = (26, 30, 42, 44, 46, 74)  # a crash cut off a flush of which the journal still has some
ALL = Wanted(None, None, None, None)

Found = tuple[int, int, bytes]  # partition, number, value


async def lived(seed: int, folder: Path) -> tuple[AuditedWriter, str]:
    """A writer that crashed now and then, and its journal on a real disk."""
    writer = AuditedWriter(seed)
    await writer.live(160)
    directory = folder / str(seed)
    directory.mkdir()
    for path, content in writer.disk.contents().items():
        if os.path.dirname(path) == DIRECTORY:
            (directory / os.path.basename(path)).write_bytes(content)
    return writer, str(directory)


async def sent(directory: str, wanted: Wanted, in_log: InLog | None, *, dry_run: bool = False) -> tuple[list[Found], list[int]]:
    """What is in a new log then; and the numbers that are told."""
    with tempfile.TemporaryDirectory() as folder:
        log = LocalLog(folder, disk=RealDisk(), background=Inline(), entropy=os.urandom, partitions=PARTITIONS)
        await log.open()
        told: dict[resend.Chain, list[int]] = {}
        await resend._resend_journal(log, directory, wanted, in_log, told, dry_run=dry_run)
        await log.close()
        source = LocalSource(folder, disk=RealDisk(), background=Inline(), entropy=os.urandom)
        await source.open(_from_the_start)
        found = [(int(one.headers["partition"]), int(one.headers["n"]), one.value) for one in await source.poll(10_000, 0)]
        await source.close()
    return found, [n for numbers in told.values() for n in numbers]


async def _from_the_start(_streams: Iterable[str]) -> Mapping[str, int]:
    return {}


async def test_all_that_was_acknowledged_is_sent_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush that a crash cut off is not: its numbers were given to other bytes."""
    monkeypatch.setattr(resend, "_AT_ONCE", 4)
    for seed in SEEDS:
        writer, directory = await lived(seed, tmp_path)
        records = writer.records()
        assert any(isinstance(before, FlushPart) and isinstance(one, Opened) for before, one in pairwise(records)), f"seed {seed}"
        acknowledged = JournalSide(TENANTS).read(records).acknowledged
        found, told = await sent(directory, ALL, InLog())
        assert {(writer.writer, *place) for *place, _ in found} == acknowledged.keys()
        assert len(found) == len(acknowledged) == len(told), "each once"
        assert set(found) <= {(record.partition, record.n, record.value) for record in writer.log}
        nothing, told = await sent(directory, ALL, InLog(), dry_run=True)
        assert nothing == [] and len(told) == len(acknowledged)


async def test_only_what_the_log_lacks_or_what_is_named_is_sent(tmp_path: Path) -> None:
    writer, directory = await lived(3, tmp_path)
    everything, _ = await sent(directory, ALL, InLog())
    lost = everything[len(everything) // 2]
    in_log = InLog()
    for one in everything:
        if one != lost:
            in_log.add((writer.writer, one[0]), one[1])
    assert (await sent(directory, ALL, in_log))[0] == [lost]
    named = Wanted(writer.writer, lost[0], lost[1], lost[1])
    assert (await sent(directory, named, None))[0] == [lost]
    assert (await sent(directory, named._replace(writer="ab" * 16), None))[0] == []
