"""Kafka to the database: a batch is stored, then its offsets are committed; alone here knows Kafka.

With a neighbour away (database, key service, Kafka) it waits, says so once, and commits nothing.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, TypeVar, get_args

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from prometheus_client import Counter, Gauge

from services.ledger.models import StoredDecision
from services.ledger.records import KafkaRecord, Sorted, refusal, sort
from services.ledger.settings import LedgerSettings
from services.ledger.store import Ledger, RowRefused, Stored
from weir.client.connection import as_weir, partitions_of
from weir.client.connection import stop as stop_consumer
from weir.client.opening import RecordOpener
from weir.codec.registry import open_registry
from weir.config import KafkaSettings, KeyServiceSettings, LogSettings, RegistrySettings, TopicSettings
from weir.crypto.keyring import Keyring
from weir.errors import NeighbourUnavailable
from weir.kafka_options import client_options, connect
from weir.obs.http import serve
from weir.obs.log import configure, get_logger
from weir.obs.metrics import Metrics

log = get_logger("weir.ledger")

PURPOSE = "ledger"
POLL_MS = 500
RETRY_S_FIRST = 0.1
# A ledger that waits for its database must not be thrown out of its group: nobody could do better.
POLL_INTERVAL_MS_MAX = 24 * 3600 * 1000

Neighbour = Literal["kafka", "database", "keys"]
Answer = TypeVar("Answer")


class LedgerMetrics:
    """What only the ledger counts, beside the shared metrics."""

    def __init__(self, shared: Metrics) -> None:
        self.shared = shared
        self.records = Counter(
            "weir_ledger_records_total",
            "Records by what became of them: stored, duplicate, unopened (stored sealed only), refused.",
            ["result"],
            registry=shared.registry,
        )
        self.waiting = Gauge(
            "weir_ledger_waiting",
            "1 while the ledger waits for this neighbour.",
            ["neighbour"],
            registry=shared.registry,
        )
        for neighbour in get_args(Neighbour):
            self.waiting.labels(neighbour).set(0)


class Patience:
    """Tries again until it works or the service is told to stop; knows what is waited for."""

    def __init__(self, metrics: LedgerMetrics, retry_s_max: float, stop: asyncio.Event) -> None:
        self._metrics, self._retry_s_max, self._stop = metrics, retry_s_max, stop
        self.waits_for: Neighbour | None = None
        self.reason = ""

    async def until_done(self, neighbour: Neighbour, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer, however often the neighbour is away; its absence is said once, and its return.

        Raises:
            Stopped: the service was told to stop while it waited.
            What `attempt` raises that trying again does not help.
        """
        pause_s = RETRY_S_FIRST
        while True:
            try:
                answer = await attempt()
            except NeighbourUnavailable as error:
                self._away(neighbour, str(error))
            else:
                self._back()
                return answer
            try:
                await asyncio.wait_for(self._stop.wait(), pause_s)
            except TimeoutError:
                pause_s = min(pause_s * 2, self._retry_s_max)
            else:
                raise Stopped

    def _away(self, neighbour: Neighbour, reason: str) -> None:
        if self.waits_for is None:
            log.warning("neighbour_away", neighbour=neighbour, reason=reason)
        self.waits_for, self.reason = neighbour, reason
        self._metrics.waiting.labels(neighbour).set(1)

    def _back(self) -> None:
        if self.waits_for is not None:
            log.info("neighbour_back", neighbour=self.waits_for)
            self._metrics.waiting.labels(self.waits_for).set(0)
            self.waits_for, self.reason = None, ""


class Stopped(Exception):
    """The service was told to stop while it waited; what it held is not committed."""


