# mypy: allow-untyped-defs
"""The compiled loops that lay records out as Kafka's record batches (magic 2).

Source: Kafka's documentation, Message Format. A record is a varint of its length, then attributes, varints
of timestamp and offset relative to the batch's first, key, value and headers, each behind a varint of its
length.
"""

import numpy as np

from weir.kafka._crc32c import crc32c
from weir.state.jit import kernel

HEADER_BYTES = 61

# Where the fields of a batch's header begin.
_BATCH_LENGTH, _LEADER_EPOCH, _MAGIC, _CRC, _ATTRIBUTES, _LAST_OFFSET = 8, 12, 16, 17, 21, 23
_FIRST_MS, _LAST_MS, _PRODUCER_ID, _PRODUCER_EPOCH, _SEQUENCE, _COUNT = 27, 35, 43, 51, 53, 57
# What the batch's own length field does not count: the base offset and itself.
_UNCOUNTED = 12
_TRANSACTIONAL = 0x10

_ONE, _SEVEN, _63 = np.uint64(1), np.uint64(7), np.uint64(63)


@kernel
def _varint_bytes(value):
    """How many bytes the zigzag varint of an int64 takes."""
    bits = np.uint64((value << 1) ^ (value >> 63))
    count = 1
    while bits > np.uint64(0x7F):
        bits >>= _SEVEN
        count += 1
    return count


@kernel
def _put_varint(out, at, value):
    """The next position."""
    bits = np.uint64((value << 1) ^ (value >> 63))
    while bits > np.uint64(0x7F):
        out[at] = np.uint8((bits & np.uint64(0x7F)) | np.uint64(0x80))
        bits >>= _SEVEN
        at += 1
    out[at] = np.uint8(bits)
    return at + 1


@kernel
def _put_int(out, at, value, count):
    """The low `count` bytes, the highest first."""
    for byte in range(count):
        out[at + byte] = np.uint8((value >> (8 * (count - 1 - byte))) & 0xFF)


@kernel
def _copy(out, at, buffer, start, length):
    """The next position."""
    if length <= 0:
        return at
    # Slices, so that no index can be negative: only then does the compiler copy more than a byte a step.
    target, source = out[at : at + length], buffer[start : start + length]
    for byte in range(length):
        target[byte] = source[byte]
    return at + length


@kernel
def _put_bytes(out, at, buffer, start, length):
    """A varint of the length, then the bytes; the next position. A length of -1 is null."""
    at = _put_varint(out, at, np.int64(length))
    return _copy(out, at, buffer, start, length)


@kernel
def _bytes_bytes(length):
    """How many bytes `_put_bytes` writes."""
    return _varint_bytes(np.int64(length)) + max(length, 0)


@kernel
def inside(size, start, length):
    """Whether every slice lies within `size` bytes; a length of -1 is null."""
    for row in range(len(start)):
        if start[row] < 0 or length[row] < -1 or start[row] + max(length[row], 0) > size:
            return False
    return True


@kernel
def headers_bytes(first, name, name_length, value_length, out):
    """Into `out` how many bytes the headers of each record take; False when `first` or `name` points outside.

    first: (n + 1,) each record's first header. name: (h,) which name. value_length: (h,).
    """
    count = np.int64(len(name))
    for header in range(count):
        if not 0 <= name[header] < len(name_length):
            return False
    for row in range(len(out)):
        if not 0 <= first[row] <= first[row + 1] <= count:
            return False
        total = _varint_bytes(first[row + 1] - first[row])
        for header in range(first[row], first[row + 1]):
            total += _bytes_bytes(name_length[name[header]]) + _bytes_bytes(value_length[header])
        out[row] = total
    return True


