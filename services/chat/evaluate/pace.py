"""How fast a language model writes, as the one who asks it sees it."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from services.chat.domain import Generator
from services.chat.evaluate.retrieval import Mean


class Pace:
    """Stands between who asks and the model, and takes the time.

    A piece of the stream counts as a token; a character of several tokens comes in one piece.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        self._first_ms: list[float] = []
        # After the first token: how many, and in what time.
        self._after_first: list[tuple[int, float]] = []
        self._tokens = 0

    def watched(self, generator: Generator) -> Generator:
        """The same model, watched."""

        async def generate(
            prompt: str, *, tokens_max: int, stop: Sequence[str] = ()
        ) -> AsyncGenerator[str, None]:
            began, first, last, count = self._clock(), 0.0, 0.0, 0
            try:
                async with aclosing(generator(prompt, tokens_max=tokens_max, stop=stop)) as pieces:
                    async for piece in pieces:
                        last = self._clock()
                        first = first if count else last
                        count += 1
                        yield piece
            finally:
                # An answer that is cut off because a sentence is not supported counts too.
                self._take(began, first, last, count)

        return generate

    def _take(self, began: float, first: float, last: float, count: int) -> None:
        if count:
            self._first_ms.append((first - began) * 1000)
            self._tokens += count
        if count > 1 and last > first:
            self._after_first.append((count - 1, last - first))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: milliseconds to the first token, tokens a second after it, and how many there were.

        The rate is of all answers together: one that is cut off after two tokens says little.
        """
        return {
            "first_token_ms": Mean.of(self._first_ms).as_dict(),
            "tokens_per_second": _rate(self._after_first).as_dict(),
            "tokens": self._tokens,
        }


def _rate(parts: Sequence[tuple[int, float]], *, seed: int = 7, draws: int = 1000) -> Mean:
    """Counts over times, both summed, with a 95 % bootstrap interval over the parts."""
    if not parts:
        return Mean(0.0, 0.0, 1.0, 0)
    counts, times = np.array(parts, np.float64).T
    rows = np.random.default_rng(seed).integers(0, len(parts), (draws, len(parts)))
    low, high = np.quantile(counts[rows].sum(axis=1) / times[rows].sum(axis=1), [0.025, 0.975])
    return Mean(float(counts.sum() / times.sum()), float(low), float(high), len(parts))
