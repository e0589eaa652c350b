"""CRC-32C (Castagnoli), eight bytes a step. Source: Kounavis and Berry 2005, slicing-by-8."""

import numpy as np
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
def crc32c(buffer, start, end):  # type: ignore[no-untyped-def]
    """The checksum of the bytes from `start` to `end`, as uint32."""
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
