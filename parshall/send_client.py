"""Sends batches over HTTP, several at a time, the same bytes again until each is answered.

Belongs here: connections, tries and pauses. Must not know: the terminal, how files are read, what the numbers look like at the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

import aiohttp

from parshall.errors import FAILED, UNAVAILABLE, USAGE, Stop
from parshall.send_answers import NOT_JSON, Meaning, NotParshall, Reject, Summary, meaning, pause_ms, problem_text, read_verdicts
from parshall.send_lines import BadLine, Batch

T = TypeVar("T")

_HELD_S = 1.0  # how long lines that were read wait for others to come along
_MOST_BYTES = 1 << 20  # of an answer
_MOST_BYTES_A_LINE = 8192  # and as much again for each event that it may speak of
_ANSWER_S = 60  # longer than the service's own deadline for a request


class Target(NamedTuple):
    url: str  # of the service, without the path
    key: str
    parallel: int
    patience_s: int  # how long one batch is tried


class GaveUp(Stop):
    """Later it may be otherwise."""


class Sender:
    """`on_reject` and `on_wait` are told on the way; `summary` always says what is certain so far, `answered` how many lines of each file
    that is about."""

    def __init__(
        self, target: Target, *, entropy: Callable[[int], bytes], on_reject: Callable[[Reject], None], on_wait: Callable[[str], None]
    ) -> None:
        self.summary = Summary()
        self.answered: Counter[str] = Counter()
        self._target = target
        self._url = f"{target.url.rstrip('/')}/v1/events"
        self._entropy = entropy
        self._on_reject = on_reject
        self._on_wait = on_wait

    async def send(
        self, batches: Iterator[Batch | BadLine], on_progress: Callable[[], None], held: Callable[[], Batch | None] = lambda: None
    ) -> None:
        """Return when all are answered. Raises Stop when one cannot be. `held` gives what `batches` has read and waits with."""
        source = _Ahead(batches, self._target.parallel, held)
        headers = {"Authorization": f"Bearer {self._target.key}", "Content-Type": "application/json"}
        connector = aiohttp.TCPConnector(limit=self._target.parallel)
        async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(total=_ANSWER_S)) as session:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(self._target.parallel):
                        tasks.create_task(self._worker(session, source, on_progress))
            except BaseExceptionGroup as failed:  # not `except*`: up to Python 3.11.3 what is raised in there is put into a group again
                stops, others = failed.split(Stop)
                if stops is None or others is not None:
                    raise
                raise stops.exceptions[0] from None
            finally:
                source.stop()
        if source.failure is not None:
            raise source.failure

    async def _worker(self, session: aiohttp.ClientSession, source: _Ahead[Batch | BadLine], on_progress: Callable[[], None]) -> None:
        while (item := await source.next()) is not None:
            if isinstance(item, BadLine):
                self.summary.by_code[NOT_JSON] += 1
                self.answered[item.file] += 1
                self._on_reject(Reject(item.file, item.line, NOT_JSON, item.detail, None))
            else:
                await self._deliver(session, item)
            on_progress()

    async def _deliver(self, session: aiohttp.ClientSession, batch: Batch) -> None:
        give_up_s = asyncio.get_running_loop().time() + self._target.patience_s
        attempt = 0
        self.summary.requests += 1
        while True:
            status, retry_after, body = await self._try(session, batch)
            match meaning(status) if status else Meaning.AGAIN:
                case Meaning.VERDICTS:
                    return self._take(batch, body)
                case Meaning.TOO_LARGE if len(batch.lines) > 1:
                    for half in batch.halves():
                        await self._deliver(session, half)
                    return None
                case Meaning.AGAIN:
                    await self._wait(attempt, retry_after, give_up_s, _why(status, body))
                    attempt += 1
                    self.summary.retries += 1
                case _:
                    raise Stop(self._refused(status, body), USAGE if status in (401, 403, 404) or 300 <= status < 400 else FAILED)

    async def _try(self, session: aiohttp.ClientSession, batch: Batch) -> tuple[int, str | None, bytes]:
        """Status 0: no answer; whether the events were counted nobody knows, and sending them again is safe."""
        try:
            async with session.post(self._url, data=batch.body, allow_redirects=False) as answer:
                most = _MOST_BYTES + _MOST_BYTES_A_LINE * len(batch.lines)
                return answer.status, answer.headers.get("Retry-After"), await self._read(answer.content, most)
        except aiohttp.InvalidURL as error:
            raise Stop(f"{self._target.url} is not a URL; use one as in http://127.0.0.1:8080.", USAGE) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return 0, None, (str(error) or type(error).__name__).encode()

    async def _read(self, content: aiohttp.StreamReader, most: int) -> bytes:
        parts: list[bytes] = []
        async for part in content.iter_any():
            parts.append(part)
            most -= len(part)
            if most < 0:
                raise Stop(f"{self._url} does not answer as Parshall does: the answer does not end.", USAGE)
        return b"".join(parts)

    async def _wait(self, attempt: int, retry_after: str | None, give_up_s: float, why: str) -> None:
        pause = pause_ms(attempt, retry_after, datetime.now(UTC), self._entropy(1)[0])
        if asyncio.get_running_loop().time() + pause / 1000 > give_up_s:
            raise GaveUp(f"Gave up after {self._target.patience_s} s at {self._target.url}: {why}.", UNAVAILABLE)
        self._on_wait(f"{why}; again in {(pause + 500) // 1000} s")
        await asyncio.sleep(pause / 1000)
        self._on_wait("")

    def _take(self, batch: Batch, body: bytes) -> None:
        try:
            verdicts = read_verdicts(batch, body)
        except NotParshall as error:
            raise Stop(f"{self._url} does not answer as Parshall does: {error}.", USAGE) from error
        self.summary.add(verdicts)
        self.answered[batch.file] += len(batch.lines)
        for error_ in verdicts.errors:
            self._on_reject(Reject(batch.file, batch.lines[error_.index], error_.code, error_.detail, error_.id))

    def _refused(self, status: int, body: bytes) -> str:
        said = problem_text(body)
        match status:
            case 401:
                return f"{self._target.url} does not know this key: give the right one with --key or PARSHALL_KEY."
            case 403:
                return f"This key may not send events to {self._target.url} (it lacks the scope `ingest`)."
            case 404:
                return f"There is no /v1/events at {self._target.url}: is this the address of Parshall?"
            case 301 | 302 | 303 | 307 | 308:
                return f"{self._target.url} sends on to another address, and is not Parshall: give the address of Parshall with --url."
            case 413:
                return f"One event alone is larger than {self._target.url} takes: {said}"
            case _:
                return f"{self._target.url} refused the request with {status}: {said}"


def _why(status: int, body: bytes) -> str:
    if not status:
        return f"no answer ({body.decode(errors='replace')})"
    said = problem_text(body).rstrip(".")
    return f"{status} {said}" if said else f"status {status}"


class _Ahead(Generic[T]):
    """Reads an iterator that blocks in a thread of its own, a few items ahead. The thread may hang in a read: nobody waits for it.

    An iterator that fails is at its end there, so that what came before is dealt with as always; `failure` says why. Where nothing comes
    for a while, `held` is asked for what the iterator has begun.
    """

    def __init__(self, iterator: Iterator[T], ahead: int, held: Callable[[], T | None]) -> None:
        self._held = held
        self._loop = asyncio.get_running_loop()
        self.failure: Exception | None = None
        self._queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(ahead)
        self._stopped = False
        threading.Thread(target=self._read, args=(iterator,), daemon=True, name="reader").start()

    async def next(self) -> T | None:
        """None at the end, to every caller."""
        while True:
            try:
                async with asyncio.timeout(_HELD_S):
                    item = await self._queue.get()
                break
            except TimeoutError:
                if (begun := self._held()) is not None:
                    return begun
        if isinstance(item, Exception):
            self.failure, item = item, None
        if item is None:
            self._queue.put_nowait(None)
        else:
            self._room.release()
        return item

    def stop(self) -> None:
        self._stopped = True
        self._room.release()

    def _read(self, iterator: Iterator[T]) -> None:
        last: Exception | None = None
        try:
            for item in iterator:
                self._room.acquire()
                if self._stopped:
                    return
                self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except Exception as error:
            last = error
        if not self._stopped:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, last)
