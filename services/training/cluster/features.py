"""Features on a cluster: accounts and terminals are independent of each other by key, so each part is alone.

A feature is the payment's own, its account's or its terminal's; none needs two keys. Payments are cut by
account into parts and by terminal into as many. A worker reads the Parquet itself, a chunk at a time, keeps
its part's rows, and runs the code that serves over each of the two, with one entity in the other's place: its
memory is bounded by its part. Windows end at an entity's own newest event, and what a table's clock would
empty or forget of an entity is emptied when that entity is next touched, so the others' clock cannot be seen.

The client puts the columns together. It holds a digest of each part's events against its own, so nothing
that a worker read elsewhere gets into a table.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from services.training.cluster.link import Cluster
from services.training.errors import TrainingError
from weir.features.columns import Labels, Payments
from weir.features.offline import CHUNK_ROWS, features_of, stream_features
from weir.features.spec import FEATURES, FeatureSpec

Floats32 = NDArray[np.float32]
Batch = TypeVar("Batch", Payments, Labels)
TAIL_BYTES = 65_536
_TERMINAL_AT = next(at for at, name in enumerate(FEATURES) if name.startswith("terminal_"))
COLUMNS = {"account": slice(0, _TERMINAL_AT), "terminal": slice(_TERMINAL_AT, len(FEATURES))}
"""Which columns come of which key; those of the payment itself go with the account."""


@dataclass(frozen=True, slots=True)
class Part:
    """Events of one part, by rising time; of each side's rows the other side's key is 1."""

    payments: dict[str, Payments]
    labels: dict[str, Labels]


@dataclass(frozen=True, slots=True)
class Side:
    """x: (n, C) float32, the columns of one side. digest: SHA-256 of the events that they came of."""

    x: Floats32
    digest: bytes


def begin(cluster: Cluster, folder: Path) -> None:
    """Let the workers read the folder, while this process goes on.

    Raises:
        TrainingError: a worker does not see the folder, or sees other files there.
    """
    if folder not in cluster.held:
        stamp = folder_stamp(folder)
        for worker, answer in cluster.ask_all(folder_stamp, folder).items():
            if isinstance(answer, Exception) or answer != stamp:
                raise _unseen(worker, folder, found=isinstance(answer, str))
        parts = cluster.thread_count
        cluster.held[folder] = [
            cluster.submit(read_part, folder, stamp, part, parts) for part in range(parts)
        ]


def features_on(
    cluster: Cluster, folder: Path, payments: Payments, labels: Labels, spec: FeatureSpec
) -> Floats32:
    """(n, len(FEATURES)) float32, bit for bit as `weir.features.offline.features_of`.

    Args:
        folder: where the workers read; as `begin`, which goes first where it has not.
        payments, labels: what is there, or what of it happened before some moment. Of anything else the
            features are computed here.
    Raises:
        TrainingError: as `begin`. NeighbourUnavailable: the cluster is gone.
    """
    begin(cluster, folder)
    parts = cluster.held[folder]
    until_ms = _end(payments.event_ms), _end(labels.reported_ms)
    place = {cluster.submit(part_features, part, *until_ms, spec): at for at, part in enumerate(parts)}
    x = np.empty((payments.row_count, len(FEATURES)), np.float32)
    for future, sides in cluster.results(place):
        for side, made in sides.items():
            chosen = partial(_of_part, side=side, part=place[future], parts=len(parts))
            if _digest(chosen(payments), chosen(labels)) != made.digest:
                return features_of(payments, labels, spec=spec)
            x[_rows(payments, side, place[future], len(parts)), COLUMNS[side]] = made.x
    return x


def folder_stamp(folder: Path) -> str | None:
    """What tells that a folder holds the same Parquet files: names, sizes, and their last 64 KiB, where
    Parquet keeps its counts and statistics; None for no folder, or none that can be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.glob("*.parquet")):
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(size - TAIL_BYTES, 0))
                digest.update(f"{path.name}\0{size}\0".encode() + file.read())
    except OSError:
        return None
    return digest.hexdigest() if folder.is_dir() else None


