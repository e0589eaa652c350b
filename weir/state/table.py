# mypy: allow-untyped-defs
"""Where an entity's row is: open addressing from a 64-bit key to a row's index, for use inside kernels.

The rows hold their own key in their first 8 bytes, so the slots can always be built again from the rows: on
growth, after eviction, and when a state is loaded.
"""

import numpy as np
from numpy.typing import NDArray

from weir.errors import WeirError
from weir.state.jit import kernel
from weir.state.prefetch import prefetch

NO_ROW = -1
# At most half of the slots are taken, which keeps a look-up at about 1.5 probes.
SLOTS_PER_ROW = 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class StateFull(WeirError):
    """Every row is taken and none is old enough to be evicted; the event was not observed."""

    def __init__(self, what: str, row_max: int) -> None:
        self.what, self.row_max = what, row_max
        super().__init__(
            f"feature state: all {row_max} rows for {what}s are in use by live windows. "
            f"Raise {what}s_max, or add a worker."
        )


def slots_for(row_capacity: int) -> NDArray[np.uint64]:
    """Empty slots, (power of two, 2) of key and row index, for so many rows."""
    slot_count = 1 << max(row_capacity * SLOTS_PER_ROW - 1, 1).bit_length()
    return np.zeros((slot_count, 2), np.uint64)


def rebuild(keys: NDArray[np.uint64], row_capacity: int) -> NDArray[np.uint64]:
    """Slots for `row_capacity` rows in which `keys[i]` leads to row i."""
    slots = slots_for(row_capacity)
    _insert_all(slots, np.ascontiguousarray(keys))
    return slots


@kernel
def find(slots, key):
    """The row of `key`, or -1."""
    mask = np.uint64(slots.shape[0] - 1)
    at = ((key * _GOLDEN) >> np.uint64(20)) & mask
    while True:
        held = slots[at, 0]
        if held == key:
            return np.int64(slots[at, 1])
        if held == np.uint64(0):
            return np.int64(-1)
        at = (at + np.uint64(1)) & mask


@kernel
def prefetch_slot(slots, key):
    """Begin to load the slot at which the search for `key` begins."""
    prefetch(slots, ((key * _GOLDEN) >> np.uint64(20)) & np.uint64(slots.shape[0] - 1), 0)


@kernel
def insert(slots, key, row):
    """Lead `key`, which must be absent, to `row`; there must be a free slot."""
    mask = np.uint64(slots.shape[0] - 1)
    at = ((key * _GOLDEN) >> np.uint64(20)) & mask
    while slots[at, 0] != np.uint64(0):
        at = (at + np.uint64(1)) & mask
    slots[at, 0] = key
    slots[at, 1] = np.uint64(row)


@kernel
def _insert_all(slots, keys):
    for row in range(keys.size):
        insert(slots, keys[row], row)
