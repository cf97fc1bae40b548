"""The writer: one journal's pipeline from a decoded request to its answer.

Belongs here: the order of things (claim, journal, merge, sync, answer), back-pressure, opening and draining. Must not know: HTTP, JSON,
which adapters stand behind the ports. The way to a claim store and back is in lane.py, what a reply means in calls.py; the flush is in
flusher.py.

The event loop alone decides order: one synchronous step appends a call's record and merges its deltas. A thread only writes and syncs;
then the requests of that call are answered and the mark is raised.

Several claim stores (shards) share the tenants: each has a lane, and the records of all lanes come into the one journal as the replies
do, each lane's in its call order. So what is on disk is a beginning of every lane.
"""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import structlog

from buffer.counter_log import CounterLog, LogUnavailable, Registry, Rejected, Retired
from buffer.counters import MeterDefinition, count
from buffer.flush_tuner import FlushTuner
from buffer.journal import Journal
from buffer.journal_records import CallRecord, Closed, Opened, Through
from dedupe.port import CallsSpent, Claims, Verdicts, shard_of
from ingest.agreed_meters import AgreedMeters, CannotStart
from ingest.batch import Batch, Rejection
from ingest.calls import Outcome, Request, settle
from ingest.fair_shares import Shares, fits
from ingest.flusher import Flusher
from ingest.history import JournalHistory
from ingest.lane import Answered, Lane
from ingest.sink import Unavailable
from ingest.snapshot import Latency

log = structlog.get_logger()

_ASK_AGAIN_S = 0.02  # a pending event waits for another writer's sync, or for a mark that comes within 50 ms
_MOST_DOUBLINGS = 5  # that writer is gone, or cannot sync: asked twice as late each time, up to 0.64 s
_LAST_CALL = 2**32 - 1 - 2**20  # of an incarnation, in a shard: tags have four bytes for it, and some more calls come before it is noticed
_SWEEP_S = 0.1  # how late a deadline may be noticed
_IDLE_CALL_S = 60.0  # the horizon comes with replies: without any, an idle or full journal would never let a segment go
_DISK_S = 60.0  # how often it is looked how much of the journal's disk is free, whoever fills it
_LOG_RETRY_S = 1.0
_MOST_RAW_BYTES = 64 * 1024


class WriterLimits(NamedTuple):
    """Bounds of one writer. Beyond them requests are refused before any claim."""

    calls_in_flight: int = 2  # of each shard; more would only make calls smaller
    events_per_call: int = 8192
    waiting_events: int = 200_000
    live_counters: int = 4_000_000
    rejected_bytes: int = 64 << 20  # of rejected events that the counter log does not have yet, those of requests under way reckoned with


class _Unsynced(NamedTuple):
    """A call whose record is in the journal's queue."""

    sequence: int
    lane: Lane
    call: int  # its number in its shard
    appended_s: float
    decided: Sequence[Request]


