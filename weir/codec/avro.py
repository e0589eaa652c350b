"""Avro one record at a time, by fastavro: the reference, and what everything but the hot path uses."""

import struct
from io import BytesIO
from typing import Any

import fastavro
from fastavro.read import SchemaResolutionError

from weir.codec.framing import frame, unframe
from weir.codec.registry import SchemaRegistry
from weir.codec.schemas import Schema
from weir.errors import BadInput, ConfigError

# What fastavro lets out on bytes that break their schema.
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, MemoryError, struct.error)
_UNFIT = (*_MALFORMED, AttributeError)


def parsed(schema: Schema) -> Any:
    """The schema as fastavro wants it.

    Raises:
        ConfigError: it is not an Avro schema.
    """
    try:
        return fastavro.parse_schema(schema)
    except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, KeyError, TypeError) as error:
        name = schema.get("name", "schema") if isinstance(schema, dict) else "schema"
        raise ConfigError(f"{name} is not an Avro schema: {type(error).__name__} {error}.") from error


class RowCodec:
    """Avro binary of one record, without the frame.

    Decimals are `decimal.Decimal`, timestamps aware `datetime`, uuids `uuid.UUID`.
    """

    def __init__(self, writer_schema: Schema, reader_schema: Schema | None = None) -> None:
        """Encode and decode as `writer_schema`; decoded records take the shape of `reader_schema`.

        Raises:
            ConfigError: not an Avro schema.
        """
        self.name: str = writer_schema["name"]
        self._writer = parsed(writer_schema)
        self._reader = parsed(reader_schema) if reader_schema is not None else None

    def encode(self, obj: dict[str, Any]) -> bytes:
        """Avro binary of `obj`.

        Raises:
            BadInput: `not_encodable`: a field is missing, unknown, of another type or out of range.
        """
        out = BytesIO()
        try:
            fastavro.schemaless_writer(out, self._writer, obj, strict_allow_default=True)
        except _UNFIT:
            raise BadInput("not_encodable", f"{self.name}: {self._misfit(obj)}") from None
        return out.getvalue()

    def _misfit(self, obj: Any) -> str:
        """What of `obj` does not fit, by its field's name; fastavro's own text would hold the value."""
        if not isinstance(obj, dict):
            return "not a dict"
        fields = {field["name"]: field for field in self._writer["fields"]}
        unknown = [name for name in obj if name not in fields]
        if unknown:
            return f"{len(unknown)} fields that its schema lacks"
        for name, field in fields.items():
            if name not in obj:
                if "default" not in field:
                    return f"field {name} is missing"
                continue
            try:
                fastavro.schemaless_writer(BytesIO(), field["type"], obj[name])
            except _UNFIT as error:
                return f"field {name} is of another type or out of range ({type(error).__name__})"
        return "it does not fit"

    def decode(self, payload: bytes) -> dict[str, Any]:
        """The record in `payload`, which must hold nothing else.

        Raises:
            BadInput: `truncated`, `bad_utf8`, `bad_enum`, `overflow` or `trailing_bytes`.
        """
        source = BytesIO(payload)
        try:
            record = fastavro.schemaless_reader(source, self._writer, self._reader)
        except EOFError:
            raise BadInput("truncated", f"bytes end within a {self.name}") from None
        except UnicodeDecodeError:
            raise BadInput("bad_utf8", f"a string of a {self.name} is not UTF-8") from None
        except (SchemaResolutionError, IndexError) as error:
            # Where the bytes end within a number, fastavro's index is one into the string.
            if isinstance(error, IndexError) and str(error).startswith("string"):
                raise BadInput("truncated", f"bytes end within a {self.name}") from None
            raise BadInput(
                "bad_enum", f"a {self.name} names a symbol or branch that its reader lacks"
            ) from None
        except _MALFORMED as error:
            raise BadInput(
                "overflow", f"a value of a {self.name} is out of range ({type(error).__name__})"
            ) from None
        left = len(payload) - source.tell()
        if left:
            raise BadInput("trailing_bytes", f"{left} bytes follow a {self.name}")
        if not isinstance(record, dict):
            raise BadInput("unknown_schema", f"{self.name} is not a record")
        return record


class FramedCodec:
    """Framed records of one schema, whatever version they were written with."""

    def __init__(self, schema: Schema, schema_id: int, registry: SchemaRegistry) -> None:
        """Write as `schema` under `schema_id`; read any version that `registry` knows."""
        self._schema, self._schema_id, self._registry = schema, schema_id, registry
        self._own = RowCodec(schema)
        self._others: dict[int, RowCodec] = {}

    def encode(self, obj: dict[str, Any]) -> bytes:
        """`obj` framed.

        Raises:
            BadInput: `not_encodable`.
        """
        return frame(self._schema_id, self._own.encode(obj))

    async def decode(self, value: bytes) -> dict[str, Any]:
        """The record in a framed value, in the shape of this codec's schema.

        Raises:
            BadInput: as `unframe` and `RowCodec.decode`, or `unknown_schema`.
            NeighbourUnavailable: the Schema Registry gave no answer.
        """
        schema_id, payload = unframe(value)
        if schema_id == self._schema_id:
            return self._own.decode(payload)
        codec = self._others.get(schema_id)
        if codec is None:
            writer = await self._registry.schema_of(schema_id)
            if full_name(writer) != full_name(self._schema):
                raise BadInput("unknown_schema", f"schema id {schema_id} is not a {self._schema['name']}")
            codec = self._others[schema_id] = RowCodec(writer, self._schema)
        return codec.decode(payload)


def full_name(schema: Schema) -> str:
    """Namespace and name of a named type."""
    name: str = schema.get("name", "")
    namespace: str = schema.get("namespace", "")
    return name if "." in name or not namespace else f"{namespace}.{name}"
