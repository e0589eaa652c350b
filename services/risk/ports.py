"""What the processor needs of the model and of the second half, so that it knows neither."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from weir.kafka.records import AnyOutput
from weir.streams import BatchGroup

Counts = Mapping[tuple[str, str], int]


class Scorer(Protocol):
    """Asks the model."""

    async def __call__(self, read: Any) -> Any:
        """What the writer takes; no answer is an answer too."""


class Writer(Protocol):
    """Decides, encodes and seals."""

    async def __call__(self, group: BatchGroup, read: Any, scored: Any) -> tuple[Sequence[AnyOutput], Counts]:
        """What is published, and decisions by outcome and basis."""
