# mypy: allow-untyped-defs
"""SHA-1 and SHA-256 over columns of short strings: ids and pseudonyms without a Python object a row.

`hashlib` and `hmac` are the reference that the tests hold these against. Source: FIPS 180-4; RFC 2104 (HMAC).
"""

import math

import numpy as np

from weir.state.jit import kernel

U32 = np.uint32
BLOCK_BYTES = 64
ID_BYTES = 16
PSEUDONYM_BYTES = 22

# A cached pseudonym: length of the id plus one (0: free), the id, the pseudonym; one line of the cache.
CACHE_ROW_BYTES = 64
CACHED_ID_BYTES_MAX = 40
_PSEUDONYM_AT = CACHE_ROW_BYTES - PSEUDONYM_BYTES

_BASE64URL = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root_bits(prime: int) -> int:
    """The first 32 bits of the fraction of the cube root, by whole numbers."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= prime << 96 else (low, middle - 1)
    return low & 0xFFFFFFFF


_K256 = np.array([_cube_root_bits(prime) for prime in _primes(64)], np.uint32)
_START256 = np.array([math.isqrt(prime << 64) & 0xFFFFFFFF for prime in _primes(8)], np.uint32)


@kernel
def _left(word, bits):
    return U32(word << U32(bits)) | U32(word >> U32(32 - bits))


@kernel
def _right(word, bits):
    return U32(word >> U32(bits)) | U32(word << U32(32 - bits))


@kernel
def _pad(message, used, hashed):
    """Put the end of a message behind its `used` bytes; its blocks. `hashed` bytes went before it."""
    blocks = (used + 8) // BLOCK_BYTES + 1
    end = blocks * BLOCK_BYTES
    message[np.uint64(used)] = 0x80
    for at in range(used + 1, end - 8):
        message[np.uint64(at)] = 0
    bits = np.uint64((hashed + used) * 8)
    for byte in range(8):
        message[np.uint64(end - 8 + byte)] = np.uint8((bits >> np.uint64(56 - 8 * byte)) & np.uint64(0xFF))
    return blocks


@kernel
def _load(message, block, words):
    for at in range(16):
        byte = np.uint64(block * BLOCK_BYTES + 4 * at)
        words[at] = (
            (U32(message[byte]) << U32(24))
            | (U32(message[byte + np.uint64(1)]) << U32(16))
            | (U32(message[byte + np.uint64(2)]) << U32(8))
            | U32(message[byte + np.uint64(3)])
        )


@kernel
def _sha1(message, blocks, words, digest):
    """The digest (5 words) of padded blocks."""
    h0, h1, h2 = U32(0x67452301), U32(0xEFCDAB89), U32(0x98BADCFE)
    h3, h4 = U32(0x10325476), U32(0xC3D2E1F0)
    for block in range(blocks):
        _load(message, block, words)
        for t in range(16, 80):
            words[t] = _left(words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16], 1)
        a, b, c, d, e = h0, h1, h2, h3, h4
        for t in range(20):
            x = U32(_left(a, 5) + (d ^ (b & (c ^ d))) + e + words[t] + U32(0x5A827999))
            e, d, c, b, a = d, c, _left(b, 30), a, x
        for t in range(20, 40):
            x = U32(_left(a, 5) + (b ^ c ^ d) + e + words[t] + U32(0x6ED9EBA1))
            e, d, c, b, a = d, c, _left(b, 30), a, x
        for t in range(40, 60):
            x = U32(_left(a, 5) + ((b & c) | (d & (b | c))) + e + words[t] + U32(0x8F1BBCDC))
            e, d, c, b, a = d, c, _left(b, 30), a, x
        for t in range(60, 80):
            x = U32(_left(a, 5) + (b ^ c ^ d) + e + words[t] + U32(0xCA62C1D6))
            e, d, c, b, a = d, c, _left(b, 30), a, x
        # Numba widens a sum of 32-bit words to 64 bits.
        h0, h1, h2, h3, h4 = U32(h0 + a), U32(h1 + b), U32(h2 + c), U32(h3 + d), U32(h4 + e)
    digest[0], digest[1], digest[2], digest[3], digest[4] = h0, h1, h2, h3, h4


@kernel
def _longest(buffer, start, length):
    """Bytes of the longest string; -1 when one lies outside the buffer."""
    longest = np.int64(0)
    for row in range(start.size):
        if start[row] < 0 or length[row] < 0 or start[row] + length[row] > buffer.size:
            return np.int64(-1)
        longest = max(longest, length[row])
    return longest


@kernel
def uuid5_rows(prefix, buffer, start, length, out):
    """Into `out` (n, 16) the UUIDs, version 5, of each string behind `prefix` (namespace and more).

    False when a string lies outside the buffer; then nothing is written.
    """
    longest = _longest(buffer, start, length)
    if longest < 0:
        return False
    message = np.empty(prefix.size + longest + 2 * BLOCK_BYTES, np.uint8)
    message[: prefix.size] = prefix
    words, digest = np.empty(80, np.uint32), np.empty(5, np.uint32)
    for row in range(start.size):
        at = start[row]
        for byte in range(length[row]):
            message[np.uint64(prefix.size + byte)] = buffer[np.uint64(at + byte)]
        blocks = _pad(message, prefix.size + length[row], 0)
        _sha1(message, blocks, words, digest)
        for byte in range(ID_BYTES):
            out[row, byte] = np.uint8((digest[byte // 4] >> U32(24 - 8 * (byte % 4))) & U32(0xFF))
        out[row, 6] = (out[row, 6] & 0x0F) | 0x50
        out[row, 8] = (out[row, 8] & 0x3F) | 0x80
    return True


@kernel
def _sha256(message, blocks, words, state):
    """Takes `state` (8 words) on by the message's blocks."""
    for block in range(blocks):
        _load(message, block, words)
        for t in range(16, 64):
            x, y = words[t - 15], words[t - 2]
            s0 = _right(x, 7) ^ _right(x, 18) ^ U32(x >> U32(3))
            s1 = _right(y, 17) ^ _right(y, 19) ^ U32(y >> U32(10))
            words[t] = U32(words[t - 16] + s0 + words[t - 7] + s1)
        a, b, c, d = state[0], state[1], state[2], state[3]
        e, f, g, h = state[4], state[5], state[6], state[7]
        for t in range(64):
            x = U32(
                h + (_right(e, 6) ^ _right(e, 11) ^ _right(e, 25)) + (g ^ (e & (f ^ g))) + _K256[t] + words[t]
            )
            y = U32((_right(a, 2) ^ _right(a, 13) ^ _right(a, 22)) + ((a & b) | (c & (a | b))))
            h, g, f, e, d, c, b, a = g, f, e, U32(d + x), c, b, a, U32(x + y)
        state[0], state[1] = U32(state[0] + a), U32(state[1] + b)
        state[2], state[3] = U32(state[2] + c), U32(state[3] + d)
        state[4], state[5] = U32(state[4] + e), U32(state[5] + f)
        state[6], state[7] = U32(state[6] + g), U32(state[7] + h)


