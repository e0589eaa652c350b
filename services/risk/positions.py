"""How far the state of a worker has come in what it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weir.features.columns import Labels


@dataclass(frozen=True, slots=True)
class Positions:
    """How far the state has taken in what it is made of; each maps a partition to its next offset.

    inputs: of the partitions held. seen: of all input partitions, as `JournalRecord.seen`.
    journal, labels: of the topics that every worker follows.
    paid: partitions that have learnt what they were owed when they came, see `Owed`.
    written: how many keys of each partition's `Log` its changelog tells of.
    """

    inputs: dict[int, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    journal: dict[int, int] = field(default_factory=dict)
    labels: dict[int, int] = field(default_factory=dict)
    paid: set[int] = field(default_factory=set)
    written: dict[int, int] = field(default_factory=dict)

    def copy(self) -> "Positions":
        """As they are now."""
        return Positions(
            dict(self.inputs),
            dict(self.seen),
            dict(self.journal),
            dict(self.labels),
            set(self.paid),
            dict(self.written),
        )


@dataclass(frozen=True, slots=True)
class Owed:
    """Labels that a partition's accounts have yet to learn, for this worker has read them already.

    known: which they knew when they came, next offsets.
    """

    known: Mapping[int, int]
    labels: Sequence[Labels]
