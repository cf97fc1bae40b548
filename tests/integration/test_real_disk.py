"""The adapter over the operating system's files: what of them survives a power cut at any step, by what the kernel was asked to sync.

Belongs here: the system calls of `RealDisk`, made for real and watched. What the product makes of a disk that keeps its promises is tested
over tests/lossy_disk.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buffer.disk import RealDisk

CHANGES = ("open", "mkdir", "rename", "unlink", "write", "writev", "ftruncate", "fsync", "fdatasync")


class Platter:
    """What a power cut leaves for certain below a folder: the content of a file as it was synced last, under the names that the folders
    above it had when they were synced last."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self.on_step: Callable[[], None] = lambda: None

    def follow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._followed(name, getattr(os, name)))

    def _followed(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            if name in ("fsync", "fdatasync"):
                self._sync(arguments[0])
            elif name == "open" and stat.S_ISREG((opened := os.fstat(result)).st_mode) and not opened.st_size:
                self._content[opened.st_ino] = b""  # new, or cut: in the worst case at once
            self.on_step()
            return result

        return call

    def _sync(self, descriptor: int) -> None:
        path, about = Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            self._names[about.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._content[about.st_ino] = path.read_bytes()

    def after_power_cut(self, path: Path) -> bytes | str | None:
        """Of a file its content, "folder" of a folder; None: nothing is there."""
        inode = self._root.stat().st_ino
        for name in path.relative_to(self._root).parts:
            found = self._names.get(inode, {}).get(name)
            if found is None:
                return None
            inode = found
        return self._content.get(inode, "folder")

    def after_a_lucky_one(self, path: Path) -> bytes | None:
        """As `after_power_cut`, of a file whose name is on the disk as it is now, though nobody synced the folder."""
        return self._content[path.stat().st_ino] if path.exists() else None


@pytest.fixture
def platter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platter]:
    with monkeypatch.context() as patched:
        followed = Platter(tmp_path)
        followed.follow(patched)
        yield followed


def test_a_small_file_in_its_place_is_the_old_or_the_new_one_at_every_step_and_then_the_new_one(tmp_path: Path, platter: Platter) -> None:
    disk, path, seen = RealDisk(), tmp_path / "file", set()
    disk.replace(str(path), b"old")
    assert platter.after_power_cut(path) == b"old"
    platter.on_step = lambda: seen.update((platter.after_power_cut(path), platter.after_a_lucky_one(path)))
    disk.replace(str(path), b"new, and longer")
    assert seen == {b"old", b"new, and longer"}
    assert platter.after_power_cut(path) == path.read_bytes() == b"new, and longer"


def test_what_a_crash_left_beside_a_small_file_does_not_get_into_it(tmp_path: Path) -> None:
    disk, path = RealDisk(), tmp_path / "file"
    (tmp_path / "file.new").write_bytes(b"longer than what is put in place now")
    disk.replace(str(path), b"short")
    assert path.read_bytes() == b"short"
    assert disk.names(str(tmp_path)) == ["file"]


def test_a_new_file_has_its_name_at_once_and_its_content_when_it_was_synced(tmp_path: Path, platter: Platter) -> None:
    path = tmp_path / "file"
    file = RealDisk().create(str(path))
    assert platter.after_power_cut(path) == b""
    file.write([b"abc", memoryview(b"def")])
    assert platter.after_power_cut(path) == b""
    file.sync()
    assert platter.after_power_cut(path) == b"abcdef"
    file.close()


def test_what_was_cut_stays_cut(tmp_path: Path, platter: Platter) -> None:
    disk, path = RealDisk(), tmp_path / "file"
    disk.replace(str(path), b"good and torn")
    disk.truncate(str(path), 4)
    assert platter.after_power_cut(path) == b"good"


def test_a_folder_and_all_above_it_are_durable_when_they_are_made(tmp_path: Path, platter: Platter) -> None:
    path = tmp_path / "writers" / "0" / "journal"
    RealDisk().make_directory(str(path))
    assert platter.after_power_cut(path) == "folder"


def test_a_folder_that_somebody_else_made_a_moment_ago_is_made_durable_too(tmp_path: Path, platter: Platter) -> None:
    path = tmp_path / "made by one that died"
    path.mkdir()
    assert platter.after_power_cut(path) is None
    RealDisk().make_directory(str(path))
    assert platter.after_power_cut(path) == "folder"


def test_all_is_written_though_the_system_takes_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writev, write = os.writev, os.write
    monkeypatch.setattr(os, "writev", lambda descriptor, parts: write(descriptor, b"".join(parts)[:3]))
    monkeypatch.setattr(os, "write", lambda descriptor, rest: write(descriptor, rest[:2]))
    file = RealDisk().create(str(tmp_path / "file"))
    file.write([b"abc", b"", b"defgh", memoryview(b"ijklmnop")])
    assert (tmp_path / "file").read_bytes() == b"abcdefghijklmnop"
    monkeypatch.setattr(os, "writev", writev)
    monkeypatch.setattr(os, "write", write)
    file.write([b"%d," % number for number in range(3000)])  # more parts than the system takes at once
    assert (tmp_path / "file").read_bytes() == b"abcdefghijklmnop" + b"".join(b"%d," % number for number in range(3000))
    file.close()


def test_a_lock_is_refused_at_once_and_asking_for_it_again_and_again_costs_nothing(tmp_path: Path) -> None:
    disk, path = RealDisk(), str(tmp_path / "lock")
    held = disk.lock(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            disk.lock(path)
    assert len(os.listdir("/proc/self/fd")) == before
    held.release()
    disk.lock(path).release()


def test_what_is_written_is_for_nobody_else(tmp_path: Path) -> None:
    """Usage, the names of tenants, hashes of keys: in a folder that root made, others may look for them."""
    disk = RealDisk()
    disk.create(str(tmp_path / "made")).close()
    disk.replace(str(tmp_path / "replaced"), b"x")
    disk.lock(str(tmp_path / "lock")).release()
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in tmp_path.iterdir()] == [0o600] * 3
