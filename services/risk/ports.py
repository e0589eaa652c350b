"""What the processor needs of the model and of the second half, so that it knows neither."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weir.kafka.records import AnyOutput
from weir.streams import BatchGroup


@dataclass(frozen=True, slots=True)
class Tables:
    """What a decision depends on beside its model and its policy, by the SHA-256 of each; empty is not said.

    rates: `[risk.rates]`. reasons: the file of the reasons' texts.
    """

    rates: str = ""
    reasons: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a group is counted as once its results are durable: a group that is done again counts once.

    decisions: by outcome and basis. dead_letters: by reason. late: payments behind their watermark.
    """

    decisions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    late: int = 0


class Scorer(Protocol):
    """Asks the model."""

    async def __call__(self, read: Any) -> Any:
        """What the writer takes; no answer is an answer too."""


class Writer(Protocol):
    """Decides, encodes and seals."""

    async def __call__(self, group: BatchGroup, read: Any, scored: Any) -> tuple[Sequence[AnyOutput], Counts]:
        """What is published, and what is counted once it is."""
