"""A circuit breaker as a pure state machine: time is passed in, nothing is waited for.

           failed (the last of `failures_to_open` in a row)
┌────────┐ ─────────────────────────────────────────▶ ┌──────┐
│ CLOSED │                                            │ OPEN │ ◀─┐
└────────┘ ◀───────── succeeded ──┐                   └──────┘   │ failed: open twice as long
                            ┌───────────┐                │       │
                            │ HALF_OPEN │ ◀── admit, when its time is over: one probe
                            └───────────┘ ───────────────────────┘
"""

from enum import IntEnum


class Circuit(IntEnum):
    """The numbers are the metric's values."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Whether to ask a neighbour at all, so that its silence costs one deadline, not one a batch."""

    def __init__(self, *, failures_to_open: int = 3, open_s: float = 0.25, open_s_max: float = 5.0) -> None:
        if failures_to_open < 1 or not 0 < open_s <= open_s_max:
            raise ValueError("failures_to_open must be 1 or more, and 0 < open_s <= open_s_max")
        self._failures_to_open, self._open_s_first, self._open_s_max = failures_to_open, open_s, open_s_max
        self._state = Circuit.CLOSED
        self._failure_count = 0
        self._open_s = open_s
        self._probe_at_s = 0.0

    @property
    def state(self) -> Circuit:
        """Where it stands; OPEN stays OPEN until `admit` lets a probe through."""
        return self._state

    def admit(self, now_s: float) -> bool:
        """Whether this batch may be sent; the caller then owes `succeeded`, `failed` or `abandoned`."""
        if self._state is Circuit.CLOSED:
            return True
        if self._state is Circuit.OPEN and now_s >= self._probe_at_s:
            self._state = Circuit.HALF_OPEN
            return True
        return False

    def succeeded(self) -> None:
        """An answer came. Even a late one shows that the neighbour is back."""
        self._state = Circuit.CLOSED
        self._failure_count = 0
        self._open_s = self._open_s_first

    def failed(self, now_s: float) -> None:
        """No answer came."""
        if self._state is Circuit.OPEN:
            # Sent before it opened: counting it again would only lengthen the wait.
            return
        self._failure_count += 1
        if self._state is Circuit.HALF_OPEN:
            self._open_s = min(self._open_s * 2, self._open_s_max)
        elif self._failure_count < self._failures_to_open:
            return
        self._state = Circuit.OPEN
        self._probe_at_s = now_s + self._open_s

    def abandoned(self, now_s: float) -> None:
        """The caller gave up before there was an outcome; a probe's place is free again at once."""
        if self._state is Circuit.HALF_OPEN:
            self._state = Circuit.OPEN
            self._probe_at_s = now_s
