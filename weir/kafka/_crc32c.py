# mypy: allow-untyped-defs
"""CRC-32C (Castagnoli): by the processor's own instruction (SSE 4.2), else by tables, eight bytes a step.

Source: RFC 3720, 12.1, and Kounavis and Berry 2005, slicing-by-8.
"""

import platform
from collections.abc import Callable
from typing import Any, cast

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from weir.state.jit import kernel

_POLYNOMIAL = 0x82F63B78  # reflected


def _tables() -> NDArray[np.uint32]:
    """(8, 256): the remainder of a byte that is followed by 0 to 7 others."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = (first >> np.uint32(1)) ^ np.where(first & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    tables = [first]
    for _ in range(7):
        tables.append((tables[-1] >> np.uint32(8)) ^ first[tables[-1] & 0xFF])
    return np.array(tables, np.uint32)


_TABLES = _tables()
_ALL = np.uint32(0xFFFFFFFF)
_LOW = np.uint32(0xFF)
_8, _16, _24 = np.uint32(8), np.uint32(16), np.uint32(24)


@kernel
def by_tables(buffer, start, end):
    """The checksum of the bytes from `start` to `end`, as uint32; on any processor."""
    crc = _ALL
    at = start
    while at + 8 <= end:
        word = crc ^ (
            np.uint32(buffer[at])
            | np.uint32(buffer[at + 1]) << _8
            | np.uint32(buffer[at + 2]) << _16
            | np.uint32(buffer[at + 3]) << _24
        )
        crc = (
            _TABLES[7, word & _LOW]
            ^ _TABLES[6, (word >> _8) & _LOW]
            ^ _TABLES[5, (word >> _16) & _LOW]
            ^ _TABLES[4, word >> _24]
            ^ _TABLES[3, buffer[at + 4]]
            ^ _TABLES[2, buffer[at + 5]]
            ^ _TABLES[1, buffer[at + 6]]
            ^ _TABLES[0, buffer[at + 7]]
        )
        at += 8
    while at < end:
        crc = _TABLES[0, (crc ^ np.uint32(buffer[at])) & _LOW] ^ (crc >> _8)
        at += 1
    return crc ^ _ALL


@intrinsic
def _step(_, crc, buffer, at):
    """The checksum after the eight bytes at `at`."""

    def emit(context, builder, signature, arguments):
        word = ir.IntType(64)
        array = cast(Any, make_array)(signature.args[1])(context, builder, arguments[1])
        place = builder.bitcast(builder.gep(array.data, [arguments[2]]), word.as_pointer())
        step = cast(Any, cgutils).get_or_insert_function(
            builder.module, ir.FunctionType(word, [word, word]), "llvm.x86.sse42.crc32.64.64"
        )
        # A batch is checked from its byte 21 on: no word is aligned.
        return builder.call(step, [arguments[0], builder.load(place, align=1)])

    return types.uint64(types.uint64, buffer, types.int64), emit


step = cast(Callable[..., Any], _step)


@kernel
def by_instruction(buffer, start, end):
    """The same, where `has_instruction()`."""
    words = np.uint64(_ALL)
    at = start
    while at + 8 <= end:
        words = step(words, buffer, at)
        at += 8
    crc = np.uint32(words)
    while at < end:
        crc = _TABLES[0, (crc ^ np.uint32(buffer[at])) & _LOW] ^ (crc >> _8)
        at += 1
    return crc ^ _ALL


def has_instruction() -> bool:
    """Whether numba compiles for this processor (NUMBA_CPU_NAME may say another), and it has SSE 4.2."""
    elsewhere = getattr(config, "CPU_NAME", None) or getattr(config, "CPU_FEATURES", None)
    if elsewhere or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(llvm.get_host_cpu_features().get("sse4.2", False))


crc32c = by_instruction if has_instruction() else by_tables
