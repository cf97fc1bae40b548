"""What the audit finds in PostgreSQL alone: each thing that was changed there is named, what follows from it is not, and neither hides
anything else. (The command, and the other stores: tests/acceptance/test_audit.py.)"""

from __future__ import annotations

import asyncpg
import pytest

from buffer.record import CounterRecord
from rater.postgres import Ledger
from rater.recount import Recount, recount
from rater.source import Received
from tests.integration.rating import EGRESS, PEAK, Count, Writer, records_of
from tests.integration.test_rater import FEBRUARY, HOUR, JANUARY, LATE_S, LOG, at, book, some

TALLIES = {"demo": {"received": 4, "accepted": 3, "duplicate": 1}}


@pytest.fixture
async def rated(ledger: Ledger) -> Writer:
    """Two months and two tenants; the highest peak is in the first record, the last one brings a lower one."""
    writer = Writer(1)
    for name in ("demo", "other"):
        await ledger.put_book(book(tenant=name), now_s=JANUARY, late_s=LATE_S)
    both: list[Count] = [(EGRESS, name, "acme", start, ("us",), 10**6, 1) for name in ("demo", "other") for start in (JANUARY, FEBRUARY)]
    flushes = [
        writer.flush([*both, (PEAK, "demo", "acme", JANUARY, (), 9, 1)], TALLIES),
        writer.flush([(PEAK, "demo", "acme", JANUARY, (), 5, 1)], TALLIES),
        writer.flush(some(1), TALLIES),
    ]
    await ledger.apply(LOG, at(records_of(flushes)))
    return writer


async def recounted(dsn: str) -> Recount:
    return await recount(dsn, lambda _: None)


async def found(dsn: str) -> list[str]:
    return [finding.what for finding in (await recounted(dsn)).findings()]


async def test_nothing_is_found_where_nothing_was_changed(rated: Writer, dsn: str) -> None:
    whole = await recounted(dsn)
    assert list(whole.findings()) == []
    assert not (whole.missing or whole.unsound or whole.parked or whole.strays or whole.held)


CHANGES = [
    ("DELETE FROM usage WHERE value = 9", "is missing, but its records make it 9 (2 events)"),
    ("UPDATE usage SET events = events + 1 WHERE value = 9", "is 9 (3 events), but its records make it 9 (2 events)"),
    ("INSERT INTO usage SELECT series, window_start_s + 7200, 1, 1 FROM usage WHERE value = 9", "is 1 (1 events), but its records make"),
    ("DELETE FROM tallies WHERE verdict = 'accepted'", "is 0, but its records make it 9"),
    ("INSERT INTO tallies SELECT tenant, writer, 'too_late', 2 FROM tallies LIMIT 1", "is 2, but its records make it 0"),
    ("DELETE FROM charge_lines WHERE meter = 'peak_connections'", "is missing, but usage makes it quantity 9, amount 4.50"),
    ("UPDATE charge_lines SET price = price + 1 WHERE meter = 'peak_connections'", "usage makes it quantity 9, amount 4.50"),
    ("UPDATE charge_lines SET subject = 'zeta' WHERE meter = 'peak_connections'", "usage makes it quantity 9, amount 4.50"),
    ("""UPDATE charge_lines SET dimensions = '{"region":"us"}' WHERE meter = 'requests'""", "usage makes it quantity 1, amount 0.00"),
    ("UPDATE charge_lines SET amount = NULL WHERE meter = 'requests'", "is quantity 1, amount none, but usage makes it"),
    (
        "INSERT INTO charge_lines SELECT gen_random_uuid(), tenant, period, subject, meter, 3, dimensions, 1, 1 "
        "FROM charge_lines WHERE meter = 'requests'",
        "is quantity 1, amount 1, but usage makes it missing",
    ),
    (
        "INSERT INTO charge_lines SELECT gen_random_uuid(), tenant, '2026-03', subject, meter, price, dimensions, 1, 1 "
        "FROM charge_lines WHERE meter = 'requests'",
        "meter requests in 2026-03, a month that is not in `periods`",
    ),
    (
        "UPDATE charge_lines SET amount = 7 WHERE period = '2026-02' AND tenant = (SELECT tenant FROM tenants WHERE name = 'demo')",
        "charge line of tenant demo,",
    ),
    (
        "UPDATE charge_lines SET amount = 7 WHERE period = '2026-02' AND tenant = (SELECT tenant FROM tenants WHERE name = 'other')",
        "charge line of tenant other,",
    ),
]


async def test_each_change_is_named_and_nothing_else_is(rated: Writer, dsn: str, pool: asyncpg.Pool) -> None:
    for change, told in CHANGES:
        table = change.split()[1 if change.startswith("UPDATE") else 2]
        await pool.execute(f"CREATE TABLE kept AS TABLE {table}")
        assert int((await pool.execute(change)).split()[-1]) == 1, change
        (what,) = await found(dsn)
        assert told in what, change
        await pool.execute(f"TRUNCATE {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept")


