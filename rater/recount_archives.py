"""Counting again what is in files: archived records beside the rows that PostgreSQL keeps of them.

Belongs here: what is wrong with an archive or with those rows. Must not know: where files are; what usage and tallies should be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import asyncpg

from buffer.record import CounterRecord
from rater.archive import ARCHIVE
from rater.archive_lines import Archived, ArchiveFailed, BadLine, ReadArchive, RecordRow, read_line

_LINES_AT_ONCE = 50  # a line may be some MiB once it is read


class Finding(NamedTuple):
    what: str
    then: str  # what to do about it


class Archive(NamedTuple):
    """A row of the table `archives`."""

    archive: int
    file: str
    sha256: str
    last_window_s: int | None


@dataclass
class CountedArchives:
    findings: list[Finding] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # files that were not given
    unread_to_s: int = -1  # the latest window of which a file that could not be counted has something
    lent: dict[RecordRow, str] = field(default_factory=dict)  # counted from this file, though PostgreSQL lacks the row

    def leave_out(self, archive: Archive) -> None:
        self.unread_to_s = max(self.unread_to_s, reach_of([archive]))


async def known_archives(connection: asyncpg.Connection) -> list[Archive]:
    return [Archive(*row) for row in await connection.fetch(ARCHIVE["archives"])]


def reach_of(archives: Iterable[Archive]) -> int:
    """The latest start of a window that they have something of, in seconds; -1: of none."""
    return max((archive.last_window_s for archive in archives if archive.last_window_s is not None), default=-1)


async def count_archives(
    connection: asyncpg.Connection,
    known: Sequence[Archive],
    rows: Mapping[int, int],
    read: ReadArchive | None,
    add_usage: Callable[[CounterRecord], None],
    add_tallies: Callable[[bytes, CounterRecord], None],
) -> CountedArchives:
    """`rows`: how many rows of `records` name each archive. `add_tallies`: only of records whose rows are missing."""
    counted, numbers = CountedArchives(), {archive.archive for archive in known}
    for archive in known:
        if read is None:
            counted.unread.append(archive.file)
            counted.leave_out(archive)
            continue
        matched = 0
        try:
            for lines in _some(read(archive.file, archive.sha256)):
                some = [read_line(line) for line in lines]
                matched += await _count(connection, archive, numbers - {archive.archive}, some, counted, add_usage, add_tallies)
        except (ArchiveFailed, BadLine) as error:
            then = "look for a copy of that file, put it there and audit again: usage of the time that it covers is not proved without it"
            counted.findings.append(Finding(f"archive {archive.file} cannot be counted: {error}", then))
            counted.leave_out(archive)
        else:
            counted.findings += _told_rows_without_lines(archive, rows.get(archive.archive, 0) - matched)
    for number in sorted(rows.keys() - numbers):
        what = f"{rows[number]} rows of `records` say that their bytes are in archive {number}, which is not in the table `archives`"
        counted.findings.append(Finding(what, "put that row back: its file is one that no other row names"))
    return counted


def _some(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    while some := list(islice(lines, _LINES_AT_ONCE)):
        yield some


async def _count(
    connection: asyncpg.Connection,
    archive: Archive,
    others: Set[int],
    some: Sequence[Archived],
    counted: CountedArchives,
    add_usage: Callable[[CounterRecord], None],
    add_tallies: Callable[[bytes, CounterRecord], None],
) -> int:
    """How many of them have their row."""
    writers, partitions, numbers = (list(column) for column in zip(*[one.key for one in some], strict=True))
    rows = {
        (row["writer"], row["partition"], row["n"]): row for row in await connection.fetch(ARCHIVE["rows_of"], writers, partitions, numbers)
    }
    matched = 0
    for one in some:
        row = rows.get(one.key)
        if row is None:
            if one.key in counted.lent:
                continue
            counted.lent[one.key] = archive.file
            add_tallies(one.key[0], one.record)
        elif row["archive"] is None or row["archive"] in others:
            continue  # somebody put its bytes back: it is counted there, or in the file that it was moved to then
        else:
            matched += row["archive"] == archive.archive
            counted.findings += _told_other_row(archive, one, dict(row))
        add_usage(one.record)
    return matched


def _told_other_row(archive: Archive, one: Archived, row: Mapping[str, Any]) -> Iterator[Finding]:
    tallies = json.loads(row["tallies"] or "{}")
    has = (row["archive"], row["hash"], tallies)
    if has != (archive.archive, one.hash, one.record.tallies):
        writer, partition, n = one.key
        what = (
            f"the row of record {n} of partition {partition} of writer {writer.hex()} in `records` is not what archive {archive.file} has: "
        )
        what += f"archive {has[0]} and {archive.archive}, hash {has[1]} and {one.hash}, tallies {tallies} and {one.record.tallies}"
        yield Finding(what, "the file is as it was written: set the row to what it has, then audit again")


def _told_rows_without_lines(archive: Archive, rows: int) -> Iterator[Finding]:
    if rows:
        what = f"{rows} rows of `records` say that their bytes are in archive {archive.file}, which does not have them"
        yield Finding(what, "restore a backup of PostgreSQL beside this one, and put those rows back from it")
