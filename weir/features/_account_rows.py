# mypy: allow-untyped-defs
"""An account's row in few bytes, for the changelog and snapshots; exact: what is read is what was written.

Body of version 1, between head and checksum (`weir.state.row_format`); varints are LEB128:

    newest hour varint | newest ms less its start, zigzag varint | newest hour less first, zigzag varint |
    hours present u24 | days present u32 (bit 30: frauds follow) | a bucket for each hour, then for each day |
    frauds: which days, a bit each | a count u8 for each

    bucket   control u8 | count u16 if it does not fit the control | sum | sum of squares (days only)
    control  bits 0, 1: how the sum is written; 2, 3: how the squares are; 4 to 7: the count, 0 if it follows

A sum of amounts is mostly a whole number of cents, and a single amount's square follows from it: what can be
computed back to the same bits is not written.
"""

import numpy as np
from numpy.typing import NDArray

from weir.columns import ByteColumn
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
    DAYS,
    HOUR_MS,
    HOURS,
    ring_days,
)
from weir.state.crc import TABLES
from weir.state.jit import kernel, part
from weir.state.row_format import BAD_BODY, CRC_BYTES, GOOD, HEAD_BYTES, Decoder, seal

VERSION = 1

# How a sum is written.
_CENTS_16, _CENTS_24, _UNITS_24, _RAW = 0, 1, 2, 3
# How squares are written: not, being the sum's; exponent above the least possible, and mantissa; as they are.
_FROM_SUM, _NEAR, _FULL = 0, 1, 2
_COUNT_SHIFT = 4
_COUNT_MAX = 15
_FRAUDS = 1 << 30
_24 = 1 << 24
_24_BITS = _24 - 1
_MANTISSA = 0x7FFFFF
_SIGN = np.uint32(0x80000000)

# The longest row: head, three varints, bit maps, every bucket in full, every fraud, checksum.
ROW_BYTES_MAX = HEAD_BYTES + 5 + 10 + 5 + 7 + HOURS * 7 + DAYS * 11 + 2 * 64 + CRC_BYTES


def encode(
    block: NDArray[np.uint8],
    rows: NDArray[np.int64],
    delay_days: int,
    tag: int,
) -> ByteColumn:
    """The values of some `rows` of a block (n, row_bytes), packed one behind the other."""
    buffer = np.empty(rows.size * ROW_BYTES_MAX, np.uint8)
    start, length = np.empty(rows.size, np.int64), np.empty(rows.size, np.int64)
    words = block.view(np.uint64), block.view(np.uint32), block.view(np.uint16)
    end = _encode(*words, block, rows, ring_days(delay_days), tag, TABLES, buffer, start, length)
    return ByteColumn(buffer[:end], start, length)


def decoders(delay_days: int) -> dict[int, Decoder]:
    """How the body of every version that was ever written is read."""
    return {VERSION: _decoder(delay_days)}


def _decoder(delay_days: int) -> Decoder:

    def decode(values: ByteColumn, which: NDArray[np.int64], rows: NDArray[np.uint8]) -> NDArray[np.int8]:
        found = np.empty(which.size, np.int8)
        _decode(
            values.buffer,
            values.start,
            values.length,
            which,
            ring_days(delay_days),
            rows.view(np.uint64),
            rows.view(np.uint32),
            rows.view(np.uint16),
            rows,
            found,
        )
        return found

    return decode


@part
def _put(buffer, at, value, count):
    """The low `count` bytes of an integer."""
    for byte in range(count):
        buffer[np.uint64(at + byte)] = np.uint8((value >> np.int64(8 * byte)) & np.int64(0xFF))
    return at + count


@part
def _put_varint(buffer, at, value):
    while value >= np.uint64(0x80):
        buffer[at] = np.uint8((value & np.uint64(0x7F)) | np.uint64(0x80))
        value >>= np.uint64(7)
        at += 1
    buffer[at] = np.uint8(value)
    return at + 1


@part
def _zigzag(value):
    return np.uint64((value << np.int64(1)) ^ (value >> np.int64(63)))


@part
def _unit_bits(value):
    """Of the nearest whole number of ten-thousandths, as a bucket's sum is kept."""
    return np.float32(np.rint(value * 10_000.0) / 10_000.0).view(np.uint32)


