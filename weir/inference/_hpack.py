"""Header blocks of HTTP/2 without a dynamic table: each stands for itself, so a block seen before is known.

Who announces a table of size 0 is sent no reference into one. Source: RFC 7541; its static table (Appendix A)
and the lengths of its Huffman code (Appendix B), which is canonical: its words follow from the lengths.
"""

from collections.abc import Iterable
from functools import cache, lru_cache

Headers = tuple[tuple[bytes, bytes], ...]

_STATIC_TEXT = """
:authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200
:status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset
accept-encoding=gzip,_deflate accept-language accept-ranges accept access-control-allow-origin
age allow authorization cache-control
content-disposition content-encoding content-language content-length content-location content-range
content-type cookie date etag expect expires from host if-match if-modified-since if-none-match if-range
if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization range
referer refresh retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary via
www-authenticate
"""
_STATIC: Headers = tuple(
    (name.encode(), value.replace("_", " ").encode())
    for name, _, value in (entry.partition("=") for entry in _STATIC_TEXT.split())
)

# Bits of each byte's word in the Huffman code, sixteen bytes a line.
_WORD_BITS_TEXT = """
13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28
28 28 28 28 28 28 30 28 28 28 28 28 28 28 28 28
6 10 10 12 13 6 8 11 10 10 8 11 8 6 6 6
5 5 5 6 6 6 6 6 6 6 7 8 15 6 12 10
13 6 7 7 7 7 7 7 7 7 7 7 7 7 7 7
7 7 7 7 7 7 7 7 8 7 8 13 19 13 14 6
15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5
6 7 6 5 5 6 7 7 7 7 7 15 11 14 13 28
20 22 20 20 22 22 22 23 22 23 23 23 23 23 24 23
24 24 22 23 24 23 23 23 23 21 22 23 22 23 23 24
22 21 20 22 22 23 23 21 23 22 22 24 21 22 23 23
21 21 22 21 23 22 23 23 20 22 22 22 23 22 22 23
26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25
19 21 26 27 27 26 27 24 21 21 26 26 28 27 27 27
20 24 20 21 22 21 21 23 22 22 25 25 24 24 26 23
26 27 26 26 27 27 27 27 27 28 27 27 27 27 27 26
"""
_WORD_BITS = tuple(map(int, _WORD_BITS_TEXT.split()))
_PADDING_BITS_MAX = 7


class BadHeaders(ValueError):
    """The bytes are no header block, or one that refers to a dynamic table."""


def literals(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block of these headers, nothing indexed and nothing compressed."""
    out = bytearray()
    for name, value in headers:
        out.append(0)
        for text in (name, value):
            out += _integer(len(text), 7) + text
    return bytes(out)


@lru_cache(maxsize=64)
def decode(block: bytes) -> Headers:
    """The headers of a block, in order.

    Raises:
        BadHeaders: it ends too soon, or refers to a dynamic table.
    """
    found: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(block):
        first = block[position]
        if first & 0x80:
            index, position = _read_integer(block, position, 7)
            found.append(_indexed(index))
        elif first & 0xE0 == 0x20:
            _, position = _read_integer(block, position, 5)  # a new size of the table that there is not
        else:
            index, position = _read_integer(block, position, 6 if first & 0x40 else 4)
            if index:
                name = _indexed(index)[0]
            else:
                name, position = _read_text(block, position)
            value, position = _read_text(block, position)
            found.append((name, value))
    return tuple(found)


def _indexed(index: int) -> tuple[bytes, bytes]:
    if not 1 <= index <= len(_STATIC):
        raise BadHeaders("a reference into a dynamic table")
    return _STATIC[index - 1]


def _integer(value: int, prefix_bits: int) -> bytes:
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([value])
    out = bytearray([most])
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_integer(block: bytes, position: int, prefix_bits: int) -> tuple[int, int]:
    if position >= len(block):
        raise BadHeaders("it ends before a number")
    most = (1 << prefix_bits) - 1
    value = block[position] & most
    position += 1
    if value < most:
        return value, position
    shift = 0
    while True:
        if position >= len(block) or shift > 28:
            raise BadHeaders("it ends inside a number")
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _read_text(block: bytes, position: int) -> tuple[bytes, int]:
    compressed = position < len(block) and block[position] & 0x80
    length, position = _read_integer(block, position, 7)
    text = block[position : position + length]
    if len(text) < length:
        raise BadHeaders("it ends inside a text")
    return (_expanded(text) if compressed else text), position + length


@cache
def _words() -> dict[tuple[int, int], int]:
    """The byte of each word, by its bits and its value."""
    words = {}
    word, bits = 0, 0
    for byte in sorted(range(256), key=lambda byte: (_WORD_BITS[byte], byte)):
        word <<= _WORD_BITS[byte] - bits
        bits = _WORD_BITS[byte]
        words[bits, word] = byte
        word += 1
    return words


def _expanded(text: bytes) -> bytes:
    words, out = _words(), bytearray()
    word = bits = 0
    for byte in text:
        for shift in range(7, -1, -1):
            word, bits = word << 1 | byte >> shift & 1, bits + 1
            found = words.get((bits, word))
            if found is not None:
                out.append(found)
                word = bits = 0
    if bits > _PADDING_BITS_MAX or word != (1 << bits) - 1:
        raise BadHeaders("a compressed text does not end well")
    return bytes(out)
