"""The terminals of a worker, shared by its partitions; and the pass of payments through both tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from weir.features import _layout as layout
from weir.features._observe import observe_rows
from weir.features._saving import Frame, Saved, Saving
from weir.features._terminal_kernels import enter_terminals, learn_terminals
from weir.features.accounts import Accounts
from weir.features.columns import Labels, Payments
from weir.features.spec import DEFAULT, FEATURES, FeatureSpec
from weir.state import snapshot
from weir.state.pin import KEPT_ROWS_MAX
from weir.state.rows import Rows
from weir.state.table import bytes_max

_KIND = "terminals"


class Terminals:
    """Every terminal that this worker knows of, by its keyed hash.

    The table is a function of the set of payments and labels that have entered, whatever their order: so
    workers that have read the same topics hold the same. It belongs to one thread.

    Attributes:
        spec: what the features mean.
        clock: (1,) int64: the newest hour of a payment. Part of what is undone and saved.
    """

    def __init__(self, spec: FeatureSpec = DEFAULT, *, rows_max: int, rows_start: int = 1_024) -> None:
        """An empty table with slots for `rows_start` terminals, which double up to `rows_max`.

        Raises:
            ValueError: a maximum below 1.
        """
        self.spec = spec
        self.clock = np.zeros(layout.TERMINAL_CLOCK_FIELDS, np.int64)
        self.rows = Rows(
            "terminal",
            layout.terminal_bytes(spec.label_delay_days),
            row_start=rows_start,
            row_max=rows_max,
            hour_at=layout.T_HOUR_I32,
            stamp_at=layout.T_STAMP_U32,
            clock=self.clock,
        )

    @staticmethod
    def bytes_max(rows_max: int, spec: FeatureSpec = DEFAULT) -> int:
        """Bytes that a table of `rows_max` terminals takes at most, without what is kept for undoing."""
        return bytes_max(rows_max, layout.terminal_bytes(spec.label_delay_days))

    @property
    def row_count(self) -> int:
        """Terminals that have a row."""
        return self.rows.row_count

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in use, of all slots, and of what is kept for undoing."""
        return self.rows.nbytes

    @property
    def evicted_total(self) -> int:
        """Terminals forgotten because no window could see them any more."""
        return self.rows.evicted_total

    def begin(self, epoch: int) -> None:
        """Changes from now on belong to `epoch`; epochs ascend.

        Raises:
            OutOfEpoch: not after every epoch before it.
        """
        self.rows.begin(epoch)

    def enter(self, terminal: NDArray[np.uint64], hour: NDArray[np.int32]) -> None:
        """Let payments that another worker decides enter.

        Args:
            terminal: (n,) keyed hashes, never 0.
            hour: (n,) hours since 1970 of the payments' event times.
        Raises:
            ValueError: lengths or dtypes differ from these, or a hash of 0.
            StateFull: no row left for a new terminal; the payments before it have entered.
        """
        if terminal.dtype != np.uint64 or hour.dtype != np.int32 or terminal.shape != hour.shape:
            raise ValueError("terminal must be uint64, hour int32, of one length")
        if terminal.size and (not terminal.all() or hour.min() < 0):
            raise ValueError("0 is no terminal, and hours count from 1970")
        self.rows.keep(terminal)
        at = 0
        while at < terminal.size:
            with self.rows.lock:
                at, why = enter_terminals(at, terminal, hour, self._ring, self.clock, self.rows.table)
            if why == layout.TERMINALS_FULL:
                self.make_room()

    def learn(self, labels: Labels) -> int:
        """Count each known fraud at its payment's day; how many lay in a window that is still held.

        It acts on what is told early at once, on all else when that day is `label_delay_days` past. One that
        comes before its payment makes the row.

        Raises:
            StateFull: no row left for a new terminal; the labels before it are learnt.
        """
        self.rows.keep(labels.terminal[labels.is_fraud])
        at = learnt = 0
        while at < labels.row_count:
            with self.rows.lock:
                at, why, count = learn_terminals(
                    at,
                    labels.terminal,
                    labels.event_ms,
                    labels.is_fraud,
                    self._ring,
                    self.clock,
                    self.rows.table,
                )
            learnt += count
            if why == layout.TERMINALS_FULL:
                self.make_room()
        return learnt

    def roll_back(self, epoch: int) -> None:
        """Undo every change of `epoch` and later: rows, counts and clock are as they were before it began.

        Raises:
            OutOfEpoch: it has been released.
        """
        self.rows.roll_back(epoch)

    def release(self, epoch: int) -> None:
        """Changes of epochs up to `epoch` are committed and will not be undone."""
        self.rows.release(epoch)

    def make_room(self) -> None:
        """Room for one more terminal.

        Raises:
            StateFull: every row is taken, and none may be forgotten.
        """
        self.rows.make_room(self.floor_hour())

    def floor_hour(self) -> int:
        """Nothing is held of hours before this one."""
        newest_day = int(self.clock[layout.CLOCK_MAX_HOUR]) // layout.HOURS
        return (newest_day - self._ring) * layout.HOURS

    def evict(self, limit: int = 65_536) -> int:
        """Forget at most `limit` terminals that no window can see any more; how many. No feature can tell.

        Looks at some 65,000 terminals and goes on from there at the next call, so that it never takes long.

        Raises:
            OutOfEpoch: a change is outstanding, or a snapshot is being written.
        """
        return self.rows.evict(self.rows.expired(self.floor_hour(), limit))

    def pin(self, kept_rows_max: int = KEPT_ROWS_MAX) -> Saving:
        """The table as of the last released epoch, or of now if none is outstanding, for a thread to write.

        Args:
            kept_rows_max: the snapshot is given up when more rows change before it is written.
        Raises:
            OutOfEpoch: another snapshot is being written.
        """
        return Saving(self.rows.pin(kept_rows_max), _KIND, self.spec, _frame)

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> int:
        """Write the last commit to `path` at once, with `about` in its header; the bytes written.

        Raises:
            OSError: the disk is full, or `path` may not be written; an older file at `path` is untouched.
        """
        with self.pin() as saving:
            return saving.write(path, about)

    @classmethod
    def load(
        cls, path: Path, spec: FeatureSpec = DEFAULT, *, rows_max: int, rows_start: int = 1_024
    ) -> tuple[Self, dict[str, Any]]:
        """The table that was saved, and the `about` that its writer gave.

        Raises:
            IntegrityError: a byte differs, the file ends early, or it was made for another feature spec.
            MissingPart: there is no such file. StateFull: it holds more than `rows_max` terminals.
        """
        terminals = cls(spec, rows_max=rows_max, rows_start=rows_start)
        row_bytes = terminals.rows.row_bytes
        with snapshot.Reader(path) as reader:
            saved = Saved(reader, _KIND, spec)
            terminals.rows.reserve(saved.row_count)
            for frame in reader.frames():
                if frame.size % row_bytes:
                    raise saved.broken("it is damaged")
                rows = frame.reshape(-1, row_bytes)
                if not rows.view(np.uint64)[:, 0].all():
                    raise saved.broken("it is damaged")
                terminals.rows.put(rows, terminals.floor_hour())
            about = saved.finish(terminals.row_count, terminals.clock)
        return terminals, about

    @property
    def _ring(self) -> int:
        return layout.ring_days(self.spec.label_delay_days)


