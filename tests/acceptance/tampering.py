"""Changes what the stores hold, in sound frames and messages, so that only the audit can notice.

Belongs here: rewriting a journal, a stream of the local log, a Kafka topic, a table. Must not know: the audit, what it should say.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.errors import KafkaError

from buffer.journal_codec import HEADER_BYTES, Scan, decode_header, decode_record, encode_header, encode_record, seal, seed_of
from buffer.journal_records import CallRecord, JournalRecord, Opened, Snapshot
from buffer.local_frames import HEADER_BYTES as LOG_HEADER_BYTES
from buffer.local_frames import SEGMENT_HEADER, commit_frame, read_body, record_frame, scan

COUNTERS = "usage.counters"


# ---- a journal


class Call(NamedTuple):
    number: int
    incarnation: str


def claimants(journal: Path) -> set[int]:
    """The numbers of the tenants whose events some call of this journal granted."""
    return {tenant for _, call in _calls(journal) for tenant, *_ in call.claims}


def remove_digest(journal: Path) -> Call:
    """Of a call in the middle."""
    calls = [call for call in _calls(journal) if call[1].claims]
    incarnation, chosen = calls[len(calls) // 2]

    def without(record: JournalRecord) -> JournalRecord:
        if record != chosen:
            return record
        (tenant, digests, fingerprints), *others = chosen.claims
        return chosen._replace(claims=[(tenant, digests[:-12], fingerprints[:-4]), *others])

    rewrite_journal(journal, without)
    return Call(chosen.number, incarnation.hex())


def repeat_digest(journal: Path, into: Path) -> tuple[Call, Call]:
    """What a call of one journal granted is granted by a call of another journal too, in the place of something else."""
    shared = claimants(journal) & claimants(into)
    taker, chosen = next(call for call in _calls(into) if call[1].claims and call[1].claims[0][0] in shared)
    (tenant, mine, fingerprints), *others = chosen.claims
    giver, given, digest = next(
        (incarnation, call, digests[:12]) for incarnation, call in _calls(journal) for owner, digests, _ in call.claims if owner == tenant
    )

    def repeating(record: JournalRecord) -> JournalRecord:
        return record if record != chosen else chosen._replace(claims=[(tenant, digest + mine[12:], fingerprints), *others])

    rewrite_journal(into, repeating)
    return Call(given.number, giver.hex()), Call(chosen.number, taker.hex())


def rewrite_journal(directory: Path, change: Callable[[JournalRecord], JournalRecord]) -> None:
    """Every record is replaced by what `change` makes of it; frames, chain and headers are right again."""
    chain: int | None = None
    for path in _segments(directory):
        data = memoryview(path.read_bytes())
        header = decode_header(data)
        chain = header.chain if chain is None else chain
        content = [encode_header(header._replace(chain=chain))]
        for frame in Scan(data, HEADER_BYTES, seed_of(header.writer), header.first, header.chain):
            encoded = encode_record(change(decode_record(frame)))
            prefix, rest, chain = seal(encoded, frame.sequence, frame.group, chain, seed_of(header.writer))
            content += [prefix, rest]
        path.write_bytes(b"".join(content))


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.journal"))


def _calls(directory: Path) -> Iterator[tuple[bytes, CallRecord]]:
    """With the incarnation of each."""
    incarnation = b""
    for path in _segments(directory):
        data = memoryview(path.read_bytes())
        header = decode_header(data)
        for frame in Scan(data, HEADER_BYTES, seed_of(header.writer), header.first, header.chain):
            match decode_record(frame):
                case Snapshot(incarnations=incarnations) if incarnations:
                    incarnation = incarnations[-1][0]
                case Opened(incarnation=opened):
                    incarnation = opened
                case CallRecord() as call:
                    yield incarnation, call


# ---- counter records


class Place(NamedTuple):
    writer: str
    partition: int
    n: int

    def __str__(self) -> str:
        return f"record {self.n} of partition {self.partition} of writer {self.writer}"


def place_of(headers: Sequence[tuple[str, bytes]]) -> Place:
    named = dict(headers)
    return Place(named["writer"].decode(), int(named["partition"]), int(named["n"]))


def stream_of(log: Path) -> Path:
    """The file of some stream: the largest."""
    return max(log.glob("counters/*/*/*.log"), key=lambda path: path.stat().st_size)


def remove_from_local_log(log: Path, which: int = 1) -> Place:
    """The record at this index of some stream that has several."""
    for path in sorted(log.glob("counters/*/*/*.log")):
        found = scan(path.read_bytes()[LOG_HEADER_BYTES:], 0)
        bodies = [bytes(body) for _, body in [*found.committed, *found.doubtful]]
        if len(bodies) > which + 1:
            gone = bodies.pop(which)
            content, position = [SEGMENT_HEADER], 0
            for body in bodies:
                content.append(record_frame(body, position))
                position += len(content[-1])
            path.write_bytes(b"".join([*content, commit_frame(position)]))
            return place_of(read_body(gone)[0])
    raise AssertionError("no stream has so many records")


async def remove_from_kafka(bootstrap: str, which: int = 1) -> Place:
    """Makes the topic anew, with all its records but one."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (topic,) = await admin.describe_topics([COUNTERS])
        records = await _all_records(bootstrap, len(topic["partitions"]))
        sizes = Counter(record.partition for record in records)
        gone = next(record for record in records if record.offset == which and sizes[record.partition] > which + 2)
        await admin.delete_topics([COUNTERS])
        await _create(admin, len(topic["partitions"]))
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        for record in records:
            if record is not gone:
                headers = list(record.headers)
                await producer.send_and_wait(COUNTERS, record.value, partition=record.partition, headers=headers)
    finally:
        await producer.stop()
    return place_of(gone.headers)


async def delete_from_kafka(bootstrap: str, partition: int, before: int) -> None:
    """As retention does: all records before this offset."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(COUNTERS, partition): RecordsToDelete(before)})
    finally:
        await admin.close()


async def _all_records(bootstrap: str, count: int) -> list[ConsumerRecord]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(COUNTERS, number) for number in range(count)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        records: list[ConsumerRecord] = []
        while len(records) < sum(ends.values()):
            for some in (await consumer.getmany(timeout_ms=200)).values():
                records += some
        return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        await consumer.stop()


async def _create(admin: AIOKafkaAdminClient, partitions: int) -> None:
    settings = {"cleanup.policy": "delete", "retention.ms": "-1"}
    for _ in range(200):
        answer = await admin.create_topics([NewTopic(COUNTERS, partitions, 1, topic_configs=settings)])
        if all(error[1] == 0 for error in answer.topic_errors):
            break
        await asyncio.sleep(0.05)  # the old one is still being deleted
    for _ in range(200):
        try:
            (topic,) = await admin.describe_topics([COUNTERS])
            if len(topic["partitions"]) == partitions and all(one["leader"] >= 0 for one in topic["partitions"]):
                return
        except KafkaError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError(f"{COUNTERS} was not made again")


# ---- PostgreSQL


@asynccontextmanager
async def changed(dsn: str, table: str, statement: str, *values: object) -> AsyncIterator[None]:
    """The statement has run within; afterwards the table is as it was."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"CREATE TABLE kept AS SELECT * FROM {table}")
        assert await connection.execute(statement, *values) in ("UPDATE 1", "DELETE 1")
        try:
            yield
        finally:
            async with connection.transaction():
                await connection.execute(f"DELETE FROM {table}")
                await connection.execute(f"INSERT INTO {table} SELECT * FROM kept")
                await connection.execute("DROP TABLE kept")
    finally:
        await connection.close()
