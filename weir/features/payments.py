"""Features of payments: what an account and a terminal did before, in windows bounded in memory.

`PaymentState.observe` gives each row its features from the rows before it, then lets the row enter. The
result does not depend on how the stream is cut into batches, so the same class computes features online and
for training (`weir.features.offline`). What each feature means is in `docs/reference/features.md`.

A state belongs to one thread, and to one worker: a terminal's windows hold what this worker's partitions saw
of it.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from weir.errors import IntegrityError
from weir.features import _windows as windows
from weir.features.spec import CHANNELS, DEFAULT, FEATURE_SPEC, FEATURES, FeatureSpec
from weir.state import snapshot
from weir.state.rows import Rows
from weir.state.table import StateFull

__all__ = [
    "CHANNELS",
    "DEFAULT",
    "FEATURES",
    "FEATURE_SPEC",
    "FeatureSpec",
    "Labels",
    "PaymentState",
    "Payments",
    "StateFull",
]

# 1 January 2200: hours since 1970 fit 32 bits, and a clock that is further off is a broken one.
EVENT_MS_MAX = 7_258_118_400_000
_KIND = "payments"


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


class PaymentState:
    """The windows of every account and terminal that this worker knows."""

    def __init__(
        self,
        spec: FeatureSpec = DEFAULT,
        *,
        accounts_max: int,
        terminals_max: int,
        accounts_start: int = 4_096,
        terminals_start: int = 1_024,
    ) -> None:
        """An empty state that grows by doubling from `*_start` rows to `*_max`.

        Raises:
            ValueError: a maximum below 1.
        """
        self.spec = spec
        self._accounts = Rows(
            "account", windows.account_bytes(spec.label_delay_days), accounts_start, accounts_max
        )
        self._terminals = Rows(
            "terminal", windows.terminal_bytes(spec.label_delay_days), terminals_start, terminals_max
        )
        self._clock = np.zeros(windows.CLOCK_FIELDS, np.int64)

    def observe(self, payments: Payments) -> NDArray[np.float32]:
        """(n, len(FEATURES)) float32: each row's features from the rows before it; then it has entered.

        Raises:
            StateFull: no row left for a new account or terminal; the rows before it have entered.
        """
        out = np.empty((payments.row_count, windows.FEATURE_COUNT), np.float32)
        row = 0
        while row < payments.row_count:
            row, full = windows.observe_rows(
                row,
                payments.account,
                payments.terminal,
                payments.amount,
                payments.event_ms,
                payments.channel,
                self._setting(),
                self._clock,
                self._accounts.slots,
                self._accounts.views,
                self._terminals.slots,
                self._terminals.views,
                out,
            )
            if full == windows.ACCOUNTS_FULL:
                self._make_room(self._accounts, windows.CLOCK_ACCOUNTS, windows.A_HOUR_I32)
            elif full == windows.TERMINALS_FULL:
                self._make_room(self._terminals, windows.CLOCK_TERMINALS, windows.T_HOUR_I32)
        return out

    def learn(self, labels: Labels) -> None:
        """Count each label's fraud at its payment's day; it acts once that day is `label_delay_days` past.

        A label whose account and terminal are both unknown here, or whose day no window will see, only raises
        `unmatched_labels_total`.
        """
        windows.learn_rows(
            labels.account,
            labels.terminal,
            labels.event_ms,
            labels.is_fraud,
            self._setting(),
            self._clock,
            self._accounts.slots,
            self._accounts.views,
            self._terminals.slots,
            self._terminals.views,
        )

    @property
    def watermark_ms(self) -> int:
        """The newest event time seen, less the lateness; an event before it is late. 0 at the start."""
        return max(int(self._clock[windows.CLOCK_MAX_EVENT_MS]) - self.spec.lateness_s * 1000, 0)

    @property
    def late_total(self) -> int:
        """Events that came after the watermark had passed them: decided, and in those buckets still open."""
        return int(self._clock[windows.CLOCK_LATE])

    @property
    def unmatched_labels_total(self) -> int:
        """Fraud labels that found neither their account's nor their terminal's day."""
        return int(self._clock[windows.CLOCK_UNMATCHED_LABELS])

    @property
    def evicted_total(self) -> int:
        """Accounts and terminals forgotten because no window could see them any more and room was needed."""
        return self._accounts.evicted_total + self._terminals.evicted_total

    @property
    def account_count(self) -> int:
        """Accounts that have a row."""
        return int(self._clock[windows.CLOCK_ACCOUNTS])

    @property
    def terminal_count(self) -> int:
        """Terminals that have a row."""
        return int(self._clock[windows.CLOCK_TERMINALS])

    @property
    def nbytes(self) -> int:
        """Bytes held by rows and slots, those not yet in use included."""
        return self._accounts.nbytes + self._terminals.nbytes

    def save(self, path: Path) -> None:
        """Write the whole state to `path`: streamed, checksummed, and there either whole or not at all.

        Raises:
            OSError: the disk is full, or `path` may not be written; an older file at `path` is untouched.
        """
        snapshot.write(
            path,
            {
                "kind": _KIND,
                "spec": self.spec.id,
                "clock": self._clock.tolist(),
                "accounts_max": self._accounts.row_max,
                "terminals_max": self._terminals.row_max,
            },
            [
                self._accounts.used(self.account_count),
                self._terminals.used(self.terminal_count),
            ],
        )

    @classmethod
    def load(
        cls,
        path: Path,
        spec: FeatureSpec = DEFAULT,
        *,
        accounts_max: int | None = None,
        terminals_max: int | None = None,
    ) -> Self:
        """The state that `save` wrote; the maxima are the saved ones unless given.

        Raises:
            IntegrityError: a byte differs, the file ends early, or it was made for another feature spec.
            MissingPart: there is no such file.
        """
        with snapshot.Reader(path) as reader:
            header = reader.header
            if header.get("kind") != _KIND or header.get("spec") != spec.id:
                raise IntegrityError(
                    f"{path}: saved for feature spec {header.get('spec')}, not {spec.id}. "
                    "Rebuild it from events."
                )
            clock = np.array(header["clock"], np.int64)
            account_count, terminal_count = (
                int(clock[field]) for field in (windows.CLOCK_ACCOUNTS, windows.CLOCK_TERMINALS)
            )
            state = cls(
                spec,
                accounts_max=max(accounts_max or int(header["accounts_max"]), account_count, 1),
                terminals_max=max(terminals_max or int(header["terminals_max"]), terminal_count, 1),
                accounts_start=max(account_count, 1),
                terminals_start=max(terminal_count, 1),
            )
            reader.read_into(state._accounts.used(account_count))
            reader.read_into(state._terminals.used(terminal_count))
            reader.finish()
        state._clock = clock
        state._accounts.index(account_count)
        state._terminals.index(terminal_count)
        return state

    def _make_room(self, rows: Rows, count_field: int, hour_at: int) -> None:
        today = int(self._clock[windows.CLOCK_MAX_EVENT_MS]) // windows.HOUR_MS // windows.HOURS
        self._clock[count_field] = rows.make_room(
            int(self._clock[count_field]),
            hour_at,
            (today - windows.ring_days(self.spec.label_delay_days)) * windows.HOURS,
        )

    def _setting(self) -> NDArray[np.int64]:
        spec = self.spec
        setting = np.zeros(windows.SET_FIELDS, np.int64)
        setting[windows.SET_DELAY] = spec.label_delay_days
        setting[windows.SET_LATENESS_MS] = spec.lateness_s * 1000
        setting[windows.SET_OFFSET_MS] = spec.utc_offset_minutes * 60_000
        setting[windows.SET_NIGHT_START] = spec.night_start_hour
        setting[windows.SET_NIGHT_END] = spec.night_end_hour
        setting[windows.SET_ACCOUNTS] = self._accounts.capacity
        setting[windows.SET_TERMINALS] = self._terminals.capacity
        return setting
