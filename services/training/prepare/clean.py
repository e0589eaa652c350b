"""Events that keep the contract, sorted, in a new folder; the others beside them with the reason."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.training.errors import TrainingError
from services.training.prepare.contract import judge
from services.training.prepare.fresh import fresh_folder
from services.training.prepare.lake import COLUMNS, Lake

_ORDER = {"transactions": "event_time, event_id", "labels": "reported_time, event_id, is_fraud"}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """kept: rows of each table. taken_out: rows of each table by reason."""

    kept: dict[str, int]
    taken_out: dict[str, dict[str, int]]


def clean(lake: Lake, target: Path, *, now_ms: int) -> Cleaned:
    """Write `target`, a file a month, by rising time; it appears only once it is whole.

    What is taken out lies in `quarantine-transactions.parquet` and `quarantine-labels.parquet` with `file`,
    `row` and `reason`, every column as it came. The same events give the same files.

    Raises:
        TrainingError: `target` exists. OSError: the disk is full; nothing is left.
    """
    judge(lake, now_ms)
    with fresh_folder(target) as fresh:
        kept, taken_out = {}, {}
        for kind, wanted in COLUMNS.items():
            names = lake.columns(kind)
            order, listed = _ORDER[kind], ", ".join(f'"{name}"' for name in names)
            good = f"SELECT {listed} FROM judged_{kind} WHERE reason IS NULL ORDER BY {order}"
            kept[kind] = _write_months(lake.batches(good), fresh, kind, dict(wanted))
            bad = (
                f"SELECT {listed}, file, row, reason FROM judged_{kind} WHERE reason IS NOT NULL "
                "ORDER BY file, row"
            )
            taken_out[kind] = _write_bad(lake.batches(bad), fresh / f"quarantine-{kind}.parquet")
    return Cleaned(kept, taken_out)


def _write_months(
    batches: Iterator[pa.RecordBatch], folder: Path, kind: str, wanted: dict[str, pa.DataType]
) -> int:
    """A file for each month of `event_time`; the rows come sorted."""
    writers: dict[str, pq.ParquetWriter] = {}
    count = 0
    try:
        for batch in batches:
            table = _cast(pa.Table.from_batches([batch]), wanted)
            months = pc.strftime(table["event_time"], "%Y-%m")
            for month in pc.unique(months).to_pylist():
                part = table.filter(pc.equal(months, month))
                if month not in writers:
                    path = folder / f"{kind}-{month}.parquet"
                    writers[month] = pq.ParquetWriter(path, part.schema, compression="zstd")
                writers[month].write_table(part)
            count += len(table)
    finally:
        for writer in writers.values():
            writer.close()
    if not count:
        raise TrainingError(f"No row of {kind} keeps the contract. See `weir data validate`.")
    return count


def _write_bad(batches: Iterator[pa.RecordBatch], path: Path) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    writer = None
    try:
        for batch in batches:
            writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd")
            writer.write_batch(batch)
            reasons.update(batch.column("reason").to_pylist())
    finally:
        if writer is not None:
            writer.close()
    return dict(sorted(reasons.items()))


def _cast(table: pa.Table, wanted: dict[str, pa.DataType]) -> pa.Table:
    """Columns of the contract in its types; the others as they are."""
    fields = [pa.field(name, wanted.get(name, table.schema.field(name).type)) for name in table.schema.names]
    return table.cast(pa.schema(fields))
