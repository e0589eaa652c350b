"""A transport for Faust whose consumer hands an agent one record batch a partition a fetch.

Faust's own consumer makes a message, two tasks and a lock for each record. Here a fetched partition becomes
one message: its value is the `RecordBatch`, its offset the batch's last. Everything else of Faust (agents,
timers, tables, sensors, web, command line) is untouched, and topics that were not declared as batch topics
are consumed record by record, as always.

An application without Faust tables is a cooperative member of its group (`weir.streams.membership`): it reads
on through a rebalance, and its app is told what goes (`revoked`, `evicted`) and what comes (`assigned`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, cast

from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, Message
from faust.types.tuples import ConsumerMessage
from mode import Service
from mode.utils.futures import notify

from weir.client.connection import as_weir
from weir.streams._consumer_thread import BatchConsumerThread, Fetched
from weir.streams._offsets import PartitionOffsets
from weir.streams.assignor import Assignment
from weir.streams.batch import RecordBatch
from weir.streams.membership import GroupMember

# How soon a worker that may not join its group hears of it.
_GROUP_CHECK_S = 1.0


class BatchConsumer(driver.Consumer):
    """Hands out record batches, and commits the offset after a batch's last record once it is finished."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches: dict[TP, PartitionOffsets] = {}
        self._held: set[TP] = set()
        # Held, and not handed out before it is begun.
        self._closed: set[TP] = set()
        # How often a partition was moved; what was fetched before its last move is dropped.
        self._move, self._moves = 0, dict[TP, int]()
        self._active_changed, self._one_done = asyncio.Event(), asyncio.Event()
        self._settled, self.renumbered = asyncio.Event(), asyncio.Event()
        self.told = Assignment()

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _batch_thread(self) -> BatchConsumerThread:
        return cast(BatchConsumerThread, self._thread)

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
        moves = records.moves if isinstance(records, Fetched) else {}
        for tp, message in self._messages(records):
            # An await of the caller may have let a rebalance in: the rest is not ours any more.
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if moves.get(tp) != self._moves.get(tp):
                continue
            if active is None or tp in active or tp in self._buffered_partitions:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                if self._is_batch(tp):
                    self._batches.setdefault(tp, PartitionOffsets()).deliver(id(message), message.offset + 1)
                yield tp, message

    async def _wait_next_records(
        self,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> tuple[Any, set[TP] | None]:
        # Faust sleeps a second when there is nothing to read, and what comes meanwhile waits.
        if self.flow_active and not self.app.client_only and not self._get_active_partitions():
            self._active_changed.clear()
            await self.wait_first(self._active_changed.wait(), timeout=timeout)
            if not self._get_active_partitions():
                return {}, set()
        return cast(tuple[Any, set[TP] | None], await super()._wait_next_records(timeout))

    @Service.timer(_GROUP_CHECK_S)
    async def _watch_group(self) -> None:
        try:
            await self._batch_thread.check_group()
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
        batches: list[tuple[TP, list[Any]]] = []
        for tp, fetched in records.items():
            if not fetched:
                continue
            if self._is_batch(tp):
                batches.append((tp, fetched))
            else:
                singles[tp] = fetched
        for place, (tp, fetched) in enumerate(batches, 1):
            yield tp, self._batch_message(tp, fetched, place < len(batches))
        for tp, record in self.scheduler.iterate(singles):
            yield tp, self._to_message(tp, record)

    def _batch_message(self, tp: TP, fetched: list[Any], more_follow: bool) -> ConsumerMessage:
        batch = RecordBatch(tp.topic, tp.partition, fetched, more_follow)
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
        self._one_done.set()
        return True

    def finish(self, message: Message) -> bool:
        """The batch's results are published: its offset goes with the next commit.

        False when the partition was revoked meanwhile; then its next owner decides the batch again.
        """
        offsets = self._batches.get(message.tp)
        known = offsets is not None and offsets.ack(id(message))
        if known:
            self._n_acked += 1
        self._one_done.set()
        return known

    def holds(self, message: Message) -> bool:
        """Whether the batch still counts: its partition is ours and was not moved since."""
        offsets = self._batches.get(message.tp)
        return offsets is not None and offsets.knows(id(message))

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what is finished by now.

        Faust is content with a commit that is under way; what was finished since that began would be left to
        the partition's next owner to repeat.
        """
        while await self.maybe_wait_for_commit_to_finish():
            continue
        return bool(await super().commit(topics, start_new_transaction))

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        yield from super()._filter_tps_with_pending_acks(topics)
        for tp in list(self._batches):
            if topics is None or tp in topics or tp.topic in topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        if not self._is_batch(tp):
            return super()._new_offset(tp)
        if not cast(Any, self.app).commits_offsets:
            return None
        offsets = self._batches.get(tp)
        return offsets.committable if offsets else None

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # A batch's last offset is always further than one: that is no gap.
        if not self._is_batch(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    # -- partitions come and go ----------------------------------------------------------------------------

    def group_member(self) -> GroupMember | None:
        """Under what offsets may be committed now (KIP-447); None while this worker is no member.

        Any thread may ask. In a rebalance it changes once, as soon as the broker takes only the new one.
        """
        return self._batch_thread.member

    async def next_group_member(self, refused: GroupMember, deadline_s: float) -> GroupMember | None:
        """What to commit under, once the broker has refused a member that was right when it was asked for.

        In a rebalance the new generation is known here an answer later than there. None: no member any more,
        or still the refused one when the deadline passed.
        """
        ends = time.monotonic() + deadline_s
        while self.group_member() == refused:
            self.renumbered.clear()
            try:
                await asyncio.wait_for(self.renumbered.wait(), max(ends - time.monotonic(), 0))
            except TimeoutError:
                return None
        return self.group_member()

    async def let_go(self, lost: set[TP], still_ours: bool) -> None:
        """Hand nothing of `lost` out any more, have the app finish or drop it, forget it."""
        app = cast(Any, self.app)
        self._close(lost)
        self._drop_waiting(lost)
        await (app.revoked if still_ours else app.evicted)(set(lost))
        self._held -= lost
        self._closed -= lost
        for tp in lost:
            for table in (self._gap, self._acked, self._acked_index, self._read_offset):
                table.pop(tp, None)
            self._committed_offset.pop(tp, None)
            self._batches.pop(tp, None)

    async def take(self, now: set[TP], settled: bool) -> None:
        """All that is ours; what is new stays closed until the app begins it."""
        app = cast(Any, self.app)
        new, first = now - self._held, app._assignment is None
        kept = now & self._held
        self._held = set(now)
        self._closed |= new
        self._close(new)
        app.on_rebalance_start()
        if first:
            # Faust's own start: its agents, its recovery of nothing, its fetcher.
            await super().on_partitions_assigned(now, app.consumer_generation_id)
        else:
            app._update_assignment(now)
            await app.topics.on_partitions_assigned(now)
            app.tables.on_actives_ready()
            app.tables.on_standbys_ready()
            app.on_rebalance_return()
            app.on_rebalance_end()
        if not app.should_stop:
            await app.assigned(new, kept)
        if settled:
            self._settled.set()

    async def begin(self, tp: TP, offset: int | None = None) -> bool:
        """Hand a new partition out: from `offset`, or from the group's commit, or else from its beginning.

        Returns: False when it is not ours (any more).
        """
        if tp not in self._closed:
            return False
        self._closed.discard(tp)
        move = self._begin_move(tp)
        self._read_offset[tp] = self._committed_offset[tp] = offset or None
        self.resume_partitions({tp})
        return await self._batch_thread.begin(tp, offset, move)

    async def drained(self, tps: Collection[TP], deadline_s: float) -> bool:
        """Wait until nothing of `tps` that was handed out is unfinished; False when the deadline passed."""
        ends = time.monotonic() + deadline_s
        while self._unfinished(tps):
            self._one_done.clear()
            try:
                await asyncio.wait_for(self._one_done.wait(), max(ends - time.monotonic(), 0))
            except TimeoutError:
                return False
        return True

    async def rejoin(self) -> None:
        """Ask the group for another round: something that this worker said when it joined has changed."""
        await self._batch_thread.rejoin(False)

    async def hand_over(self, deadline_s: float) -> bool:
        """Give every partition to the other members while the group goes on, before a stop.

        Returns: False when there is nobody to take them, or the deadline passed.
        """
        if not self._batch_thread.cooperative or self.group_member() is None:
            return False
        self._settled.clear()
        try:
            async with asyncio.timeout(deadline_s):
                await self._batch_thread.rejoin(True)
                await self._settled.wait()
        except TimeoutError:
            return False
        return not self._held

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Hand out again, save what was not begun yet."""
        super().resume_partitions(set(tps) - self._closed)
        self._active_changed.set()

    def on_buffer_drop(self, tp: TP) -> None:
        """An agent has room again."""
        super().on_buffer_drop(tp)
        self._active_changed.set()

    def _close(self, tps: set[TP]) -> None:
        self.pause_partitions(tps)
        self._buffered_partitions -= tps
        for tp in tps:
            self._begin_move(tp)

    def _begin_move(self, tp: TP) -> int:
        """What is fetched before the thread has made this move is dropped from now on."""
        self._move += 1
        self._moves[tp] = self._move
        return self._move

    def _drop_waiting(self, tps: set[TP]) -> None:
        """Take out of the agents' queues what none has taken: the next owner reads it."""
        for channel in self.app.topics:
            waiting = cast(Any, channel.queue)._queue
            for event in [event for event in waiting if event.message.tp in tps]:
                waiting.remove(event)
                if (offsets := self._batches.get(event.message.tp)) is not None:
                    offsets.withdraw(id(event.message))

    def _unfinished(self, tps: Collection[TP]) -> bool:
        return any(tp in self._batches and self._batches[tp].in_flight for tp in tps) or any(
            message.tp in tps and not message.acked for message in self._unacked_messages
        )

    async def perform_seek(self) -> None:
        """Back to what was committed; a cooperative member was never moved."""
        if not self._batch_thread.cooperative:
            await super().perform_seek()

    async def seek(self, partition: TP, offset: int) -> None:
        """Read on from `offset`; what was handed out before is nobody's to commit any more."""
        self._batches.pop(partition, None)
        await super().seek(partition, offset)

    async def _seek(self, partition: TP, offset: int) -> None:
        if self._batch_thread.cooperative:
            await self._batch_thread.move_to(partition, offset, self._begin_move(partition))
        else:
            await super()._seek(partition, offset)

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
