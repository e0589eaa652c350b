"""Taking several partitions' batches together, so that few records cost no more than many."""

import asyncio
from collections import deque

from weir.streams.ports import Taken


class Gatherer:
    """Holds batches until the next group is taken; bounded, so that its producer waits.

    Args:
        rows_max: of a group (a single larger batch makes a group of its own), and of what waits.
        linger_s: how long the first batch of an idle worker waits for the other partitions of its fetch.
    """

    def __init__(self, rows_max: int, linger_s: float) -> None:
        self._rows_max, self._linger_s = rows_max, linger_s
        self._waiting: deque[Taken] = deque()
        self._rows = 0
        self._changed = asyncio.Condition()

    async def put(self, taken: Taken) -> None:
        """Hand a batch over; waits while as many rows as a group may have are waiting."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._rows < self._rows_max)
            self._waiting.append(taken)
            self._rows += len(taken.batch)
            self._changed.notify_all()

    async def take(self, deadline_s: float | None = None) -> list[Taken]:
        """The next group, in the order of arrival; waits for one, or returns none after the deadline."""
        async with self._changed:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._changed.wait_for(lambda: bool(self._waiting))
            except TimeoutError:
                return []
        if self._linger_s and self._rows < self._rows_max:
            await asyncio.sleep(self._linger_s)
        async with self._changed:
            group, rows = [self._waiting.popleft()], 0
            rows = len(group[0].batch)
            while self._waiting and rows + len(self._waiting[0].batch) <= self._rows_max:
                group.append(self._waiting.popleft())
                rows += len(group[-1].batch)
            self._rows -= rows
            self._changed.notify_all()
            return group

    async def clear(self) -> None:
        """Forget what waits; it was read by nobody."""
        async with self._changed:
            self._waiting.clear()
            self._rows = 0
            self._changed.notify_all()
