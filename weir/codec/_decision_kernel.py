# mypy: allow-untyped-defs
"""The compiled loop of the decision writer: columns in, framed Avro records out, one after another."""

from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

REASONS_MAX = 4
UUID_BYTES = 16

# Segments of the constants' buffer, in the order in which a record needs them.
HEAD, TENANT, KIND, BASE_LOGIT, MODEL, TAIL = range(6)
SEGMENTS = 6

NO_TEXT = -1  # length of a null string

# What `write_rows` answers when it wrote nothing; below these it is minus the bytes that the batch may take.
OUTSIDE, NO_REASON = -1, -2

_VARINT_BYTES_MAX = 10
_UUID_TEXT_BYTES = 36
# uuid, outcome, three nullable doubles, reason and rule counts, amount, times, partition, offset, trace
_NUMBERS_BYTES_MAX = _UUID_TEXT_BYTES + 1 + 3 * 9 + 2 * 3 + 11 + 4 * _VARINT_BYTES_MAX + 1
_NAN_BITS = 0x7FF0000000000000
_SIGN_OFF = 0x7FFFFFFFFFFFFFFF

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


@njit(cache=True, nogil=True, inline="always")
def _put_long(out, position, value):
    bits = (np.uint64(value) << np.uint64(1)) ^ np.uint64(value >> np.int64(63))
    while bits >= np.uint64(0x80):
        out[position] = np.uint8(bits & np.uint64(0x7F)) | np.uint8(0x80)
        bits >>= np.uint64(7)
        position += 1
    out[position] = np.uint8(bits)
    return position + 1


