"""The row codec and the frame: what is written is read, and bad bytes are named."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.codec import SAMPLES, TRANSACTION, plain_records
from weir.codec import SUBJECTS, FileRegistry, FramedCodec, RowCodec, frame, load_schema, unframe
from weir.codec.schemas import without_keys
from weir.errors import BadInput, ConfigError

REASONS = {"truncated", "bad_utf8", "bad_enum", "overflow", "trailing_bytes"}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_encoded_is_decoded(name: str) -> None:
    codec = RowCodec(load_schema(name))
    assert codec.decode(codec.encode(SAMPLES[name])) == SAMPLES[name]


@pytest.mark.parametrize("name", SAMPLES)
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_record_survives_the_way(name: str, data: st.DataObject) -> None:
    schema = without_keys(load_schema(name), {"logicalType"})
    record = data.draw(plain_records(schema))
    codec = RowCodec(schema)
    assert codec.decode(codec.encode(record)) == record


@pytest.mark.parametrize("name", SAMPLES)
def test_a_payload_cut_at_any_byte_is_refused(name: str) -> None:
    codec = RowCodec(load_schema(name))
    payload = codec.encode(SAMPLES[name])
    for end in range(len(payload)):
        with pytest.raises(BadInput) as caught:
            codec.decode(payload[:end])
        assert caught.value.reason == "truncated", end
    with pytest.raises(BadInput, match="trailing_bytes"):
        codec.decode(payload + b"\x00")


@pytest.mark.parametrize("name", SAMPLES)
@settings(deadline=None, max_examples=200)
@given(noise=st.binary(max_size=200))
def test_random_bytes_meet_a_named_reason(name: str, noise: bytes) -> None:
    reason = None
    try:
        RowCodec(load_schema(name)).decode(noise)
    except BadInput as error:
        reason = error.reason
    assert reason is None or reason in REASONS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"amount": "12.5"}, "field amount"),
        ({"currency": 7}, "field currency"),
        ({"channel": "PIGEON"}, "field channel"),
        ({"colour": "4f1c-secret"}, "fields that its schema lacks"),
        ({"event_id": None}, "field event_id"),
    ],
)
def test_a_record_that_does_not_fit_is_named_without_its_value(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        RowCodec(load_schema("transaction")).encode({**TRANSACTION, **change})
    assert not any(str(value) in str(caught.value) for value in change.values() if value is not None)


def test_a_missing_field_is_named() -> None:
    record = {name: value for name, value in TRANSACTION.items() if name != "terminal_id"}
    with pytest.raises(BadInput, match="field terminal_id is missing"):
        RowCodec(load_schema("transaction")).encode(record)


def test_a_missing_field_with_a_default_takes_it() -> None:
    record = {name: value for name, value in TRANSACTION.items() if name != "country"}
    codec = RowCodec(load_schema("transaction"))
    assert codec.decode(codec.encode(record))["country"] is None


def test_a_schema_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="not an Avro schema"):
        RowCodec({"type": "record", "name": "R", "fields": [{"name": "a", "type": "strin"}]})


@given(st.integers(0, 2**31 - 1), st.binary())
def test_a_frame_opens_to_what_was_framed(schema_id: int, payload: bytes) -> None:
    assert unframe(frame(schema_id, payload)) == (schema_id, payload)


@pytest.mark.parametrize(
    ("value", "reason"), [(b"", "empty"), (b"{", "not_framed"), (b"\x00\x00\x00\x00", "truncated")]
)
def test_an_unframed_value_is_named(value: bytes, reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        unframe(value)
    assert caught.value.reason == reason


@pytest.mark.parametrize("schema_id", [-1, 2**31])
def test_an_id_out_of_range_is_refused(schema_id: int) -> None:
    with pytest.raises(ValueError, match="schema id"):
        frame(schema_id, b"")


async def test_a_framed_codec_reads_every_version_and_refuses_other_records() -> None:
    older = load_schema("transaction")
    older["fields"] = [field for field in older["fields"] if field["name"] != "country"]
    registry = FileRegistry({}, "test").with_version(SUBJECTS["transaction"], older)
    registry = registry.with_version(SUBJECTS["transaction"], load_schema("transaction"))
    registry = registry.with_version(SUBJECTS["label"], load_schema("label"))
    codec = FramedCodec(load_schema("transaction"), 2, registry)
    assert await codec.decode(codec.encode(TRANSACTION)) == TRANSACTION
    without = {name: value for name, value in TRANSACTION.items() if name != "country"}
    assert await codec.decode(frame(1, RowCodec(older).encode(without))) == TRANSACTION
    for schema_id in (3, 4):
        with pytest.raises(BadInput, match="unknown_schema"):
            await codec.decode(frame(schema_id, b""))
