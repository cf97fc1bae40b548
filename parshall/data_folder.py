"""The data folder: what lies where in it, and that one process tree at a time has it.

Must not know: what is in the files.

The lock is held open by every process of a tree: the supervisor takes it and its children inherit it. So it is free only when the
last of them is gone, also after a kill -9 of some.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable

from parshall.embedded_postgres import NOBODY
from parshall.errors import UNAVAILABLE, USAGE, Stop

LONGEST_SOCKET_PATH = 107
_CONTENTS = ("lock", "run", "writers", "log", "postgres", "flush.json", "tenants.json")
_RUNNING_S = 3.0  # how long to wait for a tree that looks as if it will stay
_ENDING_S = 45.0  # how long for the rest of one whose supervisor is gone


class DataFolder:
    """Made by whoever starts a service in it; a command that reads in it makes nothing."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.run = self._short_folder("run", "worker-00.sock")
        self._sockets = self._short_folder("postgres/run", ".s.PGSQL.5432")

    def make(self) -> DataFolder:
        """What is not there yet. Raises Stop where this user cannot write, or should not."""
        self._refuse_anothers()
        try:
            # Where root must run PostgreSQL as somebody else, that one must get through; every folder below is closed.
            os.makedirs(self.path, mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
            for name in ("run", "writers", "log"):
                os.makedirs(f"{self.path}/{name}", mode=0o700, exist_ok=True)
        except OSError as error:
            raise Stop(
                f"The data folder {self.path} cannot be made or used: {error.strerror}. Choose another with --data.", USAGE
            ) from error
        if not os.access(f"{self.path}/run", os.W_OK | os.X_OK):
            raise Stop(f"The data folder {self.path} cannot be written to by this user. Choose another with --data.", USAGE)
        return self

    def _refuse_anothers(self) -> None:
        """Root could use it, and would leave files that its user cannot open. A folder with nothing of ours in it may be used: a
        volume belongs to whoever made it."""
        if os.geteuid() != 0:
            return
        allowed = (0, self._owner_of_new_files())
        for name in _CONTENTS:
            try:
                owner = os.lstat(f"{self.path}/{name}").st_uid
            except OSError:
                continue  # told where it is needed
            if owner not in allowed and not (name == "postgres" and owner == NOBODY):  # given away by an earlier start of root
                raise Stop(
                    f"The data folder {self.path} belongs to uid {owner}, who could not use it any more once root has: run as that user "
                    f"(where root has run on it before, `chown -R {owner}` it first), or choose another with --data.",
                    USAGE,
                )

    def _owner_of_new_files(self) -> int:
        """Some mounts give every file to one user, whoever makes it."""
        try:
            with tempfile.TemporaryFile(dir=self.path) as file:
                return os.fstat(file.fileno()).st_uid
        except OSError:
            return os.geteuid()

    def journal(self, worker: int) -> str:
        return f"{self.path}/writers/{worker}"

    @property
    def log(self) -> str:
        return f"{self.path}/log"

    @property
    def postgres(self) -> str:
        return f"{self.path}/postgres"

    @property
    def postgres_sockets(self) -> str:
        return self._sockets

    @property
    def flush_file(self) -> str:
        return f"{self.path}/flush.json"

    @property
    def tenants_file(self) -> str:
        return f"{self.path}/tenants.json"

    @property
    def kept_configuration(self) -> str:
        """A copy of the configuration as it was last read again since the start; absent until then."""
        return f"{self.path}/run/reloaded.toml"

    def forget_kept_configuration(self) -> None:
        """At the start, which reads the configuration itself."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.kept_configuration)

    def control_socket(self, worker: int) -> str:
        return f"{self.run}/worker-{worker}.sock"

    @property
    def rater_socket(self) -> str:
        """Of a rater in the same tree."""
        return f"{self.run}/rater.sock"

    def _short_folder(self, name: str, socket: str) -> str:
        """The address of a unix socket has little room. Where the data folder's path is too long, a private folder elsewhere serves."""
        folder = f"{self.path}/{name}"
        if len(os.fsencode(f"{folder}/{socket}")) <= LONGEST_SOCKET_PATH:
            return folder
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        return _private_folder(f"{tempfile.gettempdir()}/parshall-{os.geteuid()}-{digest}")

    def lock(self, about: str, say: Callable[[str], None]) -> int:
        """The descriptor of the lock, for children to inherit. Waits a little for a tree that is ending."""
        path = f"{self.path}/lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Stop(f"Cannot open {path}: {error.strerror}.", USAGE) from error
        began_s = time.monotonic()
        said = False
        while not _try_lock(descriptor):
            holder = os.pread(descriptor, 300, 0).decode(errors="replace")
            running = _runs(holder)
            if time.monotonic() - began_s > (_RUNNING_S if running else _ENDING_S):
                raise Stop(self._in_use(holder, running), UNAVAILABLE)
            if not said:
                say(f"{self.path} is still in use; waiting for the other Parshall to end …")
                said = True
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {about}".encode(), 0)
        return descriptor

    def _in_use(self, holder: str, running: bool) -> str:
        pid, _, about = holder.partition(" ")
        who = f"a running Parshall (process {pid}, {about})" if running else "the rest of a Parshall that was killed"
        return f"The data folder {self.path} is in use by {who}. Stop that one, or choose another folder with --data."


def journals_below(data: str, more: Iterable[str]) -> list[str]:
    """The folders of all journals in a data folder, and of others that are named, each once."""
    below = f"{data}/writers"
    mine = [f"{below}/{name}" for name in sorted(os.listdir(below))] if os.path.isdir(below) else []
    return list({os.path.realpath(directory): directory for directory in (*mine, *more) if os.path.isdir(directory)}.values())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(holder: str) -> bool:
    """Only a guess that decides how long to wait: process numbers are used again."""
    pid = holder.partition(" ")[0]
    return pid.isdecimal() and os.path.exists(f"/proc/{pid}")


def _private_folder(path: str) -> str:
    """The same for every process of this user. Others can write to its parent, so it may be a trap that somebody else has laid."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise Stop(
            f"The folder for sockets {path} cannot be made: {error.strerror}. A --data with a shorter path needs none.", USAGE
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (os.geteuid(), NOBODY) or stat.S_IMODE(status.st_mode) & 0o077:
        raise Stop(f"The folder for sockets {path} is not this user's alone: remove it, or choose a --data with a shorter path.", USAGE)
    return path
