"""Changes to the product in a test's own server processes: mutants that the oracle must find, the disk that loses, the claim script that
counts what it decides.

Belongs here: one function a patch, each of one function or class of the product, which must exist. Must not know: how servers are started
(edge.py), which test wants which patch.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any


def apply(names: Iterable[str]) -> None:
    for name in names:
        PATCHES[name]()


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Give the old one to `make` and put what it returns in its place."""
    setattr(owner, name, make(getattr(owner, name)))


# ---- the lossy disk, and a sync that does not


def drop_unsynced() -> None:
    import buffer.disk
    from tests.lossy_disk import DropUnsynced

    _replace(buffer.disk, "RealDisk", lambda _: DropUnsynced)


def no_sync() -> None:
    _replace(os, "fdatasync", lambda _: lambda descriptor: None)


# ---- the claim script counts the rows of its verdict table

ROWS_KEY = "test:verdict-rows"
ROWS = (
    "nothing",
    "mine, this call",
    "mine, an earlier call",
    "mine, a later call",
    "other, at or below its mark",
    "other closed, at or below its last",
    "other closed, above its last",
    "other open, above its mark",
    "other unknown",
    "conflict",
)

_COUNT_ROW = """
local rows, found = {}, 0
local function row_of(value)
  local other, call = struct.unpack('>I4I4', value)
  if other == my_number then
    return call == number and 'mine, this call' or call < number and 'mine, an earlier call' or 'mine, a later call'
  end
  local state = other_incarnation(other)
  if not state.mark then
    return 'other unknown'
  elseif call <= state.mark then
    return 'other, at or below its mark'
  elseif state.closed then
    return call <= state.closed and 'other closed, at or below its last' or 'other closed, above its last'
  end
  return 'other open, above its mark'
end
local decide = verdict
verdict = function(value)
  local row = row_of(value)
  rows[row], found = (rows[row] or 0) + 1, found + 1
  return decide(value)
end
"""

_STORE_ROWS = """
rows['nothing'] = total - found
for i = 1, total do
  if codes and codes[i] == 'c' then
    rows['conflict'] = (rows['conflict'] or 0) + 1
  end
end
for row, times in pairs(rows) do
  redis.call('HINCRBY', 'test:verdict-rows', row, times)
end
"""

_BEFORE_USE = "-- A duplicate of the same shape with other content is a conflict"
_BEFORE_ANSWER = "return {'verdicts', gen,"


def count_rows() -> None:
    import dedupe.scripts

    _replace(dedupe.scripts, "load", _counting)


