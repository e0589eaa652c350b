# mypy: allow-untyped-defs
"""The kernels: one row of bytes an entity, rings of hour and day buckets in it, one pass over a batch's rows.

A row is a fixed number of bytes, seen through views of several dtypes (`RowViews`), so that one event touches
one run of cache lines and the whole state is one block to grow, save and load.

    account   key u64 | newest ms i64 | newest hour i32 | first hour i32 | hour sum 24 f32 | day sum 30 f32 |
              day sum of squares 30 f32 | hour count 24 u16 | day count 30 u16 |
              known fraud a day (delay + 31) u8
    terminal  key u64 | newest hour i32 | - | hour count 24 u32 | day count (delay + 31) u32 |
              known fraud a day (delay + 31) u16

The bucket of hour h is slot h % 24; of day d, slot d % ring length. An entity's windows end at its own
newest hour, so an event that comes out of order sees what is known when it comes, and enters its own buckets
while the rings still hold them. Counts stay at their dtype's maximum.
"""

import numpy as np

from weir.features.spec import FEATURES
from weir.state.jit import kernel
from weir.state.prefetch import prefetch_row
from weir.state.table import find, insert, prefetch_slot

HOUR_MS = 3_600_000
HOURS = 24
DAYS = 30
FEATURE_COUNT = len(FEATURES)

# Offsets in items of each view, see the layout above.
A_NEWEST_I64 = 1
A_HOUR_I32 = 4
A_FIRST_I32 = 5
A_HOUR_SUM_F32 = 6
A_DAY_SUM_F32 = A_HOUR_SUM_F32 + HOURS
A_DAY_SQUARE_F32 = A_DAY_SUM_F32 + DAYS
A_HOUR_COUNT_U16 = 2 * (A_DAY_SQUARE_F32 + DAYS)
A_DAY_COUNT_U16 = A_HOUR_COUNT_U16 + HOURS
A_FRAUD_U8 = 2 * (A_DAY_COUNT_U16 + DAYS)
T_HOUR_I32 = 2
T_HOUR_COUNT_I32 = 4
T_DAY_COUNT_I32 = T_HOUR_COUNT_I32 + HOURS

# Fields of `clock`, the part of the state that belongs to no entity.
CLOCK_MAX_EVENT_MS = 0
CLOCK_LATE = 1
CLOCK_ACCOUNTS = 2
CLOCK_TERMINALS = 3
CLOCK_UNMATCHED_LABELS = 4
CLOCK_FIELDS = 5

# Fields of `setting`, constant over a call.
SET_DELAY = 0
SET_LATENESS_MS = 1
SET_OFFSET_MS = 2
SET_NIGHT_START = 3
SET_NIGHT_END = 4
SET_ACCOUNTS = 5
SET_TERMINALS = 6
SET_FIELDS = 7

ACCOUNTS_FULL = -1
TERMINALS_FULL = -2

# Events between asking for an entity's memory and using it.
AHEAD = 8

_U16_MAX = 65_535
_U32_MAX = 4_294_967_295
_IDLE_MAX_S = float(DAYS * 86_400)


def ring_days(delay_days: int) -> int:
    """Days that a ring with labels holds: today, the delay, and the longest window before it."""
    return delay_days + DAYS + 1


