"""What moves batches through a worker, and the four ways in which that ends: revoke, abort, fence, shutdown.

    CLOSED ──start──▶ SUSPENDED ──assigned──▶ RUNNING ──revoked──▶ SUSPENDED
                                                 │ ▲
                                          failed │ │ rolled back, rewound
                                                 ▼ │
                                              ABORTING ──not a member──▶ SUSPENDED
    any ──shutdown──▶ STOPPED          any ──fenced, or not to be mended──▶ given up

A revoke lets what is in flight commit, within a deadline; an abort never waits for it. Each puts the state
back to the last commit if something did not get there. Every move has the worker to itself.
"""

import asyncio
import contextlib
import enum
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from weir.errors import WeirError
from weir.kafka.errors import Fenced, NotMember
from weir.obs.log import get_logger
from weir.streams.gather import Gatherer
from weir.streams.pipeline import Pipeline
from weir.streams.ports import Committed, Delivery, Place, Processor, Source, Taken

log = get_logger("weir.streams.engine")

T = TypeVar("T")

_RETRY_S, _RETRY_MAX_S = 0.1, 5.0
# How long a revoke goes on, beyond its drain deadline, to decide the transactions that it left open.
_SETTLE_S = 2.0
# After so long without a batch, what came beside the batches enters the state all the same.
_IDLE_S = 0.1
# The group has put this worker out, and never told it of its new generation.
_REJOIN_S = 120.0


class Phase(enum.Enum):
    """Where a worker stands; see the module."""

    CLOSED = "closed"
    SUSPENDED = "suspended"
    RUNNING = "running"
    ABORTING = "aborting"
    STOPPED = "stopped"


