"""Apache's own Avro library and we read each other, live and through the stored vectors."""

import json
from typing import Any

import avro.io
import avro.schema
import numpy as np
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.make_avro_vectors import (
    VECTORS,
    apache_decode,
    apache_encode,
    readable,
    records,
)
from tests.support.codec import SAMPLES, plain_records
from weir.codec import FileRegistry, RowCodec, load_schema, unframe
from weir.codec.columns import ColumnReader, StringColumn
from weir.codec.compatibility import check_compatibility
from weir.codec.decision import OUTCOMES, DecisionColumns, DecisionWriter, ReasonText, StageTimings
from weir.codec.schemas import without_keys

VECTOR_LIST: list[dict[str, Any]] = json.loads(VECTORS.read_text(encoding="utf-8"))
CASES = [(name, index) for name in SAMPLES for index in range(len(records(name)))]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_apache_reads_what_we_write(name: str, index: int) -> None:
    record = records(name)[index]
    assert apache_decode(name, RowCodec(load_schema(name)).encode(record)) == record


@pytest.mark.parametrize(("name", "index"), CASES)
def test_we_read_what_apache_writes(name: str, index: int) -> None:
    record = records(name)[index]
    assert RowCodec(load_schema(name)).decode(apache_encode(name, record)) == record


@pytest.mark.parametrize("vector", VECTOR_LIST, ids=lambda v: v["schema"])
def test_stored_vectors_are_read_under_their_ids(vector: dict[str, Any]) -> None:
    schema_id, payload = unframe(bytes.fromhex(vector["value"]))
    schema = FileRegistry.read().known(schema_id)
    assert schema is not None
    assert schema_id == vector["schema_id"]
    record = RowCodec(schema, load_schema(vector["schema"])).decode(payload)
    assert readable(record) == vector["record"]


def test_the_vectors_cover_every_schema() -> None:
    assert {vector["schema"] for vector in VECTOR_LIST} == set(SAMPLES)


@pytest.mark.parametrize("name", ["transaction", "label"])
def test_stored_vectors_are_read_into_columns(name: str) -> None:
    vectors = [vector for vector in VECTOR_LIST if vector["schema"] == name]
    reader = ColumnReader(load_schema(name))
    columns, poison = reader.read([bytes.fromhex(v["value"]) for v in vectors], vectors[0]["schema_id"])
    assert poison == []
    for i, vector in enumerate(vectors):
        record = vector["record"]
        for field, strings in columns.strings.items():
            wanted = record[field]
            assert strings[i] == (wanted or "").encode()
            if field in columns.present:
                assert columns.present[field][i] == (wanted is not None)
        for field, symbols in reader.enums.items():
            assert symbols[columns.ints[field][i]] == record[field]
        when = np.datetime64(record["event_time"].removesuffix("+00:00"), "ms").astype(np.int64)
        assert columns.ints["event_time"][i] == when
    if name == "transaction":
        wanted_amounts = [int(v["record"]["amount"].replace(".", "")) for v in vectors]
        assert columns.ints["amount"].tolist() == wanted_amounts


@settings(deadline=None, max_examples=50)
@given(
    st.lists(plain_records(without_keys(load_schema("transaction"), {"logicalType"})), min_size=1, max_size=3)
)
def test_columns_hold_what_apache_wrote(drawn: list[dict[str, Any]]) -> None:
    """Any integers and strings, through Apache's encoder without logical types."""
    schema = without_keys(load_schema("transaction"), {"logicalType"})
    parsed = avro.schema.parse(json.dumps(schema))
    values = []
    for record in drawn:
        out = _Bytes()
        record["amount"] = record["amount"][:7]
        avro.io.DatumWriter(parsed).write(record, avro.io.BinaryEncoder(out))
        values.append(b"\x00\x00\x00\x00\x01" + bytes(out.written))
    columns, poison = ColumnReader(load_schema("transaction")).read(values, 1)
    assert poison == []
    assert columns.ints["event_time"].tolist() == [record["event_time"] for record in drawn]
    assert columns.strings["event_id"].to_list() == [record["event_id"].encode() for record in drawn]
    assert columns.ints["amount"].tolist() == [
        int.from_bytes(record["amount"], "big", signed=True) for record in drawn
    ]