@kernel
def hmac_states(key, inner, outer):
    """SHA-256 after the key's two pads; the key has at most a block."""
    message, words = np.zeros(BLOCK_BYTES, np.uint8), np.empty(64, np.uint32)
    inner[:], outer[:] = _START256, _START256
    for byte in range(BLOCK_BYTES):
        message[byte] = (key[byte] if byte < key.size else 0) ^ 0x36
    _sha256(message, 1, words, inner)
    for byte in range(BLOCK_BYTES):
        message[byte] ^= 0x36 ^ 0x5C
    _sha256(message, 1, words, outer)
    message[:] = 0


@kernel
def _base64url(mac, out, row):
    """16 bytes as 22 characters, unpadded."""
    for group in range(5):
        bits = (
            (U32(mac[3 * group]) << U32(16)) | (U32(mac[3 * group + 1]) << U32(8)) | U32(mac[3 * group + 2])
        )
        for k in range(4):
            out[row, 4 * group + k] = _BASE64URL[(bits >> U32(18 - 6 * k)) & U32(0x3F)]
    out[row, 20] = _BASE64URL[mac[15] >> 2]
    out[row, 21] = _BASE64URL[(mac[15] & 0x03) << 4]


@kernel
def _is_cached(line, buffer, at, length):
    if line[0] != length + 1:
        return False
    for byte in range(length):  # noqa: SIM110 - a generator is not compiled
        if line[1 + byte] != buffer[np.uint64(at + byte)]:
            return False
    return True


@kernel
def pseudonym_rows(inner, outer, cache, buffer, start, length, out):
    """Into `out` (n, 22) the pseudonym of each string; how many were computed, not found in the cache.

    inner, outer: SHA-256 after the key's two pads (`hmac_states`).
    cache: (a power of two, CACHE_ROW_BYTES); a string has one place in it, and the last one keeps it.
    -1 when a string lies outside the buffer; then nothing is written.
    """
    longest = _longest(buffer, start, length)
    if longest < 0:
        return -1
    message = np.empty(max(longest, 32) + 2 * BLOCK_BYTES, np.uint8)
    words, state, mac = np.empty(64, np.uint32), np.empty(8, np.uint32), np.empty(16, np.uint8)
    mask = np.uint64(cache.shape[0] - 1)
    computed = 0
    for row in range(start.size):
        at, count = start[row], length[row]
        cacheable = count <= CACHED_ID_BYTES_MAX
        slot = np.uint64(0)
        if cacheable:
            mixed = np.uint64(0xCBF29CE484222325)
            for byte in range(count):
                mixed = (mixed ^ np.uint64(buffer[np.uint64(at + byte)])) * np.uint64(0x100000001B3)
            slot = (mixed ^ (mixed >> np.uint64(29))) & mask
            if _is_cached(cache[slot], buffer, at, count):
                for byte in range(PSEUDONYM_BYTES):
                    out[row, byte] = cache[slot, _PSEUDONYM_AT + byte]
                continue
        computed += 1
        for byte in range(count):
            message[np.uint64(byte)] = buffer[np.uint64(at + byte)]
        blocks = _pad(message, count, BLOCK_BYTES)
        state[:] = inner
        _sha256(message, blocks, words, state)
        for byte in range(32):
            message[byte] = np.uint8((state[byte // 4] >> U32(24 - 8 * (byte % 4))) & U32(0xFF))
        blocks = _pad(message, 32, BLOCK_BYTES)
        state[:] = outer
        _sha256(message, blocks, words, state)
        for byte in range(16):
            mac[byte] = np.uint8((state[byte // 4] >> U32(24 - 8 * (byte % 4))) & U32(0xFF))
        _base64url(mac, out, row)
        if cacheable:
            cache[slot, 0] = count + 1
            for byte in range(count):
                cache[slot, 1 + byte] = buffer[np.uint64(at + byte)]
            for byte in range(PSEUDONYM_BYTES):
                cache[slot, _PSEUDONYM_AT + byte] = out[row, byte]
    return computed
