"""The accounts of one input partition: their windows, to be undone, logged, saved, restored and forgotten."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from weir.columns import ByteColumn, key_column
from weir.features import _account_rows as account_rows
from weir.features import _layout as layout
from weir.features._account_kernels import learn_accounts
from weir.features._saving import Frame, Saved, Saving
from weir.features.columns import Labels
from weir.features.spec import DEFAULT, FeatureSpec
from weir.state import snapshot
from weir.state.pin import KEPT_ROWS_MAX
from weir.state.row_format import BAD_KEY, RowDamaged, RowFormat, spec_tag
from weir.state.rows import Rows
from weir.state.table import bytes_max

_KIND = "accounts"
_KEY_BYTES = 8
# Rows decoded at once: a few megabytes.
_BATCH_ROWS = 8_192


class Accounts:
    """Every account of a partition, by its keyed hash.

    The account is the partition key, so order within the table is the partition's order, and the table moves
    with the partition. It belongs to one thread.

    Attributes:
        spec: what the features mean.
        clock: (2,) int64: newest event time in ms, late payments. Part of what is undone and saved.
    """

    def __init__(self, spec: FeatureSpec = DEFAULT, *, rows_max: int, rows_start: int = 4_096) -> None:
        """An empty table with slots for `rows_start` accounts, which double up to `rows_max`.

        Raises:
            ValueError: a maximum below 1.
        """
        self.spec = spec
        self.clock = np.zeros(layout.ACCOUNT_CLOCK_FIELDS, np.int64)
        self.rows = Rows(
            "account",
            layout.account_bytes(spec.label_delay_days),
            row_start=rows_start,
            row_max=rows_max,
            hour_at=layout.A_HOUR_I32,
            stamp_at=layout.A_STAMP_U32,
            clock=self.clock,
        )
        self.format = RowFormat(
            "account", self.rows.row_bytes, spec_tag(spec.id), account_rows.decoders(spec.label_delay_days)
        )

    @staticmethod
    def bytes_max(rows_max: int, spec: FeatureSpec = DEFAULT) -> int:
        """Bytes that a table of `rows_max` accounts takes at most, without what is kept for undoing."""
        return bytes_max(rows_max, layout.account_bytes(spec.label_delay_days))

    @property
    def row_count(self) -> int:
        """Accounts that have a row."""
        return self.rows.row_count

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in use, of all slots, and of what is kept for undoing."""
        return self.rows.nbytes

    @property
    def evicted_total(self) -> int:
        """Accounts forgotten because no window could see them any more."""
        return self.rows.evicted_total

    @property
    def late_total(self) -> int:
        """Payments that came after the watermark had passed them: decided, and in the buckets still open."""
        return int(self.clock[layout.CLOCK_LATE])

    @property
    def watermark_ms(self) -> int:
        """The newest event time seen, less the lateness; a payment before it is late. 0 at the start."""
        return max(int(self.clock[layout.CLOCK_MAX_MS]) - self.spec.lateness_s * 1000, 0)

    def begin(self, epoch: int) -> None:
        """Changes from now on belong to `epoch`; epochs ascend.

        Raises:
            OutOfEpoch: not after every epoch before it.
        """
        self.rows.begin(epoch)

    def learn(self, labels: Labels) -> int:
        """Count each known fraud at its payment's day, for accounts held here; how many were counted.

        It acts once that day is `label_delay_days` past. The accounts of other partitions are passed over.
        """
        self.rows.keep(labels.account[labels.is_fraud])
        with self.rows.lock:
            return int(
                learn_accounts(
                    labels.account,
                    labels.event_ms,
                    labels.is_fraud,
                    layout.ring_days(self.spec.label_delay_days),
                    self.clock,
                    self.rows.table,
                )
            )

    def changed_rows(self, epoch: int) -> NDArray[np.int64]:
        """Distinct rows changed or added since `epoch` began.

        Raises:
            OutOfEpoch: it has not begun, or is released.
        """
        return self.rows.changed_rows(epoch)

    def encode_rows(self, rows: NDArray[np.int64]) -> tuple[ByteColumn, ByteColumn]:
        """Keys and values of a changelog that says what these rows are now."""
        keys = self.rows.block.view(np.uint64)[rows, 0]
        return key_column(keys), self._encode(self.rows.block, rows)

    def tombstones(self, keys: NDArray[np.uint64]) -> tuple[ByteColumn, ByteColumn]:
        """Keys and values of a changelog that says that these accounts are forgotten."""
        return key_column(keys), ByteColumn.nulls(keys.size)

    def restore_rows(self, keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> int:
        """Take a changelog's records over in their order, a null forgetting its account; values taken over.

        The clock is at least the newest event time that the rows tell. Accounts that no window can see any
        more give way when there is no room.

        Raises:
            RowDamaged: the first record that is no whole row of this spec; some before it are taken over.
            StateFull: more live accounts than `rows_max`. OutOfEpoch: a change is outstanding.
        """
        restored = 0
        for at in range(0, len(keys), _BATCH_ROWS):
            part = slice(at, at + _BATCH_ROWS)
            hashes = self._hashes(keys[part], at)
            column = ByteColumn.from_list(values[part])
            there = np.flatnonzero(column.length >= 0)
            try:
                rows = self.format.decode(hashes[there], column.take(there))
            except RowDamaged as error:
                raise error.at(at + int(there[error.index])) from None
            restored += len(rows)
            if there.size < hashes.size:
                rows = self._forget(hashes, there, rows)
            self._put(rows)
        return restored

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
        """Room for one more account.

        Raises:
            StateFull: every row is taken, and none may be forgotten.
        """
        self.rows.make_room(self.floor_hour())

    def floor_hour(self) -> int:
        """Accounts whose newest hour is before this one are new again when they come."""
        newest_day = int(self.clock[layout.CLOCK_MAX_MS]) // layout.DAY_MS
        return (newest_day - layout.ring_days(self.spec.label_delay_days)) * layout.HOURS

    def expired(self, limit: int) -> NDArray[np.uint64]:
        """At most `limit` keys of accounts that no window can see any more.

        Looks at some 65,000 accounts and goes on from there at the next call, so that it never takes long.
        """
        return self.rows.expired(self.floor_hour(), limit)

    def evict(self, keys: NDArray[np.uint64]) -> int:
        """Forget accounts; how many there were. No feature can tell, if they had expired.

        Raises:
            OutOfEpoch: a change is outstanding, or a snapshot is being written.
        """
        return self.rows.evict(keys)

    def pin(self, kept_rows_max: int = KEPT_ROWS_MAX) -> Saving:
        """The table as of the last released epoch, or of now if none is outstanding, for a thread to write.

        Args:
            kept_rows_max: the snapshot is given up when more rows change before it is written.
        Raises:
            OutOfEpoch: another snapshot is being written.
        """
        return Saving(self.rows.pin(kept_rows_max), _KIND, self.spec, self._frame)

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> int:
        """Write the last commit to `path` at once, with `about` in its header; the bytes written.

        Raises:
            OSError: the disk is full, or `path` may not be written; an older file at `path` is untouched.
        """
        with self.pin() as saving:
            return saving.write(path, about)

    @classmethod
    def load(
        cls, path: Path, spec: FeatureSpec = DEFAULT, *, rows_max: int, rows_start: int = 4_096
    ) -> tuple[Self, dict[str, Any]]:
        """The table that was saved, and the `about` that its writer gave.

        Raises:
            IntegrityError: a byte differs, the file ends early, or it was made for another feature spec.
            MissingPart: there is no such file. StateFull: it holds more than `rows_max` live accounts.
        """
        accounts = cls(spec, rows_max=rows_max, rows_start=rows_start)
        with snapshot.Reader(path) as reader:
            saved = Saved(reader, _KIND, spec)
            accounts.rows.reserve(saved.row_count)
            row_count = 0
            for keys, values in _unframed(reader.frames(), saved):
                try:
                    accounts._put(accounts.format.decode(keys, values))
                except RowDamaged as error:
                    raise saved.broken(error.why) from error
                row_count += len(keys)
            about = saved.finish(row_count, accounts.clock)
        return accounts, about

    def _encode(self, block: NDArray[np.uint8], rows: NDArray[np.int64]) -> ByteColumn:
        return account_rows.encode(block, rows, self.spec.label_delay_days, self.format.tag)

    def _frame(self, chunk: NDArray[np.uint8]) -> Frame:
        """How many rows, their keys, their values' lengths, their values."""
        values = self._encode(chunk, np.arange(len(chunk)))
        keys = np.ascontiguousarray(chunk.view(np.uint64)[:, 0])
        return [np.array([len(chunk)], "<u4"), keys, values.length.astype("<u2"), values.buffer]

    def _put(self, rows: NDArray[np.uint8]) -> None:
        if len(rows):
            newest = int(rows.view(np.int64)[:, layout.A_NEWEST_I64].max())
            self.clock[layout.CLOCK_MAX_MS] = max(int(self.clock[layout.CLOCK_MAX_MS]), newest)
        self.rows.put(rows, self.floor_hour())

    def _forget(
        self, hashes: NDArray[np.uint64], there: NDArray[np.int64], rows: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Forget the accounts whose last record of a batch is a null; the rows of the others."""
        _, newest = np.unique(hashes[::-1], return_index=True)
        last = hashes.size - 1 - newest
        stays = np.isin(last, there)
        self.rows.remove(hashes[last[~stays]])
        return rows[np.searchsorted(there, np.sort(last[stays]))]

    def _hashes(self, keys: Sequence[bytes | None], first: int) -> NDArray[np.uint64]:
        for index, key in enumerate(keys):
            if key is None or len(key) != _KEY_BYTES:
                raise RowDamaged("account", first + index, BAD_KEY)
        hashes = np.frombuffer(b"".join(keys), "<u8")  # type: ignore[arg-type]
        if not hashes.all():
            raise RowDamaged("account", first + int(np.flatnonzero(hashes == 0)[0]), BAD_KEY)
        return hashes


def _unframed(
    frames: Iterator[NDArray[np.uint8]], saved: Saved
) -> Iterator[tuple[NDArray[np.uint64], ByteColumn]]:
    """Keys and values of each frame."""
    for frame in frames:
        count = int.from_bytes(frame[:4].tobytes(), "little")
        keys_end = 4 + _KEY_BYTES * count
        values_at = keys_end + 2 * count
        if values_at > frame.size:
            raise saved.broken("it is damaged")
        keys = np.frombuffer(frame[4:keys_end].tobytes(), "<u8")
        length = np.frombuffer(frame[keys_end:values_at].tobytes(), "<u2").astype(np.int64)
        ends = values_at + np.cumsum(length)
        if not count or int(ends[-1]) != frame.size or not keys.all():
            raise saved.broken("it is damaged")
        yield keys, ByteColumn(frame, ends - length, length)
