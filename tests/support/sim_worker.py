"""A worker process of the simulation: the core under test over simulated parts, and what its app does."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from tests.support.sim_broker import SimBroker
from tests.support.sim_consumer import SimConsumer
from tests.support.sim_expected import Violation
from tests.support.sim_lane import GroupOffsets, Membership, SimLane
from tests.support.sim_loop import Process
from tests.support.sim_net import Unavailable
from tests.support.sim_plan import Plan
from tests.support.sim_service import SimService
from weir.kafka.errors import Fenced
from weir.streams.engine import Engine, Phase, Undecided
from weir.streams.exactly_once import ExactlyOnce
from weir.streams.ports import Place

if TYPE_CHECKING:
    from tests.support.sim_world import World

# What a worker may end by, so that its supervisor starts it anew: fenced; markers that take longer than a
# revoke waits; no broker at its start.
_ENDS_BY = (Fenced, Undecided, Unavailable)


@dataclass(frozen=True)
class Core:
    """The parts under test; the tests of the checker put broken ones in."""

    engine: type[Engine] = Engine
    delivery: type[ExactlyOnce] = ExactlyOnce
    lane: type[SimLane] = SimLane
    service: type[SimService] = SimService
    prepare_broker: Callable[[SimBroker], None] = lambda broker: None
    change_plan: Callable[[Plan], None] = lambda plan: None


class SimWorker:
    """A worker process: the core over the simulated parts, and what its app does."""

    def __init__(self, world: "World", slot: str, number: int) -> None:
        self.world, self.slot = world, slot
        self.name = f"{slot}/{number}"
        self.process = Process(self.name)
        self.leaving = self.replaced = self.hands_over = False
        self._tasks: list[asyncio.Task[Any]] = []
        self.engine: Engine | None = None
        self.service: SimService | None = None
        self._consumer: SimConsumer | None = None

    async def main(self) -> None:
        """Run until the process ends."""
        world, plan = self.world, self.world.plan
        net, broker = world.net, world.broker
        member = Membership(plan.generation_wait_s)
        random = Random(world.random.random())
        self._consumer = consumer = SimConsumer(
            net,
            broker,
            member,
            random,
            heartbeat_s=min(plan.session_s, plan.rebalance_s) / 4,
            rebalance_s=plan.rebalance_s,
            batch_rows_max=plan.batch_rows,
            on_finish=world.finished,
        )
        self.service = service = world.core.service(
            net,
            broker,
            random,
            world.expect,
            plan.partitions,
            work_s=plan.work_s,
            stubborn=plan.stubborn,
            failing=lambda: not world.healed and random.random() < plan.failing,
            check_rolled_back=self._check_rolled_back,
            restored_whole=self._restored_whole,
        )

        def delivery(on_failure: Any, on_committed: Any) -> ExactlyOnce:
            return world.core.delivery(
                [
                    world.core.lane(net, broker, f"{self.slot}-{lane}", self.name, plan.transaction_s, member)
                    for lane in range(2)
                ],
                committed=GroupOffsets(net, broker, self.slot),
                rows_max=plan.transaction_rows,
                on_failure=on_failure,
                on_committed=on_committed,
            )

        self.engine = engine = world.core.engine(
            consumer,
            service,
            delivery,
            rows_in_flight_max=plan.rows_in_flight,
            group_rows_max=plan.group_rows,
            linger_s=plan.linger_s,
            drain_deadline_s=plan.drain_s,
            on_fatal=self.fatal,
        )
        consumer.hooks = engine
        self._watched(engine.start(), self._run)

    def _watched(self, work: Any, then: Callable[[], None] | None = None) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)

        def ended(task: "asyncio.Task[Any]") -> None:
            if task.cancelled():
                return
            if (error := task.exception()) is not None:
                self.fatal(error)
            elif then is not None:
                then()

        task.add_done_callback(ended)
        return task

    def _run(self) -> None:
        assert self._consumer is not None
        assert self.service is not None
        self._tasks = [
            self._watched(each)
            for each in (self._consumer.coordinate(), self._consumer.fetch(), self.service.read_sides())
        ]

    def fatal(self, error: BaseException) -> None:
        """Ends the process; its supervisor starts another, unless someone has its place."""
        self.world.tell("fatal", self.name, repr(error))
        if not isinstance(error, _ENDS_BY):
            self.world.fail(error)
        self.world.loop.kill(self.process)

    async def shut_down(self) -> None:
        """As on SIGTERM."""
        self.leaving = True
        if self.engine is None or self.engine.phase is Phase.CLOSED:
            self.world.loop.kill(self.process)
            return
        if self.hands_over:
            assert self._consumer is not None
            await self._consumer.hand_over(self.world.plan.drain_s)
        await self.engine.shutdown()
        # The group may still have something to say.
        await asyncio.sleep(self.world.random.random() * 0.3)
        for task in self._tasks:
            task.cancel()
        assert self._consumer is not None
        await self._consumer.leave()
        self.world.tell("left", self.name)
        self.world.loop.kill(self.process)

    def _check_rolled_back(self, place: Place, position: int) -> None:
        offset, owner = self.world.decided_offsets.get(place, (0, ""))
        if owner == self.name and offset != position:
            raise Violation(
                "rolled back to no commit", f"{self.name}: {place} at {position}, committed {offset}"
            )

    def _restored_whole(self, place: Place, committed: int | None) -> bool:
        return self.world.decided_offsets.get(place, (0, ""))[0] == (committed or 0)
