"""What moves batches through a worker, and the ways in which that ends: revoke, evict, abort, shutdown.

    CLOSED ──start──▶ RUNNING ──shutdown──▶ STOPPED
                        │ ▲
                 failed │ │ rolled back to the last commit, rewound
                        ▼ │
                      ABORTING                any ──fenced, or not to be mended──▶ given up

    assigned   new partitions are restored beside the deciding on the others
    revoked    what was read of the lost partitions commits, within a deadline; the others go on meanwhile
    evicted    the lost partitions may be another's already: what is in flight is rolled back
    failed     a transaction cannot commit: what is in flight is rolled back, and read again
    shutdown   what is in flight commits, within a deadline

Each is a move of its own and has the worker to itself; none is a flag on another's way.
"""

import asyncio
import enum
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from weir.errors import WeirError
from weir.kafka.errors import Fenced
from weir.obs.log import get_logger
from weir.streams.gather import Gatherer
from weir.streams.pipeline import Pipeline
from weir.streams.ports import Delivery, Place, Processor, Source, Taken

log = get_logger("weir.streams.engine")

T = TypeVar("T")

_RETRY_S, _RETRY_MAX_S = 0.05, 5.0
# Failures that follow one another within this time are one trouble: each waits longer.
_SAME_TROUBLE_S = 10.0
# How long a move that must not wait for ever goes on to decide the transactions that it left open.
_SETTLE_S = 2.0
# After so long without a batch, what came beside the batches enters the state all the same.
_IDLE_S = 0.1


class Phase(enum.Enum):
    """Where a worker stands; see the module."""

    CLOSED = "closed"
    RUNNING = "running"
    ABORTING = "aborting"
    STOPPED = "stopped"


