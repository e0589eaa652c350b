# mypy: allow-untyped-defs
"""The compiled loops of the columnar reader: a small program of opcodes run over each record.

Nothing here reads outside the record's own slice of the buffer, whatever the bytes say.
"""

import numpy as np
from numba import njit

# What a step of the program reads. ABSENT reads nothing: its field is null, and its limit is its op.
LONG, INT, BOOLEAN, ENUM, DECIMAL, FLOAT, DOUBLE, STRING, BYTES, ABSENT = range(10)

# Columns of a program: one row a field.
OP, SLOT, NULL_BRANCH, PRESENT_SLOT, LIMIT = range(5)
STEP_WIDTH = 5
NOT_NULLABLE = -1

# How a record ended; 0 is well.
OK, NOT_FRAMED, TRUNCATED, UNKNOWN_SCHEMA, BAD_UTF8, TRAILING_BYTES, OVERFLOW, BAD_ENUM, EMPTY = range(9)
REASONS = (
    "ok",
    "not_framed",
    "truncated",
    "unknown_schema",
    "bad_utf8",
    "trailing_bytes",
    "overflow",
    "bad_enum",
    "empty",
)

_HEADER_BYTES = 5
_VARINT_BYTES_MAX = 10


@njit(cache=True, nogil=True, inline="always")
def _varint(buffer, position, end):
    """(value, next position); a negative position is minus the reason."""
    bits = np.uint64(0)
    shift = np.uint64(0)
    for count in range(_VARINT_BYTES_MAX):
        if position >= end:
            return np.int64(0), -TRUNCATED
        byte = buffer[position]
        position += 1
        if count == _VARINT_BYTES_MAX - 1 and byte > 1:
            break
        bits |= np.uint64(byte & 0x7F) << shift
        if byte < 0x80:
            value = np.int64(bits >> np.uint64(1)) ^ -np.int64(bits & np.uint64(1))
            return value, position
        shift += np.uint64(7)
    return np.int64(0), -OVERFLOW


@njit(cache=True, nogil=True)
def is_utf8(buffer, position, end):
    """Whether the bytes from `position` to `end` are UTF-8 (no surrogates, no overlong forms)."""
    while position < end:
        first = buffer[position]
        if first < 0x80:
            position += 1
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= first <= 0xDF:
            more = 1
        elif 0xE0 <= first <= 0xEF:
            more = 2
            if first == 0xE0:
                low = 0xA0
            elif first == 0xED:
                high = 0x9F
        elif 0xF0 <= first <= 0xF4:
            more = 3
            if first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F
        else:
            return False
        if position + more >= end:
            return False
        if buffer[position + 1] < low or buffer[position + 1] > high:
            return False
        for k in range(2, more + 1):
            if buffer[position + k] & 0xC0 != 0x80:
                return False
        position += more + 1
    return True


@njit(cache=True, nogil=True, inline="always")
def _decimal(buffer, position, end, limit):
    """(unscaled value, reason) of a big-endian two's complement number within +-limit."""
    if position == end:
        return np.int64(0), TRUNCATED
    sign = np.uint8(0xFF) if buffer[position] >= 0x80 else np.uint8(0)
    while end - position > 8:
        if buffer[position] != sign:
            return np.int64(0), OVERFLOW
        position += 1
    if (buffer[position] >= 0x80) != (sign == 0xFF):
        return np.int64(0), OVERFLOW
    bits = np.uint64(0xFFFFFFFFFFFFFFFF) if sign == 0xFF else np.uint64(0)
    for k in range(position, end):
        bits = (bits << np.uint64(8)) | np.uint64(buffer[k])
    value = np.int64(bits)
    if value > limit or value < -limit:
        return np.int64(0), OVERFLOW
    return value, OK


@njit(cache=True, nogil=True, inline="always")
def _set_null(op, slot, at, ints, floats, text_start, text_length):
    if op >= STRING:
        text_start[slot, at] = 0
        text_length[slot, at] = 0
    elif op >= FLOAT:
        floats[slot, at] = np.nan
    else:
        ints[slot, at] = 0