def _frame(chunk: NDArray[np.uint8]) -> Frame:
    return [chunk]


def observe(accounts: Accounts, terminals: Terminals, payments: Payments) -> NDArray[np.float32]:
    """(n, len(FEATURES)) float32: each row's features from the rows before it; then it has entered both.

    Raises:
        ValueError: the two tables are for different feature specs.
        StateFull: no row left for a new account or terminal; the rows before it have entered.
    """
    if accounts.spec != terminals.spec:
        raise ValueError("accounts and terminals are for different feature specs")
    out = np.empty((payments.row_count, len(FEATURES)), np.float32)
    setting = _setting(accounts.spec)
    accounts.rows.keep(payments.account)
    terminals.rows.keep(payments.terminal)
    at = 0
    while at < payments.row_count:
        with accounts.rows.lock, terminals.rows.lock:
            at, why = observe_rows(
                at,
                payments.account,
                payments.terminal,
                payments.amount,
                payments.event_ms,
                payments.channel,
                setting,
                accounts.clock,
                accounts.rows.table,
                terminals.clock,
                terminals.rows.table,
                out,
            )
        if why == layout.ACCOUNTS_FULL:
            accounts.make_room()
        elif why == layout.TERMINALS_FULL:
            terminals.make_room()
    return out


def _setting(spec: FeatureSpec) -> NDArray[np.int64]:
    setting = np.zeros(layout.SET_FIELDS, np.int64)
    setting[layout.SET_DELAY] = spec.label_delay_days
    setting[layout.SET_LATENESS_MS] = spec.lateness_s * 1000
    setting[layout.SET_OFFSET_MS] = spec.utc_offset_minutes * 60_000
    setting[layout.SET_NIGHT_START] = spec.night_start_hour
    setting[layout.SET_NIGHT_END] = spec.night_end_hour
    return setting
