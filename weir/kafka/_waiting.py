"""One deadline for all steps of a call, and how long to wait between two attempts."""

import asyncio
import time


class Deadline:
    """A point in time that every step of one call shares; no step restarts it."""

    __slots__ = ("_at_s", "within_s")

    def __init__(self, within_s: float) -> None:
        self.within_s = within_s
        self._at_s = time.monotonic() + within_s

    def left_s(self) -> float:
        """Seconds left; zero or less when it has passed."""
        return self._at_s - time.monotonic()

    def waited_s(self) -> float:
        """Seconds since it began."""
        return self.within_s - self.left_s()

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.left_s() <= 0


class Backoff:
    """Waits that grow: from 1 ms, by when most of what is waited for is done, to a fifth of a second."""

    __slots__ = ("_next_s",)

    _FIRST_S, _FACTOR, _LAST_S = 0.001, 1.3, 0.2
    # Of a broker that gives no answer: it is not back in a millisecond.
    _LOST_S = 0.05

    def __init__(self) -> None:
        self._next_s = self._FIRST_S

    async def wait(self, deadline: Deadline, *, lost: bool = False) -> None:
        """Wait, not past the deadline. lost: the last attempt had no answer at all."""
        wait_s = max(self._next_s, self._LOST_S) if lost else self._next_s
        self._next_s = min(wait_s * self._FACTOR, self._LAST_S)
        await asyncio.sleep(max(0.0, min(wait_s, deadline.left_s())))
