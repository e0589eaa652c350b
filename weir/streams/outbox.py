"""Publishing a batch of results as one produce batch to one partition."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer

from weir.client.connection import one_line
from weir.config import KafkaSettings
from weir.kafka.records import AnyOutput, rows_of
from weir.kafka_options import client_options, connect
from weir.streams.app import TakenBatch


@dataclass(frozen=True)
class Output:
    """Records for one partition of one topic, in order; the columns are of one length.

    timestamps_ms: one a record or one for all, ms since the epoch. Retention goes by them: a record that is
        stamped with the past is deleted as if it were that old.
    """

    topic: str
    partition: int
    keys: Sequence[bytes | None]
    values: Sequence[bytes]
    headers: Sequence[Sequence[tuple[str, bytes]]]
    timestamps_ms: Sequence[int] | int


class Delivery(Protocol):
    """How a batch's results reach Kafka and its offset is finished; the guarantee lives here."""

    async def start(self) -> None:
        """Connect."""

    async def enqueue(
        self, taken: Sequence[TakenBatch], outputs: Sequence[AnyOutput]
    ) -> "asyncio.Future[None]":
        """Hand the outputs over in order; done once they are durable and the batches finished."""

    async def stop(self) -> None:
        """Flush and disconnect."""


class AtLeastOnce:
    """Idempotent producer, all replicas; the input's offset is finished after the broker's answer.

    A crash between the two publishes a batch again, with the same decision ids.
    """

    def __init__(self, settings: KafkaSettings, *, client_id: str, compression: str | None = None) -> None:
        self._settings = settings
        self._options: dict[str, Any] = {
            "client_id": client_id,
            "enable_idempotence": True,
            "acks": "all",
            # 512 KiB holds several hundred decisions; a larger batch is split, in order.
            "max_batch_size": 512 * 1024,
            "compression_type": compression,
            "linger_ms": 0,
        }
        self._producer: AIOKafkaProducer | None = None
        self._waiting: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect to the brokers.

        Raises:
            NeighbourUnavailable, AccessDenied: no broker takes this client.
        """
        producer = AIOKafkaProducer(**client_options(self._settings), **self._options)
        await connect(producer, self._settings)
        self._producer = producer

    async def enqueue(
        self, taken: Sequence[TakenBatch], outputs: Sequence[AnyOutput]
    ) -> "asyncio.Future[None]":
        """Send each output as whole produce batches to its partition, in order.

        Raises, as the task that it returns does:
            TopicDenied, TopicMissing: a topic of the outputs is not for this client.
            NeighbourUnavailable: no broker took a batch in time; the input is not finished.
        """
        sent: list[tuple[str, asyncio.Future[Any]]] = []
        for output in outputs:
            with one_line(self._settings, output.topic):
                sent.extend((output.topic, future) for future in await self.publish(output))
        task = asyncio.ensure_future(self._finish(taken, sent))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    async def _finish(
        self, taken: Sequence[TakenBatch], sent: Sequence[tuple[str, "asyncio.Future[Any]"]]
    ) -> None:
        answers = await asyncio.gather(*(future for _, future in sent), return_exceptions=True)
        for (topic, _), answer in zip(sent, answers, strict=True):
            if isinstance(answer, BaseException):
                with one_line(self._settings, topic):
                    raise answer
        for each in taken:
            each.finish()

    async def publish(self, output: AnyOutput) -> list["asyncio.Future[Any]"]:
        """Queue one output; one future a produce batch, done when the broker has it on all replicas."""
        producer = self._producer
        assert producer is not None
        futures: list[asyncio.Future[Any]] = []
        stamps = output.timestamps_ms
        constant_ms = stamps if isinstance(stamps, int) else None
        builder = producer.create_batch()
        append, appended = builder.append, 0
        for row, (key, value, headers) in enumerate(rows_of(output)):
            timestamp = constant_ms if constant_ms is not None else int(stamps[row])  # type: ignore[index]
            if append(key=key, value=value, timestamp=timestamp, headers=headers) is None:
                if appended == 0:
                    raise ValueError(f"A record of {len(value or b'')} bytes does not fit a produce batch.")
                futures.append(await self._send(producer, builder, output))
                builder = producer.create_batch()
                append, appended = builder.append, 0
                append(key=key, value=value, timestamp=timestamp, headers=headers)
            appended += 1
        if appended:
            futures.append(await self._send(producer, builder, output))
        return futures

    async def _send(
        self, producer: AIOKafkaProducer, builder: Any, output: AnyOutput
    ) -> "asyncio.Future[Any]":
        builder.close()
        future: asyncio.Future[Any] = await producer.send_batch(
            builder, output.topic, partition=output.partition
        )
        return future

    async def stop(self) -> None:
        """Wait for what was handed over, then disconnect."""
        if self._waiting:
            await asyncio.wait(set(self._waiting))
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None
