"""What the pipeline needs of its parts, so that it knows none of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from weir.kafka.records import AnyOutput
from weir.streams import BatchGroup

Counts = Mapping[tuple[str, str], int]


class Preparer(Protocol):
    """Waits for what reading needs."""

    async def __call__(self, group: BatchGroup) -> None:
        """Returns when the group can be read."""


class Reader(Protocol):
    """Decodes, validates and computes features; changes the windows."""

    def __call__(self, group: BatchGroup) -> Any:
        """What the scorer and the writer take."""


class Scorer(Protocol):
    """Asks the model."""

    async def __call__(self, read: Any) -> Any:
        """What the writer takes; no answer is an answer too."""


class Writer(Protocol):
    """Decides, encodes and seals."""

    async def __call__(self, group: BatchGroup, read: Any, scored: Any) -> tuple[Sequence[AnyOutput], Counts]:
        """What is published, and decisions by outcome and basis."""
