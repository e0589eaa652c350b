"""One table of fixed-size rows, an entity each: growth, removal, and changes that can be undone by epoch.

Rows lie in a reserved region of their largest size, so a table grows without moving them; only the slots are
made anew. A table belongs to one thread; `Pin` alone may be read by another.
"""

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weir.errors import WeirError
from weir.state import undo
from weir.state._row_kernels import find_all, put_all, remove_all, remove_slots
from weir.state.memory import Region
from weir.state.pin import Pin
from weir.state.table import StateFull, grown, slot_count, slots_for
from weir.state.undo import CAPACITY, CONTROL_FIELDS, GENERATION, ROWS, Mark, UndoLog

# Rows looked at by one search for old ones: about a millisecond.
SCAN_ROWS = 65_536


class Table(NamedTuple):
    """What a kernel is given of a table; rows as (row_max, row_bytes / itemsize) views of one block."""

    control: NDArray[np.int64]
    slots: NDArray[np.uint64]
    u64: NDArray[np.uint64]
    i64: NDArray[np.int64]
    i32: NDArray[np.int32]
    u32: NDArray[np.uint32]
    f32: NDArray[np.float32]
    u16: NDArray[np.uint16]
    u8: NDArray[np.uint8]
    log_rows: NDArray[np.int64]
    log_words: NDArray[np.uint64]


class OutOfEpoch(WeirError):
    """An epoch was begun, released or rolled back out of turn: the caller's count of its epochs is wrong."""