def account_bytes(delay_days: int) -> int:
    """Bytes of an account's row, a whole number of cache lines."""
    return -(-(A_FRAUD_U8 + ring_days(delay_days)) // 64) * 64


def terminal_bytes(delay_days: int) -> int:
    """Bytes of a terminal's row, a whole number of 8-byte words."""
    return -(-(4 * T_DAY_COUNT_I32 + 6 * ring_days(delay_days)) // 8) * 8


@kernel
def _roll_account(i32, f32, u16, u8, row, hour, fraud_days):
    """Empty the buckets between the account's newest hour and `hour`, which is later."""
    newest = np.int64(i32[row, A_HOUR_I32])
    i32[row, A_HOUR_I32] = hour
    for ahead in range(newest + 1, newest + 1 + min(hour - newest, HOURS)):
        slot = ahead % HOURS
        f32[row, A_HOUR_SUM_F32 + slot] = 0.0
        u16[row, A_HOUR_COUNT_U16 + slot] = 0
    newest_day = newest // HOURS
    day = hour // HOURS
    for ahead in range(newest_day + 1, newest_day + 1 + min(day - newest_day, DAYS)):
        slot = ahead % DAYS
        f32[row, A_DAY_SUM_F32 + slot] = 0.0
        f32[row, A_DAY_SQUARE_F32 + slot] = 0.0
        u16[row, A_DAY_COUNT_U16 + slot] = 0
    for ahead in range(newest_day + 1, newest_day + 1 + min(day - newest_day, fraud_days)):
        u8[row, A_FRAUD_U8 + ahead % fraud_days] = 0


@kernel
def _roll_terminal(i32, u32, u16, row, hour, fraud_days):
    """Empty the buckets between the terminal's newest hour and `hour`, which is later."""
    newest = np.int64(i32[row, T_HOUR_I32])
    i32[row, T_HOUR_I32] = hour
    for ahead in range(newest + 1, newest + 1 + min(hour - newest, HOURS)):
        u32[row, T_HOUR_COUNT_I32 + ahead % HOURS] = 0
    newest_day = newest // HOURS
    day = hour // HOURS
    fraud_at = 2 * (T_DAY_COUNT_I32 + fraud_days)
    for ahead in range(newest_day + 1, newest_day + 1 + min(day - newest_day, fraud_days)):
        slot = ahead % fraud_days
        u32[row, T_DAY_COUNT_I32 + slot] = 0
        u16[row, fraud_at + slot] = 0


@kernel
def _account_features(i64, i32, f32, u16, u8, row, x, event_ms, delay, out):
    """Features 9 to 20 of one event, from what the account did before it."""
    hour = np.int64(i32[row, A_HOUR_I32])
    day = hour // HOURS
    count_1d = np.int64(0)
    sum_1d = np.float64(0.0)
    for slot in range(HOURS):
        count_1d += u16[row, A_HOUR_COUNT_U16 + slot]
        sum_1d += f32[row, A_HOUR_SUM_F32 + slot]
    count_30d = np.int64(0)
    sum_30d = np.float64(0.0)
    square_30d = np.float64(0.0)
    for slot in range(DAYS):
        count_30d += u16[row, A_DAY_COUNT_U16 + slot]
        sum_30d += f32[row, A_DAY_SUM_F32 + slot]
        square_30d += f32[row, A_DAY_SQUARE_F32 + slot]
    count_7d = np.int64(0)
    sum_7d = np.float64(0.0)
    at = day % DAYS
    for _ in range(7):
        count_7d += u16[row, A_DAY_COUNT_U16 + at]
        sum_7d += f32[row, A_DAY_SUM_F32 + at]
        at = (at + DAYS - 1) % DAYS
    out[9] = u16[row, A_HOUR_COUNT_U16 + hour % HOURS]
    out[10] = count_1d
    out[11] = count_7d
    out[12] = count_30d
    out[13] = sum_1d / count_1d if count_1d > 0 else 0.0
    out[14] = sum_7d / count_7d if count_7d > 0 else 0.0
    mean_30d = 0.0
    out[16] = 1.0
    out[17] = 0.0
    if count_30d > 0:
        mean_30d = sum_30d / count_30d
        deviation = np.sqrt(max(square_30d / count_30d - mean_30d * mean_30d, 0.0))
        # The floor keeps a subscriber's equal amounts from making any other amount extreme.
        deviation = max(deviation, 0.1 * mean_30d, 1.0)
        out[16] = min(x / max(mean_30d, 0.01), 1000.0)
        out[17] = min(max((x - mean_30d) / deviation, -100.0), 100.0)
    out[15] = mean_30d
    idle_s = _IDLE_MAX_S
    age_days = 0.0
    if i64[row, A_NEWEST_I64] >= 0:
        idle_s = min(max((event_ms - i64[row, A_NEWEST_I64]) / 1000.0, 0.0), _IDLE_MAX_S)
        age_days = min((hour - i32[row, A_FIRST_I32]) / HOURS, np.float64(DAYS))
    out[18] = np.log1p(idle_s)
    out[19] = age_days
    fraud_days = delay + DAYS + 1
    at = (day - delay + fraud_days - 1) % fraud_days
    known_frauds = np.int64(0)
    for _back in range(DAYS):
        known_frauds += u8[row, A_FRAUD_U8 + at]
        at = (at + fraud_days - 1) % fraud_days
    out[20] = known_frauds


@kernel
def _terminal_features(i32, u32, u16, row, delay, out):
    """Features 21 to 27 of one event, from what the terminal did before it."""
    hour = np.int64(i32[row, T_HOUR_I32])
    count_now = np.int64(0)
    for slot in range(HOURS):
        count_now += u32[row, T_HOUR_COUNT_I32 + slot]
    out[21] = count_now
    fraud_days = delay + DAYS + 1
    fraud_at = 2 * (T_DAY_COUNT_I32 + fraud_days)
    slot = (hour // HOURS - delay + fraud_days - 1) % fraud_days
    count = np.int64(0)
    fraud = np.int64(0)
    for back in range(1, DAYS + 1):
        count += u32[row, T_DAY_COUNT_I32 + slot]
        fraud += u16[row, fraud_at + slot]
        slot = slot - 1 if slot > 0 else fraud_days - 1
        if back == 1 or back == 7 or back == DAYS:
            window = 0 if back == 1 else (1 if back == 7 else 2)
            out[22 + window] = count
            # Labels may repeat (a customer, then a chargeback), so a share is held to 1.
            out[25 + window] = min(fraud, count) / count if count > 0 else 0.0


@kernel
def observe_rows(
    start, account, terminal, amount, event_ms, channel, setting, clock, a_slots, a, t_slots, t, out
):
    """Decide what each row from `start` on has for features, then let it enter; where and why it stopped.

    Returns (n, 0) at the end, else the first row that was not observed and which table is full.
    """
    a_u64, a_i64, a_i32, _, a_f32, a_u16, a_u8 = a
    t_u64, _, t_i32, t_u32, _, t_u16, t_u8 = t
    delay = setting[SET_DELAY]
    fraud_days = delay + DAYS + 1
    for index in range(start, account.size):
        # Slots two steps ahead, rows one step: by the time an event's turn comes, its memory is here.
        if index + 2 * AHEAD < account.size:
            prefetch_slot(a_slots, account[index + 2 * AHEAD])
            prefetch_slot(t_slots, terminal[index + 2 * AHEAD])
        if index + AHEAD < account.size:
            a_row = find(a_slots, account[index + AHEAD])
            if a_row >= 0:
                prefetch_row(a_u8, a_row)
            t_row = find(t_slots, terminal[index + AHEAD])
            if t_row >= 0:
                prefetch_row(t_u8, t_row)
        a_row = find(a_slots, account[index])
        t_row = find(t_slots, terminal[index])
        # Both before either is inserted: a row without an event could be taken for an old one and be evicted.
        if a_row < 0 and clock[CLOCK_ACCOUNTS] >= setting[SET_ACCOUNTS]:
            return index, ACCOUNTS_FULL
        if t_row < 0 and clock[CLOCK_TERMINALS] >= setting[SET_TERMINALS]:
            return index, TERMINALS_FULL
        now = event_ms[index]
        hour = now // HOUR_MS
        if a_row < 0:
            a_row = clock[CLOCK_ACCOUNTS]
            clock[CLOCK_ACCOUNTS] = a_row + 1
            insert(a_slots, account[index], a_row)
            a_u64[a_row, 0] = account[index]
            a_i64[a_row, A_NEWEST_I64] = -1
            a_i32[a_row, A_HOUR_I32] = hour
            a_i32[a_row, A_FIRST_I32] = hour
        elif hour > a_i32[a_row, A_HOUR_I32]:
            _roll_account(a_i32, a_f32, a_u16, a_u8, a_row, hour, fraud_days)
        if t_row < 0:
            t_row = clock[CLOCK_TERMINALS]
            clock[CLOCK_TERMINALS] = t_row + 1
            insert(t_slots, terminal[index], t_row)
            t_u64[t_row, 0] = terminal[index]
            t_i32[t_row, T_HOUR_I32] = hour
        elif hour > t_i32[t_row, T_HOUR_I32]:
            _roll_terminal(t_i32, t_u32, t_u16, t_row, hour, fraud_days)

        x = amount[index] / 10_000.0
        row_out = out[index]
        row_out[0] = x
        row_out[1] = np.log1p(max(x, 0.0))
        local_hour = (now + setting[SET_OFFSET_MS]) // HOUR_MS
        hour_of_day = local_hour % HOURS
        row_out[2] = hour_of_day
        # 1 January 1970 was a Thursday: day 3 with Monday as 0.
        row_out[3] = 1.0 if (local_hour // HOURS + 3) % 7 >= 5 else 0.0
        night_start, night_end = setting[SET_NIGHT_START], setting[SET_NIGHT_END]
        if night_start <= night_end:
            is_night = night_start <= hour_of_day < night_end
        else:
            is_night = hour_of_day >= night_start or hour_of_day < night_end
        row_out[4] = 1.0 if is_night else 0.0
        for code in range(4):
            row_out[5 + code] = 1.0 if channel[index] == code else 0.0
        _account_features(a_i64, a_i32, a_f32, a_u16, a_u8, a_row, x, now, delay, row_out)
        _terminal_features(t_i32, t_u32, t_u16, t_row, delay, row_out)

        if now > clock[CLOCK_MAX_EVENT_MS]:
            clock[CLOCK_MAX_EVENT_MS] = now
        elif now < clock[CLOCK_MAX_EVENT_MS] - setting[SET_LATENESS_MS]:
            clock[CLOCK_LATE] += 1
        _enter(a_i64, a_i32, a_f32, a_u16, a_row, t_i32, t_u32, t_row, x, now, hour, fraud_days)
    return account.size, 0


@kernel
def _enter(a_i64, a_i32, a_f32, a_u16, a_row, t_i32, t_u32, t_row, x, now, hour, fraud_days):
    """Add an event to those of its buckets that the rings still hold."""
    day = hour // HOURS
    newest = np.int64(a_i32[a_row, A_HOUR_I32])
    if now > a_i64[a_row, A_NEWEST_I64]:
        a_i64[a_row, A_NEWEST_I64] = now
    if hour > newest - HOURS:
        slot = hour % HOURS
        if a_u16[a_row, A_HOUR_COUNT_U16 + slot] < _U16_MAX:
            a_u16[a_row, A_HOUR_COUNT_U16 + slot] += 1
            a_f32[a_row, A_HOUR_SUM_F32 + slot] += x
    if day > newest // HOURS - DAYS:
        slot = day % DAYS
        if a_u16[a_row, A_DAY_COUNT_U16 + slot] < _U16_MAX:
            a_u16[a_row, A_DAY_COUNT_U16 + slot] += 1
            a_f32[a_row, A_DAY_SUM_F32 + slot] += x
            a_f32[a_row, A_DAY_SQUARE_F32 + slot] += x * x
    newest = np.int64(t_i32[t_row, T_HOUR_I32])
    if hour > newest - HOURS:
        slot = hour % HOURS
        if t_u32[t_row, T_HOUR_COUNT_I32 + slot] < _U32_MAX:
            t_u32[t_row, T_HOUR_COUNT_I32 + slot] += 1
    if day > newest // HOURS - fraud_days:
        slot = day % fraud_days
        if t_u32[t_row, T_DAY_COUNT_I32 + slot] < _U32_MAX:
            t_u32[t_row, T_DAY_COUNT_I32 + slot] += 1


@kernel
def learn_rows(account, terminal, event_ms, is_fraud, setting, clock, a_slots, a, t_slots, t):
    """Count each fraud at the day of its transaction, for its account and for its terminal."""
    _, _, a_i32, _, _, _, a_u8 = a
    _, _, t_i32, _, _, t_u16, _ = t
    fraud_days = setting[SET_DELAY] + DAYS + 1
    fraud_at = 2 * (T_DAY_COUNT_I32 + fraud_days)
    for index in range(account.size):
        if not is_fraud[index]:
            continue
        day = event_ms[index] // HOUR_MS // HOURS
        slot = day % fraud_days
        a_row = find(a_slots, account[index])
        t_row = find(t_slots, terminal[index])
        matched = False
        if a_row >= 0:
            newest_day = np.int64(a_i32[a_row, A_HOUR_I32]) // HOURS
            if newest_day - fraud_days < day <= newest_day:
                matched = True
                if a_u8[a_row, A_FRAUD_U8 + slot] < 255:
                    a_u8[a_row, A_FRAUD_U8 + slot] += 1
        if t_row >= 0:
            newest_day = np.int64(t_i32[t_row, T_HOUR_I32]) // HOURS
            if newest_day - fraud_days < day <= newest_day:
                matched = True
                if t_u16[t_row, fraud_at + slot] < _U16_MAX:
                    t_u16[t_row, fraud_at + slot] += 1
        if not matched:
            clock[CLOCK_UNMATCHED_LABELS] += 1
