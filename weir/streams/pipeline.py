"""A group's way through a service: read, score, write, deliver; several groups at once, in order.

    group ──read──▶ scored ──write──▶ outputs ──turn──▶ enqueued ──▶ durable
           │ in order │ a few groups together │ in order

Reading changes the state, so it happens in order and without a pause between its steps. The model's answer
is awaited beside the next group's reading. Groups are delivered in the order in which they were read.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter
from typing import Any

from weir.streams.batch import BatchGroup
from weir.streams.ports import Delivery, Done, Place, Processor, Taken


class Pipeline:
    """Takes groups through a processor; `submit` returns once a group is read, its results follow.

    Args:
        rows_in_flight_max: rows between reading and delivery; `submit` waits beyond it.
        on_failure: called with the first error of a group; the groups after it are not delivered either.
        on_concluded: called when a group is no longer in flight.
    """

    def __init__(
        self,
        processor: Processor,
        delivery: Delivery,
        *,
        rows_in_flight_max: int,
        on_failure: Callable[[BaseException], None],
        on_concluded: Callable[[], None] = lambda: None,
    ) -> None:
        self._processor, self._delivery, self._on_failure = processor, delivery, on_failure
        self._on_concluded = on_concluded
        self._rows_free, self._rows_max = rows_in_flight_max, rows_in_flight_max
        self._some_free = asyncio.Event()
        self._moved = asyncio.Event()
        self._last_turn: asyncio.Event | None = None
        # Of each group in flight: its epoch, and the places whose offsets it moves or sends.
        self._tasks: dict[asyncio.Task[None], tuple[int, frozenset[Place]]] = {}
        self._epoch = 0

    async def submit(self, taken: Sequence[Taken], readable: Callable[[Taken], bool]) -> None:
        """Read the batches now, as one epoch of the state, and conclude them in the background.

        Args:
            readable: asked once more when nothing has to be waited for any more: a partition may have gone.
        """
        group = BatchGroup([each.batch for each in taken])
        # A group larger than the bound goes alone.
        row_count = min(len(group), self._rows_max)
        while self._rows_free < row_count:
            self._some_free.clear()
            await self._some_free.wait()
        await self._processor.prepare(group)
        if not all(map(readable, taken)):
            taken = [each for each in taken if readable(each)]
            group = BatchGroup([each.batch for each in taken])
            row_count = min(len(group), row_count)
        self._epoch += 1
        epoch = self._epoch
        read = self._processor.read(epoch, group)
        next_offsets = dict(self._processor.touched(read))
        next_offsets |= {(each.topic, each.partition): each.offset_last + 1 for each in group.batches}
        self._rows_free -= row_count
        before, turn = self._last_turn, asyncio.Event()
        self._last_turn = turn
        task = asyncio.create_task(self._conclude(epoch, taken, group, read, next_offsets, before, turn))
        self._tasks[task] = (epoch, frozenset(next_offsets))
        task.add_done_callback(lambda done: self._concluded(done, row_count))

    async def _conclude(
        self,
        epoch: int,
        taken: Sequence[Taken],
        group: BatchGroup,
        read: Any,
        next_offsets: Mapping[Place, int],
        before: asyncio.Event | None,
        turn: asyncio.Event,
    ) -> None:
        scored = await self._processor.score(read)
        outputs, counts = await self._processor.write(group, read, scored)
        if before is not None:
            await before.wait()
        begun_s = perf_counter()
        delivered = self._delivery.enqueue(Done(epoch, taken, outputs, next_offsets))
        # Only now: a group that failed keeps those behind it from being delivered.
        turn.set()
        await delivered
        self._processor.counted(group, counts, perf_counter() - begun_s)

    def _concluded(self, task: "asyncio.Task[None]", row_count: int) -> None:
        self._rows_free += row_count
        self._some_free.set()
        del self._tasks[task]
        self._moved.set()
        self._on_concluded()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    @property
    def in_flight(self) -> int:
        """Groups read and not yet delivered."""
        return len(self._tasks)

    @property
    def rows_in_flight(self) -> int:
        """Rows of these groups; of a group larger than the bound, the bound."""
        return self._rows_max - self._rows_free

    def holds(self, places: Collection[Place]) -> bool:
        """Whether a group in flight has a batch of these, or has changed their state."""
        return any(not touched.isdisjoint(places) for _, touched in self._tasks.values())

    async def delivered(self) -> None:
        """Return once every group that was read by now has been delivered; never, when one failed."""
        last = self._epoch
        while any(epoch <= last for epoch, _ in self._tasks.values()):
            self._moved.clear()
            await self._moved.wait()

    async def cancel(self) -> None:
        """End every group where it stands; what they changed is still in the state."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._last_turn = None
