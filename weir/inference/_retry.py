"""One deadline for all steps of a call, and a budget so that retries never multiply load."""

from collections.abc import Callable


class Deadline:
    """A point in time that every step of one call shares; no step restarts it."""

    __slots__ = ("_at_s", "_begun_s", "_clock")

    def __init__(self, within_s: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun_s = clock()
        self._at_s = self._begun_s + within_s

    def left_s(self) -> float:
        """Seconds left; zero or less when it has passed."""
        return self._at_s - self._clock()

    def waited_s(self) -> float:
        """Seconds since the call began."""
        return self._clock() - self._begun_s


class RetryBudget:
    """A token bucket: a retry takes one token, an answered request puts `refill` of one back.

    So with everything failing, at most `tokens_max` retries are sent, and in steady state retries add at most
    `refill` of the load. Source: gRFC A6, retry throttling.
    """

    def __init__(self, *, tokens_max: float = 10.0, refill: float = 0.1) -> None:
        if tokens_max < 0 or not 0 <= refill <= 1:
            raise ValueError("tokens_max must not be negative, and 0 <= refill <= 1")
        self._tokens_max, self._refill = tokens_max, refill
        self._tokens = tokens_max

    @property
    def tokens(self) -> float:
        """How many retries it would grant now."""
        return self._tokens

    def take(self) -> bool:
        """Whether one retry may be sent."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def answered(self) -> None:
        """Puts back what one answered request earns."""
        self._tokens = min(self._tokens_max, self._tokens + self._refill)


def backoff_s(
    attempt_index: int, random: Callable[[], float], *, first_s: float = 0.004, most_s: float = 0.2
) -> float:
    """How long to wait before retry `attempt_index` (0 is the first): exponential, fully jittered.

    Args:
        attempt_index: how many retries went before.
        random: gives 0 to 1.
        first_s, most_s: the widest first wait, and the widest of all.
    """
    return min(most_s, first_s * 2.0 ** min(attempt_index, 30)) * random()
