"""A cooperative member of the group that fetches batches: the engine's source, as Weir's consumer is one."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any, Protocol

from tests.support.sim_broker import SimBroker
from tests.support.sim_lane import Membership
from tests.support.sim_net import Network
from weir.kafka._codes import Code
from weir.streams.assignor import Warmth
from weir.streams.batch import RecordBatch
from weir.streams.ports import Place, Taken


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
            self._broker.group.join, member.member_id, said, waits_s=2 * self._rebalance_s
        )
        if isinstance(answer, Code):
            member.reset()
            return None
        if answer is None:
            return None
        member.become(*answer)
        answer = await self._net.call(self._broker.group.sync, member.member_id, member.generation)
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
            answer = await self._net.call(self._broker.group.heartbeat, *asked)
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
            await self._net.call(self._broker.group.leave, self._member.member_id)

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
            left = len(answer or {})
            for place, (records, position) in (answer or {}).items():
                left -= 1
                held, move = helds[place]
                if held.number != move or held.held:
                    continue
                held.position = position
                if records:
                    batch = RecordBatch(*place, [Record(*each) for each in records], left > 0)
                    await self.hooks.put(SimTaken(batch, held, self._on_finish))
