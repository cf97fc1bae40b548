"""A lane: the calls of one shard, from the requests that wait for it to the replies in call order.

Belongs here: what there is once for each claim store: its connection, its call numbers, its queue, and the history that it is told. Must
not know: the journal, counters, answers; what is done with a reply is the writer's (`Answered`), and so is who gets in.

A tenant has one shard, so a request has one lane, and one that stands still holds up nobody else's requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dedupe.port import Claims, Refused, Reply, State
from ingest.batch import Rejection
from ingest.calls import PlannedCall, Request, plan, refuse
from ingest.fair_shares import Shares, TurnQueue
from ingest.history import JournalHistory

# A call costs some hundred microseconds whatever is in it, its record's sync included. So while calls carry many requests, the next one
# waits a little for more of them; not while requests come singly, nor for what is large anyway.
_MANY_REQUESTS = 4
_LINGER_S = 0.002
_ENOUGH_EVENTS = 1000


class Answered(NamedTuple):
    """A call that is finished, in its turn."""

    call: PlannedCall
    reply: Reply
    too_late: Sequence[tuple[Request, Rejection]]
    sent_s: float


class Lane:
    def __init__(
        self,
        shard: int,
        claims: Claims,
        *,
        calls_in_flight: int,
        events_per_call: int,
        waiting_events: Shares,
        is_open: Callable[[Request], bool],
        on_answered: Callable[[Lane, Answered], None],
    ) -> None:
        """`waiting_events`: shared by all lanes. `is_open`: whether anybody still waits for the answer to a request."""
        self.shard = shard
        self.claims = claims
        self._history: JournalHistory | None = None
        self.again: TurnQueue[Request] = TurnQueue()  # to be asked about again: some of their events were pending
        self.waiting: TurnQueue[Request] = TurnQueue()
        self.calls: dict[int, PlannedCall] = {}  # sent, not yet in the journal
        self.next_call = 1
        self.next_append = 1
        self.last_call_s = 0.0
        self._due: asyncio.Handle | None = None  # the sending of what has come
        self._lingering = False
        self._come_events = 0  # since the last sending
        self._last_requests = 0  # in the last call
        self._again_first = False  # in the last call
        self._most_calls = calls_in_flight
        self._most_events = events_per_call
        self._waiting_events = waiting_events
        self._is_open = is_open
        self._on_answered = on_answered
        self._sent_s: dict[int, float] = {}
        self._replies: dict[int, Reply] = {}
        self._too_late: dict[int, list[tuple[Request, Rejection]]] = {}

    @property
    def history(self) -> JournalHistory:
        """What the claim store is told of the journal."""
        assert self._history is not None, "the writer opens first"
        return self._history

    def begin(self, history: JournalHistory) -> None:
        """The writer is open: `claims.run` may follow."""
        self._history = history
        self.last_call_s = asyncio.get_running_loop().time()

    @property
    def open(self) -> bool:
        return self.claims.state is State.OPEN

    @property
    def reason(self) -> str:
        """Why it is not open, in words."""
        return str(getattr(self.claims, "reason", self.claims.state.value))

    @property
    def appended(self) -> int:
        """Its last call that is in the journal's queue."""
        return self.next_append - 1

    # ---- requests

    def push(self, request: Request) -> None:
        self.waiting.push(request.batch.tenant, request)
        self._waiting_events.take(request.batch.tenant, request.batch.received)
        self._come_events += request.batch.received
        self._see_to_sending()

    def _see_to_sending(self) -> None:
        """Once this turn of the loop is over, at the soonest: what arrives within it shares a call."""
        loop = asyncio.get_running_loop()
        enough = self._come_events >= _ENOUGH_EVENTS
        if self._due is None and self._last_requests >= _MANY_REQUESTS and not enough:
            self._lingering = True
            self._due = loop.call_later(_LINGER_S, self._send_what_came)
        elif self._due is None or (self._lingering and enough):
            if self._due is not None:
                self._due.cancel()
            self._lingering = False
            self._due = loop.call_soon(self._send_what_came)

    def _send_what_came(self) -> None:
        self._due = None
        self._lingering = False
        self._come_events = 0
        self.send_calls()

    def drop_late(self) -> None:
        """Those at the head of the queue that nobody waits for any more: they hold room that other lanes share."""
        while (first := self.waiting.first()) is not None and not self._is_open(first):
            self._pop()

    def _pop(self) -> Request:
        request = self.waiting.pop()
        self._waiting_events.give(request.batch.tenant, request.batch.received)
        return request

    def _next_requests(self) -> list[Request]:
        """Who asks again and who asks for the first time come first by turns: a large request that is pending for long, and so fills a call
        each time, shall not keep everybody else waiting."""
        requests: list[Request] = []
        self._again_first = not self._again_first
        room = self._most_events
        if self._again_first:
            room = self._take(self.again, self.again.pop, requests, room)
        room = self._take(self.waiting, self._pop, requests, room)
        if not self._again_first:
            self._take(self.again, self.again.pop, requests, room)
        return requests

    def _take(self, queue: TurnQueue[Request], pop: Callable[[], Request], requests: list[Request], room: int) -> int:
        """As many as fit; the first of a call fits whatever its size. Returns the room that is left."""
        while (first := queue.first()) is not None and (not requests or first.undecided <= room):
            request = pop()
            if self._is_open(request):  # else its deadline passed while it waited: nothing of it is under way
                requests.append(request)
                room -= request.undecided
        return room

    # ---- calls

    def send_calls(self) -> None:
        while len(self.calls) < self._most_calls:
            requests = self._next_requests()
            if not requests:
                return
            self.send(requests)

    def send(self, requests: Sequence[Request]) -> None:
        """A call for these; for nobody: an empty one, which brings the horizon."""
        self._last_requests = len(requests)
        call = plan(self.next_call, requests)
        self.next_call += 1
        self.calls[call.number] = call
        self._sent_s[call.number] = self.last_call_s = asyncio.get_running_loop().time()
        self.claims.send(call.to_send(), self.on_reply)

    def on_reply(self, reply: Reply) -> None:
        if isinstance(reply, Refused):
            rest, too_late = refuse(self.calls[reply.number], reply.horizon_us)
            self._too_late.setdefault(reply.number, []).extend(too_late)
            self.calls[reply.number] = rest
            if rest.sections:
                self.claims.send(rest.to_send(), self.on_reply)
                return
        self._replies[reply.number] = reply
        while self.next_append in self._replies:  # in call order, whatever the order of execution was
            number = self.next_append
            answered = Answered(self.calls.pop(number), self._replies.pop(number), self._too_late.pop(number, ()), self._sent_s.pop(number))
            self.next_append += 1
            self._on_answered(self, answered)
        if not self._lingering:
            self.send_calls()
