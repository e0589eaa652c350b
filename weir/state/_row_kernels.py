# mypy: allow-untyped-defs
"""The loops of `weir.state.rows`: over keys, and over whole rows as 64-bit words."""

from weir.state.jit import kernel
from weir.state.table import find, insert, lead, remove
from weir.state.undo import CAPACITY, ROWS


@kernel
def find_all(slots, keys, rows):
    """Each key's row, or -1."""
    for index in range(keys.size):
        rows[index] = find(slots, keys[index])


@kernel
def remove_slots(slots, keys):
    """Let keys that are there lead nowhere."""
    for index in range(keys.size):
        remove(slots, keys[index])


@kernel
def remove_all(table, keys):
    """Forget keys that are there; the last row moves into each gap. How many are left; the rest is waste."""
    control, slots, words = table[0], table[1], table[2]
    count = control[ROWS]
    for index in range(keys.size):
        row = find(slots, keys[index])
        if row < 0:
            continue
        remove(slots, keys[index])
        count -= 1
        if row != count:
            for word in range(words.shape[1]):
                words[row, word] = words[count, word]
            lead(slots, words[row, 0], row)
    control[ROWS] = count
    return count


@kernel
def put_all(table, rows, start):
    """Put rows from `start` on; the first that has no room."""
    control, slots, words = table[0], table[1], table[2]
    for index in range(start, rows.shape[0]):
        row = find(slots, rows[index, 0])
        if row < 0:
            row = control[ROWS]
            if row >= control[CAPACITY]:
                return index
            control[ROWS] = row + 1
            insert(slots, rows[index, 0], row)
        for word in range(words.shape[1]):
            words[row, word] = rows[index, word]
    return rows.shape[0]
