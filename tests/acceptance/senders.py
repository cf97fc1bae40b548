"""Sends traffic as many edge workers would, and records what was answered, for the oracle.

Belongs here: cutting files into requests, packing, retrying, the record. Must not know: what must come of it, how services run.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.traffic import Traffic, file_name

SIZES = (1, 2, 7, 50, 200, 1000)
VERDICTS = (200, 207, 422)
CONTENT_TYPES = ("application/json", "application/cloudevents-batch+json", "application/json; charset=utf-8")
PATIENCE_S = 120  # after so long without an answer that decides, a request has failed


class NotAnswered(AssertionError):
    """A request has not been answered for as long as a sender has patience."""


@dataclass(frozen=True)
class Piece:
    """Lines of a file that go out as one request."""

    tenant: str
    file: str
    first: int
    lines: tuple[bytes, ...]


class Answered(NamedTuple):
    """When a request was answered with a verdict."""

    at_s: float
    events: int
    waited_s: float  # since its first try


@dataclass
class Record:
    """What was answered."""

    sent: list[dict[str, Any]] = field(default_factory=list)  # requests, in the order of their answers, as the oracle reads them
    times: list[Answered] = field(default_factory=list)  # of requests; `sent` has one entry for each of several answers
    rejected: dict[str, Counter[str]] = field(default_factory=dict)  # tenant -> code -> events
    unanswered: int = 0  # tries that ended without a verdict
    tries: Counter[int] = field(default_factory=Counter)  # statuses; 0: no answer
    refusals: Counter[str] = field(default_factory=Counter)  # what the answers said that were no verdict

    def answered(self, piece: Piece, answer: dict[str, Any]) -> None:
        received = len(piece.lines)
        assert answer["received"] == received == answer["accepted"] + answer["duplicate"] + answer["rejected"], answer
        assert answer["durability"] == "journaled"
        assert answer["rejected"] == len(answer["errors"])
        self.sent.append({"tenant": piece.tenant, "file": piece.file, "first": piece.first, "count": received})
        codes = self.rejected.setdefault(piece.tenant, Counter())
        codes.update(error["code"] for error in answer["errors"])

    def write(self, file: Path) -> None:
        file.write_text("".join(json.dumps(request) + "\n" for request in self.sent))


def cut(tenant: str, phase: int, lines: Sequence[bytes], sizes: Sequence[int], pick: random.Random) -> list[Piece]:
    pieces = []
    first = 0
    while first < len(lines):
        size = pick.choice(sizes)
        pieces.append(Piece(tenant, file_name(tenant, phase), first, tuple(lines[first : first + size])))
        first += size
    return pieces


# Which URL a try goes to: (number of the try, where the last one went) -> URLs; several: at once.
Route = Callable[[int, Sequence[str]], Sequence[str]]


class Sender:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        keys: dict[str, str],
        record: Record,
        pick: random.Random,
        route: Route,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._session = session
        self._patience_s = patience_s
        self._keys = keys
        self._record = record
        self._pick = pick
        self._route = route

    async def send(self, piece: Piece) -> None:
        """Until it is answered."""
        body, headers = self._request(piece)
        first_s = time.monotonic()
        urls: Sequence[str] = ()
        for attempt in range(10_000):
            urls = self._route(attempt, urls)
            answers = await asyncio.gather(*(self._try(url, body, headers) for url in urls))
            good = [answer for answer in answers if answer is not None]
            for answer in good:
                self._record.answered(piece, answer)
            if good:
                now_s = time.monotonic()
                self._record.times.append(Answered(now_s, len(piece.lines), now_s - first_s))
                return
            waited_s = time.monotonic() - first_s
            if waited_s >= self._patience_s:
                raise NotAnswered(f"{piece.file} line {piece.first} was not answered: {dict(self._record.tries)}")
            await asyncio.sleep(min(0.02 * 2**attempt, 0.5))

    async def _try(self, url: str, body: bytes, headers: dict[str, str]) -> dict[str, Any] | None:
        try:
            async with self._session.post(f"{url}/v1/events", data=body, headers=headers) as answer:
                content = await answer.read()
                self._record.tries[answer.status] += 1
                if answer.status in VERDICTS:
                    return _checked(answer.status, json.loads(content))
                assert answer.status in (429, 503), f"{answer.status}: {content[:500]!r}"
                assert int(answer.headers["Retry-After"]) > 0
                self._record.refusals[json.loads(content)["detail"]] += 1
        except (aiohttp.ClientError, OSError, TimeoutError):
            self._record.tries[0] += 1
        self._record.unanswered += 1
        return None

    def _request(self, piece: Piece) -> tuple[bytes, dict[str, str]]:
        single = len(piece.lines) == 1 and self._pick.random() < 0.5 and piece.lines[0].startswith(b"{")
        body = piece.lines[0] if single else b"[" + b",".join(piece.lines) + b"]"
        content_type = "application/cloudevents+json" if single else self._pick.choice(CONTENT_TYPES)
        headers = {"Authorization": f"Bearer {self._keys[piece.tenant]}", "Content-Type": content_type}
        if self._pick.random() < 0.3:
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        return body, headers


def _checked(status: int, answer: dict[str, Any]) -> dict[str, Any]:
    expected = 200 if not answer["rejected"] else 422 if answer["rejected"] == answer["received"] else 207
    assert status == expected, f"{status} for {answer}"
    return answer


class Gate:
    """Holds all senders up between two requests."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._quiet = asyncio.Event()
        self._busy = 0

    async def __aenter__(self) -> None:
        await self._open.wait()
        self._busy += 1

    async def __aexit__(self, *_: object) -> None:
        self._busy -= 1
        self._quiet.set()

    async def close(self) -> None:
        """Return when nothing is under way."""
        self._open.clear()
        while self._busy:
            self._quiet.clear()
            await self._quiet.wait()

    def open(self) -> None:
        self._open.set()


