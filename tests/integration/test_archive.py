"""`parshall archive` and what it leaves: over a real PostgreSQL, real files, a disk that is full, and kill -9."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from parshall import archive_command
from parshall.archive_files import ArchiveWriter, lines_of
from rater.archive import ARCHIVE, Moved, ledger_archive
from rater.archive_lines import ArchiveFailed
from rater.postgres import Ledger
from rater.recount import Recount, recount
from tests.integration.rating import EGRESS, PEAK, PROJECT, REQUESTS, Writer, parshall
from tests.integration.test_rater import FEBRUARY, HOUR, JANUARY, LATE_S, LOG, at, book
from tests.small_disk import assert_not_permitted, small_disk

TALLIES = {"demo": {"received": 4, "accepted": 3, "duplicate": 1}}


class Rated:
    """Three records, the first two of them rated a hundred days ago; February is in the third one alone."""

    def __init__(self) -> None:
        self.writer = Writer(1)
        self.records = [
            *self.writer.flush([(EGRESS, "demo", "acme", JANUARY, ("us",), 10**6, 1), (PEAK, "demo", "acme", JANUARY, (), 9, 1)], TALLIES),
            *self.writer.flush([(EGRESS, "demo", "acme", JANUARY + HOUR, ("us",), 5, 1), (PEAK, "demo", "acme", JANUARY, (), 5, 1)]),
            *self.writer.flush(
                [(REQUESTS, "demo", "acme", FEBRUARY, ("eu", "a"), 0, 7), (EGRESS, "demo", "acme", JANUARY, ("us",), 1, 1)], TALLIES
            ),
        ]


@pytest.fixture
async def rated(ledger: Ledger, pool: asyncpg.Pool) -> Rated:
    made = Rated()
    await ledger.put_book(book(), now_s=JANUARY, late_s=LATE_S)
    await ledger.apply(LOG, at(made.records))
    await pool.execute("UPDATE records SET rated_at = now() - interval '100 days' WHERE n < 3")
    return made


def archive(dsn: str, folder: Path) -> tuple[int, str, str]:
    return parshall(dsn, "archive", str(folder), "--older-than", "90d")


async def counted(dsn: str, folder: Path | None) -> Recount:
    return await recount(dsn, lambda _: None, None if folder is None else lambda file, sha256: lines_of(str(folder), file, sha256))


async def findings(dsn: str, folder: Path | None) -> list[str]:
    return [finding.what for finding in (await counted(dsn, folder)).findings()]


async def stored(pool: asyncpg.Pool) -> dict[str, list[Any]]:
    """All but where the bytes of records are."""
    tables = ("usage", "charge_lines", "tallies", "chains", "series", "periods")
    return {table: [tuple(row) for row in await pool.fetch(f"SELECT * FROM {table} ORDER BY 1, 2, 3")] for table in tables}


async def bytes_here(pool: asyncpg.Pool) -> list[int]:
    return [row[0] for row in await pool.fetch("SELECT n FROM records WHERE value IS NOT NULL ORDER BY n")]


async def test_old_records_go_to_a_file_and_nothing_else_changes(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    before = await stored(pool)
    code, told, errors = archive(dsn, tmp_path)
    assert (code, errors) == (0, "")
    (file,) = tmp_path.iterdir()
    assert told == f"{file.name}: 2 records\n2 records moved.\n"
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert [(line["writer"], line["partition"], line["n"]) for line in lines] == [(rated.writer.id.hex(), 0, n) for n in (1, 2)]
    assert [line["value"]["counters"][0][5] for line in lines] == ["1000000", "5"]
    assert lines[0]["rated_at"].endswith("Z")
    assert await bytes_here(pool) == [3]
    assert await stored(pool) == before
    assert archive(dsn, tmp_path) == (0, "No record that is here was rated that long ago.\n", "")
    assert list(tmp_path.iterdir()) == [file]


async def test_what_comes_again_is_still_known(rated: Rated, ledger: Ledger, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    before = await stored(pool)
    archive(dsn, tmp_path)
    applied = await ledger.apply(LOG, at(rated.records))
    assert (applied.records, applied.skipped) == (0, 3)
    assert await stored(pool) == before
    fork = Writer(1).flush([(PEAK, "demo", "acme", JANUARY, (), 77, 1)])
    assert (await ledger.apply(LOG, at(fork))).forks == 1
    assert "fork: record 1 came with the hash" in await pool.fetchval("SELECT held FROM chains")


async def test_the_audit_counts_with_archives(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    archive(dsn, tmp_path)
    whole, without = await counted(dsn, tmp_path), await counted(dsn, None)
    assert not list(whole.findings()) and not list(without.findings())
    assert whole.archives.unread == [] and without.archives.unread == [file.name for file in tmp_path.iterdir()]
    assert without.archives.unread_to_s == JANUARY + HOUR
    await pool.execute("UPDATE usage SET value = value + 1 WHERE value = 9")
    (what,) = await findings(dsn, tmp_path)
    assert "is 10 (2 events), but its records make it 9 (2 events)" in what
    assert await findings(dsn, None) == [
        "charge line of tenant demo, subject 'acme', meter peak_connections, price 4, dimensions {} in 2026-01 "
        "is quantity 9, amount 4.50, but usage makes it quantity 10, amount 5.00"
    ], "usage of January is not proved without its archive"
    await pool.execute("UPDATE usage SET value = value - 1 WHERE value = 10")
    await pool.execute(f"DELETE FROM usage WHERE window_start_s = {FEBRUARY}")
    for folder in (tmp_path, None):
        assert any("is missing, but its records make it 7 (7 events)" in what for what in await findings(dsn, folder)), "later windows are"


async def test_tallies_are_counted_without_the_files(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    archive(dsn, tmp_path)
    await pool.execute("UPDATE tallies SET events = 5 WHERE verdict = 'accepted'")
    for folder in (tmp_path, None):
        (what,) = await findings(dsn, folder)
        assert "is 5, but its records make it 6" in what


CHANGES = [
    ("UPDATE records SET hash = gen_random_uuid() WHERE n = 2", "the row of record 2 of partition 0 of writer"),
    (
        """UPDATE records SET tallies = '{"demo": {"received": 4, "accepted": 4}}' WHERE n = 1""",
        "the row of record 1 of partition 0 of writer",
    ),
    ("UPDATE records SET archive = 99 WHERE n = 2", "the row of record 2 of partition 0 of writer"),
    ("UPDATE records SET archive = 1, value = NULL WHERE n = 3", "1 rows of `records` say that their bytes are in archive records-"),
    ("DELETE FROM archives", "2 rows of `records` say that their bytes are in archive 1, which is not in the table `archives`"),
]


async def test_rows_that_are_not_what_the_file_has_are_named(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    archive(dsn, tmp_path)
    for change, told in CHANGES:
        await pool.execute("CREATE TABLE kept AS TABLE records; CREATE TABLE known AS TABLE archives")
        await pool.execute(change)
        named = await findings(dsn, tmp_path)
        assert any(what.startswith(told) for what in named), change
        assert not any("-1 rows" in what for what in named), change
        await pool.execute("TRUNCATE records, archives; INSERT INTO archives OVERRIDING SYSTEM VALUE SELECT * FROM known")
        await pool.execute("INSERT INTO records SELECT * FROM kept; DROP TABLE kept, known")
        assert await findings(dsn, tmp_path) == []


async def test_a_row_that_is_gone_is_counted_from_the_archive(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    archive(dsn, tmp_path)
    await pool.execute("DELETE FROM records WHERE n = 1")
    whole = await counted(dsn, tmp_path)
    assert whole.missing == [(rated.writer.id, 0, 1)]
    assert whole.archives.lent == {(rated.writer.id, 0, 1): next(tmp_path.iterdir()).name}
    assert list(whole.findings()) == [], "what follows from it is not named"


async def test_bytes_that_were_put_back_are_counted_once(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    await pool.execute("CREATE TABLE kept AS TABLE records")
    archive(dsn, tmp_path)
    await pool.execute("DELETE FROM records WHERE n = 1; INSERT INTO records SELECT * FROM kept WHERE n = 1")
    assert await findings(dsn, tmp_path) == []
    assert archive(dsn, tmp_path)[0] == 0, "now it is in two files"
    assert len(list(tmp_path.iterdir())) == 2
    assert await findings(dsn, tmp_path) == []
    await pool.execute("DELETE FROM records WHERE n = 1")
    assert await findings(dsn, tmp_path) == []


@pytest.mark.parametrize("damage", ["gone", "cut", "a byte", "another"])
async def test_a_file_that_is_not_as_it_was_is_named(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path, damage: str) -> None:
    archive(dsn, tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    told = {"gone": "No such file or directory"}.get(damage, "is not as it was written: its SHA-256 is another one")
    if damage == "gone":
        file.unlink()
    else:
        changed = {"cut": content[:-9], "a byte": bytes([*content[:50], content[50] ^ 1, *content[51:]]), "another": gzip.compress(b"")}
        file.write_bytes(changed[damage])
    (what,) = await findings(dsn, tmp_path)
    assert what.startswith(f"archive {file.name} cannot be counted: ") and told in what
    await pool.execute(f"DELETE FROM usage WHERE window_start_s = {JANUARY}")
    assert not any(what.startswith("usage of") for what in await findings(dsn, tmp_path)), "nobody can tell"


async def test_lines_that_are_no_records(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    archive(dsn, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(gzip.compress(b"{}\n"))
    await pool.execute("UPDATE archives SET sha256 = $1", hashlib.sha256(file.read_bytes()).hexdigest())
    (what,) = await findings(dsn, tmp_path)
    assert what.startswith(f"archive {file.name} cannot be counted: Object missing required field")


async def test_a_record_whose_bytes_were_changed_stays(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    await pool.execute("UPDATE records SET value = value || ' ' WHERE n = 1")
    code, told, errors = archive(dsn, tmp_path)
    assert (code, told.splitlines()[-1]) == (1, "1 record moved.")
    assert errors == "Left in PostgreSQL: 1 record whose bytes are not what was rated. `parshall audit` names them.\n"
    assert await bytes_here(pool) == [1, 3]


async def test_killed_before_anything_is_taken_away(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    """The file is whole and read back, and the update waits for a lock: kill -9. Nothing is lost, and the next run does it all."""
    command = [sys.executable, "-m", "parshall", "archive", str(tmp_path), "--older-than", "90d", "--postgres", dsn]
    connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'parshall archive'"
    async with pool.acquire() as holder, holder.transaction():
        await holder.execute("SELECT FROM records WHERE n = 2 FOR UPDATE")
        with subprocess.Popen(command, cwd=PROJECT) as process:
            while not await pool.fetchval(f"{connected} AND wait_event_type = 'Lock'"):
                assert process.poll() is None
                await asyncio.sleep(0.02)
            assert archive(dsn, tmp_path) == (3, "", "Another `parshall archive` runs on this database: let it end.\n")
            process.kill()
    while await pool.fetchval(connected):
        await asyncio.sleep(0.02)
    assert await bytes_here(pool) == [1, 2, 3]
    (left,) = tmp_path.iterdir()
    assert archive(dsn, tmp_path)[0] == 0
    assert await bytes_here(pool) == [3]
    assert await pool.fetchval("SELECT count(*) FROM archives WHERE file = $1", left.name) == 0
    assert await findings(dsn, tmp_path) == []


@pytest.mark.parametrize(
    "meanwhile",
    ["UPDATE records SET hash = gen_random_uuid() WHERE n = 2", "DELETE FROM records WHERE n = 2", "UPDATE records SET archive = 9"],
)
async def test_rows_that_changed_meanwhile_keep_their_bytes(
    rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path, meanwhile: str
) -> None:
    """Nobody changes them but by hand; and then nothing is moved, rather than something else than was written."""
    async with ledger_archive(dsn) as opened:
        moved = [Moved(row.key, row.hash, None) async for rows in opened.due(90 * 86400) for row in rows]
        await pool.execute(meanwhile)
        with pytest.raises(AssertionError, match="nobody else changes"):
            await opened.move("records-1", "0" * 64, None, moved)
    assert await bytes_here(pool) == ([1, 3] if "DELETE" in meanwhile else [1, 2, 3])
    assert await pool.fetchval("SELECT count(*) FROM archives") == 0


@pytest.mark.parametrize("read_back", [[], [b"{}\n"]])
async def test_a_file_that_is_not_read_back_takes_nothing_away(
    rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_back: list[bytes]
) -> None:
    monkeypatch.setattr(archive_command, "lines_of", lambda *_: read_back)
    async with ledger_archive(dsn) as opened:
        with pytest.raises(ArchiveFailed, match="not read back as it was written"):
            await archive_command.move_old(opened, str(tmp_path), 90 * 86400)
    assert await bytes_here(pool) == [1, 2, 3]


def test_a_file_of_that_name_is_not_replaced(tmp_path: Path) -> None:
    writer = ArchiveWriter(str(tmp_path), "records-1.ndjson.gz")
    (tmp_path / "records-1.ndjson.gz").write_bytes(b"another")
    with pytest.raises(ArchiveFailed, match=r"records-1\.ndjson\.gz: File exists"):
        writer.finish()
    writer.give_up()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"another"]


async def test_a_full_disk_takes_nothing_away(rated: Rated, dsn: str, pool: asyncpg.Pool) -> None:
    with small_disk(1 << 20) as disk:
        if disk is None:
            assert_not_permitted()
            return
        disk.fill()
        code, told, errors = archive(dsn, disk.path)
        assert (code, told) == (1, "") and errors.startswith("Nothing more is moved: ")
        assert "No space left on device" in errors
        assert [file.name for file in disk.path.iterdir()] == ["filler"]
        assert await bytes_here(pool) == [1, 2, 3]
        disk.relieve()
        assert archive(dsn, disk.path)[0] == 0
    assert await bytes_here(pool) == [3]


async def test_what_a_command_line_may_say(rated: Rated, dsn: str, tmp_path: Path) -> None:
    code, _, errors = parshall(dsn, "archive", str(tmp_path / "none"), "--older-than", "90d")
    assert code == 2 and errors == f"There is no folder {tmp_path}/none: make it, on a disk that is backed up.\n"
    code, _, errors = parshall(dsn, "archive", str(tmp_path), "--older-than", "5m")
    assert code == 2 and "'5m' is not a time from 1d to 36500d" in errors
    code, _, errors = parshall("postgresql://127.0.0.1:1/none", "archive", str(tmp_path), "--older-than", "90d")
    assert code == 3 and errors.startswith("PostgreSQL cannot be used: ")


async def test_where_nothing_may_be_changed_no_file_is_written(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    """On a replica, or as somebody who may only read: else every night would leave a file that nobody needs."""
    database = await pool.fetchval("SELECT current_database()")
    await pool.execute("CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    try:
        told = archive(dsn.replace("parshall@", "reader@"), tmp_path)
    finally:
        await pool.execute("DROP OWNED BY reader; DROP ROLE reader")
    assert told[:2] == (3, "") and "permission denied" in told[2]
    await pool.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    told = archive(dsn, tmp_path)
    assert told[:2] == (3, "") and "read-only transaction" in told[2]
    assert list(tmp_path.iterdir()) == []


async def test_archived_rows_are_not_gone_through_again(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    """They stay for good: a run is not longer for what others have moved."""
    archive(dsn, tmp_path)
    columns = "log, stream, next_position, rated_at, archive"
    await pool.execute(
        f'INSERT INTO records (writer, "partition", n, hash, {columns}) SELECT writer, "partition", n + again, hash, {columns} '
        "FROM records, generate_series(10, 20000) AS again WHERE n = 1"
    )
    await pool.execute("ANALYZE records")
    due = ARCHIVE["due"].replace("$1", "now()").replace("$2", "''::bytea").replace("$3", "0").replace("$4", "0").replace("$5", "100")
    plan = "\n".join(row[0] for row in await pool.fetch(f"EXPLAIN (ANALYZE, COSTS off, TIMING off) {due}"))
    assert "using records_here" in plan and "Rows Removed by Filter" not in plan


async def test_a_database_that_is_not_up_to_date(database: str, tmp_path: Path) -> None:
    assert archive(database, tmp_path)[0::2] == (
        3,
        "PostgreSQL has no tables of Parshall: --postgres or --config says which database is the right one.\n",
    )
    connection = await asyncpg.connect(database)
    await connection.execute((PROJECT / "rater/migrations/0001_ledger.sql").read_text())
    await connection.close()
    assert archive(database, tmp_path)[0::2] == (
        3,
        "PostgreSQL has the tables of an older Parshall: a rater of this version that starts brings them up to date.\n",
    )


@pytest.mark.parametrize("bound", ["_FILE_RECORDS", "_FILE_BYTES"])
async def test_many_files(rated: Rated, dsn: str, pool: asyncpg.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(archive_command, bound, 1)
    async with ledger_archive(dsn) as opened:
        assert await archive_command.move_old(opened, str(tmp_path), 90 * 86400) == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert await bytes_here(pool) == [3]
    assert await findings(dsn, tmp_path) == []
