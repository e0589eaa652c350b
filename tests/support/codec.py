"""Records and strategies for the codec's tests."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from weir.codec.schemas import Schema

INT64 = st.integers(-(2**63), 2**63 - 1)
TRANSACTION_ID, LABEL_ID, DECISION_ID, DEAD_LETTER_ID = 1, 2, 3, 4

TRANSACTION: dict[str, Any] = {
    "event_id": "evt-0001",
    "account_id": "6222020000000001",
    "terminal_id": "T-000042",
    "amount": Decimal("128.5000"),
    "currency": "CNY",
    "event_time": datetime(2026, 3, 1, 8, 30, 0, 250_000, tzinfo=UTC),
    "channel": "POS",
    "merchant_category": "5411",
    "country": None,
    "counterparty_id": None,
}
LABEL: dict[str, Any] = {
    "event_id": "evt-0001",
    "account_id": "6222020000000001",
    "terminal_id": "T-000042",
    "event_time": datetime(2026, 3, 1, 8, 30, tzinfo=UTC),
    "reported_time": datetime(2026, 3, 9, 10, 0, tzinfo=UTC),
    "is_fraud": True,
    "source": "CHARGEBACK",
}
DECISION: dict[str, Any] = {
    "decision_id": UUID("5b1f0f3e-6e57-5d0c-9d57-3f1c3f0c6c11"),
    "tenant": "demo",
    "event_id": "evt-0001",
    "account_id": "6222020000000001",
    "kind": "payment_fraud",
    "outcome": "REVIEW",
    "score": 0.6,
    "probability": 0.25,
    "logit": 0.4054651081081642,
    "base_logit": -4.5,
    "reasons": [
        {
            "code": "terminal_risk",
            "feature": "terminal_risk_7d",
            "contribution": 1.75,
            "text_en": "Payments at this terminal were reported as fraud",
            "text_zh": "该终端近期有交易被确认为欺诈",
        }
    ],
    "rules": ["night-large"],
    "amount": Decimal("-0.0001"),
    "currency": "CNY",
    "terminal_id": "T-000042",
    "event_time": datetime(2026, 3, 1, 8, 30, tzinfo=UTC),
    "decided_time": datetime(2026, 3, 1, 8, 30, 1, tzinfo=UTC),
    "model_name": "risk",
    "model_version": "1",
    "model_sha256": "ab" * 32,
    "policy_version": "2026-03",
    "policy_sha256": "cd" * 32,
    "feature_ref": {
        "topic": "bank.transactions",
        "partition": 3,
        "offset": 2**40,
        "feature_spec": "0123abcd",
    },
    "timings": {"queue_us": 1, "decode_us": 200, "features_us": 300, "model_us": 4000, "decide_us": 50},
    "degraded": False,
    "degraded_reason": None,
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
DEAD_LETTER: dict[str, Any] = {
    "reason": "truncated",
    "detail": "bytes end within a Transaction",
    "service": "risk",
    "topic": "bank.transactions",
    "partition": 0,
    "offset": 17,
    "timestamp_ms": datetime(2026, 3, 1, 8, 30, tzinfo=UTC),
    "key": None,
    "value": b"\x00\x00\x00\x00\x01\xff",
    "headers": [{"name": "traceparent", "value": b"00"}, {"name": "empty", "value": None}],
    "failed_time": datetime(2026, 3, 1, 8, 30, 2, tzinfo=UTC),
    "traceparent": None,
}
SAMPLES: dict[str, dict[str, Any]] = {
    "transaction": TRANSACTION,
    "label": LABEL,
    "decision": DECISION,
    "dead_letter": DEAD_LETTER,
}


def unscaled_bytes(value: int) -> bytes:
    """The fewest big-endian two's complement bytes that hold `value`."""
    bits = (value if value >= 0 else ~value).bit_length()
    return value.to_bytes(bits // 8 + 1, "big", signed=True)


def plain_values(schema: Any) -> st.SearchStrategy[Any]:
    """Values of a schema whose logical types were left out; a decimal's bytes hold an int64."""
    if isinstance(schema, list):
        return st.one_of([plain_values(branch) for branch in schema])
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return plain_records(schema)
    if kind == "array":
        return st.lists(plain_values(schema["items"]), max_size=3)
    if kind == "enum":
        return st.sampled_from(schema["symbols"])
    if kind == "double":
        return st.floats(allow_nan=False)
    simple: dict[str, st.SearchStrategy[Any]] = {
        "null": st.none(),
        "string": st.text(max_size=20),
        "bytes": st.binary(max_size=20),
        "boolean": st.booleans(),
        "int": st.integers(-(2**31), 2**31 - 1),
        "long": INT64,
    }
    return simple[kind]


def plain_records(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    """Records of a schema without logical types; the field `amount` holds an int64's bytes."""
    return st.fixed_dictionaries(
        {
            field["name"]: INT64.map(unscaled_bytes)
            if field["name"] == "amount"
            else plain_values(field["type"])
            for field in schema["fields"]
        }
    )