class Engine:
    """Drives one worker.

    Args:
        delivery: makes the delivery from what to call at a failure and after a commit.
        rows_in_flight_max: rows between reading and delivery.
        group_rows_max: rows that are read together.
        linger_s: how long an idle worker waits for a fetch's other partitions.
        drain_deadline_s: how long a revoke or a shutdown waits for what is in flight; then it is rolled back.
        on_fatal: called with an error that ends the worker.
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        delivery: Callable[[Callable[[BaseException], None], Callable[[int], None]], Delivery],
        *,
        rows_in_flight_max: int,
        group_rows_max: int,
        linger_s: float,
        drain_deadline_s: float,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._source, self._processor, self._on_fatal = source, processor, on_fatal
        self._delivery = delivery(self._failed, processor.release)
        self._gatherer = Gatherer(group_rows_max, linger_s, lambda: self._pipeline.in_flight > 0)
        self._pipeline = Pipeline(
            processor,
            self._delivery,
            rows_in_flight_max=rows_in_flight_max,
            on_failure=self._failed,
            on_concluded=self._gatherer.nudge,
        )
        self._drain_deadline_s = drain_deadline_s
        self._phase = Phase.CLOSED
        # Ours and restored; ours and on its way.
        self._ready: set[Place] = set()
        self._restoring: dict[Place, asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._abort: asyncio.Task[None] | None = None
        self._move = asyncio.Lock()
        # Set between a failure and the roll back that mends it.
        self._broken = asyncio.Event()
        self._failures = 0
        self._failed_at_s = float("-inf")

    @property
    def phase(self) -> Phase:
        """Where the worker stands."""
        return self._phase

    @property
    def ready(self) -> frozenset[Place]:
        """The partitions that are decided on."""
        return frozenset(self._ready)

    @property
    def restoring(self) -> frozenset[Place]:
        """The partitions whose state is on its way."""
        return frozenset(self._restoring)

    @property
    def in_flight(self) -> int:
        """Groups read and not yet delivered."""
        return self._pipeline.in_flight

    @property
    def rows_in_flight(self) -> int:
        """Rows of these groups: never more than `rows_in_flight_max`."""
        return self._pipeline.rows_in_flight

    async def start(self) -> None:
        """Connect, and read what is handed over."""
        await self._delivery.start()
        self._go()

    async def put(self, taken: Taken) -> None:
        """Hand a batch over; waits while enough are waiting."""
        await self._gatherer.put(taken)

    # -- moves ---------------------------------------------------------------------------------------------

    async def assigned(self, now: Collection[Place]) -> None:
        """All that is ours; what is new is restored beside the rest, and handed out once it is here."""
        async with self._move:
            if self._phase is Phase.STOPPED:
                return
            new = set(now) - self._ready - self._restoring.keys()
            self._source.hold(sorted(new))
            for place in sorted(new):
                task = asyncio.create_task(self._restore(place))
                self._restoring[place] = task
                task.add_done_callback(self._watch)

    async def revoked(self, lost: Collection[Place]) -> None:
        """These go to another once this returns; what was read of them has committed then, or is undone."""
        async with self._move:
            going = await self._close(lost)
            if going:
                await self._drain()
                if self._broken.is_set() or self._pipeline.holds(going):
                    await self._roll_back(_SETTLE_S, going)

    async def evicted(self, lost: Collection[Place]) -> None:
        """The group has put this worker out: nothing of these commits any more."""
        async with self._move:
            going = await self._close(lost)
            if going:
                log.warning("evicted", partitions=len(going), groups=self._pipeline.in_flight)
                await self._roll_back(_SETTLE_S, going)

    async def shutdown(self) -> None:
        """Commit what is in flight within the drain deadline, then disconnect; nothing is begun any more."""
        if self._abort is not None and not self._abort.done():
            # It waits for a broker, perhaps for long; what it would put back is not needed any more.
            self._abort.cancel()
            await asyncio.wait([self._abort])
        async with self._move:
            if self._phase is Phase.STOPPED:
                return
            await self._stop_reading()
            await self._cancel_restores(list(self._restoring))
            if self._phase is Phase.RUNNING and not self._broken.is_set():
                await self._drain()
            self._phase = Phase.STOPPED
            await self._pipeline.cancel()
            await self._delivery.stop()

    def _failed(self, error: BaseException) -> None:
        """What the pipeline or the delivery met: mended by an abort, or the end of the worker."""
        if self._phase in (Phase.STOPPED, Phase.CLOSED):
            return
        self._broken.set()
        if isinstance(error, Fenced) or not (isinstance(error, WeirError) and error.retriable):
            self._on_fatal(error)
        elif self._abort is None or self._abort.done():
            self._abort = asyncio.create_task(self._abort_move(error))
            self._abort.add_done_callback(self._watch)

    async def _abort_move(self, error: BaseException) -> None:
        async with self._move:
            # Another move may have rolled back while this one waited for its turn.
            if self._broken.is_set() and self._phase is not Phase.STOPPED:
                log.warning("transaction_aborted", error=str(error), groups=self._pipeline.in_flight)
                await self._roll_back(None, ())

    # -- the steps of a move -------------------------------------------------------------------------------

    def _go(self) -> None:
        self._phase = Phase.RUNNING
        self._loop = asyncio.create_task(self._read_on())
        self._loop.add_done_callback(self._watch)

    async def _read_on(self) -> None:
        while True:
            waiting = await self._gatherer.take(_IDLE_S)
            group = [each for each in waiting if self._readable(each)]
            # An empty group lets what came beside the batches enter the state.
            if group or self._processor.has_side_inputs():
                await self._pipeline.submit(group, self._readable)

    def _readable(self, taken: Taken) -> bool:
        return taken.current and _place(taken) in self._ready

    async def _stop_reading(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
            self._loop = None

    async def _close(self, lost: Collection[Place]) -> set[Place]:
        """From now on nothing is read of these; returns those among them that had been read."""
        if self._phase is Phase.STOPPED:
            return set()
        going = set(lost) & self._ready
        self._source.hold(sorted(going))
        self._ready -= going
        # Now, not once all is delivered: groups of other partitions are read on, and what comes beside them
        # would change the state of these as well, in transactions that end after another has got them.
        for place in going:
            self._processor.drop(place)
        # Last, because it waits, and a restore that ends meanwhile would be taken for one that was ready.
        await self._cancel_restores(set(lost) & self._restoring.keys())
        return going

    async def _drain(self) -> None:
        """Wait until all that was read by now is delivered, something failed, or the deadline passed."""
        waits = [
            asyncio.create_task(self._pipeline.delivered()),
            asyncio.create_task(self._broken.wait()),
        ]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=self._drain_deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        if not done:
            log.warning(
                "drain_deadline_passed", groups=self._pipeline.in_flight, waited_s=self._drain_deadline_s
            )

    async def _roll_back(self, deadline_s: float | None, going: Collection[Place]) -> None:
        """End what is in flight, put the state back to the last commit, and read on from there.

        Args:
            deadline_s: how long the broker may take to decide what is open; then everything is restored anew.
            going: partitions that are not read on.
        """
        self._phase = Phase.ABORTING
        await self._stop_reading()
        await self._pipeline.cancel()
        # What waits has changed nothing; it is handed out again.
        await self._gatherer.clear()
        await asyncio.sleep(self._pause_s())
        held = sorted(self._ready)
        try:
            async with asyncio.timeout(deadline_s):
                await self._until_answered(self._delivery.recover)
        except TimeoutError:
            self._on_fatal(Undecided(deadline_s or 0.0))
            return
        self._processor.roll_back(self._delivery.committed_epoch + 1)
        self._broken.clear()
        for place in held:
            await self._source.rewind(place, self._processor.position(place))
        self._go()

    async def _restore(self, place: Place) -> None:
        committed = (await self._until_answered(lambda: self._delivery.committed([place])))[place]
        offset = await self._until_answered(lambda: self._processor.restore(place, committed))
        if self._restoring.get(place) is not asyncio.current_task():
            # Lost meanwhile: aiokafka's `close` swallows a cancellation that comes while it waits itself.
            return
        # No pause between these: a move sees the partition on its way, or here.
        self._ready.add(place)
        del self._restoring[place]
        await self._source.rewind(place, offset)
        if place in self._ready:
            self._source.let_go([place])

    async def _cancel_restores(self, places: Collection[Place]) -> None:
        tasks = [self._restoring.pop(place) for place in sorted(places)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for place in places:
            self._processor.drop(place)

    async def _until_answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again and again while the neighbour is away; another error is the caller's."""
        wait_s = _RETRY_S
        while True:
            try:
                return await ask()
            except WeirError as error:
                if not error.retriable:
                    raise
                log.warning("asked_again", phase=self._phase.value, error=str(error))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _RETRY_MAX_S)

    def _pause_s(self) -> float:
        """None before the first of several failures, then longer from one to the next."""
        now_s = asyncio.get_running_loop().time()
        self._failures = self._failures + 1 if now_s - self._failed_at_s < _SAME_TROUBLE_S else 0
        self._failed_at_s = now_s
        return min(_RETRY_S * 2 ** (self._failures - 1), _RETRY_MAX_S) if self._failures else 0.0

    def _watch(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fatal(error)


class Undecided(WeirError):
    """Partitions had to be given away while the broker did not say what had become of their transactions."""

    def __init__(self, waited_s: float) -> None:
        self.waited_s = waited_s
        super().__init__(
            f"Kafka did not say within {waited_s:.0f} s whether the last transactions committed, and the "
            "group gives their partitions away: the worker begins anew from what is committed."
        )


def _place(taken: Taken) -> Place:
    return taken.batch.topic, taken.batch.partition
