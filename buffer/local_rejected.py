"""The newest rejected events of one writer, in files that an operator can read: one JSON object a line, a bounded number of bytes.

Belongs here: the ring of files. Must not know: counters, segments, why an event was rejected. Blocks: runs in the background.

Each opening begins a new file, so a line torn by a crash stays the last one of its file; readers skip a line without its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from buffer.counter_log import Rejected
from buffer.disk import AppendFile, Disk

FILE_BYTES = 4 * 1024 * 1024
MOST_BYTES = 4 * FILE_BYTES

_NAME = re.compile(r"([0-9]{8})\.ndjson")


class _Line(msgspec.Struct):
    v: int
    tenant: str
    event: msgspec.Raw


class RejectedRing:
    def __init__(self, directory: str, disk: Disk, file_bytes: int = FILE_BYTES, most_bytes: int = MOST_BYTES) -> None:
        self._directory = directory
        self._disk = disk
        self._file_bytes = file_bytes
        self._most_bytes = most_bytes
        self._file: AppendFile | None = None
        self._size = 0

    def append(self, rejected: Sequence[Rejected]) -> None:
        """Durably, or OSError."""
        lines = [msgspec.json.encode(_Line(1, one.tenant, msgspec.Raw(one.body.replace(b"\n", b" ")))) + b"\n" for one in rejected]
        try:
            file = self._file if self._file is not None and self._size < self._file_bytes else self._next_file()
            file.write(lines)
            file.sync()
        except OSError:
            self.close()  # what follows a failed write begins a new file
            raise
        self._size += sum(map(len, lines))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_file(self) -> AppendFile:
        self.close()
        numbers = [int(match[1]) for match in map(_NAME.fullmatch, self._disk.names(self._directory)) if match]
        self._forget(numbers)
        self._file = self._disk.create(self._path(numbers[-1] + 1 if numbers else 1))
        self._size = 0
        return self._file

    def _forget(self, numbers: list[int]) -> None:
        """Remove the oldest files until a full new one fits."""
        sizes = [self._disk.size(self._path(number)) for number in numbers]
        while sizes and sum(sizes) > self._most_bytes - self._file_bytes:
            self._disk.remove(self._path(numbers.pop(0)))
            sizes.pop(0)

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:08}.ndjson"
