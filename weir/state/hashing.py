# mypy: allow-untyped-defs
"""Keyed 64-bit hashes of strings (SipHash-2-4), over whole columns.

State is keyed by these, so a dump of the state holds no account number, and nobody without the key can make
identifiers that collide. Source: Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weir.columns import Column
from weir.state.jit import kernel

KEY_BYTES = 16
# Open addressing marks a free slot with key 0; a string that hashes to it takes this instead.
_INSTEAD_OF_ZERO = np.uint64(0x9E3779B97F4A7C15)

_C0 = np.uint64(0x736F6D6570736575)
_C1 = np.uint64(0x646F72616E646F6D)
_C2 = np.uint64(0x6C7967656E657261)
_C3 = np.uint64(0x7465646279746573)
_FF = np.uint64(0xFF)


def keyed_hash(strings: Column, key: bytes) -> NDArray[np.uint64]:
    """(n,) SipHash-2-4 of each string; never 0.

    Raises:
        ValueError: `key` is not 16 bytes.
    """
    return keyed_hash_columns(strings.buffer, strings.start, strings.length, key)


def keyed_hash_columns(
    buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64], key: bytes
) -> NDArray[np.uint64]:
    """(n,) SipHash-2-4 of `buffer[start[i] : start[i] + length[i]]`; never 0.

    Raises:
        ValueError: `key` is not 16 bytes, the columns' lengths differ, or a string leaves the buffer.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"the hash key must be {KEY_BYTES} bytes, not {len(key)}")
    start, length = np.asarray(start, np.int64), np.asarray(length, np.int64)
    if start.shape != length.shape or start.ndim != 1:
        raise ValueError("start and length must be two columns of the same length")
    if start.size and (start.min() < 0 or length.min() < 0 or int((start + length).max()) > buffer.size):
        raise ValueError("a string leaves its buffer")
    k0, k1 = (np.uint64(int.from_bytes(key[at : at + 8], "little")) for at in (0, 8))
    hashes = np.empty(start.size, np.uint64)
    _siphash_columns(np.ascontiguousarray(buffer, np.uint8), start, length, k0, k1, hashes)
    return hashes


def keyed_hash_list(strings: Sequence[bytes], key: bytes) -> NDArray[np.uint64]:
    """(n,) SipHash-2-4 of each of `strings`; never 0. For small batches and tests; columns are faster."""
    length = np.fromiter((len(string) for string in strings), np.int64, len(strings))
    start = np.cumsum(length) - length
    return keyed_hash_columns(np.frombuffer(b"".join(strings), np.uint8), start, length, key)


@kernel
def _rotate(word, bits):
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@kernel
def _round(v0, v1, v2, v3):
    v0 += v1
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 += v3
    v3 = _rotate(v3, 16) ^ v2
    v0 += v3
    v3 = _rotate(v3, 21) ^ v0
    v2 += v1
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


@kernel
def _siphash_columns(buffer, start, length, k0, k1, hashes):
    for row in range(start.size):
        v0, v1, v2, v3 = k0 ^ _C0, k1 ^ _C1, k0 ^ _C2, k1 ^ _C3
        at = start[row]
        whole = at + (length[row] // 8) * 8
        while at < whole:
            word = np.uint64(0)
            for byte in range(8):
                word |= np.uint64(buffer[at + byte]) << np.uint64(8 * byte)
            v3 ^= word
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
            v0 ^= word
            at += 8
        word = np.uint64(length[row] & 0xFF) << np.uint64(56)
        for byte in range(length[row] % 8):
            word |= np.uint64(buffer[at + byte]) << np.uint64(8 * byte)
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
        v2 ^= _FF
        for _ in range(4):
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        value = v0 ^ v1 ^ v2 ^ v3
        hashes[row] = value if value != np.uint64(0) else _INSTEAD_OF_ZERO
