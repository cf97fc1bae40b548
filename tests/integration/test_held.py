"""`parshall held` over a real PostgreSQL: each kind of trouble with its next step; a released fork is rated by the running rater."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from rater.postgres import Ledger
from rater.source import Received
from tests.integration.rating import NUMBERS, PEAK, ListSource, Writer, parshall, usage_by_hand
from tests.integration.test_rater import LOG, altered, at, rater_of, run_until, some, stored_usage


async def rate_due(ledger: Ledger, writer: Writer) -> None:
    while await ledger.due_chains() and (await ledger.apply_parked(LOG, (writer.id, 0))).unparked:
        pass


def listed(database: str) -> list[dict[str, Any]]:
    code, told, errors = parshall(database, "held", "list", "--json")
    lines: list[dict[str, Any]] = json.loads(told)
    assert code == (1 if lines else 0) and errors == ""
    return lines


async def test_nothing_is_held(ledger: Ledger, database: str) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    assert parshall(database, "held", "list") == (0, "Nothing is held: every record that came is rated.\n", "")


async def test_a_gap(ledger: Ledger, database: str) -> None:
    writer = Writer(1)
    first, _, third, fourth = (writer.flush(some(number)) for number in range(4))
    await ledger.apply(LOG, at(first + third + fourth))
    (line,) = listed(database)
    assert (line["writer"], line["partition"], line["rated_up_to"], line["waiting"]) == (writer.id.hex(), 0, 1, 2)
    assert f"parshall resend --writer {writer.id.hex()} --partition 0 --from 2 --to 2" in line["next"]


async def test_a_record_that_cannot_be_read_and_a_damaged_copy(ledger: Ledger, database: str) -> None:
    unreadable, damaged = Writer(1), Writer(2)
    (record,) = unreadable.flush(some())
    await ledger.apply(LOG, at([altered(record, value=b'{"v":1,')]))
    (copy,) = damaged.flush(some(1))
    await ledger.apply(LOG, at([copy._replace(value=copy.value + b" ")]))
    first, second = listed(database)
    assert "undecodable" in first["why"] and f"parshall held show {first['record']}" in first["next"]
    assert "its bytes hash to" in second["why"] and "parshall resend" in second["next"] and "--from 1 --to 1" in second["next"]
    code, told, _ = parshall(database, "held", "show", str(first["record"]))
    assert code == 0 and f"writer: {unreadable.id.hex()}\n" in told and told.endswith('\n{"v":1,\n')


async def test_a_record_that_counts_another_kind_of_meter(ledger: Ledger, database: str) -> None:
    """No newer version can rate it, and nothing that its writer counts behind it is rated: another writer is what helps."""
    other = Writer(2)
    other.meters[NUMBERS[PEAK.name]] = PEAK._replace(aggregation="sum")
    await ledger.apply(LOG, at(Writer(1).flush(some())))
    await ledger.apply(LOG, at(other.flush(some(1)) + other.flush(some(2))))
    (line,) = listed(database)
    assert (line["writer"], line["rated_up_to"], line["waiting"]) == (other.id.hex(), 0, 2)
    assert "meter 'peak_connections' has aggregation 'sum' in it, 'max' in all records before" in line["why"]
    assert f"cannot be rated, by no version: writer {other.id.hex()} counted it" in line["next"]
    assert "`parshall writer drain`, and start it with an empty data folder and the meter as it was, or under another name" in line["next"]
    assert f"parshall held show {line['record']}" in line["next"] and "update Parshall" not in line["next"]
    code, _, errors = parshall(database, "held", "release", "--writer", other.id.hex(), "--partition", "0")
    assert code == 1 and "is not held after a fork" in errors


async def test_a_record_without_a_place(ledger: Ledger, database: str) -> None:
    await ledger.apply(LOG, [Received("usage.counters/3", 72, {"who": b"knows"}, b"what")])
    (line,) = listed(database)
    assert line["writer"] is None and "in usage.counters/3 before position 72" in line["why"]
    assert "what else produces into this topic" in line["next"]


async def test_a_record_without_a_place_is_left_out_and_as_of_goes_on(ledger: Ledger, database: str) -> None:
    await ledger.apply(LOG, [Received("usage.counters/3", 72, {"who": b"knows"}, b"what")])
    gap = Writer(1)
    gap.flush(some())
    await ledger.apply(LOG, at(gap.flush(some(1)), "s1"))
    with_a_place, stray = listed(database)
    assert f"`parshall held release --record {stray['record']}`" in stray["next"]

    for record in (with_a_place["record"], 99):
        code, told, errors = parshall(database, "held", "release", "--record", str(record))
        assert (code, told) == (2, "") and f"{record} is no record without a place" in errors
    assert len(listed(database)) == 2
    assert parshall(database, "held", "release", "--record", str(stray["record"])) == (
        0,
        f"Record {stray['record']} is left out. It stays parked, as explained.\n",
        "",
    )
    (left,) = listed(database)
    assert left == with_a_place
    assert parshall(database, "held", "show", str(stray["record"]))[0] == 0
    await ledger.apply(LOG, [Received("usage.counters/3", 72, {"who": b"knows"}, b"what")])
    gap.next_n.clear()
    await ledger.apply(LOG, at(gap.flush(some()), "s1", 2))
    while (await ledger.apply_parked(LOG, (gap.id, 0))).unparked:
        pass
    assert listed(database) == []
    assert await ledger.note_progress(LOG, 5, {"usage.counters/3": 72, "s1": 2}) == 5


async def test_a_fork_is_released_and_the_running_rater_goes_on(ledger: Ledger, pool: asyncpg.Pool, database: str) -> None:
    writer, twin = Writer(1), Writer(1)
    source = ListSource()
    first = writer.flush(some())
    await ledger.apply(LOG, at(first))
    source.add(first + twin.flush(some(9)) + writer.flush(some(1)))
    rater = rater_of(source, ledger)

    async def held() -> bool:
        return bool(await pool.fetchval("SELECT count(*) FROM parked WHERE n = 2"))

    await run_until(rater, held)
    (line,) = listed(database)
    assert "fork: record 1" in line["why"]
    release = ["release", "--writer", writer.id.hex(), "--partition", "0"]
    assert " ".join(release) in line["next"]
    assert await stored_usage(pool) == usage_by_hand(some())

    code, told, _ = parshall(database, "held", *release)
    assert code == 0 and told.startswith("Released."), told
    resend = f"`parshall resend --writer {writer.id.hex()} --partition 0 --from 2 --to 2`"
    assert resend in told
    assert "came behind a fork" in listed(database)[0]["why"] and resend in listed(database)[0]["next"]
    again = source.streams["s0"][-1:]  # as `parshall resend` does

    async def rated() -> bool:
        nonlocal again
        if again and rater.counts.ready:
            source.add(again)
            again = []
        return await stored_usage(pool) == usage_by_hand(some() + some(1)) and rater.counts.as_of_us > 0

    assert rater.counts.as_of_us == 0
    await run_until(rater, rated)
    assert listed(database) == []
    code, _, errors = parshall(database, "held", "release", "--writer", writer.id.hex(), "--partition", "0")
    assert code == 1 and "is not held after a fork" in errors


@pytest.mark.parametrize("by_number", [False, True])
async def test_what_the_right_journal_no_longer_has_is_taken_up_and_the_rest_given_up(
    ledger: Ledger, pool: asyncpg.Pool, database: str, by_number: bool
) -> None:
    """Of what came behind the fork record 2 is the right journal's, and what comes after it the copy's."""
    writer, twin = Writer(1), Writer(1)
    await ledger.apply(LOG, at(writer.flush(some())))
    await ledger.apply(LOG, at([*twin.flush(some(9)), *writer.flush(some(1))], "s0", 2))
    twin.next_n = dict(writer.next_n)
    await ledger.apply(LOG, at([*twin.flush(some(7)), *twin.flush(some(8))], "s0", 4))
    place = ["--writer", writer.id.hex(), "--partition", "0"]
    code, told, _ = parshall(database, "held", "release", *place)
    assert code == 0 and "--from 2 --to 4" in told
    (line,) = listed(database)
    assert "(--take-up)" in line["next"] and "(--give-up)" in line["next"]
    number = ["--record", str(line["record"])] if by_number else []

    async def apply() -> int:
        applied = 0
        while (done := (await ledger.apply_parked(LOG, (writer.id, 0))).unparked) and (applied := applied + done):
            pass
        return applied

    for wrong in (["--take-up", "--give-up"], ["--give-up", "--record", "1"]):
        assert parshall(database, "held", "release", *place, *wrong)[0] == 2
    code, told, _ = parshall(database, "held", "release", *place, "--take-up", *number)
    assert (code, told.split(".")[0]) == (0, "1 record is taken up" if by_number else "3 records are taken up")
    assert await apply() == (1 if by_number else 3)
    if not by_number:
        assert await stored_usage(pool) == usage_by_hand(some() + some(1) + some(7) + some(8)) and listed(database) == []
        assert parshall(database, "held", "release", *place, "--give-up")[0] == 1, "nothing of that is there"
        return
    assert await stored_usage(pool) == usage_by_hand(some() + some(1))
    assert await ledger.note_progress(LOG, 5, {}) is None
    code, told, _ = parshall(database, "held", "release", *place, "--give-up")
    assert (code, told.split(".")[0]) == (0, "2 records are given up")
    assert listed(database) == [] and await ledger.note_progress(LOG, 5, {}) == 5
    await ledger.apply(LOG, at(writer.flush(some(3)), "s0", 6))
    assert await stored_usage(pool) == usage_by_hand(some() + some(1) + some(3)), "the right journal goes on"


async def test_of_a_fork_that_came_at_once_a_person_chooses_the_side(ledger: Ledger, pool: asyncpg.Pool, database: str) -> None:
    writer, twin = Writer(1), Writer(1)
    (first,) = writer.flush(some())
    (second,) = writer.flush(some(1))
    await ledger.apply(LOG, at([first, *twin.flush(some(9)), second]))
    release = ["release", "--writer", writer.id.hex(), "--partition", "0"]
    code, _, errors = parshall(database, "held", *release)
    assert code == 2 and "Both sides of the fork are parked" in errors
    right = await pool.fetchval("SELECT id FROM parked WHERE value = $1", first.value)
    assert str(right) in errors
    code, _, errors = parshall(database, "held", *release, "--record", "99")
    assert code == 2 and "Record 99 is not one of those to choose from, which are " in errors
    code, told, _ = parshall(database, "held", *release, "--record", str(right))
    assert code == 0 and "--from 2 --to 2" in told
    await rate_due(ledger, writer)
    assert await stored_usage(pool) == usage_by_hand(some())
    await ledger.apply(LOG, at([second], start=3))
    assert await stored_usage(pool) == usage_by_hand(some() + some(1))
    assert listed(database) == []


async def test_of_a_fork_of_which_one_side_is_rated_nobody_can_choose_the_other(ledger: Ledger, pool: asyncpg.Pool, database: str) -> None:
    copy, right = Writer(1), Writer(1)
    await ledger.apply(LOG, at(copy.flush(some(9))))
    await ledger.apply(LOG, at(right.flush(some()), start=1))
    (line,) = listed(database)
    release = ["release", "--writer", copy.id.hex(), "--partition", "0"]
    code, told, errors = parshall(database, "held", *release, "--record", str(line["record"]))
    assert (code, told) == (2, "")
    assert f"Record {line['record']} cannot be chosen" in errors and "Nothing was done" in errors
    assert "One that was rated already stays rated, and `parshall held " + " ".join(release) + "` goes on with it." in errors
    assert listed(database) == [line]
    assert parshall(database, "held", *release) == (0, "Released. The rater goes on within a few seconds.\n", "")
    assert listed(database) == []


async def test_after_a_fork_the_next_records_of_the_copy_are_not_rated(ledger: Ledger, pool: asyncpg.Pool, database: str) -> None:
    right, copy = Writer(1), Writer(1)
    await ledger.apply(LOG, at(right.flush(some())))
    await ledger.apply(LOG, at(copy.flush(some(7)) + copy.flush(some(8)) + copy.flush(some(9)), start=1))
    code, told, _ = parshall(database, "held", "release", "--writer", right.id.hex(), "--partition", "0")
    assert code == 0 and f"`parshall resend --writer {right.id.hex()} --partition 0 --from 2 --to 3`" in told
    await rate_due(ledger, right)
    assert await stored_usage(pool) == usage_by_hand(some())
    assert await ledger.note_progress(LOG, 5, {}) is None
    (line,) = listed(database)
    assert f"`parshall resend --writer {right.id.hex()} --partition 0 --from 2 --to 3`" in line["next"]
    await ledger.apply(LOG, at(right.flush(some(1)) + right.flush(some(2)), start=4))
    assert await stored_usage(pool) == usage_by_hand(some() + some(1) + some(2))
    assert listed(database) == []
    assert await ledger.note_progress(LOG, 5, {}) == 5


async def parked_of(pool: asyncpg.Pool) -> dict[tuple[bytes, int], list[tuple[Any, ...]]]:
    """(writer, partition) -> why it takes nothing, and what is parked of it."""
    held = await pool.fetch('SELECT writer, "partition", held FROM chains')
    rows = await pool.fetch('SELECT writer, "partition", n, sound, missing, reason FROM parked ORDER BY n, id')
    return {tuple(one[:2]): [(one[2],), *(tuple(row[2:]) for row in rows if row[:2] == one[:2])] for one in held}


def of_partition(records: Sequence[Received], number: int) -> list[Received]:
    return [record for record in records if record.headers["partition"] == b"%d" % number]


def in_both(writer: Writer, hour: int) -> list[Received]:
    """A record in each of two partitions."""
    records = writer.flush(some(hour, subject="acme") + some(hour, subject="b"))
    assert {record.headers["partition"] for record in records} == {b"0", b"1"} and len(records) == 2
    return records


async def test_what_a_person_decides_concerns_that_writer_in_that_partition_alone(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """Two writers are forked in two partitions each."""
    writers = [Writer(1, 2), Writer(2, 2)]
    for writer in writers:
        first, second = in_both(writer, 0), in_both(writer, 1)
        await ledger.apply(LOG, at(first))
        await ledger.apply(LOG, at([*in_both(Writer(writer.id[0], 2), 9), *second], start=2))
    chains = [(writer.id, partition) for writer in writers for partition in (0, 1)]
    found = await parked_of(pool)
    assert found.keys() == set(chains) and all(len(rows) == 3 and rows[0][0] for rows in found.values())
    for chain in chains:
        assert (await ledger.release(*chain)).again == (2, 2)
        now = await parked_of(pool)
        assert now[chain][0] == (None,) and [row[:3] for row in now[chain][1:]] == [(1, True, False), (2, False, True)]
        assert {other: rows for other, rows in now.items() if other != chain} == {
            other: rows for other, rows in found.items() if other != chain
        }
        found = now
    for chain, taken_up in zip(chains, (True, False, False, True), strict=True):
        assert await (ledger.take_up(*chain, None) if taken_up else ledger.give_up(*chain)) == 1
        now = await parked_of(pool)
        assert now[chain][2][:3] == (2, taken_up, taken_up)
        assert {other: rows for other, rows in now.items() if other != chain} == {
            other: rows for other, rows in found.items() if other != chain
        }
        found = now
    assert await ledger.due_chains() == [chains[0], chains[3]]


async def test_only_what_was_left_out_behind_a_fork_is_taken_up_or_given_up(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """Beside it lie the other side of the fork, explained, and a damaged copy of a record that never came."""
    writer, twin = Writer(1), Writer(1)
    first, second, third, fourth = (writer.flush(some(number)) for number in range(4))
    damaged = [third[0]._replace(value=third[0].value + b" ")]
    await ledger.apply(LOG, at(first))
    await ledger.apply(LOG, at([*twin.flush(some(9)), *second, *damaged, *fourth], start=1))
    assert (await ledger.release(writer.id, 0)).again == (2, 4)
    assert await ledger.take_up(writer.id, 0, await pool.fetchval("SELECT id FROM parked WHERE n = 1")) == 0
    assert await ledger.take_up(writer.id, 0, await pool.fetchval("SELECT id FROM parked WHERE n = 3")) == 0
    assert await ledger.take_up(writer.id, 0, await pool.fetchval("SELECT id FROM parked WHERE n = 2")) == 1
    assert await ledger.give_up(writer.id, 0) == 1
    assert await ledger.take_up(writer.id, 0, None) == 0, "what was given up is the copy's for good"
    rows = await pool.fetch("SELECT n, sound, missing FROM parked ORDER BY n")
    assert [tuple(row) for row in rows] == [(1, True, False), (2, True, True), (3, False, True), (4, False, False)]


async def test_of_two_partitions_that_are_forked_each_is_chosen_for_by_itself(ledger: Ledger, pool: asyncpg.Pool) -> None:
    writer = Writer(1, 2)
    right = in_both(writer, 0)
    await ledger.apply(LOG, at([*right, *in_both(Writer(1, 2), 9)]))
    for partition in (0, 1):
        rows = await pool.fetch('SELECT id, value FROM parked WHERE "partition" = $1 ORDER BY id', partition)
        assert (await ledger.release(writer.id, partition)).choices == [row["id"] for row in rows]
        (chosen,) = [row["id"] for row in rows if row["value"] in [record.value for record in right]]
        other = await pool.fetchval('SELECT id FROM parked WHERE "partition" = $1 LIMIT 1', 1 - partition)
        if other is not None:
            assert (await ledger.release(writer.id, partition, other)).unfit
        assert (await ledger.release(writer.id, partition, chosen)).done
        assert (await ledger.apply_parked(LOG, (writer.id, partition))).unparked == 1
    assert await stored_usage(pool) == usage_by_hand(some(subject="acme") + some(subject="b"))


async def test_what_is_parked_in_one_partition_is_no_matter_of_another(ledger: Ledger, pool: asyncpg.Pool) -> None:
    """A gap in one, and a damaged copy: the other one goes on by itself, and nothing there settles them."""
    writer = Writer(1, 2)
    first, second, third = (in_both(writer, hour) for hour in range(3))
    (lost,) = of_partition(first, 1)
    await ledger.apply(LOG, at([*of_partition(second, 1), lost._replace(value=lost.value + b" ")]))
    for records in (first, second, third):
        assert (await ledger.apply(LOG, at(of_partition(records, 0), start=2))).records == 1
    rows = await pool.fetch('SELECT "partition", n, sound, missing FROM parked ORDER BY n')
    assert [tuple(row) for row in rows] == [(1, 1, False, True), (1, 2, True, True)]
    assert (await ledger.apply(LOG, at([lost, *of_partition(third, 1)], start=5))).records == 3
    counts = [count for hour in range(3) for subject in ("acme", "b") for count in some(hour, subject=subject)]
    assert await stored_usage(pool) == usage_by_hand(counts)
    assert [row["missing"] for row in await pool.fetch("SELECT missing FROM parked")] == [False]


async def test_a_fork_in_one_partition_is_listed_with_what_waits_there(ledger: Ledger, pool: asyncpg.Pool, database: str) -> None:
    writer = Writer(1, 2)
    first, second, third = (in_both(writer, hour) for hour in range(3))
    await ledger.apply(LOG, at(first))
    await ledger.apply(LOG, at([*of_partition(in_both(Writer(1, 2), 9), 1), *of_partition(second, 1), *of_partition(third, 0)], start=2))
    gap, fork = listed(database)
    assert (gap["partition"], gap["rated_up_to"], gap["waiting"], "fork" in gap["why"]) == (0, 1, 1, False)
    assert "--partition 0 --from 2 --to 2" in gap["next"]
    assert (fork["partition"], fork["rated_up_to"], fork["waiting"], "fork" in fork["why"]) == (1, 1, 2, True)


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["show", "99"], 2, "No record 99 is parked"),
        (["release", "--writer", "xyz", "--partition", "0"], 2, "32 hexadecimal digits"),
        (["release"], 2, "Say what to release"),
        (["release", "--writer", "ab" * 16], 2, "--writer and --partition only name a fork together"),
        (["release", "--partition", "0", "--record", "1"], 2, "--writer and --partition only name a fork together"),
        (["release", "--record", "99"], 2, "99 is no record without a place"),
        (["release", "--writer", "ab" * 16, "--partition", "0", "--record", "99"], 2, "Record 99 cannot be chosen"),
        (["release", "--writer", "ab" * 16, "--partition", "0"], 1, "is not held after a fork in partition 0"),
    ],
)
async def test_what_cannot_be_done(ledger: Ledger, database: str, command: Sequence[str], code: int, told: str) -> None:
    found, _, errors = parshall(database, "held", *command)
    assert found == code and told in errors


def test_a_database_that_is_not_there() -> None:
    code, told, errors = parshall("postgresql://127.0.0.1:1/nowhere", "held", "list")
    assert (code, told) == (3, "") and errors.startswith("PostgreSQL cannot be asked: ")
