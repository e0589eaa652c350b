"""How fast converted decoders answer: in this process, one thread, all in turns."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from infra.triton.python_llm.engine import Engine

PROMPT_TOKENS, STEPS, AT_ONCE = 96, 16, 8


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over the rounds.

    first_ms: a prompt of `PROMPT_TOKENS` to its first token. one, many: tokens a second of 1 and of
    `AT_ONCE` conversations. to_served: `one` and `many` as ratios to the reference's of the same round.
    one_p99_ms: of a step of 1 conversation.
    """

    first_ms: float
    one: float
    many: float
    one_to_reference: float
    many_to_reference: float
    one_p99_ms: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def speeds(
    folders: Mapping[str, Path], reference: str, *, rounds: int, context: int = 256, seed: int = 7
) -> dict[str, Speed]:
    """Of each converted decoder, by name; a round gives each its turn, in an order drawn anew.

    Args:
        reference: the name that ratios are to. context: tokens that each engine has room for, at most.
    """
    names = list(folders)
    engines = {name: _Turns(Engine(folder, rows_max=AT_ONCE)) for name, folder in folders.items()}
    random = np.random.default_rng(seed)
    for turn in range(rounds + 1):
        prompt = random.integers(2, min(each.vocabulary for each in engines.values()), PROMPT_TOKENS).tolist()
        for name in random.permutation(names).tolist():
            # The first round lays out memory.
            engines[name].take(prompt[: context - 2 * STEPS - 1], keep=turn > 0)
    floor = engines[reference]
    return {name: each.speed(floor) for name, each in engines.items()}


class _Turns:
    """One engine and the times of its turns, in seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.vocabulary = engine, engine.vocabulary
        self.first: list[float] = []
        self.one: list[list[float]] = []
        self.many: list[list[float]] = []

    def take(self, prompt: list[int], *, keep: bool) -> None:
        """A prompt, then steps of one conversation, then of all."""
        engine = self._engine
        row = engine.join()
        began = time.perf_counter()
        token = int(engine.feed(row, prompt).argmax())
        first = time.perf_counter() - began
        one = self._steps([token])
        while engine.row_count < AT_ONCE:
            engine.move(row, engine.join())
        many = self._steps([token] * AT_ONCE)
        while engine.row_count:
            engine.leave(engine.row_count - 1)
        if keep:
            self.first.append(first)
            self.one.append(one)
            self.many.append(many)

    def _steps(self, tokens: list[int]) -> list[float]:
        took = []
        for _ in range(STEPS):
            began = time.perf_counter()
            # Which token follows makes no difference to the time.
            self._engine.step(tokens)
            took.append(time.perf_counter() - began)
        return took

    def speed(self, floor: "_Turns") -> Speed:
        """See `Speed`."""
        one, many = (np.median(np.array(each), axis=1) for each in (self.one, self.many))
        floor_one, floor_many = (np.median(np.array(each), axis=1) for each in (floor.one, floor.many))
        return Speed(
            first_ms=float(np.median(self.first)) * 1000,
            one=float(1 / np.median(one)),
            many=float(AT_ONCE / np.median(many)),
            one_to_reference=float(np.median(floor_one / one)),
            many_to_reference=float(np.median(floor_many / many)),
            one_p99_ms=float(np.percentile(np.concatenate(self.one), 99)) * 1000,
        )