class Bookkeeper:
    """Stores batches: opened for the clear columns, then put in one transaction."""

    def __init__(
        self, ledger: Ledger, opener: RecordOpener, metrics: LedgerMetrics, patience: Patience
    ) -> None:
        self._ledger, self._opener = ledger, opener
        self._metrics, self._patience = metrics, patience

    async def store(self, batch: Sequence[KafkaRecord]) -> Stored:
        """What became of the batch, once all of it is in the database; storing it again changes nothing.

        Raises:
            Stopped: told to stop while a neighbour was away; nothing or all of it is stored.
        """
        shared = self._metrics.shared
        shared.batch(len(batch))
        with shared.timed("open"):
            rows = await self._patience.until_done("keys", lambda: sort(batch, self._opener, _now_ms()))
        with shared.timed("store"):
            stored = await self._patience.until_done("database", lambda: self._put(rows, batch))
        count = self._metrics.records.labels
        count("stored").inc(stored.new_count)
        count("duplicate").inc(stored.duplicate_count)
        count("unopened").inc(rows.unopened_count)
        count("refused").inc(len(rows.refusals))
        now_s = time.time()
        shared.latency(max(0.0, now_s - record.timestamp / 1000) for record in (batch[0], batch[-1]))
        if rows.refusals:
            first = rows.refusals[0]
            log.warning(
                "records_refused", row_count=len(rows.refusals), first_reason=first.reason,
                topic=first.topic, partition=first.kafka_partition, offset=first.kafka_offset,
            )  # fmt: skip
        return stored

    async def _put(self, rows: Sorted, batch: Sequence[KafkaRecord]) -> Stored:
        try:
            return await self._ledger.put(rows.decisions, rows.refusals)
        except RowRefused:
            # One row that no table takes must not stop the rest: each alone, the culprit among the refused.
            records = {(each.topic, each.partition, each.offset): each for each in batch}
            stored = [
                await self._put_alone(row, records[row.topic, row.kafka_partition, row.kafka_offset])
                for row in rows.decisions
            ]
            await self._ledger.put([], rows.refusals)
            return Stored(
                sum(each.new_count for each in stored), sum(each.duplicate_count for each in stored)
            )

    async def _put_alone(self, row: StoredDecision, record: KafkaRecord) -> Stored:
        try:
            return await self._ledger.put([row])
        except RowRefused as error:
            await self._ledger.put([], [refusal(record, "not_stored", str(error), _now_ms())])
            self._metrics.records.labels("refused").inc()
            return Stored(0, 0)


async def consume(
    consumer: AIOKafkaConsumer,
    store: Callable[[Sequence[KafkaRecord]], Awaitable[object]],
    stop: asyncio.Event,
    *,
    batch_rows_max: int,
) -> None:
    """Hands `store` batch after batch and commits a batch's offsets after it; until `stop` is set.

    Raises:
        WeirError: Kafka denies it, or the topic is gone.
    """
    while not stop.is_set():
        fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=batch_rows_max)
        batch = [record for records in fetched.values() for record in records]
        if batch:
            await store(batch)
            await _commit(consumer, {place: records[-1].offset + 1 for place, records in fetched.items()})


async def _commit(consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
    assigned = consumer.assignment()
    try:
        mine = {place: offset for place, offset in offsets.items() if place in assigned}
        if mine:
            await consumer.commit(mine)
    except (CommitFailedError, IllegalStateError):
        # Moved to another ledger, which stores the same rows again: the first writer has won.
        log.info("offsets_not_committed", reason="the partitions moved")
    except KafkaError as error:
        if not error.retriable:
            raise
        # The next commit covers these too.
        log.warning("offsets_not_committed", reason=type(error).__name__)


async def run(settings: LedgerSettings, log_settings: LogSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        WeirError: it cannot start or go on; the text says why.
    """
    configure(log_settings, service="ledger")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with AsyncExitStack() as stack:
            await _serve(settings, stop, stack)
    except Stopped:
        log.info("service_stopping")


async def _serve(settings: LedgerSettings, stop: asyncio.Event, stack: AsyncExitStack) -> None:
    kafka, topic = KafkaSettings.load(), TopicSettings.load().decisions
    metrics = LedgerMetrics(Metrics("ledger"))
    patience = Patience(metrics, settings.retry_s_max, stop)
    started = False

    def ready() -> dict[str, Any]:
        state = {"ready": started and patience.waits_for is None}
        return state if patience.waits_for is None else {**state, "waits_for": patience.waits_for}

    server = await serve(settings.metrics_host, settings.metrics_port, ready)
    stack.push_async_callback(server.close)
    ledger = await patience.until_done("database", lambda: Ledger.open(settings))
    stack.push_async_callback(ledger.close)
    keyring = await Keyring.connect(KeyServiceSettings.load())
    stack.push_async_callback(keyring.close)
    registry = open_registry(RegistrySettings.load())
    stack.push_async_callback(registry.close)
    opener = RecordOpener("decision", keyring, registry, purpose=PURPOSE, plain=True)
    consumer = await patience.until_done("kafka", lambda: _consumer(kafka, topic, settings.group))
    stack.push_async_callback(stop_consumer, consumer)
    started = True
    log.info("service_started", database=ledger.where, topic=topic, metrics_port=server.port)
    bookkeeper = Bookkeeper(ledger, opener, metrics, patience)
    try:
        await consume(consumer, bookkeeper.store, stop, batch_rows_max=settings.batch_rows_max)
    except KafkaError as error:
        raise as_weir(error, kafka, topic) from error
    log.info("service_stopping")


async def _consumer(kafka: KafkaSettings, topic: str, group: str) -> AIOKafkaConsumer:
    await partitions_of(topic, kafka)
    consumer = AIOKafkaConsumer(
        topic,
        **client_options(kafka),
        group_id=group,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_interval_ms=POLL_INTERVAL_MS_MAX,
    )
    await connect(consumer, kafka)
    return consumer


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
