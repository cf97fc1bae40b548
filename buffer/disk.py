"""The disk port: the few file operations that the journal and the local log rest on, and the real ones.

Belongs here: what is promised about durability, and the adapter over `os`. Must not know: what the bytes mean.

Every method blocks; the event loop calls them through `Background`. Paths are absolute strings. Errors are OSError.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class AppendFile(Protocol):
    """A file that only grows. What was written survives a crash for certain only once `sync` has returned."""

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Append all of the parts, or raise."""

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Lock(Protocol):
    def release(self) -> None: ...


class Disk(Protocol):
    def make_directory(self, path: str) -> None:
        """Make it and its parents, durably; nothing happens if it is there."""

    def names(self, directory: str) -> list[str]:
        """Sorted names in a directory."""

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes: ...

    def size(self, path: str) -> int: ...

    def create(self, path: str) -> AppendFile:
        """A new file, its directory entry durable. FileExistsError if it is there."""

    def extend(self, path: str) -> AppendFile:
        """An existing file, to append to."""

    def truncate(self, path: str, size: int) -> None:
        """Cut, durably."""

    def replace(self, path: str, content: bytes) -> None:
        """Put a whole small file in place, atomically and durably."""

    def remove(self, path: str) -> None: ...

    def lock(self, path: str) -> Lock:
        """Take the exclusive lock of a file (made if absent), at once or BlockingIOError. It ends with the process."""

    def free_bytes(self, directory: str) -> int: ...


class Background(Protocol):
    """Runs one blocking function at a time, off the event loop, in the order of submission."""

    async def run(self, function: Callable[..., T], *arguments: object) -> T: ...


class RealDisk:
    """The operating system's files: fdatasync for data, fsync for directories."""

    def make_directory(self, path: str) -> None:
        parent = os.path.dirname(path)
        if parent != path and not os.path.isdir(parent):
            self.make_directory(parent)
        with contextlib.suppress(FileExistsError):  # by another process, or by one that died before it had synced the parent
            os.mkdir(path)
        sync_directory(parent)

    def names(self, directory: str) -> list[str]:
        return sorted(os.listdir(directory))

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            if size < 0:
                return file.readall()
            parts = []
            while size > 0 and (part := file.read(size)):
                parts.append(part)
                size -= len(part)
            return b"".join(parts)

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def create(self, path: str) -> AppendFile:
        file = RealAppendFile(path, os.O_CREAT | os.O_EXCL)
        sync_directory(os.path.dirname(path))
        return file

    def extend(self, path: str) -> AppendFile:
        return RealAppendFile(path, 0)

    def truncate(self, path: str, size: int) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, path: str, content: bytes) -> None:
        temporary = f"{path}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, [content])
            os.fsync(descriptor)
        except OSError as error:
            raise _named(error, path) from None
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
        sync_directory(os.path.dirname(path))

    def remove(self, path: str) -> None:
        os.unlink(path)

    def lock(self, path: str) -> Lock:
        return RealLock(path)

    def free_bytes(self, directory: str) -> int:
        stat = os.statvfs(directory)
        return stat.f_bavail * stat.f_frsize


class RealAppendFile:
    def __init__(self, path: str, flags: int) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        try:
            _write_all(self._descriptor, parts)
        except OSError as error:
            raise _named(error, self._path) from None

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise _named(error, self._path) from None

    def close(self) -> None:
        os.close(self._descriptor)


class RealLock:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        os.close(self._descriptor)


class Thread:
    """Background on one thread of its own, which ends with this object.

    Not `run_in_executor`: its hand-over there and back is a third of what a small group of records costs. The thread is a daemon: a disk
    that never answers must not keep a process that wants to end.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(done, function, arguments))
        return await done


class _Job(NamedTuple):
    done: asyncio.Future[Any]
    function: Callable[..., Any]
    arguments: tuple[object, ...]


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        _do(job)
        del job  # not kept until the next one comes


def _do(job: _Job) -> None:
    try:
        result = job.function(*job.arguments)
    except BaseException as error:
        answer: Callable[[], None] = partial(_fail, job.done, error)
    else:
        answer = partial(_finish, job.done, result)
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        job.done.get_loop().call_soon_threadsafe(answer)


def _finish(done: asyncio.Future[T], result: T) -> None:
    if not done.done():  # it is, where whoever waited was cancelled
        done.set_result(result)


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


def _named(error: OSError, path: str) -> OSError:
    """Of a file that is open the system says no name, and a person needs to know which disk it is."""
    error.filename = path
    return error


_MOST_PARTS = 1024  # IOV_MAX on Linux


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    for start in range(0, len(parts), _MOST_PARTS):
        chunk = parts[start : start + _MOST_PARTS]
        total = sum(len(part) for part in chunk)
        written = os.writev(descriptor, chunk)
        if written < total:  # rare: a signal, or the disk is almost full
            rest = memoryview(b"".join(chunk))[written:]
            while rest:
                rest = rest[os.write(descriptor, rest) :]


def sync_directory(path: str) -> None:
    """What was made, renamed or removed in it is so after a power cut, too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
