"""A bank's payments and labels from Kafka to a folder: all that the topics hold, of any schema's version."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.training.errors import TrainingError
from services.training.prepare.fresh import fresh_folder
from services.training.prepare.lake import COLUMNS
from weir.codec.avro import FramedCodec
from weir.codec.registry import SchemaRegistry, open_registry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.config import KafkaSettings
from weir.errors import BadInput
from weir.streams.batch import RecordBatch
from weir.streams.history import end_offsets, read_range
from weir.streams.neighbours import Connections

_CLIENT = "weir-data-collect"
_ROWS = 20_000
_MORE = {
    "transactions": {name: pa.string() for name in ("merchant_category", "country", "counterparty_id")},
    "labels": {"source": pa.string()},
}
_RECORD = {"transactions": "transaction", "labels": "label"}
_BAD = pa.schema(
    {
        "topic": pa.string(),
        "partition": pa.int32(),
        "offset": pa.int64(),
        "reason": pa.string(),
        "value": pa.binary(),
    }
)


@dataclass(slots=True)
class Collected:
    """rows: written of each table. unreadable: records that are no payment or label, by reason.

    ends: of each topic the offsets up to which it was read, by partition.
    """

    rows: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    ends: dict[str, dict[int, int]] = field(default_factory=dict)


async def collect(to: Connections, target: Path) -> Collected:
    """Write what both topics hold by now into the new folder `target`, which appears once it is whole.

    Labels are read first: a payment whose label is there is there too. Rows lie in the order of their
    partitions; `weir data clean` sorts them. Records that cannot be read lie in `quarantine-collect.parquet`,
    with their place, the reason and their bytes.

    Raises:
        TrainingError: `target` exists, or a topic is empty. NeighbourUnavailable, AccessDenied, TopicMissing:
            Kafka or the registry. OSError: the disk is full; nothing is left.
    """
    done, registry = Collected(), open_registry(to.registry)
    try:
        with fresh_folder(target) as fresh, _Bad(fresh / "quarantine-collect.parquet") as bad:
            for kind, topic in (("labels", to.topics.labels), ("transactions", to.topics.transactions)):
                done.ends[topic] = await end_offsets(to.kafka, topic, _CLIENT)
                with _Months(fresh, kind) as months:
                    await _collect(to.kafka, topic, kind, registry, months, bad, done)
                if not done.rows[kind]:
                    raise TrainingError(f"{topic} holds no {kind}. Is it the right topic ([topics])?")
    finally:
        await registry.close()
    return done


async def _collect(
    kafka: KafkaSettings,
    topic: str,
    kind: str,
    registry: SchemaRegistry,
    months: "_Months",
    bad: "_Bad",
    done: Collected,
) -> None:
    schema = load_schema(_RECORD[kind])
    codec = FramedCodec(schema, await registry.id_of(SUBJECTS[_RECORD[kind]], schema), registry)
    async for batch in read_range(kafka, topic, {}, done.ends[topic], _CLIENT):
        for row, value in enumerate(batch.values):
            try:
                if value is None:
                    raise BadInput("empty", "a record without a value")
                months.add(await codec.decode(value))
                done.rows[kind] += 1
            except BadInput as error:
                bad.add(batch, row, error.reason)
                done.unreadable[error.reason] += 1


class _Months:
    """Writes rows by the month of their payment, a few at a time."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._schema = pa.schema({**COLUMNS[kind], **_MORE[kind]})
        self._rows: list[dict[str, Any]] = []
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> "_Months":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            for writer in self._writers.values():
                writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        months: dict[str, list[dict[str, Any]]] = {}
        for row in self._rows:
            at: datetime = row["event_time"]
            months.setdefault(f"{at:%Y-%m}", []).append(row)
        self._rows = []
        for month, rows in months.items():
            if month not in self._writers:
                path = self._folder / f"{self._kind}-{month}.parquet"
                self._writers[month] = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._writers[month].write_table(pa.Table.from_pylist(rows, schema=self._schema))


class _Bad:
    """Writes records that cannot be read; no file without any."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Bad":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, batch: RecordBatch, row: int, reason: str) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, _BAD, compression="zstd")
        record = {
            "topic": batch.topic,
            "partition": batch.partition,
            "offset": int(batch.offsets[row]),
            "reason": reason,
            "value": batch.values[row],
        }
        self._writer.write_table(pa.Table.from_pylist([record], schema=_BAD))