def _counting(load: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    def counting_load(layout: str = "hashed") -> dict[str, Any]:
        before_use, before_answer = (_BEFORE_USE, _COUNT_ROW + _BEFORE_USE), (_BEFORE_ANSWER, _STORE_ROWS + _BEFORE_ANSWER)
        return _script_changed(load(layout), "claim", before_use, before_answer)

    return counting_load


def _script_changed(scripts: dict[str, Any], name: str, *changes: tuple[str, str]) -> dict[str, Any]:
    text = scripts[name].text.decode()
    for old, new in changes:
        assert text.count(old) == 1, f"the script {name} has changed: see tests/acceptance/patches.py"
        text = text.replace(old, new)
    encoded = text.encode()
    scripts[name] = scripts[name]._replace(text=encoded, sha=hashlib.sha1(encoded).hexdigest().encode())
    return scripts


# ---- mutants of the way to the rated totals, which only faults bring to light


def pending_is_duplicate() -> None:
    """The claim script calls an event counted that another call has claimed and may never journal."""
    import dedupe.scripts

    def patched(load: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
        return lambda layout="hashed": _script_changed(load(layout), "claim", ("  return 'p'\nend\n", "  return 'd'\nend\n"))

    _replace(dedupe.scripts, "load", patched)


def produce_unheard() -> None:
    """A flush counts as handed over once it was sent, whatever Kafka says."""
    import contextlib

    from buffer.counter_log import LogUnavailable
    from buffer.kafka_log import KafkaLog

    def patched(produce: Callable[..., Any]) -> Callable[..., Any]:
        async def unheard(self: Any, records: Any) -> None:
            with contextlib.suppress(LogUnavailable):
                await produce(self, records)

        return unheard

    _replace(KafkaLog, "produce", patched)


def rate_again() -> None:
    """The rater folds a record that it has already, as if its key were not in the way."""
    from rater.transaction import Transaction

    def patched(known_hashes: Callable[..., Any]) -> Callable[..., Any]:
        async def again(self: Any, incoming: Any) -> Any:
            known = await known_hashes(self, incoming)
            for record in incoming:
                if record.hash in known[(*record.chain, record.place.n)] and await self._take(record) is None:
                    self._accepted.pop()
            return known

        return again

    _replace(Transaction, "_known_hashes", patched)


def on_a_network() -> None:
    """What temporary folders are on is taken for a network file system."""
    from buffer import file_system

    file_system.NETWORK = frozenset({str(file_system.file_system_of(tempfile.gettempdir()))})


# ---- mutants of a price


def dearer() -> None:
    """One per-unit price is a thousandth higher."""
    from rater.prices.per_unit import PerUnit

    _replace(PerUnit, "tiers_of", lambda old: lambda self, billable: (self.tier(None, billable, self.unit_price * Decimal("1.001")),))


def no_allowance() -> None:
    """Free units are charged."""
    import rater.prices.price

    _replace(
        rater.prices.price,
        "rate",
        lambda old: lambda quantity, price, places: old(quantity, price.model_copy(update={"free": Decimal(0)}), places),
    )


def half_up() -> None:
    """Amounts are rounded half up."""
    from decimal import ROUND_HALF_UP, Context

    import rater.prices.money

    context = Context(prec=200, rounding=ROUND_HALF_UP)
    _replace(
        rater.prices.money, "round_money", lambda old: lambda exact, places: exact.quantize(Decimal(1).scaleb(-places), context=context)
    )


def newest_prices() -> None:
    """The newest version of the prices governs every month."""
    from rater.prices.book import PriceBook

    _replace(PriceBook, "version_for", lambda old: lambda self, period: self.versions[-1])


# ---- mutants of a window


def late_windows() -> None:
    """A window's last microsecond belongs to it, and so does the first of the next."""
    import ingest.decode

    _replace(ingest.decode, "to_us", lambda old: lambda time: old(time) - 1)
    by_window = ingest.decode.by_window

    def shifted(events: Any, times: Any, window_s: int) -> Any:
        from datetime import timedelta

        return by_window(events, [time - timedelta(microseconds=1) for time in times], window_s)

    _replace(ingest.decode, "by_window", lambda _: shifted)


def months_in_utc() -> None:
    """Charges are counted in months of UTC, whatever the book says."""
    import rater.period

    _replace(rater.period, "zone_named", lambda old: lambda name: old("UTC"))


# ---- mutants of a merge


def last_maximum() -> None:
    """Of two maxima the later one stays."""
    import buffer.counters

    def merge_max(one: int, other: int) -> int:
        value, events = buffer.counters.unpack(other)
        return buffer.counters.pack(value, events + buffer.counters.unpack(one)[1])

    _replace(buffer.counters, "merge_max", lambda _: merge_max)


def lost_sums() -> None:
    """Of two deltas of a sum the second is forgotten, if they meet in the writer."""
    import buffer.counters

    def merge(into: Any, deltas: Any) -> None:
        for kind, more in deltas.items():
            live = into.setdefault(kind, {})
            for key, packed in more.items():
                if kind == "sum":
                    live.setdefault(key, packed)
                else:
                    live[key] = packed if key not in live else buffer.counters.merge_max(live[key], packed)

    _replace(buffer.counters, "merge", lambda _: merge)


FAULTY = (pending_is_duplicate, produce_unheard, rate_again)
MUTANTS = {
    "price": (dearer, no_allowance, half_up, newest_prices),
    "window": (late_windows, months_in_utc),
    "merge": (last_maximum, lost_sums),
}
PATCHES: dict[str, Callable[[], None]] = {
    patch.__name__: patch
    for patch in (drop_unsynced, no_sync, count_rows, on_a_network, *FAULTY, *(mutant for group in MUTANTS.values() for mutant in group))
}