class _Bytes:
    """What Apache's encoder writes to."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data


@pytest.mark.parametrize("index", range(len(records("decision"))))
def test_apache_reads_what_the_decision_writer_writes(index: int) -> None:
    record = records("decision")[index]
    reasons = [ReasonText(r["code"], r["feature"], r["text_en"], r["text_zh"]) for r in record["reasons"]]
    shown = len(reasons)

    def numbers(value: float | None) -> np.ndarray:
        return np.array([np.nan if value is None else value])

    def texts(value: str) -> StringColumn:
        return StringColumn.from_list([value.encode()])

    def ms(value: Any) -> np.ndarray:
        return np.array([round(value.timestamp() * 1000)])

    columns = DecisionColumns(
        decision_id=np.frombuffer(record["decision_id"].bytes, np.uint8).reshape(1, 16),
        event_id=texts(record["event_id"]),
        account_id=texts(record["account_id"]),
        currency=texts(record["currency"]),
        terminal_id=texts(record["terminal_id"]),
        outcome=np.array([OUTCOMES.index(record["outcome"])], np.int8),
        score=numbers(record["score"]),
        probability=numbers(record["probability"]),
        logit=numbers(record["logit"]),
        base_logit=record["base_logit"],
        reason_index=np.array([[*range(shown), *[-1] * (4 - shown)]], np.int16),
        reason_contribution=np.array(
            [[*(r["contribution"] for r in record["reasons"]), *[0.0] * (4 - shown)]]
        ),
        rules=np.array([2 ** len(record["rules"]) - 1], np.uint64),
        rule_ids=record["rules"],
        amount=np.array([int(record["amount"].scaleb(4))]),
        event_ms=ms(record["event_time"]),
        decided_ms=ms(record["decided_time"]),
        row_offset=np.array([record["feature_ref"]["offset"]]),
        tenant=record["tenant"],
        kind=record["kind"],
        model_name=record["model_name"],
        model_version=record["model_version"],
        model_sha256=record["model_sha256"],
        policy_version=record["policy_version"],
        policy_sha256=record["policy_sha256"],
        topic=record["feature_ref"]["topic"],
        partition=record["feature_ref"]["partition"],
        feature_spec=record["feature_ref"]["feature_spec"],
        timings=StageTimings(**record["timings"]),
        degraded=record["degraded"],
        degraded_reason=record["degraded_reason"],
        traceparent=[record["traceparent"] and record["traceparent"].encode()],
    )
    value = DecisionWriter(load_schema("decision"), 3, reasons).write(columns)[0]
    schema_id, payload = unframe(value)
    assert schema_id == 3
    assert apache_decode("decision", payload) == record


@pytest.mark.parametrize("name", SAMPLES)
def test_what_we_call_compatible_apache_calls_compatible(name: str) -> None:
    """A field with a default more, and one less; read in both directions."""
    now = load_schema(name)
    more = load_schema(name)
    more["fields"].append({"name": "added", "type": ["null", "string"], "default": None})
    assert check_compatibility(more, [now]) == []
    for reader, writer in ((now, more), (more, now)):
        answer = ReaderWriterCompatibilityChecker().get_compatibility(
            avro.schema.parse(json.dumps(reader)), avro.schema.parse(json.dumps(writer))
        )
        assert answer.compatibility == SchemaCompatibilityType.compatible


@pytest.mark.parametrize("name", SAMPLES)
def test_what_apache_calls_incompatible_we_do_too(name: str) -> None:
    now = load_schema(name)
    for position in range(len(now["fields"])):
        for change in (
            lambda field: field.update(type="boolean" if field["type"] != "boolean" else "string"),
            lambda field: field.update(name=field["name"] + "_2"),
        ):
            changed = load_schema(name)
            field = changed["fields"][position]
            field.pop("default", None)
            change(field)
            answer = ReaderWriterCompatibilityChecker().get_compatibility(
                avro.schema.parse(json.dumps(changed)), avro.schema.parse(json.dumps(now))
            )
            assert answer.compatibility == SchemaCompatibilityType.incompatible
            assert check_compatibility(changed, [now]) != []
