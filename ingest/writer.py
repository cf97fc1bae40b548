"""The writer: one journal's pipeline from a decoded request to its answer.

Belongs here: the order of things (claim, journal, merge, sync, answer), back-pressure, opening and draining. Must not know: HTTP, JSON,
which adapters stand behind the ports. What a reply means is in calls.py; the flush is in flusher.py.

The event loop alone decides order: one synchronous step appends a call's record and merges its deltas. A thread only writes and syncs;
then the requests of that call are answered and the mark is raised.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import structlog

from buffer.counter_log import CounterLog, LogUnavailable, Rejected, Retired
from buffer.counters import MeterDefinition, count
from buffer.flush_tuner import FlushTuner
from buffer.journal import Journal
from buffer.journal_records import CallRecord, Closed, Opened, Through
from dedupe.port import Claims, Refused, Reply, State, Verdicts
from ingest.batch import Batch, Rejection
from ingest.calls import Outcome, PlannedCall, Request, plan, refuse, settle
from ingest.fair_shares import Shares, TurnQueue, fits
from ingest.flusher import Flusher
from ingest.history import JournalHistory
from ingest.sink import Unavailable
from ingest.snapshot import Latency

log = structlog.get_logger()

_ASK_AGAIN_S = 0.02  # a pending event waits for another writer's sync, or for a mark that comes within 50 ms
_SWEEP_S = 0.1  # how late a deadline may be noticed
_IDLE_CALL_S = 60.0  # the horizon comes with replies: without any, an idle or full journal would never let a segment go
_LOG_RETRY_S = 1.0
_MOST_RAW_BYTES = 64 * 1024


class WriterLimits(NamedTuple):
    """Bounds of one writer. Beyond them requests are refused before any claim."""

    calls_in_flight: int = 2  # more would only make calls smaller
    events_per_call: int = 8192
    waiting_events: int = 200_000
    live_counters: int = 4_000_000


class CannotStart(Exception):
    """The writer must not serve. One sentence for the operator."""


class _Unsynced(NamedTuple):
    """A call whose record is in the journal's queue."""

    sequence: int
    call: int
    appended_s: float
    decided: Sequence[Request]


