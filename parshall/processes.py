"""One child process of a supervisor: how it is started, given its order, watched, started again, and stopped.

Must not know: what the child does, which others there are.

A child is a Python module run by this interpreter. Its order comes pickled on standard input: it is made by the same code a moment
before, holds passwords, and must not show in a process list. The kernel sends it SIGTERM when the supervisor dies.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from parshall.embedded_postgres import die_with_parent
from parshall.errors import FAILED, OK, REFUSED, USAGE, Stop

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 15.0
_HEALTHY_S = 30.0  # a child that ran so long starts anew with short pauses
_MOST_STARTS = 5  # of a child that was never ready
_HEEDED_S = 5.0  # who ends so soon after a signal may have been ending when it came; heeding one twice does no harm


class Order(NamedTuple):
    """What a child is told to do."""

    name: str  # worker-0
    module: str  # parshall.worker
    content: Any  # whatever the module's main expects; picklable
    patience_s: int  # how long it may take to stop


class Child:
    def __init__(self, order: Order, inherited: tuple[int, ...]) -> None:
        self.order = order
        self.was_ready = False  # set by whoever sees it serve
        self._inherited = inherited
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = asyncio.Event()
        self._owed: set[signal.Signals] = set()  # told while it did not run
        self._told_s: dict[signal.Signals, float] = {}  # when it was told while it ran

    async def keep(self) -> None:
        """Run it, again and again, until `stop`. Raises Stop when starting it once more cannot help."""
        pause_s = _FIRST_PAUSE_S
        starts = 0
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began_s = loop.time()
            starts += 1
            process = self._process = self._start()
            self._deliver_owed(process)
            code = await ended(process)
            if self._stop.is_set():
                return
            self._give_up_if_hopeless(code, starts)
            self._owe_again(loop.time())
            pause_s = _FIRST_PAUSE_S if loop.time() - began_s > _HEALTHY_S else min(pause_s * 2, _LONGEST_PAUSE_S)
            log.warning("a process ended and is started again", child=self.order.name, how=in_words(code), pause_ms=int(pause_s * 1000))
            await _first_of(self._stop.wait(), timeout_s=pause_s)

    def _give_up_if_hopeless(self, code: int, starts: int) -> None:
        if code in (REFUSED, USAGE):
            raise Stop(f"{self.order.name} cannot go on; the reason stands above.", code)
        if not self.was_ready and starts >= _MOST_STARTS:
            raise Stop(f"{self.order.name} was started {starts} times and {in_words(code)} each time; the reason stands above.", FAILED)

    async def stop(self, hurry: asyncio.Event) -> int:
        """Ask it to stop, and wait as long as its patience says; at once without asking when in a hurry. Returns its exit code."""
        self._stop.set()
        process = self._process
        if process is None or process.poll() is not None:
            return OK
        if not hurry.is_set():
            process.terminate()
            await _first_of(ended(process), hurry.wait(), timeout_s=self.order.patience_s)
        if process.poll() is None:
            log.warning("a process is killed, what it had not finished is finished at the next start", child=self.order.name)
            process.kill()
        return await ended(process)

    def tell(self, number: signal.Signals) -> None:
        """A signal. Between two runs, and before the first, it is owed: the next run gets it, once."""
        if self._process is not None and self.running:
            self._process.send_signal(number)
            self._told_s[number] = asyncio.get_running_loop().time()
        else:
            self._owe(number)

    def _owe(self, number: signal.Signals) -> None:
        self._owed.add(number)
        log.info("a process does not run now and gets the signal when it starts", child=self.order.name, signal=number.name)

    def _owe_again(self, now_s: float) -> None:
        """What it was told a moment before it ended: a process that is ending takes signals and heeds none."""
        told_s, self._told_s = self._told_s, {}
        for number, at_s in told_s.items():
            if now_s - at_s < _HEEDED_S:
                self._owe(number)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _deliver_owed(self, process: subprocess.Popen[bytes]) -> None:
        """Once: were it what ends the process, it would end each run. It need not be able to heed them yet: the kernel keeps them for it
        until it is."""
        owed, self._owed = self._owed, set()
        for number in owed:
            process.send_signal(number)

    def _start(self) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        order = _file_of(pickle.dumps(self.order.content))
        try:
            return subprocess.Popen(
                [sys.executable, "-m", self.order.module, self.order.name],
                stdin=order,
                start_new_session=True,  # Ctrl-C is for the supervisor alone, which stops the children in order
                pass_fds=self._inherited,
                preexec_fn=lambda: _before_exec(parent),
            )
        finally:
            os.close(order)


def _before_exec(parent: int) -> None:
    """Signals wait until the child can heed them: ended while it still imports, it would leave undone what it does at its stop."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    die_with_parent(signal.SIGTERM, parent)


def heed_signals() -> None:
    """In the child, once its handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})


def listen_to_hangup(loop: asyncio.AbstractEventLoop, *, reload: Callable[[], None] | None, stop: Callable[[], None]) -> None:
    """SIGHUP means to read the configuration again, but from a terminal, where it means that it is gone. What `nohup` ignores stays so."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    if reload is not None and not any(map(os.isatty, range(3))):
        loop.add_signal_handler(signal.SIGHUP, reload)
    elif not ignored:
        loop.add_signal_handler(signal.SIGHUP, stop)


def read_order() -> Any:
    """In the child: what it was told."""
    return pickle.load(sys.stdin.buffer)


def _file_of(content: bytes) -> int:
    """In memory only, and of any size: a pipe would hold up the supervisor until the child reads."""
    descriptor = os.memfd_create("order", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait without a thread or a poll."""
    if (code := process.poll()) is not None:
        return code
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


def in_words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def _first_of(*waits: Any, timeout_s: float) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
