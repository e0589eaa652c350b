"""A bank's payments and labels as records on a topic, and what came out of the other end."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from tests.support.risk import RiskUnderTest
from weir.client.dead_letters import DeadLetter, DeadLetters
from weir.client.decisions import Decisions
from weir.client.records import Decision
from weir.codec.avro import RowCodec
from weir.codec.framing import frame
from weir.codec.registry import FileRegistry
from weir.codec.schemas import SUBJECTS, load_schema

DEADLINE_S = 60.0
POLL_S = 0.05

Record = dict[str, Any]
Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Sent:
    """A record for a topic: what Kafka is given."""

    value: bytes | None
    key: bytes | None = b"key"
    headers: Headers = ()
    partition: int = 0


def now() -> datetime:
    """This moment, to the millisecond, as events carry it."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def payment(event_id: str, **fields: Any) -> Record:
    """A payment that is fit to be decided; `fields` replace."""
    return {
        "event_id": event_id,
        "account_id": f"account of {event_id}",
        "terminal_id": f"terminal of {event_id}",
        "amount": Decimal("25.0000"),
        "currency": "EUR",
        "event_time": now(),
        "channel": "POS",
        "merchant_category": None,
        "country": None,
        "counterparty_id": None,
    } | fields


def label(of: Mapping[str, Any], **fields: Any) -> Record:
    """A label that calls a payment fraud, reported a day after it; `fields` replace."""
    return {
        "event_id": of["event_id"],
        "account_id": of["account_id"],
        "terminal_id": of["terminal_id"],
        "event_time": of["event_time"],
        "reported_time": of["event_time"] + timedelta(days=1),
        "is_fraud": True,
        "source": "CHARGEBACK",
    } | fields


def schema_id(name: str) -> int:
    """The id under which the repository's registry has a schema."""
    return asyncio.run(_schema_id(name))


async def _schema_id(name: str) -> int:
    return await FileRegistry.read().id_of(SUBJECTS[name], load_schema(name))


async def framed(name: str, records: Iterable[Record]) -> list[bytes]:
    """Each record as a value on its topic: framed Avro."""
    codec, known = RowCodec(load_schema(name)), await _schema_id(name)
    return [frame(known, codec.encode(each)) for each in records]


async def records_to_send(records: Iterable[Record], partition: int = 0, headers: Headers = ()) -> list[Sent]:
    """Payments for one partition, keyed by their account."""
    records = list(records)
    values = await framed("transaction", records)
    return [
        Sent(value, record["account_id"].encode(), headers, partition)
        for value, record in zip(values, records, strict=True)
    ]


async def send(risk: RiskUnderTest, sent: Iterable[Sent], topic: str | None = None) -> list[int]:
    """Put the records on the payments' topic, in order; their offsets once the broker has them all."""
    topic = topic or risk.topics.transactions
    servers = risk.kafka.bootstrap_servers
    async with AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True) as producer:
        waiting = [
            await producer.send(
                topic, each.value, each.key, partition=each.partition, headers=list(each.headers)
            )
            for each in sent
        ]
        return [(await each).offset for each in waiting]


async def pay(risk: RiskUnderTest, records: Iterable[Record], partition: int = 0) -> list[int]:
    """Send payments to one partition; their offsets."""
    return await send(risk, await records_to_send(records, partition))


async def settled(risk: RiskUnderTest) -> None:
    """Return once the group has committed every payment there is: whatever they led to is published."""
    topic = risk.topics.transactions
    partitions = [TopicPartition(topic, number) for number in range(risk.partitions)]
    servers = risk.kafka.bootstrap_servers
    async with AIOKafkaConsumer(bootstrap_servers=servers) as consumer:
        ends = {tp: end for tp, end in (await consumer.end_offsets(partitions)).items() if end}
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        ends_s = time.monotonic() + DEADLINE_S
        while True:
            found = await admin.list_consumer_group_offsets(risk.topics.transactions)
            if all(tp in found and found[tp].offset >= end for tp, end in ends.items()):
                return
            assert time.monotonic() < ends_s, f"not all payments were decided:\n{risk.log_text()[-4000:]}"
            await asyncio.sleep(POLL_S)
    finally:
        await admin.close()


async def until(condition: Any, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for `condition()`, asked in a thread of its own."""
    ends_s = time.monotonic() + deadline_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < ends_s, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(POLL_S)


def decisions_reader(risk: RiskUnderTest, **options: Any) -> Decisions:
    """The SDK's reader, from the beginning, as an analyst."""
    return Decisions.connect(
        purpose="investigation",
        start="beginning",
        kafka=risk.kafka_settings,
        topics=risk.topics,
        registry=risk.registry,
        keys=risk.reader("analyst"),
        **options,
    )


async def decisions(risk: RiskUnderTest) -> list[Decision]:
    """Every decision that is published now, opened and verified."""
    async with decisions_reader(risk, follow=False) as reader:
        return [decision async for decision in reader]


async def decided(risk: RiskUnderTest) -> dict[str, list[Decision]]:
    """Decisions by event, once every payment is worked off."""
    await settled(risk)
    by_event: dict[str, list[Decision]] = {}
    for decision in await decisions(risk):
        by_event.setdefault(decision.event_id, []).append(decision)
    return by_event


def letters_reader(risk: RiskUnderTest) -> DeadLetters:
    """The SDK's reader of dead letters, as an analyst."""
    return DeadLetters.connect(
        kafka=risk.kafka_settings,
        topics=risk.topics,
        registry=risk.registry,
        keys=risk.reader("analyst"),
    )


async def dead_letters(risk: RiskUnderTest) -> list[DeadLetter]:
    """Every dead letter that is published now, opened."""
    async with letters_reader(risk) as reader:
        return [await reader.open(entry) async for entry in reader.entries()]


async def raw_records(bootstrap_servers: str, topic: str) -> list[ConsumerRecord]:
    """Every record of a topic as it lies there."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers) as consumer:
        # A consumer without an assignment knows no topic.
        cluster = await consumer._client.fetch_all_metadata()
        partitions = [TopicPartition(topic, number) for number in cluster.partitions_for_topic(topic) or ()]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(DEADLINE_S):
            while any([await consumer.position(tp) < end for tp, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
    return found


def sample(metrics: str, name: str) -> float:
    """The value of one series in a metrics page; 0.0 when it is not there. `name` with its labels."""
    for line in metrics.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0