@dataclass(frozen=True)
class Sending:
    """How traffic is sent."""

    seed: int
    senders: int
    again_per_mille: int  # requests of the files without order that are sent again after their answer, as if it had been lost
    sizes: Sequence[int] = SIZES
    gate: Gate = field(default_factory=Gate)
    events_per_s: int | None = None  # None: as fast as they are answered
    try_s: float = PATIENCE_S  # after so long a try has no answer
    patience_s: float = PATIENCE_S

    def pieces(self, traffic: Traffic) -> list[Piece]:
        """Of the files without order."""
        pick = random.Random(self.seed)
        pieces = [piece for tenant, lines in traffic.unordered.items() for piece in cut(tenant, 1, lines, self.sizes, pick)]
        pieces += pick.sample(pieces, len(pieces) * self.again_per_mille // 1000)
        pick.shuffle(pieces)
        return pieces

    async def send_all(self, pieces: Sequence[Piece], keys: dict[str, str], record: Record, route: Route) -> None:
        """By many senders at once."""
        async with self._session() as session:
            queue = self._timed(pieces)

            async def work(number: int) -> None:
                sender = Sender(session, keys, record, random.Random(f"{self.seed}/{number}"), route, self.patience_s)
                for due_s, piece in queue:
                    await asyncio.sleep(due_s - time.monotonic())
                    async with self.gate:
                        await sender.send(piece)

            await asyncio.gather(*(work(number) for number in range(self.senders)))

    def _timed(self, pieces: Sequence[Piece]) -> Iterator[tuple[float, Piece]]:
        """With the time at which each is due."""
        start_s, events = time.monotonic(), 0
        for piece in pieces:
            yield start_s + (events / self.events_per_s if self.events_per_s else 0), piece
            events += len(piece.lines)

    async def send_ordered(self, traffic: Traffic, keys: dict[str, str], record: Record, route: Route) -> None:
        """The files whose order matters, by one sender, after everything else."""
        async with self._session() as session:
            for tenant, lines in traffic.ordered.items():
                sender = Sender(session, keys, record, random.Random(f"{self.seed}/{tenant}"), route, self.patience_s)
                for piece in cut(tenant, 2, lines, self.sizes, random.Random(f"{self.seed}/ordered")):
                    await sender.send(piece)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.try_s), connector=aiohttp.TCPConnector(limit=0))