class Writer:
    def __init__(
        self,
        journal: Journal,
        claims: Claims,
        counter_log: CounterLog,
        tuner: FlushTuner,
        *,
        tenants: Mapping[int, str],
        limits: WriterLimits,
        clock_us: Callable[[], int],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.journal = journal
        self.claims = claims
        self._log = counter_log
        self._limits = limits
        self._clock_us = clock_us
        self._entropy = entropy
        self._tenants = tenants
        self.incarnation = b""
        self._history: JournalHistory | None = None
        self.meters: dict[int, MeterDefinition] = dict(journal.state.meters)
        self.flusher = Flusher(journal, counter_log, tuner, meters=self.meters, tenants=tenants, clock_us=clock_us)
        self._ask_now: deque[Request] = deque()
        self._waiting: TurnQueue[Request] = TurnQueue()
        self._waiting_events = Shares(limits.waiting_events)
        self._coming_counters = Shares(limits.live_counters)  # of requests that are not in a record yet: they may all become live
        self._open: dict[Request, None] = {}  # every request that is not answered, oldest first
        self._calls: dict[int, PlannedCall] = {}  # sent, not yet in the journal
        self._sent_s: dict[int, float] = {}
        self._replies: dict[int, Reply | None] = {}
        self._too_late: dict[int, list[tuple[Request, Rejection]]] = {}
        self._next_call = 1
        self._last_call_s = 0.0
        self._next_append = 1
        self._unsynced: deque[_Unsynced] = deque()
        self.pending_events = 0  # claimed by another call whose record is not on its disk yet; asked again in a moment
        self.claim_call = Latency()
        self.journal_sync = Latency()
        self.unanswered: dict[int, int] = {}  # events by tenant whose request was refused after it was decoded
        self.refused: dict[tuple[int, str], int] = {}  # requests by tenant and why
        self._refusals = 0
        self._sending = False
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        journal.on_synced = self._on_synced

    @property
    def waiting_requests(self) -> int:
        return self._waiting.length + len(self._ask_now)

    @property
    def waiting_events(self) -> int:
        return self._waiting_events.total

    @property
    def limits(self) -> WriterLimits:
        return self._limits

    @property
    def calls_in_flight(self) -> int:
        return len(self._calls)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    # ---- meters

    def meter_number(self, definition: MeterDefinition) -> int:
        """The number that keys use for a meter; journalled before any delta that uses it."""
        number = self.journal.meter_number(definition)
        self.meters[number] = definition
        return number

    # ---- life

    @property
    def ready(self) -> bool:
        return not self._draining and self.incarnation != b"" and self.claims.state is State.OPEN

    async def open(self) -> None:
        """Connect to the log, join the registry, journal a new incarnation. After it `run`. Raises CannotStart, UnfitLog."""
        self._check_tenants()
        await self._connect_log()
        registry = await self._register()
        incarnation = self._entropy(16)
        self._history = JournalHistory(self.journal, self._log, incarnation, registry)
        self.journal.append(Opened(incarnation, self._clock_us()))
        await self.journal.drain()  # before its first claim: a reused incarnation would make old void claims look committed
        self.incarnation = incarnation
        self._last_call_s = self._now_s()

    def _check_tenants(self) -> None:
        state = self.journal.state
        unknown = (set(state.tallies) | {key[1] for counters in state.deltas.values() for key in counters}) - set(self._tenants)
        if unknown:
            numbers = ", ".join(str(number) for number in sorted(unknown, key=str))
            raise CannotStart(
                f"The journal holds unflushed usage of tenant number {numbers}, which the configuration no longer names: "
                "put it back under [[tenants]]."
            )

    async def _connect_log(self) -> None:
        while True:
            try:
                return await self._log.open()
            except LogUnavailable as error:
                log.warning("waiting for the counter log", error=str(error))
                await asyncio.sleep(_LOG_RETRY_S)

    async def _register(self) -> Mapping[bytes, Retired | None]:
        """Returns the registry."""
        while True:
            try:
                writers = await self._log.writers()
                if not writers and await self._log.has_data():
                    raise CannotStart(
                        "The registry of writers (usage.writers) is empty although counter records exist: events could be counted twice. "
                        "Restore the topic before you start."
                    )
                mine = writers.get(self.journal.writer)
                if mine is not None:
                    raise CannotStart(
                        f"The writer {self.journal.writer.hex()} of this journal was retired: start with an empty data directory."
                    )
                if self.journal.writer not in writers:
                    if not self.journal.state.fresh:
                        raise CannotStart(
                            "The registry of writers (usage.writers) has lost entries, that of this journal among them: events could be "
                            "counted twice. Restore the topic before you start."
                        )
                    await self._log.register(self.journal.writer)
                return writers
            except LogUnavailable as error:
                log.warning("waiting for the registry of writers", error=str(error))
                await asyncio.sleep(_LOG_RETRY_S)

    async def run(self) -> None:
        """Serve until cancelled. Raises what must stop the process: a failed journal, a claim store that forbids going on."""
        assert self._history is not None, "open first"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_journal())
            tasks.create_task(self.claims.run(self._history))
            tasks.create_task(self.flusher.run())
            tasks.create_task(self._sweep())
            tasks.create_task(self._allow_flushes())

    async def _allow_flushes(self) -> None:
        while not self.claims.accepted:
            await asyncio.sleep(_SWEEP_S)
        self.flusher.allowed.set()

    async def _watch_journal(self) -> None:
        await asyncio.shield(self.journal.failed)

    async def learn_horizon(self) -> int:
        """Make an empty call: its reply brings the horizon, microseconds, which is in the journal when this returns."""
        assert self._history is not None
        self._send(plan(self._next_call, ()))
        await self._idle.wait()
        return self._history.horizon_us

    async def drain(self, most_s: float) -> None:
        """Stop in order while `run` still runs: finish requests and calls, flush, journal and publish `closed`.

        Raises TimeoutError after `most_s`; what is not done then is done at the next opening.
        """
        self._draining = True
        async with asyncio.timeout(most_s):
            await self._idle.wait()
            await self.flusher.now()
            last_call = self._next_append - 1
            self.journal.append(Closed(last_call))
            await self.journal.drain()
            await self.claims.close(last_call)

    # ---- requests

    def submit(self, batch: Batch, deadline_s: float) -> asyncio.Future[Outcome]:
        """Take a request; the future ends with its outcome or with Unavailable. Raises Unavailable at once when it cannot be taken."""
        counters = count(batch.deltas)
        self._admit(batch.tenant, events=batch.received, counters=counters, room=_room_for(batch), decoded=batch.received)
        request = Request(batch, deadline_s, asyncio.get_running_loop().create_future())
        self._open[request] = None
        request.coming = counters
        self._coming_counters.take(batch.tenant, counters)
        self._idle.clear()
        self._waiting.push(batch.tenant, request)
        self._waiting_events.take(batch.tenant, batch.received)
        if not self._sending:  # once this turn of the loop is over: what arrives within it shares a call
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send_what_came)
        return request.answer

    def _send_what_came(self) -> None:
        self._sending = False
        self._send_calls()

    def check(self, tenant: int) -> None:
        """Would a request of this tenant be taken now, the smallest one? Costs little, so that refusing costs less than serving."""
        self._admit(tenant, events=1, counters=1, room=0, decoded=0)

    def _admit(self, tenant: int, *, events: int, counters: int, room: int, decoded: int) -> None:
        """`decoded`: events that are known to be in the request."""
        if self._draining:
            raise self._refusal(tenant, decoded, "draining", "This node is shutting down.")
        if self.claims.state is not State.OPEN:
            raise self._refusal(tenant, decoded, "claims", f"The claims are not ready ({self.claims.state.value}).")
        waiting = self._waiting_events
        if not waiting.fits(tenant, events):
            if waiting.crowded(tenant):
                raise self._refusal(tenant, decoded, "waiting", "Too many events of this tenant are waiting.", overloaded=True)
            raise self._refusal(tenant, decoded, "waiting", "Too many events are waiting.")
        if not self._fits_counters(tenant, counters):
            raise self._refusal(tenant, decoded, "counters", "Too many counters wait for the counter log.", overloaded=True)
        if not self.journal.has_room(room):
            raise self._refusal(tenant, decoded, "journal", "The journal has no room left on its disk.", least_s=5)

    def _fits_counters(self, tenant: int, more: int) -> bool:
        """Of the live counters a tenant is taken to hold as large a part as of all deltas that were merged since the last flush."""
        live, coming, limit = self.flusher.live_counters, self._coming_counters, self._limits.live_counters
        total = live + coming.total
        if total + more <= limit - limit // 4:
            return True
        merged = self.flusher.merged_deltas
        mine = coming.held(tenant) + live * merged[tenant] // max(1, merged.total())
        return fits(more, total=total, mine=mine, tenants=max(1, len(merged)), limit=limit)

    def _refusal(self, tenant: int, decoded: int, why: str, reason: str, *, least_s: int = 1, overloaded: bool = False) -> Unavailable:
        if decoded:
            self._count_unanswered(tenant, decoded)
        self.refused[tenant, why] = self.refused.get((tenant, why), 0) + 1
        self._refusals += 1
        spread_s = self._refusals % (3 * least_s)  # senders that were refused together come again apart
        return Unavailable(reason, least_s + spread_s, overloaded=overloaded)

    def _count_unanswered(self, tenant: int, events: int) -> None:
        self.unanswered[tenant] = self.unanswered.get(tenant, 0) + events

    async def _sweep(self) -> None:
        """End requests past their deadline as a whole; what they were granted stays counted and comes back as duplicate."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = self._now_s()
            self._call_when_idle(now_s)
            late = [request for request in self._open if request.deadline_s <= now_s]
            for request in late:
                self._finish(request)
                self._count_unanswered(request.batch.tenant, request.undecided)
                why = (request.batch.tenant, "deadline")
                self.refused[why] = self.refused.get(why, 0) + 1
                if not request.answer.done():
                    request.answer.set_exception(Unavailable("The events could not be settled before the deadline."))

    def _came(self, request: Request) -> None:
        """Its counters are live, or will never be."""
        if request.coming:
            self._coming_counters.give(request.batch.tenant, request.coming)
            request.coming = 0

    def _finish(self, request: Request) -> None:
        self._open.pop(request, None)
        self._came(request)
        if not self._open and not self._calls and not self._unsynced:
            self._idle.set()

    # ---- calls

    def _send_calls(self) -> None:
        while len(self._calls) < self._limits.calls_in_flight:
            requests = self._next_requests()
            if not requests:
                return
            self._send(plan(self._next_call, requests))

    def _send(self, call: PlannedCall) -> None:
        self._next_call += 1
        self._idle.clear()
        self._calls[call.number] = call
        self._sent_s[call.number] = self._last_call_s = self._now_s()
        self.claims.send(call.to_send(), self._on_reply)

    def _call_when_idle(self, now_s: float) -> None:
        """An empty call: it brings the horizon, and its record lets the journal give up what lies behind it."""
        if not self._calls and not self._draining and now_s - self._last_call_s >= _IDLE_CALL_S and self.claims.state is State.OPEN:
            self._send(plan(self._next_call, ()))

    def _next_requests(self) -> list[Request]:
        requests: list[Request] = []
        room = self._limits.events_per_call
        while self._ask_now and (not requests or self._ask_now[0].undecided <= room):
            request = self._ask_now.popleft()
            if request in self._open:
                requests.append(request)
                room -= request.undecided
        while (first := self._waiting.first()) is not None and (not requests or first.undecided <= room):
            request = self._waiting.pop()
            self._waiting_events.give(request.batch.tenant, request.batch.received)
            if request in self._open:  # else its deadline passed while it waited: nothing of it is under way
                requests.append(request)
                room -= request.undecided
        return requests

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply, Refused):
            rest, too_late = refuse(self._calls[reply.number], reply.horizon_us)
            self._too_late.setdefault(reply.number, []).extend(too_late)
            self._calls[reply.number] = rest
            if rest.sections:
                self.claims.send(rest.to_send(), self._on_reply)
                return
        self._replies[reply.number] = reply
        while self._next_append in self._replies:  # in call order, whatever the order of execution was
            self._append(self._next_append)
            self._next_append += 1
        self._send_calls()

    def _append(self, number: int) -> None:
        """One synchronous step: the record enters the journal's queue and its deltas the live counters."""
        reply = self._replies.pop(number)
        call = self._calls.pop(number)
        now_s = self._now_s()
        self.claim_call.observe(int((now_s - self._sent_s.pop(number)) * 1_000_000))
        verdicts = reply if isinstance(reply, Verdicts) else None
        result = settle(call, verdicts, self._too_late.pop(number, ()))
        rejected = [self._rejected_record(tenant, rejection) for tenant, rejection in result.rejected]
        record = CallRecord(
            number=number,
            generation=verdicts.generation if verdicts else 0,
            execution=verdicts.execution if verdicts else 0,
            horizon_us=reply.horizon_us if reply else 0,
            newest_us=result.newest_us,
            claims=result.claims,
            deltas=result.deltas,
            tallies=result.tallies,
            rejected=rejected,
            branch=verdicts.branch if verdicts else b"",
        )
        sequence = self.journal.append(record)
        assert self._history is not None
        self._history.horizon_us = max(self._history.horizon_us, record.horizon_us)  # what a later joining publishes
        for part in call.parts:
            self.flusher.merged_deltas[part.request.batch.tenant] += part.request.coming
            self._came(part.request)
        self.flusher.merge(result.deltas, result.tallies, rejected, Through(self.incarnation, number))
        self._unsynced.append(_Unsynced(sequence, number, now_s, result.decided))
        self._ask_now.extend(result.ask_now)
        if result.pending:
            self.pending_events += sum(request.undecided for request in result.pending)
            asyncio.get_running_loop().call_later(_ASK_AGAIN_S, self._ask_again, result.pending)

    def _ask_again(self, requests: Sequence[Request]) -> None:
        self.pending_events -= sum(request.undecided for request in requests)
        self._ask_now.extend(request for request in requests if request in self._open)
        self._send_calls()

    def _rejected_record(self, tenant: int, rejection: Rejection) -> Rejected:
        raw = rejection.raw
        body = {
            "v": 1,
            "at_us": self._clock_us(),
            "code": rejection.code,
            "detail": rejection.detail,
            "source": rejection.source,
            "id": rejection.id,
            "raw": b64encode(raw[:_MOST_RAW_BYTES]).decode(),
            "cut": len(raw) > _MOST_RAW_BYTES,
        }
        return Rejected(self._tenants[tenant], msgspec.json.encode(body))

    # ---- answers

    def _on_synced(self, synced: int) -> None:
        """Answer when the call's own record is on disk: a duplicate verdict may rest on an earlier one."""
        unsynced = self._unsynced
        mark = 0
        now_s = self._now_s()
        while unsynced and unsynced[0].sequence <= synced:
            _, mark, appended_s, decided = unsynced.popleft()
            self.journal_sync.observe(int((now_s - appended_s) * 1_000_000))
            for request in decided:
                self._open.pop(request, None)
                if not request.answer.done():
                    request.answer.set_result(request.outcome())
        if mark:
            assert self._history is not None
            self._history.mark = mark
            self.claims.raise_mark(mark)
        if not self._open and not self._calls and not unsynced:
            self._idle.set()


def _room_for(batch: Batch) -> int:
    """A generous guess of the journal bytes of a batch: digests, deltas, and the same again when they are flushed."""
    return 1024 + 512 * batch.received + 2 * sum(len(rejection.raw) for rejection in batch.rejections)
