"""A small file system of its own, which a test can fill to the last byte: what is full says ENOSPC, as a real disk does.

Belongs here: making it and filling it. Must not know: who writes to it.

A process in a namespace of its own mounts a tmpfs and keeps it; everybody else reaches it through `/proc/PID/root`. So it needs no right
but that of making namespaces, nothing shows in the machine's own mounts, and it goes with the process that holds it. Where namespaces are
not permitted there is no small disk (`small_disk` gives None), and a test has to make do with what it finds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parshall import embedded_postgres

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MOUNTED_AT = "/mnt"
_FILLER = "filler"
_libc = ctypes.CDLL(None, use_errno=True)


class SmallDisk:
    def __init__(self, holder: int) -> None:
        self.path = Path(f"/proc/{holder}/root{_MOUNTED_AT}")
        self._holder = holder
        self._filler = self.path / _FILLER

    def enter(self) -> None:
        """For a process that is about to become a server: as who holds the disk, which is not root. Whoever is root need not."""
        descriptor = os.open(f"/proc/{self._holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        if _libc.setns(descriptor, _CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    @property
    def free_bytes(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def fill(self) -> None:
        """Leave nothing free."""
        with open(self._filler, "ab") as file:
            while (free := self.free_bytes) > 0:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)
                except OSError:  # somebody else took some of it
                    continue

    def relieve(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(size: int) -> Iterator[SmallDisk | None]:
    """Of `size` bytes; None where this machine does not permit it."""
    command = [sys.executable, "-m", "tests.small_disk", str(size), str(os.getpid())]
    holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        mounted = holder.stdout.readline() == b"mounted\n"
        yield SmallDisk(holder.pid) if mounted else None
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def _hold(size: int, parent: int) -> None:
    user, group = os.geteuid(), os.getegid()
    inside = user or embedded_postgres.NOBODY  # PostgreSQL refuses to run as root
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        return
    for name, content in (("uid_map", f"{inside} {user} 1"), ("setgroups", "deny"), ("gid_map", f"{inside} {group} 1")):
        Path(f"/proc/self/{name}").write_text(content)
    if _libc.mount(b"tmpfs", _MOUNTED_AT.encode(), b"tmpfs", 0, b"size=%d,mode=0755" % size) != 0:
        return
    os.write(1, b"mounted\n")
    embedded_postgres.die_with_parent(signal.SIGKILL, parent)
    os.execv("/bin/sleep", ["sleep", "infinity"])  # a program that was started here may be looked into; what made the namespace may not


if __name__ == "__main__":
    _hold(int(sys.argv[1]), int(sys.argv[2]))


def assert_not_permitted() -> None:
    """A small disk that fails for another reason would go unnoticed."""
    assert os.system("unshare --user --mount true 2>/dev/null") != 0 or not Path("/mnt").is_dir()
