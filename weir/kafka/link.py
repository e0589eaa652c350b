"""aiokafka's connections, for requests of our own: who leads, who coordinates, and what they say."""

import asyncio
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any, Protocol, TypeVar

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from weir.client.connection import TopicDenied, TopicMissing
from weir.config import KafkaSettings
from weir.kafka import _codes as codes
from weir.kafka._codes import Code, name_of
from weir.kafka._waiting import Backoff, Deadline
from weir.kafka.errors import PartitionMissing, Unavailable, denied
from weir.kafka.protocol import TRANSACTION_VERSION, Call, Place, api_versions
from weir.kafka_options import client_options, closed, connect

# How long the brokers may differ on whether a topic exists, just after it was made.
_MISSING_S = 1.0
_REQUEST_S_MAX = 10.0

Answer = TypeVar("Answer")


class Coordinates(Enum):
    """Whose coordinator."""

    GROUP = CoordinationType.GROUP
    TRANSACTION = CoordinationType.TRANSACTION


class Lost(Exception):
    """No answer; the request may have been carried out."""


class NotSent(Lost):
    """No connection; it was not."""


class _Coded(Protocol):
    @property
    def code(self) -> int: ...


CodedAnswer = TypeVar("CodedAnswer", bound=_Coded)


class Link:
    """The connections of one client.

    Args:
        deadline_s: of what it is used for; a single request gets a third of it, 10 s at most.
    """

    def __init__(self, settings: KafkaSettings, *, client_id: str, deadline_s: float) -> None:
        self.settings = settings
        self.request_timeout_ms = max(1, int(min(_REQUEST_S_MAX, deadline_s / 3) * 1000))
        self._client_id = client_id
        self._client: AIOKafkaClient | None = None
        self._topics: set[str] = set()
        self._coordinators: dict[tuple[Coordinates, str], int] = {}

    @property
    def client(self) -> AIOKafkaClient:
        """aiokafka's client; `start` first."""
        if self._client is None:
            raise RuntimeError("start() first")
        return self._client

    async def start(self) -> None:
        """Connect.

        Raises:
            NeighbourUnavailable, AccessDenied, ConfigError: no broker takes this client.
        """
        client = AIOKafkaClient(
            **client_options(self.settings),
            client_id=self._client_id,
            request_timeout_ms=self.request_timeout_ms,
        )
        await connect(_Starting(client), self.settings)
        self._client = client

    async def stop(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await closed(client.close(), client)

    async def ask(
        self, node: int, call: Call[Answer], deadline: Deadline, *, coordinator: bool = False
    ) -> Answer:
        """One node's answer. A coordinator is asked on a connection of its own, past what a leader works on.

        Raises:
            Lost: there is none.
            BrokerTooOld: the node does not speak it.
        """
        group = ConnectionGroup.COORDINATION if coordinator else ConnectionGroup.DEFAULT
        answer: Answer = await self._send(node, call, deadline, group)
        return answer

    async def _send(self, node: int, request: Any, deadline: Deadline, group: ConnectionGroup) -> Any:
        ready = False
        try:
            async with asyncio.timeout(max(0.0, deadline.left_s())):
                ready = await self.client.ready(node, group=group)
                if ready:
                    return await self.client.send(node, request, group=group)
        except (KafkaError, OSError, TimeoutError) as error:
            raise (Lost if ready else NotSent)(type(error).__name__) from error
        raise NotSent(f"no connection to broker {node}")

    def any_node(self) -> int:
        """Some broker.

        Raises:
            NotSent: none is known.
        """
        node = self.client.get_random_node()
        if node is None:
            raise NotSent("no broker is known")
        return int(node)

    async def ask_any(self, call: Call[CodedAnswer], what: str, deadline: Deadline) -> CodedAnswer:
        """Any broker's answer, asked until it is not one that a retry may change.

        Raises:
            Unavailable: none before the deadline; `what` was to be done.
        """

        async def find() -> int:
            return self.any_node()

        return await self._ask_until(find, call, what, deadline, lambda _: None, None, coordinator=False)

    async def ask_coordinator(
        self,
        kind: Coordinates,
        key: str,
        call: Call[CodedAnswer],
        what: str,
        deadline: Deadline,
        on_lost: Callable[[], None] | None = None,
    ) -> CodedAnswer:
        """The coordinator's answer, asked until it is not one that a retry may change.

        on_lost: called when there was no answer, so that the request may be carried out late.

        Raises:
            Unavailable: none before the deadline; `what` was to be done.
            AccessDenied: this client may not use the group or the transactional id.
        """

        def forget(code: int | None) -> None:
            if code is None or code in codes.STALE_COORDINATOR:
                self._coordinators.pop((kind, key), None)

        async def find() -> int:
            return await self._coordinator(kind, key, deadline)

        return await self._ask_until(find, call, what, deadline, forget, on_lost, coordinator=True)

    async def _ask_until(
        self,
        find: Any,
        call: Call[CodedAnswer],
        what: str,
        deadline: Deadline,
        forget: Callable[[int | None], None],
        on_lost: Callable[[], None] | None,
        *,
        coordinator: bool,
    ) -> CodedAnswer:
        backoff = Backoff()
        while True:
            try:
                answer = await self.ask(await find(), call, deadline, coordinator=coordinator)
            except Lost as lost:
                reason, unanswered = str(lost), True
                forget(None)
                if on_lost is not None and not isinstance(lost, NotSent):
                    on_lost()
            else:
                if answer.code not in codes.RETRIABLE:
                    return answer
                reason, unanswered = name_of(answer.code), False
                forget(answer.code)
            if deadline.passed:
                raise Unavailable(self.settings, what, deadline.waited_s(), reason)
            await backoff.wait(deadline, lost=unanswered)

    async def _coordinator(self, kind: Coordinates, key: str, deadline: Deadline) -> int:
        known = self._coordinators.get((kind, key))
        if known is not None:
            return known
        try:
            async with asyncio.timeout(max(0.0, deadline.left_s())):
                found = int(await self.client.coordinator_lookup(kind.value, key))
        except TransactionalIdAuthorizationFailed as error:
            raise denied(self.settings, f"use transactional id {key}") from error
        except GroupAuthorizationFailedError as error:
            raise denied(self.settings, f"use consumer group {key}") from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise NotSent(type(error).__name__) from error
        if self.client.cluster.broker_metadata(found) is None:
            await self._refresh(deadline)
        self._coordinators[kind, key] = found
        return found

    async def transaction_version(self, deadline: Deadline) -> int:
        """The level that the cluster has finalized; 2 has epochs that change with every transaction."""
        answer = await self.ask_any(api_versions(), "say what it speaks", deadline)
        return answer.levels.get(TRANSACTION_VERSION, 0)

    def leader(self, place: Place) -> int | None:
        """Who leads the partition, as far as is known."""
        found = self.client.cluster.leader_for_partition(TopicPartition(*place))
        return None if found in (None, -1) else int(found)

    async def find_leaders(self, places: Collection[Place], deadline: Deadline) -> None:
        """Ask anew who leads, until each partition has a leader; no topic is created by it.

        Raises:
            TopicMissing, PartitionMissing, TopicDenied: there is no such partition for this client.
            Unavailable: a partition has no leader, or no broker answers.
        """
        topics = {topic for topic, _ in places}
        self._topics |= topics
        # After a connection broke aiokafka asks for these by itself, and forgets all others.
        self.client._topics = set(self._topics)
        backoff, missing_until = Backoff(), Deadline(min(_MISSING_S, deadline.within_s))
        while True:
            reason, unanswered = "a partition has no leader", False
            try:
                wrong = await self._refresh(deadline)
            except Lost as lost:
                reason, unanswered = str(lost), True
            else:
                self._raise_for(wrong, places, missing_until)
                if all(self.leader(place) is not None for place in places):
                    return
            if deadline.passed:
                raise Unavailable(self.settings, "name the partitions' leaders", deadline.waited_s(), reason)
            await backoff.wait(deadline, lost=unanswered)

    def _raise_for(self, wrong: dict[str, int], places: Collection[Place], missing_until: Deadline) -> None:
        for topic, partition in places:
            code = wrong.get(topic, 0)
            if code == Code.TOPIC_AUTHORIZATION_FAILED:
                raise TopicDenied(topic, self.settings)
            if not missing_until.passed:
                continue
            if code in codes.MISSING:
                raise TopicMissing(topic, self.settings)
            known = self.client.cluster.partitions_for_topic(topic) or set()
            if known and partition not in known:
                raise PartitionMissing(topic, partition, len(known))

    async def _refresh(self, deadline: Deadline) -> dict[str, int]:
        """Take in the brokers and the topics' leaders; the topics that are not well, with the code."""
        request = MetadataRequest(sorted(self._topics), allow_auto_topic_creation=False)
        answer = await self._send(self.any_node(), request, deadline, ConnectionGroup.DEFAULT)
        self.client.cluster.update_metadata(answer)
        return {topic: code for code, topic, *_ in answer.topics if code}


class _Starting:
    """An aiokafka client as `connect` wants one."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self.start, self.stop = client.bootstrap, client.close
        # Whose connections are dropped where the brokers say no good-bye.
        self._client = client
