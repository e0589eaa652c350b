# mypy: allow-untyped-defs
"""CRC-32C (Castagnoli), for use inside kernels; eight bytes a step.

Source: RFC 3720, appendix B.4 (polynomial 0x1EDC6F41, reflected); Kounavis and Berry 2005, "slicing-by-8".
"""

import numpy as np
from numpy.typing import NDArray

from weir.state.jit import kernel

_REFLECTED = np.uint64(0x82F63B78)
_ONE = np.uint64(1)
_ALL = np.uint32(0xFFFFFFFF)
_FF = np.uint32(0xFF)


def _tables() -> NDArray[np.uint32]:
    """(8, 256): what a byte does to the sum, at each distance from the end of a step."""
    first: NDArray[np.uint64] = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        first = np.where(first & _ONE, (first >> _ONE) ^ _REFLECTED, first >> _ONE)
    tables = [first]
    for _ in range(7):
        tables.append((tables[-1] >> np.uint64(8)) ^ first[(tables[-1] & np.uint64(0xFF)).astype(np.int64)])
    return np.array(tables, np.uint32)


TABLES = _tables()


@kernel
def crc32c(tables, buffer, start, stop, crc):
    """CRC-32C of `buffer[start:stop]`, going on from `crc`, which is 0 at the beginning."""
    crc = np.uint32(crc) ^ _ALL
    at = start
    while at + 8 <= stop:
        low = crc ^ (
            np.uint32(buffer[np.uint64(at)])
            | np.uint32(buffer[np.uint64(at + 1)]) << np.uint32(8)
            | np.uint32(buffer[np.uint64(at + 2)]) << np.uint32(16)
            | np.uint32(buffer[np.uint64(at + 3)]) << np.uint32(24)
        )
        crc = np.uint32(
            tables[7, low & _FF]
            ^ tables[6, (low >> np.uint32(8)) & _FF]
            ^ tables[5, (low >> np.uint32(16)) & _FF]
            ^ tables[4, low >> np.uint32(24)]
            ^ tables[3, buffer[np.uint64(at + 4)]]
            ^ tables[2, buffer[np.uint64(at + 5)]]
            ^ tables[1, buffer[np.uint64(at + 6)]]
            ^ tables[0, buffer[np.uint64(at + 7)]]
        )
        at += 8
    while at < stop:
        crc = np.uint32(tables[0, (crc ^ buffer[np.uint64(at)]) & _FF] ^ (crc >> np.uint32(8)))
        at += 1
    return np.uint32(crc ^ _ALL)
