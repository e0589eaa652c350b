"""Rewrite `avro_vectors.json`: framed records of every schema, encoded by Apache's own `avro`.

    python -m tests.conformance.make_avro_vectors

Do so only when a schema changes; the records are those of `tests/support/codec.py` and their edges.
"""

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import avro.io
import avro.schema

from tests.support.codec import SAMPLES
from weir.codec import SUBJECTS, FileRegistry, frame, load_schema
from weir.codec.schemas import fingerprint

VECTORS = Path(__file__).with_name("avro_vectors.json")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)

EDGES: dict[str, list[dict[str, Any]]] = {
    "transaction": [
        {"amount": Decimal("0.0000"), "merchant_category": None, "event_time": EPOCH},
        {"amount": Decimal("-0.0001"), "country": "CN", "counterparty_id": "6222020000000002"},
        {"amount": Decimal("922337203685477.5807"), "event_time": LAST, "channel": "OTHER"},
        {"amount": Decimal("0.0128"), "event_id": "", "terminal_id": "终端🏧" * 40},
    ],
    "label": [{"is_fraud": False, "source": "OTHER", "event_time": EPOCH, "reported_time": LAST}],
    "decision": [
        {
            "outcome": "DECLINE",
            "score": None,
            "probability": None,
            "logit": None,
            "base_logit": None,
            "reasons": [],
            "rules": [],
            "degraded": True,
            "degraded_reason": "no answer in 0.08 s",
            "traceparent": None,
        },
        {
            "decision_id": UUID(int=0),
            "score": 1.0,
            "probability": 5e-324,
            "logit": -1.7976931348623157e308,
            "reasons": [
                {
                    "code": f"c{k}",
                    "feature": f"f{k}",
                    "contribution": -k / 3,
                    "text_en": "",
                    "text_zh": "金额" * k,
                }
                for k in range(4)
            ],
            "rules": [f"rule-{k}" for k in range(64)],
            "amount": Decimal("-922337203685477.5807"),
        },
    ],
    "dead_letter": [
        {"value": None, "headers": [], "traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-00"},
        {"key": bytes(range(256)), "value": b"", "timestamp_ms": EPOCH, "offset": 2**63 - 1},
    ],
}


def records(name: str) -> list[dict[str, Any]]:
    """The records of one schema that the vectors hold."""
    return [SAMPLES[name], *({**SAMPLES[name], **edge} for edge in EDGES[name])]


def apache_schema(name: str) -> avro.schema.Schema:
    """The schema as Apache's library reads it."""
    return avro.schema.parse(json.dumps(load_schema(name)))


def apache_encode(name: str, record: dict[str, Any]) -> bytes:
    """Avro binary of `record` by Apache's library."""
    out = io.BytesIO()
    # Apache's library holds a uuid as its text.
    record = {field: str(value) if isinstance(value, UUID) else value for field, value in record.items()}
    avro.io.DatumWriter(apache_schema(name)).write(record, avro.io.BinaryEncoder(out))
    return out.getvalue()


def apache_decode(name: str, payload: bytes) -> Any:
    """The record in `payload` by Apache's library, which must leave nothing over."""
    source = io.BytesIO(payload)
    record = avro.io.DatumReader(apache_schema(name)).read(avro.io.BinaryDecoder(source))
    if source.read():
        raise ValueError("bytes are left over")
    if not isinstance(record, dict):
        raise TypeError("not a record")
    return {field: UUID(value) if field == "decision_id" else value for field, value in record.items()}


def readable(value: Any) -> Any:
    """A record's value as JSON: decimals, times and ids as text, bytes as hexadecimal."""
    if isinstance(value, dict):
        return {name: readable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [readable(part) for part in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return str(value) if isinstance(value, Decimal | UUID) else value


def main() -> None:
    """Write the file."""
    registry = FileRegistry.read()
    vectors = []
    for name, subject in SUBJECTS.items():
        schema_id = {v.fingerprint: v.id for v in registry.subjects[subject]}[fingerprint(load_schema(name))]
        vectors += [
            {
                "schema": name,
                "schema_id": schema_id,
                "value": frame(schema_id, apache_encode(name, record)).hex(),
                "record": readable(record),
            }
            for record in records(name)
        ]
    VECTORS.write_text(json.dumps(vectors, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{VECTORS.name}: {len(vectors)} records by avro {avro.__version__}")


if __name__ == "__main__":
    main()
