"""What the engine needs of Kafka, of a service and of its state, so that it knows none of them.

The real ones are Faust's consumer, `weir.kafka`'s producers and a service's rooms; others serve a simulation.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from weir.kafka.records import AnyOutput
from weir.streams.batch import BatchGroup, RecordBatch

Place = tuple[str, int]  # topic and partition


class Taken(Protocol):
    """A batch that was handed out by the source."""

    @property
    def batch(self) -> RecordBatch:
        """Its records."""

    @property
    def current(self) -> bool:
        """Whether the partition is still ours and was not rewound since: else the batch is read again."""

    def finish(self) -> bool:
        """Its results are durable."""


class Source(Protocol):
    """Where batches come from."""

    async def rewind(self, place: Place, offset: int) -> None:
        """Hand out from `offset` on; what was handed out before is not current any more."""

    def hold(self, places: Sequence[Place]) -> None:
        """Hand nothing out of these until `let_go`."""

    def let_go(self, places: Sequence[Place]) -> None:
        """Hand out again."""


@dataclass(frozen=True, slots=True)
class Done:
    """A group whose results are ready to be published.

    epoch: of the state's changes that the group made; ascending.
    next_offsets: for each place the offset after the group's last record there.
    """

    epoch: int
    taken: Sequence[Taken]
    outputs: Sequence[AnyOutput]
    next_offsets: Mapping[Place, int]


class Processor(Protocol):
    """What a service does with a group, and its state.

    The state's changes belong to epochs until they are released; all that is not released can be rolled back.
    """

    async def prepare(self, group: BatchGroup) -> None:
        """Return when the group can be read; nothing has changed yet."""

    def read(self, epoch: int, group: BatchGroup) -> Any:
        """Decode, and change the state under `epoch`; without a pause."""

    def touched(self, read: Any) -> Mapping[Place, int]:
        """Places whose state the group has changed beside those that it has batches of, and their positions.

        Their offsets are sent too, though they do not move: so the broker refuses the changes of a worker
        that does not own them any more.
        """

    async def score(self, read: Any) -> Any:
        """Ask a model; no answer is an answer too."""

    async def write(self, group: BatchGroup, read: Any, scored: Any) -> tuple[Sequence[AnyOutput], Any]:
        """What is published, and what is counted once it is."""

    def counted(self, group: BatchGroup, counts: Any, send_s: float) -> None:
        """The group's results are durable."""

    def has_side_inputs(self) -> bool:
        """Whether something waits to enter the state that comes by no batch."""

    def roll_back(self, epoch: int) -> None:
        """Put the state back to before `epoch`."""

    def release(self, epoch: int) -> None:
        """Epochs up to this one are committed."""

    def position(self, place: Place) -> int:
        """The next offset that the state expects of a restored place."""

    async def restore(self, place: Place, committed: int | None) -> int:
        """Bring the place's state here, as of the group's committed offset; where reading begins."""

    def drop(self, place: Place) -> None:
        """The place is another's now."""


class Delivery(Protocol):
    """How results reach Kafka and the input's offsets are committed; the guarantee lives here."""

    async def start(self) -> None:
        """Connect."""

    def enqueue(self, done: Done) -> "asyncio.Future[None]":
        """Hand a group over, in the order of epochs; the future is done once its results are durable.

        The future is cancelled when the group was not delivered and `recover` has to follow.
        """

    async def recover(self) -> None:
        """After a failure: end what was begun; from then on `committed_epoch` is known and final."""

    @property
    def committed_epoch(self) -> int:
        """Every epoch up to this one has committed."""

    async def committed(self, places: Sequence[Place]) -> Mapping[Place, int | None]:
        """The group's committed offsets, once no transaction can change them any more."""

    async def stop(self) -> None:
        """Disconnect; what is under way is ended."""
