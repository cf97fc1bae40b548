"""What a data folder itself says of a writer that is to be declared lost, where no Redis knows of it.

Belongs here: reasons not to go on. Must not know: what is lost, how a writer ends (writer_loss.py).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from parshall.errors import REFUSED, USAGE, Stop

if TYPE_CHECKING:
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings


def refuse_other_configuration(folder: DataFolder, settings: Settings, *, given: bool) -> None:
    """Up to which time events may have been counted depends on ingest.max_skew_s, so it must be that of `up`. Raises Stop."""
    from buffer.disk import RealDisk
    from parshall.known_tenants import OtherTenant, check, read
    from parshall.up import DEMO_TENANT

    try:
        if given:
            check(folder.tenants_file, RealDisk(), settings.tenants)
        elif read(folder.tenants_file, RealDisk()).keys() - {DEMO_TENANT}:
            raise Stop(f"{folder.path} was used with a configuration: give it with --config, as its max_skew_s is needed.", USAGE)
    except OtherTenant as error:
        raise Stop(f"This is not the configuration of {folder.path}: {error}", USAGE) from error


def refuse_living(folder: DataFolder, writer: bytes, dead_since_us: int | None) -> None:
    """Raises Stop."""
    from parshall.data_folder import journals_below

    for directory in journals_below(folder.path, ()):
        if _writer_of(directory) == writer:
            raise Stop(
                f"The journal of writer {writer.hex()} is in {directory}, and `parshall up` goes on from there: nothing is lost. "
                "Where it cannot be used any more, move it out of the data folder first.",
                REFUSED,
            )
    wrote_us = _last_wrote_us(f"{folder.log}/counters/{writer.hex()}")
    if dead_since_us is not None and dead_since_us < wrote_us:
        moment = f"{datetime.fromtimestamp(-(-wrote_us // 1_000_000), UTC):%Y-%m-%dT%H:%M:%SZ}"
        raise Stop(f"It was alive later than --dead-since says: it wrote to the counter log until {moment}.", REFUSED)


def _writer_of(directory: str) -> bytes:
    """Empty: it cannot be read."""
    from buffer.disk import RealDisk
    from buffer.journal import JournalError, read_journal
    from buffer.journal_records import Snapshot

    try:
        first = next(iter(read_journal(directory, RealDisk())), None)
    except (JournalError, OSError):
        return b""
    return first.writer if isinstance(first, Snapshot) else b""


def _last_wrote_us(directory: str) -> int:
    """When something in it was last written; 0 where there is nothing."""
    return max((os.stat(f"{parent}/{name}").st_mtime_ns // 1000 for parent, _, names in os.walk(directory) for name in names), default=0)
