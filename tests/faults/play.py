"""One run: a bank pays, workers decide, a schedule's faults befall them, then the topics are checked."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.faults import actions
from tests.faults.bank import Bank
from tests.faults.checker import Anomaly, Finding, History, anomalies, check
from tests.faults.history import LiveReader, collect, committed_offsets, end_offsets
from tests.faults.schedule import FAULTS, Fault, Kind, Part, Schedule
from tests.support.cluster import Cluster, ClusterWorker
from weir.streams.engine_app import EXACTLY_ONCE

PARTITIONS = 4
RATE_PER_S = 250.0
# So that a run of seconds meets what a bank meets in a day.
SETTINGS = {"session_timeout_s": 6, "commit_interval_s": 0.3, "snapshot_interval_s": 2}
# On a machine that never ran a worker its loops are compiled first.
READY_DEADLINE_S = 150.0
# After the last fault is over; what is not decided by then is found to be unseen.
SETTLE_DEADLINE_S = 60.0
_WATCH_S = 0.2
_START_AGAIN_S = 0.5
# A set clock makes sound payments look as if they came from the future, or from long ago.
_CLOCK_REASONS = frozenset({"event_in_future", "event_too_old"})


@dataclass
class Outcome:
    """What came of a run."""

    schedule: Schedule
    history: History
    findings: list[Finding]
    seconds: float
    notes: list[str]
    exits: Counter[str] = field(default_factory=Counter)

    @property
    def anomalies(self) -> set[Anomaly]:
        return anomalies(self.findings)

    @property
    def degraded_count(self) -> int:
        return sum(each.logit is None for each in self.history.decisions)

    def __str__(self) -> str:
        found = "; ".join(map(str, self.findings)) or "nothing found"
        exits = ", ".join(f"{name} x{count}" for name, count in sorted(self.exits.items()))
        lines = [
            str(self.schedule),
            *(f"  note: {note}" for note in self.notes),
            f"  ended by themselves: {exits or 'none'}",
            f"  {len(self.history.inputs)} inputs, {len(self.history.decisions)} decisions, "
            f"{self.degraded_count} degraded, {len(self.history.letters)} dead letters, "
            f"{len(self.history.rows)} changelog rows, {len(self.history.journal)} batches, "
            f"{self.seconds:.1f} s",
            f"  {found}",
        ]
        return "\n".join(lines)


class Play:
    """A run in progress; what `actions.Run` asks for."""

    def __init__(self, cluster: Cluster, schedule: Schedule, workers: list[ClusterWorker]) -> None:
        self.cluster, self.schedule, self.workers = cluster, schedule, workers
        topics = workers[0].topics
        self._servers, self._topics = cluster.kafka.bootstrap_servers, topics
        self.bank = Bank(self._servers, topics, schedule.seed, PARTITIONS, RATE_PER_S)
        self._live = LiveReader(self._servers, topics.decisions)
        self._notes: list[str] = []
        self._exits: Counter[str] = Counter()
        self._unwatched: Counter[str] = Counter()
        self._places: dict[str, asyncio.Lock] = {}
        self._began_s = 0.0

    def worker(self, name: str) -> ClusterWorker:
        return self.workers[-1] if name == "spare" else next(w for w in self.workers if w.name == name)

    def note(self, text: str) -> None:
        self._notes.append(f"{time.monotonic() - self._began_s:5.1f} s  {text}")

    @contextmanager
    def unwatched(self, name: str) -> Iterator[None]:
        self._unwatched[name] += 1
        try:
            yield
        finally:
            self._unwatched[name] -= 1

    async def run(self) -> Outcome:
        """The whole of it; the workers have ended when it returns."""
        begun_s = time.monotonic()
        for worker in self.workers[: self.schedule.worker_count]:
            worker.start(wait=False)
        for worker in self.workers[: self.schedule.worker_count]:
            await asyncio.to_thread(worker.wait_ready, READY_DEADLINE_S)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            live = group.create_task(self._live.run())
            bank = group.create_task(self.bank.run())
            self._began_s = time.monotonic()
            await asyncio.gather(self._until(self.schedule.seconds), *map(self._befall, self.schedule.faults))
            self.bank.ending = True
            await bank
            # Not in a thread: what starts a server must live as long as it.
            self.cluster.mend()
            await actions.whole(self.cluster, self.note)
            await self._settled()
            watch.cancel()
            await asyncio.gather(*(actions.stop(self, worker) for worker in self.workers))
            live.cancel()
        clocks = any(each.kind is Kind.CLOCK_JUMP for each in self.schedule.faults)
        history = await collect(
            self.workers[0], self.bank, self._live.seen, _CLOCK_REASONS if clocks else frozenset()
        )
        return Outcome(
            self.schedule, history, check(history), time.monotonic() - begun_s, self._notes, self._exits
        )

    async def _befall(self, fault: Fault) -> None:
        await self._until(fault.at_s)
        place = "brokers" if FAULTS[fault.kind].part is Part.BROKER else fault.target
        async with self._places.setdefault(place, asyncio.Lock()):
            await actions.act(self, fault)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(self._began_s + at_s - time.monotonic(), 0))

    async def _watch(self) -> None:
        """What a supervisor does in a bank: start again what ended by itself."""
        while True:
            await asyncio.sleep(_WATCH_S)
            for worker in self.workers:
                if worker.wanted and not worker.running:
                    assert worker.process is not None
                    self._exits[f"{worker.name} with {worker.process.returncode}"] += 1
                    await asyncio.sleep(_START_AGAIN_S)
                    if worker.wanted and not worker.running:
                        worker.start(wait=False)
            for broker in self.cluster.brokers:
                if broker.server.pid is None and not self._unwatched[broker.name]:
                    self._exits[broker.name] += 1
                    broker.server.kill()
                    broker.server.start()

    async def _settled(self) -> None:
        """Return once the group has committed every input, or the deadline has passed."""
        ends_s = time.monotonic() + SETTLE_DEADLINE_S
        ends = {
            place.partition: end
            for place, end in (
                await end_offsets(self._servers, [self._topics.transactions], committed=True)
            ).items()
            if end
        }
        while True:
            committed = await committed_offsets(self._servers, self._topics.transactions)
            behind = {part: end for part, end in ends.items() if committed.get(part, 0) < end}
            if not behind:
                return
            if time.monotonic() > ends_s:
                self.note(f"not settled: {len(behind)} partitions behind")
                return
            await asyncio.sleep(_WATCH_S)


async def play(
    cluster: Cluster,
    schedule: Schedule,
    *,
    guarantee: str = EXACTLY_ONCE,
    module: Sequence[str] = ("services.risk",),
    **overrides: Any,
) -> Outcome:
    """Run the schedule on topics of its own; what came of it. A run that breaks off leaves the cluster whole.

    Args:
        guarantee: [risk] processing_guarantee. overrides: of other fields of [risk].
        module: what each worker runs, with its arguments.
    """
    # Every other seed has standbys, near enough to matter in a run of seconds.
    standbys = {"standby_replicas": schedule.seed % 2, "standby_lag_max": 200}
    settings = {**SETTINGS, **standbys, "processing_guarantee": guarantee, **overrides}
    # The last is a spare, for the fault in which one joins.
    count = schedule.worker_count + 1
    try:
        with cluster.workers(count, partitions=PARTITIONS, module=module, **settings) as workers:
            outcome = await Play(cluster, schedule, workers).run()
    except BaseException as error:  # told onwards, with what was being done; the cluster serves the next run
        error.add_note(f"while this schedule was done:\n{schedule}")
        cluster.mend()
        await actions.whole(cluster, error.add_note)
        raise
    topics = workers[0].topics.model_dump()
    cluster.kafka.delete_topics([str(name) for name in topics.values() if "." in str(name)])
    return outcome
