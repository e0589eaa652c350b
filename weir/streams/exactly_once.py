"""Exactly-once delivery: results, state and input offsets in one Kafka transaction, producers taking turns.

    waiting ──▶ filled (produced, offsets sent) ──▶ ended (committed)
                 │ k + 1 while k ends               │ in order

Groups that finish while a transaction is on its way go into the next one together. A transaction begins to
produce once its forerunner's records are acknowledged, which keeps a partition's records in order, and ends
once its forerunner has ended, so that no transaction commits behind one that failed.

Source: KIP-98 (transactions), KIP-447 (offsets fenced by the group's generation), KIP-890 (second version).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

from weir.kafka.records import AnyOutput
from weir.obs.log import get_logger
from weir.streams.ports import Done, Place

log = get_logger("weir.streams.exactly_once")


class Lane(Protocol):
    """A transactional producer: `weir.kafka.producer.TransactionalProducer`."""

    async def start(self) -> bool:
        """Take the transactional id; after a failure, end what is open: abort it, if no commit was asked for.

        Returns: whether a commit whose answer was lost has committed.
        """

    async def produce(self, outputs: Sequence[AnyOutput]) -> None:
        """Return when all is acknowledged."""

    async def send_offsets(self, offsets: Mapping[Place, int]) -> None:
        """Add the group's offsets, under the generation that this worker is in."""

    async def commit(self) -> None:
        """Return when the transaction is decided."""

    async def stop(self) -> None:
        """Disconnect."""


@dataclass(slots=True)
class _Transaction:
    lane: Lane
    works: Sequence[Done]
    futures: Sequence["asyncio.Future[None]"]
    begun_s: float

    @property
    def epoch_last(self) -> int:
        return self.works[-1].epoch

    def next_offsets(self) -> dict[Place, int]:
        """The last offset for each place: later groups come later."""
        return {place: offset for work in self.works for place, offset in work.next_offsets.items()}


class ExactlyOnce:
    """Puts groups into transactions; see the module.

    Args:
        lanes: the producers that take turns, each with a transactional id of its own.
        committed: asks the group's coordinator; it answers only what no open transaction can change.
        rows_max: records of a transaction's groups, so that a reader need not wait for a long one.
        on_failure: called once with the error; then `recover` is expected.
        on_committed: called with the last epoch of each transaction that has committed, in order.
        observe: told how long each took, in seconds.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        committed: Callable[[Sequence[Place]], Awaitable[Mapping[Place, int | None]]],
        rows_max: int,
        on_failure: Callable[[BaseException], None],
        on_committed: Callable[[int], None],
        observe: Callable[[float], None] = lambda duration_s: None,
    ) -> None:
        self._lanes, self._ask, self._rows_max = lanes, committed, rows_max
        self._on_failure, self._on_committed, self._observe = on_failure, on_committed, observe
        self._waiting: deque[tuple[Done, asyncio.Future[None]]] = deque()
        self._some_waiting = asyncio.Event()
        self._open: deque[_Transaction] = deque()
        self._committed_epoch = 0
        self._turns: asyncio.Task[None] | None = None
        self._ends: deque[asyncio.Task[None]] = deque()
        self._failed = False

    @property
    def committed_epoch(self) -> int:
        """Every epoch up to this one has committed."""
        return self._committed_epoch

    async def start(self) -> None:
        """Take the transactional ids, and begin."""
        for lane in self._lanes:
            await lane.start()
        self._begin()

    def _begin(self) -> None:
        self._failed = False
        self._turns = asyncio.create_task(self._take_turns())
        self._turns.add_done_callback(self._watch)

    def enqueue(self, done: Done) -> "asyncio.Future[None]":
        """Hand a group over; see `weir.streams.ports.Delivery`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failed:
            future.cancel()
        else:
            self._waiting.append((done, future))
            self._some_waiting.set()
        return future

    async def _take_turns(self) -> None:
        for lane in cycle(self._lanes):
            # The lane's own last transaction first: the coordinator refuses a second one beside it.
            while len(self._ends) >= len(self._lanes):
                await asyncio.wait([self._ends[0]])
                self._ends.popleft().result()
            transaction = await self._next(lane)
            self._open.append(transaction)
            await self._fill(transaction)
            before = self._ends[-1] if self._ends else None
            end = asyncio.create_task(self._end(transaction, before))
            end.add_done_callback(self._watch)
            self._ends.append(end)

    async def _next(self, lane: Lane) -> _Transaction:
        while not self._waiting:
            self._some_waiting.clear()
            await self._some_waiting.wait()
        works: list[Done] = []
        futures: list[asyncio.Future[None]] = []
        rows = 0
        while self._waiting and (not works or rows < self._rows_max):
            work, future = self._waiting.popleft()
            works.append(work)
            futures.append(future)
            rows += sum(len(each.batch) for each in work.taken)
        return _Transaction(lane, works, futures, asyncio.get_running_loop().time())

    async def _fill(self, transaction: _Transaction) -> None:
        lane = transaction.lane
        outputs = [output for work in transaction.works for output in work.outputs]
        async with asyncio.TaskGroup() as both:
            both.create_task(lane.produce(outputs))
            both.create_task(lane.send_offsets(transaction.next_offsets()))

    async def _end(self, transaction: _Transaction, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            # Its failure is its own to tell; ours is that we may not commit behind it.
            await asyncio.wait([before])
            if before.cancelled() or before.exception() is not None:
                raise asyncio.CancelledError
        await transaction.lane.commit()
        self._observe(asyncio.get_running_loop().time() - transaction.begun_s)
        self._open.popleft()
        self._conclude(transaction)

    def _conclude(self, transaction: _Transaction) -> None:
        self._committed_epoch = transaction.epoch_last
        for work, future in zip(transaction.works, transaction.futures, strict=True):
            for each in work.taken:
                each.finish()
            if not future.done():
                future.set_result(None)
        self._on_committed(transaction.epoch_last)

    def _watch(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or (error := task.exception()) is None or self._failed:
            return
        self._failed = True
        # A group of two errors says no more than its first.
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        self._on_failure(error)

    async def recover(self) -> None:
        """End every open transaction, and learn whether the oldest had committed.

        Only the oldest can have: the next one's commit is not asked for before that is known. Not the group's
        offsets tell, but the lane: a group that has changed state beside its batches commits offsets that
        do not move.
        """
        await self._halt()
        for lane in self._lanes:
            if await lane.start():
                self._conclude(self._open.popleft())
        for transaction in self._open:
            for future in transaction.futures:
                future.cancel()
        self._open.clear()
        self._begin()

    async def committed(self, places: Sequence[Place]) -> Mapping[Place, int | None]:
        """The group's committed offsets, once no transaction can change them any more."""
        return await self._ask(places)

    async def _halt(self) -> None:
        self._failed = True
        tasks = [task for task in (self._turns, *self._ends) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._turns = None
        self._ends.clear()
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    async def stop(self) -> None:
        """End what is under way, which the broker then aborts, and disconnect."""
        await self._halt()
        for lane in self._lanes:
            await lane.stop()
