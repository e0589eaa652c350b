"""Reading a topic outside the consumer group, from one place to another."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import for_code
from aiokafka.protocol.metadata import MetadataRequest

from weir.client.connection import one_line, stop
from weir.config import KafkaSettings
from weir.kafka_options import client_options, connect
from weir.streams.batch import RecordBatch

_POLL_MS = 500


async def open_consumer(
    settings: KafkaSettings, client_id: str, isolation_level: str = "read_committed", **options: Any
) -> AIOKafkaConsumer:
    """A connected consumer of no group; `options` are aiokafka's own.

    Raises:
        NeighbourUnavailable, AccessDenied: no broker takes this client.
    """
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        client_id=client_id,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation_level,
        **options,
    )
    await connect(consumer, settings)
    return consumer


async def partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """The partitions of `topic`, in order.

    Raises:
        KafkaError: the topic does not exist, or not for this client; `one_line` puts it into words.
    """
    client = consumer._client
    # By name: among all topics a forbidden one would only be missing. aiokafka's own lookup would create it.
    request = MetadataRequest([topic], allow_auto_topic_creation=False)
    (found,) = (await client.send(client.get_random_node(), request)).to_object()["topics"]
    if found["error_code"]:
        raise for_code(found["error_code"])(topic)
    return [TopicPartition(topic, number) for number in sorted(p["partition"] for p in found["partitions"])]


async def partition_counts(settings: KafkaSettings, topics: list[str], client_id: str) -> dict[str, int]:
    """How many partitions each topic has.

    Raises:
        TopicMissing, TopicDenied: the first topic that does not exist, or not for this client.
        NeighbourUnavailable, AccessDenied: no broker takes this client.
    """
    consumer = await open_consumer(settings, client_id)
    try:
        counts = {}
        for topic in topics:
            with one_line(settings, topic):
                counts[topic] = len(await partitions(consumer, topic))
        return counts
    finally:
        await stop(consumer)


async def read_until(
    settings: KafkaSettings, topic: str, ends: Mapping[int, int], since_ms: int, client_id: str
) -> AsyncGenerator[RecordBatch, None]:
    """Batches of each partition from the first record at or after `since_ms` up to, not including, its end.

    Args:
        ends: partition to offset, the first one not to be read.
        since_ms: Kafka timestamp, ms since the epoch.
    """
    consumer = await open_consumer(settings, client_id)
    try:
        wanted = {TopicPartition(topic, partition): end for partition, end in ends.items()}
        consumer.assign(list(wanted))
        starts = await consumer.offsets_for_times(dict.fromkeys(wanted, since_ms))
        left = {}
        for tp, end in wanted.items():
            # No record that young: nothing to read.
            if (start := starts.get(tp)) is not None and start.offset < end:
                consumer.seek(tp, start.offset)
                left[tp] = end
        consumer.pause(*(tp for tp in wanted if tp not in left))
        async for batch in _until(consumer, left):
            yield batch
    finally:
        await stop(consumer)


async def end_offsets(
    settings: KafkaSettings, topic: str, client_id: str, *, undecided: bool = False
) -> dict[int, int]:
    """Of each partition the last stable offset: what is before it is committed or aborted.

    Args:
        undecided: the end of all records instead. A commit is answered before its markers are written, so
            what it has made true may lie behind the last stable offset for a moment.
    """
    consumer = await open_consumer(settings, client_id, "read_uncommitted" if undecided else "read_committed")
    try:
        with one_line(settings, topic):
            tps = await partitions(consumer, topic)
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
        return {tp.partition: end for tp, end in ends.items()}
    finally:
        await stop(consumer)


async def read_range(
    settings: KafkaSettings, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], client_id: str
) -> AsyncIterator[RecordBatch]:
    """Batches of each partition in `ends`, from its start (or the oldest record) to before its end."""
    consumer = await open_consumer(settings, client_id)
    try:
        left = {TopicPartition(topic, partition): end for partition, end in ends.items()}
        consumer.assign(list(left))
        oldest = await consumer.beginning_offsets(list(left))
        for tp in list(left):
            start = max(starts.get(tp.partition, 0), oldest[tp])
            consumer.seek(tp, start)
            if start >= left[tp]:
                consumer.pause(tp)
                del left[tp]
        async for batch in _until(consumer, left):
            yield batch
    finally:
        await stop(consumer)


async def _until(consumer: AIOKafkaConsumer, left: dict[TopicPartition, int]) -> AsyncIterator[RecordBatch]:
    while left:
        fetched: dict[TopicPartition, list[Any]] = await consumer.getmany(*left, timeout_ms=_POLL_MS)
        for tp, records in fetched.items():
            part = [record for record in records if record.offset < left[tp]]
            if part:
                yield RecordBatch(tp.topic, tp.partition, part)
        for tp in list(left):
            # The position also passes transaction markers, which are never handed out.
            if await consumer.position(tp) >= left[tp]:
                consumer.pause(tp)
                del left[tp]
