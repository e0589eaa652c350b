"""A simulated history as Parquet: a file a month, columns named as the fields of the Avro schemas.

transactions-YYYY-MM.parquet   by rising event_time; amount is decimal(19,4), times are timestamp[ms, UTC]
labels-YYYY-MM.parquet         the labels of that month's transactions, whenever they were reported
truth-YYYY-MM.parquet          event_id and fraud_kind, to judge by; never a feature
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.simulator.bank import CATEGORIES, COUNTRIES, DAY_MS, Bank, Events
from services.simulator.fraud import KINDS, SOURCES, LabelRows, bank_day, labels_of
from services.simulator.identifiers import account_ids, day_prefix, event_ids, terminal_ids
from weir.features.spec import CHANNELS

_TIME = pa.timestamp("ms", tz="UTC")


def write_history(
    bank: Bank, folder: Path, days: int, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write `days` days into `folder` (made if missing); the number of payments written.

    Args:
        progress: called with the days done and the payments so far.
    Raises:
        OSError: the folder cannot be written. Files already complete are whole; the month at work is not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for month, month_days in _months(bank, days):
        with ExitStack() as stack:
            writers: dict[str, pq.ParquetWriter] = {}
            for day in month_days:
                events = bank_day(bank, day)
                for kind, table in tables(bank, events, labels_of(bank, events, day), day).items():
                    if kind not in writers:
                        path = folder / f"{kind}-{month}.parquet"
                        writers[kind] = stack.enter_context(
                            pq.ParquetWriter(path, table.schema, compression="zstd")
                        )
                    writers[kind].write_table(table)
                written += len(events)
                if progress is not None:
                    progress(day + 1, written)
    return written


def tables(bank: Bank, events: Events, labels: LabelRows, day: int) -> dict[str, pa.Table]:
    """One day's transactions, labels and truth."""
    event_id = event_ids(day_prefix(bank.day_start_ms(day)), 0, len(events))
    account_id, terminal_id = account_ids(events.account), terminal_ids(events.terminal)
    paid_to = events.counterparty >= 0
    category, country = bank.category[events.terminal], bank.country[events.terminal]
    row = labels.row
    return {
        "transactions": pa.table(
            {
                "event_id": strings(event_id),
                "account_id": strings(account_id),
                "terminal_id": strings(terminal_id),
                "amount": decimals(events.amount),
                "currency": _words(np.zeros(len(events), np.int64), (bank.settings.currency,)),
                "event_time": pa.array(events.event_ms).cast(_TIME),
                "channel": _words(events.channel, CHANNELS),
                "merchant_category": _words(category, CATEGORIES.tolist()),
                "country": _words(country, COUNTRIES.tolist()),
                "counterparty_id": _nulled(
                    strings(account_ids(np.maximum(events.counterparty, 0))), ~paid_to
                ),
            }
        ),
        "labels": pa.table(
            {
                "event_id": strings(event_id[row]),
                "account_id": strings(account_id[row]),
                "terminal_id": strings(terminal_id[row]),
                "event_time": pa.array(events.event_ms[row]).cast(_TIME),
                "reported_time": pa.array(labels.reported_ms).cast(_TIME),
                "is_fraud": pa.array(labels.is_fraud),
                "source": _words(labels.source, SOURCES),
            }
        ),
        "truth": pa.table({"event_id": strings(event_id), "fraud_kind": _words(events.fraud_kind, KINDS)}),
    }


def strings(text: NDArray[np.uint8]) -> Any:
    """An Arrow string array from an (n, width) matrix of bytes."""
    offsets = np.arange(text.shape[0] + 1, dtype=np.int32) * np.int32(text.shape[1])
    return pa.StringArray.from_buffers(
        text.shape[0], pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text))
    )


def decimals(amount: NDArray[np.int64]) -> Any:
    """An Arrow decimal(19,4) array from whole 1/10000."""
    words = np.empty((amount.size, 2), np.int64)
    words[:, 0] = amount
    words[:, 1] = amount >> 63
    return pa.Array.from_buffers(pa.decimal128(19, 4), amount.size, [None, pa.py_buffer(words)])


def _words(index: NDArray[Any], words: Any) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(list(words))).cast(
        pa.string()
    )


def _nulled(array: Any, is_null: NDArray[np.bool_]) -> Any:
    bits = np.packbits(~is_null, bitorder="little")
    _, offsets, data = array.buffers()
    return pa.Array.from_buffers(pa.string(), len(array), [pa.py_buffer(bits), offsets, data])


def _months(bank: Bank, days: int) -> Iterator[tuple[str, list[int]]]:
    by_month: dict[str, list[int]] = {}
    for day in range(days):
        month = datetime.fromtimestamp((bank.start_ms + day * DAY_MS) / 1000, UTC).strftime("%Y-%m")
        by_month.setdefault(month, []).append(day)
    yield from by_month.items()
