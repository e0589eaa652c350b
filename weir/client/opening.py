"""From a sealed Kafka record to what it says: opened by role, schema resolved by the writer's id, checked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from weir.codec.avro import RowCodec, full_name
from weir.codec.framing import unframe
from weir.codec.registry import SchemaRegistry
from weir.codec.schemas import fingerprint, load_schema, without_keys
from weir.crypto.envelope import HEADER_NAME, parse_envelope_header
from weir.errors import BadInput, IntegrityError

Headers = Iterable[tuple[str, bytes | None]]


class Keys(Protocol):
    """What opens a value: a `Keyring`, or anything of its shape."""

    async def open(self, value: bytes, topic: str, envelope_header: bytes, *, purpose: str) -> bytes:
        """The plaintext.

        Raises:
            AccessDenied: this role may not read it.
            IntegrityError: value, header or topic is not what was sealed.
            NeighbourUnavailable: the key is not held and the key service gives no answer.
        """


@dataclass(frozen=True, slots=True)
class Opened:
    """A record in the clear: `record_id` (16 bytes) is its envelope's, `record` the decoded Avro."""

    record_id: bytes
    schema_id: int
    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"Opened(record_id={self.record_id.hex()}, schema_id={self.schema_id})"


class RecordOpener:
    """Opens the records of one kind (`schema_name`, such as "decision"), whatever version wrote them."""

    def __init__(
        self, schema_name: str, keys: Keys, registry: SchemaRegistry, *, purpose: str, plain: bool = False
    ) -> None:
        """Open for `purpose`; with `plain`, fields come as they lie, at half the cost of decoding.

        Plain means times as ms since the epoch, ids as text, decimals as unscaled bytes.
        """
        self._keys, self._registry, self._purpose = keys, registry, purpose
        self._plain = plain
        self._reader_schema = load_schema(schema_name)
        self._codecs: dict[int, RowCodec] = {}

    async def open(self, topic: str, value: bytes | None, headers: Headers) -> Opened:
        """What the record says.

        Raises:
            AccessDenied: this role may not read it.
            IntegrityError: not sealed, changed, or another record than its header says.
            BadInput: opened, and not Avro of a schema that the registry knows.
            NeighbourUnavailable: key service or registry gives no answer; trying again may help.
        """
        header = envelope_of(headers)
        if value is None:
            raise IntegrityError(f"A record on {topic} has an envelope and no value.")
        schema_id, record_id = parse_envelope_header(header)
        framed = await self._keys.open(value, topic, header, purpose=self._purpose)
        writer_id, payload = unframe(framed)
        if writer_id != schema_id:
            raise IntegrityError(
                f"A record on {topic} names schema {schema_id} outside and {writer_id} inside. "
                "Its producer is faulty: report it."
            )
        codec = self._codecs.get(writer_id) or await self._learn(writer_id)
        return Opened(record_id, schema_id, codec.decode(payload))

    async def _learn(self, writer_id: int) -> RowCodec:
        known = self._registry.known(writer_id)
        writer = known if known is not None else await self._registry.schema_of(writer_id)
        if full_name(writer) != full_name(self._reader_schema):
            raise BadInput("unknown_schema", f"schema id {writer_id} is not a {self._reader_schema['name']}")
        # Resolution costs a third more a record, and the usual writer needs none.
        same = fingerprint(writer) == fingerprint(self._reader_schema)
        reader = self._reader_schema
        if self._plain:
            writer, reader = without_keys(writer, {"logicalType"}), without_keys(reader, {"logicalType"})
        codec = self._codecs[writer_id] = RowCodec(writer, None if same else reader)
        return codec


def envelope_of(headers: Headers) -> bytes:
    """The record's envelope header.

    Raises:
        IntegrityError: it has none, or two.
    """
    found = [value for name, value in headers if name == HEADER_NAME]
    if len(found) != 1 or found[0] is None:
        raise IntegrityError(
            f"The record has {len(found)} {HEADER_NAME} headers, not one: it was not written by Weir."
        )
    return found[0]
