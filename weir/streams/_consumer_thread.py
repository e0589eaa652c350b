"""The thread that keeps up the group and fetches records, and its way to and from the main thread."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import aiokafka
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.threads import MethodQueue

from weir.streams.assignor import Assignment, WarmAssignor, Warmth
from weir.streams.membership import CooperativeConsumer, GroupMember, places

# How soon a member learns that another came or went; the group waits for the last of them.
_HEARTBEAT_S = 0.5
# The broker holds a fetch that finds nothing this long, and that of a partition that comes waits behind it.
_FETCH_WAIT_S = 0.1


class _Main(Protocol):
    """The consumer in the main thread: `weir.streams.transport.BatchConsumer`."""

    _method_queue: MethodQueue
    told: Assignment
    renumbered: asyncio.Event

    async def let_go(self, lost: set[TP], still_ours: bool) -> None: ...

    async def take(self, now: set[TP], settled: bool) -> None: ...


class Fetched(dict[TP, list[Any]]):
    """Records by partition, and the last of the consumer's moves that each was fetched after."""

    moves: Mapping[TP, int]


class BatchConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, its client opened with Weir's own connection options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._moves: dict[TP, int] = {}

    @property
    def cooperative(self) -> bool:
        """Whether kept partitions are read through a rebalance: Faust's tables know only the eager way."""
        return not self.app.tables.changelog_topics

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf, app = self.app.conf, cast(Any, self.app)
        # Faust tells its tables by this object what is theirs.
        self._assignor = app.assignor
        # The members of before this version know only these two; the group takes what all of them know.
        others = [app.assignor, RoundRobinPartitionAssignor]
        options: dict[str, Any] = {"partition_assignment_strategy": others[:1]}
        kind = aiokafka.AIOKafkaConsumer
        if self.cooperative:
            warm = WarmAssignor(
                self._warmth,
                self._told,
                standby_replicas=app.standby_replicas,
                lag_max=app.standby_lag_max,
            )
            options = {"partition_assignment_strategy": [warm, *others], "reader": self}
            kind = CooperativeConsumer
        return kind(
            **options,
            **app.kafka_options,
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            enable_auto_commit=False,
            auto_offset_reset=conf.consumer_auto_offset_reset,
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 300) * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=int(_FETCH_WAIT_S * 1000),
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(min(conf.broker_heartbeat_interval, _HEARTBEAT_S) * 1000),
            isolation_level=app.isolation_level,
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
        )

    # -- asked and told by the group, on this thread -------------------------------------------------------

    def _warmth(self) -> Warmth:
        member = cast(CooperativeConsumer, self._consumer).membership
        said: Warmth = cast(Any, self.app).warmth()
        return replace(said, held=places(member.held), generation=member.held_since, leaving=member.leaving)

    def _told(self, assignment: Assignment) -> None:
        cast(CooperativeConsumer, self._consumer).membership.unsettled = assignment.unsettled
        cast(_Main, self.consumer).told = assignment

    async def revoked(self, lost: frozenset[TopicPartition]) -> None:
        """See `weir.streams.membership.Reader`."""
        await self._in_main(cast(_Main, self.consumer).let_go, _tps(lost), True)

    async def evicted(self, lost: frozenset[TopicPartition]) -> None:
        """See `weir.streams.membership.Reader`."""
        await self._in_main(cast(_Main, self.consumer).let_go, _tps(lost), False)

    async def assigned(self, now: frozenset[TopicPartition], settled: bool) -> None:
        """See `weir.streams.membership.Reader`."""
        await self._in_main(cast(_Main, self.consumer).take, _tps(now), settled)

    def renumbered(self) -> None:
        """See `weir.streams.membership.Reader`."""
        self.parent_loop.call_soon_threadsafe(cast(_Main, self.consumer).renumbered.set)

    async def _in_main(self, call: Any, *args: Any) -> None:
        queue = cast(_Main, self.consumer)._method_queue
        await (await queue.call(self.thread_loop.create_future(), call, *args))

    # -- asked by the consumer, from the main thread -------------------------------------------------------

    @property
    def member(self) -> GroupMember | None:
        """See `BatchConsumer.group_member`."""
        if not isinstance(self._consumer, CooperativeConsumer) or self._consumer._coordinator is None:
            return None
        return self._consumer.membership.member

    async def begin(self, tp: TP, offset: int | None, move: int) -> bool:
        """See `CooperativeConsumer.begin`; `move` counts the consumer's moves."""
        return bool(await self.call_thread(self._begin, tp, offset, move))

    async def _begin(self, tp: TP, offset: int | None, move: int) -> bool:
        consumer = cast(CooperativeConsumer, self._consumer)
        if offset is None:
            offset = await consumer.committed_offset(tp)
        self._moves[tp] = move
        return consumer.begin(tp, offset)

    async def move_to(self, tp: TP, offset: int, move: int) -> None:
        """Read on from `offset`: on this thread, for the fetcher moves the position as well."""
        await self.call_thread(self._move_to, tp, offset, move)

    async def _move_to(self, tp: TP, offset: int, move: int) -> None:
        self._moves[tp] = move
        cast(CooperativeConsumer, self._consumer).move_to(tp, offset)

    async def _fetch_records(self, *args: Any, **options: Any) -> Fetched:
        found = Fetched(await super()._fetch_records(*args, **options))
        found.moves = {tp: self._moves[tp] for tp in found if tp in self._moves}
        return found

    async def rejoin(self, leaving: bool) -> None:
        """Ask the group for another round."""
        await self.call_thread(cast(CooperativeConsumer, self._ensure_consumer()).membership.rejoin, leaving)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing for a cooperative member: Faust's look at a partition fails if that goes in the moment."""
        if not self.cooperative:
            super().verify_event_path(now, tp)

    async def check_group(self) -> None:
        """Raise what membership in the group has met.

        Faust fetches past aiokafka's `getmany`, which would raise it: a worker that may not join its group
        would wait for partitions forever, without a word.
        """
        if self._consumer is not None:
            await self.call_thread(self._check_group, self._consumer)

    async def _check_group(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        consumer._coordinator.check_errors()


def _tps(found: Iterable[TopicPartition]) -> set[TP]:
    return {TP(tp.topic, tp.partition) for tp in found}
