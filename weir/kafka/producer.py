"""A producer whose records and offsets become visible together, or not at all.

                 produce, send_offsets              commit
    NEW ──start──▶ READY ───────────────▶ OPEN ──────────▶ COMMITTING ──▶ READY
                     ▲                     │ error            │ lost: commit again
                     │       abort         ▼                  ▼ refused
                     └──── ABORTING ◀── FAILED ◀──────────────┘

From any of them: FENCED, when another has taken the id. A lost answer to an end is asked for again until it
is known; no end is ever guessed.

Of transaction version 2 (KIP-890) each transaction has an epoch of its own: what a network delivers late is
refused. Of version 1, which older clusters speak, a new epoch is asked for after each doubt.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum, auto

from weir.client.connection import TopicDenied
from weir.config import KafkaSettings
from weir.errors import WeirError
from weir.kafka import _codes as codes
from weir.kafka._codes import Code, name_of
from weir.kafka._sender import ProducerRefused, Queues, Sender, queues_of
from weir.kafka._waiting import Deadline
from weir.kafka.errors import (
    CommitUnknown,
    Fenced,
    NotMember,
    Refused,
    TransactionAborted,
    Unavailable,
    denied,
)
from weir.kafka.fencing import take_id
from weir.kafka.link import Coordinates, Link
from weir.kafka.offsets import stable_offsets
from weir.kafka.protocol import (
    GroupMember,
    Identity,
    Place,
    add_offsets,
    add_partitions,
    end_txn,
    txn_offset_commit,
)
from weir.kafka.record_batch import BATCH_BYTES_MAX, load_loops
from weir.kafka.records import AnyOutput

_TV2 = 2


class Stage(Enum):
    """Where a producer is; the module's docstring draws the ways between."""

    NEW = auto()
    READY = auto()
    OPEN = auto()
    FAILED = auto()
    COMMITTING = auto()
    ABORTING = auto()
    FENCED = auto()


