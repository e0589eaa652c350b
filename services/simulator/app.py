"""The bank on Kafka: payments at a steady rate (or as fast as they go), labels as they fall due.

The only file here that knows Kafka. Records go out as ready batches, one a partition, each account always to
the partition that Kafka's default partitioner gives its key.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from services.simulator.bank import Bank
from services.simulator.live import BankStream, Records, Wire
from services.simulator.settings import SimulatorSettings
from weir.codec.registry import open_registry
from weir.codec.schemas import load_schema
from weir.config import KafkaSettings, RegistrySettings, TopicSettings
from weir.errors import AccessDenied, MissingPart
from weir.kafka_options import client_options, connect, unavailable
from weir.obs import trace

# The steadiest pace that still makes batches: at 1,000 payments a second ten of them go together.
TICK_S = 0.01
BATCH_BYTES = 512 * 1024
IN_FLIGHT_MAX = 32
# As fast as they go, this many are made and sent at a time.
SLICE_ROWS = 20_000


@dataclass(slots=True)
class Sent:
    """What a run has sent so far; `seconds` counts the live part alone."""

    payments: int = 0
    labels: int = 0
    history: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Live payments a second."""
        return self.payments / self.seconds if self.seconds else 0.0


Progress = Callable[[Sent], None]


async def run(
    settings: SimulatorSettings,
    kafka: KafkaSettings,
    topics: TopicSettings,
    registry: RegistrySettings,
    *,
    seconds: float | None = None,
    count: int | None = None,
    as_fast_as_possible: bool = False,
    history_days: int = 0,
    live_day: int = 0,
    progress: Progress = lambda sent: None,
) -> Sent:
    """Send payments until `seconds` have passed or `count` are sent; with neither, until cancelled.

    Args:
        as_fast_as_possible: `settings.rate` does not bind; `seconds` or `count` ends it.
        history_days: first send that many past days with their labels, at their own event times.
        live_day: which of the bank's days is lived now; a second run takes another, or people pay twice.
        progress: called about ten times a second, and at the end.
    Raises:
        MissingPart: a topic does not exist. AccessDenied: it may not be written.
        NeighbourUnavailable: Kafka gives no answer.
    """
    now_ms = int(time.time() * 1000)
    # A live bank's first day is today: its past are the days before it, its customers the seed's as ever.
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
    live = settings.model_copy(update={"start_date": today})
    schemas = open_registry(registry)
    try:
        schema_ids = [
            await schemas.id_of(f"{subject}-value", load_schema(name))
            for subject, name in (("bank.transactions", "transaction"), ("bank.labels", "label"))
        ]
    finally:
        await schemas.close()
    producer = AIOKafkaProducer(
        **client_options(kafka), max_batch_size=BATCH_BYTES, enable_idempotence=True, retry_backoff_ms=20
    )
    await connect(producer, kafka)
    try:
        wire = Wire(
            *schema_ids,
            *[await _partition_count(producer, name) for name in (topics.transactions, topics.labels)],
        )
        stream = BankStream(await asyncio.to_thread(Bank, live), wire, b"R%x-" % now_ms)
        sender = _Sender(producer, topics, stream, live.traceparent_share, progress)
        try:
            await sender.history(history_days, now_ms)
            stream.begin(now_ms, live_day)
            if as_fast_as_possible:
                await sender.flat_out(seconds, count)
            else:
                await sender.paced(live.rate, seconds, count)
        finally:
            await sender.drain()
        return sender.sent
    except TopicAuthorizationFailedError as error:
        raise AccessDenied(
            f"Kafka at {kafka.bootstrap_servers}: this user may not write the bank's topics."
        ) from error
    except KafkaError as error:
        raise unavailable(kafka, error) from error
    finally:
        await producer.stop()


async def _partition_count(producer: AIOKafkaProducer, topic: str) -> int:
    partitions = (await producer.client.fetch_all_metadata()).partitions_for_topic(topic)
    if not partitions:
        raise MissingPart(f"no topic {topic}. Make it with `weir topics create`.")
    return len(partitions)


