"""Confluent's wire format: a zero byte, the schema's id (4 bytes, big endian), then Avro binary."""

import struct

from weir.errors import BadInput

MAGIC = 0
HEADER_BYTES = 5
SCHEMA_ID_MAX = 2**31 - 1

_HEADER = struct.Struct(">BI")


def header(schema_id: int) -> bytes:
    """The five bytes that stand before a payload of this schema.

    Raises:
        ValueError: the id is not within 0 to 2**31 - 1.
    """
    if not 0 <= schema_id <= SCHEMA_ID_MAX:
        raise ValueError(f"schema id {schema_id} is not within 0 to {SCHEMA_ID_MAX}")
    return _HEADER.pack(MAGIC, schema_id)


def frame(schema_id: int, payload: bytes) -> bytes:
    """`payload` with its header."""
    return header(schema_id) + payload


def unframe(value: bytes) -> tuple[int, bytes]:
    """Schema id and payload of a framed value.

    Raises:
        BadInput: `empty`, `not_framed` (first byte is not zero) or `truncated` (shorter than a header).
    """
    if not value:
        raise BadInput("empty", "the value has no bytes")
    if value[0] != MAGIC:
        raise BadInput("not_framed", "the value does not begin with a zero byte and a schema id")
    if len(value) < HEADER_BYTES:
        raise BadInput("truncated", f"the value ends within its header, after {len(value)} bytes")
    return _HEADER.unpack_from(value)[1], value[HEADER_BYTES:]
