# mypy: allow-untyped-defs
"""What rows were before they changed, in the order of the changes: so that a change can be taken back.

Rows are kept before a batch may change them, each once a generation, and every epoch begins a generation of
its own: so an epoch's oldest copy of a row is the row at the epoch's start.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weir.state.jit import kernel
from weir.state.prefetch import prefetch_row
from weir.state.table import find, prefetch_slot

# Fields of a table's `control`, which its kernels read and write.
ROWS = 0  # rows in use
CAPACITY = 1  # rows that the slots have room for
GENERATION = 2  # 0: nothing is kept
KEPT = 3  # copies in the log's current segment
CONTROL_FIELDS = 4

SEGMENT_ROWS = 4_096
# Keys between asking for a row's memory and copying it.
_AHEAD = 8
GENERATION_MAX = (1 << 32) - 1

Entries = tuple[NDArray[np.int64], NDArray[np.uint64]]


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an epoch and its generation began: the log's length, the rows in use, the clock."""

    epoch: int
    generation: int
    position: int
    row_count: int
    clock: NDArray[np.int64]


class UndoLog:
    """Copies of rows in segments of fixed size; positions count the copies from the first ever made.

    Attributes:
        rows, words: the current segment: which row each copy is of, and its bytes as 64-bit words.
    """

    def __init__(self, row_bytes: int, control: NDArray[np.int64]) -> None:
        self._row_words, self._control = row_bytes // 8, control
        self._base = 0
        self._segments: list[Entries] = []
        self._spare: list[Entries] = []
        # Kernels want arrays even where nothing is ever kept.
        self.rows, self.words = np.zeros(0, np.int64), np.zeros((0, self._row_words), np.uint64)

    @property
    def end(self) -> int:
        """Position of the next copy."""
        return self._base + max(len(self._segments) - 1, 0) * SEGMENT_ROWS + int(self._control[KEPT])

    @property
    def nbytes(self) -> int:
        """Bytes of all segments, the spare ones included."""
        return (len(self._segments) + len(self._spare)) * SEGMENT_ROWS * 8 * (1 + self._row_words)

    def add_segment(self) -> None:
        """Room for more copies; the current segment is full, or there is none."""
        self._segments.append(
            self._spare.pop()
            if self._spare
            else (np.empty(SEGMENT_ROWS, np.int64), np.empty((SEGMENT_ROWS, self._row_words), np.uint64))
        )
        self.rows, self.words = self._segments[-1]
        self._control[KEPT] = 0

    def entries(self, start: int) -> Iterator[Entries]:
        """The copies from position `start` on, in order, a segment at a time; in place."""
        end = self.end
        for number, (rows, words) in enumerate(self._segments):
            first = self._base + number * SEGMENT_ROWS
            low, high = max(start - first, 0), min(end - first, SEGMENT_ROWS)
            if low < high:
                yield rows[low:high], words[low:high]

    def truncate(self, position: int, *, being_read: bool) -> None:
        """Forget the copies from `position` on.

        Args:
            being_read: another thread may be reading them, so what they lie in is not written again.
        """
        number, kept = divmod(position - self._base, SEGMENT_ROWS)
        if number >= len(self._segments):
            return
        if being_read:
            rows, words = self._segments[number]
            del self._segments[number:]
            self.add_segment()
            self.rows[:kept], self.words[:kept] = rows[:kept], words[:kept]
        else:
            self._spare += self._segments[number + 1 :]
            del self._segments[number + 1 :]
            self.rows, self.words = self._segments[-1]
        self._control[KEPT] = kept

    def drop_before(self, position: int) -> None:
        """Let segments whose copies all lie before `position` be used again."""
        while len(self._segments) > 1 and self._base + SEGMENT_ROWS <= position:
            self._spare.append(self._segments.pop(0))
            self._base += SEGMENT_ROWS
        if len(self._segments) == 1 and position >= self.end:
            self._base = self.end
            self._control[KEPT] = 0
        # A burst's segments are not kept for ever.
        del self._spare[max(2 * len(self._segments), 4) :]


@kernel
def keep_all(control, slots, stamps, stamp_at, words, log_rows, log_words, keys, start):
    """Copy the rows of keys from `start` on that this generation has not copied; where the log was full."""
    generation = control[GENERATION]
    kept = control[KEPT]
    for index in range(start, keys.size):
        # Slots two steps ahead, rows one step: by the time a key's turn comes, its memory is here.
        if index + 2 * _AHEAD < keys.size:
            prefetch_slot(slots, keys[index + 2 * _AHEAD])
        if index + _AHEAD < keys.size:
            row = find(slots, keys[index + _AHEAD])
            if row >= 0:
                prefetch_row(words, row)
        row = find(slots, keys[index])
        if row < 0 or stamps[row, stamp_at] == generation:
            continue
        if kept == log_rows.size:
            control[KEPT] = kept
            return index
        log_rows[kept] = row
        for word in range(words.shape[1]):
            log_words[kept, word] = words[row, word]
        kept += 1
        stamps[row, stamp_at] = generation
    control[KEPT] = kept
    return keys.size


@kernel
def put_back(words, log_rows, log_words):
    """Give rows their copies, newest first."""
    for at in range(log_rows.size - 1, -1, -1):
        row = log_rows[at]
        for word in range(words.shape[1]):
            words[row, word] = log_words[at, word]


@kernel
def patch(chunk, first_row, log_rows, log_words):
    """Give the rows `first_row` and following, copied to `chunk`, their copies, newest first."""
    for at in range(log_rows.size - 1, -1, -1):
        row = log_rows[at] - first_row
        if 0 <= row < chunk.shape[0]:
            for word in range(chunk.shape[1]):
                chunk[row, word] = log_words[at, word]
