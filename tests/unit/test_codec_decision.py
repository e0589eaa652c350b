"""The decision writer's bytes are those of the row codec, whatever the columns hold."""

import math
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.codec import DECISION_ID, INT64, unscaled_bytes
from weir.codec import RowCodec, Schema, frame, load_schema
from weir.codec.columns import StringColumn
from weir.codec.decision import (
    OUTCOMES,
    REASONS_MAX,
    DecisionColumns,
    DecisionWriter,
    ReasonText,
    StageTimings,
)
from weir.codec.schemas import without_keys
from weir.errors import ConfigError

REASONS = (
    ReasonText(
        "amount_high",
        "amount_ratio_30d",
        "Far above the account's normal amount",
        "金额远高于该账户的正常水平",
    ),
    ReasonText(
        "terminal_risk", "terminal_risk_7d", "Payments here were reported as fraud", "该终端近期有欺诈报告"
    ),
    ReasonText("", "", "", ""),
    ReasonText("long", "f" * 300, "t" * 5000, "🐉" * 40),
)
SCHEMA = load_schema("decision")
plain = RowCodec(without_keys(SCHEMA, {"logicalType"}))
reference = RowCodec(SCHEMA)
writer = DecisionWriter(SCHEMA, DECISION_ID, REASONS)

text = st.text(max_size=30)
double = st.floats(allow_nan=False)


