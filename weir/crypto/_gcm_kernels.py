# mypy: allow-untyped-defs
"""The compiled loop that seals a column by OpenSSL's functions, called by their addresses."""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from weir.state.jit import kernel

IV_BYTES, TAG_BYTES, RECORD_ID_BYTES = 12, 16, 16
OUTSIDE = -(1 << 62)

_GET_TAG = 0x10  # EVP_CTRL_AEAD_GET_TAG
_LENGTH_MAX = 2**31 - 1

_unpack: Any = cgutils.unpack_tuple


def _caller(*widths: int) -> Any:
    """An intrinsic that calls the C function at an address: arguments of 32 or 64 bits, an int back."""

    def call(typing, address, arguments):
        def generate(context, builder, signature, args):
            integers = [ir.IntType(width) for width in widths]
            function = builder.inttoptr(args[0], ir.FunctionType(ir.IntType(32), integers).as_pointer())
            given = [
                builder.trunc(value, integer) if integer.width == 32 else value
                for value, integer in zip(_unpack(builder, args[1]), integers, strict=True)
            ]
            return builder.call(function, given)

        expected = types.UniTuple(types.int64, len(widths))  # type: ignore[no-untyped-call]
        return types.int32(types.int64, expected), generate

    return intrinsic(call)


_init: Any = _caller(64, 64, 64, 64, 64)
_update: Any = _caller(64, 64, 64, 64, 32)
_final: Any = _caller(64, 64, 64)
_control: Any = _caller(64, 32, 32, 64)


@kernel
def seal_rows(
    functions, cipher, out, out_start, out_length, prefix, ivs, context, ids, buffer, start, length, scratch
):
    """Fill `out` with prefix, IV, ciphertext and tag of each string, and where each lies.

    0; OUTSIDE when a string leaves its buffer, and nothing is written; or minus the rows that were left when
    OpenSSL refused one.

    functions: (4,) addresses (`_openssl.Functions`). cipher: address of the key's context.
    context: what the tag covers; ends in room for a record id. scratch: (1,) int32.
    """
    for row in range(start.size):
        if start[row] < 0 or not 0 <= length[row] <= _LENGTH_MAX or start[row] + length[row] > buffer.size:
            return np.int64(OUTSIDE)
    init, update, final, control = functions[0], functions[1], functions[2], functions[3]
    base, source, written = out.ctypes.data, buffer.ctypes.data, scratch.ctypes.data
    id_at = context.size - RECORD_ID_BYTES
    at = np.int64(0)
    for row in range(start.size):
        out_start[row] = at
        for byte in range(prefix.size):
            out[np.uint64(at + byte)] = prefix[byte]
        at += prefix.size
        for byte in range(IV_BYTES):
            out[np.uint64(at + byte)] = ivs[row, byte]
        for byte in range(RECORD_ID_BYTES):
            context[id_at + byte] = ids[row, byte]
        text = at + IV_BYTES
        end = text + length[row]
        well = (
            _init(init, (cipher, 0, 0, 0, base + at)) == 1
            and _update(update, (cipher, 0, written, np.int64(context.ctypes.data), context.size)) == 1
            and _update(update, (cipher, base + text, written, source + start[row], length[row])) == 1
            and _final(final, (cipher, base + end, written)) == 1
            and _control(control, (cipher, _GET_TAG, TAG_BYTES, base + end)) == 1
        )
        if not well:
            return np.int64(row - start.size)
        at = end + TAG_BYTES
        out_length[row] = at - out_start[row]
    return np.int64(0)
