# mypy: allow-untyped-defs
"""What one event does to its account's row, and reads from it; layout in `weir.features._layout`.

An account's windows end at its own newest hour, so an event that comes out of order sees what is known when
it comes, and enters its own buckets while the rings still hold them. An account whose newest day is a whole
ring behind the partition's newest event is new again: forgetting its row cannot be seen.
"""

import numpy as np

from weir.features._layout import (
    A_DAY_COUNT_U16,
    A_DAY_SQUARE_F32,
    A_DAY_SUM_F32,
    A_FIRST_I32,
    A_FRAUD_U8,
    A_HOUR_COUNT_U16,
    A_HOUR_I32,
    A_HOUR_SUM_F32,
    A_NEWEST_I64,
    A_STAMP_U32,
    CLOCK_MAX_MS,
    DAY_MS,
    DAYS,
    HOUR_MS,
    HOURS,
    U16_MAX,
)
from weir.state.jit import kernel, part
from weir.state.table import find, insert
from weir.state.undo import GENERATION, ROWS

_IDLE_MAX_S = float(DAYS * 86_400)
_RATIO_MAX = 1000.0
_AMOUNT_LEAST = 0.01
# A payment is high above so many times the usual amount, and a day counts with no more than that a payment.
_HIGH_TIMES = 2.5
_HIGH_DAYS = 7
# How far a sum in 32 bits may be off for each amount that was added, of itself.
_ROUNDING = 2.0**-23


