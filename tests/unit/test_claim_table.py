"""What a claim store answers, rule by rule, on ClaimTable. The twins test carries every line of it over to the scripts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedupe.claim_table import ClaimTable
from dedupe.port import COPY, Identity, Section
from dedupe.scripts import Context, Reclaim, context_of

HOUR_US = 3_600_000_000
NOW_US = 500_000 * HOUR_US
IDENTITY = Identity("log", HOUR_US, 3 * HOUR_US)
ERA = b"e" * 16


class Store:
    """A table and its clock."""

    def __init__(self) -> None:
        self.now_us = NOW_US
        self.eras = 0
        self.table = ClaimTable(lambda: self.now_us, "one")

    def fresh_era(self) -> bytes:
        """Eras are random: none comes twice."""
        self.eras += 1
        return b"%d" % self.eras


class Asker:
    """One incarnation that has said hello."""

    def __init__(self, store: Store, writer: bytes, incarnation: bytes, session: int = 1, identity: Identity = IDENTITY) -> None:
        self.store = store
        self.table = store.table
        self.context: Context = context_of(identity, writer, incarnation, session)
        self.greeting = self.table.hello(self.context, store.now_us)

    def publish(self, mark: int = 0, *closed: tuple[bytes, int]) -> list[object]:
        return self.table.publish(self.context, mark, closed)

    def join(self, *others: bytes, horizon_us: int = 0, mark: int = 0, elsewhere: int = 0) -> list[object]:
        era = self.table.join(self.context, self.store.fresh_era())[1]
        assert isinstance(era, bytes)
        return self.table.joined(self.context, era, mark, horizon_us, elsewhere, {self.context.writer, *others})

    def claim(self, number: int, *ids: bytes, mark: int = 0, content: bytes = b"a", time_us: int = 0, clock_us: int = 0) -> list[object]:
        sections = [Section(1, b"".join(each.rjust(12) for each in ids), content.rjust(4, b"s") * len(ids))] if ids else []
        time_us = time_us or self.store.now_us
        return self.table.claim(self.context, number, mark, clock_us or self.store.now_us, time_us, time_us, sections)

    def codes(self, number: int, *ids: bytes, content: bytes = b"a") -> bytes:
        reply = self.claim(number, *ids, content=content)
        assert reply[0] == b"verdicts", reply
        codes = reply[4]
        assert isinstance(codes, bytes)
        return codes or b"g" * len(ids)

    def mark(self, mark: int) -> None:
        assert self.claim(0, mark=mark) == [b"marked"]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def one(store: Store) -> Asker:
    asker = Asker(store, b"1", b"1.1")
    assert asker.publish() == [b"published"]
    assert asker.join() == [b"joined", 1, 0]
    return asker


@pytest.fixture
def two(store: Store, one: Asker) -> Asker:
    asker = Asker(store, b"2", b"2.1")
    asker.publish()
    assert asker.join() == [b"joined", 1, 0]
    return asker


# ---- the table of verdicts


def test_nothing_found_is_granted(one: Asker) -> None:
    assert one.codes(1, b"a") == b"g"


def test_my_tag_this_call_is_granted_again(one: Asker) -> None:
    one.codes(1, b"a")
    assert one.codes(1, b"a") == b"g"


def test_my_earlier_call_is_a_duplicate(one: Asker) -> None:
    one.codes(1, b"a")
    assert one.codes(2, b"a") == b"d"


def test_my_later_call_is_pending(one: Asker) -> None:
    one.codes(2, b"a")
    assert one.codes(1, b"a") == b"p"


def test_another_incarnation_at_or_below_its_mark_is_a_duplicate(one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    one.mark(1)
    assert two.codes(1, b"a") == b"d"


def test_another_open_incarnation_above_its_mark_is_pending(one: Asker, two: Asker) -> None:
    one.codes(2, b"a")
    one.mark(1)
    assert two.codes(1, b"a") == b"p"


def test_a_closed_incarnation_at_or_below_its_last_call_is_a_duplicate(one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    assert one.table.close(one.context, 1) == [b"closed"]
    assert two.codes(1, b"a") == b"d"


def test_a_closed_incarnation_above_its_last_call_is_void_and_taken_over(store: Store, one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    successor = Asker(store, b"1", b"1.2")
    assert successor.publish(0, (b"1.1", 0)) == [b"published"]
    assert two.codes(1, b"a") == b"g"
    assert two.codes(2, b"a") == b"d"
    assert successor.codes(1, b"a") == b"p", "it is the other's now, and not marked yet"


def test_an_incarnation_whose_w_is_missing_is_pending(one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    one.mark(1)
    del one.table._w[b"1.1"]
    assert two.codes(1, b"a") == b"p"


def test_a_duplicate_with_other_content_is_a_conflict_with_another_shape_it_is_not(one: Asker) -> None:
    one.codes(1, b"a", content=b"a")
    assert one.codes(2, b"a", content=b"b") == b"c"
    assert one.codes(3, b"a", content=b"taaa") == b"d"
    assert one.codes(4, b"a", content=b"a") == b"d"


def test_pending_and_granted_do_not_look_at_content(one: Asker, two: Asker) -> None:
    one.codes(1, b"a", content=b"a")
    assert one.codes(1, b"a", content=b"b") == b"g"
    assert two.codes(1, b"a", content=b"b") == b"p"


def test_tenants_are_apart(one: Asker) -> None:
    one.codes(1, b"a")
    reply = one.table.claim(one.context, 2, 0, NOW_US, NOW_US, NOW_US, [Section(2, b"a".rjust(12), b"sssa")])
    assert reply[4] == b""


def copies(*of: tuple[int, bytes]) -> bytes:
    return b"".join([COPY.pack(place, content.rjust(4, b"s")) for place, content in of])


def test_a_copy_is_a_duplicate_of_its_first_or_a_conflict_with_it(one: Asker, two: Asker) -> None:
    one.codes(1, b"a", content=b"a")
    two.codes(1, b"foreign")
    sections = [
        Section(2, b"x" * 12, b"sssx"),
        Section(1, b"".join(each.rjust(12) for each in (b"a", b"new", b"foreign")), b"sssbsssasssa"),
    ]
    told = copies((1, b"a"), (1, b"b"), (2, b"a"), (2, b"b"), (3, b"a"), (3, b"b"), (0, b"x"))
    told += COPY.pack(1, b"\0xyz") + COPY.pack(2, b"\0xyz")
    for number in (2, 2, 3):  # sent again it is answered the same; later all of it is known
        reply = one.table.claim(one.context, number, 0, NOW_US, NOW_US, NOW_US, sections, told)
        firsts = b"gcgp" if number == 2 else b"dcdp"
        assert reply[4] == firsts + b"dc" + b"dc" + b"pp" + b"d" + b"dd"
    assert one.codes(4, b"new", content=b"a") == b"d", "the first one is what was claimed"


def test_a_copy_of_what_is_taken_over_is_a_duplicate_of_the_new_claim(store: Store, one: Asker) -> None:
    one.codes(1, b"a", content=b"a")
    successor = Asker(store, b"1", b"1.2")
    successor.publish(0, (b"1.1", 0))
    sections = [Section(1, b"a".rjust(12), b"sssb")]
    assert successor.table.claim(successor.context, 1, 0, NOW_US, NOW_US, NOW_US, sections, copies((0, b"b"), (0, b"a")))[4] == b"gdc"


# ---- the steps


def test_step_1_another_replication_id_or_identity_is_rebuild(store: Store, one: Asker) -> None:
    other = context_of(IDENTITY._replace(generation_us=HOUR_US // 2), b"1", b"1.1", 1)
    assert store.table.claim(other, 1, 0, NOW_US, NOW_US, NOW_US, []) == [b"rebuild"]
    store.table.replication_id = "two"
    assert one.claim(1, b"a") == [b"rebuild"]
    assert store.table.size == 0


def test_step_2_an_unknown_incarnation_must_rejoin(store: Store, one: Asker) -> None:
    unknown = context_of(IDENTITY, b"1", b"1.9", 1)
    assert store.table.claim(unknown, 1, 0, NOW_US, NOW_US, NOW_US, []) == [b"rejoin"]


def test_step_2_a_closed_incarnation_is_a_zombie(store: Store, one: Asker) -> None:
    Asker(store, b"1", b"1.2").publish(0, (b"1.1", 0))
    assert one.claim(1, b"a") == [b"zombie"]
    assert one.claim(0, mark=1) == [b"zombie"]
    assert Asker(store, b"1", b"1.1", 2).greeting == [b"zombie"]


def test_step_2_a_copy_from_an_older_connection_is_stale(store: Store, one: Asker) -> None:
    again = Asker(store, b"1", b"1.1", 2)
    assert one.claim(1, b"a", mark=1) == [b"stale"]
    assert store.table.size == 0
    assert again.codes(1, b"a") == b"g"
    assert Asker(store, b"1", b"1.1", 1).greeting == [b"stale"]


def test_step_2_or_else_a_stale_copy_would_take_a_void_claim_that_nobody_counts(store: Store, one: Asker, two: Asker) -> None:
    two.codes(1, b"a")
    delayed = one
    one = Asker(store, b"1", b"1.1", 2)
    assert one.codes(1, b"a") == b"p", "so call 1 is journalled without it"
    one.mark(1)
    successor = Asker(store, b"2", b"2.2")
    successor.publish(0, (b"2.1", 0))
    assert delayed.claim(1, b"a") == [b"stale"]
    assert successor.codes(1, b"a") == b"g", "without the guard: a duplicate of what was never counted"


def test_step_3_marks_only_rise_also_when_the_call_is_refused(one: Asker, two: Asker) -> None:
    one.codes(3, b"a")
    one.mark(3)
    one.mark(1)
    assert two.codes(1, b"a") == b"d"
    one.store.table._horizon = NOW_US
    assert one.claim(4, b"b", mark=4) == [b"late", NOW_US]
    assert one.table._w[b"1.1"].mark == 4


def test_step_4_the_generation_follows_the_slower_clock_and_never_goes_back(store: Store, one: Asker) -> None:
    assert one.claim(1)[1] == 500_000
    assert one.claim(2, clock_us=NOW_US + 5 * HOUR_US)[1] == 500_000
    store.now_us += 2 * HOUR_US
    assert one.claim(3, clock_us=NOW_US + HOUR_US)[1] == 500_001
    assert one.claim(4)[1] == 500_002
    assert one.claim(5, clock_us=NOW_US)[1] == 500_002


def test_step_4_a_generation_goes_once_its_newest_is_older_than_a_lifetime_and_raises_the_horizon(store: Store, one: Asker) -> None:
    one.claim(1, b"old", time_us=NOW_US - 5)
    one.claim(2, b"new", time_us=NOW_US)
    store.now_us += 3 * HOUR_US
    assert one.claim(3) == [b"verdicts", 500_003, 3, 0, b""]
    assert one.codes(4, b"old") == b"d"
    store.now_us += 1
    assert one.claim(5)[3] == NOW_US
    assert store.table.size == 0
    assert one.claim(6, b"old", time_us=NOW_US) == [b"late", NOW_US]
    assert one.claim(6, b"old", time_us=NOW_US + 1)[4] == b""


def test_step_4_a_kept_generation_keeps_those_above_it(store: Store, one: Asker) -> None:
    """Oldest first: dropping a younger generation would raise the horizon above claims that are still there."""
    one.claim(1, b"a", time_us=NOW_US + HOUR_US)
    store.now_us += HOUR_US
    one.claim(2, b"b", time_us=NOW_US - 2 * HOUR_US)
    store.now_us += 2 * HOUR_US
    assert one.claim(3)[3] == 0
    assert store.table.size == 2


def test_step_4_with_an_old_generation_none_goes_that_is_not_as_old(store: Store, one: Asker) -> None:
    one.claim(1, b"a", time_us=NOW_US)
    store.now_us += HOUR_US
    one.claim(2, b"b", time_us=NOW_US + HOUR_US)
    store.now_us += 2 * HOUR_US + 1
    assert one.claim(3)[3] == NOW_US, "else what is in time would be refused as too late"
    assert store.table.size == 1
    assert one.codes(4, b"b") == b"d"


def test_step_4_nothing_is_claimed_by_a_call_at_the_horizon(one: Asker) -> None:
    one.table._horizon = NOW_US
    sections = [Section(1, b"a" * 12 + b"b" * 12, b"sssassss")]
    assert one.table.claim(one.context, 1, 0, NOW_US, NOW_US, NOW_US + 1, sections) == [b"late", NOW_US]
    assert one.table.size == 0
    assert one.claim(1) == [b"verdicts", 500_000, 2, NOW_US, b""], "a call without events is executed"


def test_step_5_all_live_generations_are_searched_the_newest_first(store: Store, one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    store.now_us += HOUR_US
    assert one.codes(2, b"a", b"b") == b"dg"
    Asker(store, b"1", b"1.2").publish(0, (b"1.1", 1))
    assert two.codes(1, b"b") == b"g", "void: taken over in the same generation"
    store.now_us += HOUR_US
    third = Asker(store, b"2", b"2.2")
    third.publish(0, (b"2.1", 0))
    assert third.codes(1, b"b") == b"g", "void again: taken over in the next generation"
    assert third.codes(2, b"b") == b"d", "found there before the void one"


def test_a_grant_raises_newest_a_duplicate_does_not(store: Store, one: Asker) -> None:
    one.claim(1, b"a", time_us=NOW_US - 7)
    one.claim(2, b"a", time_us=NOW_US)
    assert store.table._newest == {500_000: NOW_US - 7}
    one.claim(1, b"a", time_us=NOW_US - 3)
    assert store.table._newest == {500_000: NOW_US - 3}


def test_executions_are_counted_calls_and_copies_alike(one: Asker) -> None:
    assert [one.claim(number, b"a")[2] for number in (1, 1, 2, 1)] == [1, 2, 3, 4]
    one.mark(1)
    assert one.claim(3)[2] == 5


# ---- hello and publish


def test_hello_tells_where_one_stands(store: Store) -> None:
    first = Asker(store, b"1", b"1.1")
    assert first.greeting == [b"hello", b"one", 0, 0, 1, 0, b""]
    first.join(horizon_us=5)
    assert Asker(store, b"1", b"1.1", 2).greeting[:6] == [b"hello", b"one", 1, 1, 0, 5]
    assert Asker(store, b"2", b"2.1").greeting[:6] == [b"hello", b"one", 1, 0, 1, 5]


def test_hello_rotates_an_open_store(store: Store, one: Asker) -> None:
    one.claim(1, b"a")
    store.now_us += 4 * HOUR_US
    assert Asker(store, b"1", b"1.1", 2).greeting[5] == NOW_US
    assert store.table.size == 0


def test_another_log_is_refused_also_after_a_restart(store: Store, one: Asker) -> None:
    elsewhere = IDENTITY._replace(log="other")
    assert Asker(store, b"2", b"2.1", identity=elsewhere).greeting == [b"wrong_log", b"log"]
    store.table.replication_id = "two"
    assert Asker(store, b"2", b"2.1", identity=elsewhere).greeting == [b"wrong_log", b"log"]
    assert b"2.1" not in store.table._w


def test_another_identity_is_refused_until_a_restart(store: Store, one: Asker) -> None:
    other = IDENTITY._replace(generation_us=HOUR_US // 2)
    assert Asker(store, b"2", b"2.1", identity=other).greeting[0] == b"wrong_identity"
    store.table.replication_id = "two"
    second = Asker(store, b"2", b"2.1", identity=other)
    assert second.greeting[0] == b"hello"
    assert second.join(b"1") == [b"joined", 0, 1]
    assert Asker(store, b"1", b"1.1", 2).greeting[0] == b"wrong_identity", "two kinds of identity never join the same store"


def test_publish_checks_everything_before_it_writes(store: Store, one: Asker) -> None:
    one.codes(1, b"a")
    one.mark(1)
    successor = Asker(store, b"1", b"1.2")
    assert successor.publish(0) == [b"stale_journal", b"1.1".hex().encode(), b"unknown"]
    assert successor.publish(0, (b"1.1", 0)) == [b"stale_journal", b"1.1".hex().encode(), b"mark"]
    assert one.claim(2, b"b")[0] == b"verdicts", "nothing was closed"
    assert successor.publish(0, (b"1.0", 7), (b"1.1", 1)) == [b"published"]
    third = Asker(store, b"1", b"1.3")
    assert third.publish(0, (b"1.0", 6), (b"1.1", 1), (b"1.2", 0)) == [b"stale_journal", b"1.0".hex().encode(), b"closed"]
    assert third.publish(0, (b"1.0", 8), (b"1.1", 1), (b"1.2", 0)) == [b"stale_journal", b"1.0".hex().encode(), b"closed"]
    assert third.publish(0, (b"1.0", 7), (b"1.1", 1), (b"1.2", 0)) == [b"published"]


def test_a_journal_that_was_declared_lost_does_not_come_back_with_more_than_it_was_closed_at(store: Store, one: Asker, two: Asker) -> None:
    """What it claimed beyond that is void, and somebody else may have counted it since."""
    one.codes(1, b"a")
    one.mark(1)
    one.codes(2, b"b")
    assert store.table.bury(two.context._replace(writer=b"1"), True, b"", 0) == [b"buried", b"1.1".hex().encode(), 1, -1, 1]
    assert two.codes(1, b"a", b"b") == b"dg"
    back = Asker(store, b"1", b"1.2")
    assert back.publish(0, (b"1.1", 2)) == [b"stale_journal", b"1.1".hex().encode(), b"closed"]
    assert back.publish(0, (b"1.1", 1)) == [b"published"]


def test_what_was_claimed_again_in_a_store_that_was_emptied_since_is_not_there(store: Store, one: Asker, two: Asker) -> None:
    """Whoever joins in the faster way would leave out all that it once had claimed here, and its events would be counted again."""
    one.table._w[b"1.1"].base = 7
    again = Asker(store, b"2", b"2.1", 2)
    emptied = again.table.join(again.context, b"new era", b"a branch that was entered elsewhere")
    assert emptied == [b"joining", b"new era", 1, b"new era", 0]
    assert again.table.joined(again.context, b"new era", 0, 0, 0, [b"2"]) == [b"joined", 1, 0]
    store.table.replication_id = "another"
    back = Asker(store, b"1", b"1.1", 2)
    reply = back.table.join(back.context, b"newest era", b"", [b"1.1"])
    assert reply == [b"joining", b"new era", 1, b"newest era", 1, b"new era", 0, -1]


def test_who_joins_once_more_is_waited_for_until_it_has_claimed_again(store: Store, one: Asker, two: Asker) -> None:
    """It may have claimed elsewhere since it joined here."""
    store.table.replication_id = "two"
    first, second = Asker(store, b"1", b"1.1", 2), Asker(store, b"2", b"2.1", 2)
    assert first.join(b"2") == [b"joined", 0, 1]
    era = first.table.join(first.context, b"x")[1]
    assert second.join(b"1") == [b"joined", 0, 1]
    assert first.table.joined(first.context, era, 0, 0, 0, [b"1", b"2"]) == [b"joined", 1, 0]  # type: ignore[arg-type]


def test_a_lost_writer_ends_where_its_last_flush_does_if_that_is_beyond_its_mark(store: Store, one: Asker, two: Asker) -> None:
    for number, name in enumerate((b"a", b"b", b"c"), 1):
        one.codes(number, name)
    context = two.context._replace(writer=b"1")
    assert store.table.bury(context, False, b"1.1", 2) == [b"buried", b"1.1".hex().encode(), 0, -1, 2]
    assert two.codes(1, b"a") == b"p", "only told"
    assert store.table.bury(context, True, b"1.1", 2) == [b"buried", b"1.1".hex().encode(), 0, -1, 2]
    assert two.codes(2, b"a", b"b", b"c") == b"ddg"


def test_of_a_lost_writer_the_opening_that_only_the_log_knows_ends_too(store: Store, one: Asker, two: Asker) -> None:
    """The store has lost its own end: claims that carry the later opening would be pending for ever."""
    later = Asker(store, b"1", b"1.2")
    later.codes(1, b"a")
    later.codes(2, b"b")
    assert store.table.bury(two.context._replace(writer=b"1"), True, b"1.2", 1) == [b"buried", b"1.1".hex().encode(), 0, -1, 0]
    assert two.codes(1, b"a", b"b") == b"dg"


def test_incarnations_that_were_never_published_may_follow(store: Store, one: Asker) -> None:
    assert Asker(store, b"1", b"1.4").publish(0, (b"1.1", 0), (b"1.2", 0), (b"1.3", 0)) == [b"published"]


def test_a_journal_that_claimed_is_known_while_the_store_is_open(store: Store, one: Asker) -> None:
    assert Asker(store, b"9", b"9.2").publish(0, (b"9.1", 0)) == [b"published"]
    assert Asker(store, b"8", b"8.2").publish(0, (b"8.1", 1)) == [b"stale_journal", b"8.2".hex().encode(), b"missing"]
    store.table.replication_id = "two"
    assert Asker(store, b"8", b"8.2", 2).publish(0, (b"8.1", 1)) == [b"published"]


def test_closing_twice_is_closing_once(one: Asker) -> None:
    assert one.table.close(one.context, 3) == [b"closed"]
    assert one.table.close(one.context, 3) == [b"closed"]
    assert one.table.close(one.context, 4) == [b"zombie"]


# ---- joining


def reclaim(asker: Asker, generation: int, *ids: bytes, era: bytes = ERA, newest_us: int = NOW_US) -> list[object]:
    digests = b"".join(each.rjust(12) for each in ids)
    return asker.table.reclaim(asker.context, era, asker.store.now_us, [Reclaim(1, generation, newest_us, digests, b"sssa" * len(ids))])


def test_a_store_opens_when_every_member_joined_and_then_knows_all_their_claims(store: Store, one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    two.codes(1, b"b")
    not_complete(store, "two")
    assert one.table.join(one.context, ERA) == [b"joining", ERA, 1, ERA, 0]
    reclaim(one, 500_000, b"a")
    assert one.join(b"2") == [b"joined", 0, 1]
    assert one.claim(2) == [b"rebuild"]
    assert two.table.join(two.context, b"x" * 16) == [b"joining", ERA, 0, ERA, 0]
    reclaim(two, 500_000, b"b")
    assert two.join(b"1") == [b"joined", 1, 0]
    assert one.codes(2, b"a", b"b") == b"dd"
    assert two.codes(2, b"a", b"b") == b"dd"


def not_complete(store: Store, replication_id: str) -> None:
    """As a Redis that was taken in the middle of a join."""
    store.table.replication_id = replication_id
    store.table._open.replication_id = None


def test_the_first_joiner_wipes_what_is_there(store: Store, one: Asker) -> None:
    one.codes(1, b"a", b"lost from the journal"[:12])
    not_complete(store, "two")
    one.table.join(one.context, ERA)
    assert store.table.size == 0
    reclaim(one, 500_000, b"a")
    one.join()
    assert one.codes(2, b"a", b"lost from the journal"[:12]) == b"dg"


def test_where_claims_were_complete_they_stay_and_joiners_are_told_how_much_of_them_is_there(store: Store, one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    one.codes(2, b"b")
    two.codes(1, b"c")
    era, branch = store.table._open.era, store.table._open.branch
    store.table.replication_id = "two"
    unknown = b"u" * 16
    reply = one.table.join(one.context, b"n" * 16, b"", [unknown, one.context.incarnation])
    assert reply == [b"joining", era, 1, b"n" * 16, 1, branch, 0, -1, 2, 0]
    assert store.table.size == 3 and one.claim(3) == [b"rebuild"]
    assert two.table.join(two.context, b"m" * 16, b"", [two.context.incarnation]) == [b"joining", era, 0, b"n" * 16, 1, branch, 1, 0]
    assert reclaim(two, 500_000, b"d", era=era)[0] == b"reclaimed"
    assert one.join(b"2", mark=2) == [b"joined", 0, 1]
    assert two.join(b"1", mark=1) == [b"joined", 1, 0]
    assert one.codes(3, b"a", b"b", b"c", b"d", b"e") == b"ddddg"
    store.table.replication_id = "three"
    assert one.table.join(one.context, b"o" * 16, b"", [one.context.incarnation])[3:] == [b"o" * 16, 1, b"n" * 16, 3, 2]


def test_an_open_store_that_was_left_is_joined_again_by_all(store: Store, one: Asker, two: Asker) -> None:
    """As a whole: a call that was executed again elsewhere may have tags here that nothing bears out."""
    one.codes(1, b"a")
    two.codes(1, b"c")
    branch, elsewhere = store.table._open.branch, b"e" * 16
    assert one.table.join(one.context, b"o" * 16, branch, [])[2:4] == [0, branch], "it is the one that was entered last"
    assert one.claim(2)[0] == b"verdicts"
    assert one.table.join(one.context, b"n" * 16, elsewhere, [one.context.incarnation]) == [b"joining", b"n" * 16, 1, b"n" * 16, 0]
    assert (one.claim(3), two.claim(2)) == ([b"rebuild"], [b"rebuild"])
    assert two.table.join(two.context, b"m" * 16, elsewhere, [])[1:4] == [b"n" * 16, 0, b"n" * 16], "who comes later joins what has begun"
    assert one.join(b"2", mark=2) == [b"joined", 0, 1], "that it had joined before does not count"
    assert two.join(b"1", mark=1) == [b"joined", 1, 0]
    assert one.codes(3, b"a", b"d") == b"gg", "nothing was claimed again"


def test_what_is_of_another_branch_is_not_joined_in_the_faster_way(store: Store, one: Asker) -> None:
    one.codes(1, b"a")
    store.table.replication_id = "two"
    assert one.table.join(one.context, b"n" * 16, b"e" * 16, [one.context.incarnation]) == [b"joining", b"n" * 16, 1, b"n" * 16, 0]
    assert store.table.size == 0


def test_a_faster_join_is_over_for_whoever_was_in_a_third_branch_since(store: Store, one: Asker, two: Asker) -> None:
    one.codes(1, b"a")
    found, era = store.table._open.branch, store.table._open.era
    store.table.replication_id = "two"
    assert one.table.join(one.context, b"n" * 16, found, [])[1:6] == [era, 1, b"n" * 16, 1, found]
    for last in (b"", found, b"n" * 16):
        assert two.table.join(two.context, b"o" * 16, last, [])[1:6] == [era, 0, b"n" * 16, 1, found], last
    assert two.table.join(two.context, b"o" * 16, b"e" * 16, []) == [b"joining", b"o" * 16, 1, b"o" * 16, 0]
    assert one.table.join(one.context, b"p" * 16, b"n" * 16, []) == [b"joining", b"o" * 16, 0, b"o" * 16, 0], "the others follow, once"


def test_a_member_that_is_elsewhere_is_missing(store: Store, one: Asker) -> None:
    store.table.replication_id = "two"
    assert one.join(elsewhere=1) == [b"joined", 0, 1]
    assert one.join(elsewhere=0) == [b"joined", 1, 0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: setattr(table, "_gen", None),
        lambda table: table._claims.clear(),
        lambda table: table._newest.clear(),
        lambda table: table._interned.clear(),
        lambda table: setattr(table._open, "branch", b"x" * 16),
        lambda table: setattr(table._open, "replication_id", "some other"),
    ],
)
def test_what_does_not_fit_together_is_claimed_again_as_a_whole(store: Store, one: Asker, spoil: Callable[[ClaimTable], None]) -> None:
    one.codes(1, b"a")
    spoil(store.table)
    store.table.replication_id = "two"
    assert one.table.join(one.context, b"n" * 16) == [b"joining", b"n" * 16, 1, b"n" * 16, 0]


def test_a_join_before_the_data_was_lost_is_over(store: Store, one: Asker) -> None:
    not_complete(store, "two")
    one.table.join(one.context, ERA)
    store.table.replication_id = "three"
    assert reclaim(one, 500_000, b"a") == [b"rebuild"]
    assert one.table.joined(one.context, ERA, 0, 0, 0, {b"1"}) == [b"rebuild"]
    one.table.join(one.context, b"f" * 16)
    assert reclaim(one, 500_000, b"a") == [b"rebuild"], "the same store, another join"
    assert reclaim(one, 500_000, b"a", era=b"f" * 16)[0] == b"reclaimed"


def test_reclaiming_overwrites_goes_to_the_nearest_live_generation_and_raises_its_newest(store: Store, one: Asker) -> None:
    not_complete(store, "two")
    one.table.join(one.context, ERA)
    store.now_us += 2 * HOUR_US
    reclaim(one, 400_000, b"old", newest_us=NOW_US)
    reclaim(one, 600_000, b"new", newest_us=NOW_US + 5)
    assert store.table._newest == {500_002: NOW_US + 5}
    store.now_us += HOUR_US
    reclaim(one, 500_002, b"x", newest_us=NOW_US + 9)
    reclaim(one, 500_000, b"y", newest_us=NOW_US + 7)
    assert store.table._newest == {500_002: NOW_US + 9}
    assert store.table.size == 4
    one.join()
    assert one.codes(1, b"old", b"new", b"x", b"y") == b"dddd"


def test_joining_publishes_mark_and_horizon(store: Store, one: Asker, two: Asker) -> None:
    one.join(mark=4, horizon_us=77)
    one.codes(4, b"a")
    assert two.codes(1, b"a") == b"d"
    assert one.claim(5)[3] == 77
    one.join(mark=3, horizon_us=66)
    assert one.claim(6)[3] == 77


def test_dropped_claims_are_freed_in_pieces(store: Store, one: Asker) -> None:
    one.claim(1, *(b"%d" % n for n in range(100)))
    store.now_us += 4 * HOUR_US
    one.claim(2)
    assert store.table.size == 0
    assert store.table.free(60) is True
    assert store.table.free(60) is False


# ---- what it is all for: two writers that keep the rules count each identity exactly once, whatever happens to them and to the store

IDS = [b"%d" % number for number in range(4)]
STEP = st.tuples(
    st.sampled_from(
        ["call", "call", "call", "call", "sync", "sync", "crash", "resend", "delayed", "stale copy", "lose", "hours", "publish"]
    ),
    st.integers(0, 1),
    st.sets(st.sampled_from(IDS), min_size=1),
    st.integers(0, 3),
)


@dataclass
class Opening:
    incarnation: bytes
    records: list[tuple[tuple[bytes, ...], tuple[bytes, ...], int]] = field(default_factory=list)  # granted, duplicates, generation
    synced: int = 0


class Ingest:
    """A writer that keeps the rules: a call at a time, every call journalled, answered when synced, its tail torn at a crash."""

    def __init__(self, world: World, writer: bytes) -> None:
        self.world = world
        self.writer = writer
        self.openings: list[Opening] = []
        self.session = 0
        self.open()

    def open(self) -> None:
        if self.openings:
            del self.opening.records[self.opening.synced :]
        self.openings.append(Opening(self.writer + b".%d" % len(self.openings)))
        self.next, self.session, self.last = 1, 0, None
        self.enter()

    @property
    def opening(self) -> Opening:
        return self.openings[-1]

    def enter(self) -> None:
        self.session += 1
        self.asker = Asker(self.world.store, self.writer, self.opening.incarnation, self.session)
        closed = [(old.incarnation, len(old.records)) for old in self.openings[:-1]]
        assert self.asker.publish(self.opening.synced, *closed) == [b"published"]
        if not (self.asker.greeting[2] and self.asker.greeting[3]):
            self.sync()
            era = self.asker.table.join(self.asker.context, self.world.store.fresh_era())[1]
            assert isinstance(era, bytes)
            for old in self.openings:
                for granted, _, generation in old.records:
                    reclaim(self.asker, generation, *granted, era=era)
            self.asker.join(b"A", b"B", mark=self.opening.synced)

    def claim(self, number: int, ids: tuple[bytes, ...]) -> bytes | None:
        reply = self.asker.claim(number, *ids, mark=self.opening.synced, time_us=NOW_US)
        if reply[0] == b"rebuild":
            return None
        if reply[0] == b"late":
            return b"l" * len(ids)
        assert reply[0] == b"verdicts", reply
        generation, codes = reply[1], reply[4]
        assert isinstance(generation, int) and isinstance(codes, bytes)
        codes = codes or b"g" * len(ids)
        verdicts = list(zip(ids, codes.decode(), strict=True))
        granted = tuple(each for each, code in verdicts if code == "g")
        duplicates = tuple(each for each, code in verdicts if code == "d")
        if len(self.opening.records) < number:
            self.opening.records.append((granted, duplicates, generation))
        return codes

    def call(self, ids: set[bytes]) -> bytes | None:
        ordered = tuple(sorted(ids))
        while (codes := self.claim(self.next, ordered)) is None:
            self.world.all_enter()
        self.next += 1
        return codes

    def lost_reply(self, ids: set[bytes]) -> None:
        """The call is executed, its reply lost with the connection; on the next one it is sent again under its number."""
        ordered = tuple(sorted(ids))
        if self.asker.claim(self.next, *ordered, mark=self.opening.synced, time_us=NOW_US)[0] == b"rebuild":
            return
        self.enter()
        self.call(ids)

    def delayed(self, ids: set[bytes]) -> None:
        """The call stays behind in the network; on a new connection it is sent again, and executed there first."""
        self.world.copies.append((self.asker, self.next, tuple(sorted(ids)), self.opening.synced))
        self.enter()
        self.call(ids)

    def sync(self) -> None:
        for granted, duplicates, _ in self.opening.records[self.opening.synced :]:
            self.world.answered |= {*granted, *duplicates}
        self.opening.synced = len(self.opening.records)

    def counted(self) -> list[bytes]:
        records = [record for old in self.openings[:-1] for record in old.records] + self.opening.records[: self.opening.synced]
        return [each for granted, _, _ in records for each in granted]


class World:
    def __init__(self) -> None:
        self.store = Store()
        self.ids = 1
        self.answered: set[bytes] = set()
        self.copies: list[tuple[Asker, int, tuple[bytes, ...], int]] = []
        self.writers: list[Ingest] = []
        self.writers = [Ingest(self, b"A"), Ingest(self, b"B")]

    def all_enter(self) -> None:
        for writer in self.writers:
            writer.enter()

    def step(self, kind: str, writer: Ingest, ids: set[bytes], number: int) -> None:
        if kind == "call":
            writer.call(ids)
        elif kind == "sync":
            writer.sync()
        elif kind == "crash":
            writer.opening.synced = min(len(writer.opening.records), writer.opening.synced + number)
            writer.open()
        elif kind == "resend":
            writer.lost_reply(ids)
        elif kind == "delayed":
            writer.delayed(ids)
        elif kind == "stale copy":
            if self.copies:
                asker, call, some, mark = self.copies.pop()
                asker.claim(call, *some, mark=mark, time_us=NOW_US)
        elif kind == "publish":
            writer.asker.claim(0, mark=writer.opening.synced)
        elif kind == "hours":
            self.store.now_us += number * HOUR_US
        else:
            self.ids += 1
            self.store.table.replication_id = f"{self.ids}"


@settings(max_examples=1000, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_every_identity_is_counted_exactly_once(steps: list[tuple[str, int, set[bytes], int]]) -> None:
    world = World()
    for kind, which, ids, number in steps:
        world.step(kind, world.writers[which], ids, number)
    world.all_enter()
    for writer in world.writers:
        writer.sync()
        writer.asker.claim(0, mark=writer.opening.synced)
    assert world.answered <= {each for writer in world.writers for each in writer.counted()}, "answered, so counted"
    too_late = set()
    for each in IDS:
        codes = world.writers[0].call({each})
        assert codes in (b"g", b"d", b"l"), "after everybody has recovered nothing is pending"
        too_late |= {each} if codes == b"l" else set()
    world.writers[0].sync()
    counted = sorted(each for writer in world.writers for each in writer.counted())
    assert len(counted) == len(set(counted))
    assert set(counted) | too_late == set(IDS)


@given(st.lists(st.integers(0, 100), min_size=1))
def test_a_mark_is_the_highest_that_was_published(marks: list[int]) -> None:
    one = Asker(Store(), b"1", b"1.1")
    one.publish()
    one.join()
    for mark in marks:
        one.mark(mark)
    assert one.table._w[b"1.1"].mark == max(marks)