class Engine:
    """Drives one worker.

    Args:
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
        self._gatherer = Gatherer(group_rows_max, linger_s)
        self._pipeline = Pipeline(
            processor, self._delivery, rows_in_flight_max=rows_in_flight_max, on_failure=self._failed
        )
        self._drain_deadline_s = drain_deadline_s
        self._phase = Phase.CLOSED
        self._held: set[Place] = set()
        self._ready: set[Place] = set()
        self._restoring: dict[Place, asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._abort: asyncio.Task[None] | None = None
        self._move = asyncio.Lock()
        # What the group's offset of a place said when its state was restored.
        self._restored_at: dict[Place, Committed] = {}
        # A move left transactions undecided: the next one has to settle them first.
        self._unsettled = False
        self._failure = asyncio.Event()
        self._rejoin: asyncio.TimerHandle | None = None
        self._failures = 0
        self._failed_at_s = 0.0

    @property
    def phase(self) -> Phase:
        """Where the worker stands."""
        return self._phase

    @property
    def in_flight(self) -> int:
        """Groups read and not yet delivered."""
        return self._pipeline.in_flight

    @property
    def restoring(self) -> int:
        """Partitions whose state is on its way."""
        return len(self._restoring)

    async def start(self) -> None:
        """Connect; nothing is handed out before `assigned`."""
        await self._delivery.start()
        self._phase = Phase.SUSPENDED

    async def put(self, taken: Taken) -> None:
        """Hand a batch over; waits while enough are waiting."""
        await self._gatherer.put(taken)

    # -- moves ---------------------------------------------------------------------------------------------

    async def assigned(self, places: Iterable[Place]) -> None:
        """The group says what is ours: keep, drop, and restore the rest beside the deciding."""
        now = set(places)
        async with self._move:
            if self._phase is Phase.STOPPED:
                return
            await self._halt()
            if self._unsettled:
                await self._settle()
            for place in sorted(self._held - await self._unmoved(self._held & now)):
                await self._let_go(place)
                self._held.discard(place)
            new = sorted(now - self._held)
            self._held = now
            self._source.hold(sorted(now - self._ready))
            await self._rewind()
            for place in new:
                task = self._restoring[place] = asyncio.create_task(self._restore(place))
                task.add_done_callback(self._move_ended)
            self._go()

    async def revoked(self) -> None:
        """A rebalance begins: commit what is in flight, or put it back, within the drain deadline."""
        ends = time.monotonic() + self._drain_deadline_s
        await self._end_abort(ends)
        async with self._move:
            if self._phase is Phase.STOPPED:
                return
            await self._stop_reading()
            await self._drain(max(ends - time.monotonic(), 0))
            await self._halt()
            self._suspend()
            if self._unsettled:
                # The next owner waits for our transactions to be decided: now, if the broker answers.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLE_S):
                        await self._settle()

    async def shutdown(self) -> None:
        """Commit what is in flight within the drain deadline, then disconnect; nothing is begun any more."""
        await self.revoked()
        async with self._move:
            for place in list(self._restoring):
                await self._cancel_restore(place)
            self._phase = Phase.STOPPED
            await self._delivery.stop()

    def _failed(self, error: BaseException) -> None:
        """What the pipeline or the delivery met: mended by an abort, or the end of the worker."""
        if self._phase is Phase.STOPPED:
            return
        self._unsettled = True
        self._failure.set()
        if isinstance(error, Fenced) or not (isinstance(error, WeirError) and error.retriable):
            self._on_fatal(error)
        elif self._abort is None or self._abort.done():
            self._abort = asyncio.create_task(self._abort_and_go_on(error))
            self._abort.add_done_callback(self._move_ended)

    async def _abort_and_go_on(self, error: BaseException) -> None:
        async with self._move:
            if self._phase is not Phase.RUNNING:
                # A revoke was faster: what follows it settles.
                return
            self._phase = Phase.ABORTING
            log.warning("transaction_aborted", error=str(error), groups=self._pipeline.in_flight)
            await self._halt()
            await asyncio.sleep(self._pause_s())
            await self._settle()
            if isinstance(error, NotMember):
                # Reading on would fail the same way: the group's new generation comes with `assigned`.
                self._suspend()
                loop = asyncio.get_running_loop()
                self._rejoin = loop.call_later(_REJOIN_S, self._not_rejoined, error)
                return
            await self._rewind()
            self._go()

    # -- the steps of a move -------------------------------------------------------------------------------

    def _suspend(self) -> None:
        self._phase = Phase.SUSPENDED

    def _not_rejoined(self, error: BaseException) -> None:
        if self._phase is Phase.SUSPENDED:
            self._on_fatal(error)

    def _go(self) -> None:
        self._phase = Phase.RUNNING
        if self._rejoin is not None:
            self._rejoin.cancel()
            self._rejoin = None
        self._loop = asyncio.create_task(self._read_on())
        self._loop.add_done_callback(self._move_ended)

    async def _read_on(self) -> None:
        while True:
            taken = await self._gatherer.take(_IDLE_S)
            group = [each for each in taken if each.current]
            # An empty group lets what came beside the batches enter the state.
            if group or self._processor.has_side_inputs():
                await self._pipeline.submit(group)

    async def _stop_reading(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
            self._loop = None
        # What waits has changed nothing; it is handed out again.
        await self._gatherer.clear()

    async def _drain(self, deadline_s: float) -> None:
        """Wait until all that was read is delivered, or something failed."""
        waits = [
            asyncio.create_task(self._pipeline.wait_idle()),
            asyncio.create_task(self._failure.wait()),
        ]
        done, _ = await asyncio.wait(waits, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        if not done:
            log.warning("drain_deadline_passed", groups=self._pipeline.in_flight, waited_s=deadline_s)

    async def _halt(self) -> None:
        await self._stop_reading()
        if self._pipeline.in_flight:
            self._unsettled = True
        await self._pipeline.cancel()

    async def _settle(self) -> None:
        """Decide what is open, and put the state back to the last commit; tries until it can."""
        await self._until_answered(lambda: self._delivery.recover(sorted(self._held)))
        self._processor.roll_back(self._delivery.committed_epoch + 1)
        self._unsettled = False
        self._failure.clear()

    async def _unmoved(self, places: set[Place]) -> set[Place]:
        """Those whose state is still the newest: nobody owned them in between without our knowing."""
        asked = sorted(places & self._ready)
        committed = await self._until_answered(lambda: self._delivery.committed(asked)) if asked else {}
        unmoved = places - self._ready
        for place in asked:
            at = committed[place]
            ours = at.owner == self._delivery.owner or at == self._restored_at.get(place)
            if ours and (at.offset is None or at.offset == self._processor.position(place)):
                unmoved.add(place)
        return unmoved

    async def _rewind(self) -> None:
        for place in sorted(self._ready & self._held):
            await self._source.rewind(place, self._processor.position(place))

    async def _restore(self, place: Place) -> None:
        committed = (await self._until_answered(lambda: self._delivery.committed([place])))[place]
        offset = await self._until_answered(lambda: self._processor.restore(place, committed.offset))
        self._restored_at[place] = committed
        await self._source.rewind(place, offset)
        self._ready.add(place)
        del self._restoring[place]
        self._source.let_go([place])

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

    async def _let_go(self, place: Place) -> None:
        await self._cancel_restore(place)
        self._ready.discard(place)
        self._restored_at.pop(place, None)
        self._processor.drop(place)

    async def _cancel_restore(self, place: Place) -> None:
        if (task := self._restoring.pop(place, None)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _end_abort(self, ends: float) -> None:
        """Let an abort that is under way finish, but not past the deadline: the broker may be away."""
        abort = self._abort
        if abort is None or abort.done():
            return
        _, late = await asyncio.wait([abort], timeout=max(ends - time.monotonic(), 0))
        if late:
            abort.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([abort])

    def _pause_s(self) -> float:
        """Longer from failure to failure, as long as they follow one another closely."""
        now_s = time.monotonic()
        self._failures = self._failures + 1 if now_s - self._failed_at_s < 2 * _RETRY_MAX_S else 0
        self._failed_at_s = now_s
        return min(_RETRY_S * 2**self._failures, _RETRY_MAX_S) if self._failures else 0.0

    def _move_ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fatal(error)
