"""Cores that are wrong on purpose, each in one way: the simulation has to find every one of them."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tests.support.sim_broker import SimBroker
from tests.support.sim_lane import SimLane, Stage
from tests.support.sim_plan import Plan
from tests.support.sim_service import SimService
from tests.support.sim_worker import Core
from tests.support.sim_world import World
from weir.streams.engine import Engine
from weir.streams.exactly_once import ExactlyOnce
from weir.streams.ports import Place


class _CommitsFirst(ExactlyOnce):
    async def _fill(self, transaction: Any) -> None:
        await transaction.lane.send_offsets(transaction.next_offsets())
        await transaction.lane.commit()
        await transaction.lane.produce([output for work in transaction.works for output in work.outputs])


class _OffsetsOutside(SimLane):
    async def send_offsets(self, offsets: Mapping[Place, int]) -> None:
        member = self._member.generation, self._member.member_id
        owned = {place: (offset, self._owner) for place, offset in offsets.items()}
        await self._net.call(self._broker.offset_commit, *member, owned)


class _SendsWithoutGeneration(SimLane):
    async def send_offsets(self, offsets: Mapping[Place, int]) -> None:
        if offsets:
            self._open()
            await self._watched(self._send_offsets(-1, "", offsets))


class _Forgets(SimLane):
    async def start(self) -> bool:
        if self._stage is Stage.NEW:
            return await super().start()
        # What is open stays open, and the next transaction goes on with it.
        self._stage = Stage.READY
        return False


class _SaysNothing(SimLane):
    async def start(self) -> bool:
        await super().start()
        return False


class _Insists(SimLane):
    insists = True


class _CommitsBehind(ExactlyOnce):
    async def _end(self, transaction: Any, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await asyncio.wait([before])
        await transaction.lane.commit()
        self._open.remove(transaction)
        self._conclude(transaction)


class _DoesNotWait(ExactlyOnce):
    async def _end(self, transaction: Any, before: "asyncio.Task[None] | None") -> None:
        await transaction.lane.commit()
        self._open.remove(transaction)
        self._conclude(transaction)


class _FinishesEarly(ExactlyOnce):
    def enqueue(self, done: Any) -> "asyncio.Future[None]":
        for taken in done.taken:
            taken.finish()
        return super().enqueue(done)


class _GuessesByOffsets(ExactlyOnce):
    async def recover(self) -> None:
        await self._halt()
        for lane in self._lanes:
            await lane.start()
        asked = sorted({place for each in self._open for place in each.next_offsets()})
        offsets = await self._ask(asked) if asked else {}
        while self._open and all(
            (offsets[place].offset or 0) >= offset for place, offset in self._open[0].next_offsets().items()
        ):
            self._conclude(self._open.popleft())
        for transaction in self._open:
            for future in transaction.futures:
                future.cancel()
        self._open.clear()
        self._begin()


class _NeverRollsBack(SimService):
    def roll_back(self, epoch: int) -> None:
        pass


class _RestoresTooLittle(SimService):
    def __init__(self, net: Any, broker: SimBroker, *args: Any, **options: Any) -> None:
        super().__init__(net, broker, *args, **options)
        self.restore_to = broker.stable_end_offset


class _Except:
    """All of another object, but for some methods that do something else."""

    def __init__(self, whole: Any, **others: Any) -> None:
        self._whole = whole
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


class _NeverRewinds(Engine):
    async def _roll_back(self, deadline_s: float | None, going: Collection[Place]) -> None:
        source = self._source

        async def rewind(place: Place, offset: int) -> None:
            pass

        self._source = _Except(source, rewind=rewind)  # type: ignore[assignment]
        try:
            await super()._roll_back(deadline_s, going)
        finally:
            self._source = source


class _KeepsWhatItLost(Engine):
    async def evicted(self, lost: Collection[Place]) -> None:
        pass

    async def assigned(self, now: Collection[Place]) -> None:
        for place in sorted(set(now) & self._ready):
            await self._source.rewind(place, self._processor.position(place))
            self._source.let_go([place])
        await super().assigned(now)


class _DropsLate(Engine):
    async def revoked(self, lost: Collection[Place]) -> None:
        processor, dropped = self._processor, list[Place]()
        self._processor = _Except(processor, drop=dropped.append)  # type: ignore[assignment]
        try:
            await super().revoked(lost)
        finally:
            self._processor = processor
        for place in dropped:
            processor.drop(place)

    async def _drain(self) -> None:
        last = self._pipeline._epoch
        await super()._drain()
        left = any(epoch <= last for epoch, _ in self._pipeline._tasks.values())
        self._pipeline.holds = lambda places: left  # type: ignore[method-assign]


class _ReadsWhatIsGone(Engine):
    def _readable(self, taken: Any) -> bool:
        return True


class _ClosesInTurn(Engine):
    async def _close(self, lost: Collection[Place]) -> set[Place]:
        for place in sorted(set(lost) & self._restoring.keys()):
            await self._cancel_restores({place} & self._restoring.keys())
            self._processor.drop(place)
        return await super()._close(lost)


class _RevokesAtOnce(Engine):
    async def _drain(self) -> None:
        pass

    async def _roll_back(self, deadline_s: float | None, going: Collection[Place]) -> None:
        if not going:
            await super()._roll_back(deadline_s, going)


def _losing_ends(plan: Plan) -> None:
    plan.lost, plan.late, plan.transaction_s, plan.faults = ("end_txn",), (), 9.0, []


def _late_offsets(plan: Plan) -> None:
    plan.late, plan.lost, plan.transaction_s, plan.faults = ("txn_offset_commit", "end_txn"), (), 9.0, []
    plan.twice = 0.5


def _moving(plan: Plan) -> None:
    plan.sides, plan.wild, plan.drain_s, plan.failing, plan.work_s = 0.8, True, 1.0, 0.0, 0.02
    plan.loss, plan.lost, plan.late = 0.0, (), ("produce",)
    plan.workers, plan.rows_in_flight, plan.group_rows = 2, 60, 2
    plan.faults = [(0.4 * number, "join" if number % 2 else "leave") for number in range(1, 14)]


def _slow_to_restore(plan: Plan) -> None:
    plan.stubborn, plan.partitions, plan.delay_s, plan.workers = True, 4, 0.02, 2
    plan.loss, plan.slow, plan.session_s, plan.rebalance_s, plan.work_s = 0.05, 0.05, 0.6, 2.0, 0.002
    plan.faults = [(0.3 * number, "stop") for number in range(1, 14)]


def _no_fencing(broker: SimBroker) -> None:
    broker.checks_generation = False


# By what is wrong; and how many schedules may pass before it is found.
BROKEN: Mapping[str, tuple[Core, int]] = {
    "commits the offsets before it sends the results": (Core(delivery=_CommitsFirst), 5),
    "commits the offsets outside the transaction": (Core(lane=_OffsetsOutside), 5),
    "sends offsets that no generation fences": (Core(lane=_SendsWithoutGeneration), 200),
    "no fencing by the group's generation": (Core(prepare_broker=_no_fencing), 200),
    "goes on with a transaction that failed": (Core(lane=_Forgets), 50),
    "takes a commit whose answer was lost for none": (Core(lane=_SaysNothing), 200),
    "takes offsets that did not move for a commit": (Core(delivery=_GuessesByOffsets), 200),
    "sends offsets again whose answer was lost": (Core(lane=_Insists, change_plan=_late_offsets), 200),
    "commits behind a transaction that failed": (
        Core(delivery=_CommitsBehind, change_plan=_losing_ends),
        200,
    ),
    "commits without waiting for the one before": (Core(delivery=_DoesNotWait), 200),
    "finishes batches before their commit": (Core(delivery=_FinishesEarly), 5),
    "does not roll back": (Core(service=_NeverRollsBack), 50),
    "does not rewind": (Core(engine=_NeverRewinds), 50),
    "restores what is stable, not what is there": (Core(service=_RestoresTooLittle), 200),
    "keeps the state of what another has had": (Core(engine=_KeepsWhatItLost), 200),
    "changes what it gives away": (Core(engine=_DropsLate, change_plan=_moving), 200),
    "reads what was taken away while it waited": (Core(engine=_ReadsWhatIsGone), 200),
    "closes one partition after the other": (
        Core(engine=_ClosesInTurn, change_plan=_slow_to_restore),
        200,
    ),
    "gives away what is in flight": (Core(engine=_RevokesAtOnce), 200),
}


# Those that leave their trace where every reader sees it.
BROKEN_TO_SEE = [
    "commits the offsets before it sends the results",
    "commits the offsets outside the transaction",
    "no fencing by the group's generation",
    "goes on with a transaction that failed",
    "commits behind a transaction that failed",
    "does not roll back",
    "gives away what is in flight",
]
# What the core itself, or its producer, has done wrong until a schedule showed it: these are its regressions.
ONCE_OURS = [
    "takes offsets that did not move for a commit",
    "sends offsets again whose answer was lost",
    "changes what it gives away",
    "reads what was taken away while it waited",
    "closes one partition after the other",
]
PLANS = (_losing_ends, _late_offsets, _moving, _slow_to_restore)


def first_found(core: Core, seeds: Sequence[int], **options: Any) -> tuple[int, str] | None:
    """The first seed whose schedule shows that the core is wrong, and how."""
    for seed in seeds:
        try:
            World(seed, core, **options).run()
        except Exception as error:  # noqa: BLE001 - a wrong core may fail in any way
            return seed, f"{type(error).__name__}: {error}"
    return None