async def test_a_line_that_follows_from_usage_hides_no_other_month(rated: Writer, dsn: str, pool: asyncpg.Pool) -> None:
    """Of January only the usage is named, though its line does not fit any more; February's line is wrong by itself."""
    demo = "(SELECT tenant FROM tenants WHERE name = 'demo')"
    changed = f"UPDATE usage SET value = value + 1 WHERE window_start_s = {JANUARY} AND series IN (SELECT series FROM series AS s "
    await pool.execute(f"{changed} JOIN meters USING (meter) WHERE s.tenant = {demo} AND name = 'egress_bytes')")
    await pool.execute(f"UPDATE charge_lines SET amount = 7 WHERE period = '2026-02' AND meter = 'egress_bytes' AND tenant = {demo}")
    usage, line = await found(dsn)
    assert f"window {JANUARY}" in usage and "in 2026-02 is quantity 1000000, amount 7, but usage makes it quantity 1000000" in line


async def test_usage_of_a_month_that_is_not_charged_at_all_is_named(rated: Writer, dsn: str, pool: asyncpg.Pool) -> None:
    """A month that went from `periods` with all its lines leaves no line to compare."""
    demo = "(SELECT tenant FROM tenants WHERE name = 'demo')"
    await pool.execute(f"DELETE FROM periods WHERE period = '2026-02' AND tenant = {demo}")
    await pool.execute(f"DELETE FROM charge_lines WHERE period = '2026-02' AND tenant = {demo}")
    (what,) = await found(dsn)
    assert (
        what == "usage of tenant demo, subject 'acme', meter egress_bytes in 2026-02, a month that is not in `periods`: it is not charged"
    )
    await pool.execute(f"UPDATE usage SET value = value + 1 WHERE window_start_s = {FEBRUARY}")
    assert all("its records make it" in what for what in await found(dsn)), "what follows from usage is not named again"


async def test_a_record_whose_row_says_something_else_than_its_headers_is_not_sound(rated: Writer, dsn: str, pool: asyncpg.Pool) -> None:
    """Its bytes are whole, so only the comparison shows it."""
    await pool.execute("UPDATE records SET hash = gen_random_uuid() WHERE n = 2")
    ((row, reason),) = (await recounted(dsn)).unsound.items()
    assert row == (rated.id, 0, 2) and "its headers say the hash" in reason
    await pool.execute("UPDATE records SET hash = encode(header_values[array_position(header_names, 'hash')], 'escape')::uuid")
    assert (await recounted(dsn)).unsound == {}
    await pool.execute("UPDATE records SET n = 4 WHERE n = 3")
    again = await recounted(dsn)
    assert again.missing == [(rated.id, 0, 3)]
    assert again.unsound == {(rated.id, 0, 4): f"its headers say record 3 of partition 0 of writer {rated.id.hex()}"}


async def test_the_last_record_of_a_chain_is_missed(rated: Writer, dsn: str, pool: asyncpg.Pool) -> None:
    await pool.execute("DELETE FROM records WHERE n = 3")
    assert (await recounted(dsn)).missing == [(rated.id, 0, 3)]


async def test_what_another_store_lends_is_added_as_its_meters_are(rated: Writer, dsn: str, pool: asyncpg.Pool) -> None:
    """A maximum, a sum and tallies: once the record is lent, nothing differs."""
    borrowed: dict[int, CounterRecord | None] = {}
    await recount(dsn, lambda one: borrowed.__setitem__(one.row[2], one.record))
    for n in (1, 2, 3):
        kept = await pool.fetchrow("DELETE FROM records WHERE n = $1 RETURNING *", n)
        assert kept is not None
        missing = await recounted(dsn)
        assert missing.missing == [(rated.id, 0, n)] and list(missing.findings())
        missing.lend((rated.id, 0, n), borrowed[n])
        assert list(missing.findings()) == [], n
        await pool.execute(f"INSERT INTO records VALUES ({', '.join(f'${at + 1}' for at in range(len(kept)))})", *kept)


async def test_what_is_parked_or_held_is_found_and_what_a_person_explained_is_not_missed(
    rated: Writer, ledger: Ledger, dsn: str, pool: asyncpg.Pool
) -> None:
    gap, twin = Writer(2), Writer(1)
    gap.flush(some())
    await ledger.apply(LOG, at([*gap.flush(some(1)), *twin.flush(some(9))], start=3))
    await ledger.apply(LOG, [Received("s7", 72, {"who": b"knows"}, b"what"), Received("s7", 73, {"who": b"else"}, b"what")])
    whole = await recounted(dsn)
    assert whole.parked.keys() == {(gap.id, 0, 2), (rated.id, 0, 1)} and whole.parked[gap.id, 0, 2] == "record 1 has to come first"
    assert whole.held.keys() == {(rated.id, 0)} and "fork: record 1" in whole.held[rated.id, 0]
    assert whole.strays.keys() == {("s7", 72), ("s7", 73)} and whole.explained == set()
    assert await ledger.leave_out_stray(await pool.fetchval("SELECT id FROM parked WHERE next_position = 72"))
    assert (await ledger.release(rated.id, 0)).done
    again = await recounted(dsn)
    assert again.parked.keys() == {(gap.id, 0, 2)} and again.held == {}
    assert again.strays.keys() == {("s7", 73)} and again.explained == {("s7", 72)}


async def test_usage_of_a_tenant_that_is_charged_by_no_book_is_counted_again_too(ledger: Ledger, dsn: str, pool: asyncpg.Pool) -> None:
    await ledger.apply(LOG, at(Writer(1).flush(some(hour := 5))))
    assert await found(dsn) == []
    await pool.execute("UPDATE usage SET value = value + 1 WHERE window_start_s = $1 AND value = 1000", JANUARY + hour * HOUR)
    (what,) = await found(dsn)
    assert "is 1001 (1 events), but its records make it 1000 (1 events)" in what
