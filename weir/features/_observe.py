# mypy: allow-untyped-defs
"""The kernel of the hot path: one pass over a batch's rows, through accounts and terminals."""

import numpy as np

from weir.features._account_kernels import account_features, account_floor, enter_account, reach_account
from weir.features._layout import (
    ACCOUNTS_FULL,
    CLOCK_LATE,
    CLOCK_MAX_HOUR,
    CLOCK_MAX_MS,
    DAYS,
    DONE,
    HOUR_MS,
    HOURS,
    SET_DELAY,
    SET_LATENESS_MS,
    SET_NIGHT_END,
    SET_NIGHT_START,
    SET_OFFSET_MS,
    TERMINALS_FULL,
)
from weir.features._terminal_kernels import enter_terminal, reach_terminal, terminal_features, terminal_floor
from weir.state.jit import kernel, part
from weir.state.prefetch import prefetch_row
from weir.state.table import find, prefetch_slot
from weir.state.undo import CAPACITY, ROWS

# Events between asking for an entity's memory and using it.
_AHEAD = 8


@part
def _payment_features(x, now, channel, setting, out):
    """Features 0 to 8: what the payment itself says."""
    out[0] = x
    out[1] = np.log1p(max(x, 0.0))
    local_hour = (now + setting[SET_OFFSET_MS]) // HOUR_MS
    hour_of_day = local_hour % HOURS
    out[2] = hour_of_day
    # 1 January 1970 was a Thursday: day 3 with Monday as 0.
    out[3] = 1.0 if (local_hour // HOURS + 3) % 7 >= 5 else 0.0
    night_start, night_end = setting[SET_NIGHT_START], setting[SET_NIGHT_END]
    if night_start <= night_end:
        is_night = night_start <= hour_of_day < night_end
    else:
        is_night = hour_of_day >= night_start or hour_of_day < night_end
    out[4] = 1.0 if is_night else 0.0
    for code in range(4):
        out[5 + code] = 1.0 if channel == code else 0.0


@kernel
def observe_rows(
    start, account, terminal, amount, event_ms, channel, setting, a_clock, a_table, t_clock, t_table, out
):
    """Decide what each row from `start` on has for features, then let it enter; where and why it stopped.

    Of a row at which it stopped only its time has been seen.
    """
    a_control, a_slots, a_u64, a_i64, a_i32, a_u32, a_f32, a_u16, a_u8, _, _ = a_table
    t_control, t_slots, t_u64, _, t_i32, t_u32, _, t_u16, t_u8, _, _ = t_table
    delay = setting[SET_DELAY]
    ring = delay + DAYS + 1
    a_floor = account_floor(a_clock[CLOCK_MAX_MS], ring)
    t_floor = terminal_floor(t_clock[CLOCK_MAX_HOUR], ring)
    for index in range(start, account.size):
        # Slots two steps ahead, rows one step: by the time an event's turn comes, its memory is here.
        if index + 2 * _AHEAD < account.size:
            prefetch_slot(a_slots, account[index + 2 * _AHEAD])
            prefetch_slot(t_slots, terminal[index + 2 * _AHEAD])
        if index + _AHEAD < account.size:
            a_row = find(a_slots, account[index + _AHEAD])
            if a_row >= 0:
                prefetch_row(a_u8, a_row)
            t_row = find(t_slots, terminal[index + _AHEAD])
            if t_row >= 0:
                prefetch_row(t_u8, t_row)
        now = event_ms[index]
        hour = now // HOUR_MS
        # The clocks first: they say what may be forgotten where there is no room.
        if now > a_clock[CLOCK_MAX_MS]:
            a_clock[CLOCK_MAX_MS] = now
            a_floor = account_floor(now, ring)
        if hour > t_clock[CLOCK_MAX_HOUR]:
            t_clock[CLOCK_MAX_HOUR] = hour
            t_floor = terminal_floor(hour, ring)
        a_row = find(a_slots, account[index])
        t_row = find(t_slots, terminal[index])
        if a_row < 0 and a_control[ROWS] >= a_control[CAPACITY]:
            return index, ACCOUNTS_FULL
        if t_row < 0 and t_control[ROWS] >= t_control[CAPACITY]:
            return index, TERMINALS_FULL
        if now < a_clock[CLOCK_MAX_MS] - setting[SET_LATENESS_MS]:
            a_clock[CLOCK_LATE] += 1
        a_row = reach_account(
            a_control, a_slots, a_u64, a_i64, a_i32, a_u32, a_f32, a_u16, a_u8,
            a_row, account[index], hour, a_floor, ring,
        )  # fmt: skip
        t_row = reach_terminal(
            t_control, t_slots, t_u64, t_i32, t_u32, t_u16,
            t_row, terminal[index], hour, t_floor, ring,
        )  # fmt: skip

        x = amount[index] / 10_000.0
        _payment_features(x, now, channel[index], setting, out[index])
        account_features(a_i64, a_i32, a_f32, a_u16, a_u8, a_row, x, now, delay, out[index])
        terminal_features(t_i32, t_u32, t_u16, t_row, delay, out[index])
        enter_account(a_i64, a_i32, a_f32, a_u16, a_row, x, now, hour)
        enter_terminal(t_i32, t_u32, t_row, hour, ring)
    return account.size, DONE
