"""Reads dead letters and puts them back: what could not be decided, why, and the original record."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from weir.client.connection import one_line, partitions_of, stop
from weir.client.opening import Keys, RecordOpener
from weir.client.records import Position, from_ms
from weir.codec.registry import open_registry
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings
from weir.crypto.keyring import Keyring
from weir.errors import BadInput, ConfigError, IntegrityError, MissingPart
from weir.ids import dead_letter_id
from weir.kafka_options import client_options, connect

REASON_HEADER = "weir.reason"
REPLAYED_HEADER = "weir.replayed-from"
UNKNOWN_REASON = "unknown"

_POLL_MS = 200
_IN_FLIGHT_MAX = 500

Header = tuple[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A dead letter as it lies, sealed: what can be told without a key."""

    raw: Position
    reason: str
    time: datetime
    size_bytes: int
    record: ConsumerRecord = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, repr=False)
class DeadLetter:
    """An opened dead letter; `key`, `value` and `headers` are the original's, byte for byte."""

    reason: str
    detail: str
    service: str
    source: Position
    source_time: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    failed_time: datetime
    traceparent: str | None
    raw: Position

    def __repr__(self) -> str:
        return f"DeadLetter({self.reason}, source={self.source}, raw={self.raw})"

    @classmethod
    def from_avro(cls, record: Mapping[str, Any], raw: Position) -> "DeadLetter":
        """The letter that `schemas/dead_letter.avsc` describes, as decoded by the codec.

        Raises:
            BadInput: "bad_dead_letter", when a field is missing.
        """
        try:
            return cls(
                reason=record["reason"],
                detail=record["detail"],
                service=record["service"],
                source=Position(record["topic"], record["partition"], record["offset"]),
                source_time=record["timestamp_ms"],
                key=record["key"],
                value=record["value"],
                headers=tuple((header["name"], header["value"]) for header in record["headers"]),
                failed_time=record["failed_time"],
                traceparent=record["traceparent"],
                raw=raw,
            )
        except (KeyError, TypeError):
            raise BadInput(
                "bad_dead_letter", f"the record at {raw} is no dead letter this version knows."
            ) from None