class _Sender:
    """Sends records as batches, a bounded number of them in flight, and counts."""

    def __init__(
        self,
        producer: AIOKafkaProducer,
        topics: TopicSettings,
        stream: BankStream,
        traceparent_share: float,
        progress: Progress,
    ) -> None:
        self.sent = Sent()
        self._producer, self._topics, self._stream = producer, topics, stream
        self._traceparent_share, self._progress = traceparent_share, progress
        self._in_flight: deque[asyncio.Future[object]] = deque()
        self._random = np.random.default_rng(stream.bank.settings.seed)

    async def history(self, days: int, until_ms: int) -> None:
        """Past days in order, each followed by the labels that had come by its last payment."""
        if days <= 0:
            return
        for records in self._stream.history(days, until_ms):
            for first in range(0, len(records), SLICE_ROWS):
                await self._send(self._topics.transactions, _part(records, first, first + SLICE_ROWS))
            self.sent.history += len(records)
            if len(records):
                await self._labels(int(records.timestamp_ms[-1]))
            self._progress(self.sent)
        await self.drain()

    async def flat_out(self, seconds: float | None, count: int | None) -> None:
        """Payments as fast as they go, until `seconds` have passed or `count` are sent."""
        begun = time.monotonic()
        while (count is None or self.sent.payments < count) and (
            seconds is None or time.monotonic() - begun < seconds
        ):
            rows = SLICE_ROWS if count is None else min(SLICE_ROWS, count - self.sent.payments)
            await self._payments(rows)
            self.sent.seconds = time.monotonic() - begun
            self._progress(self.sent)
        await self.drain()
        self.sent.seconds = time.monotonic() - begun
        self._progress(self.sent)

    async def paced(self, rate: float, seconds: float | None, count: int | None) -> None:
        """Payments at `rate` a second, each with the event time at which it is sent."""
        begun = time.monotonic()
        shown = due = 0.0
        while True:
            elapsed = time.monotonic() - begun
            self.sent.seconds = elapsed
            if elapsed - shown >= 0.1:
                shown = elapsed
                self._progress(self.sent)
            if (seconds is not None and elapsed >= seconds) or (
                count is not None and self.sent.payments >= count
            ):
                break
            # Behind by more than a second there is no catching up: the rate shows that, memory does not.
            due = min(rate * elapsed, self.sent.payments + rate)
            rows = int(due) - self.sent.payments
            if count is not None:
                rows = min(rows, count - self.sent.payments)
            if rows > 0:
                await self._payments(rows)
            await self._labels(int(time.time() * 1000))
            await asyncio.sleep(max(TICK_S - (time.monotonic() - begun - elapsed), 0))
        await self.drain()
        self._progress(self.sent)

    async def drain(self) -> None:
        """Wait until the broker has acknowledged everything sent."""
        while self._in_flight:
            await self._in_flight.popleft()

    async def _payments(self, rows: int) -> None:
        records = self._stream.payments(rows, int(time.time() * 1000))
        await self._send(self._topics.transactions, records)
        self.sent.payments += len(records)

    async def _labels(self, now_ms: int) -> None:
        records = self._stream.labels_due(now_ms)
        if len(records):
            await self._send(self._topics.labels, records)
            self.sent.labels += len(records)

    async def _send(self, topic: str, records: Records) -> None:
        traced = self._random.random(len(records)) < self._traceparent_share
        order = np.argsort(records.partition, kind="stable")
        partition, timestamp = records.partition.tolist(), records.timestamp_ms.tolist()
        batch, current = None, -1
        for row in order.tolist():
            headers = [("traceparent", trace.new().traceparent.encode())] if traced[row] else []
            if partition[row] != current and batch is not None:
                await self._give(batch, topic, current)
                batch = None
            current = partition[row]
            while True:
                batch = batch if batch is not None else self._producer.create_batch()
                if batch.append(
                    key=records.keys[row],
                    value=records.values[row],
                    timestamp=timestamp[row],
                    headers=headers,
                ):
                    break
                await self._give(batch, topic, current)
                batch = None
        if batch is not None:
            await self._give(batch, topic, current)

    async def _give(self, batch: object, topic: str, partition: int) -> None:
        while len(self._in_flight) >= IN_FLIGHT_MAX:
            await self._in_flight.popleft()
        self._in_flight.append(await self._producer.send_batch(batch, topic, partition=partition))


def _part(records: Records, first: int, last: int) -> Records:
    part = slice(first, last)
    return Records(
        records.keys[part], records.values[part], records.partition[part], records.timestamp_ms[part]
    )
