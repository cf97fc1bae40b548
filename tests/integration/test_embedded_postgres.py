"""The PostgreSQL that `up` brings along: real servers, really killed, as every kind of user."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest

HERE = Path(__file__).parent
NOBODY = 65534
WAYS = ["as this user", "as nobody", "as root without namespaces"] if os.geteuid() == 0 else ["as this user"]
AS_ROOT = ["as this user", "as root without namespaces"] if os.geteuid() == 0 else []
EXACT = Decimal("12345678901234567890123456789012345678.123456789012345678")


class Owner:
    """A process with an embedded PostgreSQL in `folder`."""

    def __init__(self, folder: Path, way: str) -> None:
        self.folder = folder
        self.way = way
        self.postgres_pid = 0
        self.dsn = ""
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """What it said: `started` or `refused`."""
        command = [sys.executable, str(HERE / "embedded_postgres_owner.py"), str(self.folder)]
        if self.way == "as root without namespaces":
            command = [sys.executable, str(HERE / "without_namespaces.py"), *command]
        if self.way == "as nobody":
            command = [*command, str(NOBODY)]
        if self.process is not None:
            await self.process.communicate()  # the one before has ended
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        return await self.heard()

    async def tell(self, command: str) -> str:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        return await self.heard()

    async def heard(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        word, _, rest = (await self.process.stdout.readline()).decode().strip().partition(" ")
        if word == "started":
            pid, _, self.dsn = rest.partition(" ")
            self.postgres_pid = int(pid)
        return f"{word} {rest}" if word == "refused" else word

    async def kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.communicate()

    async def end(self) -> None:
        if self.process is not None:
            await self.kill()
        if self.postgres_pid:
            await gone(self.postgres_pid)


async def gone(pid: int) -> None:
    """Until no process of the server is left; a zombie is gone too."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        await asyncio.sleep(0.02)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path that everybody can reach: pytest's own folders are this user's alone."""
    path = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=WAYS)
async def owner(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Owner]:
    owner = Owner(folder, request.param)
    assert await owner.start() == "started"
    yield owner
    await owner.end()


async def query(owner: Owner, statement: str, *values: object) -> object:
    connection = await asyncpg.connect(owner.dsn)
    try:
        return await connection.fetchval(statement, *values)
    finally:
        await connection.close()


async def remember(owner: Owner, number: Decimal) -> None:
    await query(owner, "create table if not exists kept (number numeric)")
    await query(owner, "insert into kept values ($1)", number)


async def test_numbers_come_back_exactly_and_nobody_else_can_ask(owner: Owner) -> None:
    await remember(owner, EXACT)
    assert await query(owner, "select number from kept") == EXACT
    assert await query(owner, "select sum(number) from (values (0.1), (0.2)) as v (number)") == Decimal("0.3")
    assert await query(owner, "show listen_addresses") == ""
    assert await query(owner, "show fsync") == "on"
    assert (owner.folder / "postgres").stat().st_mode & 0o077 == 0
    assert (owner.folder / "postgres/run").stat().st_mode & 0o077 == 0


async def test_a_killed_server_is_started_again_by_the_same_process_twice(owner: Owner) -> None:
    for number in range(2):
        await remember(owner, Decimal(number))
        os.kill(owner.postgres_pid, signal.SIGKILL)
        assert await owner.tell("again") == "started"
        assert await query(owner, "select count(*) from kept") == number + 1


async def test_it_ends_with_its_owner_and_the_next_owner_goes_on_twice(owner: Owner) -> None:
    for number in range(2):
        await remember(owner, Decimal(number))
        before = owner.postgres_pid
        await owner.kill()
        assert await owner.start() == "started"  # at once: it waits itself for the rest of the old server
        await gone(before)
        assert await query(owner, "select count(*) from kept") == number + 1


async def test_an_earlier_server_that_does_not_end_is_ended(owner: Owner) -> None:
    """Stopped here; PostgreSQL itself may wait for ever where its owner ends while it begins anew after a crash."""
    await remember(owner, Decimal(1))
    before = owner.postgres_pid
    os.kill(before, signal.SIGSTOP)
    await owner.kill()
    if owner.way == "as root without namespaces":  # of another namespace than that one, whose processes it may not end
        told = f"refused An earlier PostgreSQL (process {before}) still runs on {owner.folder}/postgres/data, and this user "
        told += "cannot end it: end it, or choose another --data."
        assert await owner.start() == told
        os.kill(before, signal.SIGKILL)
    assert await owner.start() == "started"
    await gone(before)
    assert await query(owner, "select count(*) from kept") == 1


