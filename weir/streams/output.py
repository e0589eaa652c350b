"""What is published: records for one partition of one topic."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Output:
    """Records for one partition of one topic, in order; the columns are of one length.

    values: None takes a compacted topic's key back.

    timestamps_ms: one a record or one for all, ms since the epoch. Retention goes by them: a record that is
        stamped with the past is deleted as if it were that old.
    """

    topic: str
    partition: int
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[tuple[str, bytes]]]
    timestamps_ms: Sequence[int] | int
