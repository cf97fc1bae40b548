"""What stands in Kafka, counted: a benchmark whose results are not checked measures nothing.

Belongs here: reading a topic to its end. Must not know: who wrote it, how fast.
"""

from __future__ import annotations

import json

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

PARTITIONS = 6
SECOND_METER = "egress_bytes"  # of the demo: its events feed another meter as well, all other events of a benchmark feed one


async def make_topic(kafka: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    finally:
        await admin.close()


class Topic:
    """Reads on from where it stopped the last time."""

    def __init__(self, kafka: str, name: str) -> None:
        self._kafka = kafka
        self._name = name
        self._positions: dict[TopicPartition, int] = {}

    async def new_values(self) -> list[bytes]:
        consumer = AIOKafkaConsumer(self._name, bootstrap_servers=self._kafka, enable_auto_commit=False, auto_offset_reset="earliest")
        await consumer.start()  # in no group: it gets all partitions
        try:
            partitions = sorted(consumer.assignment())
            assert partitions, f"there is no topic {self._name}"
            ends = await consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, self._positions.get(partition, 0))
            values: list[bytes] = []
            while any(self._positions.get(partition, 0) < end for partition, end in ends.items()):
                for partition, records in (await consumer.getmany(timeout_ms=1000)).items():
                    values += [record.value for record in records]
                    self._positions[partition] = records[-1].offset + 1
            return values
        finally:
            await consumer.stop()


def accepted_in_counter_records(values: list[bytes]) -> tuple[int, int]:
    """(events by the tallies, counters) of records as docs describe them. The counters must hold the events that the tallies tell."""
    tallied = counted = counters = 0
    for value in values:
        record = json.loads(value)
        tallied += sum(counts.get("accepted", 0) for counts in record["tallies"].values())
        counters += len(record["counters"])
        again = {index for index, meter in enumerate(record["meters"]) if meter[0] == SECOND_METER}
        counted += sum(counter[-1] for counter in record["counters"] if counter[0] not in again)
    assert counted == tallied, f"tallies say {tallied} events, counters hold {counted}"
    return tallied, counters
