"""A Faust application whose agents work on record batches."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import faust
from faust.types import TP, Message

from weir.config import KafkaSettings
from weir.errors import WeirError
from weir.kafka_options import client_options
from weir.streams.assignor import Warmth
from weir.streams.batch import RecordBatch
from weir.streams.transport import BatchTransport


class _BatchSchema(faust.Schema):  # type: ignore[type-arg]  # not generic at run time
    """Hands the batch through: what is in it is decoded together, by the agent's own codec."""

    def loads_key(self, app: Any, message: Message, **_: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Message, **_: Any) -> Any:
        return message.value


class TakenBatch:
    """A batch that an agent holds; `finish` it once its results are published."""

    __slots__ = ("_app", "_message", "batch")

    def __init__(self, app: "BatchApp", message: Message) -> None:
        self._app, self._message = app, message
        self.batch: RecordBatch = cast(Any, message).value

    @property
    def current(self) -> bool:
        """Whether the partition is still ours and was not moved since: else the batch is read again."""
        return bool(cast(Any, self._app.consumer).holds(self._message))

    def finish(self) -> bool:
        """Let the offset after the batch be committed; False when the partition is no longer ours."""
        return bool(cast(Any, self._app.consumer).finish(self._message))


class BatchApp(faust.App):
    """Faust, with batch topics: `batch_topic` declares one, `batches` is what its agent iterates.

    Args:
        id: the consumer group.
        kafka: how the brokers are reached (TLS and SASL included).
        batch_rows_max: records of one fetch over all partitions; bounds a batch and so its latency.
        batches_waiting_max: batches fetched and not yet taken; beyond it the partition is paused.
        drain_deadline_s: how long a rebalance or a stop waits for batches in flight.
        commit_interval_s: between commits of finished batches' offsets.
        session_timeout_s: how long the broker waits for a silent worker before it gives its partitions away.
        standby_replicas: other members that keep a partition's state warm.
        standby_lag_max: records that a standby may be behind when a partition moves to it from a live member.
        commits_offsets: whether the consumer commits what is finished; False leaves it to transactions.
    """

    def __init__(
        self,
        id: str,
        *,
        kafka: KafkaSettings,
        batch_rows_max: int = 2000,
        batches_waiting_max: int = 16,
        drain_deadline_s: float = 10.0,
        commit_interval_s: float = 1.0,
        session_timeout_s: float = 15.0,
        standby_replicas: int = 0,
        standby_lag_max: int = 10_000,
        commits_offsets: bool = True,
        **options: Any,
    ) -> None:
        self.kafka_settings, self.kafka_options = kafka, client_options(kafka)
        self.batch_topics: set[str] = set()
        # A bank's producer may be transactional; what it aborted must not be decided on.
        self.isolation_level = "read_committed"
        self.drain_deadline_s = drain_deadline_s
        self.standby_replicas, self.standby_lag_max = standby_replicas, standby_lag_max
        self.commits_offsets = commits_offsets
        self._crashing: asyncio.Future[None] | None = None
        self.fatal: BaseException | None = None
        super().__init__(
            id,
            broker=";".join(f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(",")),
            broker_max_poll_records=batch_rows_max,
            broker_commit_interval=commit_interval_s,
            # Until a killed worker's partitions get their next owner; Faust's own default is a minute.
            broker_session_timeout=session_timeout_s,
            broker_heartbeat_interval=session_timeout_s / 5,
            consumer_auto_offset_reset="earliest",
            stream_buffer_maxsize=batches_waiting_max,
            # Faust would create topics with its own defaults; `weir topics create` or the bank makes them.
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_wait_empty=True,
            store="memory://",
            **options,
        )

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_producer, self)

    async def open(self) -> None:
        """Override: connect what the agents need; runs before the worker joins its group."""

    async def on_start(self) -> None:
        """Open the parts; a `WeirError` there ends the process with its one line and its exit code."""
        try:
            await self.open()
        except WeirError as error:
            self.fatal = error
            # Not the error itself: Faust would print its traceback.
            raise SystemExit(error.exit_code) from None
        await super().on_start()

    def warmth(self) -> Warmth:
        """Override: what is at hand of which state; asked at each join, on the consumer's thread."""
        return Warmth()

    async def revoked(self, lost: set[TP]) -> None:
        """Override: finish what is in flight of `lost`; on return it is another's. The rest is read on.

        Nothing of `lost` is handed out any more, and its offsets can be committed until this returns.
        """
        consumer = cast(Any, self.consumer)
        if not await consumer.drained(lost, self.drain_deadline_s):
            self.log.warning("Batches unfinished after %.1f s: they are read again.", self.drain_deadline_s)
        await consumer.commit(lost)

    async def evicted(self, lost: set[TP]) -> None:
        """Override: drop `lost`, which may be another's already; commits of it are refused."""

    async def assigned(self, new: set[TP], kept: set[TP]) -> None:
        """Override: see to it that each of `new` is begun (`BatchConsumer.begin`); do not wait for it here.

        `kept` is read on, and was all the time. The standbys are in `BatchConsumer.told`.
        """
        for tp in sorted(new):
            await cast(Any, self.consumer).begin(tp)

    async def on_stop(self) -> None:
        """Hand the partitions to the other workers while they all decide on, then stop.

        One that gives up or has crashed hands nothing over: its group may be gone, and its thread with it.
        """
        if self._consumer is not None and self.fatal is None and not self.crashed:
            await cast(Any, self.consumer).hand_over(self.drain_deadline_s)
        await super().on_stop()

    def give_up(self, error: BaseException) -> None:
        """End the process after an error that nobody here can mend; its supervisor starts it anew."""
        if self.fatal is None:
            self.fatal = error
            self._crashing = asyncio.ensure_future(self.crash(error))

    def batch_topic(self, name: str) -> Any:
        """A topic whose agents receive `RecordBatch`es."""
        self.batch_topics.add(name)
        return self.topic(name, schema=_BatchSchema(), key_serializer="raw", value_serializer="raw")

    async def batches(self, stream: Any) -> AsyncIterator[TakenBatch]:
        """The batches of a batch topic, each to be finished by whoever takes it."""
        async for event in stream.noack().events():
            message = event.message
            if not cast(Any, self.consumer).holds(message):
                continue
            yield TakenBatch(self, message)

    async def drain(self) -> None:
        """Override: finish what is in flight, for the consumer is about to stop."""
        consumer = cast(Any, self.consumer)
        if not await consumer.drained(consumer.assignment(), self.drain_deadline_s):
            self.log.warning("Batches unfinished after %.1f s: they are read again.", self.drain_deadline_s)
