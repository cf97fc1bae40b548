"""Disks that lose what was not synced: one in memory that can be cut off at any step, one over real files for kill -9 of processes.

Belongs here: what a disk may do to unsynced data when the power or a write-back fails. Must not know: what the bytes mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from buffer.disk import RealAppendFile, RealDisk

SECTOR = 512


class PowerCut(OSError):
    """The disk is off; every operation fails until `crash`."""


class _Inode:
    """`cached` is what reads see; `stable` is what the platter holds. A sector in neither `dirty` nor `stable` was lost in write-back."""

    def __init__(self) -> None:
        self.cached = bytearray()
        self.stable = bytearray()
        self.dirty: set[int] = set()

    def append(self, data: bytes) -> None:
        first = len(self.cached) // SECTOR
        self.cached += data
        self.dirty.update(range(first, (len(self.cached) + SECTOR - 1) // SECTOR))

    def truncate(self, size: int) -> None:
        del self.cached[size:]
        del self.stable[size:]
        self.dirty = {sector for sector in self.dirty if sector * SECTOR < size}

    def sync(self) -> None:
        for sector in self.dirty:
            self._store(sector)
        self._grow(len(self.cached))
        self.dirty.clear()

    def fail_write_back(self) -> None:
        """The error is told once; then the pages count as clean and read fine, but were never written."""
        self.dirty.clear()

    def lose_unsynced(self, random: Random) -> None:
        """Any part of what was not synced is on the platter: all, none, a prefix, sectors here and there, length without content."""
        synced = bytearray(self.stable)
        how = random.randrange(5)
        kept = sorted(self.dirty)
        if how == 0:
            kept = []
        elif how == 1:
            kept = kept[: random.randint(0, len(kept))]
        elif how == 2:
            kept = [sector for sector in kept if random.random() < 0.5]
        for sector in kept:
            self._store(sector)
        if how == 3 and len(self.stable) > len(synced):
            del self.stable[random.randint(len(synced), len(self.stable)) :]
        if how == 4 or (how == 2 and random.random() < 0.5):
            if how == 4:
                self.stable = synced
            self._grow(len(self.cached))
        self.cached = bytearray(self.stable)
        self.dirty.clear()

    def _store(self, sector: int) -> None:
        content = self.cached[sector * SECTOR : (sector + 1) * SECTOR]
        self._grow(sector * SECTOR + len(content))
        self.stable[sector * SECTOR : sector * SECTOR + len(content)] = content

    def _grow(self, size: int) -> None:
        self.stable.extend(bytes(max(0, size - len(self.stable))))


class LossyDisk:
    """A Disk in memory. It counts its steps, the single effects that a crash may fall between, and can stop at any of them.

    `cut_at = n`: step n does not complete and the disk is off until `crash(random)`, which loses any part of what was not durable.
    `fail_at = n`: step n fails with EIO and the disk goes on; a failed sync has lost its pages, though they read fine.
    `kill()`: the process is gone, what it wrote is still cached; locks end.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.log: list[str] = []  # what each step was
        self.cut_at = 0
        self.fail_at = 0
        self.off = False
        self.free = 1 << 40
        self.free_checks = 0
        self._files: dict[str, _Inode] = {}  # as the running system sees names
        self._stable_files: dict[str, _Inode] = {}
        self._pending: list[tuple[str, _Inode | None]] = []  # changes of names that no directory sync followed
        self._directories: set[str] = set()
        self._locked: set[str] = set()
        self._boot = 0

    # ---- what tests do to it

    def crash(self, random: Random) -> None:
        """Power comes back: what was synced is there, and any part of the rest."""
        for path, inode in self._pending:
            if random.random() < 0.5:
                _set(self._stable_files, path, inode)
        for inode in {id(inode): inode for inode in [*self._stable_files.values(), *self._files.values()]}.values():
            inode.lose_unsynced(random)
        self._files = dict(self._stable_files)
        self._pending = []
        self.off = False
        self.cut_at = self.fail_at = 0
        self.kill()

    def kill(self) -> None:
        self._locked.clear()
        self._boot += 1

    def copy(self) -> LossyDisk:
        """Another disk with the same files, all of them synced."""
        other = LossyDisk()
        other.put_all(self.contents())
        other._directories = set(self._directories)
        return other

    def contents(self) -> dict[str, bytes]:
        return {path: bytes(inode.cached) for path, inode in self._files.items()}

    def put_all(self, contents: dict[str, bytes]) -> None:
        for path, content in contents.items():
            self.put(path, content)

    def put(self, path: str, content: bytes) -> None:
        inode = _Inode()
        inode.cached, inode.stable = bytearray(content), bytearray(content)
        self._files[path] = self._stable_files[path] = inode
        self._directories.add(os.path.dirname(path))

    def delete(self, path: str) -> None:
        del self._files[path], self._stable_files[path]

    # ---- steps

    def _step(self, what: str, effect: Callable[[], None], failure: Callable[[], None] | None = None, *, cut_in_it: bool = False) -> None:
        if self.off:
            raise PowerCut(errno.EIO, "the disk is off")
        self.steps += 1
        self.log.append(what)
        if self.steps == self.cut_at:
            self.off = True
            if cut_in_it:
                effect()
            raise PowerCut(errno.EIO, f"power cut at {what}")
        if self.steps == self.fail_at:
            if failure is not None:
                failure()
            raise OSError(errno.EIO, f"{what} failed")
        effect()

    def _on(self) -> None:
        if self.off:
            raise PowerCut(errno.EIO, "the disk is off")

    def _name(self, path: str, inode: _Inode | None) -> None:
        _set(self._files, path, inode)
        self._pending.append((path, inode))

    def _sync_names(self, directory: str) -> None:
        rest = []
        for path, inode in self._pending:
            if os.path.dirname(path) == directory:
                _set(self._stable_files, path, inode)
            else:
                rest.append((path, inode))
        self._pending = rest

    # ---- Disk

    def make_directory(self, path: str) -> None:
        self._step(f"mkdir {path}", lambda: self._directories.add(path))

    def names(self, directory: str) -> list[str]:
        self._on()
        return sorted(os.path.basename(path) for path in self._files if os.path.dirname(path) == directory)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        self._on()
        content = self._inode(path).cached
        return bytes(content[offset:] if size < 0 else content[offset : offset + size])

    def size(self, path: str) -> int:
        self._on()
        return len(self._inode(path).cached)

    def create(self, path: str) -> LossyFile:
        self._on()
        if path in self._files:
            raise FileExistsError(path)
        inode = _Inode()
        self._step(f"create {path}", lambda: self._name(path, inode))
        self._step(f"sync directory of {path}", lambda: self._sync_names(os.path.dirname(path)))
        return LossyFile(self, path, inode)

    def extend(self, path: str) -> LossyFile:
        self._on()
        return LossyFile(self, path, self._inode(path))

    def truncate(self, path: str, size: int) -> None:
        inode = self._inode(path)
        self._step(f"truncate {path}", lambda: inode.truncate(size))
        self._step(f"sync {path}", inode.sync, inode.fail_write_back)

    def replace(self, path: str, content: bytes) -> None:
        temporary, inode, directory = f"{path}.new", _Inode(), os.path.dirname(path)
        self._step(f"create {temporary}", lambda: self._name(temporary, inode))
        self._step(f"write {temporary}", lambda: inode.append(content), cut_in_it=True)
        self._step(f"sync {temporary}", inode.sync, inode.fail_write_back)

        def rename() -> None:
            # one change: a crash keeps both halves or neither
            self._name(path, inode)
            self._files.pop(temporary, None)
            self._pending = [(name, one) for name, one in self._pending if name != temporary]
            self._stable_files.pop(temporary, None)

        self._step(f"rename {path}", rename)
        self._step(f"sync directory of {path}", lambda: self._sync_names(directory))

    def remove(self, path: str) -> None:
        self._inode(path)
        self._step(f"remove {path}", lambda: self._name(path, None))

    def lock(self, path: str) -> LossyLock:
        self._on()
        if path in self._locked:
            raise BlockingIOError(path)
        if path not in self._files:
            self._step(f"create {path}", lambda: self._name(path, _Inode()))
        self._locked.add(path)
        return LossyLock(self._locked, path)

    def free_bytes(self, directory: str) -> int:
        self._on()
        self.free_checks += 1
        return self.free

    def _inode(self, path: str) -> _Inode:
        if path not in self._files:
            raise FileNotFoundError(path)
        return self._files[path]


