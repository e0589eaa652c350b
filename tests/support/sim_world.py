"""A whole deployment in the simulation: brokers, workers that come and go, faults, and a judge.

A run is a function of its seed. It raises `Violation` when something that must hold does not.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import weir.streams.engine as engine_module
from tests.support.sim_broker import OFFSETS, SimBroker, Transaction
from tests.support.sim_expected import (
    CHANGES,
    DEAD,
    INPUT,
    JOURNAL,
    OUTPUT,
    SIDE,
    Expected,
    Violation,
)
from tests.support.sim_loop import OUTSIDE, Process, SimLoop, Stuck
from tests.support.sim_net import Network
from tests.support.sim_plan import FAULTS_S, Plan
from tests.support.sim_worker import Core, SimWorker
from weir.streams.batch import RecordBatch
from weir.streams.engine import Phase
from weir.streams.ports import Place

# After the last fault everything has to be decided, whatever state it was left in.
MENDED_S = 90.0


class SimLog:
    """Stands where the engine's log does."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def warning(self, event: str, **fields: Any) -> None:
        self._world.tell("log", event, *fields.items())


class World:
    """One run; see the module.

    Args:
        along: whether every commit is checked as it is decided; else what can be read at the end alone.
    """

    def __init__(self, seed: int, core: Core | None = None, *, along: bool = True) -> None:
        self.core, self._along = core or Core(), along
        self.plan = Plan.of(seed)
        self.core.change_plan(self.plan)
        self.random = self.plan.random
        self.loop = SimLoop(Random(self.random.random()), shuffled=self.plan.shuffled)
        self.net = Network(self.loop, Random(self.random.random()))
        self.net.delay_s, self.net.loss = self.plan.delay_s, self.plan.loss
        self.net.slow, self.net.twice = self.plan.slow, self.plan.twice
        self.net.lost, self.net.late = self.plan.lost, self.plan.late
        self.expect = Expected(self.plan.partitions)
        self.inputs = [(INPUT, p) for p in range(self.plan.partitions)]
        self.broker = SimBroker(
            [
                (topic, p)
                for topic in (INPUT, OUTPUT, CHANGES, JOURNAL, DEAD)
                for p in range(self.plan.partitions)
            ]
            + [(SIDE, 0)],
            self.inputs,
            later=lambda delay_s, function, *args: self.loop.call_later(
                delay_s, function, *args, context=OUTSIDE
            ),
            now=self.loop.time,
            random=self.random.random,
            session_s=self.plan.session_s,
            rebalance_s=self.plan.rebalance_s,
            marker_s=self.plan.marker_s,
            decided=self.decided,
        )
        self.net.quiet = self.broker.group.heartbeat
        self.broker.group.wild = self.plan.wild
        self.core.prepare_broker(self.broker)
        self.workers: list[SimWorker] = []
        self._all: list[SimWorker] = []
        self._slots = 0
        self._numbers = 0
        self.healed = False
        self.failure: BaseException | None = None
        # What was decided to be committed, markers written or not.
        self.decided_offsets: dict[Place, tuple[int, str]] = {}

    def tell(self, *what: Any) -> None:
        """Into the trace."""
        self.net.trace.append((self.loop.time(), *what))

    # -- all along -----------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """The run is over."""
        if self.failure is None:
            self.failure = error
        if not self.over.done():
            self.over.set_result(None)

    def finished(self, batch: RecordBatch) -> None:
        """A core says that a batch's results are durable."""
        place = (batch.topic, batch.partition)
        if self._along and self.decided_offsets.get(place, (0, ""))[0] <= batch.offset_last:
            self.fail(Violation("finished before its commit", f"{place} at {batch.offset_first}"))

    def decided(self, transaction: Transaction, commit: bool) -> None:
        """A transaction's end: what it holds must be what its offsets say, and follow the last one's."""
        self.tell("decided", transaction.id, transaction.epoch, commit, list(transaction.places))
        if not commit:
            return
        expect = self.expect
        pending = self.broker.pending.get(transaction.pid, {}) if OFFSETS in transaction.places else {}
        held = {place: segment.values for place, segment in transaction.places.items() if segment is not None}
        for place, (offset, owner, _) in pending.items():
            p = place[1]
            before = self.decided_offsets.get(place, (0, ""))[0]
            self.decided_offsets[place] = offset, owner
            if not self._along:
                continue
            if offset < before:
                self.fail(Violation("offsets went back", f"{place}: {before} to {offset}"))
            rows = {key: row for key, row in held.pop((CHANGES, p), []) if key is not None}
            side = max((row[1] for key, row in self._last(transaction, p)), default=0)
            true = expect.rows(p, offset, side)
            if any(true.get(key) != row for key, row in rows.items()):
                self.fail(Violation("changes that the offsets do not say", f"{place}: {rows}"))
            for topic, rows in ((OUTPUT, expect.outputs[p]), (DEAD, expect.dead[p])):
                want = [row for row in rows if before <= row[0] < offset]
                if held.pop((topic, p), []) != want:
                    self.fail(Violation("a transaction's results and offsets differ", f"{topic} {p}: {want}"))
        if not self._along:
            return
        if strays := [place for place in held if place[0] in (OUTPUT, DEAD, CHANGES)]:
            self.fail(Violation("results without their offsets", f"{strays}"))

    @staticmethod
    def _last(transaction: Transaction, partition: int) -> list[Any]:
        segment = transaction.places.get((CHANGES, partition))
        return [] if segment is None else [each for each in segment.values if each[0] is None]

    # -- workers -------------------------------------------------------------------------------------------

    def start_worker(self, slot: str | None = None) -> SimWorker:
        """Another process; under a slot's transactional ids, or new ones."""
        if slot is None:
            self._slots += 1
            slot = f"w{self._slots}"
        self._numbers += 1
        worker = SimWorker(self, slot, self._numbers)
        self.workers.append(worker)
        self._all.append(worker)
        worker.process.on_death = lambda: self._died(worker)
        self.tell("start", worker.name)
        self.loop.spawn(worker.process, worker.main)
        return worker

    def _died(self, worker: SimWorker) -> None:
        self.tell("died", worker.name)
        if worker in self.workers:
            self.workers.remove(worker)
        if worker.leaving or worker.replaced:
            return
        slot = worker.slot if self.random.random() < 0.7 else None
        delay_s = self.random.uniform(0.02, 2.0)
        self.loop.call_later(delay_s, self.start_worker, slot, context=OUTSIDE)

    # -- faults --------------------------------------------------------------------------------------------

    def _later(self, delay_s: float, function: Callable[..., Any], *args: Any) -> None:
        self.loop.call_later(delay_s, function, *args, context=OUTSIDE)

    def _do(self, kind: str) -> None:
        random = self.random
        running = [worker for worker in self.workers if worker.process.alive and not worker.process.stopped]
        self.tell("fault", kind, [worker.name for worker in running])
        if kind == "join":
            if len(self.workers) < 4:
                self.start_worker()
        elif kind == "down":
            self.net.down = True
            self._later(random.uniform(0.1, 2.5), self._up)
        elif kind == "loss":
            self.net.loss = random.uniform(0.1, 0.5)
            self._later(random.uniform(0.2, 2.0), self._no_loss)
        elif not running:
            return
        else:
            self._do_to(random.choice(running), kind)

    def _do_to(self, worker: SimWorker, kind: str) -> None:
        random, loop, process = self.random, self.loop, worker.process
        if kind == "kill":
            loop.kill(process)
        elif kind == "fuse":
            process.fuse = process.steps + random.randint(1, 600)
        elif kind in ("stop", "twin"):
            loop.stop(process)
            self._later(random.uniform(0.05, 4.0), self._go_on, worker)
            if kind == "twin":
                # Thought dead, and another is started under its name.
                worker.replaced = True
                self._later(random.uniform(0.1, 1.0), self.start_worker, worker.slot)
        elif kind == "leave":
            if not worker.leaving:
                worker.hands_over = random.random() < 0.5
                loop.spawn(process, worker.shut_down)
        elif kind == "cut":
            self.net.cut.append(process)
            self._later(random.uniform(0.1, 4.0), self._uncut, process)

    def _up(self) -> None:
        self.net.down = False
        self.tell("up")

    def _no_loss(self) -> None:
        self.net.loss = 0.0 if self.healed else self.plan.loss

    def _go_on(self, worker: SimWorker) -> None:
        if worker.process.stopped:
            self.tell("goes on", worker.name)
            self.loop.go_on(worker.process)

    def _uncut(self, process: Process) -> None:
        if process in self.net.cut:
            self.net.cut.remove(process)

    def _heal(self) -> None:
        self.tell("healed")
        self.healed = True
        self.net.down, self.net.cut = False, []
        self.net.loss = self.net.slow = self.net.twice = 0.0
        self.net.lost = self.net.late = ()
        for worker in self._all:
            worker.process.fuse = -1
            if worker.process.stopped:
                self.loop.go_on(worker.process)
        self._later(2.5, self._man)

    def _man(self) -> None:
        """There has to be someone to do the work."""
        if not any(not worker.leaving for worker in self.workers):
            self.start_worker()

    # -- a run ---------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        random = self.random
        offsets = [0] * self.plan.partitions

        def write(partition: int, hole: bool, record: Any) -> None:
            offset = self.broker.append((INPUT, partition), None if hole else record)
            if not hole:
                self.expect.add(partition, offset, record)

        def write_side(number: int) -> None:
            self.expect.add_side(number)
            self.broker.append((SIDE, 0), number)

        at_s = 0.0
        spread_s = FAULTS_S * random.choice((0.1, 1.0, 1.0)) / self.plan.records
        for _ in range(self.plan.records):
            partition = random.randrange(len(offsets))
            record = (random.randrange(5), random.getrandbits(30), random.random() < 0.04)
            self._later(at_s, write, partition, random.random() < 0.05, record)
            if random.random() < self.plan.sides:
                self._later(at_s, write_side, random.getrandbits(30))
            at_s += random.expovariate(1) * spread_s

    def run(self) -> None:
        """Do it all; raises `Violation` if something does not hold."""
        self.over: asyncio.Future[None] = self.loop.create_future()
        self._feed()
        for at_s, kind in self.plan.faults:
            self._later(at_s, self._do, kind)
        self._later(FAULTS_S + 0.5, self._heal)
        for _ in range(self.plan.workers):
            self._later(self.random.random() * 0.1, self.start_worker)
        self._later(FAULTS_S + 1.0, self._look)
        with self._in_place():
            try:
                self.loop.run(self.over, FAULTS_S + MENDED_S)
            except Stuck:
                self.fail(Violation("undecided", self._undecided()))
            finally:
                self.net.closed = True
                self.loop.close([worker.process for worker in self._all])
        if self.failure is None:
            self._judge()
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        before = engine_module.log, engine_module._IDLE_S
        engine_module.log, engine_module._IDLE_S = SimLog(self), 0.4  # type: ignore[assignment]
        try:
            yield
        finally:
            engine_module.log, engine_module._IDLE_S = before

    def _undecided(self) -> str:
        states = {
            worker.name: (worker.engine.phase.value, worker.engine.in_flight, worker.engine.restoring)
            for worker in self.workers
            if worker.engine
        }
        return f"offsets {self.broker.offsets}, ends {self._ends()}, workers {states}"

    def _ends(self) -> list[int]:
        return [offsets[-1] + 1 if offsets else 0 for offsets in self.expect.offsets]

    def _look(self) -> None:
        """Again and again: is everything decided?"""
        if self._settled():
            self.over.done() or self.over.set_result(None)
        else:
            self._later(0.25, self._look)

    def _settled(self) -> bool:
        if not self.healed or any(
            each.state == "ongoing" or each.preparing for each in self.broker.transactions.values()
        ):
            return False
        ends = self._ends()
        if any(
            self.broker.offsets.get(place, (0,))[0] != end
            for place, end in zip(self.inputs, ends, strict=True)
        ):
            return False
        if any(worker.leaving for worker in self.workers) or not self.workers:
            return False
        if self.broker.group.state != "stable" or len(self.broker.group.members) != len(self.workers):
            return False
        return all(
            worker.engine is not None
            and worker.engine.phase is Phase.RUNNING
            and worker.service is not None
            and worker.service.shared.count >= self.expect.shared_count
            and not worker.service.has_side_inputs()
            and not worker.engine.restoring
            for worker in self.workers
        )

    # -- the judge -----------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Read every topic as any consumer would, and compare with what the input alone says."""
        for p in range(self.plan.partitions):
            for topic, rows in ((OUTPUT, self.expect.outputs[p]), (DEAD, self.expect.dead[p])):
                self._compare(f"{topic} {p}", self._values(topic, p), rows)
            changes = dict(self._values(CHANGES, p))
            _, side = changes.pop(None, (0, 0))
            if changes != self.expect.rows(p, 1 << 60, side):
                raise Violation("changelog differs", f"partition {p}")
        for worker in self.workers:
            service = worker.service
            assert service is not None
            assert worker.engine is not None
            if (service.shared.total, service.shared.count) != (self.expect.shared, self.expect.shared_count):
                raise Violation("shared table differs", worker.name)
            for place, table in service.tables.items():
                if place in worker.engine.ready and table.rows != self.expect.rows(place[1], 1 << 60):
                    raise Violation("state differs", f"{worker.name} {place}")
        for context in self.loop.errors:
            if not isinstance(context.get("exception"), type(None)):
                raise Violation("an error nobody saw", repr(context))

    def _values(self, topic: str, partition: int) -> list[Any]:
        return [value for _, value in self.broker.logs[topic, partition].read(0)[0]]

    @staticmethod
    def _compare(where: str, got: list[Any], want: list[Any]) -> None:
        if got == want:
            return
        seen, wanted = [row[0] for row in got], [row[0] for row in want]
        if len(set(seen)) != len(seen):
            raise Violation("duplicate", f"{where}: {seen}")
        if missing := sorted(set(wanted) - set(seen)):
            raise Violation("lost", f"{where}: {missing}")
        if seen != wanted:
            raise Violation("order", f"{where}: {seen}")
        raise Violation(
            "wrong state in a result",
            f"{where}: {[g for g, w in zip(got, want, strict=False) if g != w][:3]}",
        )
