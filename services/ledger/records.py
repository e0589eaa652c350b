"""From records of the decisions topic to rows: opened for the few clear columns, kept sealed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.ledger.models import Refused, StoredDecision
from weir.client.decisions import verify_id
from weir.client.opening import Opened, RecordOpener, envelope_of
from weir.client.records import Position
from weir.crypto.envelope import parse_envelope_header, sealing_key_id
from weir.errors import AccessDenied, BadInput, IntegrityError

# The widths of the table's columns.
_TEXT_CHARS_MAX = {"tenant": 64, "kind": 64, "model_version": 64, "policy_version": 64}
_KEY_BYTES_MAX = 64
_DETAIL_CHARS_MAX = 512


class KafkaRecord(Protocol):
    """What is read of a record; aiokafka's `ConsumerRecord` is one."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Sorted:
    """A batch's records as rows, in order; `unopened_count` of the decisions have no clear columns."""

    decisions: list[StoredDecision]
    refusals: list[Refused]
    unopened_count: int


async def sort(records: Iterable[KafkaRecord], opener: RecordOpener, now_ms: int) -> Sorted:
    """Each record as a row of one table or the other.

    A record that this role may not open is kept sealed, without clear columns; one that is not what it claims
    to be is refused, whole. `opener` decodes plain.

    Raises:
        NeighbourUnavailable: the key service or the registry gives no answer.
    """
    decisions: list[StoredDecision] = []
    refusals: list[Refused] = []
    unopened_count = 0
    for record in records:
        try:
            row = await _row(record, opener, now_ms)
        except IntegrityError as error:
            refusals.append(refusal(record, "not_opened", str(error), now_ms))
        except BadInput as error:
            refusals.append(refusal(record, error.reason, error.detail, now_ms))
        else:
            decisions.append(row)
            unopened_count += row.outcome is None
    return Sorted(decisions, refusals, unopened_count)


async def _row(record: KafkaRecord, opener: RecordOpener, now_ms: int) -> StoredDecision:
    schema_id, record_id = parse_envelope_header(envelope_of(record.headers))
    value = record.value or b""
    key_id = sealing_key_id(value)
    if record.key is not None and len(record.key) > _KEY_BYTES_MAX:
        raise BadInput("id_too_long", f"the message key has more than {_KEY_BYTES_MAX} bytes")
    clear: dict[str, Any] = {}
    try:
        opened = await opener.open(record.topic, value, record.headers)
    except AccessDenied:
        opened = None
    if opened is not None:
        clear = _clear(opened, Position(record.topic, record.partition, record.offset))
    return StoredDecision(
        decision_id=record_id,
        tenant=clear.get("tenant"),
        kind=clear.get("kind"),
        outcome=clear.get("outcome"),
        degraded=clear.get("degraded"),
        probability=clear.get("probability"),
        model_version=clear.get("model_version"),
        policy_version=clear.get("policy_version"),
        event_ms=clear.get("event_ms"),
        decided_ms=clear.get("decided_ms"),
        account_pseudonym=record.key,
        topic=record.topic,
        kafka_partition=record.partition,
        kafka_offset=record.offset,
        kafka_ms=record.timestamp,
        schema_id=schema_id,
        key_id=key_id,
        ciphertext=value,
        stored_ms=now_ms,
    )


def _clear(opened: Opened, raw: Position) -> dict[str, Any]:
    record = opened.record
    verify_id(record, opened.record_id, raw)
    for name, chars_max in _TEXT_CHARS_MAX.items():
        if len(record[name]) > chars_max:
            raise BadInput("id_too_long", f"{name} has more than {chars_max} characters")
    return {
        **record,
        "event_ms": record["event_time"],
        "decided_ms": record["decided_time"],
    }


def refusal(record: KafkaRecord, reason: str, detail: str, now_ms: int) -> Refused:
    """The record whole, with why it is no decision."""
    headers = [[name, None if value is None else value.hex()] for name, value in record.headers]
    return Refused(
        topic=record.topic,
        kafka_partition=record.partition,
        kafka_offset=record.offset,
        kafka_ms=record.timestamp,
        reason=reason[:32],
        detail=detail[:_DETAIL_CHARS_MAX],
        record_key=record.key,
        value=record.value,
        headers=json.dumps(headers).encode(),
        refused_ms=now_ms,
    )
