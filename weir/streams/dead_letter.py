"""What becomes of a record that could not be decided: a sealed dead letter that holds all of it."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from weir.codec.avro import RowCodec
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.crypto.envelope import HEADER_NAME, envelope_header
from weir.ids import dead_letter_id
from weir.obs import trace

REASON_HEADER = "weir.reason"

Header = tuple[str, bytes | None]


class BatchSealer(Protocol):
    """What seals: `weir.crypto.envelope.Sealer`."""

    def seal_batch(
        self, plaintexts: Sequence[bytes], record_ids: Sequence[bytes], schema_id: int
    ) -> list[bytes]:
        """One value for each plaintext."""


def record_id(topic: str, partition: int, offset: int) -> bytes:
    """The 16 bytes that a dead letter's envelope carries: UUID version 5 of where the original lay."""
    return dead_letter_id(topic, partition, offset).bytes


def dead_letter(
    record_topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[Header] | None,
    reason: str,
    detail: str,
    service: str,
    failed_ms: int,
) -> dict[str, Any]:
    """The record of `schemas/dead_letter.avsc` for one original, byte for byte as Kafka had it.

    Args:
        timestamp_ms, failed_ms: the original's Kafka timestamp and the time of failure, ms since the epoch.
        reason: one of the closed set that metrics know; it also stands in the clear, as a Kafka header.
        detail: one line without a value of the record.
    """
    kept = list(headers or ())
    context = trace.from_headers(kept)
    return {
        "reason": reason,
        "detail": detail,
        "service": service,
        "topic": record_topic,
        "partition": partition,
        "offset": offset,
        "timestamp_ms": timestamp_ms,
        "key": key,
        "value": value,
        "headers": [{"name": name, "value": content} for name, content in kept],
        "failed_time": failed_ms,
        "traceparent": context.traceparent if context is not None else None,
    }


class DeadLetterWriter:
    """Encodes and seals dead letters into what is sent: a value and its headers."""

    def __init__(self, sealer: BatchSealer, schema_id: int) -> None:
        """Seal with `sealer` (of the dead letter topic); `schema_id` is the registry's for "dead_letter"."""
        self._sealer, self._schema_id = sealer, schema_id
        self._codec = RowCodec(load_schema("dead_letter"))

    def write(self, letters: Sequence[dict[str, Any]]) -> list[tuple[bytes, list[tuple[str, bytes]]]]:
        """Value and headers of each letter that `dead_letter` made, in order.

        Raises:
            BadInput: `not_encodable`: a letter does not fit the schema.
        """
        ids = [record_id(each["topic"], each["partition"], each["offset"]) for each in letters]
        framed = [frame(self._schema_id, self._codec.encode(each)) for each in letters]
        values = self._sealer.seal_batch(framed, ids, self._schema_id)
        return [
            (value, self._headers(letter, letter_id))
            for value, letter, letter_id in zip(values, letters, ids, strict=True)
        ]

    def _headers(self, letter: dict[str, Any], letter_id: bytes) -> list[tuple[str, bytes]]:
        headers = [
            (HEADER_NAME, envelope_header(self._schema_id, letter_id)),
            (REASON_HEADER, letter["reason"].encode("ascii")),
        ]
        if letter["traceparent"] is not None:
            headers.append((trace.TRACEPARENT, letter["traceparent"].encode("ascii")))
        return headers
