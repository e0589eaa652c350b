# mypy: allow-untyped-defs
"""What an event or a label does to its terminal's row, and reads from it; layout in `weir.features._layout`.

The table is a function of the set of payments and labels that entered, whatever their order: a bucket is a
count, a row's newest hour is the newest of all, and nothing is held of a day before the *floor*, a whole ring
before the newest payment of all. So an old bucket is emptied when its row is next touched, even if the row
has fallen behind, and a row that holds nothing else may be forgotten at any time.
"""

import numpy as np

from weir.features._layout import (
    CLOCK_MAX_HOUR,
    DAYS,
    DONE,
    HOUR_MS,
    HOURS,
    T_DAY_COUNT_U32,
    T_HOUR_COUNT_U32,
    T_HOUR_I32,
    T_STAMP_U32,
    TERMINALS_FULL,
    U16_MAX,
    U32_MAX,
)
from weir.state.jit import kernel, part
from weir.state.prefetch import prefetch_row
from weir.state.table import find, insert, prefetch_slot
from weir.state.undo import CAPACITY, GENERATION, ROWS

# Contributions between asking for a terminal's memory and using it.
_AHEAD = 8


@part
def terminal_floor(max_hour, ring):
    """The first hour of the oldest day of which anything is held."""
    return (max_hour // HOURS - ring) * HOURS


@part
def reach_terminal(control, slots, u64, i32, u32, u16, row, key, hour, floor, ring):
    """The terminal's row, ready for an event of `hour`: added if `row` is -1, rolled, empty before floor."""
    if row < 0:
        row = control[ROWS]
        control[ROWS] = row + 1
        insert(slots, key, row)
        u64[row, 0] = key
        u32[row, T_STAMP_U32] = control[GENERATION]
        i32[row, T_HOUR_I32] = hour
        return row
    newest = np.int64(i32[row, T_HOUR_I32])
    if newest < floor:
        for item in range(T_HOUR_COUNT_U32, u32.shape[1]):
            u32[row, item] = 0
        i32[row, T_HOUR_I32] = hour
        return row
    if hour > newest:
        _roll(i32, u32, u16, row, newest, hour, ring)
        newest = hour
    # Only a row that is over a day behind all others can hold a day before the floor.
    if newest // HOURS - ring + 1 < floor // HOURS:
        _empty_before(u32, u16, row, newest, floor, ring)
    return row


@kernel
def _roll(i32, u32, u16, row, newest, hour, ring):
    """Empty the buckets between the terminal's newest hour and `hour`, which is later."""
    i32[row, T_HOUR_I32] = hour
    for ahead in range(newest + 1, newest + 1 + min(hour - newest, HOURS)):
        u32[row, T_HOUR_COUNT_U32 + ahead % HOURS] = 0
    newest_day = newest // HOURS
    day = hour // HOURS
    fraud_at = 2 * (T_DAY_COUNT_U32 + ring)
    for ahead in range(newest_day + 1, newest_day + 1 + min(day - newest_day, ring)):
        slot = ahead % ring
        u32[row, T_DAY_COUNT_U32 + slot] = 0
        u16[row, fraud_at + slot] = 0


@kernel
def _empty_before(u32, u16, row, newest, floor, ring):
    """Empty the buckets before `floor`, which is at or before `newest`."""
    fraud_at = 2 * (T_DAY_COUNT_U32 + ring)
    for day in range(newest // HOURS - ring + 1, floor // HOURS):
        u32[row, T_DAY_COUNT_U32 + day % ring] = 0
        u16[row, fraud_at + day % ring] = 0
    for hour in range(newest - HOURS + 1, floor):
        u32[row, T_HOUR_COUNT_U32 + hour % HOURS] = 0


@part
def terminal_features(i32, u32, u16, row, delay, out):
    """Features 23 to 34 of one event, from what the terminal did before it."""
    hour = np.int64(i32[row, T_HOUR_I32])
    count_now = np.int64(0)
    for slot in range(HOURS):
        count_now += u32[row, T_HOUR_COUNT_U32 + slot]
    out[23] = count_now
    ring = delay + DAYS + 1
    fraud_at = 2 * (T_DAY_COUNT_U32 + ring)
    slot = (hour // HOURS - delay + ring - 1) % ring
    count = np.int64(0)
    fraud = np.int64(0)
    # Longer ago than the window reaches.
    first = last = delay + DAYS + 1
    since = 0.0
    for back in range(1, DAYS + 1):
        count += u32[row, T_DAY_COUNT_U32 + slot]
        fraud += u16[row, fraud_at + slot]
        if u16[row, fraud_at + slot] > 0:
            last = min(last, delay + back)
            first = delay + back
            since = min(fraud, count) / count if count > 0 else 0.0
        slot = slot - 1 if slot > 0 else ring - 1
        if back == 1 or back == 7 or back == DAYS:
            window = 0 if back == 1 else (1 if back == 7 else 2)
            out[24 + window] = count
            # Labels may repeat (a customer, then a chargeback), so a share is held to 1.
            out[27 + window] = min(fraud, count) / count if count > 0 else 0.0
    out[30] = first
    out[31] = last
    out[32] = since
    # The days that the windows leave out, since not all of their labels have come.
    slot = hour // HOURS % ring
    count = fraud = np.int64(0)
    for _back in range(delay + 1):
        count += u32[row, T_DAY_COUNT_U32 + slot]
        fraud += u16[row, fraud_at + slot]
        slot = slot - 1 if slot > 0 else ring - 1
    out[33] = fraud
    out[34] = min(fraud, count) / count if count > 0 else 0.0


@part
def enter_terminal(i32, u32, row, hour, ring):
    """Add an event to those of its terminal's buckets that are still held."""
    newest = np.int64(i32[row, T_HOUR_I32])
    if hour > newest - HOURS:
        slot = hour % HOURS
        if u32[row, T_HOUR_COUNT_U32 + slot] < U32_MAX:
            u32[row, T_HOUR_COUNT_U32 + slot] += 1
    day = hour // HOURS
    if day > newest // HOURS - ring:
        slot = day % ring
        if u32[row, T_DAY_COUNT_U32 + slot] < U32_MAX:
            u32[row, T_DAY_COUNT_U32 + slot] += 1


@kernel
def enter_terminals(start, terminal, hours, ring, clock, table):
    """Let payments from `start` on enter without deciding on them; where and why it stopped."""
    control, slots, u64, _, i32, u32, _, u16, u8, _, _ = table
    floor = terminal_floor(clock[CLOCK_MAX_HOUR], ring)
    for index in range(start, terminal.size):
        if index + 2 * _AHEAD < terminal.size:
            prefetch_slot(slots, terminal[index + 2 * _AHEAD])
        if index + _AHEAD < terminal.size:
            row = find(slots, terminal[index + _AHEAD])
            if row >= 0:
                prefetch_row(u8, row)
        hour = np.int64(hours[index])
        if hour > clock[CLOCK_MAX_HOUR]:
            clock[CLOCK_MAX_HOUR] = hour
            floor = terminal_floor(hour, ring)
        if hour < floor:
            continue
        row = find(slots, terminal[index])
        if row < 0 and control[ROWS] >= control[CAPACITY]:
            return index, TERMINALS_FULL
        row = reach_terminal(control, slots, u64, i32, u32, u16, row, terminal[index], hour, floor, ring)
        enter_terminal(i32, u32, row, hour, ring)
    return terminal.size, DONE


@kernel
def learn_terminals(start, terminal, event_ms, is_fraud, ring, clock, table):
    """Count each fraud from `start` on at its payment's day; where and why it stopped, how many it counted.

    A terminal that is not held gets a row, and a day that it has not come to begins: the label came first.
    """
    control, slots, u64, _, i32, u32, _, u16, _, _, _ = table
    floor = terminal_floor(clock[CLOCK_MAX_HOUR], ring)
    fraud_at = 2 * (T_DAY_COUNT_U32 + ring)
    learnt = 0
    for index in range(start, terminal.size):
        hour = event_ms[index] // HOUR_MS
        if not is_fraud[index] or hour < floor:
            continue
        row = find(slots, terminal[index])
        if row < 0 and control[ROWS] >= control[CAPACITY]:
            return index, TERMINALS_FULL, learnt
        row = reach_terminal(control, slots, u64, i32, u32, u16, row, terminal[index], hour, floor, ring)
        day = hour // HOURS
        if day > np.int64(i32[row, T_HOUR_I32]) // HOURS - ring:
            learnt += 1
            slot = day % ring
            if u16[row, fraud_at + slot] < U16_MAX:
                u16[row, fraud_at + slot] += 1
    return terminal.size, DONE, learnt