async def test_server_and_owner_killed_together_twice(owner: Owner) -> None:
    """The second time the number of the killed process belongs to another one, as soon happens in a container."""
    pid_file = owner.folder / "postgres/data/postmaster.pid"
    for number in range(2):
        await remember(owner, Decimal(number))
        os.kill(owner.postgres_pid, signal.SIGKILL)
        await owner.kill()
        if number == 1:
            pid_file.write_text("\n".join([str(os.getpid()), *pid_file.read_text().splitlines()[1:]]) + "\n")
        assert await owner.start() == "started"
        assert await query(owner, "select count(*) from kept") == number + 1


@pytest.mark.parametrize("left", [b"", bytes(40)], ids=["empty", "zeros"])
async def test_a_power_cut_while_it_started_does_not_keep_it_from_starting(folder: Path, left: bytes) -> None:
    """PostgreSQL itself refuses a postmaster.pid in which no process is named."""
    owner = Owner(folder, "as this user")
    try:
        assert await owner.start() == "started"
        await remember(owner, EXACT)
        os.kill(owner.postgres_pid, signal.SIGKILL)
        await owner.kill()
        (folder / "postgres/data/postmaster.pid").write_bytes(left)
        assert await owner.start() == "started"
        assert await query(owner, "select number from kept") == EXACT
    finally:
        await owner.end()


async def test_stopped_in_order_it_needs_no_recovery(owner: Owner) -> None:
    log = owner.folder / "postgres/postgres.log"
    await remember(owner, EXACT)
    assert await owner.tell("stop") == "stopped"
    assert await owner.start() == "started"
    assert "automatic recovery" not in log.read_text()
    assert await owner.tell("hurry") == "stopped"
    assert await owner.start() == "started"
    assert "automatic recovery" in log.read_text()
    assert await query(owner, "select number from kept") == EXACT


async def test_what_a_kill_left_half_made_is_made_anew(folder: Path) -> None:
    owner = Owner(folder, "as this user")
    (folder / "postgres/unfinished").mkdir(parents=True)
    (folder / "postgres/unfinished/PG_VERSION").write_text("18\n")
    try:
        assert await owner.start() == "started"
        assert not (folder / "postgres/unfinished").exists()
    finally:
        await owner.end()


async def test_one_folder_changes_hands_between_all_ways(folder: Path) -> None:
    """Files are given to whoever runs the server now; only nobody cannot take what is root's."""
    for number, way in enumerate([*WAYS[:1], *WAYS[2:], *WAYS[:1]]):
        owner = Owner(folder, way)
        assert await owner.start() == "started"
        await remember(owner, Decimal(number))
        assert await query(owner, "select count(*) from kept") == number + 1
        await owner.end()


async def test_what_is_another_users_stays_theirs(folder: Path) -> None:
    for way in AS_ROOT:
        (folder / way / "postgres" / "data").mkdir(parents=True)
        for one in (folder, *folder.rglob("*")):
            os.chown(one, 1000, 1000)
        owner = Owner(folder / way, way)
        said = await owner.start()
        await owner.end()
        assert said == f"refused {folder / way}/postgres belongs to uid 1000, and this is uid 0: choose another --data."
        assert {one.lstat().st_uid for one in (folder, *folder.rglob("*"))} == {1000}


async def test_below_a_folder_that_only_another_can_enter_it_says_so(folder: Path) -> None:
    """Root cannot either, once it is not root any more."""
    for way in AS_ROOT:
        os.chown(folder, 1000, 1000)
        folder.chmod(0o700)
        owner = Owner(folder / way, way)
        said = await owner.start()
        await owner.end()
        assert said.startswith("refused PostgreSQL cannot run as root, ") and "/postgres lies below a folder that only" in said
        assert not (folder / way / "postgres" / "lock").exists()


async def test_data_of_another_version_is_told_in_a_sentence(folder: Path) -> None:
    (folder / "postgres/data").mkdir(parents=True)
    (folder / "postgres/data/PG_VERSION").write_text("16\n")
    owner = Owner(folder, "as this user")
    said = await owner.start()
    await owner.end()
    assert "was made by PostgreSQL 16" in said
    assert "choose another --data" in said