def nullable(values: list[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def strings(values: list[str]) -> StringColumn:
    return StringColumn.from_list([value.encode() for value in values])


@st.composite
def batches(draw: st.DrawFn) -> tuple[DecisionColumns, list[dict[str, Any]]]:
    """Columns, and the plain records that they stand for."""
    n = draw(st.integers(0, 4))
    rule_ids = draw(st.lists(text, max_size=64))

    def rows(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    row = {
        "decision_id": rows(st.uuids()),
        "event_id": rows(text),
        "account_id": rows(text),
        "currency": rows(text),
        "terminal_id": rows(text),
        "outcome": rows(st.integers(0, 2)),
        "score": rows(st.none() | double),
        "probability": rows(st.none() | double),
        "logit": rows(st.none() | double),
        "reasons": rows(
            st.lists(
                st.tuples(st.integers(-1, len(REASONS) - 1), double),
                min_size=REASONS_MAX,
                max_size=REASONS_MAX,
            )
        ),
        "rules": rows(st.integers(0, 2 ** len(rule_ids) - 1)),
        "amount": rows(INT64),
        "event_time": rows(INT64),
        "decided_time": rows(INT64),
        "offset": rows(INT64),
        "traceparent": rows(st.none() | text),
    }
    head = {name: draw(text) for name in ("tenant", "kind")}
    model_names = ("model_name", "model_version", "model_sha256", "policy_version", "policy_sha256")
    model = {name: draw(text) for name in model_names}
    topic, feature_spec = draw(text), draw(text)
    one_partition = st.integers(0, 2**31 - 1)
    partition = draw(one_partition | st.just(None))
    partitions = rows(one_partition) if partition is None else [partition] * n
    timings = StageTimings(*draw(st.lists(INT64, min_size=5, max_size=5)))
    base_logit = draw(st.none() | double)
    degraded, degraded_reason = draw(st.booleans()), draw(st.none() | text)
    columns = DecisionColumns(
        decision_id=np.array([list(u.bytes) for u in row["decision_id"]], np.uint8).reshape(n, 16),
        event_id=strings(row["event_id"]),
        account_id=strings(row["account_id"]),
        currency=strings(row["currency"]),
        terminal_id=strings(row["terminal_id"]),
        outcome=np.array(row["outcome"], np.int8),
        score=nullable(row["score"]),
        probability=nullable(row["probability"]),
        logit=nullable(row["logit"]),
        base_logit=base_logit,
        reason_index=np.array([[i for i, _ in r] for r in row["reasons"]], np.int16).reshape(n, REASONS_MAX),
        reason_contribution=np.array([[c for _, c in r] for r in row["reasons"]]).reshape(n, REASONS_MAX),
        rules=np.array(row["rules"], np.uint64),
        rule_ids=rule_ids,
        amount=np.array(row["amount"], np.int64),
        event_ms=np.array(row["event_time"], np.int64),
        decided_ms=np.array(row["decided_time"], np.int64),
        row_offset=np.array(row["offset"], np.int64),
        topic=topic,
        partition=np.array(partitions, np.int64) if partition is None else partition,
        feature_spec=feature_spec,
        timings=timings,
        degraded=degraded,
        degraded_reason=degraded_reason,
        traceparent=[None if t is None else t.encode() for t in row["traceparent"]],
        **head,
        **model,
    )
    records = [
        {
            "decision_id": str(row["decision_id"][i]),
            "event_id": row["event_id"][i],
            "account_id": row["account_id"][i],
            "outcome": OUTCOMES[row["outcome"][i]],
            "score": row["score"][i],
            "probability": row["probability"][i],
            "logit": row["logit"][i],
            "base_logit": base_logit,
            "reasons": [
                {**REASONS[index]._asdict(), "contribution": contribution}
                for index, contribution in row["reasons"][i]
                if index >= 0
            ],
            "rules": [rule for k, rule in enumerate(rule_ids) if row["rules"][i] >> k & 1],
            "amount": unscaled_bytes(row["amount"][i]),
            "currency": row["currency"][i],
            "terminal_id": row["terminal_id"][i],
            "event_time": row["event_time"][i],
            "decided_time": row["decided_time"][i],
            "feature_ref": {
                "topic": topic,
                "partition": partitions[i],
                "offset": row["offset"][i],
                "feature_spec": feature_spec,
            },
            "timings": timings._asdict(),
            "degraded": degraded,
            "degraded_reason": degraded_reason,
            "traceparent": row["traceparent"][i],
            **head,
            **model,
        }
        for i in range(n)
    ]
    return columns, records


@settings(deadline=None, max_examples=200)
@given(batches())
def test_bytes_are_those_of_the_row_codec(batch: tuple[DecisionColumns, list[dict[str, Any]]]) -> None:
    columns, records = batch
    assert writer.write(columns) == [frame(DECISION_ID, plain.encode(record)) for record in records]


def decisions(n: int = 3, **changed: Any) -> DecisionColumns:
    """n plain decisions."""
    base = DecisionColumns(
        decision_id=np.arange(n * 16, dtype=np.uint8).reshape(n, 16),
        event_id=strings([f"evt-{i}" for i in range(n)]),
        account_id=strings(["6222"] * n),
        currency=strings(["CNY"] * n),
        terminal_id=strings(["终端-1"] * n),
        outcome=np.zeros(n, np.int8),
        score=np.full(n, 0.5),
        probability=np.full(n, 0.25),
        logit=np.zeros(n),
        base_logit=-1.0,
        reason_index=np.full((n, REASONS_MAX), -1, np.int16),
        reason_contribution=np.zeros((n, REASONS_MAX)),
        rules=np.zeros(n, np.uint64),
        rule_ids=(),
        amount=np.full(n, 12_345_600),
        event_ms=np.full(n, 1_772_000_000_000),
        decided_ms=np.full(n, 1_772_000_000_001),
        row_offset=np.arange(n),
        tenant="demo",
        kind="payment_fraud",
        model_name="risk",
        model_version="1",
        model_sha256="ab",
        policy_version="1",
        policy_sha256="cd",
        topic="bank.transactions",
        partition=0,
        feature_spec="spec",
        timings=StageTimings(1, 2, 3, 4, 5),
        degraded=False,
    )
    return replace(base, **changed)


def read(columns: DecisionColumns) -> list[dict[str, Any]]:
    return [reference.decode(value[5:]) for value in writer.write(columns)]


def test_a_degraded_decision_has_no_numbers_of_a_model() -> None:
    none = np.full(3, math.nan)
    columns = decisions(
        score=none,
        probability=none,
        logit=none,
        base_logit=math.nan,
        degraded=True,
        degraded_reason="no answer",
    )
    for record in read(columns):
        assert [record[name] for name in ("score", "probability", "logit", "base_logit")] == [None] * 4
        assert (record["degraded"], record["degraded_reason"]) == (True, "no answer")
        assert record["reasons"] == []


def test_all_64_rules_are_written_in_their_order() -> None:
    ids = [f"rule-{k}" for k in range(64)]
    record = read(decisions(rule_ids=ids, rules=np.full(3, 2**64 - 1, np.uint64)))[1]
    assert record["rules"] == ids


@pytest.mark.parametrize("value", [0, 1, -1, 127, 128, -128, -129, 32767, -32768, 2**63 - 1, -(2**63)])
def test_an_amount_has_the_fewest_bytes_that_hold_it(value: int) -> None:
    columns = decisions(n=1, amount=np.array([value]))
    encoded = unscaled_bytes(value)
    assert bytes([2 * len(encoded)]) + encoded + b"\x06CNY" in writer.write(columns)[0]
    amount = read(columns)[0]["amount"]
    assert int(amount.scaleb(4)) == value


def test_the_id_is_the_uuids_text() -> None:
    columns = decisions(n=1)
    assert read(columns)[0]["decision_id"] == UUID(bytes=columns.decision_id[0].tobytes())


def test_columns_taken_from_a_batch_are_written_as_they_stand() -> None:
    """Strided, reordered and 32-bit columns, as slicing and models give them."""
    odd = np.array([2, 0])
    columns = decisions(
        n=2,
        event_id=decisions().event_id.take(odd),
        score=np.arange(4, dtype=np.float64)[::2],
        logit=np.zeros(2, np.float32),
        reason_index=np.zeros((2, 8), np.int16)[:, ::2],
    )
    records = read(columns)
    assert [r["event_id"] for r in records] == ["evt-2", "evt-0"]
    assert [r["score"] for r in records] == [0.0, 2.0]
    assert [len(r["reasons"]) for r in records] == [4, 4]


def test_a_large_batch_after_a_small_one_leaves_the_first_as_it_was() -> None:
    first = writer.write(decisions())
    kept = list(first)
    writer.write(decisions(n=2000))
    assert first == kept
    assert writer.write(decisions()) == kept


def test_a_column_of_decisions_holds_what_the_list_does() -> None:
    columns = decisions(n=5)
    assert writer.write_column(columns).to_list() == writer.write(columns)
    assert len(writer.write_column(decisions(n=0))) == 0


WRONG: dict[str, dict[str, Any]] = {
    "differ in length": {"amount": np.zeros(2, np.int64)},
    "decision_id must be": {"decision_id": np.zeros((3, 15), np.uint8)},
    "reason_index and": {"reason_index": np.zeros((3, 5), np.int16)},
    "at most 64": {"rule_ids": ["r"] * 65},
    "not one of OUTCOMES": {"outcome": np.full(3, 3, np.int8)},
    "that has no id": {"rules": np.full(3, 2, np.uint64), "rule_ids": ["only"]},
    "columns of a batch": {"traceparent": [None]},
    "of decisions differ": {"partition": np.zeros(2, np.int64)},
}


@pytest.mark.parametrize("says", WRONG)
def test_columns_that_do_not_fit_are_refused_when_made(says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decisions(**WRONG[says])


def test_what_would_read_outside_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="reason_index"):
        writer.write(decisions(reason_index=np.full((3, REASONS_MAX), len(REASONS), np.int16)))
    column = strings(["a", "b", "c"])
    outside = replace(column, length=np.array([1, 1, 100]))
    with pytest.raises(ValueError, match="outside its buffer"):
        writer.write(decisions(account_id=outside))


def swap(schema: Schema) -> None:
    fields = schema["fields"]
    fields[6], fields[7] = fields[7], fields[6]


@pytest.mark.parametrize(
    "change",
    [
        swap,
        lambda s: s["fields"].pop(),
        lambda s: s["fields"].append({"name": "more", "type": "string"}),
        lambda s: s["fields"][5]["type"]["symbols"].reverse(),
        lambda s: s["fields"][6]["type"].reverse(),
    ],
)
def test_a_schema_of_another_layout_is_refused_before_any_byte(change: Any) -> None:
    schema = load_schema("decision")
    change(schema)
    with pytest.raises(ConfigError, match=r"decision\.avsc"):
        DecisionWriter(schema, DECISION_ID, REASONS)
