"""Decisions as the risk service writes them: framed, sealed with a real key, sent to a real topic."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from aiokafka import AIOKafkaProducer

from weir.codec.avro import RowCodec
from weir.codec.framing import frame
from weir.codec.registry import FileRegistry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.crypto.envelope import HEADER_NAME, Sealer, envelope_header
from weir.ids import decision_id

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
KIND = "payment_fraud"
ACCOUNT = "DE89370400440532013000"

Message = tuple[bytes, bytes, list[tuple[str, bytes]]]


def decision_record(index: int = 0, **fields: Any) -> dict[str, Any]:
    """The record of one decision, different for each index; `fields` replace."""
    event_id = f"event-{index}"
    record = {
        "decision_id": decision_id("default", event_id, KIND),
        "tenant": "default",
        "event_id": event_id,
        "account_id": ACCOUNT,
        "kind": KIND,
        "outcome": ("APPROVE", "REVIEW", "DECLINE")[index % 3],
        "score": 0.25,
        "probability": 0.125,
        "logit": -1.0986122886681098,
        "base_logit": -3.0,
        "reasons": [
            {
                "code": "R01",
                "feature": "amount_to_mean_30d",
                "contribution": 1.5,
                "text_en": "The amount is far above this account's usual.",
                "text_zh": "金额远高于该账户的正常水平。",
            }
        ],
        "rules": ["night-high-amount"],
        "amount": Decimal("1234.5600"),
        "currency": "EUR",
        "terminal_id": f"T{index}",
        "event_time": START + timedelta(milliseconds=index),
        "decided_time": START + timedelta(seconds=1, milliseconds=index),
        "model_name": "risk",
        "model_version": "1",
        "model_sha256": "ab" * 32,
        "policy_version": "2026-03",
        "policy_sha256": "cd" * 32,
        "feature_ref": {
            "topic": "bank.transactions",
            "partition": 0,
            "offset": index,
            "feature_spec": "f00d",
        },
        "timings": {"queue_us": 1, "decode_us": 2, "features_us": 3, "model_us": 4, "decide_us": 5},
        "degraded": False,
        "degraded_reason": None,
        "traceparent": None,
    }
    return record | fields


async def sealed_decisions(sealer: Sealer, records: Sequence[dict[str, Any]]) -> list[Message]:
    """Key, value and headers of each record, sealed for the sealer's topic."""
    schema = load_schema("decision")
    schema_id = await FileRegistry.read().id_of(SUBJECTS["decision"], schema)
    codec = RowCodec(schema)
    ids = [uuid.UUID(str(record["decision_id"])).bytes for record in records]
    values = sealer.seal_batch([frame(schema_id, codec.encode(each)) for each in records], ids, schema_id)
    return [
        (b"pseudonym-of-account-1", value, [(HEADER_NAME, envelope_header(schema_id, record_id))])
        for value, record_id in zip(values, ids, strict=True)
    ]


async def send(bootstrap_servers: str, topic: str, messages: Sequence[Message], partitions: int = 4) -> None:
    """Puts the messages into the topic, one partition after the other."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, enable_idempotence=True) as producer:
        waiting = [
            await producer.send(topic, value, key, partition=index % partitions, headers=headers)
            for index, (key, value, headers) in enumerate(messages)
        ]
        for each in waiting:
            await each