class Rows:
    """Rows of `row_bytes` bytes, the first 8 of them the entity's key, never 0.

    Attributes:
        clock: what the table knows that belongs to no row; undone with the rows.
        evicted_total: rows forgotten because they had expired.
        lock: held while rows change; a reader of a `Pin` takes it for moments.
    """

    def __init__(
        self,
        what: str,
        row_bytes: int,
        *,
        row_start: int,
        row_max: int,
        hour_at: int,
        stamp_at: int,
        clock: NDArray[np.int64],
    ) -> None:
        """An empty table.

        Args:
            what: the entity, for messages.
            row_start: rows to have slots for at once; they double up to `row_max`.
            hour_at, stamp_at: 32-bit items of a row: its newest hour, and the generation of its last copy.
        Raises:
            ValueError: `row_max` below 1, or rows of no whole number of 64-bit words.
        """
        if row_max < 1:
            raise ValueError(f"{what}s_max must be at least 1, not {row_max}")
        if row_bytes % 8:
            raise ValueError("a row must be a whole number of 64-bit words")
        self.what, self.row_bytes, self.row_max = what, row_bytes, row_max
        self.clock, self.evicted_total, self.lock = clock, 0, threading.Lock()
        self._hour_at, self._stamp_at = hour_at, stamp_at
        self._region = Region(row_max * row_bytes)
        block = self._region.bytes.reshape(row_max, row_bytes)
        self.control = np.zeros(CONTROL_FIELDS, np.int64)
        self.control[CAPACITY] = min(max(row_start, 1), row_max)
        self._log = UndoLog(row_bytes, self.control)
        self.table = Table(
            self.control,
            slots_for(self.capacity),
            block.view(np.uint64),
            block.view(np.int64),
            block.view(np.int32),
            block.view(np.uint32),
            block.view(np.float32),
            block.view(np.uint16),
            block,
            self._log.rows,
            self._log.words,
        )
        self._marks: list[Mark] = []
        self._pin: Pin | None = None
        self._generation = 0
        self._released = -1
        self._scan_at = 0

    @property
    def row_count(self) -> int:
        """Rows in use."""
        return int(self.control[ROWS])

    @property
    def capacity(self) -> int:
        """Rows there are slots for."""
        return int(self.control[CAPACITY])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in use, of all slots, and of what is kept for undoing."""
        return self.row_count * self.row_bytes + self.table.slots.nbytes + self._log.nbytes

    @property
    def outstanding(self) -> bool:
        """Whether a change could still be undone, or a pin holds the rows where they are."""
        return bool(self._marks) or self._pin is not None

    @property
    def block(self) -> NDArray[np.uint8]:
        """(row_count, row_bytes): the rows in use, in place."""
        return self.table.u8[: self.row_count]

    def keys(self) -> NDArray[np.uint64]:
        """(row_count,) every row's key, a copy."""
        return self.block.view(np.uint64)[:, 0].copy()

    def content(self) -> dict[int, bytes]:
        """Every row's bytes by its key, without the stamp: what a comparison of two tables means."""
        rows = self.block.copy()
        rows.view(np.uint32)[:, self._stamp_at] = 0
        return {int(key): row.tobytes() for key, row in zip(self.keys().tolist(), rows, strict=True)}

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(n,) each key's row, or -1."""
        rows = np.empty(keys.size, np.int64)
        find_all(self.table.slots, np.ascontiguousarray(keys), rows)
        return rows

    # Room

    def make_room(self, before_hour: int) -> None:
        """Room for at least one more row, by more slots, else by forgetting rows older than `before_hour`.

        Raises:
            StateFull: neither is possible.
        """
        if self.capacity < self.row_max:
            self.reserve(min(2 * self.capacity, self.row_max))
            return
        if self.outstanding:
            raise StateFull(self.what, self.row_max, outstanding=True)
        if not self.evict_expired(before_hour):
            raise StateFull(self.what, self.row_max)

    def reserve(self, row_count: int) -> None:
        """Slots for at least `row_count` rows, at most for `row_max`."""
        row_count = min(row_count, self.row_max)
        if row_count > self.capacity:
            if slot_count(row_count) > self.table.slots.shape[0]:
                self.table = self.table._replace(slots=grown(self.table.slots, row_count))
            self.control[CAPACITY] = row_count

    def expired(self, before_hour: int, limit: int, *, scan_rows: int = SCAN_ROWS) -> NDArray[np.uint64]:
        """At most `limit` keys of rows whose newest hour is before `before_hour`.

        Looks at `scan_rows` rows, and goes on from there at the next call. Empty while a pin holds the rows.
        """
        count = self.row_count
        if not count or self._pin is not None:
            return np.empty(0, np.uint64)
        start = self._scan_at if self._scan_at < count else 0
        stop = min(start + scan_rows, count)
        keys, hours = self.table.u64[start:stop, 0], self.table.i32[start:stop, self._hour_at]
        old = np.flatnonzero(hours < before_hour)[:limit]
        # Rows move to the front as others leave: what follows the last one found is looked at next.
        self._scan_at = start + int(old[-1]) + 1 if old.size == limit and limit else stop % count
        return np.array(keys[old])

    def evict_expired(self, before_hour: int) -> int:
        """Forget every row whose newest hour is before `before_hour`; how many there were.

        Raises:
            OutOfEpoch: a change is outstanding, or a pin holds the rows where they are.
        """
        self._scan_at = 0
        return self.evict(self.expired(before_hour, self.row_max, scan_rows=self.row_max))

    def evict(self, keys: NDArray[np.uint64]) -> int:
        """Forget these keys' rows, and count them as evicted; how many there were.

        Raises:
            OutOfEpoch: a change is outstanding, or a pin holds the rows where they are.
        """
        removed = self.remove(keys)
        self.evicted_total += removed
        return removed

    # From outside

    def remove(self, keys: NDArray[np.uint64]) -> int:
        """Forget these keys' rows; how many there were.

        Raises:
            OutOfEpoch: a change is outstanding, or a pin holds the rows where they are.
        """
        self._require_quiet()
        before = self.row_count
        with self.lock:
            count = int(remove_all(self.table, np.ascontiguousarray(keys)))
            self._region.clear(count * self.row_bytes, before * self.row_bytes)
        return before - count

    def put(self, rows: NDArray[np.uint8], before_hour: int) -> None:
        """Let rows (n, row_bytes) take the place of their keys' rows, or be added; of a key the last counts.

        Where there is no room, rows older than `before_hour` are forgotten; such among `rows` are left out.

        Raises:
            StateFull: more keys than `row_max`. OutOfEpoch: a change is outstanding, or a pin holds the rows.
        """
        self._require_quiet()
        words = rows.view(np.uint64)
        at = 0
        while at < len(words):
            with self.lock:
                at = put_all(self.table, words, at)
            if at < len(words):
                words, at = self._that_matter(words[at:], before_hour), 0

    def _that_matter(self, words: NDArray[np.uint64], before_hour: int) -> NDArray[np.uint64]:
        """Rows that have no room, less those older than `before_hour`, once there is more room for them."""
        if self.capacity < self.row_max:
            self.make_room(before_hour)
            return words
        young = words[words.view(np.int32)[:, self._hour_at] >= before_hour]
        if not self.evict_expired(before_hour) and len(young) == len(words):
            raise StateFull(self.what, self.row_max)
        return young

    def _require_quiet(self) -> None:
        if self.outstanding:
            raise OutOfEpoch(f"{self.what} rows cannot be put or forgotten while changes are outstanding")

    # Epochs

    def keep(self, keys: NDArray[np.uint64]) -> None:
        """Keep what the rows of these keys are, as long as it may be needed; call it before they change."""
        if not self.control[GENERATION]:
            return
        at = 0
        while at < keys.size:
            table = self.table
            with self.lock:
                at = undo.keep_all(
                    self.control,
                    table.slots,
                    table.u32,
                    self._stamp_at,
                    table.u64,
                    table.log_rows,
                    table.log_words,
                    keys,
                    at,
                )
                if at < keys.size:
                    self._log.add_segment()
                    self._refresh()

    def begin(self, epoch: int) -> None:
        """Changes from now on belong to `epoch`.

        Raises:
            OutOfEpoch: not after every epoch before it.
        """
        newest = self._marks[-1].epoch if self._marks else self._released
        if epoch <= newest:
            raise OutOfEpoch(f"epoch {epoch} cannot begin after {newest}")
        with self.lock:
            if not self.outstanding:
                self._log.drop_before(self._log.end)
            self._new_generation(recording=True)
            self._marks.append(self._point(epoch))
        self._bound_pin()

    def changed_rows(self, epoch: int) -> NDArray[np.int64]:
        """Distinct rows changed or added since `epoch` began.

        Raises:
            OutOfEpoch: it has not begun, or is released.
        """
        mark = self._mark(epoch)
        added = np.arange(mark.row_count, self.row_count)
        changed = np.concatenate([added, *(rows for rows, _ in self._log.entries(mark.position))])
        # One generation keeps a row once, and none that it has added.
        return changed if self.control[GENERATION] == mark.generation else np.unique(changed)

    def roll_back(self, epoch: int) -> None:
        """Undo every change since `epoch` began: rows, slots and clock are as they were. None: nothing to do.

        Raises:
            OutOfEpoch: it has been released.
        """
        if epoch <= self._released:
            raise OutOfEpoch(f"epoch {epoch} is released and cannot be rolled back")
        undone = [mark for mark in self._marks if mark.epoch >= epoch]
        if not undone:
            return
        mark, before = undone[0], self.row_count
        with self.lock:
            remove_slots(self.table.slots, self.table.u64[mark.row_count : before, 0])
            entries = list(self._log.entries(mark.position))
            if self._pin is not None:
                self._pin.keep(entries)
            for rows, words in reversed(entries):
                undo.put_back(self.table.u64, rows, words)
            self.control[ROWS] = mark.row_count
            self._region.clear(mark.row_count * self.row_bytes, before * self.row_bytes)
            self.clock[:] = mark.clock
            self._log.truncate(mark.position, being_read=self._pin is not None)
            del self._marks[-len(undone) :]
            self._new_generation(recording=self.outstanding)
        self._refresh()

    def release(self, epoch: int) -> None:
        """Changes of epochs up to `epoch` are final."""
        with self.lock:
            self._marks = [mark for mark in self._marks if mark.epoch > epoch]
            self._released = max(self._released, epoch)
            self._trim()
        self._bound_pin()

    def pin(self, kept_rows_max: int) -> Pin:
        """The table as of the last released epoch, or of now if none is outstanding; any thread may read it.

        Raises:
            OutOfEpoch: there is a pin already.
        """
        if self._pin is not None:
            raise OutOfEpoch(f"the {self.what} rows are pinned already")
        with self.lock:
            if self._marks:
                self._pin = Pin(self, self._marks[0], kept_rows_max)
            else:
                # From here on rows are kept although no epoch has begun.
                self._new_generation(recording=True)
                self._pin = Pin(self, self._point(self._released), kept_rows_max)
            return self._pin

    def unpin(self, pin: Pin) -> None:
        """`pin` is not read any more."""
        with self.lock:
            if self._pin is pin:
                self._pin = None
                self._trim()

    def stop_reader(self) -> None:
        """Close the pin, if there is one: rows may move again, and its reader is told so."""
        if self._pin is not None:
            self._pin.close()

    def kept_entries(self, start: int) -> list[undo.Entries]:
        """The copies made since position `start`; call it with the lock held."""
        return list(self._log.entries(start))

    def used(self, first: int, stop: int) -> NDArray[np.uint8]:
        """Rows `first` to `stop`, in place, whether in use now or not."""
        return self.table.u8[first:stop]

    @property
    def stamp_at(self) -> int:
        """The 32-bit item of a row that holds its stamp."""
        return self._stamp_at

    def _mark(self, epoch: int) -> Mark:
        for mark in self._marks:
            if mark.epoch == epoch:
                return mark
        raise OutOfEpoch(f"epoch {epoch} has not begun, or is released")

    def _trim(self) -> None:
        """Give up copies that neither an epoch nor a pin needs."""
        first = self._marks[0].position if self._marks else self._log.end
        if self._pin is not None:
            first = min(first, self._pin.position)
        self._log.drop_before(first)
        if not self.outstanding:
            self.control[GENERATION] = 0
        self._refresh()

    def _bound_pin(self) -> None:
        """Give up a pin for which too much would have to be kept."""
        pin = self._pin
        if pin is not None and self._log.end - pin.position > pin.kept_rows_max:
            pin.give_up()
            self.unpin(pin)

    def _point(self, epoch: int) -> Mark:
        return Mark(epoch, self._generation, self._log.end, self.row_count, self.clock.copy())

    def _new_generation(self, *, recording: bool) -> None:
        self._generation += 1
        if self._generation > undo.GENERATION_MAX:
            self._generation = 1
            self.table.u32[: self.row_count, self._stamp_at] = 0
        self.control[GENERATION] = self._generation if recording else 0
        if recording and not self._log.rows.size:
            self._log.add_segment()
        self._refresh()

    def _refresh(self) -> None:
        self.table = self.table._replace(log_rows=self._log.rows, log_words=self._log.words)