class LossyFile:
    def __init__(self, disk: LossyDisk, path: str, inode: _Inode) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._boot = disk._boot

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        self._alive()
        data = b"".join(parts)
        half = data[: len(data) // 2]
        self._disk._step(f"write {self._path}", lambda: self._inode.append(data), lambda: self._inode.append(half), cut_in_it=True)

    def sync(self) -> None:
        self._alive()
        self._disk._step(f"sync {self._path}", self._inode.sync, self._inode.fail_write_back)

    def close(self) -> None:
        pass

    def _alive(self) -> None:
        assert self._boot == self._disk._boot, "a process that is gone writes no more"


class LossyLock:
    def __init__(self, locked: set[str], path: str) -> None:
        self._locked = locked
        self._path = path

    def release(self) -> None:
        self._locked.discard(self._path)


class Inline:
    """Background without a thread: for tests that decide every step themselves."""

    async def run(self, function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)


def _set(files: dict[str, _Inode], path: str, inode: _Inode | None) -> None:
    if inode is None:
        files.pop(path, None)
    else:
        files[path] = inode


# ---- over real files


class DropUnsynced(RealDisk):
    """The real disk, but what was written stays in this process's memory until it is synced: kill -9 loses it, as a power cut would.

    It is written out only when `os.fdatasync` is really called with the file, so a sync that was stubbed out loses everything. Reads of
    this disk object see what is held, like reads of a page cache.
    """

    def __init__(self) -> None:
        self._held: dict[str, bytearray] = {}

    def create(self, path: str) -> HeldFile:
        super().create(path).close()
        return self.extend(path)

    def extend(self, path: str) -> HeldFile:
        return HeldFile(path, self._held.setdefault(path, bytearray()))

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        held = self._held.get(path)
        if not held:
            return super().read(path, offset, size)
        content = super().read(path) + held
        return content[offset:] if size < 0 else content[offset : offset + size]

    def size(self, path: str) -> int:
        return super().size(path) + len(self._held.get(path, b""))

    def truncate(self, path: str, size: int) -> None:
        real = super().size(path)
        held = self._held.get(path)
        if held is not None:
            del held[max(0, size - real) :]
        if size < real:
            super().truncate(path, size)

    def replace(self, path: str, content: bytes) -> None:
        self._held.pop(path, None)
        super().replace(path, content)

    def remove(self, path: str) -> None:
        self._held.pop(path, None)
        super().remove(path)


class HeldFile:
    def __init__(self, path: str, held: bytearray) -> None:
        self._held = held
        self._real = RealAppendFile(path, 0)
        self._descriptor = self._real._descriptor
        self._real._descriptor = self  # type: ignore[assignment]  # os.fdatasync asks it for the number, below

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        for part in parts:
            self._held += part

    def sync(self) -> None:
        self._real.sync()

    def fileno(self) -> int:
        """Asked by os.fdatasync alone: now what was held goes to the file."""
        rest = bytes(self._held)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._held.clear()
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)