class TransactionalProducer:
    """One transaction after the other, under one transactional id.

    Args:
        transactional_id: who holds it last may write; `start` fences the one before.
        timeout_ms: after which the broker aborts a transaction by itself; at most the broker's own maximum.
        deadline_s: of each call.
        batch_bytes_max: of a record batch; below the smallest max.message.bytes of the topics.
        version_max: 1 speaks transaction version 1 to a cluster that has 2.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        transactional_id: str,
        client_id: str,
        timeout_ms: int = 10_000,
        deadline_s: float = 30,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        version_max: int = _TV2,
    ) -> None:
        self.transactional_id = transactional_id
        self._settings, self._timeout_ms, self._deadline_s = settings, timeout_ms, deadline_s
        self._batch_bytes_max, self._version_max = batch_bytes_max, version_max
        self._link = Link(settings, client_id=client_id, deadline_s=deadline_s)
        self._sender = Sender(self._link, transactional_id, verified=True)
        self._verified = True
        self._stage = Stage.NEW
        self._running: set[asyncio.Task[None]] = set()
        self._producing, self._adding, self._ending = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        # Of version 1 only: what the coordinator knows of, and whether a request may still arrive late.
        self._added: set[Place] = set()
        self._groups: set[str] = set()
        self._doubt = False
        # The group refused the offsets, and has not taken them since.
        self._refused = False

    @property
    def stage(self) -> Stage:
        """Where it is."""
        return self._stage

    @property
    def version(self) -> int:
        """The transaction version that it speaks, once started."""
        return _TV2 if self._verified else 1

    @property
    def identity(self) -> Identity:
        """Its id and epoch at the broker."""
        return self._sender.identity

    # Starting and stopping

    async def start(self) -> None:
        """Connect and take the transactional id: who held it is fenced, and its open transaction aborted.

        Raises:
            NeighbourUnavailable, AccessDenied, ConfigError: no broker takes this client.
            BrokerTooOld: a broker before 2.8.
        """
        if self._stage is not Stage.NEW:
            raise RuntimeError(f"start() at {self._stage.name}")
        load_loops()
        deadline = Deadline(self._deadline_s)
        await self._link.start()
        try:
            level = await self._link.transaction_version(deadline)
            self._verified = min(level, self._version_max) >= _TV2
            self._sender = Sender(self._link, self.transactional_id, verified=self._verified)
            self._sender.take(await take_id(self._link, self.transactional_id, self._timeout_ms, deadline))
            self._stage = Stage.READY
        finally:
            if self._stage is Stage.NEW:
                await self._link.stop()

    async def stop(self) -> None:
        """Disconnect. A transaction that is open is aborted by the id's next holder, or by the time-out."""
        await self._end_running()
        await self._link.stop()

    # A transaction's content

    async def produce(self, outputs: Sequence[AnyOutput]) -> None:
        """Publish, in order for each partition; return when all replicas in sync have all of it.

        Raises:
            Fenced: give up.
            TransactionAborted, Unavailable: abort.
            TopicMissing, PartitionMissing, RecordTooLarge, AccessDenied: abort; a retry is no use.
        """
        queues = queues_of(outputs, self._batch_bytes_max)
        if queues:
            await self._in_transaction(lambda: self._produce(queues))

    async def _produce(self, queues: Queues) -> None:
        deadline = Deadline(self._deadline_s)
        async with self._producing:
            if not self._verified:
                await self._add_partitions(queues.keys() - self._added, deadline)
            try:
                await self._sender.send(queues, deadline)
            except ProducerRefused as refused:
                raise self._refusal(refused.code, "take records") from refused

    async def send_offsets(self, member: GroupMember, offsets: Mapping[Place, tuple[int, str]]) -> None:
        """Make the group's offsets (each with its metadata) part of the transaction.

        May run while `produce` does.

        Raises:
            NotMember: the group has moved on; send them under its next generation, or abort.
            Fenced: give up.
            TransactionAborted, Unavailable: abort.
            AccessDenied, Refused: abort; a retry is no use.
        """
        if offsets:
            await self._in_transaction(lambda: self._send_offsets(member, offsets))

    async def _send_offsets(self, member: GroupMember, offsets: Mapping[Place, tuple[int, str]]) -> None:
        deadline = Deadline(self._deadline_s)
        if not self._verified:
            await self._add_group(member.group, deadline)
        call = txn_offset_commit(
            self.transactional_id, self.identity, member, offsets, verified=self._verified
        )
        what = f"take offsets of consumer group {member.group}"
        lost = False

        def on_lost() -> None:
            nonlocal lost
            lost = True

        answer = await self._link.ask_coordinator(
            Coordinates.GROUP, member.group, call, what, deadline, on_lost
        )
        if lost and not answer.code:
            # Offsets have no sequence numbers. Should the lost request be carried out late, behind another
            # producer's newer offsets, the group would keep these, which were written last.
            raise TransactionAborted(self.transactional_id, "its offsets may arrive once more")
        self._refused = answer.code in codes.NOT_MEMBER
        if self._refused:
            raise NotMember(member.group, answer.code)
        if answer.code == Code.GROUP_AUTHORIZATION_FAILED:
            raise denied(self._settings, f"use consumer group {member.group}")
        if answer.code:
            raise self._refusal(answer.code, what)

    async def _add_partitions(self, places: set[Place], deadline: Deadline) -> None:
        if not places:
            return
        homeless = [place for place in places if self._link.leader(place) is None]
        if homeless:
            # Of a topic that is missing the coordinator would only say that it does not know it yet.
            await self._link.find_leaders(homeless, deadline)
        what = "take partitions into the transaction"
        call = add_partitions(self.transactional_id, self.identity, places)
        # One at a time: the coordinator refuses a change while it writes another.
        async with self._adding:
            answer = await self._link.ask_coordinator(
                Coordinates.TRANSACTION, self.transactional_id, call, what, deadline, self._doubted
            )
        place, code = answer.worst
        if place is not None and code == Code.TOPIC_AUTHORIZATION_FAILED:
            raise TopicDenied(place[0], self._settings)
        if code:
            raise self._refusal(code, what)
        self._added |= places

    async def _add_group(self, group: str, deadline: Deadline) -> None:
        async with self._adding:
            if group in self._groups:
                return
            what = f"take consumer group {group} into the transaction"
            call = add_offsets(self.transactional_id, self.identity, group)
            answer = await self._link.ask_coordinator(
                Coordinates.TRANSACTION, self.transactional_id, call, what, deadline, self._doubted
            )
            if answer.code == Code.GROUP_AUTHORIZATION_FAILED:
                raise denied(self._settings, f"use consumer group {group}")
            if answer.code:
                raise self._refusal(answer.code, what)
            self._groups.add(group)

    async def _in_transaction(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do the work in a task, so that `abort` can end it before anything else is sent."""
        self._require_open()
        self._stage = Stage.OPEN
        task = asyncio.get_running_loop().create_task(self._watched(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await task
        except asyncio.CancelledError:
            # A task that had not begun yet could not say so itself.
            self._failed()
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise TransactionAborted(self.transactional_id, "it was aborted meanwhile") from None

    async def _watched(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        done = False
        try:
            await work()
            done = True
        except NotMember:
            # Only the offsets were refused: until they are sent again, `commit` does nothing.
            done = True
            raise
        except Fenced:
            self._stage = Stage.FENCED
            raise
        finally:
            if not done:
                self._failed()

    def _failed(self) -> None:
        # What was sent may still arrive.
        self._doubt = True
        if self._stage is Stage.OPEN:
            self._stage = Stage.FAILED

    def _require_open(self) -> None:
        match self._stage:
            case Stage.READY | Stage.OPEN:
                return
            case Stage.FENCED:
                raise Fenced(self.transactional_id)
            case Stage.COMMITTING:
                raise self._unknown("its commit is not known yet")
            case Stage.FAILED | Stage.ABORTING:
                raise TransactionAborted(self.transactional_id, "a part of it failed")
            case Stage.NEW:
                raise RuntimeError("start() first")

    async def _end_running(self) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running))

    # Its end

    async def commit(self) -> None:
        """Make the transaction visible; return when it certainly is. Nothing to commit is committed.

        Raises:
            CommitUnknown: no answer before the deadline. Call `commit` again: it does nothing twice.
            TransactionAborted: it is not committed, and cannot be: abort.
            Fenced: give up; who took the id knows whether it was committed, by the group's offsets.
        """
        async with self._ending:
            if self._running:
                await asyncio.wait(set(self._running))
            match self._stage:
                case Stage.READY:
                    return
                case Stage.OPEN if self._refused:
                    raise TransactionAborted(self.transactional_id, "its offsets were refused")
                case Stage.OPEN | Stage.COMMITTING:
                    self._stage = Stage.COMMITTING
                case _:
                    self._require_open()
            try:
                code, identity = await self._end(committed=True)
                if not code:
                    await self._ended(identity)
            except Unavailable as error:
                raise self._unknown(error.reason) from error
            if code in _ABORTABLE:
                # It has ended, and not by a commit; or it never can.
                self._stage = Stage.FAILED
            if code:
                raise self._refusal(code, "commit")

    async def abort(self) -> None:
        """End the transaction so that nothing of it is seen; calls of it that still run end first.

        Raises:
            CommitUnknown: a commit was asked for and not answered: call `commit` again.
            Unavailable: no answer before the deadline. Call `abort` again.
            Fenced: give up; the transaction is aborted by who took the id.
        """
        async with self._ending:
            await self._end_running()
            match self._stage:
                case Stage.READY:
                    return
                case Stage.OPEN | Stage.FAILED | Stage.ABORTING:
                    self._stage = Stage.ABORTING
                case _:
                    self._require_open()
            identity = self.identity
            # Of version 1 the coordinator does not know a transaction to which nothing was added.
            if self._verified or self._added or self._groups or self._doubt:
                code, identity = await self._end(committed=False)
                nothing_open = not self._verified and code == Code.INVALID_TXN_STATE
                if code and not nothing_open:
                    raise self._refusal(code, "abort")
            await self._ended(identity)

    async def _end(self, *, committed: bool) -> tuple[int, Identity]:
        call = end_txn(self.transactional_id, self.identity, committed=committed, verified=self._verified)
        what = "commit" if committed else "abort"
        try:
            answer = await self._link.ask_coordinator(
                *(Coordinates.TRANSACTION, self.transactional_id, call, what),
                *(Deadline(self._deadline_s), self._doubted),
            )
        except asyncio.CancelledError:
            self._doubted()
            raise
        return answer.code, answer.identity

    async def _ended(self, identity: Identity) -> None:
        if not self._verified and self._doubt:
            # What is late would be taken for a part of the next transaction: an epoch of its own refuses it.
            try:
                identity = await take_id(
                    self._link, self.transactional_id, self._timeout_ms, Deadline(self._deadline_s), identity
                )
            except Fenced:
                self._stage = Stage.FENCED
                raise
        self._sender.take(identity)
        self._added, self._groups, self._doubt, self._refused = set(), set(), False, False
        self._stage = Stage.READY

    async def stable_offsets(
        self, group: str, places: Sequence[Place]
    ) -> dict[Place, tuple[int | None, str]]:
        """The group's committed offsets; see `weir.kafka.offsets.stable_offsets`."""
        return await stable_offsets(self._link, group, places, deadline_s=self._deadline_s)

    def _doubted(self) -> None:
        self._doubt = True

    def _unknown(self, reason: str) -> CommitUnknown:
        return CommitUnknown(self._settings, "say whether it committed", self._deadline_s, reason)

    def _refusal(self, code: int, what: str) -> WeirError:
        """What a code that no retry changes means to this producer."""
        if code in codes.FENCED:
            self._stage = Stage.FENCED
            return Fenced(self.transactional_id)
        if code == Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            return denied(self._settings, f"use transactional id {self.transactional_id}")
        if code == Code.TOPIC_AUTHORIZATION_FAILED:
            return denied(self._settings, what)
        if code in _ABORTABLE:
            return TransactionAborted(self.transactional_id, name_of(code))
        return Refused(self._settings, what, code)


_ABORTABLE = frozenset(
    {
        Code.OUT_OF_ORDER_SEQUENCE_NUMBER,
        Code.UNKNOWN_PRODUCER_ID,
        Code.INVALID_TXN_STATE,
        Code.TRANSACTION_ABORTABLE,
    }
)