class DeadLetters:
    """The dead letter topic: `async with DeadLetters.connect() as letters`; listing needs no key."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        registry: RegistrySettings,
        keys: KeyServiceSettings | Keys | None,
        purpose: str,
    ) -> None:
        self._kafka, self.topic = kafka, topic
        self._registry = open_registry(registry)
        self._keys, self._purpose = keys, purpose
        self._own_keyring: Keyring | None = None
        self._opener: RecordOpener | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: tuple[TopicPartition, ...] = ()

    @classmethod
    def connect(
        cls,
        *,
        purpose: str = "investigation",
        kafka: KafkaSettings | None = None,
        topics: TopicSettings | None = None,
        registry: RegistrySettings | None = None,
        keys: KeyServiceSettings | Keys | None = None,
    ) -> Self:
        """A reader by the settings in force, each of which an argument replaces.

        Raises:
            ConfigError: a setting is wrong. Kafka is reached when the context is entered, the key service
                when the first letter is opened.
        """
        topic = (topics or TopicSettings.load()).risk_dlq
        return cls(kafka or KafkaSettings.load(), topic, registry or RegistrySettings.load(), keys, purpose)

    async def __aenter__(self) -> Self:
        numbers = await partitions_of(self.topic, self._kafka)
        self._partitions = tuple(TopicPartition(self.topic, number) for number in numbers)
        consumer = AIOKafkaConsumer(
            **client_options(self._kafka),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        await connect(consumer, self._kafka)
        self._consumer = consumer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)
        await self._registry.close()
        if self._own_keyring is not None:
            await self._own_keyring.close()

    async def entries(self) -> AsyncIterator[Entry]:
        """Every dead letter there is now, oldest first in each partition; none is opened."""
        consumer = self._started()
        with one_line(self._kafka, self.topic):
            consumer.assign(self._partitions)
            for partition, offset in (await consumer.beginning_offsets(self._partitions)).items():
                consumer.seek(partition, offset)
            ends = await consumer.end_offsets(self._partitions)
            while any([await consumer.position(each) < ends[each] for each in self._partitions]):
                fetched = await consumer.getmany(timeout_ms=_POLL_MS)
                for partition, records in fetched.items():
                    for record in records:
                        if record.offset < ends[partition]:
                            yield _entry(record)

    async def at(self, partition: int, offset: int) -> Entry:
        """The dead letter at one place.

        Raises:
            MissingPart: there is none.
        """
        consumer, place = self._started(), TopicPartition(self.topic, partition)
        nothing = MissingPart(f"No dead letter at {self.topic}[{partition}]@{offset}. See `weir dlq list`.")
        if place not in self._partitions or offset < 0:
            raise nothing
        with one_line(self._kafka, self.topic):
            consumer.assign([place])
            end = (await consumer.end_offsets([place]))[place]
            consumer.seek(place, offset)
            while offset < end and await consumer.position(place) <= offset:
                try:
                    fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=1)
                except OffsetOutOfRangeError:
                    break
                for record in fetched.get(place, ()):
                    if record.offset == offset:
                        return _entry(record)
        raise nothing

    async def open(self, entry: Entry) -> DeadLetter:
        """What the letter says.

        Raises:
            AccessDenied: this role may not read it.
            IntegrityError: it was changed, or is the letter of another record.
            BadInput: it is not a dead letter.
            NeighbourUnavailable: the key service gives no answer.
        """
        opener = self._opener or await self._make_opener()
        opened = await opener.open(self.topic, entry.record.value, entry.record.headers)
        letter = DeadLetter.from_avro(opened.record, entry.raw)
        source = letter.source
        if dead_letter_id(source.topic, source.partition, source.offset).bytes != opened.record_id:
            raise IntegrityError(
                f"The dead letter at {entry.raw} holds another record than its envelope says. Report it."
            )
        return letter

    async def _make_opener(self) -> RecordOpener:
        keys = self._keys if self._keys is not None else KeyServiceSettings.load()
        if isinstance(keys, KeyServiceSettings):
            keys = self._own_keyring = await Keyring.connect(keys)
        self._opener = RecordOpener("dead_letter", keys, self._registry, purpose=self._purpose)
        return self._opener

    def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("use the reader inside `async with DeadLetters.connect() as letters:`")
        return self._consumer


async def replay(letters: AsyncIterable[DeadLetter], kafka: KafkaSettings) -> int:
    """How many originals were put back: same topic, partition, key, value and headers, and one header more.

    `weir.replayed-from` says where the dead letter stands. Twice is safe: an event has one decision id. What
    `letters` raises is raised too; in each case what came before is replayed.

    Raises:
        MissingPart, AccessDenied: no such topic, or no permission.
        ConfigError: the topic has fewer partitions than it had.
        NeighbourUnavailable: no acknowledgement.
    """
    producer = AIOKafkaProducer(**client_options(kafka), enable_idempotence=True, acks="all")
    await connect(producer, kafka)
    known: dict[str, tuple[int, ...]] = {}
    waiting: deque[tuple[str, asyncio.Future[Any]]] = deque()
    count = 0
    try:
        async for letter in letters:
            source = letter.source
            if source.topic not in known:
                known[source.topic] = await partitions_of(source.topic, kafka)
            if source.partition not in known[source.topic]:
                raise ConfigError(
                    f"{source.topic} has no partition {source.partition} any more. Publish the event anew."
                )
            where = f"{letter.raw.topic}:{letter.raw.partition}:{letter.raw.offset}"
            kept = [(name, value) for name, value in letter.headers if name != REPLAYED_HEADER]
            with one_line(kafka, source.topic):
                sent = await producer.send(
                    source.topic,
                    letter.value,
                    letter.key,
                    partition=source.partition,
                    headers=[*kept, (REPLAYED_HEADER, where.encode())],
                )
            waiting.append((source.topic, sent))
            count += 1
            if len(waiting) >= _IN_FLIGHT_MAX:
                await _acknowledged(*waiting.popleft(), kafka)
        while waiting:
            await _acknowledged(*waiting.popleft(), kafka)
    finally:
        await producer.stop()
    return count


async def _acknowledged(topic: str, sent: asyncio.Future[Any], kafka: KafkaSettings) -> None:
    with one_line(kafka, topic):
        await sent


def _entry(record: ConsumerRecord) -> Entry:
    reasons = [value for name, value in record.headers if name == REASON_HEADER and value]
    # A header is anyone's to write: only a plain word reaches the screen.
    reason = reasons[0].decode("ascii", "replace") if len(reasons) == 1 else UNKNOWN_REASON
    if not reason.isidentifier():
        reason = UNKNOWN_REASON
    return Entry(
        raw=Position(record.topic, record.partition, record.offset),
        reason=reason,
        time=from_ms(record.timestamp),
        size_bytes=len(record.value or b""),
        record=record,
    )
