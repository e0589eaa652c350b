"""Where everything is in a row of an account and of a terminal: one run of bytes an entity.

A row is a fixed number of bytes, seen through views of several dtypes (`weir.state.rows.Table`), so that one
event touches one run of cache lines and the whole table is one block to save and load.

    account   key u64 | newest ms i64 | newest hour i32 | first hour i32 | stamp u32 | hour sum 24 f32 |
              day sum 30 f32 | day sum of squares 30 f32 | hour count 24 u16 | day count 30 u16 |
              known fraud a day (delay + 31) u8
    terminal  key u64 | newest hour i32 | stamp u32 | hour count 24 u32 | day count (delay + 31) u32 |
              known fraud a day (delay + 31) u16

The bucket of hour h is slot h % 24; of day d, slot d % ring length. The stamp belongs to `weir.state.undo`
and is no part of what the row says.
"""

HOUR_MS = 3_600_000
HOURS = 24
DAY_MS = HOUR_MS * HOURS
DAYS = 30

# Offsets in items of each view.
A_NEWEST_I64 = 1
A_HOUR_I32 = 4
A_FIRST_I32 = 5
A_STAMP_U32 = 6
A_HOUR_SUM_F32 = 7
A_DAY_SUM_F32 = A_HOUR_SUM_F32 + HOURS
A_DAY_SQUARE_F32 = A_DAY_SUM_F32 + DAYS
A_HOUR_COUNT_U16 = 2 * (A_DAY_SQUARE_F32 + DAYS)
A_DAY_COUNT_U16 = A_HOUR_COUNT_U16 + HOURS
A_FRAUD_U8 = 2 * (A_DAY_COUNT_U16 + DAYS)
T_HOUR_I32 = 2
T_STAMP_U32 = 3
T_HOUR_COUNT_U32 = 4
T_DAY_COUNT_U32 = T_HOUR_COUNT_U32 + HOURS

# Fields of the accounts' clock.
CLOCK_MAX_MS = 0
CLOCK_LATE = 1
ACCOUNT_CLOCK_FIELDS = 2
# Fields of the terminals' clock.
CLOCK_MAX_HOUR = 0
TERMINAL_CLOCK_FIELDS = 1

# Fields of `setting`, constant over a call.
SET_DELAY = 0
SET_LATENESS_MS = 1
SET_OFFSET_MS = 2
SET_NIGHT_START = 3
SET_NIGHT_END = 4
SET_FIELDS = 5

# Why a kernel stopped before the end.
DONE = 0
ACCOUNTS_FULL = 1
TERMINALS_FULL = 2

U16_MAX = 65_535
U32_MAX = 4_294_967_295


def ring_days(delay_days: int) -> int:
    """Days that a ring with labels holds: today, the delay, and the longest window before it."""
    return delay_days + DAYS + 1


def account_bytes(delay_days: int) -> int:
    """Bytes of an account's row, a whole number of cache lines."""
    return -(-(A_FRAUD_U8 + ring_days(delay_days)) // 64) * 64


def terminal_bytes(delay_days: int) -> int:
    """Bytes of a terminal's row, a whole number of 8-byte words."""
    return -(-(4 * T_DAY_COUNT_U32 + 6 * ring_days(delay_days)) // 8) * 8
