"""A batch's way through the service: read, score, decide, seal, publish; several batches at once, in order.

    taken ──read──▶ features ──model──▶ scores ──write──▶ sealed ──turn──▶ enqueued ──▶ finished
             │ in the order of the fetches │ a few batches together │ a partition's in order

Reading changes the windows, so it happens in order and without a pause between its steps. The model's answer
is awaited beside the next batch's reading. A partition's batches are published in the order they came.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter

from services.risk.ports import Reader, Scorer, Writer
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.streams import Delivery, TakenBatch

log = get_logger("weir.risk.pipeline")


class Pipeline:
    """Decides batches; `submit` returns once the batch is read, its results follow.

    Args:
        read: the first half, synchronous.
        score: asks the model; None and a reason when it gave no answer.
        write: the second half; waits for a sealing key when there is none.
        delivery: publishes and finishes.
        in_flight_max: batches between reading and delivery; `submit` waits beyond it.
        on_failure: called with an error that nobody can mend here; the batch stays unfinished.
    """

    def __init__(
        self,
        *,
        read: Reader,
        score: Scorer,
        write: Writer,
        delivery: Delivery,
        metrics: Metrics,
        in_flight_max: int,
        on_failure: Callable[[BaseException], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._read, self._score, self._write = read, score, write
        self._delivery, self._metrics, self._now_ms = delivery, metrics, now_ms
        self._on_failure = on_failure
        self._slots = asyncio.Semaphore(in_flight_max)
        self._turns: dict[tuple[str, int], asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, taken: TakenBatch) -> None:
        """Read the batch now and conclude it in the background."""
        await self._slots.acquire()
        try:
            read = self._read(taken.batch)
        except BaseException:
            self._slots.release()
            raise
        where = (taken.batch.topic, taken.batch.partition)
        before, turn = self._turns.get(where), asyncio.Event()
        self._turns[where] = turn
        task = asyncio.create_task(self._conclude(taken, read, before, turn))
        self._tasks.add(task)
        task.add_done_callback(self._concluded)

    async def _conclude(
        self, taken: TakenBatch, read: object, before: asyncio.Event | None, turn: asyncio.Event
    ) -> None:
        try:
            scored = await self._score(read)
            outputs, counts = await self._write(taken.batch, read, scored)
            if before is not None:
                await before.wait()
            begun_s = perf_counter()
            delivered = await self._delivery.enqueue(taken, outputs)
        finally:
            turn.set()
        await delivered
        self._metrics.stage("send", perf_counter() - begun_s)
        self._metrics.decided(counts)
        stamps, now_ms = taken.batch.timestamps_ms, self._now_ms()
        self._metrics.latency([(now_ms - stamps[0]) / 1000, (now_ms - stamps[-1]) / 1000])

    def _concluded(self, task: "asyncio.Task[None]") -> None:
        self._slots.release()
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    @property
    def in_flight(self) -> int:
        """Batches read and not yet delivered."""
        return len(self._tasks)

    async def close(self, deadline_s: float) -> None:
        """Let the batches in flight conclude, at most `deadline_s`, then cancel the rest."""
        if self._tasks:
            _, pending = await asyncio.wait(set(self._tasks), timeout=deadline_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
