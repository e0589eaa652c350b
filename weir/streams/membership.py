"""A consumer that reads on while its group rebalances: only what goes away stops, nothing is sought again.

aiokafka's own coordinator gives everything up before it joins (the eager way). This one joins with what it
holds and learns afterwards what it loses:

    reading ──rebalance──▶ joining (reads and commits on) ──synced──▶ lost: revoked, then joins again
       ▲                                                              kept: untouched
       └────────────────────────────────────────────────────────────  new: closed until begun

The broker takes commits of the last generation until every member has joined, of the new one from then on.
With a group of another protocol, or once the group has put this member out, everything goes at once.

Runs on the loop of the consumer's thread. Source: KIP-429; aiokafka.consumer.group_coordinator, 0.14.
"""

import asyncio
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import aiokafka
from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import KafkaError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest

from weir.kafka_options import closed

# While a partition is on its way, every member looks for the round that gives it to its next reader.
_UNSETTLED_HEARTBEAT_MS = 25
# Between two tries to join; each one is an answer of the broker away from the next.
_JOIN_AGAIN_S = 0.02
# How long a member that ends waits for the broker to note it; otherwise its session tells.
_LEAVE_S = 2.0
_CANCEL_AGAIN_S = 0.1

_in_commit: ContextVar[bool] = ContextVar("in_commit", default=False)


@dataclass(frozen=True, slots=True)
class GroupMember:
    """Under what a commit is taken: KIP-447's group metadata."""

    generation: int
    member_id: str
    instance_id: str | None


class Reader(Protocol):
    """Who is told; each call is awaited before the group goes on."""

    async def revoked(self, lost: frozenset[TopicPartition]) -> None:
        """Still ours to commit until this returns; then another gets them."""

    async def evicted(self, lost: frozenset[TopicPartition]) -> None:
        """Perhaps another's already: no commit of these is taken any more."""

    async def assigned(self, now: frozenset[TopicPartition], settled: bool) -> None:
        """All that is ours from now on; what is new is closed."""

    def renumbered(self) -> None:
        """Commits are taken under another generation from now on, or under none."""


