"""A worker's transactional producers and the offsets it asks for, as those over real brokers behave."""

import asyncio
import enum
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from tests.support.sim_broker import SimBroker
from tests.support.sim_net import ASK_S, Fenced, Network, NotMember, TransactionAborted, Unavailable
from weir.kafka._codes import Code
from weir.streams.output import Output
from weir.streams.ports import Place

T = TypeVar("T")


class Stage(enum.Enum):
    """Of a lane's producer; see `weir.kafka.producer`."""

    NEW = enum.auto()
    READY = enum.auto()
    OPEN = enum.auto()
    FAILED = enum.auto()
    COMMITTING = enum.auto()
    ABORTING = enum.auto()
    FENCED = enum.auto()


class SimLane:
    """A transactional producer over the simulated broker: `weir.streams.transactions.ProducerLane`."""

    # Whether offsets whose answer was lost are sent again; Kafka has no sequence numbers for them.
    insists = False

    def __init__(
        self, net: Network, broker: SimBroker, id: str, owner: str, timeout_s: float, member: "Membership"
    ) -> None:
        self._net, self._broker, self._id, self._owner = net, broker, id, owner
        self._timeout_s, self._member = timeout_s, member
        self._pid = self._epoch = -1
        self._next: dict[Place, int] = {}
        self._stage = Stage.NEW

    async def _ask(
        self, what: str, function: Callable[..., Any], *args: Any, again: bool = True, patient: bool = True
    ) -> Any:
        """Ask until there is an answer that waiting does not change.

        Args:
            again: whether it may arrive twice without harm.
            patient: whether it is asked once more when there is no answer.
        """
        loop = asyncio.get_running_loop()
        ends_s, wait_s = loop.time() + ASK_S, 0.005
        while True:
            answer = await self._net.call(function, *args, again=again and patient)
            if answer is None and not patient:
                raise TransactionAborted(f"{self._id}: {what} may arrive once more")
            if answer is not None and answer is not Code.CONCURRENT_TRANSACTIONS:
                break
            if loop.time() >= ends_s:
                raise Unavailable(f"{self._id}: {what}: no answer")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.1)
        if answer is Code.INVALID_PRODUCER_EPOCH or answer is Code.PRODUCER_FENCED:
            self._stage = Stage.FENCED
            raise Fenced(f"{self._id}: {what}: {answer.name}")
        return answer

    async def start(self) -> bool:
        match self._stage:
            case Stage.NEW:
                # A request that is sent twice would fence itself.
                ids = self._id, self._timeout_s
                self._pid, self._epoch = await self._ask(
                    "start", self._broker.init_producer, *ids, again=False
                )
                self._stage = Stage.READY
            case Stage.COMMITTING:
                try:
                    await self.commit()
                    return True
                except TransactionAborted:
                    await self._abort()
            case _:
                await self._abort()
        return False

    def _open(self) -> None:
        match self._stage:
            case Stage.READY | Stage.OPEN:
                self._stage = Stage.OPEN
            case Stage.FENCED:
                raise Fenced(f"{self._id}: before")
            case Stage.COMMITTING:
                raise Unavailable(f"{self._id}: commit not known")
            case _:
                raise TransactionAborted(f"{self._id}: a part of it failed")

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        done = False
        try:
            result = await work
            done = True
            return result
        finally:
            if not done and self._stage is Stage.OPEN:
                self._stage = Stage.FAILED

    async def produce(self, outputs: Sequence[Output]) -> None:
        batches: dict[Place, list[Any]] = {}
        for output in outputs:
            batches.setdefault((output.topic, output.partition), []).extend(output.values)
        if batches:
            self._open()
            await self._watched(self._produce_all(batches))

    async def _produce_all(self, batches: dict[Place, list[Any]]) -> None:
        if len(batches) == 1:
            for place, values in batches.items():
                await self._produce(place, values)
        else:
            async with asyncio.TaskGroup() as group:
                for place, values in batches.items():
                    group.create_task(self._produce(place, values))

    async def _produce(self, place: Place, values: list[Any]) -> None:
        first = self._next.get(place, 0)
        self._next[place] = first + len(values)
        answer = await self._ask(
            "produce", self._broker.produce, place, self._pid, self._epoch, first, values
        )
        if answer is not Code.NONE:
            raise TransactionAborted(f"{self._id}: produce: {answer.name}")

    async def send_offsets(self, offsets: Mapping[Place, int]) -> None:
        if not offsets:
            return
        while True:
            generation, member = self._member.generation, self._member.member_id
            if generation < 0:
                # The broker would check nothing.
                raise NotMember(f"{self._id}: in no generation")
            self._open()
            answer = await self._watched(self._send_offsets(generation, member, offsets))
            if answer is Code.NONE:
                return
            if not await self._member.moves_on(generation):
                self._stage = Stage.FAILED
                raise NotMember(f"{self._id}: offsets: {answer.name}")

    async def _send_offsets(self, generation: int, member: str, offsets: Mapping[Place, int]) -> Code:
        owned = {place: (offset, self._owner) for place, offset in offsets.items()}
        asked = self._pid, self._epoch, generation, member, owned
        answer: Code = await self._ask(
            "offsets", self._broker.txn_offset_commit, *asked, patient=self.insists
        )
        return answer

    async def commit(self) -> None:
        if self._stage is Stage.READY:
            return
        if self._stage is not Stage.COMMITTING:
            self._open()
        self._stage = Stage.COMMITTING
        answer = await self._ask("commit", self._broker.end_txn, self._id, self._pid, self._epoch, True)
        if isinstance(answer, Code):
            self._stage = Stage.FAILED
            raise TransactionAborted(f"{self._id}: commit: {answer.name}")
        self._ended(answer)

    async def _abort(self) -> None:
        if self._stage is Stage.READY:
            return
        if self._stage is Stage.FENCED:
            raise Fenced(f"{self._id}: before")
        self._stage = Stage.ABORTING
        answer = await self._ask("abort", self._broker.end_txn, self._id, self._pid, self._epoch, False)
        if isinstance(answer, Code):
            raise TransactionAborted(f"{self._id}: abort: {answer.name}")
        self._ended(answer)

    def _ended(self, epoch: int) -> None:
        self._epoch = epoch
        self._next.clear()
        self._stage = Stage.READY

    async def stop(self) -> None:
        pass


