"""What the rooms of the chat service hand to one another; none of it knows Kafka or Triton.

message ──mask──▶ MaskedText ──understand──▶ Understanding ──guard, retrieve──▶ Hit ──answer──▶ Sentence
"""

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Language = Literal["en", "zh"]


class DataClass(StrEnum):
    """What kind of personal data a masked span was; the word stands in its placeholder."""

    CARD = "CARD"
    IBAN = "IBAN"
    ACCOUNT = "ACCOUNT"
    NATIONAL_ID = "NATIONAL_ID"  # Chinese resident identity card, US social security number
    PHONE = "PHONE"
    EMAIL = "EMAIL"
    CODE = "CODE"  # one-time codes, PINs, CVVs, passwords
    NAME = "NAME"
    ADDRESS = "ADDRESS"


# What stands in a masked text in the place of personal data, such as `[CARD_1]`.
PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(DataClass)})_\d{{1,6}}\]")


@dataclass(frozen=True, slots=True)
class Span:
    """Where personal data stood: characters `start` to `end` of the text as it came."""

    start: int
    end: int
    data_class: DataClass


@dataclass(frozen=True, slots=True)
class MaskedText:
    """A text that models may see: each span is a placeholder such as `[CARD_1]`.

    values: what each placeholder stands for. Personal data: never logged, sealed before it leaves.
    """

    text: str
    spans: Sequence[Span] = ()
    values: Mapping[str, str] = field(default_factory=dict, repr=False)


class Urgency(StrEnum):
    """How soon a person or an answer is needed."""

    NORMAL = "normal"
    HIGH = "high"  # a complaint, a deadline
    EMERGENCY = "emergency"  # a fraud in progress, a stolen card


@dataclass(frozen=True, slots=True)
class Understanding:
    """What a message is about.

    intent: a label of the served head; empty when it is out of scope.
    confidence: calibrated probability that `intent` is right, 0 to 1.
    sentiment: -1 (angry) to 1 (pleased).
    """

    language: Language
    intent: str
    confidence: float
    sentiment: float = 0.0
    urgency: Urgency = Urgency.NORMAL

    @property
    def in_scope(self) -> bool:
        """Whether the service knows what this is about."""
        return bool(self.intent)


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of the bank's knowledge that an answer may cite.

    id: stable for the same document, version and place; what answers cite.
    valid_from_ms, valid_to_ms: ms since the epoch, UTC; None is open.
    """

    id: str
    document: str
    version: int
    language: Language
    title: str
    text: str
    valid_from_ms: int | None = None
    valid_to_ms: int | None = None

    def is_valid(self, now_ms: int) -> bool:
        """Whether it may be cited now."""
        return (self.valid_from_ms is None or self.valid_from_ms <= now_ms) and (
            self.valid_to_ms is None or now_ms < self.valid_to_ms
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    relevance: calibrated probability that it answers the question, 0 to 1.
    """

    passage: Passage
    relevance: float


class Origin(StrEnum):
    """How a sentence came about."""

    GENERATED = "generated"  # by the language model, checked against the cited passages
    PASSAGE = "passage"  # the passage's own words
    TOOL = "tool"  # a tool's result in reviewed words
    FIXED = "fixed"  # a reviewed text: refusal, hand-over, no answer
    AGENT = "agent"  # a person of the bank


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence that the customer may see: it has passed every check. Personal data is still masked."""

    text: str
    origin: Origin
    sources: Sequence[str] = ()


class Encoder(Protocol):
    """Turns texts into vectors."""

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) float32, each of length 1."""


@dataclass(frozen=True, slots=True)
class Encoders:
    """One encoder, as a question or a message asks it, and as a passage does."""

    asked: Encoder
    passages: Encoder


class Generator(Protocol):
    """The language model."""

    def __call__(
        self, prompt: str, *, tokens_max: int, stop: Sequence[str] = ()
    ) -> AsyncGenerator[str, None]:
        """Pieces of the text as they are made; closing the iterator frees the model's slot.

        Raises:
            ModelUnavailable: no answer, or it broke off.
        """


class Retriever(Protocol):
    """Finds what the bank's knowledge says."""

    async def __call__(self, question: str, language: Language, *, count: int, now_ms: int) -> Sequence[Hit]:
        """The best passages that are valid now, best first; empty when nothing answers the question."""
