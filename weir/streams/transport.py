"""A transport for Faust whose consumer hands an agent one record batch a partition a fetch.

Faust's own consumer makes a message, two tasks and a lock for each record. Here a fetched partition becomes
one message: its value is the `RecordBatch`, its offset the batch's last. Everything else of Faust (agents,
assignment, timers, tables, sensors, web, command line) is untouched, and topics that were not declared as
batch topics are consumed record by record, as always.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, ClassVar, cast

import aiokafka
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.tuples import ConsumerMessage
from mode import Service
from mode.utils.futures import notify

from weir.client.connection import as_weir
from weir.streams._offsets import PartitionOffsets
from weir.streams.batch import RecordBatch

# How soon a worker that may not join its group hears of it.
_GROUP_CHECK_S = 1.0


class BatchConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, its client opened with Weir's own connection options."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf, app = self.app.conf, cast(Any, self.app)
        has_changelogs = bool(app.tables.changelog_topics)
        self._assignor = (
            app.assignor if conf.table_standby_replicas > 0 or has_changelogs else RoundRobinPartitionAssignor
        )
        return aiokafka.AIOKafkaConsumer(
            **app.kafka_options,
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset=conf.consumer_auto_offset_reset,
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 300) * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=500,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            isolation_level=app.isolation_level,
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
        )

    async def check_group(self) -> None:
        """Raise what membership in the group has met.

        Faust fetches past aiokafka's `getmany`, which would raise it: a worker that may not join its group
        would wait for partitions forever, without a word.
        """
        if self._consumer is not None:
            await self.call_thread(self._check_group, self._consumer)

    async def _check_group(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        consumer._coordinator.check_errors()


class BatchConsumer(driver.Consumer):
    """Hands out record batches, and commits the offset after a batch's last record once it is finished."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches: dict[TP, PartitionOffsets] = {}

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _is_batch(self, tp: TP) -> bool:
        return tp.topic in cast(Any, self.app).batch_topics

    async def getmany(
        self,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> AsyncIterator[tuple[TP, Message]]:
        """One message a batch partition, then the records of the other topics one by one."""
        try:
            records, active = await self._wait_next_records(timeout)
        except KafkaError as error:
            self._give_up_on(error)
            return
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            # A rebalance began while the fetch was under way: what it brought is read again afterwards.
            await self.perform_seek()
            return
        for tp, message in self._messages(records):
            # An await of the caller may have let a rebalance in: the rest is not ours any more.
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if active is None or tp in active or tp in self._buffered_partitions:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                if self._is_batch(tp):
                    self._batches.setdefault(tp, PartitionOffsets()).deliver(id(message), message.offset + 1)
                yield tp, message

    @Service.timer(_GROUP_CHECK_S)
    async def _watch_group(self) -> None:
        try:
            await cast(BatchConsumerThread, self._thread).check_group()
        except KafkaError as error:
            self._give_up_on(error)

    def _give_up_on(self, error: KafkaError) -> None:
        """End the worker for what waiting does not mend; say the rest, and try again."""
        app = cast(Any, self.app)
        topic = next((name for name in error.args if name in app.batch_topics), min(app.batch_topics))
        said = as_weir(error, app.kafka_settings, topic)
        if said.retriable:
            self.log.warning("%s", said)
        else:
            app.give_up(said)

    def _messages(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Message]]:
        singles: dict[TP, list[Any]] = {}
        for tp, fetched in records.items():
            if not fetched:
                continue
            if self._is_batch(tp):
                yield tp, self._batch_message(tp, fetched)
            else:
                singles[tp] = fetched
        for tp, record in self.scheduler.iterate(singles):
            yield tp, self._to_message(tp, record)

    def _batch_message(self, tp: TP, fetched: list[Any]) -> ConsumerMessage:
        batch = RecordBatch(tp.topic, tp.partition, fetched)
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            batch.offset_last,
            fetched[-1].timestamp / 1000,
            fetched[-1].timestamp_type,
            None,
            None,
            cast(Any, batch),
            None,
            None,
            None,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    def ack(self, message: Message) -> bool:
        """Faust's own acknowledgement; of a batch it says only that nobody holds the message any more.

        Faust also acknowledges what its streams skip in a rebalance, so it must not move an offset here.
        """
        if not self._is_batch(message.tp):
            return bool(super().ack(message))
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return True

    def finish(self, message: Message) -> bool:
        """The batch's results are published: its offset goes with the next commit.

        False when the partition was revoked meanwhile; then its next owner decides the batch again.
        """
        offsets = self._batches.get(message.tp)
        known = offsets is not None and offsets.ack(id(message))
        if known:
            self._n_acked += 1
        return known

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        yield from super()._filter_tps_with_pending_acks(topics)
        for tp in list(self._batches):
            if topics is None or tp in topics or tp.topic in topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        if not self._is_batch(tp):
            return super()._new_offset(tp)
        offsets = self._batches.get(tp)
        return offsets.committable if offsets else None

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # A batch's last offset is always further than one: that is no gap.
        if not self._is_batch(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    async def seek(self, partition: TP, offset: int) -> None:
        """Read on from `offset`; what was handed out before is nobody's to commit any more."""
        self._batches.pop(partition, None)
        await super().seek(partition, offset)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Finish and commit what is in flight, then forget it: the next owner starts at the commit."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._batches.pop(tp, None)

    async def wait_empty(self) -> None:
        """Let the agents finish the batches that they hold, within the drain deadline, then commit."""
        await cast(Any, self.app).drain()
        await self.commit_and_end_transactions()


class BatchFaustProducer(driver.Producer):
    """Faust's own producer (agents' replies, changelogs), with Weir's connection options."""

    def _settings_auth(self) -> dict[str, Any]:
        options = cast(Any, self.app).kafka_options
        return {name: value for name, value in options.items() if name != "bootstrap_servers"}


class BatchTransport(driver.Transport):
    """The transport of `weir.streams.BatchApp`."""

    Consumer: ClassVar[type] = BatchConsumer
    Producer: ClassVar[type] = BatchFaustProducer


def partitions_of(topic: str, assigned: Iterable[TP]) -> list[int]:
    """The partitions of one topic among `assigned`, sorted."""
    return sorted(tp.partition for tp in assigned if tp.topic == topic)