@kernel
def plan(bytes_max, key_length, value_length, stamp_ms, header_bytes, body, batch_row, batch_at):
    """Where batches begin; the number of batches. A record above the bound has a batch of its own.

    stamp_ms, header_bytes: (n,), or (1,) for all records.
    Into `body`: (n,) bytes of each record after its length. Into `batch_row` and `batch_at`: (n + 1,) the
    first record and the first byte of each batch, then the end of the last.
    """
    row_count = len(value_length)
    batches = 0
    at = 0
    first, used = 0, 0
    for row in range(row_count):
        ms = stamp_ms[row if len(stamp_ms) > 1 else 0]
        fixed = (
            1
            + _bytes_bytes(key_length[row])
            + _bytes_bytes(value_length[row])
            + header_bytes[row if len(header_bytes) > 1 else 0]
        )
        if row > 0:
            first_ms = stamp_ms[first if len(stamp_ms) > 1 else 0]
            size = fixed + _varint_bytes(ms - first_ms) + _varint_bytes(np.int64(row - first))
            total = _varint_bytes(np.int64(size)) + size
            if used + total <= bytes_max:
                body[row] = size
                used += total
                continue
        # The first of a batch: nothing before it, so both differences are 0 and take a byte each.
        at += used
        batch_row[batches], batch_at[batches] = row, at
        batches += 1
        first = row
        body[row] = fixed + 2
        used = HEADER_BYTES + _varint_bytes(np.int64(body[row])) + body[row]
    batch_row[batches], batch_at[batches] = row_count, at + used
    return batches


@kernel
def fill(
    out,
    batch_row,
    batch_at,
    body,
    key_buffer,
    key_start,
    key_length,
    value_buffer,
    value_start,
    value_length,
    stamp_ms,
    header_block,
    header_first,
    header_name,
    name_buffer,
    name_start,
    name_length,
    header_buffer,
    header_start,
    header_length,
):
    """Write the planned batches, all but what `stamp` writes.

    header_block: the same headers for every record, ready to copy; empty, then `header_first` and the rest
        say what each record has.
    """
    for batch in range(len(batch_row) - 1):
        first, end = batch_row[batch], batch_row[batch + 1]
        at = batch_at[batch]
        first_ms = stamp_ms[first if len(stamp_ms) > 1 else 0]
        last_ms = first_ms
        to = at + HEADER_BYTES
        for row in range(first, end):
            ms = stamp_ms[row if len(stamp_ms) > 1 else 0]
            last_ms = max(last_ms, ms)
            to = _put_varint(out, to, np.int64(body[row]))
            out[to] = 0
            to = _put_varint(out, to + 1, ms - first_ms)
            to = _put_varint(out, to, np.int64(row - first))
            to = _put_bytes(out, to, key_buffer, key_start[row], key_length[row])
            to = _put_bytes(out, to, value_buffer, value_start[row], value_length[row])
            if len(header_block) > 0:
                to = _copy(out, to, header_block, 0, len(header_block))
                continue
            to = _put_varint(out, to, np.int64(header_first[row + 1] - header_first[row]))
            for header in range(header_first[row], header_first[row + 1]):
                name = header_name[header]
                to = _put_bytes(out, to, name_buffer, name_start[name], name_length[name])
                to = _put_bytes(out, to, header_buffer, header_start[header], header_length[header])
        _put_int(out, at, 0, 8)
        _put_int(out, at + _BATCH_LENGTH, batch_at[batch + 1] - at - _UNCOUNTED, 4)
        _put_int(out, at + _LEADER_EPOCH, -1, 4)
        out[at + _MAGIC] = 2
        _put_int(out, at + _LAST_OFFSET, end - first - 1, 4)
        _put_int(out, at + _FIRST_MS, first_ms, 8)
        _put_int(out, at + _LAST_MS, last_ms, 8)
        _put_int(out, at + _COUNT, end - first, 4)


@kernel
def stamp(batch, producer_id, producer_epoch, sequence, transactional):
    """Write who sends the batch, and the checksum over all that follows it."""
    _put_int(batch, _ATTRIBUTES, _TRANSACTIONAL if transactional else 0, 2)
    _put_int(batch, _PRODUCER_ID, producer_id, 8)
    _put_int(batch, _PRODUCER_EPOCH, producer_epoch, 2)
    _put_int(batch, _SEQUENCE, sequence, 4)
    _put_int(batch, _CRC, np.int64(crc32c(batch, _ATTRIBUTES, len(batch))), 4)
