"""`parshall audit` as an operator runs it: it agrees when all is well, and names the very thing that was changed in a store."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import pytest
from xxhash import xxh3_128_hexdigest

from parshall import audit_rules
from parshall.audit import _audit as read_and_compare
from parshall.check import read_settings
from parshall.data_folder import DataFolder
from parshall.embedded_postgres import EmbeddedPostgres
from tests import services
from tests.acceptance.edge import PROJECT, Api, Role, wait_rated, write_config
from tests.acceptance.tampering import (
    changed,
    claimants,
    delete_from_kafka,
    remove_digest,
    remove_from_kafka,
    remove_from_local_log,
    repeat_digest,
    stream_of,
)

HOLDS = "The three equations hold"
BATCHES, EVENTS_A_BATCH = 6, 60
DEADLINE_MS = 60_000
_ids = itertools.count()


class Answer(NamedTuple):
    code: int
    output: str
    errors: str

    def names(self, *words: str) -> None:
        """It found exactly one difference, on one line, and that line has all the words and says what to do."""
        assert self.code == 1, self
        (line,) = [line for line in self.output.splitlines() if line.startswith("- ")]
        assert "\n1 difference:\n" in self.output
        assert all(word in line for word in words), f"{words}: {line}"
        assert "Next: " in line


@dataclass
class Service:
    """`parshall up` on a folder of its own, and what an audit of it needs to be told."""

    folder: Path
    keys: dict[str, str]
    role: Role
    options: list[str]  # which services are real
    dsn: str

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def audit(self, *more: str, data: Path | None = None, config: Path | None = None) -> Answer:
        return self.audit_with(["--config", str(config or self.folder / "parshall.toml"), *more], data)

    def audit_with(self, more: Sequence[str], data: Path | None = None) -> Answer:
        command = [sys.executable, "-m", "parshall", "audit", "--data", str(data or self.data), *self.options, *more]
        if data is not None and "--postgres" not in self.options:
            command += ["--postgres", self.dsn]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
        return Answer(done.returncode, done.stdout, done.stderr)

    async def audit_meanwhile(self, *more: str, data: Path | None = None) -> Answer:
        return await asyncio.to_thread(self.audit, *more, data=data)

    async def send(self, session: aiohttp.ClientSession, tenant: str) -> int:
        """A batch of good events, duplicates and bad ones; returns how many were accepted."""
        body = [_event(number % 7) for number in range(EVENTS_A_BATCH)]
        body += [body[0], body[1], {**_event(1), "type": "no.such.type"}]
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        async with session.post(f"{self.role.url}/v1/events", json=body, headers=headers) as answer:
            content = await answer.json(content_type=None)
            assert answer.status == 207, content
            return int(content["accepted"])

    async def fill(self) -> None:
        """Several flushes, all rated."""
        accepted = dict.fromkeys(self.keys, 0)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:  # every worker gets some
            apis = {tenant: Api(session, self.role.url, key) for tenant, key in self.keys.items()}
            for _ in range(BATCHES):
                for tenant in self.keys:
                    accepted[tenant] += await self.send(session, tenant)
                await apis["demo"].flush_now()
            ledgers = await wait_rated(apis, accepted)
        assert {tenant: ledger["rated"] for tenant, ledger in ledgers.items()} == accepted

    def copy(self, to: Path) -> Path:
        """Of the journals and the local log."""
        for name in ("writers", "log"):
            shutil.copytree(self.data / name, to / name)
        return to


def _event(kind: int) -> dict[str, Any]:
    event: dict[str, Any] = {"specversion": "1.0", "id": f"event-{next(_ids)}", "source": "/audit", "subject": f"customer-{kind % 3}"}
    event["time"] = datetime.now(UTC).isoformat()
    if kind == 0:
        return {**event, "type": "db.sample", "data": {"connections": 40 + kind}}
    return {**event, "type": "http.request", "data": {"bytes": 1000 + kind, "region": f"r{kind % 2}", "zone": kind}}


async def start(folder: Path, options: Sequence[str] = (), dsn: str = "") -> Service:
    keys = write_config(folder, now=datetime.now(UTC), deadline_ms=DEADLINE_MS)
    role = Role("up", ["up", "--config", str(folder / "parshall.toml"), "--data", str(folder / "data"), *options], folder)
    role.start()
    try:
        await role.wait_ready()
        if not dsn:
            place = DataFolder(str(folder / "data")).make()
            dsn = EmbeddedPostgres(place.postgres, place.postgres_sockets).dsn
        told = [word for word in options if word not in ("--workers", "2")]
        redis = told.index("--redis") if "--redis" in told else len(told)
        service = Service(folder, keys, role, told[:redis] + told[redis + 2 :], dsn)
        await service.fill()
        return service
    except BaseException:
        role.kill()
        raise


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for the tests that leave it as it was."""
    service = asyncio.run(start(tmp_path_factory.mktemp("audited")))
    yield service
    service.role.kill()


