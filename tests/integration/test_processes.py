"""A child process: between two of its runs, at its end, and what a hangup means to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from parshall import processes
from parshall.errors import FAILED, OK, REFUSED, USAGE, Stop
from parshall.processes import Child, Order, in_words, listen_to_hangup


class Counted:
    """A child that notes its starts and what it was told."""

    def __init__(self, file: Path, *, code: int = 1, stubborn: bool = False, patience_s: int = 10, inherited: tuple[int, ...] = ()) -> None:
        self._file = file
        file.touch()
        self.child = Child(Order("counter", "tests.integration.hangup_counter", (str(file), code, stubborn), patience_s), inherited)
        self.child.was_ready = True

    @property
    def noted(self) -> list[str]:
        return self._file.read_text().split()


@pytest.fixture
async def counted(tmp_path: Path) -> AsyncIterator[Counted]:
    made = Counted(tmp_path / "noted")
    keeping = asyncio.ensure_future(made.child.keep())
    yield made
    hurry = asyncio.Event()
    hurry.set()
    await made.child.stop(hurry)
    await keeping


def end(child: Child) -> None:
    """With the exit code that it was given."""
    assert child._process is not None
    child._process.send_signal(signal.SIGUSR1)


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not there():
            await asyncio.sleep(0.01)


async def test_a_signal_between_two_runs_reaches_the_next_one_once(counted: Counted) -> None:
    await until(lambda: counted.noted == ["started"])
    end(counted.child)
    await until(lambda: not counted.child.running)
    for _ in range(2):
        counted.child.tell(signal.SIGHUP)
    await until(lambda: counted.noted == ["started", "started", "told"])
    end(counted.child)
    await until(lambda: counted.noted.count("started") == 3)
    counted.child.tell(signal.SIGHUP)
    await until(lambda: counted.noted[3:] == ["started", "told"])


async def test_a_signal_to_a_process_that_is_ending_reaches_the_next_run(counted: Counted) -> None:
    await until(lambda: counted.noted == ["started"])
    process = counted.child._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)  # so that it does not heed it for certain
    counted.child.tell(signal.SIGHUP)
    process.kill()
    await until(lambda: counted.noted == ["started", "started", "told"])


async def test_a_signal_that_was_heeded_long_before_the_end_is_not_repeated(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_HEEDED_S", 0)
    await until(lambda: counted.noted == ["started"])
    counted.child.tell(signal.SIGHUP)
    await until(lambda: counted.noted == ["started", "told"])
    process = counted.child._process
    assert process is not None
    process.kill()
    await until(lambda: counted.noted == ["started", "told", "started"])
    counted.child.tell(signal.SIGHUP)
    await until(lambda: counted.noted == ["started", "told", "started", "told"])


async def test_a_signal_before_the_first_run_waits_for_it(tmp_path: Path) -> None:
    made = Counted(tmp_path / "noted")
    made.child.tell(signal.SIGHUP)
    keeping = asyncio.ensure_future(made.child.keep())
    await until(lambda: made.noted == ["started", "told"])
    hurry = asyncio.Event()
    hurry.set()
    await made.child.stop(hurry)
    await keeping


# ---- an end by itself


@pytest.mark.parametrize("code", [REFUSED, USAGE])
async def test_a_child_that_cannot_go_on_is_not_started_again(tmp_path: Path, code: int) -> None:
    made = Counted(tmp_path / "noted", code=code)
    keeping = asyncio.ensure_future(made.child.keep())
    await until(lambda: made.noted == ["started"])
    end(made.child)
    with pytest.raises(Stop, match="counter cannot go on") as stop:
        await asyncio.wait_for(keeping, 20)
    assert (stop.value.code, made.noted) == (code, ["started"])


class Hopeless(Child):
    """It ends before it has begun."""

    starts = 0

    def __init__(self) -> None:
        super().__init__(Order("hopeless", "tests.integration.there_is_no_such_module", None, 10), ())

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        return super()._start()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses between two runs."""
    monkeypatch.setattr(processes, "_FIRST_PAUSE_S", 0)


@pytest.mark.usefixtures("at_once")
async def test_a_child_that_was_never_ready_is_given_up() -> None:
    child = Hopeless()
    with pytest.raises(Stop, match="hopeless was started 5 times and ended with exit code 1 each time") as stop:
        await asyncio.wait_for(child.keep(), 20)
    assert (stop.value.code, child.starts) == (FAILED, 5)


