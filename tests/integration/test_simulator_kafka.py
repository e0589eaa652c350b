"""The simulated bank on a real broker: what any consumer of the bank's topics would read."""

from collections import defaultdict

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.partitioner import DefaultPartitioner

from services.simulator.app import run
from services.simulator.settings import SimulatorSettings
from tests.support.servers import KafkaUnderTest
from weir.codec.avro import RowCodec
from weir.codec.framing import unframe
from weir.codec.schemas import load_schema
from weir.config import KafkaSettings, RegistrySettings, TopicSettings
from weir.errors import MissingPart

SMALL = SimulatorSettings(accounts=500, terminals=60, seed=3, traceparent_share=0.5)


async def _read_all(kafka: KafkaUnderTest, topic: str) -> dict[int, list]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(topic, part) for part in range(3)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        read: dict[int, list] = defaultdict(list)
        while sum(len(rows) for rows in read.values()) < sum(ends.values()):
            for place, rows in (await consumer.getmany(timeout_ms=1000)).items():
                read[place.partition] += rows
        return read
    finally:
        await consumer.stop()


async def test_payments_and_labels_reach_the_partition_of_their_account(kafka: KafkaUnderTest):
    """History with its labels, then 200 payments as fast as they go; read back with the row codec."""
    topics = TopicSettings(
        transactions=kafka.make_topic("transactions", 3), labels=kafka.make_topic("labels", 3)
    )
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    sent = await run(
        SMALL, settings, topics, RegistrySettings(), count=200, as_fast_as_possible=True, history_days=12
    )
    assert sent.payments == 200
    assert sent.history > 12 * 300
    assert sent.labels > 0

    payments = await _read_all(kafka, topics.transactions)
    codec, choose = RowCodec(load_schema("transaction")), DefaultPartitioner()
    event_ids, times = set(), []
    for partition, rows in payments.items():
        for row in rows:
            decoded = codec.decode(unframe(row.value)[1])
            assert row.key == decoded["account_id"].encode()
            assert choose(row.key, [0, 1, 2], [0, 1, 2]) == partition
            event_ids.add(decoded["event_id"])
            times.append(decoded["event_time"])
    assert len(event_ids) == sent.history + sent.payments
    traced = sum(
        any(name == "traceparent" for name, _ in row.headers) for rows in payments.values() for row in rows
    )
    assert 0.4 < traced / len(event_ids) < 0.6

    labels = await _read_all(kafka, topics.labels)
    codec = RowCodec(load_schema("label"))
    decoded = [codec.decode(unframe(row.value)[1]) for rows in labels.values() for row in rows]
    assert len(decoded) == sent.labels
    assert {label["event_id"] for label in decoded} <= event_ids
    assert all(label["event_time"] < label["reported_time"] <= max(times) for label in decoded)


async def test_the_rate_is_kept(kafka: KafkaUnderTest):
    """One second at 300 a second; a slow machine may send less, never more."""
    topics = TopicSettings(
        transactions=kafka.make_topic("transactions", 3), labels=kafka.make_topic("labels", 3)
    )
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    bank = SMALL.model_copy(update={"rate": 300.0})
    sent = await run(bank, settings, topics, RegistrySettings(), seconds=1.0)
    assert 100 <= sent.payments <= 301


async def test_a_missing_topic_is_one_clear_line(kafka: KafkaUnderTest):
    topics = TopicSettings(transactions="no.such.topic")
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    with pytest.raises(MissingPart, match=r"no topic no\.such\.topic"):
        await run(SMALL, settings, topics, RegistrySettings(), count=1)
