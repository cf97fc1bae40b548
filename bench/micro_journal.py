"""The journal: CPU per event of a call's record, from values to the disk, its thread included; and how long it takes to open one of small
calls. `python -m bench.micro_journal`

Each record carries the digests and deltas of one call; so many are appended between two syncs as a busy writer has in flight. (Opening one
of large calls is in restart.py.)
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from functools import partial

import uvloop

from bench.clock import cpu_ns_of, per_unit
from buffer.counters import Deltas, MeterDefinition, pack
from buffer.disk import RealDisk, Thread
from buffer.journal import Journal, JournalLimits, open_journal
from buffer.journal_records import CallRecord, FlushBegin, FlushCommit, Flushed, Opened, Through
from dedupe.port import DIGEST_BYTES, FINGERPRINT_BYTES

TENANT = 1
EVENTS = {1: 3_000, 100: 100_000, 1000: 500_000, 8000: 500_000}  # events a call -> events a run
IN_FLIGHT = 4  # calls whose records wait for one sync
OPENED = 100_000  # calls of one event, in a journal that is opened
METER = MeterDefinition("requests", "0123456789abcdef", "count", 0, 3600, ("region", "zone"))


def deltas(meter: int, events: int, counters: int, pick: random.Random) -> Deltas:
    return {
        "sum": {
            (meter, TENANT, f"customer-{pick.randrange(1_000_000):06d}", 1_764_000_000, "eu-west", "a"): pack(1, 1)
            for _ in range(min(events, counters))
        }
    }


def records(first: int, events: int, per_call: int, meter: int, counters: int) -> list[CallRecord]:
    pick = random.Random(7)
    return [
        CallRecord(
            number=first + number,
            generation=490_000,
            execution=first + number,
            horizon_us=0,
            newest_us=1_764_000_000_000_000,
            claims=[(TENANT, os.urandom(DIGEST_BYTES * per_call), os.urandom(FINGERPRINT_BYTES * per_call))],
            deltas=[deltas(meter, per_call, counters, pick)],
            tallies={TENANT: {"received": per_call, "accepted": per_call}},
            rejected=(),
        )
        for number in range(events // per_call)
    ]


async def append_all(journal: Journal, calls: list[CallRecord]) -> None:
    for start in range(0, len(calls), IN_FLIGHT):
        for call in calls[start : start + IN_FLIGHT]:
            journal.append(call)
        await journal.drain()


async def bench(runs: int, counters: int) -> None:
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder:
        journal = await journal_in(folder)
        journal.append(Opened(os.urandom(16), time.time_ns() // 1000))
        meter, first = journal.meter_number(METER), 1
        print(f"us of CPU per event, at most {counters} counters a call, {IN_FLIGHT} calls a sync")
        for per_call, events in EVENTS.items():
            spent = []
            for _ in range(runs):
                calls = records(first, events, per_call, meter, counters)
                first += len(calls)
                spent.append(await cpu_ns_of(partial(append_all, journal, calls)))
            print(f"  {per_call:5} events a call: {per_unit(spent, events)}", flush=True)
        await journal.close()
    print(
        f"us a call until a journal of {OPENED:,} calls of one event is open: {per_unit(await opening(OPENED, runs), OPENED)}", flush=True
    )


async def opening(calls: int, runs: int) -> list[int]:
    """Nanoseconds. All calls are handed over, as nearly all are in the journal of a writer that starts."""
    with tempfile.TemporaryDirectory(prefix="parshall-bench-") as folder:
        journal = await journal_in(folder)
        incarnation = os.urandom(16)
        journal.append(Opened(incarnation, time.time_ns() // 1000))
        meter = journal.meter_number(METER)
        for first in range(1, calls + 1, 1000):
            for call in records(first, min(1000, calls + 1 - first), 1, meter, 1):
                journal.append(call)
            await journal.drain()
        for handed_over in (FlushBegin(1, Through(incarnation, calls)), FlushCommit(1), Flushed(1)):
            journal.append(handed_over)
        await journal.close()
        spent = []
        for _ in range(runs):
            start = time.perf_counter_ns()
            journal = await journal_in(folder)
            spent.append(time.perf_counter_ns() - start)
            assert journal.state.totals == {TENANT: {"received": calls, "accepted": calls}}, journal.state.totals
            await journal.close()
        return spent


async def journal_in(folder: str) -> Journal:
    return await open_journal(
        f"{folder}/journal",
        disk=RealDisk(),
        background=Thread("journal"),
        entropy=os.urandom,
        clock_us=lambda: time.time_ns() // 1000,
        limits=JournalLimits(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--counters", type=int, default=400)
    arguments = parser.parse_args()
    uvloop.run(bench(arguments.runs, arguments.counters))


if __name__ == "__main__":
    main()
