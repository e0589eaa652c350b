"""What a worker has of Kafka in the simulation: a network that loses and delays, a lane, a consumer."""

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, Protocol

from tests.support.sim_broker import SimBroker
from tests.support.sim_loop import OUTSIDE, PROCESS, Process, SimLoop
from weir.errors import WeirError
from weir.kafka import errors as kafka
from weir.kafka._codes import Code
from weir.streams.assignor import Warmth
from weir.streams.batch import RecordBatch
from weir.streams.output import Output
from weir.streams.ports import Committed, Place, Taken

RPC_S = 0.3
# How long a client asks again before it says that there is no answer.
ASK_S = 0.9


class Fenced(kafka.Fenced):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class NotMember(kafka.NotMember):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class TransactionAborted(kafka.TransactionAborted):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class Unavailable(kafka.Unavailable):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class Network:
    """Carries requests: each may be late, lost on its way, or done with its answer lost (both give None)."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self._loop, self._random = loop, random.random
        self.loss = self.slow = self.twice = 0.0
        self.delay_s = 0.002
        self.cut: list[Process] = []
        self.down = False
        self.closed = False
        # A call of which the trace says nothing as long as it goes well.
        self.quiet: Callable[..., Any] | None = None
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=4000)

    def _delay(self) -> float:
        drawn = self._random()
        if drawn < self.slow:
            return self._random() * 2 * RPC_S
        return 2 * drawn * self.delay_s

    def call(
        self, function: Callable[..., Any], *args: Any, waits_s: float = 0.0, again: bool = False
    ) -> "asyncio.Future[Any]":
        """The answer, or None for none in time.

        Args:
            waits_s: how long the broker may think; then `function` is handed a `respond` first.
            again: whether the request may arrive twice, as a client sends it again on a new connection.
        """
        loop, random = self._loop, self._random
        future = loop.create_future()
        process = PROCESS.get()
        sent_s = loop.time()
        ends_s = sent_s + RPC_S + waits_s
        call = (future, process, function, args, ends_s, waits_s > 0)
        if random() < self.loss:
            self._lose(future, process, function, ends_s)
            return future
        loop.call_at(sent_s + self._delay(), self._arrive, *call, context=OUTSIDE)
        if again and random() < self.twice:
            loop.call_at(sent_s + self._delay() * 3, self._arrive, *call, context=OUTSIDE)
        return future

    def _lose(
        self,
        future: "asyncio.Future[Any]",
        process: Process | None,
        function: Callable[..., Any],
        ends_s: float,
    ) -> None:
        if process is not None:
            self._loop.call_at(ends_s, self._deliver, future, None, context=process.context)
        self.trace.append((self._loop.time(), _name(process), function.__name__, (), "lost"))

    @staticmethod
    def _deliver(future: "asyncio.Future[Any]", answer: Any) -> None:
        if not future.done():
            future.set_result(answer)

    def _arrive(
        self,
        future: "asyncio.Future[Any]",
        process: Process | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        ends_s: float,
        waits: bool,
    ) -> None:
        if self.closed:
            return
        if self.down or process in self.cut:
            self._lose(future, process, function, ends_s)
            return

        def respond(answer: Any) -> None:
            now_s = self._loop.time()
            if self.closed:
                return
            if self._random() < self.loss or self.down or process in self.cut:
                self._lose(future, process, function, ends_s)
                return
            back_s = now_s + self._delay()
            if back_s > ends_s:
                back_s, answer = ends_s, None
            if process is not None:
                self._loop.call_at(back_s, self._deliver, future, answer, context=process.context)

        if waits:
            function(respond, *args)
            return
        answer = function(*args)
        if not (answer is Code.NONE and function == self.quiet):
            self.trace.append((self._loop.time(), _name(process), function.__name__, args, answer))
        respond(answer)


def _name(process: Process | None) -> str:
    return "-" if process is None else process.name


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

    def __init__(
        self, net: Network, broker: SimBroker, id: str, owner: str, timeout_s: float, member: "Membership"
    ) -> None:
        self._net, self._broker, self._id, self._owner = net, broker, id, owner
        self._timeout_s, self._member = timeout_s, member
        self._pid = self._epoch = -1
        self._next: dict[Place, int] = {}
        self._stage = Stage.NEW

    async def _ask(self, what: str, function: Callable[..., Any], *args: Any, again: bool = True) -> Any:
        """Ask until there is an answer that waiting does not change."""
        loop = asyncio.get_running_loop()
        ends_s, wait_s = loop.time() + ASK_S, 0.005
        while True:
            answer = await self._net.call(function, *args, again=again)
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

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        done = False
        try:
            await work
            done = True
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
        generation, member = self._member.generation, self._member.member_id
        if generation < 0:
            # The broker would check nothing.
            raise NotMember(f"{self._id}: in no generation")
        self._open()
        await self._watched(self._send_offsets(generation, member, offsets))

    async def _send_offsets(self, generation: int, member: str, offsets: Mapping[Place, int]) -> None:
        owned = {place: (offset, self._owner) for place, offset in offsets.items()}
        answer = await self._ask(
            "offsets", self._broker.txn_offset_commit, self._pid, self._epoch, generation, member, owned
        )
        if answer is not Code.NONE:
            raise NotMember(f"{self._id}: offsets: {answer.name}")

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

    def __init__(self) -> None:
        self.generation, self.member_id = -1, ""

    def reset(self) -> None:
        """The broker does not know us."""
        self.generation, self.member_id = -1, ""


class GroupOffsets:
    """The group's stable offsets, as `weir.streams.transactions.GroupOffsets` asks for them.

    Whoever has had a place with a transaction pending for long is fenced.
    """

    def __init__(self, net: Network, broker: SimBroker, name: str) -> None:
        self._net, self._broker, self._name = net, broker, name

    async def __call__(self, places: Sequence[Place]) -> Mapping[Place, Committed]:
        answer = await self._net.call(self._broker.offset_fetch, places)
        if answer is Code.UNSTABLE_OFFSET_COMMIT:
            await asyncio.sleep(0.2)
            answer = await self._net.call(self._broker.offset_fetch, places)
            if answer is Code.UNSTABLE_OFFSET_COMMIT:
                for owner in await self._net.call(self._broker.last_owners, places) or ():
                    await self._fence(owner.partition("/")[0])
        if answer is None or isinstance(answer, Code):
            raise Unavailable(f"committed offsets: {answer}")
        return {place: Committed(offset, owner) for place, (offset, owner) in answer.items()}

    async def _fence(self, name: str) -> None:
        if not name or name == self._name:
            return
        for lane in range(2):
            answer: Any = Code.CONCURRENT_TRANSACTIONS
            while answer is Code.CONCURRENT_TRANSACTIONS:
                answer = await self._net.call(self._broker.init_producer, f"{name}-{lane}", 1.0)
                await asyncio.sleep(0.01)


class Record:
    """A record of the input."""

    __slots__ = ("key", "offset", "value")

    def __init__(self, offset: int, value: Any) -> None:
        self.offset, self.value, self.key = offset, value, value[0]


class SimTaken:
    """A batch that was handed out."""

    __slots__ = ("_held", "_number", "_on_finish", "batch")

    def __init__(self, batch: RecordBatch, held: "_Held", on_finish: Callable[[RecordBatch], None]) -> None:
        self.batch, self._held, self._number, self._on_finish = batch, held, held.number, on_finish

    @property
    def current(self) -> bool:
        return self._number == self._held.number

    def finish(self) -> bool:
        self._on_finish(self.batch)
        return self.current


class _Held:
    """A place that is ours: from where on it is read, and how often that has changed."""

    __slots__ = ("held", "number", "position")

    def __init__(self) -> None:
        self.position, self.number, self.held = 0, 0, True


class Hooks(Protocol):
    """What the consumer tells of the group: `weir.streams.engine.Engine`."""

    async def assigned(self, now: Collection[Place]) -> None: ...
    async def revoked(self, lost: Collection[Place]) -> None: ...
    async def evicted(self, lost: Collection[Place]) -> None: ...
    async def put(self, taken: Taken) -> None: ...


class SimConsumer:
    """A cooperative member of the group, as `weir.streams.membership` is one, and the engine's source."""

    def __init__(
        self,
        net: Network,
        broker: SimBroker,
        member: Membership,
        random: Random,
        *,
        heartbeat_s: float,
        rebalance_s: float,
        batch_rows_max: int,
        on_finish: Callable[[RecordBatch], None],
    ) -> None:
        self._net, self._broker, self._member, self._random = net, broker, member, random
        self._heartbeat_s, self._rebalance_s, self._rows_max = heartbeat_s, rebalance_s, batch_rows_max
        self._on_finish = on_finish
        self._places: dict[Place, _Held] = {}
        self._held_since = -1
        self._unsettled = self._leaving = False
        self._changed, self._rejoin, self._gave_all = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.hooks: Hooks | None = None

    # -- the engine's source -------------------------------------------------------------------------------

    async def rewind(self, place: Place, offset: int) -> None:
        await asyncio.sleep(self._random.random() * 0.002)
        if (held := self._places.get(place)) is not None:
            held.number += 1
            held.position = offset
            self._changed.set()

    def hold(self, places: Sequence[Place]) -> None:
        for place in places:
            if place in self._places:
                self._places[place].held = True

    def let_go(self, places: Sequence[Place]) -> None:
        for place in places:
            if place in self._places:
                self._places[place].held = False
        self._changed.set()

    # -- the group -----------------------------------------------------------------------------------------

    async def coordinate(self) -> None:
        """Be a member, forever."""
        assert self.hooks is not None
        heartbeats: asyncio.Task[None] | None = None
        while True:
            self._rejoin.clear()
            if self._places and self._member.generation < 0:
                lost = sorted(self._places)
                await self.hooks.evicted(lost)
                self._forget(lost)
            if heartbeats is not None:
                heartbeats.cancel()
                await asyncio.wait([heartbeats])
            now = await self._join()
            if now is None:
                await asyncio.sleep(0.02)
                self._rejoin.set()
                continue
            joined = self._member.generation, self._member.member_id
            heartbeats = asyncio.create_task(self._heartbeats())
            if lost := sorted(self._places.keys() - now):
                await self.hooks.revoked(lost)
                self._forget(lost)
                if (self._member.generation, self._member.member_id) != joined:
                    continue
            for place in now:
                self._places.setdefault(place, _Held())
            self._held_since = joined[0]
            await self.hooks.assigned(now)
            if not now and not self._unsettled:
                self._gave_all.set()
            self._changed.set()
            if not lost:
                await self._rejoin.wait()

    def _forget(self, lost: Sequence[Place]) -> None:
        for place in lost:
            self._places.pop(place).number += 1

    async def _join(self) -> list[Place] | None:
        member = self._member
        said = Warmth(frozenset(self._places), {}, self._held_since, False, self._leaving)
        answer = await self._net.call(
            self._broker.join, member.member_id, said, waits_s=2 * self._rebalance_s
        )
        if isinstance(answer, Code):
            member.reset()
            return None
        if answer is None:
            return None
        member.generation, member.member_id = answer
        answer = await self._net.call(self._broker.sync, member.member_id, member.generation)
        if isinstance(answer, Code):
            if answer is not Code.REBALANCE_IN_PROGRESS:
                member.reset()
            return None
        if answer is None:
            return None
        places, self._unsettled = answer
        return list(places)

    async def _heartbeats(self) -> None:
        while self._member.member_id:
            await asyncio.sleep(0.05 if self._unsettled else self._heartbeat_s)
            asked = self._member.member_id, self._member.generation
            answer = await self._net.call(self._broker.heartbeat, *asked)
            if asked != (self._member.member_id, self._member.generation):
                continue
            if answer is Code.REBALANCE_IN_PROGRESS:
                self._rejoin.set()
            elif answer is Code.UNKNOWN_MEMBER_ID or answer is Code.ILLEGAL_GENERATION:
                self._member.reset()
                self._rejoin.set()

    async def hand_over(self, deadline_s: float) -> None:
        """Give everything to the others, if there are any, before a stop."""
        self._leaving = True
        self._rejoin.set()
        try:
            async with asyncio.timeout(deadline_s):
                await self._gave_all.wait()
        except TimeoutError:
            pass

    async def leave(self) -> None:
        """Tell the group, if it can be told."""
        if self._member.member_id:
            await self._net.call(self._broker.leave, self._member.member_id)

    # -- fetching ------------------------------------------------------------------------------------------

    async def fetch(self) -> None:
        """Hand batches out, forever."""
        assert self.hooks is not None
        while True:
            wants = [(place, each.position) for place, each in self._places.items() if not each.held]
            if not wants:
                self._changed.clear()
                await self._changed.wait()
                continue
            helds = {place: (held, held.number) for place, held in self._places.items()}
            answer = await self._net.call(self._broker.fetch, wants, self._rows_max, 0.3, waits_s=0.4)
            for place, (records, position) in (answer or {}).items():
                held, number = helds[place]
                if held.number != number or held.held:
                    continue
                held.position = position
                if records:
                    batch = RecordBatch(*place, [Record(*each) for each in records])
                    await self.hooks.put(SimTaken(batch, held, self._on_finish))
