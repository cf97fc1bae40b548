"""When to flush: every interval, which can be changed live, and earlier when live counters reach a bound or somebody asks.

Pure: it is told the time (seconds, of any clock that only goes forward) and never reads it. Must not know: counters, journals, logs.
"""

from __future__ import annotations


class FlushTuner:
    def __init__(self, interval_ms: int, max_counters: int) -> None:
        self._check(interval_ms)
        assert max_counters > 0, "a flush at no counters would never end"
        self._interval_ms = interval_ms
        self._max_counters = max_counters
        self._last_s: float | None = None  # when the last flush began; the first time told, before the first
        self._asked = False

    @property
    def interval_ms(self) -> int:
        return self._interval_ms

    def set_interval(self, interval_ms: int) -> None:
        """Holds at once: a shorter one can make a flush due now."""
        self._check(interval_ms)
        self._interval_ms = interval_ms

    def ask(self) -> None:
        """Make a flush due, whatever the interval says."""
        self._asked = True

    def full(self, live_counters: int) -> bool:
        return live_counters >= self._max_counters

    def wait_s(self, now_s: float, live_counters: int) -> float:
        """How long to wait before the next flush; 0 when it is due. Ask again when counters grew, or the interval changed."""
        if self._last_s is None:
            self._last_s = now_s
        if self._asked or self.full(live_counters):
            return 0.0
        interval_s = self._interval_ms / 1000
        return min(interval_s, max(0.0, self._last_s + interval_s - now_s))

    def flushed(self, now_s: float) -> None:
        """A flush begins now. The next one counts from here, so a flush that takes longer than the interval is followed at once."""
        self._last_s = now_s
        self._asked = False

    @staticmethod
    def _check(interval_ms: int) -> None:
        if interval_ms < 1:
            raise ValueError(f"a flush interval of {interval_ms} ms is not possible: at least 1 ms")