class Membership:
    """Which generation of the group a worker is in, as its consumer knows it."""

    def __init__(self, waits_s: float) -> None:
        self.generation, self.member_id = -1, ""
        # How long offsets that were refused for their generation wait for the next one.
        self._waits_s = waits_s
        self._changed = asyncio.Event()

    def become(self, generation: int, member_id: str) -> None:
        """A member of this generation."""
        self.generation, self.member_id = generation, member_id
        self._changed.set()

    def reset(self) -> None:
        """The broker does not know us."""
        self.become(-1, "")

    async def moves_on(self, refused: int) -> bool:
        """Whether there is another generation than the one that was refused, soon."""
        try:
            async with asyncio.timeout(self._waits_s):
                while self.generation == refused:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True


class GroupOffsets:
    """The group's stable offsets, as `weir.streams.transactions.GroupOffsets` asks for them.

    Whoever has had a place with a transaction pending for long is fenced.
    """

    def __init__(self, net: Network, broker: SimBroker, name: str) -> None:
        self._net, self._broker, self._name = net, broker, name

    async def __call__(self, places: Sequence[Place]) -> Mapping[Place, int | None]:
        answer = await self._net.call(self._broker.offset_fetch, places)
        if answer is Code.UNSTABLE_OFFSET_COMMIT:
            await asyncio.sleep(0.2)
            answer = await self._net.call(self._broker.offset_fetch, places)
            if answer is Code.UNSTABLE_OFFSET_COMMIT:
                for owner in await self._net.call(self._broker.last_owners, places) or ():
                    await self._fence(owner.partition("/")[0])
        if answer is None or isinstance(answer, Code):
            raise Unavailable(f"committed offsets: {answer}")
        return {place: offset for place, (offset, _) in answer.items()}

    async def _fence(self, name: str) -> None:
        if not name or name == self._name:
            return
        for lane in range(2):
            answer: Any = Code.CONCURRENT_TRANSACTIONS
            while answer is Code.CONCURRENT_TRANSACTIONS:
                answer = await self._net.call(self._broker.init_producer, f"{name}-{lane}", 1.0)
                await asyncio.sleep(0.01)