@part
def _least_bits(total, count):
    """Of the least sum of squares that so many amounts of this sum can have."""
    return np.float32(total * total / np.float64(max(count, 1))).view(np.uint32)


@part
def _put_bucket(buffer, at, count, total, squares, has_squares):
    """A bucket of a count and of one or two sums, as their bits; where it ends."""
    count = np.int64(count)
    control_at = at
    control = np.int64(0)
    at += 1
    if 0 < count <= _COUNT_MAX:
        control = count << _COUNT_SHIFT
    else:
        at = _put(buffer, at, count, 2)
    value = np.float64(np.uint32(total).view(np.float32))
    cents = np.rint(value * 100.0)
    # Minus zero has bits of its own, which no whole number of cents has.
    if total < _SIGN and cents < _24 and np.float32(cents / 100.0).view(np.uint32) == total:
        value = cents / 100.0
        if cents < 65_536.0:
            at = _put(buffer, at, np.int64(cents), 2)
        else:
            control |= _CENTS_24
            at = _put(buffer, at, np.int64(cents), 3)
    elif total < _SIGN and value * 10_000.0 < _24 - 1 and _unit_bits(value) == total:
        units = np.rint(value * 10_000.0)
        value = units / 10_000.0
        control |= _UNITS_24
        at = _put(buffer, at, np.int64(units), 3)
    else:
        control |= _RAW
        at = _put(buffer, at, np.int64(total), 4)
    if has_squares and np.float32(value * value).view(np.uint32) != squares:
        above = np.int64(squares >> np.uint32(23)) - np.int64(_least_bits(value, count) >> np.uint32(23))
        if 0 <= above <= 1:
            control |= _NEAR << 2
            at = _put(buffer, at, (above << 23) | (np.int64(squares) & _MANTISSA), 3)
        else:
            control |= _FULL << 2
            at = _put(buffer, at, np.int64(squares), 4)
    buffer[np.uint64(control_at)] = np.uint8(control)
    return at


@kernel
def _encode(u64, u32, u16, u8, rows, ring, tag, tables, buffer, start, length):
    """Every row behind the one before; the end of the last."""
    at = np.int64(0)
    for index in range(rows.size):
        row = rows[index]
        start[index] = at
        begin = at
        buffer[at] = VERSION
        at = _put(buffer, at + 1, np.int64(tag), 2)
        hour = np.int64(np.int32(u32[row, A_HOUR_I32]))
        at = _put_varint(buffer, at, np.uint64(u32[row, A_HOUR_I32]))
        at = _put_varint(buffer, at, _zigzag(np.int64(u64[row, A_NEWEST_I64]) - hour * HOUR_MS))
        at = _put_varint(buffer, at, _zigzag(hour - np.int64(np.int32(u32[row, A_FIRST_I32]))))
        maps_at = at
        at += 7
        hours = np.int64(0)
        for slot in range(HOURS):
            count, total = u16[row, A_HOUR_COUNT_U16 + slot], u32[row, A_HOUR_SUM_F32 + slot]
            if count != 0 or total != 0:
                hours |= np.int64(1) << slot
                at = _put_bucket(buffer, at, count, total, np.uint32(0), False)
        days = np.int64(0)
        for slot in range(DAYS):
            count, total = u16[row, A_DAY_COUNT_U16 + slot], u32[row, A_DAY_SUM_F32 + slot]
            squares = u32[row, A_DAY_SQUARE_F32 + slot]
            if count != 0 or total != 0 or squares != 0:
                days |= np.int64(1) << slot
                at = _put_bucket(buffer, at, count, total, squares, True)
        frauds_at = at
        at += (ring + 7) // 8
        frauds = np.int64(0)
        for slot in range(ring):
            if u8[row, A_FRAUD_U8 + slot] != 0:
                frauds |= np.int64(1) << slot
                buffer[at] = u8[row, A_FRAUD_U8 + slot]
                at += 1
        if frauds == 0:
            at = frauds_at
        else:
            days |= _FRAUDS
            _put(buffer, frauds_at, frauds, (ring + 7) // 8)
        _put(buffer, maps_at, hours, 3)
        _put(buffer, maps_at + 3, days, 4)
        at = seal(tables, u64[row, 0], buffer, begin, at)
        length[index] = at - begin
    return at


@part
def _word(buffer, at):
    """The four bytes at `at`; `RowFormat` sees to it that there are as many, whatever a body says."""
    return (
        np.int64(buffer[np.uint64(at)])
        | np.int64(buffer[np.uint64(at + 1)]) << np.int64(8)
        | np.int64(buffer[np.uint64(at + 2)]) << np.int64(16)
        | np.int64(buffer[np.uint64(at + 3)]) << np.int64(24)
    )


@part
def _take_varint(buffer, at, stop):
    value = np.uint64(0)
    for shift in range(0, 70, 7):
        if at >= stop:
            return value, stop + 1
        byte = np.uint64(buffer[at])
        at += 1
        value |= (byte & np.uint64(0x7F)) << np.uint64(shift)
        if byte < np.uint64(0x80):
            return value, at
    return value, stop + 1


@part
def _unzigzag(value):
    return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))