# ---- all is well


def test_it_agrees(embedded: Service) -> None:
    answer = embedded.audit()
    assert (answer.code, answer.errors) == (0, "")
    assert HOLDS in answer.output
    header, acme, demo, *_ = answer.output.splitlines()
    assert header.split() == ["tenant", "received", "accepted", "duplicate", "rejected", "flushed", "buffered", "rated", "in_log"]
    batches = BATCHES * EVENTS_A_BATCH
    assert acme.split()[:4] == ["acme", str(BATCHES * (EVENTS_A_BATCH + 3)), str(batches), str(2 * BATCHES)]
    assert demo.split()[4:] == [str(BATCHES), str(batches), "0", str(batches), "0"]


def test_json(embedded: Service) -> None:
    answer = embedded.audit("--json")
    content = json.loads(answer.output)
    assert (answer.code, content["agrees"], content["differences"]) == (0, True, [])
    assert [row["tenant"] for row in content["tenants"]] == ["acme", "demo"]
    assert content["tenants"][1]["accepted"] == content["tenants"][1]["rated"] == BATCHES * EVENTS_A_BATCH


def test_journals_can_be_named(embedded: Service, tmp_path: Path) -> None:
    copy = embedded.copy(tmp_path / "data")
    elsewhere = copy.rename(tmp_path / "other")
    shutil.copytree(elsewhere / "log", copy / "log")
    writer = json.loads(embedded.audit("--json", data=copy).output)["differences"]
    assert [one["what"].split()[0] for one in writer] == ["writer"]
    answer = embedded.audit(data=copy)
    answer.names("is registered, but its journal was not given", "--journal")
    found = embedded.audit("--journal", f"{elsewhere}/writers/0", "--journal", f"{elsewhere}/writers/../writers/0", data=copy)
    assert (found.code, found.errors) == (0, "")


def test_without_a_configuration_the_folder_says_who_its_tenants_are(embedded: Service, tmp_path: Path) -> None:
    answer = embedded.audit_with([])
    assert (answer.code, answer.errors) == (0, "") and HOLDS in answer.output, answer
    assert answer.output == embedded.audit().output
    copy = embedded.copy(tmp_path / "data")
    refused = embedded.audit_with([], copy)
    assert (refused.code, refused.output) == (2, "")
    assert refused.errors == (
        f"Nothing says what the tenants are called, as there is no {copy}/tenants.json: give the configuration with --config.\n"
    )


