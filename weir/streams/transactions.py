"""Exactly-once over real brokers: lanes made of `weir.kafka`'s producers, and the group's offsets."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from aiokafka.admin import AIOKafkaAdminClient

from weir.client.connection import one_line
from weir.config import KafkaSettings
from weir.kafka.errors import NotMember, OffsetsPending, TransactionAborted
from weir.kafka.fencing import fence
from weir.kafka.offsets import stable_offsets
from weir.kafka.producer import Stage, TransactionalProducer
from weir.kafka.protocol import GroupMember
from weir.kafka.records import AnyOutput
from weir.kafka_options import client_options, closed, connect
from weir.obs.log import get_logger
from weir.streams.exactly_once import ExactlyOnce
from weir.streams.ports import Delivery, Place

log = get_logger("weir.streams.transactions")

LANES = 2
# An owner that lives has ended its transactions before it gave a partition away; longer is a dead one.
_PENDING_S = 0.5
_UNKNOWN_MEMBER = 25
# A rebalance that takes longer has put this worker out.
_NEXT_MEMBER_S = 1.0
# How long a group's members are believed to be those that it had.
_MEMBERS_S = 5.0


class Membership(Protocol):
    """What a group says of its member: `weir.streams.membership.GroupMember`."""

    @property
    def generation(self) -> int:
        """Of the group."""

    @property
    def member_id(self) -> str:
        """As the coordinator named it."""

    @property
    def instance_id(self) -> str | None:
        """Of a static member."""


class Memberships(Protocol):
    """What this worker is in its group: `weir.streams.source.BatchSource`."""

    def member(self) -> Membership | None:
        """Under what offsets may be committed now; None while it is no member."""

    async def next_member(self, refused: Any, deadline_s: float) -> Membership | None:
        """What comes after a membership that the broker has refused; None when nothing came."""


class ProducerLane:
    """One transactional producer as a lane of `weir.streams.exactly_once.ExactlyOnce`.

    Args:
        group: the consumer group.
        membership: under what offsets may be committed now, and under what next.
        owner: written beside each offset.
    """

    def __init__(
        self,
        producer: TransactionalProducer,
        group: str,
        membership: "Memberships",
        owner: str,
    ) -> None:
        self._producer, self._group, self._membership, self._owner = producer, group, membership, owner

    async def start(self) -> bool:
        """Connect; after a failure, end what is open: a commit that was asked for is asked for again.

        Returns: whether that commit has been done.
        """
        match self._producer.stage:
            case Stage.NEW:
                await self._producer.start()
            case Stage.COMMITTING:
                try:
                    await self._producer.commit()
                    return True
                except TransactionAborted:
                    await self._producer.abort()
            case _:
                await self._producer.abort()
        return False

    async def produce(self, outputs: Sequence[AnyOutput]) -> None:
        """Return when all is acknowledged."""
        await self._producer.produce(outputs)

    async def send_offsets(self, offsets: Mapping[Place, int]) -> None:
        """Add the group's offsets under the generation that this worker is in.

        Raises:
            NotMember: the group has gone on without this worker.
        """
        if not offsets:
            return None
        named = {place: (offset, self._owner) for place, offset in offsets.items()}
        member = self._membership.member()
        while member is not None:
            asked = GroupMember(self._group, member.generation, member.member_id, member.instance_id)
            try:
                return await self._producer.send_offsets(asked, named)
            except NotMember:
                # In a rebalance the broker has the new generation an answer sooner than this worker.
                member = await self._membership.next_member(member, _NEXT_MEMBER_S)
        raise NotMember(self._group, _UNKNOWN_MEMBER)

    async def commit(self) -> None:
        """Return when the transaction is decided."""
        await self._producer.commit()

    async def stop(self) -> None:
        """Disconnect."""
        await self._producer.stop()


class GroupOffsets:
    """What the group has committed, once nothing can change it; an owner that is gone is fenced meanwhile.

    Args:
        name: this worker's own, as `owner_name` takes it from an offset's metadata.
    """

    def __init__(self, settings: KafkaSettings, group: str, name: str) -> None:
        self._settings, self._group, self._name = settings, group, name
        self._fenced: set[str] = set()
        self._members: set[str] = set()
        self._members_at_s = float("-inf")

    async def __call__(self, places: Sequence[Place]) -> Mapping[Place, int | None]:
        """Each place's offset.

        Raises:
            OffsetsPending: an owner that lives has a transaction open on one; ask again.
        """
        if not places:
            return {}
        try:
            found = await self._stable(places)
        except OffsetsPending:
            await asyncio.sleep(_PENDING_S)
            try:
                found = await self._stable(places)
            except OffsetsPending:
                for owner in await self._last_owners(places):
                    await self._fence(owner)
                raise
        for owner in {owner for _, owner in found.values()}:
            await self.take_over(owner)
        return {place: offset for place, (offset, _) in found.items()}

    async def take_over(self, owner: str) -> None:
        """Abort what the last owner left open, if it has left the group: readers need not wait for it.

        Its offsets may not be part of what it left, so that these alone would not show it.
        """
        name = owner_name(owner)
        if not name or name == self._name or owner in self._fenced:
            return
        if name not in await self._member_names():
            await self._fence(owner)

    async def _member_names(self) -> set[str]:
        if time.monotonic() - self._members_at_s > _MEMBERS_S:
            admin = await self._admin()
            try:
                with one_line(self._settings, self._group):
                    (answer,) = await admin.describe_consumer_groups([self._group])
                (group,) = answer.to_object()["groups"]
                self._members = {member["client_id"] for member in group["members"]}
                self._members_at_s = time.monotonic()
            finally:
                await closed(admin.close(), admin._client)
        return self._members

    async def _stable(self, places: Sequence[Place]) -> dict[Place, tuple[int | None, str]]:
        return await stable_offsets(self._settings, self._group, places, client_id=self._name)

    async def _fence(self, owner: str) -> None:
        name = owner_name(owner)
        if name and name != self._name:
            log.warning("last_owner_fenced", owner=name)
            for transactional_id in transactional_ids(name):
                await fence(self._settings, transactional_id, client_id=self._name)
            self._fenced.add(owner)

    async def _last_owners(self, places: Sequence[Place]) -> set[str]:
        admin = await self._admin()
        try:
            with one_line(self._settings, self._group):
                committed = await admin.list_consumer_group_offsets(self._group)
            wanted = set(places)
            return {
                str(found.metadata) for tp, found in committed.items() if (tp.topic, tp.partition) in wanted
            }
        finally:
            await closed(admin.close(), admin._client)

    async def _admin(self) -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        await connect(admin, self._settings)
        return admin


def exactly_once(
    kafka: KafkaSettings,
    group: str,
    name: str,
    owner: str,
    source: Memberships,
    offsets: "GroupOffsets",
    *,
    timeout_s: float,
    rows_max: int,
    observe: Callable[[float], None],
) -> Callable[[Callable[[BaseException], None], Callable[[int], None]], Delivery]:
    """What makes a worker's delivery, as `weir.streams.engine.Engine` wants it.

    Args:
        name, owner: of the worker, see `weir.streams.neighbours.Identity`.
        timeout_s: then the broker aborts what a silent worker left open.
        rows_max, observe: see `ExactlyOnce`.
    """

    def delivery(
        on_failure: Callable[[BaseException], None], on_committed: Callable[[int], None]
    ) -> Delivery:
        lanes = [
            ProducerLane(
                TransactionalProducer(
                    kafka,
                    transactional_id=transactional_id,
                    client_id=name,
                    timeout_ms=int(timeout_s * 1000),
                ),
                group,
                source,
                owner,
            )
            for transactional_id in transactional_ids(name)
        ]
        return ExactlyOnce(
            lanes,
            committed=offsets,
            rows_max=rows_max,
            on_failure=on_failure,
            on_committed=on_committed,
            observe=observe,
        )

    return delivery


def transactional_ids(name: str) -> list[str]:
    """Those of the worker of this name, one a lane."""
    return [f"{name}.{lane}" for lane in range(LANES)]


def owner_name(owner: str) -> str:
    """The worker's name in `owner`, which is NAME/START."""
    return owner.partition("/")[0]
