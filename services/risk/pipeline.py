"""A batch's way through the service: read, score, decide, seal, publish; several batches at once, in order.

    group ──read──▶ features ──model──▶ scores ──write──▶ sealed ──turn──▶ enqueued ──▶ finished
           │ in order                │ a few groups together │ in order

Reading changes the windows, so it happens in order and without a pause between its steps. The model's answer
is awaited beside the next group's reading. Groups are published in the order in which they were read.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter

from services.risk.ports import Preparer, Reader, Scorer, Writer
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.streams import BatchGroup, Delivery, TakenBatch

log = get_logger("weir.risk.pipeline")


class Pipeline:
    """Decides groups of batches; `submit` returns once a group is read, its results follow.

    Args:
        prepare: what reading may have to wait for, before it begins.
        read: the first half, synchronous.
        score: asks the model; None and a reason when it gave no answer.
        write: the second half; waits for a sealing key when there is none.
        delivery: publishes and finishes.
        rows_in_flight_max: rows between reading and delivery; `submit` waits beyond it.
        on_failure: called with an error that nobody can mend here; the batches stay unfinished.
    """

    def __init__(
        self,
        *,
        prepare: Preparer,
        read: Reader,
        score: Scorer,
        write: Writer,
        delivery: Delivery,
        metrics: Metrics,
        rows_in_flight_max: int,
        on_failure: Callable[[BaseException], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._prepare, self._read, self._score, self._write = prepare, read, score, write
        self._delivery, self._metrics, self._now_ms = delivery, metrics, now_ms
        self._on_failure = on_failure
        self._rows_free, self._rows_max = rows_in_flight_max, rows_in_flight_max
        self._some_free = asyncio.Event()
        self._last_turn: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, taken: Sequence[TakenBatch]) -> None:
        """Read the batches now and conclude them in the background."""
        group = BatchGroup([each.batch for each in taken])
        # A group larger than the bound goes alone.
        row_count = min(len(group), self._rows_max)
        while self._rows_free < row_count:
            self._some_free.clear()
            await self._some_free.wait()
        await self._prepare(group)
        read = self._read(group)
        self._rows_free -= row_count
        before, turn = self._last_turn, asyncio.Event()
        self._last_turn = turn
        task = asyncio.create_task(self._conclude(taken, group, read, before, turn))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._concluded(done, row_count))

    async def _conclude(
        self,
        taken: Sequence[TakenBatch],
        group: BatchGroup,
        read: object,
        before: asyncio.Event | None,
        turn: asyncio.Event,
    ) -> None:
        try:
            scored = await self._score(read)
            outputs, counts = await self._write(group, read, scored)
            if before is not None:
                await before.wait()
            begun_s = perf_counter()
            delivered = await self._delivery.enqueue(taken, outputs)
        finally:
            turn.set()
        await delivered
        self._metrics.stage("send", perf_counter() - begun_s)
        self._metrics.decided(counts)
        stamps, now_ms = group.timestamps_ms, self._now_ms()
        self._metrics.latency([(now_ms - stamps[0]) / 1000, (now_ms - stamps[-1]) / 1000])

    def _concluded(self, task: "asyncio.Task[None]", row_count: int) -> None:
        self._rows_free += row_count
        self._some_free.set()
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    @property
    def in_flight(self) -> int:
        """Groups read and not yet delivered."""
        return len(self._tasks)

    async def close(self, deadline_s: float) -> None:
        """Let the groups in flight conclude, at most `deadline_s`, then cancel the rest."""
        if self._tasks:
            _, pending = await asyncio.wait(set(self._tasks), timeout=deadline_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
