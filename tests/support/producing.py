"""Producers of a test's own, and what a reader of committed records then sees."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.local.kafka import KafkaServer
from tests.support.servers import KafkaUnderTest
from weir.config import KafkaSettings
from weir.kafka.producer import TransactionalProducer
from weir.kafka.protocol import GroupMember
from weir.streams.output import Output

DEADLINE_S = 30
# Not the past: retention would delete what bears it, some time or other.
NOW_MS = int(time.time() * 1000)

_ids = itertools.count()


def settings_of(kafka: KafkaUnderTest | KafkaServer) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)


def unique(name: str) -> str:
    return f"{name}-{next(_ids)}"


def output(topic: str, partition: int, *values: bytes) -> Output:
    count = len(values)
    return Output(topic, partition, [b"k"] * count, values, [[("h", b"x")]] * count, NOW_MS)


@asynccontextmanager
async def producing(
    settings: KafkaSettings, version: int = 2, transactional_id: str | None = None, **options: float
) -> AsyncIterator[TransactionalProducer]:
    """A producer that has started and speaks that version."""
    producer = TransactionalProducer(
        settings,
        transactional_id=transactional_id or unique("test"),
        client_id="test",
        version_max=version,
        **options,
    )
    await producer.start()
    try:
        assert producer.version == version
        yield producer
    finally:
        await producer.stop()


async def until(condition, what: str) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < ends, f"{what}: not within {DEADLINE_S} s"
        await asyncio.sleep(0.01)


async def read_committed(settings: KafkaSettings, topic: str, partitions: int = 4) -> list[list[bytes]]:
    """Each partition's values as a reader of committed records sees them, once no transaction is open."""
    places = [TopicPartition(topic, number) for number in range(partitions)]
    servers = settings.bootstrap_servers
    everything = AIOKafkaConsumer(bootstrap_servers=servers)
    committed = AIOKafkaConsumer(
        bootstrap_servers=servers, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await everything.start()
    await committed.start()
    seen: dict[TopicPartition, list[bytes]] = {place: [] for place in places}
    try:
        committed.assign(places)

        async def closed() -> bool:
            return await everything.end_offsets(places) == await committed.end_offsets(places)

        await until(closed, "the last transaction's markers")
        ends = await committed.end_offsets(places)

        async def read() -> bool:
            for place, records in (await committed.getmany(timeout_ms=50)).items():
                seen[place].extend(record.value for record in records)
            return all([await committed.position(place) >= ends[place] for place in places])

        await until(read, "reading to the end")
    finally:
        await committed.stop()
        await everything.stop()
    return [seen[place] for place in places]


@asynccontextmanager
async def joined(settings: KafkaSettings, topic: str, group: str) -> AsyncIterator[GroupMember]:
    """A member of a group, as a consumer that has joined knows itself."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=settings.bootstrap_servers, group_id=group)
    await consumer.start()
    try:
        await consumer.getmany(timeout_ms=0)
        coordinator = consumer._coordinator
        yield GroupMember(group, coordinator.generation, coordinator.member_id)
    finally:
        await consumer.stop()
