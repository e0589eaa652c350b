"""Publishes the bank's events: checked, Avro in Confluent's framing, keyed by account, acknowledged."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer

from weir.client.chat import AgentReply, ChatMessage
from weir.client.connection import one_line, partitions_of
from weir.client.records import Label, Position, Transaction
from weir.codec.avro import RowCodec
from weir.codec.framing import frame
from weir.codec.registry import open_registry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.config import KafkaSettings, RegistrySettings, TopicSettings
from weir.kafka_options import client_options, connect
from weir.obs import trace

# How many events may wait for their acknowledgement: bounds memory; a broker gains nothing from more.
IN_FLIGHT_MAX = 5_000


class Publisher:
    """Publishes transactions and labels; use it as `async with Publisher.connect() as bank`.

    The producer is idempotent: what it sends again after a lost answer stands in the topic once.
    """

    def __init__(self, kafka: KafkaSettings, topics: TopicSettings, registry: RegistrySettings) -> None:
        self._kafka, self._topics = kafka, topics
        self._registry = open_registry(registry)
        self._producer: AIOKafkaProducer | None = None
        self._encoders: dict[str, tuple[int, RowCodec]] = {}

    @classmethod
    def connect(
        cls,
        *,
        kafka: KafkaSettings | None = None,
        topics: TopicSettings | None = None,
        registry: RegistrySettings | None = None,
    ) -> Self:
        """A publisher by the settings in force (`weir.toml`, `WEIR_*`), each of which an argument replaces.

        Raises:
            ConfigError: a setting is wrong. Kafka itself is reached when the context is entered.
        """
        return cls(
            kafka or KafkaSettings.load(), topics or TopicSettings.load(), registry or RegistrySettings.load()
        )

    async def __aenter__(self) -> Self:
        producer = AIOKafkaProducer(**client_options(self._kafka), enable_idempotence=True, acks="all")
        await connect(producer, self._kafka)
        self._producer = producer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()
            await self._registry.close()

    async def publish(self, transaction: Transaction, *, traceparent: str | None = None) -> Position:
        """Where the transaction stands, once all replicas have it.

        Args:
            traceparent: the W3C trace that the event belongs to; a new one begins without it.
        Raises:
            MissingPart, AccessDenied: no such topic, or no permission.
            NeighbourUnavailable: no acknowledgement in time. Publishing the same event again is safe: it
                gets the same decision id.
        """
        return await self._send(
            self._topics.transactions,
            "transaction",
            transaction.account_id,
            transaction.to_avro(),
            traceparent,
        )

    async def publish_label(self, label: Label, *, traceparent: str | None = None) -> Position:
        """Where the label stands, once all replicas have it; raises as `publish` does."""
        return await self._send(self._topics.labels, "label", label.account_id, label.to_avro(), traceparent)

    async def publish_message(self, message: ChatMessage, *, traceparent: str | None = None) -> Position:
        """Where a customer's message stands, once all replicas have it; raises as `publish` does."""
        return await self._send(
            self._topics.chat_messages,
            "chat_message",
            message.conversation_id,
            message.to_avro(),
            traceparent,
        )

    async def publish_agent_reply(self, reply: AgentReply, *, traceparent: str | None = None) -> Position:
        """Where a person's reply stands, once all replicas have it; raises as `publish` does."""
        return await self._send(
            self._topics.chat_messages, "agent_reply", reply.conversation_id, reply.to_avro(), traceparent
        )

    async def publish_many(self, transactions: Iterable[Transaction] | AsyncIterable[Transaction]) -> int:
        """How many transactions were published, every one acknowledged; many are under way at a time.

        One account's transactions keep their order. Raises as `publish` does, on the first that fails; those
        already sent stay published.
        """
        topic = self._topics.transactions
        waiting: deque[asyncio.Future[Any]] = deque()
        count = 0
        try:
            async for item in _each(transactions):
                waiting.append(
                    await self._enqueue(topic, "transaction", item.account_id, item.to_avro(), None)
                )
                count += 1
                if len(waiting) >= IN_FLIGHT_MAX:
                    with one_line(self._kafka, topic):
                        await waiting.popleft()
        finally:
            results = await asyncio.gather(*waiting, return_exceptions=True)
        with one_line(self._kafka, topic):
            for error in results:
                if isinstance(error, BaseException):
                    raise error
        return count

    async def flush(self) -> None:
        """Returns once nothing that was given to this publisher still waits to be acknowledged."""
        with one_line(self._kafka, self._topics.transactions):
            await self._started().flush()

    async def _send(
        self, topic: str, name: str, key: str, record: dict[str, Any], traceparent: str | None
    ) -> Position:
        future = await self._enqueue(topic, name, key, record, traceparent)
        with one_line(self._kafka, topic):
            sent = await future
        return Position(sent.topic, sent.partition, sent.offset)

    async def _enqueue(
        self, topic: str, name: str, key: str, record: dict[str, Any], traceparent: str | None
    ) -> asyncio.Future[Any]:
        producer = self._started()
        schema_id, codec = self._encoders.get(name) or await self._prepare(topic, name)
        context = traceparent or trace.new().traceparent
        with one_line(self._kafka, topic):
            future: asyncio.Future[Any] = await producer.send(
                topic,
                frame(schema_id, codec.encode(record)),
                key.encode(),
                headers=[(trace.TRACEPARENT, context.encode("ascii"))],
            )
        return future

    async def _prepare(self, topic: str, name: str) -> tuple[int, RowCodec]:
        await partitions_of(topic, self._kafka)
        schema = load_schema(name)
        encoder = self._encoders[name] = (
            await self._registry.id_of(SUBJECTS[name], schema),
            RowCodec(schema),
        )
        return encoder

    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise RuntimeError("use the publisher inside `async with Publisher.connect() as bank:`")
        return self._producer


async def _each(items: Iterable[Transaction] | AsyncIterable[Transaction]) -> AsyncIterable[Transaction]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