@pytest.mark.usefixtures("at_once")
async def test_a_child_that_was_ready_once_is_started_again_and_again() -> None:
    child = Hopeless()
    child.was_ready = True
    keeping = asyncio.ensure_future(child.keep())
    await until(lambda: child.starts > 6)
    await child.stop(asyncio.Event())
    await keeping


# ---- a stop


async def stopped(made: Counted, hurry: asyncio.Event, at: Callable[[], bool], then: Callable[[], None] = lambda: None) -> int:
    """Its exit code. `at`: when it is asked to stop; `then`: what is done when it was asked."""
    keeping = asyncio.ensure_future(made.child.keep())
    await until(at)
    stopping = asyncio.ensure_future(made.child.stop(hurry))
    if made.noted[-1:] != ["asked"] and not hurry.is_set():
        await until(lambda: made.noted[-1:] == ["asked"] or stopping.done())
        then()
    async with asyncio.timeout(20):
        code = await stopping
        await keeping
    return code


async def test_a_child_that_is_stopped_while_it_still_begins_ends_in_order_and_is_not_started_again(tmp_path: Path) -> None:
    made = Counted(tmp_path / "noted")
    assert await stopped(made, asyncio.Event(), lambda: made.child.running) == OK
    assert made.noted == ["started", "asked"]


async def test_a_child_that_does_not_stop_is_killed_when_patience_is_over(tmp_path: Path) -> None:
    made = Counted(tmp_path / "noted", stubborn=True, patience_s=1)
    assert await stopped(made, asyncio.Event(), lambda: made.noted == ["started"]) == -signal.SIGKILL
    assert made.noted == ["started", "asked"]


async def test_a_hurry_ends_patience(tmp_path: Path) -> None:
    made, hurry = Counted(tmp_path / "noted", stubborn=True, patience_s=3600), asyncio.Event()
    assert await stopped(made, hurry, lambda: made.noted == ["started"], hurry.set) == -signal.SIGKILL


async def test_a_stop_between_two_runs_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_FIRST_PAUSE_S", 3600)
    monkeypatch.setattr(processes, "_LONGEST_PAUSE_S", 3600)
    made = Counted(tmp_path / "noted")
    keeping = asyncio.ensure_future(made.child.keep())
    await until(lambda: made.noted == ["started"])
    end(made.child)
    await until(lambda: not made.child.running)
    async with asyncio.timeout(20):
        assert await made.child.stop(asyncio.Event()) == OK
        await keeping
    assert made.noted == ["started"]


# ---- what it inherits, and leaves


async def test_a_child_has_what_it_inherits_and_a_session_of_its_own_and_leaves_nothing_open(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    made = Counted(tmp_path / "noted", inherited=(writing,))
    open_before = set(os.listdir("/proc/self/fd"))
    keeping = asyncio.ensure_future(made.child.keep())
    await until(lambda: made.noted == ["started"])
    child = made.child._process
    assert child is not None and os.getsid(child.pid) == child.pid, "Ctrl-C is for the supervisor alone"
    assert os.path.samestat(os.stat(f"/proc/{child.pid}/fd/{writing}"), os.fstat(writing))
    await made.child.stop(asyncio.Event())
    await keeping
    assert set(os.listdir("/proc/self/fd")) == open_before
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "ended with exit code 0"), (4, "ended with exit code 4"), (-9, "was ended by SIGKILL"), (-99, "was ended by signal 99")],
)
def test_an_end_in_words(code: int, words: str) -> None:
    assert in_words(code) == words


# ---- a hangup


@pytest.mark.parametrize(
    ("reloads", "terminal", "ignored", "meant"),
    [
        (True, None, False, "reload"),
        (True, None, True, "reload"),
        (True, 0, False, "stop"),
        (True, 2, False, "stop"),
        (True, 0, True, "nothing"),
        (False, None, False, "stop"),
        (False, None, True, "nothing"),
    ],
)
async def test_what_a_hangup_means(monkeypatch: pytest.MonkeyPatch, reloads: bool, terminal: int | None, ignored: bool, meant: str) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == terminal)
    heard = ["nothing"]
    loop = asyncio.get_running_loop()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda *_: heard.append("nobody"))
    try:
        listen_to_hangup(loop, reload=(lambda: heard.append("reload")) if reloads else None, stop=lambda: heard.append("stop"))
        after = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, after.set)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR1)  # once this is heard, whatever the hangup means is done
        await asyncio.wait_for(after.wait(), 20)
        assert heard[-1] == meant
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
