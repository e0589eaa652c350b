"""What a smaller decoder has lost: perplexity, the tokens it would choose, answers that a page bears out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from infra.compress.windows import Reader, Said, Tokens, windows_of
from infra.triton.python_llm.engine import Engine
from services.chat.answer.grounding import check
from services.chat.answer.prompt import Prompts
from services.chat.answer.sentences import sentences_of
from services.chat.domain import Hit, Language, Passage
from services.chat.evaluate import retrieval
from services.chat.evaluate.intervals import Share
from services.chat.knowledge.tokens import stem

WINDOW = 256
LANGUAGES: tuple[Language, ...] = ("en", "zh")
ANSWER_TOKENS = 48
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and between what it lies in 95 of 100 cases when windows are drawn anew."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: NDArray[np.float64]) -> "Interval":
        """From the bootstrap's values."""
        low, high = np.quantile(drawn, [0.025, 0.975])
        return cls(float(value), float(low), float(high))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(getattr(self, name), 4) for name in ("value", "low", "high")}


@dataclass(frozen=True, slots=True)
class Quality:
    """On one text. perplexity: e to the mean of nats a token; to_reference: as a ratio, window by window the
    same drawn. agreement: share of places where the likeliest token is the reference's.
    """

    perplexity: Interval
    to_reference: Interval
    agreement: Interval
    tokens: int

    @classmethod
    def of(cls, said: Sequence[Said], reference: Sequence[Said], *, seed: int = 7) -> "Quality":
        """From what both say on the same windows; they are drawn whole, for tokens in one hang together."""
        nats, floor = (np.array([each.nats.sum() for each in one]) for one in (said, reference))
        same = np.array([(a.best == b.best).sum() for a, b in zip(said, reference, strict=True)])
        count = np.array([len(each.nats) for each in said])
        drawn = np.random.default_rng(seed).integers(0, len(said), (_DRAWS, len(said)))
        total = count[drawn].sum(1)
        mine, others = np.exp(nats[drawn].sum(1) / total), np.exp(floor[drawn].sum(1) / total)
        value, other = np.exp(nats.sum() / count.sum()), np.exp(floor.sum() / count.sum())
        return cls(
            Interval.of(value, mine),
            Interval.of(value / other, mine / others),
            Interval.of(same.sum() / count.sum(), same[drawn].sum(1) / total),
            int(count.sum()),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "perplexity": self.perplexity.as_dict(),
            "to_reference": self.to_reference.as_dict(),
            "agreement": self.agreement.as_dict(),
            "tokens": self.tokens,
        }


def judging_windows(tokenizer: Tokenizer, tokens_max: int) -> dict[Language, list[Tokens]]:
    """The starter knowledge in windows of `WINDOW` tokens, at most so many of each language it knows."""
    made: dict[Language, list[Tokens]] = {}
    for language in LANGUAGES:
        pages = sorted((retrieval.STARTER / language).glob("*.md"))
        text = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        if windows := windows_of(tokens, WINDOW, max(tokens_max // WINDOW, 1)):
            made[language] = windows
    return made


def learning_windows(tokenizer: Tokenizer, count: int = 4) -> list[Tokens]:
    """Customers' questions of both languages, by which is chosen what goes; no page that judges has them."""
    made: list[Tokens] = []
    for language in LANGUAGES:
        text = "\n".join(each.question for each in retrieval.questions(language))
        made += windows_of(tokenizer.encode(text, add_special_tokens=False).ids, WINDOW, count)
    return made


def read_all(folder: Path, windows: Mapping[Language, Sequence[Tokens]]) -> dict[Language, list[Said]]:
    """What the converted decoder in `folder` says on all windows."""
    reader = Reader(folder)
    return {language: [reader(window) for window in each] for language, each in windows.items()}


class Answers:
    """Questions of the starter set with the passage that answers each, as the chat worker would ask them.

    Args:
        count: questions; they are spread evenly over the English ones.
    """

    def __init__(self, tokenizer: Tokenizer, passages: Sequence[Passage], count: int) -> None:
        self._tokenizer = tokenizer
        prompts = Prompts("chatml", "none", self._length, tokens_max=768)
        by_place: dict[str, Passage] = {}
        for passage in passages:
            for place in retrieval.places(passage.id):
                by_place.setdefault(place, passage)
        asked = [each for each in retrieval.questions("en") if each.expected]
        asked = [asked[at] for at in np.linspace(0, len(asked) - 1, min(count, len(asked))).astype(int)]
        self._asked: list[tuple[Tokens, Passage]] = []
        for each in asked:
            if (found := by_place.get(min(each.expected))) is not None:
                prompt = prompts(each.question, [Hit(found, 1.0)], [], "en")
                self._asked.append((tokenizer.encode(prompt.text, add_special_tokens=False).ids, found))

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def __call__(self, folder: Path) -> Share:
        """Of the sentences that the decoder answers, those that the passage bears out."""
        engine = Engine(folder, rows_max=1)
        supported = count = 0
        for tokens, passage in self._asked:
            for sentence in sentences_of(self._tokenizer.decode(_likeliest(engine, tokens))):
                count += 1
                supported += check(sentence, [passage], stem).is_supported
        return Share(supported, count)


def _likeliest(engine: Engine, prompt: Tokens) -> list[int]:
    """The answer by the likeliest token each time."""
    row = engine.join()
    made: list[int] = []
    token = int(engine.feed(row, prompt).argmax())
    while token not in engine.ends and len(made) < ANSWER_TOKENS:
        made.append(token)
        token = int(engine.step([token])[0].argmax())
    engine.leave(row)
    return made


def speaks_chatml(folder: Path) -> bool:
    """Whether the converted decoder's template marks turns as ChatML does."""
    about = json.loads((folder / "llm.json").read_text(encoding="utf-8"))
    return "<|im_start|>" in about["chat_template"]
