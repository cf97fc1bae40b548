"""Where a local log keeps what, and its identity.

Belongs here: paths, names, the one file that says which log this is. Must not know: frames, records, who is a writer.

DIRECTORY/log.json                            identity and number of partitions, made once
DIRECTORY/opening.lock                        held while a process opens the log, or adds meters to the registry
DIRECTORY/counters/WRITER/PARTITION/BASE.log  the segments of a stream; BASE = the stream position they begin at, 20 digits
DIRECTORY/counters/WRITER/lock                held by the process that appends below
DIRECTORY/writers/WRITER.json, WRITER.branches.json, meter:NAME.json   the registry (registration.py)
DIRECTORY/rejected/WRITER/NUMBER.ndjson       rejected events, the newest ones
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from buffer.counter_log import UnfitLog
from buffer.disk import Disk, Lock

FORMAT = 1
_WRITER = re.compile(r"[0-9a-f]{32}")
_PARTITION = re.compile(r"0|[1-9][0-9]{0,8}")
_SEGMENT = re.compile(r"([0-9]{20})\.log")


class Identity(msgspec.Struct, frozen=True):
    format: int
    id: str
    partitions: int


class Layout:
    def __init__(self, directory: str, disk: Disk) -> None:
        self._disk = disk
        self.directory = directory
        self.counters = f"{directory}/counters"
        self.registry = f"{directory}/writers"
        self.rejected = f"{directory}/rejected"
        self._identity = f"{directory}/log.json"

    def open_or_make(self, partitions: int, entropy: Callable[[int], bytes]) -> Identity:
        """The log's identity, made by whoever comes first. One process at a time: the others get BlockingIOError and try again."""
        for directory in (self.directory, self.counters, self.registry, self.rejected):
            self.make_directory(directory)
        lock = self.lock()
        try:
            identity = self._read_identity() or self._make_identity(Identity(FORMAT, entropy(16).hex(), partitions))
            self.make_names_durable(self.directory)
            self.make_names_durable(self.registry)
            return identity
        finally:
            lock.release()

    def lock(self) -> Lock:
        """For a moment. BlockingIOError: another process has it."""
        return self._disk.lock(f"{self.directory}/opening.lock")

    def _read_identity(self) -> Identity | None:
        try:
            content = self._disk.read(self._identity)
        except FileNotFoundError:
            return None
        try:
            identity = msgspec.json.decode(content, type=Identity)
        except msgspec.MsgspecError as error:
            raise UnfitLog(f"{self._identity} is damaged ({error}): restore it, or move {self.directory} away") from error
        if identity.format != FORMAT:
            raise UnfitLog(f"{self._identity} has format {identity.format}, this version of Parshall reads format {FORMAT}")
        return identity

    def _make_identity(self, identity: Identity) -> Identity:
        if self._disk.names(self.counters):
            raise UnfitLog(f"{self._identity} is missing beside counter records: restore it, or move {self.directory} away")
        self._disk.replace(self._identity, msgspec.json.encode(identity))
        return identity

    def make_directory(self, path: str) -> None:
        try:
            self._disk.make_directory(path)
        except FileExistsError:  # another process made a part of it at the same moment
            self._disk.make_directory(path)

    def make_names_durable(self, directory: str) -> None:
        """A process that dies while it puts a file in place can leave a name that is read by others, but lost when the machine crashes.

        Nobody may build on such a name. Putting any file in place syncs the directory with all its names.
        """
        self._disk.replace(f"{directory}/opened", b"")

    def streams(self) -> list[str]:
        """Every stream of the log, as WRITER/PARTITION."""
        found = []
        for writer in self._disk.names(self.counters):
            if _WRITER.fullmatch(writer):
                names = self._disk.names(f"{self.counters}/{writer}")
                found += [f"{writer}/{name}" for name in names if _PARTITION.fullmatch(name)]
        return found

    def bases(self, stream: str) -> list[int]:
        """Where the segments of a stream begin, in order."""
        matches = map(_SEGMENT.fullmatch, self._disk.names(f"{self.counters}/{stream}"))
        return [int(match[1]) for match in matches if match]

    def segment(self, stream: str, base: int) -> str:
        return f"{self.counters}/{stream}/{base:020}.log"