@part
def _take_bucket(buffer, at, stop, has_squares):
    """Count, the sums as their bits, and where the bucket ends; past `stop` if it is malformed."""
    control = np.int64(buffer[np.uint64(at)])
    at += 1
    count = control >> _COUNT_SHIFT
    if count == 0:
        count = _word(buffer, at) & 0xFFFF
        at += 2
    how = control & 3
    number = _word(buffer, at)
    if how == _RAW:
        value = np.float64(np.uint32(number).view(np.float32))
        total = np.uint32(number)
        at += 4
    elif how == _UNITS_24:
        value = (number & _24_BITS) / 10_000.0
        total = np.float32(value).view(np.uint32)
        at += 3
    else:
        value = (number & (0xFFFF if how == _CENTS_16 else _24_BITS)) / 100.0
        total = np.float32(value).view(np.uint32)
        at += 2 if how == _CENTS_16 else 3
    how = (control >> 2) & 3
    squares = np.uint32(0)
    if has_squares and how == _FROM_SUM:
        squares = np.float32(value * value).view(np.uint32)
    elif has_squares and how == _NEAR:
        number = _word(buffer, at)
        least = np.int64(_least_bits(value, count) >> np.uint32(23))
        squares = np.uint32(((least + ((number >> 23) & 1)) << 23) | (number & _MANTISSA))
        at += 3
    elif has_squares and how == _FULL:
        squares = np.uint32(_word(buffer, at))
        at += 4
    elif how != 0:
        at = stop + 1
    return count, total, squares, at


@kernel
def _decode(buffer, start, length, which, ring, u64, u32, u16, u8, found):
    """Fill the rows `which`, zeroed but for their keys, from their values' bodies."""
    for index in range(which.size):
        row = which[index]
        at = start[row] + HEAD_BYTES
        stop = start[row] + length[row] - CRC_BYTES
        value, at = _take_varint(buffer, at, stop)
        u32[row, A_HOUR_I32] = np.uint32(value)
        hour = np.int64(np.int32(np.uint32(value)))
        value, at = _take_varint(buffer, at, stop)
        u64[row, A_NEWEST_I64] = np.uint64(hour * HOUR_MS + _unzigzag(value))
        value, at = _take_varint(buffer, at, stop)
        u32[row, A_FIRST_I32] = np.uint32(np.int32(hour - _unzigzag(value)))
        if at + 7 > stop:
            found[index] = BAD_BODY
            continue
        hours = _word(buffer, at) & _24_BITS
        days = _word(buffer, at + 3)
        at += 7
        for slot in range(HOURS):
            if hours >> slot & 1 and at < stop:
                count, total, _, at = _take_bucket(buffer, at, stop, False)
                u16[row, A_HOUR_COUNT_U16 + slot] = count
                u32[row, A_HOUR_SUM_F32 + slot] = total
        for slot in range(DAYS):
            if days >> slot & 1 and at < stop:
                count, total, squares, at = _take_bucket(buffer, at, stop, True)
                u16[row, A_DAY_COUNT_U16 + slot] = count
                u32[row, A_DAY_SUM_F32 + slot] = total
                u32[row, A_DAY_SQUARE_F32 + slot] = squares
        if days & _FRAUDS:
            frauds_at = at
            at += (ring + 7) // 8
            for slot in range(ring):
                if at < stop and buffer[frauds_at + slot // 8] >> (slot % 8) & 1:
                    u8[row, A_FRAUD_U8 + slot] = buffer[at]
                    at += 1
        found[index] = GOOD if at == stop and days >> 31 == 0 else BAD_BODY
