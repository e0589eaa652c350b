"""Labelled payments from a folder, in the two layouts that Weir reads.

Weir's own: `transactions-*.parquet` and `labels-*.parquet`, as `weir simulate --to-parquet` writes them. A
payment is a fraud if a label says so; a payment without a label is honest, as a bank sees it.

The Fraud Detection Handbook's: `*.parquet` with TRANSACTION_ID, TX_DATETIME, CUSTOMER_ID, TERMINAL_ID,
TX_AMOUNT_CENTS, TX_FRAUD. Labels become known a fixed delay after the payment. TX_FRAUD_SCENARIO is never
read.
Source: Le Borgne et al. 2022, section 3.2.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.training.cluster import link
from services.training.errors import DataMissing, TrainingError
from weir.errors import BadInput
from weir.features import offline
from weir.features.offline import CHUNK_ROWS, hash_column, read_labels, read_payments
from weir.features.payments import CHANNELS, DEFAULT, FeatureSpec, Labels, Payments

DAY_MS = 86_400_000
AMOUNT_UNIT = 10_000  # amounts are held in 1/10000 of the home currency
NEVER_MS = np.iinfo(np.int64).max
_HANDBOOK = ("TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT_CENTS", "TX_FRAUD")


@dataclass(frozen=True, slots=True)
class Events:
    """Payments by rising event time, and what was ever learnt of them.

    payments: n rows. labels: in any order. is_fraud: (n,) bool. reported_ms: (n,) int64, when the fraud
    became known, NEVER_MS for the rest. origin: a word for the layout. fingerprint: SHA-256 over all columns.
    folder: where they were read, for workers to read them too.
    """

    payments: Payments
    labels: Labels
    is_fraud: NDArray[np.bool_]
    reported_ms: NDArray[np.int64]
    origin: str
    fingerprint: str
    folder: Path | None = None

    @property
    def event_ms(self) -> NDArray[np.int64]:
        """(n,) int64."""
        return self.payments.event_ms

    def known_frauds(self, at_ms: int) -> NDArray[np.bool_]:
        """(n,) bool: what someone who trains at `at_ms` would take for a fraud."""
        return self.is_fraud & (self.reported_ms <= at_ms)

    def features(self, spec: FeatureSpec = DEFAULT) -> NDArray[np.float32]:
        """(n, F) float32, each row as it was seen when it was decided. Errors as `features_of`."""
        return self.features_of(self.payments, self.labels, spec=spec)

    def features_of(
        self, payments: Payments, labels: Labels, *, spec: FeatureSpec = DEFAULT
    ) -> NDArray[np.float32]:
        """As `weir.features.offline.features_of`, of these events or an earlier part of them.

        On the workers of the cluster that was joined, if any; the same bits.

        Raises:
            TrainingError: a worker does not see these files. NeighbourUnavailable: the cluster is gone.
        """
        cluster = link.current()
        if cluster is None or self.folder is None:
            return offline.features_of(payments, labels, spec=spec)
        from services.training.cluster.features import features_on

        return features_on(cluster, self.folder, payments, labels, spec)


def read_events(folder: Path, *, label_delay_days: int = DEFAULT.label_delay_days) -> Events:
    """The folder's payments and labels; which layout it is shows by its files.

    Args:
        label_delay_days: for the Handbook's layout, which has no time of report.
    Raises:
        DataMissing: no such folder, or no Parquet in it. BadInput: a column is missing, or a file is damaged.
        TrainingError: there are no payments, or no fraud among them.
    """
    if not folder.is_dir():
        raise DataMissing(f"{folder} is not a folder. Make one with `weir simulate --to-parquet {folder}`.")
    try:
        if any(folder.glob("transactions-*.parquet")):
            events = _read_weir(folder)
        elif any(folder.glob("*.parquet")):
            events = _read_handbook(folder, label_delay_days)
        else:
            raise DataMissing(f"{folder}: no Parquet files. Make some with `weir simulate --to-parquet`.")
    except pa.ArrowInvalid as error:
        raise BadInput("not_parquet", f"{folder}: {str(error).splitlines()[0]}") from error
    row_count, fraud_count = events.payments.row_count, int(events.is_fraud.sum())
    if fraud_count in (0, row_count):
        raise TrainingError(
            f"{folder}: {row_count:,} payments, {fraud_count:,} of them fraud. Both kinds are needed."
        )
    return replace(events, folder=folder.absolute())


def stream_events(
    folder: Path, *, label_delay_days: int = DEFAULT.label_delay_days
) -> Iterator[Payments | Labels]:
    """The folder's payments and labels as they lie there, in either layout, a chunk at a time.

    Raises:
        BadInput: as `read_events`. MissingPart: no Parquet in it.
    """
    if any(folder.glob("transactions-*.parquet")):
        yield from read_payments(folder)
        yield read_labels(folder)
        return
    for payments, is_fraud in _handbook_chunks(folder):
        yield payments
        yield _handbook_labels(payments, is_fraud, label_delay_days)


def _read_weir(folder: Path) -> Events:
    payments = _concatenated(list(read_payments(folder)))
    labels = read_labels(folder)
    event, labelled = _ids(folder, "transactions"), _ids(folder, "labels")
    order = np.argsort(event, kind="stable")
    place = np.searchsorted(event, labelled, sorter=order)
    found = place < len(event)
    rows = order[np.where(found, place, 0)]
    found &= event[rows] == labelled
    if not found.all():
        raise BadInput("unknown_event", f"{folder}: {int((~found).sum()):,} labels name no payment there")
    frauds = labels.is_fraud
    reported_ms = np.full(len(event), NEVER_MS)
    np.minimum.at(reported_ms, rows[frauds], labels.reported_ms[frauds])
    return _sorted(payments, labels, reported_ms, "weir")


def _read_handbook(folder: Path, label_delay_days: int) -> Events:
    parts = list(_handbook_chunks(folder))
    payments = _concatenated([part for part, _ in parts])
    is_fraud = np.concatenate([part for _, part in parts])
    reported_ms = np.where(is_fraud, payments.event_ms + label_delay_days * DAY_MS, NEVER_MS)
    return _sorted(payments, _handbook_labels(payments, is_fraud, label_delay_days), reported_ms, "handbook")


def _handbook_chunks(folder: Path) -> Iterator[tuple[Payments, NDArray[np.bool_]]]:
    for file in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            missing = [name for name in _HANDBOOK if name not in parquet.schema_arrow.names]
            if missing:
                raise BadInput("missing_column", f"{file} has no column {missing[0]}")
            for batch in parquet.iter_batches(batch_size=CHUNK_ROWS, columns=list(_HANDBOOK[1:])):
                yield _handbook_payments(file, batch)


def _handbook_payments(file: Path, batch: pa.RecordBatch) -> tuple[Payments, NDArray[np.bool_]]:
    def integers(name: str) -> Any:
        column = batch.column(name)
        if column.null_count:
            raise BadInput("bad_column", f"{file}: {name} has nulls")
        return column.to_numpy(zero_copy_only=False)

    event_ms = integers("TX_DATETIME").astype("datetime64[ms]").astype(np.int64)
    payments = Payments(
        account=integers("CUSTOMER_ID").astype(np.uint64) + np.uint64(1),  # 0 is no entity
        terminal=integers("TERMINAL_ID").astype(np.uint64) + np.uint64(1),
        amount=integers("TX_AMOUNT_CENTS").astype(np.int64) * 100,
        event_ms=event_ms,
        channel=np.full(len(event_ms), CHANNELS.index("OTHER"), np.int8),
    )
    return payments, integers("TX_FRAUD") == 1


def _handbook_labels(payments: Payments, is_fraud: NDArray[np.bool_], label_delay_days: int) -> Labels:
    return Labels(
        payments.account[is_fraud],
        payments.terminal[is_fraud],
        payments.event_ms[is_fraud],
        payments.event_ms[is_fraud] + label_delay_days * DAY_MS,
        np.ones(int(is_fraud.sum()), np.bool_),
    )


def _ids(folder: Path, kind: str) -> NDArray[np.uint64]:
    """The hashed event ids of all files of a kind, in the order in which they are read elsewhere."""
    hashes = []
    for file in sorted(folder.glob(f"{kind}-*.parquet")):
        if "event_id" not in pq.read_schema(file).names:
            raise BadInput("missing_column", f"{file} has no column event_id")
        with pq.ParquetFile(file) as parquet:
            hashes += [hash_column(batch.column(0)) for batch in parquet.iter_batches(columns=["event_id"])]
    return np.concatenate(hashes) if hashes else np.empty(0, np.uint64)


def _concatenated(parts: list[Payments]) -> Payments:
    if not parts:
        raise TrainingError("The files hold no payment at all.")
    return Payments(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Payments))
    )


def _sorted(payments: Payments, labels: Labels, reported_ms: NDArray[np.int64], origin: str) -> Events:
    order = np.argsort(payments.event_ms, kind="stable")
    payments, reported_ms = payments.rows(order), reported_ms[order]
    digest = hashlib.sha256()
    for name, column in [
        *((field.name, getattr(payments, field.name)) for field in fields(Payments)),
        ("reported_ms", reported_ms),
    ]:
        digest.update(f"{name}:{column.dtype.str}:{len(column)};".encode())
        digest.update(np.ascontiguousarray(column).data)
    return Events(payments, labels, reported_ms != NEVER_MS, reported_ms, origin, digest.hexdigest())
