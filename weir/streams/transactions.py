"""Exactly-once over real brokers: lanes made of `weir.kafka`'s producers, and the group's offsets."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from aiokafka.admin import AIOKafkaAdminClient

from weir.client.connection import one_line
from weir.config import KafkaSettings
from weir.kafka.errors import NotMember, OffsetsPending, TransactionAborted
from weir.kafka.fencing import fence
from weir.kafka.offsets import stable_offsets
from weir.kafka.producer import Stage, TransactionalProducer
from weir.kafka.protocol import GroupMember
from weir.kafka.records import AnyOutput
from weir.kafka_options import client_options, connect
from weir.obs.log import get_logger
from weir.streams.ports import Committed, Place

log = get_logger("weir.streams.transactions")

LANES = 2
# An owner that lives has ended its transactions before it gave a partition away; longer is a dead one.
_PENDING_S = 0.5
_UNKNOWN_MEMBER = 25


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


class ProducerLane:
    """One transactional producer as a lane of `weir.streams.exactly_once.ExactlyOnce`.

    Args:
        member: under what offsets may be committed now; None while this worker is no member of its group.
        owner: written beside each offset.
    """

    def __init__(
        self,
        producer: TransactionalProducer,
        group: str,
        member: Callable[[], Membership | None],
        owner: str,
    ) -> None:
        self._producer, self._group, self._member, self._owner = producer, group, member, owner

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
            return
        member = self._member()
        if member is None:
            raise NotMember(self._group, _UNKNOWN_MEMBER)
        await self._producer.send_offsets(
            GroupMember(self._group, member.generation, member.member_id, member.instance_id),
            {place: (offset, self._owner) for place, offset in offsets.items()},
        )

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

    async def __call__(self, places: Sequence[Place]) -> Mapping[Place, Committed]:
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
        return {place: Committed(offset, owner) for place, (offset, owner) in found.items()}

    async def take_over(self, owner: str) -> None:
        """Abort what the last owner left open, if it has left the group: readers need not wait for it.

        Its offsets may not be part of what it left, so that these alone would not show it.
        """
        name = owner_name(owner)
        if not name or name == self._name or owner in self._fenced:
            return
        admin = await self._admin()
        try:
            with one_line(self._settings, self._group):
                (answer,) = await admin.describe_consumer_groups([self._group])
            (group,) = answer.to_object()["groups"]
            members = {member["client_id"] for member in group["members"]}
        finally:
            await admin.close()
        if name not in members:
            await self._fence(owner)

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
            await admin.close()

    async def _admin(self) -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        await connect(admin, self._settings)
        return admin


def transactional_ids(name: str) -> list[str]:
    """Those of the worker of this name, one a lane."""
    return [f"{name}.{lane}" for lane in range(LANES)]


def owner_name(owner: str) -> str:
    """The worker's name in `owner`, which is NAME/START."""
    return owner.partition("/")[0]
