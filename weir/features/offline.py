"""Features for training: past events through the very `PaymentState` that serves online, equal bit for bit.

Payments go in time order; a label is learnt before the first payment that is not earlier than its report,
which is where a stream would have brought it. Parquet columns are named as the fields of
`schemas/transaction.avsc` and `schemas/label.avsc`; a folder holds `transactions-*.parquet` and
`labels-*.parquet`, in time order by name.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from weir.errors import BadInput, MissingPart
from weir.features.payments import CHANNELS, DEFAULT, FEATURES, FeatureSpec, Labels, Payments, PaymentState
from weir.state.hashing import keyed_hash_columns

CHUNK_ROWS = 65_536
ENTITIES_MAX = 16_000_000
AMOUNT_TYPE = pa.decimal128(19, 4)
# Offline, an identifier's hash need only be distinct: features do not depend on its value.
_OFFLINE_KEY = bytes(16)


def features_of(
    transactions: Payments | Path,
    labels: Labels | Path | None = None,
    *,
    spec: FeatureSpec = DEFAULT,
    chunk_rows: int = CHUNK_ROWS,
) -> NDArray[np.float32]:
    """(n, len(FEATURES)) float32: each payment's features as they were when it was decided.

    Args:
        transactions: columns in any order (the result has the same), or a file or folder of Parquet.
        labels: columns in any order, a file or folder of Parquet, or None for no labels at all.
        chunk_rows: rows held at once when reading Parquet; changes no value.
    Raises:
        MissingPart: no such file. BadInput: a column is missing, or the file is not in time order.
    """
    learnt = read_labels(labels) if isinstance(labels, Path) else labels
    if isinstance(transactions, Path):
        chunks = list(stream_features(read_payments(transactions, chunk_rows), learnt, spec=spec))
        return np.concatenate(chunks) if chunks else np.empty((0, len(FEATURES)), np.float32)
    order = np.argsort(transactions.event_ms, kind="stable")
    features = np.empty((transactions.row_count, len(FEATURES)), np.float32)
    features[order] = next(
        stream_features([transactions.rows(order)], learnt, spec=spec),
        np.empty((0, len(FEATURES)), np.float32),
    )
    return features


def stream_features(
    batches: Iterable[Payments],
    labels: Labels | None = None,
    *,
    spec: FeatureSpec = DEFAULT,
    state: PaymentState | None = None,
) -> Iterator[NDArray[np.float32]]:
    """The features of each batch; batches come in time order and are cut anywhere.

    Raises:
        BadInput: `not_in_time_order`.
    """
    if state is None:
        state = PaymentState(spec, accounts_max=ENTITIES_MAX, terminals_max=ENTITIES_MAX)
    if labels is not None:
        # Only frauds change the state, and every cut for a label costs a call.
        frauds = np.flatnonzero(labels.is_fraud)
        labels = labels.rows(frauds[np.argsort(labels.reported_ms[frauds], kind="stable")])
    learnt, newest_ms = 0, 0
    for batch in batches:
        times = batch.event_ms
        if batch.row_count and (times[0] < newest_ms or np.any(times[1:] < times[:-1])):
            raise BadInput("not_in_time_order", "payments must come by rising event_time; sort the files")
        newest_ms = int(times[-1]) if batch.row_count else newest_ms
        if labels is None:
            yield state.observe(batch)
            continue
        until = int(np.searchsorted(labels.reported_ms, newest_ms, side="right"))
        # Where each label goes: before the first payment of this batch that is not earlier than its report.
        cuts = np.searchsorted(times, labels.reported_ms[learnt:until], side="left")
        parts, done = [], 0
        for cut, first in zip(*np.unique(cuts, return_index=True), strict=True):
            if cut > done:
                parts.append(state.observe(batch.rows(slice(done, cut))))
                done = int(cut)
            last = learnt + int(np.searchsorted(cuts, cut, side="right"))
            state.learn(labels.rows(slice(learnt + int(first), last)))
        learnt = until
        parts.append(state.observe(batch.rows(slice(done, None))))
        yield np.concatenate(parts)


def read_payments(path: Path, chunk_rows: int = CHUNK_ROWS) -> Iterator[Payments]:
    """The payments of a Parquet file, or of a folder's `transactions-*.parquet`, a chunk at a time.

    Raises:
        MissingPart: no such file. BadInput: `missing_column` or `bad_column`.
    """
    columns = ("account_id", "terminal_id", "amount", "event_time", "channel")
    for table in _chunks(path, "transactions", columns, chunk_rows):
        yield Payments(
            account=hash_column(table["account_id"]),
            terminal=hash_column(table["terminal_id"]),
            amount=amount_column(table["amount"]),
            event_ms=time_column(table["event_time"]),
            channel=channel_column(table["channel"]),
        )


def read_labels(path: Path) -> Labels:
    """All labels of a Parquet file, or of a folder's `labels-*.parquet`, as they lie there.

    Raises:
        MissingPart: no such file. BadInput: `missing_column` or `bad_column`.
    """
    columns = ("account_id", "terminal_id", "event_time", "reported_time", "is_fraud")
    parts = [
        (
            hash_column(table["account_id"]),
            hash_column(table["terminal_id"]),
            time_column(table["event_time"]),
            time_column(table["reported_time"]),
            np.asarray(table["is_fraud"].to_numpy(zero_copy_only=False), np.bool_),
        )
        for table in _chunks(path, "labels", columns, CHUNK_ROWS)
    ]
    empty = (np.empty(0, np.uint64),) * 2 + (np.empty(0, np.int64),) * 2 + (np.empty(0, np.bool_),)
    account, terminal, event_ms, reported_ms, is_fraud = (
        np.concatenate(column) for column in zip(*chain([empty], parts), strict=True)
    )
    return Labels(account, terminal, event_ms, reported_ms, is_fraud)


def hash_column(column: Any, key: bytes = _OFFLINE_KEY) -> NDArray[np.uint64]:
    """(n,) keyed hashes of an Arrow string array without nulls."""
    column = _whole(column).cast(pa.large_string())
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    buffer = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return keyed_hash_columns(buffer, offsets[:-1], np.diff(offsets), key)


def amount_column(column: Any) -> NDArray[np.int64]:
    """(n,) int64 in 1/10000 of an Arrow decimal array whose amounts fit 64 bits, as those of money do."""
    column = _whole(column).cast(AMOUNT_TYPE)
    words = np.frombuffer(column.buffers()[1], np.int64)
    return words[2 * column.offset : 2 * (column.offset + len(column)) : 2].copy()


def time_column(column: Any) -> NDArray[np.int64]:
    """(n,) int64 ms since 1970 in UTC of an Arrow timestamp or integer array."""
    column = _whole(column)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", tz=column.type.tz)).cast(pa.int64())
    return np.ascontiguousarray(column.cast(pa.int64()).to_numpy(), np.int64)


def channel_column(column: Any) -> NDArray[np.int8]:
    """(n,) int8 index into `CHANNELS` of an Arrow string (or dictionary) array; unknown words are OTHER."""
    codes = pc.index_in(_whole(column).cast(pa.string()), value_set=pa.array(CHANNELS))
    return np.asarray(codes.fill_null(CHANNELS.index("OTHER")).to_numpy(), np.int8)


def parquet_files(path: Path, kind: str) -> list[Path]:
    """`path` itself if it is a file, else its `<kind>-*.parquet` by name.

    Raises:
        MissingPart: there is none.
    """
    files = [path] if path.is_file() else sorted(path.glob(f"{kind}-*.parquet"))
    if not files:
        raise MissingPart(f"{path}: no {kind}-*.parquet there. Make some with `weir simulate --to-parquet`.")
    return files


def _chunks(path: Path, kind: str, columns: tuple[str, ...], chunk_rows: int) -> Iterator[pa.Table]:
    for file in parquet_files(path, kind):
        with pq.ParquetFile(file) as parquet:
            for name in columns:
                if name not in parquet.schema_arrow.names:
                    raise BadInput("missing_column", f"{file} has no column {name}")
            for batch in parquet.iter_batches(batch_size=chunk_rows, columns=list(columns)):
                yield pa.Table.from_batches([batch])


def _whole(column: Any) -> Any:
    """One array of a chunked one, without nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        # An older Arrow gives a chunked array back when there is more than one chunk's worth of offsets.
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if column.null_count:
        raise BadInput("bad_column", "a required column has nulls")
    return column