def _memcpy(typing, out, position, source, start, count):
    """memcpy; a loop over array items takes four times as long, for Numba lets an index be negative."""

    def generate(context, builder, signature, args):
        to = context.make_array(signature.args[0])(context, builder, args[0]).data
        origin = context.make_array(signature.args[2])(context, builder, args[2]).data
        cgutils.raw_memcpy(builder, builder.gep(to, [args[1]]), builder.gep(origin, [args[3]]), args[4], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(out, types.int64, source, types.int64, types.int64), generate


_copy: Any = intrinsic(_memcpy)


@njit(cache=True, nogil=True, inline="always")
def _put_bytes(out, position, source, start, count):
    _copy(out, position, source, start, count)
    return position + count


@njit(cache=True, nogil=True, inline="always")
def _put_text(out, position, source, start, count):
    position = _put_long(out, position, count)
    return _put_bytes(out, position, source, start, count)


@njit(cache=True, nogil=True, inline="always")
def _put_bits(out, position, bits):
    for k in range(8):
        out[position + k] = np.uint8((bits >> np.uint64(8 * k)) & np.uint64(0xFF))
    return position + 8


@njit(cache=True, nogil=True, inline="always")
def _put_nullable_double(out, position, bits):
    if (bits & np.uint64(_SIGN_OFF)) > np.uint64(_NAN_BITS):
        out[position] = 0
        return position + 1
    out[position] = 2
    return _put_bits(out, position + 1, bits)


@njit(cache=True, nogil=True, inline="always")
def _put_decimal(out, position, value):
    """The length, then the fewest big-endian two's complement bytes that hold `value`."""
    count = 8
    while count > 1:
        above = value >> np.int64(8 * (count - 1) - 1)  # sign and the byte that might go
        if above != 0 and above != -1:
            break
        count -= 1
    out[position] = 2 * count
    for k in range(count):
        out[position + 1 + k] = np.uint8((value >> np.int64(8 * (count - 1 - k))) & np.int64(0xFF))
    return position + 1 + count


@njit(cache=True, nogil=True, inline="always")
def _put_uuid(out, position, uuid):
    for k in range(UUID_BYTES):
        if k == 4 or k == 6 or k == 8 or k == 10:
            out[position] = 0x2D
            position += 1
        out[position] = _HEX[uuid[k] >> 4]
        out[position + 1] = _HEX[uuid[k] & 0x0F]
        position += 2
    return position


@njit(cache=True, nogil=True, inline="always")
def _outside(source, start, length):
    return start < 0 or length < 0 or start + length > source.shape[0]


@njit(cache=True, nogil=True)
def _bound(
    constant, reason_offset, rule_offset, event, event_start, event_length, account, account_start,
    account_length, currency, currency_start, currency_length, terminal, terminal_start, terminal_length,
    trace, trace_start, trace_length,
):  # fmt: skip
    """Bytes that surely suffice for the batch; OUTSIDE when a string lies outside its buffer."""
    reason_bytes_max = 0
    for k in range(0, reason_offset.shape[0] - 1, 2):
        reason_bytes_max = max(reason_bytes_max, reason_offset[k + 2] - reason_offset[k])
    fixed = (
        constant.shape[0]
        + _NUMBERS_BYTES_MAX
        + REASONS_MAX * (reason_bytes_max + 8)
        + rule_offset[-1]
        + 5 * _VARINT_BYTES_MAX
    )
    total = fixed * event_start.shape[0]
    for i in range(event_start.shape[0]):
        if (
            _outside(event, event_start[i], event_length[i])
            or _outside(account, account_start[i], account_length[i])
            or _outside(currency, currency_start[i], currency_length[i])
            or _outside(terminal, terminal_start[i], terminal_length[i])
            or (trace_length[i] != NO_TEXT and _outside(trace, trace_start[i], trace_length[i]))
        ):
            return OUTSIDE
        total += event_length[i] + account_length[i] + currency_length[i] + terminal_length[i]
        total += max(trace_length[i], 0)
    return total


@njit(cache=True, nogil=True)
def write_rows(
    out, row_start, row_length, constant, segment, reason_text, reason_offset, rule_text, rule_offset, uuid,
    event, event_start, event_length, account, account_start, account_length, currency, currency_start,
    currency_length, terminal, terminal_start, terminal_length, trace, trace_start, trace_length,
    outcome, score_bits, probability_bits, logit_bits, reason_index, contribution_bits, rules, amount,
    event_ms, decided_ms, partition, row_offset,
):  # fmt: skip
    """Fill `out`; `row_start[i]` and `row_length[i]` become where row i lies. The bytes written.

    partition: (n,), or (1,) for all rows.
    Nothing is written when the answer is OUTSIDE (a string leaves its buffer), NO_REASON (an index points
    behind the reasons), or less: then `out` must have minus as many bytes.
    """
    reasons_max = (reason_offset.shape[0] - 1) // 2
    for i in range(row_start.shape[0]):
        for k in range(REASONS_MAX):
            if reason_index[i, k] >= reasons_max:
                return NO_REASON
    size = _bound(
        constant, reason_offset, rule_offset, event, event_start, event_length, account, account_start,
        account_length, currency, currency_start, currency_length, terminal, terminal_start, terminal_length,
        trace, trace_start, trace_length,
    )  # fmt: skip
    if size < 0:
        return size
    if size > out.shape[0]:
        return -size
    p = 0
    for i in range(row_start.shape[0]):
        row_start[i] = p
        p = _put_bytes(out, p, constant, segment[HEAD], segment[HEAD + 1] - segment[HEAD])
        p = _put_uuid(out, p, uuid[i])
        p = _put_bytes(out, p, constant, segment[TENANT], segment[TENANT + 1] - segment[TENANT])
        p = _put_text(out, p, event, event_start[i], event_length[i])
        p = _put_text(out, p, account, account_start[i], account_length[i])
        p = _put_bytes(out, p, constant, segment[KIND], segment[KIND + 1] - segment[KIND])
        out[p] = 2 * outcome[i]
        p = _put_nullable_double(out, p + 1, score_bits[i])
        p = _put_nullable_double(out, p, probability_bits[i])
        p = _put_nullable_double(out, p, logit_bits[i])
        p = _put_bytes(out, p, constant, segment[BASE_LOGIT], segment[BASE_LOGIT + 1] - segment[BASE_LOGIT])
        count = 0
        for k in range(REASONS_MAX):
            count += reason_index[i, k] >= 0
        if count > 0:
            p = _put_long(out, p, count)
            for k in range(REASONS_MAX):
                index = np.int64(reason_index[i, k])
                if index >= 0:
                    start, middle, end = (
                        reason_offset[2 * index],
                        reason_offset[2 * index + 1],
                        reason_offset[2 * index + 2],
                    )
                    p = _put_bytes(out, p, reason_text, start, middle - start)
                    p = _put_bits(out, p, contribution_bits[i, k])
                    p = _put_bytes(out, p, reason_text, middle, end - middle)
        out[p] = 0
        p += 1
        fired = rules[i]
        count = 0
        while fired != np.uint64(0):
            fired &= fired - np.uint64(1)
            count += 1
        if count > 0:
            p = _put_long(out, p, count)
            for k in range(rule_offset.shape[0] - 1):
                if (rules[i] >> np.uint64(k)) & np.uint64(1):
                    p = _put_bytes(out, p, rule_text, rule_offset[k], rule_offset[k + 1] - rule_offset[k])
        out[p] = 0
        p = _put_decimal(out, p + 1, amount[i])
        p = _put_text(out, p, currency, currency_start[i], currency_length[i])
        p = _put_text(out, p, terminal, terminal_start[i], terminal_length[i])
        p = _put_long(out, p, event_ms[i])
        p = _put_long(out, p, decided_ms[i])
        p = _put_bytes(out, p, constant, segment[MODEL], segment[MODEL + 1] - segment[MODEL])
        p = _put_long(out, p, partition[i if partition.shape[0] > 1 else 0])
        p = _put_long(out, p, row_offset[i])
        p = _put_bytes(out, p, constant, segment[TAIL], segment[TAIL + 1] - segment[TAIL])
        if trace_length[i] == NO_TEXT:
            out[p] = 0
            p += 1
        else:
            out[p] = 2
            p = _put_text(out, p + 1, trace, trace_start[i], trace_length[i])
        row_length[i] = p - row_start[i]
    return p
