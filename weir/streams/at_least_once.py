"""At-least-once delivery: published by an idempotent producer, the input's offsets committed afterwards.

A crash between the two publishes a batch again, with the same decision ids.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from weir.kafka.records import AnyOutput
from weir.streams.ports import Done, Place


class Publisher(Protocol):
    """`weir.kafka.idempotent.IdempotentProducer`."""

    async def start(self) -> None:
        """Connect."""

    async def produce(self, outputs: Sequence[AnyOutput]) -> None:
        """Return when all is acknowledged; calls under way together keep each partition's order."""

    async def stop(self) -> None:
        """Disconnect."""


class AtLeastOnce:
    """See `weir.streams.ports.Delivery`.

    Args:
        committed: asks the group's coordinator.
        on_failure: called once with the error; then `recover` is expected.
        on_committed: called with the last epoch of those that are published, in order.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        committed: Callable[[Sequence[Place]], Awaitable[Mapping[Place, int | None]]],
        on_failure: Callable[[BaseException], None],
        on_committed: Callable[[int], None],
    ) -> None:
        self._publisher, self._ask = publisher, committed
        self._on_failure, self._on_committed = on_failure, on_committed
        self._under_way: deque[tuple[Done, asyncio.Task[None], asyncio.Future[None]]] = deque()
        self._committed_epoch = 0
        self._failed = False

    @property
    def committed_epoch(self) -> int:
        """Every epoch up to this one is published."""
        return self._committed_epoch

    async def start(self) -> None:
        """Connect."""
        await self._publisher.start()

    def enqueue(self, done: Done) -> "asyncio.Future[None]":
        """Publish a group; see `weir.streams.ports.Delivery`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failed:
            future.cancel()
            return future
        task = asyncio.create_task(self._publisher.produce(done.outputs))
        self._under_way.append((done, task, future))
        task.add_done_callback(self._published)
        return future

    def _published(self, task: "asyncio.Task[None]") -> None:
        if self._failed or task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._failed = True
            self._on_failure(error)
            return
        # Later groups may be acknowledged sooner: only what has nothing open before it counts.
        while self._under_way and self._under_way[0][1].done():
            done, _, future = self._under_way.popleft()
            for each in done.taken:
                each.finish()
            self._committed_epoch = done.epoch
            if not future.done():
                future.set_result(None)
            self._on_committed(done.epoch)

    async def recover(self) -> None:
        """Let what is under way end, and begin anew; what was not acknowledged is published again."""
        self._failed = True
        tasks = [task for _, task, _ in self._under_way]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for _, _, future in self._under_way:
            future.cancel()
        self._under_way.clear()
        self._failed = False

    async def committed(self, places: Sequence[Place]) -> Mapping[Place, int | None]:
        """The group's committed offsets."""
        return await self._ask(places)

    async def stop(self) -> None:
        """End what is under way, and disconnect."""
        await self.recover()
        await self._publisher.stop()
