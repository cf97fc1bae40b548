"""Archives as files: lines, compressed by gzip so that they can be read without Parshall, in as long as books are kept.

Belongs here: writing one durably, reading one that is as it was written. Must not know: what a line says, PostgreSQL.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from buffer.disk import sync_directory
from rater.archive_lines import ArchiveFailed

_LEVEL = 6


class ArchiveWriter:
    """One file. Before `finish` it has a name of its own; what a process leaves behind that ends meanwhile is nobody's."""

    def __init__(self, folder: str, name: str) -> None:
        """Raises ArchiveFailed, as everything here."""
        self.name = name
        self.bytes = 0  # of lines
        self._path = os.path.join(folder, name)
        with _told(self._path):
            descriptor = os.open(f"{self._path}.part", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._gzip = gzip.GzipFile("", "wb", _LEVEL, self._file, mtime=0)

    def write(self, line: bytes) -> None:
        with _told(self._path):
            self._gzip.write(line)
        self.bytes += len(line)

    def finish(self) -> str:
        """It is on disk, under its name, and can be read: the SHA-256 of the file, in hexadecimal digits."""
        with _told(self._path):
            self._gzip.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            with open(f"{self._path}.part", "rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            if os.path.exists(self._path):  # not by a link, which some network file systems do not have
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(f"{self._path}.part", self._path)
            sync_directory(os.path.dirname(self._path))
        return digest

    def give_up(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(f"{self._path}.part")


def lines_of(folder: str, name: str, sha256: str) -> Iterator[bytes]:
    """Of a file that has these bytes. Raises ArchiveFailed, perhaps after some lines."""
    path = os.path.join(folder, name)
    with _told(path), open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ArchiveFailed(f"{path} is not as it was written: its SHA-256 is another one")
        file.seek(0)
        yield from _lines(file)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    with gzip.open(file, "rb") as lines:
        yield from lines


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """What the system says of a file becomes ArchiveFailed."""
    try:
        yield
    except OSError as error:
        raise ArchiveFailed(f"{path}: {error.strerror or error}") from error
