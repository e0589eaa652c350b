"""A dead letter holds the whole original; what leaves is sealed, but for its reason."""

import pytest

from weir.client.opening import RecordOpener
from weir.codec.registry import FileRegistry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.crypto import Compartment, DataKey, Opener, Sealer, Secret, Suite
from weir.errors import BadInput
from weir.streams.dead_letter import DeadLetterWriter, dead_letter, record_id

TOPIC = "weir.risk.dlq"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ORIGINAL = {
    "record_topic": "bank.transactions",
    "partition": 3,
    "offset": 17,
    "timestamp_ms": 1_772_442_000_123,
    "key": b"DE89370400440532013000",
    "value": b"\x00\x00\x00\x00\x01broken",
    "headers": [("traceparent", TRACE), ("twice", b"1"), ("twice", None)],
    "reason": "truncated",
    "detail": "bytes end within a Transaction",
    "service": "risk",
    "failed_ms": 1_772_442_001_000,
}


class HeldKeys:
    def __init__(self, key: DataKey) -> None:
        self._opener = Opener()
        self._opener.add(key)

    async def open(self, value, topic, envelope_header, *, purpose):
        return self._opener.open(value, topic, envelope_header)


async def test_sealed_dead_letter_opens_to_the_original_byte_for_byte():
    key = DataKey(7, Compartment(TOPIC, "C3"), 1, Suite.AES_256_GCM, Secret(bytes(range(32))))
    registry = FileRegistry.read()
    schema_id = await registry.id_of(SUBJECTS["dead_letter"], load_schema("dead_letter"))
    ((value, headers),) = DeadLetterWriter(Sealer(TOPIC, key), schema_id).write([dead_letter(**ORIGINAL)])
    named = dict(headers)
    assert named["weir.reason"] == b"truncated"
    assert named["traceparent"] == TRACE
    for secret in (ORIGINAL["key"], b"broken", b"bank.transactions"):
        assert secret not in value

    opener = RecordOpener("dead_letter", HeldKeys(key), registry, purpose="replay")
    opened = await opener.open(TOPIC, value, headers)
    assert opened.record_id == record_id("bank.transactions", 3, 17)
    record = opened.record
    assert (record["key"], record["value"]) == (ORIGINAL["key"], ORIGINAL["value"])
    assert [(each["name"], each["value"]) for each in record["headers"]] == ORIGINAL["headers"]
    assert record["timestamp_ms"].timestamp() == pytest.approx(1_772_442_000.123)
    assert repr(opened) == f"Opened(record_id={opened.record_id.hex()}, schema_id={schema_id})"


async def test_record_of_another_kind_is_not_taken_for_a_decision():
    key = DataKey(7, Compartment(TOPIC, "C3"), 1, Suite.AES_256_GCM, Secret(bytes(range(32))))
    registry = FileRegistry.read()
    schema_id = await registry.id_of(SUBJECTS["dead_letter"], load_schema("dead_letter"))
    ((value, headers),) = DeadLetterWriter(Sealer(TOPIC, key), schema_id).write([dead_letter(**ORIGINAL)])
    with pytest.raises(BadInput, match="unknown_schema"):
        await RecordOpener("decision", HeldKeys(key), registry, purpose="delivery").open(
            TOPIC, value, headers
        )


def test_record_without_key_value_or_headers_is_a_dead_letter_too():
    letter = dead_letter(**ORIGINAL | {"key": None, "value": None, "headers": None})
    assert (letter["key"], letter["value"], letter["headers"], letter["traceparent"]) == (
        None,
        None,
        [],
        None,
    )


def test_place_gives_the_id():
    assert record_id("t", 0, 1) != record_id("t", 1, 0)
    assert len(record_id("t", 0, 1)) == 16