def test_a_configuration_that_gives_a_tenant_another_name_is_refused(embedded: Service, tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text((embedded.folder / "parshall.toml").read_text().replace('"acme"', '"other"'))
    answer = embedded.audit(config=config)
    assert (answer.code, answer.output) == (2, ""), answer
    assert answer.errors.startswith("Who the tenants are cannot be told: The number ") and "of the tenant 'acme' here" in answer.errors


def test_a_tenant_that_the_configuration_has_lost_keeps_its_name(embedded: Service, tmp_path: Path) -> None:
    config = tmp_path / "fewer.toml"
    config.write_text('[[tenants]]\nname = "demo"\nnumber = 1\n')
    answer = embedded.audit(config=config)
    assert answer.code == 0 and HOLDS in answer.output, answer


# ---- a journal or the log was changed


def test_a_digest_is_gone(embedded: Service, tmp_path: Path) -> None:
    copy = embedded.copy(tmp_path / "data")
    call = remove_digest(copy / "writers" / "0")
    answer = embedded.audit(data=copy)
    answer.names(f"call {call.number} of incarnation {call.incarnation} holds", f"{copy}/writers/0", "digests of tenant", "but accepted")
    (told,) = json.loads(embedded.audit("--json", data=copy).output)["differences"]
    assert f"call {call.number} of incarnation {call.incarnation}" in told["what"] and told["next"]


def test_a_record_is_gone_from_the_local_log(embedded: Service, tmp_path: Path) -> None:
    for which in (0, 1):
        copy = embedded.copy(tmp_path / f"data-{which}")
        place = remove_from_local_log(copy / "log", which)
        embedded.audit(data=copy).names(f"{place} is rated, but not in the log")


def test_a_byte_of_a_journal_is_changed(embedded: Service, tmp_path: Path) -> None:
    copy = embedded.copy(tmp_path / "data")
    (segment,) = (copy / "writers" / "0").glob("*.journal")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    answer = embedded.audit(data=copy)
    assert answer.code == 1 and str(segment) in answer.errors and "is damaged at byte" in answer.errors, answer


def test_a_byte_of_the_local_log_is_changed(embedded: Service, tmp_path: Path) -> None:
    copy = embedded.copy(tmp_path / "data")
    segment = stream_of(copy / "log")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    answer = embedded.audit(data=copy)
    assert (answer.code, answer.output) == (1, "")
    assert answer.errors.startswith(f"The counter log cannot be read: {segment} is damaged") and answer.errors.count("\n") == 1, answer


def test_what_a_crash_left_unfinished_in_the_local_log_is_no_difference(embedded: Service, tmp_path: Path) -> None:
    copy = embedded.copy(tmp_path / "data")
    with stream_of(copy / "log").open("ab") as segment:
        segment.write(b"R\xff\xff\0\0 half a frame")
    answer = embedded.audit(data=copy)
    assert answer.code == 0 and HOLDS in answer.output, answer


# ---- PostgreSQL was changed

USAGE_ROW = """
    SELECT u.series, u.window_start_s, t.name AS tenant, m.name AS meter, s.subject
    FROM usage AS u JOIN series AS s USING (series) JOIN tenants AS t USING (tenant) JOIN meters AS m USING (meter)
    ORDER BY s.subject, m.name, t.name, u.window_start_s LIMIT 1 OFFSET 1"""
LINE_ROW = """
    SELECT c.line, t.name AS tenant, c.meter, c.subject, c.period, c.amount
    FROM charge_lines AS c JOIN tenants AS t USING (tenant) WHERE c.amount IS NOT NULL ORDER BY c.line LIMIT 1"""
RECORD_ROW = """
    SELECT writer, "partition", n FROM records AS r
    WHERE n = (SELECT min(n) + {} FROM records AS o WHERE o.writer = r.writer AND o."partition" = r."partition")
    ORDER BY length(value) DESC LIMIT 1"""
LAST_RECORD_ROW = """
    SELECT writer, "partition", n FROM records AS r
    WHERE n = (SELECT max(n) FROM records AS o WHERE o.writer = r.writer AND o."partition" = r."partition")
    ORDER BY 1, 2 LIMIT 1"""


async def row_of(service: Service, query: str) -> asyncpg.Record:
    connection = await asyncpg.connect(service.dsn)
    try:
        row = await connection.fetchrow(query)
        assert row is not None
        return row
    finally:
        await connection.close()


def told_record(row: asyncpg.Record) -> str:
    return f"record {row['n']} of partition {row['partition']} of writer {row['writer'].hex()}"


WHERE_RECORD = 'WHERE writer = $1 AND "partition" = $2 AND n = $3'


async def test_a_row_of_usage_is_gone_or_changed(embedded: Service) -> None:
    row = await row_of(embedded, USAGE_ROW)
    key = (row["series"], row["window_start_s"])
    named = [f"usage of tenant {row['tenant']}, meter {row['meter']}, subject {row['subject']!r}", f"window {row['window_start_s']} ("]
    async with changed(embedded.dsn, "usage", "DELETE FROM usage WHERE series = $1 AND window_start_s = $2", *key):
        (await embedded.audit_meanwhile()).names(*named, "is missing, but its records make it")
    async with changed(embedded.dsn, "usage", "UPDATE usage SET value = value + 7 WHERE series = $1 AND window_start_s = $2", *key):
        (await embedded.audit_meanwhile()).names(*named, "but its records make it")


@pytest.mark.parametrize("query", [RECORD_ROW.format(0), RECORD_ROW.format(1), LAST_RECORD_ROW], ids=["first", "second", "last"])
async def test_a_row_of_records_is_gone(embedded: Service, query: str) -> None:
    row = await row_of(embedded, query)
    async with changed(embedded.dsn, "records", f"DELETE FROM records {WHERE_RECORD}", *row):
        (await embedded.audit_meanwhile()).names(f"{told_record(row)} is missing from the table `records`", "the log, which has it")


async def test_a_row_of_chains_is_gone_or_set_back(embedded: Service) -> None:
    """What comes next would be parked, and nothing that is sent again would help."""
    writer, partition, n = await row_of(embedded, LAST_RECORD_ROW)
    chain = f"partition {partition} of writer {writer.hex()}, whose records up to {n} are rated"
    where = 'WHERE writer = $1 AND "partition" = $2'
    async with changed(embedded.dsn, "chains", f"DELETE FROM chains {where}", writer, partition):
        (await embedded.audit_meanwhile()).names(f"`chains` in PostgreSQL has no row of {chain}", f"put that row back with last_n = {n}")
    async with changed(embedded.dsn, "chains", f"UPDATE chains SET last_n = last_n - 1 {where}", writer, partition):
        (await embedded.audit_meanwhile()).names(f"`chains` in PostgreSQL says {n - 1} of {chain}", f"set that row to last_n = {n}")


async def test_a_byte_of_a_rated_record_is_changed(embedded: Service) -> None:
    row = await row_of(embedded, RECORD_ROW.format(1))
    statement = f"UPDATE records SET value = set_byte(value, 20, get_byte(value, 20) # 1) {WHERE_RECORD}"
    async with changed(embedded.dsn, "records", statement, *row):
        (await embedded.audit_meanwhile()).names(f"{told_record(row)} is rated", "is not sound: the value hashes to")


async def test_other_bytes_were_rated_than_a_journal_has(embedded: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the log has them no longer, and the audit has not remembered them one by one."""
    monkeypatch.setattr(audit_rules, "_KEPT_OF_A_CHAIN", 0)
    query = RECORD_ROW.format(0).replace("n FROM records AS r", "n, header_names, header_values, value FROM records AS r")
    row = await row_of(embedded, query)
    value = row["value"] + b" "
    digest = xxh3_128_hexdigest(value)
    headers = [
        digest.encode() if name == "hash" else content for name, content in zip(row["header_names"], row["header_values"], strict=True)
    ]
    statement = f"UPDATE records SET log = 'another', hash = $4::text::uuid, header_values = $5, value = $6 {WHERE_RECORD}"
    settings = read_settings(str(embedded.folder / "parshall.toml"), {"data": str(embedded.data)}, asks_redis=False)
    async with changed(embedded.dsn, "records", statement, *row[:3], digest, headers, value):
        verdict = await read_and_compare(settings, DataFolder(str(embedded.data)), [], None)
    (difference,) = verdict.differences
    assert difference.what.startswith(f"{told_record(row)} has different bytes: ") and f"{digest} in PostgreSQL" in difference.what


async def test_an_amount_is_changed(embedded: Service) -> None:
    row = await row_of(embedded, LINE_ROW)
    async with changed(embedded.dsn, "charge_lines", "UPDATE charge_lines SET amount = amount + 0.01 WHERE line = $1", row["line"]):
        answer = await embedded.audit_meanwhile()
    named = f"charge line of tenant {row['tenant']}, subject {row['subject']!r}, meter {row['meter']}"
    answer.names(named, f"in {row['period']} is", "but usage makes it quantity", f"amount {row['amount']}")


async def test_a_tally_is_changed(embedded: Service) -> None:
    query = (
        "SELECT s.tenant, t.name, s.writer, s.events FROM tallies AS s JOIN tenants AS t USING (tenant) WHERE verdict = 'duplicate' LIMIT 1"
    )
    row = await row_of(embedded, query)
    statement = "UPDATE tallies SET events = events + 1 WHERE tenant = $1 AND writer = $2 AND verdict = 'duplicate'"
    async with changed(embedded.dsn, "tallies", statement, row["tenant"], row["writer"]):
        answer = await embedded.audit_meanwhile()
    tally = f"tally of duplicate events of tenant {row['name']} by writer {row['writer'].hex()}"
    answer.names(f"{tally} is {row['events'] + 1}, but its records make it {row['events']}")


# ---- archives


async def test_what_was_archived_is_counted_from_its_file(embedded: Service, tmp_path: Path) -> None:
    row = await row_of(embedded, RECORD_ROW.format(1))
    async with changed(embedded.dsn, "records", f"UPDATE records SET rated_at = rated_at - interval '9 days' {WHERE_RECORD}", *row):
        command = [sys.executable, "-m", "parshall", "archive", str(tmp_path), "--older-than", "7d", "--data", str(embedded.data)]
        assert (await asyncio.to_thread(subprocess.run, command, cwd=PROJECT, capture_output=True)).returncode == 0
        (file,) = tmp_path.iterdir()
        answer = await embedded.audit_meanwhile("--archive", str(tmp_path))
        assert answer.code == 0 and HOLDS in answer.output and "Not counted again" not in answer.output, answer
        answer = await embedded.audit_meanwhile()
        assert answer.code == 0 and HOLDS in answer.output
        assert "\nNot counted again:\n- usage of windows up to 20" in answer.output
        assert "of which 1 archive has records: name its folder" in answer.output
        assert len(json.loads((await embedded.audit_meanwhile("--json")).output)["not_counted"]) == 1
        connection = await asyncpg.connect(embedded.dsn)
        try:
            await connection.execute(f"DELETE FROM records {WHERE_RECORD}", *row)
            answer = await embedded.audit_meanwhile("--archive", str(tmp_path))
            answer.names(f"{told_record(row)} is missing from the table `records`", f"the archive {file.name}, which has it")
            file.unlink()
        finally:
            await connection.execute("DELETE FROM archives")
            await connection.close()


async def test_a_folder_of_archives_that_is_not_there(embedded: Service, tmp_path: Path) -> None:
    answer = await embedded.audit_meanwhile("--archive", str(tmp_path / "none"))
    assert answer.code == 2 and answer.errors.startswith(f"There is no folder {tmp_path}/none: --archive says where")


# ---- what it cannot do


async def test_while_events_are_sent_and_after_the_end(tmp_path: Path) -> None:
    service = await start(tmp_path)
    try:
        async with being_sent_to(service):
            for _ in range(3):
                answer = await service.audit_meanwhile()
                assert (answer.code, answer.errors) == (0, ""), answer
        assert service.role.stop() == 0, service.role.log_end()
        answer = service.audit()
        assert (answer.code, answer.output) == (3, "")
        assert answer.errors == (
            f"PostgreSQL runs only while `parshall up` does: start that on {service.data}, and audit again while it runs.\n"
        )
    finally:
        service.role.kill()


@asynccontextmanager
async def being_sent_to(service: Service) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as session:

        async def send() -> None:
            while True:
                await service.send(session, "demo")

        sending = asyncio.create_task(send())
        try:
            yield
            assert not sending.done()
        finally:
            sending.cancel()
            await asyncio.wait([sending])


async def send_to_every_worker(service: Service, tenant: str) -> None:
    """The kernel deals connections to workers as it likes, so new ones are opened until all journals have a tenant in common."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        while not set.intersection(*(claimants(journal) for journal in (service.data / "writers").iterdir())):
            await service.send(session, tenant)


def test_without_a_log_it_says_so(embedded: Service, tmp_path: Path) -> None:
    answer = embedded.audit(data=tmp_path)
    assert (answer.code, answer.output) == (2, "")
    assert answer.errors.startswith(f"There is no counter log in {tmp_path}/log: ") and answer.errors.count("\n") == 1
    assert not (tmp_path / "log" / "log.json").exists()


async def test_a_database_without_tables(embedded: Service, database: str) -> None:
    answer = await asyncio.to_thread(embedded.audit, "--postgres", database)
    assert (answer.code, answer.output) == (3, "")
    assert answer.errors == "PostgreSQL has no tables of Parshall: --postgres or --config says which database is the right one.\n"


async def test_tables_of_an_older_version(embedded: Service, database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute((PROJECT / "rater/migrations/0001_ledger.sql").read_text())
    await connection.close()
    answer = await asyncio.to_thread(embedded.audit, "--postgres", database)
    assert (answer.code, answer.output) == (3, "")
    assert answer.errors == "PostgreSQL has the tables of an older Parshall: a rater of this version that starts brings them up to date.\n"


# ---- real services


async def test_real_services(tmp_path: Path, redis: services.Redis, own_kafka: services.Kafka, database: str) -> None:
    options = ["--redis", redis.url, "--kafka", own_kafka.address, "--postgres", database, "--workers", "2"]
    service = await start(tmp_path, options, database)
    try:
        async with being_sent_to(service):
            answer = await service.audit_meanwhile()
            assert (answer.code, answer.errors) == (0, ""), answer
        await send_to_every_worker(service, "demo")
        assert service.role.stop() == 0, service.role.log_end()
        answer = service.audit()
        assert answer.code == 0 and HOLDS in answer.output, answer

        copy = service.copy(tmp_path / "copy")
        one, other = sorted((copy / "writers").iterdir())
        earlier, later = repeat_digest(one, other)
        service.audit(data=copy).names(
            "is counted twice: by",
            f"call {earlier.number} of incarnation {earlier.incarnation} in {one}",
            f"call {later.number} of incarnation {later.incarnation} in {other}",
        )
        shutil.rmtree(copy)
        copy = service.copy(tmp_path / "copy")
        changed_one = copy / "writers" / other.name
        call = remove_digest(changed_one)
        service.audit(data=copy).names(f"call {call.number} of incarnation {call.incarnation} holds", str(changed_one))
        shutil.rmtree(changed_one)
        assert "is registered, but its journal was not given" in service.audit(data=copy).output

        row = await row_of(service, RECORD_ROW.format(1))
        async with changed(database, "records", f"DELETE FROM records {WHERE_RECORD}", *row):
            (await service.audit_meanwhile()).names(f"{told_record(row)} is missing from the table `records`")
        place = await remove_from_kafka(own_kafka.address)
        service.audit().names(f"{place} is rated, but not in the log")
        await delete_from_kafka(own_kafka.address, place.partition, before=1)  # as retention does: not missed
        service.audit().names(f"{place} is rated, but not in the log")

        own_kafka.kill()
        answer = service.audit()
        assert (answer.code, answer.output) == (3, "")
        assert answer.errors.startswith("The counter log cannot be read: Kafka at ") and answer.errors.count("\n") == 1, answer
    finally:
        service.role.kill()