@njit(cache=True, nogil=True)
def read_rows(
    buffer,
    row_length,
    schema_ids,
    program_starts,
    program,
    ints,
    floats,
    text_start,
    text_length,
    present,
    row,
    status,
):
    """Number of good rows, whose values are put one after another into the columns.

    Args:
        buffer: uint8, all records one after another; row_length: (n,) int64, the bytes of each.
        schema_ids: (k,) int64, the ids that a frame may bear, each of a program of its own.
        program_starts: (k + 1,) int64, the first step of each, and the end of the last.
        program: (steps, STEP_WIDTH) int64.
        ints, floats, text_start, text_length, present: (slots, n), written.
        row: (n,) int64, written: the index of each good row. status: (n,) uint8, written: its reason.
    """
    good = 0
    row_start = 0
    number = np.empty(1, np.uint64)
    small = np.empty(1, np.uint32)
    as_double = number.view(np.float64)
    as_float = small.view(np.float32)
    for index in range(row_length.shape[0]):
        position = row_start
        end = row_start + row_length[index]
        row_start = end
        if position == end:
            status[index] = EMPTY
            continue
        if buffer[position] != 0:
            status[index] = NOT_FRAMED
            continue
        if end - position < _HEADER_BYTES:
            status[index] = TRUNCATED
            continue
        written_as = np.int64(0)
        for k in range(1, _HEADER_BYTES):
            written_as = (written_as << 8) | np.int64(buffer[position + k])
        version = 0
        while version < schema_ids.shape[0] and schema_ids[version] != written_as:
            version += 1
        if version == schema_ids.shape[0]:
            status[index] = UNKNOWN_SCHEMA
            continue
        position += _HEADER_BYTES
        reason = OK
        for step in range(program_starts[version], program_starts[version + 1]):
            op = program[step, OP]
            slot = program[step, SLOT]
            if op == ABSENT:
                present[program[step, PRESENT_SLOT], good] = False
                _set_null(program[step, LIMIT], slot, good, ints, floats, text_start, text_length)
                continue
            null_branch = program[step, NULL_BRANCH]
            if null_branch != NOT_NULLABLE:
                branch, position = _varint(buffer, position, end)
                if position < 0:
                    reason = -position
                    break
                if branch != 0 and branch != 1:
                    reason = BAD_ENUM
                    break
                present[program[step, PRESENT_SLOT], good] = branch != null_branch
                if branch == null_branch:
                    _set_null(op, slot, good, ints, floats, text_start, text_length)
                    continue
            if op == BOOLEAN:
                if position >= end:
                    reason = TRUNCATED
                    break
                if buffer[position] > 1:
                    reason = BAD_ENUM
                    break
                ints[slot, good] = buffer[position]
                position += 1
            elif op == DOUBLE:
                if end - position < 8:
                    reason = TRUNCATED
                    break
                bits = np.uint64(0)
                for k in range(7, -1, -1):
                    bits = (bits << np.uint64(8)) | np.uint64(buffer[position + k])
                number[0] = bits
                floats[slot, good] = as_double[0]
                position += 8
            elif op == FLOAT:
                if end - position < 4:
                    reason = TRUNCATED
                    break
                bits = np.uint64(0)
                for k in range(3, -1, -1):
                    bits = (bits << np.uint64(8)) | np.uint64(buffer[position + k])
                small[0] = np.uint32(bits)
                floats[slot, good] = as_float[0]
                position += 4
            else:
                value, position = _varint(buffer, position, end)
                if position < 0:
                    reason = -position
                    break
                if op == LONG:
                    ints[slot, good] = value
                elif op == INT:
                    if value > 0x7FFFFFFF or value < -0x80000000:
                        reason = OVERFLOW
                        break
                    ints[slot, good] = value
                elif op == ENUM:
                    if value < 0 or value >= program[step, LIMIT]:
                        reason = BAD_ENUM
                        break
                    ints[slot, good] = value
                else:
                    if value < 0:
                        reason = OVERFLOW
                        break
                    if value > end - position:
                        reason = TRUNCATED
                        break
                    if op == DECIMAL:
                        ints[slot, good], reason = _decimal(
                            buffer, position, position + value, program[step, LIMIT]
                        )
                        if reason != OK:
                            break
                    else:
                        if op == STRING and not is_utf8(buffer, position, position + value):
                            reason = BAD_UTF8
                            break
                        text_start[slot, good] = position
                        text_length[slot, good] = value
                    position += value
        if reason == OK and position != end:
            reason = TRAILING_BYTES
        status[index] = reason
        if reason == OK:
            row[good] = index
            good += 1
    return good
