# mypy: allow-untyped-defs
"""Where an entity's row is: open addressing from a 64-bit key to a row's index, for use inside kernels.

The rows hold their own key in their first 8 bytes, so the slots can always be built again from the rows.
"""

import numpy as np
from numpy.typing import NDArray

from weir.errors import WeirError
from weir.state.jit import kernel, part
from weir.state.memory import Region
from weir.state.prefetch import prefetch

NO_ROW = -1
# At most half of the slots are taken, which keeps a look-up at about 1.5 probes.
SLOTS_PER_ROW = 2
SLOT_BYTES = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class StateFull(WeirError):
    """Every row is taken and none may be forgotten now; the event was not observed.

    Attributes:
        outstanding: changes could still be undone (or are being copied), so nothing was looked for to forget:
            end them, forget what has expired, and try again.
    """

    def __init__(self, what: str, row_max: int, *, outstanding: bool = False) -> None:
        self.what, self.row_max, self.outstanding = what, row_max, outstanding
        super().__init__(
            f"feature state: all {row_max} rows for {what}s are in use"
            + (", and uncommitted changes keep old ones. " if outstanding else " by live windows. ")
            + f"Raise {what}s_max, or add a worker."
        )


def slot_count(row_capacity: int) -> int:
    """Slots for so many rows, a power of two."""
    return 1 << max(row_capacity * SLOTS_PER_ROW - 1, 1).bit_length()


def bytes_max(row_max: int, row_bytes: int) -> int:
    """Bytes of a table of `row_max` rows and its slots; the old slots too, while they are last made anew."""
    return row_max * row_bytes + slot_count(row_max) * SLOT_BYTES * 3 // 2


def slots_for(row_capacity: int) -> NDArray[np.uint64]:
    """Empty slots, (power of two, 2) of key and row index, for so many rows."""
    region = Region(slot_count(row_capacity) * SLOT_BYTES)
    return region.bytes.view(np.uint64).reshape(-1, 2)


def rebuild(keys: NDArray[np.uint64], row_capacity: int) -> NDArray[np.uint64]:
    """Slots for `row_capacity` rows in which `keys[i]` leads to row i."""
    slots = slots_for(row_capacity)
    _insert_all(slots, np.ascontiguousarray(keys))
    return slots


def grown(slots: NDArray[np.uint64], row_capacity: int) -> NDArray[np.uint64]:
    """Slots for more rows, in which every key leads where it led.

    Reads the old slots in order: twice as many slots then are written in two runs, not at random.
    """
    wider = slots_for(row_capacity)
    _move_all(slots, wider)
    return wider


@part
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


@part
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
def lead(slots, key, row):
    """Lead `key`, which must be present, to another row."""
    mask = np.uint64(slots.shape[0] - 1)
    at = ((key * _GOLDEN) >> np.uint64(20)) & mask
    while slots[at, 0] != key:
        at = (at + np.uint64(1)) & mask
    slots[at, 1] = np.uint64(row)


@kernel
def remove(slots, key):
    """Free the slot of `key`, which must be present, and close the gap so that every other is still found."""
    mask = np.uint64(slots.shape[0] - 1)
    gap = ((key * _GOLDEN) >> np.uint64(20)) & mask
    while slots[gap, 0] != key:
        gap = (gap + np.uint64(1)) & mask
    at = gap
    while True:
        at = (at + np.uint64(1)) & mask
        held = slots[at, 0]
        if held == np.uint64(0):
            break
        home = ((held * _GOLDEN) >> np.uint64(20)) & mask
        # One whose search begins after the gap is found without it.
        if ((at - home) & mask) >= ((at - gap) & mask):
            slots[gap, 0] = held
            slots[gap, 1] = slots[at, 1]
            gap = at
    slots[gap, 0] = np.uint64(0)
    slots[gap, 1] = np.uint64(0)


@kernel
def _insert_all(slots, keys):
    for row in range(keys.size):
        insert(slots, keys[row], row)


@kernel
def _move_all(slots, wider):
    for at in range(slots.shape[0]):
        if slots[at, 0] != np.uint64(0):
            insert(wider, slots[at, 0], slots[at, 1])
