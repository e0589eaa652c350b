"""Payments and labels as columns, checked once at the door."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

# 1 January 2200: hours since 1970 fit 32 bits, and a clock that is further off is a broken one.
EVENT_MS_MAX = 7_258_118_400_000


def _check(batch: object, dtypes: dict[str, type]) -> int:
    """The row count of a dataclass of columns, each one-dimensional, of its dtype, equally long."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}  # type: ignore[arg-type]
    row_count = -1
    for name, column in columns.items():
        if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype != dtypes[name]:
            raise ValueError(f"{type(batch).__name__}.{name} must be a column of {dtypes[name].__name__}")
        if row_count not in (-1, column.size):
            raise ValueError(f"{type(batch).__name__}.{name} has {column.size} rows, others {row_count}")
        row_count = column.size
        if not column.flags.c_contiguous:
            object.__setattr__(batch, name, np.ascontiguousarray(column))
    for name in ("account", "terminal"):
        if row_count and not columns[name].all():
            raise ValueError(f"{type(batch).__name__}.{name}: 0 is no entity")
    times = columns["event_ms"]
    if row_count and not (times.min() >= 0 and times.max() < EVENT_MS_MAX):
        raise ValueError(f"{type(batch).__name__}.event_ms must lie in the years 1970 to 2199")
    return row_count


@dataclass(frozen=True, slots=True)
class Payments:
    """A batch of payments in the order in which they are decided.

    account, terminal: (n,) uint64, `weir.state.hashing` of the identifiers, never 0.
    amount: (n,) int64 in 1/10000 of the home currency.
    event_ms: (n,) int64, ms since 1970 in UTC.
    channel: (n,) int8, index into `CHANNELS`.

    Raises:
        ValueError: a dtype, a length, a key of 0, or a time outside 1970 to 2199.
    """

    account: NDArray[np.uint64]
    terminal: NDArray[np.uint64]
    amount: NDArray[np.int64]
    event_ms: NDArray[np.int64]
    channel: NDArray[np.int8]

    def __post_init__(self) -> None:
        _check(
            self,
            {
                "account": np.uint64,
                "terminal": np.uint64,
                "amount": np.int64,
                "event_ms": np.int64,
                "channel": np.int8,
            },
        )

    @property
    def row_count(self) -> int:
        """Payments in the batch."""
        return self.account.size

    def rows(self, part: slice | NDArray[np.int64] | NDArray[np.bool_]) -> "Payments":
        """Some of the rows, as another batch."""
        return Payments(*(getattr(self, field.name)[part] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Labels:
    """What was learnt later of payments, in the order in which it was reported.

    account, terminal: (n,) uint64, as in `Payments`.
    event_ms: (n,) int64, of the payment; reported_ms: (n,) int64, when the label became known.
    is_fraud: (n,) bool. A label that says "honest" changes nothing: so does no label at all.

    Raises:
        ValueError: a dtype, a length, a key of 0, or a time outside 1970 to 2199.
    """

    account: NDArray[np.uint64]
    terminal: NDArray[np.uint64]
    event_ms: NDArray[np.int64]
    reported_ms: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]

    def __post_init__(self) -> None:
        _check(
            self,
            {
                "account": np.uint64,
                "terminal": np.uint64,
                "event_ms": np.int64,
                "reported_ms": np.int64,
                "is_fraud": np.bool_,
            },
        )

    @property
    def row_count(self) -> int:
        """Labels in the batch."""
        return self.account.size

    def rows(self, part: slice | NDArray[np.int64] | NDArray[np.bool_]) -> "Labels":
        """Some of the rows, as another batch."""
        return Labels(*(getattr(self, field.name)[part] for field in fields(self)))
