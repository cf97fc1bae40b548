"""The data folder on a real disk: its lock, and sockets whatever the length of its path."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parshall.data_folder import LONGEST_SOCKET_PATH, DataFolder
from parshall.errors import Stop
from parshall.roles import refuse_fewer_workers


@pytest.fixture
def long_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ("x" * 120)
    yield path
    folder = DataFolder(str(path))
    for elsewhere in (folder.run, folder.postgres_sockets):
        shutil.rmtree(elsewhere)


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    os.unlink(path)


def test_sockets_have_room_for_their_address(tmp_path: Path, long_path: Path) -> None:
    for data in (tmp_path / "d", long_path):
        folder = DataFolder(str(data)).make()
        assert len(folder.control_socket(63)) <= LONGEST_SOCKET_PATH
        bind(folder.control_socket(63))
        os.makedirs(folder.postgres_sockets, exist_ok=True)
        bind(f"{folder.postgres_sockets}/.s.PGSQL.5432")
    assert DataFolder(str(tmp_path / "d")).control_socket(0) == f"{tmp_path}/d/run/worker-0.sock"


def test_every_process_finds_the_same_sockets(long_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`parshall audit` must find those that `parshall up` made."""
    first = DataFolder(str(long_path))
    monkeypatch.chdir(long_path.parent)
    again = DataFolder(long_path.name)
    assert (again.run, again.postgres_sockets) == (first.run, first.postgres_sockets)


def test_a_folder_for_sockets_that_others_can_enter_is_refused(long_path: Path) -> None:
    folder = DataFolder(str(long_path))
    os.chmod(folder.run, 0o777)
    try:
        with pytest.raises(Stop, match="is not this user's alone"):
            DataFolder(str(long_path))
    finally:
        os.rmdir(folder.run)


def test_nobody_else_can_look_into_it(tmp_path: Path) -> None:
    folder = DataFolder(str(tmp_path / "d")).make()
    for name in ("run", "writers", "log"):
        assert os.stat(f"{folder.path}/{name}").st_mode & 0o077 == 0
    assert os.stat(folder.path).st_mode & 0o066 == 0


def snapshot(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_uid) for path in (folder, *folder.rglob("*")))


def made_by(user: int, path: Path) -> Path:
    DataFolder(str(path)).make().lock("x", print)
    (path / "postgres").mkdir()
    for one in (path, *path.rglob("*")):
        os.chown(one, user, user)
    return path


def test_root_does_not_take_what_is_another_users(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        return  # nobody else can
    for name in (None, "lock", "writers", "postgres"):  # all of it, or one thing alone
        path = made_by(1000, tmp_path / f"d-{name}")
        if name is not None:
            for one in (path, *path.rglob("*")):
                os.chown(one, *(1000, 1000) if one.name == name else (0, 0))
        before = snapshot(path)
        with pytest.raises(
            Stop,
            match=rf"^The data folder {path} belongs to uid 1000, .*: run as that user .*`chown -R 1000`.* another with --data\.$",
        ):
            DataFolder(str(path)).make()
        assert snapshot(path) == before


def test_root_uses_what_is_its_own_or_empty_or_was_given_to_nobody(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        return
    own, volume = made_by(0, tmp_path / "own"), tmp_path / "volume"
    os.chown(own / "postgres", 65534, 65534)
    volume.mkdir()
    os.chown(volume, 10001, 10001)
    for path in (own, volume, volume):  # the second start finds in it what the first one made
        DataFolder(str(path)).make()


def test_the_lock_is_held_until_the_last_process_that_inherited_it_is_gone(tmp_path: Path) -> None:
    folder = DataFolder(str(tmp_path / "d")).make()
    lock = folder.lock("listening on somewhere", print)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    os.close(lock)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        child.communicate(b"\n")

    os.close(folder.lock("again", say))
    assert len(said) == 1 and "still in use" in said[0]


def test_a_lock_that_stays_held_is_told_with_its_holder(tmp_path: Path) -> None:
    folder = DataFolder(str(tmp_path / "d")).make()
    lock = folder.lock("listening on 127.0.0.1:1", print)
    with pytest.raises(Stop, match=rf"in use by a running Parshall \(process {os.getpid()}, listening on 127.0.0.1:1\)"):
        folder.lock("again", lambda _text: None)
    os.close(lock)


def test_fewer_workers_than_journals_are_refused(tmp_path: Path) -> None:
    folder = DataFolder(str(tmp_path / "d")).make()
    refuse_fewer_workers(folder, 1)
    for worker in range(3):
        os.makedirs(folder.journal(worker))
    refuse_fewer_workers(folder, 3)
    with pytest.raises(Stop, match="--workers 3"):
        refuse_fewer_workers(folder, 2)
