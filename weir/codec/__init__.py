"""Avro, Confluent framing and schema ids.

What stands here needs no numpy. The columnar fast paths are `weir.codec.columns` (reading) and
`weir.codec.decision` (writing), of the extra `services`.
"""

from weir.codec.avro import FramedCodec, RowCodec
from weir.codec.framing import frame, unframe
from weir.codec.registry import FileRegistry, HttpRegistry, SchemaRegistry, open_registry
from weir.codec.schemas import SUBJECTS, Schema, load_schema

__all__ = [
    "SUBJECTS",
    "FileRegistry",
    "FramedCodec",
    "HttpRegistry",
    "RowCodec",
    "Schema",
    "SchemaRegistry",
    "frame",
    "load_schema",
    "open_registry",
    "unframe",
]
