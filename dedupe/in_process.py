"""Claims in this process: the Claims port over a ClaimTable, for one writer that has no claim store beside it.

Belongs here: when the table is asked, and the bound. The law itself is in claim_table.py. Must not know: the journal's files, Redis.

The table dies with the process and is rebuilt from `history.claims()` at the start, by the same steps as over Redis. It is bounded: from
`most_claims` on the state is FULL. Calls that were sent are still executed (a call once sent is finished), so the bound is overstepped by
what is under way; new ones ought to wait (503). It opens again by itself when claims have grown old. A claim takes 150 to 200 bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from dedupe.claim_table import ClaimTable
from dedupe.port import Call, History, Identity, Refused, Reply, State, Verdicts
from dedupe.rebuild import StartOver, enter, refused
from dedupe.scripts import Context, context_of

LOOK_S = 0.5  # how often a full table looks for claims grown old
FREED_A_CALL = 4000  # dropped claims freed along with each call, so that no single step takes long
ERA_BYTES = 16

OnReply = Callable[[Reply], None]


class InProcessClaims:
    """The Claims port for one incarnation. `reason` says in words why the state is not OPEN.

    `table` is given only where several incarnations share one, as tests do.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        clock_us: Callable[[], int],
        entropy: Callable[[int], bytes],
        most_claims: int = 5_000_000,
        table: ClaimTable | None = None,
    ) -> None:
        self.reason = "not started yet"
        self.table = table if table is not None else ClaimTable(clock_us, entropy(20).hex())
        self._identity = identity
        self._clock_us = clock_us
        self._entropy = entropy
        self._most_claims = most_claims
        self._serving = False
        self.accepted = False
        self.clock_off_us: int | None = None
        self._rebuilding = False
        self._session = 0
        self._known_in = ""
        self._branch = b""
        self._context: Context | None = None
        self._unanswered: deque[tuple[Call, OnReply]] = deque()
        self._scheduled = False
        self._ended: asyncio.Future[None] | None = None
        self._mark = 0
        self._closing = False

    @property
    def state(self) -> State:
        if self._serving:
            return State.FULL if self.table.size >= self._most_claims else State.OPEN
        return State.REBUILDING if self._rebuilding else State.DISCONNECTED

    async def run(self, history: History) -> None:
        while not self._closing:
            try:
                await self._enter(history)
                await self._serve()
            except StartOver as error:
                self.reason = str(error)
            finally:
                self._serving = self._rebuilding = False
            await asyncio.sleep(0)

    async def _enter(self, history: History) -> None:
        self._session += 1
        self._context = context_of(self._identity, history.writer, history.incarnation, self._session)
        self._known_in, self._branch = await enter(
            self._ask,
            history,
            clock_us=self._clock_us,
            era=self._entropy(ERA_BYTES),
            known_in=self._known_in,
            on_joined=lambda: None,
            on_rebuilding=self._on_rebuilding,
        )

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._unanswered = deque(sorted(self._unanswered, key=lambda waiting: waiting[0].number))
        self._serving, self._rebuilding, self.reason = True, False, ""
        self.accepted = True
        self._publish_mark()
        self._schedule()
        while not self._closing:
            await asyncio.wait((self._ended,), timeout=LOOK_S)
            if self._ended.done():
                self._ended.result()
                return
            if self.state is State.FULL:
                self._make_room()

    def _make_room(self) -> None:
        assert self._context is not None
        self.reason = f"{self.table.size} claims are alive, at most {self._most_claims} may be"
        self.table.rotate(self._context, self._clock_us())
        self.table.free(100 * FREED_A_CALL)

    def _on_rebuilding(self, reason: str) -> None:
        self._rebuilding, self.reason = True, reason

    async def _ask(self, name: str, *arguments: object) -> Sequence[object]:
        await asyncio.sleep(0)  # a long journal is read in steps, others run in between
        return cast(Sequence[object], getattr(self.table, name)(self._context, *arguments))

    # ---- calls

    def send(self, call: Call, on_reply: OnReply) -> None:
        self._unanswered.append((call, on_reply))
        self._schedule()

    def _schedule(self) -> None:
        if self._serving and not self._scheduled and self._unanswered:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._execute)

    def _execute(self) -> None:
        self._scheduled = False
        try:
            for _ in range(len(self._unanswered)):  # not those that the replies send
                if not self._serving:
                    return
                self._execute_first()
        except Exception as error:
            self._end(error)
        self._schedule()

    def _execute_first(self) -> None:
        call, on_reply = self._unanswered[0]
        assert self._context is not None
        reply = self.table.claim(
            self._context, call.number, self._mark, self._clock_us(), call.oldest_us, call.newest_us, call.sections, call.copies
        )
        if reply[0] == b"verdicts":
            self._unanswered.popleft()
            on_reply(Verdicts(call.number, *cast(tuple[int, int, int, bytes], reply[1:]), self._branch))
        elif reply[0] == b"late":
            self._unanswered.popleft()
            on_reply(Refused(call.number, cast(int, reply[1])))
        else:
            refused(reply)
        self.table.free(FREED_A_CALL)

    def _end(self, error: Exception) -> None:
        self._serving = False
        assert self._ended is not None
        if not self._ended.done():
            self._ended.set_exception(error)

    # ---- marks, and the end

    def raise_mark(self, mark: int) -> None:
        if mark > self._mark:
            self._mark = mark
            self._publish_mark()

    def _publish_mark(self) -> None:
        if self._serving and self._mark:
            assert self._context is not None
            reply = self.table.claim(self._context, 0, self._mark, self._clock_us(), 0, 0, ())
            if reply[0] != b"marked":
                try:
                    refused(reply)
                except Exception as error:
                    self._end(error)

    async def close(self, last_call: int) -> None:
        assert not self._unanswered, "calls must be finished first"
        self._closing = True
        if self._serving and self._context is not None:
            self.table.close(self._context, last_call)
        self._serving = False
        self.reason = "closed"
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
