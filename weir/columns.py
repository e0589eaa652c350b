"""Byte strings of a batch in one buffer: what codec, state and Kafka hand one another without copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

NULL = -1


class Column(Protocol):
    """Byte strings as slices of one buffer (`weir.codec.columns.StringColumn` is one)."""

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """(bytes,)"""

    @property
    def start(self) -> NDArray[np.int64]:
        """(n,)"""

    @property
    def length(self) -> NDArray[np.int64]:
        """(n,); -1 where there is no value, not even an empty one."""


@dataclass(frozen=True, slots=True)
class ByteColumn:
    """Byte strings as slices of one shared buffer.

    buffer: (bytes,) uint8. start: (n,) int64, first byte of each. length: (n,) int64, -1 for null.
    """

    buffer: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, start: int, end: int) -> "ByteColumn":
        """The values from row `start` to row `end`, over the same buffer."""
        return ByteColumn(self.buffer, self.start[start:end], self.length[start:end])

    def take(self, rows: NDArray[np.int64]) -> "ByteColumn":
        """Some of the strings, over the same buffer."""
        return ByteColumn(self.buffer, self.start[rows], self.length[rows])

    def kept(self) -> "ByteColumn":
        """The same values in a buffer of their own, which nobody writes over."""
        end = int((self.start + np.maximum(self.length, 0)).max(initial=0))
        return ByteColumn(self.buffer[:end].copy(), self.start, self.length)

    def to_list(self) -> list[bytes | None]:
        """Every value as bytes, or None."""
        whole = self.buffer.data
        return [
            None if length == NULL else bytes(whole[start : start + length])
            for start, length in zip(self.start.tolist(), self.length.tolist(), strict=True)
        ]

    @classmethod
    def from_list(cls, values: Sequence[bytes | None]) -> Self:
        """A column of these values, in a buffer of its own; a few Python operations a value."""
        try:
            length = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
            joined = b"".join(values)  # type: ignore[arg-type]
        except TypeError:
            length = np.array([NULL if value is None else len(value) for value in values], np.int64)
            joined = b"".join([value for value in values if value is not None])
        start = np.zeros(len(values), np.int64)
        np.cumsum(np.maximum(length[:-1], 0), out=start[1:])
        return cls(np.frombuffer(joined, np.uint8), start, length)

    @classmethod
    def nulls(cls, count: int) -> Self:
        """A column of nothing but nulls."""
        return cls(np.empty(0, np.uint8), np.zeros(count, np.int64), np.full(count, NULL, np.int64))

    def appended(self, value: bytes) -> "ByteColumn":
        """The column with one more value, in a new buffer."""
        return ByteColumn(
            np.concatenate([self.buffer, np.frombuffer(value, np.uint8)]),
            np.append(self.start, self.buffer.size),
            np.append(self.length, len(value)),
        )


def interleaved(parts: Sequence[tuple[NDArray[np.intp], ByteColumn]]) -> ByteColumn:
    """The values of all parts in one new buffer, each at the row that is named for it.

    Args:
        parts: (m,) rows and m values; together the rows are 0 to n - 1.
    """
    count, before = sum(len(rows) for rows, _ in parts), 0
    start, length = np.empty(count, np.int64), np.empty(count, np.int64)
    for rows, column in parts:
        start[rows], length[rows] = column.start + before, column.length
        before += column.buffer.size
    return ByteColumn(np.concatenate([column.buffer for _, column in parts]), start, length)


def key_column(keys: NDArray[np.uint64]) -> ByteColumn:
    """Keys as 8 bytes each, little endian."""
    buffer = np.ascontiguousarray(keys, "<u8").view(np.uint8)
    return ByteColumn(buffer, np.arange(0, buffer.size, 8), np.full(keys.size, 8, np.int64))