class Writer:
    def __init__(
        self,
        journal: Journal,
        shards: Sequence[Claims],
        counter_log: CounterLog,
        tuner: FlushTuner,
        *,
        tenants: Mapping[int, str],
        limits: WriterLimits,
        clock_us: Callable[[], int],
        entropy: Callable[[int], bytes],
        definitions: Sequence[MeterDefinition] = (),
    ) -> None:
        """`shards`: the claim stores, in their order, which decides whose tenants are whose. `definitions`: meters that are to count."""
        self.journal = journal
        self._log = counter_log
        self._limits = limits
        self._clock_us = clock_us
        self._entropy = entropy
        self.tenants = dict(tenants)  # more may come while it runs
        self.incarnation = b""
        self.agreed = AgreedMeters(counter_log)
        self._definitions = definitions
        self.meters: dict[int, MeterDefinition] = dict(journal.state.meters)
        self.flusher = Flusher(
            journal, counter_log, tuner, meters=self.meters, tenants=self.tenants, clock_us=clock_us, rejected_bytes=limits.rejected_bytes
        )
        self._waiting_events = Shares(limits.waiting_events)
        self._coming_counters = Shares(limits.live_counters)  # of requests that are not in a record yet: they may all become live
        self._open: dict[Request, None] = {}  # every request that is not answered, oldest first
        self.lanes = [self._lane(shard, claims) for shard, claims in enumerate(shards)]
        self._next_number = 1  # of the next call record
        self._unsynced: deque[_Unsynced] = deque()
        self.pending_events = 0  # claimed by another call whose record is not on its disk yet; asked again in a moment
        self.claim_call = Latency()
        self.journal_sync = Latency()
        self.unanswered: dict[int, int] = {}  # events by tenant whose request was refused after it was decoded
        self.refused: dict[tuple[int, str], int] = {}  # requests by tenant and why
        self._refusals = 0
        self._usual_room = _room_of(limits.events_per_call)
        self._told_full = False
        self._disk_due_s = 0.0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        journal.on_synced = self._on_synced

    def _lane(self, shard: int, claims: Claims) -> Lane:
        return Lane(
            shard,
            claims,
            calls_in_flight=self._limits.calls_in_flight,
            events_per_call=self._limits.events_per_call,
            waiting_events=self._waiting_events,
            is_open=self._open.__contains__,
            on_answered=self._append,
        )

    def lane_of(self, tenant: int) -> Lane:
        return self.lanes[shard_of(tenant, len(self.lanes))]

    @property
    def waiting_requests(self) -> int:
        return sum(lane.waiting.length + lane.again.length for lane in self.lanes)

    @property
    def waiting_events(self) -> int:
        return self._waiting_events.total

    @property
    def limits(self) -> WriterLimits:
        return self._limits

    @property
    def calls_in_flight(self) -> int:
        return sum(len(lane.calls) for lane in self.lanes)

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
        """For the tenants of every shard."""
        return self._up and all(lane.open for lane in self.lanes)

    @property
    def serves(self) -> bool:
        """The tenants of some shard at least."""
        return self._up and any(lane.open for lane in self.lanes)

    @property
    def _up(self) -> bool:
        return not self._draining and self.incarnation != b""

    async def open(self) -> None:
        """Connect to the log, join the registry, journal a new incarnation. After it `run`. Raises CannotStart, UnfitLog."""
        self._check_tenants()
        await self._connect_log()
        registry = await self._register()
        incarnation = self._entropy(16)
        announcing, shards = asyncio.Lock(), len(self.lanes)
        for lane in self.lanes:
            lane.begin(
                JournalHistory(self.journal, self._log, incarnation, registry, shard=lane.shard, shards=shards, announcing=announcing)
            )
        self.journal.append(Opened(incarnation, self._clock_us(), len(self.lanes)))
        await self.journal.drain()  # before its first claim: a reused incarnation would make old void claims look committed
        self.incarnation = incarnation

    def _check_tenants(self) -> None:
        state = self.journal.state
        unknown = (set(state.tallies) | {key[1] for counters in state.deltas.values() for key in counters}) - set(self.tenants)
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
                registry = await self._log.registry()
                if not registry.writers and await self._log.has_data():
                    raise CannotStart(
                        "The registry of writers (usage.writers) is empty although counter records exist: events could be counted twice. "
                        "Restore the topic before you start."
                    )
                self._check_registered(registry)
                # Before it registers: everybody would wait for the claims of a writer that is refused here.
                self.agreed.learn(registry.meters)
                await self.agreed.settle(self._definitions)
                if self.journal.writer not in registry.writers:
                    await self._log.register(self.journal.writer)
                return registry.writers
            except LogUnavailable as error:
                log.warning("waiting for the registry of writers", error=str(error))
                await asyncio.sleep(_LOG_RETRY_S)

    def _check_registered(self, registry: Registry) -> None:
        """Raises CannotStart where the registry contradicts the journal."""
        writer, synced = self.journal.writer, self.journal.synced
        if registry.writers.get(writer) is not None:
            raise CannotStart(f"The writer {writer.hex()} of this journal was retired: start with an empty data directory.")
        if writer not in registry.writers and not self.journal.state.fresh:
            raise CannotStart(
                "The registry of writers (usage.writers) has lost entries, that of this journal among them: events could be "
                "counted twice. Restore the topic before you start; or, where this journal counts into another log, name that one "
                "(kafka.bootstrap, kafka.topic_prefix)."
            )
        announced = registry.announced.get(writer)
        if announced is not None and announced.at > synced:
            raise CannotStart(
                f"This journal is an old copy: it ends with record {synced}, and the registry of writers (usage.writers) knows that record "
                f"{announced.at} was on the disk; put the newest copy back. Where there is none, start with an empty data folder, and end "
                "this one's writer with `parshall writer lost`."
            )

    async def run(self) -> None:
        """Serve until cancelled. Raises what must stop the process: a failed journal, a claim store that forbids going on."""
        claims = [lane.claims.run(lane.history) for lane in self.lanes]
        parts = [self._watch_journal(), *claims, self.flusher.run(), self._sweep(), self._allow_flushes()]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # in this order: a TaskGroup cancels in any, so a simulated world would not be the same again
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _allow_flushes(self) -> None:
        while not all(lane.claims.accepted for lane in self.lanes):
            await asyncio.sleep(_SWEEP_S)
        self.flusher.allowed.set()

    async def _watch_journal(self) -> None:
        await asyncio.shield(self.journal.failed)

    async def learn_horizon(self) -> int:
        """Make an empty call in each shard: the replies bring the horizons, which are in the journal when this returns. The least of them,
        microseconds: no event at or below it is ever claimed again."""
        for lane in self.lanes:
            self._send_empty(lane)
        await self._idle.wait()
        return min(lane.history.horizon_us for lane in self.lanes)

    async def drain(self, most_s: float) -> None:
        """Stop in order while `run` still runs: finish requests and calls, flush, journal and publish `closed`.

        Raises TimeoutError after `most_s`; what is not done then is done at the next opening. A call that waits for one shard does not keep
        what was counted in the others: that is flushed after half of the time, finished or not.
        """
        self._draining = True
        if not any(lane.claims.accepted for lane in self.lanes):
            return  # nothing was taken by this incarnation, and nothing of earlier ones may be flushed yet
        async with asyncio.timeout(most_s):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(most_s / 2):  # wait_for of Python 3.11 may swallow a cancellation
                    await self._idle.wait()
            await self.flusher.now()
            await self._idle.wait()
            await self.flusher.now()  # what was counted since
            self.journal.append(Closed(self._next_number - 1))
            await self.journal.drain()
            for lane in self.lanes:
                await lane.claims.close(lane.appended)

    # ---- requests

    def submit(self, batch: Batch, deadline_s: float) -> asyncio.Future[Outcome]:
        """Take a request; the future ends with its outcome or with Unavailable. Raises Unavailable at once when it cannot be taken."""
        counters = count(batch.deltas)
        rejected = _held_for(batch) if batch.rejections else 0
        lane = self._admit(
            batch.tenant, events=batch.received, counters=counters, rejected=rejected, room=_room_for(batch), decoded=batch.received
        )
        request = Request(batch, deadline_s, asyncio.get_running_loop().create_future())
        self._open[request] = None
        request.coming = counters
        self._coming_counters.take(batch.tenant, counters)
        if rejected:
            request.coming_rejected = rejected
            self.flusher.rejected_held.take(self.tenants[batch.tenant], rejected)
        self._idle.clear()
        lane.push(request)
        return request.answer

    def check(self, tenant: int) -> None:
        """Would a request of this tenant be taken now, the smallest one? Costs little, so that refusing costs less than serving."""
        self._admit(tenant, events=1, counters=1, rejected=0, room=0, decoded=0)

    def _admit(self, tenant: int, *, events: int, counters: int, rejected: int, room: int, decoded: int) -> Lane:
        """`rejected`: bytes to hold for what is rejected. `decoded`: events that are known to be in the request. Returns its lane."""
        if self._draining:
            raise self._refusal(tenant, decoded, "draining", "This node is shutting down.")
        lane = self.lane_of(tenant)
        if not lane.open:
            raise self._refusal(tenant, decoded, "claims", f"The claims are not ready ({lane.claims.state.value}).")
        waiting = self._waiting_events
        if not waiting.fits(tenant, events):
            if waiting.crowded(tenant):
                raise self._refusal(tenant, decoded, "waiting", "Too many events of this tenant are waiting.", overloaded=True)
            raise self._refusal(tenant, decoded, "waiting", "Too many events are waiting.")
        if not self._fits_counters(tenant, counters):
            raise self._refusal(tenant, decoded, "counters", "Too many counters wait for the counter log.", overloaded=True)
        if rejected and not self.flusher.rejected_held.fits(name := self.tenants[tenant], rejected):
            whose = "of this tenant " if self.flusher.rejected_held.crowded(name) else ""
            reason = f"Too many rejected events {whose}wait for the counter log."
            raise self._refusal(tenant, decoded, "rejected", reason, overloaded=bool(whose))
        if not self.journal.has_room(room):
            raise self._refusal(tenant, decoded, "journal", f"The journal has no room left: {self.journal.shortage(room)}.", least_s=5)
        return lane

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

    def journal_full(self) -> str | None:
        """Why a call of the usual most events would find no room; None: it does."""
        shortage = self.journal.shortage(self._usual_room)
        return None if shortage is None else f"The journal has no room left: {shortage}."

    def look_for_room(self) -> None:
        """Requests make it look for some; where nobody sends, somebody else must."""
        self.journal.has_room(self._usual_room)

    def _tell_room(self) -> None:
        full = self.journal_full()
        if full is not None and not self._told_full:
            log.error("requests are refused", reason=full)
        elif full is None and self._told_full:
            log.info("the journal has room again")
        self._told_full = full is not None

    async def _sweep(self) -> None:
        """End requests past their deadline as a whole; what they were granted stays counted and comes back as duplicate."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = self._now_s()
            if now_s >= self._disk_due_s:
                self._disk_due_s = now_s + _DISK_S
                self.journal.look_at_disk()
            self._tell_room()
            if any(lane.next_call > _LAST_CALL for lane in self.lanes):
                raise CallsSpent(
                    "This incarnation of the journal has used up its call numbers, four billion of them: the next one begins anew."
                )
            self._call_when_idle(now_s)
            late = [request for request in self._open if request.deadline_s <= now_s]
            for request in late:
                self._finish(request)
                self._count_unanswered(request.batch.tenant, request.undecided)
                why = (request.batch.tenant, "deadline")
                self.refused[why] = self.refused.get(why, 0) + 1
                if not request.answer.done():
                    request.answer.set_exception(Unavailable("The events could not be settled before the deadline."))
            for lane in self.lanes:
                lane.drop_late()

    def _came(self, request: Request) -> None:
        """Its counters are live, or will never be; and so it is with its rejected events."""
        if request.coming:
            self._coming_counters.give(request.batch.tenant, request.coming)
            request.coming = 0
        if request.coming_rejected:
            self.flusher.rejected_held.give(self.tenants[request.batch.tenant], request.coming_rejected)
            request.coming_rejected = 0

    def _finish(self, request: Request) -> None:
        self._open.pop(request, None)
        self._came(request)
        self._look_idle()

    def _look_idle(self) -> None:
        if not self._open and not self._unsynced and not any(lane.calls for lane in self.lanes):
            self._idle.set()

    # ---- calls

    def _send_empty(self, lane: Lane) -> None:
        self._idle.clear()
        lane.send(())

    def _call_when_idle(self, now_s: float) -> None:
        """An empty call: it brings the horizon, and its record lets the journal give up what lies behind it."""
        if self._draining:
            return
        for lane in self.lanes:
            if not lane.calls and now_s - lane.last_call_s >= _IDLE_CALL_S and lane.open:
                self._send_empty(lane)

    def _append(self, lane: Lane, answered: Answered) -> None:
        """One synchronous step: the record enters the journal's queue and its deltas the live counters."""
        call, reply, too_late, sent_s = answered
        now_s = self._now_s()
        self.claim_call.observe(int((now_s - sent_s) * 1_000_000))
        verdicts = reply if isinstance(reply, Verdicts) else None
        result = settle(call, verdicts, too_late)
        rejected = [self._rejected_record(tenant, rejection) for tenant, rejection in result.rejected]
        number = self._next_number
        self._next_number += 1
        several = len(self.lanes) > 1
        record = CallRecord(
            number=number,
            generation=verdicts.generation if verdicts else 0,
            execution=verdicts.execution if verdicts else 0,
            horizon_us=reply.horizon_us,
            newest_us=result.newest_us,
            claims=result.claims,
            deltas=result.deltas,
            tallies=result.tallies,
            rejected=rejected,
            branch=verdicts.branch if verdicts else b"",
            shard=lane.shard if several else 0,
            in_shard=call.number if several else 0,
        )
        sequence = self.journal.append(record)
        lane.history.horizon_us = max(lane.history.horizon_us, record.horizon_us)  # what a later joining publishes
        for part in call.parts:
            self.flusher.merged_deltas[part.request.batch.tenant] += part.request.coming
            self._came(part.request)
        reached = tuple([one.appended for one in self.lanes]) if several else ()
        self.flusher.merge(result.deltas, result.tallies, rejected, Through(self.incarnation, number), reached)
        self._unsynced.append(_Unsynced(sequence, lane, call.number, now_s, result.decided))
        if result.pending:
            self._ask_later(lane, result.pending)

    def _ask_later(self, lane: Lane, pending: Sequence[Request]) -> None:
        self.pending_events += sum(request.undecided for request in pending)
        by_pause: dict[float, list[Request]] = {}
        for request in pending:
            by_pause.setdefault(pause_before_asking_again_s(request.asked_again), []).append(request)
            request.asked_again += 1
        for pause_s, requests in by_pause.items():
            asyncio.get_running_loop().call_later(pause_s, self._ask_again, lane, requests)

    def _ask_again(self, lane: Lane, requests: Sequence[Request]) -> None:
        self.pending_events -= sum(request.undecided for request in requests)
        for request in requests:
            if request in self._open:
                lane.again.push(request.batch.tenant, request)
        lane.send_calls()

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
        return Rejected(self.tenants[tenant], msgspec.json.encode(body))

    # ---- answers

    def _on_synced(self, synced: int) -> None:
        """Answer when the call's own record is on disk: a duplicate verdict may rest on an earlier one."""
        unsynced = self._unsynced
        marks: dict[Lane, int] = {}
        now_s = self._now_s()
        while unsynced and unsynced[0].sequence <= synced:
            _, lane, call, appended_s, decided = unsynced.popleft()
            marks[lane] = call
            self.journal_sync.observe(int((now_s - appended_s) * 1_000_000))
            for request in decided:
                self._open.pop(request, None)
                if not request.answer.done():
                    request.answer.set_result(request.outcome())
        for lane, mark in marks.items():
            lane.history.mark = mark
            lane.claims.raise_mark(mark)
        self._look_idle()


def pause_before_asking_again_s(asked_again: int) -> float:
    return _ASK_AGAIN_S * (1 << min(asked_again, _MOST_DOUBLINGS))


def _room_for(batch: Batch) -> int:
    """A generous guess of the journal bytes of a batch: digests, deltas, and the same again when they are flushed."""
    return _room_of(batch.received) + 2 * sum([len(rejection.raw) for rejection in batch.rejections])


def _held_for(batch: Batch) -> int:
    """About what the records of its rejected events take in memory."""
    return sum([300 + min(len(rejection.raw), _MOST_RAW_BYTES) * 4 // 3 for rejection in batch.rejections])


def _room_of(events: int) -> int:
    return 1024 + 512 * events
