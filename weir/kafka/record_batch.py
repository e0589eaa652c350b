"""Kafka's record batches (magic 2), built from lists or columns by compiled loops.

A batch is built once and stamped with its producer before it is sent; sent again, its bytes are the same.
Batches are not compressed: what Weir publishes is encrypted, and does not shrink.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weir.columns import NULL, ByteColumn, Column
from weir.kafka import _batch_kernels as kernels
from weir.kafka.records import AnyOutput, ColumnOutput, HeaderColumns, Headers

# A broker takes 1 MiB (message.max.bytes); a topic may be set lower, so some room is left.
BATCH_BYTES_MAX = 900 * 1024

_NO_BYTES = np.frombuffer(b"", np.uint8)
_NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class ProduceBatch:
    """Records of one partition, laid out as they are sent; `stamp` it first."""

    data: NDArray[np.uint8]  # (bytes,), writable
    record_count: int

    def stamp(self, producer_id: int, producer_epoch: int, sequence: int, *, transactional: bool) -> None:
        """Write who sends it and the number of its first record, then the checksum over all of it."""
        kernels.stamp(self.data, producer_id, producer_epoch, sequence, transactional)


@dataclass(frozen=True, slots=True)
class _HeaderRows:
    """What each record has for headers: `block` for all, or else a run of the columns for each."""

    block: NDArray[np.uint8]
    first: NDArray[np.int64]  # (n + 1,)
    name: NDArray[np.int64]  # (h,)
    names: ByteColumn
    values: Column
    row_bytes: NDArray[np.int64]  # (n,) or (1,)


def batches_of(output: AnyOutput, *, bytes_max: int = BATCH_BYTES_MAX) -> list[ProduceBatch]:
    """An output's records as batches, in order.

    Raises:
        ValueError: the columns differ in length.
    """
    if isinstance(output, ColumnOutput):
        return from_columns(
            output.keys, output.values, output.timestamps_ms, headers=output.headers, bytes_max=bytes_max
        )
    return from_lists(output.keys, output.values, output.headers, output.timestamps_ms, bytes_max=bytes_max)


def load_loops() -> None:
    """Load the compiled loops: about a second of the thread, which the first batch need not wait for then."""
    for batch in from_lists([b""], [b""], [[("", b"")]], 0):
        batch.stamp(0, 0, 0, transactional=False)


def from_lists(
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    headers: Sequence[Headers],
    timestamps_ms: Sequence[int] | int,
    *,
    bytes_max: int = BATCH_BYTES_MAX,
) -> list[ProduceBatch]:
    """Records as batches of at most `bytes_max`, in order; each has headers of its own.

    A larger record is a batch of its own: what a topic takes is for its broker to say.

    Raises:
        ValueError: the lists differ in length.
    """
    if len(headers) != len(values):
        raise ValueError(f"{len(values)} values and {len(headers)} lists of headers: they must be as many.")
    stamps = timestamps_ms if isinstance(timestamps_ms, int) else np.array(timestamps_ms, np.int64)
    return _build(
        ByteColumn.from_list(keys), ByteColumn.from_list(values), stamps, _header_rows(headers), bytes_max
    )


def from_columns(
    keys: Column | None,
    values: Column,
    timestamps_ms: NDArray[np.int64] | int,
    *,
    headers: Headers | HeaderColumns = (),
    bytes_max: int = BATCH_BYTES_MAX,
) -> list[ProduceBatch]:
    """Records as batches of at most `bytes_max`, in order; all have the same headers, or columns of them.

    Args:
        keys: None leaves every key null.
        timestamps_ms: (n,) or one for all, ms since the epoch.

    Raises:
        ValueError: the columns differ in length, or a slice lies outside its buffer.
    """
    count = len(values.start)
    if keys is None:
        keys = ByteColumn(_NO_BYTES, np.zeros(count, np.int64), np.full(count, NULL, np.int64))
    for column in (keys, values):
        _check_inside(column)
    rows = _column_headers(headers, count) if isinstance(headers, HeaderColumns) else _same_headers(headers)
    return _build(keys, values, timestamps_ms, rows, bytes_max)


def _check_inside(column: Column) -> None:
    """The compiled loops read where the column says: it must not point outside."""
    start, length = column.start, column.length
    if len(start) != len(length):
        raise ValueError(f"{len(start)} starts and {len(length)} lengths: they must be as many.")
    if not kernels.inside(len(column.buffer), _uniform(start), _uniform(length)):
        raise ValueError("A slice of a column lies outside its buffer.")


def _build(
    keys: Column,
    values: Column,
    timestamps_ms: NDArray[np.int64] | int,
    headers: _HeaderRows,
    bytes_max: int,
) -> list[ProduceBatch]:
    count = len(values.start)
    stamps = (
        np.array([timestamps_ms], np.int64)
        if isinstance(timestamps_ms, int)
        else np.ascontiguousarray(timestamps_ms, np.int64)
    )
    if len(keys.start) != count or (not isinstance(timestamps_ms, int) and len(stamps) != count):
        raise ValueError(
            f"{len(keys.start)} keys, {count} values, {len(stamps)} timestamps: they must be as many."
        )
    if not count:
        return []
    columns = [_uniform(array) for column in (keys, values) for array in _arrays(column)]
    body = np.empty(count, np.int64)
    batch_row, batch_at = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
    batches = kernels.plan(
        bytes_max, columns[2], columns[5], stamps, headers.row_bytes, body, batch_row, batch_at
    )
    batch_row, batch_at = batch_row[: batches + 1], batch_at[: batches + 1]
    out = np.empty(int(batch_at[-1]), np.uint8)
    header_columns = [
        _uniform(array) for column in (headers.names, headers.values) for array in _arrays(column)
    ]
    kernels.fill(
        out,
        batch_row,
        batch_at,
        body,
        *columns,
        stamps,
        headers.block,
        headers.first,
        headers.name,
        *header_columns,
    )
    rows, ends = batch_row.tolist(), batch_at.tolist()
    return [ProduceBatch(out[ends[i] : ends[i + 1]], rows[i + 1] - rows[i]) for i in range(len(rows) - 1)]


def _arrays(column: Column) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return column.buffer, column.start, column.length


def _uniform(array: NDArray[Any]) -> NDArray[Any]:
    """Contiguous, and bytes not writable: else each kind of array would have the loops compiled anew."""
    if array.dtype != np.uint8:
        return np.ascontiguousarray(array, np.int64)
    array = np.ascontiguousarray(array)
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def _same_headers(headers: Headers) -> _HeaderRows:
    """The same headers for every record, laid out once."""
    out = bytearray(_varint(len(headers)))
    for name, value in headers:
        encoded = name.encode()
        out += _varint(len(encoded)) + encoded
        out += _varint(NULL) if value is None else _varint(len(value)) + value
    block = np.frombuffer(bytes(out), np.uint8)
    none = ByteColumn(_NO_BYTES, _NO_ROWS, _NO_ROWS)
    return _HeaderRows(block, _NO_ROWS, _NO_ROWS, none, none, np.array([len(block)], np.int64))


def _header_rows(headers: Sequence[Headers]) -> _HeaderRows:
    pairs = list(chain.from_iterable(headers))
    if not pairs:
        return _same_headers(())
    names, values = zip(*pairs, strict=True)
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    first = np.zeros(len(headers) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, headers), np.int64, len(headers)), out=first[1:])
    name = np.fromiter(map(number.__getitem__, names), np.int64, len(names))
    return _column_headers(
        HeaderColumns(first, name, list(number), ByteColumn.from_list(values)), len(headers)
    )


def _column_headers(headers: HeaderColumns, count: int) -> _HeaderRows:
    _check_inside(headers.values)
    names = ByteColumn.from_list([each.encode() for each in headers.names])
    first, name = _uniform(headers.first), _uniform(headers.name)
    row_bytes = np.empty(count, np.int64)
    if (
        len(first) != count + 1
        or len(name) != len(headers.values.start)
        or not kernels.headers_bytes(first, name, names.length, _uniform(headers.values.length), row_bytes)
    ):
        raise ValueError(f"The headers' columns do not fit {count} records, or point outside.")
    return _HeaderRows(_NO_BYTES, first, name, names, headers.values, row_bytes)


def _varint(value: int) -> bytes:
    bits = (value << 1) ^ (value >> 63)
    out = bytearray()
    while bits > 0x7F:
        out.append(bits & 0x7F | 0x80)
        bits >>= 7
    out.append(bits)
    return bytes(out)
