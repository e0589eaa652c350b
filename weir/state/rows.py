"""One block of fixed-size rows, an entity each, seen through views of several dtypes, with its slots."""

import numpy as np
from numpy.typing import NDArray

from weir.state.table import StateFull, rebuild, slots_for

RowViews = tuple[
    NDArray[np.uint64],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.uint32],
    NDArray[np.float32],
    NDArray[np.uint16],
    NDArray[np.uint8],
]
_DTYPES = (np.uint64, np.int64, np.int32, np.uint32, np.float32, np.uint16, np.uint8)


class Rows:
    """Rows of `row_bytes` bytes, the first 8 of them the entity's key; doubles up to `row_max`, then evicts.

    Attributes:
        capacity: rows there is room for now.
        slots: the open-addressing table of `weir.state.table`.
        views: the block as (capacity, row_bytes / itemsize) arrays of u64, i64, i32, u32, f32, u16, u8.
        evicted_total: rows that `make_room` has given up.
    """

    def __init__(self, what: str, row_bytes: int, row_start: int, row_max: int) -> None:
        if row_max < 1:
            raise ValueError(f"{what}s_max must be at least 1, not {row_max}")
        self.what, self.row_bytes, self.row_max = what, row_bytes, row_max
        self.evicted_total = 0
        self._evicted_before_hour = -1
        self.capacity = min(max(row_start, 1), row_max)
        self._block = np.zeros((self.capacity, row_bytes), np.uint8)
        self.slots = slots_for(self.capacity)
        self.views = self._views()

    @property
    def nbytes(self) -> int:
        """Bytes of rows and slots."""
        return self._block.nbytes + self.slots.nbytes

    def used(self, row_count: int) -> NDArray[np.uint8]:
        """The first `row_count` rows as bytes, in place."""
        return self._block[:row_count]

    def index(self, row_count: int) -> None:
        """Make the slots again from the first `row_count` rows' keys."""
        self.slots = rebuild(self.views[0][:row_count, 0], self.capacity)

    def make_room(self, row_count: int, hour_at: int, before_hour: int) -> int:
        """Room for at least one more row; the row count after it.

        Doubles while below `row_max`; at `row_max` forgets every row whose newest hour (int32 item
        `hour_at`) is before `before_hour`, which by the caller's choice no window can see.

        Raises:
            StateFull: at `row_max`, and nothing is old enough.
        """
        if self.capacity < self.row_max:
            self.capacity = min(2 * self.capacity, self.row_max)
            grown = np.zeros((self.capacity, self.row_bytes), np.uint8)
            grown[:row_count] = self._block[:row_count]
            self._block = grown
            self.views = self._views()
            self.index(row_count)
            return row_count
        # Between two calls with the same bound nothing can have become old enough: no second scan.
        if before_hour <= self._evicted_before_hour:
            raise StateFull(self.what, self.row_max)
        self._evicted_before_hour = before_hour
        kept = np.flatnonzero(self.views[2][:row_count, hour_at] >= before_hour)
        if kept.size == row_count:
            raise StateFull(self.what, self.row_max)
        self._compact(kept, row_count)
        self.index(kept.size)
        self.evicted_total += row_count - kept.size
        return int(kept.size)

    def _compact(self, kept: NDArray[np.int64], row_count: int) -> None:
        """Move the kept rows to the front in place, a chunk at a time, and zero those behind them."""
        chunk_rows = 16_384
        for at in range(0, kept.size, chunk_rows):
            chunk = kept[at : at + chunk_rows]
            self._block[at : at + chunk.size] = self._block[chunk]
        self._block[kept.size : row_count] = 0

    def _views(self) -> RowViews:
        return tuple(self._block.view(dtype) for dtype in _DTYPES)  # type: ignore[return-value]
