"""Taking several partitions' batches together, so that few records cost no more than many."""

import asyncio
from collections import deque
from collections.abc import Callable

from weir.streams.ports import Taken

# A group of this part of the largest one is not kept back.
_WORTH = 4


class Gatherer:
    """Holds batches until the next group is taken; bounded, so that its producer waits.

    A fetch's batches come one after the other, and all but the last say that more follow: a group waits for
    the last and no longer, so that a single batch goes at once.

    While earlier groups are on their way, a small one waits and grows, as small segments do in TCP (RFC 896):
    a group of ten records costs nearly as much as one of a hundred, and begun at once it would only make
    those before it later. A quarter of `rows_max` is worth its cost and goes whatever is on its way.

    Args:
        rows_max: of a group (a single larger batch makes a group of its own), and of what waits.
        linger_s: how long a group waits at most for the rest of its fetch, which a rebalance may keep back.
        busy: whether earlier groups are on their way; `nudge` says when that may have changed.
    """

    def __init__(self, rows_max: int, linger_s: float, busy: Callable[[], bool] = lambda: False) -> None:
        self._rows_max, self._linger_s, self._busy = rows_max, linger_s, busy
        self._rows_worth = max(rows_max // _WORTH, 1)
        self._waiting: deque[Taken] = deque()
        self._rows = 0
        self._came, self._room = asyncio.Event(), asyncio.Event()

    async def put(self, taken: Taken) -> None:
        """Hand a batch over; waits while as many rows as a group may have are waiting."""
        while self._rows >= self._rows_max:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(taken)
        self._rows += len(taken.batch)
        self._came.set()

    async def take(self, deadline_s: float | None = None) -> list[Taken]:
        """The next group, in the order of arrival; waits for one, or returns none after the deadline."""
        while not self._waiting:
            if not await self._one_comes(deadline_s):
                return []
        while self._rows < self._rows_worth and self._busy():
            await self._one_comes(None)
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self._linger_s
        while (
            self._waiting
            and self._waiting[-1].batch.more_follow
            and self._rows < self._rows_max
            and (left_s := ends_s - loop.time()) > 0
        ):
            await self._one_comes(left_s)
        if not self._waiting:
            return []
        group = [self._waiting.popleft()]
        rows = len(group[0].batch)
        while self._waiting and rows + len(self._waiting[0].batch) <= self._rows_max:
            group.append(self._waiting.popleft())
            rows += len(group[-1].batch)
        self._rows -= rows
        self._room.set()
        return group

    def nudge(self) -> None:
        """What waits may be worth taking now."""
        self._came.set()

    async def clear(self) -> None:
        """Forget what waits; it was read by nobody."""
        self._waiting.clear()
        self._rows = 0
        self._room.set()

    async def _one_comes(self, within_s: float | None) -> bool:
        self._came.clear()
        try:
            async with asyncio.timeout(within_s):
                await self._came.wait()
        except TimeoutError:
            return False
        return True