@part
def account_floor(max_ms, ring):
    """The first hour of the oldest day that still matters: an account not seen since then is new."""
    return (max_ms // DAY_MS - ring) * HOURS


@part
def reach_account(control, slots, u64, i64, i32, u32, f32, u16, u8, row, key, hour, floor, ring):
    """The account's row, ready for an event of `hour`: added if `row` is -1, new if it expired, or rolled."""
    if row < 0:
        row = control[ROWS]
        control[ROWS] = row + 1
        insert(slots, key, row)
        u64[row, 0] = key
        u32[row, A_STAMP_U32] = control[GENERATION]
        i64[row, A_NEWEST_I64] = -1
        i32[row, A_HOUR_I32] = hour
        i32[row, A_FIRST_I32] = hour
        return row
    newest = np.int64(i32[row, A_HOUR_I32])
    if newest < floor:
        for item in range(A_HOUR_SUM_F32, f32.shape[1]):
            f32[row, item] = 0.0
        i64[row, A_NEWEST_I64] = -1
        i32[row, A_HOUR_I32] = hour
        i32[row, A_FIRST_I32] = hour
    elif hour > newest:
        _roll(i32, f32, u16, u8, row, newest, hour, ring)
    return row


@kernel
def _roll(i32, f32, u16, u8, row, newest, hour, ring):
    """Empty the buckets between the account's newest hour and `hour`, which is later."""
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
    for ahead in range(newest_day + 1, newest_day + 1 + min(day - newest_day, ring)):
        u8[row, A_FRAUD_U8 + ahead % ring] = 0


@part
def account_features(i64, i32, f32, u16, u8, row, x, event_ms, delay, out):
    """Features 9 to 22 of one event, from what the account did before it."""
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
        out[16] = min(x / max(mean_30d, _AMOUNT_LEAST), _RATIO_MAX)
        out[17] = min(max((x - mean_30d) / deviation, -100.0), 100.0)
    out[15] = mean_30d
    idle_s = _IDLE_MAX_S
    age_days = 0.0
    if i64[row, A_NEWEST_I64] >= 0:
        idle_s = min(max((event_ms - i64[row, A_NEWEST_I64]) / 1000.0, 0.0), _IDLE_MAX_S)
        age_days = min((hour - i32[row, A_FIRST_I32]) / HOURS, np.float64(DAYS))
    out[18] = np.log1p(idle_s)
    out[19] = age_days
    ring = delay + DAYS + 1
    at = (day - delay + ring - 1) % ring
    known_frauds = np.int64(0)
    for _back in range(DAYS):
        known_frauds += u8[row, A_FRAUD_U8 + at]
        at = (at + ring - 1) % ring
    out[20] = known_frauds
    out[21] = 1.0
    out[22] = 0.0
    if count_30d > 0:
        out[21], out[22] = _high(f32, u16, row, day, _usual(f32, u16, row, count_30d, sum_30d))


@part
def _usual(f32, u16, row, count, total):
    """The mean of 30 days in which no day weighs with more than 2.5 times itself, found in two steps."""
    usual = max(total / count, _AMOUNT_LEAST)
    for _step in range(2):
        limit = _HIGH_TIMES * usual
        # Three sums at once, or each addition would wait for the one before it.
        first = second = third = 0.0
        for slot in range(0, DAYS, 3):
            first += _above(f32, u16, row, slot, limit)
            second += _above(f32, u16, row, slot + 1, limit)
            third += _above(f32, u16, row, slot + 2, limit)
        usual = max((total - (first + second + third)) / count, _AMOUNT_LEAST)
    return usual


@part
def _above(f32, u16, row, slot, limit):
    """What a day's sum has above `limit` a payment."""
    return max(f32[row, A_DAY_SUM_F32 + slot] - limit * u16[row, A_DAY_COUNT_U16 + slot], 0.0)


@part
def _high(f32, u16, row, day, usual):
    """The highest payment of 30 days over the usual amount; days of the last 7 with a high one."""
    limit = _HIGH_TIMES * usual
    highest = 0.0
    high_days = 0
    slot = day % DAYS
    for back in range(DAYS):
        total = np.float64(f32[row, A_DAY_SUM_F32 + slot])
        # No payment is above its day's sum, so few days are looked into.
        if total > highest or (back < _HIGH_DAYS and total > limit):
            most = _highest_of_day(f32, u16, row, slot)
            highest = max(highest, most)
            if back < _HIGH_DAYS and most > limit:
                high_days += 1
        slot = slot - 1 if slot > 0 else DAYS - 1
    return min(highest / usual, _RATIO_MAX), high_days


@part
def _highest_of_day(f32, u16, row, slot):
    """The most that a day's count, sum and sum of squares allow for its highest payment.

    Exact for one and two payments, and where all but one are equal; a spread that rounding alone could make
    counts for none. Source: Samuelson 1968, How deviant can you be?
    """
    count = np.int64(u16[row, A_DAY_COUNT_U16 + slot])
    total = np.float64(f32[row, A_DAY_SUM_F32 + slot])
    if count <= 1:
        return total
    mean = total / count
    spread = f32[row, A_DAY_SQUARE_F32 + slot] / count - mean * mean * (1.0 + count * _ROUNDING)
    return mean + np.sqrt((count - 1) * max(spread, 0.0))


@part
def _plus(held, x):
    """A bucket's sum and one amount more, decimal as far as 32 bits reach: any order gives the same sum."""
    return np.rint((np.float64(held) + x) * 10_000.0) / 10_000.0


@part
def enter_account(i64, i32, f32, u16, row, x, now, hour):
    """Add an event to those of its account's buckets that the rings still hold."""
    day = hour // HOURS
    newest = np.int64(i32[row, A_HOUR_I32])
    if now > i64[row, A_NEWEST_I64]:
        i64[row, A_NEWEST_I64] = now
    if hour > newest - HOURS:
        slot = hour % HOURS
        if u16[row, A_HOUR_COUNT_U16 + slot] < U16_MAX:
            u16[row, A_HOUR_COUNT_U16 + slot] += 1
            f32[row, A_HOUR_SUM_F32 + slot] = _plus(f32[row, A_HOUR_SUM_F32 + slot], x)
    if day > newest // HOURS - DAYS:
        slot = day % DAYS
        if u16[row, A_DAY_COUNT_U16 + slot] < U16_MAX:
            u16[row, A_DAY_COUNT_U16 + slot] += 1
            f32[row, A_DAY_SUM_F32 + slot] = _plus(f32[row, A_DAY_SUM_F32 + slot], x)
            f32[row, A_DAY_SQUARE_F32 + slot] += x * x


@kernel
def learn_accounts(account, event_ms, is_fraud, ring, clock, table):
    """Count each fraud at the day of its payment; how many were counted.

    An account that is not held, or expired, or has not come to that day, learns nothing.
    """
    slots, i32, u8 = table[1], table[4], table[8]
    floor = account_floor(clock[CLOCK_MAX_MS], ring)
    learnt = 0
    for index in range(account.size):
        row = find(slots, account[index]) if is_fraud[index] else -1
        if row < 0:
            continue
        newest = np.int64(i32[row, A_HOUR_I32])
        day = event_ms[index] // HOUR_MS // HOURS
        if newest >= floor and newest // HOURS - ring < day <= newest // HOURS:
            learnt += 1
            if u8[row, A_FRAUD_U8 + day % ring] < 255:
                u8[row, A_FRAUD_U8 + day % ring] += 1
    return learnt