def read_part(folder: Path, stamp: str, part: int, parts: int) -> Part:
    """On a worker: the folder's events whose account, and those whose terminal, belongs to the part.

    Raises:
        TrainingError: the folder is not there, or holds other files. BadInput: a file is damaged.
    """
    from services.training.data import stream_events

    found = folder_stamp(folder)
    if found != stamp:
        raise _unseen("that came later", folder, found=found is not None)
    payments: dict[str, list[Payments]] = {side: [] for side in COLUMNS}
    labels: dict[str, list[Labels]] = {side: [] for side in COLUMNS}
    for chunk in stream_events(folder):
        for side in COLUMNS:
            if isinstance(chunk, Payments):
                payments[side].append(_of_part(chunk, side, part, parts))
            else:
                labels[side].append(_of_part(chunk, side, part, parts))
    return Part(
        {side: _by_time(_joined(Payments, payments[side])) for side in COLUMNS},
        {side: _joined(Labels, labels[side]) for side in COLUMNS},
    )


def part_features(
    part: Part, payments_until_ms: int, labels_until_ms: int, spec: FeatureSpec
) -> dict[str, Side]:
    """On a worker: each side's columns, of payments and labels that came before these moments."""
    out = {}
    for side, columns in COLUMNS.items():
        payments, labels = part.payments[side], part.labels[side]
        payments = payments.rows(slice(0, int(np.searchsorted(payments.event_ms, payments_until_ms))))
        labels = labels.rows(labels.reported_ms < labels_until_ms)
        x = np.empty((payments.row_count, columns.stop - columns.start), np.float32)
        at = 0
        for rows in stream_features(_chunks(payments), labels, spec=spec):
            x[at : at + len(rows)] = rows[:, columns]
            at += len(rows)
        out[side] = Side(x, _digest(payments, labels))
    return out


def _rows(batch: Payments | Labels, side: str, part: int, parts: int) -> NDArray[np.int64]:
    """Which rows belong to a part, by their key: a hash, or a number of the Handbook's."""
    key: NDArray[np.uint64] = getattr(batch, side)
    return np.flatnonzero(key % np.uint64(parts) == part)


def _of_part(batch: Batch, side: str, part: int, parts: int) -> Batch:
    """The rows of a part, with 1 for the other side's key, and of a terminal nothing else of the payment."""
    batch = batch.rows(_rows(batch, side, part, parts))
    key = np.ones(batch.row_count, np.uint64)
    if side == "account":
        return replace(batch, terminal=key)
    if isinstance(batch, Payments):
        return replace(batch, account=key, amount=batch.amount * 0, channel=batch.channel * 0)
    return replace(batch, account=key)


def _by_time(payments: Payments) -> Payments:
    return payments.rows(np.argsort(payments.event_ms, kind="stable"))


def _joined(kind: type[Batch], chunks: list[Batch]) -> Batch:
    return kind(*(np.concatenate([getattr(each, field.name) for each in chunks]) for field in fields(kind)))


def _chunks(payments: Payments) -> Iterator[Payments]:
    for at in range(0, payments.row_count, CHUNK_ROWS):
        yield payments.rows(slice(at, at + CHUNK_ROWS))


def _end(times_ms: NDArray[np.int64]) -> int:
    return int(times_ms.max()) + 1 if times_ms.size else 0


def _digest(payments: Payments, labels: Labels) -> bytes:
    digest = hashlib.sha256()
    for batch in (payments, labels):
        for field in fields(batch):
            column = getattr(batch, field.name)
            digest.update(f"{field.name}:{len(column)};".encode())
            digest.update(np.ascontiguousarray(column).data)
    return digest.digest()


def _unseen(worker: str, folder: Path, *, found: bool) -> TrainingError:
    sees = "sees other files there" if found else "does not see it"
    return TrainingError(
        f"{folder}: the worker {worker} {sees}. Mount the same folder at this path on every machine."
    )
