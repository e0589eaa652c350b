"""The unit of work: the records of one partition that one fetch brought."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class RecordBatch:
    """Consecutive records of one partition, in offset order; never empty.

    Offsets may have holes (compaction, transaction markers): `offsets` says which they are.
    """

    topic: str
    partition: int
    records: Sequence[Any]  # aiokafka.ConsumerRecord, read only through the columns below

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
