"""What is lost with the disk of a writer, told from the counter log and the claims."""

from __future__ import annotations

from buffer.journal_records import Through
from buffer.record import Place
from dedupe.redis_writers import Claimed
from parshall.writer_loss import NO_CALL, Flushed, Loss, sort_out, what_was_flushed

OLD, NEW, LAST = b"o" * 16, b"n" * 16, b"l" * 16
WRITER = b"w" * 16


def places(*through: tuple[bytes, int]) -> list[Place]:
    return [Place(WRITER, 0, n, "", Through(*call)) for n, call in enumerate(through, 1)]


def test_what_was_flushed() -> None:
    assert what_was_flushed([], NEW) == Flushed(NO_CALL, NO_CALL)
    assert what_was_flushed(places((OLD, 9)), NEW) == Flushed((OLD, 9), NO_CALL)
    assert what_was_flushed(places((OLD, 9), (OLD, 4), (OLD, 7)), NEW) == Flushed((OLD, 9), (OLD, 7)), "partitions are read in any order"
    assert what_was_flushed(places((OLD, 9), (NEW, 3)), NEW) == Flushed((NEW, 3), (OLD, 9))
    assert what_was_flushed(places((NEW, 3), (OLD, 9)), NEW) == Flushed((NEW, 3), (OLD, 9)), "Redis says which came last"


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