class CooperativeCoordinator(GroupCoordinator):  # type: ignore[misc]  # aiokafka has no types
    """One member; see the module.

    Args:
        reader: told of what goes and comes.
    """

    def __init__(self, *args: Any, reader: Reader, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reader = reader
        self._own_protocol = self._assignors[0].name
        self._calm_heartbeat_ms: int = options["heartbeat_interval_ms"]
        self._joining = False
        self.held: frozenset[TopicPartition] = frozenset()
        self.held_since = OffsetCommitRequest.DEFAULT_GENERATION_ID
        self._held_cooperatively = True
        # Told by the assignor, just before an assignment takes effect.
        self.unsettled = False
        self.leaving = False
        # How often another round was asked for, and how much of that the last join could know of.
        self._asked, self._heard = 0, 0
        self.member: GroupMember | None = None

    def _become(self, member: GroupMember | None) -> None:
        if member != self.member:
            self.member = member
            self._reader.renumbered()

    # -- joining -------------------------------------------------------------------------------------------

    async def _on_join_prepare(self, previous_assignment: Any) -> None:
        self._group_subscription = None
        if not self.held:
            return
        if self.generation == OffsetCommitRequest.DEFAULT_GENERATION_ID:
            lost, self.held = self.held, frozenset()
            await self._reader.evicted(lost)
        elif not self._held_cooperatively:
            # The others' protocol gives everything away anew.
            await self._reader.revoked(self.held)
            self.held = frozenset()

    async def _do_rejoin_group(self, subscription: Any) -> bool:
        # One assignor here, all of them in `_send_req`: aiokafka would join once for each.
        join = CoordinatorGroupRebalance(
            self,
            self.group_id,
            self.coordinator_id,
            subscription,
            self._assignors[:1],
            self._session_timeout_ms,
            self._retry_backoff_ms,
        )
        self._joining = True
        try:
            answer = await join.perform_group_join()
        finally:
            self._joining = False
        if not subscription.active:
            return False
        if answer is None:
            await asyncio.sleep(_JOIN_AGAIN_S)
            return False
        await self._on_join_complete(self.generation, self.member_id, *answer)
        return True

    async def _send_req(self, request: Any) -> Any:
        if isinstance(request, LeaveGroupRequest):
            return await self._leave(request)
        joins, asked = isinstance(request, JoinGroupRequest), self._asked
        if joins:
            topics = self._subscription.topics
            request._group_protocols = [(a.name, a.metadata(topics).encode()) for a in self._assignors]
        answer = await super()._send_req(request)
        if joins and not answer.error_code:
            self._heard = asked
            if answer.group_protocol == self._own_protocol:
                # Nobody is given what we hold before we say so: it is ours under the new generation already.
                self._become(GroupMember(answer.generation_id, answer.member_id, self._group_instance_id))
        return answer

    async def _on_join_complete(self, generation: int, member_id: str, protocol: str, data: bytes) -> None:
        assignor = self._lookup_assignor(protocol)
        assignment = ConsumerProtocol.ASSIGNMENT.decode(data)
        cooperative, self.unsettled = protocol == self._own_protocol, False
        assignor.on_assignment(assignment)
        now = frozenset(assignment.partitions())
        self._heartbeat_interval_ms = _UNSETTLED_HEARTBEAT_MS if self.unsettled else self._calm_heartbeat_ms
        # Now, not afterwards: to let something go may take longer than a session.
        self._start_heartbeat_task()
        lost = self.held - now
        if lost:
            await (self._reader.revoked if cooperative else self._reader.evicted)(lost)
            self.held -= lost
            if (self.generation, self.member_id) != (generation, member_id):
                # Put out meanwhile: the next round begins with nothing.
                return
        await self._take(now)
        self.held_since, self._held_cooperatively = generation, cooperative
        self._become(GroupMember(generation, member_id, self._group_instance_id))
        # aiokafka forgets what it was asked while it joined: a worker that is to leave would keep all it has.
        heard = self._heard == self._asked
        await self._reader.assigned(now, heard and not self.unsettled)
        if not heard or (lost and cooperative):
            self.request_rejoin()

    async def _take(self, now: frozenset[TopicPartition]) -> None:
        """Fetch these from now on: those that stay where they are, the new ones once they are begun."""
        subscription = self._subscription.subscription
        before = subscription.assignment
        if before is None or not before.active or before.tps != now:
            self._subscription.assign_from_subscribed(list(now))
            for tp in now:
                if tp in self.held and (kept := before.state_value(tp)) is not None:
                    kept._assignment = subscription.assignment
                    subscription.assignment._tp_state[tp] = kept
        for tp in now - self.held:
            state = subscription.assignment.state_value(tp)
            # A position, or every other partition of its broker would wait until it has one.
            state.seek(0)
            state.pause()
        self.held = now
        await self._stop_commit_offsets_refresh_task()
        self.start_commit_offsets_refresh_task(subscription.assignment)

    # -- being a member ------------------------------------------------------------------------------------

    async def _do_commit_offsets(self, assignment: Any, offsets: Any) -> None:
        _in_commit.set(True)
        try:
            await super()._do_commit_offsets(assignment, offsets)
        finally:
            _in_commit.set(False)

    def reset_generation(self) -> None:
        """The broker does not know this member any more."""
        if self._joining and _in_commit.get():
            # The commit was too late for its generation; the join that is under way tells what we are.
            return
        self._become(None)
        # What is held is not ours any more: `_on_join_prepare` says so.
        self._performed_join_prepare = False
        super().reset_generation()

    async def close(self) -> None:
        """Leave the group at once.

        Neither the join of another member is waited for, which may take as long as a rebalance may, nor the
        reader, which a crash may have ended.
        """
        if self._closing.done():
            return
        self._closing.set_result(None)
        while not self._coordination_task.done():
            # Again: while it waits for a task that it has cancelled itself, it takes this for its end.
            self._coordination_task.cancel()
            await asyncio.wait([self._coordination_task], timeout=_CANCEL_AGAIN_S)
        await self._stop_heartbeat_task()
        await self._stop_commit_offsets_refresh_task()
        await self._maybe_leave_group()

    async def _leave(self, request: LeaveGroupRequest) -> Any:
        """Say so past a join that is under way: the broker answers the requests of a connection in turn."""
        if self.coordinator_id is None:
            raise KafkaError("no coordinator is known")
        try:
            async with asyncio.timeout(_LEAVE_S):
                return await self._client.send(self.coordinator_id, request, group=ConnectionGroup.DEFAULT)
        except TimeoutError as error:
            raise KafkaError("no answer") from error

    async def rejoin(self, leaving: bool) -> None:
        """Join again with what there is to say now; `leaving` gives everything away."""
        self.leaving = self.leaving or leaving
        self._asked += 1
        self.request_rejoin()


class CooperativeConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's consumer as a member that reads on while its group rebalances."""

    def __init__(self, *args: Any, reader: Reader, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reader = reader
        self._coordinator: Any = None

    async def start(self) -> None:
        """Connect; the group is joined once topics are subscribed to."""
        await super().start()
        eager = self._coordinator
        await eager.close()
        self._client.cluster.remove_listener(eager._handle_metadata_update)
        self._coordinator = CooperativeCoordinator(
            self._client,
            self._subscription,
            reader=self._reader,
            group_id=self._group_id,
            group_instance_id=self._group_instance_id,
            heartbeat_interval_ms=self._heartbeat_interval_ms,
            session_timeout_ms=self._session_timeout_ms,
            retry_backoff_ms=self._retry_backoff_ms,
            enable_auto_commit=False,
            assignors=self._partition_assignment_strategy,
            exclude_internal_topics=self._exclude_internal_topics,
            rebalance_timeout_ms=self._rebalance_timeout_ms,
            max_poll_interval_ms=self._max_poll_interval_ms,
        )

    async def stop(self) -> None:
        """Leave the group, then disconnect."""
        await closed(super().stop(), self._client)

    @property
    def membership(self) -> CooperativeCoordinator:
        """The member that this consumer is."""
        coordinator: CooperativeCoordinator = self._coordinator
        return coordinator

    async def committed_offset(self, tp: TopicPartition) -> int | None:
        """What the group last committed, be it that a transaction is about to change it."""
        found = (await self._coordinator.fetch_committed_offsets([tp])).get(tp)
        return None if found is None else int(found.offset)

    def begin(self, tp: TopicPartition, offset: int | None) -> bool:
        """Fetch a new partition from `offset` on, None: from where the consumer begins with none.

        Returns: False when the partition is not ours (any more).
        """
        if (state := self._state(tp)) is None:
            return False
        if offset is None:
            state.await_reset(OffsetResetStrategy.from_str(self._auto_offset_reset))
        else:
            state.seek(offset)
        state.resume()
        return True

    def move_to(self, tp: TopicPartition, offset: int) -> None:
        """Read on from `offset`, if the partition is ours."""
        if (state := self._state(tp)) is not None:
            state.seek(offset)

    def _state(self, tp: TopicPartition) -> Any:
        subscription = self._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        return None if assignment is None else assignment.state_value(tp)


def places(tps: Iterable[TopicPartition]) -> frozenset[tuple[str, int]]:
    """As plain pairs of topic and partition."""
    return frozenset((tp.topic, tp.partition) for tp in tps)
