"""The unit of work: the records of one partition that one fetch brought."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class RecordBatch:
    """Consecutive records of one partition, in offset order; never empty.

    Offsets may have holes (compaction, transaction markers): `offsets` says which they are.

    more_follow: the same fetch brought another partition's batch, which is handed out next.
    """

    topic: str
    partition: int
    records: Sequence[Any]  # aiokafka.ConsumerRecord, read only through the columns below
    more_follow: bool = False

    def __len__(self) -> int:
        return len(self.records)

    @property
    def offset_first(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def offset_last(self) -> int:
        """Offset of the last record."""
        return int(self.records[-1].offset)

    @cached_property
    def offsets(self) -> list[int]:
        """One offset a record."""
        return [record.offset for record in self.records]

    @cached_property
    def keys(self) -> list[bytes | None]:
        """One key a record, as on the wire."""
        return [record.key for record in self.records]

    @cached_property
    def values(self) -> list[bytes | None]:
        """One value a record, as on the wire."""
        return [record.value for record in self.records]

    @cached_property
    def timestamps_ms(self) -> list[int]:
        """Kafka's timestamp of each record, ms since the epoch."""
        return [record.timestamp for record in self.records]

    @cached_property
    def headers(self) -> list[Headers] | None:
        """One sequence of headers a record, or None when no record has any."""
        columns = [record.headers for record in self.records]
        return columns if any(columns) else None


@dataclass(frozen=True)
class BatchGroup:
    """Batches of several partitions, worked on together: at a low rate each holds a few records only.

    The columns are those of the batches one after another; `starts` says where each begins, and the end.
    """

    batches: Sequence[RecordBatch]

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def starts(self) -> list[int]:
        """First row of each batch, and the number of rows at the end."""
        starts = [0]
        for batch in self.batches:
            starts.append(starts[-1] + len(batch))
        return starts

    @cached_property
    def values(self) -> list[bytes | None]:
        """One value a row."""
        return self._joined("values")

    @cached_property
    def offsets(self) -> list[int]:
        """One offset a row, of its own partition."""
        return self._joined("offsets")

    @cached_property
    def timestamps_ms(self) -> list[int]:
        """One Kafka timestamp a row."""
        return self._joined("timestamps_ms")

    @cached_property
    def headers(self) -> list[Headers] | None:
        """One sequence of headers a row, or None when no record has any."""
        if all(batch.headers is None for batch in self.batches):
            return None
        return list(chain.from_iterable(batch.headers or [()] * len(batch) for batch in self.batches))

    def _joined(self, column: str) -> list[Any]:
        if len(self.batches) == 1:
            return getattr(self.batches[0], column)  # type: ignore[no-any-return]
        return list(chain.from_iterable(getattr(batch, column) for batch in self.batches))
