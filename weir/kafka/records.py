"""What is published: records for one partition of one topic, as lists or as columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weir.columns import ByteColumn, Column

Headers = Sequence[tuple[str, bytes | None]]


class ListOutput(Protocol):
    """Records for one partition of one topic, in order, each with headers of its own.

    `weir.streams.output.Output` is one. The columns are of one length; `timestamps_ms` (since the epoch) is
    one a record or one for all.
    """

    @property
    def topic(self) -> str: ...  # noqa: D102

    @property
    def partition(self) -> int: ...  # noqa: D102

    @property
    def keys(self) -> Sequence[bytes | None]: ...  # noqa: D102

    @property
    def values(self) -> Sequence[bytes | None]: ...  # noqa: D102

    @property
    def headers(self) -> Sequence[Headers]: ...  # noqa: D102

    @property
    def timestamps_ms(self) -> Sequence[int] | int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class HeaderColumns:
    """Headers of n records, each with its own: record i has those from `first[i]` to `first[i + 1]`."""

    first: NDArray[np.int64]  # (n + 1,)
    name: NDArray[np.int64]  # (h,) into `names`
    names: Sequence[str]
    values: ByteColumn  # (h,)

    def rows(self, start: int, end: int) -> "HeaderColumns":
        """The headers of the records from `start` to `end`, over the same buffers."""
        first = self.first[start : end + 1]
        low, high = int(first[0]), int(first[-1])
        return HeaderColumns(first - low, self.name[low:high], self.names, self.values.rows(low, high))

    def to_list(self) -> list[list[tuple[str, bytes | None]]]:
        """Every record's headers."""
        pairs = list(
            zip([self.names[name] for name in self.name.tolist()], self.values.to_list(), strict=True)
        )
        first = self.first.tolist()
        return [pairs[a:b] for a, b in pairwise(first)]


@dataclass(frozen=True, slots=True)
class ColumnOutput:
    """Records for one partition of one topic, in order, as columns: no Python operation a record.

    keys: None leaves every key null.
    headers: the same for every record, or columns where each has its own.
    timestamps_ms: (n,) int64 or one for all, ms since the epoch.
    """

    topic: str
    partition: int
    keys: Column | None
    values: Column
    timestamps_ms: NDArray[np.int64] | int
    headers: Headers | HeaderColumns = ()


AnyOutput = ListOutput | ColumnOutput

Row = tuple[bytes | None, bytes | None, Headers]


def rows_of(output: AnyOutput) -> list[Row]:
    """Key, value and headers of each record; for tests and for clients that take records one by one."""
    if not isinstance(output, ColumnOutput):
        return list(zip(output.keys, output.values, output.headers, strict=True))
    values = _as_bytes(output.values).to_list()
    keys = [None] * len(values) if output.keys is None else _as_bytes(output.keys).to_list()
    headers = output.headers
    each = headers.to_list() if isinstance(headers, HeaderColumns) else [headers] * len(values)
    return list(zip(keys, values, each, strict=True))


def _as_bytes(column: Column) -> ByteColumn:
    return ByteColumn(column.buffer, column.start, column.length)
