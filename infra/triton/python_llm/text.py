"""What becomes of the model's tokens: which one is next, and the text that may be shown so far."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A model that says the same three times over, for this many tokens or more, says nothing any more.
_LOOP_TOKENS_MIN, _LOOP_UNIT_MAX, _LOOP_TIMES = 24, 64, 3


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest.

    Raises:
        ValueError: out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 5:
            raise ValueError(f"temperature must be 0 to 5, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")


class Chooser:
    """Chooses the tokens of one answer; the same seed and logits, the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling, self._random = sampling, np.random.default_rng(sampling.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """The next token. Source of top-p: Holtzman et al. 2020, nucleus sampling."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        scaled = (logits - logits.max()).astype(np.float64) / self._sampling.temperature
        chance = np.exp(scaled)
        chance /= chance.sum()
        order = np.argsort(-chance, kind="stable")
        before = np.cumsum(chance[order]) - chance[order]
        kept = order[before < self._sampling.top_p]
        return int(self._random.choice(kept, p=chance[kept] / chance[kept].sum()))


class TextStream:
    """Tokens of one answer to pieces of text: never half a character, never a part of a stop string."""

    def __init__(self, tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self.tokens: list[int] = []
        # Tokens are decoded with those shortly before them, for a space may hang on the one before.
        self._from, self._shown = 0, 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What may be shown now that this token is there; `stopped` once a stop string was met."""
        self.tokens.append(token)
        before = self._tokenizer.decode(self.tokens[self._from : self._shown], skip_special_tokens=False)
        after = self._tokenizer.decode(self.tokens[self._from :], skip_special_tokens=False)
        if after.endswith(_BROKEN) and len(self.tokens) - self._shown < 8:
            return ""  # the rest of the character follows
        self._from, self._shown = self._shown, len(self.tokens)
        return self._checked(self._held + after[len(before) :])

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        rest, self._held = self._held, ""
        before = self._tokenizer.decode(self.tokens[self._from : self._shown], skip_special_tokens=False)
        after = self._tokenizer.decode(self.tokens[self._from :], skip_special_tokens=False)
        return rest + ("" if self.stopped else after[len(before) :].rstrip(_BROKEN))

    def _checked(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max(
            (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
            default=0,
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def loops(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are one and the same sequence over and over."""
    for unit in range(1, min(_LOOP_UNIT_MAX, len(tokens) // _LOOP_TIMES) + 1):
        times = max(_LOOP_TIMES, -(-_LOOP_TOKENS_MIN // unit))
        if unit * times > len(tokens):
            continue
        last = tokens[-unit:]
        if all(tokens[-unit * (n + 1) : len(tokens) - unit * n] == last for n in range(1, times)):
            return True
    return False
