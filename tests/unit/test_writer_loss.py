"""What is lost with the disk of a writer, told from the counter log and the claims."""

from __future__ import annotations

from buffer.journal_records import Through
from buffer.record import Place
from dedupe.redis_writers import Claimed
from parshall.writer_loss import NO_CALL, Flushed, Loss, _in_shard, since_when, sort_out, what_is_refused, what_was_flushed

OLD, NEW, LAST = b"o" * 16, b"n" * 16, b"l" * 16
WRITER = b"w" * 16


def test_what_was_flushed() -> None:
    assert what_was_flushed([], NEW) == Flushed(NO_CALL, NO_CALL)
    assert what_was_flushed([(OLD, 9)], NEW) == Flushed((OLD, 9), NO_CALL)
    assert what_was_flushed([(OLD, 9), (OLD, 4), (OLD, 7)], NEW) == Flushed((OLD, 9), (OLD, 7)), "partitions are read in any order"
    assert what_was_flushed([(OLD, 9), (NEW, 3)], NEW) == Flushed((NEW, 3), (OLD, 9))
    assert what_was_flushed([(NEW, 3), (OLD, 9)], NEW) == Flushed((NEW, 3), (OLD, 9)), "Redis says which came last"


def test_each_claim_is_lost_in_doubt_or_counted() -> None:
    events = {
        (OLD, 8): {1: 1},  # of an incarnation before the last flush: in it
        (NEW, 3): {1: 2, 2: 4},  # covered by the last flush, which may be cut short
        (NEW, 4): {1: 8},  # after it
        (LAST, 0): {1: 16},  # claimed again from the journal
        (LAST, 6): {1: 32},  # the last one known to be on the disk
        (LAST, 7): {2: 64},  # maybe not
    }
    claimed = Claimed((OLD, NEW, LAST), events)
    assert sort_out(claimed, Flushed((NEW, 3), (OLD, 7)), (LAST, 6)) == Loss({1: 3, 2: 4}, {1: 56}, {2: 64})
    assert sort_out(claimed, Flushed(NO_CALL, NO_CALL), (LAST, 6)) == Loss({}, {1: 59, 2: 4}, {2: 64})
    assert sort_out(Claimed((), {}), Flushed((NEW, 3), (OLD, 7)), (b"", 0)) == Loss({}, {}, {})


def test_what_a_flush_of_a_later_incarnation_covers_is_not_lost_where_that_one_claimed_nothing() -> None:
    claimed = Claimed((OLD,), {(OLD, 9): {1: 1}})
    assert sort_out(claimed, Flushed((NEW, 0), (OLD, 7)), (NEW, 0)) == Loss({1: 1}, {}, {})
    assert sort_out(claimed, Flushed((OLD, 7), NO_CALL), (NEW, 0)) == Loss({}, {1: 1}, {})


def test_a_flush_covers_other_calls_in_each_shard() -> None:
    places = [Place(WRITER, 0, 1, "", Through(OLD, 9)), Place(WRITER, 0, 2, "", Through(NEW, 5), (3, 2))]
    assert _in_shard(places, 0, 2) == [(OLD, 9), (NEW, 3)]
    assert _in_shard(places, 1, 2) == [(OLD, 9), (NEW, 2)]
    assert _in_shard(places, 1, 3) == _in_shard(places, 0, 1) == [(OLD, 9), (NEW, 5)]


# ---- what it costs where the claims are gone as well

NOON_US = 1_764_244_800_000_000  # 2025-11-27T12:00:00Z


def test_new_events_too_are_refused_while_the_horizon_lies_ahead() -> None:
    told = what_is_refused(NOON_US + 600_000_000, NOON_US)
    assert "events up to 2025-11-27T12:10:00Z are refused for good" in told
    assert "so are all new ones until then, 600 s from now" in told and "--dead-since" in told


def test_the_moment_of_a_death_is_said_again() -> None:
    assert since_when(None, NOON_US) == "It is taken to have counted until now."
    told = since_when(NOON_US - 5_400_000_000, NOON_US)
    assert told.startswith("It is taken to be dead since 2025-11-27T10:30:00Z, 1 h 30 min ago")
    assert "17520 h 0 min ago" in since_when(NOON_US - 2 * 365 * 86_400_000_000, NOON_US)


def test_else_late_ones_alone_are() -> None:
    for past_us in (0, 1, 3_600_000_000):
        told = what_is_refused(NOON_US - past_us, NOON_US)
        assert told.endswith("too_late: late ones, that is.") and "--dead-since" not in told
